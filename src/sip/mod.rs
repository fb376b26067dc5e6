//! SIP (RFC 3261): framing, message, URI, transactions, dialog. No sockets, no clock.

pub mod flow;
