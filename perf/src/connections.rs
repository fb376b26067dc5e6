//! `voxperf connections`: many connections that stay idle, or never finish their TLS handshake.
//!
//! Tells how many the server kept, when it closed the others, and what they cost it in memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::clock::{self, millis};
use crate::handshakes::{is_empty, ping, resolve};
use crate::machine;
use crate::run::progress;
use crate::script::seconds_of;
use crate::sip::tls::{TlsClient, TlsOptions, TlsStream};

/// Patience with opening one connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at all connections.
const LOOK: Duration = Duration::from_millis(200);
/// After the last connection, before the server's memory is read.
const SETTLE: Duration = Duration::from_millis(500);

/// How far a connection gets that never finishes its TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HalfOpen {
    /// Says nothing at all.
    Nothing,
    /// Sends the first half of a ClientHello.
    Hello,
    /// Sends 64 bytes that are no TLS.
    Garbage,
}

/// What is opened.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    voxperf connections --to localhost:5061 --tls --ca ca.pem --cert gateway.pem --key gateway.key \\\n      \
      --count 10000 --hold 10 --pid $(pidof -s voxring) --json\n  \
    voxperf connections --to localhost:5061 --half-open hello --count 1000 --hold 15 --source-address 127.0.0.9\n\n\
    Exit code 0: every connection was opened and stayed; with --half-open: every one was opened.")]
pub struct ConnectionsArgs {
    /// The server's port; only on this machine or in a network namespace of ours.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Connections to open.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=50_000), value_name = "N")]
    count: u32,
    /// Connections a second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=20_000), value_name = "R")]
    rate: u32,
    /// Keep them this long after the last one was opened, at most 600.
    #[arg(long, default_value = "10", value_parser = seconds_of, value_name = "S")]
    hold: Duration,
    /// Finish a TLS handshake on each and have a ping answered; otherwise they are plain TCP.
    #[arg(long = "tls", conflicts_with = "half_open")]
    with_tls: bool,
    #[command(flatten)]
    tls: TlsOptions,
    /// Never finish the TLS handshake.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "nothing", value_name = "HOW")]
    half_open: Option<HalfOpen>,
    /// Connect from this address of ours, as in 127.0.0.9.
    #[arg(long, value_name = "IP")]
    source_address: Option<IpAddr>,
    /// Report this process's resident memory. Repeatable; the sum is reported.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// An open connection.
enum Open {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

struct Connection {
    open: Open,
    since: Instant,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    conditions: String,
    asked: u32,
    opened: u64,
    /// Why others could not be opened, and how often.
    failed: BTreeMap<String, u64>,
    /// Open at the end.
    stayed_open: u64,
    /// Closed by the server meanwhile.
    closed: u64,
    /// How long those lived: the shortest, the median, the longest.
    closed_after_min_ms: Option<u64>,
    closed_after_p50_ms: Option<u64>,
    closed_after_max_ms: Option<u64>,
    opening_s: f64,
    /// Resident memory of the processes before, with all connections open, and at the end.
    resident_before_bytes: Option<u64>,
    resident_open_bytes: Option<u64>,
    resident_end_bytes: Option<u64>,
    /// Growth by a connection open when memory was read; the kernel's socket buffers not included.
    bytes_per_connection: Option<i64>,
}

/// Opens, holds and prints.
///
/// # Errors
/// The server is not ours to load, a file or process is missing, or too few files may be open.
pub fn run(args: &ConnectionsArgs) -> Result<bool> {
    let report = hold(args)?;
    print(&report, args.json)?;
    let is_whole = report.opened == u64::from(args.count);
    Ok(is_whole && (args.half_open.is_some() || report.closed == 0))
}

fn hold(args: &ConnectionsArgs) -> Result<Report> {
    ensure!(args.hold <= Duration::from_secs(600), "--hold is at most 600");
    let limit = machine::raise_file_limit()?;
    ensure!(u64::from(args.count) + 64 <= limit, "--count {}: only {limit} files may be open", args.count);
    let opener = Opener::new(args)?;
    let mut report = Report { conditions: machine::describe(), asked: args.count, ..Report::default() };
    report.resident_before_bytes = resident(&args.pids)?;
    let bar = progress(u64::from(args.count), false);
    let (mut connections, mut lives) = (Vec::new(), Vec::new());
    let start = clock::now();
    let mut looked = start;
    for number in 0..args.count {
        let due = start + Duration::from_secs(1) * number / args.rate;
        std::thread::sleep(due.saturating_duration_since(clock::now()));
        let since = clock::now();
        match opener.open() {
            Ok(open) => connections.push(Connection { open, since }),
            Err(error) => *report.failed.entry(format!("{error:#}")).or_default() += 1,
        }
        bar.set_position(connections.len() as u64);
        if looked.elapsed() > LOOK {
            looked = clock::now();
            look(&mut connections, &mut lives);
        }
    }
    report.opening_s = start.elapsed().as_secs_f64();
    report.opened = (connections.len() + lives.len()) as u64;
    bar.set_message("holding");
    let held_from = clock::now();
    while held_from.elapsed() < args.hold {
        std::thread::sleep(LOOK.min(args.hold));
        look(&mut connections, &mut lives);
        if report.resident_open_bytes.is_none() && held_from.elapsed() >= SETTLE.min(args.hold) {
            report.resident_open_bytes = resident(&args.pids)?;
            report.bytes_per_connection = growth(&report, connections.len());
        }
    }
    bar.finish_and_clear();
    look(&mut connections, &mut lives);
    report.resident_end_bytes = resident(&args.pids)?;
    (report.stayed_open, report.closed) = (connections.len() as u64, lives.len() as u64);
    lives.sort_unstable();
    report.closed_after_min_ms = lives.first().map(|life| millis(*life));
    report.closed_after_p50_ms = lives.get(lives.len() / 2).map(|life| millis(*life));
    report.closed_after_max_ms = lives.last().map(|life| millis(*life));
    Ok(report)
}

fn growth(report: &Report, connections: usize) -> Option<i64> {
    let (before, open) = (report.resident_before_bytes?, report.resident_open_bytes?);
    let grown = i64::try_from(open).ok()? - i64::try_from(before).ok()?;
    grown.checked_div(i64::try_from(connections).ok()?)
}

fn resident(pids: &[u32]) -> Result<Option<u64>> {
    let all = pids.iter().map(|&pid| machine::resident_bytes(pid)).collect::<Result<Vec<_>>>()?;
    Ok((!all.is_empty()).then(|| all.iter().sum()))
}

/// Opens connections of the kind asked for.
struct Opener {
    host: String,
    address: SocketAddr,
    source: Option<IpAddr>,
    /// Finish a handshake.
    tls: Option<TlsClient>,
    /// Said on a connection whose handshake never finishes.
    opening: Vec<u8>,
}

impl Opener {
    fn new(args: &ConnectionsArgs) -> Result<Self> {
        let (host, address) = resolve(&args.to)?;
        let tls = args.with_tls.then(|| TlsClient::required(&args.tls)).transpose()?;
        let opening = match args.half_open {
            None | Some(HalfOpen::Nothing) => Vec::new(),
            Some(HalfOpen::Hello) => half_hello(&host)?,
            Some(HalfOpen::Garbage) => vec![0x2A; 64],
        };
        Ok(Self { host, address, source: args.source_address, tls, opening })
    }

    fn open(&self) -> Result<Open> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        if let Some(source) = self.source {
            let from = SocketAddr::new(source, 0);
            socket.bind(&from.into()).with_context(|| format!("cannot connect from {source}"))?;
        }
        socket.connect_timeout(&self.address.into(), PATIENCE).context("cannot connect")?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        if let Some(tls) = &self.tls {
            let deadline = clock::now() + PATIENCE;
            let mut stream = TlsStream::open(stream, tls.connection(&self.host)?, deadline)?;
            ping(&mut stream, deadline)?;
            return Ok(Open::Tls(Box::new(stream)));
        }
        stream.write_all(&self.opening)?;
        stream.set_nonblocking(true)?;
        Ok(Open::Plain(stream))
    }
}

/// The first half of a ClientHello for `host`.
fn half_hello(host: &str) -> Result<Vec<u8>> {
    let anybody = TlsClient::required(&TlsOptions { insecure: true, ..TlsOptions::default() })?;
    let mut hello = Vec::new();
    anybody.connection(host)?.write_tls(&mut hello)?;
    hello.truncate(hello.len() / 2);
    Ok(hello)
}

/// Moves the lives of closed connections to `lives`.
fn look(connections: &mut Vec<Connection>, lives: &mut Vec<Duration>) {
    connections.retain_mut(|connection| {
        let stays = connection.open.is_open();
        if !stays {
            lives.push(connection.since.elapsed());
        }
        stays
    });
}

impl Open {
    /// Reads away what came; false once the server has closed.
    fn is_open(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            let read = match self {
                Self::Plain(stream) => match stream.read(&mut buffer) {
                    Err(error) if is_empty(&error) => Ok(None),
                    other => other.map(Some).map_err(Into::into),
                },
                Self::Tls(stream) => stream.read(&mut buffer),
            };
            match read {
                Ok(None) => return true,
                Ok(Some(0)) | Err(_) => return false,
                Ok(Some(_)) => {}
            }
        }
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!("{}", report.conditions);
    println!(
        "{} of {} connections opened in {:.1} s; {} stayed open, {} were closed by the server",
        report.opened, report.asked, report.opening_s, report.stayed_open, report.closed
    );
    report.failed.iter().for_each(|(why, count)| println!("  {count} times: {why}"));
    let lives = [report.closed_after_min_ms, report.closed_after_p50_ms, report.closed_after_max_ms];
    if let [Some(least), Some(median), Some(most)] = lives {
        println!(
            "closed after {least} ms at the soonest, {median} ms in the median, {most} ms at the latest"
        );
    }
    if let (Some(before), Some(open), Some(each)) =
        (report.resident_before_bytes, report.resident_open_bytes, report.bytes_per_connection)
    {
        println!("resident memory {before} bytes before, {open} with them: {each} bytes a connection");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Papers;
    use std::net::TcpListener;

    fn args(to: String) -> ConnectionsArgs {
        ConnectionsArgs {
            to,
            count: 6,
            rate: 1000,
            hold: Duration::from_millis(600),
            with_tls: false,
            tls: TlsOptions::default(),
            half_open: None,
            source_address: None,
            pids: vec![std::process::id()],
            json: false,
        }
    }

    /// Goal: connections that the server closes are told from those it keeps, and from whom they come.
    /// Method: a server that keeps every second connection of 127.0.0.9 and closes the others.
    #[test]
    fn closed_connections_are_told_from_kept_ones() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap().to_string();
        let keeper = std::thread::spawn(move || {
            let accepted = (0..6).map(|_| listener.accept().unwrap());
            accepted.enumerate().filter(|(n, _)| n % 2 == 0).map(|(_, kept)| kept).collect::<Vec<_>>()
        });
        let source = IpAddr::from([127, 0, 0, 9]);
        let (half_open, source_address) = (Some(HalfOpen::Garbage), Some(source));
        let report = hold(&ConnectionsArgs { half_open, source_address, ..args(to) }).unwrap();
        assert_eq!((report.opened, report.stayed_open, report.closed), (6, 3, 3));
        assert!(report.closed_after_max_ms.is_some() && report.bytes_per_connection.is_some());
        let kept = keeper.join().unwrap();
        assert!(kept.iter().all(|(_, from)| from.ip() == source));
    }

    /// Goal: TLS connections count as open only when the server took our certificate.
    /// Method: one good connection; then one with a certificate of another authority.
    #[test]
    fn a_tls_connection_is_open_once_the_server_took_our_certificate() {
        let (papers, strangers) = (Papers::new(), Papers::new());
        let to = papers.serve(4).to_string();
        let good = ConnectionsArgs { count: 1, with_tls: true, tls: papers.options(), ..args(to.clone()) };
        assert_eq!(hold(&good).unwrap().stayed_open, 1);
        let tls = TlsOptions { ca: papers.options().ca, ..strangers.options() };
        let report = hold(&ConnectionsArgs { tls, ..good }).unwrap();
        let why = report.failed.keys().next().unwrap();
        assert!(report.opened == 0 && why.contains("the peer refused our certificate"), "{report:?}");
    }

    /// Goal: half a ClientHello is the beginning of one and not all of it.
    /// Method: RFC 8446 §5.1 and §4: a handshake record (22) whose length goes beyond what is sent.
    #[test]
    fn half_a_hello_is_the_beginning_of_one() {
        let half = half_hello("localhost").unwrap();
        assert_eq!((half[0], half[5]), (22, 1));
        assert!(half.len() < 5 + usize::from(u16::from_be_bytes([half[3], half[4]])));
    }
}
