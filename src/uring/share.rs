//! Memory that outlasts the process that writes to it: whoever holds its descriptor maps it again.
//!
//! * **S1 length**: the file is sealed against shrinking before it is mapped, so no access beyond its
//!   end can come up later.
//! * **S2 words**: it is seen as atomic words only, by every process that maps it, so a write by one is
//!   no data race for another.
#![expect(unsafe_code, reason = "memory mapped from a descriptor")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a word.
const WORD: usize = size_of::<AtomicU64>();

/// Words shared with other processes.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<AtomicU64>,
    words: usize,
    file: OwnedFd,
}

// SAFETY: it is memory seen as atomics alone (S2), and a descriptor.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// So many words, all nought; pages that nobody has written to take no memory.
    ///
    /// # Errors
    /// The kernel has no descriptor or address space left.
    pub fn create(words: usize) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("voxring-ledger", flags)?);
        file.set_len(u64::try_from(words * WORD).unwrap_or(u64::MAX))?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        Self::open(file.into())
    }

    /// Maps what [`Self::create`] made, maybe in another process.
    ///
    /// # Errors
    /// The descriptor is of something else, or the kernel has no address space left.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        let sealed = fcntl(&file, FcntlArg::F_GET_SEALS)?;
        if sealed & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(io::Error::other("shared memory that may shrink"));
        }
        let file = File::from(file);
        let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let Some(length) = NonZeroUsize::new(bytes - bytes % WORD) else {
            return Err(io::Error::other("shared memory without a word"));
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses, of a file that keeps its length (S1).
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { base: base.cast(), words: length.get() / WORD, file: file.into() })
    }

    /// All of it.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self` lives, page-aligned, of this length (S1); only atomics
        // are ever made of it (S2).
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length; nothing borrows it any more.
        let _ = unsafe { munmap(self.base.cast(), self.words * WORD) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    /// Goal: what one mapping writes the other reads, also when the first is gone; what is no such
    /// memory is refused. Method: two mappings of one descriptor, a file, an empty one.
    #[test]
    fn what_is_written_outlasts_the_writer() {
        let first = SharedMemory::create(1000).unwrap();
        let second = SharedMemory::open(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((first.words().len(), second.words().len()), (1000, 1000));
        first.words()[999].store(7, Ordering::Relaxed);
        drop(first);
        assert_eq!(second.words()[999].load(Ordering::Relaxed), 7);
        assert!(SharedMemory::open(tempfile::tempfile().unwrap().into()).is_err());
        assert!(SharedMemory::create(0).is_err());
    }
}
