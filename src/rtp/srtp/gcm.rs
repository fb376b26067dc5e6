//! AES in Galois/counter mode (RFC 7714): one pass encrypts and authenticates.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::derive::{Label, SESSION_KEY_BYTES_MAX, derive};
use super::keys::{MasterKey, key_bytes};

/// Bytes of the tag (RFC 7714 §13.1).
pub(super) const TAG_BYTES: usize = 16;
const SALT_BYTES: usize = 12;
const IV_BYTES: usize = 12;

/// Session key and salt of SRTP or of SRTCP.
pub(super) struct Gcm {
    key: LessSafeKey,
    /// The salt at the upper end of 128 bits: an IV is their first 12 bytes.
    salt: u128,
}

impl Gcm {
    pub(super) fn new(master: &MasterKey, cipher: Label, salt: Label) -> Self {
        let (mut key, mut salt_bytes) = ([0; SESSION_KEY_BYTES_MAX], [0; SALT_BYTES]);
        let key = &mut key[..key_bytes(master.suite())];
        derive(master, cipher, key);
        derive(master, salt, &mut salt_bytes);
        Self::from_session_key(key, salt_bytes)
    }

    /// `key` has 16 or 32 bytes.
    pub(super) fn from_session_key(key: &[u8], salt: [u8; SALT_BYTES]) -> Self {
        let algorithm = if key.len() == SESSION_KEY_BYTES_MAX { &AES_256_GCM } else { &AES_128_GCM };
        let key = UnboundKey::new(algorithm, key).expect("a key of 16 or 32 bytes");
        let salt = salt.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte)) << 32;
        Self { key: LessSafeKey::new(key), salt }
    }

    /// Encrypts `text` in place and gives the tag over `clear` and it.
    pub(super) fn seal(
        &self,
        ssrc: u32,
        index: u64,
        clear: &[u8],
        text: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        let tag =
            self.key.seal_in_place_separate_tag(self.nonce(ssrc, index), Aad::from(clear), text).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts `text`, which ends in its tag, in place. False: it or `clear` is not what was
    /// sealed, and `text` is lost.
    pub(super) fn open(&self, ssrc: u32, index: u64, clear: &[u8], text: &mut [u8]) -> bool {
        self.key.open_in_place(self.nonce(ssrc, index), Aad::from(clear), text).is_ok()
    }

    /// RFC 7714 §8.1 and §9.1 agree: SSRC and a packet index of 48 or 31 bits, XOR the salt.
    fn nonce(&self, ssrc: u32, index: u64) -> Nonce {
        let bytes = (self.salt ^ u128::from(ssrc) << 80 ^ u128::from(index) << 32).to_be_bytes();
        let iv = bytes.first_chunk::<IV_BYTES>().expect("12 of 16 bytes");
        Nonce::assume_unique_for_key(*iv)
    }
}
