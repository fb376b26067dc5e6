//! Calls in all phases from voxperf, for as long as a soak needs them.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::node::signal;
use crate::common::peers;
use crate::figures::{Figures, buckets, counts, number, quantile_ms};
use crate::stage::Stage;

/// Longest time a load runs if nobody ends it.
const SECONDS_MAX: u64 = 3600;

/// What calls there shall be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// New calls a second.
    pub(crate) per_s: u64,
    /// Their average length, seconds.
    pub(crate) mean_s: u64,
    /// What they do, as `voxperf run --parts` has it.
    pub(crate) parts: &'static str,
    /// Seed of their times.
    pub(crate) seed: u64,
}

impl Wish {
    /// Calls at once.
    pub(crate) fn at_once(&self) -> u64 {
        self.per_s * self.mean_s
    }
}

/// A load that runs. Killed with its owner.
pub(crate) struct Load(Option<Child>);

impl Load {
    /// Starts it, and waits until calls end as fast as they begin.
    pub(crate) fn start(stage: &Stage, wish: Wish) -> Self {
        let numbers = [
            ("--cps", wish.per_s),
            ("--hold", wish.mean_s),
            ("--seed", wish.seed),
            // What rings is given up by its caller, not for want of an answer.
            ("--patience", 120),
            ("--duration", SECONDS_MAX),
            ("--pid", stage.node.supervisor_pid().into()),
        ];
        let callee = format!("127.0.0.1:{}", stage.node.ports.peer());
        let mut command = Command::new(peers::voxperf());
        command.args(["run", "--scenario", "life", "--json", "--parts", wish.parts, "--callee", &callee]);
        command.args(stage.target());
        numbers.iter().for_each(|(name, value)| {
            command.args([(*name).to_owned(), value.to_string()]);
        });
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let load = Self(Some(quiet.spawn().expect("voxperf starts")));
        std::thread::sleep(Duration::from_secs(wish.mean_s * 3 / 2 + 2));
        load
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    /// From now on what is under way is told apart.
    pub(crate) fn mark(&self) {
        signal("-USR1", &self.pid().to_string());
    }

    /// Begins no more calls, ends those there are, and gives the report.
    pub(crate) fn finish(mut self) -> Outcome {
        signal("-INT", &self.pid().to_string());
        let output = self.0.take().expect("it runs").wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout);
        Outcome(serde_json::from_str(&text).unwrap_or_else(|error| panic!("voxperf: {error}\n{text}")))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A load's report.
pub(crate) struct Outcome(pub(crate) Value);

impl Outcome {
    /// A number of it.
    pub(crate) fn number(&self, path: &str) -> u64 {
        number(&self.0, path)
    }

    /// Packets that did not come and that our own side has not lost.
    pub(crate) fn lost(&self) -> u64 {
        let ours = self.number("/packets/dropped_by_us") + self.number("/packets/not_sent");
        self.number("/packets/lost").saturating_sub(ours)
    }

    /// Rows of what matters to worker life.
    pub(crate) fn tell(&self, figures: &mut Figures) {
        let report = &self.0;
        let n = |path: &str| self.number(path);
        figures.add("calls begun, answered", format!("{}, {}", n("/calls/attempted"), n("/calls/answered")));
        figures.add("most calls at once", n("/calls/peak"));
        figures.add("calls failed", format!("{}: {}", n("/calls/failed"), counts(report, "/calls/outcomes")));
        figures.add(
            "answered calls ended early",
            format!("{}: {}", n("/calls/ended_early"), counts(report, "/life/early")),
        );
        figures.add(
            "packets lost by the node",
            format!(
                "{} of {} ({} by ourselves)",
                self.lost(),
                n("/packets/expected"),
                n("/packets/lost") - self.lost()
            ),
        );
        let gap = |q| quantile_ms(report, "/continuity/longest_gap", q);
        figures.add(
            "longest gap of a stream",
            format!(
                "p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms of {} streams",
                gap(0.5),
                gap(0.99),
                gap(1.0),
                n("/continuity/streams")
            ),
        );
        figures.add("gaps", buckets(report, "/continuity/histogram_ms"));
        figures.add(
            "SSRC changes, sequences begun anew",
            format!("{}, {}", n("/continuity/ssrc_changes"), n("/continuity/restarts")),
        );
        figures.add("re-INVITEs taken", format!("{} of {}", n("/life/changes_taken"), n("/life/changes")));
        figures.add("keys heard", format!("{} of {}", n("/life/keys_heard"), n("/life/keys")));
        figures.add(
            "connections that broke, requests sent again",
            format!("{}, {}", n("/life/broken"), n("/life/moved")),
        );
        figures.add("remarks", counts(report, "/calls/remarks"));
        figures.add("voxperf", report["generator"]["bottleneck"].as_str().unwrap_or("kept up"));
    }

    /// Asserts that no call noticed anything.
    pub(crate) fn assert_unharmed(&self) {
        for path in [
            "/calls/failed",
            "/calls/ended_early",
            "/calls/silent",
            "/packets/misdelivered",
            "/continuity/ssrc_changes",
            "/continuity/restarts",
            "/life/overdue",
        ] {
            assert_eq!(self.number(path), 0, "{path}: {:#}", self.0);
        }
        assert_eq!(self.number("/life/changes_taken"), self.number("/life/changes"), "{:#}", self.0);
        assert_eq!(self.lost(), 0, "{:#}", self.0["packets"]);
    }
}
