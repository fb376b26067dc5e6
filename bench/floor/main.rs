//! The physical reference: loops that move RTP as barely as this kernel allows, for the media shard to
//! be measured against.
//!
//! No legs, no checks, no statistics: what a packet costs here is what the kernel costs, in the same
//! form of I/O (sockets, batching, ticks) that the backend of the same name uses. `voxperf compare
//! floor` starts it; by hand:
//!
//! ```text
//! cargo build --release --example floor
//! target/release/examples/floor --mode relay --backend uring --streams 1000 --cpu 1
//! ```
//!
//! It prints one line of JSON, `{"pid":..,"ports":[[a,b],..]}`, and works until its standard input
//! closes. `relay`: what comes to `a` leaves from `b`, to where `b`'s last packet came from, and the
//! other way round; with `--suite`, after the suite's bare cipher went over it twice with two keys of its
//! own, as opening and protecting do (what comes is plain; the second pass undoes the first, and its tag
//! follows the packet). `send`: reads one `IP:PORT` a stream from standard input, then sends 172 bytes of
//! RTP every 20 ms from each `a`. `receive`: takes and drops what comes to each `a`. IPv4.

use std::io::{BufRead, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use socket2::SockRef;
use voxring::base::config::SrtpSuite;

use bare::Bare;

#[path = "../bare.rs"]
#[expect(dead_code, reason = "sealing twice costs what opening and sealing do")]
mod bare;
mod epoll;
mod shard;
mod steered;
mod uring;

/// One loop turns as often.
const TICK: Duration = Duration::from_millis(2);
/// Ticks between two packets of a stream.
const FRAME_TICKS: usize = 10;
/// Bytes of a packet of 20 ms G.711.
const PACKET_BYTES: usize = 172;
/// Receive queue of a socket, as the node's media sockets have it.
const QUEUE_BYTES: usize = 64 * 1024;

#[expect(clippy::cast_possible_truncation, reason = "address families are small constants")]
const AF_INET: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// From one socket of a pair to the other.
    Relay,
    /// Out only.
    Send,
    /// In only.
    Receive,
}

/// By which interface of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// Multishot receive, provided buffers, sends without completion.
    Uring,
    /// epoll, recvfrom and sendto.
    Epoll,
    /// One socket for all that comes, one raw one for all that leaves.
    Steered,
    /// No bare loop: the media shard on io_uring, without SIP. `receive` records.
    Shard,
    /// The same on epoll.
    ShardEpoll,
    /// The same, steered.
    ShardSteered,
}

/// A loop that moves RTP as barely as the kernel allows, to be measured against.
#[derive(Debug, Parser)]
struct Args {
    /// What is moved.
    #[arg(long, value_enum)]
    mode: Mode,
    /// By which interface.
    #[arg(long, value_enum, default_value = "uring")]
    backend: Backend,
    /// Pairs of sockets to relay between, or sockets to send from or receive on.
    #[arg(long)]
    streams: usize,
    /// Processor to be pinned to.
    #[arg(long)]
    cpu: Option<usize>,
    /// Cipher of this SRTP suite for each packet relayed.
    #[arg(long, value_parser = suite)]
    suite: Option<SrtpSuite>,
    /// Address of the sockets.
    #[arg(long, default_value = "127.0.0.1")]
    listen: Ipv4Addr,
}

/// The sockets of a loop and, to send, where each packet goes.
struct Streams {
    mode: Mode,
    sockets: Vec<UdpSocket>,
    /// Of each socket; for a relay learnt from what comes.
    peers: Vec<Option<SocketAddrV4>>,
    ciphers: Ciphers,
}

/// One of each socket, or none at all.
#[derive(Default)]
struct Ciphers(Vec<Bare>);

impl Ciphers {
    /// What opening the packet `packet[..len]` that came to socket `index`, and protecting it for the other
    /// socket of the pair, costs the bare ciphers; there is room for a tag. Gives its length with a tag.
    fn apply(&self, index: usize, packet: &mut [u8], len: usize) -> usize {
        let (Some(near), Some(far)) = (self.0.get(index), self.0.get(index ^ 1)) else { return len };
        std::hint::black_box(near.seal(packet, len));
        let (tag, tag_bytes) = (far.seal(packet, len), far.tag_bytes());
        packet[len..len + tag_bytes].copy_from_slice(&tag[..tag_bytes]);
        len + tag_bytes
    }
}

impl Streams {
    /// The sockets that send in a tick, by their phase.
    fn due(&self, tick: usize) -> impl Iterator<Item = usize> {
        (tick % FRAME_TICKS..self.sockets.len()).step_by(FRAME_TICKS)
    }
}

/// A packet to send, or the header of one to relay, rewritten as a relay must.
fn stamp(packet: &mut [u8], sequence: u16) {
    if let Some(fields) = packet.get_mut(2..12) {
        fields[..2].copy_from_slice(&sequence.to_be_bytes());
        fields[2..6].copy_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
        fields[6..].copy_from_slice(&0x5EED_F100_u32.to_be_bytes());
    }
}

/// An address as the kernel reads it.
fn name(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: AF_INET,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.streams > 0, "--streams must be above 0");
    let is_bare = matches!(args.backend, Backend::Uring | Backend::Epoll | Backend::Steered);
    ensure!(
        args.suite.is_none() || args.mode == Mode::Relay && is_bare,
        "--suite is for --mode relay of a bare loop"
    );
    if let Some(id) = args.cpu {
        ensure!(core_affinity::set_for_current(core_affinity::CoreId { id }), "cannot pin to processor {id}");
    }
    let over = Arc::new(AtomicBool::new(false));
    let run: fn(Streams, &AtomicBool) -> Result<()> = match args.backend {
        Backend::Uring => uring::run,
        Backend::Epoll => epoll::run,
        Backend::Steered => steered::run,
        Backend::Shard => return shard::run(&args, voxring::uring::Backend::Uring, &over),
        Backend::ShardEpoll => return shard::run(&args, voxring::uring::Backend::Epoll, &over),
        Backend::ShardSteered => return shard::run(&args, voxring::uring::Backend::Steered, &over),
    };
    let count = if args.mode == Mode::Relay { args.streams * 2 } else { args.streams };
    let sockets = (0..count).map(|_| open(args.listen)).collect::<Result<Vec<_>>>()?;
    args.tell(&sockets.iter().map(|s| Ok(s.local_addr()?.port())).collect::<Result<Vec<u16>>>()?);
    let peers = match args.mode {
        Mode::Send => read_peers(args.streams)?,
        Mode::Relay | Mode::Receive => vec![None; count],
    };
    Args::watch_input(&over);
    // The same thread preference as a media shard, so that both are let in equally soon.
    let _ = voxring::uring::thread::prefer();
    let ciphers =
        Ciphers(args.suite.map_or_else(Vec::new, |suite| (0..count).map(|_| Bare::new(suite)).collect()));
    let streams = Streams { mode: args.mode, sockets, peers, ciphers };
    run(streams, &over)
}

impl Args {
    /// Says that we are ready, and where.
    fn tell(&self, ports: &[u16]) {
        let width = if self.mode == Mode::Relay { 2 } else { 1 };
        let ports: Vec<&[u16]> = ports.chunks(width).collect();
        println!("{}", serde_json::json!({ "pid": std::process::id(), "ports": ports }));
    }

    /// Sets `over` when standard input closes: nobody needs us any more.
    fn watch_input(over: &Arc<AtomicBool>) {
        let over = Arc::clone(over);
        std::thread::spawn(move || {
            // Closed or broken comes to the same.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
        });
    }
}

fn suite(name: &str) -> Result<SrtpSuite> {
    let known = SrtpSuite::ALL.map(SrtpSuite::name).join(", ");
    SrtpSuite::from_name(name).with_context(|| format!("{name:?} is none of {known}"))
}

fn open(address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0)).context("cannot bind a socket; see ulimit -n")?;
    SockRef::from(&socket).set_recv_buffer_size(QUEUE_BYTES)?;
    Ok(socket)
}

fn read_peers(count: usize) -> Result<Vec<Option<SocketAddrV4>>> {
    let mut peers = Vec::with_capacity(count);
    for line in std::io::stdin().lock().lines().take(count) {
        let line = line?;
        peers.push(Some(line.trim().parse().with_context(|| format!("{line:?} is not IP:PORT"))?));
    }
    if peers.len() < count {
        bail!("{} addresses on standard input, want {count}", peers.len());
    }
    Ok(peers)
}
