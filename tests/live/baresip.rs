//! A real phone leaves a message: Debian's baresip, over TCP and UDP.

use std::time::Duration;

use crate::common::node::Node;
use crate::common::phone::{Phone, Special};
use crate::common::{audio, peers};

/// Lets the phone call 1001, speak, and hang up when it has spoken.
fn leave_message(transport: &str) {
    if !peers::has_peer("baresip") {
        return;
    }
    let node = Node::with_short_greeting(|_| {});
    let mut phone = Phone::start(&node, &Special::default());
    let uri = match transport {
        "tcp" => node.uri("1001", "tcp"),
        _ => format!("sip:1001@127.0.0.1:{}", node.ports.router()),
    };
    phone.speak(&uri);
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    assert_eq!(messages[0].caller, "bob");
    audio::assert_same_speech(&audio::speech(), &node.export(&messages[0].id));
}

/// Goal: baresip calls over TCP, follows both redirects, and its speech is the message (acceptance 2).
/// Method: it plays a WAV, silent until the beep is over; the export is compared. baresip 1.0.0
/// follows a 302 by itself (`sip_autoredirect` came later).
#[test]
fn baresip_leaves_its_speech_over_tcp() {
    leave_message("tcp");
}

/// Goal: the same over UDP, as the laptop configuration allows.
/// Method: as above, a URI without transport.
#[test]
fn baresip_leaves_its_speech_over_udp() {
    leave_message("udp");
}
