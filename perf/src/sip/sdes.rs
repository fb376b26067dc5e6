//! SRTP keys in SDP: `a=crypto` lines, offered and answered (RFC 4568; GCM by RFC 7714 §14).
//!
//! Of several keys in one line only the first is used, lifetimes are read and let be: no test runs
//! for 2^48 packets.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Longest MKI (RFC 4568 §6.1), bytes.
const MKI_BYTES_MAX: usize = 128;

/// A crypto suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// RFC 7714, 128-bit key.
    AeadAes128Gcm,
    /// RFC 7714, 256-bit key.
    AeadAes256Gcm,
    /// RFC 4568 §6.2.1.
    AesCm128HmacSha1_80,
    /// RFC 4568 §6.2.2.
    AesCm128HmacSha1_32,
}

impl Suite {
    /// Every suite.
    pub const ALL: [Self; 4] =
        [Self::AeadAes128Gcm, Self::AeadAes256Gcm, Self::AesCm128HmacSha1_80, Self::AesCm128HmacSha1_32];

    /// As in `a=crypto`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AeadAes128Gcm => "AEAD_AES_128_GCM",
            Self::AeadAes256Gcm => "AEAD_AES_256_GCM",
            Self::AesCm128HmacSha1_80 => "AES_CM_128_HMAC_SHA1_80",
            Self::AesCm128HmacSha1_32 => "AES_CM_128_HMAC_SHA1_32",
        }
    }

    /// Bytes of the master key.
    pub fn key_bytes(self) -> usize {
        match self {
            Self::AeadAes256Gcm => 32,
            Self::AeadAes128Gcm | Self::AesCm128HmacSha1_80 | Self::AesCm128HmacSha1_32 => 16,
        }
    }

    /// Bytes of the master salt.
    pub fn salt_bytes(self) -> usize {
        match self {
            Self::AeadAes128Gcm | Self::AeadAes256Gcm => 12,
            Self::AesCm128HmacSha1_80 | Self::AesCm128HmacSha1_32 => 14,
        }
    }
}

impl FromStr for Suite {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|suite| suite.name().eq_ignore_ascii_case(text));
        found.with_context(|| {
            format!("{text:?} is no suite of ours: {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Master key and salt, and the MKI that packets protected with it carry.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Key, then salt.
    pub material: Vec<u8>,
    /// Value and length of the MKI as in SDP.
    pub mki: Option<(u64, usize)>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("mki", &self.mki).finish_non_exhaustive()
    }
}

impl Key {
    fn random(suite: Suite, mki: Option<(u64, usize)>) -> Result<Self> {
        let mut material = vec![0; suite.key_bytes() + suite.salt_bytes()];
        getrandom::fill(&mut material).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
        Ok(Self { material, mki })
    }

    /// The MKI as packets carry it: big-endian, of its full length (RFC 4568 §6.1).
    pub fn mki_on_the_wire(&self) -> Option<Vec<u8>> {
        let (value, length) = self.mki?;
        let digits = value.to_be_bytes();
        let kept = length.min(digits.len());
        let mut bytes = vec![0; length - kept];
        bytes.extend(&digits[digits.len() - kept..]);
        Some(bytes)
    }
}

/// One `a=crypto` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CryptoLine {
    /// Names the line in the answer.
    pub tag: u32,
    /// Suite.
    pub suite: Suite,
    /// The key of what its writer sends.
    pub key: Key,
}

impl CryptoLine {
    /// Reads what follows `a=crypto:`.
    ///
    /// # Errors
    /// Not of the form of RFC 4568 §9, an unknown suite, a key of the wrong length, or a session
    /// parameter that would change how packets look. Never shows the key.
    pub fn parse(value: &str) -> Result<Self> {
        let mut fields = value.split_ascii_whitespace();
        let tag = fields.next().context("a=crypto is empty")?;
        ensure!((1..=9).contains(&tag.len()), "a=crypto: the tag has 1 to 9 digits");
        let tag = tag.parse().context("a=crypto: the tag is no number")?;
        let suite: Suite = fields.next().context("a=crypto has no suite")?.parse()?;
        let keys = fields.next().context("a=crypto has no key")?;
        for parameter in fields {
            let harmless = ["WSH=", "FEC_ORDER=", "FEC_KEY="].iter().any(|name| parameter.starts_with(name));
            ensure!(harmless, "a=crypto: session parameter {parameter} is not supported");
        }
        let first = keys.split(';').next().unwrap_or_default();
        let info = first.strip_prefix("inline:").context("a=crypto: the key is not inline")?;
        Ok(Self { tag, suite, key: read_key(info, suite)? })
    }

    /// The line without `a=crypto:`.
    pub fn render(&self) -> String {
        let key = STANDARD.encode(&self.key.material);
        let mki = self.key.mki.map(|(value, length)| format!("|{value}:{length}")).unwrap_or_default();
        format!("{} {} inline:{key}{mki}", self.tag, self.suite.name())
    }
}

/// Reads `KEY[|LIFETIME][|MKI:LENGTH]`.
fn read_key(info: &str, suite: Suite) -> Result<Key> {
    let mut parts = info.split('|');
    let key = parts.next().unwrap_or_default();
    let material = STANDARD.decode(key).ok().context("a=crypto: the key is no base64")?;
    let want = suite.key_bytes() + suite.salt_bytes();
    let have = material.len();
    ensure!(have == want, "a=crypto: key and salt of {} are {want} bytes, not {have}", suite.name());
    let mut mki = None;
    for part in parts {
        match part.split_once(':') {
            Some((value, length)) => {
                let length: usize = length.parse().context("a=crypto: the MKI has no length")?;
                ensure!((1..=MKI_BYTES_MAX).contains(&length), "a=crypto: an MKI has 1 to 128 bytes");
                mki = Some((value.parse().context("a=crypto: the MKI is no number")?, length));
            }
            None => {
                let power = part.strip_prefix("2^").unwrap_or(part);
                power.parse::<u64>().context("a=crypto: the lifetime is no number")?;
            }
        }
    }
    Ok(Key { material, mki })
}

/// What is offered.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Suites in order of preference; none: plain RTP.
    pub suites: Vec<Suite>,
    /// RTP/AVP with `a=crypto`: plain RTP will do ("best effort").
    pub optional: bool,
    /// Name keys by an MKI.
    pub mki: bool,
}

impl Wish {
    /// One line a suite, each with a new key; `generation` is the MKI's value, from 1.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn offer(&self, generation: u64) -> Result<Crypto> {
        let mki = self.mki.then_some((generation, 4));
        let line = |(tag, &suite)| Ok(CryptoLine { tag, suite, key: Key::random(suite, mki)? });
        let lines = (1..).zip(&self.suites).map(line).collect::<Result<Vec<_>>>()?;
        Ok(Crypto { savp: !lines.is_empty() && !self.optional, lines, unreadable: None })
    }
}

/// The crypto part of a description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crypto {
    /// The stream is RTP/SAVP.
    pub savp: bool,
    /// Its readable `a=crypto` lines.
    pub lines: Vec<CryptoLine>,
    /// What was wrong with one that could not be read.
    pub unreadable: Option<String>,
}

/// Keys of both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Suite of both.
    pub suite: Suite,
    /// We send with it.
    pub send: Key,
    /// The far side sends with it.
    pub receive: Key,
}

/// Our lines to answer `offer` with, in its own profile: the first line whose suite we have,
/// under its tag, with our key (RFC 4568 §5.1.2). No line: plain RTP.
///
/// # Errors
/// SRTP is demanded and none of its lines fits.
pub fn answer(ours: &Crypto, offer: &Crypto) -> Result<Crypto> {
    let chosen = offer.lines.iter().find_map(|line| {
        let mine = ours.lines.iter().find(|mine| mine.suite == line.suite)?;
        Some(CryptoLine { tag: line.tag, ..mine.clone() })
    });
    ensure!(chosen.is_some() || !offer.savp, "the offer demands SRTP and no line of it fits");
    Ok(Crypto { savp: offer.savp, lines: chosen.into_iter().collect(), unreadable: None })
}

/// Joins our lines and the far side's, offer or answer alike. `None`: plain RTP.
///
/// # Errors
/// One side has SRTP and the other does not, or no two lines have one tag and one suite.
pub fn agree(ours: &Crypto, theirs: &Crypto) -> Result<Option<Agreed>> {
    match (ours.savp, theirs.savp) {
        (true, false) => bail!("we have RTP/SAVP, the far side has RTP/AVP"),
        (false, true) => bail!("the far side has RTP/SAVP, we have RTP/AVP"),
        // Who leaves the lines of RTP/AVP out declines them.
        (false, false) if ours.lines.is_empty() || theirs.lines.is_empty() => return Ok(None),
        (true, true) | (false, false) => {}
    }
    for line in &theirs.lines {
        if let Some(mine) = ours.lines.iter().find(|mine| (mine.tag, mine.suite) == (line.tag, line.suite)) {
            let (send, receive) = (mine.key.clone(), line.key.clone());
            return Ok(Some(Agreed { suite: line.suite, send, receive }));
        }
    }
    match &theirs.unreadable {
        Some(problem) => bail!("no usable a=crypto: {problem}"),
        None => bail!("no a=crypto of the far side has a tag and suite of ours"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key and salt of the examples in RFC 4568 §4, §5.1 and §6.1.
    const RFC_KEY: &str = "PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR";
    const OTHER_KEY: &str = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz";

    fn crypto(savp: bool, lines: &[&str]) -> Crypto {
        let lines = lines.iter().map(|line| CryptoLine::parse(line).unwrap()).collect();
        Crypto { savp, lines, unreadable: None }
    }

    /// Goal: the lines of the RFC are read: lifetime, MKI, session parameter, several keys.
    /// Method: RFC 4568 §4 and §7.1 examples; the key's first bytes decoded by hand ("=-n").
    #[test]
    fn the_lines_of_the_rfc_are_read() {
        let plain =
            CryptoLine::parse(&format!("1 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}|2^20|1:32")).unwrap();
        assert_eq!((plain.tag, plain.suite, plain.key.mki), (1, Suite::AesCm128HmacSha1_80, Some((1, 32))));
        assert_eq!((plain.key.material.len(), &plain.key.material[..3]), (30, &b"=-n"[..]));
        let wire = plain.key.mki_on_the_wire().unwrap();
        assert_eq!((wire.len(), wire[..31].iter().any(|&byte| byte != 0), wire[31]), (32, false, 1));
        let text = format!(
            "2 AES_CM_128_HMAC_SHA1_32 inline:{OTHER_KEY}|2^20|258:2;inline:{RFC_KEY}|2^20|2:2 FEC_ORDER=FEC_SRTP"
        );
        let first = CryptoLine::parse(&text).unwrap();
        assert_eq!(first.key.mki_on_the_wire(), Some(vec![1, 2]));
        assert_eq!(&first.key.material[..4], b"YS__");
        let bare = CryptoLine::parse(&format!("7 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}")).unwrap();
        assert_eq!(bare.render(), format!("7 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}"));
    }

    /// Goal: a line that cannot be used is refused with its reason, which never shows the key.
    /// Method: wrong suite, length, method, MKI and parameter.
    #[test]
    fn an_unusable_line_is_refused_and_its_key_not_shown() {
        for (line, reason) in [
            (format!("1 F8_128_HMAC_SHA1_80 inline:{RFC_KEY}"), "no suite of ours"),
            (format!("1 AEAD_AES_128_GCM inline:{RFC_KEY}"), "28 bytes, not 30"),
            (format!("1 AES_CM_128_HMAC_SHA1_80 url:{RFC_KEY}"), "not inline"),
            (format!("1 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}|1:129"), "1 to 128"),
            (format!("1 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY} UNENCRYPTED_SRTP"), "UNENCRYPTED_SRTP"),
            (format!("x AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}"), "tag"),
            ("1 AES_CM_128_HMAC_SHA1_80 inline:%%%%".to_owned(), "base64"),
        ] {
            let error = format!("{:#}", CryptoLine::parse(&line).unwrap_err());
            assert!(error.contains(reason) && !error.contains(RFC_KEY), "{line}: {error}");
        }
        let line = CryptoLine::parse(&format!("1 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}")).unwrap();
        assert_eq!(format!("{:?}", line.key), "Key { mki: None, .. }");
    }

    /// Goal: each side sends with its own key, the far side's tag decides which suite.
    /// Method: RFC 4568 §5.1: two lines offered, the second answered.
    #[test]
    fn the_answers_tag_decides_and_each_side_sends_with_its_own_key() {
        let ours = crypto(
            true,
            &[
                &format!("1 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}"),
                &format!("2 AES_CM_128_HMAC_SHA1_32 inline:{RFC_KEY}"),
            ],
        );
        let theirs = crypto(true, &[&format!("2 AES_CM_128_HMAC_SHA1_32 inline:{OTHER_KEY}")]);
        let agreed = agree(&ours, &theirs).unwrap().unwrap();
        assert_eq!(agreed.suite, Suite::AesCm128HmacSha1_32);
        assert_eq!((&agreed.send, &agreed.receive), (&ours.lines[1].key, &theirs.lines[0].key));
        let swapped = crypto(true, &[&format!("1 AES_CM_128_HMAC_SHA1_32 inline:{OTHER_KEY}")]);
        assert!(agree(&ours, &swapped).is_err(), "tag 1 was the other suite");
        let answered = answer(&ours, &theirs).unwrap();
        assert_eq!((answered.lines[0].tag, &answered.lines[0].key), (2, &ours.lines[1].key));
    }

    /// Goal: SRTP that was demanded is never given up for plain RTP; optional SRTP may be.
    /// Method: every combination of a far side without keys.
    #[test]
    fn demanded_srtp_is_not_given_up() {
        let line = format!("1 AES_CM_128_HMAC_SHA1_80 inline:{RFC_KEY}");
        let (demanded, optional) = (crypto(true, &[&line]), crypto(false, &[&line]));
        let (plain, keyless) = (crypto(false, &[]), crypto(true, &[]));
        assert!(agree(&demanded, &plain).is_err() && agree(&demanded, &keyless).is_err());
        assert_eq!(agree(&optional, &plain).unwrap(), None);
        assert_eq!(agree(&plain, &plain).unwrap(), None);
        assert!(agree(&plain, &demanded).is_err());
        assert_eq!(agree(&plain, &optional).unwrap(), None);
        assert!(answer(&plain, &demanded).is_err());
        assert_eq!(answer(&plain, &optional).unwrap(), plain);
    }

    /// Goal: a wish becomes one line a suite, with keys that differ each time and read back.
    /// Method: all suites, twice.
    #[test]
    fn a_wish_becomes_lines_with_fresh_keys() {
        let wish = Wish { suites: Suite::ALL.to_vec(), optional: false, mki: true };
        let (first, second) = (wish.offer(1).unwrap().lines, wish.offer(2).unwrap().lines);
        assert_eq!(first.iter().map(|line| line.tag).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for (a, b) in first.iter().zip(&second) {
            assert_ne!(a.key.material, b.key.material);
            assert_eq!(CryptoLine::parse(&a.render()).unwrap(), *a);
            assert_eq!(b.key.mki, Some((2, 4)));
        }
    }
}
