//! AES in Galois/counter mode (RFC 7714): one pass encrypts and authenticates.

use super::derive::{Label, SESSION_KEY_BYTES_MAX, derive};
use super::keys::{MasterKey, key_bytes};
pub(super) use crate::uring::aead::TAG_BYTES;
use crate::uring::aead::{Aead, IV_BYTES};

const SALT_BYTES: usize = 12;

/// Session key and salt of SRTP or of SRTCP.
pub(super) struct Gcm {
    key: Aead,
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
        let salt = salt.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte)) << 32;
        Self { key: Aead::aes_gcm(key), salt }
    }

    /// Encrypts `text` in place and gives the tag over `clear` and it.
    pub(super) fn seal(
        &self,
        ssrc: u32,
        index: u64,
        clear: &[u8],
        text: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        self.key.seal(&self.nonce(ssrc, index), clear, text)
    }

    /// Decrypts `text`, which ends in its tag, in place. False: it or `clear` is not what was
    /// sealed, and `text` is lost.
    pub(super) fn open(&self, ssrc: u32, index: u64, clear: &[u8], text: &mut [u8]) -> bool {
        self.key.open(&self.nonce(ssrc, index), clear, text)
    }

    /// RFC 7714 §8.1 and §9.1 agree: SSRC and a packet index of 48 or 31 bits, XOR the salt.
    fn nonce(&self, ssrc: u32, index: u64) -> [u8; IV_BYTES] {
        let bytes = (self.salt ^ u128::from(ssrc) << 80 ^ u128::from(index) << 32).to_be_bytes();
        *bytes.first_chunk().expect("12 of 16 bytes")
    }

    /// Brings the key's context near, when this is.
    pub(super) fn prefetch(&self) {
        self.key.prefetch();
    }
}
