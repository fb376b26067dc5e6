//! Unified-messaging flows: what a caller hears and what key presses do. No database, no sockets.
//!
//! A flow takes [`flow::Input`]s and yields [`flow::Output`]s: orders for the media shard and needs
//! that the worker meets from the mailbox.

pub mod answering;
pub mod flow;
pub mod test_extension;
pub mod prompts;
