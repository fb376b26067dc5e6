//! Asks the search, measures, judges, until the search is done.

use std::time::Duration;

use anyhow::Result;

use super::bound::{Bound, Kind};
use super::report::{FindReport, Step, recommended};
use super::search::{End, Next, Purpose, Search, Settings};
use super::slo::Slo;
use crate::load::result::{RunReport, Scenario};

/// Something that can put load on a server and say what came of it.
pub trait Measure {
    /// One run with a load.
    ///
    /// # Errors
    /// The run could not be made at all. A server that refuses calls is not an error.
    fn measure(&mut self, load: u64, purpose: Purpose) -> Result<RunReport>;

    /// How long such a run is expected to take.
    fn cost(&self, load: u64) -> Duration;

    /// Time since the search began.
    fn elapsed(&self) -> Duration;
}

/// What is searched for, and within which limits.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the calls do.
    pub scenario: Scenario,
    /// The URI called.
    pub target: String,
    /// The command line that repeats the search.
    pub command: Vec<String>,
    /// What a run has to keep to.
    pub slo: Slo,
    /// Bounds of the search.
    pub settings: Settings,
}

/// Searches for the highest load that keeps the plan's limits; `told` hears of each step.
///
/// # Errors
/// Not even the first run could be made. A later run that cannot be made ends the search.
pub fn find(plan: &Plan, measure: &mut dyn Measure, told: &mut dyn FnMut(&Step)) -> Result<FindReport> {
    let mut search = Search::new(plan.settings.clone());
    let mut steps: Vec<Step> = Vec::new();
    // Runs near the knee take longer than planned: calls hang, hang-ups time out.
    let mut stretch = 1.0;
    let mut trouble = None;
    let end = loop {
        let begun = measure.elapsed();
        let (load, purpose) = match search.next(begun, |load| measure.cost(load).mul_f64(stretch)) {
            Next::Measure { load, purpose } => (load, purpose),
            Next::Done(end) => break end,
        };
        let run = match measure.measure(load, purpose) {
            Ok(run) => run,
            Err(error) if steps.is_empty() => return Err(error),
            Err(error) => {
                trouble = Some(format!("{error:#}"));
                break End::Broken;
            }
        };
        let took = measure.elapsed().saturating_sub(begun).as_secs_f64();
        stretch = f64::max(1.0, took / measure.cost(load).as_secs_f64().max(1.0));
        let judged = plan.slo.judge(&run);
        let kept = judged.iter().all(|judged| judged.kept);
        let was_forgiven = steps.iter().any(|step| step.load == load && !step.counted);
        let counted = kept || run.generator.bottleneck.is_none() || was_forgiven;
        if counted {
            search.record(load, kept);
        }
        let step = Step { load, purpose, kept, counted, judged, run };
        told(&step);
        steps.push(step);
    };
    Ok(conclude(plan, &search, steps, (end, trouble), measure.elapsed()))
}

fn conclude(
    plan: &Plan,
    search: &Search,
    steps: Vec<Step>,
    (end, trouble): (End, Option<String>),
    took: Duration,
) -> FindReport {
    let (knee, missed) = (search.knee(), search.missed());
    let (kind, bound) = match &trouble {
        Some(why) => (Kind::Floor, Bound::Generator { why: why.clone() }),
        None => Bound::of(&steps, missed, end),
    };
    FindReport {
        fingerprint: steps.last().map(|step| step.run.fingerprint.clone()).unwrap_or_default(),
        command: plan.command.clone(),
        scenario: plan.scenario,
        target: plan.target.clone(),
        slo: plan.slo.to_string(),
        tolerance: plan.settings.tolerance,
        took_s: took.as_secs_f64(),
        end,
        trouble,
        knee,
        missed,
        confirmed: knee.is_some_and(|knee| search.is_confirmed(knee)),
        recommended: knee.map(recommended),
        kind,
        bound,
        steps,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::testing::runs::run_of;

    /// A server whose media thread is full at `knee` calls, and a generator that gives up at `most`.
    struct Fake {
        knee: u64,
        most: u64,
        late_from: u64,
        /// The first run of this load goes wrong by the generator's doing.
        spoilt: Option<u64>,
        elapsed: Duration,
        /// What a run really takes, as a multiple of what was said.
        stretch: u32,
    }

    impl Measure for Fake {
        fn measure(&mut self, load: u64, _: Purpose) -> Result<RunReport> {
            self.elapsed += self.cost(load) * self.stretch;
            if load > self.most {
                bail!("too many open files");
            }
            let mut run = run_of(load);
            let is_spoilt = self.spoilt.take_if(|spoilt| *spoilt == load).is_some();
            if load > self.knee || is_spoilt {
                run.spacing.quantiles = vec![(0.999, 40_000)];
            }
            if load >= self.late_from || is_spoilt {
                run.generator.bottleneck = Some("sends 9 ms late".to_owned());
            }
            Ok(run)
        }

        fn cost(&self, _: u64) -> Duration {
            Duration::from_secs(20)
        }

        fn elapsed(&self) -> Duration {
            self.elapsed
        }
    }

    fn fake() -> Fake {
        Fake { knee: 700, most: 9999, late_from: 9999, spoilt: None, elapsed: Duration::ZERO, stretch: 1 }
    }

    fn searched(fake: &mut Fake) -> Result<FindReport> {
        let plan = Plan {
            scenario: Scenario::Playout,
            target: "sip:9197@127.0.0.1".to_owned(),
            command: vec!["voxperf".to_owned(), "find".to_owned()],
            slo: "spacing_p999<25ms".parse().unwrap(),
            settings: Settings { start: 50, most: 5000, tolerance: 0.05, budget: Duration::from_secs(540) },
        };
        find(&plan, fake, &mut |_| {})
    }

    /// Goal: a search ends with knee, recommendation and what bound it. Method: a full server.
    #[test]
    fn a_search_ends_with_a_knee_and_a_reason() {
        let found = searched(&mut fake()).unwrap();
        let knee = found.knee.unwrap();
        assert!((665..=700).contains(&knee) && found.confirmed, "{knee}");
        assert_eq!((found.end, found.kind), (End::Converged, Kind::Ceiling));
        assert!(matches!(&found.bound, Bound::Slo { metric, .. } if metric == "spacing_p999"));
        assert!(found.took_s < 540.0);
    }

    /// Goal: where the generator is late, the result is a floor. Method: late from 600 calls on.
    #[test]
    fn a_late_generator_gives_a_floor() {
        let found = searched(&mut Fake { late_from: 600, ..fake() }).unwrap();
        assert_eq!(found.kind, Kind::Floor);
        assert_eq!(found.bound, Bound::Generator { why: "sends 9 ms late".to_owned() });
    }

    /// Goal: one run that the generator spoilt is measured again and changes nothing.
    /// Method: the first run of 200 calls misses while the generator is late.
    #[test]
    fn a_run_that_the_generator_spoilt_is_measured_again() {
        let clean = searched(&mut fake()).unwrap();
        let spoilt = searched(&mut Fake { spoilt: Some(200), ..fake() }).unwrap();
        assert_eq!((spoilt.knee, spoilt.kind), (clean.knee, Kind::Ceiling));
        assert_eq!(spoilt.steps.len(), clean.steps.len() + 1);
        let step = spoilt.steps.iter().find(|step| !step.counted).unwrap();
        assert!(step.verdict().starts_with("not counted, the generator was late"), "{}", step.verdict());
    }

    /// Goal: a run that cannot be made ends the search with what is known; the first one is an error.
    /// Method: files for 300 calls, then for none.
    #[test]
    fn a_run_that_cannot_be_made_ends_the_search() {
        let found = searched(&mut Fake { most: 300, ..fake() }).unwrap();
        assert_eq!((found.end, found.knee, found.kind), (End::Broken, Some(200), Kind::Floor));
        assert_eq!(found.bound.to_string(), "bound by the load generator: too many open files");
        assert!(searched(&mut Fake { most: 1, ..fake() }).is_err());
    }

    /// Goal: runs that take longer than said do not break the time budget.
    /// Method: each takes three times as long; only the first may be misjudged.
    #[test]
    fn slow_runs_are_reckoned_with() {
        let found = searched(&mut Fake { stretch: 3, ..fake() }).unwrap();
        assert!(found.took_s <= 540.0, "{}", found.took_s);
        assert_eq!(found.end, End::OutOfTime);
    }
}
