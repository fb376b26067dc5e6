//! The worker's media shards: which one takes a leg, and orders that must not be lost.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use crate::base::config::{Config, PortRange};
use crate::control::cli::Slot;
use crate::control::protocol::ShardStatus;
use crate::media::order::{Event, FileItem, Order};
use crate::role::user_agent;
use crate::shard::{self, KeepingOfAll, Pulse, ShardConfig, ShardHandle, ShardSnapshot};
use crate::uring::{self, Choice, ProbeError};

/// One media shard and what we know of it.
struct Entry {
    handle: ShardHandle,
    cpu: Option<usize>,
    ports: PortRange,
    /// Legs we gave it and have not seen closed.
    legs: usize,
    /// Orders that found its queue full. New legs are refused then; these must get through.
    waiting: VecDeque<Order>,
    strain: Strain,
}

/// Whether a shard keeps up with its packets.
#[derive(Debug, Default)]
struct Strain {
    /// Packets it had left out at the last look.
    skipped: u64,
    /// Looks in a row, up to [`STRAINED_LOOKS`], at which it did not keep up.
    looks: u8,
}

/// Time between two looks; a shard works out its load as often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A shard that does not keep up at so many looks in a row is behind: one may have been a stall of the
/// machine.
const STRAINED_LOOKS: u8 = 2;
/// A shard that leaves out no more packets than this between two looks keeps up.
const SKIPPED_MAX: u64 = 50;

/// All media shards of a worker.
pub struct Shards {
    entries: Vec<Entry>,
    next_look: Option<Instant>,
    /// How all of them talk to the kernel.
    choice: Choice,
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
    /// io_uring is demanded and cannot be had.
    #[error("worker.io_backend: {0}")]
    Backend(#[from] ProbeError),
    /// No descriptor, no thread.
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
    /// `keeping`: what lets their legs outlast the process.
    ///
    /// # Errors
    /// See [`ShardsError`].
    pub fn spawn(
        config: &Config,
        slot: Slot,
        mut keeping: Option<KeepingOfAll>,
    ) -> Result<Self, ShardsError> {
        let choice = uring::choose(config.worker.io_backend)?;
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
                backend: choice.backend,
                ports,
                quarantine: Duration::from_secs(u64::from(config.rtp.quarantine_s)),
                // An anchored call has two.
                legs_max: 2 * config.calls.calls_max as usize,
            };
            let keeping = keeping.as_mut().map(|all| all.share(ports));
            let handle = shard::spawn_keeping(shard_config, keeping);
            let handle = handle.map_err(|error| ShardsError::Spawn { index, error })?;
            let (waiting, strain) = (VecDeque::new(), Strain::default());
            entries.push(Entry { handle, cpu, ports, legs: 0, waiting, strain });
        }
        Ok(Self { entries, next_look: None, choice })
    }

    /// Shards whose far ends a test plays itself.
    #[cfg(test)]
    pub(crate) fn fake(count: usize) -> (Self, Vec<shard::FakeShard>) {
        let ports = Config::default().rtp.ports;
        let (handles, fakes): (Vec<_>, Vec<_>) = (0..count).map(|_| ShardHandle::fake()).unzip();
        let entry = |handle| {
            let (waiting, strain) = (VecDeque::new(), Strain::default());
            Entry { handle, cpu: None, ports, legs: 0, waiting, strain }
        };
        let choice = Choice { backend: uring::Backend::Uring, no_uring: None };
        (Self { entries: handles.into_iter().map(entry).collect(), next_look: None, choice }, fakes)
    }

    /// Every shard is behind until the next look, a second from `now`.
    #[cfg(test)]
    pub(crate) fn fall_behind(&mut self, now: Instant) {
        self.next_look = Some(now + LOOK_INTERVAL);
        self.entries.iter_mut().for_each(|entry| entry.strain.looks = STRAINED_LOOKS);
    }

    /// The recording queue of each shard.
    pub fn files(&self) -> Vec<Arc<ArrayQueue<FileItem>>> {
        self.entries.iter().map(|entry| entry.handle.files()).collect()
    }

    /// Whether each of them turns.
    pub fn pulses(&self) -> Vec<Pulse> {
        self.entries.iter().map(|entry| entry.handle.pulse()).collect()
    }

    /// Looks, once a second, which shards keep up. `busy_max` is the most of its time that a shard may
    /// be busy, in percent; 100 lets every one pass.
    pub fn look(&mut self, now: Instant, busy_max: u8) {
        if self.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.next_look = Some(now + LOOK_INTERVAL);
        for (shard, entry) in self.entries.iter_mut().enumerate() {
            let snapshot = entry.handle.snapshot();
            let was_behind = entry.strain.is_behind();
            entry.strain.look(&snapshot, busy_max);
            let (load_permille, skipped) = (snapshot.load_permille, snapshot.skipped_packets);
            match (was_behind, entry.strain.is_behind()) {
                (false, true) => {
                    tracing::warn!(
                        shard,
                        load_permille,
                        skipped,
                        "overload: the media shard gets no new calls"
                    );
                }
                (true, false) => tracing::info!(shard, load_permille, "the media shard keeps up again"),
                (_, _) => {}
            }
        }
    }

    /// Has every shard tell its legs' counters.
    pub fn ask_for_reports(&mut self) {
        for shard in 0..self.entries.len() {
            self.send(shard, Order::Report);
        }
    }

    /// True when no shard keeps up with the packets it has.
    pub fn are_behind(&self) -> bool {
        !self.entries.is_empty() && self.entries.iter().all(|entry| entry.strain.is_behind())
    }

    /// Gives a new leg to the shard with the fewest of those that keep up; tells which.
    ///
    /// # Errors
    /// That shard's queue is full, or there is no such shard.
    pub fn open(&mut self, order: Order) -> Result<usize, Order> {
        let keep_up = self.entries.iter().enumerate().filter(|(_, entry)| !entry.strain.is_behind());
        let least = keep_up.min_by_key(|(_, entry)| entry.legs);
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

    /// Gives a new leg to the shard that has another one, to be bridged with it.
    ///
    /// # Errors
    /// The shard's queue is full, or there is no such shard.
    pub fn open_on(&mut self, shard: usize, order: Order) -> Result<(), Order> {
        match self.entries.get_mut(shard) {
            Some(entry) if entry.waiting.is_empty() => {
                entry.handle.send(order)?;
                entry.legs += 1;
                Ok(())
            }
            Some(_) | None => Err(order),
        }
    }

    /// The shard whose slice a port is of.
    pub fn of_port(&self, port: u16) -> Option<usize> {
        self.entries.iter().position(|entry| (entry.ports.first..=entry.ports.last).contains(&port))
    }

    /// Has a shard go on with so many legs of a worker that died, however much it has to do.
    pub fn adopt(&mut self, shard: usize, legs: usize, order: Order) {
        if let Some(entry) = self.entries.get_mut(shard) {
            entry.legs += legs;
        }
        self.send(shard, order);
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
                backend: self.choice.backend.name().to_owned(),
                backend_reason: self.choice.no_uring.as_ref().map(ToString::to_string),
                ports: entry.ports,
                legs: snapshot.legs,
                counters: user_agent::counters("", &snapshot),
            }
        };
        self.entries.iter().enumerate().map(one).collect()
    }

    /// Ends every shard, each once its legs are closed. One whose legs nobody will close any more closes
    /// them itself.
    pub fn join(self) {
        for entry in self.entries {
            if entry.legs > 0 {
                tracing::warn!(legs = entry.legs, "a media shard ends with legs open");
                // Dropping its handle stops it.
                continue;
            }
            // A queue that is full now means a shard that no longer reads; joining tells why.
            let _ = entry.handle.send(Order::Drain);
            if let Err(error) = entry.handle.join() {
                tracing::error!(%error, "a media shard ended badly");
            }
        }
    }
}

impl Strain {
    fn look(&mut self, snapshot: &ShardSnapshot, busy_max: u8) {
        let skipped = snapshot.skipped_packets;
        let skipped = skipped.saturating_sub(std::mem::replace(&mut self.skipped, skipped));
        let is_busy = snapshot.load_permille > 10 * u64::from(busy_max);
        let is_strained = busy_max < 100 && (is_busy || skipped > SKIPPED_MAX);
        self.looks = if is_strained { (self.looks + 1).min(STRAINED_LOOKS) } else { 0 };
    }

    fn is_behind(&self) -> bool {
        self.looks >= STRAINED_LOOKS
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::LegId;
    use crate::base::limits::ORDERS_MAX;
    use crate::media::order::{LegPlan, LegStats};

    fn open(leg: u64) -> Order {
        let plan = LegPlan {
            media: None,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            cname: String::new(),
            media_timeout: Duration::from_secs(1),
        };
        Order::Open(LegId(leg), Box::new(plan))
    }

    /// Goal: a leg goes to the shard with the fewest. Method: three shards, six legs, two closed.
    #[test]
    fn a_leg_goes_to_the_least_loaded_shard() {
        let (mut shards, fakes) = Shards::fake(3);
        let given: Vec<_> = (0..6).map(|leg| shards.open(open(leg)).unwrap()).collect();
        assert_eq!(given, [0, 1, 2, 0, 1, 2]);
        shards.release(2);
        shards.release(2);
        shards.release(1);
        let given: Vec<_> = (6..9).map(|leg| shards.open(open(leg)).unwrap()).collect();
        assert_eq!(given, [2, 1, 2]);
        shards.release(9);
        assert_eq!(fakes.iter().map(|fake| std::iter::from_fn(|| fake.order()).count()).sum::<usize>(), 9);
        drop(fakes);
    }

    /// Goal: a full queue refuses new legs, keeps every order for open ones, in order, and hands them
    /// on later. Method: fill the queue of a shard that does not read, then read.
    #[test]
    fn orders_for_open_legs_are_never_lost() {
        let (mut shards, fakes) = Shards::fake(1);
        for leg in 0..ORDERS_MAX as u64 + 3 {
            shards.send(0, Order::Close(LegId(leg)));
        }
        assert!(shards.open(open(99)).is_err(), "the queue is full");
        assert!(shards.poll().is_none());
        let mut closed = Vec::new();
        while let Some(order) = fakes[0].order() {
            if let Order::Close(leg) = order {
                closed.push(leg.0);
            }
            shards.poll();
        }
        assert!(closed.into_iter().eq(0..ORDERS_MAX as u64 + 3));
        drop(fakes);
    }

    /// Goal: a shard that leaves packets out or is busy all the time gets no new legs after two looks,
    /// and gets them again once it keeps up; a single stall does not count, and 100 percent switches it
    /// off. Method: two shards, and what one of them would publish.
    #[test]
    fn a_shard_that_is_behind_gets_no_new_legs() {
        let published = |load_permille, skipped_packets| ShardSnapshot {
            load_permille,
            skipped_packets,
            ..ShardSnapshot::default()
        };
        let mut strain = Strain::default();
        strain.look(&published(500, 1000), 97);
        strain.look(&published(500, 1000), 97);
        assert!(!strain.is_behind(), "one stall");
        strain.look(&published(980, 1000), 97);
        strain.look(&published(500, 1051), 97);
        assert!(strain.is_behind(), "two looks in a row");
        let (mut shards, fakes) = Shards::fake(2);
        shards.entries[0].strain = strain;
        assert_eq!(shards.open(open(1)).unwrap(), 1);
        assert_eq!(shards.open(open(2)).unwrap(), 1);
        assert!(!shards.are_behind());
        shards.entries[1].strain.looks = STRAINED_LOOKS;
        assert!(shards.are_behind() && shards.open(open(3)).is_err());
        shards.look(crate::base::clock::now(), 97);
        assert_eq!(shards.open(open(4)).unwrap(), 0, "the fakes publish that they idle");
        shards.entries[0].strain.look(&published(1000, 9000), 100);
        shards.entries[0].strain.look(&published(1000, 9900), 100);
        assert!(!shards.entries[0].strain.is_behind());
        drop(fakes);
    }

    /// Goal: a worker that gives up ends, though legs are open that nobody will close any more. Method: a
    /// real shard with one leg; joining it comes back.
    #[test]
    fn a_shard_with_open_legs_ends() {
        let mut config = Config::default();
        config.worker.media_shards = 1;
        let mut shards = Shards::spawn(&config, Slot::A, None).unwrap();
        assert_eq!(shards.open(open(1)).unwrap(), 0);
        let opened = std::iter::repeat_with(|| shards.poll()).flatten().next();
        assert!(matches!(opened, Some(Event::Opened { leg: LegId(1), .. })), "{opened:?}");
        shards.join();
    }

    /// Goal: events of every shard are heard, and a shard that ended is noticed. Method: two.
    #[test]
    fn every_shard_is_heard() {
        let (mut shards, mut fakes) = Shards::fake(2);
        for (leg, fake) in fakes.iter().enumerate() {
            fake.say(Event::Closed { leg: LegId(leg as u64), stats: Box::new(LegStats::default()) });
        }
        assert_eq!(std::iter::from_fn(|| shards.poll()).count(), 2);
        assert!(!shards.is_broken());
        assert_eq!(shards.status().len(), 2);
        fakes.clear();
        while !shards.is_broken() {
            std::thread::yield_now();
        }
    }
}
