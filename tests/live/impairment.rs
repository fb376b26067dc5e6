//! A bad network shortens no message.

use std::time::Duration;

use crate::common::node::Node;
use crate::common::{audio, peers};

/// Goal: with 5 % of the packets lost, 5 % reordered and 5 % doubled the recording has the right
/// duration and is still the same speech.
/// Method: voxperf harms its own RTP by seed; three seeds; the harm is checked in its report.
#[test]
fn loss_disorder_and_duplicates_leave_the_duration_right() {
    let node = Node::with_short_greeting(|_| {});
    let speech = audio::speech();
    let file = audio::speech_file();
    for (index, seed) in ["1", "2", "3"].into_iter().enumerate() {
        let harm = ["--loss", "0.05", "--reorder", "0.05", "--duplicate", "0.05", "--seed", seed];
        let play = ["--play", file.to_str().expect("a plain path"), "--play-after-beep"];
        let end = ["--hangup-after-play", "0", "--duration", "40"];
        let report = peers::call(&node, "1001", &[&harm[..], &play, &end].concat());
        report.assert_complete();
        for kind in ["tx_lost", "tx_reordered", "tx_duplicated"] {
            assert!(report.number(0, kind) >= 10, "{kind} in {:#}", report.0);
        }
        let messages = node.wait_messages("1001", index + 1, Duration::from_secs(5));
        let sound = node.export(&messages[index].id);
        let apart = sound.len().abs_diff(speech.len());
        assert!(apart <= 800, "seed {seed}: {} ms apart", apart / 8);
        // A twentieth of the sound is guessed by concealment: 0.98 is out of reach, 0.85 is not.
        let found = audio::best_match(&audio::through_ulaw(&speech), &sound, 2400);
        assert!(found.correlation >= 0.85, "seed {seed}: {found:?}");
    }
}

/// Goal: the same harm one kind at a time; disorder and duplicates alone harm nothing.
/// Method: reorder and duplicate without loss: the recording is the source.
#[test]
fn disorder_and_duplicates_alone_harm_nothing() {
    assert_disorder_harms_nothing(&Node::with_short_greeting(|_| {}));
}

pub(crate) fn assert_disorder_harms_nothing(node: &Node) {
    let file = audio::speech_file();
    let play = ["--play", file.to_str().expect("a plain path"), "--play-after-beep"];
    let end = ["--hangup-after-play", "0.1", "--duration", "40"];
    let harm = ["--reorder", "0.05", "--duplicate", "0.05"];
    peers::call(node, "1001", &[&harm[..], &play, &end].concat()).assert_complete();
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    let sound = node.export(&messages[0].id);
    let found = audio::best_match(&audio::through_ulaw(&audio::speech()), &sound, 2400);
    assert!(found.correlation >= 0.95, "{found:?}");
}
