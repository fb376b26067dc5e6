//! Keys end and review a recording; hold and a new port keep the call.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::node::Node;
use crate::common::peers::Report;
use crate::common::{audio, peers};

/// The first `seconds` of the speech as a file.
fn short_speech(node: &Node, seconds: usize) -> (PathBuf, Vec<i16>) {
    let samples = audio::speech()[..seconds * 8000].to_vec();
    let path = node.file("short-speech.wav");
    audio::write(&path, &samples);
    (path, samples)
}

/// After 1 the node says goodbye and ends the call.
fn assert_far_side_hung_up(report: &Report) {
    let ended = report.call(0)["ended"].as_str().unwrap_or_default();
    assert!(ended.starts_with("far side hung up"), "{:#}", report.0);
}

/// `#` ends the message, 2 plays it, 3 takes another, `#` and 1 send that.
pub(crate) fn review_by_keys(node: &Node, mode: &str) {
    let (path, speech) = short_speech(node, 4);
    let heard = node.file("heard.wav");
    // The first message lasts 4.3 s; it is heard again from 6 s to about 10.5 s.
    let keys = "beep+4.3:#,beep+6:2,beep+12:3,beep2+4.3:#,beep2+6:1";
    let report = peers::call(
        node,
        "1001",
        &[
            "--play",
            path.to_str().expect("a plain path"),
            "--play-after-beep",
            "--dtmf",
            keys,
            "--dtmf-mode",
            mode,
            "--duration",
            "45",
            "--record",
            heard.to_str().expect("a plain path"),
        ],
    );
    report.assert_complete();
    assert_far_side_hung_up(&report);
    assert_eq!(report.number(0, "played"), 2, "two takes: {:#}", report.0);
    let beeps: Vec<u64> =
        report.call(0)["beeps_ms"].as_array().expect("a list").iter().filter_map(|b| b.as_u64()).collect();
    assert_eq!(beeps.len(), 2, "{:#}", report.0);
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    let duration = messages[0].duration_ms;
    assert!((4000..=4600).contains(&duration), "{mode}: {duration} ms");
    let found = audio::best_match(&audio::through_ulaw(&speech), &node.export(&messages[0].id), 2400);
    assert!(found.correlation >= 0.95, "{mode}: {found:?}");
    assert_heard_again(&audio::read(&heard), &speech, beeps[0]);
}

/// What the caller heard between 6 s and 12 s after the first beep contains the speech.
fn assert_heard_again(heard: &[i16], speech: &[i16], beep_ms: u64) {
    let start = usize::try_from(beep_ms + 5500).expect("a time") * 8;
    let window = &heard[start.min(heard.len())..heard.len().min(start + 8 * 8000)];
    let found = audio::best_match(&audio::through_ulaw(speech), window, 24_000);
    assert!(found.correlation >= 0.9, "the caller did not hear the message again: {found:?}");
}

/// Goal: `#` ends a recording, 2 plays it back, 3 records anew, 1 sends: by RFC 4733 events.
/// Method: a scripted call; one message of the second take's length, the replay in what was heard.
#[test]
fn keys_by_telephone_event_review_the_recording() {
    let node = Node::with_short_greeting(|_| {});
    review_by_keys(&node, "rfc4733");
}

/// Goal: the same with tones in the sound, without telephone-event in the offer.
/// Method: as above, `--no-pt101` implied by the in-band mode being all there is.
#[test]
fn keys_by_tones_review_the_recording() {
    let node = Node::with_short_greeting(|_| {});
    review_by_keys(&node, "inband");
}

/// Speaks 10 s after the beep with something done in between; gives report and recording.
fn speak_with(node: &Node, options: &[&str]) -> (Report, Vec<i16>) {
    let file = audio::speech_file();
    let play = ["--play", file.to_str().expect("a plain path"), "--play-after-beep"];
    let end = ["--hangup-after-play", "0", "--duration", "45"];
    let before = node.messages("1001").len();
    let report = peers::call(node, "1001", &[&play[..], &end, options].concat());
    report.assert_complete();
    let messages = node.wait_messages("1001", before + 1, Duration::from_secs(5));
    (report, node.export(&messages[before].id))
}

/// Goal: hold and resume by re-INVITE keep the call and the message, in each form of hold.
/// Method: 3 s into the speech hold for 2 s; both halves of the speech are in the recording.
#[test]
fn hold_and_resume_keep_the_call() {
    let node = Node::with_short_greeting(|_| {});
    let speech = audio::through_ulaw(&audio::speech());
    for how in ["sendonly", "inactive", "null"] {
        let hold = format!("beep+3:2:{how}");
        let (report, sound) = speak_with(&node, &["--hold", &hold]);
        assert_eq!(report.call(0)["changes"].to_string(), "[200,200]", "{how}: {:#}", report.0);
        let first = audio::best_match(&speech[..20_000], &sound, 2400);
        assert!(first.correlation >= 0.95, "{how}, before the hold: {first:?}");
        let second = audio::best_match(&speech[40_000..], &sound[sound.len().saturating_sub(42_000)..], 6000);
        assert!(second.correlation >= 0.95, "{how}, after the hold: {second:?}");
    }
}

/// Goal: the call goes on when the caller moves to another port by re-INVITE.
/// Method: a port change 3 s into the speech; the whole speech is in the recording.
#[test]
fn a_new_port_keeps_the_call() {
    let node = Node::with_short_greeting(|_| {});
    let (report, sound) = speak_with(&node, &["--port-change", "beep+3"]);
    assert_eq!(report.call(0)["changes"].to_string(), "[200]", "{:#}", report.0);
    audio::assert_same_speech(&audio::speech(), &sound);
}

/// Goal: a caller without telephone-event can use keys too.
/// Method: no payload type 101 in the offer, `#` by tones, then hang up: the message is kept.
#[test]
fn keys_work_without_telephone_event() {
    let node = Node::with_short_greeting(|_| {});
    let (path, _) = short_speech(&node, 3);
    let play = ["--play", path.to_str().expect("a plain path"), "--play-after-beep"];
    let keys = ["--no-pt101", "--dtmf", "beep+3.2:#,beep+5:1", "--duration", "20"];
    let report = peers::call(&node, "1001", &[&play[..], &keys].concat());
    report.assert_complete();
    assert_far_side_hung_up(&report);
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    assert!((2900..=3500).contains(&messages[0].duration_ms), "{messages:?}");
}
