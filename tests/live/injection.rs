//! Nobody can speak into somebody else's call.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use voxring::base::config::SrtpSuite;

use crate::common::caller::{Caller, Numbers, PACKET_SAMPLES, Pace, Wish};
use crate::common::node::Node;
use crate::common::pki::{Paper, Pki, set};
use crate::common::{audio, now, raw, secure};

/// What strangers say: loud, and at a frequency that is easy to find.
const TONE_HZ: f64 = 1000.0;
/// One packet of it in 100 ms of a recording would show as a fifth of this.
const TONE_AMPLITUDE: f64 = 8000.0;
/// Packets before the caller says its first: greeting and beep take 0.9 s, the rest is recorded.
const PACKETS_BEFORE: u16 = 90;

fn tone() -> Vec<i16> {
    audio::tone(TONE_HZ, TONE_AMPLITUDE, u32::try_from(PACKET_SAMPLES).expect("a packet"))
}

/// Those who send to a port that is not theirs.
struct Strangers {
    sockets: Vec<UdpSocket>,
    sent: u64,
}

impl Strangers {
    fn at(addresses: &[Ipv4Addr]) -> Self {
        let bind = |&ip: &Ipv4Addr| UdpSocket::bind((ip, 0)).expect("the loopback has all of 127/8");
        Self { sockets: addresses.iter().map(bind).collect(), sent: 0 }
    }

    /// Each sends a packet with these numbers, and one with numbers of its own.
    fn send(&mut self, media: SocketAddr, numbers: Numbers) {
        for (socket, ssrc) in self.sockets.iter().zip(1..) {
            for numbers in [numbers, Numbers { ssrc, ..numbers }] {
                socket.send_to(&numbers.packet(&tone()), media).expect("the loopback takes it");
                self.sent += 1;
            }
        }
    }

    /// Nobody talks to them either.
    fn assert_heard_nothing(&self) {
        for socket in &self.sockets {
            socket.set_nonblocking(true).expect("a socket option");
            let mut buffer = [0; 2048];
            assert!(socket.recv(&mut buffer).is_err(), "{socket:?} was sent something");
        }
    }
}

/// Waits until the call's counters are these.
fn wait_stats(node: &Node, caller: &Caller, wanted: &[(&str, u64)]) {
    let mut last = Value::Null;
    let deadline = now() + Duration::from_secs(5);
    while now() < deadline {
        last = caller.stats(node);
        if wanted.iter().all(|&(name, count)| last[name] == count) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{wanted:?} wanted, counted {last:#}");
}

/// Asserts that the newest message is the speech, whole, and that nothing of the tone is in it:
/// neither before, nor after, nor under the speech.
fn assert_only_speech(node: &Node, nth: usize) {
    let messages = node.wait_messages("1001", nth, Duration::from_secs(5));
    let recording = node.export(&messages.last().expect("there is one").id);
    let speech = audio::through_ulaw(&audio::speech());
    let found = audio::best_match(&speech, &recording, 24_000);
    assert!(found.correlation >= 0.98, "{found:?}");
    assert!(found.compared + 800 >= speech.len(), "{found:?}");
    let start = usize::try_from(found.lag).expect("the strangers began before the speech");
    let end = start + found.compared;
    for silence in [&recording[..start], &recording[end..]] {
        let tone = audio::loudest_tone(silence, TONE_HZ);
        assert!(tone < 100.0, "beside the speech is a tone of amplitude {tone}");
    }
    let under: Vec<i16> =
        recording[start..end].iter().zip(&speech).map(|(heard, said)| heard.saturating_sub(*said)).collect();
    let tone = audio::loudest_tone(&under, TONE_HZ);
    assert!(tone < TONE_AMPLITUDE / 10.0, "under the speech is a tone of amplitude {tone}");
}

/// A call whose port is under fire before its first packet and until its end; `before` and `after`
/// say from where.
fn speak_under_fire(node: &Node, wish: Wish, before: &[Ipv4Addr], after: &[Ipv4Addr], nth: usize) {
    let port = node.ports.worker_a();
    let uri = format!("sip:1001@127.0.0.1:{port}");
    let connection = raw::Connection::open(port);
    let mut caller = Caller::call(connection, &uri, wish).expect("the call is answered");
    let mut early = Strangers::at(before);
    let mut pace = Pace::start();
    let mut guess = caller.numbers;
    for _ in 0..PACKETS_BEFORE {
        pace.wait();
        early.send(caller.media, guess);
        guess = guess.next();
    }
    let mut late = Strangers::at(after);
    let (media, mut first) = (caller.media, true);
    caller.speak(&audio::speech(), |_, numbers, _| {
        // The caller latches with its first packet; from then on even its own address is a stranger's.
        if !std::mem::take(&mut first) {
            late.send(media, numbers);
        }
    });
    let packets = u64::try_from(audio::speech().len() / PACKET_SAMPLES).expect("a count");
    wait_stats(
        node,
        &caller,
        &[("source_filtered", early.sent + late.sent), ("rx_packets", packets), ("duplicate", 0)],
    );
    early.assert_heard_nothing();
    late.assert_heard_nothing();
    caller.hang_up();
    assert_only_speech(node, nth);
}

const CALLERS_OWN: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Goal: packets from another port or address never get into a recording, before or after the
/// caller's first, not even with its SSRC and the right sequence number (acceptance 8).
/// Method: strangers on the caller's own address and on 127.0.0.2 send a loud tone, each packet just
/// before the caller's; the message is the speech without tone, the counter has every packet.
#[test]
fn a_strangers_sound_is_in_no_recording() {
    let node = Node::with_short_greeting(|_| {});
    let both = [CALLERS_OWN, ANOTHER];
    speak_under_fire(&node, Wish::default(), &both, &both, 1);
}

/// Goal: the same where callers may sit behind a NAT: the first packet latches, but only from the
/// address that the signalling comes from; afterwards nobody else does.
/// Method: the SDP names a port that nothing comes from; before latching the stranger is 127.0.0.2.
#[test]
fn behind_a_nat_a_strangers_sound_is_in_no_recording() {
    let node = Node::with_short_greeting(|config| set(config, "rtp", "nat", true));
    let wish = Wish { behind_nat: true, ..Wish::default() };
    speak_under_fire(&node, wish, &[ANOTHER], &[CALLERS_OWN, ANOTHER], 1);
}

/// Goal: in an SRTP call forged and replayed packets from the right address and port are dropped
/// and counted, and the message is whole (acceptance 8).
/// Method: each of the caller's packets goes after four others from its own socket: the tone in
/// clear with its numbers, the tone with a made-up tag, itself with one bit turned, and the packet
/// before once more.
#[test]
fn forged_and_replayed_packets_are_dropped_and_counted() {
    let pki = Pki::new();
    let node = Node::with_short_greeting(|config| pki.secure(config));
    for (suite, nth) in [(SrtpSuite::AesCm128HmacSha1_80, 1), (SrtpSuite::AeadAes256Gcm, 2)] {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, node.ports.worker_a_tls()));
        let (connection, _) = secure::open(address, &pki.client(Paper::Good)).expect("the gateway is let in");
        let uri = format!("sip:1001@{address};transport=tls");
        let wish = Wish { suite: Some(suite), ..Wish::default() };
        let mut caller = Caller::call(connection, &uri, wish).expect("the call is answered");
        // The beep ends 0.9 s after the answer.
        std::thread::sleep(Duration::from_millis(950));
        let (mut forged, mut replayed, mut last) = (0, 0, None::<Vec<u8>>);
        caller.speak(&audio::speech(), |caller, numbers, packet| {
            let plain = numbers.packet(&tone());
            let mut tagged = plain.clone();
            tagged.resize(packet.len(), 0x5A);
            let mut turned = packet.to_vec();
            turned[40] ^= 1;
            for forgery in [plain, tagged, turned] {
                caller.send(&forgery);
                forged += 1;
            }
            if let Some(last) = last.replace(packet.to_vec()) {
                caller.send(&last);
                replayed += 1;
            }
        });
        let packets = u64::try_from(audio::speech().len() / PACKET_SAMPLES).expect("a count");
        wait_stats(
            &node,
            &caller,
            &[("srtp_auth_failed", forged), ("srtp_replayed", replayed), ("rx_packets", packets)],
        );
        let heard = caller.heard().expect("all that comes can be decrypted");
        let greeting = audio::loudest_tone(&heard, 440.0);
        assert!(greeting > 2000.0, "the greeting's tone has an amplitude of 4000; heard {greeting}");
        caller.hang_up();
        assert_only_speech(&node, nth);
    }
}

/// Goal: a forged packet does not latch an SRTP call, even where the address alone would.
/// Method: behind a NAT, a stranger on the caller's own address sends the tone first, in clear and
/// with a made-up tag; then the caller speaks from its own port.
#[test]
fn a_forged_packet_never_latches() {
    let pki = Pki::new();
    let node = Node::with_short_greeting(|config| {
        pki.secure(config);
        set(config, "rtp", "nat", true);
    });
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, node.ports.worker_a_tls()));
    let (connection, _) = secure::open(address, &pki.client(Paper::Good)).expect("the gateway is let in");
    let uri = format!("sip:1001@{address};transport=tls");
    let wish = Wish { suite: Some(SrtpSuite::AeadAes128Gcm), behind_nat: true };
    let mut caller = Caller::call(connection, &uri, wish).expect("the call is answered");
    let stranger = UdpSocket::bind((CALLERS_OWN, 0)).expect("a port is free");
    let (mut pace, mut guess, mut sent) = (Pace::start(), caller.numbers, 0);
    for _ in 0..PACKETS_BEFORE {
        pace.wait();
        let plain = guess.packet(&tone());
        let tagged = [&plain[..], &[0x5A; 16]].concat();
        for packet in [plain, tagged] {
            stranger.send_to(&packet, caller.media).expect("the loopback takes it");
            sent += 1;
        }
        guess = guess.next();
    }
    wait_stats(&node, &caller, &[("srtp_auth_failed", sent), ("source_filtered", 0), ("rx_packets", 0)]);
    let (media, mut first, mut after) = (caller.media, true, 0);
    caller.speak(&audio::speech(), |_, _, packet| {
        // From its second packet on the caller has latched: now not even sound packets are taken.
        if !std::mem::take(&mut first) {
            stranger.send_to(packet, media).expect("the loopback takes it");
            after += 1;
        }
    });
    wait_stats(
        &node,
        &caller,
        &[("srtp_auth_failed", sent), ("source_filtered", after), ("srtp_replayed", 0)],
    );
    caller.hang_up();
    assert_only_speech(&node, 1);
}
