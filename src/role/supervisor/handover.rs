//! From one program to the next in the same process: sockets by their descriptors, the rest as text in
//! memory. Workers stay children of the process and notice nothing.

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::execve;
use serde::{Deserialize, Serialize};

use super::life::{Life, LifeState, Rules};
use super::vault::{Kept, Vault, VaultState};
use super::worker::Totals;
use super::{ServeError, Supervisor};
use crate::base::clock;
use crate::base::config::{Config, Router, Source};
use crate::control::cli::Slot;
use crate::control::protocol::{CallRouterSettings, ListenerStatus};
use crate::role::front::{Hop, HopPorts, PassedFront};
use crate::role::hop::HopSecret;
use crate::role::link::{Heartbeat, ToWorker};
use crate::role::process::{HANDOVER, Line, Process};
use crate::signal::{Listener, PassedConnection};
use crate::sip::flow::Transport;
use crate::uring::inherit::{self, Inherited};

/// The form of the state, and of what supervisor and workers say to each other. To be raised with
/// every change that an older or newer program would not understand.
pub const FORM: u32 = 2;
/// What the supervisor is told by; they wait while one program gives way to the next.
pub(super) fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

/// All that is not a socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    form: u32,
    process: u32,
    pub(super) config: Config,
    pub(super) source: Source,
    pub(super) file: (Router, Source),
    pub(super) overlay: CallRouterSettings,
    pub(super) hop_secret: HopSecret,
    life: LifeState,
    workers: Vec<WorkerState>,
    generations: u64,
    draining: bool,
    totals: Totals,
    started_ago_ms: u64,
    reloads: (u64, u64),
    lock: RawFd,
    control: RawFd,
    listeners: Vec<ListenerState>,
    connections: Vec<ConnectionState>,
    vaults: Vec<(Slot, VaultState)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkerState {
    slot: Slot,
    process: u32,
    generation: u64,
    started_ago_ms: u64,
    listeners: Vec<ListenerStatus>,
    version: String,
    counters: Heartbeat,
    socket: RawFd,
    unread: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ListenerState {
    is_router: bool,
    transport: Transport,
    address: SocketAddr,
    socket: RawFd,
}

#[derive(Debug, Serialize, Deserialize)]
struct ConnectionState {
    listener: u16,
    local: SocketAddr,
    remote: SocketAddr,
    socket: RawFd,
}

/// What the program before has left.
#[derive(Debug)]
pub struct Handover {
    pub(super) state: State,
    pub(super) front: PassedFront,
    pub(super) lock: File,
    pub(super) control: OwnedFd,
    pub(super) lines: HashMap<Slot, Line>,
    pub(super) kept: Vec<(Slot, Kept)>,
}

/// The sockets of a supervisor that gives way.
pub(super) struct Parts {
    pub(super) front: PassedFront,
    pub(super) control: OwnedFd,
    /// `None`: the worker has just ended.
    pub(super) lines: Vec<(Slot, Option<Line>)>,
    /// What outlasts each worker.
    pub(super) kept: Vec<(Slot, Kept)>,
}

impl Handover {
    /// Takes over what a program before has left in this process, if one has. To be called first of
    /// all in `main`.
    ///
    /// # Errors
    /// What was left cannot be read: the node cannot go on.
    pub fn receive() -> io::Result<Option<Self>> {
        let Some(number) = std::env::var_os(HANDOVER) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number: RawFd = number.ok_or_else(|| io::Error::other(format!("{HANDOVER} is no number")))?;
        let mut inherited = Inherited::take()?;
        let missing = |what: &str| io::Error::other(format!("handover: no {what}"));
        let mut memory = File::from(inherited.get(number).ok_or_else(|| missing("state"))?);
        memory.rewind()?;
        let state: State = serde_json::from_reader(io::BufReader::new(memory))?;
        if (state.form, state.process) != (FORM, std::process::id()) {
            return Err(io::Error::other("handover: it is of another form or process"));
        }
        let mut lines = HashMap::new();
        for worker in &state.workers {
            let socket = inherited.get(worker.socket).ok_or_else(|| missing("worker"))?;
            lines.insert(worker.slot, Line { socket, unread: worker.unread.clone() });
        }
        let mut front = PassedFront::default();
        for own in &state.listeners {
            let hop = if own.is_router { Hop::Router } else { Hop::Service };
            let listener = Listener { transport: own.transport, address: own.address };
            let socket = inherited.get(own.socket).ok_or_else(|| missing("listener"))?;
            front.listeners.push((hop, listener, socket));
        }
        for &ConnectionState { listener, local, remote, socket } in &state.connections {
            let socket = inherited.get(socket).ok_or_else(|| missing("connection"))?;
            front.connections.push(PassedConnection { listener, local, remote, socket });
        }
        let takes = state.workers.iter().find(|worker| worker.slot == state.life.taking());
        front.worker = takes.map(|worker| HopPorts::of_listeners(addresses(&worker.listeners)));
        front.draining = state.draining;
        let lock = File::from(inherited.get(state.lock).ok_or_else(|| missing("lock"))?);
        let control = inherited.get(state.control).ok_or_else(|| missing("control socket"))?;
        let vaults = state.vaults.iter();
        let kept = vaults.map(|(slot, vault)| (*slot, Kept::receive(vault, &mut inherited))).collect();
        Ok(Some(Self { state, front, lock, control, lines, kept }))
    }
}

fn addresses(listeners: &[ListenerStatus]) -> impl Iterator<Item = (Transport, SocketAddr)> {
    listeners.iter().map(|l| (l.transport, l.address))
}

/// Runs `binary` in this process. Comes back only with why that cannot be.
pub(super) fn execute(supervisor: &Supervisor, binary: &Path, parts: Parts) -> (io::Error, Parts) {
    let error = match prepare(supervisor, &parts) {
        Err(error) => error,
        Ok(memory) => match arguments(binary, &memory) {
            Err(error) => error,
            Ok((path, arguments, variables)) => {
                let _ = signals().thread_block();
                // Only an error comes back.
                let Err(error) = execve(&path, &arguments, &variables);
                let _ = signals().thread_unblock();
                error.into()
            }
        },
    };
    (error, parts)
}

/// The state in memory, and everything it names open for the next program.
fn prepare(supervisor: &Supervisor, parts: &Parts) -> io::Result<File> {
    let state = state(supervisor, parts)?;
    let mut memory = File::from(memfd_create("voxring-handover", MFdFlags::MFD_CLOEXEC)?);
    serde_json::to_writer(io::BufWriter::new(&mut memory), &state)?;
    memory.flush()?;
    Ok(memory)
}

type Strings = Vec<CString>;

fn arguments(binary: &Path, memory: &File) -> io::Result<(CString, Strings, Strings)> {
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
    let path = CString::new(binary.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let arguments = std::env::args_os().map(text).collect::<io::Result<_>>()?;
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os().filter(|(name, _)| name != HANDOVER) {
        let mut line = name;
        line.push("=");
        line.push(value);
        variables.push(text(line)?);
    }
    variables.push(text(format!("{HANDOVER}={}", inherit::pass(memory)?).into())?);
    Ok((path, arguments, variables))
}

fn ago_ms(now: Instant, then: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(u64::MAX)
}

fn state(supervisor: &Supervisor, parts: &Parts) -> io::Result<State> {
    let now = clock::now();
    let mut workers = Vec::new();
    for (slot, line) in &parts.lines {
        let worker = &supervisor.workers[slot.index()];
        let (Some(process), Some(line)) = (&worker.process, line) else { continue };
        workers.push(WorkerState {
            slot: *slot,
            process: process.pid,
            generation: process.generation,
            started_ago_ms: ago_ms(now, process.started),
            listeners: worker.listeners.clone(),
            version: worker.version.clone(),
            counters: worker.counters.clone(),
            socket: inherit::pass(&line.socket)?,
            unread: line.unread.clone(),
        });
    }
    let listener = |(hop, listener, socket): &(Hop, Listener, OwnedFd)| {
        let Listener { transport, address } = *listener;
        let is_router = *hop == Hop::Router;
        io::Result::Ok(ListenerState { is_router, transport, address, socket: inherit::pass(socket)? })
    };
    let connection = |own: &PassedConnection| {
        let &PassedConnection { listener, local, remote, .. } = own;
        let socket = inherit::pass(&own.socket)?;
        io::Result::Ok(ConnectionState { listener, local, remote, socket })
    };
    let vault = |(slot, kept): &(Slot, Kept)| io::Result::Ok((*slot, kept.pass()?));
    let mut totals = supervisor.totals.clone();
    totals.add_refused(supervisor.front.refused());
    Ok(State {
        form: FORM,
        process: std::process::id(),
        config: Config::clone(&supervisor.config),
        source: supervisor.source.clone(),
        file: supervisor.file.clone(),
        overlay: supervisor.overlay.clone(),
        hop_secret: supervisor.hop_secret.clone(),
        life: supervisor.life.state(now),
        workers,
        generations: supervisor.generations,
        draining: supervisor.draining,
        totals,
        started_ago_ms: ago_ms(now, supervisor.started),
        reloads: (supervisor.reloads.done, supervisor.reloads.refused),
        lock: inherit::pass(&supervisor.lock)?,
        control: inherit::pass(&parts.control)?,
        listeners: parts.front.listeners.iter().map(listener).collect::<io::Result<_>>()?,
        connections: parts.front.connections.iter().map(connection).collect::<io::Result<_>>()?,
        vaults: parts.kept.iter().map(vault).collect::<io::Result<_>>()?,
    })
}

impl Supervisor {
    /// Goes on with what the program before has left.
    ///
    /// # Errors
    /// A worker's line cannot be watched.
    pub(super) fn take_over(
        &mut self,
        state: State,
        mut lines: HashMap<Slot, Line>,
        kept: Vec<(Slot, Kept)>,
    ) -> Result<(), ServeError> {
        let now = clock::now();
        self.keep_again(kept);
        let before = |ms| now.checked_sub(Duration::from_millis(ms)).unwrap_or(now);
        self.started = before(state.started_ago_ms);
        (self.totals, self.generations, self.draining) = (state.totals, state.generations, state.draining);
        (self.reloads.done, self.reloads.refused) = state.reloads;
        for own in state.workers {
            let Some(line) = lines.remove(&own.slot) else { continue };
            let which = (own.process, own.generation, before(own.started_ago_ms));
            let worker = &mut self.workers[own.slot.index()];
            worker.process = Some(Process::watch(which, line, self.events.clone())?);
            (worker.listeners, worker.version, worker.counters) = (own.listeners, own.version, own.counters);
        }
        let has_process = [0, 1].map(|index: usize| self.workers[index].process.is_some());
        self.life = Life::resume(now, Rules::of(&self.config), state.life, has_process);
        self.was_ready = true;
        self.order_all(&ToWorker::Refuse { on: self.draining });
        Ok(())
    }

    /// Goes on keeping what outlasts the workers.
    pub(super) fn keep_again(&mut self, kept: Vec<(Slot, Kept)>) {
        for (slot, kept) in kept {
            match Vault::resume(kept) {
                Ok(vault) => self.workers[slot.index()].vault = vault,
                Err(error) => {
                    tracing::error!(slot = slot.name(), %error, "calls would not outlast their worker");
                }
            }
        }
    }

    /// Watches a worker again whose line was to be passed on.
    pub(super) fn watch_again(&mut self, slot: Slot, line: Option<Line>) {
        let worker = &mut self.workers[slot.index()];
        let (Some(process), Some(line)) = (&worker.process, line) else { return };
        match Process::watch((process.pid, process.generation, process.started), line, self.events.clone()) {
            Ok(process) => worker.process = Some(process),
            Err(error) => tracing::error!(slot = slot.name(), %error, "the worker cannot be watched"),
        }
    }
}
