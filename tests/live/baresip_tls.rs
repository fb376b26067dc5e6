//! A real phone over TLS and SRTP leaves a message; without the right certificate it does not.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::common::node::Node;
use crate::common::phone::{Phone, Special};
use crate::common::pki::{self, Paper, Pki};
use crate::common::{audio, peers, secure};

/// Goal: baresip with a client certificate calls through the TLS ports of router, service and
/// worker, SRTP both ways, and its speech is the message, as good as by plain RTP (acceptance 1).
/// Method: a dial plan that demands TLS and SRTP; the export is compared as the plain one is; what
/// the phone heard begins with the greeting's 440 Hz.
#[test]
fn baresip_leaves_its_speech_over_tls_and_srtp() {
    if !peers::has_peer("baresip") {
        return;
    }
    let pki = Pki::new();
    let node = Node::with_short_greeting(|config| {
        pki.secure(config);
        pki::demand_srtp(config);
    });
    let mut phone = Phone::start(
        &node,
        &Special { certificate: pki.bundle(Paper::Good), srtp: true, ..Special::default() },
    );
    phone.speak(&node.uri("1001", "tls"));
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    assert_eq!(messages[0].caller, "bob");
    audio::assert_same_speech(&audio::speech(), &node.export(&messages[0].id));
    assert_eq!(node.front_counter("sip_tls_handshakes"), 2, "router and service");
    assert_eq!(node.worker_counter("sip_tls_handshakes"), 1, "the worker");
    let heard = phone.heard();
    let greeting = audio::loudest_tone(&heard, 440.0);
    assert!(greeting > 2000.0, "the greeting's tone has an amplitude of 4000; heard {greeting}");
}

/// What becomes of a phone with the wrong paper.
struct Wrong {
    paper: Paper,
    /// The counter that tells, of the TLS loop or of admission.
    counter: &'static str,
    /// The `rule=` in the log.
    rule: &'static str,
}

/// Papers that are no good, and what the handshake says of them.
const WRONG: [Wrong; 4] = [
    Wrong { paper: Paper::None, counter: "sip_tls_no_certificate", rule: "tls_no_certificate" },
    Wrong { paper: Paper::OtherAuthority, counter: "sip_tls_unknown_ca", rule: "tls_unknown_ca" },
    Wrong { paper: Paper::Expired, counter: "sip_tls_expired", rule: "tls_expired" },
    Wrong { paper: Paper::Revoked, counter: "sip_tls_revoked", rule: "tls_revoked" },
];

/// Goal: a phone without a certificate, with one from another authority, an expired or a revoked
/// one is refused, and log and counter say which (acceptance 1).
/// Method: baresip dials with each; one counter grew, the log has the peer, nothing was answered.
#[test]
fn baresip_is_refused_without_the_right_certificate() {
    if !peers::has_peer("baresip") {
        return;
    }
    let pki = Pki::new();
    let node = Node::start(|config| pki.secure(config));
    for wrong in &WRONG {
        let before = node.counter(wrong.counter);
        let mut phone = Phone::start(
            &node,
            &Special { certificate: pki.bundle(wrong.paper), srtp: true, ..Special::default() },
        );
        phone.dial(&node.uri("1001", "tls"));
        node.wait_counter(wrong.counter, before + 1);
        let line = node.wait_log(&[wrong.rule, "127.0.0.1"]);
        assert!(line.contains("peer="), "{line}");
        assert!(!phone.has_reported("CALL_ESTABLISHED"), "{}", phone.log());
    }
    assert_eq!(node.counter("sip_tls_handshakes"), 0, "nobody got in");
    assert_eq!(node.status()["calls_total"], 0);
    assert!(node.messages("1001").is_empty());
}

/// Goal: a certificate by the right authority for somebody else gets 403, with the reason, in log
/// and counter (acceptance 1).
/// Method: baresip dials with it; its handshake is good, its call is not.
#[test]
fn baresip_is_refused_with_somebody_elses_certificate() {
    if !peers::has_peer("baresip") {
        return;
    }
    let pki = Pki::new();
    let node = Node::start(|config| pki.secure(config));
    let mut phone = Phone::start(
        &node,
        &Special { certificate: pki.bundle(Paper::WrongName), srtp: true, ..Special::default() },
    );
    phone.dial(&node.uri("1001", "tls"));
    phone.wait_for("CALL_CLOSED");
    assert!(phone.log().contains("403"), "{}", phone.log());
    node.wait_refused("wrong_certificate", 1);
    node.wait_log(&["rule=\"wrong_certificate\"", "127.0.0.1"]);
    assert_eq!(node.status()["calls_total"], 0);
}

/// Goal: each refusal tells the peer why, in the alert RFC 8446 §6.2 has for it.
/// Method: a rustls client shows each paper, over TLS 1.2 and 1.3, to each of the TLS ports.
#[test]
fn a_refused_peer_learns_why_from_the_alert() {
    let pki = Pki::new();
    let node = Node::start(|config| pki.secure(config));
    let ports = [node.ports.router_tls(), node.ports.service_tls(), node.ports.worker_a_tls()];
    for port in ports {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for versions in [[&rustls::version::TLS13], [&rustls::version::TLS12]] {
            let ask = |paper| secure::options(address, &pki.client_speaking(paper, &versions));
            let (response, handshake) = ask(Paper::Good).expect("the gateway is let in");
            assert_eq!(response.status, 200, "{}", response.head);
            assert_eq!(handshake.version, versions[0].version);
            for wrong in &WRONG {
                let refusal = ask(wrong.paper).expect_err(wrong.rule);
                let alerts: &[&str] = match wrong.paper {
                    // TLS 1.2 has no alert of its own for it (RFC 5246 §7.4.6).
                    Paper::None => &["CertificateRequired", "HandshakeFailure"],
                    Paper::OtherAuthority => &["UnknownCA"],
                    Paper::Expired => &["CertificateExpired"],
                    Paper::Revoked => &["CertificateRevoked"],
                    Paper::Good | Paper::WrongName => &[],
                };
                assert!(
                    alerts.iter().any(|alert| refusal.contains(alert)),
                    "{port} {:?} {:?}: {refusal}",
                    handshake.version,
                    wrong.paper
                );
            }
        }
    }
}
