//! The SRTP crypto suites there are.

use serde::{Deserialize, Deserializer, Serialize};

/// A crypto suite of SDP security descriptions (RFC 4568 §6.2, RFC 7714 §14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SrtpSuite {
    /// AES-128 in Galois/counter mode, tag of 16 bytes.
    #[serde(rename = "AEAD_AES_128_GCM")]
    AeadAes128Gcm,
    /// AES-256 in Galois/counter mode, tag of 16 bytes.
    #[serde(rename = "AEAD_AES_256_GCM")]
    AeadAes256Gcm,
    /// AES-128 in counter mode, HMAC-SHA1 tag of 10 bytes.
    #[serde(rename = "AES_CM_128_HMAC_SHA1_80")]
    AesCm128HmacSha1_80,
    /// AES-128 in counter mode, HMAC-SHA1 tag of 4 bytes for SRTP, of 10 for SRTCP.
    #[serde(rename = "AES_CM_128_HMAC_SHA1_32")]
    AesCm128HmacSha1_32,
}

impl SrtpSuite {
    /// All of them, in the order of our offers: the cheapest first.
    pub const ALL: [Self; 4] =
        [Self::AeadAes128Gcm, Self::AeadAes256Gcm, Self::AesCm128HmacSha1_80, Self::AesCm128HmacSha1_32];

    /// As `a=crypto` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AeadAes128Gcm => "AEAD_AES_128_GCM",
            Self::AeadAes256Gcm => "AEAD_AES_256_GCM",
            Self::AesCm128HmacSha1_80 => "AES_CM_128_HMAC_SHA1_80",
            Self::AesCm128HmacSha1_32 => "AES_CM_128_HMAC_SHA1_32",
        }
    }

    /// The suite of this name; names are compared without regard to case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name().eq_ignore_ascii_case(name))
    }
}

/// Suites in an order of preference, each once, never none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SrtpSuites(pub Vec<SrtpSuite>);

impl Default for SrtpSuites {
    fn default() -> Self {
        Self(SrtpSuite::ALL.to_vec())
    }
}

impl<'de> Deserialize<'de> for SrtpSuites {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let suites: Vec<SrtpSuite> = Vec::deserialize(deserializer)?;
        let twice = (1..suites.len()).any(|index| suites[..index].contains(&suites[index]));
        if suites.is_empty() || twice {
            return Err(serde::de::Error::custom("each suite once, and at least one"));
        }
        Ok(Self(suites))
    }
}
