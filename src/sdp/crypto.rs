//! `a=crypto` lines: security descriptions for SRTP (RFC 4568).
//!
//! A line with anything that we cannot do is passed over, as if it had not been offered (§5.1.2).
//! Not done: MKIs of more than four bytes, key derivation rates, forward error correction, streams
//! that are not encrypted or not authenticated. Of several keys in one line (§6.1) the first is
//! taken; the peer must not move on to the next one. A lifetime is read and not kept.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sdp_types::Media;

use crate::base::config::SrtpSuite;
use crate::rtp::srtp::{MasterKey, Mki};

/// Padding is written, and may be missing in what is read: AES-CM keys need none, so that some
/// leave it out for all.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Room for the longest key and salt (44 bytes) as base64 decodes it.
const KEY_ROOM_BYTES: usize = 48;
/// Most packets under one key: the longest lifetime (RFC 3711 §9.2).
const LIFETIME_MAX: u64 = 1 << 48;
/// Longest MKI, bytes: what SDP can say (RFC 4568 §9.2), and what we take.
const MKI_BYTES: std::ops::RangeInclusive<u8> = 1..=128;

/// Why no `a=crypto` line can be used: what the line that came furthest fell over. Never tells a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum CryptoError {
    /// No line at all.
    #[error("there is none")]
    Missing,
    /// Not the grammar of RFC 4568 §9.1.
    #[error("its syntax is not that of RFC 4568")]
    Syntax,
    /// A suite that is not configured, or, in an answer, not the one of the tag.
    #[error("its tag and suite are none of ours (srtp.suites)")]
    Suite,
    /// A key method other than `inline`.
    #[error("its key method is not inline")]
    Method,
    /// No base64, or of another length than the suite's.
    #[error("its key is not as long as the suite's")]
    Key,
    /// Nought, no number or above 2^48.
    #[error("its lifetime is not from 1 to 2^48")]
    Lifetime,
    /// Several keys without MKI, a value too long for its length, or a length above 4.
    #[error("its MKI is missing or not of 1 to 4 bytes")]
    Mki,
    /// A session parameter that changes what we would do.
    #[error("it has session parameters that are not supported")]
    Parameter,
}

/// A line that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CryptoLine {
    /// What an answer refers to.
    pub(super) tag: u32,
    /// The peer's key.
    pub(super) key: MasterKey,
}

/// The first line of `media` that we can use and whose tag and suite `fits`: the offerer's order
/// counts (RFC 4568 §5.1.2).
pub(super) fn find(media: &Media, fits: impl Fn(u32, SrtpSuite) -> bool) -> Result<CryptoLine, CryptoError> {
    let mut refused = CryptoError::Missing;
    for attribute in media.attributes.iter().filter(|attribute| attribute.attribute == "crypto") {
        match read(attribute.value.as_deref().unwrap_or_default(), &fits) {
            Ok(line) => return Ok(line),
            Err(error) => refused = refused.max(error),
        }
    }
    Err(refused)
}

/// The value of a line of ours.
pub(super) fn write(tag: u32, key: &MasterKey) -> String {
    format!("{tag} {} inline:{}", key.suite().name(), BASE64.encode(key.key_and_salt()))
}

/// `<tag> <suite> <key>[;<key>] [<session parameter>]...`.
fn read(value: &str, fits: &impl Fn(u32, SrtpSuite) -> bool) -> Result<CryptoLine, CryptoError> {
    let mut words = value.split_ascii_whitespace();
    let tag = words.next().and_then(|word| number(word, 9)).ok_or(CryptoError::Syntax)?;
    let tag = u32::try_from(tag).map_err(|_| CryptoError::Syntax)?;
    let suite = SrtpSuite::from_name(words.next().ok_or(CryptoError::Syntax)?);
    let suite = suite.filter(|suite| fits(tag, *suite)).ok_or(CryptoError::Suite)?;
    let mut keys = words.next().ok_or(CryptoError::Syntax)?.to_owned();
    // RFC 4568 folds lines with several keys at the semicolon, and some write them so.
    while keys.ends_with(';') {
        keys.push_str(words.next().ok_or(CryptoError::Syntax)?);
    }
    let key = read_keys(&keys, suite)?;
    if words.all(is_harmless) { Ok(CryptoLine { tag, key }) } else { Err(CryptoError::Parameter) }
}

/// The first of the keys; all must be sound.
fn read_keys(keys: &str, suite: SrtpSuite) -> Result<MasterKey, CryptoError> {
    let keys: Vec<_> = keys.split(';').map(|key| read_key(key, suite)).collect::<Result<_, _>>()?;
    let (first, others) = keys.split_first().ok_or(CryptoError::Syntax)?;
    // RFC 4568 §6.1: several keys are told apart by MKIs of one length.
    let length = |key: &MasterKey| key.mki().map(|mki| mki.bytes);
    let differ = |other: &MasterKey| length(other) == length(first) && other.mki() != first.mki();
    if !others.is_empty() && (first.mki().is_none() || !others.iter().all(differ)) {
        return Err(CryptoError::Mki);
    }
    Ok(first.clone())
}

/// `inline:<key and salt>["|" <lifetime>]["|" <MKI> ":" <length>]`.
fn read_key(text: &str, suite: SrtpSuite) -> Result<MasterKey, CryptoError> {
    let (method, info) = text.split_once(':').ok_or(CryptoError::Syntax)?;
    if !method.eq_ignore_ascii_case("inline") {
        return Err(CryptoError::Method);
    }
    let mut parts = info.split('|');
    let encoded = parts.next().unwrap_or_default();
    let mut room = [0; KEY_ROOM_BYTES];
    let bytes = BASE64.decode_slice(encoded, &mut room).map_err(|_| CryptoError::Key)?;
    let key_and_salt = room.get(..bytes).ok_or(CryptoError::Key)?;
    let mut next = parts.next();
    if let Some(lifetime) = next.filter(|part| !part.contains(':')) {
        check_lifetime(lifetime)?;
        next = parts.next();
    }
    let mki = next.map(read_mki).transpose()?;
    if parts.next().is_some() {
        return Err(CryptoError::Syntax);
    }
    // The MKI was checked, so that only the key's length is left to be wrong.
    MasterKey::new(suite, key_and_salt, mki).ok_or(CryptoError::Key)
}

/// A number of packets, or `2^<n>` of them.
fn check_lifetime(text: &str) -> Result<(), CryptoError> {
    let packets = match text.split_once('^') {
        Some(("2", power)) => {
            number(power, 2).and_then(|power| 1_u64.checked_shl(u32::try_from(power).ok()?))
        }
        Some(_) => None,
        None => number(text, 15),
    };
    packets.filter(|packets| (1..=LIFETIME_MAX).contains(packets)).map(drop).ok_or(CryptoError::Lifetime)
}

/// `<value>:<bytes>`.
fn read_mki(text: &str) -> Result<Mki, CryptoError> {
    let (value, bytes) = text.split_once(':').ok_or(CryptoError::Syntax)?;
    let bytes = number(bytes, 3).and_then(|bytes| u8::try_from(bytes).ok());
    let bytes = bytes.filter(|bytes| MKI_BYTES.contains(bytes)).ok_or(CryptoError::Syntax)?;
    let value = number(value, 10).ok_or(CryptoError::Mki)?;
    let value = u32::try_from(value).map_err(|_| CryptoError::Mki)?;
    let fits = bytes == 4 || (bytes < 4 && value >> (8 * u32::from(bytes)) == 0);
    if fits { Ok(Mki { value, bytes }) } else { Err(CryptoError::Mki) }
}

/// A session parameter that changes nothing for us (RFC 4568 §6.3): no key derivation after the
/// first, any window size hint, and unknown ones that may be ignored (§6.3.7).
fn is_harmless(parameter: &str) -> bool {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    if name.eq_ignore_ascii_case("KDR") {
        return number(value, 2) == Some(0);
    }
    name.starts_with('-') || (name.eq_ignore_ascii_case("WSH") && number(value, 10).is_some())
}

/// Up to `digits_max` decimal digits and nothing else.
fn number(text: &str, digits_max: usize) -> Option<u64> {
    let is_number = text.len() <= digits_max && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
