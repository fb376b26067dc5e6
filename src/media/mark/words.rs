//! A mark as words: fields in a fixed order, small ones side by side, absent ones nought.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use super::{HeardMark, LegMark, MARK_WORDS, RecordMark};
use crate::base::id::{LegId, PlayId};
use crate::media::media_clock::ClockMark;
use crate::media::order::{LegMode, LegStats, RecordEnd};
use crate::rtp::packet::{RtpTimestamp, SeqNo};
use crate::rtp::sequence::SourceMark;
use crate::rtp::srtp::{SrtpMark, SrtpSourceMark};

/// The first word. Its last digits are the version of the order below.
const FORM: u64 = 0x766F_786D_6172_6B01;

/// Which of the optional fields are there.
const MAKES: u64 = 1;
const OFFSETS: u64 = 1 << 1;
const LATCHED: u64 = 1 << 2;
const LATCHED_V4: u64 = 1 << 3;
const SOURCE: u64 = 1 << 4;
const NEXT: u64 = 1 << 5;
const EVENT_OVER: u64 = 1 << 6;
const PLAYING: u64 = 1 << 7;
const ANCHOR: u64 = 1 << 8;
const SRTP: u64 = 1 << 9;
const SRTP_SOURCE: u64 = 1 << 10;
const RTT: u64 = 1 << 11;

/// States of a recording; nought is none.
const RUNNING: u64 = 1;
const ENDS: [(u64, RecordEnd); 4] =
    [(2, RecordEnd::Stopped), (3, RecordEnd::Silence), (4, RecordEnd::Limit), (5, RecordEnd::Closed)];
const MODES: [(u64, LegMode); 4] =
    [(0, LegMode::Voice), (1, LegMode::Echo), (2, LegMode::Sink), (3, LegMode::Bridged)];

pub(super) fn write(mark: &LegMark) -> [u64; MARK_WORDS] {
    let mut out = Writer { words: [0; MARK_WORDS], at: 0 };
    let (offset, timestamp_offset) = mark.offsets.unwrap_or_default();
    let source = mark.source.as_ref();
    out.put(FORM);
    out.put(mark.leg.0);
    out.put(nanos(mark.at));
    out.pair(mark.ssrc, mark.timestamp.0);
    let small = u64::from(mark.sequence.0) << 48 | u64::from(offset) << 32;
    let kinds = mode(mark.mode) << 28 | state(mark.recording.as_ref()) << 24;
    out.put(small | kinds | u64::from(mark.makes_ms.unwrap_or(0)) << 16 | flags(mark));
    out.pair(timestamp_offset, source.map_or(0, |source| source.ssrc));
    put_address(&mut out, mark.latched, source.map_or(0, |source| source.newest.0));
    put_source(&mut out, mark);
    let clock = mark.recording.as_ref().map(|recording| recording.clock);
    let (play, position) = mark.playing.map_or((0, 0), |(play, position)| (play.0, position));
    out.put(position);
    out.pair(play, clock.map_or(0, |clock| clock.lag.cast_unsigned()));
    put_recording(&mut out, mark.recording.as_ref());
    put_srtp(&mut out, mark);
    put_stats(&mut out, mark);
    out.words
}

pub(super) fn read(words: &[u64; MARK_WORDS]) -> Option<LegMark> {
    let mut from = Reader { words, at: 0 };
    if from.take() != FORM {
        return None;
    }
    let leg = LegId(from.take());
    let at = Duration::from_nanos(from.take());
    let (ssrc, timestamp) = from.pair();
    let small = from.take();
    let (sequence, offset) = (SeqNo(part(small, 48)), part(small, 32));
    let [makes_ms, kinds] = [byte(small, 16), byte(small, 24)];
    let mode = MODES.iter().find(|(number, _)| *number == u64::from(kinds >> 4))?.1;
    let state = u64::from(kinds & 15);
    let has = |flag: u64| small & flag != 0;
    let (timestamp_offset, source_ssrc) = from.pair();
    let (latched, newest) = take_address(&mut from, has(LATCHED_V4));
    let (counted, duplicates, event_over, lost_before, next) = take_source(&mut from);
    let position = from.take();
    let (play, lag) = from.pair();
    let recording = take_recording(&mut from, state, has(ANCHOR), lag.cast_signed());
    let (srtp, late) = take_srtp(&mut from, has(SRTP_SOURCE));
    let (stats, packet_len) = take_stats(&mut from, late, has(RTT));
    let next = has(NEXT).then_some(next);
    let source = HeardMark { ssrc: source_ssrc, counted, duplicates, newest, next };
    Some(LegMark {
        leg,
        at,
        mode,
        makes_ms: has(MAKES).then_some(makes_ms),
        ssrc,
        sequence,
        timestamp: RtpTimestamp(timestamp),
        offsets: has(OFFSETS).then_some((offset, timestamp_offset)),
        latched: has(LATCHED).then_some(latched),
        source: has(SOURCE).then_some(source),
        lost_before,
        event_over: has(EVENT_OVER).then_some(event_over),
        playing: has(PLAYING).then_some((PlayId(play), position)),
        recording: recording.map(|recording| RecordMark { packet_len, ..recording }),
        srtp: has(SRTP).then_some(srtp),
        stats,
    })
}

fn flags(mark: &LegMark) -> u64 {
    let source = mark.source.as_ref();
    let clock = mark.recording.as_ref().map(|recording| recording.clock);
    let flags = [
        (MAKES, mark.makes_ms.is_some()),
        (OFFSETS, mark.offsets.is_some()),
        (LATCHED, mark.latched.is_some()),
        (LATCHED_V4, mark.latched.is_some_and(|address| address.is_ipv4())),
        (SOURCE, source.is_some()),
        (NEXT, source.is_some_and(|source| source.next.is_some())),
        (EVENT_OVER, mark.event_over.is_some()),
        (PLAYING, mark.playing.is_some()),
        (ANCHOR, clock.is_some_and(|clock| clock.anchor.is_some())),
        (SRTP, mark.srtp.is_some()),
        (SRTP_SOURCE, mark.srtp.is_some_and(|srtp| srtp.source.is_some())),
        (RTT, mark.stats.rtt_us.is_some()),
    ];
    flags.iter().filter(|(_, there)| *there).fold(0, |all, (flag, _)| all | flag)
}

fn put_address(out: &mut Writer, address: Option<SocketAddr>, newest: u16) {
    let (bits, port, scope) = match address {
        Some(SocketAddr::V4(address)) => (u128::from(address.ip().to_bits()), address.port(), 0),
        Some(SocketAddr::V6(address)) => (address.ip().to_bits(), address.port(), address.scope_id()),
        None => (0, 0, 0),
    };
    out.wide(bits);
    out.put(u64::from(port) << 48 | u64::from(scope) << 16 | u64::from(newest));
}

fn take_address(from: &mut Reader<'_>, is_v4: bool) -> (SocketAddr, SeqNo) {
    let bits = from.wide();
    let word = from.take();
    let port = part(word, 48);
    let address = match u32::try_from(bits) {
        Ok(bits) if is_v4 => SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), port),
        Ok(_) | Err(_) => SocketAddrV6::new(Ipv6Addr::from_bits(bits), port, 0, half(word >> 16)).into(),
    };
    (address, SeqNo(part(word, 0)))
}

fn put_source(out: &mut Writer, mark: &LegMark) {
    let source = mark.source.as_ref();
    let counted = source.map_or(NOTHING, |source| source.counted);
    out.put(counted.base);
    out.put(counted.highest);
    out.put(counted.received);
    let over = mark.event_over.map_or(0, |timestamp| timestamp.0);
    out.pair(source.map_or(0, |source| source.duplicates), over);
    out.put(mark.lost_before);
    let next = source.and_then(|source| source.next);
    out.pair(counted.jitter_x16, next.map_or(0, |(timestamp, _)| timestamp.0));
    out.put(next.map_or(0, |(_, heard)| nanos(heard)));
}

/// Statistics of no source.
const NOTHING: SourceMark = SourceMark { base: 0, highest: 0, received: 0, jitter_x16: 0 };

type Heard = (SourceMark, u32, RtpTimestamp, u64, (RtpTimestamp, Duration));

fn take_source(from: &mut Reader<'_>) -> Heard {
    let [base, highest, received] = [from.take(), from.take(), from.take()];
    let (duplicates, over) = from.pair();
    let lost_before = from.take();
    let (jitter_x16, next) = from.pair();
    let heard = Duration::from_nanos(from.take());
    let counted = SourceMark { base, highest, received, jitter_x16 };
    (counted, duplicates, RtpTimestamp(over), lost_before, (RtpTimestamp(next), heard))
}

fn put_recording(out: &mut Writer, recording: Option<&RecordMark>) {
    let Some(recording) = recording else { return out.skip(7) };
    let anchor = recording.clock.anchor;
    out.put(recording.samples);
    out.put(recording.sound);
    out.put(recording.sound_end);
    out.put(nanos(recording.began));
    out.pair(anchor.map_or(0, |(timestamp, _)| timestamp.0), recording.clock.expected.0);
    out.put(anchor.map_or(0, |(_, position)| position.cast_unsigned()));
    out.put(recording.tag);
}

fn take_recording(from: &mut Reader<'_>, state: u64, anchored: bool, lag: i32) -> Option<RecordMark> {
    let [samples, sound, sound_end, began] = [from.take(), from.take(), from.take(), from.take()];
    let (anchor, expected) = from.pair();
    let position = from.take().cast_signed();
    let tag = from.take();
    let end = ENDS.iter().find(|(number, _)| *number == state).map(|(_, end)| *end);
    let anchor = anchored.then_some((RtpTimestamp(anchor), position));
    let clock = ClockMark { anchor, expected: RtpTimestamp(expected), lag };
    let began = Duration::from_nanos(began);
    (end.is_some() || state == RUNNING).then_some(RecordMark {
        tag,
        end,
        samples,
        sound,
        sound_end,
        began,
        clock,
        packet_len: 0,
    })
}

fn put_srtp(out: &mut Writer, mark: &LegMark) {
    let srtp = mark.srtp.unwrap_or_default();
    let (ssrc, next, used, rtcp_next) = srtp
        .source
        .map_or((0, 0, 0, 0), |source| (source.ssrc, source.rtp_next, source.rtp_used, source.rtcp_next));
    out.put(srtp.rtp_next);
    out.pair(srtp.rtcp_next, ssrc);
    out.put(next);
    out.wide(used);
    out.pair(rtcp_next, count(mark.stats.late));
}

fn take_srtp(from: &mut Reader<'_>, has_source: bool) -> (SrtpMark, u32) {
    let rtp_next = from.take();
    let (own_rtcp_next, ssrc) = from.pair();
    let source_next = from.take();
    let rtp_used = from.wide();
    let (rtcp_next, late) = from.pair();
    let source = SrtpSourceMark { ssrc, rtp_next: source_next, rtp_used, rtcp_next };
    (SrtpMark { rtp_next, rtcp_next: own_rtcp_next, source: has_source.then_some(source) }, late)
}

fn put_stats(out: &mut Writer, mark: &LegMark) {
    let stats = &mark.stats;
    out.put(stats.rx_packets);
    out.put(stats.rx_bytes);
    out.put(stats.tx_packets);
    out.put(stats.tx_bytes);
    out.pair(count(stats.duplicate), count(stats.invalid));
    out.pair(count(stats.source_filtered), count(stats.srtp_auth_failed));
    out.pair(count(stats.srtcp_missing), count(stats.srtp_replayed));
    out.pair(count(stats.relay_dropped), count(stats.tx_errors));
    let packet_len = mark.recording.as_ref().map_or(0, |recording| recording.packet_len);
    let fraction = u32::from(stats.remote_fraction_lost) << 16;
    out.pair(stats.rtt_us.unwrap_or(0), fraction | u32::from(packet_len));
}

fn take_stats(from: &mut Reader<'_>, late: u32, has_rtt: bool) -> (LegStats, u16) {
    let [rx_packets, rx_bytes, tx_packets, tx_bytes] = [from.take(), from.take(), from.take(), from.take()];
    let [(duplicate, invalid), (source_filtered, srtp_auth_failed)] = [from.pair(), from.pair()];
    let [(srtcp_missing, srtp_replayed), (relay_dropped, tx_errors)] = [from.pair(), from.pair()];
    let word = from.take();
    let stats = LegStats {
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        tx_errors: tx_errors.into(),
        relay_dropped: relay_dropped.into(),
        lost: 0,
        late: late.into(),
        duplicate: duplicate.into(),
        invalid: invalid.into(),
        source_filtered: source_filtered.into(),
        srtp_auth_failed: srtp_auth_failed.into(),
        srtcp_missing: srtcp_missing.into(),
        srtp_replayed: srtp_replayed.into(),
        jitter: 0,
        remote_fraction_lost: byte(word, 16),
        rtt_us: has_rtt.then_some(half(word >> 32)),
    };
    (stats, part(word, 0))
}

fn mode(mode: LegMode) -> u64 {
    MODES.iter().find(|(_, known)| *known == mode).map_or(0, |(number, _)| *number)
}

fn state(recording: Option<&RecordMark>) -> u64 {
    let Some(recording) = recording else { return 0 };
    let Some(end) = recording.end else { return RUNNING };
    ENDS.iter().find(|(_, known)| *known == end).map_or(RUNNING, |(number, _)| *number)
}

/// A counter in 32 bits; there it stays at their end.
fn count(counter: u64) -> u32 {
    u32::try_from(counter).unwrap_or(u32::MAX)
}

fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "the other bits are another field's")]
fn half(word: u64) -> u32 {
    word as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the other bits are another field's")]
fn part(word: u64, shift: u32) -> u16 {
    (word >> shift) as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the other bits are another field's")]
fn byte(word: u64, shift: u32) -> u8 {
    (word >> shift) as u8
}

struct Writer {
    words: [u64; MARK_WORDS],
    at: usize,
}

impl Writer {
    fn put(&mut self, word: u64) {
        if let Some(place) = self.words.get_mut(self.at) {
            *place = word;
        }
        self.at += 1;
    }

    fn pair(&mut self, high: u32, low: u32) {
        self.put(u64::from(high) << 32 | u64::from(low));
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is the second word")]
    fn wide(&mut self, bits: u128) {
        self.put((bits >> 64) as u64);
        self.put(bits as u64);
    }

    fn skip(&mut self, words: usize) {
        self.at += words;
    }
}

struct Reader<'a> {
    words: &'a [u64; MARK_WORDS],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self) -> u64 {
        let word = self.words.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        word
    }

    fn pair(&mut self) -> (u32, u32) {
        let word = self.take();
        (half(word >> 32), half(word))
    }

    fn wide(&mut self) -> u128 {
        let high = self.take();
        u128::from(high) << 64 | u128::from(self.take())
    }
}
