//! What a shard asks the kernel about its own thread.
#![expect(unsafe_code, reason = "clock_gettime has no safe form for the thread's clock")]

use std::time::Duration;

/// Processor time this thread has used since it began.
pub fn cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// `CLOCK_MONOTONIC`, the clock behind `Instant`, in the kernel's own terms.
pub(super) fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec; the clock ids are constants the kernel always has.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both clocks run forward. Method: read around some work.
    #[test]
    fn clocks_do_not_run_backwards() {
        let (cpu, monotonic_before) = (cpu_time(), monotonic());
        let sum: u64 = std::hint::black_box((0..100_000_u64).sum());
        assert!(sum > 0 && cpu_time() >= cpu && monotonic() >= monotonic_before);
        assert!(monotonic() > Duration::ZERO);
    }
}
