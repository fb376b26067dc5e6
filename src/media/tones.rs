//! Keys heard as tones: the dual tones of ITU-T Q.23, accepted by the rules of Q.24.
//!
//! Each 12.75 ms frame is a key or none: one tone of each group stands out, the two hold nearly all
//! the energy, and neither outweighs the other. A key needs two such frames in a row (40 ms of tone
//! always has them) and is complete after two without it (40 ms of pause always has them).
//!
//! So of a pair of frames in which nothing is under way only the second is judged; the first can be
//! the beginning of a key only if the second goes on with it.

use std::f32::consts::TAU;

use crate::media::order::Codec;

/// Samples in a frame, for each who counts them in a type of his own.
const FRAME_U8: u8 = 102;
const FRAME: usize = FRAME_U8 as usize;
const FRAME_U32: u32 = FRAME_U8 as u32;
const FRAME_F32: f32 = FRAME_U8 as f32;
/// The same in multiples of 8.
const FRAME_ROOM: usize = FRAME.next_multiple_of(8);
/// How far before the end of its first frame a tone may have begun.
const FRAMES_EARLY: u32 = 2 * FRAME_U32;
/// Low and high group, Hz (Q.23).
const TONES_HZ: [f32; 8] = [697.0, 770.0, 852.0, 941.0, 1209.0, 1336.0, 1477.0, 1633.0];
/// Keys by low tone, then high tone.
const KEYS: [[char; 4]; 4] =
    [['1', '2', '3', 'A'], ['4', '5', '6', 'B'], ['7', '8', '9', 'C'], ['*', '0', '#', 'D']];
/// Least power of one tone: -31 dBm0. Q.24 (AT&T column) asks for -25 dBm0, and the mistuning
/// allowed costs up to 2 dB in this frame.
const TONE_POWER_MIN: f32 = tone_power(0.028_18);
/// The two tones hold at least this part of the energy; speech spreads it, and so does a tone
/// that fills little of the frame. Mistuning by 1.5 % leaves 0.8.
const PURITY_MIN: f32 = 0.74;
/// The tone that stands out has this many times the power of others in its group, 8 dB.
const PEAK_MIN: f32 = 6.3;
/// The high tone may be 4 dB stronger or 8 dB weaker (Q.24), with 2 dB for what the stronger tone
/// spills into the weaker one's measurement.
const HIGH_OVER_LOW_MAX: f32 = 3.98;
/// See above.
const LOW_OVER_HIGH_MAX: f32 = 10.0;
/// A key ends in a pause: by its second frame the energy fell by 9 dB. Speech that looked like a
/// key goes on.
const PAUSE_DROP_MIN: f32 = 8.0;
/// Frames in a row that make a key, or its end.
const RUN: u8 = 2;
/// How far a tone may be off: 1.5 % must be accepted and 3.5 % need not (Q.24).
const OFF_TUNE_MAX: f32 = 0.02;
/// And so many Hz for noise and a first frame only partly filled.
const OFF_TUNE_HZ: f32 = 4.0;
/// Between the first two frames neither tone changes by more than 4 dB: speech glides.
const STEADY_MAX: f32 = 2.51;
/// The second frame of a key is filled whole: both together lose at most 1.8 dB, which is what they
/// may spill into each other; words die away.
const LASTING_MIN: f32 = 0.66;
/// And with the measured mistuning put right they hold at least this part of its energy.
const TUNED_PURITY_MIN: f32 = 0.85;

/// |X|² of a sine `relative` times 0 dBm0 in amplitude: (peak * FRAME / 2)².
const fn tone_power(relative: f32) -> f32 {
    let spectrum = 22_300.0 * relative * FRAME_F32 / 2.0;
    spectrum * spectrum
}

/// Watches one leg's audio for keys.
#[derive(Debug)]
pub struct ToneDetector {
    /// The frame being filled and the one before it, as they came: few are ever decoded.
    frames: [[u8; FRAME]; 2],
    /// Which of the two is being filled.
    filling: usize,
    filled: usize,
    codec: Codec,
    /// The frame before is yet to be judged.
    waits: bool,
    /// Samples taken since the tone under way began, one frame early.
    age: u32,
    state: State,
}

/// A frame's samples, and nought behind them: whole vectors are quicker to work on.
type Frame = [i16; FRAME_ROOM];

/// What the last frames were.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Quiet,
    /// One frame of it.
    Begun(Hit),
    /// A key of this energy a frame; `missed` frames ago its tone was last heard.
    Pressed {
        key: char,
        energy: f32,
        missed: u8,
    },
}

/// A frame that is a key.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Hit {
    key: char,
    low: Peak,
    high: Peak,
}

/// The tone of a group that stands out.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Peak {
    /// Which of [`TONES_HZ`].
    tone: usize,
    power: f32,
    /// Of the tone at the frame's end, radians.
    phase: f32,
}

/// A key that was pressed and let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tone {
    /// Which.
    pub key: char,
    /// It began at most so many samples before the last one taken.
    pub age: u32,
}

impl Default for ToneDetector {
    fn default() -> Self {
        Self {
            frames: [[0; FRAME]; 2],
            filling: 0,
            filled: 0,
            codec: Codec::Pcmu,
            waits: false,
            age: 0,
            state: State::Quiet,
        }
    }
}

impl ToneDetector {
    /// Takes a packet's audio; a key that became complete in it. (40 ms and more lie between two
    /// keys; a packet longer than that may hold a second one, which is then reported instead.)
    pub fn handle_audio(&mut self, codec: Codec, bytes: &[u8]) -> Option<Tone> {
        if codec != self.codec {
            self.codec = codec;
            (self.filled, self.waits) = (0, false);
        }
        let mut tone = None;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(FRAME - self.filled));
            self.frames[self.filling][self.filled..][..part.len()].copy_from_slice(part);
            self.filled += part.len();
            self.age = self.age.saturating_add(u32::try_from(part.len()).unwrap_or(0));
            rest = after;
            if self.filled == FRAME {
                self.filled = 0;
                if let Some(key) = self.handle_frame() {
                    let after = u32::try_from(rest.len()).unwrap_or(0);
                    tone = Some(Tone { key, age: self.age.saturating_add(after) });
                }
                self.filling ^= 1;
            }
        }
        tone
    }

    /// Nothing comes any more: a key under way is complete.
    pub fn handle_pause(&mut self) -> Option<Tone> {
        (self.filled, self.waits) = (0, false);
        let state = std::mem::replace(&mut self.state, State::Quiet);
        match state {
            State::Pressed { key, .. } => Some(Tone { key, age: self.age }),
            State::Quiet | State::Begun(_) => None,
        }
    }

    /// A frame is full. Gives a key that is complete.
    fn handle_frame(&mut self) -> Option<char> {
        if self.state == State::Quiet && !self.waits {
            self.waits = true;
            return None;
        }
        let waited = std::mem::take(&mut self.waits);
        let (energy, hit) = self.judge(self.filling);
        if waited && hit.is_some() {
            let (energy, hit) = self.judge(self.filling ^ 1);
            self.step(energy, hit);
            if hit.is_some() {
                // The tone may fill three quarters of the frame before its first one.
                self.age = FRAMES_EARLY + FRAME_U32;
            }
        }
        let key = self.step(energy, hit);
        if matches!(self.state, State::Begun(_)) {
            self.age = FRAMES_EARLY;
        }
        key
    }

    /// One frame's energy, and what it is.
    fn judge(&self, frame: usize) -> (f32, Option<Hit>) {
        let mut samples = [0; FRAME_ROOM];
        self.codec.decode_short_into(&self.frames[frame], &mut samples);
        judge(&samples)
    }

    /// True while a key's tone may be under way.
    pub fn is_listening(&self) -> bool {
        self.state != State::Quiet
    }

    /// Takes one frame: its energy and what it was. Gives a key that is complete.
    fn step(&mut self, energy: f32, hit: Option<Hit>) -> Option<char> {
        let begin = |hit: Option<Hit>| hit.map_or(State::Quiet, State::Begun);
        let mut done = None;
        self.state = match (self.state, hit) {
            (State::Quiet, hit) => begin(hit),
            (State::Begun(first), Some(hit)) if first.is_continued_by(&hit, energy) => {
                State::Pressed { key: hit.key, energy, missed: 0 }
            }
            (State::Begun(_), hit) => begin(hit),
            (State::Pressed { key, .. }, Some(hit)) if hit.key == key => {
                State::Pressed { key, energy, missed: 0 }
            }
            (State::Pressed { key, energy: pressed, missed }, hit) if missed + 1 >= RUN => {
                done = (energy * PAUSE_DROP_MIN <= pressed || hit.is_some()).then_some(key);
                begin(hit)
            }
            (State::Pressed { key, energy, missed }, _) => State::Pressed { key, energy, missed: missed + 1 },
        };
        done
    }
}

impl Hit {
    /// True when this frame and the next, of that energy, are the beginning of a key.
    fn is_continued_by(&self, next: &Self, energy: f32) -> bool {
        let (before, after) = (self.low.power + self.high.power, next.low.power + next.high.power);
        let lasting = self.key == next.key && after >= before * LASTING_MIN;
        let tuned = |a: &Peak, b: &Peak| lasting.then(|| a.tuned_power(b)).flatten();
        match (tuned(&self.low, &next.low), tuned(&self.high, &next.high)) {
            (Some(low), Some(high)) => low + high >= TUNED_PURITY_MIN * energy * FRAME_F32 / 2.0,
            (Some(_) | None, _) => false,
        }
    }
}

impl Peak {
    /// The next frame's power of the tone as it is tuned. `None`: not steady, or out of tune.
    ///
    /// Between two frames the phase of a tone in tune turns by the tone's own angle; what it turns
    /// more or less is the mistuning. Off the centre a frame hears sinc²(mistuning * frame).
    fn tuned_power(&self, next: &Self) -> Option<f32> {
        let steady = self.power <= next.power * STEADY_MAX && next.power <= self.power * STEADY_MAX;
        let hz = TONES_HZ[self.tone];
        let turn = TAU * FRAME_F32 / 8000.0;
        let off = (next.phase - self.phase - turn * hz).rem_euclid(TAU);
        let off = off.min(TAU - off);
        let half = (off / 2.0).max(1e-3);
        let heard = (half.sin() / half).powi(2);
        (steady && off <= turn * (hz * OFF_TUNE_MAX + OFF_TUNE_HZ)).then_some(next.power / heard)
    }
}

/// A frame's energy, and what it is.
fn judge(frame: &Frame) -> (f32, Option<Hit>) {
    let energy = scaled(product(frame, frame), UNIT * UNIT);
    // Two tones at the least power are louder than this.
    let loud = energy * FRAME_F32 / 2.0 >= 2.0 * TONE_POWER_MIN;
    (energy, loud.then(|| recognise(frame, energy)).flatten())
}

/// The key that one frame of this energy is. Most frames are none, and most of those are told by the
/// low group alone.
fn recognise(frame: &Frame, energy: f32) -> Option<Hit> {
    let whole = energy * FRAME_F32 / 2.0;
    let lows = Group::of(frame, 0);
    let (row, low) = lows.peak()?;
    if low < TONE_POWER_MIN || low * (1.0 + HIGH_OVER_LOW_MAX) < PURITY_MIN * whole {
        return None;
    }
    let highs = Group::of(frame, GROUP);
    let (column, high) = highs.peak()?;
    let key = *KEYS.get(row)?.get(column)?;
    let pure = low + high >= PURITY_MIN * whole;
    let balanced = high <= low * HIGH_OVER_LOW_MAX && low <= high * LOW_OVER_HIGH_MAX;
    let is_key = high >= TONE_POWER_MIN && pure && balanced;
    is_key.then(|| Hit { key, low: lows.tuned(row), high: highs.tuned(column) })
}

/// One frame at the four tones of a group, seen from its end: `Σ x[n] e^{jω(N-1-n)}`, the very value
/// that Goertzel's recurrence comes to. Summed up directly, since a recurrence waits for each sample's
/// result before the next one, and some tones side by side cannot hide that.
struct Group {
    /// Which of [`TONES_HZ`] is its first.
    first: usize,
    real: [f32; GROUP],
    imaginary: [f32; GROUP],
    power: [f32; GROUP],
}

/// Tones in a group.
const GROUP: usize = 4;
/// Cosines of the eight tones, then their sines, over a frame; in units of 1 / [`WAVE_PEAK`].
type Waves = [Frame; 16];
/// A frame's sum of products of 13 bits with 12 fits 32. Rounding waves so is 70 dB below what is looked
/// for.
const WAVE_PEAK: f32 = 2047.0;
/// A short sample's unit in 16-bit samples, see [`Codec::decode_short_into`].
const UNIT: f32 = 8.0;
const SHORT_PEAK: i64 = 32_767 / 8;
const _: () = assert!(SHORT_PEAK * 2047 * (FRAME as i64) < i32::MAX as i64);
const _: () = assert!(SHORT_PEAK * SHORT_PEAK * (FRAME as i64) < i32::MAX as i64);

impl Group {
    fn of(frame: &Frame, first: usize) -> Self {
        let waves = waves();
        let sum = |wave: usize| scaled(product(frame, &waves[wave]), UNIT / WAVE_PEAK);
        let real = std::array::from_fn(|tone| sum(first + tone));
        let imaginary = std::array::from_fn(|tone| sum(first + tone + 2 * GROUP));
        let power = std::array::from_fn(|tone| real[tone] * real[tone] + imaginary[tone] * imaginary[tone]);
        Self { first, real, imaginary, power }
    }

    /// Which of the group stands out, and its power.
    fn peak(&self) -> Option<(usize, f32)> {
        let tone = (0..GROUP).max_by(|a, b| self.power[*a].total_cmp(&self.power[*b]))?;
        let power = self.power[tone];
        let clear = (0..GROUP).all(|other| other == tone || self.power[other] * PEAK_MIN <= power);
        clear.then_some((tone, power))
    }

    /// All that is known of one of the group.
    fn tuned(&self, tone: usize) -> Peak {
        let phase = self.imaginary[tone].atan2(self.real[tone]);
        Peak { tone: self.first + tone, power: self.power[tone], phase }
    }
}

/// A sum of products in 16-bit samples.
#[expect(clippy::cast_precision_loss, reason = "24 bits are far more than the samples have")]
fn scaled(sum: i32, unit: f32) -> f32 {
    sum as f32 * unit
}

/// `Σ a[n] b[n]`. Not part of its caller, whose eight would be unrolled to more code than the processor
/// keeps near.
#[inline(never)]
fn product(a: &Frame, b: &Frame) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

fn waves() -> &'static Waves {
    static WAVES: std::sync::LazyLock<Box<Waves>> = std::sync::LazyLock::new(|| {
        let mut waves = Box::new([[0; FRAME_ROOM]; 16]);
        #[expect(clippy::cast_possible_truncation, reason = "at most the peak")]
        let coded = |value: f32| (value * WAVE_PEAK).round() as i16;
        for (tone, hz) in TONES_HZ.iter().enumerate() {
            for (sample, before_end) in (0..FRAME).zip((0..FRAME_U8).rev()) {
                let (sine, cosine) = (TAU * hz / 8000.0 * f32::from(before_end)).sin_cos();
                (waves[tone][sample], waves[tone + 8][sample]) = (coded(cosine), coded(sine));
            }
        }
        waves
    });
    &WAVES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::test_signal::{dual_tone, noise, speech};

    const ALL: &str = "0123456789*#ABCD";

    fn tones_of(key: char) -> (f64, f64) {
        let row = KEYS.iter().position(|row| row.contains(&key)).unwrap();
        let column = KEYS[row].iter().position(|other| *other == key).unwrap();
        (f64::from(TONES_HZ[row]), f64::from(TONES_HZ[4 + column]))
    }

    /// Keys heard in a signal, coded and cut into packets of 20 ms.
    fn heard(codec: Codec, signal: &[i16]) -> String {
        let bytes: Vec<u8> = signal.iter().map(|sample| codec.encode(*sample)).collect();
        let mut detector = ToneDetector::default();
        let mut keys: String =
            bytes.chunks(160).filter_map(|part| detector.handle_audio(codec, part)).map(|t| t.key).collect();
        keys.extend(detector.handle_pause().map(|tone| tone.key));
        keys
    }

    fn pressed(key: char, dbm0: (f64, f64), tone_ms: usize, stretch: f64) -> Vec<i16> {
        let (low, high) = tones_of(key);
        dual_tone(low * stretch, high * stretch, dbm0, tone_ms * 8)
    }

    fn pause(ms: usize) -> Vec<i16> {
        vec![0; ms * 8]
    }

    /// Goal: each key is heard once at every level of Q.24, -3 to -25 dBm0 a tone, at the shortest
    /// tone and pause, wherever it falls in our frames. Method: 40 ms tones, 40 ms pauses, 17
    /// offsets, both codecs.
    #[test]
    fn every_key_is_heard_once_from_minus_3_to_minus_25_dbm0() {
        for codec in [Codec::Pcmu, Codec::Pcma] {
            for dbm0 in [-3.0, -10.0, -18.0, -25.0] {
                for offset in (0..102).step_by(6) {
                    let mut signal = vec![0; offset];
                    for key in ALL.chars() {
                        signal.extend(pressed(key, (dbm0, dbm0), 40, 1.0));
                        signal.extend(pause(40));
                    }
                    assert_eq!(heard(codec, &signal), ALL, "{codec:?} {dbm0} dBm0, offset {offset}");
                }
            }
        }
    }

    /// Goal: long presses are one key, the same key twice is two. Method: 2 s of tone; twice 50 ms.
    #[test]
    fn a_long_press_is_one_key_and_two_presses_are_two() {
        let mut signal = pressed('7', (-9.0, -9.0), 2000, 1.0);
        for _ in 0..2 {
            signal.extend(pause(45));
            signal.extend(pressed('3', (-9.0, -9.0), 50, 1.0));
        }
        signal.extend(pause(100));
        assert_eq!(heard(Codec::Pcmu, &signal), "733");
    }

    /// Goal: mistuning up to 1.5 % and twist from -8 to +4 dB are accepted (Q.24), 4 dB more is not.
    /// Method: 60 ms presses of every key at the edges.
    #[test]
    fn mistuning_and_twist_are_accepted_within_q24() {
        for key in ALL.chars() {
            for stretch in [0.985, 1.015] {
                let press = [pressed(key, (-10.0, -10.0), 60, stretch), pause(60)].concat();
                assert_eq!(heard(Codec::Pcmu, &press), key.to_string(), "stretched {stretch}");
            }
            for (dbm0, wanted) in [
                ((-10.0, -18.0), true),
                ((-14.0, -10.0), true),
                ((-8.0, -20.5), false),
                ((-18.0, -9.5), false),
            ] {
                let press = [pressed(key, dbm0, 60, 1.0), pause(60)].concat();
                let keys = heard(Codec::Pcmu, &press);
                assert_eq!(keys, if wanted { key.to_string() } else { String::new() }, "{dbm0:?} {key}");
            }
        }
    }

    /// Goal: a key is heard over line noise 15 dB below it. Method: tones at -12 dBm0 each in noise.
    #[test]
    fn keys_are_heard_over_line_noise() {
        let mut signal = Vec::new();
        for key in ALL.chars() {
            signal.extend(pressed(key, (-12.0, -12.0), 80, 1.0));
            signal.extend(pause(80));
        }
        let noise = noise(7, -24.0, signal.len());
        let noisy: Vec<i16> = signal.iter().zip(noise).map(|(a, b)| a.saturating_add(b)).collect();
        assert_eq!(heard(Codec::Pcmu, &noisy), ALL);
    }

    /// Goal: short blips, single tones and call progress tones are no keys.
    /// Method: 12 ms bursts; 770 Hz alone; 350 + 440 Hz.
    #[test]
    fn blips_and_other_tones_are_no_keys() {
        let blips: Vec<i16> =
            (0..50).flat_map(|_| [pressed('5', (-10.0, -10.0), 12, 1.0), pause(50)].concat()).collect();
        assert_eq!(heard(Codec::Pcmu, &blips), "");
        assert_eq!(heard(Codec::Pcmu, &dual_tone(770.0, 770.0, (-10.0, -10.0), 16_000)), "");
        assert_eq!(heard(Codec::Pcmu, &dual_tone(350.0, 440.0, (-10.0, -10.0), 16_000)), "");
    }

    /// Goal: neither noise nor speech talks off. Method: 30 s of noise, 5 minutes of speech-like
    /// signal from 10 seeds.
    #[test]
    fn noise_and_speech_are_no_keys() {
        assert_eq!(heard(Codec::Pcmu, &noise(1, -12.0, 240_000)), "");
        for seed in 0..10 {
            assert_eq!(heard(Codec::Pcma, &speech(seed, 240_000)), "", "seed {seed}");
        }
    }

    /// Goal: the tone's beginning is known, so that it can be cut from a recording. Method: a second
    /// of silence, a tone of 100 ms, silence; age against where it was reported.
    #[test]
    fn the_age_of_a_tone_reaches_back_to_its_beginning() {
        let signal = [pause(1000), pressed('#', (-10.0, -10.0), 100, 1.0), pause(200)].concat();
        let bytes: Vec<u8> = signal.iter().map(|sample| Codec::Pcmu.encode(*sample)).collect();
        let mut detector = ToneDetector::default();
        let mut taken = 0;
        for part in bytes.chunks(160) {
            taken += 160;
            if let Some(tone) = detector.handle_audio(Codec::Pcmu, part) {
                let began = taken - i64::from(tone.age);
                assert!((8000 - 204..=8000).contains(&began), "{began}");
                return;
            }
        }
        panic!("no tone");
    }
}
