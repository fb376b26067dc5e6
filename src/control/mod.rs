//! Command line, control socket, checks. No packet work.

pub mod call_router;
pub mod cert;
pub mod check;
pub mod cli;
pub mod client;
pub mod commands;
pub mod firewall;
pub mod explain;
pub mod listeners;
pub mod mailboxes;
pub mod names;
pub mod print;
pub mod protocol;
pub mod server;
pub mod startup;
pub mod tls;
pub mod sysctl;
