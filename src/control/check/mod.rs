//! `voxring check`: what is wrong with a configuration and with the machine, each with its fix.
//!
//! `machine` reads facts, `ports` and `limits` compare them with the configuration (and are tested
//! with facts made up), `admission` and `routes` compare the configuration with itself, `live` tries what only
//! trying can tell, `report` prints.

mod admission;
mod limits;
mod live;
mod machine;
mod ports;
mod report;
mod routes;
mod run;
mod tls;

pub use machine::{Machine, raise_descriptor_limit};
pub use report::{Level, Problem, Report};
pub use run::{conflicts, examine, run};
