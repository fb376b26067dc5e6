use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::rtp::srtp::SrtpSourceMark;

fn address() -> impl Strategy<Value = SocketAddr> {
    let six = (any::<[u8; 16]>(), any::<u16>(), any::<u32>())
        .prop_map(|(ip, port, scope)| SocketAddr::V6(std::net::SocketAddrV6::new(ip.into(), port, 0, scope)));
    prop_oneof![(any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from), six]
}

fn uptime() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn timestamp() -> impl Strategy<Value = RtpTimestamp> {
    any::<u32>().prop_map(RtpTimestamp)
}

const MOST: u64 = 1 << 48;

fn heard() -> impl Strategy<Value = HeardMark> {
    let counted = (65_536..MOST, 0..65_536_u64, 0..MOST, any::<u32>()).prop_map(
        |(base, more, received, jitter_x16)| SourceMark {
            base,
            highest: (base + more).min(MOST),
            received,
            jitter_x16,
        },
    );
    let next = proptest::option::of((timestamp(), uptime()));
    (any::<u32>(), counted, any::<u32>(), any::<u16>(), next).prop_map(
        |(ssrc, counted, duplicates, newest, next)| HeardMark {
            ssrc,
            counted,
            duplicates,
            newest: SeqNo(newest),
            next,
        },
    )
}

fn recording() -> impl Strategy<Value = RecordMark> {
    let end = proptest::option::of(prop_oneof![
        Just(RecordEnd::Stopped),
        Just(RecordEnd::Silence),
        Just(RecordEnd::Limit),
        Just(RecordEnd::Closed),
    ]);
    let position = -1_000_000..1_000_000_000_i64;
    let clock = (proptest::option::of((timestamp(), position)), timestamp(), any::<i32>())
        .prop_map(|(anchor, expected, lag)| ClockMark { anchor, expected, lag });
    let samples = (0..MOST, 0..MOST, 0..MOST);
    (any::<u64>(), end, samples, uptime(), clock, any::<u16>()).prop_map(
        |(tag, end, (samples, sound, sound_end), began, clock, packet_len)| RecordMark {
            tag,
            end,
            samples,
            sound,
            sound_end,
            began,
            clock,
            packet_len,
        },
    )
}

fn srtp() -> impl Strategy<Value = SrtpMark> {
    let source = (any::<u32>(), 0..MOST, any::<u128>(), any::<u32>()).prop_map(
        |(ssrc, rtp_next, rtp_used, rtcp_next)| SrtpSourceMark { ssrc, rtp_next, rtp_used, rtcp_next },
    );
    (0..MOST, any::<u32>(), proptest::option::of(source)).prop_map(|(rtp_next, rtcp_next, source)| SrtpMark {
        rtp_next,
        rtcp_next,
        source,
    })
}

fn stats() -> impl Strategy<Value = LegStats> {
    let counted = [0..MOST, 0..MOST, 0..MOST, 0..MOST];
    let rare: [_; 9] = std::array::from_fn(|_| any::<u32>().prop_map(u64::from));
    (counted, rare, any::<u8>(), proptest::option::of(any::<u32>())).prop_map(
        |([rx_packets, rx_bytes, tx_packets, tx_bytes], rare, remote_fraction_lost, rtt_us)| {
            let [
                tx_errors,
                relay_dropped,
                late,
                duplicate,
                invalid,
                source_filtered,
                auth,
                missing,
                replayed,
            ] = rare;
            LegStats {
                rx_packets,
                rx_bytes,
                tx_packets,
                tx_bytes,
                tx_errors,
                relay_dropped,
                late,
                duplicate,
                invalid,
                source_filtered,
                srtp_auth_failed: auth,
                srtcp_missing: missing,
                srtp_replayed: replayed,
                remote_fraction_lost,
                rtt_us,
                ..LegStats::default()
            }
        },
    )
}

prop_compose! {
    /// Any mark that words can hold.
    pub(in crate::media) fn mark()(
        (leg, at, ssrc, sequence, timestamp) in (any::<u64>(), uptime(), any::<u32>(), any::<u16>(), timestamp()),
        mode in prop_oneof![
            Just(LegMode::Voice), Just(LegMode::Echo), Just(LegMode::Sink), Just(LegMode::Bridged)
        ],
        (makes_ms, offsets) in (proptest::option::of(any::<u8>()), any::<Option<(u16, u32)>>()),
        (latched, source) in (proptest::option::of(address()), proptest::option::of(heard())),
        (lost_before, event_over) in (0..MOST, proptest::option::of(timestamp())),
        playing in proptest::option::of((any::<u32>().prop_map(PlayId), any::<u64>())),
        (recording, srtp) in (proptest::option::of(recording()), proptest::option::of(srtp())),
        stats in stats(),
    ) -> LegMark {
        LegMark {
            leg: LegId(leg), at, mode, makes_ms, ssrc, sequence: SeqNo(sequence), timestamp, offsets, latched,
            source, lost_before, event_over, playing, recording, srtp, stats,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: what another process reads is what was written. Method: random marks there and back.
    #[test]
    fn a_mark_comes_back_from_its_words_as_it_was(mark in mark()) {
        prop_assert_eq!(LegMark::from_words(&mark.to_words()), Some(mark));
    }

    /// Goal: words that no mark became are none. Method: a bit of a mark is turned; what is read, if
    /// anything, is another mark that would have been written so.
    #[test]
    fn a_changed_word_is_no_mark_or_another_one(mark in mark(), word in 0..MARK_WORDS, bit in 0..64_u32) {
        let mut words = mark.to_words();
        words[word] ^= 1 << bit;
        let read = LegMark::from_words(&words);
        prop_assert_ne!(&read, &Some(mark));
        prop_assert!(read.is_none_or(|other| word > 0 && other.to_words() == words));
    }
}

/// Goal: memory that was never written, or by something else, is no mark. Method: noughts, ones, and a
/// mark of a source that ends before it begins.
#[test]
fn words_that_are_no_mark_are_refused() {
    assert_eq!(LegMark::from_words(&[0; MARK_WORDS]), None);
    assert_eq!(LegMark::from_words(&[u64::MAX; MARK_WORDS]), None);
    let counted = SourceMark { base: 70_000, highest: 69_000, received: 1, jitter_x16: 0 };
    let mark = LegMark {
        leg: LegId(1),
        at: Duration::from_secs(1),
        mode: LegMode::Voice,
        makes_ms: Some(20),
        ssrc: 1,
        sequence: SeqNo(1),
        timestamp: RtpTimestamp(1),
        offsets: None,
        latched: None,
        source: Some(HeardMark { ssrc: 1, counted, duplicates: 0, newest: SeqNo(1), next: None }),
        lost_before: 0,
        event_over: None,
        playing: None,
        recording: None,
        srtp: None,
        stats: LegStats::default(),
    };
    assert_eq!(LegMark::from_words(&mark.to_words()), None);
    let sound = LegMark { source: None, ..mark };
    assert_eq!(LegMark::from_words(&sound.to_words()), Some(sound));
}
