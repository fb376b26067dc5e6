//! Listeners that come and go while the loop runs.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crossbeam::channel;
use voxring::signal::{Listener, SignalOrder};
use voxring::sip::flow::{Destination, Transmit, Transport};
use voxring::sip::message::Message;

use crate::certificates::{Authority, Wish, connect};
use crate::shard::{PATIENCE, Seen, Shard, ok, options, responses};
use crate::tls::serves;

fn listen(
    shard: &Shard,
    index: u16,
    transport: Transport,
    address: SocketAddr,
) -> std::io::Result<SocketAddr> {
    let (bound, told) = channel::bounded(1);
    shard.order(SignalOrder::Listen { index, listener: Listener { transport, address }, bound });
    told.recv_timeout(PATIENCE).expect("an answer")
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Waits until nobody accepts at the address.
fn wait_until_gone(address: SocketAddr) {
    let is_gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        TcpStream::connect(address).is_err()
    });
    assert!(is_gone, "somebody still listens on {address}");
}

/// Goal: a listener that goes leaves its connections and the other listeners alone, and its address
/// can be taken again. Method: a second TCP listener at index 5, removed, then the first one removed
/// and put back at another index.
#[test]
fn listeners_come_and_go_and_connections_stay() {
    let shard = Shard::start();
    let added = listen(&shard, 5, Transport::Tcp, any()).unwrap();
    let mut first = shard.client();
    let mut second = TcpStream::connect(added).unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    second.write_all(options(1).as_bytes()).unwrap();
    assert_eq!(responses(&mut second, 1), [ok(1)]);
    let Seen::Message(flow, _) = shard.seen() else { panic!("no message") };
    assert_eq!(flow.listener, 5);
    shard.order(SignalOrder::Unlisten { index: 5 });
    wait_until_gone(added);
    first.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut first, 1), [ok(2)]);
    shard.order(SignalOrder::Unlisten { index: 0 });
    assert_eq!(listen(&shard, 6, Transport::Tcp, shard.addresses[0]).unwrap(), shard.addresses[0]);
    for (client, cseq) in [(&mut first, 3), (&mut second, 4), (&mut shard.client(), 5)] {
        client.write_all(options(cseq).as_bytes()).unwrap();
        assert_eq!(responses(client, 1), [ok(cseq)]);
    }
}

/// Goal: a listener that cannot be is told why. Method: an index in use; a port in use; TLS without
/// a certificate.
#[test]
fn a_listener_that_cannot_be_is_told_why() {
    let shard = Shard::start();
    let taken = TcpListener::bind(any()).unwrap();
    let port = taken.local_addr().unwrap();
    let error = listen(&shard, 0, Transport::Tcp, any()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    let error = listen(&shard, 9, Transport::Tcp, port).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    let error = listen(&shard, 9, Transport::Tls, any()).unwrap_err();
    assert!(error.to_string().contains("TLS needs a certificate"), "{error}");
    listen(&shard, 9, Transport::Tcp, any()).unwrap();
}

/// Goal: a listener that is taken back while its address is in use does not open later, when nobody
/// knows of it any more. Method: a taken port, the order and its withdrawal, then the port is free.
#[test]
fn a_listener_taken_back_before_it_is_bound_never_opens() {
    let shard = Shard::start();
    let taken = TcpListener::bind(any()).unwrap();
    let address = taken.local_addr().unwrap();
    let (bound, told) = channel::bounded(1);
    let listener = Listener { transport: Transport::Tcp, address };
    shard.order(SignalOrder::Listen { index: 9, listener, bound });
    shard.order(SignalOrder::Unlisten { index: 9 });
    shard.wait_for("the orders", |_| u64::from(shard.orders.is_empty()), 1);
    drop(taken);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap_err(), channel::RecvTimeoutError::Disconnected);
    assert!(TcpStream::connect(address).is_err(), "somebody listens on {address}");
}

/// Goal: TLS can be turned on while the loop runs. Method: a setup, then a listener.
#[test]
fn tls_can_be_turned_on_later() {
    let authority = Authority::new("CA");
    let shard = Shard::start();
    shard.order(SignalOrder::Tls(authority.node()));
    let address = listen(&shard, 2, Transport::Tls, any()).unwrap();
    let own = authority.client_13(&authority.issue(&Wish::default()));
    serves(&mut connect(address, &own), 1);
}

/// Goal: a UDP listener that goes takes nothing more in, but what is due still leaves from its
/// address; the address can be taken again. Method: a request before, an answer after, a request
/// after, a new listener on the same port.
#[test]
fn a_udp_listener_that_goes_still_sends() {
    let shard = Shard::start();
    let peer = UdpSocket::bind(any()).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(options(1).replace("OPTIONS", "NOTIFY").as_bytes(), shard.addresses[1]).unwrap();
    let Seen::Message(flow, Message::Request(_)) = shard.seen() else { panic!("no request") };
    shard.order(SignalOrder::Unlisten { index: 1 });
    shard.wait_for("the order", |_| u64::from(shard.orders.is_empty()), 1);
    // Some sweeps later it is still there.
    std::thread::sleep(Duration::from_millis(300));
    let bytes = options(7).into();
    shard.send.send(Transmit { destination: Destination::Flow(flow), bytes }).unwrap();
    let mut buffer = [0; 2000];
    let (len, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((from, &buffer[..len]), (shard.addresses[1], options(7).as_bytes()));
    assert_eq!(listen(&shard, 3, Transport::Udp, shard.addresses[1]).unwrap(), shard.addresses[1]);
    peer.send_to(options(8).as_bytes(), shard.addresses[1]).unwrap();
    let Seen::Message(flow, _) = shard.seen() else { panic!("no request") };
    assert_eq!(flow.listener, 3);
}

/// Goal: an IPv6 listener leaves IPv4 to its own. Method: both wildcards on one port, TCP and UDP;
/// a peer of each family comes in at its own.
#[test]
fn both_families_share_a_port() {
    let shard = Shard::start();
    let v4 = listen(&shard, 4, Transport::Tcp, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
    listen(&shard, 6, Transport::Tcp, (Ipv6Addr::UNSPECIFIED, v4.port()).into()).unwrap();
    let udp = listen(&shard, 14, Transport::Udp, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
    listen(&shard, 16, Transport::Udp, (Ipv6Addr::UNSPECIFIED, udp.port()).into()).unwrap();
    let homes: [(SocketAddr, SocketAddr, u16, u16); 2] = [
        ((Ipv4Addr::LOCALHOST, v4.port()).into(), (Ipv4Addr::LOCALHOST, udp.port()).into(), 4, 14),
        ((Ipv6Addr::LOCALHOST, v4.port()).into(), (Ipv6Addr::LOCALHOST, udp.port()).into(), 6, 16),
    ];
    for (tcp, udp, tcp_index, udp_index) in homes {
        let mut client = TcpStream::connect(tcp).unwrap();
        client.write_all(options(1).as_bytes()).unwrap();
        let Seen::Message(flow, _) = shard.seen() else { panic!("no message") };
        assert_eq!((flow.listener, flow.remote), (tcp_index, client.local_addr().unwrap()));
        drop(client);
        assert!(matches!(shard.seen(), Seen::Closed(_)));
        let client = UdpSocket::bind((udp.ip(), 0)).unwrap();
        client.send_to(options(2).as_bytes(), udp).unwrap();
        let Seen::Message(flow, _) = shard.seen() else { panic!("no datagram") };
        assert_eq!((flow.listener, flow.remote), (udp_index, client.local_addr().unwrap()));
    }
}
