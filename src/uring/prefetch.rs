//! Memory asked for before it is needed.
#![expect(unsafe_code, reason = "the instruction takes an address")]

/// Bytes the processor moves at once.
const LINE_BYTES: usize = 64;

/// Starts to bring `value` near, without waiting for it: a leg that slept for 20 ms lies far away, and a
/// turn serves one such after the other. What is behind its pointers is not touched.
pub fn prefetch<T: ?Sized>(value: &T) {
    prefetch_first(value, size_of_val(value));
}

/// As [`prefetch`], for the first `bytes` of it.
pub fn prefetch_first<T: ?Sized>(value: &T, bytes: usize) {
    let start = std::ptr::from_ref(value).cast::<i8>();
    let bytes = bytes.min(size_of_val(value));
    for line in (0..bytes).step_by(LINE_BYTES) {
        line_at(start.wrapping_add(line));
    }
}

#[cfg(target_arch = "x86_64")]
fn line_at(address: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint; whatever the address, nothing is read as far as the program can tell.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
}

/// Other processors are left to guess.
#[cfg(not(target_arch = "x86_64"))]
fn line_at(_: *const i8) {}
