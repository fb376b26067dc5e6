//! A server reached by SIP calls, as `voxperf run` places them: voxring, or any other.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use super::contestant::{Contestant, Identity, Round};
use crate::load::command::LoadArgs;
use crate::load::result::{RunReport, Scenario};
use crate::load::{run, watch};

/// A server under test that is already running.
#[derive(Debug)]
pub struct Voxring<'a> {
    load: &'a LoadArgs,
    /// New calls a second.
    cps: f64,
    bar: &'a ProgressBar,
    identity: Identity,
}

impl<'a> Voxring<'a> {
    /// The server that `load` calls.
    ///
    /// # Errors
    /// Its process is not named, or is not there.
    pub fn new(load: &'a LoadArgs, cps: f64, bar: &'a ProgressBar) -> Result<Self> {
        ensure!(!load.pids.is_empty(), "a comparison of CPU needs the server's --pid");
        let pids = watch::family(&load.pids)?;
        let command = pids.first().map(|pid| command_of(*pid)).unwrap_or_default();
        let counted = format!("its media threads, on processor {}", processors(&pids));
        let identity = Identity { name: "voxring".to_owned(), version: String::new(), command, counted };
        Ok(Self { load, cps, bar, identity })
    }
}

impl Contestant for Voxring<'_> {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn round(&mut self, calls: usize, window: Duration, seed: u64) -> Result<Round> {
        let mut plan = self.load.plan((calls, self.cps, window))?;
        plan.seed = seed;
        let run = run::run(&plan, self.bar)?;
        if let Some((name, version)) = run.fingerprint.server.split_once('/') {
            (self.identity.name, self.identity.version) = (name.to_owned(), version.to_owned());
        }
        ensure!(run.calls.answered > 0, "none of {} calls was answered", run.calls.attempted);
        round_of(run)
    }
}

fn round_of(run: RunReport) -> Result<Round> {
    let server = run.server.context("the run tells nothing of the server's time")?;
    let mut packets = run.packets;
    if run.asked.scenario == Scenario::Record && packets.expected == 0 {
        // Nothing comes back, not even RTCP: what the server did not read shows in the kernel alone.
        (packets.expected, packets.lost) = (packets.sent, packets.receive_buffer_errors);
        packets.received = packets.sent.saturating_sub(packets.lost);
    }
    Ok(Round {
        cpu_us: server.cpu_us,
        media_us: server.media_us,
        handled: packets.received,
        refused: run.calls.attempted.saturating_sub(run.calls.answered),
        packets,
        added: run.added,
        spacing: run.spacing,
        generator: run.generator,
    })
}

/// A process's command line.
fn command_of(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).split_terminator('\0').collect::<Vec<_>>().join(" ")
}

/// Where the media threads of these processes may run; where everything may, if there are none.
fn processors(pids: &[u32]) -> String {
    let tasks = pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let mut lists: Vec<(bool, String)> = tasks
        .flatten()
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some((name.starts_with("media-"), list.trim().to_owned()))
        })
        .collect();
    let has_media = lists.iter().any(|(is_media, _)| *is_media);
    lists.retain(|(is_media, _)| *is_media || !has_media);
    let mut lists: Vec<String> = lists.into_iter().map(|(_, list)| list).collect();
    lists.sort();
    lists.dedup();
    lists.join(" and ")
}
