//! The parts of a page that tell of single runs: figures, tables, conditions.

use super::charts::{self, Point};
use super::continuity;
use super::html::{Page, Tone};
use crate::figures;
use crate::find::bound::{busiest, reason};
use crate::find::report::calls_of;
use crate::load::result::{Distribution, Fingerprint, Generator, RunReport, Scenario, count};

/// Columns of a table of percentiles.
const COLUMNS: [(&str, f64); 6] =
    [("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// Threads with less are not told of one by one.
const LEAST_PERCENT: f64 = 0.05;

/// A page of one run.
pub fn one(page: &mut Page, run: &RunReport) {
    page.headline(&kicker(&run.fingerprint), &headline(run));
    honesty(page, run);
    page.tiles(&tiles(run));
    page.heading("Latency");
    let drawings = [
        charts::latencies("Latency percentiles", run),
        charts::spacings("Spacing percentiles", &[("spacing".to_owned(), run)]),
    ];
    page.drawings(&drawings.into_iter().flatten().collect::<Vec<_>>());
    percentiles(page, run);
    continuity::section(page, run);
    details(page, run);
    conditions(page, &run.fingerprint, &run.command, &asked(run));
}

/// A page of several runs, one beside the other.
pub fn several(page: &mut Page, runs: &[&RunReport]) {
    let Some(first) = runs.first() else { return };
    let scenarios = runs.iter().all(|run| run.asked.scenario == first.asked.scenario);
    let what = if scenarios { calls_of(first.asked.scenario) } else { "calls" };
    let loads = runs.iter().map(|run| charts::load_of(run));
    let (least, most) = (loads.clone().min().unwrap_or(0), loads.max().unwrap_or(0));
    let (least, most) = (figures::whole(least), figures::whole(most));
    let sentence = format!("{} runs with {least} to {most} {what}.", runs.len());
    page.headline(&kicker(&first.fingerprint), &sentence);
    runs.iter().for_each(|run| honesty(page, run));
    let points = runs.iter().map(|run| Point { load: charts::load_of(run), kept: true, run });
    page.heading("Against load");
    page.drawings(&charts::against_load(&points.collect::<Vec<_>>(), None, &[]));
    page.heading("Runs");
    let rows = runs.iter().map(|run| (Tone::Plain, [vec![load_text(run)], row(run)].concat()));
    page.table(&[&["calls"], &ROW_HEAD[..]].concat(), &rows.collect::<Vec<_>>());
    page.heading("Commands");
    runs.iter().for_each(|run| page.command(&figures::command(&run.command)));
    conditions(page, &first.fingerprint, &[], &asked(first));
}

/// The line above the headline: when, on what, against what.
pub fn kicker(fingerprint: &Fingerprint) -> String {
    let when = format!("{} UTC", figures::utc(fingerprint.began_unix_s));
    let program = format!("voxperf {}", fingerprint.voxperf);
    let parts = [&program, &fingerprint.server, &fingerprint.processor, &when].map(String::as_str);
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" · ")
}

fn headline(run: &RunReport) -> String {
    let calls = &run.calls;
    let mut told =
        vec![format!("{} of {} answered", figures::whole(calls.answered), figures::whole(calls.attempted))];
    if run.packets.expected > 0 {
        told.push(format!("{} of the packets lost", figures::share(run.packets.loss())));
    }
    if let Some(delay) = run.added.at(0.99) {
        told.push(format!("added delay p99 {}", figures::time(count(delay))));
    } else if let Some(setup) = run.setup.at(0.99) {
        told.push(format!("set-up p99 {}", figures::time(count(setup))));
    }
    format!("{} {}: {}.", load_text(run), calls_of(run.asked.scenario), told.join(", "))
}

fn load_text(run: &RunReport) -> String {
    figures::whole(charts::load_of(run))
}

/// Says so where a run is no evidence against the server.
pub fn honesty(page: &mut Page, run: &RunReport) {
    if let Some(why) = &run.generator.bottleneck {
        let load = load_text(run);
        page.warning(&format!("With {load} calls the generator was the bottleneck: {}. The server may carry more than is told here.", reason(why)));
    }
    if run.packets.misdelivered > 0 {
        let number = figures::whole(run.packets.misdelivered);
        page.warning(&format!("{number} packets of one call reached another: the server mixes calls up."));
    }
    if !run.fingerprint.optimised {
        page.warning("voxperf was built without optimisation: its own share of the times is too large.");
    }
}

fn tiles(run: &RunReport) -> Vec<(&'static str, String, String, Tone)> {
    let (calls, packets) = (&run.calls, &run.packets);
    let good = |all_well: bool| if all_well { Tone::Good } else { Tone::Bad };
    let bad_calls = calls.failed + calls.ended_early + calls.silent;
    let mut tiles = vec![(
        "calls failed",
        figures::whole(bad_calls),
        format!(
            "{} refused or broken, {} ended early, {} silent",
            calls.failed, calls.ended_early, calls.silent
        ),
        good(bad_calls == 0),
    )];
    if packets.expected > 0 {
        let of = format!(
            "of {}, {} by the server",
            figures::whole(packets.expected),
            figures::share(packets.loss_by_server())
        );
        tiles.push(("packets lost", figures::whole(packets.lost), of, good(packets.lost == 0)));
    }
    if let Some(thread) = busiest(run) {
        let percent = format!("{:.0} %", thread.cpu_percent);
        tiles.push(("server's busiest thread", percent, thread.name.clone(), Tone::Plain));
    }
    if let Some(server) = run.server.as_ref().filter(|server| server.media_us_per_packet > 0.0) {
        let cost = figures::time(server.media_us_per_packet);
        tiles.push(("server's CPU for a packet", cost, "media threads".to_owned(), Tone::Plain));
    }
    let note =
        run.generator.bottleneck.as_deref().map_or("its own busiest thread; was in time", reason).to_owned();
    let percent = format!("{:.0} %", run.generator.busiest_percent);
    tiles.push(("generator", percent, note, good(run.generator.bottleneck.is_none())));
    tiles
}

/// A table of the run's distributions.
pub fn percentiles(page: &mut Page, run: &RunReport) {
    let named = [
        ("set-up", &run.setup),
        ("first audio", &run.first_audio),
        ("added delay", &run.added),
        ("spacing", &run.spacing),
        ("jitter", &run.jitter),
        ("our own lateness", &run.generator.send_lateness),
    ];
    let cells = |name: &str, distribution: &Distribution| {
        let values = COLUMNS.map(|(_, quantile)| figures::time_or_dash(distribution.at(quantile)));
        [vec![name.to_owned(), figures::whole(distribution.count)], values.to_vec()].concat()
    };
    let rows = named.iter().filter(|(_, distribution)| distribution.count > 0);
    let rows: Vec<_> = rows.map(|(name, distribution)| (Tone::Plain, cells(name, distribution))).collect();
    let head: Vec<&str> = ["", "values"].into_iter().chain(COLUMNS.map(|(name, _)| name)).collect();
    page.table(&head, &rows);
}

/// Outcomes, packets and threads of a run.
pub fn details(page: &mut Page, run: &RunReport) {
    page.heading("Calls and packets");
    let outcomes =
        run.calls.outcomes.iter().map(|(status, count)| format!("{status}: {}", figures::whole(*count)));
    let remarks = run.calls.remarks.iter().map(|(what, count)| format!("{what}: {}", figures::whole(*count)));
    let packets = &run.packets;
    page.facts(&[
        ("outcomes", outcomes.collect::<Vec<_>>().join(", ")),
        ("remarks", remarks.collect::<Vec<_>>().join(", ")),
        ("most calls at once", figures::whole(run.calls.peak)),
        ("calls a second", figures::trimmed(run.calls.per_s, 1)),
        ("packets sent", figures::whole(packets.sent)),
        ("packets expected", figures::whole(packets.expected)),
        ("packets lost", figures::whole(packets.lost)),
        ("of these dropped by our own sockets", figures::whole(packets.dropped_by_us)),
        ("of these not sent by our own kernel", figures::whole(packets.not_sent)),
        ("UDP receive buffers full, whole machine", figures::whole(packets.receive_buffer_errors)),
        ("datagrams of nobody's stream", figures::whole(packets.stray)),
        ("packets that came more than once", figures::whole(packets.duplicates)),
        ("packets that reached another call", figures::whole(packets.misdelivered)),
    ]);
    page.heading("Processor time in the window");
    let ours = run.generator.cpu_percent.iter();
    let ours = ours.map(|(name, percent)| vec![format!("generator, {name}"), format!("{percent:.1} %")]);
    let theirs = run.server.iter().flat_map(|server| &server.threads);
    let theirs = theirs.filter(|thread| thread.cpu_percent >= LEAST_PERCENT);
    let theirs = theirs.map(|thread| {
        vec![format!("server, {} ({})", thread.name, thread.pid), format!("{:.1} %", thread.cpu_percent)]
    });
    let rows: Vec<_> = theirs.chain(ours).map(|cells| (Tone::Plain, cells)).collect();
    page.table(&["thread", "of one processor"], &rows);
    match &run.server {
        Some(server) => page.facts(&[
            ("server, all threads", format!("{:.1} %", server.cpu_percent)),
            ("memory before the first call", figures::bytes(count(server.resident_before_bytes))),
            ("memory with all calls up", figures::bytes(count(server.resident_bytes))),
        ]),
        None => page
            .paragraph("The server's process is not known (--pid): nothing is told of its time and memory."),
    }
}

/// Columns of a row of figures, after load and verdict.
pub const ROW_HEAD: [&str; 8] = [
    "failed",
    "lost",
    "server CPU",
    "CPU a packet",
    "set-up p99",
    "spacing p99.9",
    "added p99",
    "generator CPU",
];

/// The figures of a run in one row.
pub fn row(run: &RunReport) -> Vec<String> {
    let dash = || "–".to_owned();
    let cost = run.server.as_ref().map(|server| server.media_us_per_packet).filter(|cost| *cost > 0.0);
    vec![
        figures::whole(run.calls.failed + run.calls.ended_early + run.calls.silent),
        if run.packets.expected > 0 { figures::share(run.packets.loss()) } else { dash() },
        busiest(run).map_or_else(dash, |thread| format!("{:.0} %", thread.cpu_percent)),
        cost.map_or_else(dash, figures::time),
        figures::time_or_dash(run.setup.at(0.99)),
        figures::time_or_dash(run.spacing.at(0.999)),
        figures::time_or_dash(run.added.at(0.99)),
        generator(&run.generator),
    ]
}

/// The generator's busiest thread, and whether it was in time.
pub fn generator(generator: &Generator) -> String {
    let is_late = if generator.bottleneck.is_some() { ", held back" } else { "" };
    format!("{:.0} %{is_late}", generator.busiest_percent)
}

/// What was asked of a run.
pub fn asked(run: &RunReport) -> Vec<(&'static str, String)> {
    let asked = &run.asked;
    let rate = figures::trimmed(asked.cps, 1);
    vec![
        ("scenario", calls_of(asked.scenario).to_owned()),
        ("target", asked.target.clone()),
        ("new calls a second", if asked.scenario == Scenario::Signalling { String::new() } else { rate }),
        ("measured window", format!("{} s", figures::trimmed(asked.duration_s, 1))),
        (
            "media",
            asked.srtp.clone().map_or_else(|| "plain RTP".to_owned(), |suite| format!("SRTP, {suite}")),
        ),
        ("RTCP", if asked.rtcp { "sent and read" } else { "no" }.to_owned()),
        ("seed", asked.seed.to_string()),
    ]
}

/// Machine, versions, settings and command: what it takes to repeat a number.
pub fn conditions(
    page: &mut Page,
    fingerprint: &Fingerprint,
    command: &[String],
    asked: &[(&'static str, String)],
) {
    if !command.is_empty() {
        page.heading("Command");
        page.command(&figures::command(command));
    }
    page.heading("Conditions");
    let guest = if fingerprint.virtual_machine { ", a virtual machine" } else { "" };
    let build = if fingerprint.optimised { "optimised" } else { "without optimisation" };
    let mut facts = vec![
        ("processor", format!("{} × {}{guest}", fingerprint.processors, fingerprint.processor)),
        ("microcode", fingerprint.microcode.clone()),
        ("memory", figures::bytes(count(fingerprint.memory_bytes))),
        ("kernel", format!("Linux {}", fingerprint.kernel)),
        ("server", fingerprint.server.clone()),
        ("voxperf", format!("{}, {build}", fingerprint.voxperf)),
        ("begun", format!("{} UTC", figures::utc(fingerprint.began_unix_s))),
    ];
    facts.extend(asked.iter().cloned());
    facts.extend(fingerprint.sysctls.iter().map(|(name, value)| (name.as_str(), value.clone())));
    page.facts(&facts);
}
