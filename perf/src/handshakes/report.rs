//! What the slices of a run say together.

use anyhow::Result;
use serde::Serialize;

use super::{HandshakesArgs, Slice, Trouble};
use crate::machine;

/// The slices of a run, in pairs or triples.
#[derive(Debug, Default, Serialize)]
pub(super) struct Slices {
    /// Full handshakes with the server.
    pub(super) live: Vec<Slice>,
    /// rustls in memory.
    pub(super) baseline: Vec<Slice>,
    /// Connections to the server without TLS.
    pub(super) tcp: Vec<Slice>,
}

/// What one connection costs the server, in microseconds of processor time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Cost {
    /// Median of the slices.
    all_us: f64,
    /// Of that outside and inside the kernel, by the proportion of the whole run's ticks.
    user_us: Option<f64>,
    kernel_us: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    conditions: String,
    /// Both sides of a comparison must be optimised.
    optimised: bool,
    connections_in_flight: u32,
    handshakes: u64,
    failures: u64,
    first_failure: Option<String>,
    /// Finished handshakes a second of the clock.
    live_per_s: f64,
    /// Handshakes a second of the signalling thread's processor time: median of the slices.
    live_per_core_s: Option<f64>,
    baseline_per_core_s: Option<f64>,
    live_cost: Option<Cost>,
    baseline_cost: Option<Cost>,
    tcp_cost: Option<Cost>,
    /// Live by baseline: median, least and most of the pairs of slices.
    ratio: Option<f64>,
    ratio_min: Option<f64>,
    ratio_max: Option<f64>,
    /// The same of the live server's time outside the kernel alone.
    ratio_user: Option<f64>,
    /// The same of what is left of its time without that of a connection without TLS.
    ratio_without_tcp: Option<f64>,
    slices: Slices,
}

impl Report {
    pub(super) fn new(args: &HandshakesArgs, slices: Slices, trouble: Trouble) -> Self {
        let rates = |slices: &[Slice]| -> Vec<f64> { slices.iter().map(Slice::per_core_s).collect() };
        let (live_rates, bare_rates) = (rates(&slices.live), rates(&slices.baseline));
        let has_cost = args.pid.is_some();
        let pairs = live_rates.iter().zip(&bare_rates).filter(|_| has_cost);
        let ratios: Vec<f64> = pairs.map(|(live, bare)| live / bare).collect();
        let handshakes = slices.live.iter().map(|slice| slice.handshakes).sum();
        let wall: f64 = slices.live.iter().map(|slice| slice.wall_s).sum();
        let live_cost = Cost::of(&slices.live).filter(|_| has_cost);
        let baseline_cost = Cost::of(&slices.baseline);
        let tcp_cost = Cost::of(&slices.tcp).filter(|_| has_cost);
        let against = |rest: Option<f64>| Some(baseline_cost?.all_us / rest.filter(|rest| *rest > 0.0)?);
        Self {
            conditions: machine::describe(),
            optimised: !cfg!(debug_assertions),
            connections_in_flight: args.connections_in_flight,
            handshakes,
            failures: trouble.count.into_inner(),
            first_failure: trouble.first.into_inner().ok().flatten(),
            live_per_s: count(handshakes) / wall.max(f64::MIN_POSITIVE),
            live_per_core_s: median(&live_rates).filter(|_| has_cost),
            baseline_per_core_s: median(&bare_rates),
            ratio: median(&ratios),
            ratio_min: ratios.iter().copied().reduce(f64::min),
            ratio_max: ratios.iter().copied().reduce(f64::max),
            ratio_user: against(live_cost.and_then(|live| live.user_us)),
            ratio_without_tcp: against(live_cost.zip(tcp_cost).map(|(live, tcp)| live.all_us - tcp.all_us)),
            live_cost,
            baseline_cost,
            tcp_cost,
            slices,
        }
    }

    /// True when everything that was begun succeeded.
    pub(super) fn is_whole(&self) -> bool {
        self.failures == 0 && self.handshakes > 0
    }

    #[cfg(test)]
    pub(super) fn ratio(&self) -> Option<f64> {
        self.ratio
    }

    pub(super) fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        println!("{}", self.conditions);
        if !self.optimised {
            println!("voxperf was built without optimisation: its baseline is too slow to compare with");
        }
        println!(
            "{} full handshakes, {} failed; {:.0} a second with {} at once",
            self.handshakes, self.failures, self.live_per_s, self.connections_in_flight
        );
        self.first_failure.iter().for_each(|why| println!("  the first failure: {why}"));
        if let Some(rate) = self.live_per_core_s {
            println!("server: {rate:.0} a second of its signalling thread's processor time");
        }
        if let Some(rate) = self.baseline_per_core_s {
            println!("rustls in memory: {rate:.0} a second of processor time, the server's side alone");
        }
        self.print_costs();
        Ok(())
    }

    fn print_costs(&self) {
        let costs = [
            ("a handshake, its connection and ping", self.live_cost),
            ("a handshake of rustls in memory", self.baseline_cost),
            ("a connection with two pings, without TLS", self.tcp_cost),
        ];
        for (what, cost) in costs {
            let Some(cost) = cost else { continue };
            let parts = cost.user_us.zip(cost.kernel_us);
            let parts =
                parts.map(|(user, kernel)| format!(": {user:.0} outside the kernel, {kernel:.0} in it"));
            println!("{what}: {:.0} us{}", cost.all_us, parts.unwrap_or_default());
        }
        if let (Some(ratio), Some(least), Some(most)) = (self.ratio, self.ratio_min, self.ratio_max) {
            let pairs = self.slices.live.len();
            println!("ratio {ratio:.3} (median of {pairs} pairs, {least:.3} to {most:.3})");
        }
        if let Some(ratio) = self.ratio_user {
            println!("ratio {ratio:.3} of the time outside the kernel alone");
        }
        if let Some(ratio) = self.ratio_without_tcp {
            println!("ratio {ratio:.3} of what TLS adds to a connection without it");
        }
    }
}

impl Cost {
    fn of(slices: &[Slice]) -> Option<Self> {
        let each: Vec<f64> =
            slices.iter().map(|slice| slice.server_cpu_s * 1e6 / count(slice.handshakes.max(1))).collect();
        let all_us = median(&each)?;
        let (user, system) = slices
            .iter()
            .fold((0, 0), |(user, system), slice| (user + slice.user_ticks, system + slice.system_ticks));
        let share = (user + system > 0).then(|| count(user) / count(user + system));
        let user_us = share.map(|share| all_us * share);
        Some(Self { all_us, user_us, kernel_us: user_us.map(|user| all_us - user) })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// A count for arithmetic; exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "no run has 2^53 handshakes")]
pub(super) fn count(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a cost is split as the run's ticks are. Method: 10 and 30 ms for 100 connections each,
    /// 3 of 4 ticks in the kernel: the median of 100 and 300 us is the upper one.
    #[test]
    fn a_cost_is_split_as_the_ticks_are() {
        let slice = |server_cpu_s, user_ticks, system_ticks| Slice {
            handshakes: 100,
            server_cpu_s,
            user_ticks,
            system_ticks,
            wall_s: 1.0,
        };
        let cost = Cost::of(&[slice(0.01, 1, 0), slice(0.03, 0, 3)]).unwrap();
        let close = |value: f64, expected: f64| (value - expected).abs() < 1e-6;
        assert!(close(cost.all_us, 300.0), "{cost:?}");
        assert!(cost.user_us.is_some_and(|user| close(user, 75.0)), "{cost:?}");
        assert!(cost.kernel_us.is_some_and(|kernel| close(kernel, 225.0)), "{cost:?}");
        assert_eq!(Cost::of(&[]), None);
        assert_eq!(Cost::of(&[slice(0.01, 0, 0)]).unwrap().user_us, None, "no ticks, no shares");
    }
}
