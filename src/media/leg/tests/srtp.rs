//! Legs whose media is protected: two of them talk to each other, and strangers try to.

use super::*;
use crate::base::config::SrtpSuite;
use crate::rtp::rtcp;
use crate::rtp::srtp::{MasterKey, SrtpPlan, SrtpSession, key_and_salt_bytes};

/// Keys of one side, and of the other.
fn keys(suite: SrtpSuite, ours: u8, theirs: u8) -> SrtpPlan {
    let master = |seed| MasterKey::new(suite, &vec![seed; key_and_salt_bytes(suite)], None).unwrap();
    SrtpPlan { send: master(ours), receive: master(theirs) }
}

fn secure(suite: SrtpSuite) -> MediaPlan {
    MediaPlan { srtp: Some(Box::new(keys(suite, 1, 2))), ..media() }
}

/// The phone's side.
fn phone(suite: SrtpSuite) -> SrtpSession {
    SrtpSession::new(&keys(suite, 2, 1))
}

fn sealed(session: &mut SrtpSession, packet: &[u8]) -> Vec<u8> {
    let mut buf = [packet, &[0; 24]].concat();
    let len = session.protect_rtp(&mut buf, packet.len()).unwrap();
    buf.truncate(len);
    buf
}

fn opened(session: &mut SrtpSession, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let len = session.unprotect_rtp(&mut packet).unwrap();
    packet.truncate(len);
    packet
}

/// Goal: what one leg plays another records sample for sample, each suite, both ways, across the
/// wrap of sequence numbers. Method: two legs whose keys cross; 3 s of speech from either.
#[test]
fn two_legs_hear_each_other_through_each_suite() {
    for suite in SrtpSuite::ALL {
        let mut near = Rig::recording(secure(suite));
        let far = MediaPlan { srtp: Some(Box::new(keys(suite, 2, 1))), ..media() };
        let mut far = Rig::recording(far);
        let (said, answered) = (speech(1, 24_000), speech(2, 24_000));
        let play = |rig: &mut Rig, signal: &[i16]| {
            let playlist = Playlist { items: vec![Audio::from_pcm(signal)], repeat: false };
            rig.leg.play(PlayId(1), playlist);
        };
        play(&mut near, &said);
        play(&mut far, &answered);
        for turn in 0..150 {
            let mut buf = [0; 1500];
            for (from, to) in [(0, 1), (1, 0)] {
                let rigs = [&mut near, &mut far];
                let now = rigs[from].began + ms(20) * turn;
                let (len, _) = rigs[from].leg.poll_rtp(now, &mut buf).unwrap();
                assert_ne!(buf[12..16], [0xFF; 4]);
                let arrival = rigs[to].began + ms(20) * turn;
                assert_eq!(rigs[to].leg.handle_rtp(arrival, addr(PHONE), &mut buf[..len]), Verdict::Consumed);
                rigs[to].now = arrival;
                rigs[to].drain();
            }
        }
        for (rig, signal) in [(&mut near, &answered), (&mut far, &said)] {
            rig.stop();
            assert!(rig.file == coded(signal), "{suite:?}");
            let stats = rig.leg.stats();
            assert_eq!((stats.rx_packets, stats.tx_packets, stats.lost), (150, 150, 0));
            assert_eq!((stats.srtp_auth_failed, stats.srtp_replayed, stats.invalid), (0, 0, 0));
        }
    }
}

/// Goal: a first packet from the right place latches only when it authenticates; what does not is
/// counted and neither recorded nor heard of. Method: plain RTP, another key's SRTP, a changed
/// packet, then a sound one; a sound one from a stranger.
#[test]
fn nothing_latches_before_it_authenticates() {
    for suite in SrtpSuite::ALL {
        let mut rig = Rig::recording(MediaPlan { nat: Some(addr(BESIDE).ip()), ..secure(suite) });
        let mut session = phone(suite);
        let sound = sealed(&mut session, &rtp(0, 7, 160, &[0x55; 160]));
        let mut changed = sound.clone();
        changed[20] ^= 1;
        let other = sealed(&mut SrtpSession::new(&keys(suite, 3, 1)), &rtp(0, 7, 160, &[0x55; 160]));
        for (count, forged) in
            [rtp(0, 7, 160, &[0x55; 160]), other, changed, vec![], vec![0x80; 11]].iter().enumerate()
        {
            for (half, from) in [PHONE, BESIDE].into_iter().enumerate() {
                rig.leg.handle_rtp(rig.now, addr(from), &mut forged.clone());
                let stats = rig.leg.stats();
                assert_eq!(stats.srtp_auth_failed, (count * 2 + half + 1) as u64);
                assert_eq!((rig.leg.latched(), stats.rx_packets, stats.invalid), (None, 0, 0));
            }
        }
        rig.leg.handle_rtp(rig.now, addr(STRANGER), &mut sound.clone());
        assert_eq!((rig.leg.latched(), rig.leg.stats().source_filtered), (None, 1));
        rig.leg.handle_rtp(rig.now, addr(BESIDE), &mut sound.clone());
        assert_eq!((rig.leg.latched(), rig.leg.stats().rx_packets), (Some(addr(BESIDE)), 1));
    }
}

/// Goal: an authentic packet from elsewhere never moves the latch, and the source's own packets
/// count once. Method: the next packet from a stranger first, then from the phone, twice.
#[test]
fn an_authentic_packet_from_elsewhere_never_moves_the_latch() {
    let suite = SrtpSuite::AeadAes128Gcm;
    let mut rig = Rig::new(MediaPlan { nat: Some(addr(BESIDE).ip()), ..secure(suite) });
    let mut session = phone(suite);
    let send = |rig: &mut Rig, from: &str, packet: &[u8]| {
        rig.leg.handle_rtp(rig.now, addr(from), &mut packet.to_vec());
        rig.drain();
    };
    send(&mut rig, PHONE, &sealed(&mut session, &rtp(0, 7, 160, &[0x55; 160])));
    let next = sealed(&mut session, &rtp(0, 8, 320, &[0x55; 160]));
    for from in [STRANGER, BESIDE, "192.0.2.7:4002"] {
        send(&mut rig, from, &next);
        assert_eq!(rig.leg.latched(), Some(addr(PHONE)));
    }
    send(&mut rig, PHONE, &next);
    send(&mut rig, PHONE, &next);
    let stats = rig.leg.stats();
    assert_eq!((stats.source_filtered, stats.rx_packets), (3, 2));
    assert_eq!((stats.srtp_replayed, stats.srtp_auth_failed, stats.duplicate), (1, 0, 0));
}

/// Goal: a new key in the middle of a stream takes effect at once in both directions, and neither
/// records nor sends anything wrong; an update with the same keys keeps the replay window.
/// Method: a re-INVITE without and one with new keys between packets.
#[test]
fn a_new_key_in_mid_stream_takes_effect_at_once() {
    for suite in SrtpSuite::ALL {
        let mut rig = Rig::new(secure(suite));
        let mut session = phone(suite);
        let mut buf = [0; 1500];
        let first = sealed(&mut session, &rtp(0, 1, 160, &[0x55; 160]));
        rig.leg.handle_rtp(rig.now, addr(PHONE), &mut first.clone());
        let (len, _) = rig.leg.poll_rtp(rig.now, &mut buf).unwrap();
        let sent = parse(&opened(&mut session, &buf[..len])).unwrap().header;
        assert!(sent.sequence.0 < 0x8000, "the first wrap is far away");

        rig.leg.update(rig.now, secure(suite));
        rig.leg.handle_rtp(rig.now, addr(PHONE), &mut first.clone());
        assert_eq!(rig.leg.stats().srtp_replayed, 1);
        let stale = sealed(&mut session, &rtp(0, 2, 320, &[0x55; 160]));
        rig.leg.update(rig.now, MediaPlan { srtp: Some(Box::new(keys(suite, 5, 6))), ..media() });
        rig.leg.handle_rtp(rig.now, addr(PHONE), &mut stale.clone());
        let mut session = SrtpSession::new(&keys(suite, 6, 5));
        let fresh = sealed(&mut session, &rtp(0, 3, 480, &[0x55; 160]));
        rig.leg.handle_rtp(rig.now, addr(PHONE), &mut fresh.clone());
        let stats = rig.leg.stats();
        assert_eq!((stats.srtp_auth_failed, stats.rx_packets, stats.invalid), (1, 2, 0));
        let (len, _) = rig.leg.poll_rtp(rig.now, &mut buf).unwrap();
        let next = parse(&opened(&mut session, &buf[..len])).unwrap().header;
        assert_eq!(next.sequence.since(sent.sequence), 1);
    }
}

/// Goal: media that goes without protection for a while and comes back with the same keys goes on
/// where it stood, so that no index is used twice. Method: SRTP, RTP, SRTP; what is sent each time.
#[test]
fn protection_that_comes_back_goes_on_where_it_stood() {
    let suite = SrtpSuite::AesCm128HmacSha1_80;
    let mut rig = Rig::new(secure(suite));
    let mut session = phone(suite);
    let mut buf = [0; 1500];
    let mut lengths = Vec::new();
    for plan in [secure(suite), media(), secure(suite)] {
        rig.leg.update(rig.now, plan.clone());
        let (len, _) = rig.leg.poll_rtp(rig.now, &mut buf).unwrap();
        lengths.push(len);
        if plan.srtp.is_some() {
            opened(&mut session, &buf[..len]);
        }
    }
    assert_eq!(lengths, [182, 172, 182]);
}

/// Goal: echo sends back our own SRTP: under our key, with our numbers, as long as what came.
/// Method: packets with a gap and one out of order, opened with the phone's keys.
#[test]
fn echo_is_protected_with_our_key() {
    for suite in SrtpSuite::ALL {
        let mut rig = Rig::new(secure(suite));
        rig.leg.set_mode(LegMode::Echo);
        let mut session = phone(suite);
        for sequence in [10_u16, 11, 13, 12] {
            let mut packet =
                sealed(&mut session, &rtp(0, sequence, u32::from(sequence) * 160, &[sequence as u8; 160]));
            let (received, whole) = (packet.clone(), packet.len());
            let verdict = rig.leg.handle_rtp(rig.now, addr(PHONE), &mut packet);
            assert_eq!(verdict, Verdict::Send { len: whole, to: addr(PHONE) });
            assert_ne!(packet[12..], received[12..]);
            let plain = opened(&mut session, &packet);
            assert!(plain[12..].iter().all(|byte| u16::from(*byte) == sequence));
            let header = parse(&plain).unwrap().header;
            assert_eq!((header.ssrc, header.sequence.0), (0x1111_2222, 0x7FFE + sequence - 10));
        }
        assert_eq!(rig.leg.stats().tx_packets, 4);
    }
}

/// Goal: what a phone wrongly leaves unprotected is no forgery, and a lone APP is no harm: an alarm on
/// `srtp_auth_failed` stays silent in a call with baresip. Method: the RTCP that baresip 1.0.0 sends in
/// each SRTP call, as captured: APP "PING" plain and protected, and at the end BYE and SDES, plain.
#[test]
fn plain_rtcp_of_a_phone_is_told_apart_from_forgeries() {
    let ping = b"\x80\xcc\x00\x03\x04\xa1\x46\x38PINGPONG";
    let bye = b"\x81\xcb\x00\x03\x04\xa1\x46\x38\x04Adjo\x00\x00\x00\
        \x81\xca\x00\x06\x04\xa1\x46\x38\x01\x11sip:bob@127.0.0.1\x00";
    for suite in SrtpSuite::ALL {
        let mut rig = Rig::new(secure(suite));
        let mut session = phone(suite);
        let mut sealed = [&ping[..], &[0; 24]].concat();
        let len = session.protect_rtcp(&mut sealed, ping.len()).unwrap();
        for packet in [&ping[..], &sealed[..len], bye] {
            rig.leg.handle_rtcp(rig.now, addr("192.0.2.7:4001"), &mut packet.to_vec());
        }
        let stats = rig.leg.stats();
        let seen = (stats.srtcp_missing, stats.srtp_auth_failed, stats.srtp_replayed, stats.invalid);
        assert_eq!(seen, (2, 0, 0, 0), "{suite:?}");
    }
}

/// Goal: reports are SRTCP both ways; a plain or forged one is counted and not believed, a stranger's
/// is not even looked at. Method: our report opened with the phone's keys, the phone's report plain,
/// changed, sound and again.
#[test]
fn reports_are_protected_both_ways() {
    for suite in SrtpSuite::ALL {
        let mut rig = Rig::new(secure(suite));
        let mut session = phone(suite);
        let mut buf = [0; 1500];
        let mut report = None;
        for step in 1..1000 {
            rig.until(ms(20) * step);
            report = rig.leg.poll_rtcp(rig.now, &mut buf);
            if report.is_some() {
                break;
            }
        }
        let (len, to) = report.expect("a report within 20 s");
        assert_eq!(to, addr("192.0.2.7:4001"));
        assert!(rtcp::read(&buf[..len], 0).is_err(), "encrypted");
        let len = session.unprotect_rtcp(&mut buf[..len]).unwrap();
        assert!(rtcp::read(&buf[..len], 0).unwrap().sender.is_some());

        let reception = crate::rtp::sequence::Reception {
            fraction_lost: 64,
            cumulative_lost: 1,
            extended_highest: 1,
            jitter: 8,
        };
        let block = rtcp::ReportBlock { ssrc: 0x1111_2222, reception, last_sr: 0, delay_since_last_sr: 0 };
        let report = rtcp::Report { ssrc: 5, sender: None, block: Some(block), cname: "p", bye: false };
        let len = report.write(&mut buf).unwrap();
        let plain = buf[..len].to_vec();
        let len = session.protect_rtcp(&mut buf, len).unwrap();
        let sound = buf[..len].to_vec();
        let mut changed = sound.clone();
        changed[9] ^= 0x80;
        let mut tell = |from: &str, packet: &[u8]| {
            rig.leg.handle_rtcp(rig.now, addr(from), &mut packet.to_vec());
            let stats = rig.leg.stats();
            let failed = (stats.srtcp_missing, stats.srtp_auth_failed, stats.srtp_replayed);
            (stats.remote_fraction_lost, stats.source_filtered, failed)
        };
        let phone = "192.0.2.7:4001";
        assert_eq!(tell(STRANGER, &sound), (0, 1, (0, 0, 0)));
        assert_eq!(tell(phone, &plain), (0, 1, (1, 0, 0)));
        assert_eq!(tell(phone, &changed), (0, 1, (1, 1, 0)));
        assert_eq!(tell(phone, &sound), (64, 1, (1, 1, 0)));
        assert_eq!(tell(phone, &sound), (64, 1, (1, 1, 1)));
    }
}
