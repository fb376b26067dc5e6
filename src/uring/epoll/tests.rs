//! How epoll shares its turns.

use super::*;

use std::net::{Ipv4Addr, UdpSocket};

use crate::uring::tests::{Seen, backend, v4};

/// Goal: a flood on one socket delays nobody else, and costs a turn a bounded time. Method: 200
/// datagrams wait on one socket and one on each of 300 others, more than a round takes; after one
/// turn all the others were heard, and of the flood as much as there were rounds.
#[test]
fn a_flood_on_one_socket_does_not_starve_the_others() {
    let (mut io, mut seen) = (backend::<Epoll>(301), Seen::default());
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (flooded, to) = v4();
    io.open(300, flooded);
    for _ in 0..200 {
        peer.send_to(b"flood", to).unwrap();
    }
    for stream in 0..300 {
        let (socket, to) = v4();
        io.open(stream, socket);
        peer.send_to(b"voice", to).unwrap();
    }
    io.reap(clock::now(), &mut seen);
    let mut heard: Vec<u32> = seen.datagrams.iter().map(|(stream, ..)| *stream).collect();
    heard.sort_unstable();
    let flood = heard.split_off(300);
    assert_eq!(heard, (0..300).collect::<Vec<u32>>());
    assert!(flood.len() <= ROUNDS_MAX && flood.iter().all(|&stream| stream == 300), "{flood:?}");
    // The rest was kept for the next turns, three of four of which take one.
    for _ in 0..12 {
        io.reap(clock::now(), &mut seen);
    }
    assert_eq!(seen.datagrams.len(), 500);
}

/// Goal: under load a wait is not ended by datagrams, only by its deadline. Method: ask for two
/// with one waiting; then for one.
#[test]
fn a_wait_for_several_sleeps_out_its_tick() {
    let mut io = backend::<Epoll>(1);
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (socket, to) = v4();
    io.open(0, socket);
    peer.send_to(b"voice", to).unwrap();
    let tick = clock::now() + std::time::Duration::from_millis(5);
    io.wait(2, tick).unwrap();
    assert!(clock::now() >= tick);
    // Were it not for the datagram, this would last for ever.
    io.wait(1, clock::now() + std::time::Duration::from_secs(3600)).unwrap();
}
