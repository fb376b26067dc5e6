//! What a shard itself costs: its turns over legs that play, echo or record, on a kernel that costs
//! nothing.
//!
//! Unit: five packet times, fifty turns of two milliseconds, in each of which each leg has its packets: one
//! out (playing), one in and out again (echoing), one in, read with the four before it, and one out
//! (recording). `Items` are a leg's packet times, so a million items a second are a microsecond for a leg's
//! 20 ms. Floor: the same kernel, which copies each packet, without a shard on it.
//!
//!     cargo bench --bench shard

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use socket2::Socket;
use voxring::base::clock;
use voxring::base::config::PortRange;
use voxring::base::id::{LegId, MessageId, PlayId};
use voxring::media::order::{
    Audio, Codec, Event, LegMode, LegPlan, MediaPlan, Order, Playlist, RecordPlan, RecordingMeta,
};
use voxring::rtp::packet::{HEADER_BYTES, RtpHeader, RtpTimestamp, SeqNo, write_header};
use voxring::shard::{ByHand, ShardConfig};
use voxring::um::prompts::{Prompt, Prompts};
use voxring::uring::{Backend, FORWARD_ROOM_BYTES, Forward, IoCounters, MediaIo, Packet, Receive};

mod counted;
use counted::counted;

/// Legs, one after the other in ten phases.
const LEGS: [u32; 3] = [200, 1000, 4000];
const TICK: Duration = Duration::from_millis(2);
/// Ticks of a packet time.
const PTIME_TICKS: u32 = 10;
/// Packet times in which each leg is read once.
const TIMES: u32 = 5;
const PACKET_BYTES: usize = HEADER_BYTES + 160;
const PHONE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 4000);
/// Longer than any measurement.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

fn main() {
    divan::main();
}

/// Phones behind a kernel that costs nothing: every phone that speaks has one packet in a packet time,
/// and what is sent is forgotten.
struct Phones {
    /// How many speak.
    speaking: u32,
    /// The packet that is read, made from these payloads.
    packet: [u8; PACKET_BYTES + FORWARD_ROOM_BYTES],
    greeting: Audio,
    tick: u32,
    /// Of each phone whose packets wait, how many were read.
    resting: Vec<Option<u32>>,
    out: [u8; 960],
    counters: IoCounters,
}

impl Phones {
    fn new(speaking: u32) -> Self {
        Self {
            speaking,
            packet: [0; _],
            greeting: greeting(),
            tick: 0,
            resting: Vec::new(),
            out: [0; 960],
            counters: IoCounters::default(),
        }
    }

    /// How many packets phone `number` has sent.
    fn spoken(&self, number: u32) -> u32 {
        (self.tick + PTIME_TICKS - 1 - number % PTIME_TICKS) / PTIME_TICKS
    }

    /// Whether the packets of phone `number` wait, and from which on.
    fn resting(&mut self, number: u32) -> &mut Option<u32> {
        let number = number as usize;
        if number >= self.resting.len() {
            self.resting.resize(number + 1, None);
        }
        &mut self.resting[number]
    }

    /// Hands on the packet that phone `number` sends as number `turn`.
    fn hand_on(&mut self, number: u32, turn: u32, at: Instant, receive: &mut dyn Receive) {
        self.speak(number, turn);
        self.counters.received += 1;
        self.counters.completions += 1;
        // RTP streams are even, see the shard.
        if receive.datagram(number * 2, PHONE, at, &mut self.packet, PACKET_BYTES).is_some() {
            black_box(&self.packet);
            self.counters.sent += 1;
        }
    }

    /// Writes the packet that phone `number` sends as number `turn`.
    fn speak(&mut self, number: u32, turn: u32) {
        let payloads = self.greeting.pcmu.as_chunks::<160>().0;
        let sequence = SeqNo(u16::try_from(turn & 0xFFFF).expect("16 bits"));
        let timestamp = RtpTimestamp(turn.wrapping_mul(160));
        let header = RtpHeader { marker: false, payload_type: 0, sequence, timestamp, ssrc: number };
        let len = write_header(&header, &mut self.packet);
        let payload = &payloads[(turn + number) as usize % payloads.len()];
        self.packet[len..PACKET_BYTES].copy_from_slice(payload);
    }
}

impl MediaIo for Phones {
    fn open(&mut self, _: u32, socket: Socket) {
        // Its port was ours, that is all it was for.
        drop(socket);
    }

    fn close(&mut self, _: u32) {}

    fn rest(&mut self, stream: u32) {
        *self.resting(stream / 2) = Some(self.spoken(stream / 2));
    }

    fn wake(&mut self, stream: u32) {
        *self.resting(stream / 2) = None;
    }

    fn read(&mut self, stream: u32, receive: &mut dyn Receive) -> bool {
        let (number, now) = (stream / 2, clock::now());
        let spoken = self.spoken(number);
        let Some(first) = self.resting(number).replace(spoken) else { return true };
        (first..spoken).for_each(|turn| self.hand_on(number, turn, now, receive));
        true
    }

    fn send(&mut self, _: u32, fill: &mut dyn FnMut(&mut [u8]) -> Packet) -> bool {
        let is_sent = fill(&mut self.out).is_some();
        black_box(&self.out);
        self.counters.sent += u64::from(is_sent);
        is_sent
    }

    fn reap(&mut self, now: Instant, receive: &mut dyn Receive) {
        let due = (self.tick % PTIME_TICKS..self.speaking).step_by(PTIME_TICKS as usize);
        for number in due {
            if self.resting(number).is_none() {
                self.hand_on(number, self.tick / PTIME_TICKS, now, receive);
            }
        }
        self.tick += 1;
    }

    fn wait(&mut self, _: u32, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn park(&mut self, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> &IoCounters {
        &self.counters
    }
}

fn greeting() -> Audio {
    Audio::from_pcm(Prompts::builtin().get(Prompt::Greeting))
}

fn leg_plan() -> Box<LegPlan> {
    let media = MediaPlan {
        remote_rtp: Some(PHONE),
        remote_rtcp: None,
        codec: Codec::Pcmu,
        payload_type: 0,
        dtmf_payload_type: Some(101),
        ptime_ms: 20,
        send: true,
        receive: true,
        nat: None,
        srtp: None,
    };
    Box::new(LegPlan {
        media: Some(media),
        address: Ipv4Addr::LOCALHOST.into(),
        cname: "voxring@bench".into(),
        media_timeout: FOR_EVER,
    })
}

fn record_plan(leg: u32) -> RecordPlan {
    let meta = RecordingMeta {
        id: MessageId::new(SystemTime::UNIX_EPOCH, leg.into()),
        mailbox: "1001".into(),
        caller: String::new(),
        caller_name: String::new(),
        called: "1001".into(),
        diversion_reason: String::new(),
        call_id: "bench".into(),
        started_ms: 0,
        keep: true,
    };
    RecordPlan { meta: Box::new(meta), duration_max: FOR_EVER, silence_max: FOR_EVER }
}

/// A shard at work, and its time.
struct Bed {
    shard: ByHand<Phones>,
    now: Instant,
}

impl Bed {
    /// A shard with `legs` open legs, each of which got the order that `order` makes; its phones speak,
    /// or not.
    fn new(legs: u32, speaking: bool, order: impl Fn(u32) -> Order) -> Self {
        let config = ShardConfig {
            index: 0,
            cpu: None,
            backend: Backend::Uring,
            // Each leg takes a pair for the moment it opens.
            ports: PortRange { first: 16_384, last: 32_767 },
            quarantine: Duration::ZERO,
            legs_max: legs as usize,
        };
        let shard = ByHand::new(config, Phones::new(0)).expect("a shard");
        let mut bed = Self { shard, now: clock::now() };
        for leg in 0..legs {
            assert!(bed.shard.send(Order::Open(LegId(leg.into()), leg_plan())).is_ok(), "a long queue");
        }
        let mut opened = 0;
        while opened < legs {
            bed.advance();
            while let Some(event) = bed.shard.try_event() {
                assert!(matches!(event, Event::Opened { .. }), "a pair for each leg: {event:?}");
                opened += 1;
            }
        }
        for leg in 0..legs {
            assert!(bed.shard.send(order(leg)).is_ok(), "a long queue");
        }
        bed.shard.io().speaking = if speaking { legs } else { 0 };
        // All orders are obeyed, sources past their probation, and voices beyond their first words.
        (0..legs / 16 + 1000).for_each(|_| bed.turn());
        bed
    }

    fn advance(&mut self) {
        self.shard.turn(self.now).expect("nothing to fail");
        self.now += TICK;
    }

    /// A turn, and what it brought.
    fn turn(&mut self) {
        self.advance();
        // Blocks and events are somebody else's work, but freed here.
        while let Some(item) = self.shard.files().pop() {
            drop(black_box(item));
        }
        while let Some(event) = self.shard.try_event() {
            drop(black_box(event));
        }
    }
}

/// Measures five packet times of `legs` legs.
fn packet_times(bencher: Bencher, legs: u32, speaking: bool, order: impl Fn(u32) -> Order) {
    let mut bed = Bed::new(legs, speaking, order);
    let before = bed.shard.io().counters.clone();
    let mut times = 0;
    bencher.counter(ItemsCount::new(legs * TIMES)).bench_local(|| {
        times += u64::from(TIMES);
        counted(|| (0..TIMES * PTIME_TICKS).for_each(|_| bed.turn()));
    });
    let after = &bed.shard.io().counters;
    let packets = times * u64::from(legs);
    assert_eq!(after.sent - before.sent, packets, "each leg sent one packet in a packet time");
    assert_eq!(after.received - before.received, if speaking { packets } else { 0 });
}

#[divan::bench(args = LEGS, min_time = 1)]
fn playing(bencher: Bencher, legs: u32) {
    let greeting = greeting();
    packet_times(bencher, legs, false, |leg| {
        let list = Playlist { items: vec![greeting.clone()], repeat: true };
        Order::Play(LegId(leg.into()), PlayId(1), list)
    });
}

#[divan::bench(args = LEGS, min_time = 1)]
fn echoing(bencher: Bencher, legs: u32) {
    packet_times(bencher, legs, true, |leg| Order::Mode(LegId(leg.into()), LegMode::Echo));
}

#[divan::bench(args = LEGS, min_time = 1)]
fn recording(bencher: Bencher, legs: u32) {
    packet_times(bencher, legs, true, |leg| Order::Record(LegId(leg.into()), record_plan(leg)));
}

/// Takes packets and gives them back as they are.
struct Nobody;

impl Receive for Nobody {
    fn datagram(
        &mut self,
        stream: u32,
        from: SocketAddr,
        _: Instant,
        _: &mut [u8],
        length: usize,
    ) -> Option<Forward> {
        Some(Forward { stream, length, to: from })
    }

    fn send_failed(&mut self, _: u32) {}

    fn closed(&mut self, _: u32) {}
}

#[divan::bench(args = LEGS, min_time = 1)]
fn floor_phones_alone(bencher: Bencher, legs: u32) {
    let now = clock::now();
    let mut phones = Phones::new(legs);
    bencher.counter(ItemsCount::new(legs * TIMES)).bench_local(|| {
        counted(|| (0..TIMES * PTIME_TICKS).for_each(|_| phones.reap(now, &mut Nobody)));
    });
    assert_eq!(phones.counters.sent, phones.counters.received);
}
