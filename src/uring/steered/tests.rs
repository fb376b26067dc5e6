//! What only a socket for all streams can get wrong.

use super::*;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use crate::uring::tests::{Seen, backend, may_steer, turn, until, v4};

/// A phone, and the backend with one stream.
fn one_stream(seen: &mut Seen) -> (UdpSocket, Steered, SocketAddr) {
    let mut io = backend::<Steered>(1);
    let (socket, to) = v4();
    io.open(0, socket);
    turn(&mut io, seen);
    (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), io, to)
}

/// Goal: a stream's datagrams do not touch its own socket, and one that rests, or is closed, is left alone.
/// Method: a second descriptor of the socket sees what is queued there.
#[test]
fn only_open_streams_are_steered() {
    if !may_steer() {
        return;
    }
    let (mut io, mut seen) = (backend::<Steered>(1), Seen::default());
    let (socket, to) = v4();
    let own = UdpSocket::from(socket.try_clone().unwrap());
    own.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let comes_to_own = || {
        peer.send_to(b"voice", to).unwrap();
        own.recv(&mut [0; 8]).is_ok()
    };
    assert!(comes_to_own());
    io.open(0, socket);
    assert!(!comes_to_own());
    io.rest(0);
    assert!(comes_to_own());
    io.wake(0);
    assert!(!comes_to_own());
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 2);
    io.close(0);
    assert!(comes_to_own());
}

/// Goal: other addresses' ports are not ours. Method: a socket at the same port of 127.0.0.2.
#[test]
fn another_address_keeps_its_datagrams() {
    if !may_steer() {
        return;
    }
    let mut seen = Seen::default();
    let (peer, mut io, to) = one_stream(&mut seen);
    let Ok(other) = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), to.port())) else { return };
    other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    peer.send_to(b"theirs", other.local_addr().unwrap()).unwrap();
    assert_eq!(other.recv(&mut [0; 8]).unwrap(), 6);
    turn(&mut io, &mut seen);
    assert!(seen.datagrams.is_empty());
}

/// Goal: two backends in one network namespace, as two shards or nodes have it, take nothing from each other.
/// Method: one stream each.
#[test]
fn two_of_them_do_not_mix() {
    if !may_steer() {
        return;
    }
    let (mut here, mut there) = (Seen::default(), Seen::default());
    let (peer, mut one, to_one) = one_stream(&mut here);
    let (_, mut other, to_other) = one_stream(&mut there);
    peer.send_to(b"one", to_one).unwrap();
    peer.send_to(b"other", to_other).unwrap();
    until(&mut one, &mut here, |seen| !seen.datagrams.is_empty());
    until(&mut other, &mut there, |seen| !seen.datagrams.is_empty());
    assert_eq!(here.datagrams[0].2, b"one");
    assert_eq!(there.datagrams[0].2, b"other");
}

/// Goal: a flood on one port leaves the common queue, and nobody loses anything by it. Method: 500 datagrams
/// to one of two streams, then one to each.
#[test]
fn a_flood_moves_to_its_own_socket() {
    if !may_steer() {
        return;
    }
    let mut seen = Seen::default();
    let (peer, mut io, flooded) = one_stream(&mut seen);
    let (socket, calm) = v4();
    io.open(1, socket);
    for _ in 0..500 {
        peer.send_to(b"flood", flooded).unwrap();
    }
    io.reap(clock::now(), &mut seen);
    assert!(!io.is_steered(0) && io.is_steered(1));
    peer.send_to(b"flood", flooded).unwrap();
    peer.send_to(b"voice", calm).unwrap();
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 502);
    assert_eq!(seen.datagrams.iter().filter(|(stream, ..)| *stream == 1).count(), 1);
    // A second later it is like any other.
    io.reap(clock::now() + CALM, &mut seen);
    assert!(io.is_steered(0));
}

/// Goal: what a backend leaves behind leads nowhere, also when another is in its place. Method: drop one with
/// an open stream, make another, and receive at the same port by an ordinary socket.
#[test]
fn a_dropped_backend_lets_go_of_its_ports() {
    if !may_steer() {
        return;
    }
    let mut seen = Seen::default();
    let (peer, io, to) = one_stream(&mut seen);
    // Another one keeps the program running.
    let _other = one_stream(&mut seen);
    drop(io);
    let _third = one_stream(&mut seen);
    let socket = UdpSocket::bind(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    peer.send_to(b"voice", to).unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 5);
}

/// Goal: what no raw packet carries leaves all the same. Method: echo 1,400 bytes, more than is sent raw.
#[test]
fn long_packets_leave_by_their_own_socket() {
    if !may_steer() {
        return;
    }
    let mut seen = Seen { echo: true, ..Seen::default() };
    let (peer, mut io, to) = one_stream(&mut seen);
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for length in [172, raw_send::PAYLOAD_BYTES_MAX, raw_send::PAYLOAD_BYTES_MAX + 1, 1400] {
        let before = seen.datagrams.len();
        peer.send_to(&vec![7; length], to).unwrap();
        until(&mut io, &mut seen, |seen| seen.datagrams.len() > before);
        let mut buffer = [0; 1600];
        let (heard, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((heard, from, buffer[0], buffer[length - 1]), (length, to, 8, 7));
    }
}
