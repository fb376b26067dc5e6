//! Alternating rounds: noise of the machine that comes and goes hits both contestants alike.

use std::time::Duration;

use anyhow::Result;

use super::contestant::Contestant;
use super::report::{CompareReport, Level, Pair};
use crate::load::result::Fingerprint;

/// What is compared.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Loads, in calls at once.
    pub calls: Vec<usize>,
    /// Rounds of each contestant at each load.
    pub rounds: u32,
    /// Length of a round's window.
    pub window: Duration,
    /// Seed of phases and frames.
    pub seed: u64,
    /// What the calls do, for people.
    pub what: String,
    /// The command line that repeats it.
    pub command: Vec<String>,
    /// Conditions.
    pub fingerprint: Fingerprint,
}

/// Something that happened, for people who wait.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// A contestant begins a round.
    Begins(&'a str, usize, u32),
    /// A pair of rounds is done.
    Pair(&'a Level, &'a Pair),
    /// A level is done.
    Level(&'a Level),
}

/// Rounds of both at each load, the first of each pair alternating.
///
/// # Errors
/// Not even the first round of either could be made. Later trouble ends its level and is reported.
pub fn compare(
    plan: &Plan,
    ours: &mut dyn Contestant,
    theirs: &mut dyn Contestant,
    told: &mut dyn FnMut(Told<'_>),
) -> Result<CompareReport> {
    let mut levels: Vec<Level> = Vec::new();
    for &calls in &plan.calls {
        let mut level = Level { calls, pairs: Vec::new(), trouble: None };
        for round in 0..plan.rounds {
            match pair(plan, (calls, round), (&mut *ours, &mut *theirs), told) {
                Ok(pair) => {
                    told(Told::Pair(&level, &pair));
                    level.pairs.push(pair);
                }
                Err(error) if levels.is_empty() && level.pairs.is_empty() => return Err(error),
                Err(error) => {
                    level.trouble = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        told(Told::Level(&level));
        levels.push(level);
    }
    Ok(CompareReport {
        fingerprint: plan.fingerprint.clone(),
        command: plan.command.clone(),
        what: plan.what.clone(),
        window_s: plan.window.as_secs_f64(),
        ours: ours.identity(),
        theirs: theirs.identity(),
        levels,
    })
}

fn pair(
    plan: &Plan,
    (calls, round): (usize, u32),
    (ours, theirs): (&mut dyn Contestant, &mut dyn Contestant),
    told: &mut dyn FnMut(Told<'_>),
) -> Result<Pair> {
    let seed = plan.seed + u64::from(round);
    let mut one = |contestant: &mut dyn Contestant| {
        let name = contestant.identity().name;
        told(Told::Begins(&name, calls, round));
        contestant
            .round(calls, plan.window, seed)
            .map_err(|error| error.context(format!("{name} with {calls} calls")))
    };
    if round.is_multiple_of(2) {
        let ours = one(ours)?;
        Ok(Pair { ours, theirs: one(theirs)? })
    } else {
        let theirs = one(theirs)?;
        Ok(Pair { ours: one(ours)?, theirs })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use anyhow::bail;

    use super::*;
    use crate::compare::contestant::{Identity, Round};

    struct Fake {
        name: &'static str,
        us_per_packet: u64,
        most: usize,
        diary: Rc<RefCell<Vec<&'static str>>>,
    }

    impl Contestant for Fake {
        fn identity(&self) -> Identity {
            Identity { name: self.name.to_owned(), ..Identity::default() }
        }

        fn round(&mut self, calls: usize, _: Duration, _: u64) -> Result<Round> {
            self.diary.borrow_mut().push(self.name);
            if calls > self.most {
                bail!("out of ports");
            }
            let handled = calls as u64 * 1000;
            let cpu_us = handled * self.us_per_packet;
            Ok(Round { handled, cpu_us, media_us: cpu_us, ..Round::default() })
        }
    }

    fn compared(most: usize) -> (Result<CompareReport>, Vec<&'static str>) {
        let diary = Rc::new(RefCell::new(Vec::new()));
        let fake = |name, us_per_packet, most| Fake { name, us_per_packet, most, diary: Rc::clone(&diary) };
        let plan = Plan {
            calls: vec![100, 200],
            rounds: 3,
            window: Duration::from_secs(1),
            seed: 1,
            what: "anchored calls".to_owned(),
            command: vec![],
            fingerprint: Fingerprint::default(),
        };
        let result = compare(&plan, &mut fake("us", 3, 9999), &mut fake("them", 6, most), &mut |_| {});
        let diary = diary.borrow().clone();
        (result, diary)
    }

    /// Goal: rounds alternate, and the first of each pair does too. Method: a diary of two levels.
    #[test]
    fn rounds_alternate() {
        let (report, diary) = compared(9999);
        assert_eq!(diary[..6], ["us", "them", "them", "us", "us", "them"]);
        let level = &report.unwrap().levels[1];
        let ratio = level.ratio(Round::us_per_packet).unwrap();
        assert!((ratio.median - 0.5).abs() < 1e-9 && level.pairs.len() == 3, "{ratio:?}");
    }

    /// Goal: a load that a contestant cannot take ends its level only; none at all is an error.
    /// Method: ports for 100 calls, then for none.
    #[test]
    fn a_load_too_high_ends_its_level() {
        let (report, diary) = compared(100);
        let levels = report.unwrap().levels;
        assert_eq!((levels[0].pairs.len(), levels[1].pairs.len()), (3, 0));
        assert_eq!(levels[1].trouble.as_deref(), Some("them with 200 calls: out of ports"));
        assert_eq!(diary.len(), 8);
        assert!(compared(1).0.is_err());
    }
}
