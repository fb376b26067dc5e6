//! The life of a signalling shard: bind, pump, end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use monoio::net::udp::UdpSocket;
use monoio::net::{ListenerOpts, TcpListener};

use super::core::{Core, Limits, Shared, flush, next_flow_id};
use super::counters::Counters;
use super::datagram::{self, Socket};
use super::order::{ConnectionLimits, SignalOrder};
use super::role::Role;
use super::stream;
use super::tls::TlsSetup;
use crate::base::clock;
use crate::base::limits::SIP_UDP_QUEUE_BYTES;
use crate::sip::flow::Transport;

/// Entries of the submission queue; one turn rarely starts more operations.
const RING_ENTRIES: u32 = 1024;
/// Connections the kernel completes before we accept them.
const BACKLOG: i32 = 1024;
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

enum End {
    Tcp(TcpListener),
    Udp(UdpSocket),
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
    if let Some(id) = config.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(cpu = id, "the signalling shard could not be pinned");
    }
    let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new();
    match builder.with_entries(RING_ENTRIES).enable_timer().build() {
        Ok(mut runtime) => runtime.block_on(serve(config, role, bound)),
        Err(error) => {
            bound(Err(io::Error::new(error.kind(), error.to_string())));
            Err(error)
        }
    }
}

async fn serve<R: Role + 'static>(
    config: SignalConfig,
    role: R,
    bound: impl FnOnce(io::Result<Vec<SocketAddr>>),
) -> io::Result<()> {
    let ends: Vec<_> = match config.listeners.iter().map(bind).collect::<io::Result<_>>() {
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
    };
    let addresses = ends.iter().map(|(_, local)| *local).collect();
    let mut sockets = Vec::new();
    let mut listeners = Vec::new();
    for ((end, local), index) in ends.into_iter().zip(0_u16..) {
        match end {
            End::Tcp(listener) => {
                sockets.push(None);
                listeners.push((index, Some(listener)));
            }
            End::Udp(socket) => {
                sockets.push(Some(Socket::new(socket, next_flow_id(), local)));
                listeners.push((index, None));
            }
        }
    }
    let shared = Core::new(role, limits, config.counters, sockets);
    for (index, listener) in listeners {
        let core = shared.borrow();
        match listener {
            Some(listener) => core.spawn(stream::accept(core.shared(), listener, index)),
            None => core.spawn(datagram::receive(core.shared(), index)),
        }
    }
    bound(Ok(addresses));
    pump(&shared).await;
    end(&shared).await;
    Ok(())
}

fn bind(listener: &Listener) -> io::Result<(End, SocketAddr)> {
    let Listener { transport, address } = *listener;
    let result = match transport {
        Transport::Udp => bind_udp(address).and_then(|s| Ok((s.local_addr()?, End::Udp(s)))),
        Transport::Tcp => {
            // Two processes on one port would share its connections without a word.
            let options = ListenerOpts::new().reuse_port(false).reuse_addr(true).backlog(BACKLOG);
            TcpListener::bind_with_config(address, &options).and_then(|l| Ok((l.local_addr()?, End::Tcp(l))))
        }
        Transport::Tls => Err(io::Error::new(io::ErrorKind::Unsupported, "there is no TLS yet")),
    };
    result
        .map(|(local, end)| (end, local))
        .map_err(|error| io::Error::new(error.kind(), ListenError { listener: *listener, error }))
}

/// A socket whose queue holds a burst of calls: all SIP over UDP to this listener waits there.
fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    socket.set_recv_buffer_size(SIP_UDP_QUEUE_BYTES as usize)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Drives timers and cross-thread queues until the role is finished.
async fn pump<R: Role + 'static>(shared: &Shared<R>) {
    loop {
        let now = clock::now();
        let wanted = {
            let core = &mut *shared.borrow_mut();
            let wanted = core.role.pump(now);
            if core.role.poll_timeout().is_some_and(|at| at <= now) {
                core.role.handle_timeout(now);
            }
            core.sweep(now);
            wanted
        };
        flush(shared, now);
        let wait = {
            let core = shared.borrow();
            if core.role.is_finished() {
                return;
            }
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
