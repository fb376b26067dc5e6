//! rtpengine of the Debian package, forwarding in user space.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::child::Server;
use super::contestant::{Contestant, Identity, Round};
use super::ng::Ng;
use super::relay::{self, Relay, Traffic};
use crate::{figures, machine};

/// Where the package puts it, besides the search path.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];

/// Pings until it must have started.
const START_ATTEMPTS: u32 = 5;

/// How it is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The processor it runs on; any if `None`.
    pub processor: Option<usize>,
    /// Its worker threads.
    pub threads: u32,
    /// Its RTP ports; a call takes four.
    pub ports: (u16, u16),
}

/// A running rtpengine.
#[derive(Debug)]
pub struct RtpEngine {
    server: Server,
    ng: Ng,
    identity: Identity,
    calls: Vec<String>,
    rounds: u32,
}

impl RtpEngine {
    /// Starts one on the loopback with ports and log of its own.
    ///
    /// # Errors
    /// It is not installed, or does not answer on its control port.
    pub fn start(options: &Options) -> Result<Self> {
        machine::raise_file_limit()?;
        let program = program()?;
        let control = free_port()?;
        let (least, most) = options.ports;
        let arguments = [
            "--foreground".to_owned(),
            "--config-file=none".to_owned(),
            // No kernel module: packets are forwarded in user space, as ours are.
            "--table=-1".to_owned(),
            "--interface=127.0.0.1".to_owned(),
            format!("--listen-ng={control}"),
            format!("--port-min={least}"),
            format!("--port-max={most}"),
            format!("--num-threads={}", options.threads),
            "--delete-delay=0".to_owned(),
            "--log-stderr".to_owned(),
            "--log-level=4".to_owned(),
        ];
        let mut command = Command::new(&program);
        let mut server = Server::start("rtpengine", command.args(&arguments), options.processor)?;
        let words = [vec![program.display().to_string()], arguments.to_vec()].concat();
        let identity = Identity {
            name: "rtpengine".to_owned(),
            version: version(&program),
            command: figures::command(&words),
            counted: match options.processor {
                Some(processor) => format!("all of its threads, on processor {processor}"),
                None => "all of its threads, on any processor".to_owned(),
            },
        };
        let mut ng = Ng::new(control)?;
        for attempt in 1.. {
            server.ensure_alive()?;
            match ng.ping() {
                Ok(()) => break,
                Err(error) if attempt >= START_ATTEMPTS => {
                    return Err(error.context(format!("its log: {}", server.last_words())));
                }
                Err(_) => {}
            }
        }
        Ok(Self { server, ng, identity, calls: Vec::new(), rounds: 0 })
    }
}

impl Relay for RtpEngine {
    fn set_up(&mut self, legs: &[[SocketAddr; 2]]) -> Result<Vec<[SocketAddr; 2]>> {
        self.rounds += 1;
        let mut theirs = Vec::with_capacity(legs.len());
        for (index, [caller, callee]) in legs.iter().enumerate() {
            let call = format!("voxperf-{}-{index}", self.rounds);
            self.calls.push(call.clone());
            let to_callee = self.ng.offer(&call, *caller).with_context(|| format!("call {}", index + 1))?;
            let to_caller = self.ng.answer(&call, *callee).with_context(|| format!("call {}", index + 1))?;
            theirs.push([to_caller, to_callee]);
        }
        Ok(theirs)
    }

    fn pid(&self) -> u32 {
        self.server.pid()
    }

    fn tear_down(&mut self) -> Result<()> {
        self.server.ensure_alive()?;
        std::mem::take(&mut self.calls).iter().try_for_each(|call| self.ng.delete(call))
    }
}

impl Contestant for RtpEngine {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn round(&mut self, calls: usize, window: Duration, seed: u64) -> Result<Round> {
        let round = relay::round(self, Traffic::Relay, (calls, window, seed));
        if round.is_err() {
            // Calls of a broken round must not weigh on the next one.
            let _ = self.tear_down();
        }
        round
    }
}

/// Where the program is.
///
/// # Errors
/// Nowhere; says how to install it.
pub fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    folders
        .find_map(|folder| Some(folder.join("rtpengine")).filter(|program| program.is_file()))
        .context("rtpengine is not installed: apt-get install --no-install-recommends rtpengine-daemon")
}

/// What `--version` says.
fn version(program: &PathBuf) -> String {
    let Ok(output) = Command::new(program).arg("--version").output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    text.strip_prefix("Version:").map_or(text.clone(), |version| version.trim().to_owned())
}

/// A UDP port of the loopback that was free a moment ago.
fn free_port() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// True when rtpengine is installed. Otherwise says so, and fails if `VOXRING_REQUIRE_PEERS=1`.
    fn is_installed() -> bool {
        let Err(why) = program() else { return true };
        let required = std::env::var("VOXRING_REQUIRE_PEERS").is_ok_and(|value| value == "1");
        assert!(!required, "{why} and VOXRING_REQUIRE_PEERS=1");
        // Past the test harness, which would keep it for itself.
        let _ = writeln!(std::io::stderr(), "skipped: rtpengine is not installed");
        false
    }

    /// Goal: calls set up over NG carry packets both ways, are counted, and are gone afterwards.
    /// Method: a real rtpengine, three calls; its own count of one of them; a call it never had.
    #[test]
    fn calls_over_ng_carry_packets_both_ways() {
        if !is_installed() {
            return;
        }
        let options = Options { processor: None, threads: 1, ports: (52_000, 53_000) };
        let mut engine = RtpEngine::start(&options).unwrap();
        assert!(!engine.identity().version.is_empty());
        let pid = engine.server.pid();
        let round = engine.round(3, Duration::from_millis(500), 1).unwrap();
        // Three calls, two legs each, 50 packets a second for half a second; the window's edges may
        // take a frame of each leg.
        assert!((144..=156).contains(&round.packets.expected), "{:?}", round.packets);
        assert!(round.added.count > 0 && round.handled > 0, "{round:?}");
        let legs = ["127.0.0.1:4000", "127.0.0.1:4002"].map(|leg| leg.parse().unwrap());
        engine.set_up(&[legs]).unwrap();
        let known = engine.ng.query("voxperf-2-0").unwrap();
        assert!(known.get("tags").is_some(), "{known:?}");
        engine.tear_down().unwrap();
        assert!(engine.ng.query("voxperf-2-0").is_err(), "the call is gone");
        drop(engine);
        assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap(), "and so is rtpengine");
    }
}
