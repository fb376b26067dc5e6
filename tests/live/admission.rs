//! Who may call, and what the others hear: every outcome on the wire, in the log, in the counters, and
//! by `voxring explain-call`.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use toml::{Table, toml};

use crate::common::node::Node;
use crate::common::pki::{Paper, Pki};
use crate::common::raw::{Connection, Request, Response, offer, unique};
use crate::common::{secure, wait_for};

/// How long a busy machine may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A call in words.
#[derive(Clone, Copy)]
struct Call {
    /// Last part of the caller's loopback address.
    source: u8,
    user: &'static str,
    from: &'static str,
    diversion: &'static str,
}

const CALL: Call = Call { source: 1, user: "5000", from: "sip:2000@pbx", diversion: "" };

/// Sends the call's INVITE over TCP and gives the final response; `None`: closed, or silence.
fn invite(port: u16, call: Call, extra: &[&str]) -> Option<Response> {
    let mut connection = Connection::open_from(Ipv4Addr::new(127, 0, 0, call.source), port);
    connection.send(&render(&connection, port, call, extra));
    connection.final_response(LIMIT)
}

fn render(connection: &Connection, port: u16, call: Call, extra: &[&str]) -> Vec<u8> {
    let uri = format!("sip:{}@127.0.0.1:{port}", call.user);
    let diversion = format!("Diversion: <{}>;reason=no-answer", call.diversion);
    let mut lines = extra.to_vec();
    if !call.diversion.is_empty() {
        lines.push(&diversion);
    }
    let body = offer(40_000);
    let request = Request { method: "INVITE", uri: &uri, extra: &lines, body: &body };
    let bytes = request.render(connection.transport(), connection.local(), &unique());
    let text = String::from_utf8(bytes).expect("text");
    text.replacen("<sip:raw@127.0.0.1>", &format!("<{}>", call.from), 1).into_bytes()
}

/// What `voxring explain-call` says of the same call.
fn explain(node: &Node, call: Call) -> Value {
    let (to, peer) = (format!("sip:{}@127.0.0.1", call.user), format!("127.0.0.{}", call.source));
    let mut arguments = vec!["explain-call", "--json", "--from", call.from, "--to", &to, "--peer", &peer];
    if !call.diversion.is_empty() {
        arguments.extend(["--diversion", call.diversion]);
    }
    let output = node.client(&arguments);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(if told["admitted"] == true { 0 } else { 1 }), "{told:#}");
    told
}

/// Asserts that router and worker refuse the call alike, the log and the counter tell, and the
/// explanation agrees.
fn assert_refused(node: &Node, call: Call, status: u16, rule: &str) {
    let before = node.refused(rule);
    for port in [node.ports.router(), node.ports.worker_a()] {
        let response = invite(port, call, &[]).unwrap_or_else(|| panic!("{rule}: no answer"));
        assert_eq!(response.status, status, "{rule}: {}", response.head);
        let told = explain(node, call);
        let refused = &told["refused"];
        assert_eq!((&refused["rule"], &refused["status"]), (&rule.into(), &status.into()), "{told:#}");
        let why = refused["why"].as_str().expect("why").replace('"', "\\\"");
        let (warning, reason) = (response.header("Warning"), response.header("Reason"));
        assert_eq!(warning, Some(format!("399 voxring \"{why}\"").as_str()), "{}", response.head);
        let text = format!("SIP;cause={status};text=\"{rule}: {why}\"");
        assert_eq!(reason, Some(text.as_str()), "{}", response.head);
        assert_eq!(response.header("Retry-After").is_some(), status == 503, "{}", response.head);
    }
    let peer = format!("peer=127.0.0.{}:", call.source);
    node.wait_log(&["refused", &format!("rule=\"{rule}\""), &peer]);
    wait_for("both refusals in the counter", LIMIT, || (node.refused(rule) == before + 2).then_some(()));
}

fn edge(config: &mut Table) {
    config.extend(toml! {
        [[gateway]]
        name = "pbx"
        address = "127.0.0.1"
        [[gateway]]
        name = "off"
        address = "127.0.0.2"
        status = "disabled"
        [[gateway]]
        name = "draining"
        address = "127.0.0.3"
        status = "no_new_calls"
        [[gateway]]
        name = "uris"
        address = ["127.0.0.4/31"]
        [[dial_plan]]
        name = "extensions"
        uri_type = "tel_extn"
        extension_digits = 4
        [[dial_plan]]
        name = "uris"
        uri_type = "sip_uri"
        [[hunt_group]]
        gateway = "pbx"
        pilot = "5000"
        dial_plan = "extensions"
        mailbox = "1001"
        [[hunt_group]]
        gateway = "pbx"
        pilot = "5001"
        dial_plan = "extensions"
        [[hunt_group]]
        gateway = "uris"
        dial_plan = "uris"
    });
}

/// Goal: each rule refuses with its status and says why on the wire, in the log and in the counters,
/// and the explanation agrees word for word; calls that may come in reach the service.
/// Method: gateways on loopback addresses of their own; raw INVITEs to router and worker.
#[test]
fn every_rule_refuses_and_says_why() {
    let node = Node::start(edge);
    for (call, purpose, number) in [
        (CALL, "pilot_mailbox", "1001"),
        (Call { diversion: "tel:1002", ..CALL }, "call_answering", "1002"),
        (Call { user: "5001", diversion: "sip:1001@pbx", ..CALL }, "call_answering", "1001"),
        (Call { from: "sip:anonymous@anonymous.invalid", ..CALL }, "pilot_mailbox", "1001"),
        (Call { source: 5, user: "1002", from: "sip:ann@pbx", ..CALL }, "mailbox", "1002"),
    ] {
        let response = invite(node.ports.router(), call, &[]).expect("an answer");
        assert_eq!(response.status, 302, "{}", response.head);
        let told = explain(&node, call);
        assert_eq!((&told["purpose"], &told["number"]), (&purpose.into(), &number.into()), "{told:#}");
        let steps = told["steps"].as_array().expect("steps").iter().map(|step| &step["name"]);
        let names = ["source", "certificate", "hunt_group", "dial_plan", "security", "purpose", "mailbox"];
        assert!(steps.eq(names.iter()), "{told:#}");
    }
    assert_refused(&node, Call { source: 2, ..CALL }, 403, "gateway_disabled");
    assert_refused(&node, Call { source: 3, ..CALL }, 503, "no_new_calls");
    assert_refused(&node, Call { user: "77", ..CALL }, 404, "no_pilot");
    assert_refused(&node, Call { user: "5001", ..CALL }, 404, "pilot_purpose");
    assert_refused(&node, Call { from: "sip:ann@pbx", ..CALL }, 404, "uri_type");
    assert_refused(&node, Call { diversion: "tel:10010", ..CALL }, 404, "extension_digits");
    // A stray quote costs nothing (RFC 4475 §3.1.2.6).
    let quoted = Call { diversion: "sip:1002@pbx", ..CALL };
    let response = invite(node.ports.router(), quoted, &["Diversion: \"Ann <tel:1001>;reason=user-busy"]);
    assert_eq!(response.expect("an answer").status, 302);
}

/// Goal: nobody's requests get no byte back over TCP and UDP, one line that fail2ban can read, and a
/// count; with `refuse` they get 403. Method: an address no gateway has; the line's own shape.
#[test]
fn unknown_sources_hear_nothing_unless_told_to_be_refused() {
    let nobody = Call { source: 9, ..CALL };
    let node = Node::start(edge);
    for port in [node.ports.router(), node.ports.service(), node.ports.worker_a()] {
        let mut connection = Connection::open_from(Ipv4Addr::new(127, 0, 0, 9), port);
        connection.send(&render(&connection, port, nobody, &[]));
        assert!(connection.is_closed(LIMIT));
        assert!(connection.response(Duration::from_millis(1)).is_none());
    }
    let line = node.wait_log(&["dropped", "unknown_source"]);
    let (_, rest) = line.split_once("dropped peer=127.0.0.9:").expect("as the fail2ban filter has it");
    let (port, rest) = rest.split_once(' ').expect("as the fail2ban filter has it");
    let is_told = port.parse::<u16>().is_ok() && rest == "transport=\"tcp\" rule=\"unknown_source\"";
    assert!(is_told, "{line}");
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).expect("a port is free");
    let request = Request { method: "OPTIONS", uri: "sip:127.0.0.1", extra: &[], body: "" };
    let bytes = request.render("UDP", socket.local_addr().expect("bound"), &unique());
    socket.send_to(&bytes, (Ipv4Addr::LOCALHOST, node.ports.router())).expect("sent");
    wait_for("four dropped", LIMIT, || (node.refused("unknown_source") >= 4).then_some(()));
    assert_eq!(node.refused("unknown_source"), 4, "{}", node.log());
    // What would have been answered has been by now: the same socket asks again as a gateway's would.
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket option");
    assert!(socket.recv(&mut [0; 2048]).is_err());
    assert_eq!(explain(&node, nobody)["refused"]["rule"], "unknown_source");
    drop(node);

    let node = Node::start(|config| {
        edge(config);
        config.extend(toml! { limits = { unknown_source = "refuse" } });
    });
    assert_refused(&node, nobody, 403, "unknown_source");
}

/// Goal: a gateway may be named by DNS, and has its own limit of calls; so has a source.
/// Method: localhost as the name; a second call beside the first, a third after it.
#[test]
fn a_named_gateway_calls_within_its_limits() {
    let node = Node::start(|config| {
        config.extend(toml! {
            limits = { source_calls_per_s = 1, source_calls_burst = 3 }
            [[gateway]]
            name = "named"
            address = "localhost"
            calls_max = 1
        });
    });
    let port = node.ports.worker_a();
    let call = Call { user: "9196", ..CALL };
    // The first look-up may still be under way.
    wait_for("the name's address", LIMIT, || {
        let mut connection = Connection::open(port);
        let request = Request { method: "OPTIONS", uri: "sip:127.0.0.1", extra: &[], body: "" };
        connection.send(&request.render("TCP", connection.local(), &unique()));
        connection.final_response(LIMIT).map(drop)
    });
    assert_eq!(explain(&node, call)["gateway"], "named");
    assert_eq!(invite(port, call, &[]).expect("an answer").status, 200);
    let info = node.json(&["calls"]);
    assert_eq!((&info[0]["gateway"], &info[0]["security"]), (&"named".into(), &"tcp".into()), "{info:#}");
    let second = invite(port, call, &[]).expect("an answer");
    let reason = second.header("Reason").unwrap_or_default();
    assert!(second.status == 503 && reason.contains("\"gateway_calls_max: "), "{}", second.head);
    assert!(second.header("Retry-After").is_some(), "{}", second.head);
    wait_for("one in the counter", LIMIT, || (node.refused("gateway_calls_max") == 1).then_some(()));
}

/// Goal: with `handoff = "proxy"` the worker judges by the caller's own address, and nobody can say
/// for himself who he is. Method: a gateway at one address only, which the hops' own is not.
#[test]
fn forwarded_calls_are_judged_by_their_callers() {
    let node = Node::start(|config| {
        let router = config["router"].as_table_mut().expect("a table");
        router.insert("handoff".into(), "proxy".into());
        config.extend(toml! {
            [[gateway]]
            name = "far"
            address = "127.0.0.6"
        });
    });
    let far = Call { source: 6, user: "9196", ..CALL };
    let forged = "X-Voxring-Hop: token=0;gateway=far;dial-plan=default;source=127.0.0.6:1;transport=tcp";
    let answer = invite(node.ports.router(), far, &[forged]).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(node.json(&["calls"])[0]["gateway"], "far");
    for port in [node.ports.service(), node.ports.worker_a()] {
        let mut connection = Connection::open(port);
        connection.send(&render(&connection, port, Call { source: 1, ..far }, &[forged]));
        assert!(connection.response(Duration::from_secs(1)).is_none(), "{port}");
    }
    wait_for("both dropped", LIMIT, || (node.refused("unknown_source") == 2).then_some(()));
}

/// Goal: a router under maintenance turns INVITE and OPTIONS away with 503 and Retry-After.
/// Method: the key set, raw requests.
#[test]
fn a_router_under_maintenance_turns_calls_away() {
    let node = Node::start(|config| {
        let router = config["router"].as_table_mut().expect("a table");
        router.insert("maintenance".into(), true.into());
    });
    let port = node.ports.router();
    let mut connection = Connection::open(port);
    let options = Request { method: "OPTIONS", uri: "sip:127.0.0.1", extra: &[], body: "" };
    connection.send(&options.render("TCP", connection.local(), &unique()));
    let answers = [connection.final_response(LIMIT), invite(port, CALL, &[])].map(|r| r.expect("an answer"));
    for answer in answers {
        let reason = answer.header("Reason").unwrap_or_default();
        assert!(answer.status == 503 && reason.contains("maintenance: "), "{}", answer.head);
        assert!(answer.header("Retry-After").is_some(), "{}", answer.head);
    }
}

/// Goal: over TLS the certificate must be the gateway's, and a dial plan may demand TLS and SRTP.
/// Method: papers right and wrong; pilots of each security; TCP beside TLS.
#[test]
fn certificate_and_security_are_judged_over_tls() {
    let pki = Pki::new();
    let node = Node::start(|config| {
        pki.secure(config);
        config.extend(toml! {
            [[dial_plan]]
            name = "tls"
            security = "sip_secured"
            [[dial_plan]]
            name = "srtp"
            security = "secured"
            [[hunt_group]]
            gateway = "loopback"
            dial_plan = "tls"
            [[hunt_group]]
            gateway = "loopback"
            pilot = "9999"
            dial_plan = "srtp"
        });
    });
    let address = (Ipv4Addr::LOCALHOST, node.ports.router_tls()).into();
    let call = |paper, user| {
        let (mut connection, _) = secure::open(address, &pki.client(paper)).expect("a handshake");
        let call = Call { user, ..CALL };
        connection.send(&render(&connection, node.ports.router_tls(), call, &[]));
        connection.final_response(LIMIT).expect("an answer")
    };
    let told = |response: &Response| {
        let reason = response.header("Reason").unwrap_or_default();
        (response.status, reason.split('"').nth(1).and_then(|text| text.split(':').next()).map(str::to_owned))
    };
    assert_eq!(call(Paper::Good, "1001").status, 302);
    let cases = [
        (told(&call(Paper::WrongName, "1001")), 403, "wrong_certificate"),
        (told(&call(Paper::Good, "9999")), 488, "security_media"),
        (told(&invite(node.ports.router(), CALL, &[]).expect("an answer")), 488, "security_sip"),
    ];
    for (told, status, rule) in cases {
        assert_eq!(told, (status, Some(rule.to_owned())));
        wait_for(rule, LIMIT, || (node.refused(rule) == 1).then_some(()));
        node.wait_log(&["refused", rule, "peer=127.0.0.1:"]);
    }
    let explain = |more: &[&str]| {
        let base =
            ["explain-call", "--json", "--from", "sip:1@x", "--peer", "127.0.0.1", "--transport", "tls"];
        let output = node.client(&[&base[..], more].concat());
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        told["refused"]["rule"].as_str().unwrap_or("admitted").to_owned()
    };
    assert_eq!(explain(&["--to", "sip:1001@x", "--peer-name", "gateway.test"]), "admitted");
    assert_eq!(explain(&["--to", "sip:1001@x", "--peer-name", "somebody.test"]), "wrong_certificate");
    assert_eq!(explain(&["--to", "sip:1001@x"]), "no_certificate");
    assert_eq!(explain(&["--to", "sip:9999@x", "--peer-name", "gateway.test"]), "security_media");
    assert_eq!(explain(&["--to", "sip:9999@x", "--peer-name", "gateway.test", "--srtp"]), "pilot_purpose");
}
