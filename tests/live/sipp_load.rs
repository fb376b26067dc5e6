//! SIPp leaves 200 voice mails at 20 calls a second, following both redirects itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::node::Node;
use crate::common::{audio, peers};

/// Greeting (0.5 s), beep (0.4 s) and 5 s of speech.
const CALL_MS: &str = "5900";
const CALLS: usize = 200;

/// Goal: 200 of 200 calls complete and 200 messages are listed (acceptance 1).
/// Method: Debian's SIPp over TCP, a connection a call, 20 calls a second, a µ-law stream in each.
/// SIPp 3.6 sends every stream from one UDP port; each goes to the port its own 200 named.
#[test]
fn sipp_leaves_200_messages_at_20_calls_a_second() {
    if !peers::has_peer("sipp") {
        return;
    }
    let _alone = crate::common::heavy();
    let node = Node::start_for_load().greeting_shortly();
    let speech: Vec<u8> = audio::speech().iter().map(|&sample| audio::ulaw_encode(sample)).collect();
    std::fs::write(node.file("speech.ul"), speech).expect("the disk has room");
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sipp/redirect.xml");
    let output = Command::new("sipp")
        .arg(format!("127.0.0.1:{}", node.ports.router()))
        .arg("-sf")
        .arg(scenario)
        .args(["-s", "1001", "-t", "tn", "-i", "127.0.0.1", "-mi", "127.0.0.1", "-max_socket", "2000"])
        .args(["-r", "20", "-m", &CALLS.to_string(), "-l", "400", "-d", CALL_MS, "-nostdin"])
        .args(["-mp", &node.ports.peer_media().to_string()])
        .args(["-timeout", "90s", "-timeout_error", "-trace_err", "-error_file", "sipp-errors.log"])
        .current_dir(node.data().parent().expect("the node's folder"))
        .output()
        .expect("sipp runs");
    let errors = std::fs::read_to_string(node.file("sipp-errors.log")).unwrap_or_default();
    let screen = String::from_utf8_lossy(&output.stdout);
    let tail: String =
        screen.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(output.status.success(), "sipp: {}\n{tail}\n{errors}", output.status);
    let messages = node.wait_messages("1001", CALLS, Duration::from_secs(10));
    for message in &messages {
        assert!((4500..=5500).contains(&message.duration_ms), "{message:?}");
    }
    let mut callers: Vec<&str> = messages.iter().map(|message| message.caller.as_str()).collect();
    callers.sort_unstable();
    callers.dedup();
    assert_eq!(callers.len(), CALLS, "every caller left one message");
    // The speech is in them: the stream began at the answer, so the recording starts 0.9 s into it.
    let source = audio::through_ulaw(&audio::speech());
    let sound = node.export(&messages[CALLS / 2].id);
    let found = audio::best_match(&source[12_000..40_000], &sound, 8000);
    assert!(found.correlation >= 0.95, "{found:?}");
}
