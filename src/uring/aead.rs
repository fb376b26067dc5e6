//! AES-GCM of aws-lc with its contexts where a media loop wants them.
//!
//! The safe interface keeps each context in an allocation nobody knows: some ten cache lines in a page of its
//! own, far away whenever a packet comes, and not to be asked for before. Here contexts lie in huge pages.
#![expect(unsafe_code, reason = "the library's own functions")]

use std::mem::MaybeUninit;
use std::ptr;

use aws_lc_sys::{
    ENGINE, EVP_AEAD_CTX, EVP_AEAD_CTX_cleanup, EVP_AEAD_CTX_init, EVP_AEAD_CTX_open_gather,
    EVP_AEAD_CTX_seal_scatter, EVP_aead_aes_128_gcm, EVP_aead_aes_256_gcm, OPENSSL_cleanse,
};

use super::{HugeBox, prefetch};

/// Bytes of the tag (RFC 7714 §13.1).
pub const TAG_BYTES: usize = 16;
/// Bytes of a nonce (RFC 7714 §8.1).
pub const IV_BYTES: usize = 12;
/// Bytes of a key of AES-256.
const LONG_KEY_BYTES: usize = 32;

/// A key, expanded. Initialised in its place, which its inner alignment depends on, and never moved.
pub struct Aead(HugeBox<MaybeUninit<EVP_AEAD_CTX>>);

impl Aead {
    /// AES-128-GCM or AES-256-GCM: `key` has 16 or 32 bytes.
    pub fn aes_gcm(key: &[u8]) -> Self {
        aws_lc_rs::init();
        let mut context = HugeBox::new(MaybeUninit::<EVP_AEAD_CTX>::zeroed());
        // SAFETY: these take nothing and give constants.
        let cipher = unsafe {
            if key.len() == LONG_KEY_BYTES { EVP_aead_aes_256_gcm() } else { EVP_aead_aes_128_gcm() }
        };
        let engine = ptr::null_mut::<ENGINE>();
        // SAFETY: a context of zeroes may be initialised; `key` is that long, and copied.
        let done = unsafe {
            EVP_AEAD_CTX_init(context.as_mut_ptr(), cipher, key.as_ptr(), key.len(), TAG_BYTES, engine)
        };
        assert_eq!(done, 1, "a key of 16 or 32 bytes");
        Self(context)
    }

    /// Encrypts `text` in place and gives the tag over `clear` and it. `None`: `text` is longer than GCM allows.
    pub fn seal(&self, nonce: &[u8; IV_BYTES], clear: &[u8], text: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let (mut tag, mut tag_bytes) = ([0; TAG_BYTES], 0);
        // SAFETY: the context was initialised in `aes_gcm`. Each pointer goes with its length; output and
        // input may be the same bytes; there is no further input.
        let done = unsafe {
            EVP_AEAD_CTX_seal_scatter(
                self.0.as_ptr(),
                text.as_mut_ptr(),
                tag.as_mut_ptr(),
                &raw mut tag_bytes,
                TAG_BYTES,
                nonce.as_ptr(),
                IV_BYTES,
                text.as_ptr(),
                text.len(),
                ptr::null(),
                0,
                clear.as_ptr(),
                clear.len(),
            )
        };
        (done == 1 && tag_bytes == TAG_BYTES).then_some(tag)
    }

    /// Decrypts `text`, which ends in its tag, in place. False: it or `clear` is not what was sealed, and
    /// `text` is lost.
    pub fn open(&self, nonce: &[u8; IV_BYTES], clear: &[u8], text: &mut [u8]) -> bool {
        let Some((text, tag)) = text.split_last_chunk_mut::<TAG_BYTES>() else { return false };
        // SAFETY: as in `seal`; the tag lies apart from the text.
        let done = unsafe {
            EVP_AEAD_CTX_open_gather(
                self.0.as_ptr(),
                text.as_mut_ptr(),
                nonce.as_ptr(),
                IV_BYTES,
                text.as_ptr(),
                text.len(),
                tag.as_ptr(),
                TAG_BYTES,
                clear.as_ptr(),
                clear.len(),
            )
        };
        done == 1
    }

    /// Brings it near.
    pub fn prefetch(&self) {
        prefetch(&*self.0);
    }
}

impl Drop for Aead {
    fn drop(&mut self) {
        let context = self.0.as_mut_ptr();
        // SAFETY: initialised in `aes_gcm`, and not used after this.
        unsafe { EVP_AEAD_CTX_cleanup(context) };
        // SAFETY: these bytes are ours; no key stays in memory that is used again.
        unsafe { OPENSSL_cleanse(context.cast(), size_of::<EVP_AEAD_CTX>()) };
    }
}
