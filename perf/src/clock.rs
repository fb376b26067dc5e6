//! The only place of `voxperf` that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time, for pacing and timers.
#[expect(clippy::disallowed_methods, reason = "this is the place the rule points to")]
pub fn now() -> Instant {
    Instant::now()
}

/// Calendar time since 1970, comparable with the kernel's receive timestamps.
#[expect(clippy::disallowed_methods, reason = "this is the place the rule points to")]
pub fn calendar() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Processor time the calling thread has used.
pub fn thread_time() -> Duration {
    let id = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(id).map(Duration::from).unwrap_or_default()
}

/// Whole milliseconds of `duration`, saturating.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
