//! Sockets that pass from one loop to the next.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use crossbeam::channel::{self, Receiver};
use voxring::signal::{Passed, SignalOrder};

use crate::certificates::{Authority, Wish, connect};
use crate::shard::{PATIENCE, Shard, is_closed, ok, options, responses};
use crate::tls::{secure, serves};

/// Orders a shard to give its sockets away.
fn pass(shard: &Shard, within: Duration) -> Receiver<Passed> {
    let (passed, told) = channel::bounded(1);
    shard.order(SignalOrder::PassOn { within, passed });
    told
}

/// Goal: neither a connection with half a request on its way, nor an idle one, nor who connects or sends a
/// datagram while nobody listens, is lost or turned away. Method: one of each across the change; the half
/// request is completed after the order, and the first loop still answers it.
#[test]
fn connections_and_listeners_go_on_in_the_next_loop() {
    let mut old = Shard::start();
    let (mut idle, mut busy) = (old.client(), old.client());
    for client in [&mut idle, &mut busy] {
        client.write_all(options(1).as_bytes()).unwrap();
        assert_eq!(responses(client, 1), [ok(1)]);
    }
    let request = options(2);
    let (head, tail) = request.split_at(100);
    busy.write_all(head.as_bytes()).unwrap();
    old.wait_for("half a request", |counters| counters.bytes_in.value(), 2 * options(1).len() as u64 + 100);
    let told = pass(&old, PATIENCE);
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err(), "a request has begun");
    busy.write_all(tail.as_bytes()).unwrap();
    assert_eq!(responses(&mut busy, 1), [ok(2)]);
    let passed = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!((passed.listeners.len(), passed.connections.len()), (2, 2));
    old.join().unwrap();

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    udp.send_to(options(3).as_bytes(), old.addresses[1]).unwrap();
    let mut new_caller = TcpStream::connect(old.addresses[0]).unwrap();
    new_caller.set_read_timeout(Some(PATIENCE)).unwrap();
    for client in [&mut idle, &mut busy, &mut new_caller] {
        client.write_all(options(4).as_bytes()).unwrap();
    }
    let new = Shard::start_over(passed);
    assert_eq!(new.addresses, old.addresses);
    for client in [&mut idle, &mut busy, &mut new_caller] {
        assert_eq!(responses(client, 1), [ok(4)]);
    }
    let mut buffer = [0; 1500];
    let len = udp.recv(&mut buffer).unwrap();
    assert!(buffer[..len].starts_with(b"SIP/2.0 200"));
}

/// Goal: a peer that never finishes its request does not hold the change up for ever; others go on.
/// Method: half a request and no more, 100 ms for it.
#[test]
fn a_peer_that_does_not_finish_is_left_behind_in_time() {
    let mut old = Shard::start();
    let (mut good, mut slow) = (old.client(), old.client());
    good.write_all(options(1).as_bytes()).unwrap();
    assert_eq!(responses(&mut good, 1), [ok(1)]);
    slow.write_all(&options(2).as_bytes()[..100]).unwrap();
    old.wait_for("half a request", |counters| counters.bytes_in.value(), options(1).len() as u64 + 100);
    let passed = pass(&old, Duration::from_millis(100)).recv_timeout(PATIENCE).unwrap();
    assert_eq!(passed.connections.len(), 1);
    old.join().unwrap();
    let _new = Shard::start_over(passed);
    good.write_all(options(3).as_bytes()).unwrap();
    assert_eq!(responses(&mut good, 1), [ok(3)]);
    assert!(is_closed(&mut slow));
}

/// Goal: a TLS connection, whose keys cannot pass on, is closed in order once nothing is owed. Method: one
/// that has been answered.
#[test]
fn a_tls_connection_is_closed_with_a_word() {
    let authority = Authority::new("CA");
    let mut old = Shard::start_with(secure(&authority.node()));
    let own = authority.client_13(&authority.issue(&Wish::default()));
    let mut client = connect(old.addresses[0], &own);
    serves(&mut client, 1);
    let passed = pass(&old, PATIENCE).recv_timeout(PATIENCE).unwrap();
    assert!(passed.connections.is_empty() && !passed.listeners.is_empty());
    // With a closure alert it is no unexpected end.
    let mut rest = Vec::new();
    assert_eq!(client.read_to_end(&mut rest).expect("a closure alert"), 0);
    old.join().unwrap();
}
