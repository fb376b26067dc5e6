//! ITU-T G.711: µ-law and A-law, one byte a sample, 8000 a second.
//!
//! Linear samples are 16 bits, left-aligned: the 14-bit values of the standard's µ-law table
//! times 4, the 13-bit values of its A-law table times 8.

use crate::media::order::Codec;

/// Linear value of each µ-law byte (G.711 table 2).
static PCMU: [i16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = decode_pcmu(byte);
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Linear value of each A-law byte (G.711 table 1).
static PCMA: [i16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = decode_pcma(byte);
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// The same in 13 bits.
static PCMU_SHORT: [i16; 256] = shortened(&PCMU);
static PCMA_SHORT: [i16; 256] = shortened(&PCMA);

const fn shortened(table: &[i16; 256]) -> [i16; 256] {
    let mut short = *table;
    let mut byte = 0;
    while byte < short.len() {
        short[byte] /= 8;
        byte += 1;
    }
    short
}

/// Squares of both codecs' samples, which are multiples of 4.
static PCMU_SQUARES: [u32; 256] = squares(&PCMU);
static PCMA_SQUARES: [u32; 256] = squares(&PCMA);
const SQUARE_UNIT: u64 = 16;

const fn squares(table: &[i16; 256]) -> [u32; 256] {
    let mut squares = [0; 256];
    let mut byte = 0;
    while byte < squares.len() {
        let quarter = (table[byte] / 4).unsigned_abs() as u32;
        squares[byte] = quarter * quarter;
        byte += 1;
    }
    squares
}

/// The A-law byte for each µ-law byte, and the other way round.
static PCMU_TO_PCMA: [u8; 256] = translation(Codec::Pcmu, Codec::Pcma);
static PCMA_TO_PCMU: [u8; 256] = translation(Codec::Pcma, Codec::Pcmu);

const fn translation(from: Codec, to: Codec) -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    loop {
        let sample = match from {
            Codec::Pcmu => decode_pcmu(byte),
            Codec::Pcma => decode_pcma(byte),
        };
        table[byte as usize] = to.encode(sample);
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
}

/// Turns audio of codec `from` into that of the other one, in place.
pub fn translate(from: Codec, bytes: &mut [u8]) {
    let table = match from {
        Codec::Pcmu => &PCMU_TO_PCMA,
        Codec::Pcma => &PCMA_TO_PCMU,
    };
    for byte in bytes {
        *byte = table[usize::from(*byte)];
    }
}

impl Codec {
    /// The byte of a silent sample: the positive value nearest to nought.
    pub const fn silence(self) -> u8 {
        match self {
            Self::Pcmu => 0xFF,
            Self::Pcma => 0xD5,
        }
    }

    /// Linear value of one byte.
    pub fn decode(self, byte: u8) -> i16 {
        self.table()[usize::from(byte)]
    }

    /// The byte for one linear sample.
    pub const fn encode(self, sample: i16) -> u8 {
        match self {
            Self::Pcmu => encode_pcmu(sample),
            Self::Pcma => encode_pcma(sample),
        }
    }

    /// Decodes as many bytes as both slices hold.
    pub fn decode_into(self, bytes: &[u8], samples: &mut [i16]) {
        look_up(self.table(), bytes, samples);
    }

    /// Codes as many samples as both slices hold.
    pub fn encode_into(self, samples: &[i16], bytes: &mut [u8]) {
        for (byte, sample) in bytes.iter_mut().zip(samples) {
            *byte = self.encode(*sample);
        }
    }

    /// The sum of the squares of their 16-bit samples.
    pub fn energy(self, bytes: &[u8]) -> u64 {
        let table = match self {
            Self::Pcmu => &PCMU_SQUARES,
            Self::Pcma => &PCMA_SQUARES,
        };
        let squares = bytes.iter().map(|byte| u64::from(table[usize::from(*byte)]));
        squares.sum::<u64>() * SQUARE_UNIT
    }

    /// As [`Self::decode_into`], in 13 bits: an eighth of the samples, rounded to nought. All of A-law and
    /// all but µ-law's last bit; sums of their products fit 32 bits.
    pub fn decode_short_into(self, bytes: &[u8], samples: &mut [i16]) {
        let table = match self {
            Self::Pcmu => &PCMU_SHORT,
            Self::Pcma => &PCMA_SHORT,
        };
        look_up(table, bytes, samples);
    }

    fn table(self) -> &'static [i16; 256] {
        match self {
            Self::Pcmu => &PCMU,
            Self::Pcma => &PCMA,
        }
    }
}

/// What a table says of as many bytes as both slices hold.
fn look_up(table: &[i16; 256], bytes: &[u8], samples: &mut [i16]) {
    for (sample, byte) in samples.iter_mut().zip(bytes) {
        *sample = table[usize::from(*byte)];
    }
}

/// Magnitude as the standard cuts it: negative values fall into the interval of their ones'
/// complement, so that both signs have the same decision values.
const fn magnitude(sample: i16) -> u16 {
    (if sample < 0 { !sample } else { sample }).cast_unsigned()
}

#[expect(clippy::cast_possible_truncation, reason = "sign, segment and interval fill eight bits")]
const fn encode_pcmu(sample: i16) -> u8 {
    let sign = if sample < 0 { 0x80 } else { 0 };
    let biased = (magnitude(sample) >> 2) + 33;
    let biased = if biased > 0x1FFF { 0x1FFF } else { biased };
    let segment = biased.ilog2() - 5;
    let interval = biased >> (segment + 1) & 0x0F;
    !(sign | (segment as u8) << 4 | interval as u8)
}

const fn decode_pcmu(byte: u8) -> i16 {
    let bits = !byte;
    let segment = bits >> 4 & 7;
    let value = ((((bits & 0x0F) as i16 * 2 + 33) << segment) - 33) * 4;
    if bits & 0x80 == 0 { value } else { -value }
}

#[expect(clippy::cast_possible_truncation, reason = "sign, segment and interval fill eight bits")]
const fn encode_pcma(sample: i16) -> u8 {
    let sign = if sample < 0 { 0 } else { 0x80 };
    let value = magnitude(sample) >> 3;
    let bits = if value < 64 {
        (value >> 1) as u8
    } else {
        let segment = value.ilog2() - 4;
        (segment as u8) << 4 | (value >> segment & 0x0F) as u8
    };
    (sign | bits) ^ 0x55
}

const fn decode_pcma(byte: u8) -> i16 {
    let bits = byte ^ 0x55;
    let segment = bits >> 4 & 7;
    let interval = (bits & 0x0F) as i16 * 2;
    let value = if segment == 0 { interval + 1 } else { (interval + 33) << (segment - 1) } * 8;
    if bits & 0x80 == 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that each input between two decision values becomes the byte of that interval and
    /// that the byte decodes to the middle of it. `decisions` are positive, `scale` to 16 bits.
    fn check(codec: Codec, decisions: &[i32], scale: i32, byte: impl Fn(u8) -> u8, first: i32) {
        for (index, pair) in decisions.windows(2).enumerate() {
            let code = byte(u8::try_from(index).unwrap());
            for value in pair[0] * scale..pair[1] * scale {
                let sample = i16::try_from(value).unwrap();
                assert_eq!(codec.encode(sample), code, "{codec:?} {sample}");
                assert_eq!(codec.encode(!sample), code ^ 0x80, "{codec:?} {}", !sample);
            }
            let middle = if index == 0 { first } else { (pair[0] + pair[1]) * scale / 2 };
            assert_eq!(i32::from(codec.decode(code)), middle, "{codec:?} interval {index}");
            assert_eq!(i32::from(codec.decode(code ^ 0x80)), -middle);
        }
    }

    /// Goal: µ-law is G.711 table 2. Method: build its decision values (1, 3, .. 31, then 16 steps
    /// of 4, 8, .. 256 up to 8159) and check every 16-bit input between them.
    #[test]
    fn mu_law_has_the_decision_values_and_levels_of_table_2() {
        let mut decisions = vec![0, 1];
        decisions.extend((1..16).map(|n| 1 + 2 * n));
        for segment in 1..8 {
            for _ in 0..16 {
                decisions.push(decisions.last().unwrap() + (2 << segment));
            }
        }
        assert_eq!(decisions.last(), Some(&8159));
        check(Codec::Pcmu, &decisions, 4, |n| !n, 0);
        assert_eq!(Codec::Pcmu.encode(i16::MAX), 0x80);
        assert_eq!(Codec::Pcmu.encode(i16::MIN), 0x00);
        assert_eq!(Codec::Pcmu.decode(0x80), 8031 * 4);
    }

    /// Goal: A-law is G.711 table 1. Method: its decision values are 0, 2, .. 64, then 16 steps of
    /// 4, 8, .. 128 up to 4096; even bits are inverted on the wire.
    #[test]
    fn a_law_has_the_decision_values_and_levels_of_table_1() {
        let mut decisions: Vec<i32> = (0..=32).map(|n| 2 * n).collect();
        for segment in 1..7 {
            for _ in 0..16 {
                decisions.push(decisions.last().unwrap() + (2 << segment));
            }
        }
        assert_eq!(decisions.last(), Some(&4096));
        check(Codec::Pcma, &decisions, 8, |n| (n | 0x80) ^ 0x55, 8);
        assert_eq!(Codec::Pcma.decode(0xAA), 4032 * 8);
    }

    /// Goal: energies and 13-bit samples are those of the samples. Method: every byte.
    #[test]
    fn energies_and_short_samples_are_those_of_the_samples() {
        for codec in [Codec::Pcmu, Codec::Pcma] {
            let bytes: Vec<u8> = (0..=255).collect();
            let samples = || bytes.iter().map(|byte| i64::from(codec.decode(*byte)));
            let energy: i64 = samples().map(|sample| sample * sample).sum();
            assert_eq!(i64::try_from(codec.energy(&bytes)).unwrap(), energy);
            let mut short = [0; 256];
            codec.decode_short_into(&bytes, &mut short);
            assert!(short.iter().zip(samples()).all(|(short, sample)| i64::from(*short) == sample / 8));
        }
    }

    /// Goal: the silence byte is silent. Method: decode it, encode nought.
    #[test]
    fn silence_is_the_byte_of_nought() {
        for codec in [Codec::Pcmu, Codec::Pcma] {
            assert_eq!(codec.encode(0), codec.silence());
            assert!(codec.decode(codec.silence()).abs() <= 8);
        }
    }
}
