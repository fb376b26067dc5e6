//! Every refusal has the status RFC 3261 names, and says why.

use std::time::Duration;

use crate::common::node::Node;
use crate::common::raw::{Connection, Request, Response, offer, options_tcp, options_udp, unique};
use crate::common::{peers, wait_for};

/// Sends one request to a TCP listener and gives the final response.
fn ask(port: u16, request: &Request<'_>) -> Response {
    let mut connection = Connection::open(port);
    let bytes = request.render("TCP", connection.local(), &unique());
    connection.send(&bytes);
    let response = connection.final_response(Duration::from_secs(5));
    response.unwrap_or_else(|| panic!("no answer to {} {:?}", request.method, request.extra))
}

/// Asserts a status and that the response says why.
fn assert_refused(response: &Response, status: u16, what: &str) {
    assert_eq!(response.status, status, "{what}: {}", response.head);
    let why = response.header("Warning").or(response.header("Reason"));
    assert!(why.is_some() || !response.reason.is_empty(), "{what} gives no reason: {}", response.head);
}

/// Goal: a user nobody knows gets 404 with the reason, after the redirects.
/// Method: voxperf calls 4711; a raw INVITE straight to the worker.
#[test]
fn an_unknown_user_is_not_found() {
    let node = Node::start(|_| {});
    let report = peers::call(&node, "4711", &[]);
    assert_eq!(report.call(0)["status"], 404, "{:#}", report.0);
    assert!(report.call(0)["warning"].is_string(), "{:#}", report.0);
    let uri = format!("sip:4711@127.0.0.1:{}", node.ports.worker_a());
    let body = offer(40_000);
    let response =
        ask(node.ports.worker_a(), &Request { method: "INVITE", uri: &uri, extra: &[], body: &body });
    assert_refused(&response, 404, "unknown user at the worker");
}

/// Goal: without a worker the service answers 503 with Retry-After, and calls again once there is one.
/// Method: a node that gives up after the first death, and is told to go on.
#[test]
fn without_a_worker_calls_are_asked_to_retry() {
    let node = Node::start(|config| {
        let worker = config["worker"].as_table_mut().expect("a table");
        worker.insert("crashes_max".into(), 1.into());
    });
    node.kill_worker();
    let refused = wait_for("a 503", Duration::from_secs(20), || {
        let report = peers::call(&node, "1001", &["--duration", "0.2", "--patience", "2"]);
        (report.call(0)["status"] == 503).then(|| report.call(0).clone())
    });
    let retry_after = refused["retry_after"].as_str().expect("a 503 says when to try again").to_owned();
    assert!(retry_after.parse::<u32>().is_ok(), "{retry_after}");
    assert!(node.client(&["recycle"]).status.success());
    peers::call(&node, "1001", &["--duration", "0.5"]).assert_complete();
}

/// Goal: requests that cannot be served get 405, 415, 416, 420, 483, 488 and 501, each with what
/// the caller needs to do better.
/// Method: one raw request each to the worker, as RFC 3261 §8.2 orders the checks.
#[test]
fn impossible_requests_get_the_status_of_the_rfc() {
    let node = Node::start(|_| {});
    let port = node.ports.worker_a();
    let uri = format!("sip:1001@127.0.0.1:{port}");
    let good = offer(40_000);
    let invite =
        |extra: &[&str], body: &str| ask(port, &Request { method: "INVITE", uri: &uri, extra, body });

    let method =
        ask(port, &Request { method: "SUBSCRIBE", uri: &uri, extra: &["Event: presence"], body: "" });
    assert_refused(&method, 405, "SUBSCRIBE");
    assert!(method.header("Allow").is_some_and(|allow| allow.contains("INVITE")), "{}", method.head);

    let unknown = ask(port, &Request { method: "FROBNICATE", uri: &uri, extra: &[], body: "" });
    assert!([405, 501].contains(&unknown.status), "an unknown method: {}", unknown.head);

    let video = "v=0\r\no=raw 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
                 m=audio 40000 RTP/AVP 9\r\na=rtpmap:9 G722/8000\r\n";
    assert_refused(&invite(&[], video), 488, "an offer of G.722 alone");

    let kind = invite(&["Content-Type: text/plain"], "hello");
    assert_refused(&kind, 415, "a body of text");
    assert!(kind.header("Accept").is_some_and(|accept| accept.contains("application/sdp")), "{}", kind.head);

    let required = invite(&["Require: teleportation"], &good);
    assert_refused(&required, 420, "an unknown extension");
    assert_eq!(required.header("Unsupported"), Some("teleportation"));

    let scheme = ask(port, &Request { method: "INVITE", uri: "nobodyKnows:1001", extra: &[], body: &good });
    assert_refused(&scheme, 416, "an unknown URI scheme");
}

/// Goal: a request outside any dialog gets 481.
/// Method: a BYE with a To tag nobody gave.
#[test]
fn a_bye_without_a_dialog_is_refused() {
    let node = Node::start(|_| {});
    let port = node.ports.worker_a();
    let mut connection = Connection::open(port);
    let tag = unique();
    let text = format!(
        "BYE sip:1001@127.0.0.1:{port} SIP/2.0\r\nVia: SIP/2.0/TCP {};branch=z9hG4bK{tag}\r\nMax-Forwards: 70\r\n\
         From: <sip:raw@127.0.0.1>;tag={tag}\r\nTo: <sip:1001@127.0.0.1>;tag=nobody\r\nCall-ID: {tag}\r\n\
         CSeq: 2 BYE\r\nContent-Length: 0\r\n\r\n",
        connection.local()
    );
    connection.send(text.as_bytes());
    let response = connection.final_response(Duration::from_secs(5)).expect("an answer");
    assert_refused(&response, 481, "BYE without a dialog");
}

/// Goal: a CANCEL ends a call that is being set up with 487, or finds it answered.
/// Method: INVITE and CANCEL in one segment.
#[test]
fn a_cancelled_invite_ends_with_487() {
    let node = Node::start(|_| {});
    let port = node.ports.worker_a();
    let mut connection = Connection::open(port);
    let tag = unique();
    let uri = format!("sip:1001@127.0.0.1:{port}");
    let body = offer(40_000);
    let invite = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    let mut bytes = invite.render("TCP", connection.local(), &tag);
    bytes.extend(Request { method: "CANCEL", uri: &uri, extra: &[], body: "" }.render(
        "TCP",
        connection.local(),
        &tag,
    ));
    connection.send(&bytes);
    let mut finals = Vec::new();
    while finals.len() < 2 {
        let response = connection.final_response(Duration::from_secs(5)).expect("two final responses");
        finals.push((response.header("CSeq").unwrap_or_default().to_owned(), response.status));
    }
    finals.sort();
    assert_eq!(finals, [("1 CANCEL".to_owned(), 200), ("1 INVITE".to_owned(), 487)]);
    wait_for("no call is left", Duration::from_secs(5), || (node.calls() == 0).then_some(()));
}

/// Goal: every role answers OPTIONS, over TCP and UDP, and says what it can do.
/// Method: router, service and worker.
#[test]
fn every_role_answers_options() {
    let node = Node::start(|_| {});
    for port in [node.ports.router(), node.ports.service(), node.ports.worker_a()] {
        for (transport, response) in [("TCP", options_tcp(port)), ("UDP", options_udp(port))] {
            let response =
                response.unwrap_or_else(|| panic!("OPTIONS to {port} over {transport}: no answer"));
            assert_eq!(response.status, 200, "{port} over {transport}: {}", response.head);
            assert!(response.header("Allow").is_some(), "{port} over {transport}: {}", response.head);
        }
    }
}

/// Goal: a call beyond `calls.calls_max` gets 503 with Retry-After, those before go on.
/// Method: a limit of 2, three calls.
#[test]
fn one_call_too_many_is_asked_to_retry() {
    let node = Node::start(|config| {
        let mut calls = toml::Table::new();
        calls.insert("calls_max".into(), 2.into());
        config.insert("calls".into(), calls.into());
    });
    let uri = node.uri("9196", "tcp");
    let two = peers::voxperf_start(&["call", "--to", &uri, "--calls", "2", "--duration", "4"]);
    wait_for("two calls", Duration::from_secs(5), || (node.calls() == 2).then_some(()));
    let third = peers::call(&node, "9196", &["--duration", "1"]);
    assert_eq!(third.call(0)["status"], 503, "{:#}", third.0);
    assert!(third.call(0)["retry_after"].is_string(), "{:#}", third.0);
    two.finish().assert_complete();
}
