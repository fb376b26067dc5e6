//! The backend with two sockets for all streams: one that [`Steering`] feeds, one raw one that sends.
//!
//! With thousands of sockets used in turn most of a packet's cost is fetching its two sockets from memory. Here
//! a stream's socket holds the port and is otherwise left alone. It stays watched by epoll beneath: what is not
//! steered comes and goes as it does there: IPv6, long packets, what was read at rest, a flood.
//!
//! Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_NET_RAW`.

use std::array;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use socket2::{SockRef, Socket};

use super::epoll::Epoll;
use super::io::{DEPTHS, Forward, IoCounters, MediaIo, Packet, Receive, announce};
use super::raw_send::{self, BATCH, HEADERS_BYTES, Outgoing, RawSend};
use super::ring::SEND_BYTES_MAX;
use super::steering::{Steering, funnel};
use super::waiting::{Moment, Waiting};
use super::wake::Waker;
use crate::base::clock;

/// Datagrams of one turn: what 4000 streams bring in 20 ms.
const TURN_DATAGRAMS_MAX: usize = 4096;
/// More of one stream in one turn are a flood, which has to wait in the stream's own socket: there its queue is
/// full sooner, and it takes turns with all others. A second's audio, after a second's sleep, is none.
const STREAM_DATAGRAMS_MAX: u8 = 64;
/// How many datagrams before its own a stream is spoken of.
const AHEAD: [usize; DEPTHS] = [12, 9, 6, 3];
/// So long a stream that was flooded is left to epoll.
const CALM: Duration = Duration::from_secs(1);
const _: () = assert!(SEND_BYTES_MAX <= raw_send::PAYLOAD_BYTES_MAX);
/// No stream.
const NONE: u32 = u32::MAX;

/// What there is to know of a stream to send for it.
#[derive(Debug, Clone, Copy)]
struct Lane {
    /// Of its socket; `None`: it is left to epoll.
    local: Option<SocketAddrV4>,
    /// Datagrams in the turn of this number.
    taken: u8,
    turn: u16,
}

const LEFT_ALONE: Lane = Lane { local: None, taken: 0, turn: 0 };

/// A packet on its way: whose, where to, and in which place how many bytes.
#[derive(Debug, Clone, Copy)]
struct Queued {
    stream: u32,
    to: SocketAddrV4,
    place: usize,
    length: usize,
}

/// The steered backend. Made and used by one thread.
pub struct Steered {
    epoll: Epoll,
    steering: Steering,
    funnel: Socket,
    waiting: Waiting<BATCH>,
    /// The stream at each port.
    streams: Box<[u32]>,
    lanes: Vec<Lane>,
    turn: u16,
    raw: RawSend,
    /// Packets made here, until they are sent.
    packets: Box<[[u8; HEADERS_BYTES + SEND_BYTES_MAX]; BATCH]>,
    queued: SmallVec<[Queued; BATCH]>,
    /// Streams whose packets were refused since the last reap.
    failed: Vec<u32>,
    /// Streams that are steered again; what came before waits in their own sockets until the next reap.
    woken: Vec<u32>,
    /// Streams that were flooded, and when the first of them is steered again.
    flooded: Vec<u32>,
    calm: Option<Instant>,
    /// Some came to rest since the last reap: what came before may wait in the common socket.
    is_unsettled: bool,
    moment: Moment,
}

impl Steered {
    /// For about `streams_max` streams; `waker` ends a `park`.
    ///
    /// # Errors
    /// The kernel or its configuration forbids it; [`super::probe_steered`] explains.
    pub fn new(streams_max: usize, waker: Arc<Waker>) -> io::Result<Self> {
        let funnel = funnel()?;
        let steering = Steering::new(&funnel)?;
        Ok(Self {
            epoll: Epoll::new(streams_max, waker)?,
            steering,
            funnel,
            waiting: Waiting::new(),
            streams: vec![NONE; usize::from(u16::MAX) + 1].into(),
            lanes: vec![LEFT_ALONE; streams_max],
            turn: 0,
            raw: RawSend::new()?,
            packets: Box::new([[0; HEADERS_BYTES + SEND_BYTES_MAX]; BATCH]),
            queued: SmallVec::new(),
            failed: Vec::new(),
            woken: Vec::new(),
            flooded: Vec::new(),
            calm: None,
            is_unsettled: false,
            moment: Moment::new(clock::now()),
        })
    }

    /// Whether the stream's datagrams come to the common socket.
    pub(super) fn is_steered(&self, stream: u32) -> bool {
        self.lane(stream).local.is_some_and(|local| self.steering.is_taken(local.port()))
    }

    /// Has the stream's datagrams come to the common socket from now on, if it is a stream for that.
    fn steer(&mut self, stream: u32) {
        if let Some(local) = self.lane(stream).local {
            // Without it they come to its own.
            let _ = self.steering.take(*local.ip(), local.port());
        }
    }

    /// Has them come to its own socket.
    fn leave(&mut self, stream: u32) {
        if let Some(local) = self.lane(stream).local {
            self.steering.leave(local.port());
        }
    }

    fn lane(&self, stream: u32) -> Lane {
        usize::try_from(stream).ok().and_then(|at| self.lanes.get(at)).copied().unwrap_or(LEFT_ALONE)
    }

    fn lane_mut(&mut self, stream: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(usize::try_from(stream).ok()?)
    }

    fn at_port(&mut self, port: u16) -> Option<&mut u32> {
        self.streams.get_mut(usize::from(port))
    }

    /// Whose the datagram in this place is.
    fn stream_of(&self, place: usize) -> Option<u32> {
        let port = self.waiting.port(place)?;
        let stream = *self.streams.get(usize::from(port))?;
        (stream != NONE).then_some(stream)
    }

    /// Hands on what came to the common socket.
    fn reap_steered(&mut self, receive: &mut dyn Receive) {
        self.turn = self.turn.wrapping_add(1);
        self.is_unsettled = false;
        for _ in 0..TURN_DATAGRAMS_MAX / BATCH {
            self.epoll.counters.enters += 1;
            // Nothing waits, or an error that no read can make good.
            let Ok(count) = self.waiting.fill(self.funnel.as_raw_fd()) else { return };
            self.epoll.counters.completions += count as u64;
            let mut onward = SmallVec::<[Queued; BATCH]>::new();
            let streams: [Option<u32>; BATCH] =
                array::from_fn(|place| (place < count).then(|| self.stream_of(place)).flatten());
            for (place, stream) in streams.into_iter().enumerate().take(count) {
                announce(AHEAD, |others| *streams.get(place + 1 + others)?, receive);
                match stream {
                    Some(stream) => self.take(stream, place, &mut onward, receive),
                    None => self.epoll.counters.stale += 1,
                }
            }
            self.forward(&onward);
            if count < BATCH {
                return;
            }
        }
    }

    fn take(
        &mut self,
        stream: u32,
        place: usize,
        onward: &mut SmallVec<[Queued; BATCH]>,
        receive: &mut dyn Receive,
    ) {
        self.police(stream);
        let Some(mut arrived) = self.waiting.arrived(place, self.moment) else { return };
        let Some(Forward { stream, length, to }) = arrived.hand_on(stream, &mut self.epoll.counters, receive)
        else {
            return;
        };
        let (local, Some(packet)) = (self.lane(stream).local, self.waiting.packet(place, length)) else {
            receive.send_failed(stream);
            return;
        };
        match (local, to) {
            (Some(from), SocketAddr::V4(to)) if length <= raw_send::PAYLOAD_BYTES_MAX => {
                self.raw.address(packet, from, to);
                onward.push(Queued { stream, to, place, length });
            }
            _ => {
                if !self.epoll.transmit(stream, &packet[HEADERS_BYTES..], to) {
                    receive.send_failed(stream);
                }
            }
        }
    }

    /// Counts a stream's datagrams of this turn; too many of them are moved to its own socket for a while.
    fn police(&mut self, stream: u32) {
        let turn = self.turn;
        let Some(lane) = self.lane_mut(stream) else { return };
        lane.taken = if lane.turn == turn { lane.taken.saturating_add(1) } else { 1 };
        lane.turn = turn;
        if lane.taken > STREAM_DATAGRAMS_MAX && self.is_steered(stream) {
            self.leave(stream);
            self.flooded.push(stream);
            self.calm.get_or_insert(self.moment.now + CALM);
        }
    }

    /// Steers again what was flooded.
    fn calm_down(&mut self) {
        if self.calm.is_some_and(|calm| calm <= self.moment.now) {
            self.calm = None;
            while let Some(stream) = self.flooded.pop() {
                self.steer(stream);
            }
        }
    }

    /// Forgets what was to become of the stream at the next reap.
    fn forget(&mut self, stream: u32) {
        self.woken.retain(|woken| *woken != stream);
        self.flooded.retain(|flooded| *flooded != stream);
    }

    /// Sends on what lies in the places of the common socket.
    fn forward(&mut self, onward: &[Queued]) {
        let bytes = |queued: &Queued| self.waiting.written(queued.place, queued.length);
        transmit(&self.raw, onward, bytes, (&mut self.epoll.counters, &mut self.failed));
    }

    /// Sends the packets made here.
    fn flush(&mut self) {
        let Self { raw, packets, queued, epoll, failed, .. } = self;
        let bytes =
            |queued: &Queued| packets[queued.place].get(..HEADERS_BYTES + queued.length).unwrap_or_default();
        transmit(raw, queued, bytes, (&mut epoll.counters, failed));
        queued.clear();
    }
}

/// Sends packets, and counts and notes what is refused.
fn transmit<'a>(
    raw: &RawSend,
    queued: &[Queued],
    bytes: impl Fn(&Queued) -> &'a [u8],
    (counters, failed): (&mut IoCounters, &mut Vec<u32>),
) {
    if queued.is_empty() {
        return;
    }
    let packets = queued.iter().map(|queued| Outgoing { bytes: bytes(queued), to: queued.to });
    counters.enters += 1;
    counters.sent += raw.transmit(packets, |refused| {
        counters.send_errors += 1;
        failed.extend(queued.get(refused).map(|queued| queued.stream));
    });
}

impl MediaIo for Steered {
    fn open(&mut self, stream: u32, socket: Socket) {
        let local = socket.local_addr().ok().and_then(|address| address.as_socket_ipv4());
        // The kernel gives a connected socket its datagrams before any program is asked.
        let local = local.filter(|_| SockRef::from(&socket).peer_addr().is_err());
        let local = local.filter(|local| self.raw.bind(*local.ip()));
        self.epoll.open(stream, socket);
        let at = usize::try_from(stream).expect("streams are counted in memory");
        if at >= self.lanes.len() {
            self.lanes.resize(at + 1, LEFT_ALONE);
        }
        if let Some(place) = local.and_then(|local| self.at_port(local.port())) {
            *place = stream;
            self.lanes[at] = Lane { local, ..LEFT_ALONE };
            self.steer(stream);
        }
    }

    fn close(&mut self, stream: u32) {
        self.leave(stream);
        self.forget(stream);
        if let Some(local) = self.lane(stream).local
            && let Some(place) = self.at_port(local.port()).filter(|place| **place == stream)
        {
            *place = NONE;
        }
        if let Some(lane) = self.lane_mut(stream) {
            *lane = LEFT_ALONE;
        }
        self.epoll.close(stream);
    }

    fn rest(&mut self, stream: u32) {
        self.forget(stream);
        self.epoll.rest(stream);
        self.leave(stream);
        self.is_unsettled = true;
    }

    fn wake(&mut self, stream: u32) {
        self.steer(stream);
        self.woken.push(stream);
    }

    fn read(&mut self, stream: u32, receive: &mut dyn Receive) -> bool {
        if self.is_unsettled {
            self.reap_steered(receive);
        }
        MediaIo::read(&mut self.epoll, stream, receive)
    }

    fn send(&mut self, stream: u32, fill: &mut dyn FnMut(&mut [u8]) -> Packet) -> bool {
        let Some(from) = self.lane(stream).local else { return self.epoll.send(stream, fill) };
        let place = self.queued.len();
        let packet = &mut self.packets[place];
        let Some((length, to)) = fill(&mut packet[HEADERS_BYTES..]) else { return false };
        let Some(packet) = packet.get_mut(..HEADERS_BYTES + length) else { return false };
        let SocketAddr::V4(to) = to else {
            return self.epoll.transmit(stream, &packet[HEADERS_BYTES..], to);
        };
        self.raw.address(packet, from, to);
        self.queued.push(Queued { stream, to, place, length });
        if self.queued.len() == BATCH {
            self.flush();
        }
        true
    }

    fn reap(&mut self, now: Instant, receive: &mut dyn Receive) {
        self.moment = Moment::new(now);
        while let Some(stream) = self.woken.pop() {
            MediaIo::read(&mut self.epoll, stream, receive);
            self.epoll.wake(stream);
        }
        self.calm_down();
        self.reap_steered(receive);
        self.epoll.reap(now, receive);
        while let Some(stream) = self.failed.pop() {
            if self.lane(stream).local.is_some() {
                receive.send_failed(stream);
            }
        }
    }

    fn wait(&mut self, want: u32, deadline: Instant) -> io::Result<()> {
        if want <= 1 {
            return self.park(deadline);
        }
        self.flush();
        self.epoll.wait(want, deadline)
    }

    fn park(&mut self, deadline: Instant) -> io::Result<()> {
        self.flush();
        self.epoll.park_with(self.funnel.as_fd(), deadline)
    }

    fn counters(&self) -> &IoCounters {
        &self.epoll.counters
    }
}

#[cfg(test)]
mod tests;
