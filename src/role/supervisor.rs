//! The supervisor: fronts the node, starts workers, hears their heartbeats, replaces them when they die
//! or have run long enough, and answers the control socket. `life` decides, `actions` does.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::base::clock;
use crate::base::config::{Config, ConfigError, Router, Source};
use crate::control::cli::{Place, Slot};
use crate::control::protocol::{
    CallInfo, CallRouterSettings, ErrorKind, Reply, Request, ShardStatus, Status,
};
use crate::control::server::{Ask, Server};
use crate::control::startup::{self, Startup, StartupShard};
use crate::control::{call_router, mailboxes, print, tls};
use crate::mailbox::store::{Store, StoreError};
use crate::role::front::{self, Front};
use crate::role::hop::HopSecret;
use crate::role::link::ToWorker;
use crate::role::process::ProcessEvent;
use crate::signal::{TlsError, TlsSetup};
use crate::uring;

mod actions;
mod certificates;
mod handover;
mod life;
mod reload;
mod router;
mod upgrade;
mod vault;
mod worker;

use certificates::Certificates;
pub use handover::{FORM, Handover};
use life::{Life, Rules};
use reload::Reloads;
use upgrade::Checked;
use worker::{Totals, Worker};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often memory is looked at.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
/// A tick this late is worth a line in the log.
const PAUSE_TOLD: Duration = Duration::from_secs(1);
/// Operations the control thread's ring takes at once.
const RING_ENTRIES: u32 = 256;
/// Queries for calls that may wait for workers.
const QUERIES_MAX: usize = 64;

/// Why the node could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be made.
    #[error("data folder {path}: {error}")]
    Data {
        /// Which.
        path: PathBuf,
        /// What the file system says.
        error: io::Error,
    },
    /// io_uring is demanded and cannot be had.
    #[error("worker.io_backend: {0}")]
    IoUring(#[from] uring::ProbeError),
    /// What was set at run time does not fit the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// One of the TLS files.
    #[error("{place}: {error}")]
    Tls {
        /// File, line and key.
        place: String,
        /// What is wrong with the file it names.
        error: TlsError,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port of router or service is taken, or an address is not ours.
    #[error("{what}: {error}")]
    Listen {
        /// Role, address and transport.
        what: String,
        /// What the kernel says.
        error: io::Error,
    },
    /// The control socket cannot be bound.
    #[error("control socket: {0}")]
    Control(io::Error),
    /// The first worker never became ready.
    #[error("the worker could not start: {0}")]
    Worker(String),
    /// Threads, signals or processes cannot be had.
    #[error("{0}")]
    Resource(#[from] io::Error),
}

/// What a node starts with.
struct Start {
    config: Arc<Config>,
    source: Source,
    place: Place,
    file: (Router, Source),
    overlay: CallRouterSettings,
    tls: Option<Arc<TlsSetup>>,
    /// Held for as long as the node lives.
    lock: File,
}

/// Runs the node until SIGTERM or SIGINT. `file` is what `place` has loaded, without what was set
/// at run time.
///
/// # Errors
/// See [`ServeError`]; all of them come before "ready".
pub fn serve(place: Place, (mut config, mut source): (Config, Source)) -> Result<(), ServeError> {
    // The workers find the same; a demand that cannot be met is better told before they start.
    if let Some(uring::ProbeError { reason, fix }) = uring::choose(config.worker.io_backend)?.no_uring {
        tracing::warn!(%reason, %fix, "media is served by epoll, not io_uring, and costs more");
    }
    let data = config.node.data.clone();
    // What callers said is nobody else's: a folder we make is closed to other users.
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(&data).map_err(|error| ServeError::Data { path: data.clone(), error })?;
    // The worker is told the same folder, whatever its working directory.
    config.node.data = data.canonicalize().map_err(|error| ServeError::Data { path: data, error })?;
    let lock = lock(&config.node.data)?;
    let file = (config.router.clone(), source.clone());
    let overlay = call_router::apply(&mut config, &mut source)?;
    let tls = load_tls(&config, &source)?;
    let store = Store::open_checked(&config.node.data)?;
    let hop_secret = HopSecret::random()?;
    let front = front::spawn(&config, tls.clone(), hop_secret.clone(), None)?;
    let start = Start { config: Arc::new(config), source, place, file, overlay, tls, lock };
    uring::Runtime::new(RING_ENTRIES)?.block_on(async move {
        let server = Server::bind(&start.config.node.data).map_err(ServeError::Control)?;
        Supervisor::new(start, store, front, hop_secret).run(server).await
    })
}

/// Goes on as the node of the program that ran in this process before.
///
/// # Errors
/// See [`ServeError`]; the workers then end.
pub fn resume(place: Place, handover: Handover) -> Result<(), ServeError> {
    let Handover { state, front, lock, control, lines, kept } = handover;
    let tls = load_tls(&state.config, &state.source)?;
    let store = Store::open(&state.config.node.data)?;
    let (hop_secret, connections) = (state.hop_secret.clone(), front.connections.len());
    let front = front::spawn(&state.config, tls.clone(), hop_secret.clone(), Some(front))?;
    let start = Start {
        config: Arc::new(Config::clone(&state.config)),
        source: state.source.clone(),
        place,
        file: state.file.clone(),
        overlay: state.overlay.clone(),
        tls,
        lock,
    };
    uring::Runtime::new(RING_ENTRIES)?.block_on(async move {
        let server = Server::resume(&start.config.node.data, control).map_err(ServeError::Control)?;
        let mut supervisor = Supervisor::new(start, store, front, hop_secret);
        supervisor.take_over(state, lines, kept)?;
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(version, connections, "the supervisor's program was replaced");
        supervisor.run(server).await
    })
}

fn load_tls(config: &Config, source: &Source) -> Result<Option<Arc<TlsSetup>>, ServeError> {
    let place = |key: &str| source.locate(key);
    tls::load(config, clock::calendar())
        .map_err(|problem| ServeError::Tls { place: place(problem.key), error: problem.error })
}

/// Holds the data folder for this process; a second node must not touch it.
fn lock(data: &Path) -> Result<File, ServeError> {
    let failed = |error| ServeError::Data { path: data.to_owned(), error };
    let file = File::create(data.join(".lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(failed(io::Error::new(io::ErrorKind::AddrInUse, "another voxring runs on it")))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// What a signal tells the supervisor.
enum Told {
    Stop(&'static str),
    Reload,
}

/// The signals it is told by.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one; losing the future loses none.
    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.hang_up.recv() => Told::Reload,
        }
    }
}

/// Somebody waits for the calls of every worker.
struct Query {
    reply: oneshot::Sender<Reply>,
    /// Slots that have still to answer.
    missing: Vec<Slot>,
    calls: Vec<CallInfo>,
}

struct Supervisor {
    /// In force.
    config: Arc<Config>,
    source: Source,
    place: Place,
    /// `[router]` as the file says, without what was set at run time.
    file: (Router, Source),
    overlay: CallRouterSettings,
    lock: File,
    /// The control socket once more, for the next program.
    control: Option<OwnedFd>,
    certificates: Certificates,
    reloads: Reloads,
    store: Store,
    front: Front,
    /// What the hops prove themselves to each other with.
    hop_secret: HopSecret,
    life: Life,
    workers: [Worker; 2],
    generations: u64,
    /// The program of the next worker, during an upgrade.
    program: Option<PathBuf>,
    /// The file this program was started from, even where another one stands there now.
    own_file: PathBuf,
    /// `voxring drain on`.
    draining: bool,
    /// When deadlines were looked at last.
    ticked: Instant,
    measured: Instant,
    watchdog: Option<upgrade::Watchdog>,
    totals: Totals,
    started: Instant,
    was_ready: bool,
    next_query: u64,
    queries: BTreeMap<u64, Query>,
    events: mpsc::Sender<ProcessEvent>,
    inbox: mpsc::Receiver<ProcessEvent>,
    checks: (mpsc::Sender<Checked>, mpsc::Receiver<Checked>),
}

impl Supervisor {
    fn new(start: Start, store: Store, front: Front, hop_secret: HopSecret) -> Self {
        let now = clock::now();
        let (events, inbox) = mpsc::channel(256);
        Self {
            life: Life::new(now, Rules::of(&start.config)),
            config: start.config,
            source: start.source,
            place: start.place,
            file: start.file,
            overlay: start.overlay,
            lock: start.lock,
            control: None,
            certificates: Certificates::new(now, start.tls),
            reloads: Reloads::default(),
            store,
            front,
            hop_secret,
            workers: Slot::BOTH.map(Worker::new),
            generations: 0,
            program: None,
            own_file: std::env::current_exe().unwrap_or_default(),
            draining: false,
            ticked: now,
            measured: now,
            watchdog: upgrade::Watchdog::of_systemd(now),
            totals: Totals::default(),
            started: now,
            was_ready: false,
            next_query: 0,
            queries: BTreeMap::new(),
            events,
            inbox,
            checks: mpsc::channel(1),
        }
    }

    async fn run(mut self, server: Server) -> Result<(), ServeError> {
        let (asks, mut ask_queue) = mpsc::channel::<Ask>(QUERIES_MAX);
        self.control = server.kept().ok();
        tokio::task::spawn_local(server.run(asks));
        let mut signals = Signals::new()?;
        // What came while one program gave way to the next is still to be heard.
        handover::signals().thread_unblock().map_err(io::Error::from)?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                Some(event) = self.inbox.recv() => self.handle_process(event)?,
                Some((request, reply)) = ask_queue.recv() => self.handle_ask(request, reply),
                Some(checked) = self.checks.1.recv() => self.handle_checked(checked),
                told = signals.next() => self.handle_signal(told),
                _ = tick.tick() => self.handle_tick()?,
            }
            if self.act()? {
                if let Some(told) = self.replace_program(&mut signals).await {
                    self.handle_signal(told);
                }
                self.act()?;
            }
            if self.life.is_over() {
                self.front.stop();
                tracing::info!("stopped");
                return Ok(());
            }
        }
    }

    fn handle_signal(&mut self, told: Told) {
        match told {
            Told::Stop(why) => self.stop(why),
            Told::Reload => _ = self.reload("SIGHUP"),
        }
    }

    fn stop(&mut self, why: &str) {
        if self.life.is_stopping() {
            tracing::info!(why, "asked again: no more time is given");
        } else {
            let time = self.config.node.stop_timeout_s;
            tracing::info!(why, time_s = time, "stopping: calls may finish, then they are ended");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        }
        self.life.stop(clock::now());
    }

    fn handle_tick(&mut self) -> Result<(), ServeError> {
        let now = clock::now();
        self.front.collect();
        self.look_at_certificates(now);
        if !self.was_ready && self.front.worker().is_some() {
            self.announce()?;
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.feed(now);
        }
        if now >= self.measured + MEASURE_INTERVAL {
            self.measured = now;
            for worker in &mut self.workers {
                let memory_kib = worker.measure();
                self.life.handle_memory(worker.slot, memory_kib);
            }
        }
        // Time in which the supervisor itself did not run is nobody's silence: what the worker said
        // meanwhile is still unread.
        let pause = (now - std::mem::replace(&mut self.ticked, now)).saturating_sub(TICK);
        self.life.postpone(pause);
        if pause >= PAUSE_TOLD {
            tracing::warn!(?pause, "the supervisor did not run; workers get as much time more");
        }
        self.life.handle_timeout(now);
        Ok(())
    }

    /// Says once that calls are taken: the worker is ready and the front sends them to it.
    fn announce(&mut self) -> Result<(), ServeError> {
        self.was_ready = true;
        let mut demo_pins = Vec::new();
        if self.config.node.demo_mailboxes {
            // Not before everything else is well: a start that fails would create them and never
            // tell their PINs.
            demo_pins = self.store.add_demo_mailboxes(&["1001", "1002"])?;
        }
        let table = startup::render(&self.startup(demo_pins));
        // Nobody there to read it is no reason to end: `voxring serve | head`.
        if let Err(error) = print::emit(&format!("{table}ready\n")) {
            tracing::warn!(%error, "the start-up table cannot be printed");
        }
        // Not under systemd: nobody to notify.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        Ok(())
    }

    /// What the start-up table tells.
    fn startup(&self, demo_pins: Vec<(String, String)>) -> Startup {
        let worker = &self.workers[self.life.taking().index()];
        let listeners = self.front.listeners().into_iter().chain(worker.listeners.iter().cloned());
        let shard = |shard: &ShardStatus| StartupShard {
            slot: worker.slot.name().to_owned(),
            index: shard.index,
            cpu: shard.cpu,
            addresses: self.config.rtp.address.to_string(),
            ports: shard.ports,
            backend: shard.backend.clone(),
        };
        let shards = &worker.counters.shards;
        Startup {
            node: self.config.node.name.clone(),
            config: self.source.file.clone(),
            data: self.config.node.data.clone(),
            listeners: listeners.map(|l| (l.role, l.transport, l.address)).collect(),
            tls_off: tls::why_off(&self.config),
            no_uring: shards.iter().find_map(|shard| shard.backend_reason.clone()),
            shards: shards.iter().map(shard).collect(),
            // Told once: they are stored as hashes only.
            demo_pins,
            test_extensions: self.config.test_extensions.enabled,
        }
    }

    fn handle_ask(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let answer = match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Calls => return self.ask_calls(reply),
            Request::Reload => Reply::Reload(self.reload("voxring reload")),
            Request::Recycle => self.recycle(),
            Request::Upgrade { binary } => self.upgrade(binary),
            Request::Change { number } => self.change(number),
            Request::Drain { on } => self.drain(on),
            Request::CallRouterGet => Reply::CallRouter(self.call_router()),
            Request::CallRouterSet { settings, reset } => self.set_call_router(settings, reset),
            other => mailboxes::execute(&mut self.store, other)
                .unwrap_or_else(|| Reply::error(ErrorKind::BadRequest, "this node cannot do that")),
        };
        // A client that has gone meanwhile needs no answer.
        let _ = reply.send(answer);
    }

    fn ask_calls(&mut self, reply: oneshot::Sender<Reply>) {
        // Whoever asked and left makes room: a worker may have dropped the answer.
        self.queries.retain(|_, query| !query.reply.is_closed());
        if self.queries.len() >= QUERIES_MAX {
            let _ = reply.send(Reply::error(ErrorKind::Unavailable, "the workers do not answer"));
            return;
        }
        self.next_query += 1;
        let mut missing = Vec::new();
        for worker in &self.workers {
            if let Some(process) = &worker.process {
                process.send(ToWorker::Calls { query: self.next_query });
                missing.push(worker.slot);
            }
        }
        self.queries.insert(self.next_query, Query { reply, missing, calls: Vec::new() });
        self.answer_queries();
    }

    fn take_calls(&mut self, slot: Slot, query: u64, mut calls: Vec<CallInfo>) {
        let left = self.workers[slot.index()].drain_left_s(clock::now(), &self.life);
        for call in &mut calls {
            call.drain_left_s = left;
        }
        if let Some(query) = self.queries.get_mut(&query) {
            query.missing.retain(|missing| *missing != slot);
            query.calls.append(&mut calls);
        }
        self.answer_queries();
    }

    /// Answers those for whom every worker has.
    fn answer_queries(&mut self) {
        for (_, mut query) in self.queries.extract_if(.., |_, query| query.missing.is_empty()) {
            query.calls.sort_by_key(|call| std::cmp::Reverse(call.duration_s));
            let _ = query.reply.send(Reply::Calls { calls: query.calls });
        }
    }

    /// New calls are taken: a worker is ready and the front sends them to it.
    fn is_ready(&self) -> bool {
        self.takes_calls().is_some() && !self.draining
    }

    /// The slot new calls go to, once the front knows.
    fn takes_calls(&self) -> Option<Slot> {
        let slot = self.life.takes()?;
        (self.front.worker() == Some(self.workers[slot.index()].ports())).then_some(slot)
    }

    fn status(&self) -> Status {
        let now = clock::now();
        let counts = mailboxes::totals(&self.store).unwrap_or_default();
        let mut totals = self.totals.clone();
        totals.add_refused(self.front.refused());
        let mut listeners = self.front.listeners();
        for worker in &self.workers {
            totals.add(&worker.counters);
            listeners.extend(worker.listeners.iter().cloned());
        }
        let takes = self.takes_calls();
        let workers = self.workers.iter();
        let workers = workers.filter_map(|w| w.status(now, &self.life, takes == Some(w.slot))).collect();
        let [a, b] = &self.workers;
        let front_counters = self.front.counters();
        Status {
            node: self.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: (now - self.started).as_secs(),
            data: self.config.node.data.clone(),
            ready: self.is_ready(),
            maintenance: self.config.router.maintenance,
            draining: self.draining,
            gave_up: self.life.gave_up().map(str::to_owned),
            change: self.life.change().cloned(),
            listeners,
            workers,
            calls_active: self.workers.iter().map(|worker| worker.counters.calls_active).sum(),
            calls_total: totals.calls,
            refused_total: totals.refused,
            tls_counters: tls_counters(&[&front_counters, &a.counters.counters, &b.counters.counters]),
            front_counters,
            certificate: self.certificates.status(clock::calendar()),
            reloads: self.reloads.done,
            reloads_failed: self.reloads.refused,
            messages_stored: counts.voice,
            missed_stored: counts.missed,
        }
    }
}

/// The TLS counters of all these, summed, without their room's name.
fn tls_counters(sets: &[&BTreeMap<String, u64>]) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (name, count) in sets.iter().copied().flatten() {
        if let Some(name) = name.strip_prefix("sip_").filter(|name| name.starts_with("tls_")) {
            *sum.entry(name.to_owned()).or_default() += count;
        }
    }
    sum
}
