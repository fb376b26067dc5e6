//! The bare loops of `bench/floor`: what the same packets cost with nothing around them.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::child::Server;
use super::contestant::{Contestant, Identity, Round};
use super::relay::{self, Relay, Traffic};
use crate::sip::sdes::Suite;
use crate::{figures, machine};

/// How a loop is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program: `target/release/examples/floor`.
    pub program: PathBuf,
    /// `uring`, `epoll` or `mmsg`.
    pub backend: String,
    /// The processor it runs on.
    pub processor: usize,
    /// What it does with packets.
    pub traffic: Traffic,
    /// The suite whose bare cipher goes over what is relayed.
    pub suite: Option<Suite>,
}

/// A bare loop; one is started for each round, as it is told its streams at the start.
#[derive(Debug)]
pub struct Floor {
    options: Options,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    server: Server,
    /// It ends when this closes.
    _input: ChildStdin,
}

/// What it says when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    pid: u32,
    ports: Vec<Vec<u16>>,
}

impl Floor {
    /// A loop to be started for each round.
    ///
    /// # Errors
    /// The program is not there; says how to build it.
    pub fn new(options: Options) -> Result<Self> {
        let program = options.program.display();
        ensure!(options.program.is_file(), "no {program}: cargo build --release --example floor");
        machine::raise_file_limit()?;
        Ok(Self { options, running: None })
    }

    fn arguments(&self, streams: usize) -> Vec<String> {
        let mode = match self.options.traffic {
            Traffic::Relay => "relay",
            Traffic::Playout => "send",
            Traffic::Record => "receive",
        };
        let (streams, processor) = (streams.to_string(), self.options.processor.to_string());
        let backend = &self.options.backend;
        let plain = ["--mode", mode, "--backend", backend, "--streams", &streams, "--cpu", &processor];
        let cipher = self.options.suite.iter().flat_map(|suite| ["--suite", suite.name()]);
        plain.into_iter().chain(cipher).map(str::to_owned).collect()
    }
}

impl Relay for Floor {
    fn set_up(&mut self, legs: &[[SocketAddr; 2]]) -> Result<Vec<[SocketAddr; 2]>> {
        let mut command = Command::new(&self.options.program);
        let mut server = Server::start("floor", command.args(self.arguments(legs.len())), None)?;
        let mut line = String::new();
        let output = server.output().context("floor has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        server.ensure_alive()?;
        let ready: Ready = serde_json::from_str(&line)
            .with_context(|| format!("floor says {line:?}; its log: {}", server.last_words()))?;
        ensure!(ready.pid == server.pid(), "floor's process is {}, not {}", ready.pid, server.pid());
        let mut input = server.input().context("floor has no input")?;
        if self.options.traffic == Traffic::Playout {
            let lines: String = legs.iter().map(|[first, _]| format!("{first}\n")).collect();
            input.write_all(lines.as_bytes()).context("floor takes no addresses")?;
        }
        let theirs = ready.ports.iter().map(|ports| ends(ports)).collect::<Result<_>>()?;
        self.running = Some(Running { server, _input: input });
        Ok(theirs)
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().map_or(0, |running| running.server.pid())
    }

    fn tear_down(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut running| running.server.ensure_alive())
    }
}

/// Both ends of a call; a single port is both.
fn ends(ports: &[u16]) -> Result<[SocketAddr; 2]> {
    let at = |port: &u16| SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
    let first = ports.first().context("floor names a stream without a port")?;
    Ok([at(first), at(ports.get(1).unwrap_or(first))])
}

impl Contestant for Floor {
    fn identity(&self) -> Identity {
        let program = self.options.program.display().to_string();
        let words = [vec![program], self.arguments(0)].concat();
        Identity {
            name: format!("bare {} loop", self.options.backend),
            version: String::new(),
            command: figures::command(&words).replace("--streams 0", "--streams N"),
            counted: format!("all of it, on processor {}", self.options.processor),
        }
    }

    fn round(&mut self, calls: usize, window: Duration, seed: u64) -> Result<Round> {
        let traffic = self.options.traffic;
        let round = relay::round(self, traffic, (calls, window, seed));
        self.running = None;
        round
    }
}
