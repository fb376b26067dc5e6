//! The media shard itself behind the same interface, without SIP: what the bare loops are compared
//! with when a profile is wanted.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use voxring::base::config::PortRange;
use voxring::base::id::{LegId, MessageId, PlayId};
use voxring::media::order::{
    Audio, Codec, Event, LegPlan, MediaPlan, Order, Playlist, RecordPlan, RecordingMeta,
};
use voxring::shard::{self, ShardConfig, ShardHandle};
use voxring::uring::Backend;

use super::{Args, Mode, read_peers};

/// The shard's ports: below the kernel's ephemeral range, so that a driver's sockets are not in it.
const PORTS: PortRange = PortRange { first: 1024, last: 32_767 };
/// How long the shard may take for one leg.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nobody talks or hangs up for longer than this.
const LONG: Duration = Duration::from_secs(3600);

/// Opens the legs, says where, and works until `over`.
pub(super) fn run(args: &Args, backend: Backend, over: &Arc<AtomicBool>) -> Result<()> {
    let count = if args.mode == Mode::Relay { args.streams * 2 } else { args.streams };
    let shard = shard::spawn(ShardConfig {
        index: 0,
        cpu: args.cpu,
        backend,
        ports: PORTS,
        quarantine: Duration::ZERO,
        legs_max: count,
    })?;
    let mut ports = Vec::with_capacity(count);
    for leg in 0..count as u64 {
        ports.push(open(&shard, LegId(leg), args)?);
    }
    args.tell(&ports);
    match args.mode {
        Mode::Relay => (0..count as u64).step_by(2).for_each(|leg| {
            order(&shard, Order::Bridge(LegId(leg), LegId(leg + 1)));
        }),
        Mode::Send => play(&shard, args, &read_peers(count)?),
        Mode::Receive => (0..count as u64).for_each(|leg| record(&shard, LegId(leg))),
    }
    Args::watch_input(over);
    let files = shard.files();
    while !over.load(Ordering::Relaxed) {
        while files.pop().is_some() {}
        while shard.try_event().is_some() {}
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn open(shard: &ShardHandle, leg: LegId, args: &Args) -> Result<u16> {
    let plan = LegPlan {
        media: Some(media(args, None)),
        address: args.listen.into(),
        cname: "floor@voxring".to_owned(),
        media_timeout: LONG,
    };
    order(shard, Order::Open(leg, Box::new(plan)));
    let end = voxring::base::clock::now() + PATIENCE;
    while voxring::base::clock::now() < end {
        match shard.try_event() {
            Some(Event::Opened { rtp_port, .. }) => return Ok(rtp_port),
            Some(Event::OpenFailed { error, .. }) => return Err(error).context("cannot open a leg"),
            Some(_) | None => std::thread::sleep(Duration::from_micros(50)),
        }
    }
    bail!("the shard opens no leg")
}

/// Whoever sends first from this machine is the peer, unless it is known. What is only received is not
/// answered with silence: the bare loop does not either.
fn media(args: &Args, peer: Option<SocketAddrV4>) -> MediaPlan {
    MediaPlan {
        remote_rtp: peer.map(Into::into),
        remote_rtcp: None,
        codec: Codec::Pcmu,
        payload_type: 0,
        dtmf_payload_type: None,
        ptime_ms: 20,
        send: args.mode != Mode::Receive,
        receive: true,
        nat: Some(args.listen.into()),
        srtp: None,
    }
}

fn play(shard: &ShardHandle, args: &Args, peers: &[Option<SocketAddrV4>]) {
    // Half a minute of sound: as a prompt in a loop, with all its pieces in the cache's way.
    let samples: Vec<i16> = (0..240_000_i32).map(|n| i16::try_from(n * 31 % 16_000).unwrap_or(0)).collect();
    let audio = Audio::from_pcm(&samples);
    for (leg, peer) in (0..).map(LegId).zip(peers) {
        order(shard, Order::Update(leg, Box::new(media(args, *peer))));
        let list = Playlist { items: vec![audio.clone()], repeat: true };
        order(shard, Order::Play(leg, PlayId(0), list));
    }
}

fn record(shard: &ShardHandle, leg: LegId) {
    let meta = RecordingMeta {
        id: MessageId::new(UNIX_EPOCH, leg.0),
        mailbox: String::new(),
        caller: String::new(),
        caller_name: String::new(),
        called: String::new(),
        diversion_reason: String::new(),
        call_id: String::new(),
        started_ms: 0,
        keep: false,
    };
    let plan = RecordPlan { meta: Box::new(meta), duration_max: LONG, silence_max: LONG };
    order(shard, Order::Record(leg, plan));
}

/// Gives an order, however long the queue is.
fn order(shard: &ShardHandle, order: Order) {
    let mut order = Some(order);
    while let Some(next) = order.take() {
        order = shard.send(next).err();
        if order.is_some() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
