//! The trait in front of the kernel: sockets in, datagrams out, one wait per turn.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::Socket;

/// What a packet is made of: how many bytes were written, and where they go.
pub type Packet = Option<(usize, SocketAddr)>;

/// A datagram on its way on, rewritten in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The stream it leaves from; the one it came by, or another.
    pub stream: u32,
    /// How many bytes of its buffer go out.
    pub length: usize,
    /// Where to.
    pub to: SocketAddr,
}

/// Bytes of room behind each datagram, at least: what protection may add.
pub const FORWARD_ROOM_BYTES: usize = 64;

/// What the media loop does with what the kernel brings.
pub trait Receive {
    /// A datagram of this stream is handed on in a moment, after some others: time to bring near what it
    /// will need. Said several times; `depth` counts them from nought.
    fn expect(&mut self, _stream: u32, _depth: usize) {}
    /// A datagram arrived: `bytes[..length]`, with [`FORWARD_ROOM_BYTES`] of room behind it. One
    /// longer than `RTP_DATAGRAM_BYTES_MAX` comes as nothing at all. With `Some` it goes on from the
    /// same buffer.
    fn datagram(&mut self, stream: u32, from: SocketAddr, bytes: &mut [u8], length: usize)
    -> Option<Forward>;
    /// A send was refused; the packet is gone.
    fn send_failed(&mut self, stream: u32);
    /// The stream's socket is closed and its number free.
    fn closed(&mut self, stream: u32);
}

/// How often a datagram is spoken of.
pub(super) const DEPTHS: usize = 4;

/// Speaks of the datagrams that are handed on after so many others, the farthest first; `stream` says whose
/// one is.
pub(super) fn announce(
    ahead: [usize; DEPTHS],
    stream: impl Fn(usize) -> Option<u32>,
    receive: &mut dyn Receive,
) {
    for (depth, others) in ahead.into_iter().enumerate() {
        if let Some(stream) = stream(others) {
            receive.expect(stream, depth);
        }
    }
}

/// The kernel, seen from a media loop. One turn: `reap`, any number of `send`, `open` and `close`,
/// then `wait`.
///
/// Streams are small numbers chosen by the caller; each is one socket.
pub trait MediaIo {
    /// Receives on `socket` as `stream`, from the next `wait` on.
    ///
    /// # Panics
    /// If the stream is open.
    fn open(&mut self, stream: u32, socket: Socket);

    /// Stops receiving; `Receive::closed` follows when the kernel let go. Sends before it leave.
    fn close(&mut self, stream: u32);

    /// Sends what `fill` writes, to where it says; nothing if it returns `None`. True if a packet
    /// was queued; one the kernel refuses gives false here, or `Receive::send_failed` at a reap.
    fn send(&mut self, stream: u32, fill: &mut dyn FnMut(&mut [u8]) -> Packet) -> bool;

    /// Hands on everything that arrived.
    fn reap(&mut self, now: Instant, receive: &mut dyn Receive);

    /// Submits, then sleeps until `want` completions wait or `deadline` is reached. A backend that
    /// cannot count what waits sleeps to the deadline if more than one is wanted.
    ///
    /// # Errors
    /// Only a broken ring or set of sockets.
    fn wait(&mut self, want: u32, deadline: Instant) -> io::Result<()>;

    /// As `wait` for one completion, but the shard's [`super::Waker`] also ends it.
    ///
    /// # Errors
    /// Only a broken ring or set of sockets.
    fn park(&mut self, deadline: Instant) -> io::Result<()>;

    /// What happened so far.
    fn counters(&self) -> &IoCounters;
}

/// Counters of one backend; they only grow. Those of receives that start again are the ring's, but
/// for socket errors, which every backend counts there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// System calls to submit, to wait, and to ask what waits; without a ring each datagram is one
    /// more.
    pub enters: u64,
    /// Completions; without a ring, datagrams and notifications.
    pub completions: u64,
    /// Datagrams received.
    pub received: u64,
    /// Packets queued to be sent; without a ring, those the kernel took.
    pub sent: u64,
    /// Sends the kernel refused, a full socket buffer included.
    pub send_errors: u64,
    /// Receives that ended because no buffer was free (`ENOBUFS`).
    pub enobufs: u64,
    /// Receives started again after a datagram without payload.
    pub rearms_empty: u64,
    /// Receives started again after a socket error such as `ECONNREFUSED`.
    pub rearms_error: u64,
    /// Receives started again for any other reason, such as a full completion queue.
    pub rearms_other: u64,
    /// Times the completion queue was found to have overflowed.
    pub overflows: u64,
    /// Completions of an earlier use of a slot.
    pub stale: u64,
    /// Completions we cannot have asked for.
    pub unknown: u64,
    /// Datagrams too long to be read whole.
    pub oversize: u64,
}
