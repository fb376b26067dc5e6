//! Marks what is measured, so that instructions can be counted for it and for nothing else.

/// Does `work`. A function of its own even when optimised: `bench/instructions` finds it by its name,
/// and timed it costs its call, a nanosecond, also around a floor.
#[inline(never)]
pub(crate) fn counted<R>(work: impl FnOnce() -> R) -> R {
    work()
}
