//! A mailbox's own greeting, as an operator sets it and callers hear it.

use std::path::Path;

use crate::common::node::Node;
use crate::common::{audio, peers};

/// Calls 1001 and stays silent; gives what was heard and when the beep ended, in samples.
fn listen(node: &Node, name: &str, seconds: &str) -> (Vec<i16>, usize) {
    let heard = node.file(name);
    let path = heard.to_str().expect("a plain path");
    let report = peers::call(node, "1001", &["--duration", seconds, "--record", path]);
    report.assert_complete();
    let beeps = report.call(0)["beeps_ms"].as_array().expect("a list").clone();
    assert_eq!(beeps.len(), 1, "{:#}", report.0);
    let beep_end = usize::try_from(beeps[0].as_u64().expect("a time")).expect("a time") * 8;
    (audio::read(&heard), beep_end)
}

/// A second of tone that grows louder: a steady one is the same again a few periods later.
fn swelling_tone(frequency: f64) -> Vec<i16> {
    let steady = audio::tone(frequency, 8000.0, 8000);
    let swell = |(n, sample): (i32, &i16)| i16::try_from(i32::from(*sample) * n / 8000);
    (0..).zip(&steady).map(|pair| swell(pair).expect("it is softer than the steady one")).collect()
}

/// What was heard must be `greeting`, then a beep of 0.4 s, within 0.3 s: a call does not start at
/// the same sample for both sides.
fn assert_greets_with(greeting: &[i16], (heard, beep_end): &(Vec<i16>, usize)) {
    let found = audio::best_match(&audio::through_ulaw(greeting), heard, 4_000);
    assert!(found.correlation >= 0.98 && found.compared + 800 >= greeting.len(), "{found:?}");
    let expected = greeting.len() + 3_200;
    assert!(beep_end.abs_diff(expected) <= 2_400, "the beep ended at {beep_end}, not {expected}");
}

/// Whether the listing and the mailbox itself say that 1001 has its own greeting.
fn has_greeting(node: &Node) -> bool {
    let shown = node.json(&["mailbox", "show", "1001"])["greeting"].clone();
    let list = node.json(&["mailbox", "list"]);
    let boxes = list.as_array().expect("a list of mailboxes");
    let listed = boxes.iter().find(|mailbox| mailbox["number"] == "1001").expect("it is listed");
    assert_eq!(listed["greeting"], shown);
    shown.as_bool().expect("yes or no")
}

/// Goal: the next caller hears the greeting that was set, or the one that replaced it, or the built-in
/// one after its removal; then the beep. The file itself is not needed after setting.
/// Method: tones of 1 s, two of them one right after the other; voxperf records what it hears.
#[test]
fn callers_hear_the_greeting_that_was_set_last() {
    let node = Node::start(|_| {});
    assert!(!has_greeting(&node));
    let file = node.file("own.wav");
    let set = |tone: &[i16]| {
        audio::write(&file, tone);
        let set = node.json(&["mailbox", "greeting", "1001", file.to_str().expect("a plain path")]);
        assert_eq!((&set["mailbox"]["greeting"], &set["duration_ms"]), (&true.into(), &1000.into()));
        std::fs::remove_file(&file).expect("it is there");
    };
    let [low, high] = [440.0, 620.0].map(swelling_tone);
    set(&low);
    assert!(has_greeting(&node));
    assert_greets_with(&low, &listen(&node, "low.wav", "3"));
    set(&low);
    set(&high);
    assert_greets_with(&high, &listen(&node, "high.wav", "3"));

    let removed = node.json(&["mailbox", "greeting", "1001", "--remove"]);
    assert_eq!(removed["mailbox"]["greeting"], false);
    assert!(!has_greeting(&node));
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/um/prompts/en/greeting.wav");
    assert_greets_with(&audio::read(&builtin), &listen(&node, "builtin.wav", "12"));
}

/// Goal: what is no greeting is refused by name and reason, and so is a mailbox that is none; the old
/// greeting stays. Method: such files and a wrong number; exit status, message, listing.
#[test]
fn an_unusable_greeting_is_refused_and_the_old_one_stays() {
    let node = Node::with_short_greeting(|_| {});
    let good = node.file("good.wav");
    audio::write(&good, &audio::tone(440.0, 8000.0, 8000));
    let bad = node.file("bad.wav");
    std::fs::write(&bad, b"no audio").expect("it is written");
    for (number, file, what) in [
        ("1001", &bad, "not a WAV file"),
        ("1001", &node.file("none.wav"), "cannot read"),
        ("9", &good, "no mailbox 9"),
    ] {
        let file = file.to_str().expect("a plain path");
        let output = node.client(&["mailbox", "greeting", number, file]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(what) && (number == "9" || told.contains(file)), "{told}");
    }
    assert!(has_greeting(&node));
}
