//! Noise on every live port: nothing breaks, nothing grows, calls go on.
//!
//! Bounded: 10 s a test, or `VOXRING_FUZZ_SECONDS`. The seed is printed; `VOXRING_FUZZ_SEED` repeats it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use voxring::base::random::SplitMix64;

use crate::common::node::Node;
use crate::common::raw::{Connection, Request, offer, options_tcp, options_udp, unique};
use crate::common::{now, peers};

/// Memory a node may gain in a run, KiB: buffers and tables that fill once.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

fn seconds() -> Duration {
    let text = std::env::var("VOXRING_FUZZ_SECONDS").unwrap_or_default();
    Duration::from_secs(text.parse().unwrap_or(10))
}

/// Picks and spoils.
struct Noise(SplitMix64);

impl Noise {
    fn new(test: &str) -> Self {
        let seed = std::env::var("VOXRING_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(crate::common::unix_ms);
        println!("fuzz_wire {test}: replay with VOXRING_FUZZ_SEED={seed}");
        Self(SplitMix64(seed))
    }

    fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.bits() % u64::try_from(limit.max(1)).expect("64 bits")).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.bits() >> 56).expect("eight bits")
    }

    /// A copy with a few bytes changed, cut out, doubled or put in.
    fn harm(&mut self, message: &[u8]) -> Vec<u8> {
        let mut bytes = message.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(40)).min(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] = self.byte(),
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 => drop(bytes.drain(at.min(end)..end)),
                3 => {
                    let copy = bytes[at.min(end)..end].to_vec();
                    bytes.splice(at.min(end)..at.min(end), copy);
                }
                4 => {
                    let piece =
                        [&b"\r\n"[..], b"\r\n\r\n", b"%00", b"\"", b"<", b";", b"999999999999999999999"];
                    bytes.splice(at.min(end)..at.min(end), piece[self.below(piece.len())].iter().copied());
                }
                _ => {
                    let count = self.below(20);
                    let noise: Vec<u8> = (0..count).map(|_| self.byte()).collect();
                    bytes.splice(at.min(end)..at.min(end), noise);
                }
            }
        }
        bytes
    }
}

/// Good messages to spoil.
fn seeds(node: &Node) -> Vec<Vec<u8>> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 5999));
    let uri = format!("sip:1001@127.0.0.1:{}", node.ports.router());
    let (offer, empty) = (offer(40_000), "");
    let mut seeds: Vec<Vec<u8>> =
        ["INVITE", "OPTIONS", "BYE", "CANCEL", "ACK", "REGISTER", "UPDATE"]
            .iter()
            .map(|method| {
                let body = if *method == "INVITE" { &*offer } else { empty };
                Request { method, uri: &uri, extra: &["Diversion: <sip:1002@x>;reason=no-answer"], body }
                    .render("TCP", local, &unique())
            })
            .collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rfc4475");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let corpus = files.filter(|path| path.extension().is_some_and(|extension| extension == "dat"));
    seeds.extend(corpus.filter_map(|path| std::fs::read(path).ok()));
    seeds
}

/// An echo call that runs beside the noise; nothing of it may be lost.
fn steady_call(node: &Node, length: Duration) -> peers::Running {
    let duration = (length.as_secs() + 2).to_string();
    peers::voxperf_start(&["call", "--to", &node.uri("9196", "tcp"), "--duration", &duration])
}

fn assert_unharmed(report: &peers::Report) {
    report.assert_complete();
    assert_eq!(report.number(0, "rx_lost"), 0, "{:#}", report.0);
    let (sent, heard) = (report.number(0, "tx_packets"), report.number(0, "rx_packets"));
    assert!(heard + 25 >= sent, "the echo stayed away: {:#}", report.0);
}

/// The node before the noise.
struct Before {
    pids: (u32, Option<u32>),
    memory_kib: u64,
}

impl Before {
    fn of(node: &Node) -> Self {
        Self { pids: (node.supervisor_pid(), node.worker_pid()), memory_kib: node.memory_kib() }
    }

    /// The same processes, not much larger, still answering.
    fn assert_unchanged(&self, node: &Node) {
        assert_eq!(self.pids, (node.supervisor_pid(), node.worker_pid()), "a process died:\n{}", node.log());
        let grown = node.memory_kib().saturating_sub(self.memory_kib);
        assert!(grown <= GROWTH_KIB_MAX, "{} KiB before, {grown} KiB more after", self.memory_kib);
        assert!(!node.log().contains("panicked"), "{}", node.log());
        for port in [node.ports.router(), node.ports.service(), node.ports.worker_a()] {
            assert_eq!(options_tcp(port).map(|response| response.status), Some(200), "{port} over TCP");
            assert_eq!(options_udp(port).map(|response| response.status), Some(200), "{port} over UDP");
        }
    }
}

/// Goal: spoilt SIP on every SIP port, over TCP in pieces and over UDP, harms nothing (acceptance 7).
/// Method: mutated good messages and the RFC 4475 corpus; an echo call beside it loses nothing.
#[test]
fn noise_on_sip_ports_harms_nothing() {
    let _alone = crate::common::heavy();
    let node = Node::start(|_| {});
    let mut noise = Noise::new("sip");
    let ports = [node.ports.router(), node.ports.service(), node.ports.worker_a()];
    let seeds = seeds(&node);
    // Once round, so that tables and buffers have their size before memory is weighed.
    spoil_sip(&mut noise, &seeds, ports, Duration::from_secs(1));
    let before = Before::of(&node);
    let steady = steady_call(&node, seconds());
    let sent = spoil_sip(&mut noise, &seeds, ports, seconds());
    println!("fuzz_wire sip: {sent} messages");
    assert_unharmed(&steady.finish());
    before.assert_unchanged(&node);
}

fn spoil_sip(noise: &mut Noise, seeds: &[Vec<u8>], ports: [u16; 3], length: Duration) -> u64 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let start = now();
    let mut sent = 0;
    while start.elapsed() < length {
        let port = ports[noise.below(ports.len())];
        let index = noise.below(seeds.len());
        let bytes = noise.harm(&seeds[index]);
        sent += 1;
        if noise.below(2) == 0 {
            // Too long for a datagram is no failure of the node.
            let _ = socket.send_to(&bytes, (Ipv4Addr::LOCALHOST, port));
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let mut connection = Connection::open(port);
        for piece in bytes.chunks(1 + noise.below(700)) {
            connection.send(piece);
        }
        // Some connections are read, some left in the middle of an answer.
        if noise.below(4) == 0 {
            connection.response(Duration::from_millis(20));
        }
    }
    sent
}

/// Goal: spoilt RTP and RTCP, from strangers and from the call's own address, harms nothing.
/// Method: a raw call to 9198 whose socket turns to noise after latching, strangers on all media
/// ports; an echo call beside it loses nothing.
#[test]
fn noise_on_media_ports_harms_nothing() {
    let _alone = crate::common::heavy();
    let node = Node::start(|_| {});
    let mut noise = Noise::new("media");
    let before = Before::of(&node);
    let steady = steady_call(&node, seconds());
    let mut connection = Connection::open(node.ports.worker_a());
    let (rtp, rtcp) = pair();
    let to = open_call(&mut connection, &node, rtp.local_addr().expect("it is bound").port());
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let (first, last) = node.ports.rtp();
    let start = now();
    let mut sent = 0u64;
    while start.elapsed() < seconds() {
        let good = media_packet(&mut noise, sent);
        let packet = noise.harm(&good);
        // The socket's queue may be full: noise that is lost is no matter.
        let _ = match sent % 4 {
            0 => rtp.send_to(&packet, to),
            1 => rtcp.send_to(&packet, (to.ip(), to.port() + 1)),
            2 => stranger.send_to(&packet, (to.ip(), to.port() + u16::from(noise.below(2) == 0))),
            _ => {
                let span = usize::from(last - first);
                let port = first + u16::try_from(noise.below(span)).expect("a port");
                stranger.send_to(&packet, (to.ip(), port))
            }
        };
        sent += 1;
        std::thread::sleep(Duration::from_micros(100));
    }
    println!("fuzz_wire media: {sent} datagrams");
    assert_unharmed(&steady.finish());
    before.assert_unchanged(&node);
}

/// A good RTP or RTCP packet to spoil.
fn media_packet(noise: &mut Noise, number: u64) -> Vec<u8> {
    let counter = number.to_be_bytes();
    match noise.below(4) {
        0 => [&[0x80, 0, counter[6], counter[7], 0, 0, counter[6], 0, 1, 2, 3, 4][..], &[0xFF; 160]].concat(),
        1 => [&[0x80, 101, counter[6], counter[7], 0, 0, 9, 9, 1, 2, 3, 4][..], &[11, 0x8A, 3, 192]].concat(),
        // Sender report with one report block, then SDES with a CNAME (RFC 3550 §6.4.1, §6.5).
        2 => [
            &[0x81, 200, 0, 12, 1, 2, 3, 4][..],
            &[7; 20],
            &[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x81, 202, 0, 3, 1, 2, 3, 4, 1, 3, b'r', b'a', b'w', 0, 0, 0],
        ]
        .concat(),
        _ => (0..noise.below(1400)).map(|_| noise.byte()).collect(),
    }
}

/// An even/odd pair of ports.
fn pair() -> (UdpSocket, UdpSocket) {
    (0..200)
        .find_map(|_| {
            let rtp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
            let port = rtp.local_addr().ok()?.port();
            let rtcp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port.checked_add(1)?)).ok()?;
            (port % 2 == 0).then_some((rtp, rtcp))
        })
        .expect("a pair of ports is free")
}

/// Calls 9198 and gives the address its media is to go to.
fn open_call(connection: &mut Connection, node: &Node, rtp_port: u16) -> SocketAddr {
    let uri = format!("sip:9198@127.0.0.1:{}", node.ports.worker_a());
    let (tag, body) = (unique(), offer(rtp_port));
    let invite = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    let bytes = invite.render("TCP", connection.local(), &tag);
    connection.send(&bytes);
    let answer = connection.final_response(Duration::from_secs(5)).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.head);
    let audio = answer.body.lines().find_map(|line| line.strip_prefix("m=audio ")).expect("an audio stream");
    let port: u16 = audio.split(' ').next().and_then(|port| port.parse().ok()).expect("a port");
    let ack = format!(
        "ACK {uri} SIP/2.0\r\nVia: SIP/2.0/TCP {};branch=z9hG4bKack{tag}\r\nMax-Forwards: 70\r\n\
         From: <sip:raw@127.0.0.1>;tag={tag}\r\nTo: {}\r\nCall-ID: {tag}@raw\r\nCSeq: 1 ACK\r\n\
         Content-Length: 0\r\n\r\n",
        connection.local(),
        answer.header("To").expect("a To")
    );
    connection.send(ack.as_bytes());
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
