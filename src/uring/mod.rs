//! The kernel, made safe: the ring, its provided buffers, tokens, sockets, and a probe.
//!
//! The only room with unsafe code; the invariants it rests on are numbered in `ring.rs`. Others see
//! [`MediaIo`], behind which another backend can stand.

mod bufring;
pub mod io;
mod per_socket;
pub mod probe;
mod region;
mod ring;
mod sockaddr;
pub mod sockets;
pub mod thread;
mod token;
pub mod wake;

pub use io::{FORWARD_ROOM_BYTES, Forward, IoCounters, MediaIo, Packet, Receive};
pub use per_socket::PerSocket;
pub use probe::{Probe, ProbeError, probe};
pub use sockets::bind_pair;
pub use wake::Waker;
