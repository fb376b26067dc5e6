//! `voxperf run` against the node: each scenario from set-up to report.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use toml::{Table, toml};

use crate::common::node::Node;
use crate::common::pki::{self, Paper, Pki};
use crate::common::{peers, wait_for};

/// Ten calls, a window of two seconds, whatever else `arguments` ask for; the report.
fn run(node: &Node, scenario: &str, arguments: &[&str]) -> Value {
    run_to(node, &node.uri("", "tcp").replace("sip:@", "sip:"), scenario, arguments)
}

/// The same to a URI of the test's choice.
fn run_to(node: &Node, target: &str, scenario: &str, arguments: &[&str]) -> Value {
    let pid = node.supervisor_pid().to_string();
    let common = ["run", "--target", target, "--scenario", scenario, "--duration", "2", "--pid", &pid];
    let calls = ["--calls", "10", "--cps", "20", "--hold", "0.3"];
    peers::voxperf_start(&[&common[..], &calls[..], arguments].concat()).finish().0
}

fn number(report: &Value, path: &str) -> u64 {
    let value = report.pointer(path).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no {path} in {report:#}"))
}

/// Goal: each scenario sets its calls up, measures what it is about, and ends them.
/// Method: ten calls each; counts are judged, times are not: the machine may be busy. 50 packets a
/// second and call, one or two at each edge of the window.
#[test]
fn each_scenario_runs_from_set_up_to_report() {
    let _alone = crate::common::heavy();
    let node = Node::start_for_load();
    for (scenario, sent, expected) in
        [("playout", 0, 1000), ("echo", 1000, 1000), ("record", 1000, 0), ("mixed", 600, 700)]
    {
        let report = run(&node, scenario, &["--rtcp"]);
        let about = |value: u64, wanted: u64| value.abs_diff(wanted) <= wanted / 20;
        assert_eq!(report["asked"]["scenario"], scenario);
        assert_eq!(
            (number(&report, "/calls/answered"), number(&report, "/calls/failed")),
            (10, 0),
            "{report:#}"
        );
        assert_eq!(
            (number(&report, "/calls/ended_early"), number(&report, "/calls/silent")),
            (0, 0),
            "{report:#}"
        );
        assert_eq!((number(&report, "/setup/count"), number(&report, "/calls/peak")), (10, 10));
        assert!(about(number(&report, "/packets/sent"), sent), "{report:#}");
        // What is recorded counts as expected once the node has reported on it.
        let kept =
            if scenario == "playout" || scenario == "echo" { 0 } else { number(&report, "/packets/sent") };
        let due = number(&report, "/packets/expected");
        assert!(about(due, expected) || (expected..=expected + kept).contains(&due), "{report:#}");
        assert_eq!(number(&report, "/packets/lost"), number(&report, "/packets/dropped_by_us"), "{report:#}");
        assert_eq!(number(&report, "/packets/misdelivered") + number(&report, "/packets/stray"), 0);
        assert_eq!(number(&report, "/added/count") > 0, scenario == "echo" || scenario == "mixed");
        assert!(number(&report, "/packets/rtcp_sent") > 0, "{report:#}");
        assert!(
            number(&report, "/server/media_us") > 0 && number(&report, "/server/resident_bytes") > 1 << 20
        );
        let threads = report["server"]["threads"].as_array().expect("a list");
        let names: BTreeSet<_> = threads.iter().filter_map(|thread| thread["name"].as_str()).collect();
        assert!(names.contains("media-0"), "{names:?}");
        assert!(report["fingerprint"]["server"].as_str().is_some_and(|name| name.starts_with("voxring")));
    }
    wait_for("the end of all calls", Duration::from_secs(10), || (node.calls() == 0).then_some(()));
}

/// Goal: set-up and end of calls are measured by themselves, over TCP and UDP; calls refused for
/// good reason are told by status.
/// Method: 20 calls a second for 2 s and the lead before them; the same at a number nobody has.
#[test]
fn calls_a_second_are_measured_and_refusals_told() {
    let _alone = crate::common::heavy();
    let node = Node::start_for_load();
    let tcp = run(&node, "signalling", &[]);
    assert_eq!(number(&tcp, "/calls/attempted"), 56, "20 a second for 0.3 + 0.5 + 2 s");
    assert_eq!((number(&tcp, "/calls/answered"), number(&tcp, "/calls/failed")), (56, 0), "{tcp:#}");
    assert_eq!(number(&tcp, "/packets/expected"), 0);
    let udp = run_to(&node, &node.uri("9199", "udp"), "signalling", &["--arrivals", "poisson"]);
    assert_eq!((number(&udp, "/calls/attempted"), number(&udp, "/calls/answered")), (56, 56), "{udp:#}");
    let refused = run_to(&node, &node.uri("4711", "tcp"), "signalling", &[]);
    assert_eq!(
        (number(&refused, "/calls/failed"), number(&refused, "/calls/outcomes/404")),
        (56, 56),
        "{refused:#}"
    );
    wait_for("the end of all calls", Duration::from_secs(10), || (node.calls() == 0).then_some(()));
}

/// Goal: of an anchored call both legs are ours, and each is heard on the other.
/// Method: a route to the second phone, over TCP and over UDP; frames both ways, each on its own call.
#[test]
fn anchored_calls_are_measured_across_both_legs() {
    let _alone = crate::common::heavy();
    for transport in ["tcp", "udp"] {
        let node = Node::start_changed_for_load(|config| route_to_a_peer(config, transport));
        let callee = format!("127.0.0.1:{}", node.ports.peer());
        let report = run(&node, "anchor", &["--callee", &callee]);
        assert_eq!(
            (number(&report, "/calls/answered"), number(&report, "/calls/failed")),
            (10, 0),
            "{report:#}"
        );
        assert_eq!((number(&report, "/calls/silent"), number(&report, "/calls/ended_early")), (0, 0));
        assert!((1900..=2100).contains(&number(&report, "/packets/sent")), "{report:#}");
        assert_eq!(number(&report, "/packets/sent"), number(&report, "/packets/expected"));
        assert_eq!(number(&report, "/packets/misdelivered") + number(&report, "/packets/stray"), 0);
        assert_eq!(number(&report, "/packets/lost"), number(&report, "/packets/dropped_by_us"), "{report:#}");
        assert_eq!(number(&report, "/added/count"), number(&report, "/packets/received"));
    }
}

/// Goal: calls in all phases come and go, each as its part says; streams come unbroken, holds are taken,
/// and what is under way when the load is told to end ends with it.
/// Method: 10 calls a second of 2 s each in all parts for 3 s; every outcome of every part.
#[test]
fn calls_in_all_phases_come_and_go() {
    let _alone = crate::common::heavy();
    let node = Node::start_changed_for_load(|config| route_to_a_peer(config, "tcp")).greeting_shortly();
    let target = node.uri("", "tcp").replace("sip:@", "sip:");
    let callee = format!("127.0.0.1:{}", node.ports.peer());
    let what = ["run", "--target", &target, "--scenario", "life", "--callee", &callee];
    let how = ["--cps", "10", "--hold", "2", "--duration", "3", "--seed", "7"];
    let report = peers::voxperf_start(&[&what[..], &how].concat()).finish().0;
    let parts = report["life"]["parts"].as_object().expect("parts");
    assert_eq!(parts.len(), 9, "{report:#}");
    for (name, part) in parts {
        let n = |key: &str| part[key].as_u64().unwrap_or_else(|| panic!("no {key} in {part}"));
        assert_eq!(n("answered"), if name == "ringing" { 0 } else { n("begun") }, "{name}: {report:#}");
        assert_eq!((n("early"), n("failed")), (0, 0), "{name}: {report:#}");
        let all_seen = n("ended_by_us") + n("ended_by_server") == n("begun");
        assert!(all_seen || name == "vanished", "{name}: {report:#}");
    }
    let continuity = &report["continuity"];
    assert_eq!((&continuity["ssrc_changes"], &continuity["restarts"]), (&0.into(), &0.into()));
    assert!(number(&report, "/continuity/streams") > 10, "{report:#}");
    assert!(number(&report, "/life/changes") > 0, "{report:#}");
    assert_eq!(number(&report, "/life/changes_taken"), number(&report, "/life/changes"), "{report:#}");
    assert_eq!(number(&report, "/packets/lost"), number(&report, "/packets/dropped_by_us"), "{report:#}");
}

/// A gateway at the node's port for a peer, and a route of the numbers that begin with 8 to it.
fn route_to_a_peer(config: &mut Table, transport: &str) {
    // As `Ports::peer` has it.
    let port = config["router"]["port"].as_integer().expect("a port") + 11;
    let call_uri = format!("sip:127.0.0.1:{port};transport={transport}");
    config.extend(toml! {
        gateway = [{ name = "phones", address = ["127.0.0.1"], call_uri = call_uri }]
        route = [{ name = "phones", pattern = "8*", gateways = ["phones"] }]
    });
}

/// Goal: calls over mutual TLS and SRTP are measured like plain ones, RTCP too.
/// Method: an echo of frames under AEAD_AES_128_GCM; each must open and carry its stamp.
#[test]
fn secure_calls_are_measured() {
    let _alone = crate::common::heavy();
    let pki = Pki::new();
    let node = Node::start_changed_for_load(|config| {
        pki.secure(config);
        pki::demand_srtp(config);
    });
    let papers = pki.voxperf(Paper::Good);
    let papers = papers.iter().map(String::as_str);
    let arguments: Vec<&str> = ["--srtp", "AEAD_AES_128_GCM", "--rtcp"].into_iter().chain(papers).collect();
    let report = run_to(&node, &node.uri("9196", "tls"), "echo", &arguments);
    assert_eq!(
        (number(&report, "/calls/answered"), number(&report, "/packets/stray")),
        (10, 0),
        "{report:#}"
    );
    assert!(number(&report, "/packets/received") > 900, "{report:#}");
    assert_eq!(number(&report, "/packets/lost"), number(&report, "/packets/dropped_by_us"), "{report:#}");
}
