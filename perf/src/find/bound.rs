//! What stood in the way of more load: the server, its limits, or only ourselves.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::report::Step;
use super::search::End;
use crate::figures;
use crate::load::result::{RunReport, ServerThread};

/// A thread this busy is what holds its server back, in hundredths of a processor.
const BUSY_PERCENT: f64 = 90.0;

/// How far a knee can be trusted upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The server carries this and not much more.
    Ceiling,
    /// The server carries this; how much more is not known.
    Floor,
}

/// What bound a knee.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// One of the server's threads had no time left.
    Server {
        /// Its name.
        thread: String,
        /// Its processor time where the limits were missed.
        percent: f64,
    },
    /// The generator itself.
    Generator {
        /// What held it back, or why it could not run at all.
        why: String,
    },
    /// The server refused calls: ports, limits, connections.
    Refusals {
        /// Status of most of them, with what else the outcome says.
        status: String,
        /// How many calls got it.
        count: u64,
        /// What the server said with it most often: a Warning or Reason.
        remark: Option<String>,
    },
    /// Nothing was busy, but a limit was missed.
    Slo {
        /// The limit: `spacing_p999`.
        metric: String,
        /// What it came to.
        value: Option<String>,
        /// What was allowed.
        limit: String,
        /// At which load.
        load: u64,
    },
    /// The highest load asked for was kept.
    Asked,
    /// The time for the search was up.
    Time,
}

impl Bound {
    /// What bound the knee below `missed`, and whether it is a ceiling.
    pub fn of(steps: &[Step], missed: Option<u64>, end: End) -> (Kind, Self) {
        let misses: Vec<&Step> =
            steps.iter().filter(|step| Some(step.load) == missed && !step.kept && step.counted).collect();
        let Some(last) = misses.last() else {
            let bound = if end == End::AllKept { Self::Asked } else { Self::Time };
            return (Kind::Floor, bound);
        };
        // A generator that was late has not offered the load that was missed.
        if let Some(why) = misses.iter().find_map(|step| step.run.generator.bottleneck.clone()) {
            return (Kind::Floor, Self::Generator { why });
        }
        let bound = refusals(&misses).or_else(|| busy_thread(&misses)).unwrap_or_else(|| missed_limit(last));
        // Out of time, the distance between kept and missed may still be wide.
        (if end == End::OutOfTime { Kind::Floor } else { Kind::Ceiling }, bound)
    }
}

/// Refused calls, when calls that fail are what missed the limits.
fn refusals(misses: &[&Step]) -> Option<Bound> {
    let calls_failed =
        |step: &&&Step| step.judged.iter().any(|judged| judged.metric == "failed" && !judged.kept);
    let failed: Vec<&RunReport> = misses.iter().filter(calls_failed).map(|step| &step.run).collect();
    let is_refusal = |status: &str| status.starts_with(['4', '5', '6']);
    let outcomes = failed.iter().flat_map(|run| &run.calls.outcomes);
    let (status, count) = most_frequent(outcomes.filter(|(status, _)| is_refusal(status)))?;
    let remark = most_frequent(failed.iter().flat_map(|run| &run.calls.remarks));
    Some(Bound::Refusals { status, count, remark: remark.map(|(remark, _)| remark) })
}

/// The name that comes to the highest sum, and the sum.
fn most_frequent<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> Option<(String, u64)> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    counts.for_each(|(name, count)| *sums.entry(name).or_default() += count);
    let most = sums.into_iter().max_by_key(|(_, count)| *count)?;
    Some((most.0.to_owned(), most.1))
}

/// A generator's reason without its beginning, for sentences that already name the generator.
pub fn reason(why: &str) -> &str {
    why.trim_start_matches("the generator: ")
}

/// The busiest thread, when it was too busy.
fn busy_thread(misses: &[&Step]) -> Option<Bound> {
    let busiest = misses.iter().filter_map(|step| busiest(&step.run));
    let busiest = busiest.max_by(|a, b| a.cpu_percent.total_cmp(&b.cpu_percent))?;
    (busiest.cpu_percent > BUSY_PERCENT)
        .then(|| Bound::Server { thread: busiest.name.clone(), percent: busiest.cpu_percent })
}

/// The server's busiest thread in a run.
pub fn busiest(run: &RunReport) -> Option<&ServerThread> {
    let threads = run.server.as_ref()?.threads.iter();
    threads.max_by(|a, b| a.cpu_percent.total_cmp(&b.cpu_percent))
}

fn missed_limit(step: &Step) -> Bound {
    let missed = step.judged.iter().find(|judged| !judged.kept);
    Bound::Slo {
        metric: missed.map_or_else(String::new, |judged| judged.metric.clone()),
        value: missed.and_then(|judged| judged.value.clone()),
        limit: missed.map_or_else(String::new, |judged| judged.limit.clone()),
        load: step.load,
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server { thread, percent } => {
                write!(f, "bound by the CPU of the server's thread {thread} at {percent:.0} %")
            }
            Self::Generator { why } => {
                write!(f, "bound by the load generator: {}", reason(why))
            }
            Self::Refusals { status, count, remark } => {
                let said = remark.as_ref().map(|remark| format!(" and {remark:?}")).unwrap_or_default();
                write!(
                    f,
                    "bound by the server's limits: {} calls refused with {status}{said}",
                    figures::whole(*count)
                )
            }
            Self::Slo { metric, value, limit, load } => {
                let value = value.as_deref().unwrap_or("not measured");
                let load = figures::whole(*load);
                write!(f, "bound by {metric}, {value} at {load} where less than {limit} is asked")
            }
            Self::Asked => f.write_str("the highest load asked for was kept"),
            Self::Time => f.write_str("the time for the search was up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::runs::{run_of, step_of};

    fn miss(change: impl FnOnce(&mut Step)) -> (Kind, Bound) {
        let mut step = step_of(run_of(800), "spacing_p999<25ms, failed<1%");
        change(&mut step);
        step.judged =
            "spacing_p999<25ms, failed<1%".parse::<crate::find::slo::Slo>().unwrap().judge(&step.run);
        step.kept = false;
        Bound::of(&[step], Some(800), End::Converged)
    }

    /// Goal: a late generator never makes a ceiling, whatever the server's state.
    /// Method: generator held back and the server's thread at 97 %.
    #[test]
    fn a_held_back_generator_makes_a_floor() {
        let (kind, bound) = miss(|step| {
            step.run.generator.bottleneck = Some("media thread at 93 %".to_owned());
            step.run.server.as_mut().unwrap().threads[0].cpu_percent = 97.0;
        });
        assert_eq!(kind, Kind::Floor);
        assert_eq!(bound.to_string(), "bound by the load generator: media thread at 93 %");
    }

    /// Goal: refusals are named by status before the processor is blamed, and only when failed
    /// calls are what went wrong. Method: 30 calls with 503, 5 with 488; then the same within limits.
    #[test]
    fn refusals_are_named_by_their_status() {
        let refuse = |step: &mut Step, failed| {
            step.run.calls.failed = failed;
            step.run.calls.outcomes = [("200", 765), ("488", 5), ("503", 30)]
                .map(|(status, count)| (status.to_owned(), count))
                .into();
            step.run.calls.remarks = [("no port is free".to_owned(), 30)].into();
        };
        let (kind, bound) = miss(|step| refuse(step, 35));
        assert_eq!(kind, Kind::Ceiling);
        let told = "bound by the server's limits: 30 calls refused with 503 and \"no port is free\"";
        assert_eq!(bound.to_string(), told);
        let (_, bound) = miss(|step| refuse(step, 0));
        assert!(matches!(bound, Bound::Slo { .. }), "{bound}");
    }

    /// Goal: a busy thread is named; with none, the limit that was missed.
    /// Method: the media thread at 96 %, then at 60 %.
    #[test]
    fn a_busy_thread_or_the_missed_limit_is_named() {
        let busy = |percent| {
            move |step: &mut Step| {
                step.run.server.as_mut().unwrap().threads[0].cpu_percent = percent;
                step.run.spacing.quantiles = vec![(0.999, 31_000)];
            }
        };
        let (kind, bound) = miss(busy(96.0));
        assert_eq!(kind, Kind::Ceiling);
        assert_eq!(bound.to_string(), "bound by the CPU of the server's thread media-0 at 96 %");
        let (_, bound) = miss(busy(60.0));
        let told = "bound by spacing_p999, 31 ms at 800 where less than 25 ms is asked";
        assert_eq!(bound.to_string(), told);
    }

    /// Goal: nothing missed, or no time left, is no ceiling. Method: the two ends without a miss.
    #[test]
    fn what_was_never_missed_is_a_floor() {
        assert_eq!(Bound::of(&[], None, End::AllKept), (Kind::Floor, Bound::Asked));
        assert_eq!(Bound::of(&[], None, End::OutOfTime), (Kind::Floor, Bound::Time));
    }
}
