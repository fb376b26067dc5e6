//! What the configuration says of workers' lives, and what follows from it.

use std::time::{Duration, Instant};

use super::{Life, Phase, STOP_TIMEOUT};
use crate::base::config::Config;
use crate::control::cli::Slot;

/// What the configuration says.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Rules {
    pub(super) heartbeat_timeout: Duration,
    pub(super) drain_timeout: Duration,
    pub(super) stop_timeout: Duration,
    /// `None`: age is no reason.
    pub(super) age_max: Option<Duration>,
    pub(super) memory_max_kib: Option<u64>,
    pub(super) calls_max: Option<u64>,
    pub(super) crashes_max: usize,
    pub(super) crash_window: Duration,
}

impl Rules {
    pub(in super::super) fn of(config: &Config) -> Self {
        let worker = &config.worker;
        let some = |value: u64| (value > 0).then_some(value);
        Self {
            heartbeat_timeout: Duration::from_secs(worker.heartbeat_timeout_s.into()),
            drain_timeout: Duration::from_secs(worker.drain_timeout_s.into()),
            stop_timeout: Duration::from_secs(config.node.stop_timeout_s.into()),
            age_max: some(worker.recycle_age_h.into()).map(|hours| Duration::from_secs(3600 * hours)),
            memory_max_kib: [worker.recycle_memory_mib, worker.memory_max_mib]
                .into_iter()
                .filter_map(|mib| some(mib.into()))
                .min()
                .map(|mib| 1024 * mib),
            calls_max: some(worker.recycle_calls.into()),
            crashes_max: worker.crashes_max.into(),
            crash_window: Duration::from_secs(worker.crash_window_s.into()),
        }
    }
}

impl Life {
    pub(super) fn overdue(&self, now: Instant, slot: Slot) -> Option<&'static str> {
        let own = &self.slots[slot.index()];
        let is_silent = own.heard + self.rules.heartbeat_timeout <= now;
        match own.phase {
            Phase::Starting { deadline } if deadline <= now => Some("did not become ready in time"),
            Phase::Proving { deadline } if deadline <= now => Some("did not finish its self-test in time"),
            Phase::Stopping { deadline } if deadline <= now => Some("did not stop in time"),
            Phase::Draining { until } if until + STOP_TIMEOUT <= now => Some("did not end its calls in time"),
            Phase::Ready | Phase::Proving { .. } | Phase::Draining { .. } if is_silent => {
                Some("sent no heartbeat")
            }
            Phase::Down
            | Phase::Due { .. }
            | Phase::Starting { .. }
            | Phase::Proving { .. }
            | Phase::Ready
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Killed => None,
        }
    }

    /// Why the worker that takes calls should give way, if it should.
    pub(super) fn reason(&self, now: Instant) -> Option<String> {
        let may = self.takes().is_some() && !self.stopping && self.retry_at.is_none_or(|at| at <= now);
        if !may || self.phase(self.taking.other()) != Phase::Down {
            return None;
        }
        let own = &self.slots[self.taking.index()];
        let Rules { age_max, memory_max_kib, calls_max, .. } = self.rules;
        let age = now.saturating_duration_since(own.started);
        if age_max.is_some_and(|max| age >= max) {
            return Some(format!("age: it has run for {} h", age.as_secs() / 3600));
        }
        if memory_max_kib.is_some_and(|max| own.memory_kib >= max) {
            return Some(format!("memory: {} MiB are resident", own.memory_kib / 1024));
        }
        calls_max.filter(|max| own.calls >= *max)?;
        Some(format!("calls: it has answered {}", own.calls))
    }
}
