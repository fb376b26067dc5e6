//! Memory the kernel may hold pointers into: allocated once, zeroed, never moved or grown.
#![expect(unsafe_code, reason = "page-aligned memory shared with the kernel")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
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
        let layout = Layout::from_size_align(bytes, Self::ALIGN).expect("sizes here are constants");
        // SAFETY: the layout's size is not zero, asserted above.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Self { base, layout }
    }

    /// The address of byte `offset`, for the kernel or for a slice made under the ring's rules.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.layout.size(), "offset {offset} is outside the region");
        // SAFETY: within the allocation, asserted above.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. The ring drops regions only after the kernel
        // let go of them, else it forgets them (I2).
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
