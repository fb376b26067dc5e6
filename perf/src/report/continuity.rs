//! The parts of a page that tell how unbroken streams came, and what became of calls in each phase.

use super::html::{Page, Tone};
use crate::figures;
use crate::load::life::Life;
use crate::load::result::{Continuity, RunReport, count};

/// Columns of the table of parts.
const PART_HEAD: [&str; 7] =
    ["calls", "begun", "answered", "ended by us", "ended by the server", "ended early", "failed"];

/// Streams told one by one.
const WORST_MAX: usize = 5;

/// Both parts, as far as there is something to tell.
pub(super) fn section(page: &mut Page, run: &RunReport) {
    if run.continuity.streams > 0 {
        streams(page, &run.continuity);
    }
    run.life.iter().for_each(|life| calls(page, life));
}

fn streams(page: &mut Page, continuity: &Continuity) {
    page.heading("Longest gap of each stream");
    let gap = |quantile| figures::time_or_dash(continuity.longest_gap.at(quantile));
    let at_mark = &continuity.marked_gap;
    let marked = [0.5, 0.99, 1.0].map(|quantile| figures::time_or_dash(at_mark.at(quantile))).join(", ");
    let marked = if at_mark.count > 0 { marked } else { String::new() };
    page.facts(&[
        ("streams", figures::whole(continuity.streams)),
        ("median, p99, longest", [gap(0.5), gap(0.99), gap(1.0)].join(", ")),
        ("under way at the mark", marked),
        ("changes of SSRC", figures::whole(continuity.ssrc_changes)),
        ("sequences begun anew", figures::whole(continuity.restarts)),
        ("duplicates", figures::whole(continuity.duplicates)),
    ]);
    let filled = continuity.histogram_ms.iter().filter(|(_, streams)| *streams > 0);
    let rows = filled.map(|(edge, streams)| {
        let edge = edge.map_or_else(|| "longer".to_owned(), |edge| format!("up to {edge} ms"));
        (Tone::Plain, vec![edge, figures::whole(*streams)])
    });
    page.table(&["gap", "streams"], &rows.collect::<Vec<_>>());
    let worst = continuity.worst.iter().take(WORST_MAX).map(|stream| {
        let cells = vec![
            format!("{}, leg {}", stream.stream / 2, stream.stream % 2 + 1),
            figures::time(count(stream.longest_gap_us)),
            stream.ssrc_changes.to_string(),
            stream.restarts.to_string(),
        ];
        (Tone::Plain, cells)
    });
    page.table(&["worst: call", "gap", "changes of SSRC", "begun anew"], &worst.collect::<Vec<_>>());
}

fn calls(page: &mut Page, life: &Life) {
    page.heading("Calls by what they do");
    let rows = life.parts.iter().map(|(name, part)| {
        let bad = part.early + part.failed > 0;
        let numbers =
            [part.begun, part.answered, part.ended_by_us, part.ended_by_server, part.early, part.failed];
        let cells = [vec![name.clone()], numbers.map(figures::whole).to_vec()].concat();
        (if bad { Tone::Bad } else { Tone::Plain }, cells)
    });
    page.table(&PART_HEAD, &rows.collect::<Vec<_>>());
    let causes = life.early.iter().map(|(cause, times)| format!("{cause}: {}", figures::whole(*times)));
    let of = |part, whole| format!("{} of {}", figures::whole(part), figures::whole(whole));
    page.facts(&[
        ("ended early of calls at the mark", of(life.marked_early, life.marked)),
        ("ended early", causes.collect::<Vec<_>>().join(", ")),
        ("re-INVITEs taken", of(life.changes_taken, life.changes)),
        ("keys answered by sound", of(life.keys_heard, life.keys)),
        ("connections that broke", figures::whole(life.broken)),
        ("requests sent again over a new one", figures::whole(life.moved)),
        ("calls the server should have ended", figures::whole(life.overdue)),
        ("calls left to the server at the end", figures::whole(life.left_to_server)),
    ]);
}
