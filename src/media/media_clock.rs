//! Where in a recording a packet belongs: RTP timestamps laid onto real time.
//!
//! Timestamps lead: packets keep the distances their sender gave them, whatever the network did.
//! Real time bounds them: a stream that jumps, restarts, pauses its clock or runs fast is laid anew
//! where the recording stands, so that it is never longer than real time and a little.
//!
//! Positions, lengths and times are samples at 8000 Hz since the recording began.

use std::time::{Duration, Instant};

use crate::rtp::packet::RtpTimestamp;

/// The furthest a packet's end may lie ahead of real time, 160 ms: jitter when the stream was first
/// laid, and the drift of a fast clock.
pub const AHEAD_MAX: i64 = 1280;
/// Timestamps that go back further than this in sequence are a new beginning, 100 ms.
const STEP_BACK_MAX: i32 = 800;
/// A new beginning this near to the end of what is there continues it, 100 ms.
const JOIN: i64 = 800;
/// A stream behind what is already written for this long is laid anew; a burst of delayed packets
/// is over by then.
const BEHIND_MAX: Duration = Duration::from_millis(100);

/// Where an accepted packet stands among those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// It is younger than all before.
    pub newest: bool,
    /// It directly follows the youngest before it: nothing was lost between.
    pub in_sequence: bool,
    /// First of a new stream: its timestamps have no relation to earlier ones.
    pub restarted: bool,
    /// It carries the marker: a talkspurt begins.
    pub marker: bool,
}

/// How far the recording has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Real time since its beginning.
    pub elapsed: i64,
    /// First position not yet written.
    pub written: i64,
    /// Position after the last audio known.
    pub end: i64,
}

/// The verdict on one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Here; negative: its beginning is from before the recording.
    At(i64),
    /// Its place is written already, or before the recording.
    Late,
    /// There is no place for it in real time.
    Ahead,
}

/// How a clock stood, for another process to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockMark {
    /// A timestamp and its position.
    pub anchor: Option<(RtpTimestamp, i64)>,
    /// Timestamp after the newest packet.
    pub expected: RtpTimestamp,
    /// How far the stream's end lies behind real time, smoothed.
    pub lag: i32,
}

/// Lays one leg's RTP timestamps onto its recording.
#[derive(Debug)]
pub struct MediaClock {
    /// A timestamp and its position.
    anchor: Option<(RtpTimestamp, i64)>,
    /// Timestamp after the newest packet.
    expected: RtpTimestamp,
    /// How far the stream's end lies behind real time when a packet arrives, smoothed: follows a
    /// drifting clock, not the jitter.
    lag: i64,
    /// Since when packets came too late.
    behind: Option<Instant>,
}

impl MediaClock {
    /// With a running stream, `next` is the timestamp its next packet will carry and `age` the time
    /// since the last one came: the recording begins with the next one.
    pub fn new(next: Option<(RtpTimestamp, i64)>) -> Self {
        Self {
            anchor: next.map(|(timestamp, _)| (timestamp, 0)),
            expected: next.map_or(RtpTimestamp(0), |(timestamp, _)| timestamp),
            lag: next.map_or(0, |(_, age)| -age.clamp(0, AHEAD_MAX)),
            behind: None,
        }
    }

    /// What [`Self::resume`] needs.
    pub fn mark(&self) -> ClockMark {
        let lag = i32::try_from(self.lag).unwrap_or(if self.lag < 0 { i32::MIN } else { i32::MAX });
        ClockMark { anchor: self.anchor, expected: self.expected, lag }
    }

    /// A clock that lays timestamps where the one that was marked did.
    pub fn resume(mark: &ClockMark) -> Self {
        Self { anchor: mark.anchor, expected: mark.expected, lag: mark.lag.into(), behind: None }
    }

    /// Forgets timestamps: the next packet is laid by real time.
    pub fn restart(&mut self) {
        self.anchor = None;
        self.behind = None;
    }

    /// How far the stream's end lies behind real time.
    pub fn lag(&self) -> i64 {
        self.lag
    }

    /// Where a timestamp lies, if the stream was laid yet.
    pub fn position(&self, timestamp: RtpTimestamp) -> Option<i64> {
        self.anchor.map(|(anchor, position)| position + step(timestamp, anchor))
    }

    /// Lays a packet of `len` samples.
    pub fn place(
        &mut self,
        now: Instant,
        progress: Progress,
        arrival: Arrival,
        timestamp: RtpTimestamp,
        len: i64,
    ) -> Place {
        if arrival.restarted {
            self.restart();
        }
        let ahead = |position: i64| position.saturating_add(len) > progress.elapsed + AHEAD_MAX;
        let position = match self.position(timestamp) {
            Some(position) if !arrival.newest => {
                // A packet from before a new beginning cannot be told from a far one; neither fits.
                return match () {
                    () if ahead(position) => Place::Ahead,
                    () if position.saturating_add(len) <= progress.written => Place::Late,
                    () => Place::At(position),
                };
            }
            Some(position) if !self.is_break(timestamp) && !ahead(position) => position,
            Some(_) | None => self.lay(progress, timestamp, len),
        };
        let behind = position.saturating_add(len) <= progress.written;
        let position = if behind && self.is_behind_for_good(now, arrival) {
            self.lay(progress, timestamp, len)
        } else {
            position
        };
        self.expected = timestamp.plus(u32::try_from(len).unwrap_or(0));
        if ahead(position) {
            // Dropped, and what follows takes its place: a fast clock loses a packet now and then.
            self.anchor = Some((self.expected, position));
            return Place::Ahead;
        }
        if position.saturating_add(len) <= progress.written {
            return Place::Late;
        }
        self.behind = None;
        let lag = progress.elapsed - (position + len);
        self.lag += (lag - self.lag) / 16;
        Place::At(position)
    }

    /// Lays a stretch named by its timestamp (an event), which others of the same may repeat.
    pub fn place_event(&mut self, progress: Progress, timestamp: RtpTimestamp, len: i64) -> i64 {
        match self.position(timestamp) {
            Some(position) => position,
            None => self.lay(progress, timestamp, len),
        }
    }

    /// The stream goes on at least until `timestamp`.
    pub fn expect(&mut self, timestamp: RtpTimestamp) {
        if step(timestamp, self.expected) > 0 {
            self.expected = timestamp;
        }
    }

    fn is_break(&self, timestamp: RtpTimestamp) -> bool {
        step(timestamp, self.expected) < -i64::from(STEP_BACK_MAX)
    }

    /// True when the sender's clock stood still or the path became slower for good. In a burst of
    /// packets that the network held up, the ones after it are in time again.
    fn is_behind_for_good(&mut self, now: Instant, arrival: Arrival) -> bool {
        let since = *self.behind.get_or_insert(now);
        arrival.marker || now.saturating_duration_since(since) >= BEHIND_MAX
    }

    /// A new beginning: at real time, or joined to the end of what is there.
    fn lay(&mut self, progress: Progress, timestamp: RtpTimestamp, len: i64) -> i64 {
        let by_time = progress.elapsed - self.lag - len;
        let end = progress.end.max(progress.written);
        let position = if by_time < end + JOIN { end } else { by_time };
        self.anchor = Some((timestamp, position));
        self.lag = (progress.elapsed - (position + len)).max(-AHEAD_MAX);
        position
    }
}

/// From `earlier` to `timestamp`, the shorter way round.
fn step(timestamp: RtpTimestamp, earlier: RtpTimestamp) -> i64 {
    i64::from(timestamp.since(earlier).cast_signed())
}
