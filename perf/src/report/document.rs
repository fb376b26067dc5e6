//! `voxperf report`, and the files that a measurement leaves behind.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::html::Page;
use super::{comparison, runs, search};
use crate::compare::report::CompareReport;
use crate::find::report::FindReport;
use crate::load::result::RunReport;

/// Where a measurement's report goes, besides the terminal.
#[derive(Debug, Clone, Default, Args)]
pub struct Outputs {
    /// Write the report as JSON; `voxperf report` draws it again.
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Write the report as one HTML file with plots; it needs no network and no script.
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,
}

/// Draw saved reports.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// JSON files that run, find or compare wrote. Several runs are drawn beside each other.
    #[arg(required = true, value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// The HTML file to write.
    #[arg(long, value_name = "OUT.html")]
    html: PathBuf,
}

/// Something that can be reported.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Document {
    /// One run.
    Run(Box<RunReport>),
    /// A search.
    Find(Box<FindReport>),
    /// A comparison.
    Compare(Box<CompareReport>),
}

impl Document {
    fn as_run(&self) -> Option<&RunReport> {
        match self {
            Self::Run(run) => Some(run),
            Self::Find(_) | Self::Compare(_) => None,
        }
    }
}

impl Outputs {
    /// Writes the files asked for.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, document: &Document) -> Result<()> {
        if let Some(path) = &self.out {
            let text = serde_json::to_string_pretty(document)?;
            write(path, &text)?;
        }
        if let Some(path) = &self.html {
            write(path, &render(std::slice::from_ref(document)))?;
        }
        Ok(())
    }
}

/// Draws saved reports.
///
/// # Errors
/// A file cannot be read or written, or is none of ours.
pub fn report(args: &ReportArgs) -> Result<bool> {
    let documents: Vec<Document> = args.files.iter().map(|path| read(path)).collect::<Result<_>>()?;
    write(&args.html, &render(&documents))?;
    Ok(true)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Document> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no report of voxperf", path.display()))
}

/// A report from its JSON. A run without a kind is one too.
fn parse(text: &str) -> Result<Document> {
    let mut value: Value = serde_json::from_str(text)?;
    ensure!(value.is_object(), "not a JSON object");
    let kind = value.as_object_mut().and_then(|object| object.remove("report"));
    match kind.as_ref().and_then(Value::as_str) {
        None | Some("run") => Ok(Document::Run(serde_json::from_value(value)?)),
        Some("compare") => Ok(Document::Compare(serde_json::from_value(value)?)),
        Some("find") => Ok(Document::Find(serde_json::from_value(value)?)),
        Some(other) => anyhow::bail!("unknown kind of report {other:?}"),
    }
}

/// The HTML file of some documents: single runs together, everything else one after the other.
pub fn render(documents: &[Document]) -> String {
    let mut page = Page::default();
    let single: Vec<&RunReport> = documents.iter().filter_map(Document::as_run).collect();
    match single.as_slice() {
        [] => {}
        [run] => runs::one(&mut page, run),
        _ => runs::several(&mut page, &single),
    }
    for document in documents {
        match document {
            Document::Run(_) => {}
            Document::Find(found) => search::page(&mut page, found),
            Document::Compare(compared) => comparison::page(&mut page, compared),
        }
    }
    page.finish("voxperf report")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::bound::{Bound, Kind};
    use crate::find::search::End;
    use crate::load::result::{Calls, Distribution, Fingerprint, Generator, Packets, Scenario};
    use crate::testing::runs::{comparison_of, find_of, run_of};

    /// A run in which nothing happened.
    fn empty() -> RunReport {
        RunReport {
            fingerprint: Fingerprint::default(),
            command: vec![],
            measured_s: 0.0,
            calls: Calls::default(),
            setup: Distribution::default(),
            first_audio: Distribution::default(),
            packets: Packets::default(),
            jitter: Distribution::default(),
            spacing: Distribution::default(),
            added: Distribution::default(),
            generator: Generator::default(),
            server: None,
            ..run_of(0)
        }
    }

    /// Goal: what was saved is read again, with or without a kind; other files are refused.
    /// Method: a run and a search there and back; wrong kinds and shapes.
    #[test]
    fn saved_reports_are_read_again() {
        for document in [
            Document::Run(Box::new(run_of(100))),
            Document::Find(Box::new(find_of(Scenario::Echo, 2340))),
            Document::Compare(Box::new(comparison_of())),
        ] {
            let text = serde_json::to_string(&document).unwrap();
            assert_eq!(parse(&text).unwrap(), document);
        }
        let bare = serde_json::to_string(&run_of(7)).unwrap();
        assert_eq!(parse(&bare).unwrap(), Document::Run(Box::new(run_of(7))));
        for wrong in ["", "[]", "{}", r#"{"report":"other"}"#, r#"{"report":"find"}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Goal: reports of nothing are drawn too. Method: no documents, empty runs, an empty search.
    #[test]
    fn empty_reports_are_drawn() {
        let run = || Document::Run(Box::new(empty()));
        let mut found = find_of(Scenario::Signalling, 0);
        found.steps.clear();
        (found.knee, found.missed, found.recommended) = (None, None, None);
        (found.kind, found.bound, found.end) = (Kind::Floor, Bound::Time, End::OutOfTime);
        let mut compared = comparison_of();
        compared.levels.iter_mut().for_each(|level| level.pairs.clear());
        for documents in [
            vec![],
            vec![run()],
            vec![run(), run()],
            vec![Document::Find(Box::new(found))],
            vec![Document::Compare(Box::new(compared))],
        ] {
            let html = render(&documents);
            assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
            assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        }
    }

    /// Goal: nothing a server says becomes markup. Method: a hostile name in every place it can set.
    #[test]
    fn what_a_server_says_stays_text() {
        let hostile = "<script>alert(1)</script>";
        let mut found = find_of(Scenario::Echo, 400);
        found.fingerprint.server = hostile.to_owned();
        found.target = hostile.to_owned();
        found.bound =
            Bound::Refusals { status: hostile.to_owned(), count: 3, remark: Some(hostile.to_owned()) };
        for step in &mut found.steps {
            step.run.calls.outcomes = [(hostile.to_owned(), 3)].into();
            step.run.server.as_mut().unwrap().threads[0].name = hostile.to_owned();
            step.run.asked.target = hostile.to_owned();
        }
        let mut compared = comparison_of();
        (compared.theirs.name, compared.theirs.version) = (hostile.to_owned(), hostile.to_owned());
        compared.levels[0].trouble = Some(hostile.to_owned());
        let run = Document::Run(Box::new(found.steps[0].run.clone()));
        let html = render(&[run, Document::Find(Box::new(found)), Document::Compare(Box::new(compared))]);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
    }

    /// Goal: a comparison leads with its ratio and shows its spread. Method: a comparison's page.
    #[test]
    fn a_comparison_leads_with_its_ratio() {
        let html = render(&[Document::Compare(Box::new(comparison_of()))]);
        let headline = html.split("<h1>").nth(1).unwrap();
        assert!(
            headline.starts_with("At 1,000 anchored calls, voxring&#39;s media threads take 0.5"),
            "{headline}"
        );
        assert!(html.contains("class=\"whisker\"") && html.contains("rtpengine lost"));
    }

    /// Goal: a page tells which streams and calls came through a change, and which did not. Method: a
    /// run with a stream that began anew and a call that ended early.
    #[test]
    fn a_run_tells_what_came_through() {
        let html = render(&[Document::Run(Box::new(run_of(100)))]);
        let after = |mark: &str| html.split(mark).nth(1).unwrap_or_else(|| panic!("{mark}")).to_owned();
        assert!(after("Longest gap of each stream").contains("4, leg 2"));
        assert!(after("Calls by what they do").contains("BYE: Q.850;cause=16: 1"));
        assert!(html.contains("8 of 9") && html.contains("longer"));
    }

    /// Goal: a page leads with the number to plan with. Method: a search's page.
    #[test]
    fn a_search_leads_with_its_number() {
        let html = render(&[Document::Find(Box::new(find_of(Scenario::Anchor, 2340)))]);
        let headline = html.split("<h1>").nth(1).unwrap();
        assert!(headline.starts_with("This machine carries 2,340 anchored calls on one media core"));
        assert!(html.matches("<svg").count() >= 8, "plots");
    }
}
