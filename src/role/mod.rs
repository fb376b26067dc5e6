//! Router, UM service, worker, supervisor: wires the rooms together.

pub mod front;
mod gate;
pub mod hop;
pub mod legacy;
pub mod link;
pub mod listening;
mod overload;
pub mod process;
mod refusals;
pub mod supervisor;
pub mod user_agent;
pub mod worker;
