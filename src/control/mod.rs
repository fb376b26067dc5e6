//! Command line, control socket. No packet work.

pub mod client;
pub mod protocol;
pub mod server;
