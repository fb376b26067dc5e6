//! Which worker starts, takes calls, drains or ends: decisions only. No process, no socket, no clock.
//!
//! One slot is the one that takes calls, or will again once its worker is back. The other is empty, or
//! holds a successor that has still to prove itself, or drains what is left of an earlier worker.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::control::cli::Slot;
use crate::control::protocol::{Change, ChangeState};

mod rules;
mod state;

pub(super) use rules::Rules;
pub(super) use state::LifeState;

/// A worker must be ready this long after its start; a spool full of an outage's recordings is
/// finished within it.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A worker's self-test takes this long at most.
const PROOF_TIMEOUT: Duration = Duration::from_secs(15);
/// An orderly stop takes this long at most, then the worker is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest pause between two starts of a worker that keeps dying.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// A worker that lived this long did not die of its start.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// A recycle of our own accord that failed is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// What a slot's worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No process and none to come.
    Down,
    /// No process; the next one starts at this instant.
    Due { at: Instant },
    /// Started; must report that it is ready by the deadline.
    Starting { deadline: Instant },
    /// Ready; places its self-test calls.
    Proving { deadline: Instant },
    /// Takes calls.
    Ready,
    /// Keeps its calls and takes no new ones; ends what is left then.
    Draining { until: Instant },
    /// Told to end its calls; killed at the deadline.
    Stopping { deadline: Instant },
    /// Told to die, and not yet dead.
    Killed,
}

/// What the supervisor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Do {
    /// Start a worker in the slot.
    Start(Slot),
    /// Have it place its self-test calls.
    Prove(Slot),
    /// Have it keep its calls, take no new ones, and end within this.
    Retire(Slot, Duration),
    /// Have it end its calls now.
    Stop(Slot),
    /// End it without a last word; why, for a person.
    Kill(Slot, &'static str),
    /// Tell the front who takes calls.
    Front,
    /// Tell that the latest change came to its end.
    Changed,
    /// The worker of another program takes calls: let that program take the supervisor's place too.
    Replace,
}

/// One slot.
#[derive(Debug)]
struct SlotLife {
    phase: Phase,
    started: Instant,
    /// Its last heartbeat.
    heard: Instant,
    restarts: u32,
    backoff: Duration,
    memory_kib: u64,
    calls: u64,
    /// Its calls are to be over by then, and it takes no new ones: so too, if this one dies, the worker
    /// that goes on with them.
    drains: Option<Instant>,
}

/// Both slots.
#[derive(Debug)]
pub(super) struct Life {
    rules: Rules,
    slots: [SlotLife; 2],
    /// The slot that takes calls, or will again.
    taking: Slot,
    /// Deaths of workers that took calls or were to, the latest last.
    crashes: VecDeque<Instant>,
    gave_up: Option<String>,
    change: Option<Change>,
    changes: u64,
    /// The change under way is an upgrade.
    upgrades: bool,
    /// No recycle of our own accord before this.
    retry_at: Option<Instant>,
    stopping: bool,
    outputs: VecDeque<Do>,
}

impl Life {
    /// A node that starts: slot A's worker is due now.
    pub(super) fn new(now: Instant, rules: Rules) -> Self {
        let slot = |phase| SlotLife {
            phase,
            started: now,
            heard: now,
            restarts: 0,
            backoff: Duration::ZERO,
            memory_kib: 0,
            calls: 0,
            drains: None,
        };
        Self {
            rules,
            slots: [slot(Phase::Due { at: now }), slot(Phase::Down)],
            taking: Slot::A,
            crashes: VecDeque::new(),
            gave_up: None,
            change: None,
            changes: 0,
            upgrades: false,
            retry_at: None,
            stopping: false,
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    pub(super) fn phase(&self, slot: Slot) -> Phase {
        self.slots[slot.index()].phase
    }

    pub(super) fn restarts(&self, slot: Slot) -> u32 {
        self.slots[slot.index()].restarts
    }

    /// Since the slot's last heartbeat; `None` where none is to come.
    pub(super) fn silence(&self, now: Instant, slot: Slot) -> Option<Duration> {
        let SlotLife { phase, heard, .. } = &self.slots[slot.index()];
        let beats = matches!(phase, Phase::Proving { .. } | Phase::Ready | Phase::Draining { .. });
        beats.then(|| now.saturating_duration_since(*heard))
    }

    /// The slot that takes calls now.
    pub(super) fn takes(&self) -> Option<Slot> {
        (self.phase(self.taking) == Phase::Ready).then_some(self.taking)
    }

    /// The slot that takes calls, or will again.
    pub(super) fn taking(&self) -> Slot {
        self.taking
    }

    /// Why no worker is started any more.
    pub(super) fn gave_up(&self) -> Option<&str> {
        self.gave_up.as_deref()
    }

    /// The latest change of worker that was asked for or decided.
    pub(super) fn change(&self) -> Option<&Change> {
        self.change.as_ref()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Told to stop, and every worker is gone.
    pub(super) fn is_over(&self) -> bool {
        self.stopping && self.slots.iter().all(|slot| slot.phase == Phase::Down)
    }

    /// The next thing to do.
    pub(super) fn poll(&mut self) -> Option<Do> {
        self.outputs.pop_front()
    }

    fn slot(&mut self, slot: Slot) -> &mut SlotLife {
        &mut self.slots[slot.index()]
    }

    fn set(&mut self, slot: Slot, phase: Phase) {
        self.slot(slot).phase = phase;
    }

    /// A process runs in the slot.
    pub(super) fn handle_started(&mut self, now: Instant, slot: Slot) {
        let own = self.slot(slot);
        (own.started, own.heard, own.memory_kib, own.calls) = (now, now, 0, 0);
        own.phase = Phase::Starting { deadline: now + START_TIMEOUT };
    }

    /// No process could be had: that is no fault of a worker's, and is tried for as long as it takes.
    pub(super) fn handle_start_failed(&mut self, now: Instant, slot: Slot, error: &str) {
        self.slot(slot).started = now;
        if slot == self.taking || self.slot(slot).drains.is_some_and(|until| now < until) {
            let own = self.slot(slot);
            own.backoff = (own.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
            own.phase = Phase::Due { at: now + own.backoff };
        } else {
            self.handle_exited(now, slot, error);
        }
    }

    /// It listens and has its shards.
    pub(super) fn handle_ready(&mut self, now: Instant, slot: Slot) {
        if !matches!(self.phase(slot), Phase::Starting { .. }) {
            return;
        }
        self.slot(slot).heard = now;
        if let Some(until) = self.slot(slot).drains {
            self.set_draining(now, slot, until);
        } else if slot == self.taking {
            // Nobody else takes calls meanwhile: there is nothing to go on with if it failed a test.
            self.take(slot);
        } else {
            self.set(slot, Phase::Proving { deadline: now + PROOF_TIMEOUT });
            self.note(ChangeState::Proving);
            self.outputs.push_back(Do::Prove(slot));
        }
    }

    /// Its self-test calls came to this.
    pub(super) fn handle_proof(&mut self, now: Instant, slot: Slot, proof: Result<(), String>) {
        if !matches!(self.phase(slot), Phase::Proving { .. }) {
            return;
        }
        match proof {
            Ok(()) => {
                let old = std::mem::replace(&mut self.taking, slot);
                let until = now + self.rules.drain_timeout;
                self.take(slot);
                self.set_draining(now, old, until);
            }
            Err(why) => {
                self.fail_change(now, format!("its self-test failed: {why}"));
                self.kill(slot, "did not prove itself");
            }
        }
    }

    /// It lives.
    pub(super) fn handle_heartbeat(&mut self, now: Instant, slot: Slot, calls: u64) {
        let own = self.slot(slot);
        (own.heard, own.calls) = (now, calls);
    }

    /// Its resident memory.
    pub(super) fn handle_memory(&mut self, slot: Slot, memory_kib: u64) {
        self.slot(slot).memory_kib = memory_kib;
    }

    /// One of its threads does not turn: without signalling it is no use at all, without a media shard
    /// it can still finish the calls of the others.
    pub(super) fn handle_stalled(&mut self, now: Instant, slot: Slot, thread: &str, is_signalling: bool) {
        if !matches!(self.phase(slot), Phase::Proving { .. } | Phase::Ready | Phase::Draining { .. }) {
            return;
        }
        if is_signalling || slot != self.taking {
            self.kill(slot, "has a thread that does not turn");
        } else if self.recycle(now, format!("{thread} does not turn")).is_err()
            && matches!(self.phase(slot.other()), Phase::Draining { .. } | Phase::Stopping { .. })
        {
            self.kill(slot, "has a media shard that does not turn, and the other slot is not free");
        }
    }

    /// It could not start; its end follows.
    pub(super) fn handle_failed(&mut self, now: Instant, slot: Slot, why: &str) {
        if slot != self.taking {
            self.fail_change(now, why.to_owned());
        }
    }

    /// It has ended its last call and is about to exit: nobody has to go on for it.
    pub(super) fn handle_over(&mut self, slot: Slot) {
        self.slot(slot).drains = None;
    }

    /// Its end is no surprise.
    pub(super) fn is_leaving(&self, slot: Slot) -> bool {
        let own = &self.slots[slot.index()];
        let drained = matches!(own.phase, Phase::Draining { .. }) && own.drains.is_none();
        self.stopping || drained || matches!(own.phase, Phase::Stopping { .. })
    }

    /// Its process is gone.
    pub(super) fn handle_exited(&mut self, now: Instant, slot: Slot, how: &str) {
        let phase = std::mem::replace(&mut self.slot(slot).phase, Phase::Down);
        if self.stopping {
            return;
        }
        if slot != self.taking {
            match self.slot(slot).drains {
                Some(until) if now < until => self.crash(now, slot),
                Some(_) => self.slot(slot).drains = None,
                None if matches!(
                    phase,
                    Phase::Starting { .. } | Phase::Proving { .. } | Phase::Due { .. }
                ) =>
                {
                    self.fail_change(now, format!("it ended: {how}"));
                }
                None => {}
            }
            return;
        }
        self.outputs.push_back(Do::Front);
        let other = slot.other();
        let has_successor = self.slot(other).drains.is_none()
            && matches!(self.phase(other), Phase::Starting { .. } | Phase::Proving { .. });
        if has_successor {
            // It is on its way; no time for tests now. The dead one's calls go on where they were.
            self.taking = other;
            self.slot(slot).drains = Some(now + self.rules.drain_timeout);
            if matches!(self.phase(other), Phase::Proving { .. }) {
                self.take(other);
            }
        }
        self.crash(now, slot);
    }

    fn crash(&mut self, now: Instant, slot: Slot) {
        self.slot(slot).restarts += 1;
        self.crashes.push_back(now);
        self.restart(now, slot);
    }

    fn set_draining(&mut self, now: Instant, slot: Slot, until: Instant) {
        self.slot(slot).drains = Some(until);
        self.set(slot, Phase::Draining { until });
        self.outputs.push_back(Do::Retire(slot, until.saturating_duration_since(now)));
    }

    /// After a pause that grows, unless it died too often.
    fn restart(&mut self, now: Instant, slot: Slot) {
        let Rules { crashes_max, crash_window, .. } = self.rules;
        while self.crashes.front().is_some_and(|at| *at + crash_window < now) {
            self.crashes.pop_front();
        }
        if self.crashes.len() >= crashes_max && slot != self.taking {
            // What calls it had are lost; the other one must not be.
            self.slot(slot).drains = None;
            return;
        }
        if self.crashes.len() >= crashes_max {
            let (times, seconds) = (self.crashes.len(), crash_window.as_secs());
            self.gave_up = Some(format!(
                "gave up: worker died {times} times in {seconds} s; `voxring recycle` tries again"
            ));
            self.fail_change(now, "it keeps dying".into());
            return;
        }
        // Its calls wait.
        let is_first = self.crashes.len() == 1;
        let own = self.slot(slot);
        let is_stable = now.saturating_duration_since(own.started) >= STABLE_AFTER;
        own.backoff = if is_stable || is_first {
            Duration::ZERO
        } else {
            (own.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX)
        };
        own.phase = Phase::Due { at: now + own.backoff };
    }

    /// When a worker that died is started again; `None`: it is not, or runs.
    pub(super) fn restart_in(&self, slot: Slot) -> Option<Duration> {
        let own = &self.slots[slot.index()];
        matches!(own.phase, Phase::Due { .. }).then_some(own.backoff)
    }

    /// Puts a new worker in the place of the one that takes calls; gives the change's number.
    ///
    /// # Errors
    /// Why not now, for a person.
    pub(super) fn recycle(&mut self, now: Instant, why: String) -> Result<u64, String> {
        self.is_free()?;
        let (taking, other) = (self.taking, self.taking.other());
        match (self.phase(taking), self.phase(other)) {
            (Phase::Ready, Phase::Down) => {
                self.begin(why);
                self.set(other, Phase::Due { at: now });
                self.start_due(now);
            }
            (Phase::Ready, _) => return Err(self.other_is_busy(now)),
            (Phase::Down | Phase::Due { .. }, _) => {
                self.crashes.clear();
                self.gave_up = None;
                self.begin(why);
                self.slot(taking).backoff = Duration::ZERO;
                self.set(taking, Phase::Due { at: now });
                self.start_due(now);
            }
            (_, _) => return Err("the worker is starting".into()),
        }
        Ok(self.changes)
    }

    /// The same for an upgrade, whose program is to be looked at first: [`Self::upgrade`] goes on with it.
    ///
    /// # Errors
    /// Why not now, for a person.
    pub(super) fn prepare_upgrade(&mut self, now: Instant, why: String) -> Result<u64, String> {
        self.is_free()?;
        match (self.phase(self.taking), self.phase(self.taking.other())) {
            (Phase::Ready, Phase::Down) => {}
            (Phase::Ready, _) => return Err(self.other_is_busy(now)),
            (_, _) => return Err("no worker takes calls; only `voxring recycle` helps".into()),
        }
        self.begin(why);
        self.upgrades = true;
        self.note(ChangeState::Checking);
        Ok(self.changes)
    }

    /// The new program was looked at.
    pub(super) fn upgrade(&mut self, now: Instant, checked: Result<(), String>) {
        let other = self.taking.other();
        match checked {
            Err(why) => self.fail_change(now, why),
            Ok(()) if self.takes().is_none() || self.phase(other) != Phase::Down => {
                self.fail_change(now, "the worker that takes calls ended meanwhile".into());
            }
            Ok(()) => {
                self.note(ChangeState::Starting);
                self.set(other, Phase::Due { at: now });
                self.start_due(now);
            }
        }
    }

    fn is_free(&self) -> Result<(), String> {
        if self.stopping {
            return Err("the node is stopping".into());
        }
        match &self.change {
            Some(change) if !change.state.is_over() => Err(format!("a change is under way: {}", change.why)),
            Some(_) | None => Ok(()),
        }
    }

    fn other_is_busy(&self, now: Instant) -> String {
        let other = self.taking.other();
        match self.phase(other) {
            Phase::Draining { until } => {
                let left = until.saturating_duration_since(now).as_secs();
                format!("slot {} still drains, for {left} s at most", other.name())
            }
            _ => format!("slot {} is not free", other.name()),
        }
    }

    /// Ends the node: running calls get `node.stop_timeout_s`, asked again nothing, a third time no
    /// word at all.
    pub(super) fn stop(&mut self, now: Instant) {
        let is_first = !std::mem::replace(&mut self.stopping, true);
        for slot in Slot::BOTH {
            match self.phase(slot) {
                Phase::Down | Phase::Killed => {}
                Phase::Due { .. } => self.set(slot, Phase::Down),
                Phase::Ready | Phase::Draining { .. } if is_first && !self.rules.stop_timeout.is_zero() => {
                    let latest = now + self.rules.stop_timeout;
                    let until = match self.phase(slot) {
                        Phase::Draining { until } => until.min(latest),
                        _ => latest,
                    };
                    self.set_draining(now, slot, until);
                }
                Phase::Stopping { .. } => self.kill(slot, "is to stop at once"),
                Phase::Starting { .. } | Phase::Proving { .. } | Phase::Ready | Phase::Draining { .. } => {
                    self.set(slot, Phase::Stopping { deadline: now + STOP_TIMEOUT });
                    self.outputs.push_back(Do::Stop(slot));
                }
            }
        }
        self.outputs.push_back(Do::Front);
    }

    /// Runs what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.start_due(now);
        for slot in Slot::BOTH {
            if let Some(why) = self.overdue(now, slot) {
                if slot != self.taking {
                    self.fail_change(now, format!("it {why}"));
                }
                self.kill(slot, why);
            }
        }
        if let Some(why) = self.reason(now)
            && let Err(error) = self.recycle(now, why)
        {
            tracing::debug!(error, "no recycle");
        }
    }

    /// A worker in this slot goes on with what a dead one has left: nobody else will.
    pub(super) fn has_heir(&self, slot: Slot) -> bool {
        matches!(self.phase(slot), Phase::Due { .. } | Phase::Starting { .. })
    }

    fn start_due(&mut self, now: Instant) {
        for slot in Slot::BOTH {
            if matches!(self.phase(slot), Phase::Due { at } if at <= now) {
                // Until it is told that one runs, or that none does.
                self.set(slot, Phase::Starting { deadline: now + START_TIMEOUT });
                self.outputs.push_back(Do::Start(slot));
            }
        }
    }

    /// Gives every worker more time: the supervisor itself did not run, and what workers said meanwhile
    /// is still unread. A restart that is due stays due.
    pub(super) fn postpone(&mut self, by: Duration) {
        for own in &mut self.slots {
            own.heard += by;
            match &mut own.phase {
                Phase::Starting { deadline } | Phase::Proving { deadline } | Phase::Stopping { deadline } => {
                    *deadline += by;
                }
                Phase::Draining { until } => *until += by,
                Phase::Down | Phase::Due { .. } | Phase::Ready | Phase::Killed => {}
            }
        }
    }

    fn take(&mut self, slot: Slot) {
        self.set(slot, Phase::Ready);
        self.outputs.push_back(Do::Front);
        self.retry_at = None;
        if std::mem::take(&mut self.upgrades) {
            self.note(ChangeState::Replacing);
            self.outputs.push_back(Do::Replace);
        } else {
            self.note(ChangeState::Done);
        }
    }

    fn kill(&mut self, slot: Slot, why: &'static str) {
        self.set(slot, Phase::Killed);
        self.outputs.push_back(Do::Kill(slot, why));
    }

    fn begin(&mut self, why: String) {
        self.changes += 1;
        self.change = Some(Change { number: self.changes, why, state: ChangeState::Starting, error: None });
    }

    /// How far the change under way is.
    fn note(&mut self, state: ChangeState) {
        let Some(change) = self.change.as_mut().filter(|change| !change.state.is_over()) else { return };
        change.state = state;
        if state.is_over() {
            self.outputs.push_back(Do::Changed);
        }
    }

    /// The change under way comes to nothing; why, for a person.
    pub(super) fn fail_change(&mut self, now: Instant, error: String) {
        if let Some(change) = self.change.as_mut().filter(|change| !change.state.is_over()) {
            change.error = Some(error);
            self.upgrades = false;
            self.retry_at = Some(now + RETRY_AFTER);
            self.note(ChangeState::Failed);
        }
    }
}

#[cfg(test)]
mod tests;
