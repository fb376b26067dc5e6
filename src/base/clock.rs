//! The only place that reads a clock.
//!
//! Loops read it once per turn and pass `now` on, so every protocol room can be driven by a fake
//! clock.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Monotonic time, for timers and pacing.
#[expect(clippy::disallowed_methods, reason = "this is the place the rule points to")]
pub fn now() -> Instant {
    Instant::now()
}

/// Calendar time, for message metadata and logs only.
#[expect(clippy::disallowed_methods, reason = "this is the place the rule points to")]
pub fn calendar() -> SystemTime {
    SystemTime::now()
}

/// An instant and its uptime, read together once: what lies between is lost in the microseconds.
static ANCHOR: LazyLock<(Instant, Duration)> = LazyLock::new(|| {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    (now(), uptime)
});

/// Time since the machine started, at `at`: the same for every process, as an [`Instant`] is not.
pub fn uptime(at: Instant) -> Duration {
    let (instant, uptime) = *ANCHOR;
    match at.checked_duration_since(instant) {
        Some(later) => uptime + later,
        None => uptime.saturating_sub(instant.duration_since(at)),
    }
}

/// The instant at which the machine had run for `uptime`, be it past or to come.
pub fn at_uptime(uptime: Duration) -> Instant {
    let (instant, anchor) = *ANCHOR;
    match uptime.checked_sub(anchor) {
        Some(later) => instant + later,
        None => instant.checked_sub(anchor.saturating_sub(uptime)).unwrap_or(instant),
    }
}

/// Milliseconds since 1970, nought before.
pub fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what one process calls an uptime is the same instant in another. Method: there and back,
    /// before and after the first use, and the kernel's own count beside ours.
    #[test]
    fn an_uptime_names_one_instant() {
        let here = now();
        for at in [here, here + Duration::from_secs(5), here.checked_sub(Duration::from_secs(1)).unwrap()] {
            assert_eq!(at_uptime(uptime(at)), at);
        }
        let before = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        let ours = uptime(now()) + Duration::from_millis(1);
        assert!(before <= ours, "{before:?} {ours:?}");
    }
}
