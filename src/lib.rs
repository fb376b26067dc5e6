//! voxring, a unified-messaging media node.
//!
//! Rooms in import order; each imports only from those above it.

pub mod base;
pub mod uring;
pub mod rtp;
pub mod sip;
pub mod sdp;
pub mod media;
pub mod call;
pub mod um;
pub mod mailbox;
pub mod shard;
pub mod signal;
pub mod control;
pub mod role;
