//! SRTP of one call by the crate rtc-srtp: both directions, an MKI, a change of keys.

use anyhow::{Result, anyhow};
use rtc_srtp::context::Context;
use rtc_srtp::crypto::RTCCryptoProvider as _;
use rtc_srtp::crypto::providers::RingProvider;
use rtc_srtp::protection_profile::ProtectionProfile;

use crate::sip::sdes::{Agreed, Key, Suite};

/// Packets kept for keys that are still on their way.
const HELD_MAX: usize = 64;

/// Bytes of the tag behind the MKI; in GCM the MKI is last (RFC 7714 §8.2, §9.2).
#[derive(Debug, Clone, Copy)]
struct TagBytes {
    rtp: usize,
    rtcp: usize,
}

/// One direction under one key.
struct Guard {
    context: Context,
    key: Key,
    mki: Vec<u8>,
    tag: TagBytes,
}

impl Guard {
    fn new(suite: Suite, key: &Key) -> Result<Self> {
        let (profile, rtp, rtcp) = match suite {
            Suite::AeadAes128Gcm => (ProtectionProfile::AeadAes128Gcm, 0, 0),
            Suite::AeadAes256Gcm => (ProtectionProfile::AeadAes256Gcm, 0, 0),
            Suite::AesCm128HmacSha1_80 => (ProtectionProfile::Aes128CmHmacSha1_80, 10, 10),
            Suite::AesCm128HmacSha1_32 => (ProtectionProfile::Aes128CmHmacSha1_32, 4, 10),
        };
        let (master, salt) = key.material.split_at(suite.key_bytes());
        let provider = RingProvider::new();
        // Replays are not refused here but counted as duplicates by the receiver.
        let context = Context::new(master, salt, profile, None, None, provider.crypto())
            .map_err(|error| anyhow!("SRTP: {error}"))?;
        let mki = key.mki_on_the_wire().unwrap_or_default();
        Ok(Self { context, key: key.clone(), mki, tag: TagBytes { rtp, rtcp } })
    }

    fn protect(&mut self, packet: &[u8]) -> Result<Vec<u8>> {
        let mut out = self.context.encrypt_rtp(packet).map_err(|error| anyhow!("SRTP: {error}"))?.to_vec();
        let at = out.len() - self.tag.rtp;
        out.splice(at..at, self.mki.iter().copied());
        Ok(out)
    }

    fn protect_rtcp(&mut self, packet: &[u8]) -> Result<Vec<u8>> {
        let mut out = self.context.encrypt_rtcp(packet).map_err(|error| anyhow!("SRTCP: {error}"))?.to_vec();
        let at = out.len() - self.tag.rtcp;
        out.splice(at..at, self.mki.iter().copied());
        Ok(out)
    }

    fn unprotect(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let plain = self.context.decrypt_rtp(&without(&self.mki, packet, self.tag.rtp)?);
        plain.ok().map(|plain| plain.to_vec())
    }

    fn unprotect_rtcp(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let plain = self.context.decrypt_rtcp(&without(&self.mki, packet, self.tag.rtcp)?);
        plain.ok().map(|plain| plain.to_vec())
    }
}

/// `packet` without the MKI before its last `tag` bytes; `None` when it carries another.
fn without(mki: &[u8], packet: &[u8], tag: usize) -> Option<Vec<u8>> {
    let (head, tail) = packet.split_at_checked(packet.len().checked_sub(tag)?)?;
    Some([head.strip_suffix(mki)?, tail].concat())
}

/// What protects one call's media. At first, and when nothing else was agreed: nothing.
#[derive(Default)]
pub struct Srtp {
    suite: Option<Suite>,
    send: Option<Guard>,
    receive: Option<Guard>,
    /// The key before a change: some packets of it are still on their way.
    receive_before: Option<Guard>,
    waiting: bool,
    held: Vec<Vec<u8>>,
    /// Packets (RTCP too) that no key opened.
    pub auth_failed: u64,
}

impl Srtp {
    /// Keys were offered: what cannot be opened until `agree` may be theirs and is kept.
    pub fn expect_keys(&mut self) {
        self.waiting = true;
    }

    /// The offer came to nothing: what was kept stays closed.
    pub fn keep_keys(&mut self) {
        self.waiting = false;
        self.auth_failed += self.held.drain(..).len() as u64;
    }

    /// Offer and answer are done. An unchanged key goes on with its state, a new one starts anew.
    /// Gives the packets, now open, that had come too early.
    ///
    /// # Errors
    /// The crate refuses the key.
    pub fn agree(&mut self, agreed: Option<&Agreed>) -> Result<Vec<Vec<u8>>> {
        let suite = agreed.map(|agreed| agreed.suite);
        let same_suite = suite == self.suite;
        let is_same = |guard: &Option<Guard>, key: &Key| {
            same_suite && guard.as_ref().is_some_and(|guard| guard.key == *key)
        };
        match agreed {
            None => (self.send, self.receive, self.receive_before) = (None, None, None),
            Some(Agreed { suite, send, receive }) => {
                if !is_same(&self.send, send) {
                    self.send = Some(Guard::new(*suite, send)?);
                }
                if !is_same(&self.receive, receive) {
                    self.receive_before = self.receive.replace(Guard::new(*suite, receive)?);
                }
            }
        }
        self.suite = suite;
        self.waiting = false;
        Ok(std::mem::take(&mut self.held).iter().filter_map(|packet| self.open(packet)).collect())
    }

    /// The suite's name; `None` for plain RTP.
    pub fn suite(&self) -> Option<&'static str> {
        self.suite.map(Suite::name)
    }

    /// A packet as it leaves.
    ///
    /// # Errors
    /// The crate refuses to protect it.
    pub fn protect(&mut self, packet: &[u8]) -> Result<Vec<u8>> {
        self.send.as_mut().map_or_else(|| Ok(packet.to_vec()), |guard| guard.protect(packet))
    }

    /// An RTCP packet as it leaves.
    ///
    /// # Errors
    /// The crate refuses to protect it.
    pub fn protect_rtcp(&mut self, packet: &[u8]) -> Result<Vec<u8>> {
        self.send.as_mut().map_or_else(|| Ok(packet.to_vec()), |guard| guard.protect_rtcp(packet))
    }

    /// A packet as it was meant; `None` when it does not open, now or until `agree`.
    pub fn open(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        if self.receive.is_none() && !self.waiting {
            return Some(packet.to_vec());
        }
        let guards = [&mut self.receive, &mut self.receive_before];
        let opened = guards.into_iter().flatten().find_map(|guard| guard.unprotect(packet));
        if opened.is_none() {
            if self.waiting && self.held.len() < HELD_MAX {
                self.held.push(packet.to_vec());
            } else {
                self.auth_failed += 1;
            }
        }
        opened
    }

    /// True when an RTCP packet is authentic; what comes before the keys is taken as it is.
    pub fn opens_rtcp(&mut self, packet: &[u8]) -> bool {
        self.open_rtcp(packet).is_some()
    }

    /// An RTCP packet as it was meant; `None` when it does not open. What comes before the keys is
    /// taken as it is.
    pub fn open_rtcp(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let guards = [&mut self.receive, &mut self.receive_before];
        let mut guards = guards.into_iter().flatten().peekable();
        if guards.peek().is_none() {
            return Some(packet.to_vec());
        }
        let opened = guards.find_map(|guard| guard.unprotect_rtcp(packet));
        self.auth_failed += u64::from(opened.is_none());
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::packet::{self, Header};
    use crate::sip::sdes::{Wish, agree, answer};

    /// Two sides that agreed on `suite` in the usual way.
    fn pair(suite: Suite, mki: bool) -> (Agreed, Agreed) {
        let wish = Wish { suites: vec![suite], optional: false, mki };
        let ours = wish.offer(1).unwrap();
        let theirs = answer(&wish.offer(1).unwrap(), &ours).unwrap();
        (agree(&ours, &theirs).unwrap().unwrap(), agree(&theirs, &ours).unwrap().unwrap())
    }

    fn side(agreed: &Agreed) -> Srtp {
        let mut srtp = Srtp::default();
        assert_eq!(srtp.agree(Some(agreed)).unwrap(), Vec::<Vec<u8>>::new());
        srtp
    }

    fn rtp(sequence: u16) -> Vec<u8> {
        let header = Header { marker: false, payload_type: 0, sequence, timestamp: 9, ssrc: 7 };
        packet::build(&header, &[0x55; 160])
    }

    /// Goal: what one side protects the other opens, in every suite, with and without an MKI, over
    /// the wrap of the sequence number; the packet is longer by tag and MKI as the RFCs say.
    /// Method: both ends of one agreement; RFC 4568 §6.2 and RFC 7714 §12 give the tags.
    #[test]
    fn each_suite_crosses_with_and_without_mki() {
        for (suite, tag) in Suite::ALL.into_iter().zip([16, 16, 10, 4]) {
            for (mki, extra) in [(false, 0), (true, 4)] {
                let (ours, theirs) = pair(suite, mki);
                let (mut ours, mut theirs) = (side(&ours), side(&theirs));
                for sequence in [65_533, 65_534, 65_535, 0, 1] {
                    let protected = ours.protect(&rtp(sequence)).unwrap();
                    assert_eq!(protected.len(), 172 + tag + extra, "{suite:?}");
                    assert_ne!(protected[12..172], rtp(sequence)[12..]);
                    assert_eq!(theirs.open(&protected), Some(rtp(sequence)), "{suite:?} {sequence}");
                }
                let report = [0x80, 201, 0, 1, 0, 0, 0, 7];
                let protected = ours.protect_rtcp(&report).unwrap();
                assert_eq!(theirs.open_rtcp(&protected), Some(report.to_vec()), "{suite:?}");
                let mut forged = ours.protect(&rtp(2)).unwrap();
                forged[20] ^= 1;
                assert_eq!((theirs.open(&forged), theirs.open(&rtp(3))), (None, None));
                assert_eq!(theirs.auth_failed, 2);
            }
        }
    }

    /// Goal: RFC 3711 is what rtc-srtp speaks here: a known packet under a known key.
    /// Method: the packet of libsrtp's `srtp_validate` (test/srtp_driver.c), AES_CM_128_HMAC_SHA1_80.
    #[test]
    fn the_reference_packet_of_libsrtp_comes_out() {
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let key = Key {
            material: bytes("e1f97a0d3e018be0d64fa32c06de41390ec675ad498afeebb6960b3aabe6"),
            mki: None,
        };
        let suite = Suite::AesCm128HmacSha1_80;
        let mut srtp = side(&Agreed { suite, send: key.clone(), receive: key });
        let plain = bytes("800f1234decafbadcafebabeabababababababababababababababab");
        let protected = bytes("800f1234decafbadcafebabe4e55dc4ce79978d88ca4d215949d2402b78d6acc99ea179b8dbb");
        assert_eq!(srtp.protect(&plain).unwrap(), protected);
        assert_eq!(srtp.open(&protected), Some(plain));
    }

    /// Goal: after a change of keys both old packets on their way and new ones too early are heard.
    /// Method: a packet under the new key before `agree`, one under the old key after it.
    #[test]
    fn a_change_of_keys_loses_nothing() {
        let suite = Suite::AeadAes128Gcm;
        let ((old_ours, old_theirs), (new_ours, new_theirs)) = (pair(suite, false), pair(suite, false));
        let (mut ear, mut old_mouth) = (side(&old_ours), side(&old_theirs));
        ear.expect_keys();
        let early = side(&new_theirs).protect(&rtp(2)).unwrap();
        assert_eq!(ear.open(&early), None);
        assert_eq!(ear.agree(Some(&new_ours)).unwrap(), [rtp(2)]);
        let late = old_mouth.protect(&rtp(1)).unwrap();
        assert_eq!((ear.open(&late), ear.auth_failed), (Some(rtp(1)), 0));
    }

    /// Goal: the same keys again (hold, session timer) keep the rollover counter.
    /// Method: cross the wrap, agree on the same keys, go on.
    #[test]
    fn the_same_keys_again_keep_the_rollover_counter() {
        let (ours, theirs) = pair(Suite::AesCm128HmacSha1_80, false);
        let (mut mouth, mut ear) = (side(&ours), side(&theirs));
        for sequence in [65_535, 0] {
            let protected = mouth.protect(&rtp(sequence)).unwrap();
            assert!(ear.open(&protected).is_some());
        }
        mouth.agree(Some(&ours)).unwrap();
        ear.agree(Some(&theirs)).unwrap();
        let protected = mouth.protect(&rtp(1)).unwrap();
        assert_eq!(ear.open(&protected), Some(rtp(1)));
        assert_ne!(side(&ours).protect(&rtp(1)).unwrap(), protected, "a new start would differ");
    }
}
