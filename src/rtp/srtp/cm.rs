//! AES-128 in counter mode with HMAC-SHA1 (RFC 3711 §4.1.1, §4.2.1).

use aes::Aes128Enc;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

use super::hmac::{HmacSha1, MAC_BYTES};

use super::derive::{Label, derive};
use super::keys::MasterKey;
/// Bytes of the authentication key (RFC 3711 §8.2).
const MAC_KEY_BYTES: usize = 20;
const KEY_BYTES: usize = 16;
const SALT_BYTES: usize = 14;
const BLOCK_BYTES: usize = 16;
/// Blocks of keystream made at once: more than 20 ms of G.711 need.
const STREAM_BLOCKS: usize = 16;

/// Session keys and salt of SRTP or of SRTCP.
pub(super) struct Cm {
    /// The key, expanded.
    cipher: Aes128Enc,
    mac: HmacSha1,
    /// The salt at the upper end of an IV.
    salt: u128,
}

impl Cm {
    pub(super) fn new(master: &MasterKey, cipher: Label, mac: Label, salt: Label) -> Self {
        let (mut key, mut mac_key, mut salt_bytes) = ([0; KEY_BYTES], [0; MAC_KEY_BYTES], [0; SALT_BYTES]);
        derive(master, cipher, &mut key);
        derive(master, mac, &mut mac_key);
        derive(master, salt, &mut salt_bytes);
        Self::from_session_keys(key, mac_key, salt_bytes)
    }

    pub(super) fn from_session_keys(
        key: [u8; KEY_BYTES],
        mac_key: [u8; MAC_KEY_BYTES],
        salt: [u8; SALT_BYTES],
    ) -> Self {
        let salt = salt.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte)) << 16;
        Self { cipher: Aes128Enc::new(&key.into()), mac: HmacSha1::new(&mac_key), salt }
    }

    /// Encrypts or decrypts in place. A datagram is far shorter than the 2^16 blocks of one IV.
    pub(super) fn apply_keystream(&self, ssrc: u32, index: u64, text: &mut [u8]) {
        // RFC 3711 §4.1.1; an SRTCP index stands where an SRTP index does (§4.1).
        let mut counter = self.salt ^ u128::from(ssrc) << 64 ^ u128::from(index) << 16;
        let mut stream = [[0; BLOCK_BYTES]; STREAM_BLOCKS];
        for text in text.chunks_mut(STREAM_BLOCKS * BLOCK_BYTES) {
            let stream = &mut stream[..text.len().div_ceil(BLOCK_BYTES)];
            for block in stream.iter_mut() {
                *block = counter.to_be_bytes();
                counter += 1;
            }
            // All at once: the processor works on several blocks side by side.
            self.cipher.encrypt_blocks(Array::cast_slice_from_core_mut(stream));
            text.iter_mut().zip(stream.as_flattened()).for_each(|(byte, key)| *byte ^= key);
        }
    }

    /// The whole HMAC over `packet` and then `rollover`, which is empty for SRTCP.
    pub(super) fn mac(&self, packet: &[u8], rollover: &[u8]) -> [u8; MAC_BYTES] {
        self.mac.of(packet, rollover)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;

    /// Goal: the keystream is that of RFC 3711 appendix B.2, to its 65282nd block. Method: 1044512
    /// bytes of noughts, the first and last three blocks.
    #[test]
    fn the_keystream_is_that_of_rfc_3711_appendix_b_2() {
        let key = hex("2B7E151628AED2A6ABF7158809CF4F3C").try_into().unwrap();
        let salt = hex("F0F1F2F3F4F5F6F7F8F9FAFBFCFD").try_into().unwrap();
        let cm = Cm::from_session_keys(key, [0; MAC_KEY_BYTES], salt);
        let mut stream = vec![0; 1_044_512];
        cm.apply_keystream(0, 0, &mut stream);
        let first = "E03EAD0935C95E80E166B16DD92B4EB4 D23513162B02D0F72A43A2FE4A5F97AB \
                     41E95B3BB0A2E8DD477901E4FCA894C0";
        let last = "EC8CDF7398607CB0F2D21675EA9EA1E4 362B7C3C6773516318A077D7FC5073AE \
                    6A2CC3787889374FBEB4C81B17BA6C44";
        assert_eq!(stream[..48], hex(first));
        assert_eq!(stream[stream.len() - 48..], hex(last));
    }
}
