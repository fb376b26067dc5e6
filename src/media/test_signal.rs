//! Signals for tests: seeded, the same everywhere.

#![expect(clippy::cast_possible_truncation, reason = "values are in range by construction")]

use crate::base::random::SplitMix64;

use std::f64::consts::TAU;

/// Peak of a 0 dBm0 sine in 16 bits.
pub(crate) const PEAK_0_DBM0: f64 = 22_300.0;

/// A seeded generator.
#[derive(Debug, Clone)]
pub(crate) struct Random(SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.bits()
    }

    /// 0 to `end` - 1.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// -1.0 to 1.0.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

/// A sample from a real number, clipped.
pub(crate) fn sample(value: f64) -> i16 {
    value.round().clamp(-32_768.0, 32_767.0) as i16
}

/// Two sines of `dbm0` each, for `len` samples, with raised edges of 1 ms.
pub(crate) fn dual_tone(low_hz: f64, high_hz: f64, dbm0: (f64, f64), len: usize) -> Vec<i16> {
    let amplitude = |dbm0: f64| PEAK_0_DBM0 * 10_f64.powf(dbm0 / 20.0);
    (0..len)
        .map(|n| {
            let t = n as f64 / 8000.0;
            let edge = ((n.min(len - 1 - n) as f64 + 1.0) / 8.0).min(1.0);
            let low = amplitude(dbm0.0) * (TAU * low_hz * t).sin();
            let high = amplitude(dbm0.1) * (TAU * high_hz * t + 1.0).sin();
            sample(edge * (low + high))
        })
        .collect()
}

/// White noise of about `dbm0`.
pub(crate) fn noise(seed: u64, dbm0: f64, len: usize) -> Vec<i16> {
    let mut random = Random::new(seed);
    // Uniform noise of this peak has the power of a sine of peak * sqrt(2/3).
    let peak = PEAK_0_DBM0 * 10_f64.powf(dbm0 / 20.0) * 1.5_f64.sqrt();
    (0..len).map(|_| sample(peak * random.unit())).collect()
}

/// Speech-like: syllables of gliding pitch (90-280 Hz) through two gliding formants, hisses and
/// pauses between them; peaks around -6 dBm0.
pub(crate) fn speech(seed: u64, len: usize) -> Vec<i16> {
    let mut random = Random::new(seed);
    let mut out = Vec::with_capacity(len);
    let mut phase = 0.0;
    while out.len() < len {
        let syllable = 800 + random.below(1600) as usize;
        let pitch = (185.0 + 95.0 * random.unit(), 185.0 + 95.0 * random.unit());
        let first = (550.0 + 300.0 * random.unit(), 550.0 + 300.0 * random.unit());
        let second = (1500.0 + 700.0 * random.unit(), 1500.0 + 700.0 * random.unit());
        let loud = 3000.0 + 9000.0 * (random.unit() + 1.0) / 2.0;
        let hiss = random.below(4) == 0;
        for n in 0..syllable {
            let part = n as f64 / syllable as f64;
            let glide = |(from, to): (f64, f64)| from + (to - from) * part;
            let envelope = (std::f64::consts::PI * part).sin() * loud;
            phase = (phase + glide(pitch) / 8000.0) % 1.0;
            let voiced: f64 = (1..=16)
                .map(|k| {
                    let hz = f64::from(k) * glide(pitch);
                    let near = |center: f64, width: f64| 1.0 / (1.0 + ((hz - center) / width).powi(2));
                    let gain = near(glide(first), 90.0) + 0.6 * near(glide(second), 120.0) + 0.02;
                    gain * (TAU * f64::from(k) * phase).sin()
                })
                .sum();
            let value = if hiss { 0.1 * random.unit() } else { voiced * 0.6 + 0.01 * random.unit() };
            out.push(sample(envelope * value));
        }
        let pause = random.below(1200) as usize;
        out.extend(std::iter::repeat_n(0, pause));
    }
    out.truncate(len);
    out
}
