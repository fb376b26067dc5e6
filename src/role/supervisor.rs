//! The supervisor: fronts the node, starts a worker, hears its heartbeat, replaces it when it dies,
//! and answers the control socket.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::base::clock;
use crate::base::config::Config;
use crate::control::cli::Slot;
use crate::control::mailboxes;
use crate::control::print;
use crate::control::protocol::{
    CallInfo, ErrorKind, ListenerStatus, Reply, Request, ShardStatus, Status, WorkerState, WorkerStatus,
};
use crate::control::server::{Ask, Server};
use crate::control::startup::{self, Startup, StartupShard};
use crate::mailbox::store::{Store, StoreError};
use crate::role::front::{self, Front, FrontOrder, HopPorts};
use crate::role::link::{FromWorker, Heartbeat, ToWorker};
use crate::role::process::{Process, ProcessEvent, ProcessEventKind};
use crate::uring;

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
    /// No ring can be made.
    #[error("io_uring: {0}")]
    IoUring(#[from] uring::ProbeError),
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

/// Runs the node until SIGTERM or SIGINT. `source` is the configuration file, for the start-up
/// table; `None`: built in.
///
/// # Errors
/// See [`ServeError`]; all of them come before "ready".
pub fn serve(mut config: Config, source: Option<PathBuf>) -> Result<(), ServeError> {
    // Media shards and this thread both need it; say so before anything else is started.
    uring::probe()?;
    let data = config.node.data.clone();
    // What callers said is nobody else's: a folder we make is closed to other users.
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(&data).map_err(|error| ServeError::Data { path: data.clone(), error })?;
    // The worker is told the same folder, whatever its working directory.
    config.node.data = data.canonicalize().map_err(|error| ServeError::Data { path: data, error })?;
    let _lock = lock(&config.node.data)?;
    let store = Store::open(&config.node.data)?;
    let front = front::spawn(&config)?;
    tokio_uring::start(async move {
        let server = Server::bind(&config.node.data).map_err(ServeError::Control)?;
        Supervisor::new(config, source, store, front).run(server).await
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

/// What the slot's worker is at.
#[derive(Debug)]
enum WorkerPhase {
    /// Started; must report `Ready` by the deadline.
    Starting { deadline: Instant },
    /// Takes calls; must send the next heartbeat by the deadline.
    Ready { heartbeat_at: Instant },
    /// Told to stop; killed at the deadline.
    Stopping { deadline: Instant },
    /// No process; the next one starts at this instant.
    Down { retry_at: Instant },
}

impl WorkerPhase {
    /// Gives the worker more time; a restart that is due stays due.
    fn postpone(&mut self, by: Duration) {
        match self {
            Self::Starting { deadline: at }
            | Self::Ready { heartbeat_at: at }
            | Self::Stopping { deadline: at } => {
                *at += by;
            }
            Self::Down { .. } => {}
        }
    }
}

#[derive(Debug)]
struct Worker {
    slot: Slot,
    process: Option<Process>,
    phase: WorkerPhase,
    generation: u64,
    restarts: u32,
    backoff: Duration,
    listeners: Vec<ListenerStatus>,
    /// Of the running process.
    counters: Heartbeat,
}

/// Sums over the processes that are gone.
#[derive(Debug, Default)]
struct Totals {
    calls: u64,
    refused: BTreeMap<String, u64>,
}

struct Supervisor {
    config: Config,
    source: Option<PathBuf>,
    store: Store,
    front: Front,
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
    fn new(config: Config, source: Option<PathBuf>, store: Store, front: Front) -> Self {
        let now = clock::now();
        let (events, inbox) = mpsc::channel(256);
        let worker = Worker {
            slot: Slot::A,
            process: None,
            phase: WorkerPhase::Down { retry_at: now },
            generation: 0,
            restarts: 0,
            backoff: Duration::ZERO,
            listeners: Vec::new(),
            counters: Heartbeat::default(),
        };
        Self {
            config,
            source,
            store,
            front,
            worker,
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
        let process = match Process::spawn(now, worker.slot, worker.generation, &self.config, &self.events) {
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
        let listeners = self.front.listeners().iter().chain(&self.worker.listeners);
        let shard = |shard: &ShardStatus| StartupShard {
            slot: self.worker.slot.name().to_owned(),
            index: shard.index,
            cpu: shard.cpu,
            address: self.config.rtp.address.first(),
            ports: shard.ports,
            backend: shard.backend.clone(),
        };
        Startup {
            node: self.config.node.name.clone(),
            config: self.source.clone(),
            data: self.config.node.data.clone(),
            listeners: listeners.map(|l| (l.role.clone(), l.transport, l.address)).collect(),
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
        let mut listeners = self.front.listeners().to_vec();
        listeners.extend(self.worker.listeners.iter().cloned());
        Status {
            node: self.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: (clock::now() - self.started).as_secs(),
            data: self.config.node.data.clone(),
            ready: self.is_ready(),
            listeners,
            workers: vec![self.worker.status(self.is_ready())],
            calls_active: self.worker.counters.calls_active,
            calls_total: self.totals.calls + self.worker.counters.calls_total,
            refused_total,
            front_counters: self.front.counters(),
            messages_stored: counts.voice,
            missed_stored: counts.missed,
        }
    }
}

impl Worker {
    /// Where it takes calls.
    fn ports(&self) -> HopPorts {
        HopPorts::of_listeners(self.listeners.iter().map(|l| (l.transport, l.address)))
    }

    /// `takes_calls`: the front knows of it.
    fn status(&self, takes_calls: bool) -> WorkerStatus {
        let now = clock::now();
        let (state, heartbeat_at) = match self.phase {
            WorkerPhase::Starting { .. } => (WorkerState::Starting, None),
            WorkerPhase::Ready { heartbeat_at } if takes_calls => (WorkerState::Ready, Some(heartbeat_at)),
            WorkerPhase::Ready { heartbeat_at } => (WorkerState::Starting, Some(heartbeat_at)),
            WorkerPhase::Stopping { .. } => (WorkerState::Draining, None),
            WorkerPhase::Down { .. } => (WorkerState::Down, None),
        };
        WorkerStatus {
            slot: self.slot.name().to_owned(),
            pid: self.process.as_ref().map(|process| process.pid),
            state,
            uptime_s: self.process.as_ref().map_or(0, |process| (now - process.started).as_secs()),
            restarts: self.restarts,
            heartbeat_age_ms: heartbeat_at
                .map(|at| u64::try_from((now - at).as_millis()).unwrap_or(u64::MAX)),
            calls_active: self.counters.calls_active,
            counters: self.counters.counters.clone(),
            shards: self.counters.shards.clone(),
        }
    }
}

impl Totals {
    fn add(&mut self, gone: &Heartbeat) {
        self.calls += gone.calls_total;
        for (reason, count) in &gone.refused_total {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a supervisor that was stopped for a while does not kill a worker whose heartbeats it
    /// could not read; a restart that is due is not put off. Method: postpone each phase's instant.
    #[test]
    fn a_pause_of_the_supervisor_is_not_the_workers_silence() {
        let now = clock::now();
        let pause = Duration::from_secs(6);
        let at = |phase: &WorkerPhase| match phase {
            WorkerPhase::Starting { deadline: at }
            | WorkerPhase::Ready { heartbeat_at: at }
            | WorkerPhase::Stopping { deadline: at }
            | WorkerPhase::Down { retry_at: at } => *at,
        };
        for (mut phase, later) in [
            (WorkerPhase::Starting { deadline: now }, pause),
            (WorkerPhase::Ready { heartbeat_at: now }, pause),
            (WorkerPhase::Stopping { deadline: now }, pause),
            (WorkerPhase::Down { retry_at: now }, Duration::ZERO),
        ] {
            phase.postpone(pause);
            assert_eq!(at(&phase), now + later, "{phase:?}");
        }
    }
}
