//! The kernel, made safe: the ring, its provided buffers, tokens, sockets, and a probe; and epoll for
//! where there is no ring.
//!
//! The only room with unsafe code; the invariants it rests on are numbered in `ring.rs`. Others see
//! [`MediaIo`], behind which stands what [`choose`] found to work.

pub mod aead;
mod bufring;
mod choice;
mod epoll;
mod huge_box;
pub mod inherit;
pub mod io;
mod per_socket;
mod prefetch;
pub mod probe;
mod raw_send;
mod region;
mod ring;
mod runtime;
mod share;
mod sockaddr;
mod socket_line;
pub mod sockets;
mod steered;
mod steering;
pub mod thread;
mod token;
mod waiting;
pub mod wake;

pub use choice::{Backend, Choice, choose};
pub use epoll::Epoll;
pub use huge_box::HugeBox;
pub use io::{FORWARD_ROOM_BYTES, Forward, IoCounters, MediaIo, Packet, Receive};
pub use per_socket::PerSocket;
pub use prefetch::{prefetch, prefetch_first};
pub use probe::{Probe, ProbeError, probe, probe_steered};
pub use raw_send::{HEADERS_BYTES, write_headers};
pub use region::{HUGE_BYTES, want_huge_pages};
pub use runtime::Runtime;
pub use share::SharedMemory;
pub use socket_line::{SocketLine, Told};
pub use sockets::bind_pair;
pub use steered::Steered;
pub use steering::{Steering, funnel};
pub use wake::Waker;

#[cfg(test)]
pub(crate) mod tests;
