//! `handoff = "proxy"`: router and service forward the INVITE, for callers that follow no redirect.

use std::time::Duration;

use toml::Table;

use crate::common::node::Node;
use crate::common::raw::{Connection, Request, offer, unique};
use crate::common::{audio, peers, wait_for};

fn proxy(config: &mut Table) {
    config["router"].as_table_mut().expect("a table").insert("handoff".into(), "proxy".into());
}

/// Goal: a caller reaches the mailbox without a redirect, over TCP and UDP, with the offer in the
/// INVITE or in the 200; ACK and BYE go to the worker alone, and the message is the speech.
/// Method: voxperf speaks after the beep; its report has no redirect.
#[test]
fn a_forwarded_call_leaves_its_message_without_a_redirect() {
    let node = Node::with_short_greeting(proxy);
    let speech = audio::speech_file();
    let path = speech.to_str().expect("a plain path");
    let play =
        ["--play", path, "--duration", "40", "--play-after-beep", "--hangup-after-play", "0", "--no-offer"];
    for (nth, (to, arguments)) in
        [("1001", &play[..7]), ("1001;transport=udp", &play[..7]), ("1001", &play[..])]
            .into_iter()
            .enumerate()
    {
        let report = peers::call(&node, to, arguments);
        report.assert_complete();
        assert_eq!(report.call(0)["redirects"].as_array().map(Vec::len), Some(0), "{:#}", report.0);
        let messages = node.wait_messages("1001", nth + 1, Duration::from_secs(5));
        let message = messages.last().expect("there is one");
        audio::assert_same_speech(&audio::speech(), &node.export(&message.id));
    }
}

/// Goal: the worker's refusal comes back through both hops. Method: voxperf calls nobody.
#[test]
fn a_refusal_comes_back_through_both_hops() {
    let node = Node::start(proxy);
    let report = peers::call(&node, "4711", &[]);
    assert_eq!(report.call(0)["status"], 404, "{:#}", report.0);
    assert!(report.call(0)["warning"].is_string(), "{:#}", report.0);
}

/// Goal: CANCEL through both hops ends the call with one 487, and no call is left.
/// Method: INVITE and CANCEL in one segment to the router.
#[test]
fn a_cancel_through_both_hops_ends_the_call() {
    let node = Node::start(proxy);
    let mut connection = Connection::open(node.ports.router());
    let tag = unique();
    let uri = node.uri("1001", "tcp");
    let body = offer(40_000);
    let invite = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    let cancel = Request { method: "CANCEL", uri: &uri, extra: &[], body: "" };
    let mut bytes = invite.render("TCP", connection.local(), &tag);
    bytes.extend(cancel.render("TCP", connection.local(), &tag));
    connection.send(&bytes);
    let mut finals = Vec::new();
    while finals.len() < 2 {
        let response = connection.final_response(Duration::from_secs(5)).expect("two final responses");
        finals.push((response.header("CSeq").unwrap_or_default().to_owned(), response.status));
    }
    finals.sort();
    // The worker may answer before the CANCEL reaches it; nobody acknowledges that answer here.
    assert_eq!(finals[0], ("1 CANCEL".to_owned(), 200));
    assert!([487, 200].contains(&finals[1].1), "{finals:?}");
    if finals[1].1 == 487 {
        wait_for("no call is left", Duration::from_secs(5), || (node.calls() == 0).then_some(()));
    }
}
