//! What protects the packets of one direction: cipher, and what stands behind the plain packet.

use std::ops::Range;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::SrtpError;
use super::cm::Cm;
use super::derive::Label;
use super::gcm::{self, Gcm};
use super::keys::{MKI_BYTES_MAX, MasterKey};
use crate::base::config::SrtpSuite;

/// Bytes of an RTCP header up to the SSRC's end: never encrypted (RFC 3711 §3.4).
pub(super) const RTCP_CLEAR_BYTES: usize = 8;
/// Bytes of the E flag and SRTCP index.
pub(super) const INDEX_BYTES: usize = 4;
/// E: the packet is encrypted (RFC 3711 §3.4).
const ENCRYPTED: u32 = 1 << 31;

/// Whose packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Rtp,
    Rtcp,
}

/// Where an RTP packet begins to be encrypted, and what its IV is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct RtpHead {
    /// Bytes of the header with CSRC list and extension (RFC 3711 §3.1).
    pub(super) bytes: usize,
    pub(super) ssrc: u32,
    pub(super) index: u64,
}

/// Session keys of one direction for SRTP or SRTCP, and the layout they bring.
pub(super) struct Transform {
    cipher: Cipher,
    /// Ranges and positions from the plain packet's end.
    tag: Range<usize>,
    mki: Range<usize>,
    index: usize,
    /// Of all these together.
    overhead: usize,
    mki_bytes: [u8; MKI_BYTES_MAX],
}

#[expect(clippy::large_enum_variant, reason = "a box would be one more place far from the packet")]
enum Cipher {
    Gcm(Gcm),
    Cm(Cm),
}

impl Transform {
    pub(super) fn new(master: &MasterKey, protocol: Protocol) -> Self {
        let (cipher, mac, salt) = match protocol {
            Protocol::Rtp => (Label::RtpCipher, Label::RtpMac, Label::RtpSalt),
            Protocol::Rtcp => (Label::RtcpCipher, Label::RtcpMac, Label::RtcpSalt),
        };
        match master.suite() {
            SrtpSuite::AeadAes128Gcm | SrtpSuite::AeadAes256Gcm => {
                Self::from_gcm(Gcm::new(master, cipher, salt), protocol, master)
            }
            SrtpSuite::AesCm128HmacSha1_80 | SrtpSuite::AesCm128HmacSha1_32 => {
                let cm = Cm::new(master, cipher, mac, salt);
                // RFC 4568 §6.2.2: the short tag is for SRTP only.
                let short = master.suite() == SrtpSuite::AesCm128HmacSha1_32 && protocol == Protocol::Rtp;
                Self::from_cm(cm, protocol, master, if short { 4 } else { 10 })
            }
        }
    }

    /// RFC 7714 §8.2 and §9.2: ciphertext and tag, then the index, then the MKI.
    pub(super) fn from_gcm(gcm: Gcm, protocol: Protocol, master: &MasterKey) -> Self {
        let index = gcm::TAG_BYTES;
        let mki_at = index + index_bytes(protocol);
        let mut transform = Self::with_mki(Cipher::Gcm(gcm), master, mki_at);
        (transform.tag, transform.index) = (0..index, index);
        transform.overhead = transform.mki.end;
        transform
    }

    /// RFC 3711 §3.1 and §3.4: the index, then the MKI, then the tag.
    fn from_cm(cm: Cm, protocol: Protocol, master: &MasterKey, tag_bytes: usize) -> Self {
        let mut transform = Self::with_mki(Cipher::Cm(cm), master, index_bytes(protocol));
        transform.tag = transform.mki.end..transform.mki.end + tag_bytes;
        transform.overhead = transform.tag.end;
        transform
    }

    fn with_mki(cipher: Cipher, master: &MasterKey, mki_at: usize) -> Self {
        let mut transform = Self {
            cipher,
            tag: 0..0,
            mki: mki_at..mki_at,
            index: 0,
            overhead: 0,
            mki_bytes: [0; MKI_BYTES_MAX],
        };
        if let Some((bytes, len)) = master.mki().map(super::Mki::wire) {
            transform.mki.end = mki_at + len;
            transform.mki_bytes[..len].copy_from_slice(&bytes[MKI_BYTES_MAX - len..]);
        }
        transform
    }

    /// Brings near what is behind a pointer, when this is.
    pub(super) fn prefetch_key(&self) {
        if let Cipher::Gcm(gcm) = &self.cipher {
            gcm.prefetch();
        }
    }

    /// Protects the packet `buf[..len]`. `None`: `buf` is too short.
    pub(super) fn seal_rtp(&self, buf: &mut [u8], len: usize, head: RtpHead) -> Option<usize> {
        let (packet, trailer) = buf.get_mut(..len + self.overhead)?.split_at_mut_checked(len)?;
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                let (clear, text) = packet.split_at_mut_checked(head.bytes)?;
                let tag = gcm.seal(head.ssrc, head.index, clear, text)?;
                *trailer.first_chunk_mut()? = tag;
            }
            Cipher::Cm(cm) => {
                cm.apply_keystream(head.ssrc, head.index, packet.get_mut(head.bytes..)?);
                let mac = cm.mac(packet, &rollover(head.index));
                trailer.get_mut(self.tag.clone())?.copy_from_slice(&mac[..self.tag.len()]);
            }
        }
        self.write_mki(trailer)?;
        Some(len + self.overhead)
    }

    /// Gives the plain length of a packet, whose MKI is right.
    pub(super) fn check(&self, packet: &[u8], head_bytes: usize) -> Result<usize, SrtpError> {
        let len = packet.len().checked_sub(self.overhead).ok_or(SrtpError::Short)?;
        if len < head_bytes {
            return Err(SrtpError::Short);
        }
        let mki = packet.get(len + self.mki.start..len + self.mki.end).ok_or(SrtpError::Short)?;
        // Most have none, and comparing nothing is a call all the same.
        if !mki.is_empty() && mki != &self.mki_bytes[..mki.len()] {
            return Err(SrtpError::Mki);
        }
        Ok(len)
    }

    /// Opens a packet whose plain length `check` gave.
    pub(super) fn open_rtp(&self, packet: &mut [u8], len: usize, head: RtpHead) -> Result<(), SrtpError> {
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                let end = len + self.tag.end;
                let (clear, text) = split(packet.get_mut(..end), head.bytes)?;
                gcm.open(head.ssrc, head.index, clear, text).then_some(()).ok_or(SrtpError::Auth)
            }
            Cipher::Cm(cm) => {
                let (packet, trailer) = split(Some(packet), len)?;
                let mac = cm.mac(packet, &rollover(head.index));
                self.verify(&mac, trailer)?;
                cm.apply_keystream(head.ssrc, head.index, packet.get_mut(head.bytes..).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// Protects the compound `buf[..len]`, of at least 8 bytes. `None`: `buf` is too short.
    pub(super) fn seal_rtcp(&self, buf: &mut [u8], len: usize, ssrc: u32, index: u32) -> Option<usize> {
        let (packet, trailer) = buf.get_mut(..len + self.overhead)?.split_at_mut_checked(len)?;
        let word = (index | ENCRYPTED).to_be_bytes();
        trailer.get_mut(self.index..)?.first_chunk_mut::<INDEX_BYTES>()?.copy_from_slice(&word);
        let (clear, text) = packet.split_at_mut_checked(RTCP_CLEAR_BYTES)?;
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                let tag = gcm.seal(ssrc, index.into(), &rtcp_clear(clear, word)?, text)?;
                *trailer.first_chunk_mut()? = tag;
            }
            Cipher::Cm(cm) => {
                cm.apply_keystream(ssrc, index.into(), text);
                let mac = cm.mac(buf.get(..len + INDEX_BYTES)?, &[]);
                let trailer = buf.get_mut(len..)?;
                trailer.get_mut(self.tag.clone())?.copy_from_slice(&mac[..self.tag.len()]);
            }
        }
        self.write_mki(buf.get_mut(len..)?)?;
        Some(len + self.overhead)
    }

    /// The SRTCP index of a packet whose plain length `check` gave.
    pub(super) fn rtcp_index(&self, packet: &[u8], len: usize) -> Result<u32, SrtpError> {
        Ok(self.index_word(packet, len)? & !ENCRYPTED)
    }

    fn index_word(&self, packet: &[u8], len: usize) -> Result<u32, SrtpError> {
        let bytes = packet.get(len + self.index..).and_then(|rest| rest.first_chunk::<INDEX_BYTES>());
        bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(SrtpError::Short)
    }

    /// Opens a compound whose plain length `check` gave.
    pub(super) fn open_rtcp(&self, packet: &mut [u8], len: usize, ssrc: u32) -> Result<(), SrtpError> {
        let word = self.index_word(packet, len)?;
        let (index, encrypted) = (u64::from(word & !ENCRYPTED), word & ENCRYPTED != 0);
        match &self.cipher {
            Cipher::Gcm(gcm) => {
                let (clear, text) = split(packet.get_mut(..len + self.tag.end), RTCP_CLEAR_BYTES)?;
                let sound = if encrypted {
                    let clear = rtcp_clear(clear, word.to_be_bytes()).ok_or(SrtpError::Short)?;
                    gcm.open(ssrc, index, &clear, text)
                } else {
                    self.is_tagged(gcm, packet, len, ssrc, index)
                };
                sound.then_some(()).ok_or(SrtpError::Auth)
            }
            Cipher::Cm(cm) => {
                let mac = cm.mac(packet.get(..len + INDEX_BYTES).ok_or(SrtpError::Short)?, &[]);
                let (packet, trailer) = split(Some(packet), len)?;
                self.verify(&mac, trailer)?;
                if encrypted {
                    cm.apply_keystream(ssrc, index, packet.get_mut(RTCP_CLEAR_BYTES..).unwrap_or_default());
                }
                Ok(())
            }
        }
    }

    /// RFC 7714 §9.3: not encrypted, so all of it and the index are what the tag is about. The index
    /// goes where the tag was, to be beside the packet.
    fn is_tagged(&self, gcm: &Gcm, packet: &mut [u8], len: usize, ssrc: u32, index: u64) -> bool {
        let Some(rest) = packet.get_mut(len..) else { return false };
        let Some(mut tag) = rest.first_chunk::<{ gcm::TAG_BYTES }>().copied() else { return false };
        rest.copy_within(self.index..self.index + INDEX_BYTES, 0);
        packet.get(..len + INDEX_BYTES).is_some_and(|clear| gcm.open(ssrc, index, clear, &mut tag))
    }

    fn verify(&self, mac: &[u8], trailer: &[u8]) -> Result<(), SrtpError> {
        let tag = trailer.get(self.tag.clone()).ok_or(SrtpError::Short)?;
        verify_slices_are_equal(&mac[..self.tag.len()], tag).map_err(|_| SrtpError::Auth)
    }

    fn write_mki(&self, trailer: &mut [u8]) -> Option<()> {
        if !self.mki.is_empty() {
            let mki = trailer.get_mut(self.mki.clone())?;
            mki.copy_from_slice(&self.mki_bytes[..mki.len()]);
        }
        Some(())
    }
}

fn index_bytes(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Rtp => 0,
        Protocol::Rtcp => INDEX_BYTES,
    }
}

/// The rollover counter as it is authenticated (RFC 3711 §4.2).
fn rollover(index: u64) -> [u8; 4] {
    let [_, _, r0, r1, r2, r3, _, _] = index.to_be_bytes();
    [r0, r1, r2, r3]
}

/// RFC 7714 §9.2: the associated data of an encrypted compound, header and index.
fn rtcp_clear(header: &[u8], word: [u8; INDEX_BYTES]) -> Option<[u8; RTCP_CLEAR_BYTES + INDEX_BYTES]> {
    let mut clear = [0; RTCP_CLEAR_BYTES + INDEX_BYTES];
    let (start, end) = clear.split_at_mut(RTCP_CLEAR_BYTES);
    start.copy_from_slice(header.get(..RTCP_CLEAR_BYTES)?);
    end.copy_from_slice(&word);
    Some(clear)
}

fn split(packet: Option<&mut [u8]>, at: usize) -> Result<(&mut [u8], &mut [u8]), SrtpError> {
    packet.and_then(|packet| packet.split_at_mut_checked(at)).ok_or(SrtpError::Short)
}
