//! The configuration: one struct a table, one field a key.
//!
//! `tables` is the only place that knows a key: its doc comment, default, range and unit are the
//! field's documentation, the text in `config/voxring.toml` (see [`Config::reference`]) and what
//! loading checks. Unknown keys are errors, and every error names file, line and key.

#[macro_use]
mod declare;
mod load;
mod port_range;
mod reference;
mod tables;

pub use declare::{Choice, Key, Table, Value};
pub use load::{ConfigError, ConfigProblem, Source};
pub use port_range::PortRange;
pub use tables::{
    Calls, Config, Diversion, Handoff, Node, Recording, Router, Rtp, Service, Sip, TestExtensions, Worker,
};
