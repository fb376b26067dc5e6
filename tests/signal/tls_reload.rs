//! TLS: a new setup while connections are up.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ServerConnection, StreamOwned};
use voxring::signal::SignalOrder;
use voxring::sip::flow::Transport;

use crate::certificates::{Authority, Wish, connect, load, refusal};
use crate::shard::{PATIENCE, Seen, Shard, ok, options, request, responses, to};
use crate::tls::{secure, server, serves};

/// Goal: a new setup is what new handshakes see, and cuts only whom it does not take. Method: three
/// clients, one of which the new list revokes; the new certificate has another serial number.
#[test]
fn a_reload_cuts_only_who_is_revoked() {
    let authority = Authority::new("CA");
    let node = |serial| authority.issue(&Wish { serial, ..Wish::default() });
    let (first, second) = (node(100), node(101));
    let shard = Shard::start_with(secure(&load(&authority.files_with_crl(&first, &[], 2099)).unwrap()));
    let clients = [1, 2, 3].map(|serial| authority.client_13(&node(serial)));
    let mut open = clients.clone().map(|config| connect(shard.addresses[0], &config));
    let mut flows = Vec::new();
    for client in &mut open {
        serves(client, 1);
        assert!(matches!(shard.seen(), Seen::Secured(..)));
        let Seen::Message(flow, _) = shard.seen() else { panic!("no message") };
        flows.push(flow.id);
    }
    let reloaded = load(&authority.files_with_crl(&second, &[2], 2099)).unwrap();
    shard.order(SignalOrder::Tls(reloaded));
    assert!(matches!(shard.seen(), Seen::Closed(id) if id == flows[1]));
    assert_eq!(shard.counters.revoked_closed.value(), 1);
    let [left, cut, right] = &mut open;
    assert_eq!(cut.read(&mut [0; 10]).unwrap(), 0, "the end is said");
    serves(left, 2);
    serves(right, 2);
    let shown = |client: &crate::certificates::Client| client.conn.peer_certificates().unwrap()[0].clone();
    assert_eq!(&shown(left), first.certificate.der());
    let mut new = connect(shard.addresses[0], &clients[0]);
    serves(&mut new, 3);
    assert_eq!(&shown(&new), second.certificate.der());
    refusal(connect(shard.addresses[0], &clients[1]));
    shard.wait_for("tls_revoked", |c| c.tls_revoked.value(), 1);
}

/// Goal: sessions are resumed, but never one that an older setup allowed. Method: TLS 1.2 and 1.3;
/// the second handshake resumes; after the reload the revoked client offers its session and is
/// refused, another offers its own and gets a full handshake.
#[test]
fn a_revoked_client_cannot_resume_after_a_reload() {
    let authority = Authority::new("CA");
    let node = authority.issue(&Wish { serial: 100, ..Wish::default() });
    for version in [&TLS12, &TLS13] {
        let setup = load(&authority.files_with_crl(&node, &[], 2099)).unwrap();
        let shard = Shard::start_with(secure(&setup));
        let clients = [7, 8].map(|serial| {
            let own = authority.issue(&Wish { serial, ..Wish::default() });
            Arc::new(authority.client(Some(&own), version))
        });
        for config in &clients {
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let mut client = connect(shard.addresses[0], config);
                serves(&mut client, 1);
                assert_eq!(client.conn.handshake_kind(), Some(expected));
                let names = (0..3).find_map(|_| match shard.seen() {
                    Seen::Secured(_, names) => names,
                    Seen::Message(..) | Seen::Closed(_) | Seen::Failed(_) => None,
                });
                assert!(names.is_some(), "a resumed peer has names too");
            }
        }
        assert_eq!(shard.counters.tls_resumed.value(), 2);
        shard.wait_for("closed", |_| u64::from(shard.seen.try_iter().count() == 0), 1);
        shard.order(SignalOrder::Tls(load(&authority.files_with_crl(&node, &[7], 2099)).unwrap()));
        shard.wait_for("the order", |_| u64::from(shard.orders.is_empty()), 1);
        refusal(connect(shard.addresses[0], &clients[0]));
        shard.wait_for("tls_revoked", |c| c.tls_revoked.value(), 1);
        let mut client = connect(shard.addresses[0], &clients[1]);
        serves(&mut client, 2);
        assert_eq!(client.conn.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(shard.counters.tls_resumed.value(), 2);
    }
}

/// Goal: a handshake that began before the reload does not let a revoked peer in. Method: the client
/// stops after its first flight, which the old setup answers; the list comes; then it goes on.
#[test]
fn a_handshake_under_way_is_judged_by_the_new_setup() {
    let authority = Authority::new("CA");
    let node = authority.issue(&Wish { serial: 100, ..Wish::default() });
    let shard = Shard::start_with(secure(&load(&authority.files_with_crl(&node, &[], 2099)).unwrap()));
    let own = authority.issue(&Wish { serial: 9, ..Wish::default() });
    let mut client = connect(shard.addresses[0], &authority.client_13(&own));
    client.conn.write_tls(&mut client.sock).unwrap();
    client.sock.peek(&mut [0; 1]).unwrap();
    shard.order(SignalOrder::Tls(load(&authority.files_with_crl(&node, &[9], 2099)).unwrap()));
    shard.wait_for("the order", |_| u64::from(shard.orders.is_empty()), 1);
    let _ = client.write_all(request("OPTIONS", 1, "").as_bytes());
    assert!(!matches!(client.read(&mut [0; 100]), Ok(1..)), "no answer");
    shard.wait_for("tls_revoked", |c| c.tls_revoked.value(), 1);
    assert_eq!((shard.counters.messages_in.value(), shard.counters.tls_handshakes.value()), (0, 0));
}

/// Goal: a server the node called is cut like any other peer when its certificate is revoked.
/// Method: a connection to a server with serial number 20, another to one with 21; the list names 20.
#[test]
fn a_revoked_server_is_cut_too() {
    let authority = Authority::new("CA");
    let node = authority.issue(&Wish { serial: 100, ..Wish::default() });
    let shard = Shard::start_with(secure(&load(&authority.files_with_crl(&node, &[], 2099)).unwrap()));
    let mut called = [20, 21].map(|serial| {
        let own = authority.issue(&Wish { serial, ..Wish::default() });
        let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        shard.send.send(to(Transport::Tls, peer.local_addr().unwrap(), 0, options(1))).unwrap();
        let (socket, _) = peer.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = ServerConnection::new(server(&authority.roots(), &own)).unwrap();
        let mut accepted = StreamOwned::new(session, socket);
        accepted.read_exact(&mut vec![0; options(1).len()]).unwrap();
        let Seen::Secured(flow, _) = shard.seen() else { panic!("not secured") };
        (accepted, flow.id)
    });
    shard.order(SignalOrder::Tls(load(&authority.files_with_crl(&node, &[20], 2099)).unwrap()));
    assert!(matches!(shard.seen(), Seen::Closed(id) if id == called[0].1));
    assert_eq!(called[0].0.read(&mut [0; 10]).unwrap(), 0);
    called[1].0.write_all(options(2).as_bytes()).unwrap();
    assert_eq!(responses(&mut called[1].0, 1), [ok(2)]);
    assert_eq!(shard.counters.revoked_closed.value(), 1);
}
