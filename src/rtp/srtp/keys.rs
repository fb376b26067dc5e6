//! Master keys as offer and answer carry them (RFC 4568 §6.1).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::config::SrtpSuite;

/// Key and salt of the suite with the longest ones: 32 and 12 bytes.
const KEY_AND_SALT_BYTES_MAX: usize = 44;
/// Longest MKI we take, bytes.
pub(super) const MKI_BYTES_MAX: usize = 4;

/// Bytes of master key and master salt together, as `inline:` carries them (RFC 4568 §6.1,
/// RFC 7714 §12).
pub fn key_and_salt_bytes(suite: SrtpSuite) -> usize {
    key_bytes(suite) + salt_bytes(suite)
}

/// Bytes of the master key, and of the session key for the cipher.
pub(super) fn key_bytes(suite: SrtpSuite) -> usize {
    match suite {
        SrtpSuite::AeadAes128Gcm | SrtpSuite::AesCm128HmacSha1_80 | SrtpSuite::AesCm128HmacSha1_32 => 16,
        SrtpSuite::AeadAes256Gcm => 32,
    }
}

/// Bytes of the master salt, and of the session salt.
fn salt_bytes(suite: SrtpSuite) -> usize {
    match suite {
        SrtpSuite::AeadAes128Gcm | SrtpSuite::AeadAes256Gcm => 12,
        SrtpSuite::AesCm128HmacSha1_80 | SrtpSuite::AesCm128HmacSha1_32 => 14,
    }
}

/// A master key identifier: names the master key in each packet (RFC 3711 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mki {
    /// Its value.
    pub value: u32,
    /// Its length on the wire, 1 to 4 bytes.
    pub bytes: u8,
}

impl Mki {
    /// Its bytes at the end of what is returned, and how many they are.
    pub(super) fn wire(self) -> ([u8; MKI_BYTES_MAX], usize) {
        (self.value.to_be_bytes(), usize::from(self.bytes).min(MKI_BYTES_MAX))
    }

    fn is_sound(self) -> bool {
        let fits = match self.bytes {
            1..=3 => self.value >> (u32::from(self.bytes) * 8) == 0,
            4 => true,
            _ => false,
        };
        fits && usize::from(self.bytes) <= MKI_BYTES_MAX
    }
}

/// Master key and salt of one direction, with the MKI its packets carry. `Debug` hides the key; serde
/// does not, for the worker that goes on with a dead one's calls needs it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct MasterKey {
    suite: SrtpSuite,
    /// Key, then salt, then noughts.
    bytes: [u8; KEY_AND_SALT_BYTES_MAX],
    mki: Option<Mki>,
}

impl MasterKey {
    /// `key_and_salt` as `inline:` carries them, decoded. `None`: it has not
    /// [`key_and_salt_bytes`], or the MKI is not of 1 to 4 bytes that hold its value.
    pub fn new(suite: SrtpSuite, key_and_salt: &[u8], mki: Option<Mki>) -> Option<Self> {
        if key_and_salt.len() != key_and_salt_bytes(suite) || !mki.is_none_or(Mki::is_sound) {
            return None;
        }
        let mut bytes = [0; KEY_AND_SALT_BYTES_MAX];
        bytes[..key_and_salt.len()].copy_from_slice(key_and_salt);
        Some(Self { suite, bytes, mki })
    }

    /// The suite it is for.
    pub fn suite(&self) -> SrtpSuite {
        self.suite
    }

    /// Key, then salt.
    pub fn key_and_salt(&self) -> &[u8] {
        &self.bytes[..key_and_salt_bytes(self.suite)]
    }

    /// The MKI its packets carry, if they carry one.
    pub fn mki(&self) -> Option<Mki> {
        self.mki
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..key_bytes(self.suite)]
    }

    pub(super) fn salt(&self) -> &[u8] {
        &self.bytes[key_bytes(self.suite)..key_and_salt_bytes(self.suite)]
    }

    /// Both make the same packets, but for the MKI.
    pub(super) fn is_same_key(&self, other: &Self) -> bool {
        self.suite == other.suite && self.bytes == other.bytes
    }
}

/// A master key taken apart.
#[derive(Serialize, Deserialize)]
struct Parts {
    suite: SrtpSuite,
    key_and_salt: Vec<u8>,
    mki: Option<Mki>,
}

impl From<MasterKey> for Parts {
    fn from(key: MasterKey) -> Self {
        Self { suite: key.suite, key_and_salt: key.key_and_salt().to_vec(), mki: key.mki }
    }
}

impl TryFrom<Parts> for MasterKey {
    type Error = &'static str;

    fn try_from(parts: Parts) -> Result<Self, Self::Error> {
        Self::new(parts.suite, &parts.key_and_salt, parts.mki).ok_or("no SRTP master key")
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey")
            .field("suite", &self.suite)
            .field("mki", &self.mki)
            .finish_non_exhaustive()
    }
}

/// What both directions of a leg use. `Debug` hides the keys.
///
/// A key protects at most 2^48 SRTP and 2^31 SRTCP packets (RFC 3711 §9.2), whatever lifetime was
/// offered: at 50 packets a second the first takes 178,000 years, so no lifetime is kept here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrtpPlan {
    /// Ours: what we send is protected with it.
    pub send: MasterKey,
    /// The peer's. The suite is that of `send`.
    pub receive: MasterKey,
}
