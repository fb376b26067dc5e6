//! The rules of admission that are left beside `admission.rs`: limits, kinds of numbers, certificates
//! that stopped being enough; and captured INVITEs, which `explain-call` and the node read alike.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use toml::{Table, toml};

use crate::common::node::Node;
use crate::common::pki::{Paper, Pki};
use crate::common::raw::{Connection, Request, Response, offer, unique};
use crate::common::{secure, wait_for};

/// How long a busy machine may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The bytes of an ordinary INVITE.
fn invite(connection: &Connection, uri: &str, extra: &[&str]) -> Vec<u8> {
    let request = Request { method: "INVITE", uri, extra, body: &offer(40_000) };
    request.render(connection.transport(), connection.local(), &unique())
}

/// Asserts status, Warning, Reason, Retry-After, log and counter of a refusal; gives the reason.
fn assert_told(node: &Node, response: &Response, status: u16, rule: &str) -> String {
    assert_eq!(response.status, status, "{rule}: {}", response.head);
    let reason = response.header("Reason").unwrap_or_default();
    let lead = format!("SIP;cause={status};text=\"{rule}: ");
    let why = reason.strip_prefix(&lead).and_then(|rest| rest.strip_suffix('"'));
    let why = why.unwrap_or_else(|| panic!("{rule}: {}", response.head)).to_owned();
    let warning = format!("399 voxring \"{why}\"");
    assert_eq!(response.header("Warning"), Some(warning.as_str()), "{rule}: {}", response.head);
    assert_eq!(response.header("Retry-After").is_some(), status == 503, "{rule}: {}", response.head);
    node.wait_log(&["refused", &format!("rule=\"{rule}\""), "peer=127.0.0."]);
    wait_for(rule, LIMIT, || (node.refused(rule) > 0).then_some(()));
    why.replace("\\\"", "\"")
}

/// Goal: each limit refuses with 503 and Retry-After and says which one it was. Method: a limit of one,
/// and four INVITEs in one segment.
#[test]
fn each_limit_on_calls_says_that_it_was_reached() {
    type Change = fn(&mut Table);
    let cases: [(&str, &str, Change); 4] = [
        ("calls_max", "calls.calls_max = 1", |c| c.extend(toml! { calls = { calls_max = 1 } })),
        ("calls_per_s", "calls.calls_per_s = 1", |c| c.extend(toml! { calls = { calls_per_s = 1 } })),
        ("source_calls", "limits.source_calls_per_s = 1", |c| {
            c.extend(toml! { limits = { source_calls_per_s = 1, source_calls_burst = 1 } });
        }),
        ("gateway_calls_max", "calls_max = 1 of gateway \"pbx\"", |c| {
            c.extend(toml! { gateway = [{ name = "pbx", address = "127.0.0.1", calls_max = 1 }] });
        }),
    ];
    for (rule, named, limit) in cases {
        let node = Node::start(limit);
        let port = node.ports.worker_a();
        let mut connection = Connection::open(port);
        let uri = format!("sip:9196@127.0.0.1:{port}");
        let burst: Vec<u8> = (0..4).flat_map(|_| invite(&connection, &uri, &[])).collect();
        connection.send(&burst);
        let refused = wait_for("a refusal", LIMIT, || {
            connection.final_response(LIMIT).filter(|response| response.status != 200)
        });
        let why = assert_told(&node, &refused, 503, rule);
        assert!(why.contains(named), "{rule}: {why}");
    }
}

/// Goal: each kind of dial plan takes its own numbers and refuses the others' with 404, and the
/// explanation agrees; an INVITE that names nobody gets 404. Method: a gateway for each plan, on
/// loopback addresses.
#[test]
fn each_uri_type_takes_its_own_numbers_only() {
    let node = Node::start(|config| {
        config.extend(toml! {
            gateway = [
                { name = "tel", address = "127.0.0.2" },
                { name = "uri", address = "127.0.0.3" },
                { name = "e164", address = "127.0.0.4" },
                { name = "any", address = "127.0.0.5" },
            ]
            dial_plan = [
                { name = "tel", uri_type = "tel_extn", extension_digits = 4 },
                { name = "uri", uri_type = "sip_uri" },
                { name = "e164", uri_type = "e164" },
                { name = "any" },
            ]
            hunt_group = [
                { gateway = "tel", dial_plan = "tel" },
                { gateway = "uri", dial_plan = "uri" },
                { gateway = "e164", dial_plan = "e164" },
                { gateway = "any", dial_plan = "any" },
            ]
        });
    });
    let port = node.ports.router();
    // Last part of the source, who calls, whom, and the rule that refuses it.
    for (source, from, to, rule) in [
        (2, "sip:2000@pbx", "sip:1001@vm", None),
        (2, "tel:+4930123", "tel:1001", None),
        (2, "sip:2000@pbx", "sip:10010@vm", Some("extension_digits")),
        (2, "sip:2000@pbx", "sip:jo@vm", Some("uri_type")),
        (3, "sip:ann@pbx", "sip:jo@vm", None),
        (3, "tel:2000", "sip:jo@vm", Some("uri_type")),
        (4, "sip:+4930123@pbx", "sip:+4930999@vm", None),
        (4, "sip:+4930123@pbx", "sip:1001@vm", Some("uri_type")),
        (4, "sip:2000@pbx", "sip:+4930999@vm", Some("uri_type")),
        (4, "sip:+4930123@pbx", "sip:+1234567890123456@vm", Some("uri_type")),
        (5, "sip:ann@pbx", "sip:jo@vm", None),
        (5, "sip:ann@pbx", "sip:vm", Some("no_number")),
    ] {
        let peer = Ipv4Addr::new(127, 0, 0, source);
        let mut connection = Connection::open_from(peer, port);
        let text = String::from_utf8(invite(&connection, to, &[])).expect("text");
        connection.send(text.replacen("<sip:raw@127.0.0.1>", &format!("<{from}>"), 1).as_bytes());
        let response = connection.final_response(LIMIT).expect("an answer");
        let peer = peer.to_string();
        let told = node.client(&["explain-call", "--json", "--from", from, "--to", to, "--peer", &peer]);
        let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
        let Some(rule) = rule else {
            assert_eq!(response.status, 302, "{from} {to}: {}", response.head);
            // Whether there is such a mailbox is the worker's business.
            assert!(told["admitted"] == true || told["refused"]["rule"] == "no_mailbox", "{told:#}");
            continue;
        };
        let why = assert_told(&node, &response, 404, rule);
        assert_eq!((&told["refused"]["rule"], &told["refused"]["why"]), (&rule.into(), &why.into()));
    }
}

/// Goal: a sips: URI is never served in the clear: 503 where no next hop has TLS, 403 at the worker.
/// Method: a node without a certificate, TCP.
#[test]
fn a_sips_uri_is_refused_where_there_is_no_tls() {
    let node = Node::start(|_| {});
    let front = (node.ports.router(), 503, "next_hop_tls");
    for (port, status, rule) in [front, (node.ports.worker_a(), 403, "sips_over_plain")] {
        let mut connection = Connection::open(port);
        connection.send(&invite(&connection, &format!("sips:9196@127.0.0.1:{port}"), &[]));
        let response = connection.final_response(LIMIT).expect("an answer");
        assert_told(&node, &response, status, rule);
    }
    assert_eq!(node.calls(), 0);
}

/// Goal: without `tls.peer_certificate` a call over TLS is judged by its address alone; once a
/// certificate is required, connections without one are closed, with the reason in the log, and the
/// explanation knows. Method: the key changes under an open connection.
#[test]
fn a_connection_without_a_certificate_is_closed_once_one_is_required() {
    let pki = Pki::new();
    let mut file = Table::new();
    let node = Node::start(|config| {
        pki.secure(config);
        let tls = config["tls"].as_table_mut().expect("a table");
        tls.insert("peer_certificate".into(), "none".into());
        file = config.clone();
    });
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, node.ports.worker_a_tls()));
    let (mut connection, _) = secure::open(address, &pki.client(Paper::None)).expect("a handshake");
    let uri = format!("sip:4711@{address};transport=tls");
    connection.send(&invite(&connection, &uri, &[]));
    let response = connection.final_response(LIMIT).expect("an answer");
    let why = assert_told(&node, &response, 404, "no_mailbox");
    assert_eq!(why, "Request-URI names 4711, no mailbox here");

    let tls = file["tls"].as_table_mut().expect("a table");
    tls.insert("peer_certificate".into(), "required".into());
    std::fs::write(node.file("voxring.toml"), file.to_string()).expect("the file can be written");
    assert_eq!(node.json(&["reload"])["applied"], serde_json::json!(["tls.peer_certificate"]));
    assert!(connection.is_closed(LIMIT));
    let line = node.wait_log(&["connection closed", "rule=\"tls_no_certificate\"", "peer=127.0.0.1:"]);
    assert!(line.contains("peer sent no certificates"), "{line}");
    node.wait_counter("sip_revoked_closed", 1);
    let asked = ["--from", "sip:1@x", "--to", "sip:4711@x", "--peer", "127.0.0.1", "--transport", "tls"];
    let told = node.client(&[&["explain-call", "--json"], &asked[..]].concat());
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!(told["refused"]["rule"], "no_certificate", "{told:#}");
}

/// An INVITE as a PBX may write it: what stands for the URI, To, and further lines.
struct Capture {
    uri: &'static str,
    to: &'static str,
    lines: &'static str,
    /// Which header names whom, with `calls.diversion` "bottom" and "top".
    names: [&'static str; 2],
}

/// All of mailboxes that do not exist, so that the worker says whom it looked for.
const CAPTURES: [Capture; 12] = [
    Capture { uri: "sip:6001@vm", to: "To: <sip:6002@vm>", lines: "", names: ["Request-URI names 6001"; 2] },
    Capture { uri: "sip:vm", to: "t: <sip:6002@vm>", lines: "", names: ["To names 6002"; 2] },
    Capture { uri: "sip:vm", to: "t: Jo Doe <sip:6003@vm>", lines: "", names: ["To names 6003"; 2] },
    Capture {
        uri: "tel:+49-30-6004;phone-context=x",
        to: "To: <tel:+49306004>",
        lines: "",
        names: ["Request-URI names +49306004"; 2],
    },
    Capture {
        uri: "sip:5000@vm",
        to: "To: <sip:5000@vm>",
        lines: "Diversion: <sip:6005@pbx>;reason=user-busy\r\n",
        names: ["Diversion names 6005"; 2],
    },
    Capture {
        uri: "sip:5000@vm",
        to: "To: <sip:5000@vm>",
        lines: "Diversion: \"Jo\" <sip:6006@pbx>;reason=no-answer\r\nDiversion: <sip:6007@pbx>\r\n",
        names: ["Diversion names 6007", "Diversion names 6006"],
    },
    Capture {
        uri: "sip:5000@vm",
        to: "To: <sip:5000@vm>",
        lines: "Diversion: <tel:6008>;reason=no-answer, \"A, B\" <sip:6009@pbx>;counter=1\r\n",
        names: ["Diversion names 6009", "Diversion names 6008"],
    },
    Capture {
        uri: "sip:5000@vm",
        to: "To: <sip:5000@vm>",
        lines: "Diversion: \"Jo <sip:6010@pbx>;reason=no-answer\r\n",
        names: ["Diversion names 6010"; 2],
    },
    Capture {
        uri: "sip:5000@vm",
        to: "To: <sip:5000@vm>",
        lines: "History-Info: <sip:6011@pbx?Reason=SIP%3Bcause%3D486>;index=1, \
                <sip:6012@pbx?Reason=SIP%3Bcause%3D408>;index=1.1,\r\n <sip:5000@vm>;index=1.1.1\r\n",
        names: ["History-Info names 6011", "History-Info names 6012"],
    },
    Capture {
        uri: "sip:5000@vm",
        to: "To: <sip:5000@vm>",
        lines: "History-Info: <sip:6013@pbx>;index=1, <sip:5000@vm>;index=1.1\r\nDiversion: <sip:6014@pbx>\r\n",
        names: ["Diversion names 6014"; 2],
    },
    Capture {
        uri: "sip:6015@vm",
        to: "To: <sip:6015@vm>",
        lines: "History-Info: <sip:6015@vm>;index=1\r\n",
        names: ["Request-URI names 6015"; 2],
    },
    Capture {
        uri: "sip:6016;cpc=ordinary:secret@vm;user=phone",
        to: "To: <sip:6016@vm>",
        lines: "DIVERSION: <sip:pbx>;reason=unknown\r\n",
        // What follows a number in its user part are its parameters (RFC 3261 §19.1.6).
        names: ["Request-URI names 6016"; 2],
    },
];

/// Goal: whom an INVITE is for, however it says so, is the same to the node and to the explanation of
/// its capture. Method: compact forms, folded and stacked headers, stray quotes, tel: and passwords;
/// sent to the worker byte by byte as they are in the file; both settings of `calls.diversion`.
#[test]
fn captured_invites_are_explained_as_the_node_takes_them() {
    for (which, diversion) in ["bottom", "top"].into_iter().enumerate() {
        let node = Node::start(|config| config.extend(toml! { calls = { diversion = diversion } }));
        let port = node.ports.worker_a();
        for (number, capture) in CAPTURES.iter().enumerate() {
            let mut connection = Connection::open(port);
            let (local, tag, body) = (connection.local(), unique(), offer(40_000));
            let text = format!(
                "INVITE {} SIP/2.0\r\nv: SIP/2.0/TCP {local};branch=z9hG4bK{tag};rport\r\nMax-Forwards: 70\r\n\
                 f: \"O'Brien <sip:2000@pbx>;tag=1\r\n{}\r\ni: {tag}\r\nCSeq: 1 INVITE\r\n\
                 m: <sip:2000@{local};transport=tcp>\r\n{}c: application/sdp\r\nl: {}\r\n\r\n{body}",
                capture.uri,
                capture.to,
                capture.lines,
                body.len()
            );
            let file = node.file(&format!("invite-{number}.txt"));
            std::fs::write(&file, &text).expect("the disk has room");
            connection.send(text.as_bytes());
            let response = connection.final_response(LIMIT).expect("an answer");
            let why = assert_told(&node, &response, 404, "no_mailbox");
            assert_eq!(why, format!("{}, no mailbox here", capture.names[which]), "{text}");
            let told = node.client(&["explain-call", "--json", &file.to_string_lossy()]);
            let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
            let refused = &told["refused"];
            assert_eq!((&refused["rule"], &refused["why"]), (&"no_mailbox".into(), &why.into()), "{text}");
        }
    }
}
