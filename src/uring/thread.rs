//! What a shard asks the kernel about its own thread, and asks of it.
#![expect(unsafe_code, reason = "clock_gettime and sched_setattr have no safe form")]

use std::io;
use std::time::Duration;

/// Niceness of a media thread: ahead of everything ordinary, behind what is real-time.
const MEDIA_NICE: i32 = -10;
/// Time slice a media thread asks for: a thread with a short slice is let in at once when it wakes,
/// instead of after the other's slice of some 3 ms (Linux 6.12; ignored before).
const MEDIA_SLICE: Duration = Duration::from_micros(100);

/// `struct sched_attr`, its first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Lets this thread run before ordinary ones, so that packets leave evenly on a busy machine.
///
/// Not a real-time policy, though ticks would be more even still: the queues between threads spin
/// for the moment another thread is in the middle of a push, and a real-time thread that had
/// interrupted that very push on its own processor would spin for most of a second.
///
/// # Errors
/// Without `CAP_SYS_NICE`: only the short slice is had; packets are less even under load.
pub fn prefer() -> io::Result<()> {
    let preferred = schedule(MEDIA_NICE);
    if preferred.is_err() {
        schedule(0)?;
    }
    preferred
}

fn schedule(nice: i32) -> io::Result<()> {
    let attributes = SchedAttr {
        size: u32::try_from(size_of::<SchedAttr>()).expect("48 bytes"),
        policy: libc::SCHED_OTHER.unsigned_abs(),
        flags: 0,
        nice,
        priority: 0,
        runtime: u64::try_from(MEDIA_SLICE.as_nanos()).expect("a short time"),
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a live struct; process 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Processor time this thread has used since it began.
pub fn cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// `CLOCK_MONOTONIC`, the clock behind `Instant`, in the kernel's own terms.
pub(super) fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_REALTIME`, by which the kernel stamps datagrams.
pub(super) fn realtime() -> Duration {
    read(libc::CLOCK_REALTIME)
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

    /// Goal: asking for preference works with and without the right to it.
    /// Method: on a thread of its own; without the right the error says so.
    #[test]
    fn preference_is_granted_or_refused_for_want_of_rights() {
        let granted = std::thread::spawn(prefer).join().unwrap();
        if let Err(error) = granted {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    /// Goal: both clocks run forward. Method: read around some work.
    #[test]
    fn clocks_do_not_run_backwards() {
        let (cpu, monotonic_before) = (cpu_time(), monotonic());
        let sum: u64 = std::hint::black_box((0..100_000_u64).sum());
        assert!(sum > 0 && cpu_time() >= cpu && monotonic() >= monotonic_before);
        assert!(monotonic() > Duration::ZERO);
    }
}
