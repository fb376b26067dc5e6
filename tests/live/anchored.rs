//! Calls that go on to a gateway, with their media through the node: two legs, one call.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use toml::{Table, Value, toml};

use crate::common::callee::{Callee, Gateway};
use crate::common::caller::{Caller, Wish};
use crate::common::node::Node;
use crate::common::peers::Running;
use crate::common::phone::{NUMBER, Phone, Special};
use crate::common::pki::{GATEWAY_NAME, Paper, Pki, set};
use crate::common::raw::{Connection, Request, offer, unique};
use crate::common::{audio, now, peers, wait_for};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends calls to the number on to these gateways, in this order.
pub(crate) fn route(config: &mut Table, call_uris: &[&str]) {
    let list = |config: &mut Table, name: &str, block: Table| {
        let blocks = config.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        blocks.as_array_mut().expect("a list").push(block.into());
    };
    if !config.contains_key("gateway") {
        list(config, "gateway", toml! { name = "pbx" address = ["127.0.0.1"] });
    }
    let mut names = Vec::new();
    for (nth, call_uri) in call_uris.iter().enumerate() {
        let name = format!("carrier-{nth}");
        names.push(Value::from(name.clone()));
        let call_uri = (*call_uri).to_owned();
        let gateway = toml! {
            name = name
            address = ["127.0.0.1"]
            certificate_name = GATEWAY_NAME
            call_uri = call_uri
        };
        list(config, "gateway", gateway);
    }
    let mut out = toml! { name = "out" pattern = "471x" try_timeout_s = 1 };
    out.insert("gateways".into(), Value::Array(names));
    list(config, "route", out);
}

/// A node that sends 471x on to these gateways.
fn node_for(call_uris: &[&str]) -> Node {
    Node::start(|config| route(config, call_uris))
}

/// A node, a gateway, and a call between them that the callee has picked up.
fn talking(change: impl FnOnce(&mut Table)) -> (Node, Caller, Callee) {
    let gateway = Gateway::open();
    let node = Node::start(|config| {
        route(config, &[&gateway.call_uri()]);
        change(config);
    });
    let caller = call(&node);
    let mut callee = gateway.accept();
    callee.picks_up();
    (node, caller.join().expect("the caller's thread"), callee)
}

/// A caller to the worker itself, in a thread of its own until it is answered.
fn call(node: &Node) -> thread::JoinHandle<Caller> {
    let port = node.ports.worker_a();
    thread::spawn(move || {
        let uri = format!("sip:{NUMBER}@127.0.0.1:{port};transport=tcp");
        let called = Caller::call(Connection::open(port), &uri, Wish::default());
        called.unwrap_or_else(|response| panic!("{}\n{}", response.head, response.body))
    })
}

/// The log line that tells all of a call.
fn last_word(node: &Node) -> String {
    node.wait_log(&["anchored call ended"])
}

/// Goal: 100 of 100 calls go through and end in order, over TCP and UDP, with SIPp on both sides.
/// Method: Debian's SIPp with its own scenarios as caller and callee, 25 calls a second.
#[test]
fn sipp_calls_sipp_a_hundred_times_over_tcp_and_udp() {
    if !peers::has_peer("sipp") {
        return;
    }
    for (transport, mode) in [("tcp", "t1"), ("udp", "u1")] {
        let mut callee_port = 0;
        let node = Node::start_changed_for_load(|config| {
            let port = config["router"]["port"].as_integer().expect("a port") + 11;
            callee_port = port;
            route(config, &[&format!("sip:127.0.0.1:{port};transport={transport}")]);
        });
        let sipp = |arguments: &[&str]| {
            let mut command = Command::new("sipp");
            command.args(["-i", "127.0.0.1", "-mi", "127.0.0.1", "-t", mode, "-nostdin"]).args(arguments);
            command.current_dir(node.data().parent().expect("the node's folder"));
            command
        };
        let callee = callee_port.to_string();
        let media = (node.ports.peer_media() + 100).to_string();
        let mut callee = sipp(&["-sn", "uas", "-p", &callee, "-mp", &media]);
        let callee = callee.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sipp starts");
        let _callee = Running::new(callee);
        let target = format!("127.0.0.1:{}", node.ports.worker_a());
        let media = node.ports.peer_media().to_string();
        let calls = ["-s", NUMBER, "-r", "25", "-m", "100", "-d", "500", "-mp", &media, "-timeout", "60s"];
        let mut caller = sipp(&[&["-sn", "uac", &target], &calls[..], &["-timeout_error"]].concat());
        let output = caller.output().expect("sipp runs");
        let screen = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{transport}: {screen}\n{}", node.log());
        wait_for("all calls to be over", LIMIT, || (node.calls() == 0).then_some(()));
        node.wait_counter("calls_ended_caller_hung_up", 100);
    }
}

/// A phone that answers, a caller that speaks, and both hear each other.
fn speak_both_ways(caller_is_secure: bool) {
    if !peers::has_peer("baresip") {
        return;
    }
    let pki = Pki::new();
    let node = Node::start(|config| {
        let port = config["router"]["port"].as_integer().expect("a port") + 11;
        pki.secure(config);
        // The phone's TLS listener has the port above.
        let call_uri = match caller_is_secure {
            true => format!("sip:127.0.0.1:{port};transport=tcp"),
            false => format!("sip:127.0.0.1:{};transport=tls", port + 1),
        };
        route(config, &[&call_uri]);
    });
    let special = Special { certificate: pki.bundle(Paper::Good), srtp: !caller_is_secure, answers: true };
    let phone = Phone::start(&node, &special);
    let (speech, heard) = (audio::speech_file(), node.file("heard.wav"));
    let [speech, heard] = [&speech, &heard].map(|path| path.to_str().expect("a plain path"));
    let arguments = ["--play", speech, "--duration", "8", "--record", heard];
    let report = if caller_is_secure {
        let tls = pki.voxperf(Paper::Good);
        let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
        let uri = node.uri(NUMBER, "tls");
        let secure = ["--srtp", "AEAD_AES_128_GCM"];
        peers::voxperf_start(&[&["call", "--to", &uri], &tls[..], &secure, &arguments].concat()).finish()
    } else {
        peers::call(&node, NUMBER, &arguments)
    };
    report.assert_complete();
    let call = report.call(0);
    assert_eq!(call["srtp"].is_string(), caller_is_secure, "{call:#}\n{}", node.log());
    let source = audio::through_ulaw(&audio::speech());
    for (who, sound) in [("the caller", audio::read(Path::new(heard))), ("the callee", phone.heard())] {
        // The phone is silent for the first 0.9 s.
        let found = audio::best_match(&source[8_000..48_000], &sound[8_000..], 9_600);
        assert!(found.correlation >= 0.9, "what {who} heard: {found:?}\n{}\n{}", node.log(), phone.log());
    }
    assert!(last_word(&node).contains("ended_by=\"caller\""), "{}", last_word(&node));
}

/// Goal: a caller over TLS and SRTP and a plain phone hear each other. Method: voxperf calls, baresip
/// answers by itself; what each heard is compared with what the other played.
#[test]
fn a_secure_caller_and_a_plain_callee_hear_each_other() {
    speak_both_ways(true);
}

/// Goal: a plain caller and a phone over TLS and SRTP hear each other, and the phone's certificate was
/// looked at. Method: the same the other way round.
#[test]
fn a_plain_caller_and_a_secure_callee_hear_each_other() {
    speak_both_ways(false);
}

/// Goal: a gateway over TLS whose certificate has another name gets no call. Method: a phone with the
/// wrong certificate.
#[test]
fn a_gateway_with_the_wrong_certificate_is_not_called() {
    if !peers::has_peer("baresip") {
        return;
    }
    let pki = Pki::new();
    let node = Node::start(|config| {
        let port = config["router"]["port"].as_integer().expect("a port") + 12;
        pki.secure(config);
        route(config, &[&format!("sip:127.0.0.1:{port};transport=tls")]);
    });
    let certificate = pki.bundle(Paper::WrongName);
    let _phone = Phone::start(&node, &Special { certificate, srtp: true, answers: true });
    let report = peers::call(&node, NUMBER, &[]);
    assert_eq!(report.call(0)["status"], 503, "{:#}", report.0);
    node.wait_log(&["the callee was not reached", "unreachable"]);
}

/// Goal: the next gateway is tried when one has no listener, answers 503, or says nothing; the report
/// tells how many. Method: three of them before one that answers.
#[test]
fn the_fourth_gateway_answers_when_three_fail() {
    let refusing = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let closed = refusing.local_addr().expect("it is bound").port();
    drop(refusing);
    let [busy, silent, good] = [Gateway::open(), Gateway::open(), Gateway::open()];
    let closed = format!("sip:127.0.0.1:{closed};transport=tcp");
    let node = node_for(&[&closed, &busy.call_uri(), &silent.call_uri(), &good.call_uri()]);
    let caller = call(&node);
    busy.accept().responds(503, "");
    let _heard = silent.accept();
    let mut callee = good.accept();
    callee.picks_up();
    let caller = caller.join().expect("the caller's thread");
    let hang_up = thread::spawn(move || caller.hang_up());
    callee.expects("BYE");
    callee.responds(200, "");
    hang_up.join().expect("the caller's thread");
    let line = last_word(&node);
    for word in ["tries=4", "gateway_out=\"carrier-3\"", "route=\"out\"", "q850=16"] {
        assert!(line.contains(word), "no {word} in {line}");
    }
}

/// Goal: a busy callee is the caller's answer, with a Reason; when all gateways fail it is 503 with
/// Retry-After. Method: 486; a gateway that is not there.
#[test]
fn a_refusal_comes_back_with_its_reason() {
    let gateway = Gateway::open();
    let node = node_for(&[&gateway.call_uri()]);
    let mut connection = Connection::open(node.ports.worker_a());
    let body = offer(40_000);
    let uri = format!("sip:{NUMBER}@127.0.0.1");
    let invite = |connection: &Connection| {
        let invite = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
        invite.render("TCP", connection.local(), &unique())
    };
    let bytes = invite(&connection);
    connection.send(&bytes);
    let mut callee = gateway.accept();
    assert!(callee.invite.header("From").starts_with("<sip:raw@127.0.0.1>;tag="), "{:?}", callee.invite);
    assert_eq!(callee.invite.header("Max-Forwards"), "69");
    callee.responds(486, "");
    let refused = connection.final_response(LIMIT).expect("a final response");
    assert_eq!(refused.status, 486);
    assert!(
        refused.header("Reason").is_some_and(|reason| reason.starts_with("SIP;cause=486")),
        "{}",
        refused.head
    );
    drop((gateway, callee));
    let mut connection = Connection::open(node.ports.worker_a());
    let bytes = invite(&connection);
    connection.send(&bytes);
    let refused = connection.final_response(LIMIT).expect("a final response");
    assert_eq!(refused.status, 503);
    assert!(refused.header("Retry-After").is_some(), "{}", refused.head);
    node.wait_refused("no_gateway", 1);
}

/// Goal: a caller that gives up while it rings ends the callee's ringing too, and no call is left.
/// Method: 180, CANCEL, 487 on both sides.
#[test]
fn a_cancel_while_it_rings_reaches_the_callee() {
    let gateway = Gateway::open();
    let node = node_for(&[&gateway.call_uri()]);
    let mut connection = Connection::open(node.ports.worker_a());
    let tag = unique();
    let (uri, body) = (format!("sip:{NUMBER}@127.0.0.1"), offer(40_000));
    let ask = |method: &'static str, body: &str| {
        let request = Request { method, uri: &uri, extra: &[], body };
        request.render("TCP", connection.local(), &tag)
    };
    let (invite, cancel) = (ask("INVITE", &body), ask("CANCEL", ""));
    connection.send(&invite);
    let mut callee = gateway.accept();
    callee.responds(180, "");
    while connection.response(LIMIT).expect("180").status != 180 {}
    connection.send(&cancel);
    callee.expects("CANCEL");
    callee.responds(200, "");
    let finals = [(); 2].map(|()| connection.final_response(LIMIT).expect("two final responses").status);
    assert!(finals == [200, 487] || finals == [487, 200], "{finals:?}");
    wait_for("no call is left", LIMIT, || (node.calls() == 0).then_some(()));
    assert!(last_word(&node).contains("before the answer"), "{}", last_word(&node));
}

/// Goal: what a callee plays before it answers is heard by the caller. Method: 183 with SDP and half a
/// second of tone before the 200; the caller's socket has it by then.
#[test]
fn early_media_is_heard_by_the_caller() {
    let gateway = Gateway::open();
    let node = node_for(&[&gateway.call_uri()]);
    let caller = call(&node);
    let mut callee = gateway.accept();
    let sdp = callee.sdp("sendrecv");
    callee.responds(183, &sdp);
    // The shard learns of it over its queue; what comes before is not relayed.
    thread::sleep(Duration::from_millis(200));
    callee.speaks(&audio::tone(440.0, 8000.0, 4000));
    callee.picks_up();
    let mut caller = caller.join().expect("the caller's thread");
    let heard = caller.heard().expect("plain sound");
    assert!(audio::loudest_tone(&heard, 440.0) > 6000.0, "{} samples heard", heard.len());
    let calls = node.json(&["calls"]);
    let text = calls.to_string();
    assert!(text.contains("\"anchored\"") && text.contains("\"carrier-0\""), "{calls:#}");
}

/// Goal: hold and resume of the caller are felt by the callee, and sound goes on after it.
/// Method: voxperf holds for two seconds; the callee answers two re-INVITEs.
#[test]
fn hold_and_resume_reach_the_callee() {
    let gateway = Gateway::open();
    let node = node_for(&[&gateway.call_uri()]);
    let speech = audio::speech_file();
    let speech = speech.to_str().expect("a plain path");
    let uri = format!("sip:{NUMBER}@127.0.0.1:{};transport=tcp", node.ports.worker_a());
    let hold = ["--hold", "1:1:sendonly", "--duration", "5"];
    let caller = peers::voxperf_start(&[&["call", "--to", &uri, "--play", speech], &hold[..]].concat());
    let mut callee = gateway.accept();
    callee.picks_up();
    for (theirs, ours) in [("sendonly", "recvonly"), ("sendrecv", "sendrecv")] {
        let offer = callee.expects("INVITE").body.clone();
        assert!(offer.contains(&format!("a={theirs}")), "{offer}");
        let sdp = callee.sdp(ours);
        callee.responds(200, &sdp);
        callee.expects("ACK");
    }
    let before = callee.heard().len();
    callee.expects("BYE");
    callee.responds(200, "");
    assert!(callee.heard().len() > 8000, "sound goes on after the hold; before it {before} samples");
    let report = caller.finish();
    report.assert_complete();
    assert_eq!(report.call(0)["changes"].to_string(), "[200,200]", "{:#}", report.0);
}

/// Goal: the callee's hold reaches the caller's side, its BYE ends the call, and the log tells who it was.
/// Method: voxperf as caller takes the re-INVITE; then BYE.
#[test]
fn a_callee_holds_and_hangs_up() {
    let gateway = Gateway::open();
    let node = node_for(&[&gateway.call_uri()]);
    let uri = format!("sip:{NUMBER}@127.0.0.1:{};transport=tcp", node.ports.worker_a());
    let caller = peers::voxperf_start(&["call", "--to", &uri, "--duration", "20"]);
    let mut callee = gateway.accept();
    callee.picks_up();
    let sdp = callee.sdp("sendonly");
    assert_eq!(callee.asks("INVITE", &sdp), 200);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(callee.asks("BYE", ""), 200);
    let report = caller.finish();
    report.assert_complete();
    assert_eq!(report.number(0, "far_changes"), 1, "{:#}", report.0);
    let line = last_word(&node);
    assert!(line.contains("ended_by=\"callee\"") && line.contains("the callee hung up"), "{line}");
}

/// Goal: a callee that dies is noticed by its silence, and the caller is told. Method: its sockets close
/// without a word; media may be silent for two seconds.
#[test]
fn a_callee_that_dies_ends_the_call() {
    let (node, mut caller, callee) = talking(|config| set(config, "rtp", "media_timeout_s", 2));
    callee.speaks(&audio::tone(440.0, 8000.0, 1600));
    drop(callee);
    let start = now();
    // The caller speaks on; only the callee is silent.
    while node.calls() > 0 {
        assert!(start.elapsed() < LIMIT, "{}", node.log());
        caller.speak(&audio::tone(440.0, 8000.0, 3200), |_, _, _| {});
    }
    let line = last_word(&node);
    assert!(line.contains("ended_by=\"callee\"") && line.contains("no media from the callee"), "{line}");
}

/// Goal: a stop of the node ends both dialogs. Method: SIGTERM while they talk; BYE on both sides.
#[test]
fn a_stop_says_bye_to_both_sides() {
    let (mut node, caller, mut callee) = talking(|_| {});
    let stop = thread::spawn(move || node.stop());
    callee.expects("BYE");
    callee.responds(200, "");
    stop.join().expect("it stops");
    drop(caller);
}
