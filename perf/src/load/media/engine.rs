//! Sends and hears many streams on an absolute grid, from the thread that calls it.
//!
//! A tick comes 21 times in the 20 ms of a packet, not 20: so that over our streams every position
//! within a millisecond occurs, and a server that works by the millisecond is met at all of them
//! instead of at one that differs from run to run. Each stream keeps its tick; streams of one socket
//! lie on neighbouring ticks, so that a batch has something to carry.

use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use crate::load::media::batch::{DATAGRAM_BYTES, Incoming, Outgoing, SEND_BATCH};
use crate::load::media::book::{Book, Stream};
use crate::load::media::socket::MediaSocket;
use crate::load::media::tally::{PACKET_TIME, Window, histogram, micros};
use crate::load::result::{Continuity, Packets};
use crate::rng::Rng;
use crate::{clock, machine};

/// Ticks in a packet time.
pub const SLOTS: u32 = 21;

/// Most datagrams taken from a socket in one turn, so that sending is not held up.
const DRAIN_MAX: usize = 1024;

/// Every so many turns the RTCP sockets are read.
const RTCP_TURNS: u64 = 100;

/// How long after the window packets are still awaited.
pub const STRAGGLERS: Duration = Duration::from_secs(1);

/// Longest time from a key to the sound that answers it.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// Datagrams of unknown streams kept until the orders of the same turn are read.
const STRANGERS_MAX: usize = 256;

/// Steps of a sequence that fills the circle evenly however far it is followed: 2^32 / golden ratio.
const GOLDEN: u32 = 0x9E37_79B9;

/// What another thread asks of a running engine.
#[derive(Debug)]
pub enum Order {
    /// Adds a stream under this number.
    Open(u32, Box<Stream>),
    /// Ends it.
    Close(u32),
    /// The stream sends nothing any more, and nothing is due back.
    Rest(u32),
    /// Nothing is due back to the stream, which goes on sending.
    ExpectNothing(u32),
    /// The stream sends nothing any more, and nothing it hears counts; what it counted is left out.
    Forsake(u32),
    /// It sends again.
    Resume(u32),
    /// Presses a key in it, told by events of this payload type.
    Press(u32, char, u8),
    /// Counts within this window, times since 1970.
    Measure(Window),
    /// Streams under way now are told apart from later and earlier ones.
    Mark,
    /// The window ends now, before its time.
    Cut,
    /// Ends [`Engine::run`].
    Stop,
}

/// What one window came to. Times are microseconds.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Packets. `dropped_by_us` is left to the caller, who sees the sockets from outside
    /// ([`machine::udp_drops`]) when the engine measures by order; [`Engine::measure`] fills it in.
    pub packets: Packets,
    /// Interarrival jitter of each stream at the window's end.
    pub jitter: Histogram<u64>,
    /// Distance of neighbouring packets of a stream.
    pub spacing: Histogram<u64>,
    /// From our send to the arrival of the same frame.
    pub added: Histogram<u64>,
    /// From [`Stream::up_since`] to the first packet heard; of every stream since the engine began.
    pub first_audio: Histogram<u64>,
    /// How late frames left.
    pub lateness: Histogram<u64>,
    /// Frames that left more than a packet time late.
    pub late_frames: u64,
    /// Frames sent in the window that nobody returns, nor reports by RTCP: they were recorded, or not.
    pub unheard: u64,
    /// Streams that should hear and never did, or could not be opened.
    pub silent: u64,
    /// How unbroken the streams came.
    pub continuity: Continuity,
    /// Keys pressed into silence, and those that sound answered within 4 s.
    pub keys: (u64, u64),
    /// The window's length.
    pub length: Duration,
    /// Processor time of the engine's thread in the window.
    pub thread_time: Duration,
}

/// The engine. Not a thread: whoever calls [`Engine::run`] or [`Engine::measure`] is it.
pub struct Engine {
    sockets: Vec<MediaSocket>,
    opened: Vec<u32>,
    /// Sending streams of each tick as (socket, stream), by socket.
    slots: Vec<Vec<(usize, u32)>>,
    book: Book,
    outgoing: Outgoing,
    reports: Outgoing,
    incoming: Incoming,
    strangers: Vec<Stranger>,
    sound: Box<[u8; DATAGRAM_BYTES]>,
    orders: Option<Receiver<Order>>,
    rng: Rng,
    phase: u32,
    start: Instant,
    tick: u64,
    turn: u64,
    lateness: Histogram<u64>,
    late_frames: u64,
    thread_time: Option<ThreadTime>,
    /// Streams that another thread wanted and could not have: they are silent.
    unopened: u64,
    result: Option<Measured>,
    stopped: bool,
}

/// Processor time of our thread at the window's beginning and until now, at most its end.
struct ThreadTime {
    began: Duration,
    now: Duration,
}

/// A datagram from where no stream is known, perhaps not yet.
struct Stranger {
    socket: usize,
    from: SocketAddr,
    arrival: Duration,
    datagram: Vec<u8>,
}

impl Engine {
    /// An engine over these sockets, all of one address family. The seed decides phases, sequence
    /// numbers and the sound that is sent.
    ///
    /// # Errors
    /// No socket.
    pub fn new(sockets: Vec<MediaSocket>, seed: u64) -> Result<Self> {
        ensure!(!sockets.is_empty(), "a load needs at least one media socket");
        let mut rng = Rng::new(seed);
        let mut sound = Box::new([0; DATAGRAM_BYTES]);
        sound.iter_mut().for_each(|byte| *byte = noise(&mut rng));
        Ok(Self {
            opened: vec![0; sockets.len()],
            slots: vec![Vec::new(); SLOTS as usize],
            book: Book::new(sockets.len()),
            outgoing: Outgoing::new(&sound),
            reports: Outgoing::new(&sound),
            incoming: Incoming::new(),
            strangers: Vec::new(),
            sound,
            sockets,
            orders: None,
            phase: rng.word(),
            rng,
            start: clock::now(),
            tick: 0,
            turn: 0,
            lateness: histogram(),
            late_frames: 0,
            thread_time: None,
            unopened: 0,
            result: None,
            stopped: false,
        })
    }

    /// Takes orders from another thread. The engine itself stays on the one that made it.
    pub fn obeying(mut self, orders: Receiver<Order>) -> Self {
        self.orders = Some(orders);
        self
    }

    /// Sends an RTCP report of each stream every 5 s (RFC 3550 §6.2). Those of the far side are read
    /// anyway.
    pub fn reporting(mut self, reports: bool) -> Self {
        self.book.reports = reports;
        self
    }

    /// For streams that open within the window: a frame counts only once one before it has arrived.
    pub fn patient(mut self, is_patient: bool) -> Self {
        self.book.is_patient = is_patient;
        self
    }

    /// Adds a stream under a number of the caller's choice.
    ///
    /// # Errors
    /// The number is taken or above 2^20, there is no such socket, or the keys are refused.
    pub fn open(&mut self, id: u32, stream: Stream) -> Result<()> {
        let (socket, sends) = (stream.socket, stream.sends);
        let slot = self.slot_for(socket);
        let sequence = self.rng.half();
        self.book.open(id, stream, slot, sequence)?;
        if sends {
            let streams = &mut self.slots[slot];
            let at = streams.partition_point(|&(other, _)| other <= socket);
            streams.insert(at, (socket, id));
        }
        Ok(())
    }

    /// Ends a stream; an unknown number is nothing.
    pub fn close(&mut self, id: u32) {
        if let Some(entry) = self.book.close(id, clock::calendar()) {
            self.slots[entry.slot].retain(|&(_, other)| other != id);
        }
    }

    /// Runs for `lead` unmeasured, then a window of this length, then until the last packets are in.
    ///
    /// # Errors
    /// The window never came to its end: the engine was stopped by an order.
    pub fn measure(&mut self, lead: Duration, length: Duration) -> Result<Measured> {
        machine::wake_punctually();
        let ports: Vec<u16> = self.sockets.iter().map(MediaSocket::port).collect();
        let from = clock::calendar() + lead;
        (self.start, self.tick) = (clock::now(), 0);
        let drops = machine::udp_drops(&ports);
        self.begin(Window { from, until: from + length });
        while self.result.is_none() && !self.stopped {
            self.turn();
        }
        let Some(mut measured) = self.result.take() else { anyhow::bail!("stopped before the window's end") };
        measured.packets.dropped_by_us = machine::udp_drops(&ports).saturating_sub(drops);
        Ok(measured)
    }

    /// Runs until [`Order::Stop`]. Gives the last window that came to its end.
    pub fn run(mut self) -> Option<Measured> {
        machine::wake_punctually();
        (self.start, self.tick) = (clock::now(), 0);
        while !self.stopped {
            self.turn();
        }
        self.result
    }

    /// One turn: obey, send what is due, hear, sleep until the next tick.
    fn turn(&mut self) {
        self.take_orders();
        let now = clock::now();
        while due(self.start, self.tick) <= now {
            self.send_tick();
            if self.book.reports {
                self.send_reports();
            }
            self.tick += 1;
        }
        self.hear();
        self.turn += 1;
        self.watch_window();
        let pause = due(self.start, self.tick).saturating_duration_since(clock::now());
        std::thread::sleep(pause);
    }

    fn take_orders(&mut self) {
        while let Some(order) = self.orders.as_ref().and_then(|orders| orders.try_recv().ok()) {
            match order {
                Order::Open(id, stream) => self.unopened += u64::from(self.open(id, *stream).is_err()),
                Order::Close(id) => self.close(id),
                Order::Rest(id) => self.book.rest(id, clock::calendar()),
                Order::ExpectNothing(id) => self.book.expect_nothing(id, clock::calendar()),
                Order::Forsake(id) => self.book.forsake(id, clock::calendar()),
                Order::Resume(id) => self.book.resume(id, clock::calendar()),
                Order::Press(id, key, payload_type) => {
                    self.book.press(id, (key, payload_type), clock::calendar() + ANSWER_LIMIT);
                }
                Order::Measure(window) => self.begin(window),
                Order::Mark => self.book.mark(),
                Order::Cut => self.book.cut(clock::calendar()),
                Order::Stop => self.stopped = true,
            }
        }
    }

    /// Counts from now on, not from an instant already past: what left in between was not counted.
    fn begin(&mut self, window: Window) {
        let from = window.from.max(clock::calendar());
        self.book.begin(Window { from, until: window.until.max(from) });
        self.lateness.reset();
        self.late_frames = 0;
        self.thread_time = None;
        self.result = None;
    }

    /// Reads the thread's clock at the window's beginning, and adds up after its end.
    fn watch_window(&mut self) {
        let Some(window) = self.book.window else { return };
        let now = clock::calendar();
        if now < window.from {
            return;
        }
        let spent = clock::thread_time();
        let time = self.thread_time.get_or_insert(ThreadTime { began: spent, now: spent });
        if now < window.until {
            time.now = spent;
        }
        if now >= window.until + STRAGGLERS {
            self.result = Some(self.end(window));
        }
    }

    fn end(&mut self, window: Window) -> Measured {
        let tallies = self.book.end();
        let time = self.thread_time.take();
        Measured {
            unheard: tallies.unheard,
            packets: tallies.packets,
            jitter: tallies.jitter,
            spacing: tallies.spacing,
            added: tallies.added,
            first_audio: tallies.first_audio,
            lateness: std::mem::replace(&mut self.lateness, histogram()),
            late_frames: self.late_frames,
            silent: tallies.silent + self.unopened,
            continuity: tallies.courses.end(),
            keys: tallies.keys,
            length: window.length(),
            thread_time: time.map_or(Duration::ZERO, |time| time.now.saturating_sub(time.began)),
        }
    }

    /// Sends a frame of every stream of this tick, in batches by socket.
    fn send_tick(&mut self) {
        let due = due(self.start, self.tick);
        let slot = usize::try_from(self.tick % u64::from(SLOTS)).unwrap_or(0);
        let streams = std::mem::take(&mut self.slots[slot]);
        for same_socket in streams.chunk_by(|(a, _), (b, _)| a == b) {
            for batch in same_socket.chunks(SEND_BATCH) {
                self.send_batch(batch, due);
            }
        }
        self.slots[slot] = streams;
    }

    /// One frame of each of these streams, all of one socket.
    fn send_batch(&mut self, streams: &[(usize, u32)], due: Instant) {
        let Some(&(socket, _)) = streams.first() else { return };
        let (sent, late) = (clock::calendar(), clock::now().saturating_duration_since(due));
        let (mut measured, mut unprotected) = (0, 0);
        for &(_, id) in streams {
            if self.book.is_resting(id) {
                continue;
            }
            measured += u64::from(self.book.frame_left(id, sent));
            let Some(entry) = self.book.entry(id) else { continue };
            let filled =
                self.outgoing.push(entry.to, |buffer| entry.write_frame(id, sent, &self.sound, buffer));
            unprotected += usize::from(!filled);
        }
        let refused = unprotected + self.outgoing.send(&self.sockets[socket].rtp);
        if measured > 0 {
            self.book.tallies.packets.sent += measured;
            self.book.tallies.packets.not_sent += refused as u64;
            self.lateness.saturating_record_n(micros(late).max(1), measured);
            self.late_frames += if late > PACKET_TIME { measured } else { 0 };
        }
    }

    /// The RTCP reports that are due at this tick.
    fn send_reports(&mut self) {
        let now = clock::calendar();
        for id in self.book.reporting(self.tick) {
            let Some(entry) = self.book.entry(id) else { continue };
            let (Some(to), socket) = (entry.rtcp(), entry.stream.socket) else { continue };
            self.reports.push(to.into(), |buffer| entry.write_report(id, now, buffer));
            self.reports.send(&self.sockets[socket].rtcp);
            self.book.tallies.packets.rtcp_sent += 1;
        }
    }

    /// Takes what came to each socket.
    fn hear(&mut self) {
        for (index, socket) in self.sockets.iter().enumerate() {
            let (book, strangers) = (&mut self.book, &mut self.strangers);
            self.incoming.drain(&socket.rtp, DRAIN_MAX, |arrival, from, datagram| {
                match book.find(index, from) {
                    Some(id) => book.hear(id, arrival, datagram),
                    None if strangers.len() < STRANGERS_MAX => {
                        let datagram = datagram.to_vec();
                        strangers.push(Stranger { socket: index, from, arrival, datagram });
                    }
                    None => book.stray(arrival),
                }
            });
        }
        if !self.strangers.is_empty() {
            self.meet_strangers();
        }
        if self.turn.is_multiple_of(RTCP_TURNS) {
            for (index, socket) in self.sockets.iter().enumerate() {
                let book = &mut self.book;
                self.incoming
                    .drain(&socket.rtcp, DRAIN_MAX, |_, from, packet| book.hear_report(index, from, packet));
            }
        }
    }

    /// The order that makes a stream known may have come since this turn began.
    fn meet_strangers(&mut self) {
        self.take_orders();
        for Stranger { socket, from, arrival, datagram } in std::mem::take(&mut self.strangers) {
            match self.book.find(socket, from) {
                Some(id) => self.book.hear(id, arrival, &datagram),
                None => self.book.stray(arrival),
            }
        }
    }

    /// The tick of the next stream of a socket. A socket's streams fill its own arc of the circle,
    /// evenly at any number of them.
    fn slot_for(&mut self, socket: usize) -> usize {
        let Some(opened) = self.opened.get_mut(socket) else { return 0 };
        let within = u64::from(opened.wrapping_mul(GOLDEN).wrapping_add(self.phase));
        *opened = opened.wrapping_add(1);
        let position = ((socket as u64) << 32 | within) * u64::from(SLOTS) / (self.sockets.len() as u64);
        usize::try_from(position >> 32).unwrap_or(0)
    }
}

/// When a tick is due.
fn due(start: Instant, tick: u64) -> Instant {
    let packets = u32::try_from(tick / u64::from(SLOTS)).unwrap_or(u32::MAX);
    let within = u32::try_from(tick % u64::from(SLOTS)).unwrap_or(0);
    start + PACKET_TIME * packets + PACKET_TIME * within / SLOTS
}

/// A byte of µ-law or A-law of middling loudness, either sign: sound to a recorder, no tone.
fn noise(rng: &mut Rng) -> u8 {
    // The sign, segment 3 or 4 of 8, and any step.
    let bits = rng.half();
    let segment = if bits & 0x100 == 0 { 0x30 } else { 0x40 };
    (bits & 0x80) as u8 | segment | (bits & 0x0F) as u8
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, UdpSocket};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::load::media::book::Hears;
    use crate::load::media::rtcp::{Block, REPORT_BYTES, Report};
    use crate::load::media::stamp::Stamp;
    use crate::media::packet::{self, Header};
    use crate::sip::sdes::{Agreed, Suite, Wish};

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    /// Long enough for some frames, short enough for a test.
    const WINDOW: Duration = Duration::from_millis(400);

    /// A far side: a socket for each leg. What comes to leg `n` and is let pass leaves from leg `out(n)`
    /// to whoever spoke there last.
    struct FarSide {
        addresses: Vec<SocketAddr>,
        stop: Arc<AtomicBool>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl FarSide {
        fn new(legs: usize, out: fn(usize) -> usize, passes: fn(&[u8]) -> bool) -> Self {
            let sockets: Vec<_> = (0..legs).map(|_| UdpSocket::bind((HOST, 0)).unwrap()).collect();
            sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
            let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                let mut peers = vec![None; sockets.len()];
                let mut buffer = [0; 2048];
                while !stopped.load(Ordering::Relaxed) {
                    for (index, socket) in sockets.iter().enumerate() {
                        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                            peers[index] = Some(from);
                            if let Some(to) = peers[out(index)].filter(|_| passes(&buffer[..count])) {
                                sockets[out(index)].send_to(&buffer[..count], to).unwrap();
                            }
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            Self { addresses, stop, thread: Some(thread) }
        }
    }

    impl Drop for FarSide {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.take().unwrap().join().unwrap();
        }
    }

    fn engine(sockets: usize) -> Engine {
        Engine::new((0..sockets).map(|_| MediaSocket::bind(HOST).unwrap()).collect(), 1).unwrap()
    }

    fn stream(socket: usize, remote: SocketAddr, hears: Hears) -> Stream {
        let up_since = clock::calendar();
        Stream { socket, remote, sends: true, hears, payload_type: 0, keys: None, up_since }
    }

    fn number(index: usize) -> u32 {
        u32::try_from(index).unwrap()
    }

    /// Goal: what a far side returns is measured, what it swallows is lost, each on its own stream.
    /// Method: eight streams over two sockets; every tenth frame is swallowed. Of `n` frames in a row
    /// that is a tenth, give or take one.
    #[test]
    fn an_echo_is_measured_and_swallowed_frames_are_lost() {
        let kept = |datagram: &[u8]| Stamp::read(&datagram[12..]).is_some_and(|stamp| stamp.frame % 10 != 3);
        let far = FarSide::new(8, |leg| leg, kept);
        let mut engine = engine(2);
        for (index, &remote) in far.addresses.iter().enumerate() {
            let id = number(index);
            engine.open(id, stream(index % 2, remote, Hears::FramesOf(id))).unwrap();
        }
        let measured = engine.measure(Duration::from_millis(100), WINDOW).unwrap();
        let packets = &measured.packets;
        assert!(packets.sent > 8 && packets.sent == packets.expected, "{packets:?}");
        assert_eq!(packets.received + packets.lost, packets.expected);
        assert!((packets.lost * 10).abs_diff(packets.expected) <= 80, "{packets:?}");
        assert_eq!((packets.stray, packets.misdelivered, packets.duplicates), (0, 0, 0));
        assert_eq!((measured.added.len(), measured.lateness.len()), (packets.received, packets.sent));
        assert_eq!((measured.first_audio.len(), measured.jitter.len(), measured.silent), (8, 8, 0));
        assert!(!measured.spacing.is_empty() && measured.thread_time > Duration::ZERO);
    }

    /// Goal: of an anchored call each leg hears the other's frames; frames on a wrong leg are told.
    /// Method: a relay of two pairs; then one that turns the pairs into a ring.
    #[test]
    fn an_anchored_call_is_measured_across_its_legs() {
        let far = FarSide::new(4, |leg| leg ^ 1, |_| true);
        let ring = FarSide::new(4, |leg| (leg + 1) % 4, |_| true);
        for (far, crossed) in [(&far, false), (&ring, true)] {
            let mut engine = engine(1);
            for (index, &remote) in far.addresses.iter().enumerate() {
                engine.open(number(index), stream(0, remote, Hears::FramesOf(number(index ^ 1)))).unwrap();
            }
            let measured = engine.measure(Duration::from_millis(100), WINDOW).unwrap();
            let packets = &measured.packets;
            assert_eq!((packets.misdelivered > 0, packets.lost > 0), (crossed, crossed), "{packets:?}");
        }
    }

    /// Goal: SRTP frames open again, and the stamps in them are read; packets under another key do
    /// not count as heard.
    /// Method: an echo with one key both ways, in every suite; then a stream that expects another.
    #[test]
    fn srtp_frames_are_measured_like_plain_ones() {
        let far = FarSide::new(5, |leg| leg, |_| true);
        let mut engine = engine(1);
        let suites = Suite::ALL.into_iter().chain([Suite::AeadAes128Gcm]);
        for (index, (suite, &remote)) in suites.zip(&far.addresses).enumerate() {
            let offer =
                || Wish { suites: vec![suite], ..Wish::default() }.offer(1).unwrap().lines.remove(0).key;
            let send = offer();
            let receive = if index < 4 { send.clone() } else { offer() };
            let keys = Some(Box::new(Agreed { suite, send, receive }));
            let id = number(index);
            engine.open(id, Stream { keys, ..stream(0, remote, Hears::FramesOf(id)) }).unwrap();
        }
        let measured = engine.measure(Duration::from_millis(100), WINDOW).unwrap();
        let packets = &measured.packets;
        assert!(packets.received > 4 && packets.lost > 0, "{packets:?}");
        // By arrival one, by sending the other: a packet at each edge may be in one of them only.
        assert!(packets.stray.abs_diff(packets.lost) <= 2, "{packets:?}");
        assert_eq!(measured.silent, 1);
    }

    /// Goal: sound of the far side's own is judged by sequence numbers; a stream ordered by another
    /// thread hears its very first packet; unknown sources are strays.
    /// Method: a mouth that leaves every fifth packet out and a stranger, both speaking on order.
    #[test]
    fn sound_is_judged_by_its_sequence_numbers() {
        let socket = MediaSocket::bind(HOST).unwrap();
        let to = SocketAddr::new(HOST, socket.port());
        let (handle, orders) = std::sync::mpsc::channel();
        let running = std::thread::spawn(|| Engine::new(vec![socket], 1).unwrap().obeying(orders).run());
        let (mouth, stranger) = (UdpSocket::bind((HOST, 0)).unwrap(), UdpSocket::bind((HOST, 0)).unwrap());
        let remote = mouth.local_addr().unwrap();
        // The engine has heard of it by then.
        let from = clock::calendar() + Duration::from_secs(1);
        handle.send(Order::Measure(Window { from, until: from + WINDOW })).unwrap();
        let listener = Stream { sends: false, ..stream(0, remote, Hears::Sound) };
        handle.send(Order::Open(7, Box::new(listener))).unwrap();
        let mut spoken = 0;
        std::thread::sleep(from.saturating_sub(clock::calendar()));
        for sequence in 0..20u16 {
            let header = Header { marker: false, payload_type: 0, sequence, timestamp: 0, ssrc: 1 };
            if clock::calendar() < from + WINDOW - Duration::from_millis(30) && sequence % 5 != 2 {
                mouth.send_to(&packet::build(&header, &[0; 160]), to).unwrap();
                stranger.send_to(b"who is there", to).unwrap();
                spoken += 1;
            }
            std::thread::sleep(Duration::from_millis(15));
        }
        std::thread::sleep(WINDOW + STRAGGLERS);
        handle.send(Order::Stop).unwrap();
        let measured = running.join().unwrap().unwrap();
        assert_eq!((measured.packets.received, measured.packets.stray), (spoken, spoken));
        assert!(measured.packets.lost >= spoken / 5, "{:?}", measured.packets);
        assert_eq!((measured.packets.sent, measured.first_audio.len()), (0, 1));
    }

    /// Goal: of frames that only the far side can count, its RTCP report tells the loss, and ours
    /// reach it.
    /// Method: a far side that keeps all frames and reports three of them lost, once within the window.
    #[test]
    fn the_far_sides_report_tells_the_loss_of_what_it_keeps() {
        let (ours, far) = (MediaSocket::bind(HOST).unwrap(), MediaSocket::bind(HOST).unwrap());
        let to_rtcp = SocketAddr::new(HOST, ours.port() + 1);
        let remote = SocketAddr::new(HOST, far.port());
        let (handle, orders) = std::sync::mpsc::channel();
        let running =
            std::thread::spawn(|| Engine::new(vec![ours], 1).unwrap().obeying(orders).reporting(true).run());
        // Its report is due at tick 300, after 286 ms.
        handle.send(Order::Open(3900, Box::new(stream(0, remote, Hears::Nothing)))).unwrap();
        let from = clock::calendar();
        handle.send(Order::Measure(Window { from, until: from + WINDOW })).unwrap();
        let mut buffer = [0; 500];
        far.rtp.set_nonblocking(false).unwrap();
        let count = far.rtp.recv(&mut buffer).unwrap();
        let ssrc = packet::parse(&buffer[..count]).unwrap().0.ssrc;
        let heard = Some(Block { ssrc, lost: 3, highest: 9, jitter: 0 });
        let mut report = [0; REPORT_BYTES];
        let length = Report { ssrc: 1, now: Duration::ZERO, sent: None, heard }.write(&mut report);
        far.rtcp.send_to(&report[..length], to_rtcp).unwrap();
        far.rtcp.set_nonblocking(false).unwrap();
        let count = far.rtcp.recv(&mut buffer).unwrap();
        assert!(count >= 28 && buffer[4..8] == ssrc.to_be_bytes(), "{:?}", &buffer[..count]);
        std::thread::sleep(WINDOW + STRAGGLERS + Duration::from_millis(100));
        handle.send(Order::Stop).unwrap();
        let measured = running.join().unwrap().unwrap();
        let packets = &measured.packets;
        assert_eq!((packets.reported_lost, packets.lost, packets.rtcp_received), (3, 3, 1));
        assert_eq!((packets.expected, packets.received), (packets.sent, packets.sent - 3));
        assert_eq!((measured.unheard, measured.silent), (0, 0));
    }

    /// Goal: at any number of streams the ticks carry equal shares, give or take a few, and a
    /// socket's streams lie together.
    /// Method: 8 sockets; count streams a tick at 84 and at 840 of them.
    #[test]
    fn phases_are_spread_evenly_at_any_number_of_streams() {
        let mut engine = engine(8);
        let mut counts = [0usize; SLOTS as usize];
        let mut sockets = vec![std::collections::BTreeSet::new(); SLOTS as usize];
        for index in 0..840 {
            let slot = engine.slot_for(index % 8);
            counts[slot] += 1;
            sockets[slot].insert(index % 8);
            if index == 83 {
                assert!(counts.iter().all(|count| (1..=8).contains(count)), "{counts:?}");
            }
        }
        assert!(counts.iter().all(|count| (36..=44).contains(count)), "{counts:?}");
        assert!(sockets.iter().all(|sockets| sockets.len() <= 2), "{sockets:?}");
    }

    /// Goal: the grid never drifts from the packet time. Method: ticks 0, 21, 42 000 021 and one between.
    #[test]
    fn ticks_keep_to_the_packet_time() {
        let start = clock::now();
        let at = |tick| due(start, tick) - start;
        assert_eq!((at(0), at(21)), (Duration::ZERO, PACKET_TIME));
        assert_eq!(at(42_000_021), PACKET_TIME * 2_000_001);
        assert_eq!(at(7), Duration::from_nanos(6_666_666));
    }
}
