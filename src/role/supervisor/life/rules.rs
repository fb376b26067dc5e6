//! What the configuration says of workers' lives.

use std::time::Duration;

use crate::base::config::Config;

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
