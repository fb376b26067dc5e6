//! A slot's worker as the supervisor keeps it, and what gone ones have counted.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::life::{Life, Phase};
use super::vault::Vault;
use crate::control::cli::Slot;
use crate::control::protocol::{ListenerStatus, WorkerState, WorkerStatus};
use crate::role::front::HopPorts;
use crate::role::link::Heartbeat;
use crate::role::process::Process;

/// One slot.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) slot: Slot,
    pub(super) process: Option<Process>,
    pub(super) listeners: Vec<ListenerStatus>,
    /// Its program's.
    pub(super) version: String,
    pub(super) memory_kib: u64,
    /// Of the running process.
    pub(super) counters: Heartbeat,
    /// It has said that its calls are over.
    pub(super) is_over: bool,
    /// What outlasts the process.
    pub(super) vault: Vault,
}

/// Sums over the processes that are gone.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Totals {
    pub(super) calls: u64,
    pub(super) refused: BTreeMap<String, u64>,
}

impl Worker {
    pub(super) fn new(slot: Slot) -> Self {
        Self {
            slot,
            process: None,
            listeners: Vec::new(),
            version: String::new(),
            memory_kib: 0,
            counters: Heartbeat::default(),
            is_over: false,
            vault: Vault::default(),
        }
    }

    /// Nothing is known of a process that is gone, but what it left.
    pub(super) fn clear(&mut self) -> Heartbeat {
        let mut gone = std::mem::replace(self, Self::new(self.slot));
        self.vault = std::mem::take(&mut gone.vault);
        gone.counters
    }

    /// Where it takes calls.
    pub(super) fn ports(&self) -> HopPorts {
        HopPorts::of_listeners(self.listeners.iter().map(|l| (l.transport, l.address)))
    }

    /// Looks how much memory it has.
    pub(super) fn measure(&mut self) -> u64 {
        let pid = self.process.as_ref().map(|process| process.pid);
        let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let line = status.as_deref().and_then(|s| s.lines().find_map(|line| line.strip_prefix("VmRSS:")));
        let value = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        self.memory_kib = value.unwrap_or(0);
        self.memory_kib
    }

    /// Seconds until its last calls are ended, where it drains.
    pub(super) fn drain_left_s(&self, now: Instant, life: &Life) -> Option<u64> {
        match life.phase(self.slot) {
            Phase::Draining { until } => Some(until.saturating_duration_since(now).as_secs()),
            Phase::Down
            | Phase::Due { .. }
            | Phase::Starting { .. }
            | Phase::Proving { .. }
            | Phase::Ready
            | Phase::Stopping { .. }
            | Phase::Killed => None,
        }
    }

    /// `None`: nobody is there or to come. `is_known`: the front sends calls to the worker that takes
    /// them.
    pub(super) fn status(&self, now: Instant, life: &Life, is_known: bool) -> Option<WorkerStatus> {
        let state = match life.phase(self.slot) {
            Phase::Down if self.slot != life.taking() => return None,
            Phase::Down | Phase::Due { .. } | Phase::Killed => WorkerState::Down,
            Phase::Ready if is_known => WorkerState::Ready,
            Phase::Starting { .. } | Phase::Ready => WorkerState::Starting,
            Phase::Proving { .. } => WorkerState::Proving,
            Phase::Draining { .. } => WorkerState::Draining,
            Phase::Stopping { .. } => WorkerState::Stopping,
        };
        let silence = life.silence(now, self.slot);
        Some(WorkerStatus {
            slot: self.slot.name().to_owned(),
            pid: self.process.as_ref().map(|process| process.pid),
            state,
            version: self.version.clone(),
            drain_left_s: self.drain_left_s(now, life),
            trouble: self.counters.trouble.clone(),
            memory_kib: self.memory_kib,
            uptime_s: self.process.as_ref().map_or(0, |process| (now - process.started).as_secs()),
            restarts: life.restarts(self.slot),
            heartbeat_age_ms: silence.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            calls_active: self.counters.calls_active,
            counters: self.counters.counters.clone(),
            shards: self.counters.shards.clone(),
        })
    }
}

impl Totals {
    pub(super) fn add(&mut self, gone: &Heartbeat) {
        self.calls += gone.calls_total;
        self.add_refused(&gone.refused_total);
    }

    pub(super) fn add_refused(&mut self, refused: &BTreeMap<String, u64>) {
        for (reason, count) in refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }
}
