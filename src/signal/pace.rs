//! How busy the loop's thread is: what overload is told by.
//!
//! A loop that is behind shows neither in its queues nor in how late its timers are: what it cannot
//! read in time waits in the kernel, out of sight. It shows in that the thread never sleeps.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks at the calling thread.
#[derive(Debug)]
pub(super) struct Pace {
    /// `None` where the kernel does not tell.
    schedstat: Option<File>,
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// For the calling thread, which must be the one that looks.
    pub(super) fn of_this_thread() -> Self {
        Self { schedstat: File::open("/proc/thread-self/schedstat").ok(), last: None }
    }

    /// Of the time since the last look, the share in thousandths that the thread ran or waited for a
    /// processor. `None` between two looks.
    pub(super) fn look(&mut self, now: Instant) -> Option<u16> {
        if self.last.is_some_and(|(at, _)| now < at + INTERVAL) {
            return None;
        }
        let mut text = [0; 80];
        let bytes = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        let awake = awake(text.get(..bytes)?)?;
        let (began, before) = self.last.replace((now, awake))?;
        let wall_us = now.saturating_duration_since(began).as_micros().max(1);
        let permille = awake.saturating_sub(before).as_micros() * 1000 / wall_us;
        Some(u16::try_from(permille.min(1000)).unwrap_or(1000))
    }
}

/// What a schedstat file says: nanoseconds on a processor, nanoseconds waiting for one, time slices.
fn awake(text: &[u8]) -> Option<Duration> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let ran: u64 = words.next()?.parse().ok()?;
    let waited: u64 = words.next()?.parse().ok()?;
    Some(Duration::from_nanos(ran.saturating_add(waited)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    /// Goal: time on a processor and time waiting for one count, nothing else. Method: as the kernel
    /// writes it; cut short; something else.
    #[test]
    fn running_and_waiting_count() {
        assert_eq!(awake(b"3000000 1000000 17\n"), Some(Duration::from_millis(4)));
        assert_eq!(awake(b"3000000"), None);
        assert_eq!(awake(b"no numbers here"), None);
    }

    /// Goal: there is one look each 200 ms, and none says more than all of the time. Method: the kernel
    /// of this machine, looked at by a clock that the test moves.
    #[test]
    fn looks_are_200_ms_apart() {
        let start = clock::now();
        let mut pace = Pace::of_this_thread();
        assert_eq!(pace.look(start), None, "there is nothing to compare with");
        assert_eq!(pace.look(start + INTERVAL / 2), None);
        assert!(pace.look(start + INTERVAL).is_some_and(|permille| permille <= 1000));
        assert_eq!(pace.look(start + INTERVAL), None);
    }
}
