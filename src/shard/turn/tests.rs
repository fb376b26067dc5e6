//! The turn's arithmetic over a kernel that is not there and a clock that jumps.

use super::*;

use std::net::{Ipv4Addr, UdpSocket};

use socket2::Socket;

use crate::base::config::PortRange;
use crate::media::order::{Codec, LegMode, LegStats, MediaPlan};
use crate::uring::{Backend, Forward, IoCounters, Receive};

/// The address the leg's peer named.
const PEER: &str = "127.0.0.1:9";

/// Keeps what is sent; hands on what is put in.
#[derive(Default)]
struct FakeIo {
    sent: Vec<(u32, Vec<u8>)>,
    open: Vec<u32>,
    closing: Vec<u32>,
    failing: Vec<u32>,
    /// From the address the leg's peer named.
    arriving: Vec<(u32, Vec<u8>)>,
    resting: Vec<u32>,
    /// What waits for the stream that is read next, and whether that is a flood.
    waiting: Vec<(Instant, Vec<u8>)>,
    flooded: bool,
    reads: u32,
    /// The last deadline waited for.
    waited: Option<Instant>,
    refuse: bool,
    counters: IoCounters,
}

impl MediaIo for FakeIo {
    fn open(&mut self, stream: u32, _: Socket) {
        assert!(!self.open.contains(&stream));
        self.open.push(stream);
    }
    fn close(&mut self, stream: u32) {
        self.open.retain(|&open| open != stream);
        self.closing.push(stream);
    }
    fn rest(&mut self, stream: u32) {
        self.resting.push(stream);
    }
    fn wake(&mut self, stream: u32) {
        self.resting.retain(|&resting| resting != stream);
    }
    fn read(&mut self, stream: u32, receive: &mut dyn Receive) -> bool {
        self.reads += 1;
        let waiting = std::mem::take(&mut self.waiting);
        for (at, bytes) in &waiting {
            let length = bytes.len();
            receive.datagram(stream, PEER.parse().unwrap(), *at, &mut bytes.clone(), length);
        }
        !std::mem::take(&mut self.flooded)
    }
    fn send(&mut self, stream: u32, fill: &mut dyn FnMut(&mut [u8]) -> Option<(usize, SocketAddr)>) -> bool {
        let mut out = [0; 960];
        let Some((length, _)) = fill(&mut out) else { return false };
        if self.refuse {
            return false;
        }
        self.sent.push((stream, out[..length].to_vec()));
        true
    }
    fn reap(&mut self, now: Instant, receive: &mut dyn Receive) {
        for stream in self.failing.drain(..) {
            receive.send_failed(stream);
        }
        for stream in self.closing.drain(..) {
            receive.closed(stream);
        }
        for (stream, mut bytes) in self.arriving.drain(..) {
            let length = bytes.len();
            let from = PEER.parse().unwrap();
            let onward = receive.datagram(stream, from, now, &mut bytes, length);
            if let Some(Forward { stream, length, .. }) = onward {
                self.sent.push((stream, bytes[..length].to_vec()));
            }
        }
    }
    fn wait(&mut self, _: u32, deadline: Instant) -> io::Result<()> {
        self.waited = Some(deadline);
        Ok(())
    }
    fn park(&mut self, _: Instant) -> io::Result<()> {
        Ok(())
    }
    fn counters(&self) -> &IoCounters {
        &self.counters
    }
}

fn shard() -> Shard<FakeIo> {
    let ports = free_pair();
    let (backend, quarantine) = (Backend::Uring, Duration::ZERO);
    let config = ShardConfig { index: 0, cpu: None, backend, ports, quarantine, legs_max: 1 };
    Shard::new(config, FakeIo::default(), Arc::new(Shared::new().unwrap()), None).unwrap()
}

/// One pair that was free a moment ago.
fn free_pair() -> PortRange {
    for _ in 0..100 {
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let first = probe.local_addr().unwrap().port() & !1;
        drop(probe);
        if bind_pair(Ipv4Addr::LOCALHOST.into(), first).is_ok() {
            return PortRange { first, last: first + 1 };
        }
    }
    panic!("no free pair");
}

fn plan() -> Box<LegPlan> {
    let media = MediaPlan {
        remote_rtp: Some(PEER.parse().unwrap()),
        remote_rtcp: None,
        codec: Codec::Pcmu,
        payload_type: 0,
        dtmf_payload_type: None,
        ptime_ms: 20,
        send: true,
        receive: true,
        nat: None,
        srtp: None,
    };
    Box::new(LegPlan {
        media: Some(media),
        address: Ipv4Addr::LOCALHOST.into(),
        cname: "test".to_owned(),
        media_timeout: Duration::from_secs(60),
    })
}

/// One turn as `run` does it, without sleep.
fn turn(shard: &mut Shard<FakeIo>, now: Instant) {
    shard.reap(now);
    shard.take_orders(now);
    shard.tick(now);
    shard.close_broken(now);
}

/// Sequence number and timestamp of the RTP sent since the last call.
fn rtp(shard: &mut Shard<FakeIo>) -> Vec<(u16, u32)> {
    let sent = std::mem::take(&mut shard.io.sent);
    let rtp = sent.iter().filter(|(stream, _)| stream.is_multiple_of(HALVES));
    rtp.map(|(_, bytes)| {
        let timestamp = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        (u16::from_be_bytes([bytes[2], bytes[3]]), timestamp)
    })
    .collect()
}

/// Opens leg 1 and runs 100 ms, so that five packets left. Returns the time and the last packet.
fn running(shard: &mut Shard<FakeIo>) -> (Instant, (u16, u32)) {
    let start = shard.grid.at(0);
    assert!(shard.shared.orders.push(Order::Open(LegId(1), plan())).is_ok());
    let mut now = start;
    let mut sent = Vec::new();
    while sent.len() < 5 {
        turn(shard, now);
        sent.extend(rtp(shard));
        now += Duration::from_millis(1);
    }
    for pair in sent.windows(2) {
        assert_eq!(pair[1].0, pair[0].0.wrapping_add(1));
        assert_eq!(pair[1].1, pair[0].1.wrapping_add(160));
    }
    (now - Duration::from_millis(1), sent[4])
}

fn closed(shard: &Shard<FakeIo>) -> Option<LegStats> {
    while let Some(event) = shard.shared.events.pop() {
        if let Event::Closed { stats, .. } = event {
            return Some(*stats);
        }
    }
    None
}

/// Goal: a short stall is made up for. Method: 45 ms late: the two missed packets and the one that
/// was due leave at once, without a gap in sequence or timestamp.
#[test]
fn two_missed_packets_are_sent_late() {
    let mut shard = shard();
    let (now, (sequence, timestamp)) = running(&mut shard);
    turn(&mut shard, now + Duration::from_millis(65));
    let expected: Vec<(u16, u32)> =
        (1..=3_u16).map(|n| (sequence.wrapping_add(n), timestamp.wrapping_add(160 * u32::from(n)))).collect();
    assert_eq!(rtp(&mut shard), expected);
    assert_eq!(shard.snapshot.skipped_packets, 0);
}

/// Goal: after a long stall no burst leaves, and the timestamp tells the truth.
/// Method: 203 ms without a turn: ten packets fell due, three leave, the timestamp jumps over
/// seven, and the next is due 20 ms after the tenth would have been.
#[test]
fn a_long_stall_becomes_a_gap_not_a_burst() {
    let mut shard = shard();
    let (now, (sequence, timestamp)) = running(&mut shard);
    turn(&mut shard, now + Duration::from_millis(203));
    let expected: Vec<(u16, u32)> = (1..=3_u16)
        .map(|n| (sequence.wrapping_add(n), timestamp.wrapping_add(160 * (7 + u32::from(n)))))
        .collect();
    assert_eq!(rtp(&mut shard), expected);
    assert_eq!(shard.snapshot.skipped_packets, 7);
    turn(&mut shard, now + Duration::from_millis(219));
    assert_eq!(rtp(&mut shard), []);
    turn(&mut shard, now + Duration::from_millis(220));
    let next = (sequence.wrapping_add(4), timestamp.wrapping_add(160 * 11));
    assert_eq!(rtp(&mut shard), [next]);
}

/// Goal: refused packets show in the leg's counters, however the kernel refuses.
/// Method: one refused at the queue, two by completion.
#[test]
fn refused_packets_are_counted_on_their_leg() {
    let mut shard = shard();
    let (now, _) = running(&mut shard);
    shard.io.refuse = true;
    turn(&mut shard, now + Duration::from_millis(20));
    shard.io.refuse = false;
    shard.io.failing = vec![0, 0];
    assert!(shard.shared.orders.push(Order::Close(LegId(1))).is_ok());
    turn(&mut shard, now + Duration::from_millis(21));
    turn(&mut shard, now + Duration::from_millis(22));
    assert_eq!(closed(&shard).unwrap().tx_errors, 3);
}

/// Goal: a leg whose code panics is closed and reported, and its ports come back.
/// Method: work that panics, then two turns.
#[test]
fn a_leg_that_panics_is_closed_and_reported() {
    let mut shard = shard();
    let (now, _) = running(&mut shard);
    shard.with(now, LegId(1), |_| panic!("a test"));
    turn(&mut shard, now);
    turn(&mut shard, now);
    assert!(closed(&shard).is_some());
    assert!(shard.legs.is_empty() && shard.io.open.is_empty());
    assert!(shard.shared.orders.push(Order::Open(LegId(2), plan())).is_ok());
    turn(&mut shard, now);
    assert!(shard.legs.find(LegId(2)).is_some(), "the only pair is free again");
}

/// How long after the grid's beginning the shard would wake up next.
fn wakes(shard: &mut Shard<FakeIo>, now: Instant) -> u128 {
    shard.sleep(now).unwrap();
    (shard.io.waited.unwrap() - shard.grid.at(0)).as_millis()
}

/// Goal: who is only played to is served every 4 ms, packets as far apart as ever; a relayed packet waits for
/// 2 ms at most, and so do those of the next second. Method: a leg that is played to, then echoes one packet.
#[test]
fn only_relayed_packets_are_looked_for_at_every_tick() {
    let mut shard = shard();
    let (mut now, (last, _)) = running(&mut shard);
    let sent_at = |now: Instant, shard: &Shard<FakeIo>| (now - shard.grid.at(0)).as_millis();
    assert_eq!(sent_at(now, &shard) % 4, 0);
    assert_eq!(wakes(&mut shard, now), sent_at(now, &shard) + 4);
    now += Duration::from_millis(20);
    turn(&mut shard, now);
    assert_eq!(rtp(&mut shard).iter().map(|packet| packet.0).collect::<Vec<_>>(), [last.wrapping_add(1)]);

    assert!(shard.shared.orders.push(Order::Mode(LegId(1), LegMode::Echo)).is_ok());
    turn(&mut shard, now);
    shard.io.arriving.push((0, [&[0x80, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1][..], &[7; 160]].concat()));
    turn(&mut shard, now);
    assert_eq!(rtp(&mut shard).len(), 1);
    assert_eq!(wakes(&mut shard, now), sent_at(now, &shard) + 2);
    now += RELAYING - Duration::from_millis(3);
    turn(&mut shard, now);
    assert_eq!(wakes(&mut shard, now) % 4, 2);
    now += Duration::from_millis(3);
    turn(&mut shard, now);
    assert_eq!(wakes(&mut shard, now) % 4, 0);
}

/// A packet of the leg's peer.
fn packet(sequence: u8) -> Vec<u8> {
    let (timestamp, samples) = ((u16::from(sequence) * 160).to_be_bytes(), [7; 160]);
    [&[0x80, 0, 0, sequence, 0, 0][..], &timestamp, &[0, 0, 0, 1], &samples].concat()
}

/// Opens leg 1, lets its peer speak once and waits until its packets wait in the socket; the time then.
fn at_rest(shard: &mut Shard<FakeIo>) -> Instant {
    let (mut now, _) = running(shard);
    shard.io.arriving.push((0, packet(0)));
    for _ in 0..60 {
        assert!(shard.io.resting.is_empty() || now - shard.grid.at(0) >= Duration::from_secs(1));
        now += Duration::from_millis(20);
        turn(shard, now);
    }
    assert_eq!((shard.io.resting.as_slice(), shard.io.reads > 0), (&[0][..], true));
    shard.io.reads = 0;
    now
}

/// Goal: what need not be relayed is read at the leg's turns, five packet times apart, and measured by when it
/// came: packets on time show no jitter. Method: a leg that is played to, its peer's packets 20 ms apart.
#[test]
fn packets_that_may_wait_are_read_together_and_measured_apart() {
    let mut shard = shard();
    let mut now = at_rest(&mut shard);
    for sequence in 1..=30 {
        shard.io.waiting.push((now + Duration::from_millis(7), packet(sequence)));
        now += Duration::from_millis(20);
        turn(&mut shard, now);
    }
    assert_eq!(shard.io.reads, 6);
    assert_eq!(rtp(&mut shard).len(), 60 + 30, "and the leg sends as ever");
    let index = shard.legs.find(LegId(1)).unwrap();
    let stats = shard.legs.with(index, &mut shard.outbox, |leg| leg.stats()).unwrap();
    assert_eq!(
        (stats.rx_packets, stats.lost, stats.jitter),
        (31 - u64::try_from(shard.io.waiting.len()).unwrap(), 0, 0)
    );
}

/// Goal: an order is obeyed when all that came before it was heard. Method: a packet waits; the leg is closed.
#[test]
fn what_waits_is_heard_before_an_order_is_obeyed() {
    let mut shard = shard();
    let now = at_rest(&mut shard) + Duration::from_millis(3);
    shard.io.waiting.push((now, packet(1)));
    assert!(shard.shared.orders.push(Order::Close(LegId(1))).is_ok());
    turn(&mut shard, now);
    turn(&mut shard, now);
    assert_eq!(closed(&shard).unwrap().rx_packets, 2);
}

/// Goal: a leg that relays, and one that is flooded, is read as packets come; after a second that may wait
/// again. Method: a flood; then an echo.
#[test]
fn who_relays_or_is_flooded_is_read_as_packets_come() {
    let mut shard = shard();
    let mut now = at_rest(&mut shard);
    shard.io.flooded = true;
    while !shard.io.resting.is_empty() {
        assert!(shard.io.reads < 2);
        now += Duration::from_millis(20);
        turn(&mut shard, now);
    }
    for _ in 0..55 {
        now += Duration::from_millis(20);
        turn(&mut shard, now);
    }
    assert_eq!(shard.io.resting, [0]);
    assert!(shard.shared.orders.push(Order::Mode(LegId(1), LegMode::Echo)).is_ok());
    for _ in 0..120 {
        now += Duration::from_millis(20);
        turn(&mut shard, now);
        assert!(shard.io.resting.is_empty());
    }
}

/// Goal: calls that come one after the other are set up at the pace of single ticks. Method: an order wakes the
/// shard 2 ms later, and 4 ms later again when none has followed for a while.
#[test]
fn orders_are_looked_for_at_every_tick_while_they_come() {
    let mut shard = shard();
    let (mut now, _) = running(&mut shard);
    let after =
        |now: Instant, shard: &mut Shard<FakeIo>| wakes(shard, now) - (now - shard.grid.at(0)).as_millis();
    assert_eq!(after(now, &mut shard), 4);
    assert!(shard.shared.orders.push(Order::StopPlay(LegId(1))).is_ok());
    turn(&mut shard, now);
    assert_eq!(after(now, &mut shard), 2);
    now += OBEYING + Duration::from_millis(2);
    turn(&mut shard, now);
    assert_eq!(after(now, &mut shard), 4);
}
