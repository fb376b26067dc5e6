//! Ids, units, limits, configuration and the clock. No I/O.

pub mod bucket;
pub mod clock;
pub mod config;
pub mod id;
pub mod limits;
pub mod outputs;
pub mod random;
