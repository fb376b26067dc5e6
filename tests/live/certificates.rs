//! New certificates and revocation lists are taken up while connections and calls are up.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::common::node::Node;
use crate::common::pki::{Paper, Pki};
use crate::common::raw::{Connection, Request, unique};
use crate::common::{peers, secure, wait_for};

/// How long the node may take to notice files that changed.
const NOTICE: Duration = Duration::from_secs(20);

/// The TLS ports of router, service and worker.
fn addresses(node: &Node) -> [SocketAddr; 3] {
    [node.ports.router_tls(), node.ports.service_tls(), node.ports.worker_a_tls()]
        .map(|port| (Ipv4Addr::LOCALHOST, port).into())
}

/// OPTIONS over a connection that is up.
fn still_answers(connection: &mut Connection, address: SocketAddr) -> bool {
    let uri = format!("sip:{address};transport=tls");
    let request = Request { method: "OPTIONS", uri: &uri, extra: &[], body: "" };
    connection.send(&request.render("TLS", connection.local(), &unique()));
    connection.final_response(Duration::from_secs(5)).is_some_and(|response| response.status == 200)
}

/// A peer with a connection to each port, whose TLS sessions can be resumed.
struct Peer {
    config: Arc<ClientConfig>,
    connections: Vec<(SocketAddr, Connection)>,
}

impl Peer {
    fn connect(node: &Node, pki: &Pki, paper: Paper) -> Self {
        let config = pki.client(paper);
        let mut peer = Self { config, connections: Vec::new() };
        for address in addresses(node) {
            // The first handshake brings the ticket that the second resumes with.
            secure::options(address, &peer.config).expect("it is trusted");
            let (_, again) = secure::options(address, &peer.config).expect("it is trusted");
            assert!(again.resumed, "{address}: a session can be resumed");
            let (connection, _) = secure::open(address, &peer.config).expect("it is trusted");
            peer.connections.push((address, connection));
        }
        assert!(peer.all_answer());
        peer
    }

    fn all_answer(&mut self) -> bool {
        self.connections.iter_mut().all(|(address, connection)| still_answers(connection, *address))
    }
}

/// Waits until new handshakes at every port see this serial number.
fn wait_serial(node: &Node, pki: &Pki, serial: u64) {
    for address in addresses(node) {
        wait_for("the new certificate", NOTICE, || {
            let (_, handshake) = secure::options(address, &pki.client(Paper::Good)).ok()?;
            (handshake.serial == serial).then_some(())
        });
    }
}

/// Goal: certificate and revocation list change under 50 TLS connections with calls: no call drops,
/// new handshakes see the new certificate, and the peer that is now revoked is cut: its connections
/// closed, its new ones refused, resumed or not (acceptance 4).
/// Method: voxperf's calls with SRTP over TLS; a rustls client with the good certificate and one
/// with the certificate that the new list names; SIGHUP; serial numbers, alerts and counters.
#[test]
fn certificate_and_revocation_list_change_under_calls() {
    let _alone = crate::common::heavy();
    let pki = Pki::new();
    pki.revoke(&[]);
    let node = Node::start_changed_for_load(|config| pki.secure(config));
    let mut good = Peer::connect(&node, &pki, Paper::Good);
    let mut cut = Peer::connect(&node, &pki, Paper::Revoked);

    let uri = node.uri("9196", "tls");
    let tls = pki.voxperf(Paper::Good);
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let calls = ["call", "--to", &uri, "--calls", "50", "--rate", "25", "--duration", "15"];
    let calls = peers::voxperf_start(&[&calls[..], &tls, &["--srtp", "AEAD_AES_128_GCM"]].concat());
    wait_for("50 calls", Duration::from_secs(15), || (node.calls() == 50).then_some(()));

    let serial = pki.renew_server();
    pki.revoke(&[Paper::Revoked]);
    node.reload();
    wait_serial(&node, &pki, serial);
    assert_eq!(node.calls(), 50, "no call dropped");
    for (address, connection) in &mut cut.connections {
        assert!(connection.is_closed(Duration::from_secs(5)), "{address} keeps a revoked peer");
        for config in [&cut.config, &pki.client(Paper::Revoked)] {
            let refusal = secure::options(*address, config).expect_err("it is revoked");
            assert!(refusal.contains("CertificateRevoked"), "{address}: {refusal}");
        }
    }
    assert!(good.all_answer(), "connections that are up stay");
    node.wait_counter("sip_revoked_closed", 3);
    node.wait_counter("sip_tls_revoked", 6);
    node.wait_log(&["tls_revoked"]);

    let report = calls.finish();
    report.assert_complete();
    for call in report.0["calls"].as_array().expect("a list of calls") {
        assert!(call["ended"].as_str().is_some_and(|ended| !ended.contains("far side")), "{call:#}");
        assert_eq!(call["srtp_auth_failed"], 0, "{call:#}");
    }
}

/// Goal: files that change are enough; nobody has to tell the node.
/// Method: a new certificate and no signal; a connection that is up stays.
#[test]
fn a_changed_certificate_file_is_noticed() {
    let pki = Pki::new();
    let node = Node::start(|config| pki.secure(config));
    let mut good = Peer::connect(&node, &pki, Paper::Good);
    let serial = pki.renew_server();
    wait_serial(&node, &pki, serial);
    assert!(good.all_answer(), "connections that are up stay");
}

/// Goal: files that make no sense change nothing.
/// Method: a certificate that is no PEM, a signal; the old one goes on and the log says why.
#[test]
fn a_broken_certificate_file_changes_nothing() {
    let pki = Pki::new();
    let serial = pki.renew_server();
    let node = Node::start(|config| pki.secure(config));
    wait_serial(&node, &pki, serial);
    std::fs::write(pki.path("server.pem"), "no certificate").expect("the disk has room");
    node.reload();
    node.wait_log(&["server.pem"]);
    wait_serial(&node, &pki, serial);
}

/// Goal: with a revocation list that has expired nobody can be believed, and it is said so.
/// Method: such a list and a signal; the good peer is refused at every port, until there is a new one.
#[test]
fn an_expired_revocation_list_refuses_everybody() {
    let pki = Pki::new();
    let node = Node::start(|config| pki.secure(config));
    let ask = |address| secure::options(address, &pki.client(Paper::Good));
    assert!(addresses(&node).into_iter().all(|address| ask(address).is_ok()));
    pki.let_crl_expire();
    node.reload();
    for (refused, address) in (1..).zip(addresses(&node)) {
        wait_for("the list to be taken up and refusals counted", NOTICE, || {
            (ask(address).is_err() && node.counter("sip_tls_crl_expired") >= refused).then_some(())
        });
    }
    node.wait_log(&["tls_crl_expired", "127.0.0.1"]);
    pki.revoke(&[]);
    node.reload();
    for address in addresses(&node) {
        wait_for("the new list to be taken up", NOTICE, || ask(address).ok());
    }
}
