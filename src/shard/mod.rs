//! The media loop: one thread, one ring, one slice of ports, many legs. No SIP.
//!
//! [`spawn`] starts a shard; orders go down and events come up through its [`ShardHandle`].

mod by_hand;
mod counters;
mod handle;
mod hearing;
mod keeping;
pub mod ledger;
mod legs;
mod outbox;
mod ports;
mod turn;
mod wheel;

pub use by_hand::ByHand;
pub use counters::ShardSnapshot;
#[cfg(test)]
pub(crate) use handle::FakeShard;
pub use handle::{Pulse, ShardConfig, ShardHandle, spawn, spawn_keeping};
pub use keeping::{Keeping, KeepingOfAll};
