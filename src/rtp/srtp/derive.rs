//! Session keys from master keys (RFC 3711 §4.3), with a key derivation rate of nought.

use aes::cipher::{KeyIvInit, StreamCipher};
use ctr::Ctr128BE;

use super::keys::MasterKey;

/// Longest session key: that of AES-256.
pub(super) const SESSION_KEY_BYTES_MAX: usize = 32;

/// Which session key (RFC 3711 §4.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    RtpCipher = 0,
    RtpMac = 1,
    RtpSalt = 2,
    RtcpCipher = 3,
    RtcpMac = 4,
    RtcpSalt = 5,
}

/// Fills `out` with the session key of this label: the keystream of AES in counter mode (RFC 3711
/// §4.3.3), with AES-256 for a master key of 32 bytes (RFC 6188 §3). A salt of 12 bytes is one of
/// 14 that ends in noughts (RFC 7714 §11).
pub(super) fn derive(master: &MasterKey, label: Label, out: &mut [u8]) {
    let mut iv = [0; 16];
    let salt = master.salt();
    iv[..salt.len()].copy_from_slice(salt);
    iv[7] ^= label as u8;
    out.fill(0);
    // The lengths are the suites': the constructor of `MasterKey` saw to them.
    let key = master.key();
    if let Ok(mut stream) = Ctr128BE::<aes::Aes128Enc>::new_from_slices(key, &iv) {
        stream.apply_keystream(out);
    } else {
        let mut stream =
            Ctr128BE::<aes::Aes256Enc>::new_from_slices(key, &iv).expect("a key of 16 or 32 bytes");
        stream.apply_keystream(out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;
    use crate::base::config::SrtpSuite;

    /// Goal: session keys are those of RFC 3711 appendix B.3. Method: its master key and salt, and
    /// the cipher key, salt and 94 bytes of authentication key it lists.
    #[test]
    fn session_keys_are_those_of_rfc_3711_appendix_b_3() {
        let master = hex("E1F97A0D3E018BE0D64FA32C06DE4139 0EC675AD498AFEEBB6960B3AABE6");
        let master = MasterKey::new(SrtpSuite::AesCm128HmacSha1_80, &master, None).unwrap();
        let derived = |label, bytes| {
            let mut out = vec![0xEE; bytes];
            derive(&master, label, &mut out);
            out
        };
        assert_eq!(derived(Label::RtpCipher, 16), hex("C61E7A93744F39EE10734AFE3FF7A087"));
        assert_eq!(derived(Label::RtpSalt, 14), hex("30CBBC08863D8C85D49DB34A9AE1"));
        let mac = "CEBE321F6FF7716B6FD4AB49AF256A15 6D38BAA48F0A0ACF3C34E2359E6CDBCE \
                   E049646C43D9327AD175578EF7227098 6371C10C9A369AC2F94A8C5FBCDDDC25 \
                   6D6E919A48B610EF17C2041E47403576 6B68642C59BBFC2F34DB60DBDFB2";
        assert_eq!(derived(Label::RtpMac, 94), hex(mac));
    }
}
