//! voxring, a unified-messaging media node: it answers calls, takes voice mail and measures itself.
//!
//! The rooms below stand in import order: each imports only from those above it, and
//! `tests/tidy.rs` sees to that. Protocol rooms (`rtp` to `um`) are sans-IO: `now` and bytes go in,
//! outputs come out, and neither clock nor socket is touched, so tests drive them with a fake clock.
//!
//! # Reading order
//!
//! A call is the thread to follow:
//!
//! 1. [`role`]: the supervisor starts a worker; router and service hand a call on; the worker
//!    answers it. Wiring only, and the best first look.
//! 2. [`signal`]: the loop of a signalling shard, from bytes on a connection, under TLS
//!    ([`signal::tls`]) or not, to a SIP message.
//! 3. [`sip`]: framer, message, transactions, dialog; [`sdp`]: offer and answer.
//! 4. [`call::admission`]: may this call come in, and whose is it; [`call`]: its dialog joined to
//!    its media; [`um`]: what the caller hears and may press.
//! 5. [`media::order`]: the whole contract between signalling and media, on one page.
//! 6. [`shard`]: the media loop, a turn each two milliseconds; [`media`]: one leg in it, [`rtp`]: its
//!    packets; [`uring`]: the kernel underneath, and the only unsafe code.
//! 7. [`mailbox`]: from recorded blocks to a message nobody can lose.
//! 8. [`control`]: what an operator types; [`base`]: ids, limits, configuration, the clock.
//! 9. What outlasts a worker that dies: [`shard::ledger`] is where calls and legs are written down,
//!    [`role::worker::estate`] writes and takes them up, the supervisor keeps the sockets.
//!
//! Threads share bounded queues of small enums and immutable audio, nothing else.

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
