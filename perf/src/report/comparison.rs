//! The page of a comparison: ratios first, with their spread.

use super::html::{Page, Tone};
use super::runs;
use super::scale::{Axis, Unit};
use super::svg::{Bar, Bars, Mark};
use crate::compare::contestant::{DELAY_LIMIT_US, Identity, Round};
use crate::compare::report::{CompareReport, Level, Spread};
use crate::figures;
use crate::load::result::count;

/// A page of one comparison.
pub fn page(page: &mut Page, compared: &CompareReport) {
    page.headline(&runs::kicker(&compared.fingerprint), &compared.headline());
    let (ours, theirs) = (&compared.ours.name, &compared.theirs.name);
    for level in &compared.levels {
        if let Some(why) = level.refusal(ours, theirs) {
            page.warning(&format!("Not all is compared. {why}."));
        }
    }
    if !compared.fingerprint.optimised {
        page.warning("voxperf was built without optimisation: it may have been late.");
    }
    page.heading("Cost");
    page.paragraph(&format!(
        "Processor time in the window by packets handled in it, as the scheduler counts it. Both were given the \
         same packets by the same generator, one after the other, the first one alternating. Bars are medians of \
         the rounds, whiskers their least and most. Rounds that a server did not hold are left out: it lost \
         packets, left calls unanswered, or half of its packets waited longer than {}.",
        figures::time(count(DELAY_LIMIT_US))
    ));
    page.drawings(&[costs(compared), ratios(compared)]);
    table(page, compared);
    page.heading("Delay added");
    page.drawings(&[
        delays(compared, "Added delay, median", 0.5),
        delays(compared, "Added delay, p99", 0.99),
    ]);
    every_round(page, compared);
    conditions(page, compared);
}

/// The spread of a figure over a level's sound rounds.
fn spread(level: &Level, figure: impl Fn(&Round, &Round) -> f64) -> Option<Spread> {
    Spread::of(level.sound().map(|pair| figure(&pair.ours, &pair.theirs)))
}

fn bars(compared: &CompareReport, figure: impl Fn(&Round, &Round) -> f64) -> Vec<Option<Bar>> {
    let bar = |spread: Spread| Bar { value: spread.median, spread: spread.ends };
    compared.levels.iter().map(|level| spread(level, &figure).map(bar)).collect()
}

fn groups(compared: &CompareReport) -> (String, Vec<String>) {
    let names = compared.levels.iter().map(|level| figures::whole(level.calls as u64));
    ("calls at once".to_owned(), names.collect())
}

/// Something of ours is measured apart from the rest.
fn has_media_threads(compared: &CompareReport) -> bool {
    let mut rounds = compared.levels.iter().flat_map(|level| &level.pairs);
    rounds.any(|pair| pair.ours.media_us != pair.ours.cpu_us)
}

fn costs(compared: &CompareReport) -> String {
    let (ours, theirs) = (&compared.ours.name, &compared.theirs.name);
    let mut series = vec![
        (theirs.clone(), bars(compared, |_, theirs| theirs.us_per_packet())),
        (ours.clone(), bars(compared, |ours, _| ours.us_per_packet())),
    ];
    if has_media_threads(compared) {
        let media = bars(compared, |ours, _| ours.media_us_per_packet());
        series.push((format!("{ours}, media threads"), media));
    }
    let y = Axis::linear("", Unit::Time);
    Bars { title: "CPU for each packet".to_owned(), groups: groups(compared), y, series, levels: vec![] }
        .draw()
}

fn ratios(compared: &CompareReport) -> String {
    let whole = |ours: &Round, theirs: &Round| ours.us_per_packet() / theirs.us_per_packet();
    let media = |ours: &Round, theirs: &Round| ours.media_us_per_packet() / theirs.us_per_packet();
    let mut series = vec![("whole server".to_owned(), bars(compared, whole))];
    if has_media_threads(compared) {
        series.push(("media threads".to_owned(), bars(compared, media)));
    }
    Bars {
        title: format!("{} by {}", compared.ours.name, compared.theirs.name),
        groups: groups(compared),
        y: Axis::linear("ratio of CPU", Unit::Count),
        series,
        levels: vec![Mark { at: 1.0, text: "as much".to_owned() }],
    }
    .draw()
}

fn delays(compared: &CompareReport, title: &str, quantile: f64) -> String {
    let delay = |round: &Round| round.added.at(quantile).map_or(f64::NAN, count);
    let of = |pick: fn(&Round, &Round) -> Round| {
        let bars = bars(compared, |ours, theirs| delay(&pick(ours, theirs)));
        bars.into_iter().map(|bar| bar.filter(|bar| bar.value.is_finite())).collect()
    };
    let series = vec![
        (compared.theirs.name.clone(), of(|_, theirs| theirs.clone())),
        (compared.ours.name.clone(), of(|ours, _| ours.clone())),
    ];
    let y = Axis::linear("", Unit::Time);
    Bars { title: title.to_owned(), groups: groups(compared), y, series, levels: vec![] }.draw()
}

fn table(page: &mut Page, compared: &CompareReport) {
    let show = |spread: Option<Spread>, decimals: usize| {
        spread.map_or_else(|| "–".to_owned(), |spread| spread.show(decimals))
    };
    let rows = compared.levels.iter().map(|level| {
        let cells = vec![
            figures::whole(level.calls as u64),
            format!("{} of {}", level.sound().count(), level.pairs.len()),
            show(spread(level, |ours, _| ours.media_us_per_packet()), 2),
            show(spread(level, |ours, _| ours.us_per_packet()), 2),
            show(spread(level, |_, theirs| theirs.us_per_packet()), 2),
            show(level.ratio(Round::media_us_per_packet), 3),
            show(level.ratio(Round::us_per_packet), 3),
        ];
        (Tone::Plain, cells)
    });
    let ours = [
        format!("{}, media threads, us", compared.ours.name),
        format!("{}, us", compared.ours.name),
        format!("{}, us", compared.theirs.name),
    ];
    let head = [
        "calls",
        "pairs compared",
        &ours[0],
        &ours[1],
        &ours[2],
        "ratio, media threads",
        "ratio, whole server",
    ];
    page.table(&head, &rows.collect::<Vec<_>>());
}

fn every_round(page: &mut Page, compared: &CompareReport) {
    page.heading("Every round");
    let row = |calls: usize, index: usize, name: &str, round: &Round| {
        let flaw = round.flaw();
        let tone = if flaw.is_some() { Tone::Bad } else { Tone::Good };
        let cells = vec![
            format!("{}, {}", figures::whole(calls as u64), index + 1),
            flaw.unwrap_or_else(|| "sound".to_owned()),
            name.to_owned(),
            figures::whole(round.handled),
            figures::time(count(round.cpu_us)),
            figures::time(round.media_us_per_packet()),
            figures::time(round.us_per_packet()),
            figures::time_or_dash(round.added.at(0.5)),
            figures::time_or_dash(round.added.at(0.99)),
            figures::time_or_dash(round.spacing.at(0.999)),
            runs::generator(&round.generator),
        ];
        (tone, cells)
    };
    let mut rows = Vec::new();
    for level in &compared.levels {
        for (index, pair) in level.pairs.iter().enumerate() {
            rows.push(row(level.calls, index, &compared.ours.name, &pair.ours));
            rows.push(row(level.calls, index, &compared.theirs.name, &pair.theirs));
        }
    }
    let head = [
        "calls, round",
        "",
        "server",
        "packets",
        "CPU",
        "media a packet",
        "CPU a packet",
        "added p50",
        "added p99",
        "spacing p99.9",
        "generator CPU",
    ];
    page.table(&head, &rows);
}

fn conditions(page: &mut Page, compared: &CompareReport) {
    let told = |identity: &Identity| format!("{} {}", identity.name, identity.version).trim().to_owned();
    let window = format!("{} s", figures::trimmed(compared.window_s, 1));
    let asked = [
        ("compared", told(&compared.ours)),
        ("how it ran", compared.ours.command.clone()),
        ("what counts of it", compared.ours.counted.clone()),
        ("with", told(&compared.theirs)),
        ("how it ran", compared.theirs.command.clone()),
        ("what counts of it", compared.theirs.counted.clone()),
        ("window of a round", window),
    ];
    runs::conditions(page, &compared.fingerprint, &compared.command, &asked);
}
