//! Why an offer or answer is refused.

use super::crypto::CryptoError;

/// The peer's doing, but for [`OfferError::NoRandom`]. `Display` is fit for a Reason or Warning text
/// and never tells a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// It does not follow the grammar of RFC 8866.
    #[error("SDP line {line}: {what}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// More than 32 media lines.
    #[error("too many media lines")]
    TooManyMedia,
    /// No audio line, or only with port 0.
    #[error("no audio offered")]
    NoAudio,
    /// Audio only over another transport than RTP/AVP and RTP/SAVP.
    #[error("audio only over a transport other than RTP/AVP and RTP/SAVP")]
    Transport,
    /// SRTP would be fine, but its keys came, or would go, over a hop that is not encrypted.
    #[error("keys over an unencrypted hop are refused (srtp.sdes_over_plain)")]
    SrtpOverPlain,
    /// Audio only as plain RTP, which is not taken here.
    #[error("audio only as RTP/AVP, SRTP (RTP/SAVP) is required")]
    SrtpRequired,
    /// An answer that is RTP/AVP to an offer of RTP/SAVP, or the other way round.
    #[error("the answer's transport is not the offer's")]
    AnswerTransport,
    /// SRTP with no key that we can use.
    #[error("no a=crypto line can be used: {0}")]
    Crypto(CryptoError),
    /// The address is missing, a name or a multicast group.
    #[error("no usable connection address for audio")]
    Address,
    /// The address is of a family that our media has not.
    #[error("the connection address is {theirs}, media here is {ours}")]
    Family {
        /// `IPv4` or `IPv6`.
        theirs: &'static str,
        /// The other one.
        ours: &'static str,
    },
    /// Neither PCMU nor PCMA.
    #[error("no codec in common, PCMU and PCMA are available")]
    NoCommonCodec,
    /// The operating system gave no random numbers for a key. Ours, not the peer's.
    #[error("no random numbers for an SRTP key")]
    NoRandom,
}

impl OfferError {
    /// The final response: 400 (RFC 3261 §21.4.1), 488 (§21.4.26) or, where we fail, 500.
    pub fn status(&self) -> u16 {
        match self {
            Self::Syntax { .. } => 400,
            Self::TooManyMedia
            | Self::NoAudio
            | Self::Transport
            | Self::SrtpOverPlain
            | Self::SrtpRequired
            | Self::AnswerTransport
            | Self::Crypto(_)
            | Self::Address
            | Self::Family { .. }
            | Self::NoCommonCodec => 488,
            Self::NoRandom => 500,
        }
    }

    /// The warn-code that belongs into the response's Warning (RFC 3261 §20.43).
    pub fn warn_code(&self) -> u16 {
        match self {
            Self::Syntax { .. } | Self::TooManyMedia | Self::NoRandom => 399, // Miscellaneous.
            Self::NoAudio => 304,                                             // Media type not available.
            Self::Transport | Self::SrtpOverPlain | Self::SrtpRequired | Self::AnswerTransport => 302,
            Self::Address | Self::Family { .. } => 301, // Incompatible network address formats.
            Self::NoCommonCodec => 305,                 // Incompatible media format.
            Self::Crypto(_) => 306,                     // Attribute not understood.
        }
    }

    /// The refusal's name in log and counters.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "malformed",
            Self::SrtpOverPlain | Self::SrtpRequired | Self::AnswerTransport | Self::Crypto(_) => {
                "security_media"
            }
            Self::TooManyMedia
            | Self::NoAudio
            | Self::Transport
            | Self::Address
            | Self::Family { .. }
            | Self::NoCommonCodec => "media_mismatch",
            Self::NoRandom => "no_random",
        }
    }

    /// Of several refused lines the one that came furthest explains best.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Syntax { .. } | Self::TooManyMedia => 0,
            Self::NoAudio => 1,
            Self::Transport => 2,
            Self::SrtpOverPlain | Self::SrtpRequired | Self::AnswerTransport => 3,
            Self::Crypto(_) => 4,
            Self::Address | Self::Family { .. } => 5,
            Self::NoCommonCodec => 6,
            Self::NoRandom => 7,
        }
    }
}
