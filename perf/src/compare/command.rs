//! `voxperf compare`: its arguments, and what it prints.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::child::keep_off;
use super::contestant::Contestant;
use super::drive::{Plan, Told, compare};
use super::floor::{self, Floor};
use super::relay::Traffic;
use super::report::CompareReport;
use super::rtpengine::{self, RtpEngine};
use super::voxring::Voxring;
use crate::find::report::calls_of;
use crate::load::command::LoadArgs;
use crate::load::result::Scenario;
use crate::report::{Document, Outputs};
use crate::script::seconds_of;
use crate::{figures, machine};

/// Arguments of `voxperf compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    #[command(subcommand)]
    peer: Peer,
}

#[derive(Debug, Subcommand)]
enum Peer {
    /// rtpengine of the Debian package, forwarding in user space, told its calls over NG.
    Rtpengine {
        #[command(flatten)]
        common: Box<Common>,
        /// Worker threads of rtpengine.
        #[arg(long, default_value_t = 1, value_name = "N")]
        threads: u32,
        /// RTP ports of rtpengine; a call takes four.
        #[arg(long, default_value = "50000-65000", value_parser = ports_of, value_name = "MIN-MAX")]
        ports: (u16, u16),
    },
    /// The bare loop of bench/floor: what the same packets cost with nothing around them; with --srtp, with
    /// the suite's bare ciphers.
    Floor {
        #[command(flatten)]
        common: Box<Common>,
        /// The program; cargo build --release --example floor makes it.
        #[arg(long, default_value = "target/release/examples/floor", value_name = "FILE")]
        program: PathBuf,
        /// How it moves packets: uring, epoll, shard.
        #[arg(long, default_value = "uring", value_name = "NAME")]
        backend: String,
    },
}

/// What every comparison is told.
#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    load: LoadArgs,
    /// Calls at once, comma separated: each is a level of its own. A round that a server did not hold is not
    /// compared: packets lost, calls not answered, or half of the packets delayed by more than 3 ms.
    #[arg(long, value_delimiter = ',', default_value = "250,500,1000,2000", value_name = "N")]
    calls: Vec<usize>,
    /// Rounds of each side at each level.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: u32,
    /// Measured window of a round.
    #[arg(long, default_value = "10", value_parser = seconds_of, value_name = "S")]
    duration: Duration,
    /// New calls a second while a level is set up.
    #[arg(long, default_value_t = 200.0, value_name = "R")]
    cps: f64,
    /// Processor of the peer. Run the server's media shard there too; we keep off it.
    #[arg(long, default_value_t = 0, value_name = "N")]
    server_cpu: usize,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// Compares, prints, writes. False when nothing could be compared.
///
/// # Errors
/// A peer that is not installed, a server that cannot be reached or whose process is not named, or a
/// file that cannot be written.
pub fn run(args: &CompareArgs) -> Result<bool> {
    match &args.peer {
        Peer::Rtpengine { common, threads, ports } => {
            common.check()?;
            let traffic = traffic(common.load.scenario)?;
            ensure!(traffic == Traffic::Relay, "rtpengine relays: compare it by --scenario anchor or echo");
            let (processor, threads, ports) = (Some(common.server_cpu), *threads, *ports);
            let mut peer = RtpEngine::start(&rtpengine::Options { processor, threads, ports })?;
            common.run(&mut peer)
        }
        Peer::Floor { common, program, backend } => {
            common.check()?;
            let (program, backend) = (program.clone(), backend.clone());
            let (processor, traffic) = (common.server_cpu, traffic(common.load.scenario)?);
            let suite = common.load.srtp;
            common.run(&mut Floor::new(floor::Options { program, backend, processor, traffic, suite })?)
        }
    }
}

/// What a peer does to be compared with a scenario.
fn traffic(scenario: Scenario) -> Result<Traffic> {
    match scenario {
        Scenario::Anchor | Scenario::Echo => Ok(Traffic::Relay),
        Scenario::Playout => Ok(Traffic::Playout),
        Scenario::Record => Ok(Traffic::Record),
        Scenario::Signalling | Scenario::Mixed | Scenario::Life => {
            bail!("there is nothing to compare {scenario:?} with")
        }
    }
}

/// A peer that relays two packets where an echo returns one: it gets half of the calls.
struct Halved<'a>(&'a mut dyn Contestant);

impl Contestant for Halved<'_> {
    fn identity(&self) -> super::contestant::Identity {
        let mut identity = self.0.identity();
        identity.counted += "; half as many calls, as each is relayed both ways";
        identity
    }

    fn round(&mut self, calls: usize, window: Duration, seed: u64) -> Result<super::contestant::Round> {
        self.0.round(calls.div_ceil(2), window, seed)
    }
}

impl Common {
    fn check(&self) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds must be above 0");
        ensure!(self.calls.iter().all(|calls| *calls > 0), "--calls must be above 0");
        ensure!(self.cps > 0.0 && self.cps.is_finite(), "--cps must be above 0");
        Ok(())
    }

    fn run(&self, peer: &mut dyn Contestant) -> Result<bool> {
        if self.load.cpu.is_none() {
            keep_off(self.server_cpu)?;
        }
        let scenario = self.load.scenario;
        let plan = Plan {
            calls: self.calls.clone(),
            rounds: self.rounds,
            window: self.duration,
            seed: self.load.seed,
            what: calls_of(scenario).to_owned(),
            command: std::env::args().collect(),
            fingerprint: machine::fingerprint(),
        };
        let bar = crate::run::progress(0, self.json);
        let mut ours = Voxring::new(&self.load, self.cps, &bar)?;
        let mut halved = Halved(peer);
        let theirs: &mut dyn Contestant = if scenario == Scenario::Echo { &mut halved } else { halved.0 };
        let report = compare(&plan, &mut ours, theirs, &mut |told| self.tell(told, &bar));
        bar.finish_and_clear();
        self.conclude(report?)
    }

    fn tell(&self, told: Told<'_>, bar: &ProgressBar) {
        match told {
            Told::Begins(name, calls, round) => {
                bar.set_message(format!(
                    "{name}, {} calls, round {}",
                    figures::whole(calls as u64),
                    round + 1
                ));
            }
            Told::Pair(level, pair) if !self.json => bar.suspend(|| {
                let round = level.pairs.len() + 1;
                println!("{:>7}, round {round}: {}", figures::whole(level.calls as u64), pair.line());
            }),
            Told::Pair(..) | Told::Level(_) => {}
        }
    }

    fn conclude(&self, report: CompareReport) -> Result<bool> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            report.lines().iter().for_each(|line| println!("{line}"));
            println!("{}", report.headline());
        }
        let is_compared = report.levels.iter().any(|level| level.sound().next().is_some());
        self.outputs.write(&Document::Compare(Box::new(report)))?;
        Ok(is_compared)
    }
}

/// `50000-65000`
fn ports_of(text: &str) -> Result<(u16, u16)> {
    let ends = text.split_once('-').and_then(|(least, most)| Some((least.parse().ok()?, most.parse().ok()?)));
    let Some((least, most)) = ends.filter(|(least, most)| least < most) else {
        bail!("{text:?}: want two ports, as in 50000-65000");
    };
    Ok((least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: port ranges and scenarios that make no sense are refused. Method: some of each.
    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(ports_of("50000-65000").unwrap(), (50_000, 65_000));
        for wrong in ["", "50000", "65000-50000", "1-70000", "a-b"] {
            assert!(ports_of(wrong).is_err(), "{wrong}");
        }
        assert!(traffic(Scenario::Signalling).is_err() && traffic(Scenario::Mixed).is_err());
        assert_eq!(traffic(Scenario::Echo).unwrap(), Traffic::Relay);
    }
}
