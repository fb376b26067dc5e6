//! Which figures of runs are drawn, and how.

use super::scale::{Axis, Unit};
use super::svg::{Chart, Mark, Series};
use crate::find::bound::busiest;
use crate::find::slo::Slo;
use crate::load::result::{Distribution, RunReport, Scenario, count};

/// Losses below this are drawn as none.
const LOSS_FLOOR: f64 = 1e-6;

/// A run at its place.
#[derive(Debug, Clone, Copy)]
pub struct Point<'a> {
    /// Calls, or calls a second.
    pub load: u64,
    /// The limits were kept; drawn filled.
    pub kept: bool,
    /// The run.
    pub run: &'a RunReport,
}

/// A figure of a run by its name.
type Figure = (&'static str, fn(&RunReport) -> Option<f64>);

/// What a load is called at an axis.
pub fn load_label(scenario: Scenario) -> &'static str {
    if scenario == Scenario::Signalling { "calls a second" } else { "calls at once" }
}

/// The load of a run.
pub fn load_of(run: &RunReport) -> u64 {
    if run.asked.scenario == Scenario::Signalling {
        // Rates are asked for in whole calls by the search; a fraction is not worth an axis.
        let rate = run.asked.cps.max(0.0);
        std::time::Duration::try_from_secs_f64(rate).map_or(0, |rate| rate.as_secs())
    } else {
        run.asked.calls as u64
    }
}

/// Processor, loss, spacing and delays against load; what was never measured is left out.
pub fn against_load(points: &[Point<'_>], slo: Option<&Slo>, uprights: &[Mark]) -> Vec<String> {
    let Some(first) = points.first() else { return Vec::new() };
    let limit = |names: &[&str]| -> Vec<Mark> {
        let limits = slo.into_iter().flat_map(Slo::limits);
        let of_these = limits.filter(|limit| names.contains(&limit.name()));
        of_these.map(|limit| Mark { at: limit.below(), text: limit.to_string() }).collect()
    };
    let x = Axis::linear(load_label(first.run.asked.scenario), Unit::Count);
    let chart = |title: &str, y: Axis, levels: Vec<Mark>, figures: &[Figure]| Chart {
        title: title.to_owned(),
        x: x.clone(),
        y,
        series: figures.iter().filter_map(|figure| series(points, *figure)).collect(),
        uprights: uprights.to_vec(),
        levels,
    };
    let time = || Axis::linear("", Unit::Time);
    let charts = [
        chart("CPU against load", Axis::linear("of one processor", Unit::Percent), vec![], &CPU),
        chart("Server's CPU for each packet", time(), vec![], &PER_PACKET),
        chart(
            "Packets lost",
            Axis::log("", Unit::Share, LOSS_FLOOR),
            limit(&["loss", "loss_by_server", "buffer_drops"]),
            loss(first.run.asked.scenario),
        ),
        chart(
            "Spacing of packets",
            time(),
            limit(&["spacing_p99", "spacing_p999", "spacing_p99.9"]),
            &SPACING,
        ),
        chart("Delay added by the server", time(), limit(&["added_p99", "added_p999"]), &ADDED),
        chart("Set-up time", Axis::log("", Unit::Time, 1.0), limit(&["setup_p99", "setup_p999"]), &SETUP),
        chart("Server's memory for each call", Axis::linear("resident", Unit::Bytes), vec![], &MEMORY),
    ];
    charts.iter().filter(|chart| !chart.series.is_empty()).map(Chart::draw).collect()
}

const CPU: [Figure; 3] = [
    ("server, busiest thread", |run| busiest(run).map(|thread| thread.cpu_percent)),
    ("server, all threads", |run| run.server.as_ref().map(|server| server.cpu_percent)),
    ("generator, busiest thread", |run| Some(run.generator.busiest_percent)),
];

const PER_PACKET: [Figure; 1] = [("media threads", |run| {
    run.server.as_ref().map(|server| server.media_us_per_packet).filter(|cost| *cost > 0.0)
})];

const SPACING: [Figure; 3] = [
    ("median", |run| run.spacing.at(0.5).map(count)),
    ("p99", |run| run.spacing.at(0.99).map(count)),
    ("p99.9", |run| run.spacing.at(0.999).map(count)),
];

const ADDED: [Figure; 3] = [
    ("median", |run| run.added.at(0.5).map(count)),
    ("p99", |run| run.added.at(0.99).map(count)),
    ("p99.9", |run| run.added.at(0.999).map(count)),
];

const SETUP: [Figure; 2] =
    [("median", |run| run.setup.at(0.5).map(count)), ("p99", |run| run.setup.at(0.99).map(count))];

const MEMORY: [Figure; 1] = [("resident", |run| {
    // Calls that come and go leave no memory to divide.
    let server = run.server.as_ref().filter(|_| run.asked.scenario != Scenario::Signalling)?;
    let grown = server.resident_bytes.saturating_sub(server.resident_before_bytes);
    (run.calls.peak > 0 && grown > 0).then(|| count(grown) / count(run.calls.peak))
})];

/// Where nothing comes back, only the kernel tells of losses.
fn loss(scenario: Scenario) -> &'static [Figure] {
    const RECEIVED: [Figure; 2] = [
        ("all", |run| (run.packets.expected > 0).then(|| run.packets.loss())),
        ("by the server", |run| (run.packets.expected > 0).then(|| run.packets.loss_by_server())),
    ];
    const SENT: [Figure; 1] = [("receive buffers full", |run| {
        let packets = &run.packets;
        (packets.sent > 0).then(|| count(packets.receive_buffer_errors) / count(packets.sent))
    })];
    match scenario {
        Scenario::Record => &SENT,
        Scenario::Playout
        | Scenario::Echo
        | Scenario::Anchor
        | Scenario::Signalling
        | Scenario::Mixed
        | Scenario::Life => &RECEIVED,
    }
}

/// One figure of all runs: each a point, and a line through the means at each load.
fn series(points: &[Point<'_>], (name, figure): Figure) -> Option<Series> {
    let told = points.iter().filter_map(|point| Some((point.load, figure(point.run)?, point.kept)));
    let mut told: Vec<(u64, f64, bool)> = told.filter(|(_, value, _)| value.is_finite()).collect();
    told.sort_by_key(|(load, ..)| *load);
    if told.is_empty() {
        return None;
    }
    let line = told.chunk_by(|a, b| a.0 == b.0).map(|runs| {
        let sum: f64 = runs.iter().map(|(_, value, _)| value).sum();
        (count(runs[0].0), sum / count(runs.len() as u64))
    });
    let line = line.collect();
    let points = told.iter().map(|(load, value, kept)| (count(*load), *value, *kept)).collect();
    Some(Series { name: name.to_owned(), line, points })
}

/// Percentiles of a run's latencies; what was never measured is left out.
pub fn latencies(title: &str, run: &RunReport) -> Option<String> {
    let named = [
        ("set-up", &run.setup),
        ("first audio", &run.first_audio),
        ("added delay", &run.added),
        ("our own lateness", &run.generator.send_lateness),
    ];
    percentiles(title, Axis::log("", Unit::Time, 1.0), &named)
}

/// Percentiles of the spacing of packets in several runs.
pub fn spacings(title: &str, runs: &[(String, &RunReport)]) -> Option<String> {
    let named: Vec<(&str, &Distribution)> =
        runs.iter().map(|(name, run)| (name.as_str(), &run.spacing)).collect();
    percentiles(title, Axis::linear("", Unit::Time), &named)
}

fn percentiles(title: &str, y: Axis, named: &[(&str, &Distribution)]) -> Option<String> {
    let series = named.iter().filter(|(_, distribution)| distribution.count > 0);
    let series: Vec<Series> = series.map(|(name, distribution)| curve(name, distribution)).collect();
    let title = title.to_owned();
    let x = Axis::quantiles();
    let chart = Chart { title, x, y, series, uprights: vec![], levels: vec![] };
    (!chart.series.is_empty()).then(|| chart.draw())
}

/// Quantile against value; the maximum has no place on an axis of nines.
fn curve(name: &str, distribution: &Distribution) -> Series {
    let below_all = distribution.quantiles.iter().filter(|(quantile, _)| *quantile < 1.0);
    let line: Vec<(f64, f64)> = below_all.map(|&(quantile, value)| (quantile, count(value))).collect();
    let points = line.iter().map(|&(quantile, value)| (quantile, value, true)).collect();
    Series { name: name.to_owned(), line, points }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::runs::run_of;

    /// Goal: repeated runs of one load are points of their own and one place of the line.
    /// Method: two runs at 100 calls with 10 and 30 us a packet, one at 200.
    #[test]
    fn a_line_goes_through_the_mean_of_repeated_runs() {
        let mut runs = [run_of(100), run_of(100), run_of(200)];
        for (run, cost) in runs.iter_mut().zip([10.0, 30.0, 5.0]) {
            run.server.as_mut().unwrap().media_us_per_packet = cost;
        }
        let points = runs.iter().map(|run| Point { load: load_of(run), kept: true, run });
        let points: Vec<Point<'_>> = points.rev().collect();
        let drawn = series(&points, PER_PACKET[0]).unwrap();
        assert_eq!(drawn.line, [(100.0, 20.0), (200.0, 5.0)]);
        assert_eq!(drawn.points.len(), 3);
    }

    /// Goal: what was not measured makes no chart. Method: a run without server, echo or answers.
    #[test]
    fn what_was_not_measured_makes_no_chart() {
        let full = run_of(100);
        let all = against_load(&[Point { load: 100, kept: true, run: &full }], None, &[]);
        assert_eq!(all.len(), 7);
        let mut bare = run_of(100);
        bare.server = None;
        for gone in [&mut bare.setup, &mut bare.added, &mut bare.spacing, &mut bare.first_audio] {
            *gone = Distribution::default();
        }
        bare.packets.expected = 0;
        let left = against_load(&[Point { load: 100, kept: true, run: &bare }], None, &[]);
        assert_eq!(left.len(), 1, "only the generator's processor time");
        assert!(spacings("x", &[("a".to_owned(), &bare)]).is_none());
        assert!(latencies("x", &bare).is_some(), "our own lateness is always known");
        assert!(against_load(&[], None, &[]).is_empty());
    }

    /// Goal: a rate is the load of signalling. Method: 250.5 calls a second.
    #[test]
    fn the_load_of_signalling_is_a_rate() {
        let mut run = run_of(100);
        assert_eq!(load_of(&run), 100);
        (run.asked.scenario, run.asked.cps) = (Scenario::Signalling, 250.5);
        assert_eq!(load_of(&run), 250);
        run.asked.cps = f64::NAN;
        assert_eq!(load_of(&run), 0);
    }
}
