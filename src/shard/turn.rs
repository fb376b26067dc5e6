//! The media loop. One turn: reap, obey, tick, send, sleep.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use socket2::Socket;

use crate::base::clock;
use crate::base::id::LegId;
use crate::media::leg::Leg;
use crate::media::order::{Adoption, Event, LegPlan, OpenError, Order};
use crate::shard::counters::ShardSnapshot;
use crate::shard::handle::{ShardConfig, Shared};
use crate::shard::hearing::{catch_up, hear, wake};
use crate::shard::keeping::{Keeper, Keeping};
use crate::shard::legs::{HALVES, Legs, Reaper, Tape};
use crate::shard::outbox::Outbox;
use crate::shard::ports::Ports;
use crate::shard::wheel::{Grid, Wheel};
use crate::uring::{MediaIo, bind_pair, thread};

/// Orders obeyed in one turn; opening a leg takes some 30 microseconds.
const ORDERS_PER_TURN: usize = 16;
/// Legs that tell their counters in one turn.
const REPORTS_PER_TURN: usize = 64;
/// Packets sent late to make up for a stall; older ones are left out.
const CATCH_UP_MAX: u32 = 2;
/// How many others come before a leg that is due is brought near: itself, what it points to, and what that
/// points to.
const AHEAD: [usize; 3] = [8, 5, 2];
/// RTCP packets of one leg in one turn.
const RTCP_PER_TURN: usize = 4;
/// Most completions waited for within a tick.
const WANT_MAX: u64 = 256;
/// So many times what a tick brings on average is waited for, so that nearly every sleep lasts to the
/// tick: a wake-up costs as much as a dozen packets, more on a virtual machine. With next to nothing to
/// do each packet is served at once.
const WANT_FACTOR: u64 = 4;
/// Weight of the past in the mean of completions a tick: 7 of 8, kept in 256ths.
const MEAN_SHIFT: u64 = 8;
/// How often counters are published.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
/// How often load and lateness are worked out, and how long an idle shard sleeps at most.
const SECOND: Duration = Duration::from_secs(1);
/// Ticks between turns while nothing is relayed or ordered: prompts and recordings are sent and taken at the
/// same pace with half as many wake-ups.
const PATIENT_TICKS: u64 = 2;
/// How long after a relayed packet more are looked for at every tick.
const RELAYING: Duration = Duration::from_secs(1);
/// How long after an order more are.
const OBEYING: Duration = Duration::from_millis(10);
/// A tick that begins later than this is counted.
const LATE: Duration = Duration::from_millis(2);
/// Worst lateness that is told apart, in microseconds.
const LATE_US_MAX: u64 = 60_000_000;

/// A shard on its thread.
pub(super) struct Shard<I> {
    config: ShardConfig,
    io: I,
    shared: Arc<Shared>,
    legs: Legs,
    ports: Ports,
    keeper: Keeper,
    wheel: Wheel<(u32, LegId)>,
    grid: Grid,
    outbox: Outbox,
    draining: bool,
    /// The handle is gone: leave at this time even if the kernel has not let go.
    stopping: Option<Instant>,
    /// When the last packet was relayed.
    relayed: Option<Instant>,
    /// When the last order was obeyed.
    obeyed: Option<Instant>,
    /// Slept without ticks, so the next one is not late.
    parked: bool,
    closed: Vec<u32>,
    /// Legs that have still to tell their counters.
    to_report: Vec<u32>,
    snapshot: ShardSnapshot,
    lateness: Histogram<u64>,
    /// Completions at the last tick, and their mean per tick in 256ths.
    seen: u64,
    mean: u64,
    publish_at: Instant,
    second_at: Instant,
    second_began: (Instant, Duration),
}

impl<I: MediaIo> Shard<I> {
    /// A shard without legs.
    ///
    /// # Errors
    /// No random numbers.
    pub(super) fn new(
        config: ShardConfig,
        io: I,
        shared: Arc<Shared>,
        keeping: Option<Keeping>,
    ) -> io::Result<Self> {
        let now = clock::now();
        let mut state = u64::from_ne_bytes(random()?) | 1;
        let ports = Ports::new(config.ports, config.quarantine, |n| {
            // Xorshift: guessing the first ports needs more than luck, and no more is at stake.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % n as u64).unwrap_or(0)
        });
        let lateness = Histogram::new_with_bounds(1, LATE_US_MAX, 2).map_err(io::Error::other)?;
        let legs = Legs::new(config.legs_max);
        let outbox = Outbox::new(Arc::clone(&shared.events), Arc::clone(&shared.files));
        Ok(Self {
            config,
            io,
            shared,
            legs,
            ports,
            keeper: Keeper::new(keeping),
            wheel: Wheel::new(),
            grid: Grid::new(now),
            outbox,
            draining: false,
            stopping: None,
            relayed: None,
            obeyed: None,
            parked: true,
            closed: Vec::new(),
            to_report: Vec::new(),
            snapshot: ShardSnapshot::default(),
            lateness,
            seen: 0,
            mean: 0,
            publish_at: now,
            second_at: now + SECOND,
            second_began: (now, thread::cpu_time()),
        })
    }

    /// Runs until drained.
    ///
    /// # Errors
    /// Only a broken ring; the supervisor then restarts the worker.
    pub(super) fn run(&mut self) -> io::Result<()> {
        loop {
            let now = clock::now(); // The turn's only clock read.
            self.turn(now);
            if self.is_finished(now) {
                self.store();
                return Ok(());
            }
            self.sleep(now)?;
        }
    }

    /// All of a turn but its sleep.
    pub(super) fn turn(&mut self, now: Instant) {
        self.reap(now);
        self.take_orders(now);
        self.tick(now);
        self.close_broken(now);
        self.report();
        self.outbox.flush();
        self.keeper.flush();
        self.publish(now);
    }

    /// What the shard stands on.
    pub(super) fn io(&mut self) -> &mut I {
        &mut self.io
    }

    fn reap(&mut self, now: Instant) {
        let Self { legs, outbox, closed, relayed, io, .. } = self;
        io.reap(now, &mut Reaper { now, legs, outbox, closed, relayed });
        while let Some(index) = self.closed.pop() {
            let Some((leg, port, stats)) = self.legs.remove(index) else { continue };
            self.ports.release(now, port);
            self.keeper.release(port);
            self.snapshot.add_media(&stats);
            self.outbox.event(Event::Closed { leg, stats: Box::new(stats) });
        }
    }

    fn take_orders(&mut self, now: Instant) {
        if self.legs.is_empty() {
            // Ticks that passed while the shard slept are nobody's.
            self.wheel.advance(self.grid.tick(now), |_, _, _| None);
        }
        if self.shared.stop.load(Ordering::Relaxed) && self.stopping.is_none() {
            self.stopping = Some(now + SECOND);
            self.draining = true;
            for index in self.legs.indices() {
                self.close(now, index);
            }
        }
        for _ in 0..ORDERS_PER_TURN {
            // Events that must not be lost wait in memory when signalling does not take them: no
            // order that would cause more.
            if self.outbox.events_held() > self.config.legs_max {
                return;
            }
            let Some(order) = self.shared.orders.pop() else { return };
            self.obeyed = Some(now);
            self.obey(now, order);
        }
    }

    fn obey(&mut self, now: Instant, order: Order) {
        match order {
            Order::Open(id, plan) => {
                if let Err(error) = self.open(now, id, *plan) {
                    self.snapshot.legs_refused += 1;
                    self.outbox.event(Event::OpenFailed { leg: id, error });
                }
            }
            Order::Adopt(id, mut adoption) => {
                let peer = adoption.peer.take();
                self.adopt(now, id, *adoption);
                if let Some((peer, adoption)) = peer {
                    self.adopt(now, peer, *adoption);
                    self.bridge(now, id, peer);
                }
            }
            Order::Update(id, plan) => {
                self.with(now, id, |leg| leg.update(now, *plan));
                self.changed(now, id);
            }
            Order::Mode(id, mode) => {
                if let Some(index) = self.legs.find(id) {
                    self.legs.part(&mut self.outbox, index);
                }
                self.with(now, id, |leg| leg.set_mode(mode));
                self.changed(now, id);
            }
            Order::Bridge(one, other) => self.bridge(now, one, other),
            Order::Play(id, play, list) => {
                self.with(now, id, |leg| leg.play(play, list));
                self.changed(now, id);
            }
            Order::StopPlay(id) => {
                self.with(now, id, Leg::stop_play);
                self.changed(now, id);
            }
            Order::Record(id, plan) => {
                self.with(now, id, |leg| leg.record(now, plan));
                self.changed(now, id);
            }
            Order::StopRecord(id) => {
                self.with(now, id, |leg| leg.stop_record(now));
                self.changed(now, id);
            }
            Order::Close(id) => match self.legs.find(id) {
                Some(index) => self.close(now, index),
                None => self.snapshot.orders_unknown += 1,
            },
            // One that comes while they are being told is answered with them.
            Order::Report if self.to_report.is_empty() => self.to_report = self.legs.indices(),
            Order::Report => {}
            Order::Drain => self.draining = true,
        }
    }

    fn with(&mut self, now: Instant, id: LegId, work: impl FnOnce(&mut Leg)) {
        match self.legs.find(id) {
            Some(index) => {
                self.catch_up(now, index);
                self.legs.with(index, &mut self.outbox, work);
            }
            None => self.snapshot.orders_unknown += 1,
        }
    }

    fn bridge(&mut self, now: Instant, one: LegId, other: LegId) {
        let found = self.legs.find(one).zip(self.legs.find(other));
        if let Some((one, other)) = found {
            self.catch_up(now, one);
            self.catch_up(now, other);
        }
        let joined = found.is_some_and(|(one, other)| self.legs.bridge(&mut self.outbox, one, other));
        self.snapshot.orders_unknown += u64::from(!joined);
        self.changed(now, one);
        self.changed(now, other);
    }

    /// A leg does something else from now on: maybe at another pace, and that is noted.
    fn changed(&mut self, now: Instant, id: LegId) {
        let Some(index) = self.legs.find(id) else { return };
        let period = self.legs.with(index, &mut self.outbox, |leg| leg.period_ms());
        if let (Some(period_ms), Some(slot)) = (period, self.legs.slot_mut(index)) {
            slot.phase = self.wheel.change(slot.phase, period_ms);
        }
        if let Some(slot) = self.legs.slot_mut(index).filter(|slot| !slot.may_wait()) {
            wake(&mut self.io, slot, now, index);
        }
        self.legs.mark(now, index, &mut self.outbox, &mut self.keeper);
    }

    /// Hears what came before an order, if it waits.
    fn catch_up(&mut self, now: Instant, index: u32) {
        let Self { legs, outbox, closed, relayed, io, .. } = self;
        catch_up(io, &mut Reaper { now, legs, outbox, closed, relayed }, index);
    }

    fn open(&mut self, now: Instant, id: LegId, plan: LegPlan) -> Result<(), OpenError> {
        self.may_enter(id)?;
        let random: [u8; 10] = random().map_err(|error| refused(&error))?;
        let address = plan.address;
        let (port, (rtp, rtcp)) = self.ports.allocate(now, |port| bind_pair(address, port))?;
        self.keeper.keep(port, &rtp, &rtcp);
        self.enter(now, id, (port, rtp, rtcp), Leg::new(now, clock::calendar(), id, plan, random.into()));
        Ok(())
    }

    fn adopt(&mut self, now: Instant, id: LegId, adoption: Adoption) {
        if let Err(error) = self.try_adopt(now, id, adoption) {
            self.snapshot.legs_refused += 1;
            self.outbox.event(Event::OpenFailed { leg: id, error });
        }
    }

    /// Goes on with a leg of a process that died, where that had it.
    fn try_adopt(&mut self, now: Instant, id: LegId, adoption: Adoption) -> Result<(), OpenError> {
        self.may_enter(id)?;
        let port = adoption.rtp_port;
        if !self.ports.claim(port) {
            return Err(OpenError::NoPort);
        }
        match self.keeper.take(adoption.plan.address, port) {
            Ok((rtp, rtcp)) => {
                let tape = Tape::resume(&adoption);
                let leg = Leg::resume(now, clock::calendar(), id, adoption);
                let index = self.enter(now, id, (port, rtp, rtcp), leg);
                self.legs.resume_tape(index, tape);
                Ok(())
            }
            Err(error) => {
                self.ports.release(now, port);
                Err(refused(&error))
            }
        }
    }

    fn may_enter(&self, id: LegId) -> Result<(), OpenError> {
        if self.draining {
            return Err(OpenError::Draining);
        }
        if self.legs.find(id).is_some() {
            return Err(OpenError::Socket(libc::EEXIST));
        }
        if self.legs.len() >= self.config.legs_max { Err(OpenError::NoPort) } else { Ok(()) }
    }

    fn enter(&mut self, now: Instant, id: LegId, (port, rtp, rtcp): (u16, Socket, Socket), leg: Leg) -> u32 {
        let index = self.legs.next_slot();
        let phase = self.wheel.enter((index, id), leg.period_ms());
        self.io.open(index * HALVES, rtp);
        self.io.open(index * HALVES + 1, rtcp);
        self.legs.insert(now, id, port, phase, leg);
        self.legs.mark(now, index, &mut self.outbox, &mut self.keeper);
        self.snapshot.legs_opened += 1;
        self.outbox.event(Event::Opened { leg: id, rtp_port: port });
        index
    }

    /// Says BYE, cancels both receives; `Closed` follows when the kernel let go.
    fn close(&mut self, now: Instant, index: u32) {
        self.catch_up(now, index);
        self.legs.with(index, &mut self.outbox, |leg| leg.close(now));
        self.send_rtcp(now, index);
        self.legs.part(&mut self.outbox, index);
        if !self.legs.begin_closing(index) {
            return;
        }
        if let Some(slot) = self.legs.slot_mut(index) {
            self.wheel.leave(slot.phase);
        }
        self.io.close(index * HALVES);
        self.io.close(index * HALVES + 1);
    }

    /// Tells counters of some legs, and of others in later turns: packets do not wait for it.
    fn report(&mut self) {
        let rest = self.to_report.len().saturating_sub(REPORTS_PER_TURN);
        for index in self.to_report.split_off(rest) {
            let Some(leg) = self.legs.slot_mut(index).map(|slot| slot.id) else { continue };
            if let Some(stats) = self.legs.with(index, &mut self.outbox, |leg| leg.stats()) {
                self.outbox.event(Event::Report { leg, stats: Box::new(stats) });
            }
        }
    }

    fn close_broken(&mut self, now: Instant) {
        for index in self.legs.take_broken() {
            self.close(now, index);
        }
    }

    /// Serves the legs that are due.
    fn tick(&mut self, now: Instant) {
        let (due, awaited) = (self.wheel.next(), self.awaited_tick(now));
        if self.grid.tick(now) < awaited {
            return;
        }
        let tick = self.served_tick(now);
        if !self.parked && !self.legs.is_empty() {
            let late = now.saturating_duration_since(self.grid.at(awaited));
            let late_us = u64::try_from(late.as_micros()).unwrap_or(LATE_US_MAX);
            self.lateness.saturating_record(late_us.max(1));
            self.snapshot.late_ticks += u64::from(late > LATE);
        }
        self.parked = false;
        let Self { wheel, legs, io, outbox, snapshot, keeper, closed, relayed, .. } = self;
        wheel.advance(tick, |(index, id), missed, after| {
            for (depth, others) in AHEAD.into_iter().enumerate() {
                if let Some((soon, _)) = after.get(others) {
                    legs.prefetch_turn(now, soon, depth);
                }
            }
            if !legs.holds(index, id) {
                return None;
            }
            let heard = hear(io, &mut Reaper { now, legs, outbox, closed, relayed }, index);
            let late = missed.min(CATCH_UP_MAX);
            snapshot.skipped_packets += u64::from(missed - late);
            let period = legs.with(index, outbox, |leg| {
                if heard {
                    leg.handle_timeout(now);
                }
                leg.skip_packets(missed - late);
                for _ in 0..=late {
                    send(io, index * HALVES, leg, |leg, out| leg.poll_rtp(now, out));
                }
                rtcp(io, leg, now, index);
                leg.period_ms()
            });
            if keeper.is_on() && legs.is_mark_due(now, index) {
                legs.mark(now, index, outbox, keeper);
            }
            period
        });
        let seen = self.io.counters().completions;
        let ticks = tick - due + 1;
        let arrived = (seen - self.seen) / ticks;
        self.seen = seen;
        self.mean = (self.mean * 7 + (arrived << MEAN_SHIFT)) / 8;
    }

    /// Ticks from one turn to the next. Legs of an odd number of ticks a packet would be due in between.
    fn stride(&self, now: Instant) -> u64 {
        let within =
            |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) < span);
        let is_busy = within(self.relayed, RELAYING) || within(self.obeyed, OBEYING);
        if is_busy || self.wheel.has_odd_periods() { 1 } else { PATIENT_TICKS }
    }

    /// The last tick up to which legs are served.
    fn served_tick(&self, now: Instant) -> u64 {
        let stride = self.stride(now);
        self.grid.tick(now) / stride * stride
    }

    /// The tick at which the next turn serves legs.
    fn awaited_tick(&self, now: Instant) -> u64 {
        self.wheel.next().next_multiple_of(self.stride(now))
    }

    fn send_rtcp(&mut self, now: Instant, index: u32) {
        let Self { legs, io, outbox, .. } = self;
        legs.with(index, outbox, |leg| rtcp(io, leg, now, index));
    }

    fn is_finished(&self, now: Instant) -> bool {
        match self.stopping {
            Some(latest) => self.legs.is_empty() || now >= latest,
            None => self.draining && self.legs.is_empty() && self.outbox.is_empty(),
        }
    }

    /// Sleeps to the next tick, or for long if there is nothing at all to do.
    pub(super) fn sleep(&mut self, now: Instant) -> io::Result<()> {
        if !self.legs.is_empty() || !self.outbox.is_empty() {
            let want = ((self.mean * WANT_FACTOR) >> MEAN_SHIFT).clamp(1, WANT_MAX);
            let want = u32::try_from(want).unwrap_or(1);
            return self.io.wait(want, self.grid.at(self.awaited_tick(now)));
        }
        self.parked = true;
        self.mean = 0;
        self.store();
        self.shared.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = self.shared.orders.is_empty() && !self.shared.stop.load(Ordering::Relaxed);
        let slept = if idle { self.io.park(now + SECOND) } else { Ok(()) };
        self.shared.parked.store(false, Ordering::Relaxed);
        slept
    }

    fn publish(&mut self, now: Instant) {
        self.snapshot.turns += 1;
        if now >= self.second_at {
            self.second_at = now + SECOND;
            self.measure(now);
        }
        if now >= self.publish_at {
            self.publish_at = now + PUBLISH_INTERVAL;
            self.store();
        }
    }

    /// Works out load and lateness, once a second.
    fn measure(&mut self, now: Instant) {
        let cpu = thread::cpu_time();
        let (began, cpu_then) = std::mem::replace(&mut self.second_began, (now, cpu));
        let wall_us = now.saturating_duration_since(began).as_micros().max(1);
        let busy_us = cpu.saturating_sub(cpu_then).as_micros();
        let snapshot = &mut self.snapshot;
        snapshot.load_permille = u64::try_from(busy_us * 1000 / wall_us).unwrap_or(u64::MAX);
        snapshot.tick_late_us_p50 = self.lateness.value_at_quantile(0.5);
        snapshot.tick_late_us_p99 = self.lateness.value_at_quantile(0.99);
        snapshot.tick_late_us_p999 = self.lateness.value_at_quantile(0.999);
        snapshot.tick_late_us_max = self.lateness.max();
    }

    fn store(&mut self) {
        let io = self.io.counters();
        let snapshot = &mut self.snapshot;
        snapshot.legs = self.legs.len() as u64;
        snapshot.legs_panicked = self.legs.panicked;
        snapshot.pairs_free = self.ports.free() as u64;
        snapshot.pairs_resting = self.ports.resting() as u64;
        snapshot.enters = io.enters;
        snapshot.completions = io.completions;
        snapshot.rx_datagrams = io.received;
        snapshot.tx_datagrams = io.sent;
        snapshot.send_errors = io.send_errors;
        snapshot.enobufs = io.enobufs;
        snapshot.rearms_empty = io.rearms_empty;
        snapshot.rearms_error = io.rearms_error;
        snapshot.rearms_other = io.rearms_other;
        snapshot.overflows = io.overflows;
        snapshot.stale_completions = io.stale;
        snapshot.unknown_completions = io.unknown;
        snapshot.oversize_datagrams = io.oversize;
        snapshot.legs_unkept = self.keeper.unkept;
        snapshot.events_dropped = self.outbox.dropped;
        snapshot.gap_samples = self.outbox.gap_samples;
        self.shared.published.store(snapshot);
    }
}

/// Sends one packet of `leg`, if it has one.
fn send<I: MediaIo>(
    io: &mut I,
    stream: u32,
    leg: &mut Leg,
    poll: impl Fn(&mut Leg, &mut [u8]) -> Option<(usize, SocketAddr)>,
) -> bool {
    let mut made = false;
    let queued = io.send(stream, &mut |out| {
        let packet = poll(leg, out);
        made = packet.is_some();
        packet
    });
    if made && !queued {
        leg.handle_send_error();
    }
    queued
}

/// Sends the RTCP that is due on the leg's odd port.
fn rtcp<I: MediaIo>(io: &mut I, leg: &mut Leg, now: Instant, index: u32) {
    for _ in 0..RTCP_PER_TURN {
        let due = leg.is_rtcp_due(now);
        if !due || !send(io, index * HALVES + 1, leg, |leg, out| leg.poll_rtcp(now, out)) {
            return;
        }
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

fn refused(error: &io::Error) -> OpenError {
    OpenError::Socket(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests;
