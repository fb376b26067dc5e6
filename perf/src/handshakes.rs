//! `voxperf handshakes`: what a full mutual TLS handshake costs the server, beside the bare library.
//!
//! Slices alternate in one run: connections to the live server, whose signalling thread's processor
//! time the scheduler counts; rustls against itself in memory, where only the server's calls are
//! timed; and connections to a plain TCP port of the same server. All therefore see the same machine
//! at the same time. No handshake resumes another.

mod baseline;
mod report;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::clock;
use crate::machine::{self, ThreadTime};
use crate::run::progress;
use crate::script::seconds_of;
use crate::sip::tls::{TlsClient, TlsOptions, TlsStream};
use baseline::Baseline;
use report::{Report, Slices};

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
      --baseline-cert server.pem --baseline-key server.key \\\n      \
      --plain localhost:5060 --pid $(pidof -s voxring) --json")]
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
    /// A plain TCP port of the same server: what its connections cost without TLS.
    #[arg(long, value_name = "HOST:PORT")]
    plain: Option<String>,
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
    /// Handshakes; connections where there is no TLS.
    handshakes: u64,
    /// Processor time of the server's side.
    server_cpu_s: f64,
    /// Shares of it in ticks of the kernel; too coarse for one slice.
    user_ticks: u64,
    system_ticks: u64,
    wall_s: f64,
}

impl Slice {
    /// Handshakes a second of one processor.
    fn per_core_s(&self) -> f64 {
        if self.server_cpu_s > 0.0 { report::count(self.handshakes) / self.server_cpu_s } else { 0.0 }
    }
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
    let plain = args.plain.as_deref().map(resolve).transpose()?;
    if let Some((_, address)) = plain {
        exchange(address).with_context(|| format!("{address} answers no ping without TLS"))?;
    }
    let (mut live, mut bare, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
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
        live.push(live_slice(args, || peer.shake_hands(), &trouble)?);
        if let Some((_, address)) = plain {
            tcp.push(live_slice(args, || exchange(address), &trouble)?);
        }
        trouble.give_up_if_hopeless()?;
    }
    bar.finish_and_clear();
    let report = Report::new(args, Slices { live, baseline: bare, tcp }, trouble);
    report.print(args.json)?;
    Ok(report.is_whole())
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

/// As many round trips as a TLS 1.3 handshake and its ping, without TLS.
const PLAIN_PINGS: usize = 2;

/// A plain connection that the server has served for certain.
fn exchange(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    for _ in 0..PLAIN_PINGS {
        stream.write_all(b"\r\n\r\n")?;
        stream.read_exact(&mut [0; 2]).context("no answer to a ping")?;
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

/// One slice against the server: every connection begun is waited for before the clock is read.
fn live_slice(
    args: &HandshakesArgs,
    connect: impl Fn() -> Result<()> + Sync,
    trouble: &Trouble,
) -> Result<Slice> {
    let server_time =
        || args.pid.map_or(Ok(ThreadTime::default()), |pid| machine::thread_time(pid, &args.thread_name));
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (before, start) = (server_time()?, clock::now());
    std::thread::scope(|scope| {
        for _ in 0..args.connections_in_flight {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && start.elapsed() < args.slice {
                    match connect() {
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
    let spent = server_time()?.since(before);
    Ok(Slice {
        handshakes: done.into_inner(),
        server_cpu_s: spent.total.as_secs_f64(),
        user_ticks: spent.user_ticks,
        system_ticks: spent.system_ticks,
        wall_s: wall.as_secs_f64(),
    })
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
            plain: None,
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
        let live = live_slice(&args, || peer.shake_hands(), &trouble).unwrap();
        let files = (papers.path("server.pem"), papers.path("server.key"));
        let baseline = Baseline::new(&args.tls, &files.0, &files.1, &peer.host).unwrap();
        let bare = baseline.slice(args.slice).unwrap();
        assert!(live.handshakes > 0 && live.server_cpu_s > 0.0, "{live:?} {trouble:?}");
        assert!(
            bare.handshakes > 0 && bare.server_cpu_s > 0.0 && bare.server_cpu_s < bare.wall_s,
            "{bare:?}"
        );
        let slices = Slices { live: vec![live], baseline: vec![bare], tcp: Vec::new() };
        let report = Report::new(&args, slices, trouble);
        assert!(report.is_whole());
        assert!(report.ratio().is_some_and(|ratio| ratio > 0.0));
    }

    /// Goal: the ratio is live by bare of each pair, and its median does not bend to one bad slice.
    /// Method: costs by hand: 0.5, 0.8 and 0.1.
    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let slice = |server_cpu_s| Slice { handshakes: 100, server_cpu_s, wall_s: 1.0, ..Slice::default() };
        let live = vec![slice(0.2), slice(0.125), slice(1.0)];
        let slices = Slices { live, baseline: vec![slice(0.1); 3], tcp: vec![slice(0.05); 3] };
        let report = Report::new(&args(&Papers::new(), String::new()), slices, Trouble::default());
        assert_eq!(report.ratio().map(|ratio| (ratio * 1000.0).round()), Some(500.0));
        let json = serde_json::to_value(&report).unwrap();
        let rounded = |key: &str| json[key].as_f64().map(f64::round);
        assert_eq!(rounded("baseline_per_core_s"), Some(1000.0));
        assert_eq!(rounded("live_per_s"), Some(100.0));
        // 1000 us in memory by 2000 us live without the 500 us of plain TCP.
        assert_eq!(json["ratio_without_tcp"].as_f64().map(|r| (r * 1000.0).round()), Some(667.0));
        assert_eq!(json["ratio_user"].as_f64(), None, "there were no ticks");
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
}
