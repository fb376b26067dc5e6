//! Where io_uring is forbidden the node serves all the same, by epoll, and says why.

use std::time::Duration;

use crate::common::node::Node;
use crate::common::{audio, peers};

/// A node that media reaches by epoll because the configuration says so.
fn on_epoll() -> Node {
    let node = Node::with_short_greeting(|config| {
        config["worker"].as_table_mut().expect("a table").insert("io_backend".into(), "epoll".into());
    });
    let shard = &node.status()["workers"][0]["shards"][0];
    assert_eq!(shard["backend"], "epoll");
    assert!(shard["backend_reason"].is_null(), "as configured: {shard:#}");
    node
}

/// Goal: with io_uring forbidden the node starts, and log, start-up table, status and check say that
/// epoll serves and why; a demand for io_uring is refused with the reason.
/// Method: a seccomp filter that refuses the system calls to the node and to its clients.
#[test]
fn a_node_without_io_uring_says_why_it_is_on_epoll() {
    let node = Node::start_without_io_uring(|_| {});
    let shard = node.status()["workers"][0]["shards"][0].clone();
    assert_eq!(shard["backend"], "epoll");
    let reason = shard["backend_reason"].as_str().expect("a reason");
    assert!(reason.contains("seccomp"), "{reason}");
    node.wait_log(&["WARN", "served by epoll, not io_uring", "seccomp"]);
    node.wait_log(&["Media is not on io_uring", "seccomp"]);
    let text = String::from_utf8(node.client(&["status"]).stdout).expect("text");
    assert!(text.contains(&format!("not on io_uring: {reason}")), "{text}");
    // What check says is the same, and no error.
    let check = node.json(&["check"]);
    let problems = check["problems"].as_array().expect("a list");
    let ring = problems.iter().find(|problem| problem["where"] == "io_uring").expect("it is told");
    assert_eq!(ring["level"], "warning");
    assert!(ring["what"].as_str().is_some_and(|what| what.contains("epoll serves instead")), "{ring:#}");
    let other = node.file("other");
    let folder = other.to_str().expect("a plain path");
    let refused = node.client(&["serve", "--io-backend", "uring", "--data", folder]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("seccomp"), "{told}");
    assert!(!other.exists(), "nothing was made");
}

/// Goal: a message is taken whole without io_uring: SIP, media, files. Method: speak after the beep
/// to a node behind the filter; the export is the speech.
#[test]
fn a_message_is_taken_without_io_uring() {
    let node = Node::start_without_io_uring(|_| {}).greeting_shortly();
    let speech = audio::speech_file();
    let play = ["--play", speech.to_str().expect("a plain path"), "--play-after-beep"];
    let end = ["--hangup-after-play", "0", "--duration", "40"];
    peers::call(&node, "1001", &[&play[..], &end].concat()).assert_complete();
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    audio::assert_same_speech(&audio::speech(), &node.export(&messages[0].id));
}

/// Goal: a bad network shortens no message on epoll either, as in `impairment`. Method: the same
/// disorder and duplicates.
#[test]
fn disorder_and_duplicates_harm_nothing_on_epoll() {
    crate::impairment::assert_disorder_harms_nothing(&on_epoll());
}

/// Goal: keys end and review a recording on epoll, as in `dtmf_hold`. Method: the same call.
#[test]
fn keys_review_the_recording_on_epoll() {
    crate::dtmf_hold::review_by_keys(&on_epoll(), "rfc4733");
}
