//! Service level objectives: `loss<1e-4, setup_p99<50ms, spacing_p999<25ms, added_p99<3ms`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::figures;
use crate::load::result::{Distribution, RunReport, Scenario, count};

/// Quantiles a limit may name, as written and as the reports hold them.
const QUANTILES: [(&str, f64); 11] = [
    ("p25", 0.25),
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p995", 0.995),
    ("p999", 0.999),
    ("p9995", 0.9995),
    ("p9999", 0.9999),
    ("max", 1.0),
];

/// Metrics that are shares from 0 to 1.
const SHARES: [(&str, Share); 5] = [
    ("loss", Share::Loss),
    ("loss_by_server", Share::LossByServer),
    ("buffer_drops", Share::BufferDrops),
    ("failed", Share::Failed),
    ("cpu", Share::Cpu),
];

/// Metrics that are times, followed by a quantile.
const TIMES: [(&str, Time); 5] = [
    ("setup", Time::Setup),
    ("first_audio", Time::FirstAudio),
    ("spacing", Time::Spacing),
    ("added", Time::Added),
    ("jitter", Time::Jitter),
];

/// A share, or a load of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Packets that did not come, whoever lost them.
    Loss,
    /// The same without those we lost ourselves.
    LossByServer,
    /// Packets the machine's kernel dropped because a UDP receive buffer was full.
    BufferDrops,
    /// Calls refused, broken, ended early or without sound.
    Failed,
    /// The server's busiest thread.
    Cpu,
}

/// A distribution of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    Setup,
    FirstAudio,
    Spacing,
    Added,
    Jitter,
}

/// What a limit is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Metric {
    Share(Share),
    /// A quantile from 0 to 1 of it.
    Time(Time, f64),
}

/// One limit: a metric must stay below a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    metric: Metric,
    /// As written before the sign.
    name: String,
    /// Share from 0 to 1, or microseconds.
    below: f64,
}

/// Limits that all hold at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo(Vec<Limit>);

/// A limit and what a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The metric's name: `setup_p99`.
    pub metric: String,
    /// The limit as text: `50 ms`.
    pub limit: String,
    /// The run's value as text; `None`: the run has no such value.
    pub value: Option<String>,
    /// The limit holds.
    pub kept: bool,
}

impl Slo {
    /// What is asked of a scenario when nobody says otherwise.
    pub fn of(scenario: Scenario) -> Self {
        let text = match scenario {
            Scenario::Playout | Scenario::Mixed | Scenario::Life => {
                "loss<1e-4, setup_p99<50ms, spacing_p999<25ms"
            }
            Scenario::Echo | Scenario::Anchor => {
                "loss<1e-4, setup_p99<50ms, spacing_p999<25ms, added_p99<3ms"
            }
            // Nothing comes back from a recorder: what it did not read shows in the kernel.
            Scenario::Record => "buffer_drops<1e-4, setup_p99<50ms",
            Scenario::Signalling => "setup_p99<50ms",
        };
        text.parse().expect("the text above is right")
    }

    /// The limits.
    pub fn limits(&self) -> &[Limit] {
        &self.0
    }

    /// The same with `failed<0.1%` unless it says something about failed calls: a load of which a
    /// third is refused is not carried.
    #[must_use]
    pub fn with_calls_answered(mut self) -> Self {
        if !self.0.iter().any(|limit| limit.metric == Metric::Share(Share::Failed)) {
            self.0.push(Limit {
                metric: Metric::Share(Share::Failed),
                name: "failed".to_owned(),
                below: 0.001,
            });
        }
        self
    }

    /// Something is asked that needs the server's process.
    pub fn needs_pid(&self) -> bool {
        self.0.iter().any(|limit| limit.metric == Metric::Share(Share::Cpu))
    }

    /// Refuses what the scenario never measures. A recorder tells of losses by RTCP alone.
    ///
    /// # Errors
    /// Names the limit.
    pub fn ensure_measured(&self, scenario: Scenario, rtcp: bool) -> Result<()> {
        let hears = !matches!(scenario, Scenario::Record | Scenario::Signalling);
        let delays = matches!(scenario, Scenario::Echo | Scenario::Anchor);
        for limit in &self.0 {
            let is_there = match limit.metric {
                Metric::Share(Share::Loss | Share::LossByServer) => {
                    hears || (rtcp && scenario == Scenario::Record)
                }
                Metric::Time(Time::FirstAudio | Time::Spacing | Time::Jitter, _) => hears,
                Metric::Time(Time::Added, _) => delays,
                Metric::Share(Share::BufferDrops | Share::Failed | Share::Cpu)
                | Metric::Time(Time::Setup, _) => true,
            };
            ensure!(is_there, "{}: the scenario {scenario:?} does not measure it", limit.name);
        }
        Ok(())
    }

    /// Each limit against one run. A value that was not measured keeps no limit.
    pub fn judge(&self, run: &RunReport) -> Vec<Judged> {
        self.0.iter().map(|limit| limit.judge(run)).collect()
    }
}

impl Limit {
    /// The metric's name as it was written: `setup_p99`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the metric must stay below: a share from 0 to 1, or microseconds.
    pub fn below(&self) -> f64 {
        self.below
    }

    fn judge(&self, run: &RunReport) -> Judged {
        let value = self.metric.of(run);
        Judged {
            metric: self.name.clone(),
            limit: self.metric.show(self.below),
            value: value.map(|value| self.metric.show(value)),
            kept: value.is_some_and(|value| value < self.below),
        }
    }
}

impl Metric {
    /// A run's value, in shares or microseconds.
    fn of(self, run: &RunReport) -> Option<f64> {
        let packets = &run.packets;
        match self {
            Self::Share(Share::Loss) => (packets.expected > 0).then(|| packets.loss()),
            Self::Share(Share::LossByServer) => (packets.expected > 0).then(|| packets.loss_by_server()),
            Self::Share(Share::BufferDrops) => {
                Some(share(packets.receive_buffer_errors, packets.sent + packets.expected))
            }
            Self::Share(Share::Failed) => {
                let calls = &run.calls;
                let bad = calls.failed + calls.ended_early + calls.silent;
                (calls.attempted > 0).then(|| share(bad, calls.attempted))
            }
            Self::Share(Share::Cpu) => {
                let threads = run.server.as_ref()?.threads.iter();
                Some(threads.map(|thread| thread.cpu_percent).fold(0.0, f64::max) / 100.0)
            }
            Self::Time(time, quantile) => time.of(run).at(quantile).map(count),
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Share(Share::Cpu) => format!("{:.0} %", value * 100.0),
            Self::Share(_) => figures::share(value),
            Self::Time(..) => figures::time(value),
        }
    }
}

impl Time {
    fn of(self, run: &RunReport) -> &Distribution {
        match self {
            Self::Setup => &run.setup,
            Self::FirstAudio => &run.first_audio,
            Self::Spacing => &run.spacing,
            Self::Added => &run.added,
            Self::Jitter => &run.jitter,
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { count(part) / count(whole) }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} < {}", self.name, self.metric.show(self.below))
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits: Vec<String> = self.0.iter().map(Limit::to_string).collect();
        f.write_str(&limits.join(", "))
    }
}

impl FromStr for Slo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let limits: Vec<Limit> = text.split(',').map(str::parse).collect::<Result<_>>()?;
        for (index, limit) in limits.iter().enumerate() {
            let is_twice = limits.iter().take(index).any(|earlier| earlier.name == limit.name);
            ensure!(!is_twice, "{} is limited twice", limit.name);
        }
        Ok(Self(limits))
    }
}

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (name, value) =
            text.split_once('<').with_context(|| format!("{text:?}: want METRIC<VALUE, as in loss<1e-4"))?;
        let (name, value) = (name.trim(), value.trim_start_matches('=').trim());
        let metric: Metric = name.parse()?;
        let below = metric.value(value).with_context(|| format!("{text:?}"))?;
        ensure!(below > 0.0, "{text:?}: nothing is below {value}");
        Ok(Self { metric, name: name.to_owned(), below })
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        if let Some((_, share)) = SHARES.iter().find(|(known, _)| *known == name) {
            return Ok(Self::Share(*share));
        }
        let (stem, quantile) = name.rsplit_once('_').unwrap_or((name, ""));
        let Some((_, time)) = TIMES.iter().find(|(known, _)| *known == stem || *known == name) else {
            let shares = SHARES.map(|(name, _)| name).join(", ");
            let times = TIMES.map(|(name, _)| format!("{name}_pXX")).join(", ");
            bail!("unknown metric {name:?}; known are {shares}, {times}");
        };
        let digits = quantile.replace('.', "");
        let Some((_, quantile)) = QUANTILES.iter().find(|(known, _)| *known == digits) else {
            bail!("{name:?}: no such percentile; known are {}", QUANTILES.map(|(name, _)| name).join(", "));
        };
        Ok(Self::Time(*time, *quantile))
    }
}

impl Metric {
    /// A limit's text in shares or microseconds.
    fn value(self, text: &str) -> Result<f64> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
        let (number, unit) = (digits.trim_end(), &text[digits.len()..]);
        let number: f64 = number.parse().map_err(|_| anyhow::anyhow!("{text:?} is not a number"))?;
        ensure!(number.is_finite(), "{text:?} is not a number");
        match (self, unit) {
            (Self::Share(_), "") => Ok(number),
            (Self::Share(_), "%") => Ok(number / 100.0),
            (Self::Share(_), _) => bail!("it is a share: want a bare number or %, not {unit:?}"),
            (Self::Time(..), "us") => Ok(number),
            (Self::Time(..), "ms") => Ok(number * 1e3),
            (Self::Time(..), "s") => Ok(number * 1e6),
            (Self::Time(..), _) => bail!("it is a time: want us, ms or s, not {unit:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::runs::run_of;

    /// Goal: the example of the manual is understood, and shown again in words a person would use.
    /// Method: parse and print; units and percentiles in all their spellings.
    #[test]
    fn limits_are_parsed_and_shown() {
        let slo: Slo = "loss<1e-4, setup_p99<50ms,spacing_p99.9 <= 25 ms , added_p99<3ms".parse().unwrap();
        let shown = "loss < 0.01 %, setup_p99 < 50 ms, spacing_p99.9 < 25 ms, added_p99 < 3 ms";
        assert_eq!(slo.to_string(), shown);
        assert_eq!(shown.parse::<Slo>().unwrap(), slo, "what is shown is understood again");
        for (text, metric, below) in [
            ("failed<0.5%", Metric::Share(Share::Failed), 0.005),
            ("cpu<90%", Metric::Share(Share::Cpu), 0.9),
            ("loss_by_server<1e-5", Metric::Share(Share::LossByServer), 1e-5),
            ("jitter_p999<700us", Metric::Time(Time::Jitter, 0.999), 700.0),
            ("first_audio_p50<0.25s", Metric::Time(Time::FirstAudio, 0.5), 250_000.0),
            ("setup_max<1s", Metric::Time(Time::Setup, 1.0), 1e6),
        ] {
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit.metric, metric, "{text}");
            assert!((limit.below - below).abs() < 1e-9, "{text}: {}", limit.below);
        }
    }

    /// Goal: a wrong limit is refused by name, with what would be right. Method: one of each kind.
    #[test]
    fn wrong_limits_are_refused_with_what_would_be_right() {
        for (text, told) in [
            ("los<1", "known are loss, loss_by_server, buffer_drops, failed, cpu, setup_pXX"),
            ("setup_p98<1ms", "known are p25, p50"),
            ("setup<1ms", "no such percentile"),
            ("setup_p99<5", "want us, ms or s"),
            ("loss<5ms", "want a bare number or %"),
            ("loss<x", "\"x\" is not a number"),
            ("loss<", "is not a number"),
            ("loss<inf", "is not a number"),
            ("loss<0", "nothing is below"),
            ("loss", "want METRIC<VALUE"),
            ("", "want METRIC<VALUE"),
            ("loss<1,loss<2", "loss is limited twice"),
        ] {
            let error = format!("{:#}", text.parse::<Slo>().unwrap_err());
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }

    /// Goal: each metric reads its own figure, and what was not measured keeps no limit.
    /// Method: a run with 1 of 1000 packets lost, set-ups of 40 ms, no process known.
    #[test]
    fn a_run_is_judged_limit_by_limit() {
        let mut run = run_of(100);
        (run.server, run.added) = (None, Distribution::default());
        (run.packets.expected, run.packets.lost) = (1000, 1);
        run.setup = Distribution { count: 1, quantiles: vec![(0.99, 40_000)], mean: 40_000.0 };
        let slo: Slo = "loss<1e-4, setup_p99<50ms, cpu<90%, added_p99<3ms, failed<1%".parse().unwrap();
        let judged = slo.judge(&run);
        let kept: Vec<bool> = judged.iter().map(|judged| judged.kept).collect();
        assert_eq!(kept, [false, true, false, false, true]);
        assert_eq!(judged[0].value.as_deref(), Some("0.1 %"));
        assert_eq!(judged[1].value.as_deref(), Some("40 ms"));
        assert_eq!((&judged[2].value, &judged[3].value), (&None, &None));
        run.calls.silent = 2;
        assert!(!slo.judge(&run)[4].kept, "a silent call is a failed one");
    }

    /// Goal: the defaults fit their scenarios, and failed calls are limited unless said otherwise.
    /// Method: all scenarios; limits that a scenario never measures are refused.
    #[test]
    fn defaults_fit_their_scenarios() {
        use Scenario::{Anchor, Echo, Mixed, Playout, Record, Signalling};
        for scenario in [Playout, Echo, Record, Anchor, Signalling, Mixed] {
            let slo = Slo::of(scenario).with_calls_answered();
            slo.ensure_measured(scenario, false).unwrap();
            assert!(slo.to_string().ends_with("failed < 0.1 %"), "{slo}");
        }
        let own: Slo = "failed<5%".parse().unwrap();
        assert_eq!(own.clone().with_calls_answered(), own);
        let delay: Slo = "added_p99<3ms".parse().unwrap();
        assert!(delay.ensure_measured(Playout, true).unwrap_err().to_string().contains("added_p99"));
        let loss: Slo = "loss<1%".parse().unwrap();
        assert!(loss.ensure_measured(Record, true).is_ok() && loss.ensure_measured(Record, false).is_err());
        assert!(!delay.needs_pid() && "cpu<90%".parse::<Slo>().unwrap().needs_pid());
    }

    /// Goal: a limit's percentile is one the reports hold, so that none is judged by its neighbour.
    /// Method: look each up in a distribution of one value.
    #[test]
    fn every_percentile_is_one_that_reports_hold() {
        let mut histogram = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        histogram.record(7).unwrap();
        let held = Distribution::of(&histogram).quantiles;
        for (name, quantile) in QUANTILES {
            assert!(held.iter().any(|(known, _)| known.to_bits() == quantile.to_bits()), "{name}");
        }
    }
}
