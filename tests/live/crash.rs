//! A crash in the middle of recordings loses at most their last second.

use std::collections::HashSet;
use std::time::Duration;

use crate::common::caller::{Caller, Wish};
use crate::common::node::{Message, Node};
use crate::common::raw::Connection;
use crate::common::{audio, peers, unix_ms, wait_for};

const CALLS: usize = 20;
/// Callers in threads of the test.
const SPEAKERS: usize = 5;
/// What a caller says while greeting and beep play, samples.
const GREETING: usize = 7_200;

/// Starts 20 callers who speak, waits until all have been recorded for some seconds, kills by
/// `kill`, and gives the moment of death in Unix milliseconds.
fn crash_in_recordings(node: &mut Node, kill: impl FnOnce(&mut Node)) -> u64 {
    let speech = audio::speech_file();
    let uri = node.uri("1001", "tcp");
    let callers = peers::voxperf_start(&[
        "call",
        "--to",
        &uri,
        "--calls",
        &CALLS.to_string(),
        "--rate",
        "20",
        "--play",
        speech.to_str().expect("a plain path"),
        "--play-after-beep",
        "--duration",
        "30",
    ]);
    wait_for("20 calls", Duration::from_secs(20), || (node.calls() == CALLS).then_some(()));
    // Greeting and beep take 0.9 s; then some 5 s of each speech are heard.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(node.calls(), CALLS, "all still record");
    assert!(node.messages("1001").is_empty(), "a recording is no message before it is complete");
    let died_ms = unix_ms();
    kill(node);
    drop(callers);
    died_ms
}

/// Every recording is a message, once, whole but for its last second, and plays.
fn assert_nothing_lost(node: &Node, died_ms: u64) {
    let messages = node.wait_messages("1001", CALLS, Duration::from_secs(20));
    let callers: HashSet<&str> = messages.iter().map(|message| message.call_id.as_str()).collect();
    assert_eq!(callers.len(), CALLS, "one message a call");
    let source = audio::through_ulaw(&audio::speech());
    for message in &messages {
        assert_whole(node, message, died_ms, &source);
    }
    let spool: Vec<_> = std::fs::read_dir(node.data().join("spool"))
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    let left: Vec<_> = spool.iter().filter(|name| name.to_string_lossy().contains(".wav")).collect();
    assert!(left.is_empty(), "recovered recordings leave the spool: {left:?}");
}

fn assert_whole(node: &Node, message: &Message, died_ms: u64, source: &[i16]) {
    let recorded_ms = died_ms - message.started_ms;
    // 1 s may be missing; 200 ms for the clocks' reading and the block under way.
    assert!(message.duration_ms + 1200 >= recorded_ms, "{recorded_ms} ms were spoken: {message:?}");
    assert!(message.duration_ms <= recorded_ms + 200, "{recorded_ms} ms were spoken: {message:?}");
    let sound = node.export(&message.id);
    assert_eq!(audio::ms(sound.len()), message.duration_ms, "{message:?}");
    let found = audio::best_match(&source[..sound.len().min(source.len())], &sound, 1600);
    assert!(found.correlation >= 0.95, "{message:?}: {found:?}");
}

/// Callers who speak on over the death of the worker and then hang up: each message has what was said
/// before, in the gap and after it.
fn recordings_outlast_their_worker(mut node: Node) {
    let speakers: Vec<_> = (0..SPEAKERS).map(|_| speaker(node.ports.worker_a())).collect();
    wait_for("all calls", Duration::from_secs(20), || (node.calls() == SPEAKERS).then_some(()));
    std::thread::sleep(Duration::from_secs(4));
    let old = node.kill_worker();
    wait_for("a new worker", Duration::from_secs(15), || node.worker_pid().filter(|&pid| pid != old));
    assert_eq!(node.calls(), SPEAKERS, "all go on");
    for speaker in speakers {
        speaker.join().expect("the caller's thread");
    }
    let messages = node.wait_messages("1001", SPEAKERS, Duration::from_secs(30));
    let callers: HashSet<&str> = messages.iter().map(|message| message.call_id.as_str()).collect();
    assert_eq!(callers.len(), SPEAKERS, "one message a call");
    let source = audio::through_ulaw(&audio::speech());
    for message in &messages {
        // Greeting and beep take 0.9 s.
        assert!((8_500..9_500).contains(&message.duration_ms), "{message:?}");
        let sound = node.export(&message.id);
        for part in [0..1, 6..7].map(|seconds| 8_000 * seconds.start..8_000 * seconds.end) {
            let spoken = part.start + GREETING..part.end + GREETING;
            let found = audio::best_match(&source[spoken], &sound[part.clone()], 1_600);
            assert!(found.correlation >= 0.9, "{part:?} of {message:?}: {found:?}");
        }
    }
    assert_eq!(node.worker_counter("calls_resumed"), SPEAKERS as u64);
    // It takes calls again, and another restart adds nothing.
    peers::call(&node, "9196", &["--duration", "1"]).assert_complete();
    node.stop();
    node.start_again();
    assert_eq!(node.messages("1001").len(), SPEAKERS);
}

/// Speaks for ten seconds and hangs up over another connection: the first is gone with its worker.
fn speaker(port: u16) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let uri = format!("sip:1001@127.0.0.1:{port};transport=tcp");
        let called = Caller::call(Connection::open(port), &uri, Wish::default());
        let mut caller = called.unwrap_or_else(|response| panic!("{}", response.head));
        caller.speak(&audio::speech()[..10 * 8_000], |_, _, _| {});
        caller.reconnect(Connection::open(port));
        caller.hang_up();
    })
}

/// Goal: recordings outlast the worker that is killed with `kill -9` (acceptance 5).
/// Method: callers in the test's own hands; both ends of every message beside what was said.
#[test]
fn recordings_outlast_a_killed_worker() {
    let _alone = crate::common::heavy();
    recordings_outlast_their_worker(Node::with_short_greeting(|_| {}));
}

/// Goal: the same where io_uring is forbidden and files are written by blocking calls.
/// Method: as above, behind a filter.
#[test]
fn recordings_outlast_a_killed_worker_without_io_uring() {
    let _alone = crate::common::heavy();
    recordings_outlast_their_worker(Node::start_without_io_uring(|_| {}).greeting_shortly());
}

/// Goal: the same for the supervisor: the worker goes with it, a new start finds every message.
/// Method: as above; `serve` again over the same folder.
#[test]
fn a_killed_supervisor_loses_at_most_the_last_second() {
    let _alone = crate::common::heavy();
    let mut node = Node::with_short_greeting(|_| {});
    let died_ms = crash_in_recordings(&mut node, Node::kill_supervisor);
    node.start_again();
    assert_nothing_lost(&node, died_ms);
    peers::call(&node, "9196", &["--duration", "1"]).assert_complete();
}
