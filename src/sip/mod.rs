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
