//! The page of a search: the number to plan with first, then the evidence.

use super::charts::{self, Point};
use super::html::{Page, Tone};
use super::runs;
use super::svg::Mark;
use crate::figures;
use crate::find::bound::Kind;
use crate::find::report::{FindReport, Step, calls_of};
use crate::find::search::End;
use crate::find::slo::Slo;
use crate::load::result::RunReport;

/// A page of one search.
pub fn page(page: &mut Page, found: &FindReport) {
    page.headline(&runs::kicker(&found.fingerprint), &found.headline());
    warnings(page, found);
    page.tiles(&tiles(found));
    limits(page, found);
    page.heading("Against load");
    let told = found.steps.iter();
    let points: Vec<Point<'_>> =
        told.map(|step| Point { load: step.load, kept: step.kept, run: &step.run }).collect();
    let knee = found.knee.map(|knee| Mark { at: crate::load::result::count(knee), text: "knee".to_owned() });
    let slo: Option<Slo> = found.slo.parse().ok();
    page.paragraph("A point is a run; a hollow one missed a limit. Lines go through the mean of each load.");
    page.drawings(&charts::against_load(&points, slo.as_ref(), knee.as_slice()));
    percentiles(page, found);
    steps(page, found);
    let asked = found.steps.last().map(|step| runs::asked(&step.run)).unwrap_or_default();
    runs::conditions(page, &found.fingerprint, &found.command, &asked);
}

fn warnings(page: &mut Page, found: &FindReport) {
    if let Some(why) = &found.trouble {
        page.warning(&format!("The search ended early, as a run could not be made: {why}."));
    }
    let floor = match (found.kind, found.end) {
        (Kind::Ceiling, _) => None,
        (Kind::Floor, End::AllKept) => Some("the highest load asked for was kept"),
        (Kind::Floor, End::OutOfTime) => Some("the time was up before the knee was narrowed down"),
        (Kind::Floor, End::Broken) => Some("a run could not be made"),
        (Kind::Floor, End::Converged | End::NoneKept) => Some("the generator was the bottleneck"),
    };
    if let Some(why) = floor {
        page.warning(&format!("This is a floor, not a ceiling: {why}. The server may carry more."));
    }
    if !found.fingerprint.optimised {
        page.warning("voxperf was built without optimisation: its own share of the times is too large.");
    }
    if found.steps.iter().all(|step| step.run.server.is_none()) {
        page.warning(
            "The server's process is not known (--pid): whether its CPU was the bound cannot be told.",
        );
    }
}

fn tiles(found: &FindReport) -> Vec<(&'static str, String, String, Tone)> {
    let number = |load: Option<u64>| load.map_or_else(|| "none".to_owned(), figures::whole);
    let kind = match found.kind {
        Kind::Ceiling => "ceiling",
        Kind::Floor => "floor: may carry more",
    };
    let sure = if found.confirmed { "confirmed by a second run" } else { "not confirmed" };
    let mut tiles = vec![
        ("knee", number(found.knee), format!("{}; {kind}, {sure}", calls_of(found.scenario)), Tone::Plain),
        ("plan for", number(found.recommended), "80 % of the knee".to_owned(), Tone::Good),
    ];
    if let Some(missed) = found.missed {
        tiles.push(("first load missed", figures::whole(missed), found.bound.to_string(), Tone::Bad));
    }
    let server = found.at_knee().last().and_then(|step| step.run.server.as_ref());
    if let Some(server) = server.filter(|server| server.media_us_per_packet > 0.0) {
        let cost = figures::time(server.media_us_per_packet);
        tiles.push(("server's CPU for a packet", cost, "media threads, at the knee".to_owned(), Tone::Plain));
    }
    tiles
}

/// Limits, what the knee came to, what the first load beyond it came to.
fn limits(page: &mut Page, found: &FindReport) {
    page.heading("Limits");
    let knee = found.at_knee().last();
    let missed = found.steps.iter().rfind(|step| Some(step.load) == found.missed && !step.kept);
    let Some(any) = knee.or(missed) else { return };
    let at = |step: Option<&Step>, index: usize| {
        let judged = step.and_then(|step| step.judged.get(index));
        judged.and_then(|judged| judged.value.clone()).unwrap_or_else(|| "–".to_owned())
    };
    let is_missed =
        |index: usize| missed.and_then(|step| step.judged.get(index)).is_some_and(|judged| !judged.kept);
    let rows = any.judged.iter().enumerate().map(|(index, judged)| {
        let tone = if is_missed(index) { Tone::Bad } else { Tone::Plain };
        let verdict = if is_missed(index) { "missed beyond the knee" } else { "kept" };
        let limit = format!("below {}", judged.limit);
        (tone, vec![judged.metric.clone(), verdict.to_owned(), limit, at(knee, index), at(missed, index)])
    });
    let name = |name: &str, load: Option<u64>| match load {
        Some(load) => format!("{name}, {}", figures::whole(load)),
        None => name.to_owned(),
    };
    let (at_knee, beyond) = (name("at the knee", found.knee), name("beyond it", found.missed));
    page.table(&["metric", "", "limit", &at_knee, &beyond], &rows.collect::<Vec<_>>());
}

/// Percentiles at the knee, and spacing beside that of a lower load and of the first one missed.
fn percentiles(page: &mut Page, found: &FindReport) {
    let Some(knee) = found.at_knee().last() else { return };
    page.heading("Percentiles");
    let half = knee.load / 2;
    let lower = found.steps.iter().filter(|step| step.kept && step.load <= half).max_by_key(|step| step.load);
    let missed = found.steps.iter().rfind(|step| Some(step.load) == found.missed && !step.kept);
    let runs: Vec<(String, &RunReport)> = [lower, Some(knee), missed]
        .into_iter()
        .flatten()
        .map(|step| (format!("{} calls", figures::whole(step.load)), &step.run))
        .collect();
    let title = format!("Latency at the knee, {}", figures::whole(knee.load));
    let drawings = [charts::latencies(&title, &knee.run), charts::spacings("Spacing of packets", &runs)];
    page.drawings(&drawings.into_iter().flatten().collect::<Vec<_>>());
    runs::percentiles(page, &knee.run);
}

fn steps(page: &mut Page, found: &FindReport) {
    page.heading("Every run");
    let minutes = figures::trimmed(found.took_s / 60.0, 1);
    let (count, width) = (found.steps.len(), figures::share(found.tolerance));
    page.paragraph(&format!(
        "{count} runs in {minutes} minutes: doubled until a limit was missed, halved to within {width}, both sides repeated."
    ));
    let rows = found.steps.iter().map(|step| {
        let tone = match step {
            Step { kept: true, .. } => Tone::Good,
            Step { counted: true, .. } => Tone::Bad,
            Step { counted: false, .. } => Tone::Plain,
        };
        let cells = vec![figures::whole(step.load), step.verdict(), step.purpose.name().to_owned()];
        (tone, [cells, runs::row(&step.run)].concat())
    });
    page.table(&[&["load", "verdict", "to"], &runs::ROW_HEAD[..]].concat(), &rows.collect::<Vec<_>>());
}
