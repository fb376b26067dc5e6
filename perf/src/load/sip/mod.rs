//! The signalling of a load: all dialogs on one thread, over a few connections.
//!
//! The same rules as `crate::sip::uac`, but a call here is a small state machine without a socket,
//! and messages are written and read as text: at thousands of calls a second a full parse of each
//! message (11 µs with `rsip`) would make the generator the bottleneck. URIs are read by `rsip`, once
//! for each text.

pub mod call;
pub mod callee;
pub mod pool;
pub mod text;
