//! Which load to try next: a search that needs no clock and no network.
//!
//! It doubles until a load misses, bisects between the highest load kept and the lowest missed, and
//! confirms both sides by repetition: a load is kept or missed by two of at most three runs. Runs
//! vary, so nothing is believed for good before that: when a repetition turns a side over, the
//! search goes on from there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Runs that decide a load for good.
const MAJORITY: u32 = 2;

/// Bounds and manners of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The first load tried; at least 1.
    pub start: u64,
    /// The highest load to try.
    pub most: u64,
    /// Kept and missed may be so far apart in the end, as a share of the missed one.
    pub tolerance: f64,
    /// No run is begun that would end later than this.
    pub budget: Duration,
}

/// Why a load is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Find a load that is too much.
    Bracket,
    /// Halve the distance between kept and missed.
    Bisect,
    /// See whether an earlier verdict holds.
    Confirm,
}

impl Purpose {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bracket => "double",
            Self::Bisect => "halve",
            Self::Confirm => "repeat",
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Run with this load and tell the verdict.
    Measure {
        /// Calls, or calls a second.
        load: u64,
        /// What for.
        purpose: Purpose,
    },
    /// Nothing more to learn, or no time to.
    Done(End),
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Kept and missed are close to each other, and both are confirmed.
    Converged,
    /// The highest load allowed was kept.
    AllKept,
    /// Not even one call was kept.
    NoneKept,
    /// The time was up.
    OutOfTime,
    /// A run could not be made.
    Broken,
}

/// Verdicts on one load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    kept: u32,
    missed: u32,
}

impl Tally {
    fn is_open(self) -> bool {
        self.kept == self.missed
    }

    fn is_firm(self) -> bool {
        self.kept.max(self.missed) >= MAJORITY
    }
}

/// The search itself: ask [`Search::next`], measure, tell [`Search::record`], and so on.
#[derive(Debug, Clone)]
pub struct Search {
    settings: Settings,
    tallies: BTreeMap<u64, Tally>,
}

impl Search {
    /// A search that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, tallies: BTreeMap::new() }
    }

    /// Notes the verdict of one run.
    pub fn record(&mut self, load: u64, kept: bool) {
        let tally = self.tallies.entry(load).or_default();
        *(if kept { &mut tally.kept } else { &mut tally.missed }) += 1;
    }

    /// The highest load kept below every missed one; by majority of its runs.
    pub fn knee(&self) -> Option<u64> {
        let (kept, _) = self.sides();
        kept
    }

    /// The lowest load missed; by majority of its runs.
    pub fn missed(&self) -> Option<u64> {
        let (_, missed) = self.sides();
        missed
    }

    /// Two runs said so.
    pub fn is_confirmed(&self, load: u64) -> bool {
        self.tallies.get(&load).is_some_and(|tally| tally.is_firm())
    }

    /// What to do after `elapsed`, when a run with a load takes `cost(load)`.
    pub fn next(&self, elapsed: Duration, cost: impl Fn(u64) -> Duration) -> Next {
        let (load, purpose) = match self.wish() {
            Ok(wish) => wish,
            Err(end) => return Next::Done(end),
        };
        let fits = |time: Duration| elapsed + time <= self.settings.budget;
        // The knee must be confirmed within the budget: sharpening it comes second.
        let unsure = self.knee().filter(|knee| purpose == Purpose::Bisect && !self.is_confirmed(*knee));
        let reserve = unsure.map_or(Duration::ZERO, &cost);
        match unsure {
            _ if fits(cost(load) + reserve) => Next::Measure { load, purpose },
            Some(knee) if fits(reserve) => Next::Measure { load: knee, purpose: Purpose::Confirm },
            _ => Next::Done(End::OutOfTime),
        }
    }

    /// What to measure next if time were no matter.
    fn wish(&self) -> Result<(u64, Purpose), End> {
        // A tie is settled before anything is built on it.
        if let Some((&load, _)) = self.tallies.iter().find(|(_, tally)| tally.is_open()) {
            return Ok((load, Purpose::Confirm));
        }
        let settings = &self.settings;
        let most = settings.most.max(1);
        match self.sides() {
            (None, None) => Ok((settings.start.clamp(1, most), Purpose::Bracket)),
            (Some(kept), None) if kept < most => Ok((kept.saturating_mul(2).min(most), Purpose::Bracket)),
            (Some(kept), None) => self.confirmed([kept], End::AllKept),
            (kept, Some(missed)) => {
                let low = kept.unwrap_or(0);
                // The first miss ends the doubling: it is worth a second look before time is spent
                // below it.
                if self.is_edge(missed) && !self.is_confirmed(missed) {
                    return Ok((missed, Purpose::Confirm));
                }
                match middle(low, missed, settings.tolerance) {
                    Some(load) => Ok((load, Purpose::Bisect)),
                    None if low == 0 => self.confirmed([missed], End::NoneKept),
                    None => self.confirmed([low, missed], End::Converged),
                }
            }
        }
    }

    /// The end, unless one of these loads wants another run first.
    fn confirmed<const N: usize>(&self, loads: [u64; N], end: End) -> Result<(u64, Purpose), End> {
        let unsure = loads.into_iter().find(|load| !self.is_confirmed(*load));
        unsure.map_or(Err(end), |load| Ok((load, Purpose::Confirm)))
    }

    /// Nothing above was tried.
    fn is_edge(&self, load: u64) -> bool {
        self.tallies.last_key_value().is_some_and(|(&last, _)| last == load)
    }

    /// Highest load kept and lowest missed, with nothing missed below the first.
    fn sides(&self) -> (Option<u64>, Option<u64>) {
        let missed = self.tallies.iter().find(|(_, tally)| tally.missed > tally.kept);
        let missed = missed.map(|(&load, _)| load);
        let below = self.tallies.range(..missed.unwrap_or(u64::MAX));
        let kept = below.rev().find(|(_, tally)| tally.kept > tally.missed).map(|(&load, _)| load);
        (kept, missed)
    }
}

/// A load between the two, a round one where they are far apart; `None` when they are close.
fn middle(kept: u64, missed: u64, tolerance: f64) -> Option<u64> {
    let gap = missed.saturating_sub(kept);
    if gap <= 1 || crate::load::result::count(gap) <= tolerance * crate::load::result::count(missed) {
        return None;
    }
    let middle = kept + gap / 2;
    let rounded = middle / 10 * 10;
    Some(if gap >= 40 && rounded > kept { rounded } else { middle })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    const LONG: Duration = Duration::from_secs(1_000_000);

    fn settings(most: u64) -> Settings {
        Settings { start: 50, most, tolerance: 0.05, budget: LONG }
    }

    /// Runs a search against a server; gives the search, its end and the loads measured.
    fn run(settings: Settings, mut keeps: impl FnMut(u64) -> bool) -> (Search, End, Vec<u64>) {
        let (mut search, mut loads) = (Search::new(settings), Vec::new());
        loop {
            let elapsed = Duration::from_secs(20) * u32::try_from(loads.len()).unwrap();
            match search.next(elapsed, |_| Duration::from_secs(20)) {
                Next::Measure { load, .. } => {
                    loads.push(load);
                    search.record(load, keeps(load));
                }
                Next::Done(end) => return (search, end, loads),
            }
            assert!(loads.len() < 100, "no end: {loads:?}");
        }
    }

    proptest! {
        /// Goal: the knee of a server that keeps every load up to its knee is found within 5 %, and
        /// soon. Method: any knee, a start anywhere.
        #[test]
        fn the_knee_of_a_steady_server_is_found(knee in 1u64..100_000, start in 1u64..2000) {
            let (search, end, loads) = run(Settings { start, ..settings(200_000) }, |load| load <= knee);
            prop_assert_eq!(end, End::Converged);
            let (found, missed) = (search.knee().unwrap(), search.missed().unwrap());
            prop_assert!(found <= knee && knee < missed, "{} {} {}", found, knee, missed);
            prop_assert!(missed - found <= 1.max(missed / 20), "{} {}", found, missed);
            prop_assert!(search.is_confirmed(found) && search.is_confirmed(missed));
            // Doublings or halvings between start and knee, five bisections, three confirmations.
            let away = start.max(knee).ilog2() - start.min(knee).ilog2() + 2;
            prop_assert!(loads.len() <= usize::try_from(away).unwrap() + 5 + 3, "{loads:?}");
        }

        /// Goal: a run that goes wrong now and then does not lead far astray.
        /// Method: a server that tells the contrary in 5 % of the runs; most knees are still within
        /// 10 %, and the search always ends.
        #[test]
        fn a_noisy_server_is_found_out(seed in 0u64..1000, knee in 100u64..5000) {
            let close = (0..20).filter(|round| {
                let mut rng = Rng::new(seed * 100 + round);
                let (search, ..) = run(settings(10_000), |load| (load <= knee) != rng.chance(0.05));
                search.knee().is_some_and(|found| found.abs_diff(knee) * 10 <= knee)
            });
            let close = close.count();
            prop_assert!(close >= 12, "{close} of 20");
        }

        /// Goal: no run is begun that would end after the budget. Method: any budget and cost.
        #[test]
        fn a_search_ends_within_its_budget(budget_s in 0u64..600, cost_s in 1u64..60, knee in 1u64..9000) {
            let budget = Duration::from_secs(budget_s);
            let mut search = Search::new(Settings { budget, ..settings(10_000) });
            let mut elapsed = Duration::ZERO;
            while let Next::Measure { load, .. } = search.next(elapsed, |_| Duration::from_secs(cost_s)) {
                elapsed += Duration::from_secs(cost_s);
                prop_assert!(elapsed <= budget);
                search.record(load, load <= knee);
            }
        }
    }

    /// Goal: the ends that are not a knee. Method: a server that keeps all, one that keeps nothing,
    /// one that keeps a single call.
    #[test]
    fn a_server_may_keep_all_or_nothing() {
        let (search, end, loads) = run(settings(1000), |_| true);
        assert_eq!((search.knee(), search.missed(), end), (Some(1000), None, End::AllKept));
        assert_eq!(loads, [50, 100, 200, 400, 800, 1000, 1000], "the last one is confirmed");
        let (search, end, _) = run(settings(1000), |_| false);
        assert_eq!((search.knee(), search.missed(), end), (None, Some(1), End::NoneKept));
        let (search, end, _) = run(settings(1000), |load| load == 1);
        assert_eq!((search.knee(), search.missed(), end), (Some(1), Some(2), End::Converged));
    }

    /// Goal: one bad run while doubling does not halve the answer. Method: the first try of 200
    /// calls goes wrong, all else is kept.
    #[test]
    fn the_first_miss_is_looked_at_twice() {
        let mut is_first = true;
        let (search, end, loads) = run(settings(400), |load| !(load == 200 && std::mem::take(&mut is_first)));
        assert_eq!((search.knee(), end), (Some(400), End::AllKept));
        assert_eq!(loads, [50, 100, 200, 200, 200, 400, 400], "a tie is settled by a third run");
    }

    /// Goal: a knee that holds once and not again is given up for a lower one.
    /// Method: 800 is kept once, by luck; the true knee is 600.
    #[test]
    fn a_lucky_knee_is_given_up() {
        let mut luck = true;
        let (search, end, _) =
            run(settings(10_000), |load| load <= 600 || load == 800 && std::mem::take(&mut luck));
        assert_eq!(end, End::Converged);
        assert!((570..=600).contains(&search.knee().unwrap()), "{:?}", search.knee());
    }

    /// Goal: with little time left the knee is confirmed rather than sharpened.
    /// Method: time for seven runs of 20 s: five that double, the miss again, then one more.
    #[test]
    fn the_knee_is_confirmed_before_time_is_up() {
        let budget = Duration::from_secs(20 * 7);
        let (search, end, loads) = run(Settings { budget, ..settings(10_000) }, |load| load <= 400);
        assert_eq!(loads, [50, 100, 200, 400, 800, 800, 400]);
        assert_eq!(end, End::OutOfTime);
        assert!(search.is_confirmed(400));
    }
}
