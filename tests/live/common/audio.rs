//! Sound in tests: files, G.711 as the wire changes it, and how alike two recordings are.

use std::path::{Path, PathBuf};

/// A WAV file's samples.
///
/// # Panics
/// The file is no 16-bit PCM WAV of 8000 Hz, one channel.
pub(crate) fn read(path: &Path) -> Vec<i16> {
    let mut reader =
        hound::WavReader::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let spec = reader.spec();
    assert_eq!((spec.sample_rate, spec.channels, spec.bits_per_sample), (8000, 1, 16), "{}", path.display());
    reader.samples().collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Writes samples as WAV.
pub(crate) fn write(path: &Path, samples: &[i16]) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("the file can be made");
    samples.iter().for_each(|&sample| writer.write_sample(sample).expect("the disk has room"));
    writer.finalize().expect("the disk has room");
}

/// Ten seconds of speech, from the first to the last 50 ms.
pub(crate) fn speech_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audio/speech10.wav")
}

/// The same as samples.
pub(crate) fn speech() -> Vec<i16> {
    read(&speech_file())
}

/// `count` samples of a tone.
#[expect(clippy::cast_possible_truncation, reason = "amplitudes are those of 16-bit sound")]
pub(crate) fn tone(frequency: f64, amplitude: f64, count: u32) -> Vec<i16> {
    (0..count)
        .map(|n| (amplitude * (std::f64::consts::TAU * frequency * f64::from(n) / 8000.0).sin()) as i16)
        .collect()
}

/// What is left of samples after a trip through G.711 µ-law (ITU-T G.711), in floating point.
pub(crate) fn through_ulaw(samples: &[i16]) -> Vec<i16> {
    samples.iter().map(|&sample| ulaw_decode(ulaw_encode(sample))).collect()
}

/// One sample to µ-law.
pub(crate) fn ulaw_encode(sample: i16) -> u8 {
    let magnitude = sample.unsigned_abs().min(32_635) + 132;
    let segment = 8 - magnitude.leading_zeros();
    let step = (magnitude >> (segment + 3)) & 0x0F;
    let byte = u8::try_from(segment << 4 | u32::from(step)).expect("three bits and four");
    !(byte | if sample < 0 { 0x80 } else { 0 })
}

/// One µ-law byte to a sample.
pub(crate) fn ulaw_decode(byte: u8) -> i16 {
    let byte = !byte;
    let magnitude = (((i16::from(byte & 0x0F) << 3) + 132) << ((byte >> 4) & 7)) - 132;
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// How two recordings lie to each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Match {
    /// Samples the recording lags behind the source; negative when it leads.
    pub(crate) lag: isize,
    /// Normalised correlation at that lag, 1 for the same sound.
    pub(crate) correlation: f64,
    /// Samples that were compared.
    pub(crate) compared: usize,
}

/// Of a second's samples a first look takes every so-many-th.
const GLANCE_STEP: usize = 8;
/// Lags that a first look leaves. What matches stands far above what it may err by.
const GLANCED_LAGS: usize = 256;

/// Finds the lag at which `recording` is most like `source`, within `lag_max` samples either way.
pub(crate) fn best_match(source: &[i16], recording: &[i16], lag_max: usize) -> Match {
    let limit = isize::try_from(lag_max).expect("a few seconds");
    // A second from the middle finds the lag; all that overlaps judges it.
    let middle = source.len() / 2;
    let probe = middle.saturating_sub(4000)..(middle + 4000).min(source.len());
    let likeness = |lag, step| correlation_at(source, recording, lag, probe.clone(), step).0;
    let mut lags: Vec<_> = (-limit..=limit).map(|lag| (lag, likeness(lag, GLANCE_STEP))).collect();
    lags.sort_by(|a, b| b.1.total_cmp(&a.1));
    lags.truncate(GLANCED_LAGS);
    let lag = lags
        .into_iter()
        .map(|(lag, _)| (lag, likeness(lag, 1)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(0, |(lag, _)| lag);
    let (correlation, compared) = correlation_at(source, recording, lag, 0..source.len(), 1);
    Match { lag, correlation, compared }
}

/// Correlation of every `step`-th sample, and how many those were.
fn correlation_at(
    source: &[i16],
    recording: &[i16],
    lag: isize,
    range: std::ops::Range<usize>,
    step: usize,
) -> (f64, usize) {
    let (mut product, mut left, mut right, mut count) = (0i64, 0i64, 0i64, 0);
    let start = range.start.max(lag.min(0).unsigned_abs());
    let Some(first) = start.checked_add_signed(lag) else { return (0.0, 0) };
    let tail = recording.get(first..).unwrap_or_default();
    for (&a, &b) in source[start.min(range.end)..range.end].iter().zip(tail).step_by(step) {
        let (a, b) = (i64::from(a), i64::from(b));
        product += a * b;
        left += a * a;
        right += b * b;
        count += 1;
    }
    if left == 0 || right == 0 {
        return (0.0, count);
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "energies of minutes of sound fit a double's 53 bits well enough"
    )]
    let (product, energy) = (product as f64, (left as f64).sqrt() * (right as f64).sqrt());
    (product / energy, count)
}

/// Asserts that `recording` is `source` after G.711: as long within 100 ms, correlation 0.98.
///
/// # Panics
/// It is not.
pub(crate) fn assert_same_speech(source: &[i16], recording: &[i16]) {
    let difference = recording.len().abs_diff(source.len());
    let found = best_match(&through_ulaw(source), recording, 2400);
    assert!(
        difference <= 800,
        "the recording has {} samples, the source {}: {} ms apart; {found:?}",
        recording.len(),
        source.len(),
        difference / 8
    );
    assert!(found.correlation >= 0.98, "{found:?}");
    assert!(found.compared + 800 >= source.len(), "{found:?}");
}

/// Amplitude of a frequency in samples (Goertzel's algorithm).
#[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^53")]
pub(crate) fn amplitude(samples: &[i16], frequency: f64) -> f64 {
    let step = std::f64::consts::TAU * frequency / 8000.0;
    let (mut last, mut before) = (0.0, 0.0);
    for &sample in samples {
        (last, before) = (f64::from(sample) + 2.0 * step.cos() * last - before, last);
    }
    let power = last * last + before * before - 2.0 * step.cos() * last * before;
    2.0 * power.max(0.0).sqrt() / samples.len().max(1) as f64
}

/// The largest amplitude of a frequency in any 100 ms.
pub(crate) fn loudest_tone(samples: &[i16], frequency: f64) -> f64 {
    samples.chunks_exact(800).map(|chunk| amplitude(chunk, frequency)).fold(0.0, f64::max)
}

/// Goal: the tone meter reads what is there. Method: 1000 Hz of amplitude 3000, read at 1000 and 440 Hz.
#[test]
fn a_tone_is_measured_at_its_own_frequency() {
    let tone = tone(1000.0, 3000.0, 1600);
    assert!((loudest_tone(&tone, 1000.0) - 3000.0).abs() < 10.0);
    assert!(loudest_tone(&tone, 440.0) < 100.0);
}

/// Milliseconds of `samples` samples.
pub(crate) fn ms(samples: usize) -> u64 {
    u64::try_from(samples / 8).expect("a time")
}

/// Goal: the judge of recordings judges rightly: a shifted copy is found, other speech is not.
/// Method: the speech through G.711, 100 samples late; the same speech backwards.
#[test]
fn a_shifted_copy_is_found_and_other_sound_is_not() {
    let source = speech();
    let mut late = vec![0; 100];
    late.extend(through_ulaw(&source));
    let found = best_match(&source, &late, 400);
    assert_eq!(found.lag, 100);
    assert!(found.correlation > 0.999 && found.compared == source.len(), "{found:?}");
    assert_same_speech(&source, &late);
    let backwards: Vec<i16> = source.iter().rev().copied().collect();
    assert!(best_match(&source, &backwards, 400).correlation < 0.5);
}

/// Goal: the speech file is what its README says. Method: length, and sound in its first and last 50 ms.
#[test]
fn the_speech_is_ten_seconds_from_end_to_end() {
    let speech = speech();
    assert_eq!(speech.len(), 80_000);
    let loudest = |samples: &[i16]| samples.iter().map(|sample| sample.unsigned_abs()).max();
    assert!(loudest(&speech[..400]) > Some(500) && loudest(&speech[79_600..]) > Some(500));
}
