//! The life of a signalling shard: bind, pump, end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::core::{Core, Limits, Shared, flush};
use super::counters::Counters;
use super::listen::{self, Bound};
use super::order::{ConnectionLimits, SignalOrder};
use super::pace::Pace;
use super::pass::Passed;
use super::role::Role;
use super::tls::TlsSetup;
use crate::base::clock;
use crate::sip::flow::Transport;

/// Entries of the submission queue; one turn rarely starts more operations.
const RING_ENTRIES: u32 = 1024;
/// Bounds of what a role may ask for between two pumps.
const PUMP_MIN: Duration = Duration::from_millis(1);
const PUMP_MAX: Duration = Duration::from_millis(50);
/// How long the end may take to send what is queued, and then to close.
const FLUSH_MAX: Duration = Duration::from_secs(2);
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Where a shard listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// UDP, TCP or TLS over TCP.
    pub transport: Transport,
    /// Port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// Which listener could not be bound; inside the [`io::Error`] that [`run`]'s `bound` gets.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}/{}: {error}", .listener.address, .listener.transport.name())]
pub struct ListenError {
    /// As configured.
    pub listener: Listener,
    /// What the kernel says.
    pub error: io::Error,
}

/// What [`run`] needs to know.
#[derive(Debug, Clone)]
pub struct SignalConfig {
    /// Their order gives the listener indices of flows and destinations.
    pub listeners: Vec<Listener>,
    /// Connections at once, accepted and opened; one more is closed at once.
    pub connections_max: usize,
    /// A connection without a message or keep-alive for this long is closed.
    pub idle_timeout: Duration,
    /// A message must be complete this long after its first byte.
    pub message_timeout: Duration,
    /// What peers may ask of the loop; [`SignalOrder::Limits`] changes it.
    pub limits: ConnectionLimits,
    /// Needed where a listener or a destination is TLS; [`SignalOrder::Tls`] changes it.
    pub tls: Option<Arc<TlsSetup>>,
    /// Where to put orders while the loop runs; keep a clone.
    pub orders: Arc<ArrayQueue<SignalOrder>>,
    /// Processor to stay on.
    pub cpu: Option<usize>,
    /// Where to count; keep a clone to read.
    pub counters: Arc<Counters>,
}

/// True when shards run on io_uring, false when they fall back to epoll.
pub fn is_on_io_uring() -> bool {
    monoio::utils::detect_uring()
}

/// Turns the calling thread into a signalling shard until `role` is finished.
///
/// `bound` is called once: with the listeners' addresses, in order, or with why there are none.
///
/// # Errors
/// No ring and no epoll, or a listener that cannot be bound; its address is in the text.
pub fn run<R: Role + 'static>(
    config: SignalConfig,
    role: R,
    bound: impl FnOnce(io::Result<Vec<SocketAddr>>),
) -> io::Result<()> {
    run_with(config, Passed::default(), role, bound)
}

/// The same with sockets of the program that ran in this process before. Listeners it has not passed
/// on are bound.
///
/// # Errors
/// As [`run`].
pub fn run_with<R: Role + 'static>(
    config: SignalConfig,
    passed: Passed,
    role: R,
    bound: impl FnOnce(io::Result<Vec<SocketAddr>>),
) -> io::Result<()> {
    if let Some(id) = config.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(cpu = id, "the signalling shard could not be pinned");
    }
    let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new();
    match builder.with_entries(RING_ENTRIES).enable_timer().build() {
        Ok(mut runtime) => runtime.block_on(serve(config, passed, role, bound)),
        Err(error) => {
            bound(Err(io::Error::new(error.kind(), error.to_string())));
            Err(error)
        }
    }
}

async fn serve<R: Role + 'static>(
    config: SignalConfig,
    passed: Passed,
    role: R,
    bound: impl FnOnce(io::Result<Vec<SocketAddr>>),
) -> io::Result<()> {
    let has_tls = config.tls.is_some();
    let Passed { mut listeners, connections } = passed;
    let ends = (0_u16..).zip(&config.listeners).map(|(index, listener)| {
        let own = listeners.iter().position(|(place, _)| *place == index);
        match own.map(|own| listeners.swap_remove(own)) {
            Some((_, socket)) => Bound::new(*listener, socket),
            None => listen::bind(listener, has_tls),
        }
    });
    let ends: Vec<Bound> = match ends.collect::<io::Result<_>>() {
        Ok(ends) => ends,
        Err(error) => {
            let told = io::Error::new(error.kind(), error.to_string());
            bound(Err(error));
            return Err(told);
        }
    };
    let limits = Limits {
        connections_max: config.connections_max,
        idle_timeout: config.idle_timeout,
        message_timeout: config.message_timeout,
        peers: config.limits,
    };
    let addresses = ends.iter().map(|bound| bound.local).collect();
    let shared = Core::new(role, limits, config.counters, config.tls);
    for (own, (index, listener)) in ends.into_iter().zip((0_u16..).zip(&config.listeners)) {
        shared.borrow_mut().listen(index, listener.transport, own);
    }
    for connection in connections {
        shared.borrow_mut().take_up(clock::now(), connection);
    }
    bound(Ok(addresses));
    pump(&shared, &config.orders).await;
    end(&shared).await;
    Ok(())
}

/// Drives timers and cross-thread queues until the role is finished.
async fn pump<R: Role + 'static>(shared: &Shared<R>, orders: &ArrayQueue<SignalOrder>) {
    let mut pace = Pace::of_this_thread();
    loop {
        let now = clock::now();
        let wanted = {
            let core = &mut *shared.borrow_mut();
            if let Some(permille) = pace.look(now) {
                core.role.handle_busy(permille);
            }
            let wanted = core.role.pump(now);
            while let Some(order) = orders.pop() {
                core.obey(now, order);
            }
            if core.role.poll_timeout().is_some_and(|at| at <= now) {
                core.role.handle_timeout(now);
            }
            core.sweep(now);
            wanted
        };
        flush(shared, now);
        if shared.borrow_mut().pass_on(now) {
            return;
        }
        let wait = {
            let core = shared.borrow();
            if core.role.is_finished() {
                return;
            }
            let wanted = if core.passing.is_some() { PUMP_MIN } else { wanted };
            let timer = core.role.poll_timeout().map(|at| at.saturating_duration_since(now));
            timer.map_or(wanted, |timer| timer.min(wanted)).clamp(PUMP_MIN, PUMP_MAX)
        };
        monoio::time::sleep(wait).await;
    }
}

/// Sends what is queued, closes everything and waits for the tasks, so that no operation is in
/// flight when the ring goes.
async fn end<R: Role + 'static>(shared: &Shared<R>) {
    shared.borrow_mut().stop_listening();
    let start = clock::now();
    while !shared.borrow().is_flushed() && clock::now() < start + FLUSH_MAX {
        monoio::time::sleep(PUMP_MIN).await;
    }
    let start = clock::now();
    shared.borrow_mut().close_all(start);
    while shared.borrow().tasks() > 0 && clock::now() < start + CLOSE_MAX {
        monoio::time::sleep(PUMP_MIN).await;
    }
}
