//! A worker process: answers calls on its slot's port, with media shards and a mailbox behind it.
//!
//! [`start`] puts the threads together; [`calls`] is the signalling shard's role, where dialogs,
//! flows, media and mailbox meet; [`shards`] spreads legs over the media shards.

mod anchor;
pub mod calls;
mod duty;
mod entry;
pub mod estate;
mod greetings;
mod intake;
mod queues;
pub mod reconfigure;
mod refuse;
mod resources;
mod self_test;
mod settle;
pub mod shards;
pub mod start;
pub mod watchdog;
