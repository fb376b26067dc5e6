//! Listeners: bound, opened, shut; and what is accepted at them.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::io::{CancelHandle, Canceller};
use monoio::net::udp::UdpSocket;
use monoio::net::{TcpListener, TcpStream};
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, Type};

use super::connection::{Connection, Stage};
use super::core::{Core, HALF_CLOSED, Shared, next_flow_id};
use super::datagram::{self, Socket};
use super::role::Role;
use super::run::{ListenError, Listener, is_on_io_uring};
use super::stream;
use super::tls::TlsSession;
use crate::base::clock;
use crate::base::limits::SIP_UDP_QUEUE_BYTES;
use crate::sip::flow::{Flow, Transport};

/// Connections the kernel completes before we accept them.
const BACKLOG: i32 = 1024;
/// Descriptors that connections leave to everything else of the process. Without any, the kernel could
/// not even accept one to close it, and its peer would wait.
const DESCRIPTORS_KEPT: u64 = 32;
/// Pause after the kernel refused to hand out a connection: descriptors come back in time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One listener's switch: open from its binding until it is shut, never again after.
pub(super) struct Gate {
    transport: Transport,
    open: Cell<bool>,
    canceller: RefCell<Canceller>,
}

impl Gate {
    pub(super) fn new(transport: Transport) -> Rc<Self> {
        Rc::new(Self { transport, open: Cell::new(true), canceller: RefCell::default() })
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.get()
    }

    pub(super) fn handle(&self) -> CancelHandle {
        self.canceller.borrow().handle()
    }

    /// Ends what waits at it.
    pub(super) fn shut(&self) {
        self.open.set(false);
        let waiting = self.canceller.take();
        drop(waiting.cancel());
    }
}

/// A bound listener.
pub(super) enum End {
    Stream(TcpListener),
    Datagram(UdpSocket),
}

/// A listener's socket, the same once more for another program, and where it is bound.
pub(super) struct Bound {
    pub(super) end: End,
    pub(super) kept: OwnedFd,
    pub(super) local: SocketAddr,
}

/// Binds one listener.
///
/// # Errors
/// A [`ListenError`] that names it.
pub(super) fn bind(listener: &Listener, has_tls: bool) -> io::Result<Bound> {
    let error = |error: io::Error| io::Error::new(error.kind(), ListenError { listener: *listener, error });
    if listener.transport == Transport::Tls && !has_tls {
        return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "TLS needs a certificate")));
    }
    Bound::new(*listener, bind_socket(listener)?).map_err(error)
}

/// A bound socket for one listener, which also listens where its transport does: for
/// [`super::Passed::listeners`].
///
/// # Errors
/// A [`ListenError`] that names it.
pub fn bind_socket(listener: &Listener) -> io::Result<OwnedFd> {
    let Listener { transport, address } = *listener;
    let socket = match transport {
        Transport::Udp => bind_udp(address),
        Transport::Tcp | Transport::Tls => bind_tcp(address),
    };
    let error = |error: io::Error| io::Error::new(error.kind(), ListenError { listener: *listener, error });
    socket.map(OwnedFd::from).map_err(error)
}

impl Bound {
    /// Takes up a socket that is bound, and listens where its transport does.
    ///
    /// # Errors
    /// It is no such socket, or the process is out of descriptors.
    pub(super) fn new(listener: Listener, socket: OwnedFd) -> io::Result<Self> {
        let kept = socket.try_clone()?;
        let (end, local) = if listener.transport.is_reliable() {
            let socket = std::net::TcpListener::from(socket);
            let local = socket.local_addr()?;
            (End::Stream(TcpListener::from_std(socket)?), local)
        } else {
            let socket = std::net::UdpSocket::from(socket);
            let local = socket.local_addr()?;
            (End::Datagram(UdpSocket::from_std(socket)?), local)
        };
        Ok(Self { end, kept, local })
    }
}

/// A socket of its family alone: an IPv6 one takes no IPv4 peers, who have their own listener.
fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind_tcp(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // Two processes on one port would share its connections without a word: no SO_REUSEPORT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(!is_on_io_uring())?;
    // Messages are written whole; waiting to fill segments would only delay them. Inherited.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A socket whose queue holds a burst of calls: all SIP over UDP to this listener waits there.
fn bind_udp(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_recv_buffer_size(SIP_UDP_QUEUE_BYTES as usize)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

impl<R: Role + 'static> Core<R> {
    /// Starts accepting or receiving at a listener's place, which must be empty.
    pub(super) fn listen(&mut self, index: u16, transport: Transport, bound: Bound) {
        let Bound { end, kept, local } = bound;
        let place = usize::from(index);
        let places = self.gates.len().max(place + 1);
        self.gates.resize_with(places, || None);
        self.kept.resize_with(places, || None);
        if let Some(own) = self.kept.get_mut(place) {
            *own = Some(kept);
        }
        self.sockets.resize_with(places, || None);
        let gate = Gate::new(transport);
        if let Some(own) = self.gates.get_mut(place) {
            *own = Some(Rc::clone(&gate));
        }
        match end {
            End::Stream(listener) => self.spawn(accept(self.shared(), listener, index, local, gate)),
            End::Datagram(socket) => {
                if let Some(own) = self.sockets.get_mut(place) {
                    *own = Some(Socket::new(socket, next_flow_id(), local));
                }
                self.spawn(datagram::receive(self.shared(), index, gate));
            }
        }
    }

    /// Stops taking anything in at one place. Its UDP socket still sends for a transaction's life.
    pub(super) fn unlisten(&mut self, now: Instant, index: u16) {
        let place = usize::from(index);
        if let Some(gate) = self.gates.get_mut(place).and_then(Option::take) {
            gate.shut();
        }
        self.kept.get_mut(place).and_then(Option::take);
        if let Some(socket) = self.sockets.get_mut(place).and_then(Option::as_mut) {
            socket.retire(now + HALF_CLOSED);
        }
    }

    /// Counts what came from an address the role does not know.
    pub(super) fn drop_unknown(&mut self, now: Instant, remote: SocketAddr, transport: Transport) {
        self.counters.unknown_source.add(1);
        if self.log.take(now, "unknown_source") {
            tracing::warn!(peer = %remote, transport = transport.name(), rule = "unknown_source", "dropped");
        }
    }

    /// Takes an accepted connection up, or drops it without a byte.
    fn admit(
        &mut self,
        now: Instant,
        index: u16,
        transport: Transport,
        local: SocketAddr,
        accepted: (TcpStream, SocketAddr),
    ) {
        let (stream, remote) = accepted;
        if !self.role.admits(now, index, remote) {
            return self.drop_unknown(now, remote, transport);
        }
        if is_scarce(&stream) {
            self.counters.descriptors_refused.add(1);
            return self.log_refused(now, remote, transport, "descriptors");
        }
        if self.is_full() {
            self.counters.refused.add(1);
            return self.log_refused(now, remote, transport, "connections_max");
        }
        let Some(source) = self.sources.open(now, remote.ip(), &self.limits.peers) else {
            self.counters.source_refused.add(1);
            return self.log_refused(now, remote, transport, "source_connections");
        };
        let flow = Flow { id: next_flow_id(), listener: index, transport, local, remote };
        let mut connection = Connection::new(now, flow, Stage::Open);
        connection.source = Some(source);
        if transport == Transport::Tls {
            let session = self.tls.as_ref().and_then(|setup| TlsSession::accepted(setup).ok());
            let Some(session) = session else {
                self.sources.close(source);
                self.counters.tls_other.add(1);
                return self.log_refused(now, remote, transport, "tls_other");
            };
            connection.tls = Some(Box::new(session));
        }
        self.counters.accepted.add(1);
        self.insert(connection);
        stream::open(self, now, flow, stream);
    }

    fn log_refused(&mut self, now: Instant, remote: SocketAddr, transport: Transport, rule: &'static str) {
        if self.log.take(now, rule) {
            tracing::warn!(peer = %remote, transport = transport.name(), rule, "connection refused");
        }
    }
}

/// Whether a connection has one of the last descriptors. The kernel hands out the lowest number that is
/// free, so all below are in use.
fn is_scarce(stream: &TcpStream) -> bool {
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
    getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(soft, _)| number + DESCRIPTORS_KEPT >= soft)
}

/// Accepts until its gate is shut.
async fn accept<R: Role + 'static>(
    shared: Shared<R>,
    listener: TcpListener,
    index: u16,
    bound: SocketAddr,
    gate: Rc<Gate>,
) {
    loop {
        let accepted = listener.cancelable_accept(gate.handle()).await;
        let now = clock::now();
        let core = &mut *shared.borrow_mut();
        match accepted {
            // Whom the kernel let in before the gate was shut is let in.
            Ok((stream, remote)) if !core.stopping => {
                // Only a listener on all addresses must ask which one the peer has called.
                let is_open_to_all = bound.ip().is_unspecified();
                let local = if is_open_to_all { stream.local_addr().unwrap_or(bound) } else { bound };
                core.admit(now, index, gate.transport, local, (stream, remote));
                core.flush(now);
                if !gate.is_open() {
                    return;
                }
            }
            _ if !gate.is_open() => return,
            Ok(_) => return,
            Err(error) => {
                core.counters.accept_errors.add(1);
                if core.log.take(now, "accept") {
                    tracing::warn!("no connection accepted: {error}");
                }
                core.spawn(pause_accepting(core.shared(), listener, index, bound, gate));
                return;
            }
        }
    }
}

async fn pause_accepting<R: Role + 'static>(
    shared: Shared<R>,
    listener: TcpListener,
    index: u16,
    bound: SocketAddr,
    gate: Rc<Gate>,
) {
    monoio::time::sleep(ACCEPT_PAUSE).await;
    let core = shared.borrow();
    if gate.is_open() {
        core.spawn(accept(core.shared(), listener, index, bound, gate));
    }
}
