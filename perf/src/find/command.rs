//! `voxperf find`: its arguments, and what it prints.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::drive::{Measure, Plan, find};
use super::report::{FindReport, Step, calls_of};
use super::search::{Purpose, Settings};
use super::slo::Slo;
use crate::load::command::LoadArgs;
use crate::load::result::{RunReport, Scenario, count};
use crate::load::run;
use crate::report::runs;
use crate::report::{Document, Outputs};
use crate::script::seconds_of;
use crate::{clock, figures};

/// Between two runs: ports leave quarantine, connections close, the server comes to rest.
const PAUSE: Duration = Duration::from_secs(2);

/// What a run takes besides set-up, window and hang-up.
const RUN_OVERHEAD: Duration = Duration::from_secs(3);

/// Calls are hung up at least this many a second.
const HANG_UP_RATE: f64 = 200.0;

/// Arguments of `voxperf find`.
#[derive(Debug, Args)]
pub struct FindArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// What a load must keep to, comma separated: METRIC<VALUE. Metrics: loss, loss_by_server,
    /// buffer_drops (UDP receive buffers full, whole machine), failed (share of calls), cpu (busiest
    /// thread of the server; needs --pid), and setup, first_audio, spacing, added, jitter followed by
    /// _p50, _p90, _p99, _p999, _p9999 or _max. Values: 1e-4 or 0.01%; times in us, ms or s.
    /// failed<0.1% is always asked for unless something else is. Default by scenario:
    /// loss<1e-4, setup_p99<50ms, spacing_p999<25ms, and added_p99<3ms for echo and anchor.
    #[arg(long, value_name = "LIMITS")]
    slo: Option<Slo>,
    /// Load to begin with: calls, or calls a second for signalling.
    #[arg(long, default_value_t = 50, value_name = "N")]
    start: u64,
    /// Highest load to try: calls, or calls a second for signalling.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    max_calls: u64,
    /// How close kept and missed loads must come, as a share.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    tolerance: f64,
    /// Time for the whole search; no run is begun that would end later.
    #[arg(long, default_value = "540", value_parser = seconds_of, value_name = "S")]
    budget: Duration,
    /// New calls a second while a load is set up.
    #[arg(long, default_value_t = 200.0, value_name = "R")]
    cps: f64,
    /// Measured window of each run.
    #[arg(long, default_value = "8", value_parser = seconds_of, value_name = "S")]
    duration: Duration,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// Searches, prints, writes. False when not even one call was kept.
///
/// # Errors
/// Limits that the scenario does not measure or that need a process, a target that cannot be
/// reached, or a file that cannot be written.
pub fn run(args: &FindArgs) -> Result<bool> {
    let scenario = args.load.scenario;
    ensure!(
        scenario != Scenario::Life,
        "calls that come and go in all phases have no one load to search for"
    );
    let slo = args.slo.clone().unwrap_or_else(|| Slo::of(scenario)).with_calls_answered();
    slo.ensure_measured(scenario, args.load.rtcp)?;
    ensure!(!slo.needs_pid() || !args.load.pids.is_empty(), "a limit of cpu needs the server's --pid");
    ensure!(args.tolerance > 0.0 && args.tolerance < 1.0, "--tolerance is a share between 0 and 1");
    ensure!(args.cps > 0.0 && args.cps.is_finite(), "--cps must be above 0");
    let plan = Plan {
        scenario,
        target: args.load.target.clone(),
        command: std::env::args().collect(),
        slo,
        settings: Settings {
            start: args.start,
            most: args.max_calls,
            tolerance: args.tolerance,
            budget: args.budget,
        },
    };
    let bar = crate::run::progress(0, args.json);
    if !args.json {
        println!("asking for {} of {}", plan.slo, calls_of(scenario));
    }
    let mut runs = Runs { args, bar: &bar, began: clock::now(), is_first: true };
    let mut told = |step: &Step| bar.suspend(|| tell(step, args.json));
    let found = find(&plan, &mut runs, &mut told);
    bar.finish_and_clear();
    let found = found?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(&found);
    }
    let is_found = found.knee.is_some();
    args.outputs.write(&Document::Find(Box::new(found)))?;
    Ok(is_found)
}

/// Runs of the load, one after the other.
struct Runs<'a> {
    args: &'a FindArgs,
    bar: &'a ProgressBar,
    began: Instant,
    is_first: bool,
}

impl Runs<'_> {
    fn is_signalling(&self) -> bool {
        self.args.load.scenario == Scenario::Signalling
    }
}

impl Measure for Runs<'_> {
    fn measure(&mut self, load: u64, _: Purpose) -> Result<RunReport> {
        if !std::mem::take(&mut self.is_first) {
            std::thread::sleep(PAUSE);
        }
        let (calls, cps) =
            if self.is_signalling() { (1, count(load)) } else { (usize::try_from(load)?, self.args.cps) };
        let plan = self.args.load.plan((calls, cps, self.args.duration))?;
        run::run(&plan, self.bar)
    }

    fn cost(&self, load: u64) -> Duration {
        let seconds = if self.is_signalling() {
            0.0
        } else {
            count(load) / self.args.cps + count(load) / (self.args.cps * 4.0).max(HANG_UP_RATE)
        };
        PAUSE + RUN_OVERHEAD + self.args.duration + Duration::from_secs_f64(seconds)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// One line for a step.
fn tell(step: &Step, quiet: bool) {
    if quiet {
        return;
    }
    let verdict = step.verdict();
    let named = runs::ROW_HEAD.iter().zip(runs::row(&step.run)).filter(|(_, figure)| figure != "–");
    let named: Vec<String> = named.map(|(name, figure)| format!("{name} {figure}")).collect();
    println!("{:>7} {verdict} ({}; {})", figures::whole(step.load), step.purpose.name(), named.join(", "));
}

fn print(found: &FindReport) {
    println!("{}", found.headline());
    if let Some(why) = &found.trouble {
        println!("the search ended early: {why}");
    }
    let (steps, minutes) = (found.steps.len(), figures::trimmed(found.took_s / 60.0, 1));
    println!("{steps} runs in {minutes} minutes");
    if found.steps.iter().all(|step| step.run.server.is_none()) {
        println!(
            "without --pid nothing is known of the server's CPU: it is never named as what bound the result"
        );
    }
}
