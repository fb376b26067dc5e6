//! `voxperf call`: many calls at a steady rate, a thread each, and their report.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::call::{self, Outcome, Plan, Summary};
use crate::clock;

/// Stack of a call's thread; it holds a 64 KiB read buffer.
const STACK_BYTES: usize = 512 * 1024;

#[derive(Serialize)]
struct Report<'a> {
    calls: &'a [Outcome],
    summary: Summary,
}

/// Places `count` calls, `rate` a second, and prints the outcome.
///
/// # Errors
/// Nothing could be placed at all, or a recording could not be written. Refused or broken calls are
/// in the report; the result is then `false`.
pub fn run(plan: Plan, count: usize, rate: f64, json: bool) -> Result<bool> {
    ensure!(rate > 0.0, "--rate must be above 0");
    let plan = Arc::new(plan);
    let bar = progress(count as u64, json);
    let (done, results) = mpsc::channel();
    let start = clock::now();
    let mut outcomes = Vec::with_capacity(count);
    for (index, offset) in (0..count).zip((0u32..).map(|n| Duration::from_secs_f64(f64::from(n) / rate))) {
        std::thread::sleep((start + offset).saturating_duration_since(clock::now()));
        let (plan, done) = (Arc::clone(&plan), done.clone());
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
        builder.spawn(move || drop(done.send(one(&plan, index + 1, count))))?;
        outcomes.extend(results.try_iter().inspect(|_| bar.inc(1)));
    }
    drop(done);
    outcomes.extend(results.iter().inspect(|_| bar.inc(1)));
    bar.finish_and_clear();
    outcomes.sort_by_key(|outcome: &Outcome| outcome.call);
    print(&outcomes, json)?;
    Ok(outcomes.iter().all(|outcome| outcome.complete))
}

fn one(plan: &Plan, number: usize, count: usize) -> Outcome {
    let record = plan.record.as_deref().filter(|_| count > 1).map(|path| numbered(path, number));
    let result = match record {
        Some(path) => call::run(&Plan { record: Some(path), ..plan.clone() }, number),
        None => call::run(plan, number),
    };
    result.unwrap_or_else(|error| Outcome { call: number, ended: format!("{error:#}"), ..Outcome::default() })
}

/// `OUT.wav` becomes `OUT-7.wav`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{number}.wav"))
}

/// A bar on a terminal, nothing elsewhere.
pub fn progress(length: u64, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {elapsed}").ok();
    let bar = ProgressBar::new(length);
    if let Some(style) = style {
        bar.set_style(style);
    }
    bar
}

fn print(outcomes: &[Outcome], json: bool) -> Result<()> {
    let summary = Summary::of(outcomes);
    if json {
        println!("{}", serde_json::to_string_pretty(&Report { calls: outcomes, summary })?);
        return Ok(());
    }
    for o in outcomes {
        println!(
            "call {}: {} after {} redirects, set up in {} ms, {:.1} s; heard {} packets, lost {}, jitter {:.2} ms; sent {}; {}",
            o.call,
            o.status.map_or("no answer".to_owned(), |status| status.to_string()),
            o.redirects.len(),
            o.setup_ms.unwrap_or(0),
            Duration::from_millis(o.duration_ms).as_secs_f64(),
            o.rx_packets,
            o.rx_lost,
            o.rx_jitter_ms,
            o.tx_packets,
            o.ended
        );
        if let Some(suite) = o.srtp {
            println!("  SRTP: {suite}, {} packets did not open", o.srtp_auth_failed);
        }
        if let Some(error) = &o.srtp_error {
            println!("  SRTP: {error}");
        }
        if let Some(warning) = &o.warning {
            println!("  Warning: {warning}");
        }
    }
    println!(
        "{} calls: {} answered, {} complete; set-up median {} ms, longest {} ms; packets lost {}",
        summary.calls,
        summary.answered,
        summary.complete,
        summary.setup_p50_ms,
        summary.setup_max_ms,
        summary.rx_lost
    );
    Ok(())
}
