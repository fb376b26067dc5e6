//! How much does it carry? `voxperf find`: runs with more and less load until the knee is known.
//!
//! [`slo`] is what a run must keep to, [`search`] says which load to try next, [`bound`] what stood
//! in the way, [`report`] what is left behind. [`find`] joins them over anything that can measure,
//! [`command`] over the load generator.

pub mod bound;
pub mod command;
pub mod report;
pub mod search;
pub mod slo;

mod drive;

pub use drive::{Measure, Plan, find};
