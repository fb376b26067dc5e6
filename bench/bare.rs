//! SRTP's ciphers alone: no header, index, replay window, MKI or tag in its place.

use aes::Aes128Enc;
use aes::cipher::{InnerIvInit, KeyInit, StreamCipher};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use ctr::{Ctr128BE, CtrCore};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use voxring::base::config::SrtpSuite;
use voxring::rtp::packet::HEADER_BYTES;

/// The MAC is over so many bytes behind the packet too, as SRTP's is over the rollover counter.
const ROLLOVER_BYTES: usize = 4;

/// Keys at hand; all have the same.
#[expect(clippy::large_enum_variant, reason = "a box would be on the measured way")]
pub(crate) enum Bare {
    Gcm(LessSafeKey),
    Cm(Aes128Enc, Hmac<Sha1>),
}

impl Bare {
    /// Keys for this suite.
    pub(crate) fn new(suite: SrtpSuite) -> Self {
        let gcm = |algorithm, key| UnboundKey::new(algorithm, key).map(LessSafeKey::new).expect("its length");
        match suite {
            SrtpSuite::AeadAes128Gcm => Self::Gcm(gcm(&AES_128_GCM, &[1; 16])),
            SrtpSuite::AeadAes256Gcm => Self::Gcm(gcm(&AES_256_GCM, &[1; 32])),
            SrtpSuite::AesCm128HmacSha1_80 | SrtpSuite::AesCm128HmacSha1_32 => {
                let mac = Hmac::<Sha1>::new_from_slice(&[1; 20]).expect("any length");
                Self::Cm(Aes128Enc::new(&[1; 16].into()), mac)
            }
        }
    }

    /// Bytes of the tag behind a packet.
    pub(crate) fn tag_bytes(&self) -> usize {
        match self {
            Self::Gcm(_) => 16,
            Self::Cm(..) => 10,
        }
    }

    /// Encrypts the payload of `packet[..len]` and gives the tag of it and the header.
    pub(crate) fn seal(&self, packet: &mut [u8], len: usize) -> [u8; 20] {
        let mut tag = [0; 20];
        match self {
            Self::Gcm(key) => {
                let (header, rest) = packet.split_at_mut(HEADER_BYTES);
                let sealed = key
                    .seal_in_place_separate_tag(nonce(), Aad::from(&*header), &mut rest[..len - HEADER_BYTES])
                    .expect("sealed");
                tag[..16].copy_from_slice(sealed.as_ref());
            }
            Self::Cm(cipher, mac) => {
                keystream(cipher, &mut packet[HEADER_BYTES..len]);
                tag = hmac(mac, &packet[..len + ROLLOVER_BYTES]);
            }
        }
        tag
    }

    /// Compares the tag and decrypts the payload of `packet[..len]`; GCM's tag is behind it.
    pub(crate) fn open(&self, packet: &mut [u8], len: usize, tag: &[u8; 20]) -> bool {
        match self {
            Self::Gcm(key) => {
                let (header, rest) = packet.split_at_mut(HEADER_BYTES);
                key.open_in_place(nonce(), Aad::from(&*header), &mut rest[..len - HEADER_BYTES + 16]).is_ok()
            }
            Self::Cm(cipher, mac) => {
                let equal =
                    verify_slices_are_equal(&hmac(mac, &packet[..len + ROLLOVER_BYTES])[..10], &tag[..10])
                        .is_ok();
                keystream(cipher, &mut packet[HEADER_BYTES..len]);
                equal
            }
        }
    }
}

/// The same for all packets, which is nothing to hide anything by.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([7; 12])
}

fn keystream(cipher: &Aes128Enc, text: &mut [u8]) {
    Ctr128BE::from_core(CtrCore::inner_iv_init(cipher, &[7; 16].into())).apply_keystream(text);
}

fn hmac(mac: &Hmac<Sha1>, bytes: &[u8]) -> [u8; 20] {
    let mut mac = mac.clone();
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}
