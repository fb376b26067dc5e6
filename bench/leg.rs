//! What one leg costs per 20 ms: a packet in, the leg's timeout, a packet out.
//!
//! Unit: time per leg and packet time, of which a shard has 20 ms for all its legs. Floor: copying
//! the packet. The phone speaks, so each leg also watches for keys. One leg stays in the cache;
//! of 2000 in turn, as on a shard, each comes back after the others. Packets are made outside the
//! measured time; recorded blocks are freed within it, and the time is long enough for many. Read
//! the mean: legs in step complete one frame of key search, or two, in the same turns.
//!
//!     cargo bench --bench leg

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use divan::{Bencher, black_box};
use voxring::base::clock;
use voxring::base::id::{LegId, MessageId, PlayId};
use voxring::media::leg::{Leg, LegOutput, LegSeed};
use voxring::media::order::{Audio, Codec, Event, LegPlan, MediaPlan, Playlist, RecordPlan, RecordingMeta};
use voxring::rtp::packet::{HEADER_BYTES, RtpHeader, RtpTimestamp, SeqNo, write_header};
use voxring::um::prompts::{Prompt, Prompts};

const PTIME: Duration = Duration::from_millis(20);
const PACKET_BYTES: usize = HEADER_BYTES + 160;
const LEGS: [usize; 2] = [1, 2000];
const PHONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 4000);
/// Longer than any measurement.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

mod counted;
use counted::counted;

fn main() {
    divan::main();
}

fn greeting() -> Audio {
    Audio::from_pcm(Prompts::builtin().get(Prompt::Greeting))
}

/// The packets of phones, `legs` of one number before those of the next. Each phone is at another
/// word.
fn phones(legs: usize) -> impl FnMut() -> [u8; PACKET_BYTES] {
    let greeting = greeting();
    let (mut sequence, mut timestamp, mut leg) = (SeqNo(0), RtpTimestamp(0), 0);
    move || {
        let packets = greeting.pcmu.as_chunks::<160>().0;
        let mut packet = [0; PACKET_BYTES];
        let header = RtpHeader { marker: false, payload_type: 0, sequence, timestamp, ssrc: 0x0A0B_0C0D };
        let len = write_header(&header, &mut packet);
        packet[len..].copy_from_slice(&packets[(usize::from(sequence.0) + leg) % packets.len()]);
        leg += 1;
        if leg == legs {
            (sequence, timestamp, leg) = (sequence.plus(1), timestamp.plus(160), 0);
        }
        packet
    }
}

fn open(now: Instant, id: u32) -> Leg {
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
    let plan = LegPlan {
        media: Some(media),
        address: PHONE.ip(),
        cname: "voxring@bench".into(),
        media_timeout: Duration::from_secs(60),
    };
    let seed = LegSeed { ssrc: id, sequence: 0, timestamp: 0 };
    Leg::new(now, SystemTime::UNIX_EPOCH, LegId(id.into()), plan, seed)
}

fn record_plan() -> RecordPlan {
    let meta = RecordingMeta {
        id: MessageId::new(SystemTime::UNIX_EPOCH, 1),
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

/// Measures legs that `start` brought into the state that matters.
fn turn(bencher: Bencher, count: usize, start: impl Fn(&mut Leg, Instant)) {
    let mut now = clock::now();
    let mut legs: Vec<Leg> = (0..).map(|id| open(now, id)).take(count).collect();
    legs.iter_mut().for_each(|leg| start(leg, now));
    let mut out = [0; 1500];
    let (mut next, mut turns) = (0, 0);
    bencher.with_inputs(phones(count)).bench_local_refs(|packet| {
        let leg = &mut legs[next];
        counted(|| {
            leg.handle_rtp(now, PHONE, packet);
            leg.handle_timeout(now);
            black_box(leg.poll_rtp(now, &mut out));
            while let Some(output) = leg.poll_output() {
                let ended = matches!(output, LegOutput::Event(Event::Recorded { .. } | Event::Played { .. }));
                assert!(!ended, "what is measured goes on: {output:?}");
                drop(black_box(output));
            }
        });
        turns += 1;
        next += 1;
        if next == count {
            next = 0;
            now += PTIME;
        }
    });
    let stats: Vec<_> = legs.iter().map(Leg::stats).collect();
    assert_eq!(stats.iter().map(|stats| stats.rx_packets).sum::<u64>(), turns, "each packet was taken");
    assert_eq!(stats.iter().map(|stats| stats.tx_packets).sum::<u64>(), turns, "each turn sent one");
    assert_eq!(stats.iter().map(|stats| stats.late + stats.lost).sum::<u64>(), 0);
}

#[divan::bench(args = LEGS, sample_size = 500, min_time = 1)]
fn playing(bencher: Bencher, legs: usize) {
    let greeting = greeting();
    turn(bencher, legs, |leg, _| {
        leg.play(PlayId(1), Playlist { items: vec![greeting.clone()], repeat: true });
    });
}

#[divan::bench(args = LEGS, sample_size = 500, min_time = 1)]
fn recording(bencher: Bencher, legs: usize) {
    turn(bencher, legs, |leg, now| leg.record(now, record_plan()));
}

#[divan::bench]
fn floor_copy(bencher: Bencher) {
    let mut copy = [0; PACKET_BYTES];
    bencher.with_inputs(phones(1)).bench_local_refs(|packet| {
        counted(|| copy.copy_from_slice(black_box(packet)));
        black_box(&mut copy);
    });
}
