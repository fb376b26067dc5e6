//! The reorder window, as a recording uses it: what is next is decoded past it, what is not goes in to
//! its place and comes out in its turn.
//!
//! Unit: time per packet of 160 samples. Floor: decoding the same packets, each into the same array.
//! `swapped`: every second packet comes before the one it should follow. `with_gaps`: one packet in ten
//! never comes and is given up when the next one is there.
//!
//!     cargo bench --bench jitter

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use voxring::media::jitter::{Content, ReorderWindow};
use voxring::sdp::Codec;
use voxring::um::prompts::{Prompt, Prompts};

mod counted;
use counted::counted;

/// Samples in a packet.
const SAMPLES: usize = 160;
/// As a distance.
const STEP: u64 = SAMPLES as u64;

fn main() {
    divan::main();
}

/// The packets of the built-in greeting, µ-law, for ever.
fn speech() -> impl FnMut() -> [u8; SAMPLES] {
    let prompts = Prompts::builtin();
    let greeting = prompts.get(Prompt::Greeting).iter();
    let coded: Vec<u8> = greeting.map(|sample| Codec::Pcmu.encode(*sample)).collect();
    let mut next = 0;
    move || {
        let packets = coded.as_chunks().0;
        next += 1;
        packets[next % packets.len()]
    }
}

/// Takes out all that is next; gives how many samples that was.
fn drain(window: &mut ReorderWindow) -> u64 {
    let mut taken = 0;
    loop {
        let ready = black_box(window.ready()).len() as u64;
        if ready == 0 {
            return taken;
        }
        window.advance(ready);
        taken += ready;
    }
}

/// Measures packets whose numbers come from `number`. `patient`: what is missing is waited for, else
/// given up.
fn take(bencher: Bencher, patient: bool, mut number: impl FnMut() -> u64) {
    let mut window = ReorderWindow::default();
    let mut speech = speech();
    let mut block = [0; SAMPLES];
    let (mut packets, mut taken) = (0, 0);
    let inputs = || (number() * STEP, speech());
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(inputs).bench_local_refs(|(place, packet)| {
        packets += 1;
        counted(|| {
            if window.is_next(*place) {
                Codec::Pcmu.decode_into(black_box(packet), &mut block);
                black_box(&mut block);
                window.advance(STEP);
                taken += STEP;
                return;
            }
            window.place(*place, Content::Coded(Codec::Pcmu, black_box(packet)));
            taken += drain(&mut window);
            if !patient && let Some(gap) = window.gap() {
                window.advance(gap);
                taken += drain(&mut window);
            }
        });
    });
    assert!(packets * STEP - taken <= STEP, "of {packets} packets {taken} samples came out");
}

#[divan::bench]
fn in_order(bencher: Bencher) {
    let mut numbers = 0..;
    take(bencher, true, move || numbers.next().expect("there is always one more"));
}

#[divan::bench]
fn swapped(bencher: Bencher) {
    let mut numbers = 0_u64..;
    take(bencher, true, move || numbers.next().expect("there is always one more") ^ 1);
}

#[divan::bench]
fn with_gaps(bencher: Bencher) {
    let mut numbers = (0_u64..).filter(|number| number % 10 != 5);
    take(bencher, false, move || numbers.next().expect("there is always one more"));
}

#[divan::bench]
fn floor_decode(bencher: Bencher) {
    let mut samples = [0; SAMPLES];
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(speech()).bench_local_refs(|packet| {
        counted(|| Codec::Pcmu.decode_into(black_box(packet), &mut samples));
        black_box(&mut samples);
    });
}
