//! After the steps: how many calls, and how many new ones a second.

use std::net::IpAddr;
use std::time::Instant;

use super::decision::Refused;
use crate::base::bucket::{PerSource, Rate, TokenBucket, source_of};
use crate::base::config::Config;

/// Sources with new calls of late that are told apart.
const SOURCES_MAX: usize = 8192;

/// What a role carries at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Calls there are.
    pub calls: usize,
    /// Of them, those of the gateway that calls.
    pub gateway_calls: usize,
}

/// The limits on new calls, and what has come of late.
#[derive(Debug)]
pub struct Limits {
    calls_max: u32,
    per_s: Rate,
    per_source: Rate,
    gateways: Vec<(String, u32)>,
    all: TokenBucket,
    sources: PerSource<IpAddr>,
}

impl Limits {
    /// Those of the configuration, with nothing used up.
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            calls_max: config.calls.calls_max,
            per_s: Rate::steady(config.calls.calls_per_s),
            per_source: Rate { per_s: limits.source_calls_per_s, burst: limits.source_calls_burst },
            gateways: config.gateway.iter().map(|g| (g.name.clone(), g.calls_max)).collect(),
            all: TokenBucket::default(),
            sources: PerSource::new(SOURCES_MAX),
        }
    }

    /// Takes a reloaded configuration's limits; what is used up stays used up.
    pub fn reload(&mut self, config: &Config) {
        let Self { all, sources, .. } = std::mem::replace(self, Self::new(config));
        *self = Self { all, sources, ..Self::new(config) };
    }

    /// The limit of a gateway that takes no more, since it has this many calls.
    fn reached(&self, gateway: &str, calls: usize) -> Option<u32> {
        let of_gateway = self.gateways.iter().find(|(name, _)| name == gateway);
        of_gateway.map(|(_, max)| *max).filter(|max| *max > 0 && calls >= *max as usize)
    }

    /// True when a gateway with this many calls takes no more.
    pub fn gateway_is_full(&self, gateway: &str, calls: usize) -> bool {
        self.reached(gateway, calls).is_some()
    }

    /// Counts a new call, or refuses it: 503, for a later try may succeed.
    ///
    /// # Errors
    /// Rules `calls_max`, `gateway_calls_max`, `source_calls` and `calls_per_s`, looked at in this
    /// order. A call refused by one of the first three takes nothing from the limit on all calls.
    pub fn take(&mut self, now: Instant, source: IpAddr, gateway: &str, load: Load) -> Result<(), Refused> {
        let refused = |rule, why: String| Err(Refused::new(rule, 503, why));
        if load.calls >= self.calls_max as usize {
            return refused("calls_max", format!("calls.calls_max = {} is reached", self.calls_max));
        }
        if let Some(max) = self.reached(gateway, load.gateway_calls) {
            let why = format!("calls_max = {max} of gateway {gateway:?} is reached");
            return refused("gateway_calls_max", why);
        }
        if !self.sources.take(now, source_of(source), self.per_source) {
            let rate = self.per_source.per_s;
            let why = format!("{source} calls faster than limits.source_calls_per_s = {rate}");
            return refused("source_calls", why);
        }
        if !self.all.take(now, self.per_s) {
            let why = format!("more new calls than calls.calls_per_s = {}", self.per_s.per_s);
            return refused("calls_per_s", why);
        }
        Ok(())
    }
}
