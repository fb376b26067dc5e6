//! Why an offer or answer is refused.

/// Always the peer's doing. `Display` is fit for a Reason or Warning text.
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
    /// Audio only under SRTP, which is not offered here.
    #[error("audio only as SRTP, plain RTP/AVP is required")]
    SrtpRequired,
    /// Audio only over another transport than RTP/AVP.
    #[error("audio only over a transport other than RTP/AVP")]
    Transport,
    /// The address is missing, a name, a multicast group or of the other family.
    #[error("no usable connection address for audio")]
    Address,
    /// Neither PCMU nor PCMA.
    #[error("no codec in common, PCMU and PCMA are available")]
    NoCommonCodec,
}

impl OfferError {
    /// The final response: 400 (RFC 3261 §21.4.1) or 488 (§21.4.26).
    pub fn status(&self) -> u16 {
        match self {
            Self::Syntax { .. } => 400,
            Self::TooManyMedia
            | Self::NoAudio
            | Self::SrtpRequired
            | Self::Transport
            | Self::Address
            | Self::NoCommonCodec => 488,
        }
    }

    /// The warn-code that belongs into the response's Warning (RFC 3261 §20.43).
    pub fn warn_code(&self) -> u16 {
        match self {
            Self::Syntax { .. } | Self::TooManyMedia => 399, // Miscellaneous.
            Self::NoAudio => 304,                            // Media type not available.
            Self::SrtpRequired | Self::Transport => 302,     // Incompatible transport protocol.
            Self::Address => 301,                            // Incompatible network address formats.
            Self::NoCommonCodec => 305,                      // Incompatible media format.
        }
    }

    /// Of several refused lines the one that came furthest explains best.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Syntax { .. } | Self::TooManyMedia => 0,
            Self::NoAudio => 1,
            Self::SrtpRequired => 3,
            Self::Transport => 2,
            Self::Address => 4,
            Self::NoCommonCodec => 5,
        }
    }
}
