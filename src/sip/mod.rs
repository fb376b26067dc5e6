//! SIP (RFC 3261): framing, message, URI, transactions, dialog. No sockets, no clock.

pub mod flow;
pub mod framer;
pub mod header;
mod headers;
pub mod message;
pub mod names;
mod text;
pub mod uri;
mod wire;
pub mod transaction;
pub mod layer;
pub mod uas;
pub mod dialog;
pub mod session_timer;
pub mod proxy;
pub mod target;
