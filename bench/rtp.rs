//! Reading an RTP packet of 20 ms G.711 and judging its sequence number (RFC 3550 A.1).
//!
//! Unit: time per packet. Floor: copying its 172 bytes, which reading never does. Packets are made
//! outside the measured time, each the next of one stream.
//!
//!     cargo bench --bench rtp

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use voxring::rtp::packet::{HEADER_BYTES, RtpHeader, RtpTimestamp, SeqNo, parse, write_header};
use voxring::rtp::sequence::SourceState;

/// Header and 160 samples.
const PACKET_BYTES: usize = HEADER_BYTES + 160;

mod counted;
use counted::counted;

fn main() {
    divan::main();
}

/// One packet after the other, with the sequence number of the first.
fn stream(first: SeqNo) -> impl FnMut() -> [u8; PACKET_BYTES] {
    let (mut sequence, mut timestamp) = (first, RtpTimestamp(0));
    move || {
        let mut packet = [0xFF; PACKET_BYTES];
        let header = RtpHeader { marker: false, payload_type: 0, sequence, timestamp, ssrc: 0xCAFE_BABE };
        write_header(&header, &mut packet);
        (sequence, timestamp) = (sequence.plus(1), timestamp.plus(160));
        packet
    }
}

#[divan::bench]
fn parse_only(bencher: Bencher) {
    bencher
        .counter(ItemsCount::new(1_u32))
        .with_inputs(stream(SeqNo(0)))
        .bench_local_refs(|packet| counted(|| parse(black_box(packet))));
}

#[divan::bench]
fn parse_and_judge(bencher: Bencher) {
    let first = SeqNo(65_000);
    let mut source = SourceState::new(first);
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(stream(first)).bench_local_refs(|packet| {
        counted(|| parse(black_box(packet)).map(|packet| source.handle(packet.header.sequence)))
    });
    assert_eq!(source.lost(), 0, "the stream was taken in its order");
}

#[divan::bench]
fn judge_only(bencher: Bencher) {
    let mut sequence = SeqNo(0);
    let mut source = SourceState::new(sequence);
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        let judged = counted(|| source.handle(black_box(sequence)));
        sequence = sequence.plus(1);
        judged
    });
    assert_eq!(source.lost(), 0, "the stream was judged in its order");
}

#[divan::bench]
fn floor_copy(bencher: Bencher) {
    let mut copy = [0; PACKET_BYTES];
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(stream(SeqNo(0))).bench_local_refs(|packet| {
        counted(|| copy.copy_from_slice(black_box(packet)));
        black_box(&mut copy);
    });
}
