//! The end of a run: its calls are ended one after the other, no faster than asked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::acts::Play;
use super::{BURST, Signaller};

/// The end of all calls, in the order they began.
pub(super) struct Leaving {
    from: Instant,
    rate: f64,
    done: u32,
    pub(super) left: VecDeque<u32>,
}

impl Signaller<'_> {
    pub(super) fn begin_leaving(&mut self, now: Instant, rate: f64) {
        self.next = None;
        self.play.iter_mut().for_each(Play::stop);
        let numbers = (0u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.as_ref().is_some_and(|slot| !slot.has_vanished()));
        let left = numbers.map(|(number, _)| number).collect();
        self.leaving = Some(Leaving { from: now, rate: rate.max(1.0), done: 0, left });
    }

    pub(super) fn leave_due(&mut self, now: Instant) {
        for _ in 0..BURST {
            let Some(number) = self.leaving.as_mut().and_then(|leaving| leaving.next(now)) else { return };
            self.hang_up(now, number);
        }
    }
}

impl Leaving {
    /// When the next call is due to end.
    pub(super) fn due(&self) -> Option<Instant> {
        self.left.front().map(|_| self.from + Duration::from_secs_f64(f64::from(self.done) / self.rate))
    }

    /// The next call, if it is due.
    fn next(&mut self, now: Instant) -> Option<u32> {
        self.due().filter(|due| *due <= now)?;
        self.done += 1;
        self.left.pop_front()
    }
}
