//! Waking a parked shard from another thread: an eventfd.
#![expect(unsafe_code, reason = "eventfd has no safe form in the standard library")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};

/// One end is watched by the backend, the other is notified by whoever has work for the shard.
#[derive(Debug)]
pub struct Waker(File);

impl Waker {
    /// A new eventfd, non-blocking and closed on exec.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Wakes the shard. Costs a system call; call it only when the shard said it parks.
    pub fn notify(&self) {
        // A full counter means it is awake already: nothing to report.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Forgets the notifications so far.
    pub(super) fn drain(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
