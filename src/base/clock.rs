//! The only place that reads a clock.
//!
//! Loops read it once per turn and pass `now` on, so every protocol room can be driven by a fake
//! clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

/// Milliseconds since 1970, nought before.
pub fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
