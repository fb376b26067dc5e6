//! Finds the end of the far side's 1000 Hz beep in received sound (Goertzel's algorithm).

/// Samples looked at together: 20 ms, a whole number of periods of 1000 Hz.
const BLOCK: usize = 160;
/// This many blocks of pure tone make a beep (100 ms): speech is never pure so long.
const BLOCKS_MIN: u32 = 5;
/// Share of a block's energy that must lie at 1000 Hz.
const PURITY_MIN: f64 = 0.85;
/// Blocks quieter than this mean square are no tone (about -45 dBm0).
const MEAN_SQUARE_MIN: f64 = 15_000.0;

/// Share of `block`'s energy that lies at `frequency` Hz, 0 to 1.
///
/// `block` is 8 kHz sound and should hold a whole number of periods.
pub fn purity(block: &[i16], frequency: f64) -> f64 {
    let coefficient = 2.0 * (std::f64::consts::TAU * frequency / 8000.0).cos();
    let (mut s1, mut s2, mut energy) = (0.0, 0.0, 0.0);
    let mut count = 0.0;
    for &sample in block {
        let x = f64::from(sample);
        (s1, s2) = (x + coefficient * s1 - s2, s1);
        energy += x * x;
        count += 1.0;
    }
    if energy == 0.0 {
        return 0.0;
    }
    let power = s1 * s1 + s2 * s2 - coefficient * s1 * s2;
    (2.0 * power / (count * energy)).min(1.0)
}

/// Watches a stream for beeps.
#[derive(Debug, Default)]
pub struct BeepDetector {
    pending: Vec<i16>,
    tone_blocks: u32,
    /// Beeps that ended so far.
    pub ended: u32,
}

impl BeepDetector {
    /// More sound, any length. True when a beep ended in it.
    pub fn push(&mut self, samples: &[i16]) -> bool {
        self.pending.extend(samples);
        let before = self.ended;
        let whole = self.pending.len() / BLOCK * BLOCK;
        for block in self.pending[..whole].chunks_exact(BLOCK) {
            let mean_square = block.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>() / 160.0;
            if mean_square >= MEAN_SQUARE_MIN && purity(block, 1000.0) >= PURITY_MIN {
                self.tone_blocks += 1;
            } else {
                self.ended += u32::from(self.tone_blocks >= BLOCKS_MIN);
                self.tone_blocks = 0;
            }
        }
        self.pending.drain(..whole);
        self.ended > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::cast_possible_truncation, reason = "the amplitude is below i16::MAX")]
    fn tone(frequency: f64, samples: u32) -> Vec<i16> {
        (0..samples)
            .map(|n| (8000.0 * (std::f64::consts::TAU * frequency * f64::from(n) / 8000.0).sin()) as i16)
            .collect()
    }

    /// Goal: a 1000 Hz beep is reported once, at its end, whatever the packet size.
    /// Method: silence, 300 ms of tone, silence, cut into 20 ms and 30 ms packets.
    #[test]
    fn a_beep_is_reported_once_when_it_ended() {
        let mut sound = vec![0i16; 4000];
        sound.extend(tone(1000.0, 2400));
        sound.extend(vec![0i16; 800]);
        for size in [160, 240] {
            let mut detector = BeepDetector::default();
            let ends: Vec<usize> = sound
                .chunks(size)
                .enumerate()
                .filter_map(|(n, chunk)| detector.push(chunk).then_some((n + 1) * size))
                .collect();
            assert_eq!(ends.len(), 1);
            assert!((6400..=6400 + 160 + 240).contains(&ends[0]), "{ends:?}");
        }
    }

    /// Goal: other tones, short pips and two tones together are no beep.
    /// Method: 800 Hz, 1200 Hz, 60 ms of 1000 Hz, a DTMF 8 (852 and 1336 Hz).
    #[test]
    fn other_sounds_are_no_beep() {
        let eight = tone(852.0, 4000).iter().zip(tone(1336.0, 4000)).map(|(a, b)| a / 2 + b / 2).collect();
        for sound in [tone(800.0, 4000), tone(1200.0, 4000), tone(1000.0, 480), eight] {
            let mut detector = BeepDetector::default();
            detector.push(&sound);
            detector.push(&[0; 800]);
            assert_eq!(detector.ended, 0);
        }
    }
}
