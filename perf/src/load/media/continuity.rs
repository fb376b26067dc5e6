//! How unbroken each stream comes: its longest gap, and whether the far side goes on where it was.
//!
//! A far side that is replaced in the middle of a call may fall silent for a moment. What it must not do is
//! begin anew: its SSRC stays, and its sequence numbers go on forward (RFC 3550 §5.1).

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::load::media::tally::{Window, histogram, micros};
use crate::load::result::{Continuity, Distribution, StreamGap};
use crate::media::packet::Header;

/// Packets a sequence may leap forward and still be the same: a minute of them.
const LEAP_MAX: u16 = 3000;

/// Packets behind the highest that are remembered, to tell a copy from a late one.
const MEMORY: u16 = 64;

/// Streams told one by one, those with the longest gaps.
const WORST_MAX: usize = 20;

/// Upper edges of the histogram of longest gaps, milliseconds; one more bucket lies above.
const EDGES_MS: [u64; 12] = [30, 40, 60, 80, 100, 150, 200, 300, 500, 1000, 2000, 5000];

/// One stream as it is heard.
#[derive(Debug, Clone, Default)]
pub struct Course {
    last: Option<Last>,
    /// Nothing is due: silence is no gap.
    resting: bool,
    longest: Duration,
    packets: u64,
    ssrc_changes: u64,
    restarts: u64,
    duplicates: u64,
    /// It was under way at the mark.
    marked: bool,
}

/// The newest packet of a stream.
#[derive(Debug, Clone, Copy)]
struct Last {
    at: Duration,
    ssrc: u32,
    highest: u16,
    /// Bit `n`: the packet `n` before the highest was seen.
    seen: u64,
}

impl Course {
    /// Takes a packet that came at `arrival`, a time since 1970.
    pub fn count(&mut self, arrival: Duration, header: &Header) {
        self.packets += 1;
        let Header { ssrc, sequence, .. } = *header;
        let fresh = Last { at: arrival, ssrc, highest: sequence, seen: 1 };
        let Some(last) = &mut self.last else {
            self.last = Some(fresh);
            return;
        };
        if !self.resting {
            self.longest = self.longest.max(arrival.saturating_sub(last.at));
        }
        if last.ssrc != ssrc {
            self.ssrc_changes += 1;
            *last = fresh;
            return;
        }
        last.at = last.at.max(arrival);
        let (ahead, behind) = (sequence.wrapping_sub(last.highest), last.highest.wrapping_sub(sequence));
        if (1..=LEAP_MAX).contains(&ahead) {
            last.seen = last.seen.checked_shl(u32::from(ahead)).unwrap_or(0) | 1;
            last.highest = sequence;
        } else if behind < MEMORY {
            let bit = 1 << behind;
            self.duplicates += u64::from(last.seen & bit != 0);
            last.seen |= bit;
        } else {
            self.restarts += 1;
            *last = fresh;
        }
    }

    /// From here on nothing is due: on hold, or near the end.
    pub fn rest(&mut self) {
        self.resting = true;
    }

    /// From `now`, a time since 1970, on packets are due again.
    pub fn resume(&mut self, now: Duration) {
        self.resting = false;
        if let Some(last) = &mut self.last {
            last.at = last.at.max(now);
        }
    }

    /// Tells it apart from streams that were not under way now.
    pub fn mark(&mut self) {
        self.marked = self.last.is_some() && !self.resting;
    }

    /// Counts anew; what the stream was like before is not forgotten.
    pub fn restart(&mut self) {
        *self = Self { last: self.last, resting: self.resting, ..Self::default() };
    }

    /// The longest gap within `window`, with the silence up to its end: a stream that stopped must not
    /// look well.
    fn longest_gap(&self, window: Window) -> Option<Duration> {
        let last = self.last.filter(|_| self.packets > 0)?;
        let silence = window.until.saturating_sub(last.at.max(window.from));
        Some(if self.resting { self.longest } else { self.longest.max(silence) })
    }
}

/// Of all streams.
#[derive(Debug, Clone)]
pub struct Courses {
    all: Gaps,
    marked: Gaps,
    total: Continuity,
}

#[derive(Debug, Clone)]
struct Gaps {
    gaps: Histogram<u64>,
    buckets: [u64; EDGES_MS.len() + 1],
}

impl Default for Courses {
    fn default() -> Self {
        let gaps = || Gaps { gaps: histogram(), buckets: Default::default() };
        Self { all: gaps(), marked: gaps(), total: Continuity::default() }
    }
}

impl Gaps {
    fn count(&mut self, gap_us: u64) {
        self.gaps.saturating_record(gap_us);
        self.buckets[EDGES_MS.partition_point(|edge| edge * 1000 < gap_us)] += 1;
    }

    fn end(&self) -> (Distribution, Vec<(Option<u64>, u64)>) {
        let edges = EDGES_MS.iter().copied().map(Some).chain([None]);
        (Distribution::of(&self.gaps), edges.zip(self.buckets).collect())
    }
}

impl Courses {
    /// Adds a stream at its end or the window's; one without a packet in the window is none.
    pub fn settle(&mut self, stream: u32, course: &Course, window: Window) {
        let Some(longest) = course.longest_gap(window) else { return };
        let longest_gap_us = micros(longest).max(1);
        self.all.count(longest_gap_us);
        if course.marked {
            self.marked.count(longest_gap_us);
        }
        let Course { ssrc_changes, restarts, duplicates, .. } = *course;
        let total = &mut self.total;
        total.streams += 1;
        total.ssrc_changes += ssrc_changes;
        total.restarts += restarts;
        total.duplicates += duplicates;
        total.worst.push(StreamGap { stream, longest_gap_us, ssrc_changes, restarts });
        if total.worst.len() > 2 * WORST_MAX {
            keep_worst(&mut total.worst);
        }
    }

    /// Everything, ready to be told.
    pub fn end(mut self) -> Continuity {
        keep_worst(&mut self.total.worst);
        let (longest_gap, histogram_ms) = self.all.end();
        let (marked_gap, marked_ms) = self.marked.end();
        Continuity { longest_gap, histogram_ms, marked_gap, marked_ms, ..self.total }
    }
}

/// The streams that went on worst: first those that began anew, then by gap.
fn keep_worst(worst: &mut Vec<StreamGap>) {
    worst.sort_by_key(|stream| {
        std::cmp::Reverse((stream.ssrc_changes + stream.restarts, stream.longest_gap_us))
    });
    worst.truncate(WORST_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u16, ssrc: u32) -> Header {
        Header { marker: false, payload_type: 0, sequence, timestamp: 0, ssrc }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    /// Goal: going on forward over the wrap is no restart, nor is a late packet or a leap of a minute;
    /// a copy, a new SSRC and a number from elsewhere are told apart.
    /// Method: a late packet and a copy, leaps of 3000 and of 3001, a new SSRC, a number far behind.
    #[test]
    fn restarts_copies_and_new_sources_are_told_apart() {
        let mut course = Course::default();
        let first = [(65_534, 1), (1, 1), (65_535, 1), (1, 1)];
        let then = [(3001, 1), (6002, 1), (9, 2), (10, 2), (40_000, 2)];
        for (ms, (sequence, ssrc)) in (0..).step_by(20).zip(first.into_iter().chain(then)) {
            course.count(at(ms), &header(sequence, ssrc));
        }
        assert_eq!((course.ssrc_changes, course.restarts, course.duplicates), (1, 2, 1));
    }

    /// Goal: the longest gap is that between packets that were due, with the silence at the end; rest
    /// leaves out what nobody owed, and counting anew keeps only the last packet.
    /// Method: packets at 0, 20, 320 ms; ends at 350 and 1000 ms; then a rest until 2 s, in which one
    /// comes, and the next 75 ms after it.
    #[test]
    fn gaps_are_told_but_for_rests() {
        let window = |until: u64| Window { from: at(0), until: at(until) };
        let (mut course, mut courses) = (Course::default(), Courses::default());
        for (sequence, ms) in [(1, 0), (2, 20), (3, 320)] {
            course.count(at(ms), &header(sequence, 1));
        }
        courses.settle(7, &course, window(350));
        courses.settle(8, &course, window(1000));
        course.rest();
        course.count(at(400), &header(4, 1));
        courses.settle(9, &course, window(1900));
        course.restart();
        courses.settle(10, &course, window(2045));
        course.mark();
        course.resume(at(2000));
        course.mark();
        course.count(at(2075), &header(6, 1));
        courses.settle(11, &course, window(2120));
        let told = courses.end();
        let worst: Vec<_> = told.worst.iter().map(|stream| (stream.stream, stream.longest_gap_us)).collect();
        assert_eq!(worst, [(8, 680_000), (7, 300_000), (9, 300_000), (11, 75_000)]);
        assert_eq!(told.streams, 4, "a stream without a packet in the window is no stream");
        assert_eq!(
            told.marked_ms.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>(),
            [&(Some(80), 1)]
        );
        let filled: Vec<_> = told.histogram_ms.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [&(Some(80), 1), &(Some(300), 2), &(Some(1000), 1)]);
    }
}
