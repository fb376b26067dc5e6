//! What `life` decides, done; what workers and operators say, passed on to it.

use std::time::{Duration, Instant};

use super::life::Do;
use super::{ServeError, Supervisor};
use crate::base::clock;
use crate::control::cli::Slot;
use crate::control::protocol::{Change, ChangeState, ErrorKind, ListenerStatus, Reply, ShardStatus};
use crate::role::front::FrontOrder;
use crate::role::legacy::Legacy;
use crate::role::link::{FromWorker, Heartbeat, Stall, ToWorker};
use crate::role::process::{Process, ProcessEvent, ProcessEventKind};
use crate::role::worker::watchdog::SIGNALLING;

impl Supervisor {
    /// Does everything `life` wants. True: the supervisor's own program is to be replaced.
    ///
    /// # Errors
    /// No process for the node's first worker.
    pub(super) fn act(&mut self) -> Result<bool, ServeError> {
        let mut replaces = false;
        while let Some(wanted) = self.life.poll() {
            match wanted {
                Do::Start(slot) => self.start_worker(clock::now(), slot)?,
                Do::Prove(slot) => self.order(slot, ToWorker::Prove),
                Do::Retire(slot, within) => self.retire(slot, within),
                Do::Stop(slot) => self.order(slot, ToWorker::Stop),
                Do::Kill(slot, why) => self.kill(slot, why),
                Do::Front => self.tell_front(),
                Do::Changed => self.tell_change(),
                Do::Replace => replaces = true,
            }
        }
        Ok(replaces)
    }

    fn order(&self, slot: Slot, order: ToWorker) {
        if let Some(process) = &self.workers[slot.index()].process {
            process.send(order);
        }
    }

    /// Every worker gets it.
    pub(super) fn order_all(&self, order: &ToWorker) {
        for slot in Slot::BOTH {
            self.order(slot, order.clone());
        }
    }

    fn start_worker(&mut self, now: Instant, slot: Slot) -> Result<(), ServeError> {
        self.generations += 1;
        let which = (slot, self.generations);
        let legacy = self.legacy(slot);
        let (config, secret) = (&self.config, &self.hop_secret);
        match Process::spawn(now, which, self.program.as_deref(), legacy, config, secret, &self.events) {
            Ok(process) => {
                tracing::info!(slot = slot.name(), pid = process.pid, "worker started");
                self.workers[slot.index()].process = Some(process);
                self.life.handle_started(now, slot);
            }
            // The machine may have processes or memory again in a moment; the front refuses calls.
            Err(error) if self.was_ready => {
                tracing::error!(slot = slot.name(), %error, "the worker could not be started");
                self.life.handle_start_failed(now, slot, &error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// What the slot's next worker inherits.
    fn legacy(&mut self, slot: Slot) -> Option<Legacy> {
        let vault = &mut self.workers[slot.index()].vault;
        // Without ports it cannot start, and says so itself.
        let opened = vault.open(slot.rtp_ports(&self.config)?, self.config.calls.calls_max as usize);
        if let Err(error) = &opened {
            tracing::error!(slot = slot.name(), %error, "calls would not outlast their worker");
            // What nobody takes over must not stand in the way.
            vault.clear();
        }
        opened.ok()
    }

    fn retire(&mut self, slot: Slot, within: Duration) {
        let successor = self.life.takes().filter(|takes| *takes != slot);
        let successor = successor.map(|takes| self.workers[takes.index()].listeners.clone());
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.order(slot, ToWorker::Retire { successor: successor.unwrap_or_default(), within_ms });
    }

    fn kill(&self, slot: Slot, why: &str) {
        let Some(process) = &self.workers[slot.index()].process else { return };
        tracing::error!(slot = slot.name(), pid = process.pid, "the worker {why}; it is killed");
        process.kill();
    }

    /// Tells the front where new calls go.
    pub(super) fn tell_front(&self) {
        let takes = self.life.takes();
        self.front.send(FrontOrder::Worker(takes.map(|slot| self.workers[slot.index()].ports())));
        if let Some(slot) = takes.filter(|_| self.was_ready) {
            tracing::info!(slot = slot.name(), "the worker takes calls");
        }
    }

    fn tell_change(&mut self) {
        self.program = None;
        let Some(change) = self.life.change() else { return };
        match (change.state, &change.error) {
            (ChangeState::Failed, error) => {
                let error = error.as_deref().unwrap_or_default();
                tracing::error!(why = change.why, error, "no change of worker: the old one goes on");
            }
            _ => tracing::info!(why = change.why, "the worker has changed"),
        }
    }

    pub(super) fn handle_process(&mut self, event: ProcessEvent) -> Result<(), ServeError> {
        let is_of = |process: &Process| process.generation == event.generation;
        let owner = self.workers.iter().find(|worker| worker.process.as_ref().is_some_and(is_of));
        let Some(slot) = owner.map(|worker| worker.slot) else { return Ok(()) };
        match event.kind {
            ProcessEventKind::Report(report) => self.handle_report(slot, report),
            ProcessEventKind::Exited(how) => self.worker_exited(slot, &how),
        }
    }

    fn handle_report(&mut self, slot: Slot, report: FromWorker) -> Result<(), ServeError> {
        let now = clock::now();
        match report {
            FromWorker::Ready { version, listeners, shards, recovered } => {
                self.worker_ready(now, slot, version, (listeners, shards, recovered));
            }
            FromWorker::Failed { reason } if !self.was_ready => return Err(ServeError::Worker(reason)),
            FromWorker::Failed { reason } => {
                tracing::error!(slot = slot.name(), %reason, "the worker could not start");
                self.life.handle_failed(now, slot, &reason);
            }
            FromWorker::Heartbeat(counters) => {
                self.life.handle_heartbeat(now, slot, counters.calls_total);
                self.workers[slot.index()].counters = counters;
            }
            FromWorker::Listeners { listeners } => {
                self.workers[slot.index()].listeners = listeners;
                if self.life.takes() == Some(slot) {
                    self.tell_front();
                }
            }
            FromWorker::Proof { error } => {
                match &error {
                    None => tracing::info!(slot = slot.name(), "the worker has proved itself"),
                    Some(error) => {
                        tracing::error!(slot = slot.name(), error, "the worker failed its self-test")
                    }
                }
                self.life.handle_proof(now, slot, error.map_or(Ok(()), Err));
            }
            FromWorker::Stalled(Stall { thread, for_ms, at }) => {
                tracing::error!(slot = slot.name(), thread, for_ms, at, "a loop of the worker does not turn");
                self.life.handle_stalled(now, slot, &thread, thread == SIGNALLING);
            }
            FromWorker::Over => {
                self.workers[slot.index()].is_over = true;
                self.life.handle_over(slot);
            }
            FromWorker::Calls { query, calls } => self.take_calls(slot, query, calls),
        }
        Ok(())
    }

    fn worker_ready(
        &mut self,
        now: Instant,
        slot: Slot,
        version: String,
        (listeners, shards, recovered): (Vec<ListenerStatus>, Vec<ShardStatus>, u64),
    ) {
        let worker = &mut self.workers[slot.index()];
        worker.version = version;
        worker.listeners = listeners;
        worker.counters = Heartbeat { shards, ..Heartbeat::default() };
        if recovered > 0 {
            tracing::info!(recovered, "recordings of an earlier worker were finished");
        }
        if self.draining {
            self.order(slot, ToWorker::Refuse { on: true });
        }
        self.life.handle_ready(now, slot);
    }

    fn worker_exited(&mut self, slot: Slot, how: &str) -> Result<(), ServeError> {
        let is_over = self.workers[slot.index()].is_over;
        let gone = self.workers[slot.index()].clear();
        self.totals.add(&gone);
        for query in self.queries.values_mut() {
            query.missing.retain(|missing| *missing != slot);
        }
        self.answer_queries();
        let is_wanted = self.life.is_leaving(slot);
        let now = clock::now();
        self.life.handle_exited(now, slot, how);
        let vault = &mut self.workers[slot.index()].vault;
        if is_over || !self.life.has_heir(slot) {
            vault.clear();
        } else {
            vault.collect();
            tracing::info!(slot = slot.name(), legs = vault.legs(), "the next worker goes on with its calls");
            // Callers hear nothing meanwhile.
            self.life.handle_timeout(now);
        }
        if is_wanted {
            tracing::info!(slot = slot.name(), how, calls = gone.calls_total, "the worker has ended");
            return Ok(());
        }
        if !self.was_ready && !self.life.is_stopping() {
            return Err(ServeError::Worker(how.to_owned()));
        }
        match (self.life.restart_in(slot), self.life.gave_up()) {
            (Some(restart_in), _) => {
                tracing::error!(slot = slot.name(), how, ?restart_in, "the worker is gone");
            }
            (None, Some(gave_up)) => {
                tracing::error!(slot = slot.name(), how, "the worker is gone; {gave_up}")
            }
            (None, None) => tracing::error!(slot = slot.name(), how, "the worker is gone"),
        }
        Ok(())
    }

    /// `voxring recycle`.
    pub(super) fn recycle(&mut self) -> Reply {
        let begun = self.life.recycle(clock::now(), "voxring recycle".to_owned());
        self.reply_change(begun)
    }

    pub(super) fn reply_change(&self, begun: Result<u64, String>) -> Reply {
        match (begun, self.life.change()) {
            (Ok(_), Some(change)) => Reply::Change(change.clone()),
            (Ok(_), None) => Reply::error(ErrorKind::Failed, "nothing was begun"),
            (Err(why), _) => Reply::error(ErrorKind::Unavailable, why),
        }
    }

    /// How far a change is.
    pub(super) fn change(&self, number: u64) -> Reply {
        match self.life.change().filter(|change| change.number == number) {
            // Whoever asked for it may then rely on it.
            Some(change) if change.state == ChangeState::Done && self.takes_calls().is_none() => {
                Reply::Change(Change { state: ChangeState::Switching, ..change.clone() })
            }
            Some(change) => Reply::Change(change.clone()),
            None => Reply::error(ErrorKind::NotFound, "there was another change of worker since"),
        }
    }

    /// `voxring drain`.
    pub(super) fn drain(&mut self, on: bool) -> Reply {
        if on != self.draining {
            tracing::info!(on, "drain: new calls are {}", if on { "refused" } else { "taken" });
        }
        self.draining = on;
        self.front.drain(on);
        self.order_all(&ToWorker::Refuse { on });
        let calls = self.workers.iter().map(|worker| worker.counters.calls_active).sum();
        Reply::Drain { on, calls }
    }
}
