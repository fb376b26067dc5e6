//! Users, messages, greetings, PINs, audio: SQLite and files. No SIP.
//!
//! Reading order: [`store`] (what is kept), [`spool`] (how a recording becomes a message without
//! ever being lost), [`service`] (what a worker's signalling shard talks to).

pub mod audio;
mod disk;
mod files;
mod fs;
pub mod pin;
pub mod service;
pub mod spool;
pub mod store;
mod store_thread;

pub use store::{Message, MessageKind, Store, StoreError};
