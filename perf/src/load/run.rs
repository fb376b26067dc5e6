//! One run: set-up, window, end, and the report of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use indicatif::ProgressBar;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::call::local_address;
use crate::load::arrivals::Spread;
use crate::load::honesty::{Load, bottleneck};
use crate::load::life::{Life, Part};
use crate::load::media::engine::{Engine, Measured, Order, STRAGGLERS};
use crate::load::media::socket::MediaSocket;
use crate::load::media::tally::Window;
use crate::load::result::{
    Asked, Distribution, Fingerprint, Generator, Packets, RunReport, Scenario, ServerThread, count,
};
use crate::load::signalling::{self, Command, Progress, Totals};
use crate::load::watch::{self, Sample};
use crate::rng::Rng;
use crate::sip::sdes::{Suite, Wish};
use crate::sip::target::Target;
use crate::sip::tls::TlsClient;
use crate::{clock, machine};

/// Streams that share a socket unless told otherwise.
const STREAMS_PER_SOCKET: usize = 128;

/// Between the last answer and the window: the first packets are on their way.
const LEAD: Duration = Duration::from_millis(500);

/// Calls ended a second, for each begun a second; a BYE costs less than an INVITE.
const LEAVE_FACTOR: f64 = 4.0;
/// Calls ended a second at least.
const LEAVE_RATE_MIN: f64 = 200.0;
/// Longest wait for the last calls to end, once all were asked to.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Name of the signalling thread.
const SIGNAL_THREAD: &str = "vx-signal";
/// Name of the media thread.
const MEDIA_THREAD: &str = "vx-media";

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom to call. A URI without a user part gets that of the scenario.
    pub target: Target,
    /// What the calls do.
    pub scenario: Scenario,
    /// Calls at once; not used by [`Scenario::Signalling`].
    pub calls: usize,
    /// New calls a second.
    pub cps: f64,
    /// How they are spread.
    pub spread: Spread,
    /// Length of the window.
    pub duration: Duration,
    /// Each call's length in [`Scenario::Signalling`].
    pub hold: Duration,
    /// A call that rings longer is given up.
    pub patience: Duration,
    /// SRTP suite.
    pub srtp: Option<Suite>,
    /// Send and read RTCP.
    pub rtcp: bool,
    /// What is recorded is offered one way.
    pub one_way: bool,
    /// Seed of arrivals and phases.
    pub seed: u64,
    /// Connections to each neighbour.
    pub connections: u32,
    /// Media sockets; `None`: one for each 128 streams.
    pub sockets: Option<usize>,
    /// Processor for our threads.
    pub cpu: Option<usize>,
    /// Processes of the server; their children count too.
    pub pids: Vec<u32>,
    /// For hops over TLS.
    pub tls: Option<TlsClient>,
    /// Where the second legs of anchored calls come to.
    pub callee: SocketAddr,
    /// Parts of [`Scenario::Life`].
    pub parts: Vec<Part>,
    /// Where it leaves messages.
    pub mailbox: String,
    /// The command line that repeats it.
    pub command: Vec<String>,
}

impl Plan {
    /// Scenario and URI of each kind of call.
    fn kinds(&self) -> Vec<(Scenario, String)> {
        let scenarios: &[Scenario] = match self.scenario {
            Scenario::Mixed => &[Scenario::Playout, Scenario::Echo, Scenario::Record],
            Scenario::Life => {
                let parts = self.parts.iter();
                return parts.map(|part| (part.scenario(), self.part_uri(*part))).collect();
            }
            _ => std::slice::from_ref(&self.scenario),
        };
        scenarios.iter().map(|&scenario| (scenario, self.uri(scenario))).collect()
    }

    fn part_uri(&self, part: Part) -> String {
        match part {
            Part::Message | Part::Keys => self.uri_of(&self.mailbox),
            _ => self.uri(part.scenario()),
        }
    }

    fn uri(&self, scenario: Scenario) -> String {
        self.uri_of(match scenario {
            Scenario::Echo => "9196",
            Scenario::Playout | Scenario::Mixed => "9197",
            Scenario::Record => "9198",
            Scenario::Signalling => "9199",
            Scenario::Anchor | Scenario::Life => "8000",
        })
    }

    fn uri_of(&self, user: &str) -> String {
        let mut uri = self.target.uri.clone();
        if uri.auth.is_none() {
            uri.auth = Some(rsip::Auth { user: user.to_owned(), password: None });
        }
        uri.to_string()
    }

    fn asked(&self) -> Asked {
        Asked {
            scenario: self.scenario,
            target: self.target.uri.to_string(),
            calls: if self.scenario == Scenario::Life { self.flowing_at_once() } else { self.calls },
            cps: self.cps,
            duration_s: self.duration.as_secs_f64(),
            seed: self.seed,
            srtp: self.srtp.map(|suite| suite.name().to_owned()),
            rtcp: self.rtcp,
        }
    }

    /// Calls come and go all the time, and are as long as `hold`.
    fn is_flowing(&self) -> bool {
        matches!(self.scenario, Scenario::Signalling | Scenario::Life)
    }

    /// Calls at once that rate and length make.
    fn flowing_at_once(&self) -> usize {
        let calls = (self.cps * self.hold.as_secs_f64()).clamp(1.0, 1e6);
        // Seconds are whole numbers for this purpose; rounding is the best there is.
        Duration::try_from_secs_f64(calls).map_or(1, |calls| usize::try_from(calls.as_secs()).unwrap_or(1))
    }

    fn is_signalling(&self) -> bool {
        self.scenario == Scenario::Signalling
    }

    /// Calls in all; those that come and go begin from the lead to its window's end.
    fn calls_in_all(&self) -> Result<u32> {
        let calls = if self.is_flowing() {
            (self.cps * (self.flow_lead() + self.duration).as_secs_f64()).ceil()
        } else {
            count(self.calls as u64)
        };
        ensure!((1.0..=1e6).contains(&calls), "a run has 1 to 1000000 calls, not {calls}");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within bounds just checked"
        )]
        Ok(calls as u32)
    }

    /// How long before the window calls begin that are not measured: until as many are up as ever.
    fn flow_lead(&self) -> Duration {
        self.hold + LEAD
    }
}

/// Runs it. The bar is moved through set-up, window and end.
///
/// # Errors
/// The target cannot be reached or is not ours to load, a `--pid` does not exist, no call was
/// answered, or the run was interrupted; calls are then hung up first.
pub fn run(plan: &Plan, bar: &ProgressBar) -> Result<RunReport> {
    machine::ensure_own(plan.target.address.ip())?;
    ensure!(plan.cps > 0.0 && plan.cps.is_finite(), "--cps must be above 0");
    ensure!(plan.duration > Duration::ZERO, "--duration must be above 0");
    machine::raise_file_limit()?;
    let mut fingerprint = machine::fingerprint();
    let interrupts = Interrupts::catch()?;
    let resident_before = watch::resident_bytes(&watch::family(&plan.pids)?);
    let mut threads = Threads::start(plan)?;
    let result = drive(plan, &mut threads, &interrupts, bar);
    let (totals, measured) = threads.end(plan, bar)?;
    let edges = result.map_err(|error| {
        let outcomes = totals.calls.outcomes.iter().chain(&totals.calls.remarks);
        let outcomes: Vec<_> = outcomes.map(|(what, times)| format!("{times} times {what}")).collect();
        if outcomes.is_empty() { error } else { anyhow!("{error:#}; calls so far: {}", outcomes.join(", ")) }
    })?;
    let measured = measured.context("the media thread did not come to the window's end")?;
    fingerprint.server.clone_from(&totals.server);
    Ok(report(plan, fingerprint, totals, measured, edges, resident_before))
}

/// What was read at the window's edges.
struct Edges {
    before: Sample,
    after: Sample,
    own_before: Sample,
    own_after: Sample,
    length: Duration,
    dropped_by_us: u64,
    receive_buffer_errors: u64,
    resident: u64,
    set_up: Duration,
}

/// Set-up and window.
fn drive(plan: &Plan, threads: &mut Threads, interrupts: &Interrupts, bar: &ProgressBar) -> Result<Edges> {
    let start = clock::now();
    let calls = u64::from(plan.calls_in_all()?);
    bar.set_length(calls);
    bar.set_message("calls begun");
    let lead_until = start + plan.flow_lead();
    threads.wait(interrupts, || {
        let progress = &threads.progress;
        let begun = progress.begun.load(Ordering::Relaxed);
        bar.set_position(begun);
        let all_answered = begun == calls && progress.calling.load(Ordering::Relaxed) == 0;
        if plan.is_flowing() { clock::now() >= lead_until } else { all_answered }
    })?;
    let set_up = start.elapsed();
    if !plan.is_flowing() {
        ensure!(threads.progress.up.load(Ordering::Relaxed) > 0, "no call was answered");
        let until = clock::now() + LEAD;
        threads.wait(interrupts, || clock::now() >= until)?;
    }
    measure(plan, threads, interrupts, bar, set_up)
}

/// The window: orders it, reads the system at its edges.
fn measure(
    plan: &Plan,
    threads: &Threads,
    interrupts: &Interrupts,
    bar: &ProgressBar,
    set_up: Duration,
) -> Result<Edges> {
    let family = watch::family(&plan.pids)?;
    let own = [std::process::id()];
    let resident = watch::resident_bytes(&family);
    let drops = machine::udp_drops(&threads.ports);
    let errors = machine::udp_receive_buffer_errors();
    let (own_before, before) = (Sample::take(&own), Sample::take(&family));
    let (start, from) = (clock::now(), clock::calendar());
    let until = from + plan.duration;
    // Whoever is gone shows by the thread's own error.
    let _ = threads.media.send(Order::Measure(Window { from, until }));
    let _ = threads.commands.send(Command::Measure { from: start, until: start + plan.duration });
    bar.set_length(plan.duration.as_secs());
    bar.set_message("s measured");
    let end = start + plan.duration;
    let is_cut = threads.wait_or_cut(interrupts, || {
        bar.set_position(start.elapsed().as_secs());
        clock::now() >= end
    })?;
    if is_cut {
        ensure!(plan.scenario == Scenario::Life, "interrupted");
        let _ = threads.media.send(Order::Cut);
    }
    let (after, own_after) = (Sample::take(&family), Sample::take(&own));
    let length = start.elapsed();
    // The media thread tells its result when the last packets are in.
    let stragglers = clock::now() + STRAGGLERS + LEAD / 5;
    threads.wait(interrupts, || clock::now() >= stragglers)?;
    Ok(Edges {
        before,
        after,
        own_before,
        own_after,
        length,
        dropped_by_us: machine::udp_drops(&threads.ports).saturating_sub(drops),
        receive_buffer_errors: machine::udp_receive_buffer_errors().saturating_sub(errors),
        resident,
        set_up,
    })
}

/// The two generator threads.
struct Threads {
    signal: Option<JoinHandle<Result<Totals>>>,
    engine: Option<JoinHandle<Result<Option<Measured>>>>,
    commands: Sender<Command>,
    media: Sender<Order>,
    progress: std::sync::Arc<Progress>,
    ports: Vec<u16>,
}

impl Threads {
    fn start(plan: &Plan) -> Result<Self> {
        let address = local_address(plan.target.address)?;
        let sockets = bind(plan, address)?;
        let ports: Vec<u16> = sockets.iter().map(MediaSocket::port).collect();
        let (media, orders) = channel();
        let (commands, asked) = channel();
        let progress = std::sync::Arc::new(Progress::default());
        let (cpu, seed, rtcp, flows) = (plan.cpu, plan.seed, plan.rtcp, plan.is_flowing());
        let engine = Builder::new().name(MEDIA_THREAD.to_owned()).spawn(move || {
            pin(cpu)?;
            Ok(Engine::new(sockets, seed)?.obeying(orders).reporting(rtcp).patient(flows).run())
        })?;
        let calls = signalling::Plan {
            kinds: plan.kinds(),
            calls: plan.calls_in_all()?,
            cps: plan.cps,
            spread: plan.spread,
            // Phases and arrivals have nothing to do with each other.
            seed: Rng::new(seed).bits(),
            hold: plan.is_flowing().then_some(plan.hold),
            patience: plan.patience,
            one_way: plan.one_way,
            connections: plan.connections,
            tls: plan.tls.clone(),
            srtp: Wish { suites: plan.srtp.into_iter().collect(), ..Wish::default() },
            media: address,
            ports: ports.clone(),
            callee: matches!(plan.scenario, Scenario::Anchor | Scenario::Life).then_some(plan.callee),
            parts: if plan.scenario == Scenario::Life { plan.parts.clone() } else { Vec::new() },
        };
        let (orders, told) = (media.clone(), std::sync::Arc::clone(&progress));
        let signal = Builder::new().name(SIGNAL_THREAD.to_owned()).spawn(move || {
            pin(cpu)?;
            signalling::run(&calls, orders, &asked, &told)
        })?;
        Ok(Self { signal: Some(signal), engine: Some(engine), commands, media, progress, ports })
    }

    /// Waits until `done`, looking every 20 ms.
    fn wait(&self, interrupts: &Interrupts, done: impl FnMut() -> bool) -> Result<()> {
        ensure!(!self.wait_or_cut(interrupts, done)?, "interrupted");
        Ok(())
    }

    /// The same; true when it was interrupted.
    fn wait_or_cut(&self, interrupts: &Interrupts, mut done: impl FnMut() -> bool) -> Result<bool> {
        while !done() {
            match interrupts.wait(Duration::from_millis(20)) {
                Some(Signal::SIGUSR1) => self.mark(),
                Some(_) => return Ok(true),
                None => {}
            }
            let is_gone = self.signal.as_ref().is_some_and(JoinHandle::is_finished)
                || self.engine.as_ref().is_some_and(JoinHandle::is_finished);
            // Its own error tells more; see `end`.
            ensure!(!is_gone, "a thread of the generator ended");
        }
        Ok(false)
    }

    /// Hangs everything up, stops the threads and takes what they have.
    fn end(mut self, plan: &Plan, bar: &ProgressBar) -> Result<(Totals, Option<Measured>)> {
        let up = self.progress.up.load(Ordering::Relaxed) + self.progress.calling.load(Ordering::Relaxed);
        let rate = (plan.cps * LEAVE_FACTOR).max(LEAVE_RATE_MIN);
        bar.set_length(up);
        bar.set_message("calls ended");
        let _ = self.commands.send(Command::HangUp { rate });
        let until = clock::now() + Duration::from_secs_f64(count(up) / rate) + LEAVE_PATIENCE;
        let rest =
            || self.progress.up.load(Ordering::Relaxed) + self.progress.calling.load(Ordering::Relaxed);
        while rest() > 0 && clock::now() < until && !self.is_over() {
            bar.set_position(up.saturating_sub(rest()));
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.commands.send(Command::Stop);
        let _ = self.media.send(Order::Stop);
        let panicked = |_| anyhow!("a thread of the generator panicked");
        let totals = self.signal.take().map(JoinHandle::join).context("no signalling")?.map_err(panicked)?;
        let measured = self.engine.take().map(JoinHandle::join).context("no media")?.map_err(panicked)?;
        Ok((totals?, measured?))
    }

    /// Tells what is under way now apart.
    fn mark(&self) {
        let _ = self.commands.send(Command::Mark);
        let _ = self.media.send(Order::Mark);
    }

    fn is_over(&self) -> bool {
        self.signal.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

fn bind(plan: &Plan, address: IpAddr) -> Result<Vec<MediaSocket>> {
    let streams = match plan.scenario {
        Scenario::Anchor => plan.calls * 2,
        Scenario::Life => plan.flowing_at_once() * 2,
        Scenario::Signalling => 1,
        _ => plan.calls,
    };
    let sockets = plan.sockets.unwrap_or_else(|| streams.div_ceil(STREAMS_PER_SOCKET)).max(1);
    (0..sockets).map(|_| MediaSocket::bind(address)).collect()
}

fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("--cpu {cpu}: no such processor"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("--cpu {cpu}: not ours to use"))
}

/// SIGINT, SIGTERM and SIGUSR1, as something to wait for.
struct Interrupts(SignalFd);

impl Interrupts {
    /// From here on they no longer end the process; threads started later inherit that.
    fn catch() -> Result<Self> {
        let signals = Self::signals();
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// Waits for one.
    fn wait(&self, limit: Duration) -> Option<Signal> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, limit).ok().filter(|count| *count > 0)?;
        let told = self.0.read_signal().ok()??;
        Signal::try_from(i32::try_from(told.ssi_signo).ok()?).ok()
    }

    fn signals() -> SigSet {
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1].into_iter().collect()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // What comes from here on ends the process again.
        let _ = Self::signals().thread_unblock();
    }
}

/// Puts everything together.
fn report(
    plan: &Plan,
    fingerprint: Fingerprint,
    totals: Totals,
    measured: Measured,
    edges: Edges,
    resident_before_bytes: u64,
) -> RunReport {
    let mut calls = totals.calls;
    if !plan.is_flowing() {
        calls.per_s = count(calls.answered) / edges.set_up.as_secs_f64().max(f64::MIN_POSITIVE);
    }
    calls.silent += measured.silent;
    let packets = if plan.is_signalling() {
        Packets::default()
    } else {
        let (dropped_by_us, receive_buffer_errors) = (edges.dropped_by_us, edges.receive_buffer_errors);
        Packets { dropped_by_us, receive_buffer_errors, ..measured.packets }
    };
    let worked_on = packets.received + measured.unheard;
    let server = (!plan.pids.is_empty()).then(|| {
        watch::server(edges.after.since(&edges.before), worked_on, resident_before_bytes, edges.resident)
    });
    let own = edges.own_after.since(&edges.own_before);
    let generator = generator(own, &measured, totals.late_calls);
    let load = Load {
        frames: packets.sent,
        calls: calls.attempted,
        dropped: packets.dropped_by_us,
        refused: packets.not_sent,
    };
    RunReport {
        fingerprint,
        command: plan.command.clone(),
        asked: plan.asked(),
        measured_s: edges.length.as_secs_f64(),
        calls,
        setup: Distribution::of(&totals.setup),
        first_audio: Distribution::of(&measured.first_audio),
        packets,
        continuity: measured.continuity,
        life: totals.life.map(|life| Life { keys: measured.keys.0, keys_heard: measured.keys.1, ..life }),
        jitter: Distribution::of(&measured.jitter),
        spacing: Distribution::of(&measured.spacing),
        added: Distribution::of(&measured.added),
        generator: Generator { bottleneck: bottleneck(&generator, load), ..generator },
        server,
    }
}

fn generator(threads: Vec<ServerThread>, measured: &Measured, late_calls: u64) -> Generator {
    let ours =
        threads.into_iter().filter(|thread| [SIGNAL_THREAD, MEDIA_THREAD].contains(&thread.name.as_str()));
    let cpu_percent: BTreeMap<String, f64> = ours.map(|thread| (thread.name, thread.cpu_percent)).collect();
    Generator {
        busiest_percent: cpu_percent.values().copied().fold(0.0, f64::max),
        cpu_percent,
        send_lateness: Distribution::of(&measured.lateness),
        late_frames: measured.late_frames,
        late_calls,
        bottleneck: None,
    }
}
