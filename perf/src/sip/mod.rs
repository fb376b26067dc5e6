//! The caller's SIP side, built and read with `rsip`. Shares no code with the server.

pub mod link;
pub mod sdes;
pub mod sdp;
pub mod target;
pub mod tls;
pub mod uac;
pub mod wire;
