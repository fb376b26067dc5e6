//! A shard without a thread, turned by its owner under its owner's clock, over any kernel or none:
//! for measurements.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;

use crate::media::order::{Event, FileItem, Order};
use crate::shard::handle::{ShardConfig, Shared};
use crate::shard::turn::Shard;
use crate::uring::MediaIo;

/// The shard and both ends of its queues.
pub struct ByHand<I> {
    shard: Shard<I>,
    shared: Arc<Shared>,
}

impl<I: MediaIo> ByHand<I> {
    /// A shard without legs, over `io`; its grid of ticks begins now.
    ///
    /// # Errors
    /// No random numbers, or no descriptor.
    pub fn new(config: ShardConfig, io: I) -> io::Result<Self> {
        let shared = Arc::new(Shared::new()?);
        Ok(Self { shard: Shard::new(config, io, Arc::clone(&shared), None)?, shared })
    }

    /// Gives an order, obeyed in a later turn.
    ///
    /// # Errors
    /// The order comes back if the queue is full.
    pub fn send(&self, order: Order) -> Result<(), Order> {
        self.shared.orders.push(order)
    }

    /// The next event, if one waits.
    pub fn try_event(&self) -> Option<Event> {
        self.shared.events.pop()
    }

    /// Where recordings come out.
    pub fn files(&self) -> &ArrayQueue<FileItem> {
        &self.shared.files
    }

    /// What it stands on.
    pub fn io(&mut self) -> &mut I {
        self.shard.io()
    }

    /// One turn at `now`, its wait included.
    ///
    /// # Errors
    /// What the wait says.
    pub fn turn(&mut self, now: Instant) -> io::Result<()> {
        self.shard.turn(now);
        self.shard.sleep(now)
    }
}
