//! Packet loss concealment for recordings, after ITU-T G.711 Appendix I.
//!
//! A lost stretch is filled with the last pitch period, after 10 ms with the last two, after 20 ms
//! with the last three, fading from the 10th to the 60th millisecond; the audio after it is blended
//! in. Unlike the appendix nothing is delayed, so the first sample lost is the first changed.

use crate::media::order::Codec;

/// Shortest pitch period searched, samples (200 Hz).
const PITCH_MIN: usize = 40;
/// Longest, samples (66 Hz).
const PITCH_MAX: usize = 120;
/// Samples compared in the search, 20 ms.
const WINDOW: usize = 160;
/// Three longest periods and a quarter of one to blend.
const HISTORY: usize = 3 * PITCH_MAX + PITCH_MAX / 4;
/// Samples in 10 ms, the appendix's step.
const STEP: usize = 80;
/// From here on a loss is silent, samples.
const FADED: usize = 6 * STEP;
const _: () = assert!(PITCH_MAX + WINDOW <= HISTORY);

/// The loss under way, and what its beginning is made of.
#[derive(Debug)]
pub struct Plc {
    /// The end of what was handed on; what came after it is with the recording. Apart, as the loss is:
    /// most packets need neither.
    kept: Box<[i16; HISTORY]>,
    loss: Option<Box<Loss>>,
}

/// A stretch of missing audio.
#[derive(Debug)]
struct Loss {
    /// What was heard before it.
    before: [i16; HISTORY],
    pitch: usize,
    /// Samples made up so far.
    filled: usize,
}

impl Default for Plc {
    fn default() -> Self {
        Self { kept: Box::new([0; HISTORY]), loss: None }
    }
}

impl Plc {
    /// A stretch is being concealed: what is heard next goes through [`Self::heard`].
    pub fn is_concealing(&self) -> bool {
        self.loss.is_some()
    }

    /// Fills `samples`, the continuation of `recent`: all that was written since the last
    /// [`Self::keep`], concealed stretches and silence among it.
    pub fn conceal(&mut self, codec: Codec, recent: &[u8], samples: &mut [i16]) {
        let loss = self.loss.get_or_insert_with(|| {
            let before = last(&self.kept, codec, recent);
            Box::new(Loss { pitch: pitch(&before), before, filled: 0 })
        });
        for sample in samples.iter_mut() {
            *sample = loss.next();
        }
    }

    /// Takes received samples; the first after a loss are blended with its continuation.
    pub fn heard(&mut self, samples: &mut [i16]) {
        let Some(mut loss) = self.loss.take() else { return };
        // The appendix: a quarter period, and 4 ms more for each 10 ms lost, at most 10 ms.
        let blend = (loss.pitch / 4 + loss.filled / STEP * 32).clamp(1, STEP);
        for (index, sample) in samples.iter_mut().take(blend).enumerate() {
            *sample = mix(loss.next(), *sample, index + 1, blend + 1);
        }
    }

    /// Silence that is no loss follows: nothing was sent.
    pub fn silent(&mut self) {
        self.loss = None;
    }

    /// `written` is handed on and no longer at hand when the next loss begins.
    pub fn keep(&mut self, codec: Codec, written: &[u8]) {
        *self.kept = last(&self.kept, codec, written);
    }
}

/// The end of `kept` and `recent` after it.
fn last(kept: &[i16; HISTORY], codec: Codec, recent: &[u8]) -> [i16; HISTORY] {
    let mut history = [0; HISTORY];
    let recent = &recent[recent.len().saturating_sub(HISTORY)..];
    let (before, after) = history.split_at_mut(HISTORY - recent.len());
    before.copy_from_slice(&kept[recent.len()..]);
    codec.decode_into(recent, after);
    history
}

impl Loss {
    /// The next sample of the repeated periods, faded.
    #[expect(clippy::cast_possible_truncation, reason = "a sample scaled by at most one")]
    fn next(&mut self) -> i16 {
        if self.filled >= FADED {
            return 0;
        }
        let periods = (self.filled / STEP + 1).min(3);
        let cycle = periods * self.pitch;
        let quarter = self.pitch / 4;
        let at = self.filled % cycle;
        let start = HISTORY - cycle;
        let sample = self.before[start + at];
        // The cycle's last quarter period runs over into what came before its first sample.
        let sample = match (at + quarter).checked_sub(cycle) {
            Some(over) => mix(sample, self.before[start - quarter + over], over + 1, quarter + 1),
            None => sample,
        };
        let faded = self.filled.saturating_sub(STEP) as i32;
        self.filled += 1;
        // 20 % less each 10 ms after the first.
        let left = FADED as i32 - STEP as i32;
        (i32::from(sample) * (left - faded) / left) as i16
    }
}

/// From `a` (part 0) to `b` (part `whole`).
#[expect(clippy::cast_possible_truncation, reason = "between two samples; parts are below 100")]
fn mix(a: i16, b: i16, part: usize, whole: usize) -> i16 {
    let (part, whole) = (part as i32, whole as i32);
    ((i32::from(a) * (whole - part) + i32::from(b) * part) / whole) as i16
}

/// The period at which the last 20 ms resemble what came before them most.
fn pitch(history: &[i16; HISTORY]) -> usize {
    let recent = &history[HISTORY - WINDOW..];
    let mut best = (PITCH_MIN, f32::MIN);
    for lag in PITCH_MIN..=PITCH_MAX {
        let earlier = &history[HISTORY - WINDOW - lag..HISTORY - lag];
        let (mut product, mut energy) = (0_i64, 0_i64);
        for (a, b) in recent.iter().zip(earlier) {
            product += i64::from(*a) * i64::from(*b);
            energy += i64::from(*b) * i64::from(*b);
        }
        // The appendix normalises by the energy of the earlier part, with a floor against noise.
        let score = product as f32 / (energy.max(WINDOW as i64) as f32).sqrt();
        if score > best.1 {
            best = (lag, score);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 Hz sawtooth-like tone: period 80 samples. Coded and not.
    fn periodic(len: usize) -> (Vec<u8>, Vec<i16>) {
        let tone = (0..len).map(|n| i16::try_from(n % 80).unwrap() * 100 - 4000);
        let bytes: Vec<u8> = tone.map(|sample| Codec::Pcmu.encode(sample)).collect();
        let samples = bytes.iter().map(|byte| Codec::Pcmu.decode(*byte)).collect();
        (bytes, samples)
    }

    /// Goal: a periodic signal goes on through the first 10 ms of a loss.
    /// Method: a tone whose period is 80 samples; the filling must be the tone itself, except where
    /// the period's end is blended.
    #[test]
    fn a_periodic_signal_goes_on_through_a_loss() {
        let (bytes, tone) = periodic(800);
        let mut plc = Plc::default();
        plc.keep(Codec::Pcmu, &bytes[..400]);
        let mut filled = vec![0; 80];
        plc.conceal(Codec::Pcmu, &bytes[400..640], &mut filled);
        assert_eq!(filled, tone[640..720]);
    }

    /// Goal: a long loss fades to silence by 60 ms and stays there. Method: 100 ms of loss.
    #[test]
    fn a_long_loss_fades_to_silence_within_60_ms() {
        let mut plc = Plc::default();
        let mut filled = vec![1; 800];
        plc.conceal(Codec::Pcmu, &periodic(640).0, &mut filled);
        let peak = |part: &[i16]| part.iter().map(|s| s.unsigned_abs()).max().unwrap();
        assert!(peak(&filled[400..480]) < peak(&filled[80..160]) / 3);
        assert!(filled[480..].iter().all(|sample| *sample == 0));
    }

    /// Goal: without a loss nothing is touched. Method: ramps in, the same ramps out.
    #[test]
    fn received_audio_without_a_loss_is_left_alone() {
        let mut plc = Plc::default();
        let (_, tone) = periodic(1600);
        let mut copy = tone.clone();
        for packet in copy.chunks_mut(160) {
            plc.heard(packet);
        }
        assert_eq!(copy, tone);
    }

    /// Goal: after a loss only the first 10 ms are blended. Method: a loss of 40 ms, then a tone.
    #[test]
    fn audio_after_a_loss_is_blended_for_at_most_10_ms() {
        let mut plc = Plc::default();
        plc.conceal(Codec::Pcmu, &periodic(640).0, &mut vec![0; 320]);
        let mut after = vec![1000; 160];
        plc.heard(&mut after);
        assert_ne!(after[0], 1000);
        assert!(after[80..].iter().all(|sample| *sample == 1000));
    }
}
