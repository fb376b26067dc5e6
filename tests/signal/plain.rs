//! Plain TCP and UDP: framing, limits, timers, the end.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use voxring::signal::{ConnectionLimits, Listener, SignalConfig, run};
use voxring::sip::flow::{Destination, Flow, FlowId, Transmit, Transport};
use voxring::sip::message::Message;

use crate::shard::{PATIENCE, Seen, Shard, TestRole, fuzz, is_closed, ok, options, request, responses, to};

/// Goal: a message is found however TCP cuts it. Method: one byte at a time, body included.
#[test]
fn a_request_in_single_bytes_is_answered() {
    let shard = Shard::start();
    let mut client = shard.client();
    client.set_nodelay(true).unwrap();
    for byte in request("OPTIONS", 1, "some body").as_bytes() {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(responses(&mut client, 1), [ok(1)]);
    let Seen::Message(flow, Message::Request(request)) = shard.seen() else { panic!("no request") };
    assert_eq!(&request.body[..], b"some body");
    assert_eq!((flow.listener, flow.transport, flow.local), (0, Transport::Tcp, shard.addresses[0]));
    assert_eq!(flow.remote, client.local_addr().unwrap());
}

/// Goal: pipelined requests are answered in order, in one connection. Method: 200 in one write.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let shard = Shard::start();
    let mut client = shard.client();
    let all: String = (1..=200).map(options).collect();
    client.write_all(all.as_bytes()).unwrap();
    assert_eq!(responses(&mut client, 200), (1..=200).map(ok).collect::<Vec<_>>());
    assert_eq!(shard.counters.accepted.value(), 1);
    assert_eq!(shard.counters.messages_in.value(), 200);
}

/// Goal: a double CRLF is answered by a single one (RFC 5626 §3.5.1) and disturbs nothing.
/// Method: ping, then a request.
#[test]
fn a_keep_alive_gets_its_pong() {
    let shard = Shard::start();
    let mut client = shard.client();
    client.write_all(b"\r\n\r\n").unwrap();
    let mut pong = [0; 2];
    client.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"\r\n");
    client.write_all(options(7).as_bytes()).unwrap();
    assert_eq!(responses(&mut client, 1), [ok(7)]);
    assert_eq!(shard.counters.keep_alives.value(), 1);
}

/// Goal: a peer that trickles a message is closed after the message timeout, however often it
/// sends a byte; a fast one is not. Method: 150 ms, a byte every 20 ms.
#[test]
fn a_slow_sender_is_closed() {
    let shard = Shard::start_with(|config| config.message_timeout = Duration::from_millis(150));
    let mut quick = shard.client();
    quick.write_all(options(3).as_bytes()).unwrap();
    assert_eq!(responses(&mut quick, 1), [ok(3)]);
    assert!(matches!(shard.seen(), Seen::Message(..)));
    let mut slow = shard.client();
    slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut closed = false;
    for byte in options(1).bytes().cycle().take(200) {
        closed = slow.write_all(&[byte]).is_err() || matches!(slow.read(&mut [0; 16]), Ok(0));
        if closed {
            break;
        }
    }
    assert!(closed);
    shard.wait_for("slow_closed", |c| c.slow_closed.value(), 1);
    assert!(matches!(shard.seen(), Seen::Closed(_)));
    quick.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut quick, 1), [ok(2)]);
}

/// Goal: connections that say nothing cannot fill `connections_max` for the idle timeout's length.
/// Method: connect, stay silent for longer than the message timeout of 150 ms.
#[test]
fn a_connection_that_never_speaks_is_closed_soon() {
    let shard = Shard::start_with(|config| config.message_timeout = Duration::from_millis(150));
    let mut silent = shard.client();
    assert!(is_closed(&mut silent));
    shard.wait_for("slow_closed", |c| c.slow_closed.value(), 1);
}

/// Goal: a silent connection is closed after the idle timeout, one with keep-alives is not.
/// Method: 300 ms; pings on one of two connections.
#[test]
fn an_idle_connection_is_closed_and_keep_alives_prevent_it() {
    let shard = Shard::start_with(|config| config.idle_timeout = Duration::from_millis(300));
    let mut idle = shard.client();
    let mut alive = shard.client();
    for _ in 0..8 {
        alive.write_all(b"\r\n\r\n").unwrap();
        alive.read_exact(&mut [0; 2]).unwrap();
        std::thread::sleep(Duration::from_millis(75));
    }
    assert!(is_closed(&mut idle));
    assert_eq!(shard.counters.idle_closed.value(), 1);
    alive.write_all(options(1).as_bytes()).unwrap();
    assert_eq!(responses(&mut alive, 1), [ok(1)]);
}

/// Goal: one connection more than the limit is closed at once; a place that gets free is given
/// out again. Method: limit 2.
#[test]
fn a_connection_beyond_the_limit_is_closed_at_once() {
    let shard = Shard::start_with(|config| config.connections_max = 2);
    let mut clients = [shard.client(), shard.client()];
    for client in &mut clients {
        client.write_all(options(1).as_bytes()).unwrap();
        assert_eq!(responses(client, 1), [ok(1)]);
    }
    let mut refused = shard.client();
    assert!(is_closed(&mut refused));
    assert_eq!((shard.counters.accepted.value(), shard.counters.refused.value()), (2, 1));
    drop(clients);
    let mut closed = 0;
    while closed < 2 {
        closed += usize::from(matches!(shard.seen(), Seen::Closed(_)));
    }
    let mut next = shard.client();
    next.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut next, 1), [ok(2)]);
}

/// Goal: bytes that are no SIP end their connection and nothing else. Method: garbage with an end
/// of head; a request whose Content-Length is no number is told 400 first.
#[test]
fn garbage_ends_its_own_connection_only() {
    let shard = Shard::start();
    let mut garbage = shard.client();
    garbage.write_all(b"\x00\xFF garbage\n\n\n\x01\x02\r\n\r\n").unwrap();
    assert!(is_closed(&mut garbage));
    let mut broken = shard.client();
    broken.write_all(options(1).replace("Content-Length: 0", "Content-Length: many").as_bytes()).unwrap();
    let answers = responses(&mut broken, 1);
    assert!(answers[0].0.starts_with("400 ") && answers[0].1 == "1 OPTIONS", "{answers:?}");
    assert!(is_closed(&mut broken));
    shard.wait_for("frame_errors", |c| c.frame_errors.value(), 2);
    let mut client = shard.client();
    client.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut client, 1), [ok(2)]);
}

/// Goal: a message that is framed but malformed gets its 400 and the connection stays.
/// Method: a request without From, then a good one.
#[test]
fn a_malformed_request_gets_400_and_the_connection_stays() {
    let shard = Shard::start();
    let mut client = shard.client();
    let bad = options(1).replace("From: <sip:a@127.0.0.1>;tag=1\r\n", "");
    client.write_all((bad + &options(2)).as_bytes()).unwrap();
    let answers = responses(&mut client, 2);
    assert!(answers[0].0.starts_with("400 "), "{answers:?}");
    assert_eq!(answers[1], ok(2));
    assert_eq!(shard.counters.parse_errors.value(), 1);
}

/// Goal: a peer that finishes sending right after its request still gets the answer.
/// Method: shut down our side at once.
#[test]
fn a_half_closed_peer_gets_its_answer() {
    let shard = Shard::start();
    let mut client = shard.client();
    client.write_all(options(1).as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(responses(&mut client, 1), [ok(1)]);
    assert!(is_closed(&mut client));
}

/// Goal: a peer that never reads is closed when its queue is full, and does not grow the node.
/// Method: requests until the connection breaks.
#[test]
fn a_peer_that_does_not_read_is_closed() {
    let shard = Shard::start();
    let mut client = shard.client();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    let batch: String = (1..=100).map(options).collect();
    let mut batches = 0;
    while client.write_all(batch.as_bytes()).is_ok() {
        batches += 1;
        assert!(batches < 10_000, "still open");
    }
    shard.wait_for("unread_closed", |c| c.unread_closed.value(), 1);
    let mut next = shard.client();
    next.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut next, 1), [ok(2)]);
}

/// Goal: UDP requests are answered to where they came from; keep-alives and garbage pass without
/// harm. Method: all three from one socket.
#[test]
fn udp_requests_are_answered() {
    let shard = Shard::start();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(shard.addresses[1]).unwrap();
    for datagram in [b"\r\n\r\n".to_vec(), vec![], vec![0xFF; 2000], options(5).into_bytes()] {
        client.send(&datagram).unwrap();
    }
    let mut buffer = [0; 2000];
    let len = client.recv(&mut buffer).unwrap();
    assert!(buffer[..len].starts_with(b"SIP/2.0 200 OK\r\n"));
    let Seen::Message(flow, _) = shard.seen() else { panic!("no message") };
    assert_eq!((flow.transport, flow.listener), (Transport::Udp, 1));
    assert_eq!((flow.local, flow.remote), (shard.addresses[1], client.local_addr().unwrap()));
    assert_eq!((shard.counters.keep_alives.value(), shard.counters.parse_errors.value()), (2, 1));
}

/// Goal: messages to one address share one connection, which they wait for in order, and what
/// comes back has its flow. Method: three messages at once, one later; the peer answers.
#[test]
fn outbound_messages_share_one_connection() {
    let shard = Shard::start();
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let remote = peer.local_addr().unwrap();
    for cseq in 1..=3 {
        shard.send.send(to(Transport::Tcp, remote, 0, options(cseq))).unwrap();
    }
    let (mut accepted, _) = peer.accept().unwrap();
    accepted.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut expected: String = (1..=3).map(options).collect();
    let mut bytes = vec![0; expected.len()];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    accepted.write_all(options(9).as_bytes()).unwrap();
    let Seen::Message(flow, _) = shard.seen() else { panic!("no message") };
    assert_eq!((flow.remote, flow.local), (remote, accepted.peer_addr().unwrap()));
    assert_eq!(responses(&mut accepted, 1), [ok(9)]);
    shard.send.send(to(Transport::Tcp, remote, 0, options(4))).unwrap();
    expected = options(4);
    bytes = vec![0; expected.len()];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    assert_eq!(shard.counters.connected.value(), 1);
    drop(accepted);
    assert!(matches!(shard.seen(), Seen::Closed(id) if id == flow.id));
}

/// Goal: a message that cannot be delivered is reported with its destination. Method: a port
/// nobody listens on; TLS, which is not there; a flow that is gone.
#[test]
fn messages_that_cannot_be_sent_are_reported() {
    let shard = Shard::start();
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let flow = Flow {
        id: FlowId(u64::MAX),
        listener: 0,
        transport: Transport::Tcp,
        local: shard.addresses[0],
        remote: nobody,
    };
    let dead = Transmit { destination: Destination::Flow(flow), bytes: Bytes::from(options(3)) };
    let transmits =
        [to(Transport::Tcp, nobody, 0, options(1)), to(Transport::Tls, nobody, 0, options(2)), dead];
    for transmit in transmits {
        shard.send.send(transmit.clone()).unwrap();
        assert!(matches!(shard.seen(), Seen::Failed(failed) if failed == transmit));
    }
    assert_eq!((shard.counters.connect_failed.value(), shard.counters.send_failures.value()), (1, 3));
}

/// Goal: datagrams to an address leave from the listener's UDP socket, or from one of the right
/// family when the listener is TCP. Method: both listener indices.
#[test]
fn outbound_datagrams_leave_from_the_udp_listener() {
    let shard = Shard::start();
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    for listener in [1, 0] {
        shard.send.send(to(Transport::Udp, peer.local_addr().unwrap(), listener, options(1))).unwrap();
        let mut buffer = [0; 2000];
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((from, &buffer[..len]), (shard.addresses[1], options(1).as_bytes()));
    }
}

/// Goal: timers fire and the end is orderly: queued bytes leave, connections close, the thread
/// returns. Method: a request that starts a timer whose end finishes the role.
#[test]
fn a_finished_role_ends_the_shard() {
    let mut shard = Shard::start();
    let mut client = shard.client();
    client.write_all((options(1) + &request("INFO", 2, "")).as_bytes()).unwrap();
    assert_eq!(responses(&mut client, 1), [ok(1)]);
    assert!(is_closed(&mut client));
    shard.join().unwrap();
    assert!(TcpStream::connect(shard.addresses[0]).is_err());
}

/// Goal: a listener that cannot be bound is an error that names it. Method: a port in use.
#[test]
fn a_port_in_use_is_reported_with_its_address() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let (_send, sends) = mpsc::channel();
    let (seen, _seen) = mpsc::channel();
    let role = TestRole {
        out: VecDeque::new(),
        send: sends,
        seen,
        finish: Arc::new(AtomicBool::new(true)),
        timer: None,
        closed_to_all: Arc::default(),
        tls_name: None,
    };
    let config = SignalConfig {
        listeners: vec![Listener { transport: Transport::Tcp, address }],
        connections_max: 1,
        idle_timeout: PATIENCE,
        message_timeout: PATIENCE,
        limits: ConnectionLimits::default(),
        tls: None,
        orders: Arc::new(ArrayQueue::new(1)),
        cpu: None,
        counters: Arc::default(),
    };
    let mut told = None;
    let error = run(config, role, |bound| told = Some(bound)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(told.unwrap().is_err());
}

/// Goal: whatever arrives, the shard answers the next peer, over TCP and UDP.
/// Method: mutated requests in random pieces; after each round a good request. Runs
/// `VOXRING_FUZZ_SECONDS` (default 2), prints its seed, `VOXRING_SEED` replays.
#[test]
#[expect(clippy::disallowed_methods, reason = "a time budget, not protocol time")]
fn mutated_requests_never_stop_the_shard() {
    let (seed, mut random, limit) = fuzz("mutated_requests");
    let shard = Shard::start_with(|config| config.connections_max = 64);
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let base = (options(1) + &request("INVITE", 2, "v=0\r\n") + "\r\n\r\n" + &options(3)).into_bytes();
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < limit {
        let mut bytes = base.clone();
        for _ in 0..=random(6) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = b"\r\n :;,<>\"0129\0\xFF"[random(15)],
                1 => bytes.truncate(at.max(1)),
                2 => drop(bytes.remove(at)),
                _ => bytes.splice(at..at, base[..random(60)].to_vec()).for_each(drop),
            }
            if bytes.len() < 2 {
                break;
            }
        }
        udp.send_to(&bytes, shard.addresses[1]).unwrap();
        let mut mutant = shard.client();
        for piece in bytes.chunks(1 + random(200)) {
            if mutant.write_all(piece).is_err() {
                break;
            }
        }
        let mut client = shard.client();
        client.write_all(options(9).as_bytes()).unwrap();
        assert_eq!(responses(&mut client, 1), [ok(9)], "seed {seed}, round {rounds}");
        rounds += 1;
    }
    println!("{rounds} rounds, {:?}", shard.counters);
}
