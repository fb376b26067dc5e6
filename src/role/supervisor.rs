//! The supervisor: fronts the node, starts a worker, hears its heartbeat, replaces it when it dies,
//! and answers the control socket.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::base::clock;
use crate::base::config::{Config, ConfigError, Router, Source};
use crate::control::cli::Place;
use crate::control::protocol::{
    CallInfo, CallRouterSettings, ErrorKind, ListenerStatus, Reply, Request, ShardStatus, Status,
};
use crate::control::server::{Ask, Server};
use crate::control::startup::{self, Startup, StartupShard};
use crate::control::{call_router, mailboxes, print, tls};
use crate::mailbox::store::{Store, StoreError};
use crate::role::front::{self, Front, FrontOrder};
use crate::role::hop::HopSecret;
use crate::role::link::{FromWorker, Heartbeat, ToWorker};
use crate::role::process::{Process, ProcessEvent, ProcessEventKind};
use crate::signal::{TlsError, TlsSetup};
use crate::uring;

mod certificates;
mod reload;
mod router;
mod worker;

use certificates::Certificates;
use reload::Reloads;
use worker::{Totals, Worker, WorkerPhase};

/// A worker must be ready this long after its start; a spool full of an outage's recordings is
/// finished within it.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// An orderly stop takes this long at most, then the worker is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);
/// A tick this late is worth a line in the log.
const PAUSE_TOLD: Duration = Duration::from_secs(1);
/// Longest pause between two starts of a worker that keeps dying.
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// A worker that lived this long did not die of its start.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Operations the control thread's ring takes at once.
const RING_ENTRIES: u32 = 256;
/// Queries for calls that may wait for the worker.
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
    let _lock = lock(&config.node.data)?;
    let file = (config.router.clone(), source.clone());
    let overlay = call_router::apply(&mut config, &mut source)?;
    let tls = tls::load(&config, clock::calendar())
        .map_err(|problem| ServeError::Tls { place: source.locate(problem.key), error: problem.error })?;
    let store = Store::open(&config.node.data)?;
    let hop_secret = HopSecret::random()?;
    let front = front::spawn(&config, tls.clone(), hop_secret.clone())?;
    let start = Start { config: Arc::new(config), source, place, file, overlay, tls };
    uring::Runtime::new(RING_ENTRIES)?.block_on(async move {
        let server = Server::bind(&start.config.node.data).map_err(ServeError::Control)?;
        Supervisor::new(start, store, front, hop_secret).run(server).await
    })
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

struct Supervisor {
    /// In force.
    config: Arc<Config>,
    source: Source,
    place: Place,
    /// `[router]` as the file says, without what was set at run time.
    file: (Router, Source),
    overlay: CallRouterSettings,
    certificates: Certificates,
    reloads: Reloads,
    store: Store,
    front: Front,
    /// What the hops prove themselves to each other with.
    hop_secret: HopSecret,
    worker: Worker,
    /// When deadlines were looked at last.
    ticked: Instant,
    totals: Totals,
    started: Instant,
    was_ready: bool,
    stopping: bool,
    next_query: u64,
    queries: BTreeMap<u64, oneshot::Sender<Reply>>,
    events: mpsc::Sender<ProcessEvent>,
    inbox: Option<mpsc::Receiver<ProcessEvent>>,
}

impl Supervisor {
    fn new(start: Start, store: Store, front: Front, hop_secret: HopSecret) -> Self {
        let now = clock::now();
        let (events, inbox) = mpsc::channel(256);
        Self {
            config: start.config,
            source: start.source,
            place: start.place,
            file: start.file,
            overlay: start.overlay,
            certificates: Certificates::new(now, start.tls),
            reloads: Reloads::default(),
            store,
            front,
            hop_secret,
            worker: Worker::new(now),
            ticked: now,
            totals: Totals::default(),
            started: now,
            was_ready: false,
            stopping: false,
            next_query: 0,
            queries: BTreeMap::new(),
            events,
            inbox: Some(inbox),
        }
    }

    async fn run(mut self, server: Server) -> Result<(), ServeError> {
        let (asks, mut ask_queue) = mpsc::channel::<Ask>(QUERIES_MAX);
        tokio::task::spawn_local(server.run(asks));
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut tick = tokio::time::interval(TICK);
        let Some(mut inbox) = self.inbox.take() else {
            return Ok(());
        };
        loop {
            tokio::select! {
                Some(event) = inbox.recv() => self.handle_process(event)?,
                Some((request, reply)) = ask_queue.recv() => self.handle_ask(request, reply),
                _ = terminate.recv() => self.stop("SIGTERM"),
                _ = interrupt.recv() => self.stop("SIGINT"),
                _ = hang_up.recv() => {
                    self.reload("SIGHUP");
                }
                _ = tick.tick() => self.handle_tick()?,
            }
            if self.stopping && self.worker.process.is_none() {
                self.front.stop();
                tracing::info!("stopped");
                return Ok(());
            }
        }
    }

    fn stop(&mut self, why: &str) {
        if self.stopping {
            // Asked twice: the operator does not want to wait.
            if let Some(process) = &self.worker.process {
                process.kill();
            }
            return;
        }
        tracing::info!(why, "stopping: calls are ended and recordings stored");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.stopping = true;
        self.front.send(FrontOrder::Worker(None));
        if let Some(process) = &self.worker.process {
            process.send(ToWorker::Stop);
            self.worker.phase = WorkerPhase::Stopping { deadline: clock::now() + STOP_TIMEOUT };
        }
    }

    fn handle_tick(&mut self) -> Result<(), ServeError> {
        let now = clock::now();
        self.front.collect();
        self.look_at_certificates(now);
        if !self.was_ready && self.front.worker().is_some() {
            self.announce()?;
        }
        // Time in which the supervisor itself did not run is nobody's silence: what the worker said
        // meanwhile is still unread.
        let pause = (now - std::mem::replace(&mut self.ticked, now)).saturating_sub(TICK);
        self.worker.phase.postpone(pause);
        if pause >= PAUSE_TOLD {
            tracing::warn!(?pause, "the supervisor did not run; the worker gets as much time more");
        }
        let patience = Duration::from_secs(u64::from(self.config.worker.heartbeat_timeout_s));
        let silent = match self.worker.phase {
            WorkerPhase::Down { retry_at } if retry_at <= now && !self.stopping => {
                return self.start_worker(now);
            }
            WorkerPhase::Down { .. } => None,
            WorkerPhase::Starting { deadline } => (deadline <= now).then_some("did not become ready in time"),
            WorkerPhase::Ready { heartbeat_at } => {
                (heartbeat_at + patience <= now).then_some("sent no heartbeat")
            }
            WorkerPhase::Stopping { deadline } => (deadline <= now).then_some("did not stop in time"),
        };
        if let (Some(why), Some(process)) = (silent, &self.worker.process) {
            tracing::error!(
                slot = self.worker.slot.name(),
                pid = process.pid,
                "the worker {why}; it is killed"
            );
            process.kill();
        }
        Ok(())
    }

    fn start_worker(&mut self, now: Instant) -> Result<(), ServeError> {
        let worker = &mut self.worker;
        worker.generation += 1;
        let generation = worker.generation;
        let (config, secret) = (&self.config, &self.hop_secret);
        let process = match Process::spawn(now, worker.slot, generation, config, secret, &self.events) {
            Ok(process) => process,
            // The machine may have processes or memory again in a moment; the front refuses calls.
            Err(error) if self.was_ready => {
                tracing::error!(slot = worker.slot.name(), %error, "the worker could not be started");
                worker.phase = WorkerPhase::Down { retry_at: now + BACKOFF_MAX };
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        tracing::info!(slot = worker.slot.name(), pid = process.pid, "worker started");
        worker.process = Some(process);
        worker.phase = WorkerPhase::Starting { deadline: now + START_TIMEOUT };
        Ok(())
    }

    fn handle_process(&mut self, event: ProcessEvent) -> Result<(), ServeError> {
        if event.generation != self.worker.generation {
            return Ok(());
        }
        match event.kind {
            ProcessEventKind::Report(FromWorker::Ready { listeners, shards, recovered }) => {
                self.worker_ready(listeners, shards, recovered);
            }
            ProcessEventKind::Report(FromWorker::Failed { reason }) if !self.was_ready => {
                return Err(ServeError::Worker(reason));
            }
            ProcessEventKind::Report(FromWorker::Failed { reason }) => {
                tracing::error!(slot = self.worker.slot.name(), %reason, "the worker could not start");
            }
            ProcessEventKind::Report(FromWorker::Heartbeat(counters)) => {
                self.worker.counters = counters;
                if let WorkerPhase::Ready { heartbeat_at } = &mut self.worker.phase {
                    *heartbeat_at = clock::now();
                }
            }
            ProcessEventKind::Report(FromWorker::Listeners { listeners }) => {
                self.worker.listeners = listeners;
                if let WorkerPhase::Ready { .. } = self.worker.phase {
                    self.front.send(FrontOrder::Worker(Some(self.worker.ports())));
                }
            }
            ProcessEventKind::Report(FromWorker::Calls { query, calls }) => self.answer_calls(query, calls),
            ProcessEventKind::Exited(how) => return self.worker_exited(&how),
        }
        Ok(())
    }

    fn worker_ready(&mut self, listeners: Vec<ListenerStatus>, shards: Vec<ShardStatus>, recovered: u64) {
        if self.stopping {
            return;
        }
        self.worker.phase = WorkerPhase::Ready { heartbeat_at: clock::now() };
        self.worker.listeners = listeners;
        self.worker.counters = Heartbeat { shards, ..Heartbeat::default() };
        self.front.send(FrontOrder::Worker(Some(self.worker.ports())));
        if recovered > 0 {
            tracing::info!(recovered, "recordings of an earlier worker were finished");
        }
        if self.was_ready {
            tracing::info!(slot = self.worker.slot.name(), "the new worker takes calls");
        }
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
        let listeners = self.front.listeners().into_iter().chain(self.worker.listeners.iter().cloned());
        let shard = |shard: &ShardStatus| StartupShard {
            slot: self.worker.slot.name().to_owned(),
            index: shard.index,
            cpu: shard.cpu,
            addresses: self.config.rtp.address.to_string(),
            ports: shard.ports,
            backend: shard.backend.clone(),
        };
        Startup {
            node: self.config.node.name.clone(),
            config: self.source.file.clone(),
            data: self.config.node.data.clone(),
            listeners: listeners.map(|l| (l.role, l.transport, l.address)).collect(),
            tls_off: tls::why_off(&self.config),
            no_uring: self.worker.counters.shards.iter().find_map(|shard| shard.backend_reason.clone()),
            shards: self.worker.counters.shards.iter().map(shard).collect(),
            // Told once: they are stored as hashes only.
            demo_pins,
            test_extensions: self.config.test_extensions.enabled,
        }
    }

    fn worker_exited(&mut self, how: &str) -> Result<(), ServeError> {
        let now = clock::now();
        let worker = &mut self.worker;
        let lived = worker.process.take().map_or(Duration::ZERO, |process| now - process.started);
        self.totals.add(&worker.counters);
        worker.counters = Heartbeat::default();
        worker.listeners.clear();
        for reply in std::mem::take(&mut self.queries).into_values() {
            let _ =
                reply.send(Reply::error(ErrorKind::Unavailable, "the worker ended before it could answer"));
        }
        if self.stopping {
            return Ok(());
        }
        self.front.send(FrontOrder::Worker(None));
        if !self.was_ready {
            return Err(ServeError::Worker(how.to_owned()));
        }
        worker.backoff = if lived >= STABLE_AFTER {
            Duration::ZERO
        } else {
            (worker.backoff * 2).clamp(Duration::from_millis(250), BACKOFF_MAX)
        };
        worker.restarts += 1;
        worker.phase = WorkerPhase::Down { retry_at: now + worker.backoff };
        tracing::error!(slot = worker.slot.name(), how, restart_in = ?worker.backoff, "the worker is gone");
        Ok(())
    }

    fn handle_ask(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let answer = match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Calls => return self.ask_calls(reply),
            Request::Reload => Reply::Reload(self.reload("voxring reload")),
            Request::CallRouterGet => Reply::CallRouter(self.call_router()),
            Request::CallRouterSet { settings, reset } => self.set_call_router(settings, reset),
            other => mailboxes::execute(&mut self.store, other)
                .unwrap_or_else(|| Reply::error(ErrorKind::BadRequest, "this node cannot do that")),
        };
        // A client that has gone meanwhile needs no answer.
        let _ = reply.send(answer);
    }

    fn ask_calls(&mut self, reply: oneshot::Sender<Reply>) {
        let Some(process) = &self.worker.process else {
            let _ = reply.send(Reply::Calls { calls: Vec::new() });
            return;
        };
        // Whoever asked and left makes room: a worker may have dropped the answer.
        self.queries.retain(|_, asker| !asker.is_closed());
        if self.queries.len() >= QUERIES_MAX {
            let _ = reply.send(Reply::error(ErrorKind::Unavailable, "the worker does not answer"));
            return;
        }
        self.next_query += 1;
        process.send(ToWorker::Calls { query: self.next_query });
        self.queries.insert(self.next_query, reply);
    }

    fn answer_calls(&mut self, query: u64, calls: Vec<CallInfo>) {
        if let Some(reply) = self.queries.remove(&query) {
            let _ = reply.send(Reply::Calls { calls });
        }
    }

    /// New calls are taken: a worker is ready and the front sends them to it.
    fn is_ready(&self) -> bool {
        matches!(self.worker.phase, WorkerPhase::Ready { .. }) && self.front.worker().is_some()
    }

    fn status(&self) -> Status {
        let counts = mailboxes::totals(&self.store).unwrap_or_default();
        let mut refused_total = self.totals.refused.clone();
        let now_refused = self.worker.counters.refused_total.iter().chain(self.front.refused());
        for (reason, count) in now_refused {
            *refused_total.entry(reason.clone()).or_default() += count;
        }
        let mut listeners = self.front.listeners();
        listeners.extend(self.worker.listeners.iter().cloned());
        Status {
            node: self.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: (clock::now() - self.started).as_secs(),
            data: self.config.node.data.clone(),
            ready: self.is_ready(),
            maintenance: self.config.router.maintenance,
            listeners,
            workers: vec![self.worker.status(self.is_ready())],
            calls_active: self.worker.counters.calls_active,
            calls_total: self.totals.calls + self.worker.counters.calls_total,
            refused_total,
            front_counters: self.front.counters(),
            tls_counters: tls_counters(&[&self.front.counters(), &self.worker.counters.counters]),
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
