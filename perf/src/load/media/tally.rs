//! What is counted for each stream within the window.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::load::media::rtcp::Block;
use crate::media::packet::Header;

/// Packet time; all our streams have it.
pub const PACKET_TIME: Duration = Duration::from_millis(20);

/// A stream that falls silent for longer than this at an edge of the window has lost packets there.
/// Below it, it may only have come a little early or late.
const EDGE_GAP: Duration = Duration::from_millis(100);

/// RTP timestamp units a second of G.711.
const NANOS_PER_UNIT: i64 = 125_000;

/// Times in microseconds, up to a minute, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!("the bounds are in order"))
}

/// Whole microseconds, saturating.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The measured time, as times since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first instant.
    pub from: Duration,
    /// The first instant after it.
    pub until: Duration,
}

impl Window {
    /// True within it.
    pub fn contains(&self, at: Duration) -> bool {
        (self.from..self.until).contains(&at)
    }

    /// How long it is.
    pub fn length(&self) -> Duration {
        self.until.saturating_sub(self.from)
    }
}

/// When nothing was due of a stream: from and until, in order.
#[derive(Debug, Clone, Default)]
pub struct Rests(Vec<(Duration, Duration)>);

impl Rests {
    /// A rest begins, unless one goes on.
    pub fn begin(&mut self, now: Duration) {
        if self.0.last().is_none_or(|(_, until)| *until < Duration::MAX) {
            self.0.push((now, Duration::MAX));
        }
    }

    /// The last one ends, if it goes on.
    pub fn end(&mut self, now: Duration) {
        if let Some((_, until)) = self.0.last_mut() {
            *until = now.min(*until);
        }
    }

    /// How long they are together within a window.
    fn within(&self, window: Window) -> Duration {
        let part = |&(from, until): &(Duration, Duration)| {
            until.min(window.until).saturating_sub(from.max(window.from))
        };
        self.0.iter().map(part).sum()
    }
}

/// Frames of one stream on their way: what left and what came back of it. By the time of sending, so
/// that the window's edges cut no packet off.
#[derive(Debug, Clone, Default)]
pub struct Journey {
    /// Frames that left within the window.
    pub sent: u64,
    /// Of these came back, each counted once.
    pub returned: u64,
    /// Those that came more than once.
    pub duplicates: u64,
    /// One has arrived, ever.
    pub has_arrived: bool,
    /// The first that counted; what left before it was sent to nobody yet.
    first: Option<u32>,
    highest: u32,
    seen: u64,
}

impl Journey {
    /// Begins to count anew; frames seen stay seen.
    pub fn restart(&mut self) {
        (self.sent, self.returned, self.duplicates, self.first) = (0, 0, 0, None);
    }

    /// None of its frames ever arrived, so that none counts.
    pub fn is_mute(&self) -> bool {
        self.sent == 0 && !self.has_arrived
    }

    /// A frame left, and counts.
    pub fn leaves(&mut self, frame: u32) {
        self.sent += 1;
        self.first.get_or_insert(frame);
    }

    /// True when this frame or one before it counted.
    pub fn counts(&self, frame: u32) -> bool {
        self.first.is_some_and(|first| frame >= first)
    }

    /// A frame sent within the window came back. False when it had come before.
    pub fn comes_back(&mut self, frame: u32) -> bool {
        let first = self.is_first(frame);
        if first {
            self.returned += 1;
        } else {
            self.duplicates += 1;
        }
        first
    }

    /// A window of 64 frames, as in RFC 3711 §3.3.2; an older one counts as seen.
    fn is_first(&mut self, frame: u32) -> bool {
        if self.seen == 0 || frame > self.highest {
            let ahead = frame.saturating_sub(self.highest);
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = frame;
            return true;
        }
        let Some(bit) = 1u64.checked_shl(self.highest - frame) else { return false };
        let first = self.seen & bit == 0;
        self.seen |= bit;
        first
    }
}

/// Packets of one stream as they arrive, by sequence number and the kernel's time.
#[derive(Debug, Clone, Default)]
pub struct Hearing {
    /// Arrived within the window.
    pub packets: u64,
    span: Option<Span>,
    /// Expected by spans that a new SSRC ended.
    expected_before: u64,
    first_at: Option<Duration>,
    last_at: Option<Duration>,
    transit: Option<(u32, i64)>,
    jitter_nanos: i64,
}

/// Extended sequence numbers of one SSRC.
#[derive(Debug, Clone, Copy)]
struct Span {
    ssrc: u32,
    first: u64,
    highest: u64,
}

impl Span {
    fn expected(self) -> u64 {
        self.highest - self.first + 1
    }
}

impl Hearing {
    /// Takes one packet that arrived within the window; gives its distance to the one before.
    pub fn count(&mut self, arrival: Duration, header: &Header) -> Option<Duration> {
        self.packets += 1;
        self.extend(header);
        self.estimate_jitter(arrival, header);
        let spacing = self.last_at.map(|last| arrival.saturating_sub(last));
        self.first_at = self.first_at.or(Some(arrival));
        self.last_at = Some(arrival);
        spacing
    }

    fn extend(&mut self, header: &Header) {
        let (ssrc, start) = (header.ssrc, u64::from(header.sequence) + 65_536);
        match &mut self.span {
            Some(span) if span.ssrc == ssrc => {
                let low = u16::try_from(span.highest & 0xFFFF).unwrap_or(0);
                let step = i64::from(header.sequence.wrapping_sub(low).cast_signed());
                let extended = span.highest.saturating_add_signed(step);
                span.first = span.first.min(extended);
                span.highest = span.highest.max(extended);
            }
            other => {
                self.expected_before += other.map_or(0, Span::expected);
                *other = Some(Span { ssrc, first: start, highest: start });
            }
        }
    }

    /// RFC 3550 §6.4.1, in nanoseconds.
    fn estimate_jitter(&mut self, arrival: Duration, header: &Header) {
        let arrival = i64::try_from(arrival.as_nanos()).unwrap_or(i64::MAX);
        if let Some((timestamp, before)) = self.transit {
            let units = header.timestamp.wrapping_sub(timestamp).cast_signed();
            let change = (arrival - before) - i64::from(units) * NANOS_PER_UNIT;
            self.jitter_nanos += (change.abs() - self.jitter_nanos) / 16;
        }
        self.transit = Some((header.timestamp, arrival));
    }

    /// Packets that should have arrived: by sequence number, and where the stream was silent at the
    /// beginning or end of the window and did not rest, one for each packet time of that silence.
    pub fn expected(&self, window: Window, rests: &Rests) -> u64 {
        let by_sequence = self.expected_before + self.span.map_or(0, Span::expected);
        let silent = |from: Duration, until: Duration| {
            let gap = until.saturating_sub(from).saturating_sub(rests.within(Window { from, until }));
            if gap < EDGE_GAP { 0 } else { micros(gap) / micros(PACKET_TIME) }
        };
        match (self.first_at, self.last_at) {
            (Some(first), Some(last)) => {
                by_sequence + silent(window.from, first) + silent(last, window.until)
            }
            _ => silent(window.from, window.until),
        }
    }

    /// What an RTCP report says of it; `None` before the first packet.
    pub fn report(&self) -> Option<Block> {
        let span = self.span?;
        let lost = i128::from(self.expected_before + span.expected()) - i128::from(self.packets);
        Some(Block {
            ssrc: span.ssrc,
            lost: i32::try_from(lost).unwrap_or(i32::MAX),
            // The first cycle is 0; ours begin at 1, to have room below.
            highest: u32::try_from(span.highest.saturating_sub(65_536) & 0xFFFF_FFFF).unwrap_or(0),
            jitter: u32::try_from(self.jitter_nanos / NANOS_PER_UNIT).unwrap_or(u32::MAX),
        })
    }

    /// Interarrival jitter at the end, microseconds; `None` of fewer than two packets.
    pub fn jitter_us(&self) -> Option<u64> {
        (self.packets > 1).then(|| u64::try_from(self.jitter_nanos / 1000).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u16, ssrc: u32) -> Header {
        let timestamp = u32::from(sequence).wrapping_mul(160);
        Header { marker: false, payload_type: 0, sequence, timestamp, ssrc }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    /// Goal: gaps and spacing are counted over the wrap of the sequence number and a change of SSRC.
    /// Method: 65535, 0, 2 at 0, 20 and 65 ms, then 9 and 10 of another SSRC: one of six is missing.
    #[test]
    fn gaps_are_counted_over_the_wrap_and_a_new_ssrc() {
        let window = Window { from: at(0), until: at(110) };
        let mut hearing = Hearing::default();
        let packets = [(65_535, 1, 0), (0, 1, 20), (2, 1, 65), (9, 2, 80), (10, 2, 100)];
        let spacings: Vec<_> = packets
            .map(|(sequence, ssrc, ms)| hearing.count(at(ms), &header(sequence, ssrc)))
            .into_iter()
            .flatten()
            .map(micros)
            .collect();
        assert_eq!(spacings, [20_000, 45_000, 15_000, 20_000]);
        let report = hearing.report().unwrap();
        assert_eq!((report.ssrc, report.lost, report.highest), (2, 1, 10));
        assert_eq!((hearing.packets, hearing.expected(window, &Rests::default())), (5, 6));
    }

    /// Goal: a stream that stops, begins late or never speaks has lost packets; a little early or
    /// late has not.
    /// Method: a window of 1 s with packets from 210 to 490 ms, from 15 to 985 ms, and none.
    #[test]
    fn silence_at_the_edges_of_the_window_is_loss() {
        let window = Window { from: at(0), until: at(1000) };
        let heard = |from: u64, until: u64| {
            let mut hearing = Hearing::default();
            for (sequence, ms) in (0..).zip((from..=until).step_by(20)) {
                hearing.count(at(ms), &header(sequence, 1));
            }
            (hearing.packets, hearing.expected(window, &Rests::default()))
        };
        assert_eq!(heard(210, 490), (15, 15 + 10 + 25));
        assert_eq!(heard(15, 985), (49, 49));
        assert_eq!(Hearing::default().expected(window, &Rests::default()), 50);
    }

    /// Goal: a rest at an edge of the window is no loss; the silence beside it is.
    /// Method: packets from 400 to 600 ms; rests before 380 ms and from 610 ms, then to 800 ms only.
    #[test]
    fn rests_at_the_edges_of_the_window_are_no_loss() {
        let window = Window { from: at(0), until: at(1000) };
        let mut hearing = Hearing::default();
        for (sequence, ms) in (0..).zip((400..=600).step_by(20)) {
            hearing.count(at(ms), &header(sequence, 1));
        }
        let mut rests = Rests::default();
        rests.begin(at(0) - Duration::from_millis(500));
        rests.end(at(380));
        rests.begin(at(610));
        assert_eq!(hearing.expected(window, &rests), 11);
        rests.end(at(800));
        assert_eq!(hearing.expected(window, &rests), 11 + 10, "from 600 to 610 and from 800 to 1000 ms");
        assert_eq!(Hearing::default().expected(window, &rests), 21, "430 ms without a rest");
    }

    /// Goal: jitter is that of RFC 3550 §6.4.1.
    /// Method: one packet 16 ms late among even ones: (16 + 15/16 * ...) by hand: 1 ms after the first
    /// deviation, 1 + (16 - 1)/16 ms after the second.
    #[test]
    fn jitter_is_that_of_rfc_3550() {
        let mut hearing = Hearing::default();
        for (sequence, ms) in [(1, 0), (2, 20), (3, 56), (4, 60)] {
            hearing.count(at(ms), &header(sequence, 1));
        }
        assert_eq!(hearing.jitter_us(), Some(1937));
    }

    /// Goal: each frame counts once, in whatever order it comes.
    /// Method: 0, 2, 1, 1, 200, 199, 100: a copy and one too old to tell are not first.
    #[test]
    fn a_frame_counts_once_in_any_order() {
        let mut journey = Journey::default();
        let first: Vec<_> = [0, 2, 1, 1, 200, 199, 100].map(|frame| journey.comes_back(frame)).into();
        assert_eq!(first, [true, true, true, false, true, true, false]);
        assert_eq!((journey.returned, journey.duplicates), (5, 2));
    }
}
