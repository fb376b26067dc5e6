//! The provided-buffer ring: memory the kernel picks from when a datagram arrives.
//!
//! A buffer is the kernel's from [`BufRing::publish`] until a completion names it, and ours from
//! then until [`BufRing::give_back`]. Ours is the [`Buffer`] value: it can be neither copied nor
//! made elsewhere, so no byte is reachable while the kernel owns it (invariant I3 of
//! [`super::ring`]).
#![expect(unsafe_code, reason = "a ring shared with the kernel")]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;

use super::region::Region;

/// Bytes of one buffer: header, source address and a datagram of `RTP_DATAGRAM_BYTES_MAX`, with
/// room to see a longer one as truncated. Not a power of two: buffers a cache size apart would all
/// fight for the same cache lines.
pub(super) const BUFFER_BYTES: usize = 2048 + 64;
/// The only buffer group.
pub(super) const GROUP: u16 = 0;

/// `struct io_uring_buf`: `addr: u64`, `len: u32`, `bid: u16`, `resv: u16`.
const ENTRY_BYTES: usize = 16;
const LEN_AT: usize = 8;
const BID_AT: usize = 12;
/// The ring's tail is the `resv` of entry 0; that is why `resv` is never written otherwise.
const TAIL_AT: usize = 14;

/// A received datagram's memory, ours until it is given back.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the kernel"]
pub(super) struct Buffer(u16);

/// Entries, memory and our end of the tail.
pub(super) struct BufRing {
    entries: Region,
    memory: Region,
    count: u16,
    tail: u16,
}

impl BufRing {
    /// Registers `count` buffers (a power of two up to 32768) and hands all of them to the kernel.
    ///
    /// # Errors
    /// Linux before 5.19, or out of memory.
    pub(super) fn new(submitter: &Submitter<'_>, count: u16) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel masks indices");
        let entries = Region::new(usize::from(count) * ENTRY_BYTES);
        let memory = Region::new(usize::from(count) * BUFFER_BYTES);
        let address = entries.at(0).as_ptr() as u64;
        // SAFETY: the entries are page aligned, as long as `count` says, and outlive the
        // registration: the ring unregisters or forgets them (I1, I2).
        unsafe { submitter.register_buf_ring_with_flags(address, count, GROUP, 0)? };
        let mut ring = Self { entries, memory, count, tail: 0 };
        for index in 0..count {
            ring.give_back(Buffer(index));
        }
        ring.publish();
        Ok(ring)
    }

    /// The buffer a completion names; `None` for one we never registered.
    pub(super) fn completed(&self, index: u16) -> Option<Buffer> {
        (index < self.count).then_some(Buffer(index))
    }

    /// The whole buffer, header first.
    pub(super) fn bytes<'a>(&'a mut self, buffer: &'a mut Buffer) -> &'a mut [u8] {
        let start = self.memory.at(usize::from(buffer.0) * BUFFER_BYTES);
        // SAFETY: inside the region; the kernel released the buffer with its completion and nobody
        // else holds it, since `buffer` is its only and exclusive name (I3). The memory is
        // initialised: zeroed at first, written by the kernel since.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), BUFFER_BYTES) }
    }

    /// Queues the buffer for the kernel, which sees it at the next [`BufRing::publish`].
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        let entry = usize::from(self.tail & (self.count - 1)) * ENTRY_BYTES;
        let address = self.memory.at(usize::from(buffer.0) * BUFFER_BYTES).as_ptr() as u64;
        let length = u32::try_from(BUFFER_BYTES).expect("a small constant");
        // SAFETY: the entry lies in the region and its fields are aligned; the kernel reads only
        // entries below the published tail, and this one is not (there are never more buffers than
        // entries, I3). `resv` is left alone: in entry 0 it is the tail.
        unsafe {
            self.entries.at(entry).cast::<u64>().write(address);
            self.entries.at(entry + LEN_AT).cast::<u32>().write(length);
            self.entries.at(entry + BID_AT).cast::<u16>().write(buffer.0);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see everything given back.
    pub(super) fn publish(&self) {
        // SAFETY: aligned, inside the region, and accessed by both sides as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(self.entries.at(TAIL_AT).cast().as_ptr()) };
        tail.store(self.tail, Ordering::Release);
    }
}
