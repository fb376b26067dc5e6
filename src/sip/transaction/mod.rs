//! The four transactions of RFC 3261 §17, amended by RFC 6026: each a pure state machine.
//!
//! A machine sees status codes and time, never sockets or headers. `sip::layer` finds the machine
//! a message belongs to and does what its [`Step`] says.

pub mod timers;
pub mod client_invite;
pub mod client_request;
pub mod server_invite;
pub mod server_request;

pub use client_invite::ClientInvite;
pub use client_request::ClientRequest;
pub use server_invite::ServerInvite;
pub use server_request::ServerRequest;
pub use timers::{Notify, Step, Timers};
