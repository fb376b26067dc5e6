//! G.711 in both directions, on speech: 160 samples, what a packet of 20 ms holds.
//!
//! Unit: time per packet. Floor: copying 160 samples of 16 bits. Each run has another packet of the
//! built-in greeting, so that no branch is learnt by heart.
//!
//!     cargo bench --bench g711

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use voxring::sdp::Codec;
use voxring::um::prompts::{Prompt, Prompts};

/// Samples in a packet.
const SAMPLES: usize = 160;

const CODECS: [Codec; 2] = [Codec::Pcmu, Codec::Pcma];

mod counted;
use counted::counted;

fn main() {
    divan::main();
}

/// The greeting, as linear samples.
fn speech() -> Vec<i16> {
    Prompts::builtin().get(Prompt::Greeting).to_vec()
}

/// The packets of a signal, for ever.
fn packets<T: Copy>(signal: &[T]) -> impl FnMut() -> [T; SAMPLES] {
    let mut packets = signal.as_chunks().0.iter().copied().cycle();
    move || packets.next().expect("the greeting is longer than a packet")
}

#[divan::bench(args = CODECS)]
fn encode(bencher: Bencher, codec: Codec) {
    let mut bytes = [0; SAMPLES];
    let speech = speech();
    bencher.counter(ItemsCount::new(SAMPLES)).with_inputs(packets(&speech)).bench_local_refs(|packet| {
        counted(|| {
            for (byte, sample) in bytes.iter_mut().zip(black_box(packet)) {
                *byte = codec.encode(*sample);
            }
        });
        black_box(&mut bytes);
    });
}

#[divan::bench(args = CODECS)]
fn decode(bencher: Bencher, codec: Codec) {
    let mut samples = [0; SAMPLES];
    let coded: Vec<u8> = speech().into_iter().map(|sample| codec.encode(sample)).collect();
    bencher.counter(ItemsCount::new(SAMPLES)).with_inputs(packets(&coded)).bench_local_refs(|packet| {
        counted(|| codec.decode_into(black_box(packet), &mut samples));
        black_box(&mut samples);
    });
}

#[divan::bench]
fn floor_copy(bencher: Bencher) {
    let mut samples = [0; SAMPLES];
    let speech = speech();
    bencher.counter(ItemsCount::new(SAMPLES)).with_inputs(packets(&speech)).bench_local_refs(|packet| {
        counted(|| samples.copy_from_slice(black_box(packet)));
        black_box(&mut samples);
    });
}
