//! Calls over IPv6, signalling and media.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use toml::{Table, toml};

use crate::common::node::Node;
use crate::common::peers::Report;
use crate::common::pki::{Paper, Pki, set};
use crate::common::raw::{self, Connection};
use crate::common::{audio, peers, wait_for};

/// Lets a node listen on both loopback addresses, with media on both.
fn both_families(config: &mut Table) {
    let both = || toml::Value::from(vec!["127.0.0.1", "::1"]);
    for table in ["router", "service", "worker", "rtp"] {
        set(config, table, "address", both());
    }
}

/// Leaves the speech in mailbox 1001 over IPv6 and compares it; `more` arguments for voxperf.
fn leave_and_compare(node: &Node, uri: &str, more: &[&str]) -> Report {
    let speech = audio::speech_file();
    let speech = speech.to_str().expect("a plain path");
    let play = ["--play", speech, "--play-after-beep", "--hangup-after-play", "0", "--duration", "40"];
    let caller = peers::voxperf_start(&[&["call", "--to", uri], &play[..], more].concat());
    let media = wait_for("the call's media", Duration::from_secs(10), || {
        let calls = node.json(&["calls"]);
        let calls = calls.get("calls").unwrap_or(&calls).clone();
        calls[0]["remote_media"].as_str().map(str::to_owned)
    });
    assert!(media.starts_with("[::1]:"), "RTP goes to {media}");
    let report = caller.finish();
    report.assert_complete();
    let redirects = report.call(0)["redirects"].as_array().expect("a list");
    assert_eq!(redirects.len(), 2, "{:#}", report.0);
    assert!(
        redirects.iter().all(|uri| uri.as_str().is_some_and(|uri| uri.contains("[::1]"))),
        "{redirects:?}"
    );
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    audio::assert_same_speech(&audio::speech(), &node.export(&messages[0].id));
    report
}

/// Goal: a call over TCP and RTP by IPv6 leaves the caller's speech.
/// Method: voxperf calls `[::1]` and follows both redirects, which name `[::1]` too.
#[test]
fn a_call_over_ipv6_leaves_a_message() {
    let node = Node::with_short_greeting(both_families);
    let uri = format!("sip:1001@[::1]:{};transport=tcp", node.ports.router());
    leave_and_compare(&node, &uri, &[]);
    // IPv4 works beside it.
    peers::call(&node, "9196", &["--duration", "1"]).assert_complete();
}

/// Goal: the same over TLS and SRTP, with a client certificate.
/// Method: as above; the server's certificate names `::1`.
#[test]
fn a_secure_call_over_ipv6_leaves_a_message() {
    let pki = Pki::new();
    let node = Node::with_short_greeting(|config| {
        both_families(config);
        pki.secure(config);
    });
    let uri = format!("sip:1001@[::1]:{};transport=tls", node.ports.router_tls());
    let tls = pki.voxperf(Paper::Good);
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let report = leave_and_compare(&node, &uri, &[&tls[..], &["--srtp", "AEAD_AES_128_GCM"]].concat());
    assert_eq!(report.call(0)["srtp"], "AEAD_AES_128_GCM", "{:#}", report.0);
}

/// Goal: a gateway may be an IPv6 network; who is outside it is a stranger.
/// Method: the gateway is `::/16`, which holds `::1`; a call from there is answered, 127.0.0.1 is
/// cut off without a byte, and counted.
#[test]
fn a_gateway_may_be_an_ipv6_network() {
    let node = Node::start(|config| {
        both_families(config);
        config.extend(toml! {
            [[gateway]]
            name = "six"
            address = ["::/16", "2001:db8::/32"]
        });
    });
    let uri = format!("sip:9196@[::1]:{};transport=tcp", node.ports.router());
    peers::voxperf_start(&["call", "--to", &uri, "--duration", "1"]).finish().assert_complete();
    let mut stranger = Connection::open_at((Ipv4Addr::LOCALHOST, node.ports.router()).into());
    assert!(stranger.is_closed(Duration::from_secs(5)), "a stranger is closed at once");
    node.wait_counter("sip_unknown_source", 1);
    node.wait_log(&["unknown_source", "127.0.0.1"]);
}

/// Goal: `address_family` decides what is listened on.
/// Method: `ipv6` with both addresses configured: `::1` is taken, 127.0.0.1 is not.
#[test]
fn a_role_listens_in_its_family_only() {
    let node = Node::start(|config| {
        both_families(config);
        for table in ["router", "service", "worker"] {
            set(config, table, "address_family", "ipv6");
        }
    });
    let port = node.ports.router();
    assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "nobody listens on IPv4");
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let mut connection = Connection::open_at(address);
    let uri = format!("sip:{address};transport=tcp");
    let request = raw::Request { method: "OPTIONS", uri: &uri, extra: &[], body: "" };
    connection.send(&request.render("TCP", connection.local(), &raw::unique()));
    let response = connection.final_response(Duration::from_secs(5)).expect("an answer");
    assert_eq!(response.status, 200, "{}", response.head);
}
