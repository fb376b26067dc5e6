//! `voxperf handshakes`: what a full mutual TLS handshake costs the server, beside the bare library.
//!
//! Slices alternate in one run: connections to the live server, whose signalling thread's processor
//! time the scheduler counts; and rustls against itself in memory, where only the server's calls are
//! timed. Both therefore see the same machine at the same time. No handshake resumes another.

mod baseline;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::run::progress;
use crate::script::seconds_of;
use crate::sip::tls::{TlsClient, TlsOptions, TlsStream};
use crate::{clock, machine};
use baseline::Baseline;

/// Patience with one connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a slice the server still has closed connections to clear away.
const SETTLE: Duration = Duration::from_millis(30);
/// Failures in a slice after which it is given up.
const FAILURES_MAX: u64 = 20;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    voxperf handshakes --to localhost:5061 --ca ca.pem --cert gateway.pem --key gateway.key --seconds 10\n  \
    voxperf handshakes --to localhost:5061 --ca ca.pem --cert gateway.pem --key gateway.key \\\n      \
      --baseline-cert server.pem --baseline-key server.key --pid $(pidof -s voxring) --json")]
pub struct HandshakesArgs {
    /// The TLS port of the server.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    #[command(flatten)]
    tls: TlsOptions,
    /// Length of the whole run, at most 600.
    #[arg(long, default_value = "20", value_parser = seconds_of, value_name = "S")]
    seconds: Duration,
    /// Length of a slice.
    #[arg(long, default_value = "1", value_parser = seconds_of, value_name = "S")]
    slice: Duration,
    /// Connections at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    connections_in_flight: u32,
    /// Certificate of the in-memory server; it asks for a client certificate of --ca.
    #[arg(long, value_name = "FILE", requires = "baseline_key", requires = "ca", requires = "cert")]
    baseline_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "baseline_cert")]
    baseline_key: Option<PathBuf>,
    /// The server's process; without it no cost can be told.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// The thread of that process which does the signalling; '' for all of them.
    #[arg(long, default_value = "sip-front", value_name = "NAME")]
    thread_name: String,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// What one slice gave.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Slice {
    handshakes: u64,
    /// Processor time of the server's side.
    server_cpu_s: f64,
    wall_s: f64,
}

impl Slice {
    /// Handshakes a second of one processor.
    fn per_core_s(&self) -> f64 {
        if self.server_cpu_s > 0.0 { count(self.handshakes) / self.server_cpu_s } else { 0.0 }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    conditions: String,
    /// Both sides of a comparison must be optimised.
    optimised: bool,
    connections_in_flight: u32,
    handshakes: u64,
    failures: u64,
    first_failure: Option<String>,
    /// Finished handshakes a second of the clock.
    live_per_s: f64,
    /// Handshakes a second of the signalling thread's processor time: median of the slices.
    live_per_core_s: Option<f64>,
    baseline_per_core_s: Option<f64>,
    /// Live by baseline: median, least and most of the pairs of slices.
    ratio: Option<f64>,
    ratio_min: Option<f64>,
    ratio_max: Option<f64>,
    live: Vec<Slice>,
    baseline: Vec<Slice>,
}

/// Measures and prints.
///
/// # Errors
/// A file cannot be read, the server is not ours to load or takes no handshake, the process or
/// thread is not there.
pub fn run(args: &HandshakesArgs) -> Result<bool> {
    ensure!(args.slice >= Duration::from_millis(50), "--slice is at least 0.05");
    ensure!(args.seconds <= Duration::from_secs(600), "--seconds is at most 600");
    let peer = Peer::new(&args.to, &args.tls)?;
    let baseline = match (&args.baseline_cert, &args.baseline_key) {
        (Some(cert), Some(key)) => Some(Baseline::new(&args.tls, cert, key, &peer.host)?),
        _ => None,
    };
    // Once, before anything is timed: a refusal should say so at once.
    peer.shake_hands().with_context(|| format!("{} takes no handshake", args.to))?;
    let (mut live, mut bare) = (Vec::new(), Vec::new());
    let trouble = Trouble::default();
    let start = clock::now();
    let bar = progress(args.seconds.as_secs(), false);
    while start.elapsed() < args.seconds {
        bar.set_position(start.elapsed().as_secs());
        bar.set_message(format!(
            "{} handshakes",
            live.iter().map(|slice: &Slice| slice.handshakes).sum::<u64>()
        ));
        if let Some(baseline) = &baseline {
            bare.push(baseline.slice(args.slice)?);
        }
        live.push(live_slice(args, &peer, &trouble)?);
        trouble.give_up_if_hopeless()?;
    }
    bar.finish_and_clear();
    let report = summarise(args, live, bare, trouble);
    print(&report, args.json)?;
    Ok(report.failures == 0 && report.handshakes > 0)
}

/// A TLS server and what we show it.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub host: String,
    /// Where it listens.
    pub address: SocketAddr,
    tls: TlsClient,
}

impl Peer {
    /// Resolves `HOST:PORT` and reads the files.
    ///
    /// # Errors
    /// Neither resolves nor is ours to load, or the TLS options do not do.
    pub fn new(to: &str, tls: &TlsOptions) -> Result<Self> {
        let (host, address) = resolve(to)?;
        Ok(Self { host, address, tls: TlsClient::required(tls)? })
    }

    /// A full handshake that the server has accepted for certain: it answers a ping (RFC 5626 §4.4.1).
    fn shake_hands(&self) -> Result<()> {
        let deadline = clock::now() + PATIENCE;
        let socket = TcpStream::connect_timeout(&self.address, PATIENCE).context("cannot connect")?;
        socket.set_nodelay(true)?;
        let mut stream = TlsStream::open(socket, self.tls.connection(&self.host)?, deadline)?;
        ping(&mut stream, deadline)
    }
}

/// Host and address of `HOST:PORT`, which must be ours to load.
///
/// # Errors
/// It does not resolve, or is elsewhere.
pub fn resolve(to: &str) -> Result<(String, SocketAddr)> {
    let (host, _) = to.rsplit_once(':').with_context(|| format!("{to:?}: want HOST:PORT"))?;
    let addresses = to.to_socket_addrs().with_context(|| format!("cannot resolve {to}"))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    addresses.iter().try_for_each(|address| machine::ensure_own(address.ip()))?;
    let first = addresses.first().with_context(|| format!("{to} has no address"))?;
    // `localhost` may be ::1 first, and nobody listening there.
    let answers = |address: &&SocketAddr| TcpStream::connect_timeout(address, PATIENCE).is_ok();
    let address = match addresses.len() {
        1 => *first,
        _ => *addresses.iter().find(answers).unwrap_or(first),
    };
    Ok((host.trim_matches(['[', ']']).to_owned(), address))
}

/// CRLFCRLF, answered by CRLF.
///
/// # Errors
/// The server's alert, or no answer until `deadline`.
pub fn ping(stream: &mut TlsStream, deadline: Instant) -> Result<()> {
    stream.write_all(b"\r\n\r\n", deadline)?;
    let (mut buffer, mut got) = ([0; 512], Vec::<u8>::new());
    while !got.windows(2).any(|window| window == b"\r\n") {
        match stream.read(&mut buffer)? {
            Some(0) => bail!("the server closed instead of answering a ping"),
            Some(count) => got.extend(&buffer[..count]),
            None => stream.wait(deadline).context("no answer to a ping")?,
        }
    }
    Ok(())
}

/// Handshakes that failed.
#[derive(Debug, Default)]
struct Trouble {
    count: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Trouble {
    fn note(&self, error: &anyhow::Error) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert_with(|| format!("{error:#}"));
        }
    }

    fn is_hopeless(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= FAILURES_MAX
    }

    fn give_up_if_hopeless(&self) -> Result<()> {
        let first = self.first.lock().ok().and_then(|first| first.clone()).unwrap_or_default();
        ensure!(!self.is_hopeless(), "{FAILURES_MAX} handshakes failed; the first: {first}");
        Ok(())
    }
}

/// One slice against the server: every handshake begun is waited for before the clock is read.
fn live_slice(args: &HandshakesArgs, peer: &Peer, trouble: &Trouble) -> Result<Slice> {
    let server_time =
        || args.pid.map_or(Ok(Duration::ZERO), |pid| machine::thread_time(pid, &args.thread_name));
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (before, start) = (server_time()?, clock::now());
    std::thread::scope(|scope| {
        for _ in 0..args.connections_in_flight {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && start.elapsed() < args.slice {
                    match peer.shake_hands() {
                        Ok(()) => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => trouble.note(&error),
                    }
                    stop.fetch_or(trouble.is_hopeless(), Ordering::Relaxed);
                }
            });
        }
    });
    let wall = start.elapsed();
    std::thread::sleep(SETTLE);
    let server_cpu_s = server_time()?.saturating_sub(before).as_secs_f64();
    Ok(Slice { handshakes: done.into_inner(), server_cpu_s, wall_s: wall.as_secs_f64() })
}

fn summarise(args: &HandshakesArgs, live: Vec<Slice>, baseline: Vec<Slice>, trouble: Trouble) -> Report {
    let rates = |slices: &[Slice]| -> Vec<f64> { slices.iter().map(Slice::per_core_s).collect() };
    let (live_rates, bare_rates) = (rates(&live), rates(&baseline));
    let has_cost = args.pid.is_some();
    let pairs = live_rates.iter().zip(&bare_rates).filter(|_| has_cost);
    let ratios: Vec<f64> = pairs.map(|(live, bare)| live / bare).collect();
    let handshakes = live.iter().map(|slice| slice.handshakes).sum();
    let wall: f64 = live.iter().map(|slice| slice.wall_s).sum();
    Report {
        conditions: machine::describe(),
        optimised: !cfg!(debug_assertions),
        connections_in_flight: args.connections_in_flight,
        handshakes,
        failures: trouble.count.into_inner(),
        first_failure: trouble.first.into_inner().ok().flatten(),
        live_per_s: count(handshakes) / wall.max(f64::MIN_POSITIVE),
        live_per_core_s: median(&live_rates).filter(|_| has_cost),
        baseline_per_core_s: median(&bare_rates),
        ratio: median(&ratios),
        ratio_min: ratios.iter().copied().reduce(f64::min),
        ratio_max: ratios.iter().copied().reduce(f64::max),
        live,
        baseline,
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// A count for arithmetic; exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "no run has 2^53 handshakes")]
fn count(number: u64) -> f64 {
    number as f64
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!("{}", report.conditions);
    if !report.optimised {
        println!("voxperf was built without optimisation: its baseline is too slow to compare with");
    }
    println!(
        "{} full handshakes, {} failed; {:.0} a second with {} at once",
        report.handshakes, report.failures, report.live_per_s, report.connections_in_flight
    );
    report.first_failure.iter().for_each(|why| println!("  the first failure: {why}"));
    if let Some(rate) = report.live_per_core_s {
        println!("server: {rate:.0} a second of its signalling thread's processor time");
    }
    if let Some(rate) = report.baseline_per_core_s {
        println!("rustls in memory: {rate:.0} a second of processor time, the server's side alone");
    }
    if let (Some(ratio), Some(least), Some(most)) = (report.ratio, report.ratio_min, report.ratio_max) {
        println!("ratio {ratio:.3} (median of {} pairs, {least:.3} to {most:.3})", report.live.len());
    }
    Ok(())
}

/// True when reading a non-blocking socket found nothing.
pub(crate) fn is_empty(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Papers;

    fn args(papers: &Papers, to: String) -> HandshakesArgs {
        HandshakesArgs {
            to,
            tls: papers.options(),
            seconds: Duration::from_millis(200),
            slice: Duration::from_millis(60),
            connections_in_flight: 1,
            baseline_cert: Some(papers.path("server.pem")),
            baseline_key: Some(papers.path("server.key")),
            pid: Some(std::process::id()),
            thread_name: String::new(),
            json: true,
        }
    }

    /// Goal: finished handshakes are counted on both sides, and both have a cost.
    /// Method: one slice each against a rustls server in this process.
    #[test]
    fn live_and_bare_handshakes_are_counted_with_their_cost() {
        let papers = Papers::new();
        let address = papers.serve(usize::MAX);
        let args = args(&papers, format!("127.0.0.1:{}", address.port()));
        let peer = Peer::new(&args.to, &args.tls).unwrap();
        let trouble = Trouble::default();
        let live = live_slice(&args, &peer, &trouble).unwrap();
        let files = (papers.path("server.pem"), papers.path("server.key"));
        let baseline = Baseline::new(&args.tls, &files.0, &files.1, &peer.host).unwrap();
        let bare = baseline.slice(args.slice).unwrap();
        assert!(live.handshakes > 0 && live.server_cpu_s > 0.0, "{live:?} {trouble:?}");
        assert!(
            bare.handshakes > 0 && bare.server_cpu_s > 0.0 && bare.server_cpu_s < bare.wall_s,
            "{bare:?}"
        );
        let report = summarise(&args, vec![live], vec![bare], trouble);
        assert_eq!((report.failures, report.live.len()), (0, 1));
        assert!(report.ratio.is_some_and(|ratio| ratio > 0.0));
    }

    /// Goal: a certificate that the server refuses is no handshake, though our side had finished.
    /// Method: a certificate of another authority; RFC 8446 §4.4.3: the alert comes late.
    #[test]
    fn a_refused_certificate_is_no_handshake() {
        let (papers, strangers) = (Papers::new(), Papers::new());
        let address = papers.serve(2);
        let tls = TlsOptions { ca: papers.options().ca, ..strangers.options() };
        let peer = Peer::new(&format!("127.0.0.1:{}", address.port()), &tls).unwrap();
        let error = format!("{:#}", peer.shake_hands().unwrap_err());
        assert!(error.contains("the peer refused our certificate"), "{error}");
    }

    /// Goal: the ratio is live by bare of each pair, and its median does not bend to one bad slice.
    /// Method: costs by hand: 0.5, 0.8 and 0.1.
    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let slice = |server_cpu_s| Slice { handshakes: 100, server_cpu_s, wall_s: 1.0 };
        let live = vec![slice(0.2), slice(0.125), slice(1.0)];
        let papers = Papers::new();
        let report = summarise(&args(&papers, String::new()), live, vec![slice(0.1); 3], Trouble::default());
        assert_eq!(report.ratio.map(|ratio| (ratio * 1000.0).round()), Some(500.0));
        assert_eq!(report.baseline_per_core_s.map(f64::round), Some(1000.0));
        assert_eq!(report.live_per_s.round(), 100.0);
    }
}
