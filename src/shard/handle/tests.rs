//! A shard on real loopback sockets, by every backend.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one event among all")]

use super::*;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Instant, UNIX_EPOCH};

use crate::base::id::{LegId, MessageId, PlayId};
use crate::media::order::{
    Audio, Codec, LegMode, LegPlan, LegStats, MediaPlan, OpenError, Playlist, RecordEnd, RecordPlan,
    RecordingMeta,
};
use crate::uring::bind_pair;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(10);
const PCMU: u8 = 0;

/// Runs each of these tests by every backend, as `uring::name` and `epoll::name`.
macro_rules! on_every_backend {
    ($($name:ident,)*) => {
        mod uring {
            $(#[test] fn $name() { super::$name(super::Backend::Uring); })*
        }
        mod epoll {
            $(#[test] fn $name() { super::$name(super::Backend::Epoll); })*
        }
        mod steered {
            $(#[test] fn $name() {
                if crate::uring::tests::may_steer() {
                    super::$name(super::Backend::Steered);
                }
            })*
        }
    };
}

on_every_backend! {
    two_hundred_legs_open_and_close_twice,
    ports_rest_in_quarantine_before_they_are_used_again,
    a_playlist_arrives_at_fifty_packets_a_second,
    echo_returns_each_payload_to_its_sender,
    a_recording_leaves_whole_when_the_leg_is_closed,
    a_storm_of_empty_datagrams_does_not_stop_reception,
    long_datagrams_are_counted_as_invalid,
    a_refusing_peer_does_not_stop_reception,
    closing_says_bye_on_the_rtcp_port,
    drain_refuses_new_legs_and_ends_with_the_last,
    teardown_leaves_the_ports_bindable_at_once,
    an_idle_shard_is_woken_by_an_order,
    a_leg_opened_after_a_pause_starts_without_a_burst,
    orders_for_unknown_legs_are_counted_and_ignored,
    bridged_legs_carry_packets_both_ways_until_one_closes,
}

/// A shard, and a lock on its slice against the other tests of this process.
struct Bed {
    shard: ShardHandle,
    slice: PortRange,
}

impl Bed {
    /// A shard with `pairs` pairs that were free a moment ago.
    fn new(backend: Backend, pairs: u16, quarantine: Duration) -> Self {
        let slice = free_slice(pairs);
        let config = ShardConfig { index: 0, cpu: None, backend, ports: slice, quarantine, legs_max: 1000 };
        Self { shard: spawn(config).unwrap(), slice }
    }

    fn order(&self, order: Order) {
        self.shard.send(order).expect("the order queue has room");
    }

    /// The next event that `pick` wants; others are thrown away.
    fn event<T>(&self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let end = clock::now() + PATIENCE;
        while clock::now() < end {
            match self.shard.try_event() {
                Some(event) => {
                    if let Some(wanted) = pick(event) {
                        return wanted;
                    }
                }
                None => thread::sleep(Duration::from_micros(200)),
            }
        }
        panic!("no such event within {PATIENCE:?}");
    }

    fn open(&self, leg: LegId, remote: Option<SocketAddr>) -> SocketAddr {
        self.order(Order::Open(leg, Box::new(plan(remote))));
        let port = self.event(|event| match event {
            Event::Opened { leg: opened, rtp_port } if opened == leg => Some(rtp_port),
            Event::OpenFailed { error, .. } => panic!("{error}"),
            _ => None,
        });
        SocketAddr::new(LOOPBACK, port)
    }

    fn close(&self, leg: LegId) -> LegStats {
        self.order(Order::Close(leg));
        self.event(|event| match event {
            Event::Closed { leg: closed, stats } if closed == leg => Some(*stats),
            _ => None,
        })
    }

    /// Waits until the published counters satisfy `check`.
    fn until(&self, check: impl Fn(&ShardSnapshot) -> bool) -> ShardSnapshot {
        let end = clock::now() + PATIENCE;
        loop {
            let snapshot = self.shard.snapshot();
            if check(&snapshot) {
                return snapshot;
            }
            assert!(clock::now() < end, "counters never got there: {snapshot:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn drain(self) {
        self.order(Order::Drain);
        self.shard.join().unwrap();
    }
}

/// A slice whose pairs are all free, below the ephemeral range; each test gets its own.
fn free_slice(pairs: u16) -> PortRange {
    use std::sync::atomic::AtomicU16;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time start at different places.
    let spread = u16::try_from(std::process::id() % 8).unwrap() * 1400;
    for _ in 0..200 {
        let offset = NEXT.fetch_add(pairs * 2, Ordering::Relaxed) % 8_000;
        let first = 12_000 + (spread + offset) / 2 * 2;
        let last = first + pairs * 2 - 1;
        let ports = (first..=last).step_by(2);
        let bound: Vec<_> = ports.map_while(|port| bind_pair(LOOPBACK, port).ok()).collect();
        if bound.len() == usize::from(pairs) {
            return PortRange { first, last };
        }
    }
    panic!("no free slice of {pairs} pairs");
}

fn plan(remote: Option<SocketAddr>) -> LegPlan {
    let media = MediaPlan {
        remote_rtp: remote,
        remote_rtcp: remote.map(|rtp| SocketAddr::new(rtp.ip(), rtp.port() + 1)),
        codec: Codec::Pcmu,
        payload_type: PCMU,
        dtmf_payload_type: Some(101),
        ptime_ms: 20,
        send: true,
        receive: true,
        nat: None,
        srtp: None,
    };
    LegPlan {
        media: Some(media),
        address: LOOPBACK,
        cname: "test@voxring".to_owned(),
        media_timeout: Duration::from_secs(60),
    }
}

/// A phone: an even and an odd port of its own.
struct Phone {
    rtp: UdpSocket,
    rtcp: UdpSocket,
    sequence: u16,
}

impl Phone {
    fn new() -> Self {
        let slice = free_slice(1);
        let bind = |port| UdpSocket::bind((LOOPBACK, port)).unwrap();
        let (rtp, rtcp) = (bind(slice.first), bind(slice.last));
        rtp.set_read_timeout(Some(PATIENCE)).unwrap();
        rtcp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { rtp, rtcp, sequence: 100 }
    }

    fn address(&self) -> SocketAddr {
        self.rtp.local_addr().unwrap()
    }

    /// Sends the next packet of its stream, full of `value`.
    fn talk(&mut self, to: SocketAddr, value: u8) {
        self.sequence += 1;
        let timestamp = u32::from(self.sequence) * 160;
        let mut packet = vec![0x80, PCMU];
        packet.extend_from_slice(&self.sequence.to_be_bytes());
        packet.extend_from_slice(&timestamp.to_be_bytes());
        packet.extend_from_slice(&0xABCD_EF01_u32.to_be_bytes());
        packet.extend_from_slice(&[value; 160]);
        self.rtp.send_to(&packet, to).unwrap();
    }

    fn hear(&self) -> Packet {
        let mut buffer = [0; 2000];
        let (length, from) = self.rtp.recv_from(&mut buffer).expect("a packet");
        assert!(length >= 12, "RTP has a header of 12 bytes");
        Packet { from, bytes: buffer[..length].to_vec() }
    }
}

struct Packet {
    from: SocketAddr,
    bytes: Vec<u8>,
}

impl Packet {
    fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }
    fn timestamp(&self) -> u32 {
        u32::from_be_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
    }
    fn payload(&self) -> &[u8] {
        &self.bytes[12..]
    }
}

/// Audio whose bytes count up, so that a lost or repeated piece shows.
fn counting(bytes: usize) -> Audio {
    let bytes: Arc<[u8]> = (0..bytes).map(|n| u8::try_from(n / 160 % 251).unwrap()).collect();
    Audio { pcmu: Arc::clone(&bytes), pcma: bytes }
}

/// Goal: no pair, slot or event leaks over many calls. Method: 200 legs at once, all closed, the
/// same again; every port is used by one leg at a time.
fn two_hundred_legs_open_and_close_twice(backend: Backend) {
    let bed = Bed::new(backend, 200, Duration::ZERO);
    for round in 0..2_u64 {
        let ids = || (0..200).map(move |n| LegId(round * 1000 + n));
        for id in ids() {
            bed.order(Order::Open(id, Box::new(plan(None))));
        }
        let mut ports = HashSet::new();
        for _ in 0..200 {
            ports.insert(bed.event(|event| match event {
                Event::Opened { rtp_port, .. } => Some(rtp_port),
                Event::OpenFailed { error, .. } => panic!("{error}"),
                _ => None,
            }));
        }
        assert_eq!(ports.len(), 200);
        assert!(ports.iter().all(|port| port % 2 == 0));
        bed.order(Order::Open(LegId(9999), Box::new(plan(None))));
        let error = bed.event(|event| match event {
            Event::OpenFailed { leg: LegId(9999), error } => Some(error),
            _ => None,
        });
        assert_eq!(error, OpenError::NoPort);
        for id in ids() {
            bed.order(Order::Close(id));
        }
        let mut left: HashSet<LegId> = ids().collect();
        while !left.is_empty() {
            left.remove(&bed.event(|event| match event {
                Event::Closed { leg, .. } => Some(leg),
                _ => None,
            }));
        }
    }
    let snapshot = bed.until(|snapshot| snapshot.legs == 0);
    assert_eq!((snapshot.legs_opened, snapshot.legs_refused), (400, 2));
    assert_eq!((snapshot.unknown_completions, snapshot.legs_panicked), (0, 0));
    bed.drain();
}

/// Goal: a used pair rests before it is used again. Method: one pair, half a second of quarantine.
fn ports_rest_in_quarantine_before_they_are_used_again(backend: Backend) {
    let bed = Bed::new(backend, 1, Duration::from_millis(500));
    let first = bed.open(LegId(1), None);
    bed.close(LegId(1));
    let closed = clock::now();
    bed.order(Order::Open(LegId(2), Box::new(plan(None))));
    let refused = bed.event(|event| match event {
        Event::OpenFailed { leg: LegId(2), error } => Some(error),
        _ => None,
    });
    assert_eq!(refused, OpenError::NoPort);
    thread::sleep(Duration::from_millis(500).saturating_sub(clock::now() - closed));
    assert_eq!(bed.open(LegId(3), None), first);
    bed.close(LegId(3));
    bed.drain();
}

/// Goal: a playlist arrives whole at 50 packets a second, in order, then `Played`.
/// Method: 50 packets of counting audio; sequence and timestamp steps of 1 and 160, total time
/// 980 ms between the first and the fiftieth, within what a busy machine allows.
fn a_playlist_arrives_at_fifty_packets_a_second(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let phone = Phone::new();
    let leg = LegId(1);
    let port = bed.open(leg, Some(phone.address()));
    let list = Playlist { items: vec![counting(50 * 160)], repeat: false };
    bed.order(Order::Play(leg, PlayId(7), list));
    // Silence until the order was obeyed; its byte is 0xFF in G.711 µ-law.
    let mut packet = phone.hear();
    while packet.payload()[0] == 0xFF {
        packet = phone.hear();
    }
    let began = clock::now();
    let (sequence, timestamp) = (packet.sequence(), packet.timestamp());
    for index in 0..50_u16 {
        let value = u8::try_from(index).unwrap();
        assert_eq!(packet.from, port);
        assert_eq!(packet.sequence(), sequence.wrapping_add(index));
        assert_eq!(packet.timestamp(), timestamp.wrapping_add(u32::from(index) * 160));
        assert_eq!(packet.payload(), [value; 160]);
        if index < 49 {
            packet = phone.hear();
        }
    }
    let took = (clock::now() - began).as_millis();
    assert!((700..3000).contains(&took), "50 packets took {took} ms, not 980");
    bed.event(|event| match event {
        Event::Played { leg: LegId(1), play: PlayId(7) } => Some(()),
        _ => None,
    });
    let stats = bed.close(leg);
    assert!(stats.tx_packets >= 50 && stats.tx_errors == 0, "{stats:?}");
    bed.drain();
}

/// Goal: echo gives each packet back to its sender with its own payload and our SSRC.
/// Method: 20 packets with different payloads; the answers in order.
fn echo_returns_each_payload_to_its_sender(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let mut phone = Phone::new();
    let leg = LegId(1);
    let port = bed.open(leg, Some(phone.address()));
    bed.order(Order::Mode(leg, LegMode::Echo));
    // Orders are obeyed within a turn; the machine may be busy.
    thread::sleep(Duration::from_millis(100));
    let mut heard = Vec::new();
    for value in 1..=20 {
        phone.talk(port, value);
        thread::sleep(Duration::from_millis(2));
    }
    // The first packets of a source are on probation; silence came before the order.
    while heard.last() != Some(&20) {
        let packet = phone.hear();
        assert_ne!(&packet.bytes[8..12], &0xABCD_EF01_u32.to_be_bytes(), "the SSRC is ours");
        if packet.payload()[0] != 0xFF {
            assert_eq!(packet.payload(), [packet.payload()[0]; 160]);
            heard.push(packet.payload()[0]);
        }
    }
    let expected: Vec<u8> = (heard[0]..=20).collect();
    assert_eq!(heard, expected);
    assert!(heard.len() >= 18, "{heard:?}");
    bed.close(leg);
    bed.drain();
}

/// Goal: two bridged legs carry each phone's packets to the other; when one is closed the other goes
/// back to its own silence. Method: two phones, packets both ways, then one leg closes.
fn bridged_legs_carry_packets_both_ways_until_one_closes(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let (mut one, mut two) = (Phone::new(), Phone::new());
    let ports = [(1, &one), (2, &two)].map(|(leg, phone)| bed.open(LegId(leg), Some(phone.address())));
    bed.order(Order::Bridge(LegId(1), LegId(2)));
    // Orders are obeyed within a turn; the machine may be busy.
    thread::sleep(Duration::from_millis(100));
    for value in 1..=20 {
        one.talk(ports[0], value);
        two.talk(ports[1], 100 + value);
        thread::sleep(Duration::from_millis(2));
    }
    for (phone, port, first) in [(&two, ports[1], 1), (&one, ports[0], 101)] {
        // Silence came before the order.
        let words = std::iter::repeat_with(|| phone.hear()).filter(|packet| packet.payload()[0] != 0xFF);
        for (value, packet) in (first..first + 20).zip(words) {
            assert_eq!((packet.from, packet.payload()), (port, &[value; 160][..]));
        }
    }
    let stats = bed.close(LegId(1));
    assert_eq!((stats.rx_packets, stats.relay_dropped), (20, 0));
    let silence = two.hear();
    assert_eq!(silence.payload(), [0xFF; 160]);
    bed.order(Order::Bridge(LegId(1), LegId(2)));
    bed.until(|snapshot| snapshot.orders_unknown == 1);
    bed.close(LegId(2));
    bed.drain();
}

/// Goal: a recording leaves in order, begun and ended, and is told of before the leg is closed.
/// Method: a second of speech in real time, then close; the pieces add up to what is stated.
fn a_recording_leaves_whole_when_the_leg_is_closed(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let mut phone = Phone::new();
    let (leg, id) = (LegId(1), MessageId::new(UNIX_EPOCH, 7));
    let port = bed.open(leg, Some(phone.address()));
    bed.order(Order::Record(leg, record(id.clone())));
    let began = clock::now();
    for n in 0..50_u32 {
        phone.talk(port, u8::try_from(n).unwrap());
        thread::sleep((began + Duration::from_millis(20) * (n + 1)) - clock::now());
    }
    bed.order(Order::Close(leg));
    let duration = bed.event(|event| match event {
        Event::Recorded { id: ended, duration, end: RecordEnd::Closed, .. } if ended == id => Some(duration),
        Event::Closed { .. } => panic!("closed before recorded"),
        _ => None,
    });
    bed.event(|event| matches!(event, Event::Closed { .. }).then_some(()));
    let files = bed.shard.files();
    assert!(matches!(files.pop(), Some(FileItem::Begin(meta)) if meta.id == id));
    let (mut heard, mut stated) = (0, None);
    while let Some(item) = files.pop() {
        assert_eq!(stated, None, "nothing comes after the end");
        match item {
            FileItem::Block(of, block) => {
                assert_eq!(of, id);
                heard += block.samples();
            }
            FileItem::End { samples, .. } => stated = Some(samples),
            FileItem::Begin(_) => panic!("begun twice"),
        }
    }
    let stated = stated.expect("an end");
    assert!(heard >= stated, "{heard} samples handed on, {stated} stated");
    assert_eq!(duration, Duration::from_micros(stated * 125));
    // 50 packets of 160; probation and the reorder window may cost some at the edges.
    assert!((6_400..=9_600).contains(&stated), "{stated} samples");
    bed.drain();
}

fn record(id: MessageId) -> RecordPlan {
    let meta = RecordingMeta {
        id,
        mailbox: "1001".to_owned(),
        caller: String::new(),
        caller_name: String::new(),
        called: String::new(),
        diversion_reason: String::new(),
        call_id: String::new(),
        started_ms: 0,
        keep: true,
    };
    RecordPlan {
        meta: Box::new(meta),
        duration_max: Duration::from_secs(60),
        silence_max: Duration::from_secs(60),
    }
}

/// Goal: datagrams without payload, which end a multishot receive, cannot stop reception.
/// Method: 1000 of them from a stranger with real packets in between, as many at a time as the
/// socket's queue holds; all real packets arrive.
fn a_storm_of_empty_datagrams_does_not_stop_reception(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let mut phone = Phone::new();
    let stranger = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let leg = LegId(1);
    let port = bed.open(leg, Some(phone.address()));
    for value in 0..10_u8 {
        for n in 0..100 {
            stranger.send_to(&[], port).unwrap();
            if n == 50 {
                phone.talk(port, value);
            }
        }
        bed.until(|snapshot| snapshot.rx_datagrams >= 101 * (u64::from(value) + 1));
    }
    let snapshot = bed.shard.snapshot();
    assert_eq!(snapshot.rearms_empty > 0, backend == Backend::Uring, "{snapshot:?}");
    let stats = bed.close(leg);
    assert!(stats.rx_packets >= 8, "probation may cost two: {stats:?}");
    assert_eq!(stats.lost, 0);
    bed.drain();
}

/// Goal: datagrams longer than RTP ever is are counted and harmless.
/// Method: 1400 and 3000 bytes of noise around good packets.
fn long_datagrams_are_counted_as_invalid(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let mut phone = Phone::new();
    let leg = LegId(1);
    let port = bed.open(leg, Some(phone.address()));
    phone.talk(port, 1);
    phone.rtp.send_to(&[0x55; 1400], port).unwrap();
    phone.rtp.send_to(&[0x80; 3000], port).unwrap();
    phone.talk(port, 2);
    phone.talk(port, 3);
    let snapshot = bed.until(|snapshot| snapshot.rx_datagrams >= 5);
    assert_eq!(snapshot.oversize_datagrams, 1);
    let stats = bed.close(leg);
    assert_eq!(stats.invalid, 2, "{stats:?}");
    bed.until(|snapshot| snapshot.media_invalid == 2);
    assert!(stats.rx_packets >= 1, "{stats:?}");
    bed.drain();
}

/// Goal: a peer that nobody listens at, which answers with ICMP, stops neither direction.
/// Method: send to a closed port for a while, then let the phone appear there.
fn a_refusing_peer_does_not_stop_reception(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let phone = Phone::new();
    let (address, leg) = (phone.address(), LegId(1));
    drop(phone.rtp);
    let port = bed.open(leg, Some(address));
    bed.until(|snapshot| snapshot.tx_datagrams >= 10);
    let rtp = UdpSocket::bind(address).unwrap();
    rtp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut phone = Phone { rtp, ..phone };
    for value in 0..10 {
        phone.talk(port, value);
    }
    phone.hear();
    bed.until(|snapshot| snapshot.rx_datagrams >= 10);
    let stats = bed.close(leg);
    assert!(stats.rx_packets >= 8, "{stats:?}");
    bed.drain();
}

/// Goal: closing a leg says BYE (RFC 3550 §6.6) on the RTCP port. Method: read the phone's odd port.
fn closing_says_bye_on_the_rtcp_port(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let phone = Phone::new();
    let leg = LegId(1);
    let port = bed.open(leg, Some(phone.address()));
    phone.hear();
    bed.close(leg);
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = phone.rtcp.recv_from(&mut buffer).expect("RTCP with BYE");
        assert_eq!(from, SocketAddr::new(LOOPBACK, port.port() + 1));
        let (mut at, mut bye) = (0, false);
        while at + 4 <= length {
            bye |= buffer[at + 1] == 203;
            at += 4 + 4 * usize::from(u16::from_be_bytes([buffer[at + 2], buffer[at + 3]]));
        }
        if bye {
            break;
        }
    }
    bed.drain();
}

/// Goal: a draining shard refuses new legs, keeps its old ones, and leaves with the last.
/// Method: drain with one leg open.
fn drain_refuses_new_legs_and_ends_with_the_last(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let phone = Phone::new();
    bed.open(LegId(1), Some(phone.address()));
    bed.order(Order::Drain);
    bed.order(Order::Open(LegId(2), Box::new(plan(None))));
    let refused = bed.event(|event| match event {
        Event::OpenFailed { leg: LegId(2), error } => Some(error),
        _ => None,
    });
    assert_eq!(refused, OpenError::Draining);
    phone.hear();
    assert!(!bed.shard.is_finished());
    bed.close(LegId(1));
    bed.shard.join().unwrap();
}

/// Goal: when a shard has ended, its ports can be bound at once. Method: drop a shard with 50
/// armed legs, and bind its whole slice.
fn teardown_leaves_the_ports_bindable_at_once(backend: Backend) {
    let bed = Bed::new(backend, 50, Duration::from_secs(60));
    let mut ports: HashMap<LegId, SocketAddr> = HashMap::new();
    for id in (0..50).map(LegId) {
        ports.insert(id, bed.open(id, None));
    }
    let slice = bed.slice;
    drop(bed);
    let began = clock::now();
    for port in (slice.first..=slice.last).step_by(2) {
        bind_pair(LOOPBACK, port).unwrap_or_else(|error| panic!("port {port}: {error}"));
    }
    assert!(elapsed(began) < Duration::from_secs(1));
}

/// Goal: a parked shard takes an order at once, not at its next second.
/// Method: let it park, then time an order; median of nine.
fn an_idle_shard_is_woken_by_an_order(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let mut times: Vec<Duration> = (0..9)
        .map(|round| {
            thread::sleep(Duration::from_millis(20));
            let began = clock::now();
            bed.open(LegId(round), None);
            let took = elapsed(began);
            bed.close(LegId(round));
            took
        })
        .collect();
    times.sort();
    assert!(times[4] < Duration::from_millis(100), "{times:?}");
    bed.drain();
}

/// Goal: the first leg after a pause starts at its own pace; the pause is not made up for.
/// Method: let the shard sleep for 300 ms, open a leg, and time its first ten packets: nine steps
/// of 20 ms.
fn a_leg_opened_after_a_pause_starts_without_a_burst(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    let phone = Phone::new();
    thread::sleep(Duration::from_millis(300));
    bed.open(LegId(1), Some(phone.address()));
    phone.hear();
    let began = clock::now();
    for _ in 0..9 {
        phone.hear();
    }
    let took = elapsed(began);
    assert!(took > Duration::from_millis(100), "ten packets within {took:?}");
    bed.until(|snapshot| snapshot.tx_datagrams >= 10);
    assert_eq!(bed.shard.snapshot().skipped_packets, 0);
    bed.close(LegId(1));
    bed.drain();
}

/// Goal: orders for legs that are gone do no harm. Method: all kinds, for a leg that never was.
fn orders_for_unknown_legs_are_counted_and_ignored(backend: Backend) {
    let bed = Bed::new(backend, 4, Duration::ZERO);
    bed.order(Order::StopPlay(LegId(1)));
    bed.order(Order::StopRecord(LegId(1)));
    bed.order(Order::Mode(LegId(1), LegMode::Sink));
    bed.order(Order::Close(LegId(1)));
    bed.until(|snapshot| snapshot.orders_unknown == 4);
    bed.drain();
}

fn elapsed(began: Instant) -> Duration {
    clock::now() - began
}
