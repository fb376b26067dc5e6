//! The worker's media shards: which one takes a leg, and orders that must not be lost.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::base::config::{Config, PortRange};
use crate::control::protocol::ShardStatus;
use crate::media::order::{Event, FileItem, Order};
use crate::role::link::Slot;
use crate::shard::{self, ShardConfig, ShardHandle, ShardSnapshot};

/// One media shard and what we know of it.
struct Entry {
    handle: ShardHandle,
    cpu: Option<usize>,
    ports: PortRange,
    /// Legs we gave it and have not seen closed.
    legs: usize,
    /// Orders that found its queue full. New legs are refused then; these must get through.
    waiting: VecDeque<Order>,
}

/// All media shards of a worker.
pub struct Shards {
    entries: Vec<Entry>,
}

/// Why the shards could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// The RTP range has too few pairs for slots and shards.
    #[error("rtp.ports: {range} has too few even/odd pairs for two slots of {shards} shards")]
    Range {
        /// The configured range.
        range: String,
        /// Shards of each slot.
        shards: u16,
    },
    /// No ring, no thread.
    #[error("media shard {index}: {error}")]
    Spawn {
        /// Which.
        index: u16,
        /// What the kernel says.
        error: io::Error,
    },
}

impl Shards {
    /// Starts the slot's shards, each pinned to a processor of its own as far as there are enough.
    ///
    /// # Errors
    /// See [`ShardsError`].
    pub fn spawn(config: &Config, slot: Slot) -> Result<Self, ShardsError> {
        let cpus = core_affinity::get_core_ids().unwrap_or_default();
        let count = match config.worker.media_shards {
            0 => u16::try_from(cpus.len().saturating_sub(1).max(1)).unwrap_or(u16::MAX),
            count => count,
        };
        let range = || ShardsError::Range { range: config.rtp.ports.into(), shards: count };
        let of_slot = slot.rtp_ports(config).ok_or_else(range)?;
        let mut entries = Vec::new();
        for index in 0..count {
            let ports = of_slot.slice(index, count).ok_or_else(range)?;
            // The first processor is left to signalling where there is a choice.
            let pinned = cpus.len() > usize::from(count);
            let cpu = pinned.then(|| cpus.get(usize::from(index) + 1).map(|core| core.id)).flatten();
            let shard_config = ShardConfig {
                index,
                cpu,
                address: config.rtp.address,
                ports,
                quarantine: Duration::from_secs(u64::from(config.rtp.quarantine_s)),
                legs_max: config.calls.calls_max as usize,
            };
            let handle = shard::spawn(shard_config).map_err(|error| ShardsError::Spawn { index, error })?;
            entries.push(Entry { handle, cpu, ports, legs: 0, waiting: VecDeque::new() });
        }
        Ok(Self { entries })
    }

    /// The recording queue of each shard.
    pub fn files(&self) -> Vec<Arc<ArrayQueue<FileItem>>> {
        self.entries.iter().map(|entry| entry.handle.files()).collect()
    }

    /// Gives a new leg to the shard with the fewest; tells which.
    ///
    /// # Errors
    /// That shard's queue is full, or there is no shard left.
    pub fn open(&mut self, order: Order) -> Result<usize, Order> {
        let least = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.legs);
        let Some(index) = least.map(|(index, _)| index) else {
            return Err(order);
        };
        let entry = &mut self.entries[index];
        if !entry.waiting.is_empty() {
            return Err(order);
        }
        entry.handle.send(order)?;
        entry.legs += 1;
        Ok(index)
    }

    /// Gives an order for an open leg; one that finds the queue full waits here.
    pub fn send(&mut self, shard: usize, order: Order) {
        if let Some(entry) = self.entries.get_mut(shard) {
            entry.waiting.push_back(order);
            entry.flush();
        }
    }

    /// Sends what waits and takes the next event. `None`: all shards are quiet.
    pub fn poll(&mut self) -> Option<Event> {
        for entry in &mut self.entries {
            entry.flush();
            if let Some(event) = entry.handle.try_event() {
                return Some(event);
            }
        }
        None
    }

    /// The leg of `shard` is gone.
    pub fn release(&mut self, shard: usize) {
        if let Some(entry) = self.entries.get_mut(shard) {
            entry.legs = entry.legs.saturating_sub(1);
        }
    }

    /// A shard has ended though nobody told it to.
    pub fn is_broken(&self) -> bool {
        self.entries.iter().any(|entry| entry.handle.is_finished())
    }

    /// Each shard for `voxring status`.
    pub fn status(&self) -> Vec<ShardStatus> {
        let one = |(index, entry): (usize, &Entry)| {
            let snapshot = entry.handle.snapshot();
            ShardStatus {
                index: u16::try_from(index).unwrap_or(u16::MAX),
                cpu: entry.cpu.and_then(|cpu| u32::try_from(cpu).ok()),
                backend: "io_uring".to_owned(),
                ports: entry.ports,
                legs: snapshot.legs,
                counters: counters(&snapshot),
            }
        };
        self.entries.iter().enumerate().map(one).collect()
    }

    /// Ends every shard; their legs must be closed.
    pub fn join(self) {
        for entry in self.entries {
            // A queue that is full now means a shard that no longer reads; joining tells why.
            let _ = entry.handle.send(Order::Drain);
            if let Err(error) = entry.handle.join() {
                tracing::error!(%error, "a media shard ended badly");
            }
        }
    }
}

impl Entry {
    fn flush(&mut self) {
        while let Some(order) = self.waiting.pop_front() {
            if let Err(order) = self.handle.send(order) {
                self.waiting.push_front(order);
                return;
            }
        }
    }
}

/// The snapshot's numbers by name, as they are called there.
fn counters(snapshot: &ShardSnapshot) -> std::collections::BTreeMap<String, u64> {
    let value = serde_json::to_value(snapshot).unwrap_or_default();
    let numbers = value.as_object().into_iter().flatten();
    numbers.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}
