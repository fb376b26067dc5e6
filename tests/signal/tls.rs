//! TLS: who gets in, who does not, what it costs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use voxring::signal::{
    ConnectionLimits, Counters, Listener, PeerCertificate, SignalConfig, TlsError, TlsFiles, TlsSetup,
};
use voxring::sip::flow::{PeerNames, Transport};
use voxring::sip::message::Message;

use crate::certificates::{Authority, Client, Identity, Wish, connect, load, refusal};
use crate::shard::{PATIENCE, Seen, Shard, fuzz, is_closed, ok, options, request, responses, to};

/// A shard with TLS as its first listener.
pub(crate) fn secure(setup: &Arc<TlsSetup>) -> impl FnOnce(&mut SignalConfig) {
    let tls = Arc::clone(setup);
    |config| {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        config.listeners.insert(0, Listener { transport: Transport::Tls, address });
        config.tls = Some(tls);
    }
}

/// Sends OPTIONS and sees the 200.
pub(crate) fn serves(client: &mut Client, cseq: u32) {
    client.write_all(options(cseq).as_bytes()).expect("the connection is up");
    assert_eq!(responses(client, 1), [ok(cseq)]);
}

/// Goal: both versions work with certificates on both sides, and the role learns the peer's names
/// before its first message. Method: a certificate with a DNS name in capitals, an IPv4 and an IPv6
/// address; the flow of the message is the one that was named.
#[test]
fn both_versions_bring_the_peers_names() {
    let authority = Authority::new("CA");
    let shard = Shard::start_with(secure(&authority.node()));
    let wish = Wish { names: &["Gateway.Example.com", "192.0.2.7", "2001:db8::7"], ..Wish::default() };
    let own = authority.issue(&wish);
    for (cseq, version) in [(1, &TLS12), (2, &TLS13)] {
        let mut client = connect(shard.addresses[0], &Arc::new(authority.client(Some(&own), version)));
        serves(&mut client, cseq);
        assert_eq!(client.conn.protocol_version(), Some(version.version));
        let Seen::Secured(secured, Some(peer)) = shard.seen() else { panic!("no names") };
        let expected = PeerNames {
            dns_names: vec!["gateway.example.com".into()],
            ip_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            common_name: None,
        };
        assert_eq!(*peer, expected);
        let Seen::Message(flow, Message::Request(_)) = shard.seen() else { panic!("no request") };
        assert_eq!((flow, flow.transport, flow.listener), (secured, Transport::Tls, 0));
        assert_eq!((flow.local, flow.remote), (shard.addresses[0], client.sock.local_addr().unwrap()));
        drop(client);
        assert!(matches!(shard.seen(), Seen::Closed(id) if id == flow.id));
    }
    assert_eq!(shard.counters.tls_handshakes.value(), 2);
}

/// Goal: a certificate without alternative names is known by its common name (RFC 6125 §6.4.4).
/// Method: as it says.
#[test]
fn the_common_name_counts_where_there_is_no_other() {
    let authority = Authority::new("CA");
    let shard = Shard::start_with(secure(&authority.node()));
    let own = authority.issue(&Wish { names: &[], common_name: "SBC.example.com", ..Wish::default() });
    let mut client = connect(shard.addresses[0], &authority.client_13(&own));
    serves(&mut client, 1);
    let Seen::Secured(_, Some(peer)) = shard.seen() else { panic!("no names") };
    let common_name = Some("sbc.example.com".into());
    assert_eq!(*peer, PeerNames { common_name, ..PeerNames::default() });
}

/// Goal: who cannot prove what it must is refused, for the reason that is so, and the next is
/// served. Method: each in TLS 1.2 and 1.3; each has one counter.
#[test]
fn peers_without_a_sound_certificate_are_refused() {
    let (authority, stranger) = (Authority::new("CA"), Authority::new("Other CA"));
    let node = authority.issue(&Wish::default());
    let setup = load(&authority.files_with_crl(&node, &[66], 2099)).unwrap();
    let shard = Shard::start_with(secure(&setup));
    let good = authority.issue(&Wish { serial: 2, ..Wish::default() });
    let foreign = stranger.issue(&Wish::default());
    let expired = authority.issue(&Wish { serial: 3, not_after_year: 2001, ..Wish::default() });
    let revoked = authority.issue(&Wish { serial: 66, ..Wish::default() });
    type Count = fn(&Counters) -> u64;
    let cases: [(&str, Option<&Identity>, Count); 4] = [
        ("tls_no_certificate", None, |c| c.tls_no_certificate.value()),
        ("tls_unknown_ca", Some(&foreign), |c| c.tls_unknown_ca.value()),
        ("tls_expired", Some(&expired), |c| c.tls_expired.value()),
        ("tls_revoked", Some(&revoked), |c| c.tls_revoked.value()),
    ];
    for (what, own, count) in cases {
        for (times, version) in [(1, &TLS12), (2, &TLS13)] {
            refusal(connect(shard.addresses[0], &Arc::new(authority.client(own, version))));
            shard.wait_for(what, count, times);
        }
    }
    serves(&mut connect(shard.addresses[0], &authority.client_13(&good)), 7);
    let counts = &shard.counters;
    assert_eq!((counts.tls_handshakes.value(), counts.messages_in.value()), (1, 1));
    assert_eq!((counts.tls_other.value(), counts.tls_bad_certificate.value()), (0, 0));
    assert!(matches!(shard.seen(), Seen::Secured(..)), "the role hears of nobody that is refused");
}

/// Goal: an expired revocation list lets nobody in, instead of everybody. Method: a list whose next
/// update was due in 2001; the setup says so when it is loaded.
#[test]
fn an_expired_revocation_list_lets_nobody_in() {
    let authority = Authority::new("CA");
    let setup = load(&authority.files_with_crl(&authority.issue(&Wish::default()), &[], 2001)).unwrap();
    assert!(setup.facts().warnings.iter().any(|w| w.contains("revocation list")), "{:?}", setup.facts());
    let shard = Shard::start_with(secure(&setup));
    let own = authority.issue(&Wish { serial: 2, ..Wish::default() });
    refusal(connect(shard.addresses[0], &authority.client_13(&own)));
    shard.wait_for("tls_crl_expired", |c| c.tls_crl_expired.value(), 1);
}

/// Goal: where no certificate is asked for, a peer without one is served and has no names. Method:
/// `PeerCertificate::None`.
#[test]
fn a_node_may_ask_for_no_certificate() {
    let authority = Authority::new("CA");
    let files = authority.files(&authority.issue(&Wish::default()));
    let setup = load(&TlsFiles { peer_certificate: PeerCertificate::None, ..files }).unwrap();
    let shard = Shard::start_with(secure(&setup));
    serves(&mut connect(shard.addresses[0], &Arc::new(authority.client(None, &TLS13))), 1);
    assert!(matches!(shard.seen(), Seen::Secured(_, None)));
}

/// Goal: a peer that does not finish its handshake is closed in time, and others are served
/// meanwhile. Method: 50 that say nothing, 50 that say a record's beginning; one second.
#[test]
fn half_open_handshakes_hold_up_nobody() {
    let authority = Authority::new("CA");
    let setup = authority.node();
    let shard = Shard::start_with(|config| {
        secure(&setup)(config);
        config.connections_max = 128;
        config.limits.handshake_timeout = Duration::from_secs(1);
    });
    let mut silent: Vec<_> = (0..100).map(|_| TcpStream::connect(shard.addresses[0]).unwrap()).collect();
    for half in silent.iter_mut().take(50) {
        half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).unwrap();
    }
    let own = authority.issue(&Wish::default());
    serves(&mut connect(shard.addresses[0], &authority.client_13(&own)), 1);
    shard.wait_for("tls_timeout", |c| c.tls_timeout.value(), 100);
    for half in &mut silent {
        half.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_closed(half));
    }
}

/// Goal: what is no TLS costs its own connection, before and after the handshake. Method: SIP in the
/// clear, noise, a broken record on a connection that was in order; another stays up.
#[test]
fn garbage_costs_only_its_connection() {
    let authority = Authority::new("CA");
    let shard = Shard::start_with(secure(&authority.node()));
    let own = authority.client_13(&authority.issue(&Wish::default()));
    let mut bystander = connect(shard.addresses[0], &own);
    serves(&mut bystander, 1);
    for noise in [options(1).into_bytes(), vec![0xFF; 5000], vec![22, 3, 1, 0, 4, 1, 0, 0, 0]] {
        let mut client = shard.client();
        client.write_all(&noise).unwrap();
        assert!(is_closed(&mut client));
    }
    shard.wait_for("tls_other", |c| c.tls_other.value(), 3);
    let mut broken = connect(shard.addresses[0], &own);
    serves(&mut broken, 2);
    broken.sock.write_all(&[23, 3, 3, 0, 32]).unwrap();
    broken.sock.write_all(&[0xAA; 32]).unwrap();
    assert!(is_closed(&mut broken.sock));
    shard.wait_for("tls_other", |c| c.tls_other.value(), 4);
    serves(&mut bystander, 3);
}

/// Goal: messages longer than a record, and many in one write, come and go whole. Method: bodies
/// of 50,000 bytes; 300 pipelined requests; a long message to the peer.
#[test]
fn messages_may_be_longer_than_a_record() {
    let authority = Authority::new("CA");
    let shard = Shard::start_with(secure(&authority.node()));
    let mut client = connect(shard.addresses[0], &authority.client_13(&authority.issue(&Wish::default())));
    let body: String = ('a'..='z').cycle().take(50_000).collect();
    client.write_all(request("OPTIONS", 1, &body).as_bytes()).unwrap();
    assert_eq!(responses(&mut client, 1), [ok(1)]);
    assert!(matches!(shard.seen(), Seen::Secured(..)));
    let Seen::Message(flow, Message::Request(long)) = shard.seen() else { panic!("no request") };
    assert_eq!(&long.body[..], body.as_bytes());
    let all: String = (1..=300).map(options).collect();
    client.write_all(all.as_bytes()).unwrap();
    assert_eq!(responses(&mut client, 300), (1..=300).map(ok).collect::<Vec<_>>());
    let long = request("MESSAGE", 5, &body);
    shard.send.send(to(Transport::Tls, flow.remote, 0, long.clone())).unwrap();
    let mut bytes = vec![0; long.len()];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, long.as_bytes(), "the open connection is used");
}

/// Goal: a peer that never reads is closed when its queue is full. Method: requests until the
/// connection breaks; the next peer is served.
#[test]
fn a_secured_peer_that_does_not_read_is_closed() {
    let authority = Authority::new("CA");
    let shard = Shard::start_with(secure(&authority.node()));
    let own = authority.client_13(&authority.issue(&Wish::default()));
    let mut client = connect(shard.addresses[0], &own);
    let batch: String = (1..=100).map(options).collect();
    let mut batches = 0;
    while client.write_all(batch.as_bytes()).and_then(|()| client.flush()).is_ok() {
        batches += 1;
        assert!(batches < 10_000, "still open");
    }
    shard.wait_for("unread_closed", |c| c.unread_closed.value(), 1);
    serves(&mut connect(shard.addresses[0], &own), 2);
}

/// Goal: an orderly end is said (RFC 8446 §6.1), by either side. Method: the client's close_notify
/// is answered by one; so is the shard's end: a clean end of stream, no truncation.
#[test]
fn an_orderly_end_is_said() {
    let authority = Authority::new("CA");
    let mut shard = Shard::start_with(secure(&authority.node()));
    let own = authority.client_13(&authority.issue(&Wish::default()));
    let mut leaving = connect(shard.addresses[0], &own);
    serves(&mut leaving, 1);
    leaving.conn.send_close_notify();
    leaving.flush().unwrap();
    assert_eq!(leaving.read(&mut [0; 10]).unwrap(), 0);
    let mut staying = connect(shard.addresses[0], &own);
    staying.write_all((options(2) + &request("INFO", 3, "")).as_bytes()).unwrap();
    assert_eq!(responses(&mut staying, 1), [ok(2)]);
    assert_eq!(staying.read(&mut [0; 10]).unwrap(), 0);
    shard.join().unwrap();
}

/// A TLS server that shows `own` and asks for certificates of `authority`.
pub(crate) fn server(authority: &RootCertStore, own: &Identity) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authority.clone()), Arc::clone(&provider));
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("sound parameters");
    let key = own.key.serialize_der().try_into().expect("sound parameters");
    builder
        .with_client_cert_verifier(verifier.build().expect("sound parameters"))
        .with_single_cert(vec![own.certificate.der().clone()], key)
        .map(Arc::new)
        .expect("sound parameters")
}

/// Goal: the node calls TLS servers with its own certificate, over one connection, and takes only
/// one with the right name. Method: by the server's address; by a name the role gives; a server of
/// another name gets nothing, and the role gets its message back.
#[test]
fn servers_are_called_by_their_name() {
    let authority = Authority::new("CA");
    let here = authority.issue(&Wish::default());
    let there = authority.issue(&Wish { names: &["sbc.example.com"], ..Wish::default() });
    let cases = [(None, &here, true), (Some("SBC.example.com"), &there, true), (None, &there, false)];
    for (name, identity, is_right) in cases {
        let shard = Shard::start_named(name.map(str::to_owned), secure(&authority.node()));
        let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let remote = peer.local_addr().unwrap();
        let sent = to(Transport::Tls, remote, 0, options(1));
        shard.send.send(sent.clone()).unwrap();
        let (socket, _) = peer.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = ServerConnection::new(server(&authority.roots(), identity)).unwrap();
        let mut accepted = StreamOwned::new(session, socket);
        let mut bytes = vec![0; options(1).len()];
        let read = accepted.read_exact(&mut bytes);
        if is_right {
            read.unwrap();
            assert_eq!(bytes, options(1).as_bytes());
            assert!(accepted.conn.peer_certificates().is_some(), "the node shows who it is");
            assert!(matches!(shard.seen(), Seen::Secured(flow, Some(_)) if flow.remote == remote));
            accepted.write_all(options(9).as_bytes()).unwrap();
            assert_eq!(responses(&mut accepted, 1), [ok(9)]);
        } else {
            read.expect_err("nothing for a server of another name");
            assert!(matches!(shard.seen(), Seen::Failed(failed) if failed == sent));
            shard.wait_for("tls_bad_certificate", |c| c.tls_bad_certificate.value(), 1);
        }
    }
}

/// Goal: a server that does not speak TLS costs its message the handshake's time, no more. Method:
/// one that accepts and is silent, one that sends text; 300 ms.
#[test]
fn servers_without_tls_are_given_up() {
    let authority = Authority::new("CA");
    let setup = authority.node();
    let shard = Shard::start_with(|config| {
        secure(&setup)(config);
        config.limits.handshake_timeout = Duration::from_millis(300);
    });
    for says in ["", "220 here is no TLS\r\n"] {
        let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sent = to(Transport::Tls, peer.local_addr().unwrap(), 0, options(1));
        shard.send.send(sent.clone()).unwrap();
        let (mut socket, _) = peer.accept().unwrap();
        socket.write_all(says.as_bytes()).unwrap();
        assert!(matches!(shard.seen(), Seen::Failed(failed) if failed == sent));
    }
    shard.wait_for("tls_timeout", |c| c.tls_timeout.value(), 1);
    shard.wait_for("tls_other", |c| c.tls_other.value(), 1);
}

/// Goal: no handshake, however broken, stops the shard. Method: mutated ClientHellos of both
/// versions, in two pieces; after each round a good client. Runs `VOXRING_FUZZ_SECONDS` (default
/// 2), prints its seed, `VOXRING_SEED` replays.
#[test]
#[expect(clippy::disallowed_methods, reason = "a time budget, not protocol time")]
fn mutated_handshakes_never_stop_the_shard() {
    let (_, mut random, limit) = fuzz("mutated_handshakes");
    let authority = Authority::new("CA");
    let setup = authority.node();
    let shard = Shard::start_with(|config| {
        secure(&setup)(config);
        config.limits.handshake_timeout = Duration::from_secs(1);
        config.connections_max = 4096;
    });
    let own = authority.issue(&Wish::default());
    let good = authority.client_13(&own);
    let start = std::time::Instant::now();
    let mut rounds = 0;
    while start.elapsed() < limit {
        let version = if random(2) == 0 { &TLS12 } else { &TLS13 };
        let mut session = connect(shard.addresses[0], &Arc::new(authority.client(Some(&own), version)));
        let mut bytes = Vec::new();
        session.conn.write_tls(&mut bytes).unwrap();
        for _ in 0..=random(5) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.extend_from_within(at..),
            }
        }
        for piece in bytes.chunks(bytes.len() / 2 + 1) {
            if session.sock.write_all(piece).is_err() {
                break;
            }
        }
        serves(&mut connect(shard.addresses[0], &good), 1);
        rounds += 1;
    }
    println!("{rounds} rounds, {:?}", shard.counters);
}

/// Goal: what is wrong with the files is said with the file's name. Method: a missing file, a key in
/// the certificate's place, a certificate in the key's, another key, no PEM, no list in the list.
#[test]
fn unfit_files_are_named() {
    let authority = Authority::new("CA");
    let own = authority.issue(&Wish::default());
    let files = authority.files(&own);
    let missing = authority.write("x", "").with_file_name("missing.crt");
    let other = authority.write("other.key", &authority.issue(&Wish::default()).key.serialize_pem());
    let broken =
        authority.write("broken.crt", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
    let cases = [
        (TlsFiles { certificate: missing.clone(), ..files.clone() }, "missing.crt", "cannot be read"),
        (TlsFiles { ca: missing, ..files.clone() }, "missing.crt", "cannot be read"),
        (TlsFiles { certificate: files.key.clone(), ..files.clone() }, "node.key", "no certificate in it"),
        (TlsFiles { key: files.certificate.clone(), ..files.clone() }, "node.crt", "no private key in it"),
        (TlsFiles { key: other, ..files.clone() }, "other.key", "not the key of the certificate in"),
        (TlsFiles { certificate: broken, ..files.clone() }, "broken.crt", "not PEM"),
        (TlsFiles { crl: Some(files.ca.clone()), ..files.clone() }, "ca.crt", "no revocation list in it"),
    ];
    for (files, name, what) in cases {
        let error: TlsError = load(&files).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(what), "{text}");
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

/// Goal: the facts are what the files hold. Method: a certificate of known names and dates; an
/// expired one is loaded with a warning.
#[test]
fn facts_come_from_the_files() {
    let authority = Authority::new("CA");
    let own = authority.issue(&Wish { common_name: "node", not_after_year: 2001, ..Wish::default() });
    let setup = load(&authority.files_with_crl(&own, &[5, 6], 2099)).unwrap();
    let facts = setup.facts();
    // 1 January of 2001, 2100 and 2099, by date -u -d 2001-01-01 +%s.
    assert_eq!(facts.not_after_unix_s, 978_307_200);
    assert_eq!(facts.ca_not_after_unix_s(), Some(4_102_444_800));
    assert_eq!(facts.crl_next_update_unix_s(), Some(4_070_908_800));
    assert_eq!((facts.crls[0].revoked, facts.fingerprint_sha256.len()), (2, 64));
    assert_eq!(facts.names.dns_names, ["localhost"]);
    assert!(facts.subject.contains("node") && facts.warnings.len() == 1, "{facts:?}");
    assert!(facts.warnings[0].contains("expired"), "{facts:?}");
}

/// Goal: limits have defaults that limit nothing but handshakes. Method: a look.
#[test]
fn the_default_limits_are_open() {
    let limits = ConnectionLimits::default();
    assert_eq!((limits.source_per_s, limits.source_max, limits.messages_per_s), (0, 0, 0));
    assert!(limits.handshake_timeout > Duration::ZERO);
}
