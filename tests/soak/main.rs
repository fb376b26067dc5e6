//! Loads that prove worker life, each runnable alone: `VOXRING_SOAK=1 cargo test --test soak recycles`.
//!
//! Without `VOXRING_SOAK=1` (`tests/run --soak`) each passes at once and says so. A run prints its seed;
//! `VOXRING_SEED` repeats it. Node and voxperf are those of `VOXRING_RELEASE_DIR`. Figures are printed as
//! one table at the end of each.

#[expect(dead_code, reason = "the live tests share more than a soak needs")]
#[path = "../live/common/mod.rs"]
mod common;

mod crash;
mod figures;
mod ledger;
mod load;
mod recycles;
mod soak;
mod stage;
mod stalled;
mod upgrade;
