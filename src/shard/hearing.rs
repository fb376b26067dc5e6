//! When a leg's RTP is read: as it comes, or several packets at a time at the leg's turns.
//!
//! A packet that is relayed must not wait. What is recorded or watched for keys may, and is cheaper then: the
//! kernel wakes nobody for it, and the socket, the leg and its recorder come near once for five packets. Each
//! packet carries the time it came at, so nothing that is measured or laid out by time changes; a key is told up
//! to 100 ms later.

use std::time::{Duration, Instant};

use crate::shard::legs::{HALVES, Reaper, Slot};
use crate::uring::MediaIo;

/// A leg at its turn is read if it was not for this long: what came in 100 ms, and a tick that comes early.
const READ_INTERVAL: Duration = Duration::from_millis(95);
/// How long a leg is read as it comes before it is read at its turns: short calls are not worth the change, and
/// who is relayed again and again does not change back and forth.
const SETTLING: Duration = Duration::from_secs(1);

/// When a leg's RTP is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    /// As it comes, since then.
    AsItComes(Instant),
    /// At the leg's turns; it was read last then.
    AtTurns(Instant),
}

/// What to do at a leg's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Its timeouts are handled; its packets come by themselves.
    Serve,
    /// Packets come at turns from the next one on.
    Rest,
    /// What waits is read.
    Read,
    /// Nothing: what came has not been heard, so it is not time yet for what has not come.
    Wait,
}

impl Hearing {
    /// What to do at the turn of a leg that may wait.
    pub(super) fn step(&mut self, now: Instant, may_wait: bool) -> Step {
        match *self {
            Self::AsItComes(since) if may_wait && now.saturating_duration_since(since) >= SETTLING => {
                *self = Self::AtTurns(now);
                Step::Rest
            }
            Self::AsItComes(_) => Step::Serve,
            Self::AtTurns(_) if self.waits(now) => Step::Wait,
            Self::AtTurns(_) => Step::Read,
        }
    }

    /// What comes waits, beyond a turn `now`.
    pub(super) fn waits(self, now: Instant) -> bool {
        matches!(self, Self::AtTurns(last) if now.saturating_duration_since(last) < READ_INTERVAL)
    }

    /// When a datagram came that is said to have come `at`, and is read `now`: not before what was read last.
    pub(super) fn came(self, at: Instant, now: Instant) -> Instant {
        match self {
            Self::AsItComes(_) => now,
            Self::AtTurns(last) => at.clamp(last.min(now), now),
        }
    }
}

/// What is to be heard at a leg's turn. True: nothing that came waits.
pub(super) fn hear<I: MediaIo>(io: &mut I, reaper: &mut Reaper<'_>, index: u32) -> bool {
    match reaper.legs.step(reaper.now, index) {
        Step::Serve => {}
        Step::Rest => io.rest(index * HALVES),
        Step::Read => read(io, reaper, index),
        Step::Wait => return false,
    }
    true
}

/// Hears what came for a leg before an order to it, if it waits.
pub(super) fn catch_up<I: MediaIo>(io: &mut I, reaper: &mut Reaper<'_>, index: u32) {
    let slot = reaper.legs.slot_mut(index);
    if slot.is_some_and(|slot| matches!(slot.hearing, Hearing::AtTurns(_))) {
        read(io, reaper, index);
    }
}

/// Hears what waits for a leg. A flood is read as it comes from then on.
fn read<I: MediaIo>(io: &mut I, reaper: &mut Reaper<'_>, index: u32) {
    let is_all = io.read(index * HALVES, reaper);
    let Some(slot) = reaper.legs.slot_mut(index) else { return };
    slot.hearing = Hearing::AtTurns(reaper.now);
    if !is_all {
        wake(io, slot, reaper.now, index);
    }
}

/// Has a leg's packets read as they come.
pub(super) fn wake<I: MediaIo>(io: &mut I, slot: &mut Slot, now: Instant, index: u32) {
    if matches!(slot.hearing, Hearing::AtTurns(_)) {
        slot.hearing = Hearing::AsItComes(now);
        io.wake(index * HALVES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    /// Goal: a leg settles for a second before its packets wait, is then read five packet times apart, and
    /// never if they may not wait. Method: turns of 20 ms, one of them 4 ms early, under a fake clock.
    #[test]
    fn a_leg_that_may_wait_is_read_every_fifth_packet_time_after_a_second() {
        let began = clock::now();
        let mut hearing = Hearing::AsItComes(began);
        let mut at = |ms: u64, may_wait: bool| hearing.step(began + Duration::from_millis(ms), may_wait);
        assert_eq!([at(0, true), at(980, true), at(1000, false)], [Step::Serve; 3]);
        assert_eq!(at(1020, true), Step::Rest);
        assert_eq!([1040, 1060, 1080, 1100].map(|ms| at(ms, true)), [Step::Wait; 4]);
        assert_eq!(at(1116, true), Step::Read);
    }

    /// Goal: what came is heard in order, neither before what was heard last nor after now, whatever the
    /// kernel's clock says. Method: times within and around.
    #[test]
    fn times_of_arrival_stay_between_the_last_reading_and_now() {
        let last = clock::now();
        let [early, soon, now, late] = [0, 30, 60, 90].map(|ms| last + Duration::from_millis(ms));
        let hearing = Hearing::AtTurns(soon);
        assert_eq!([early, soon, now, late].map(|at| hearing.came(at, now)), [soon, soon, now, now]);
        assert_eq!(Hearing::AtTurns(late).came(soon, now), now, "read again in the same turn");
        assert_eq!(Hearing::AsItComes(last).came(soon, now), now);
    }
}
