//! A message left by an ordinary caller is the speech the caller sent.

use std::time::Duration;

use crate::common::node::Node;
use crate::common::{audio, peers};

const LEAVE: [&str; 3] = ["--play-after-beep", "--hangup-after-play", "0"];

/// Calls with `options`, speaks for 10 s after the beep, hangs up; the message must be that speech.
fn leave_and_compare(node: &Node, to: &str, options: &[&str], nth: usize) {
    let speech = audio::speech_file();
    let play = ["--play", speech.to_str().expect("a plain path"), "--duration", "40"];
    let report = peers::call(node, to, &[&play[..], &LEAVE[..], options].concat());
    report.assert_complete();
    let redirects = report.call(0)["redirects"].as_array().expect("a list").len();
    assert_eq!(redirects, 2, "router to service, service to worker: {:#}", report.0);
    let messages = node.wait_messages("1001", nth, Duration::from_secs(5));
    let message = messages.last().expect("there is one");
    let sound = node.export(&message.id);
    assert_eq!(audio::ms(sound.len()), message.duration_ms);
    assert_eq!(message.caller, "voxperf");
    assert_eq!(message.call_id, report.call(0)["call_id"]);
    audio::assert_same_speech(&audio::speech(), &sound);
}

/// Goal: a message is the caller's speech, over TCP and UDP, µ-law and A-law, with the offer in the
/// INVITE or in the 200.
/// Method: voxperf speaks after the beep; the exported WAV is compared with the G.711-coded source.
#[test]
fn a_message_is_the_speech_the_caller_sent() {
    let node = Node::with_short_greeting(|_| {});
    leave_and_compare(&node, "1001", &[], 1);
    leave_and_compare(&node, "1001;transport=udp", &["--codec", "pcma"], 2);
    leave_and_compare(&node, "1001", &["--no-offer"], 3);
}

/// Goal: a diverted call lands in the mailbox of who was called first (RFC 5806), with the reason.
/// Method: INVITE to 7777 with a Diversion of 1002.
#[test]
fn a_diverted_call_lands_in_the_diverting_mailbox() {
    let node = Node::with_short_greeting(|_| {});
    let speech = audio::speech_file();
    let play = ["--play", speech.to_str().expect("a plain path"), "--duration", "6", "--play-after-beep"];
    let header = ["--header", "Diversion: <sip:1002@127.0.0.1>;reason=no-answer"];
    peers::call(&node, "7777", &[&play[..], &header].concat()).assert_complete();
    let messages = node.wait_messages("1002", 1, Duration::from_secs(5));
    assert_eq!(messages[0].diversion_reason, "no-answer");
    assert!(node.messages("1001").is_empty());
}

/// Goal: a caller who says nothing leaves no message.
/// Method: silence for 3 s after the beep, then hang up.
#[test]
fn silence_leaves_no_message() {
    let node = Node::with_short_greeting(|_| {});
    peers::call(&node, "1001", &["--duration", "4"]).assert_complete();
    std::thread::sleep(Duration::from_secs(1));
    assert!(node.messages("1001").is_empty());
}

/// Goal: a restart keeps what was left.
/// Method: leave, stop, start, list and export again.
#[test]
fn messages_survive_a_restart() {
    let mut node = Node::with_short_greeting(|_| {});
    leave_and_compare(&node, "1001", &[], 1);
    let before = node.messages("1001");
    node.stop();
    node.start_again();
    let after = node.messages("1001");
    assert_eq!(before[0].id, after[0].id);
    audio::assert_same_speech(&audio::speech(), &node.export(&after[0].id));
}
