//! Memory the kernel may hold pointers into: allocated once, zeroed, never moved or grown.
#![expect(unsafe_code, reason = "page-aligned memory shared with the kernel")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Page-aligned bytes with a stable address (invariant I1 of [`super::ring`]).
pub(super) struct Region {
    base: NonNull<u8>,
    layout: Layout,
}

impl Region {
    const ALIGN: usize = 4096;

    /// `bytes` zeroed bytes; `bytes` is not nought.
    pub(super) fn new(bytes: usize) -> Self {
        assert!(bytes > 0, "a region has a size");
        let align = if bytes < HUGE_BYTES { Self::ALIGN } else { HUGE_BYTES };
        let layout = Layout::from_size_align(bytes, align).expect("sizes here are constants");
        // SAFETY: the layout's size is not zero, asserted above.
        let memory = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(memory) else { handle_alloc_error(layout) };
        // SAFETY: the allocation is this long and ours, and any bytes will do where none need be
        // initialised.
        want_huge_pages(unsafe { std::slice::from_raw_parts_mut(memory.cast::<MaybeUninit<u8>>(), bytes) });
        // SAFETY: the allocation is this long.
        unsafe { memory.write_bytes(0, bytes) };
        Self { base, layout }
    }

    /// The address of byte `offset`, for the kernel or for a slice made under the ring's rules.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.layout.size(), "offset {offset} is outside the region");
        // SAFETY: within the allocation, asserted above.
        unsafe { self.base.add(offset) }
    }
}

/// Bytes of a huge page of x86-64 and, by default, of AArch64.
pub const HUGE_BYTES: usize = 2 << 20;

/// Asks for huge pages where `memory` spans whole ones and is not in use yet, and takes the first at once,
/// while the kernel has one. What every packet touches elsewhere is more pages than the processor remembers
/// the places of, and a page it has forgotten costs as much as the memory itself, on a virtual machine
/// twice. The kernel may refuse; nothing else changes.
pub fn want_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    let range = memory.as_mut_ptr_range();
    let start = range.start.addr().next_multiple_of(HUGE_BYTES);
    let end = range.end.addr() / HUGE_BYTES * HUGE_BYTES;
    if start < end {
        let start = range.start.with_addr(start);
        // SAFETY: advice about whole pages of one allocation, which changes no byte of them.
        unsafe { libc::madvise(start.cast(), end - start.addr(), libc::MADV_HUGEPAGE) };
        // SAFETY: a byte of memory that is lent to us alone and need not be initialised.
        unsafe { start.cast::<u8>().write(0) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. The ring drops regions only after the kernel
        // let go of them, else it forgets them (I2).
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
