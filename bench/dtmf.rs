//! Watching audio for keys, one packet of 20 ms after the other.
//!
//! Unit: time per packet of 160 µ-law samples, decoding included. Floor: the sum of squares of 160
//! linear samples. Silence is given up after its energy; speech and a held key go through all eight
//! tones wherever they are loud. A sample is ten seconds, about all of the greeting.
//!
//!     cargo bench --bench dtmf

use std::f64::consts::TAU;

use divan::{Bencher, black_box};
use voxring::media::tones::ToneDetector;
use voxring::sdp::Codec;
use voxring::um::prompts::{Prompt, Prompts};

/// Samples in a packet.
const SAMPLES: usize = 160;

mod counted;
use counted::counted;

fn main() {
    divan::main();
}

/// The built-in greeting.
fn greeting() -> Vec<i16> {
    Prompts::builtin().get(Prompt::Greeting).to_vec()
}

/// One second of key 5, which continues itself: whole numbers of both periods.
#[expect(clippy::cast_possible_truncation, reason = "both amplitudes together fit 16 bits")]
fn key() -> Vec<i16> {
    let tone = |n: u32, hz: f64| 7_000.0 * (TAU * hz * f64::from(n) / 8000.0).sin();
    (0..8000).map(|n| (tone(n, 770.0) + tone(n, 1336.0)) as i16).collect()
}

/// The packets of a signal, for ever.
fn packets<T: Copy>(signal: &[T]) -> impl FnMut() -> [T; SAMPLES] {
    let mut packets = signal.as_chunks().0.iter().copied().cycle();
    move || packets.next().expect("a signal is longer than a packet")
}

/// Measures one leg's detector; it is left listening to a key, or not.
fn watch(bencher: Bencher, signal: &[i16], listening: Option<bool>) {
    let coded: Vec<u8> = signal.iter().map(|sample| Codec::Pcmu.encode(*sample)).collect();
    let mut detector = ToneDetector::default();
    bencher
        .with_inputs(packets(&coded))
        .bench_local_refs(|packet| counted(|| detector.handle_audio(Codec::Pcmu, black_box(packet))));
    assert!(listening.is_none_or(|expected| detector.is_listening() == expected));
}

#[divan::bench(sample_size = 500)]
fn silence(bencher: Bencher) {
    watch(bencher, &[0; SAMPLES], Some(false));
}

#[divan::bench(sample_size = 500)]
fn speech(bencher: Bencher) {
    watch(bencher, &greeting(), None);
}

#[divan::bench(sample_size = 500)]
fn held_key(bencher: Bencher) {
    watch(bencher, &key(), Some(true));
}

#[divan::bench]
fn floor_squares(bencher: Bencher) {
    let greeting = greeting();
    bencher.with_inputs(packets(&greeting)).bench_local_refs(|packet| {
        counted(|| black_box(packet).iter().map(|sample| i64::from(i32::from(*sample).pow(2))).sum::<i64>())
    });
}
