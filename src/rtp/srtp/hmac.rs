//! HMAC-SHA1 (RFC 2104) of which the key's two blocks are hashed once.
//!
//! The general implementation copies its state with an empty block buffer for each message and
//! fills that buffer piece by piece; here the message is hashed where it lies.

use sha1::block_api::compress;

/// Bytes of a whole HMAC-SHA1; tags are its beginning.
pub(super) const MAC_BYTES: usize = 20;
/// Bytes of a SHA-1 block.
const BLOCK_BYTES: usize = 64;
/// Bytes of the message's length in bits, at the end of its last block.
const LENGTH_BYTES: usize = 8;
/// SHA-1's initial state (FIPS 180-4 §5.3.3).
const INITIAL: State = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];

type State = [u32; 5];

/// A key, hashed.
pub(super) struct HmacSha1 {
    /// After the block of key XOR ipad.
    inner: State,
    /// After the block of key XOR opad.
    outer: State,
}

impl HmacSha1 {
    /// `key` is shorter than a block, as SRTP's 20 bytes are.
    pub(super) fn new(key: &[u8; 20]) -> Self {
        let after = |pad: u8| {
            let (mut state, mut block) = (INITIAL, [pad; BLOCK_BYTES]);
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            compress(&mut state, &[block]);
            state
        };
        Self { inner: after(0x36), outer: after(0x5C) }
    }

    /// The HMAC of `message` and `more`, which is at most 4 bytes.
    pub(super) fn of(&self, message: &[u8], more: &[u8]) -> [u8; MAC_BYTES] {
        let mut state = self.inner;
        let (blocks, rest) = message.as_chunks::<BLOCK_BYTES>();
        compress(&mut state, blocks);
        // At most 63 + 4 bytes of message, then the end mark and the length: one block or two.
        let mut end = [[0; BLOCK_BYTES]; 2];
        let used = rest.len() + more.len();
        let bytes = end.as_flattened_mut();
        bytes[..rest.len()].copy_from_slice(rest);
        bytes[rest.len()..used].copy_from_slice(more);
        bytes[used] = 0x80;
        let blocks = (used + 1 + LENGTH_BYTES).div_ceil(BLOCK_BYTES);
        let length = bits(BLOCK_BYTES + message.len() + more.len());
        bytes[blocks * BLOCK_BYTES - LENGTH_BYTES..blocks * BLOCK_BYTES].copy_from_slice(&length);
        compress(&mut state, &end[..blocks]);

        let mut last = [0; BLOCK_BYTES];
        last[..MAC_BYTES].copy_from_slice(&bytes_of(state));
        last[MAC_BYTES] = 0x80;
        last[BLOCK_BYTES - LENGTH_BYTES..].copy_from_slice(&bits(BLOCK_BYTES + MAC_BYTES));
        let mut state = self.outer;
        compress(&mut state, &[last]);
        bytes_of(state)
    }
}

fn bits(bytes: usize) -> [u8; LENGTH_BYTES] {
    (bytes as u64 * 8).to_be_bytes()
}

fn bytes_of(state: State) -> [u8; MAC_BYTES] {
    let mut bytes = [0; MAC_BYTES];
    bytes.as_chunks_mut::<4>().0.iter_mut().zip(state).for_each(|(bytes, word)| *bytes = word.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac};
    use sha1::Sha1;

    use super::super::testing::hex;
    use super::*;

    /// Goal: it is the HMAC-SHA1 of RFC 2202. Method: its first case, whose key has 20 bytes.
    #[test]
    fn the_mac_is_that_of_rfc_2202() {
        let mac = HmacSha1::new(&[0x0B; 20]);
        let wanted = hex("b617318655057264e28bc0b6fb378c8ef146be00");
        assert_eq!(mac.of(b"Hi There", &[]).to_vec(), wanted);
        assert_eq!(mac.of(b"Hi T", b"here").to_vec(), wanted);
    }

    /// Goal: no length is special. Method: each up to five blocks, with and without four bytes
    /// more, against another implementation.
    #[test]
    fn messages_of_each_length_have_the_mac_of_another_implementation() {
        let key = *b"twenty bytes of key.";
        let mac = HmacSha1::new(&key);
        let other = Hmac::<Sha1>::new_from_slice(&key).unwrap();
        let message: Vec<u8> = (0..=255).chain(0..64).collect();
        for len in 0..=message.len() {
            for more in [&[][..], &[1, 2, 3, 4]] {
                let wanted = other.clone().chain_update(&message[..len]).chain_update(more).finalize();
                assert_eq!(mac.of(&message[..len], more), *wanted.into_bytes(), "{len} and {}", more.len());
            }
        }
    }
}
