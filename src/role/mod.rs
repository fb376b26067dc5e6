//! Router, UM service, worker, supervisor: wires the rooms together.

pub mod front;
pub mod link;
pub mod listening;
pub mod process;
pub mod supervisor;
pub mod user_agent;
pub mod worker;
