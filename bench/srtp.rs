//! Protecting and unprotecting an RTP packet of 20 ms G.711 in place (RFC 3711, RFC 7714).
//!
//! Unit: time per packet of 172 bytes. Floor, in the same run: the bare cipher and MAC on the same
//! bytes, with their keys at hand, and nothing else: no header, index, replay window, MKI or tag in
//! its place. Beside: rtc-srtp, which allocates its result. `relay_in_turn` opens and protects with the
//! keys of 4,000 calls one after the other, which do not stay in the cache. Packets are made outside the
//! measured time; allocations are counted and shown.
//!
//!     cargo bench --bench srtp

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use rtc_srtp::context::Context;
use rtc_srtp::option::srtp_replay_protection;
use rtc_srtp::protection_profile::ProtectionProfile;
use voxring::base::config::SrtpSuite;
use voxring::rtp::packet::{HEADER_BYTES, RtpHeader, RtpTimestamp, SeqNo, write_header};
use voxring::rtp::srtp::{MasterKey, OVERHEAD_BYTES_MAX, SrtpPlan, SrtpSession, key_and_salt_bytes};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

/// Header and 160 samples.
const PACKET_BYTES: usize = HEADER_BYTES + 160;
/// A packet with room for its protection.
type Buffer = [u8; PACKET_BYTES + OVERHEAD_BYTES_MAX];

mod bare;
mod counted;
use bare::Bare;
use counted::counted;

fn main() {
    divan::main();
}

fn master(suite: SrtpSuite) -> MasterKey {
    let bytes: Vec<u8> = (1..).take(key_and_salt_bytes(suite)).collect();
    MasterKey::new(suite, &bytes, None).expect("the suite's length")
}

/// Sends and receives with one key, so that it opens what another like it protects.
fn session(suite: SrtpSuite) -> SrtpSession {
    SrtpSession::new(&SrtpPlan { send: master(suite), receive: master(suite) })
}

fn rtc(suite: SrtpSuite) -> Context {
    let (profile, key_bytes) = match suite {
        SrtpSuite::AeadAes128Gcm => (ProtectionProfile::AeadAes128Gcm, 16),
        SrtpSuite::AeadAes256Gcm => (ProtectionProfile::AeadAes256Gcm, 32),
        SrtpSuite::AesCm128HmacSha1_80 => (ProtectionProfile::Aes128CmHmacSha1_80, 16),
        SrtpSuite::AesCm128HmacSha1_32 => (ProtectionProfile::Aes128CmHmacSha1_32, 16),
    };
    let master = master(suite);
    let (key, salt) = master.key_and_salt().split_at(key_bytes);
    let provider = rtc_srtp::crypto::default_provider().expect("its default is built in");
    let window = Some(srtp_replay_protection(128));
    Context::new(key, salt, profile, window, None, provider.crypto()).expect("the profile's lengths")
}

/// One packet after the other of one stream.
fn packets() -> impl FnMut() -> Buffer {
    let (mut sequence, mut timestamp) = (SeqNo(0), RtpTimestamp(0));
    move || {
        let mut packet = [0x55; _];
        let header = RtpHeader { marker: false, payload_type: 0, sequence, timestamp, ssrc: 0xCAFE_BABE };
        write_header(&header, &mut packet);
        (sequence, timestamp) = (sequence.plus(1), timestamp.plus(160));
        packet
    }
}

/// The same, protected, and how long they are.
fn protected(suite: SrtpSuite) -> impl FnMut() -> (Buffer, usize) {
    let (mut packets, mut session) = (packets(), session(suite));
    move || {
        let mut packet = packets();
        let len = session.protect_rtp(&mut packet, PACKET_BYTES).expect("room and a fresh index");
        (packet, len)
    }
}

#[divan::bench(args = SrtpSuite::ALL, sample_count = 2000, sample_size = 100)]
fn protect(bencher: Bencher, suite: SrtpSuite) {
    let mut session = session(suite);
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(packets()).bench_local_refs(|packet| {
        assert!(counted(|| session.protect_rtp(black_box(packet), PACKET_BYTES)).is_some());
    });
}

#[divan::bench(args = SrtpSuite::ALL, sample_count = 2000, sample_size = 100)]
fn unprotect(bencher: Bencher, suite: SrtpSuite) {
    let mut session = session(suite);
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(protected(suite)).bench_local_refs(
        |(packet, len)| {
            assert!(counted(|| session.unprotect_rtp(black_box(&mut packet[..*len]))).is_ok());
        },
    );
}

#[divan::bench(args = SrtpSuite::ALL, sample_count = 2000, sample_size = 100)]
fn rtc_srtp_protect(bencher: Bencher, suite: SrtpSuite) {
    let mut context = rtc(suite);
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(packets()).bench_local_refs(|packet| {
        counted(|| drop(context.encrypt_rtp(black_box(&packet[..PACKET_BYTES])).expect("protected")));
    });
}

#[divan::bench(args = SrtpSuite::ALL, sample_count = 2000, sample_size = 100)]
fn rtc_srtp_unprotect(bencher: Bencher, suite: SrtpSuite) {
    let mut context = rtc(suite);
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(protected(suite)).bench_local_refs(
        |(packet, len)| {
            counted(|| drop(context.decrypt_rtp(black_box(&packet[..*len])).expect("authentic")));
        },
    );
}

/// Packets sealed by the bare cipher, and their tags.
fn sealed(suite: SrtpSuite) -> impl FnMut() -> (Buffer, [u8; 20]) {
    let (bare, mut packets) = (Bare::new(suite), packets());
    move || {
        let mut packet = packets();
        let tag = bare.seal(&mut packet, PACKET_BYTES);
        if matches!(bare, Bare::Gcm(_)) {
            let tag_bytes = bare.tag_bytes();
            packet[PACKET_BYTES..PACKET_BYTES + tag_bytes].copy_from_slice(&tag[..tag_bytes]);
        }
        (packet, tag)
    }
}

#[divan::bench(args = SrtpSuite::ALL, sample_count = 2000, sample_size = 100)]
fn floor_seal(bencher: Bencher, suite: SrtpSuite) {
    let bare = Bare::new(suite);
    bencher
        .counter(ItemsCount::new(1_u32))
        .with_inputs(packets())
        .bench_local_refs(|packet| counted(|| black_box(bare.seal(black_box(packet), PACKET_BYTES))));
}

#[divan::bench(args = SrtpSuite::ALL, sample_count = 2000, sample_size = 100)]
fn floor_open(bencher: Bencher, suite: SrtpSuite) {
    let bare = Bare::new(suite);
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(sealed(suite)).bench_local_refs(|(packet, tag)| {
        assert!(counted(|| bare.open(black_box(packet), PACKET_BYTES, tag)));
    });
}

/// Calls relayed in turn: the keys of so many are not in the cache, as a media shard's are not.
const CALLS: usize = 4_000;
/// From one call to the next: far apart, and each once a round.
const STRIDE: usize = 1_597;

/// Opens a packet with one session and protects it with another, those of a call after the other.
#[divan::bench(args = SrtpSuite::ALL, sample_count = 50, sample_size = 4_000)]
fn relay_in_turn(bencher: Bencher, suite: SrtpSuite) {
    let mut calls: Vec<_> = (0..CALLS).map(|_| (session(suite), session(suite))).collect();
    let mut at = 0;
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(rounds(protected(suite))).bench_local_refs(
        |(packet, len)| {
            at = (at + STRIDE) % CALLS;
            let (near, far) = &mut calls[at];
            let plain = near.unprotect_rtp(black_box(&mut packet[..*len])).expect("authentic");
            assert!(counted(|| far.protect_rtp(black_box(packet), plain)).is_some());
        },
    );
}

/// The same with bare ciphers.
#[divan::bench(args = SrtpSuite::ALL, sample_count = 50, sample_size = 4_000)]
fn floor_relay_in_turn(bencher: Bencher, suite: SrtpSuite) {
    let calls: Vec<_> = (0..CALLS).map(|_| (Bare::new(suite), Bare::new(suite))).collect();
    let mut at = 0;
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(rounds(sealed(suite))).bench_local_refs(
        |(packet, tag)| {
            at = (at + STRIDE) % CALLS;
            let (near, far) = &calls[at];
            assert!(near.open(black_box(packet), PACKET_BYTES, tag));
            black_box(counted(|| far.seal(black_box(packet), PACKET_BYTES)));
        },
    );
}

/// Each of `packets` for all calls.
fn rounds<T: Clone>(mut packets: impl FnMut() -> T) -> impl FnMut() -> T {
    let (mut packet, mut left) = (None, 0);
    move || {
        if left == 0 {
            (packet, left) = (Some(packets()), CALLS);
        }
        left -= 1;
        packet.clone().expect("made above")
    }
}
