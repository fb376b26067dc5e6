//! What one source, and one connection, may ask.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use voxring::signal::{ConnectionLimits, SignalOrder};
use voxring::sip::flow::{Destination, Transmit, Transport};
use voxring::sip::message::{Message, Request, Response};

use crate::shard::{Seen, Shard, is_closed, ok, options, request, responses, to};

/// Goal: a source opens no more connections than it may, counted, and may again when one has ended.
/// Method: two at most, by an order to the running loop.
#[test]
fn a_source_has_so_many_connections_open() {
    let shard = Shard::start();
    shard.order(SignalOrder::Limits(ConnectionLimits { source_max: 2, ..ConnectionLimits::default() }));
    shard.wait_for("the order", |_| u64::from(shard.orders.is_empty()), 1);
    let mut clients = [shard.client(), shard.client()];
    for client in &mut clients {
        client.write_all(options(1).as_bytes()).unwrap();
        assert_eq!(responses(client, 1), [ok(1)]);
        assert!(matches!(shard.seen(), Seen::Message(..)));
    }
    assert!(is_closed(&mut shard.client()));
    assert_eq!((shard.counters.source_refused.value(), shard.counters.accepted.value()), (1, 2));
    let [gone, _stays] = clients;
    drop(gone);
    assert!(matches!(shard.seen(), Seen::Closed(_)));
    let mut next = shard.client();
    next.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut next, 1), [ok(2)]);
}

/// Goal: a source opens no more connections at once than its burst. Method: a burst of 3, then one a
/// second; of twenty at once three are taken, and more only if opening them takes seconds.
#[test]
fn a_source_opens_only_so_many_at_once() {
    let limits = ConnectionLimits { source_per_s: 1, source_burst: 3, ..ConnectionLimits::default() };
    let shard = Shard::start_with(|config| config.limits = limits);
    let _clients: Vec<_> = (0..20).map(|_| shard.client()).collect();
    shard.wait_for("verdicts", |c| c.accepted.value() + c.source_refused.value(), 20);
    let (accepted, refused) = (shard.counters.accepted.value(), shard.counters.source_refused.value());
    assert!(accepted >= 3 && refused > 0, "{accepted} accepted, {refused} refused");
}

/// Goal: a peer that sends faster than it may is left unread, and loses nothing. Method: 50 messages
/// a second, 150 at once, in two writes, the first of which ends in half a message; then
/// 120 keep-alives.
#[test]
fn a_throttled_peer_loses_nothing() {
    let limits = ConnectionLimits { messages_per_s: 50, ..ConnectionLimits::default() };
    let shard = Shard::start_with(|config| {
        config.limits = limits;
        config.message_timeout = Duration::from_secs(1);
    });
    let mut client = shard.client();
    let all: String = (1..=150).map(options).collect();
    let (early, late) = all.split_at(all.len() / 2 + 17);
    client.write_all(early.as_bytes()).unwrap();
    client.write_all(late.as_bytes()).unwrap();
    let mut other = shard.client();
    other.write_all(options(7).as_bytes()).unwrap();
    assert_eq!(responses(&mut other, 1), [ok(7)], "others are not held up");
    assert!(shard.counters.messages_in.value() < 150, "the flood waits");
    assert_eq!(responses(&mut client, 150), (1..=150).map(ok).collect::<Vec<_>>());
    assert!(shard.counters.throttled.value() > 0);
    assert_eq!((shard.counters.slow_closed.value(), shard.counters.frame_errors.value()), (0, 0));
    client.write_all("\r\n\r\n".repeat(120).as_bytes()).unwrap();
    let mut pongs = [0; 240];
    client.read_exact(&mut pongs).unwrap();
    assert_eq!(pongs[..], *b"\r\n".repeat(120));
}

/// Goal: an address the role does not know gets nothing: no byte on TCP, no answer on UDP, where
/// responses pass, since we asked for them. Connections we open are not asked about. Method: the
/// role knows nobody at one listener after the other.
#[test]
fn unknown_sources_get_nothing() {
    let shard = Shard::start();
    shard.closed_to_all.store(0, Ordering::Relaxed);
    let mut client = shard.client();
    assert_eq!(client.read(&mut [0; 10]).unwrap(), 0, "not a byte");
    assert_eq!((shard.counters.unknown_source.value(), shard.counters.accepted.value()), (1, 0));
    let peer = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    shard.send.send(to(Transport::Tcp, peer.local_addr().unwrap(), 0, options(3))).unwrap();
    let (mut called, _) = peer.accept().unwrap();
    called.write_all(options(4).as_bytes()).unwrap();
    assert!(matches!(shard.seen(), Seen::Message(..)));
    shard.closed_to_all.store(1, Ordering::Relaxed);
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let response = Message::Response(Response::for_request(&parsed(&options(5)), 200, "OK")).to_bytes();
    for datagram in [options(1).as_bytes(), b"noise", b"SIP/2.0 noise\r\n\r\n", &response] {
        udp.send_to(datagram, shard.addresses[1]).unwrap();
    }
    assert!(matches!(shard.seen(), Seen::Message(_, Message::Response(_))));
    assert_eq!((shard.counters.unknown_source.value(), shard.counters.parse_errors.value()), (4, 0));
}

fn parsed(text: &str) -> Request {
    let Ok(Message::Request(request)) = Message::parse(text.to_owned().into()) else { panic!("a request") };
    request
}

/// Goal: a peer that shuts its sending side after an INVITE gets what comes of it, then the end.
/// Method: 180 and 200 from the role, 100 ms after the peer has shut; then the connection closes.
#[test]
fn a_half_closed_caller_gets_its_final_response() {
    let shard = Shard::start();
    let mut client = shard.client();
    client.write_all(request("INVITE", 1, "").as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let Seen::Message(flow, Message::Request(invite)) = shard.seen() else { panic!("no INVITE") };
    std::thread::sleep(Duration::from_millis(100));
    let bytes = options(5).into();
    shard.send.send(Transmit { destination: Destination::Flow(flow), bytes }).unwrap();
    assert!(matches!(shard.seen(), Seen::Failed(_)), "a request could not be answered");
    for (status, reason) in [(180, "Ringing"), (200, "OK")] {
        let bytes = Message::Response(Response::for_request(&invite, status, reason)).to_bytes();
        shard.send.send(Transmit { destination: Destination::Flow(flow), bytes }).unwrap();
        let answer = (format!("{status} {reason}"), "1 INVITE".to_owned());
        assert_eq!(responses(&mut client, 1), [answer]);
    }
    assert!(is_closed(&mut client));
    assert!(matches!(shard.seen(), Seen::Closed(id) if id == flow.id));
}
