//! The trait in front of the kernel: sockets in, datagrams out, one wait per turn.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::Socket;

use crate::base::limits::RTP_DATAGRAM_BYTES_MAX;

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
    /// A datagram came, `at` the latest: `bytes[..length]`, with [`FORWARD_ROOM_BYTES`] of room behind it.
    /// One longer than `RTP_DATAGRAM_BYTES_MAX` comes as nothing at all. With `Some` it goes on from the
    /// same buffer.
    fn datagram(
        &mut self,
        stream: u32,
        from: SocketAddr,
        at: Instant,
        bytes: &mut [u8],
        length: usize,
    ) -> Option<Forward>;
    /// A send was refused; the packet is gone.
    fn send_failed(&mut self, stream: u32);
    /// The stream's socket is closed and its number free.
    fn closed(&mut self, stream: u32);
}

/// A datagram that came.
pub(super) struct Arrived<'a> {
    pub(super) from: SocketAddr,
    /// When it came, as far as that is known.
    pub(super) at: Instant,
    /// It, and the room behind it.
    pub(super) bytes: &'a mut [u8],
    /// Its bytes; more than `RTP_DATAGRAM_BYTES_MAX` if it is longer.
    pub(super) length: usize,
}

impl Arrived<'_> {
    /// Counts it and hands it on.
    pub(super) fn hand_on(
        &mut self,
        stream: u32,
        counters: &mut IoCounters,
        receive: &mut dyn Receive,
    ) -> Option<Forward> {
        counters.received += 1;
        if self.length > RTP_DATAGRAM_BYTES_MAX {
            counters.oversize += 1;
            return receive.datagram(stream, self.from, self.at, &mut [], 0);
        }
        receive.datagram(stream, self.from, self.at, self.bytes, self.length)
    }
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

/// The kernel, seen from a media loop. One turn: `reap`, any number of `send`, `open`, `close` and the others,
/// then `wait`.
///
/// Streams are small numbers chosen by the caller; each is one socket. One that rests costs nothing when a
/// datagram comes; five that are read together cost a third less each than five that come alone.
pub trait MediaIo {
    /// Receives on `socket` as `stream`, from the next `wait` on.
    ///
    /// # Panics
    /// If the stream is open.
    fn open(&mut self, stream: u32, socket: Socket);

    /// Stops receiving; `Receive::closed` follows when the kernel let go. Sends before it leave.
    fn close(&mut self, stream: u32);

    /// Lets the stream's datagrams wait in its socket, from some turn to come on, until they are asked for by
    /// [`Self::read`]. The kernel notes when each came.
    fn rest(&mut self, stream: u32);

    /// Ends the stream's rest: what waits comes at the next [`Self::reap`], the rest as it arrives.
    fn wake(&mut self, stream: u32);

    /// Hands on what waits for a stream that rests. False: there may be more, a flood.
    fn read(&mut self, stream: u32, receive: &mut dyn Receive) -> bool;

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
    /// Completions, and datagrams read without one; without a ring, notifications too.
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
