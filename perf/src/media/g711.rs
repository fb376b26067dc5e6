//! G.711 (ITU-T G.711), computed, not tabled.

use serde::Serialize;

/// What a voice payload is coded with; a byte is a sample, 8000 a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub enum Codec {
    /// G.711 µ-law, payload type 0.
    Pcmu,
    /// G.711 A-law, payload type 8.
    Pcma,
}

impl Codec {
    /// Static RTP payload type (RFC 3551 §6).
    pub fn payload_type(self) -> u8 {
        match self {
            Self::Pcmu => 0,
            Self::Pcma => 8,
        }
    }

    /// The codec of a static payload type.
    pub fn from_payload_type(payload_type: u8) -> Option<Self> {
        match payload_type {
            0 => Some(Self::Pcmu),
            8 => Some(Self::Pcma),
            _ => None,
        }
    }

    /// Encoding name of `a=rtpmap`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcmu => "PCMU",
            Self::Pcma => "PCMA",
        }
    }

    /// One linear 16-bit sample to a byte.
    pub fn encode(self, sample: i16) -> u8 {
        match self {
            Self::Pcmu => encode_ulaw(sample),
            Self::Pcma => encode_alaw(sample),
        }
    }

    /// One byte to a linear 16-bit sample.
    pub fn decode(self, byte: u8) -> i16 {
        match self {
            Self::Pcmu => decode_ulaw(byte),
            Self::Pcma => decode_alaw(byte),
        }
    }
}

const BIAS: u16 = 132;
const CLIP: u16 = 32_635;

fn encode_ulaw(sample: i16) -> u8 {
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = sample.unsigned_abs().min(CLIP) + BIAS;
    let exponent = 8 - magnitude.leading_zeros().min(8); // Bit 14 set: segment 7.
    let mantissa = (magnitude >> (exponent + 3)) & 0x0F;
    !(sign | low_byte(exponent) << 4 | low_byte(u32::from(mantissa)))
}

fn decode_ulaw(byte: u8) -> i16 {
    let byte = !byte;
    let magnitude = ((i16::from(byte & 0x0F) << 3) + 132) << ((byte >> 4) & 7);
    let linear = magnitude - 132;
    if byte & 0x80 != 0 { -linear } else { linear }
}

fn encode_alaw(sample: i16) -> u8 {
    // Negative values are mirrored around -1/2, so that -1 and 0 are neighbours.
    let (sign, magnitude) =
        if sample < 0 { (0, !sample.cast_unsigned() >> 4) } else { (0x80, sample.cast_unsigned() >> 4) };
    let exponent = (16 - magnitude.leading_zeros()).saturating_sub(4);
    let mantissa = (magnitude >> exponent.saturating_sub(1)) & 0x0F;
    (sign | low_byte(exponent) << 4 | low_byte(u32::from(mantissa))) ^ 0x55
}

fn decode_alaw(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let exponent = (byte >> 4) & 7;
    let mantissa = i16::from(byte & 0x0F);
    let linear = match exponent {
        0 => (mantissa << 4) + 8,
        _ => ((mantissa << 4) + 0x108) << (exponent - 1),
    };
    if byte & 0x80 != 0 { linear } else { -linear }
}

/// The lowest eight bits.
fn low_byte(value: u32) -> u8 {
    u8::try_from(value & 0xFF).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both codings agree with the Recommendation's tables at known points.
    /// Method: G.711 tables 1a/2a: silence, full scale, and the ends of the first segments.
    #[test]
    fn known_points_of_the_tables_are_met() {
        assert_eq!(Codec::Pcmu.encode(0), 0xFF);
        assert_eq!(Codec::Pcmu.encode(32_767), 0x80);
        assert_eq!(Codec::Pcmu.encode(-32_768), 0x00);
        assert_eq!(Codec::Pcmu.decode(0x80), 32_124);
        assert_eq!(Codec::Pcmu.decode(0x00), -32_124);
        assert_eq!(Codec::Pcma.encode(0), 0xD5);
        assert_eq!(Codec::Pcma.encode(-1), 0x55);
        assert_eq!(Codec::Pcma.encode(32_767), 0xAA);
        assert_eq!(Codec::Pcma.encode(-32_768), 0x2A);
        assert_eq!(Codec::Pcma.decode(0xAA), 32_256);
        assert_eq!(Codec::Pcma.decode(0xD5), 8);
    }

    /// Goal: every byte survives decode and encode, save the two zeros of µ-law.
    /// Method: all 256 bytes.
    #[test]
    fn every_byte_survives_a_round_trip() {
        for byte in 0..=255u8 {
            assert_eq!(Codec::Pcma.encode(Codec::Pcma.decode(byte)), byte, "A-law {byte:#x}");
            let expected = if byte == 0x7F { 0xFF } else { byte };
            assert_eq!(Codec::Pcmu.encode(Codec::Pcmu.decode(byte)), expected, "mu-law {byte:#x}");
        }
    }
}
