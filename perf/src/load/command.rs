//! `voxperf run`: its arguments, and what it prints.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::load::arrivals::Spread;
use crate::load::life::{Life, Part};
use crate::load::result::{Continuity, Distribution, RunReport, Scenario, Server, count};
use crate::load::run::{self, Plan};
use crate::report::{Document, Outputs};
use crate::script::seconds_of;
use crate::sip::sdes::Suite;
use crate::sip::target::Target;
use crate::sip::tls::{TlsClient, TlsOptions};

/// Length of calls whose signalling is measured.
const HOLD: Duration = Duration::from_millis(200);
/// Average length of calls in [`Scenario::Life`].
const LIFE_HOLD: Duration = Duration::from_secs(10);

/// How calls are placed, whatever their number: what `run`, `find` and `compare` are told alike.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Who to call: `sip:[USER@]HOST[:PORT][;transport=tcp|udp|tls]`. Without USER it is 9196 for
    /// echo, 9197 for playout, 9198 for record, 9199 for signalling, 8000 for anchor. Redirects
    /// (3xx) are followed.
    #[arg(long, value_name = "URI")]
    pub target: String,
    /// What the calls do.
    #[arg(long, value_enum)]
    pub scenario: Scenario,
    /// How calls begin: one every 1/R seconds, or at random times.
    #[arg(long, value_enum, default_value_t)]
    pub arrivals: Spread,
    /// Hang up this long after the answer. Signalling: 0.2 unless told otherwise; life, on average: 10.
    #[arg(long, value_parser = seconds_of, value_name = "S")]
    pub hold: Option<Duration>,
    /// Give up a call that is not answered after this many seconds.
    #[arg(long, default_value = "10", value_parser = seconds_of, value_name = "S")]
    pub patience: Duration,
    /// Offer SRTP (RTP/SAVP) of this suite: AEAD_AES_128_GCM, AEAD_AES_256_GCM,
    /// AES_CM_128_HMAC_SHA1_80, AES_CM_128_HMAC_SHA1_32.
    #[arg(long, value_name = "SUITE")]
    pub srtp: Option<Suite>,
    /// Send RTCP reports, and read those of the server.
    #[arg(long)]
    pub rtcp: bool,
    /// Record: offer to send only, so that the server sends no silence while it records, and its CPU
    /// is that of recording alone.
    #[arg(long)]
    pub one_way: bool,
    /// Seed of arrivals and phases.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// TCP or TLS connections to each neighbour.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub connections: u32,
    /// Media sockets (default: one for 128 streams).
    #[arg(long, value_name = "N")]
    pub sockets: Option<usize>,
    /// Keep our threads on this processor.
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
    /// Report processor time and memory of this process and its children. Repeatable. Without it
    /// nothing is known of the server's CPU: neither what a packet costs nor whether the server's
    /// CPU is what bound a result.
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Anchor and life: where the server's second legs come to, over TCP or UDP.
    #[arg(long, default_value = "127.0.0.1:5080", value_name = "ADDRESS")]
    pub callee: SocketAddr,
    /// Life: the parts that calls play, in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL, value_name = "PART")]
    pub parts: Vec<Part>,
    /// Life: the mailbox that messages are left in.
    #[arg(long, default_value = "1001", value_name = "NUMBER")]
    pub mailbox: String,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsOptions,
}

/// Arguments of `voxperf run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// How calls are placed.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Calls at once. Signalling and life have as many as rate and --hold make.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub calls: usize,
    /// New calls a second, whatever the answers.
    #[arg(long, default_value_t = 50.0, value_name = "R")]
    pub cps: f64,
    /// Measure for this long once all calls are up. Life: SIGINT or SIGTERM ends it early,
    /// SIGUSR1 marks what is under way then, to be told apart.
    #[arg(long, default_value = "20", value_parser = seconds_of, value_name = "S")]
    pub duration: Duration,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Files to write.
    #[command(flatten)]
    pub outputs: Outputs,
}

impl LoadArgs {
    /// A run of so many calls at once, new calls a second, and this window.
    ///
    /// # Errors
    /// A target that leads nowhere, or files of TLS that cannot be read.
    pub fn plan(&self, (calls, cps, duration): (usize, f64, Duration)) -> Result<Plan> {
        Ok(Plan {
            target: Target::parse(&self.target)?,
            scenario: self.scenario,
            calls,
            cps,
            spread: self.arrivals,
            duration,
            hold: self.hold.unwrap_or(if self.scenario == Scenario::Life { LIFE_HOLD } else { HOLD }),
            patience: self.patience,
            srtp: self.srtp,
            rtcp: self.rtcp,
            one_way: self.one_way,
            seed: self.seed,
            connections: self.connections,
            sockets: self.sockets,
            cpu: self.cpu,
            pids: self.pids.clone(),
            tls: TlsClient::load(&self.tls)?,
            callee: self.callee,
            parts: self.parts.clone(),
            mailbox: self.mailbox.clone(),
            command: std::env::args().collect(),
        })
    }
}

/// Runs and prints. False when a call failed, ended early or stayed silent, or a packet was lost.
///
/// # Errors
/// As [`run::run`]; or a file cannot be written.
pub fn run(args: &RunArgs) -> Result<bool> {
    ensure!(args.calls > 0, "--calls must be above 0");
    let plan = args.load.plan((args.calls, args.cps, args.duration))?;
    let bar = crate::run::progress(args.calls as u64, args.json);
    let report = run::run(&plan, &bar);
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    let calls = &report.calls;
    let is_whole = calls.failed + calls.ended_early + calls.silent + report.packets.lost == 0;
    args.outputs.write(&Document::Run(Box::new(report)))?;
    Ok(is_whole)
}

/// The report for people.
pub fn print(report: &RunReport) {
    let machine = &report.fingerprint;
    let build = if machine.optimised { "" } else { ", a debug build" };
    println!(
        "{}, {} processors, Linux {}; voxperf {}{build}; server {}",
        machine.processor,
        machine.processors,
        machine.kernel,
        machine.voxperf,
        if machine.server.is_empty() { "unnamed" } else { &machine.server }
    );
    print_calls(report);
    print_media(report);
    report.life.iter().for_each(print_life);
    if let Some(server) = &report.server {
        print_server(server);
    }
    let own = report.generator.cpu_percent.iter().map(|(name, percent)| format!("{name} {percent:.1} %"));
    println!("generator: {}", own.collect::<Vec<_>>().join(", "));
    print_times("  frames left late by", &report.generator.send_lateness);
    if let Some(bottleneck) = &report.generator.bottleneck {
        println!("ONLY A FLOOR. What held the result back is {bottleneck}");
    }
}

fn print_calls(report: &RunReport) {
    let calls = &report.calls;
    println!(
        "calls: {} of {} answered, {} failed, {} ended early, {} silent; {} at most at once, {:.1} a second",
        calls.answered,
        calls.attempted,
        calls.failed,
        calls.ended_early,
        calls.silent,
        calls.peak,
        calls.per_s
    );
    calls
        .outcomes
        .iter()
        .filter(|(what, _)| *what != "200")
        .for_each(|(what, n)| println!("  {n} times: {what}"));
    calls.remarks.iter().for_each(|(what, n)| println!("  {n} times: {what}"));
    if calls.retransmissions > 0 {
        println!("  {} messages sent again", calls.retransmissions);
    }
    print_times("set-up", &report.setup);
    print_times("first audio", &report.first_audio);
}

fn print_media(report: &RunReport) {
    let packets = &report.packets;
    if packets.sent + packets.expected == 0 {
        return;
    }
    println!(
        "packets in {:.1} s: {} sent; {} of {} came, {} lost ({:.5} %): {} dropped by our sockets, {} refused by our \
         kernel, machine's RcvbufErrors {}",
        report.measured_s,
        packets.sent,
        packets.received,
        packets.expected,
        packets.lost,
        100.0 * packets.loss(),
        packets.dropped_by_us,
        packets.not_sent,
        packets.receive_buffer_errors
    );
    for (what, number) in [
        ("of nobody's stream, or not to be opened", packets.stray),
        ("came more than once", packets.duplicates),
        ("reached another call", packets.misdelivered),
    ] {
        if number > 0 {
            println!("  {number} packets {what}");
        }
    }
    print_continuity(&report.continuity);
    print_times("jitter", &report.jitter);
    print_times("spacing", &report.spacing);
    print_times("added delay", &report.added);
}

fn print_continuity(continuity: &Continuity) {
    if continuity.streams == 0 {
        return;
    }
    print_times("longest gap of each stream", &continuity.longest_gap);
    print_times("  of those under way at the mark", &continuity.marked_gap);
    let Continuity { streams, ssrc_changes, restarts, duplicates, .. } = continuity;
    println!(
        "  {streams} streams: {ssrc_changes} changes of SSRC, {restarts} sequences begun anew, {duplicates} duplicates"
    );
}

fn print_life(life: &Life) {
    for (name, part) in &life.parts {
        println!(
            "  {name}: {} of {} answered, {} ended by us, {} by the server, {} early, {} failed",
            part.answered, part.begun, part.ended_by_us, part.ended_by_server, part.early, part.failed
        );
    }
    life.early.iter().for_each(|(cause, n)| println!("  ended early, {n} times: {cause}"));
    if life.marked > 0 {
        println!("  {} of {} calls at the mark ended early", life.marked_early, life.marked);
    }
    println!(
        "  {} of {} re-INVITEs taken, {} of {} keys heard; {} connections broke, {} requests left again; {} calls \
         overdue, {} left to the server",
        life.changes_taken,
        life.changes,
        life.keys_heard,
        life.keys,
        life.broken,
        life.moved,
        life.overdue,
        life.left_to_server
    );
}

fn print_server(server: &Server) {
    println!(
        "server: {:.1} % of a processor, {:.2} us of media threads a packet; {:.1} MiB resident, {:.1} MiB before the \
         first call",
        server.cpu_percent,
        server.media_us_per_packet,
        mebibytes(server.resident_bytes),
        mebibytes(server.resident_before_bytes)
    );
    for thread in server.threads.iter().filter(|thread| thread.cpu_percent >= 0.1) {
        println!("  {} ({}): {:.1} %", thread.name, thread.pid, thread.cpu_percent);
    }
}

fn mebibytes(bytes: u64) -> f64 {
    count(bytes) / f64::from(1 << 20)
}

/// Percentiles of a distribution of microseconds in milliseconds; nothing of an empty one.
fn print_times(what: &str, times: &Distribution) {
    let at = |quantile| times.at(quantile).map(|us| count(us) / 1000.0);
    if let (Some(p50), Some(p99), Some(p999), Some(p9999), Some(max)) =
        (at(0.5), at(0.99), at(0.999), at(0.9999), at(1.0))
    {
        println!(
            "{what}: p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms, p99.99 {p9999:.2} ms, max {max:.2} ms"
        );
    }
}
