//! The energy gate: which parts of a recording are sound, and where the last sound ended.

use crate::media::order::Codec;

/// Samples judged at once, 10 ms.
const FRAME: u64 = 80;
/// Mean square of a 0 dBm0 sine in 16 bits: G.711's load capacity is +3.17 dBm0 (table 2), so its
/// peak of 32124 stands 3.17 dB higher.
const MEAN_SQUARE_0_DBM0: f64 = 2.4867e8;
/// Nothing below -45 dBm0 is sound.
const THRESHOLD_MIN: f64 = MEAN_SQUARE_0_DBM0 * 3.162_277e-5;
/// Everything above -30 dBm0 is, however noisy the line.
const THRESHOLD_MAX: f64 = MEAN_SQUARE_0_DBM0 * 1e-3;
/// Sound stands this far above the noise floor: 6 dB.
const ABOVE_FLOOR: f64 = 4.0;
/// The floor rises by 3 dB a second, so that pauses between words hold it down.
const FLOOR_RISE: f64 = 1.006_931_669;

/// Judges samples in the order of the recording.
#[derive(Debug)]
pub struct EnergyGate {
    /// Sum of squares and count of the frame being filled.
    energy: u64,
    filled: u64,
    /// Whole frames judged.
    frames: u64,
    /// Bit n: the frame n before the last was sound.
    recent: u128,
    /// The last frame was loud; one alone is a click.
    loud: bool,
    sound_frames: u64,
    /// End of the last sound, in frames.
    sound_end: u64,
    /// Mean square of the background.
    floor: f64,
}

impl Default for EnergyGate {
    fn default() -> Self {
        Self {
            energy: 0,
            filled: 0,
            frames: 0,
            recent: 0,
            loud: false,
            sound_frames: 0,
            sound_end: 0,
            floor: THRESHOLD_MIN / ABOVE_FLOOR,
        }
    }
}

impl EnergyGate {
    /// One that has judged `samples` samples, of which `sound` were sound, the last up to `sound_end`.
    /// What it knew of the background it learns anew.
    pub fn resume(samples: u64, sound: u64, sound_end: u64) -> Self {
        Self {
            filled: samples % FRAME,
            frames: samples / FRAME,
            sound_frames: sound / FRAME,
            sound_end: sound_end / FRAME,
            ..Self::default()
        }
    }

    /// Takes the next samples.
    pub fn push(&mut self, codec: Codec, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = usize::try_from(FRAME - self.filled).unwrap_or(rest.len());
            let (part, after) = rest.split_at(rest.len().min(room));
            rest = after;
            self.energy += codec.energy(part);
            self.filled += part.len() as u64;
            if self.filled == FRAME {
                self.judge();
            }
        }
    }

    /// Takes `samples` of nothing.
    pub fn push_silence(&mut self, samples: u64) {
        for _ in 0..samples {
            self.filled += 1;
            if self.filled == FRAME {
                self.judge();
            }
        }
    }

    /// Samples of sound so far, in whole frames of 10 ms.
    pub fn sound(&self) -> u64 {
        self.sound_frames * FRAME
    }

    /// Where the last sound ended, in samples from the start; 0 when there was none.
    pub fn sound_end(&self) -> u64 {
        self.sound_end * FRAME
    }

    /// What came from sample `from` on was no sound after all: a key's tone. Reaches back 1.28 s.
    pub fn withdraw(&mut self, from: u64) {
        let count = self.frames.saturating_sub(from / FRAME).min(128);
        let mask = match u32::try_from(count) {
            Ok(count) if count < 128 => (1_u128 << count) - 1,
            Ok(_) | Err(_) => u128::MAX,
        };
        self.sound_frames -= u64::from((self.recent & mask).count_ones());
        self.recent &= !mask;
        let quiet = u64::from(self.recent.trailing_zeros());
        let last = if self.recent == 0 { self.frames - count } else { self.frames - quiet };
        self.sound_end = self.sound_end.min(last);
        self.loud = false;
        self.energy = 0;
    }

    fn judge(&mut self) {
        #[expect(clippy::cast_precision_loss, reason = "80 squares of 15 bits fit 37 bits")]
        let mean_square = self.energy as f64 / FRAME as f64;
        let threshold = (self.floor * ABOVE_FLOOR).clamp(THRESHOLD_MIN, THRESHOLD_MAX);
        let loud = mean_square > threshold;
        self.recent <<= 1;
        self.frames += 1;
        if loud && self.loud {
            // Two in a row are sound: the one before counts too, if it did not yet.
            self.sound_frames += 1 + u64::from(self.recent & 2 == 0);
            self.recent |= 3;
            self.sound_end = self.frames;
        }
        self.loud = loud;
        if mean_square < self.floor {
            self.floor += (mean_square - self.floor) / 4.0;
        } else {
            self.floor = (self.floor * FLOOR_RISE).min(mean_square);
        }
        self.floor = self.floor.max(1.0);
        self.energy = 0;
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::cast_possible_truncation, reason = "samples are in range")]

    use super::*;

    /// A sine of `dbm0` for `ms`, µ-law.
    fn tone(dbm0: f64, ms: u32) -> Vec<u8> {
        let peak = 22_300.0 * 10_f64.powf(dbm0 / 20.0);
        let sample = |n: u32| (peak * (f64::from(n) * 0.7).sin()).round() as i16;
        (0..ms * 8).map(|n| Codec::Pcmu.encode(sample(n))).collect()
    }

    /// Goal: only what is above -45 dBm0 is sound, to the frame.
    /// Method: 1 s at -50, 2 s at -20, 1 s at -50 dBm0.
    #[test]
    fn sound_is_timed_and_its_end_is_found_to_10_ms() {
        let mut gate = EnergyGate::default();
        gate.push(Codec::Pcmu, &tone(-50.0, 1000));
        assert_eq!((gate.sound(), gate.sound_end()), (0, 0));
        gate.push(Codec::Pcmu, &tone(-20.0, 2000));
        gate.push(Codec::Pcmu, &tone(-50.0, 1000));
        assert_eq!((gate.sound(), gate.sound_end()), (16_000, 24_000));
    }

    /// Goal: a click is no sound. Method: 10 ms of loud tone within silence.
    #[test]
    fn a_click_is_no_sound() {
        let mut gate = EnergyGate::default();
        gate.push_silence(8000);
        gate.push(Codec::Pcmu, &tone(-10.0, 10));
        gate.push_silence(8000);
        assert_eq!((gate.sound(), gate.sound_end()), (0, 0));
    }

    /// Goal: steady line noise stops being sound, speech above it goes on being sound.
    /// Method: 8 s at -40 dBm0; after the floor has risen, bursts at -25 dBm0.
    #[test]
    fn steady_noise_becomes_background() {
        let mut gate = EnergyGate::default();
        gate.push(Codec::Pcmu, &tone(-40.0, 8000));
        let before = gate.sound();
        assert!(before < 4 * 8000, "{before}");
        gate.push(Codec::Pcmu, &tone(-25.0, 500));
        assert_eq!(gate.sound(), before + 4000);
        assert_eq!(gate.sound_end(), 68_000);
    }

    /// Goal: a key's tone is taken back. Method: speech, pause, tone; withdraw from the tone's start.
    #[test]
    fn a_withdrawn_tone_was_no_sound() {
        let mut gate = EnergyGate::default();
        gate.push(Codec::Pcmu, &tone(-20.0, 300));
        gate.push_silence(1600);
        gate.push(Codec::Pcmu, &tone(-10.0, 200));
        gate.withdraw(4000);
        assert_eq!((gate.sound(), gate.sound_end()), (2400, 2400));
    }
}
