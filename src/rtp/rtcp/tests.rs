//! Tests of RTCP, with `rtcp-types` as the judge of what we write.

use super::*;

const OURS: u32 = 0x1111_1111;
const PEER: u32 = 0x2222_2222;

fn block(ssrc: u32) -> ReportBlock {
    let reception =
        Reception { fraction_lost: 64, cumulative_lost: -3, extended_highest: 70_000, jitter: 12 };
    ReportBlock { ssrc, reception, last_sr: 0xB705_2000, delay_since_last_sr: 0x0005_4000 }
}

fn sender() -> SenderInfo {
    SenderInfo { ntp: NtpTime(0xB44D_B705_2000_0000), rtp: RtpTimestamp(160), packets: 7, octets: 1120 }
}

fn written(report: &Report<'_>) -> Vec<u8> {
    let mut buf = [0xEE; COMPOUND_BYTES_MAX];
    let len = report.write(&mut buf).unwrap();
    assert_eq!(len % 4, 0);
    buf[..len].to_vec()
}

/// Goal: what we send is a compound another implementation reads, field by field (§6.1, §6.4.1).
/// Method: `rtcp-types` parses SR + SDES + BYE.
#[test]
fn a_sender_report_compound_is_read_by_rtcp_types() {
    let report =
        Report { ssrc: OURS, sender: Some(sender()), block: Some(block(PEER)), cname: "node@h", bye: true };
    let bytes = written(&report);
    let mut packets = rtcp_types::Compound::parse(&bytes).unwrap();
    let Some(Ok(rtcp_types::Packet::Sr(sr))) = packets.next() else { panic!("no SR") };
    assert_eq!((sr.ssrc(), sr.ntp_timestamp(), sr.rtp_timestamp()), (OURS, 0xB44D_B705_2000_0000, 160));
    assert_eq!((sr.packet_count(), sr.octet_count(), sr.n_reports()), (7, 1120, 1));
    let read = sr.report_blocks().next().unwrap();
    assert_eq!((read.ssrc(), read.fraction_lost(), read.cumulative_lost()), (PEER, 64, 0xFF_FFFD));
    assert_eq!((read.extended_sequence_number(), read.interarrival_jitter()), (70_000, 12));
    assert_eq!(read.last_sender_report_timestamp(), 0xB705_2000);
    assert_eq!(read.delay_since_last_sender_report_timestamp(), 0x0005_4000);
    let Some(Ok(rtcp_types::Packet::Sdes(sdes))) = packets.next() else { panic!("no SDES") };
    let chunk = sdes.chunks().next().unwrap();
    let item = chunk.items().next().unwrap();
    assert_eq!(
        (chunk.ssrc(), item.type_(), item.value()),
        (OURS, rtcp_types::SdesItem::CNAME, &b"node@h"[..])
    );
    let Some(Ok(rtcp_types::Packet::Bye(bye))) = packets.next() else { panic!("no BYE") };
    assert_eq!(bye.ssrcs().collect::<Vec<_>>(), [OURS]);
    assert!(packets.next().is_none());
}

/// Goal: SDES chunks end with a null and on a word for every CNAME length (§6.5).
/// Method: all lengths up to beyond the 255 an item holds, parsed by `rtcp-types`.
#[test]
fn cnames_of_every_length_are_padded_and_cut_to_255_bytes() {
    for len in 0..300 {
        let cname = "x".repeat(len);
        let bytes = written(&Report { ssrc: OURS, sender: None, block: None, cname: &cname, bye: false });
        assert_eq!(bytes.last(), Some(&0), "{len}");
        let mut packets = rtcp_types::Compound::parse(&bytes).unwrap();
        assert!(matches!(packets.next(), Some(Ok(rtcp_types::Packet::Rr(_)))));
        if let Some(Ok(rtcp_types::Packet::Sdes(sdes))) = packets.next() {
            let chunk = sdes.chunks().next().unwrap();
            let expected = &cname.as_bytes()[..len.min(255)];
            assert_eq!(chunk.items().next().unwrap().value(), expected, "{len}");
        } else {
            panic!("no SDES for a CNAME of {len} bytes");
        }
    }
}

/// Goal: a cut CNAME stays UTF-8. Method: two-byte characters across the limit.
#[test]
fn a_long_cname_is_not_cut_within_a_character() {
    let cname = "é".repeat(200);
    let bytes = written(&Report { ssrc: OURS, sender: None, block: None, cname: &cname, bye: false });
    assert_eq!(bytes[8 + 9], 254);
}

/// Goal: a buffer too short is refused, never overrun. Method: every length below the need.
#[test]
fn a_short_buffer_gets_nothing() {
    let report =
        Report { ssrc: OURS, sender: Some(sender()), block: Some(block(PEER)), cname: "node@h", bye: true };
    let needed = written(&report).len();
    for len in 0..needed {
        assert_eq!(report.write(&mut vec![0; len]), None, "{len}");
    }
}

/// Goal: we read our own compounds, sign of the loss included. Method: write, read.
#[test]
fn reports_about_us_are_found_and_others_are_not() {
    let report =
        Report { ssrc: PEER, sender: Some(sender()), block: Some(block(OURS)), cname: "p", bye: false };
    let expected = Received { ssrc: PEER, sender: Some(sender()), about_us: Some(block(OURS)), bye: false };
    assert_eq!(read(&written(&report), OURS), Ok(expected));
    assert_eq!(read(&written(&report), 99), Ok(Received { about_us: None, ..expected }));
}

/// Goal: BYE ends only its own source (§6.6). Method: BYE of the reporter and of a stranger.
#[test]
fn a_bye_counts_only_for_the_source_that_reports() {
    let report = Report { ssrc: PEER, sender: None, block: None, cname: "p", bye: true };
    let mut bytes = written(&report);
    assert!(read(&bytes, OURS).unwrap().bye);
    let last = bytes.len() - 1;
    bytes[last] ^= 0xFF;
    assert!(!read(&bytes, OURS).unwrap().bye);
}

/// Goal: the validity checks of A.2 hold. Method: one broken compound each.
#[test]
fn compounds_that_break_rfc_3550_a_2_are_refused() {
    let good = written(&Report { ssrc: PEER, sender: None, block: None, cname: "p", bye: false });
    assert_eq!(read(&[], OURS), Err(RtcpError::NoReport));
    assert_eq!(read(&good[8..], OURS), Err(RtcpError::NoReport)); // SDES first
    assert_eq!(read(&good[..good.len() - 1], OURS), Err(RtcpError::Malformed));
    let broken = |index: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[index] = value;
        read(&bytes, OURS)
    };
    assert_eq!(broken(0, 0x40), Err(RtcpError::Malformed)); // version 1
    assert_eq!(broken(8, 0x41), Err(RtcpError::Malformed)); // version 1 in the second
    assert_eq!(broken(0, 0xA0), Err(RtcpError::Malformed)); // padding before the last
    assert_eq!(broken(0, 0x85), Err(RtcpError::Malformed)); // five blocks in eight bytes
    assert_eq!(broken(3, 200), Err(RtcpError::Malformed)); // longer than the datagram
}

/// Goal: plain RTCP is known with and without a report; SRTCP, RTP and cut packets are not taken for it.
/// Method: our compound, its tail, a lone APP; that with SRTCP's index (E bit set, RFC 3711 §3.4) and a
/// tag of ten bytes behind it, and changes of each kind.
#[test]
fn plain_rtcp_is_told_from_everything_else() {
    let compound = written(&Report { ssrc: PEER, sender: None, block: None, cname: "p", bye: true });
    let app = b"\x80\xcc\x00\x03\x04\xa1\x46\x38PINGPONG";
    for plain in [&compound[..], &compound[8..], app] {
        assert!(is_plain(plain), "{plain:02x?}");
        assert!(!is_plain(&[plain, &[0x80, 0, 0, 1], &[7; 10]].concat()), "an index and a tag");
        assert!(!is_plain(&plain[..plain.len() - 1]));
    }
    let rtp = [&[0x80, 0, 0, 2, 0, 0, 0, 1][..], &[1; 4]].concat();
    assert!(!is_plain(&rtp) && !is_plain(&[]));
}

/// Goal: the round trip of RFC 3550 §6.4.1 figure 2. Method: the figure's own numbers: A is
/// 0xb710:8000 (46864.5 s), LSR 0xb705:2000, DLSR 0x0005:4000 (5.25 s); result 6.125 s.
#[test]
fn round_trip_equals_the_example_of_the_rfc() {
    let arrival = NtpTime(0x0000_B710_8000_0000);
    assert_eq!(round_trip(arrival, &block(OURS)), Some(Duration::from_millis(6125)));
}

/// Goal: impossible figures give no round trip. Method: no SR yet; 12 s of delay in 11.375 s; a reply
/// before its question.
#[test]
fn round_trip_is_unknown_without_an_sr_or_with_impossible_figures() {
    let arrival = NtpTime(0x0000_B710_8000_0000);
    assert_eq!(round_trip(arrival, &ReportBlock { last_sr: 0, ..block(OURS) }), None);
    assert_eq!(round_trip(arrival, &ReportBlock { delay_since_last_sr: 0x000C_0000, ..block(OURS) }), None);
    let early = NtpTime(0x0000_B705_2000_0000);
    assert_eq!(round_trip(early, &block(OURS)), None);
}

/// Goal: NTP time and DLSR are right to their resolution. Method: 1970 is 2 208 988 800 s after
/// 1900 (RFC 5905 figure 4); half a second is 0x8000_0000; 5.25 s is 0x0005:4000.
#[test]
fn times_become_ntp_and_short_units() {
    let time = NtpTime::from(UNIX_EPOCH + Duration::from_millis(1500));
    assert_eq!(time.0, (2_208_988_801 << 32) | 0x8000_0000);
    assert_eq!(time.middle(), 0x7E81_8000);
    let last = Some((7, Duration::from_millis(5250)));
    let with = block(PEER).with_last_sr(last);
    assert_eq!((with.last_sr, with.delay_since_last_sr), (7, 0x0005_4000));
    let without = block(PEER).with_last_sr(None);
    assert_eq!((without.last_sr, without.delay_since_last_sr), (0, 0));
}

/// Goal: reports leave every 2.5-7.5 s, the first after 1.25-3.75 s, replayable by seed (§6.2).
/// Method: 1000 intervals on a fake clock; their mean is near 5 s.
#[test]
fn report_intervals_vary_around_five_seconds() {
    let start = crate::base::clock::now();
    let mut schedule = Schedule::new(start, 42);
    let first = schedule.next() - start;
    assert!(first >= Duration::from_millis(1250) && first <= Duration::from_millis(3750), "{first:?}");
    assert!(!schedule.poll(schedule.next() - Duration::from_nanos(1)));
    let mut now = schedule.next();
    for _ in 0..1000 {
        assert!(schedule.poll(now));
        let interval = schedule.next() - now;
        assert!(interval >= INTERVAL_MIN / 2 && interval <= INTERVAL_MIN * 3 / 2, "{interval:?}");
        now = schedule.next();
    }
    let mean = (now - start) / 1000;
    assert!(mean > Duration::from_millis(4900) && mean < Duration::from_millis(5100), "{mean:?}");
    let mut again = Schedule::new(start, 42);
    assert!(again.poll(again.next()));
    assert_eq!(Schedule::new(start, 42).next() - start, first);
}
