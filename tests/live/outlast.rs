//! Calls that outlast the worker that has them: what their peers hear, and what they can still do.

use std::thread;
use std::time::Duration;

use toml::Table;
use voxring::base::config::SrtpSuite;

use crate::common::callee::Gateway;
use crate::common::caller::{Caller, Numbers, Wish};
use crate::common::node::{Node, signal};
use crate::common::raw::Connection;
use crate::common::{audio, wait_for};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);
/// Packets of a second.
const SECOND: usize = 50;
const POUND: u8 = 11;

fn worker_pid(node: &Node) -> u32 {
    node.worker_pid().expect("a worker is ready")
}

/// Kills the worker and waits for the one that takes its place.
fn kill(node: &Node) {
    let old = node.kill_worker();
    wait_for("a new worker", LIMIT, || node.worker_pid().filter(|&pid| pid != old));
}

/// Everything came in one stream: one SSRC, and numbers that go on.
fn assert_one_stream(packets: &[(Numbers, Vec<i16>)]) {
    for pair in packets.windows(2) {
        let [(before, _), (after, _)] = pair else { continue };
        assert_eq!(before.ssrc, after.ssrc);
        let steps = after.sequence.wrapping_sub(before.sequence);
        // What a second or two of silence would have had.
        assert!((1..150).contains(&steps), "{before:?} then {after:?}");
        let samples = after.timestamp.wrapping_sub(before.timestamp);
        assert!((1..150 * 160).contains(&samples), "{before:?} then {after:?}");
    }
}

fn call_worker(node: &Node, user: &str, wish: Wish) -> Caller {
    let port = node.ports.worker_a();
    let uri = format!("sip:{user}@127.0.0.1:{port};transport=tcp");
    let called = Caller::call(Connection::open(port), &uri, wish);
    called.unwrap_or_else(|response| panic!("{}\n{}", response.head, response.body))
}

/// Goal: a caller who leaves a message hears one stream over two deaths of the worker, is recorded on both
/// sides of each, can press keys afterwards, and hears the node's BYE over the connection it came back by.
/// Method: a caller in the test's own hands, plain and under SRTP; a death in the greeting and one while it
/// speaks.
#[test]
fn a_caller_leaves_a_message_over_two_deaths_of_the_worker() {
    for suite in [None, Some(SrtpSuite::AesCm128HmacSha1_80)] {
        let node = Node::start(|config| {
            config.insert("srtp".into(), Table::from_iter([("sdes_over_plain".into(), true.into())]).into());
        });
        let mut caller = call_worker(&node, "1001", Wish { suite, behind_nat: false });
        // Some seconds of greeting, the rest after the death, then the beep.
        caller.speak(&vec![0; 2 * 8_000], |_, _, _| {});
        kill(&node);
        let mut packets = caller.stream().expect("all can be read");
        wait_for("the beep", LIMIT, || {
            caller.speak(&[0; 1_600], |_, _, _| {});
            packets.extend(caller.stream().expect("all can be read"));
            (node.json(&["calls"]).to_string().contains("\"recording\"")).then_some(())
        });
        let spoken = audio::speech();
        let victim = worker_pid(&node).to_string();
        let mut sent = 0;
        for second in spoken[..6 * 8_000].chunks_exact(8_000) {
            caller.speak(second, |_, _, _| {
                sent += 1;
                if sent == 3 * SECOND {
                    signal("-KILL", &victim);
                }
            });
            packets.extend(caller.stream().expect("all can be read"));
        }
        caller.reconnect(Connection::open(node.ports.worker_a()));
        assert_eq!(caller.asks("OPTIONS"), 200, "the dialog goes on");
        caller.press(POUND);
        wait_for("the menu", LIMIT, || node.json(&["calls"]).to_string().contains("\"menu\"").then_some(()));
        caller.press(1);
        let message = node.wait_messages("1001", 1, LIMIT).remove(0);
        assert!(caller.hears_bye(LIMIT), "{suite:?}: the node hangs up");
        packets.extend(caller.stream().expect("all can be read"));
        assert_one_stream(&packets);
        assert!(packets.len() > 12 * SECOND, "{}", packets.len());
        let sound = node.export(&message.id);
        let source = audio::through_ulaw(&spoken);
        // Some silence came before, while the test looked for the beep.
        let onset = |sound: &[i16]| sound.iter().position(|sample| sample.unsigned_abs() > 500);
        let before = onset(&sound).zip(onset(&source)).map_or(0, |(late, early)| late.saturating_sub(early));
        for second in [0, 1, 4] {
            let part = second * 8_000..(second + 1) * 8_000;
            let recorded = &sound[before + part.start..before + part.end];
            let found = audio::best_match(&source[part], recorded, 800);
            assert!(found.correlation >= 0.9, "{suite:?}: second {second} of {message:?}: {found:?}");
        }
    }
}

/// Goal: an anchored call outlasts its worker: both sides go on to hear each other in the streams they had,
/// a hold passes through, and a BYE from the callee ends the call on both sides. Method: caller and gateway
/// in the test's own hands; each comes back over a new connection.
#[test]
fn an_anchored_call_outlasts_its_worker() {
    an_anchored_call_outlasts(|_| {});
}

pub(crate) fn an_anchored_call_outlasts(change: impl FnOnce(&mut Table)) {
    let gateway = Gateway::open();
    let node = Node::start(|config| {
        crate::anchored::route(config, &[&gateway.call_uri()]);
        change(config);
    });
    let port = node.ports.worker_a();
    let caller = thread::spawn(move || {
        let uri = format!("sip:4711@127.0.0.1:{port};transport=tcp");
        Caller::call(Connection::open(port), &uri, Wish::default()).map_err(|response| response.head)
    });
    let mut callee = gateway.accept();
    callee.picks_up();
    let mut caller = caller.join().expect("the caller's thread").expect("an answer");
    let tone = audio::tone(1_000.0, 8_000.0, 8_000);
    callee.speaks(&tone);
    caller.speak(&tone, |_, _, _| {});
    thread::sleep(Duration::from_millis(100));
    let mut heard = caller.stream().expect("plain");
    callee.heard();
    kill(&node);
    callee.speaks(&tone);
    caller.speak(&tone, |_, _, _| {});
    thread::sleep(Duration::from_millis(100));
    let after = caller.stream().expect("plain");
    assert_eq!(after.len(), SECOND, "nothing is lost");
    assert_eq!(callee.heard().len(), 8_000);
    heard.extend(after);
    assert_one_stream(&heard);
    caller.reconnect(Connection::open(port));
    assert_eq!(caller.asks("OPTIONS"), 200);
    callee.reconnect(Connection::open(port));
    let held = callee.sdp("sendonly");
    assert_eq!(callee.asks("INVITE", &held), 200);
    assert_eq!(callee.asks("BYE", ""), 200);
    assert!(caller.hears_bye(LIMIT));
    wait_for("no call", LIMIT, || (node.calls() == 0).then_some(()));
    assert_eq!(node.worker_counter("calls_resumed"), 1);
}

/// Goal: a worker that dies while it drains is followed by one that goes on with its calls only; its end is
/// the drain's. Method: a call, a recycle, a death of the old worker, a new call, a BYE.
#[test]
fn calls_outlast_a_worker_that_dies_while_it_drains() {
    let node = Node::start(|_| {});
    let mut caller = call_worker(&node, "9197", Wish::default());
    let old = worker_pid(&node);
    assert!(node.client(&["recycle"]).status.success());
    signal("-KILL", &old.to_string());
    let workers = || node.status()["workers"].as_array().expect("a list").clone();
    wait_for("a worker that drains what the dead one had", LIMIT, || {
        let drains =
            |w: &&serde_json::Value| w["state"] == "draining" && w["pid"] != old && w["calls_active"] == 1;
        workers().iter().find(drains).map(|_| ())
    });
    thread::sleep(Duration::from_millis(500));
    let packets = caller.stream().expect("plain");
    assert_one_stream(&packets);
    crate::common::peers::call(&node, "9196", &["--duration", "1"]).assert_complete();
    caller.reconnect(Connection::open(node.ports.worker_a()));
    caller.hang_up();
    wait_for("the drained worker's end", LIMIT, || (workers().len() == 1).then_some(()));
}
