//! What this side brings to offer and answer: addresses, codecs, and keys for SRTP.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::error::OfferError;
use super::plan::Codec;
use crate::base::config::{Addresses, SrtpSuite};
use crate::rtp::srtp::{MasterKey, SrtpPlan, key_and_salt_bytes};

/// What we have to offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalMedia {
    /// Where our media sockets are, at most one of each family. The offer's family chooses; our
    /// own offers have the first.
    #[serde(with = "listed")]
    pub addresses: Addresses,
    /// Codecs, in the order our own offers have them. The offerer's order decides in answers.
    pub codecs: Vec<Codec>,
    /// Agree on telephone-event (RFC 4733).
    pub dtmf: bool,
    /// Handed on to [`super::MediaPlan::nat`].
    pub nat: Option<IpAddr>,
    /// When media is under SRTP.
    pub srtp: SrtpRules,
}

/// Addresses as a list, in any form; a configuration file has them as text.
mod listed {
    use std::net::IpAddr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Addresses;

    pub(super) fn serialize<S: Serializer>(addresses: &Addresses, serializer: S) -> Result<S::Ok, S::Error> {
        addresses.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Addresses, D::Error> {
        Addresses::new(Vec::<IpAddr>::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("no address"))
    }
}

/// When audio is sent and received under SRTP, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrtpRules {
    /// Crypto suites, in the order our own offers have them. The offerer's order decides in
    /// answers.
    pub suites: Vec<SrtpSuite>,
    /// SRTP may be agreed on. False where keys would travel unencrypted (RFC 4568 §7.2).
    pub allowed: bool,
    /// Nothing but SRTP may be agreed on.
    pub required: bool,
}

impl SrtpRules {
    /// Plain RTP only.
    pub fn plain() -> Self {
        Self { suites: Vec::new(), allowed: false, required: false }
    }
}

/// Fills the slice with random bytes, for a key; false: there are none to be had.
pub type KeySource = fn(&mut [u8]) -> bool;

/// Where our keys in one dialog come from.
#[derive(Debug, Clone, Copy)]
pub struct OwnKeys<'a> {
    /// What is agreed on so far.
    pub in_use: Option<&'a SrtpPlan>,
    /// New ones.
    pub source: KeySource,
}

impl OwnKeys<'_> {
    /// Our key for an answer to an offer with `theirs`.
    ///
    /// The one in use stays while theirs does. A peer that brings another key gets another one of
    /// ours too: who knew the old ones may not be in the call any more.
    pub(super) fn for_answer(&self, theirs: &MasterKey) -> Result<MasterKey, OfferError> {
        match self.in_use {
            Some(plan) if plan.receive == *theirs => Ok(plan.send.clone()),
            Some(_) | None => self.fresh(theirs.suite()),
        }
    }

    fn for_offer(&self, suite: SrtpSuite) -> Result<MasterKey, OfferError> {
        match self.in_use {
            Some(plan) if plan.send.suite() == suite => Ok(plan.send.clone()),
            Some(_) | None => self.fresh(suite),
        }
    }

    fn fresh(&self, suite: SrtpSuite) -> Result<MasterKey, OfferError> {
        let mut bytes = vec![0; key_and_salt_bytes(suite)];
        let filled = (self.source)(&mut bytes);
        let key = filled.then(|| MasterKey::new(suite, &bytes, None)).flatten();
        key.ok_or(OfferError::NoRandom)
    }
}

/// The keys in an offer of ours, one for each `a=crypto` line; without any the offer is RTP/AVP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferKeys(Vec<MasterKey>);

impl OfferKeys {
    /// For an offer of RTP/AVP.
    pub fn plain() -> Self {
        Self::default()
    }

    /// For an offer of RTP/SAVP with every suite, each with a key of its own. The key in use stays
    /// that of its suite.
    ///
    /// # Errors
    /// `SrtpOverPlain` where SRTP is not allowed; `NoRandom`.
    pub fn every_suite(rules: &SrtpRules, keys: OwnKeys<'_>) -> Result<Self, OfferError> {
        if !rules.allowed {
            return Err(OfferError::SrtpOverPlain);
        }
        rules.suites.iter().map(|&suite| keys.for_offer(suite)).collect::<Result<_, _>>().map(Self)
    }

    /// For an offer that changes nothing: the key in use, or none.
    pub fn unchanged(in_use: Option<&SrtpPlan>) -> Self {
        Self(in_use.map(|plan| plan.send.clone()).into_iter().collect())
    }

    /// The offer is RTP/AVP.
    pub(super) fn is_plain(&self) -> bool {
        self.0.is_empty()
    }

    /// Each with its tag.
    pub(super) fn tagged(&self) -> impl Iterator<Item = (u32, &MasterKey)> {
        (1..).zip(&self.0)
    }

    /// The key that an answer's tag means.
    pub(super) fn of_tag(&self, tag: u32) -> Option<&MasterKey> {
        self.tagged().find(|(own, _)| *own == tag).map(|(_, key)| key)
    }
}
