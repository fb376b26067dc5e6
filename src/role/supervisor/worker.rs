//! The slot's worker as the supervisor keeps it, and what gone ones have counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::control::cli::Slot;
use crate::control::protocol::{ListenerStatus, WorkerState, WorkerStatus};
use crate::role::front::HopPorts;
use crate::role::link::Heartbeat;
use crate::role::process::Process;

/// What the slot's worker is at.
#[derive(Debug)]
pub(super) enum WorkerPhase {
    /// Started; must report `Ready` by the deadline.
    Starting { deadline: Instant },
    /// Takes calls; must send the next heartbeat by the deadline.
    Ready { heartbeat_at: Instant },
    /// Told to stop; killed at the deadline.
    Stopping { deadline: Instant },
    /// No process; the next one starts at this instant.
    Down { retry_at: Instant },
}

impl WorkerPhase {
    /// Gives the worker more time; a restart that is due stays due.
    pub(super) fn postpone(&mut self, by: Duration) {
        match self {
            Self::Starting { deadline: at }
            | Self::Ready { heartbeat_at: at }
            | Self::Stopping { deadline: at } => {
                *at += by;
            }
            Self::Down { .. } => {}
        }
    }
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) slot: Slot,
    pub(super) process: Option<Process>,
    pub(super) phase: WorkerPhase,
    pub(super) generation: u64,
    pub(super) restarts: u32,
    pub(super) backoff: Duration,
    pub(super) listeners: Vec<ListenerStatus>,
    /// Of the running process.
    pub(super) counters: Heartbeat,
}

/// Sums over the processes that are gone.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) calls: u64,
    pub(super) refused: BTreeMap<String, u64>,
}

impl Worker {
    /// One that is to be started now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slot: Slot::A,
            process: None,
            phase: WorkerPhase::Down { retry_at: now },
            generation: 0,
            restarts: 0,
            backoff: Duration::ZERO,
            listeners: Vec::new(),
            counters: Heartbeat::default(),
        }
    }

    /// Where it takes calls.
    pub(super) fn ports(&self) -> HopPorts {
        HopPorts::of_listeners(self.listeners.iter().map(|l| (l.transport, l.address)))
    }

    /// `takes_calls`: the front knows of it.
    pub(super) fn status(&self, takes_calls: bool) -> WorkerStatus {
        let now = clock::now();
        let (state, heartbeat_at) = match self.phase {
            WorkerPhase::Starting { .. } => (WorkerState::Starting, None),
            WorkerPhase::Ready { heartbeat_at } if takes_calls => (WorkerState::Ready, Some(heartbeat_at)),
            WorkerPhase::Ready { heartbeat_at } => (WorkerState::Starting, Some(heartbeat_at)),
            WorkerPhase::Stopping { .. } => (WorkerState::Draining, None),
            WorkerPhase::Down { .. } => (WorkerState::Down, None),
        };
        WorkerStatus {
            slot: self.slot.name().to_owned(),
            pid: self.process.as_ref().map(|process| process.pid),
            state,
            uptime_s: self.process.as_ref().map_or(0, |process| (now - process.started).as_secs()),
            restarts: self.restarts,
            heartbeat_age_ms: heartbeat_at
                .map(|at| u64::try_from((now - at).as_millis()).unwrap_or(u64::MAX)),
            calls_active: self.counters.calls_active,
            counters: self.counters.counters.clone(),
            shards: self.counters.shards.clone(),
        }
    }
}

impl Totals {
    pub(super) fn add(&mut self, gone: &Heartbeat) {
        self.calls += gone.calls_total;
        for (reason, count) in &gone.refused_total {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a supervisor that was stopped for a while does not kill a worker whose heartbeats it
    /// could not read; a restart that is due is not put off. Method: postpone each phase's instant.
    #[test]
    fn a_pause_of_the_supervisor_is_not_the_workers_silence() {
        let now = clock::now();
        let pause = Duration::from_secs(6);
        let at = |phase: &WorkerPhase| match phase {
            WorkerPhase::Starting { deadline: at }
            | WorkerPhase::Ready { heartbeat_at: at }
            | WorkerPhase::Stopping { deadline: at }
            | WorkerPhase::Down { retry_at: at } => *at,
        };
        for (mut phase, later) in [
            (WorkerPhase::Starting { deadline: now }, pause),
            (WorkerPhase::Ready { heartbeat_at: now }, pause),
            (WorkerPhase::Stopping { deadline: now }, pause),
            (WorkerPhase::Down { retry_at: now }, Duration::ZERO),
        ] {
            phase.postpone(pause);
            assert_eq!(at(&phase), now + later, "{phase:?}");
        }
    }
}
