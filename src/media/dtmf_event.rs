//! Telephone-events received (RFC 4733): each key once, however many packets tell of it.

use std::time::{Duration, Instant};

use crate::rtp::packet::RtpTimestamp;

/// An event whose last packets were all lost has ended this long after the last one heard; senders
/// update at least every 50 ms (§2.5.1.2).
const END_LOST: Duration = Duration::from_millis(150);
/// Packets stamped up to this much before the last event are its stragglers, 5 s; further back the
/// sender's clock has started anew.
const STRAGGLERS: u32 = 40_000;
/// Longest duration a packet can tell (§2.5.1.3); a longer event goes on as a new segment.
const SEGMENT: u32 = 0xFFFF;
/// Event blocks read from one packet (§2.5.1.5 packs several).
const BLOCKS_MAX: usize = 8;

/// The key of an event: 0-15 (§3.2), `f` for 16 (flash, RFC 2833), `c` for 36 (CNG tone).
pub fn key(event: u8) -> Option<char> {
    match event {
        0..=9 => Some(char::from(b'0' + event)),
        10 => Some('*'),
        11 => Some('#'),
        12..=15 => Some(char::from(b'A' + event - 12)),
        16 => Some('f'),
        36 => Some('c'),
        _ => None,
    }
}

/// One leg's events.
#[derive(Debug, Default)]
pub struct EventReceiver {
    current: Option<Current>,
    /// Timestamp of the newest event that is over, or of its last segment.
    over: Option<RtpTimestamp>,
}

/// An event that lasts.
#[derive(Debug, Clone, Copy)]
struct Current {
    key: char,
    timestamp: RtpTimestamp,
    duration: u16,
    heard: Instant,
}

/// What one packet told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Keys that are now complete: one left over whose end was lost, and this packet's.
    pub keys: [Option<char>; BLOCKS_MAX + 1],
    /// Where the packet's event lies, if it has a length: timestamp and samples.
    pub span: Option<(RtpTimestamp, u16)>,
}

impl EventReceiver {
    /// One that goes on after the event stamped `over`, whose end is told and may be repeated.
    pub fn resume(over: Option<RtpTimestamp>) -> Self {
        Self { current: None, over }
    }

    /// Timestamp of the newest event that is over.
    pub fn over(&self) -> Option<RtpTimestamp> {
        self.over
    }

    /// Takes a packet's payload. Malformed ones, unknown events and such without duration tell
    /// nothing.
    pub fn handle_packet(&mut self, now: Instant, timestamp: RtpTimestamp, payload: &[u8]) -> Told {
        let mut told = Told::default();
        let mut at = timestamp;
        for block in payload.chunks_exact(4).take(BLOCKS_MAX) {
            let [event, flags, d0, d1] = *block else { continue };
            let duration = u16::from_be_bytes([d0, d1]);
            let Some(key) = key(event).filter(|_| duration > 0) else { continue };
            told.span = Some((at, duration));
            for done in self.handle_block(now, at, key, flags & 0x80 != 0, duration).into_iter().flatten() {
                if let Some(free) = told.keys.iter_mut().find(|key| key.is_none()) {
                    *free = Some(done);
                }
            }
            at = at.plus(u32::from(duration));
        }
        told
    }

    /// The key whose end was lost.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<char> {
        let current = self.current?;
        if now.saturating_duration_since(current.heard) < END_LOST {
            return None;
        }
        self.end()
    }

    /// The key that is being pressed.
    pub fn active(&self) -> Option<char> {
        self.current.map(|current| current.key)
    }

    /// A new stream began: its timestamps have no relation to earlier ones. Gives a key that was
    /// under way.
    pub fn restart(&mut self) -> Option<char> {
        let key = self.end();
        self.over = None;
        key
    }

    fn handle_block(
        &mut self,
        now: Instant,
        timestamp: RtpTimestamp,
        key: char,
        end: bool,
        duration: u16,
    ) -> [Option<char>; 2] {
        let mut done = [None, None];
        if let Some(over) = self.over
            && over.since(timestamp) <= STRAGGLERS
        {
            return done;
        }
        match &mut self.current {
            Some(current) if current.timestamp == timestamp => {
                current.duration = current.duration.max(duration);
                current.heard = now;
            }
            // The next segment of a long press (§2.5.1.3).
            Some(current) if current.key == key && timestamp.since(current.timestamp) == SEGMENT => {
                self.over = Some(current.timestamp);
                *current = Current { key, timestamp, duration, heard: now };
            }
            // From before the one under way: a straggler whose event was never heard in time.
            Some(current) if (1..=STRAGGLERS).contains(&current.timestamp.since(timestamp)) => return done,
            Some(_) | None => {
                done[0] = self.end();
                self.current = Some(Current { key, timestamp, duration, heard: now });
            }
        }
        if end {
            done[1] = self.end();
        }
        done
    }

    fn end(&mut self) -> Option<char> {
        let current = self.current.take()?;
        self.over = Some(current.timestamp);
        Some(current.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RtpTimestamp = RtpTimestamp(0xFFFF_FF00);

    fn block(event: u8, end: bool, duration: u16) -> [u8; 4] {
        let [d0, d1] = duration.to_be_bytes();
        [event, if end { 0x8A } else { 0x0A }, d0, d1]
    }

    fn keys(told: Told) -> String {
        told.keys.iter().flatten().collect()
    }

    /// Goal: an event is one key, complete at its end, whatever repeats or comes late.
    /// Method: updates, three end packets (§2.5.1.4), an update behind them; the timestamp wraps.
    #[test]
    fn an_event_with_retransmitted_end_is_one_key() {
        let now = crate::base::clock::now();
        let mut events = EventReceiver::default();
        for (end, duration) in [(false, 160), (false, 320), (false, 480)] {
            assert_eq!(keys(events.handle_packet(now, AT, &block(5, end, duration))), "");
            assert_eq!(events.active(), Some('5'));
        }
        assert_eq!(keys(events.handle_packet(now, AT, &block(5, true, 640))), "5");
        for (end, duration) in [(true, 640), (true, 640), (false, 480)] {
            assert_eq!(keys(events.handle_packet(now, AT, &block(5, end, duration))), "");
        }
        assert_eq!(keys(events.handle_packet(now, AT.plus(800), &block(5, true, 400))), "5");
    }

    /// Goal: an event whose end packets are all lost still counts once: at the next event or after
    /// 150 ms. Method: updates only, then another event, then time.
    #[test]
    fn an_event_without_its_end_is_still_one_key() {
        let now = crate::base::clock::now();
        let mut events = EventReceiver::default();
        events.handle_packet(now, AT, &block(1, false, 160));
        let told = events.handle_packet(now, AT.plus(1600), &block(11, false, 160));
        assert_eq!(keys(told), "1");
        assert_eq!(events.handle_timeout(now + Duration::from_millis(149)), None);
        assert_eq!(events.handle_timeout(now + Duration::from_millis(150)), Some('#'));
        assert_eq!(events.handle_timeout(now + Duration::from_secs(9)), None);
        assert_eq!(keys(events.handle_packet(now, AT.plus(1600), &block(11, true, 320))), "");
    }

    /// Goal: events 0-16 and 36 have keys, others and those without duration tell nothing.
    /// Method: every event number; a payload too short.
    #[test]
    fn unknown_and_empty_events_tell_nothing() {
        let now = crate::base::clock::now();
        let all: String = (0..=255)
            .flat_map(|event| {
                let told = EventReceiver::default().handle_packet(now, AT, &block(event, true, 160));
                keys(told).chars().collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(all, "0123456789*#ABCDfc");
        let mut events = EventReceiver::default();
        assert_eq!(events.handle_packet(now, AT, &block(1, true, 0)), Told::default());
        assert_eq!(events.handle_packet(now, AT, &[1, 0x80, 1]), Told::default());
    }

    /// Goal: a press longer than 8.19 s is one key (§2.5.1.3). Method: two segments.
    #[test]
    fn a_long_press_in_segments_is_one_key() {
        let now = crate::base::clock::now();
        let mut events = EventReceiver::default();
        assert_eq!(keys(events.handle_packet(now, AT, &block(9, false, 0xFFFF))), "");
        assert_eq!(keys(events.handle_packet(now, AT.plus(SEGMENT), &block(9, false, 160))), "");
        assert_eq!(keys(events.handle_packet(now, AT, &block(9, false, 0xFFFF))), "");
        assert_eq!(keys(events.handle_packet(now, AT.plus(SEGMENT), &block(9, true, 320))), "9");
    }

    /// Goal: several events packed into one packet are all heard (§2.5.1.5).
    /// Method: a complete 1 and the beginning of a 2.
    #[test]
    fn events_packed_into_one_packet_are_all_heard() {
        let now = crate::base::clock::now();
        let mut events = EventReceiver::default();
        let packed = [block(1, true, 400), block(2, false, 160)].concat();
        assert_eq!(keys(events.handle_packet(now, AT, &packed)), "1");
        assert_eq!(events.active(), Some('2'));
    }
}
