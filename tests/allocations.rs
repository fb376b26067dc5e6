//! The packet path takes no memory: what a leg and its shard need is there when the leg is open.
//!
//! A process of its own, for the allocator counts for all threads: while packets go through a shard
//! nothing else runs but the phones here, which take none either.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::alloc::System;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};
use voxring::base::clock;
use voxring::base::config::PortRange;
use voxring::base::id::{LegId, MessageId, PlayId};
use voxring::media::order::{
    Audio, Codec, Event, FileItem, LegMode, LegPlan, MediaPlan, Order, Playlist, RecordPlan, RecordingMeta,
};
use voxring::shard::{ShardConfig, ShardHandle, spawn};
use voxring::uring::Backend;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(10);
const LEGS: u64 = 8;
const FRAMES: u16 = 100;
const LONG: Duration = Duration::from_secs(3600);

/// A shard with `LEGS` open legs, and a phone for each.
struct Bed {
    shard: ShardHandle,
    phones: Vec<UdpSocket>,
    ports: Vec<SocketAddr>,
}

impl Bed {
    fn new(backend: Backend) -> Self {
        let ports = PortRange { first: 9_000, last: 10_999 };
        let quarantine = Duration::ZERO;
        let config = ShardConfig { index: 0, cpu: None, backend, ports, quarantine, legs_max: 100 };
        let shard = spawn(config).unwrap();
        let phones: Vec<_> = (0..LEGS).map(|_| UdpSocket::bind((LOOPBACK, 0)).unwrap()).collect();
        let mut bed = Self { shard, phones, ports: Vec::new() };
        for leg in 0..LEGS {
            let index = usize::try_from(leg).unwrap();
            bed.phones[index].set_nonblocking(true).unwrap();
            bed.order(Order::Open(LegId(leg), Box::new(plan(bed.phones[index].local_addr().unwrap()))));
            let end = clock::now() + PATIENCE;
            let port = loop {
                match bed.shard.try_event() {
                    Some(Event::Opened { rtp_port, .. }) => break rtp_port,
                    Some(event) => panic!("{event:?}"),
                    None => assert!(clock::now() < end, "no leg in {PATIENCE:?}"),
                }
            };
            bed.ports.push(SocketAddr::new(LOOPBACK, port));
        }
        bed
    }

    fn order(&self, order: Order) {
        self.shard.send(order).unwrap();
    }

    /// Each phone talks for two seconds, for the `turn`th time. What was allocated in the second of them, and how many
    /// packets came back in all.
    fn talk(&self, turn: u16) -> (Stats, usize) {
        let mut region = Region::new(ALLOCATOR);
        let mut heard = 0;
        let mut packet = [0x55_u8; 172];
        packet[..2].copy_from_slice(&[0x80, 0]);
        let mut buffer = [0; 256];
        for frame in turn * FRAMES..(turn + 1) * FRAMES {
            if frame % FRAMES == FRAMES / 2 {
                region.reset();
            }
            packet[2..4].copy_from_slice(&frame.to_be_bytes());
            packet[4..8].copy_from_slice(&(u32::from(frame) * 160).to_be_bytes());
            for (phone, port) in self.phones.iter().zip(&self.ports) {
                phone.send_to(&packet, port).unwrap();
            }
            thread::sleep(Duration::from_millis(20));
            for phone in &self.phones {
                while phone.recv_from(&mut buffer).is_ok() {
                    heard += 1;
                }
            }
        }
        (region.change(), heard)
    }
}

fn plan(phone: SocketAddr) -> LegPlan {
    let media = MediaPlan {
        remote_rtp: Some(phone),
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
    LegPlan { media: Some(media), address: LOOPBACK, cname: "test@voxring".to_owned(), media_timeout: LONG }
}

fn record_plan(leg: u64) -> RecordPlan {
    let meta = RecordingMeta {
        id: MessageId::new(UNIX_EPOCH, leg),
        mailbox: String::new(),
        caller: String::new(),
        caller_name: String::new(),
        called: String::new(),
        diversion_reason: String::new(),
        call_id: String::new(),
        started_ms: 0,
        keep: false,
    };
    RecordPlan { meta: Box::new(meta), duration_max: LONG, silence_max: LONG }
}

/// Goal: packets that are echoed, bridged or played cost no allocation, whoever does it; a recording
/// takes a block and its id each 800 ms. Method: a counting allocator over a second of each with
/// eight legs, after a second to warm up, on each backend.
#[test]
fn packets_cost_no_allocation() {
    // One after the other: the allocator counts for all threads.
    for backend in [Backend::Uring, Backend::Epoll, Backend::Steered] {
        match voxring::uring::probe_steered() {
            Err(error) if backend == Backend::Steered => eprintln!("skipped: {error}"),
            Ok(()) | Err(_) => measure(&Bed::new(backend)),
        }
    }
}

fn measure(bed: &Bed) {
    (0..LEGS).for_each(|leg| bed.order(Order::Mode(LegId(leg), LegMode::Echo)));
    let (echoed, heard) = bed.talk(0);
    assert_eq!((echoed.allocations, echoed.reallocations), (0, 0), "echo: {echoed:?}");
    assert!(heard >= 8 * 90, "{heard} echoed");

    (0..LEGS).step_by(2).for_each(|leg| bed.order(Order::Bridge(LegId(leg), LegId(leg + 1))));
    let (relayed, heard) = bed.talk(1);
    assert_eq!((relayed.allocations, relayed.reallocations), (0, 0), "bridge: {relayed:?}");
    assert!(heard >= 8 * 90, "{heard} relayed");

    let audio = Audio::from_pcm(&[1000; 8000]);
    for leg in 0..LEGS {
        bed.order(Order::Mode(LegId(leg), LegMode::Voice));
        let list = Playlist { items: vec![audio.clone()], repeat: true };
        bed.order(Order::Play(LegId(leg), PlayId(0), list));
    }
    let (played, heard) = bed.talk(2);
    assert_eq!((played.allocations, played.reallocations), (0, 0), "playing: {played:?}");
    assert!(heard >= 8 * 90, "{heard} played");

    (0..LEGS).for_each(|leg| bed.order(Order::Record(LegId(leg), record_plan(leg))));
    let (recorded, _) = bed.talk(3);
    let blocks = usize::try_from(LEGS).unwrap() * 3;
    assert!(recorded.allocations <= blocks * 2, "a block and its id: {recorded:?}");
    let files = bed.shard.files();
    let whole = std::iter::from_fn(|| files.pop()).filter(|item| matches!(item, FileItem::Block(..)));
    assert!(whole.count() >= 8, "each leg recorded a block");
}
