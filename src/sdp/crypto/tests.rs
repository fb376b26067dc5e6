//! Lines of RFC 4568 and of equipment in the field, and what makes a line unusable.

use proptest::prelude::*;

use super::*;

/// Key and salt of RFC 4568's examples, 30 bytes.
const KEY: &str = "MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm";
const KEY_TEXT: &[u8; 30] = b"123456789ABCDE0123456789ABcdef";

fn one(value: &str) -> Result<CryptoLine, CryptoError> {
    read(value, &|_, _| true)
}

fn cm(rest: &str) -> Result<CryptoLine, CryptoError> {
    one(&format!("1 AES_CM_128_HMAC_SHA1_80 {rest}"))
}

/// Goal: lines of RFC 4568 are read; the suite it names that nobody has and MKIs of 32 bytes are
/// passed over. Method: its examples, keys decoded by another implementation of base64.
#[test]
fn the_lines_of_rfc_4568_are_read() {
    let line = cm(&format!("inline:{KEY}|2^20|1:4")).unwrap();
    assert_eq!((line.tag, line.key.suite()), (1, SrtpSuite::AesCm128HmacSha1_80));
    assert_eq!(line.key.key_and_salt(), KEY_TEXT);
    assert_eq!(line.key.mki(), Some(Mki { value: 1, bytes: 4 }));
    let of_32_bytes = "inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR|2^20|1:32";
    assert_eq!(cm(of_32_bytes), Err(CryptoError::Mki));
    let key = cm("inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR").unwrap().key;
    assert_eq!((key.key_and_salt(), key.mki()), (&b"=-n@%^x!Bjufr9)?,#5h\\`=&]{qiPQ"[..], None));
    let f8 = format!("2 F8_128_HMAC_SHA1_80 inline:{KEY}|2^20|1:4");
    assert_eq!(one(&f8), Err(CryptoError::Suite));
    let two = format!(
        "1 AES_CM_128_HMAC_SHA1_32 inline:NzB4d1BINUAvLEw6UzF3WSJ+PSdFcGdUJShpX1Zj|2^20|1:4;inline:{KEY}|2^20|2:4"
    );
    let first = one(&two).unwrap().key;
    let mki = Some(Mki { value: 1, bytes: 4 });
    assert_eq!((first.mki(), first.suite()), (mki, SrtpSuite::AesCm128HmacSha1_32));
    assert_eq!(first.key_and_salt(), b"70xwPH5@/,L:S1wY\"~='EpgT%(i_Vc");
    assert_eq!(one(&two.replace(";inline", "; inline")).unwrap().key, first);
}

/// Goal: each suite's key has its length, padded or not; base64 in another dress is refused.
/// Method: the bytes 0, 1, 2... of 28 and 44, encoded by another implementation; other lengths.
#[test]
fn keys_have_their_suites_length() {
    let gcm_128 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw";
    let gcm_256 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKis";
    let bytes: Vec<u8> = (0..44).collect();
    for (value, length) in [
        (format!("7 AEAD_AES_128_GCM inline:{gcm_128}=="), 28),
        (format!("7 AEAD_AES_128_GCM inline:{gcm_128}"), 28),
        (format!("7 aead_aes_256_gcm INLINE:{gcm_256}="), 44),
        (format!("7 AEAD_AES_256_GCM inline:{gcm_256}"), 44),
    ] {
        let line = one(&value).unwrap();
        assert_eq!((line.tag, line.key.key_and_salt()), (7, &bytes[..length]), "{value}");
    }
    for key in [
        gcm_128,
        gcm_256,
        "",
        "AA=A",
        "MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVmZw==",
        "MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZ-_m",
        &"A".repeat(5000),
    ] {
        assert_eq!(cm(&format!("inline:{key}")), Err(CryptoError::Key), "{key}");
    }
}

/// Goal: lifetimes from 1 to 2^48 are fine in both forms (RFC 4568 §6.1, RFC 3711 §9.2), MKIs of
/// one to four bytes too; all else makes the line unusable. Method: values at the edges.
#[test]
fn lifetime_and_mki_are_judged_at_their_edges() {
    let judged = |rest: &str| cm(&format!("inline:{KEY}{rest}")).map(|line| line.key.mki());
    let mki = |value, bytes| Ok(Some(Mki { value, bytes }));
    for (rest, expected) in [
        ("", Ok(None)),
        ("|2^31", Ok(None)),
        ("|2^48", Ok(None)),
        ("|2^0", Ok(None)),
        ("|281474976710656", Ok(None)),
        ("|281474976710657", Err(CryptoError::Lifetime)),
        ("|2^49", Err(CryptoError::Lifetime)),
        ("|2^99", Err(CryptoError::Lifetime)),
        ("|3^4", Err(CryptoError::Lifetime)),
        ("|0", Err(CryptoError::Lifetime)),
        ("|", Err(CryptoError::Lifetime)),
        ("|2^31|1:1", mki(1, 1)),
        ("|1:1", mki(1, 1)),
        ("|255:1", mki(255, 1)),
        ("|256:1", Err(CryptoError::Mki)),
        ("|16777215:3", mki(16_777_215, 3)),
        ("|16777216:3", Err(CryptoError::Mki)),
        ("|4294967295:4", mki(u32::MAX, 4)),
        ("|4294967296:4", Err(CryptoError::Mki)),
        ("|1:5", Err(CryptoError::Mki)),
        ("|1:128", Err(CryptoError::Mki)),
        ("|1:129", Err(CryptoError::Syntax)),
        ("|1:0", Err(CryptoError::Syntax)),
        ("|1:1|2^20", Err(CryptoError::Syntax)),
        ("|2^20|1:1|x", Err(CryptoError::Syntax)),
        ("|2^20|2^20", Err(CryptoError::Syntax)),
    ] {
        assert_eq!(judged(rest), expected, "{rest}");
    }
}

/// Goal: several keys need MKIs of one length and different values (RFC 4568 §6.1); the first
/// counts. Method: two keys with each combination.
#[test]
fn several_keys_are_told_apart_by_mki() {
    let two = |first: &str, second: &str| {
        cm(&format!("inline:{KEY}{first};inline:{KEY}{second}")).map(|line| line.key.mki())
    };
    assert_eq!(two("|1:2", "|2:2"), Ok(Some(Mki { value: 1, bytes: 2 })));
    for (first, second) in [("", ""), ("|1:2", ""), ("", "|1:2"), ("|1:2", "|1:2"), ("|1:2", "|2:1")] {
        assert_eq!(two(first, second), Err(CryptoError::Mki), "{first} {second}");
    }
    assert_eq!(two("|1:2", "|2^50|2:2"), Err(CryptoError::Lifetime), "an unsound key spoils the line");
}

/// Goal: a session parameter that we would have to obey makes the line unusable, one that we may
/// ignore does not (RFC 4568 §6.3, §6.3.7). Method: each parameter of the RFC and unknown ones.
#[test]
fn session_parameters_are_obeyed_or_the_line_is_not_used() {
    for (parameters, usable) in [
        ("WSH=64", true),
        ("KDR=0", true),
        ("-UNKNOWN=1 wsh=128", true),
        ("KDR=1", false),
        ("KDR=24", false),
        ("KDR", false),
        ("WSH=x", false),
        ("UNENCRYPTED_SRTP", false),
        ("UNENCRYPTED_SRTCP", false),
        ("UNAUTHENTICATED_SRTP", false),
        ("FEC_ORDER=FEC_SRTP", false),
        ("FEC_KEY=inline:x", false),
        ("UNKNOWN", false),
        ("WSH=64 UNKNOWN=1", false),
    ] {
        assert_eq!(cm(&format!("inline:{KEY} {parameters}")).is_ok(), usable, "{parameters}");
    }
}

/// Goal: what is no line of RFC 4568 is told from one of another suite or method, and no text of it
/// is repeated. Method: broken lines.
#[test]
fn broken_lines_are_unusable_and_never_repeated() {
    for (value, expected) in [
        ("", CryptoError::Syntax),
        ("x", CryptoError::Syntax),
        ("1", CryptoError::Syntax),
        ("-1 AES_CM_128_HMAC_SHA1_80 inline:secret", CryptoError::Syntax),
        ("1234567890 AES_CM_128_HMAC_SHA1_80 inline:secret", CryptoError::Syntax),
        ("1 AES_CM_128_HMAC_SHA1_80", CryptoError::Syntax),
        ("1 AES_CM_128_HMAC_SHA1_80 secret", CryptoError::Syntax),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:secret;", CryptoError::Syntax),
        ("1 AES_CM_128_HMAC_SHA1_80 uri:secret", CryptoError::Method),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:secret", CryptoError::Key),
        ("1 NONE inline:secret", CryptoError::Suite),
    ] {
        let error = one(value).unwrap_err();
        assert_eq!(error, expected, "{value}");
        assert!(!error.to_string().contains("secret"));
    }
}

/// Goal: what we write follows the grammar of RFC 4568 §9.1. Method: the text for the example's
/// key, and for one that needs padding.
#[test]
fn our_lines_are_those_of_the_grammar() {
    let key = MasterKey::new(SrtpSuite::AesCm128HmacSha1_80, KEY_TEXT, None).unwrap();
    assert_eq!(write(3, &key), format!("3 AES_CM_128_HMAC_SHA1_80 inline:{KEY}"));
    let bytes: Vec<u8> = (0..28).collect();
    let key = MasterKey::new(SrtpSuite::AeadAes128Gcm, &bytes, None).unwrap();
    assert_eq!(write(1, &key), "1 AEAD_AES_128_GCM inline:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==");
}

/// A sound line's pieces, and what breaks them.
const PIECES: [&str; 22] = [
    "1",
    "0",
    "999999999",
    "4294967296",
    " ",
    "  ",
    "AES_CM_128_HMAC_SHA1_80",
    "AEAD_AES_256_GCM",
    "inline:",
    "MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm",
    "=",
    "|",
    "2^48",
    "2^99",
    "2^",
    "1:4",
    ":",
    "1:200",
    ";",
    "KDR=0",
    "-X",
    "\u{e9}",
];

proptest! {
    /// Goal: no line crashes the reader, and no error repeats a key. Method: sound and unsound pieces in
    /// any order, many keys in a line, any other text.
    #[test]
    fn any_line_is_read_or_refused(
        pieces in proptest::collection::vec(0..PIECES.len(), 0..60),
        text in "\\PC{0,80}",
        sound in any::<bool>(),
    ) {
        let middle: String = pieces.iter().map(|at| PIECES[*at]).collect();
        let start = "1 AES_CM_128_HMAC_SHA1_80 inline:MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm";
        let line = if sound { format!("{start}{middle}{text}") } else { format!("{middle}{text}") };
        match one(&line) {
            Ok(found) => {
                prop_assert!(found.tag <= 999_999_999);
                let suite = found.key.suite();
                prop_assert_eq!(found.key.key_and_salt().len(), crate::rtp::srtp::key_and_salt_bytes(suite));
                prop_assert!(found.key.mki().is_none_or(|mki| (1..=4).contains(&mki.bytes)));
                let shown = format!("{found:?}");
                prop_assert!(!shown.contains("MTIz"));
            }
            Err(error) => prop_assert!(!error.to_string().contains("MTIz")),
        }
    }
}
