//! Two legs joined: what one hears leaves by the other.

use super::*;
use crate::base::config::SrtpSuite;
use crate::rtp::srtp::{MasterKey, SrtpPlan, SrtpSession, key_and_salt_bytes};

/// Where the second phone is.
const FAR: &str = "192.0.2.99:5000";

/// Two bridged legs; the second one's plan is changed by `far`.
fn bridged(far: impl FnOnce(MediaPlan) -> MediaPlan) -> (Rig, Rig) {
    let plan = MediaPlan {
        remote_rtp: Some(addr(FAR)),
        remote_rtcp: None,
        payload_type: 0,
        dtmf_payload_type: Some(96),
        ..media()
    };
    let (mut near, mut far) = (Rig::new(media()), Rig::new(far(plan)));
    near.leg.bridge();
    far.leg.bridge();
    (near, far)
}

/// Takes `packet` in at one leg and out at the other.
fn pass(from: &mut Rig, to: &mut Rig, packet: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = [packet, &[0; 64]].concat();
    let verdict = from.leg.handle_rtp(from.now, addr(PHONE), &mut bytes[..packet.len()]);
    from.drain();
    let Verdict::Onward(heard) = verdict else { return None };
    let (len, destination) = to.leg.relay(to.now, &heard, &mut bytes)?;
    assert_eq!(destination, addr(FAR));
    bytes.truncate(len);
    Some(bytes)
}

/// Goal: a relayed packet is one of the far leg's own: its SSRC and payload type, numbers that go
/// on where its stream stood, distances and payload unchanged; a new source goes on in them too.
/// Method: packets with a gap and disorder, then another SSRC with other numbers.
#[test]
fn relayed_packets_go_on_in_the_far_legs_numbers() {
    let (mut near, mut far) = bridged(|plan| plan);
    let mut headers = Vec::new();
    for (sequence, timestamp) in [(10, 1000), (11, 1160), (13, 1480), (12, 1320)] {
        let out = pass(&mut near, &mut far, &rtp(0, sequence, timestamp, &[sequence as u8; 160])).unwrap();
        assert!(out[12..].iter().all(|byte| u16::from(*byte) == sequence) && out.len() == 172);
        headers.push(parse(&out).unwrap().header);
    }
    let first = headers[0];
    assert_eq!((first.sequence, first.timestamp), (SeqNo(0xFFFE), RtpTimestamp(0xFFFF_FF00)));
    assert!(first.marker && headers[1..].iter().all(|header| !header.marker));
    let steps: Vec<(u16, u32)> = headers
        .iter()
        .map(|header| (header.sequence.since(first.sequence), header.timestamp.since(first.timestamp)))
        .collect();
    assert_eq!(steps, [(0, 0), (1, 160), (3, 480), (2, 320)]);
    assert!(headers.iter().all(|header| header.ssrc == 0x1111_2222 && header.payload_type == 0));
    let out = pass(&mut near, &mut far, &with_ssrc(rtp(0, 7000, 9, &[1; 160]), 77)).unwrap();
    let other = parse(&out).unwrap().header;
    assert_eq!((other.sequence.since(first.sequence), other.ssrc, other.marker), (4, 0x1111_2222, true));
    assert_eq!((far.leg.stats().tx_packets, far.leg.stats().tx_bytes), (5, 800));
    assert_eq!(near.leg.stats().rx_packets, 5);
}

/// Goal: a bridged leg sends nothing of its own and hears no keys itself; events go on under the
/// far payload type, or nowhere if there is none, which is counted. Method: a key as events.
#[test]
fn keys_pass_a_bridge_as_events() {
    let (mut near, mut far) = bridged(|plan| plan);
    near.until(ms(100));
    let out = pass(&mut near, &mut far, &event(1, 800, 5, true, 800)).unwrap();
    assert_eq!((out[1] & 0x7F, &out[12..]), (96, &[5, 0x8A, 3, 32][..]));
    assert!(near.sent.is_empty(), "the far phone is heard, not us");
    assert!(!near.events.iter().any(|event| matches!(event, Event::Digit { .. })));
    let (mut near, mut far) = bridged(|plan| MediaPlan { dtmf_payload_type: None, ..plan });
    assert_eq!(pass(&mut near, &mut far, &event(1, 800, 5, true, 800)), None);
    assert_eq!((far.leg.stats().relay_dropped, far.leg.stats().tx_packets), (1, 0));
}

/// Goal: legs with different codecs understand each other. Method: a sample of each A-law byte's
/// value, as µ-law, arrives as A-law within that coding's step (G.711 tables 1 and 2).
#[test]
fn codecs_are_translated() {
    let (mut near, mut far) = bridged(|plan| MediaPlan { codec: Codec::Pcma, payload_type: 8, ..plan });
    let coarse: Vec<u8> = (0..=255).collect();
    let out = pass(&mut near, &mut far, &rtp(0, 1, 0, &coarse)).unwrap();
    assert_eq!(out[1] & 0x7F, 8);
    for (from, to) in coarse.iter().zip(&out[12..]) {
        let (sent, heard) = (i32::from(Codec::Pcmu.decode(*from)), i32::from(Codec::Pcma.decode(*to)));
        assert!((sent - heard).abs() <= 16 + sent.abs() / 16, "{from}: {sent} became {heard}");
    }
}

/// Goal: on hold, or before an address is known, nothing goes out; the packet is counted. After the
/// hold the stream goes on. Method: the far plan without sending, then with.
#[test]
fn nothing_is_relayed_to_a_leg_on_hold() {
    let (mut near, mut far) = bridged(|plan| plan);
    let resumed = far.leg.media.clone().unwrap();
    far.leg.update(far.now, MediaPlan { send: false, ..resumed.clone() });
    assert_eq!(pass(&mut near, &mut far, &rtp(0, 1, 0, &[1; 160])), None);
    far.leg.update(far.now, MediaPlan { remote_rtp: None, ..resumed.clone() });
    assert_eq!(pass(&mut near, &mut far, &rtp(0, 2, 160, &[1; 160])), None);
    assert_eq!(far.leg.stats().relay_dropped, 2);
    far.leg.update(far.now, resumed);
    assert!(pass(&mut near, &mut far, &rtp(0, 3, 320, &[1; 160])).is_some());
}

/// Goal: one leg in the clear and one under SRTP are joined, each suite, both ways: the far phone
/// opens what it gets. Method: a plain phone and a secured one; the longest packet of 60 ms too.
#[test]
fn plain_and_protected_legs_are_joined() {
    for suite in SrtpSuite::ALL {
        let master = |seed| MasterKey::new(suite, &vec![seed; key_and_salt_bytes(suite)], None).unwrap();
        let keys = |ours, theirs| SrtpPlan { send: master(ours), receive: master(theirs) };
        let (mut near, mut far) = bridged(|plan| MediaPlan { srtp: Some(Box::new(keys(1, 2))), ..plan });
        let mut phone = SrtpSession::new(&keys(2, 1));
        for (sequence, length) in [(1_u16, 160_usize), (2, 480), (3, 0)] {
            let payload = vec![sequence as u8; length];
            let packet = rtp(0, sequence, u32::from(sequence) * 160, &payload);
            let mut sealed = pass(&mut near, &mut far, &packet).unwrap();
            assert!(sealed.len() > packet.len());
            let len = phone.unprotect_rtp(&mut sealed).unwrap();
            assert_eq!(sealed[12..len], payload[..]);
        }
        // The other way round: what the secured phone seals leaves in the clear.
        let mut buf = [rtp(0, 9, 0, &[42; 160]), vec![0; 64]].concat();
        let len = phone.protect_rtp(&mut buf, 172).unwrap();
        let verdict = far.leg.handle_rtp(far.now, addr(FAR), &mut buf[..len]);
        let Verdict::Onward(heard) = verdict else { panic!("{verdict:?}") };
        let (len, to) = near.leg.relay(near.now, &heard, &mut buf).unwrap();
        assert_eq!((len, to, &buf[12..len]), (172, addr(PHONE), &[42; 160][..]));
    }
}
