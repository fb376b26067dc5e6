//! How often something may happen.

use std::time::{Duration, Instant};

/// A token bucket kept as one moment: when it is full again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    full_at: Instant,
}

impl Pace {
    /// A full bucket.
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Is there a token in a bucket of `burst` that gains `per_s` a second? 0 per second: always.
    pub(super) fn has(&self, now: Instant, per_s: u32, burst: u32) -> bool {
        per_s == 0 || self.full_at.max(now) <= now + token(per_s) * (burst.max(1) - 1)
    }

    /// Takes a token; false when there is none.
    pub(super) fn take(&mut self, now: Instant, per_s: u32, burst: u32) -> bool {
        let has = self.has(now, per_s, burst);
        if has && per_s > 0 {
            self.full_at = self.full_at.max(now) + token(per_s);
        }
        has
    }

    /// True when nothing is remembered any more.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

/// The time one token takes to come.
fn token(per_s: u32) -> Duration {
    Duration::from_secs(1) / per_s
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a burst at once, then one per interval, never more than a burst after a pause.
    /// Method: 10 a second, burst 3, by arithmetic: tokens at 0, 0, 0, 100 ms, 200 ms, then three.
    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        #[expect(clippy::disallowed_methods, reason = "any start will do")]
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(start);
        let taken: Vec<_> =
            [0, 0, 0, 0, 99, 100, 100, 200, 5000, 5000, 5000, 5000].map(|ms| pace.take(at(ms), 10, 3)).into();
        let expected = [true, true, true, false, false, true, false, true, true, true, true, false];
        assert_eq!(taken, expected);
        assert!(!pace.is_full(at(5299)) && pace.is_full(at(5300)));
        assert!((0..100).all(|_| pace.take(at(0), 0, 0)), "no limit");
    }
}
