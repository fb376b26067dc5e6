//! What a search leaves behind.

use serde::{Deserialize, Serialize};

use super::bound::{Bound, Kind};
use super::search::{End, Purpose};
use super::slo::Judged;
use crate::figures;
use crate::load::result::{Fingerprint, RunReport, Scenario};

/// Share of the knee to plan with: what is left over is for bursts, bad days and growth.
const PLANNED_SHARE_PERCENT: u64 = 80;

/// One run of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Calls, or calls a second.
    pub load: u64,
    /// Why it was measured.
    pub purpose: Purpose,
    /// All limits held.
    pub kept: bool,
    /// The search went by it. A miss while the generator was late says little of the server, and is
    /// measured once more before it counts.
    pub counted: bool,
    /// Limit by limit.
    pub judged: Vec<Judged>,
    /// The run itself.
    pub run: RunReport,
}

/// A search and its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FindReport {
    /// Conditions.
    pub fingerprint: Fingerprint,
    /// The command line that repeats it.
    pub command: Vec<String>,
    /// What the calls do. For [`Scenario::Signalling`] loads are calls a second, else calls at once.
    pub scenario: Scenario,
    /// The URI called.
    pub target: String,
    /// What a run had to keep to.
    pub slo: String,
    /// Width of the knee, as a share.
    pub tolerance: f64,
    /// Time it took, seconds.
    pub took_s: f64,
    /// Why it ended.
    pub end: End,
    /// What went wrong, if a run could not be made.
    pub trouble: Option<String>,
    /// The highest load kept.
    pub knee: Option<u64>,
    /// The lowest load missed.
    pub missed: Option<u64>,
    /// Two runs kept the knee.
    pub confirmed: bool,
    /// The load to plan with.
    pub recommended: Option<u64>,
    /// How far the knee can be trusted upwards.
    pub kind: Kind,
    /// What bound it.
    pub bound: Bound,
    /// Every run, in order.
    pub steps: Vec<Step>,
}

impl Step {
    /// Kept, or which limits were missed.
    pub fn verdict(&self) -> String {
        let missed =
            self.judged.iter().filter(|judged| !judged.kept).map(|judged| {
                format!("{} {}", judged.metric, judged.value.as_deref().unwrap_or("not measured"))
            });
        let missed: Vec<String> = missed.collect();
        match missed.as_slice() {
            [] => "kept".to_owned(),
            _ if self.counted => format!("missed: {}", missed.join(", ")),
            _ => format!("not counted, the generator was late: {}", missed.join(", ")),
        }
    }
}

impl FindReport {
    /// The result in a sentence or two.
    pub fn headline(&self) -> String {
        let calls = calls_of(self.scenario);
        let (Some(knee), Some(recommended)) = (self.knee, self.recommended) else {
            return format!("This machine did not carry {calls} within the limits: {}.", self.bound);
        };
        let at_least = if self.kind == Kind::Floor { "at least " } else { "" };
        let kind = match (self.kind, self.end) {
            (Kind::Floor, End::OutOfTime) if self.bound != Bound::Time => {
                "floor, as the time was up; above it"
            }
            (Kind::Floor, _) => "floor,",
            (Kind::Ceiling, _) => "ceiling,",
        };
        let unsure = if self.confirmed { "" } else { "; measured once, not confirmed" };
        format!(
            "This machine carries {at_least}{} {calls}{} ({kind} {}{unsure}); plan for {}.",
            figures::whole(knee),
            self.cores().map(|cores| format!(" on {cores}")).unwrap_or_default(),
            self.bound,
            figures::whole(recommended)
        )
    }

    /// The runs at the knee.
    pub fn at_knee(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.kept && Some(step.load) == self.knee)
    }

    /// Processors that the server's media threads may fill: one each.
    fn cores(&self) -> Option<String> {
        let server = self.at_knee().last()?.run.server.as_ref()?;
        let media = server.threads.iter().filter(|thread| thread.name.starts_with("media-")).count();
        match (self.scenario, media) {
            (Scenario::Signalling, _) | (_, 0) => None,
            (_, 1) => Some("one media core".to_owned()),
            (_, count) => Some(format!("{count} media cores")),
        }
    }
}

/// What the loads of a scenario count.
pub fn calls_of(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Playout => "played calls",
        Scenario::Echo => "echoed calls",
        Scenario::Record => "recorded calls",
        Scenario::Anchor => "anchored calls",
        Scenario::Signalling => "calls a second",
        Scenario::Mixed => "calls of mixed kind",
        Scenario::Life => "calls in all phases",
    }
}

/// The load to plan with below a knee, rounded down to a number that does not feign precision.
pub fn recommended(knee: u64) -> u64 {
    let load = knee * PLANNED_SHARE_PERCENT / 100;
    let grain = match load {
        0..=99 => 1,
        100..=9_999 => 10,
        _ => 100,
    };
    (load / grain * grain).max(knee.min(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::runs::find_of;

    /// Goal: a planner's number is 80 % of the knee, rounded down, and never nothing of something.
    /// Method: the example of the manual, and small and large knees.
    #[test]
    fn the_planners_number_is_four_fifths_rounded_down() {
        assert_eq!([2340, 1, 0, 99, 200, 15_555].map(recommended), [1870, 1, 0, 79, 160, 12_400]);
    }

    /// Goal: the first sentence says it all, and a floor is never told as a ceiling.
    /// Method: the same search as ceiling, floor, unconfirmed and without any knee.
    #[test]
    fn the_headline_says_number_kind_and_bound() {
        let mut found = find_of(Scenario::Anchor, 2340);
        found.kind = Kind::Ceiling;
        found.bound = Bound::Server { thread: "media-0".to_owned(), percent: 97.0 };
        assert_eq!(
            found.headline(),
            "This machine carries 2,340 anchored calls on one media core (ceiling, bound by the CPU \
             of the server's thread media-0 at 97 %); plan for 1,870."
        );
        (found.kind, found.bound, found.confirmed) = (Kind::Floor, Bound::Asked, false);
        let told = found.headline();
        assert!(told.starts_with("This machine carries at least 2,340 anchored calls"), "{told}");
        assert!(told.contains("(floor, the highest load asked for was kept; measured once"), "{told}");
        (found.end, found.bound) =
            (End::OutOfTime, Bound::Generator { why: "the generator: sends 9 ms late".to_owned() });
        let told = found.headline();
        let why = "(floor, as the time was up; above it bound by the load generator: sends 9 ms late; measured once";
        assert!(told.contains(why), "{told}");
        (found.knee, found.recommended) = (None, None);
        let told = found.headline();
        assert!(told.starts_with("This machine did not carry anchored calls within the limits"), "{told}");
    }
}
