//! The default backend: one multishot receive per socket, sends without completion.
//!
//! A multishot receive ends for many reasons, a datagram without payload among them, which any
//! stranger can send. So every end starts it again, at most once a millisecond and stream, after
//! what is queued was read directly. A stream's number is free only after the final completion;
//! until then late completions are recognised by their generation and still return their buffer.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::bufring::Buffer;
use super::io::{DEPTHS, Forward, IoCounters, MediaIo, Packet, Receive, announce};
use super::ring::{BUFFERS_MAX, Completion, Handle, Ring};
use super::token::{Op, Token};
use super::waiting::{Moment, STREAM_BATCH, Waiting, stamp};
use super::wake::Waker;

/// A stream is armed again at most this often.
const REARM_INTERVAL: Duration = Duration::from_millis(1);
/// How many completions before its own a datagram is spoken of: time for memory to come near, and to
/// follow pointers in it.
const AHEAD: [usize; DEPTHS] = [12, 9, 6, 3];
/// Fewest receive buffers; more streams get more, up to `BUFFERS_MAX`.
const BUFFERS_MIN: usize = 256;

/// One socket's life in the ring.
enum State {
    /// No socket; the number may be taken.
    Free,
    /// The receive is in flight; cancelled if the stream is `tired`, which then rests.
    Armed { socket: Socket, armed: Instant, tired: bool },
    /// Nothing is in flight; datagrams wait until they are asked for.
    Resting { socket: Socket },
    /// The receive ended and waits in the queue for its turn to start again.
    Ended { socket: Socket, again: Instant },
    /// Cancelled; waiting for the final completion.
    Cancelling { socket: Socket },
    /// Nothing in flight but sends not yet submitted; closed at the next reap.
    Leaving { socket: Socket },
}

struct Stream {
    generation: u32,
    /// Of the socket in `state`.
    handle: Handle,
    state: State,
}

impl State {
    /// Its receive is to end and has not.
    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Armed { tired: true, .. } | Self::Cancelling { .. })
    }
}

/// The io_uring backend. Made and used by one thread.
pub struct PerSocket {
    ring: Ring,
    streams: Vec<Stream>,
    /// Ended receives in order of their end.
    ended: VecDeque<u32>,
    leaving: Vec<u32>,
    completions: VecDeque<Completion>,
    waiting: Waiting<STREAM_BATCH>,
    waker: Arc<Waker>,
    watching: bool,
    moment: Moment,
    counters: IoCounters,
}

impl PerSocket {
    /// A ring of the calling thread for about `streams_max` streams; `waker` ends a `park`.
    ///
    /// # Errors
    /// The kernel or its configuration forbids it; [`super::probe()`] explains.
    pub fn new(now: Instant, streams_max: usize, waker: Arc<Waker>) -> io::Result<Self> {
        let buffers = streams_max.max(BUFFERS_MIN).next_power_of_two();
        let buffers = u16::try_from(buffers).unwrap_or(BUFFERS_MAX).min(BUFFERS_MAX);
        let mut ring = Ring::new(buffers)?;
        ring.make_places(streams_max);
        Ok(Self {
            ring,
            streams: Vec::with_capacity(streams_max),
            ended: VecDeque::new(),
            leaving: Vec::new(),
            completions: VecDeque::new(),
            waiting: Waiting::new(),
            waker,
            watching: false,
            moment: Moment::new(now),
            counters: IoCounters::default(),
        })
    }

    /// Whether the kernel takes absolute deadlines; without it ticks are a little less even.
    pub fn is_absolute(&self) -> bool {
        self.ring.is_absolute()
    }

    fn slot(&mut self, stream: u32) -> &mut Stream {
        let index = usize::try_from(stream).expect("streams are counted in memory");
        if index >= self.streams.len() {
            let handle = Handle::Descriptor(-1);
            self.streams.resize_with(index + 1, || Stream { generation: 0, handle, state: State::Free });
        }
        &mut self.streams[index]
    }

    /// The stream a token names, if that use of it still lasts.
    fn live(&mut self, token: Token) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(usize::try_from(token.slot).ok()?)?;
        let same = stream.generation == token.generation && !matches!(stream.state, State::Free);
        same.then_some(stream)
    }

    /// Starts the receive; a full queue leaves it to the next turn.
    fn arm(&mut self, stream: u32, socket: Socket) {
        let now = self.moment.now;
        let Stream { generation, handle, .. } = *self.slot(stream);
        let token = Token { op: Op::Receive, generation, slot: stream };
        let armed = self.ring.receive(handle, token).is_ok();
        self.slot(stream).state = if armed {
            State::Armed { socket, armed: now, tired: false }
        } else {
            self.ended.push_back(stream);
            State::Ended { socket, again: now + REARM_INTERVAL }
        };
    }

    fn cancel(&mut self, stream: u32, generation: u32) {
        let token = Token { op: Op::Cancel, generation, slot: stream };
        let target = Token { op: Op::Receive, ..token };
        if self.ring.cancel(target, token).is_err() {
            // The queue is stuck behind an overflow: the next turn reaps it.
            self.ended.push_back(stream);
        }
    }

    fn complete(&mut self, completion: Completion, receive: &mut dyn Receive) {
        let Some(token) = completion.token else {
            self.counters.unknown += 1;
            self.give_back(completion.buffer);
            return;
        };
        match token.op {
            Op::Receive => self.received(token, completion, receive),
            Op::Send => {
                self.counters.send_errors += 1;
                if self.live(token).is_some() {
                    receive.send_failed(token.slot);
                }
            }
            Op::Cancel => {
                // Not found means that the final completion is already on its way.
                let again = completion.result != -libc::ENOENT;
                let waits = self.live(token).is_some_and(|stream| stream.state.is_cancelled());
                if again && waits && completion.result != -libc::EALREADY {
                    self.cancel(token.slot, token.generation);
                }
            }
            Op::Wake => {
                self.watching = false;
                self.waker.drain();
            }
        }
    }

    fn received(&mut self, token: Token, completion: Completion, receive: &mut dyn Receive) {
        let Some(stream) = self.live(token) else {
            self.counters.stale += 1;
            self.give_back(completion.buffer);
            return;
        };
        let is_open = matches!(stream.state, State::Armed { .. });
        let mut empty = false;
        match completion.buffer {
            Some(buffer) if is_open => empty = self.deliver(token, buffer, receive),
            buffer => self.give_back(buffer),
        }
        if !completion.more {
            self.receive_ended(token, completion.result, empty, receive);
        }
    }

    /// Hands a datagram on. True if it had no payload.
    fn deliver(&mut self, token: Token, mut buffer: Buffer, receive: &mut dyn Receive) -> bool {
        let mut empty = false;
        let mut onward = None;
        if let Some(mut arrived) = self.ring.datagram(&mut buffer, self.moment.now) {
            empty = arrived.length == 0;
            onward = arrived.hand_on(token.slot, &mut self.counters, receive);
        }
        match onward {
            Some(onward) => self.forward(onward, buffer, receive),
            None => self.ring.give_back(buffer),
        }
        empty
    }

    /// Sends a datagram on from the buffer it came in.
    fn forward(&mut self, onward: Forward, buffer: Buffer, receive: &mut dyn Receive) {
        let Forward { stream, length, to } = onward;
        let Some((socket, token)) = self.outlet(stream) else {
            self.ring.give_back(buffer);
            receive.send_failed(stream);
            return;
        };
        match self.ring.send_received(socket, token, buffer, length, to) {
            Ok(()) => self.counters.sent += 1,
            Err(_) => {
                self.counters.send_errors += 1;
                receive.send_failed(stream);
            }
        }
    }

    /// The socket a stream sends from, and the token of its next send. `None`: it is closed.
    fn outlet(&self, stream: u32) -> Option<(Handle, Token)> {
        let slot = self.streams.get(usize::try_from(stream).ok()?)?;
        match &slot.state {
            State::Armed { .. } | State::Resting { .. } | State::Ended { .. } => {
                let token = Token { op: Op::Send, generation: slot.generation, slot: stream };
                Some((slot.handle, token))
            }
            State::Free | State::Cancelling { .. } | State::Leaving { .. } => None,
        }
    }

    fn receive_ended(&mut self, token: Token, result: i32, empty: bool, receive: &mut dyn Receive) {
        let now = self.moment.now;
        let Some(stream) = self.live(token) else { return };
        match std::mem::replace(&mut stream.state, State::Free) {
            State::Armed { socket, tired: true, .. } => stream.state = State::Resting { socket },
            State::Armed { socket, armed, tired: false } => {
                stream.state = State::Ended { socket, again: now.max(armed + REARM_INTERVAL) };
                self.ended.push_back(token.slot);
                match result {
                    code if code == -libc::ENOBUFS => self.counters.enobufs += 1,
                    code if code < 0 && code != -libc::ECANCELED => self.counters.rearms_error += 1,
                    _ if empty => self.counters.rearms_empty += 1,
                    _ => self.counters.rearms_other += 1,
                }
            }
            State::Cancelling { socket } => self.finish(token.slot, socket, receive),
            other @ (State::Free | State::Resting { .. } | State::Ended { .. } | State::Leaving { .. }) => {
                stream.state = other;
            }
        }
    }

    /// Closes the socket and frees the number.
    fn finish(&mut self, stream: u32, socket: Socket, receive: &mut dyn Receive) {
        let handle = self.slot(stream).handle;
        self.ring.vacate(handle);
        drop(socket);
        let slot = self.slot(stream);
        slot.generation = Token::next_generation(slot.generation);
        slot.state = State::Free;
        receive.closed(stream);
    }

    fn give_back(&mut self, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            self.ring.give_back(buffer);
        }
    }

    /// Closes streams that only waited for their sends to leave.
    fn finish_leaving(&mut self, receive: &mut dyn Receive) {
        if self.leaving.is_empty() || !self.ring.is_submitted() {
            return;
        }
        for stream in std::mem::take(&mut self.leaving) {
            let slot = self.slot(stream);
            match std::mem::replace(&mut slot.state, State::Free) {
                State::Leaving { socket } => self.finish(stream, socket, receive),
                other @ (State::Free
                | State::Armed { .. }
                | State::Resting { .. }
                | State::Ended { .. }
                | State::Cancelling { .. }) => slot.state = other,
            }
        }
    }

    /// Starts ended receives again whose time has come.
    fn rearm(&mut self, receive: &mut dyn Receive) {
        for _ in 0..self.ended.len() {
            let Some(stream) = self.ended.pop_front() else { return };
            let now = self.moment.now;
            let slot = self.slot(stream);
            match &mut slot.state {
                State::Ended { socket, again } if *again <= now => {
                    *again = now + REARM_INTERVAL;
                    let socket = socket.as_raw_fd();
                    if self.read_waiting(stream, socket, receive) {
                        self.start(stream);
                    } else {
                        self.ended.push_back(stream);
                    }
                }
                State::Ended { .. } => self.ended.push_back(stream),
                state if state.is_cancelled() => {
                    let generation = slot.generation;
                    self.cancel(stream, generation);
                }
                State::Free
                | State::Armed { .. }
                | State::Resting { .. }
                | State::Cancelling { .. }
                | State::Leaving { .. } => {}
            }
        }
    }

    /// Arms a stream whose receive is not in flight.
    fn start(&mut self, stream: u32) {
        let slot = self.slot(stream);
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Ended { socket, .. } | State::Resting { socket } => self.arm(stream, socket),
            other
            @ (State::Free | State::Armed { .. } | State::Cancelling { .. } | State::Leaving { .. }) => {
                slot.state = other
            }
        }
    }

    /// Reads what waits in a socket while no receive is in flight. False: there is more than one turn's share,
    /// so a flood costs a bounded time and still cannot hide the datagrams in it.
    fn read_waiting(&mut self, stream: u32, socket: RawFd, receive: &mut dyn Receive) -> bool {
        let mut waiting = std::mem::take(&mut self.waiting);
        let all = waiting.read(socket, self.moment, &mut |arrived| match arrived {
            Ok(mut arrived) => {
                self.counters.completions += 1;
                let onward = arrived.hand_on(stream, &mut self.counters, receive);
                if let Some(Forward { stream, length, to }) = onward {
                    let packet = arrived.bytes.get(..length).unwrap_or_default();
                    let sent = self.send_on(stream, &mut |out| {
                        out.get_mut(..length)?.copy_from_slice(packet);
                        Some((length, to))
                    });
                    if !sent {
                        receive.send_failed(stream);
                    }
                }
            }
            // A pending ICMP error.
            Err(_) => self.counters.rearms_error += 1,
        });
        self.waiting = waiting;
        all
    }

    fn send_on(&mut self, stream: u32, fill: &mut dyn FnMut(&mut [u8]) -> Packet) -> bool {
        let Some((socket, token)) = self.outlet(stream) else { return false };
        match self.ring.send(socket, token, fill) {
            Ok(sent) => {
                self.counters.sent += u64::from(sent);
                sent
            }
            Err(_) => {
                self.counters.send_errors += 1;
                false
            }
        }
    }
}

impl MediaIo for PerSocket {
    fn open(&mut self, stream: u32, socket: Socket) {
        assert!(matches!(self.slot(stream).state, State::Free), "stream {stream} is open");
        self.slot(stream).handle = self.ring.occupy(stream, socket.as_raw_fd());
        self.arm(stream, socket);
    }

    fn close(&mut self, stream: u32) {
        let slot = self.slot(stream);
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Armed { socket, .. } => {
                slot.state = State::Cancelling { socket };
                let generation = slot.generation;
                self.cancel(stream, generation);
            }
            State::Ended { socket, .. } | State::Resting { socket } => {
                slot.state = State::Leaving { socket };
                self.leaving.push(stream);
            }
            other @ (State::Free | State::Cancelling { .. } | State::Leaving { .. }) => {
                slot.state = other;
            }
        }
    }

    fn rest(&mut self, stream: u32) {
        let slot = self.slot(stream);
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Armed { socket, armed, tired: false } => {
                stamp(&socket);
                slot.state = State::Armed { socket, armed, tired: true };
                let generation = slot.generation;
                self.cancel(stream, generation);
            }
            State::Ended { socket, .. } => {
                stamp(&socket);
                slot.state = State::Resting { socket };
            }
            other @ (State::Free
            | State::Armed { .. }
            | State::Resting { .. }
            | State::Cancelling { .. }
            | State::Leaving { .. }) => slot.state = other,
        }
    }

    fn wake(&mut self, stream: u32) {
        match &mut self.slot(stream).state {
            // Its end starts it again.
            State::Armed { tired, .. } => *tired = false,
            State::Resting { .. } => self.start(stream),
            State::Free | State::Ended { .. } | State::Cancelling { .. } | State::Leaving { .. } => {}
        }
    }

    fn read(&mut self, stream: u32, receive: &mut dyn Receive) -> bool {
        match &self.slot(stream).state {
            State::Resting { socket } => {
                let socket = socket.as_raw_fd();
                self.read_waiting(stream, socket, receive)
            }
            State::Free
            | State::Armed { .. }
            | State::Ended { .. }
            | State::Cancelling { .. }
            | State::Leaving { .. } => true,
        }
    }

    fn send(&mut self, stream: u32, fill: &mut dyn FnMut(&mut [u8]) -> Packet) -> bool {
        self.send_on(stream, fill)
    }

    fn reap(&mut self, now: Instant, receive: &mut dyn Receive) {
        self.moment = Moment::new(now);
        self.finish_leaving(receive);
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(&mut completions);
        self.counters.completions += completions.len() as u64;
        while let Some(completion) = completions.pop_front() {
            announce(AHEAD, |others| completions.get(others)?.datagram_of(), receive);
            self.complete(completion, receive);
        }
        self.completions = completions;
        self.rearm(receive);
        self.counters.enters = self.ring.enters;
        self.counters.overflows = self.ring.overflows;
    }

    fn wait(&mut self, want: u32, deadline: Instant) -> io::Result<()> {
        self.ring.wait(want.max(1), deadline)
    }

    fn park(&mut self, deadline: Instant) -> io::Result<()> {
        if !self.watching {
            let token = Token { op: Op::Wake, generation: 0, slot: 0 };
            self.watching = self.ring.watch(self.waker.fd(), token).is_ok();
        }
        self.ring.wait(1, deadline)
    }

    fn counters(&self) -> &IoCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
