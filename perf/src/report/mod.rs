//! Reports: JSON for programs, and one HTML file for people, which needs no network and no script.
//!
//! [`document`] is what can be reported and how files are read and written; [`runs`], [`search`]
//! and [`comparison`] lay out the pages, [`charts`] says which figures are drawn; [`svg`], [`scale`] and [`html`] draw
//! and write.

pub mod charts;
mod continuity;
pub mod comparison;
pub mod document;
pub mod html;
pub mod runs;
pub mod scale;
pub mod search;
pub mod svg;

pub use document::{Document, Outputs, ReportArgs, report};
