//! The backend where io_uring is forbidden: readiness from epoll, a system call a datagram.
//!
//! Sockets are watched level-triggered and read in rounds: a round takes one datagram from each
//! socket that has one, and the kernel puts those with more behind the others. So nothing is read in
//! vain to find a queue empty, and a flood on one socket waits its turn like everybody. Most turns
//! have one round; what they leave is ready at once in the next.
//!
//! Under load a wait sleeps out its tick and takes what came by then; waking for each packet would
//! cost as much as all the rest (measured). Sends leave as they are made.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll as Poller, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl::set_timerslack;
use socket2::Socket;

use super::io::{
    Arrived, DEPTHS, FORWARD_ROOM_BYTES, Forward, IoCounters, MediaIo, Packet, Receive, announce,
};
use super::ring::SEND_BYTES_MAX;
use super::sockets::{receive_now, send_now};
use super::waiting::{Moment, STREAM_BATCH, Waiting, stamp};
use super::wake::Waker;
use crate::base::clock;
use crate::base::limits::RTP_DATAGRAM_BYTES_MAX;

/// Sockets of one round; the others have theirs in the next.
const ROUND_SOCKETS_MAX: usize = 256;
/// Rounds of one turn, and so the datagrams it takes from one socket.
const ROUNDS_MAX: usize = 64;
/// Datagrams of one turn: what 4000 streams bring in 20 ms, some milliseconds' work.
const TURN_DATAGRAMS_MAX: usize = 4096;
/// One turn in so many goes on until nothing waits. The others leave a socket's second datagram, which is
/// rare, to the next turn: to learn that there is none costs the kernel a look at each socket.
const THOROUGH_EVERY: u32 = 4;
/// How many others are read before a datagram that is spoken of: fewer than on the ring, for each is two
/// system calls.
const AHEAD: [usize; DEPTHS] = [3, 2, 1, 0];
/// How late the kernel may end this thread's sleep to save a wake-up, in nanoseconds; 50 000 unless
/// told.
const TIMER_SLACK_NS: u64 = 1;
/// Stands for the waker among the streams.
const WAKE: u64 = u64::MAX;
const _: () = assert!(SEND_BYTES_MAX <= RTP_DATAGRAM_BYTES_MAX);

/// One socket's life.
enum State {
    /// No socket; the number may be taken.
    Free,
    Open(Socket),
    /// Open, but not watched.
    Resting(Socket),
    /// Closed; the next reap tells and frees the number.
    Closed,
}

/// The epoll backend. Made and used by one thread.
pub struct Epoll {
    poller: Poller,
    streams: Vec<State>,
    /// Closed since the last reap.
    closed: Vec<u32>,
    /// Open, but the kernel had no room to watch them.
    unwatched: Vec<u32>,
    events: Box<[EpollEvent]>,
    turns: u32,
    /// The datagram at hand, or the packet.
    buffer: Box<[u8]>,
    waiting: Waiting<STREAM_BATCH>,
    moment: Moment,
    waker: Arc<Waker>,
    pub(super) counters: IoCounters,
}

impl Epoll {
    /// A set for about `streams_max` streams of the calling thread; `waker` ends a `park`.
    ///
    /// # Errors
    /// The process is out of descriptors or memory.
    pub fn new(streams_max: usize, waker: Arc<Waker>) -> io::Result<Self> {
        let poller = Poller::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        poller.add(&*waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        // Without it ticks come a little later, that is all.
        let _ = set_timerslack(TIMER_SLACK_NS);
        Ok(Self {
            poller,
            streams: Vec::with_capacity(streams_max),
            closed: Vec::with_capacity(streams_max),
            unwatched: Vec::new(),
            events: vec![EpollEvent::empty(); ROUND_SOCKETS_MAX].into(),
            turns: 0,
            buffer: vec![0; RTP_DATAGRAM_BYTES_MAX + FORWARD_ROOM_BYTES].into(),
            waiting: Waiting::new(),
            moment: Moment::new(clock::now()),
            waker,
            counters: IoCounters::default(),
        })
    }

    fn slot(&mut self, stream: u32) -> &mut State {
        let index = usize::try_from(stream).expect("streams are counted in memory");
        if index >= self.streams.len() {
            self.streams.resize_with(index + 1, || State::Free);
        }
        &mut self.streams[index]
    }

    fn state(&self, stream: u32) -> Option<&State> {
        self.streams.get(usize::try_from(stream).ok()?)
    }

    /// The stream's socket; `None`: it is closed.
    fn socket(&self, stream: u32) -> Option<&Socket> {
        match self.state(stream)? {
            State::Open(socket) | State::Resting(socket) => Some(socket),
            State::Free | State::Closed => None,
        }
    }

    /// Has the kernel tell when a datagram is there.
    fn watch(&mut self, stream: u32) {
        let Some(State::Open(socket)) = self.state(stream) else { return };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(stream));
        match self.poller.add(socket, event) {
            // Twice on the list of those to try again.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(_) => self.unwatched.push(stream),
        }
    }

    /// Takes one datagram of a ready stream.
    fn read(&mut self, stream: u32, buffer: &mut [u8], receive: &mut dyn Receive) {
        let Some(socket) = self.socket(stream) else { return };
        let (length, from) = match receive_now(socket, buffer) {
            Ok(read) => read,
            // It was ready for a datagram with a wrong checksum.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // A pending ICMP error; reading it cleared it.
            Err(_) => {
                self.counters.rearms_error += 1;
                return;
            }
        };
        self.counters.completions += 1;
        let mut arrived = Arrived { from, at: self.moment.now, bytes: buffer, length };
        if let Some(onward) = arrived.hand_on(stream, &mut self.counters, receive) {
            self.forward(onward, buffer, receive);
        }
    }

    /// Sends a datagram on from the buffer it came in.
    fn forward(&mut self, onward: Forward, buffer: &[u8], receive: &mut dyn Receive) {
        let Forward { stream, length, to } = onward;
        let sent = buffer.get(..length).is_some_and(|packet| self.transmit(stream, packet, to));
        if !sent {
            receive.send_failed(stream);
        }
    }

    /// Hands a packet to the kernel. False if the stream is closed or the kernel refuses.
    pub(super) fn transmit(&mut self, stream: u32, packet: &[u8], to: SocketAddr) -> bool {
        let Some(socket) = self.socket(stream) else { return false };
        let sent = send_now(socket, packet, to).is_ok();
        if sent {
            self.counters.sent += 1;
        } else {
            self.counters.send_errors += 1;
        }
        sent
    }

    /// Sleeps until `deadline`, or until a stream, the waker or `other` is ready.
    pub(super) fn park_with(&mut self, other: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        self.counters.enters += 1;
        let ours = PollFd::new(self.poller.0.as_fd(), PollFlags::POLLIN);
        Self::sleep(&mut [ours, PollFd::new(other, PollFlags::POLLIN)], deadline)
    }

    /// Sleeps until `deadline`, or until one of `descriptors` is ready.
    fn sleep(descriptors: &mut [PollFd], deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Ok(());
        }
        match ppoll(descriptors, Some(left.into()), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl MediaIo for Epoll {
    fn open(&mut self, stream: u32, socket: Socket) {
        let slot = self.slot(stream);
        assert!(matches!(slot, State::Free), "stream {stream} is open");
        *slot = State::Open(socket);
        self.watch(stream);
    }

    fn close(&mut self, stream: u32) {
        let slot = self.slot(stream);
        match std::mem::replace(slot, State::Closed) {
            State::Open(socket) => {
                // Closing would do, but for a descriptor that somebody duplicated.
                let _ = self.poller.delete(&socket);
                self.closed.push(stream);
            }
            State::Resting(_) => self.closed.push(stream),
            other @ (State::Free | State::Closed) => *slot = other,
        }
    }

    fn rest(&mut self, stream: u32) {
        let slot = self.slot(stream);
        match std::mem::replace(slot, State::Closed) {
            State::Open(socket) => {
                stamp(&socket);
                *slot = State::Resting(socket);
                if let Some(socket) = self.socket(stream) {
                    // Not watched yet: there was no room.
                    let _ = self.poller.delete(socket);
                }
            }
            other @ (State::Free | State::Resting(_) | State::Closed) => *slot = other,
        }
    }

    fn wake(&mut self, stream: u32) {
        let slot = self.slot(stream);
        match std::mem::replace(slot, State::Closed) {
            State::Resting(socket) => {
                *slot = State::Open(socket);
                self.watch(stream);
            }
            other @ (State::Free | State::Open(_) | State::Closed) => *slot = other,
        }
    }

    fn read(&mut self, stream: u32, receive: &mut dyn Receive) -> bool {
        let Some(State::Resting(socket)) = self.state(stream) else { return true };
        let (socket, moment) = (socket.as_raw_fd(), self.moment);
        let mut waiting = std::mem::take(&mut self.waiting);
        let all = waiting.read(socket, moment, &mut |arrived| match arrived {
            Ok(mut arrived) => {
                self.counters.completions += 1;
                if let Some(onward) = arrived.hand_on(stream, &mut self.counters, receive) {
                    self.forward(onward, arrived.bytes, receive);
                }
            }
            Err(_) => self.counters.rearms_error += 1,
        });
        self.waiting = waiting;
        all
    }

    fn send(&mut self, stream: u32, fill: &mut dyn FnMut(&mut [u8]) -> Packet) -> bool {
        if self.socket(stream).is_none() {
            return false;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let packet = &mut buffer[..SEND_BYTES_MAX];
        let filled = fill(packet);
        let sent = filled.is_some_and(|(length, to)| {
            packet.get(..length).is_some_and(|packet| self.transmit(stream, packet, to))
        });
        self.buffer = buffer;
        sent
    }

    fn reap(&mut self, now: Instant, receive: &mut dyn Receive) {
        self.moment = Moment::new(now);
        while let Some(stream) = self.closed.pop() {
            *self.slot(stream) = State::Free;
            receive.closed(stream);
        }
        for stream in std::mem::take(&mut self.unwatched) {
            self.watch(stream);
        }
        let mut events = std::mem::take(&mut self.events);
        let mut buffer = std::mem::take(&mut self.buffer);
        let is_thorough = self.turns.is_multiple_of(THOROUGH_EVERY);
        self.turns = self.turns.wrapping_add(1);
        let mut taken = 0;
        for _ in 0..ROUNDS_MAX {
            self.counters.enters += 1;
            // Nothing to wait for, so nothing to interrupt: no error is possible but a bug of ours.
            let ready = self.poller.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            for (index, event) in events[..ready].iter().enumerate() {
                let next = &events[index + 1..ready];
                announce(AHEAD, |others| u32::try_from(next.get(others)?.data()).ok(), receive);
                if event.data() == WAKE {
                    self.counters.completions += 1;
                    self.waker.drain();
                } else if let Ok(stream) = u32::try_from(event.data()) {
                    self.read(stream, &mut buffer, receive);
                }
            }
            taken += ready;
            let is_last = if is_thorough { ready == 0 } else { ready < ROUND_SOCKETS_MAX };
            if is_last || taken >= TURN_DATAGRAMS_MAX {
                break;
            }
        }
        (self.events, self.buffer) = (events, buffer);
    }

    fn wait(&mut self, want: u32, deadline: Instant) -> io::Result<()> {
        if want <= 1 {
            return self.park(deadline);
        }
        self.counters.enters += 1;
        Self::sleep(&mut [], deadline)
    }

    fn park(&mut self, deadline: Instant) -> io::Result<()> {
        self.counters.enters += 1;
        Self::sleep(&mut [PollFd::new(self.poller.0.as_fd(), PollFlags::POLLIN)], deadline)
    }

    fn counters(&self) -> &IoCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
