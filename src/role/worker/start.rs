//! Puts a worker's threads together and runs its signalling shard.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::Socket;

use crate::base::clock;
use crate::base::config::Config;
use crate::call::inbound::CallRules;
use crate::control::cli::Slot;
use crate::control::listeners::{self, ListenRole};
use crate::control::protocol::ListenerStatus;
use crate::control::tls::{self, TlsProblem};
use crate::mailbox::audio::read_prompts;
use crate::mailbox::service::{self, ServiceConfig, ServiceError};
use crate::media::order::{Audio, Codec};
use crate::role::gate::Gate;
use crate::role::hop::HopSecret;
use crate::role::legacy::Inheritance;
use crate::role::link::{FromWorker, WorkerLink};
use crate::role::user_agent;
use crate::role::worker::calls::{Calls, Parts};
use crate::role::worker::estate::{Estate, Heritage};
use crate::role::worker::reconfigure::Edge;
use crate::role::worker::shards::{Shards, ShardsError};
use crate::role::worker::watchdog::{self, Turns};
use crate::sdp::{LocalMedia, SrtpRules};
use crate::shard::KeepingOfAll;
use crate::signal::{self, Listener, Passed};
use crate::sip::flow::Transport;
use crate::sip::session_timer::SessionRules;
use crate::sip::uas::UasRules;
use crate::um::answering;
use crate::um::prompts::{Prompt, Prompts};
use crate::uring::SocketLine;

/// An earlier worker of this slot that lost its supervisor ends its calls first; its port is free
/// within this time.
const PORT_PATIENCE: Duration = Duration::from_secs(12);

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Not started by a supervisor.
    #[error("the line to the supervisor: {0}")]
    Link(io::Error),
    /// Media shards.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// Store or spool.
    #[error(transparent)]
    Mailbox(#[from] ServiceError),
    /// One of the slot's ports.
    #[error("worker {slot}: {error}")]
    Listen {
        /// `A` or `B`.
        slot: &'static str,
        /// Where it wanted to listen and what the kernel says.
        error: io::Error,
    },
    /// One of the TLS files.
    #[error(transparent)]
    Tls(#[from] TlsProblem),
    /// Random numbers, threads.
    #[error("{0}")]
    Resource(#[from] io::Error),
}

/// Runs as a worker: the supervisor's first line on standard input says what to be.
///
/// # Errors
/// See [`WorkerError`]; the supervisor is told the same.
pub fn run() -> Result<(), WorkerError> {
    // Before anything is opened.
    let inheritance = Inheritance::take();
    let (link, slot, config, hop_secret) = WorkerLink::open().map_err(WorkerError::Link)?;
    let link = Arc::new(link);
    let result = serve(&link, slot, config, hop_secret, inheritance);
    if let Err(error) = &result {
        link.report(FromWorker::Failed { reason: error.to_string() });
        // The link's own thread writes it; a failed start has time for that.
        thread::sleep(Duration::from_millis(200));
    }
    result
}

fn serve(
    link: &Arc<WorkerLink>,
    slot: Slot,
    config: Box<Config>,
    hop_secret: HopSecret,
    inheritance: Option<Inheritance>,
) -> Result<(), WorkerError> {
    let listeners = listeners(&config, slot);
    let Kept { estate, heritage, keeping, sockets } = take_up(inheritance, &listeners);
    let line = keeping.as_ref().map(|keeping| Arc::clone(&keeping.line));
    let tls = tls::load(&config, clock::calendar())?;
    let open = listen(slot, &listeners, sockets, line.as_deref())?;
    let shards = Shards::spawn(&config, slot, keeping)?;
    let shard_status = shards.status();
    let (mailbox, recovered) = service::spawn(ServiceConfig {
        data: config.node.data.clone(),
        voiced_min: Duration::from_millis(u64::from(config.recording.voiced_min_ms)),
        free_min: u64::from(config.recording.free_mib_min) << 20,
        files: shards.files(),
        adopting: heritage.recordings(),
    })?;
    let turns = Turns::default();
    let stall_limit = Duration::from_secs(config.worker.stall_limit_s.into());
    let pulses = shards.pulses();
    let prompts = load_prompts(&config);
    let seed = user_agent::random()?;
    let signal_config = user_agent::signal_config(&config, tls, listeners.clone());
    let mut calls = Calls::new(Parts {
        slot,
        rules: call_rules(&config),
        layer: user_agent::layer(&config)?,
        gate: Gate::new(&config, hop_secret)?,
        shards,
        mailbox,
        link: Arc::clone(link),
        prompts: answering_prompts(&prompts),
        demo_loop: Audio::from_pcm(prompts.get(Prompt::DemoLoop)),
        seed,
        counters: Arc::clone(&signal_config.counters),
        edge: Edge::new(Arc::clone(&signal_config.orders), &listeners, line),
        turns: turns.clone(),
        config,
        estate,
    });
    calls.inherit(clock::now(), heritage);
    watchdog::spawn(turns, pulses, stall_limit, Arc::clone(link))?;
    let bound_link = Arc::clone(link);
    let mut bind_error = None;
    let bound = |result: io::Result<Vec<SocketAddr>>| match result {
        Ok(addresses) => bound_link.report(FromWorker::Ready {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: listeners
                .iter()
                .zip(&addresses)
                .map(|(l, at)| listener_status(slot, l, *at))
                .collect(),
            shards: shard_status,
            recovered: recovered.messages + recovered.missed,
        }),
        Err(error) => bind_error = Some(error),
    };
    let passed = Passed { listeners: open, connections: Vec::new() };
    let ended = signal::run_with(signal_config, passed, calls, bound);
    if let Some(error) = bind_error {
        return Err(WorkerError::Listen { slot: slot.name(), error });
    }
    Ok(ended?)
}

/// Sockets that are no media, with their addresses, and whether they are of datagrams.
type Sockets = Vec<(SocketAddr, bool, Socket)>;

/// What calls outlast this worker by, and the calls that have outlasted another one.
#[derive(Default)]
struct Kept {
    estate: Option<Estate>,
    heritage: Heritage,
    keeping: Option<KeepingOfAll>,
    sockets: Sockets,
}

/// Sorts what was inherited. Sockets of legs that nobody knows of are given up.
///
/// A listener may have the port of a leg at another address: addresses tell them apart.
fn take_up(inheritance: Option<Inheritance>, listeners: &[Listener]) -> Kept {
    let Some(Inheritance { line, ledger, sockets }) = inheritance else { return Kept::default() };
    let (estate, heritage) = Estate::new(ledger.clone());
    let ports = heritage.ports();
    ledger.retain_marks(&ports);
    let (mut media, mut others) = (BTreeMap::new(), Sockets::new());
    for (address, is_datagram, socket) in sockets {
        let (port, even) = (address.port(), address.port() & !1);
        if !is_datagram || listeners.iter().any(|listener| listener.address == address) {
            others.push((address, is_datagram, socket));
        } else if ports.contains(&even) {
            media.insert(port, socket);
        } else if port == even
            && let Err(error) = line.release(port)
        {
            tracing::warn!(port, %error, "a port of no call cannot be given up");
        }
    }
    let keeping = Some(KeepingOfAll { ledger, line: Arc::new(line), sockets: media });
    Kept { estate: Some(estate), heritage, keeping, sockets: others }
}

/// The slot's listeners, each with its index: those that a dead worker has left, in whose backlog callers
/// wait, or new ones, as soon as their ports are free.
fn listen(
    slot: Slot,
    listeners: &[Listener],
    mut left: Sockets,
    line: Option<&SocketLine>,
) -> Result<Vec<(u16, OwnedFd)>, WorkerError> {
    let mut open = Vec::new();
    let mut patience = PORT_PATIENCE;
    for (index, listener) in (0..).zip(listeners) {
        let is_datagram = listener.transport == Transport::Udp;
        let found = left.iter().position(|(at, kind, _)| (*at, *kind) == (listener.address, is_datagram));
        let socket = match found {
            Some(found) => left.swap_remove(found).2.into(),
            None => {
                let socket = await_port(slot, listener, &mut patience)?;
                if let Some(Err(error)) = line.map(|line| line.listen(&socket)) {
                    tracing::warn!(%error, "a listener would not outlast the worker");
                }
                socket
            }
        };
        open.push((index, socket));
    }
    for (address, _, _) in left {
        // The configuration has changed.
        if let Some(Err(error)) = line.map(|line| line.unlisten(address)) {
            tracing::warn!(%address, %error, "an old listener stays open");
        }
    }
    Ok(open)
}

/// Binds a listener, waiting while its port is in use.
fn await_port(slot: Slot, listener: &Listener, patience: &mut Duration) -> Result<OwnedFd, WorkerError> {
    const STEP: Duration = Duration::from_millis(5);
    loop {
        let error = match signal::bind_socket(listener) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::AddrInUse || patience.is_zero() {
            return Err(WorkerError::Listen { slot: slot.name(), error });
        }
        if *patience == PORT_PATIENCE {
            let address = listener.address;
            tracing::warn!(slot = slot.name(), %address, ?patience, "the port is in use; waiting");
        }
        thread::sleep(STEP);
        *patience = patience.saturating_sub(STEP);
    }
}

/// The slot's sockets.
pub(super) fn listeners(config: &Config, slot: Slot) -> Vec<Listener> {
    let planned = listeners::of_role(config, ListenRole::Worker(slot)).into_iter();
    planned.map(|l| Listener { transport: l.transport, address: l.address }).collect()
}

pub(super) fn listener_status(slot: Slot, listener: &Listener, address: SocketAddr) -> ListenerStatus {
    let role = ListenRole::Worker(slot).name().to_owned();
    ListenerStatus { role, transport: listener.transport, address }
}

/// What the configuration says to every call.
pub(super) fn call_rules(config: &Config) -> CallRules {
    CallRules {
        local: LocalMedia {
            addresses: config.rtp.address.clone(),
            codecs: vec![Codec::Pcmu, Codec::Pcma],
            dtmf: true,
            nat: None,
            srtp: SrtpRules { suites: config.srtp.suites.0.clone(), ..SrtpRules::plain() },
        },
        nat: config.rtp.nat,
        key_source: |key| getrandom::fill(key).is_ok(),
        fqdn: Some(config.node.fqdn.clone()).filter(|name| !name.is_empty()),
        cname: format!("{}@{}", config.node.name, config.rtp.address.first()),
        media_timeout: Duration::from_secs(u64::from(config.rtp.media_timeout_s)),
        duration_max: Duration::from_secs(60 * u64::from(config.calls.duration_max_min)),
        session: SessionRules {
            session_expires_s: config.sip.session_expires_s,
            min_se_s: config.sip.min_se_s,
        },
        uas: UasRules::default(),
    }
}

/// The built-in prompts, with those the operator put into `<data>/prompts/en`.
fn load_prompts(config: &Config) -> Prompts {
    let own = read_prompts(&config.node.data.join("prompts").join("en"));
    for (file, error) in &own.refused {
        tracing::error!(file = %file.display(), %error, "this prompt cannot be used; the built-in one is");
    }
    Prompts::with_overrides(own.samples)
}

fn answering_prompts(prompts: &Prompts) -> answering::Prompts {
    let audio = |prompt| Audio::from_pcm(prompts.get(prompt));
    answering::Prompts {
        greeting: audio(Prompt::Greeting),
        beep: audio(Prompt::Beep),
        after_recording: audio(Prompt::AfterRecording),
        sent: audio(Prompt::Sent),
        nothing_recorded: audio(Prompt::NothingRecorded),
        invalid_key: audio(Prompt::InvalidKey),
        goodbye: audio(Prompt::Goodbye),
    }
}
