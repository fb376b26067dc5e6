//! SRTP carries the same sound as RTP: each suite, with and without MKI, across a rollover and a
//! change of keys; and it is demanded, refused and kept off plain signalling as configured.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use voxring::base::config::SrtpSuite;

use crate::common::node::Node;
use crate::common::peers::{self, Report};
use crate::common::pki::{self, Paper, Pki, set};
use crate::common::{audio, raw};

/// A node that takes nothing but TLS and SRTP, and its papers.
fn demanding() -> (Pki, Node) {
    let pki = Pki::new();
    let node = Node::with_short_greeting(|config| {
        pki.secure(config);
        pki::demand_srtp(config);
    });
    (pki, node)
}

/// Starts a call over TLS with the good certificate.
fn start(node: &Node, pki: &Pki, user: &str, arguments: &[&str]) -> peers::Running {
    let uri = node.uri(user, "tls");
    let tls = pki.voxperf(Paper::Good);
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    peers::voxperf_start(&[&["call", "--to", &uri], &tls[..], arguments].concat())
}

/// What a secure call has to say for itself.
fn assert_secure(report: &Report, suite: SrtpSuite) {
    report.assert_complete();
    let call = report.call(0);
    assert_eq!(call["srtp"], suite.name(), "{call:#}");
    assert!(call["srtp_error"].is_null(), "{call:#}");
    assert_eq!(call["srtp_auth_failed"], 0, "{call:#}");
    assert!(report.number(0, "rx_packets") > 400, "{call:#}");
}

/// One caller for each suite at once, with `more` arguments; each message must be the speech.
fn leave_a_message_with_each_suite(more: &[&str]) -> Vec<Report> {
    let (pki, node) = demanding();
    let speech = audio::speech_file();
    let speech = speech.to_str().expect("a plain path");
    let callers = SrtpSuite::ALL.map(|suite| {
        let arguments = ["--srtp", suite.name(), "--play", speech, "--play-after-beep", "--duration", "40"];
        start(&node, &pki, "1001", &[&arguments[..], &["--hangup-after-play", "0"], more].concat())
    });
    let reports: Vec<Report> = callers.into_iter().map(peers::Running::finish).collect();
    let messages = node.wait_messages("1001", SrtpSuite::ALL.len(), Duration::from_secs(5));
    let by_call: HashMap<&str, &str> =
        messages.iter().map(|message| (message.call_id.as_str(), message.id.as_str())).collect();
    for (report, suite) in reports.iter().zip(SrtpSuite::ALL) {
        assert_secure(report, suite);
        let call_id = report.call(0)["call_id"].as_str().expect("a Call-ID");
        audio::assert_same_speech(&audio::speech(), &node.export(by_call[call_id]));
    }
    reports
}

/// Goal: a message by SRTP is as good as one by RTP, with each suite.
/// Method: voxperf speaks over TLS and SRTP; duration and correlation as in a plain call.
#[test]
fn each_suite_leaves_the_speech_the_caller_sent() {
    leave_a_message_with_each_suite(&[]);
}

/// Goal: the rollover of the sequence number in the middle of a message costs nothing (RFC 3711
/// §3.3.1).
/// Method: the first packet has number 65300, so the wrap comes after 4.7 s, half way.
#[test]
fn a_message_goes_on_across_the_rollover() {
    leave_a_message_with_each_suite(&["--first-sequence", "65300"]);
}

/// Goal: new keys in the middle of a message cost nothing (RFC 4568 §7.1.4).
/// Method: re-INVITEs with a new key, two and five seconds after the beep.
#[test]
fn a_message_goes_on_across_a_change_of_keys() {
    for report in leave_a_message_with_each_suite(&["--rekey", "beep+2,beep+5"]) {
        let changes: Vec<_> = report.call(0)["changes"].as_array().expect("a list").clone();
        assert_eq!(changes, [200, 200], "{:#}", report.0);
    }
}

/// Goal: packets that name their key by an MKI are understood (RFC 3711 §3.1).
/// Method: an MKI of four bytes in the offer and in each packet.
#[test]
fn a_message_arrives_with_a_key_identifier() {
    leave_a_message_with_each_suite(&["--mki"]);
}

/// Goal: what the node sends can be decrypted, and is what was said.
/// Method: 9196 sends each packet back; the caller's recording is compared with what it played.
#[test]
fn the_echo_comes_back_under_each_suite() {
    let (pki, node) = demanding();
    let speech = audio::speech_file();
    let speech = speech.to_str().expect("a plain path");
    let heard: Vec<PathBuf> =
        SrtpSuite::ALL.iter().map(|suite| node.file(&format!("{}.wav", suite.name()))).collect();
    let callers = SrtpSuite::ALL.iter().zip(&heard).map(|(suite, heard)| {
        let heard = heard.to_str().expect("a plain path");
        let arguments = ["--srtp", suite.name(), "--play", speech, "--duration", "12", "--record", heard];
        start(&node, &pki, "9196", &arguments)
    });
    let callers: Vec<_> = callers.collect();
    for ((caller, suite), heard) in callers.into_iter().zip(SrtpSuite::ALL).zip(&heard) {
        assert_secure(&caller.finish(), suite);
        let found = audio::best_match(&audio::through_ulaw(&audio::speech()), &audio::read(heard), 4000);
        assert!(found.correlation >= 0.98, "{suite:?}: {found:?}");
    }
}

/// Asserts that a call was refused with 488 and a reason.
fn assert_not_acceptable(report: &Report) {
    assert_eq!(report.call(0)["status"], 488, "{:#}", report.0);
    assert!(report.call(0)["warning"].is_string(), "{:#}", report.0);
}

/// Goal: a dial plan that is `secured` takes no plain RTP, be SRTP on offer beside it or not.
/// Method: an offer of RTP/AVP, without and with keys, over TLS.
#[test]
fn plain_media_is_refused_where_srtp_is_demanded() {
    let (pki, node) = demanding();
    assert_not_acceptable(&start(&node, &pki, "1001", &["--duration", "1"]).finish());
    let optional = ["--duration", "1", "--srtp", "AES_CM_128_HMAC_SHA1_80", "--srtp-optional"];
    assert_not_acceptable(&start(&node, &pki, "1001", &optional).finish());
    node.wait_refused("security_media", 2);
}

/// Goal: keys never travel where others can read them, unless the configuration says so.
/// Method: RTP/SAVP over TCP gets 488; RTP/AVP with keys is answered as plain RTP without a key of
/// ours; with `srtp.sdes_over_plain` the first is answered with one.
#[test]
fn keys_stay_off_plain_signalling() {
    let node = Node::start(|_| {});
    let srtp = ["--duration", "1", "--srtp", "AEAD_AES_128_GCM"];
    assert_not_acceptable(&peers::call(&node, "9196", &srtp));
    let port = node.ports.worker_a();
    let mut connection = raw::Connection::open(port);
    let key = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz\r\n";
    let body = raw::offer(40_000) + key;
    let uri = format!("sip:9196@127.0.0.1:{port}");
    let invite = raw::Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    connection.send(&invite.render("TCP", connection.local(), &raw::unique()));
    let answer = connection.final_response(Duration::from_secs(5)).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert!(answer.body.contains(" RTP/AVP ") && !answer.body.contains("a=crypto"), "{}", answer.body);

    let node = Node::start(|config| set(config, "srtp", "sdes_over_plain", true));
    let report = peers::call(&node, "9196", &srtp);
    report.assert_complete();
    assert_eq!(report.call(0)["srtp"], "AEAD_AES_128_GCM", "{:#}", report.0);
}
