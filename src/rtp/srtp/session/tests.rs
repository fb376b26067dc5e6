//! Published vectors, another implementation, and ten minutes of a call.

#![expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap as on the wire")]

use rtc_srtp::context::Context;
use rtc_srtp::option::{srtcp_replay_protection, srtp_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;

use super::super::testing::hex;
use super::*;
use crate::base::config::SrtpSuite;
use crate::base::random::SplitMix64;
use crate::rtp::packet::{RtpHeader, RtpTimestamp, SeqNo, write_header};
use crate::rtp::rtcp::{COMPOUND_BYTES_MAX, Report};
use crate::rtp::srtp::{Mki, key_and_salt_bytes};

const SSRC: u32 = 0xCAFE_BABE;

fn master(suite: SrtpSuite, seed: u8, mki: Option<Mki>) -> MasterKey {
    let bytes: Vec<u8> = (seed..).take(key_and_salt_bytes(suite)).collect();
    MasterKey::new(suite, &bytes, mki).unwrap()
}

/// Both ends of a call.
fn ends(suite: SrtpSuite, mki: Option<Mki>) -> (SrtpSession, SrtpSession) {
    let (ours, theirs) = (master(suite, 7, mki), master(suite, 99, mki));
    let us = SrtpSession::new(&SrtpPlan { send: ours.clone(), receive: theirs.clone() });
    (us, SrtpSession::new(&SrtpPlan { send: theirs, receive: ours }))
}

fn rtp(ssrc: u32, sequence: u16) -> Vec<u8> {
    let mut packet = vec![sequence.to_be_bytes()[1]; HEADER_BYTES + 160];
    let timestamp = RtpTimestamp(u32::from(sequence) * 160);
    let header = RtpHeader { marker: false, payload_type: 0, sequence: SeqNo(sequence), timestamp, ssrc };
    write_header(&header, &mut packet);
    packet
}

fn rtcp(ssrc: u32) -> Vec<u8> {
    let mut buf = [0; COMPOUND_BYTES_MAX];
    let report = Report { ssrc, sender: None, block: None, cname: "somebody@somewhere", bye: false };
    let len = report.write(&mut buf).unwrap();
    buf[..len].to_vec()
}

fn sealed(session: &mut SrtpSession, packet: &[u8]) -> Vec<u8> {
    let mut buf = [packet, &[0xEE; OVERHEAD_BYTES_MAX]].concat();
    let len = session.protect_rtp(&mut buf, packet.len()).unwrap();
    buf.truncate(len);
    buf
}

fn sealed_rtcp(session: &mut SrtpSession, packet: &[u8]) -> Vec<u8> {
    let mut buf = [packet, &[0xEE; OVERHEAD_BYTES_MAX]].concat();
    let len = session.protect_rtcp(&mut buf, packet.len()).unwrap();
    buf.truncate(len);
    buf
}

fn opened(session: &mut SrtpSession, packet: &[u8]) -> Result<Vec<u8>, SrtpError> {
    let mut packet = packet.to_vec();
    let len = session.unprotect_rtp(&mut packet)?;
    packet.truncate(len);
    Ok(packet)
}

fn opened_rtcp(session: &mut SrtpSession, packet: &[u8]) -> Result<Vec<u8>, SrtpError> {
    let mut packet = packet.to_vec();
    let len = session.unprotect_rtcp(&mut packet)?;
    packet.truncate(len);
    Ok(packet)
}

/// RFC 7714 §16: session keys of both sizes with the salt "Quid pro quo".
fn rfc_7714(bytes: u8, protocol: Protocol) -> Transform {
    let key: Vec<u8> = (0..bytes).collect();
    let gcm = gcm::Gcm::from_session_key(&key, *b"Quid pro quo");
    let suite = if bytes == 32 { SrtpSuite::AeadAes256Gcm } else { SrtpSuite::AeadAes128Gcm };
    Transform::from_gcm(gcm, protocol, &master(suite, 0, None))
}

/// Goal: SRTP by AES-GCM is that of RFC 7714 §16.1 and §16.2. Method: its packet "Gallia est omnis
/// divisa in partes tres" with both key sizes, both ways.
#[test]
fn gcm_packets_are_those_of_rfc_7714_section_16() {
    let plain = [&hex("8040f17b8041f8d35501a0b2")[..], b"Gallia est omnis divisa in partes tres"].concat();
    let head = RtpHead { bytes: 12, ssrc: 0x5501_A0B2, index: 0xF17B };
    for (bytes, wanted) in [
        (
            16,
            "8040f17b 8041f8d3 5501a0b2 f24de3a3 fb34de6c acba861c 9d7e4bca be633bd5 0d294e6f 42a5f47a \
             51c7d19b 36de3adf 8833899d 7f27beb1 6a9152cf 765ee439 0cce",
        ),
        (
            32,
            "8040f17b 8041f8d3 5501a0b2 32b1de78 a822fe12 ef9f78fa 332e33aa b1801238 9a58e2f3 b50b2a02 \
             76ffae0f 1ba63799 b87b7aa3 db36dfff d6b0f9bb 7878d7a7 6c13",
        ),
    ] {
        let transform = rfc_7714(bytes, Protocol::Rtp);
        let mut buf = [&plain[..], &[0; 16]].concat();
        assert_eq!(transform.seal_rtp(&mut buf, plain.len(), head), Some(66));
        assert_eq!(buf, hex(wanted));
        assert_eq!(transform.check(&buf, head.bytes), Ok(plain.len()));
        assert_eq!(transform.open_rtp(&mut buf, plain.len(), head), Ok(()));
        assert_eq!(buf[..plain.len()], plain);
    }
}

/// Goal: SRTCP by AES-GCM is that of RFC 7714 §17, encrypted and, from a peer that does not encrypt,
/// only tagged. Method: its compound of "Mars" with index 5d4 and both key sizes.
#[test]
fn gcm_compounds_are_those_of_rfc_7714_section_17() {
    let plain = hex("81c8000d 4d617273 4e545031 4e545032 52545020 0000042a 0000e930 4c756e61 \
                     deadbeef deadbeef deadbeef deadbeef deadbeef");
    let ssrc = u32::from_be_bytes(*b"Mars");
    for (bytes, wanted, tag) in [
        (
            16,
            "81c8000d 4d617273 63e94885 dcdab67c a727d766 2f6b7e99 7ff5c0f7 6c06f32d c676a5f1 730d6fda \
             4ce09b46 86303ded 0bb9275b c84aa458 96cf4d2f c5abf872 45d9eade 800005d4",
            "841dd968 3dd78ec9 2ae58790 125f62b3",
        ),
        (
            32,
            "81c8000d 4d617273 d50ae4d1 f5ce5d30 4ba297e4 7d470c28 2c3ece5d bffe0a50 a2eaa5c1 110555be \
             8415f658 c61de047 6f1b6fad 1d1eb30c 4446839f 57ff6f6c b26ac3be 800005d4",
            "91db4afb feee5a97 8fab4393 ed2615fe",
        ),
    ] {
        let transform = rfc_7714(bytes, Protocol::Rtcp);
        let mut buf = [&plain[..], &[0; 20]].concat();
        assert_eq!(transform.seal_rtcp(&mut buf, plain.len(), ssrc, 0x5D4), Some(buf.len()));
        assert_eq!(buf, hex(wanted));
        let tagged = [&plain[..], &hex(tag), &hex("000005d4")].concat();
        for mut packet in [buf, tagged.clone()] {
            assert_eq!(transform.check(&packet, RTCP_CLEAR_BYTES), Ok(plain.len()));
            assert_eq!(transform.rtcp_index(&packet, plain.len()), Ok(0x5D4));
            assert_eq!(transform.open_rtcp(&mut packet, plain.len(), ssrc), Ok(()));
            assert_eq!(packet[..plain.len()], plain);
        }
        let mut forged = tagged;
        forged[20] ^= 1;
        assert_eq!(transform.open_rtcp(&mut forged, plain.len(), ssrc), Err(SrtpError::Auth));
    }
}

/// The other implementation, for one direction.
fn oracle(suite: SrtpSuite, seed: u8) -> Context {
    let profile = match suite {
        SrtpSuite::AeadAes128Gcm => ProtectionProfile::AeadAes128Gcm,
        SrtpSuite::AeadAes256Gcm => ProtectionProfile::AeadAes256Gcm,
        SrtpSuite::AesCm128HmacSha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
        SrtpSuite::AesCm128HmacSha1_32 => ProtectionProfile::Aes128CmHmacSha1_32,
    };
    let master = master(suite, seed, None);
    let provider = rtc_srtp::crypto::default_provider().unwrap();
    let windows = (Some(srtp_replay_protection(64)), Some(srtcp_replay_protection(64)));
    Context::new(master.key(), master.salt(), profile, windows.0, windows.1, provider.crypto()).unwrap()
}

/// Goal: another implementation reads what we write, and we what it writes, RTP and RTCP. Method:
/// rtc-srtp, each suite, 3000 packets across a rollover, some with CSRC list and extension.
#[test]
fn another_implementation_understands_us_and_we_it() {
    for suite in SrtpSuite::ALL {
        let (mut us, _) = ends(suite, None);
        let (mut reads, mut writes) = (oracle(suite, 7), oracle(suite, 99));
        for step in 0..3000_u16 {
            let mut packet = rtp(SSRC, 64_000_u16.wrapping_add(step));
            if step % 7 == 0 {
                packet[0] |= 0x12;
                packet.splice(12..12, hex("00000001 00000002 BEDE0001 10FF0000"));
            }
            let theirs = reads.decrypt_rtp(&sealed(&mut us, &packet));
            assert_eq!(theirs.unwrap(), packet, "{suite:?} {step}");
            assert_eq!(
                opened(&mut us, &writes.encrypt_rtp(&packet).unwrap()).unwrap(),
                packet,
                "{suite:?} {step}"
            );
            if step % 10 == 0 {
                let compound = rtcp(SSRC);
                let theirs = reads.decrypt_rtcp(&sealed_rtcp(&mut us, &compound));
                assert_eq!(theirs.unwrap(), compound, "{suite:?} {step}");
                let ours = opened_rtcp(&mut us, &writes.encrypt_rtcp(&compound).unwrap());
                assert_eq!(ours.unwrap(), compound, "{suite:?} {step}");
            }
        }
    }
}

/// Goal: ten minutes of a call across a rollover with 1 % loss decrypt without exception; what is
/// replayed or forged among it is dropped and harms nothing. Method: 30,000 packets from sequence
/// number 50,000, each suite; each hundredth is lost, others come again, or changed in a bit first.
#[test]
fn ten_minutes_with_loss_decrypt_and_replayed_or_forged_packets_are_dropped() {
    for suite in SrtpSuite::ALL {
        let (mut us, mut peer) = ends(suite, None);
        let mut random = SplitMix64(u64::from(suite as u8) + 1);
        let (mut opens, mut tried, mut forged, mut replayed) = (0, 0, 0, 0);
        let mut old = Vec::new();
        for step in 0..30_000_u32 {
            let packet = rtp(SSRC, (50_000 + step) as u16);
            let mut sent = sealed(&mut peer, &packet);
            let chance = random.bits();
            if chance.is_multiple_of(100) {
                continue;
            }
            if step % 10 == 3 {
                let bit = (chance >> 32) as usize % (sent.len() * 8);
                sent[bit / 8] ^= 1 << (bit % 8);
                tried += 1;
                forged += u32::from(opened(&mut us, &sent).is_err());
                sent[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(opened(&mut us, &sent), Ok(packet), "{suite:?} {step}");
            opens += 1;
            if step % 10 == 7 {
                replayed += u32::from(opened(&mut us, &sent) == Err(SrtpError::Replay));
                old.push(sent);
            }
        }
        assert!((29_500..29_900).contains(&opens), "{opens}");
        assert!(forged > 2900 && replayed > 2900, "{forged} {replayed}");
        assert_eq!(forged, tried, "no forgery authenticated");
        assert_eq!(replayed as usize, old.len());
        assert!(old.iter().all(|packet| opened(&mut us, packet).is_err()), "nor does any come back late");
    }
}

/// Goal: no part of a packet can be changed, cut off or added, and its beginning alone panics
/// nothing. Method: each bit of an SRTP and an SRTCP packet, each length, each suite.
#[test]
fn no_changed_or_shortened_packet_authenticates() {
    for suite in SrtpSuite::ALL {
        let (mut us, mut peer) = ends(suite, Some(Mki { value: 5, bytes: 2 }));
        let (mut packet, mut compound) =
            (sealed(&mut peer, &rtp(SSRC, 1)), sealed_rtcp(&mut peer, &rtcp(SSRC)));
        for bit in 0..packet.len() * 8 {
            packet[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(&mut us, &packet).is_err(), "{suite:?} bit {bit}");
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..compound.len() * 8 {
            compound[bit / 8] ^= 1 << (bit % 8);
            assert!(opened_rtcp(&mut us, &compound).is_err(), "{suite:?} bit {bit}");
            compound[bit / 8] ^= 1 << (bit % 8);
        }
        assert!((0..packet.len()).all(|len| opened(&mut us, &packet[..len]).is_err()));
        assert!((0..compound.len()).all(|len| opened_rtcp(&mut us, &compound[..len]).is_err()));
        assert!(opened(&mut us, &[&packet[..], &[0]].concat()).is_err());
        assert!(us.receive.sources.is_empty(), "only what authenticates makes a source known");
        assert_eq!(opened(&mut us, &packet), Ok(rtp(SSRC, 1)));
        assert_eq!(opened_rtcp(&mut us, &compound), Ok(rtcp(SSRC)));
        assert_eq!(opened_rtcp(&mut us, &compound), Err(SrtpError::Replay));
    }
}

/// Goal: packets carry the MKI where RFC 3711 §3.1 and RFC 7714 §8.2 put it, and another MKI is
/// told from a forgery. Method: the last bytes of packets with an MKI of three bytes; a receiver
/// that expects another.
#[test]
fn the_mki_is_written_and_checked() {
    let mki = Mki { value: 0x01_0203, bytes: 3 };
    for suite in SrtpSuite::ALL {
        let (mut us, mut peer) = ends(suite, Some(mki));
        let (_, mut other) = ends(suite, Some(Mki { value: 4, ..mki }));
        let packet = sealed(&mut us, &rtp(SSRC, 1));
        let compound = sealed_rtcp(&mut us, &rtcp(SSRC));
        let (tag, rtcp_tag) = match suite {
            SrtpSuite::AeadAes128Gcm | SrtpSuite::AeadAes256Gcm => (0, 0),
            SrtpSuite::AesCm128HmacSha1_80 => (10, 10),
            SrtpSuite::AesCm128HmacSha1_32 => (4, 10),
        };
        assert!(packet[..packet.len() - tag].ends_with(&[1, 2, 3]));
        assert!(compound[..compound.len() - rtcp_tag].ends_with(&[0x80, 0, 0, 0, 1, 2, 3]));
        assert_eq!(opened(&mut other, &packet), Err(SrtpError::Mki));
        assert_eq!(opened_rtcp(&mut other, &compound), Err(SrtpError::Mki));
        assert_eq!(opened(&mut peer, &packet), Ok(rtp(SSRC, 1)));
        assert_eq!(opened_rtcp(&mut peer, &compound), Ok(rtcp(SSRC)));
    }
}

/// Goal: an update with the same keys changes nothing, even one that adds an MKI; under a new key
/// rollover counters and SRTCP indices go on (RFC 3711 §3.3.1, §3.4) and replays are still told.
/// Method: updates after a rollover, and replays after each.
#[test]
fn indices_go_on_through_an_update() {
    for suite in SrtpSuite::ALL {
        let plan = |ours, theirs| SrtpPlan { send: ours, receive: theirs };
        let (ours, theirs) = (master(suite, 7, None), master(suite, 99, None));
        let (mut us, mut peer) = ends(suite, None);
        let packets: Vec<Vec<u8>> =
            [0xFFFF, 0, 1].iter().map(|sequence| sealed(&mut peer, &rtp(SSRC, *sequence))).collect();
        assert!(packets.iter().all(|packet| opened(&mut us, packet).is_ok()));
        us.update(&plan(ours.clone(), theirs.clone()));
        assert_eq!(opened(&mut us, &packets[2]), Err(SrtpError::Replay));
        let marked = master(suite, 99, Some(Mki { value: 1, bytes: 1 }));
        us.update(&plan(ours.clone(), marked.clone()));
        peer.update(&plan(marked, ours.clone()));
        let packet = sealed(&mut peer, &rtp(SSRC, 2));
        assert_eq!(opened(&mut us, &packet), Ok(rtp(SSRC, 2)), "its rollover counter is 1 at both ends");
        assert_eq!(opened(&mut us, &packet), Err(SrtpError::Replay));

        let new = master(suite, 50, None);
        us.update(&plan(ours.clone(), new.clone()));
        assert_eq!(opened(&mut us, &sealed(&mut peer, &rtp(SSRC, 3))), Err(SrtpError::Auth));
        peer.update(&plan(new, ours));
        let packet = sealed(&mut peer, &rtp(SSRC, 4));
        assert_eq!(opened(&mut us, &packet), Ok(rtp(SSRC, 4)));
        assert_eq!(opened(&mut us, &packet), Err(SrtpError::Replay));
        let highest = us.receive.sources[0].rtp.next() - 1;
        assert_eq!(highest, 0x1_0004, "rollover counter 1");
        let compound = sealed_rtcp(&mut peer, &rtcp(SSRC));
        assert_eq!(opened_rtcp(&mut us, &compound), Ok(rtcp(SSRC)));
        let before = us.receive.sources[0].rtcp.next();
        let newer = master(suite, 60, None);
        us.update(&plan(master(suite, 7, None), newer.clone()));
        peer.update(&plan(newer, master(suite, 7, None)));
        let compound = sealed_rtcp(&mut peer, &rtcp(SSRC));
        assert_eq!(opened_rtcp(&mut us, &compound), Ok(rtcp(SSRC)));
        assert_eq!(us.receive.sources[0].rtcp.next(), before + 1, "the SRTCP index is not reset");
    }
}

/// Goal: a session goes on in another process without using an index twice and with the right rollover
/// counter, also when what is left out holds the wrap (RFC 3711 §3.3.1); replays stay replays.
/// Method: marks at several sequence numbers, 20 packets after each, then a resumed session that leaves
/// 30 numbers out; the peer's one session opens it all.
#[test]
fn a_session_goes_on_from_its_mark() {
    for suite in SrtpSuite::ALL {
        for start in [0_u16, 100, 0x7FF0, 0xFFC0, 0xFFDC, 0xFFF0] {
            let (mut us, mut peer) = ends(suite, None);
            let plan = SrtpPlan { send: us.send.master.clone(), receive: us.receive.master.clone() };
            for sequence in start..start + 10 {
                assert!(opened(&mut peer, &sealed(&mut us, &rtp(SSRC, sequence))).is_ok());
            }
            let theirs = [0xFFFF, 0, 2].map(|sequence| sealed(&mut peer, &rtp(5, sequence)));
            assert!(theirs.iter().all(|packet| opened(&mut us, packet).is_ok()));
            let compounds = [1, 2].map(|_| sealed_rtcp(&mut peer, &rtcp(5)));
            assert!(compounds.iter().all(|compound| opened_rtcp(&mut us, compound).is_ok()));
            let (mark, next) = (us.mark(), start + 10);
            for step in 0..20 {
                assert!(opened(&mut peer, &sealed(&mut us, &rtp(SSRC, next.wrapping_add(step)))).is_ok());
                assert!(opened_rtcp(&mut peer, &sealed_rtcp(&mut us, &rtcp(SSRC))).is_ok());
            }
            let mut us = SrtpSession::resume(&plan, &mark, next, 30);
            let mut buf = [rtp(SSRC, next.wrapping_add(29)), vec![0; OVERHEAD_BYTES_MAX]].concat();
            assert_eq!(us.protect_rtp(&mut buf, HEADER_BYTES + 160), None, "left out for good");
            for step in 30..40 {
                let packet = rtp(SSRC, next.wrapping_add(step));
                assert_eq!(opened(&mut peer, &sealed(&mut us, &packet)), Ok(packet), "{start:x}");
            }
            assert!(opened_rtcp(&mut peer, &sealed_rtcp(&mut us, &rtcp(SSRC))).is_ok());
            for packet in &theirs {
                assert_eq!(opened(&mut us, packet), Err(SrtpError::Replay));
            }
            for compound in &compounds {
                assert_eq!(opened_rtcp(&mut us, compound), Err(SrtpError::Replay));
            }
            for sequence in [1, 3] {
                assert!(opened(&mut us, &sealed(&mut peer, &rtp(5, sequence))).is_ok(), "rollover 1");
            }
        }
    }
}

/// Goal: a session of which nothing was sent yet goes on as one, and another SSRC than ours is still
/// refused. Method: an empty mark.
#[test]
fn a_session_that_sent_nothing_goes_on_from_its_first_number() {
    let (us, mut peer) = ends(SrtpSuite::AeadAes128Gcm, None);
    let plan = SrtpPlan { send: us.send.master.clone(), receive: us.receive.master.clone() };
    let mut us = SrtpSession::resume(&plan, &us.mark(), 0x7FFF, 3);
    assert!(opened(&mut peer, &sealed(&mut us, &rtp(SSRC, 0x8002))).is_ok());
    let mut buf = [rtp(5, 0x8003), vec![0; OVERHEAD_BYTES_MAX]].concat();
    assert_eq!(us.protect_rtp(&mut buf, HEADER_BYTES + 160), None);
}

/// Goal: four sources are told apart, each with a rollover counter of its own, and one more takes
/// the place of the one heard of least recently. Method: sources in turn, replays of each.
#[test]
fn sources_are_few_and_the_one_longest_silent_goes() {
    let suite = SrtpSuite::AeadAes128Gcm;
    let (mut us, _) = ends(suite, None);
    let packet = |ssrc, sequence| {
        let (_, mut peer) = ends(suite, None);
        sealed(&mut peer, &rtp(ssrc, sequence))
    };
    for ssrc in [1, 2, 3, 4] {
        assert!(opened(&mut us, &packet(ssrc, 5)).is_ok());
    }
    assert!(opened(&mut us, &packet(1, 10)).is_ok());
    assert!(opened(&mut us, &packet(5, 5)).is_ok());
    let known: Vec<u32> = us.receive.sources.iter().map(|source| source.ssrc).collect();
    assert_eq!(known, [5, 1, 4, 3], "2 was silent longest");
    for ssrc in [5, 4, 3] {
        assert_eq!(opened(&mut us, &packet(ssrc, 5)), Err(SrtpError::Replay));
    }
}

/// Goal: no index is used twice, no other source's packet goes out under our key, and a spent key
/// protects nothing more (RFC 3711 §9.2). Method: repeats, a second SSRC, and windows at their end.
#[test]
fn nothing_is_sent_that_would_reuse_an_index_or_outlive_the_key() {
    for suite in SrtpSuite::ALL {
        let (mut us, _) = ends(suite, None);
        let mut try_send = |sequence, ssrc, room: usize| {
            let packet = rtp(ssrc, sequence);
            let mut buf = [&packet[..], &vec![0; room]].concat();
            us.protect_rtp(&mut buf, packet.len()).is_some()
        };
        assert!(!try_send(5, SSRC, 3), "no room");
        assert!(try_send(5, SSRC, OVERHEAD_BYTES_MAX));
        assert!(!try_send(5, SSRC, OVERHEAD_BYTES_MAX), "used");
        assert!(try_send(4, SSRC, OVERHEAD_BYTES_MAX), "late, but not used");
        assert!(!try_send(6, 1, OVERHEAD_BYTES_MAX), "another source");
        let mut garbage = [0; 100];
        assert_eq!(us.protect_rtp(&mut garbage, 50), None);
        assert_eq!(us.protect_rtcp(&mut garbage, 50), None);
        assert_eq!(us.protect_rtp(&mut garbage, 101), None);

        us.send.rtp_used.accept(RTP_PACKETS_MAX - 2);
        assert!(sealed(&mut us, &rtp(SSRC, 0xFFFF)).len() > 172);
        let mut buf = [&rtp(SSRC, 0)[..], &[0; OVERHEAD_BYTES_MAX]].concat();
        assert_eq!(us.protect_rtp(&mut buf, 172), None);
        us.send.rtcp_used.accept(RTCP_PACKETS_MAX - 2);
        let compound = rtcp(SSRC);
        let last = sealed_rtcp(&mut us, &compound);
        let tag = if last.len() - compound.len() == 20 { 16 } else { 0 };
        assert_eq!(last[compound.len() + tag..][..4], [0xFF; 4], "E and the highest index");
        let mut buf = [&compound[..], &[0; OVERHEAD_BYTES_MAX]].concat();
        assert_eq!(us.protect_rtcp(&mut buf, compound.len()), None);
    }
}

/// Goal: a key has its suite's length (RFC 4568 §6.2, RFC 7714 §12) and is never shown; an MKI is
/// of one to four bytes that hold it. Method: lengths about the right ones; `Debug` output.
#[test]
fn keys_are_of_the_suites_length_and_never_shown() {
    assert_eq!(SrtpSuite::ALL.map(key_and_salt_bytes), [28, 44, 30, 30]);
    for suite in SrtpSuite::ALL {
        let bytes = key_and_salt_bytes(suite);
        for wrong in [0, bytes - 1, bytes + 1] {
            assert_eq!(MasterKey::new(suite, &vec![1; wrong], None), None);
        }
        let key = MasterKey::new(suite, &vec![0xAB; bytes], None).unwrap();
        assert_eq!((key.suite(), key.key_and_salt(), key.mki()), (suite, &vec![0xAB; bytes][..], None));
        let plan = SrtpPlan { send: key.clone(), receive: key };
        let shown = format!("{plan:?} {:?}", SrtpSession::new(&plan)).to_lowercase();
        assert!(!shown.contains("171") && !shown.contains("ab, ") && !shown.contains("abab"), "{shown}");
    }
    let mki = |value, bytes| master_with(Mki { value, bytes });
    assert!(mki(255, 1) && mki(256, 2) && mki(u32::MAX, 4));
    assert!(!mki(0, 0) && !mki(256, 1) && !mki(1 << 24, 3) && !mki(1, 5));
}

fn master_with(mki: Mki) -> bool {
    MasterKey::new(SrtpSuite::AeadAes128Gcm, &[0; 28], Some(mki)).is_some()
}
