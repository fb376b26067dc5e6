//! The state all tasks of a shard share: the role, its connections and UDP sockets.
//!
//! Tasks borrow it between two awaits and never across one.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use monoio::io::CancelHandle;

use super::connection::{Cause, Connection, Stage};
use super::counters::Counters;
use super::datagram::{self, Socket};
use super::listen::Gate;
use super::log_budget::LogBudget;
use super::order::ConnectionLimits;
use super::pass::Passing;
use super::role::Role;
use super::sources::Sources;
use super::stream;
use super::tls::{Failure, TlsSession, TlsSetup};
use crate::sip::flow::{Destination, Flow, FlowId, Transmit, Transport};

/// How long a connection that is being given up may take to read our last message.
const LINGER: Duration = Duration::from_secs(1);
/// How long a peer that sends nothing more is kept for what the role may still have for it: the
/// life of a transaction (64 × T1, RFC 3261 §17.1.1.2).
pub(super) const HALF_CLOSED: Duration = Duration::from_secs(32);
/// Read buffers kept for connections that bring much.
const SPARE_BUFFERS_MAX: usize = 16;
/// Time between two looks for idle and slow peers.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

pub(super) type Shared<R> = Rc<RefCell<Core<R>>>;

/// Limits of [`super::SignalConfig`] that connections need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections_max: usize,
    pub(super) idle_timeout: Duration,
    pub(super) message_timeout: Duration,
    pub(super) peers: ConnectionLimits,
}

pub(super) struct Core<R> {
    this: Weak<RefCell<Self>>,
    pub(super) role: R,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) connections: HashMap<FlowId, Connection>,
    by_remote: HashMap<(Transport, SocketAddr), FlowId>,
    /// By listener; `None` for listeners that are no UDP sockets.
    pub(super) sockets: Vec<Option<Socket>>,
    /// By listener; `None` where nobody listens any more.
    pub(super) gates: Vec<Option<Rc<Gate>>>,
    /// Listeners whose address is still being tried.
    pub(super) binding: HashSet<u16>,
    pub(super) tls: Option<Arc<TlsSetup>>,
    pub(super) sources: Sources,
    spare_buffers: Vec<Vec<u8>>,
    pub(super) stopping: bool,
    /// By listener; what another program would listen with.
    pub(super) kept: Vec<Option<OwnedFd>>,
    /// Sockets are being passed on.
    pub(super) passing: Option<Passing>,
    next_sweep: Option<Instant>,
    pub(super) log: LogBudget,
    tasks: Rc<Cell<usize>>,
}

/// A flow id that no connection of this process had before.
pub(super) fn next_flow_id() -> FlowId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    FlowId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// [`Core::flush`] for those who do not hold the core.
pub(super) fn flush<R: Role + 'static>(shared: &Shared<R>, now: Instant) {
    shared.borrow_mut().flush(now);
}

impl<R: Role + 'static> Core<R> {
    pub(super) fn new(
        role: R,
        limits: Limits,
        counters: Arc<Counters>,
        tls: Option<Arc<TlsSetup>>,
    ) -> Shared<R> {
        Rc::new_cyclic(|this| {
            RefCell::new(Self {
                this: this.clone(),
                role,
                sources: Sources::new(&limits.peers),
                limits,
                counters,
                connections: HashMap::new(),
                by_remote: HashMap::new(),
                sockets: Vec::new(),
                gates: Vec::new(),
                binding: HashSet::new(),
                tls,
                spare_buffers: Vec::new(),
                stopping: false,
                kept: Vec::new(),
                passing: None,
                next_sweep: None,
                log: LogBudget::default(),
                tasks: Rc::new(Cell::new(0)),
            })
        })
    }

    pub(super) fn shared(&self) -> Shared<R> {
        self.this.upgrade().expect("methods run while the core lives")
    }

    /// Starts a task that [`Self::tasks`] counts.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let tasks = Rc::clone(&self.tasks);
        tasks.set(tasks.get() + 1);
        monoio::spawn(async move {
            task.await;
            tasks.set(tasks.get() - 1);
        });
    }

    /// Tasks that have not ended.
    pub(super) fn tasks(&self) -> usize {
        self.tasks.get()
    }

    /// True when nothing waits to be written.
    pub(super) fn is_flushed(&self) -> bool {
        self.connections.values().all(|c| c.queue.is_empty() && c.writer.is_some())
            && self.sockets.iter().flatten().all(Socket::is_flushed)
    }

    pub(super) fn is_full(&self) -> bool {
        self.connections.len() >= self.limits.connections_max
    }

    /// Takes a connection up.
    pub(super) fn insert(&mut self, connection: Connection) {
        let flow = connection.flow;
        self.connections.insert(flow.id, connection);
        self.by_remote.insert((flow.transport, flow.remote), flow.id);
    }

    /// From now on messages to this address open a connection of their own.
    pub(super) fn forget_remote(&mut self, flow: &Flow) {
        let key = (flow.transport, flow.remote);
        if self.by_remote.get(&key) == Some(&flow.id) {
            self.by_remote.remove(&key);
        }
    }

    /// A large read buffer; give it back soon.
    pub(super) fn lend_buffer(&mut self, bytes: usize) -> Vec<u8> {
        self.spare_buffers.pop().unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    pub(super) fn return_buffer(&mut self, buffer: Vec<u8>) {
        if self.spare_buffers.len() < SPARE_BUFFERS_MAX {
            self.spare_buffers.push(buffer);
        }
    }

    /// The handle that ends the reads of a connection; `None` when it is gone.
    pub(super) fn cancel_handle(&self, id: FlowId) -> Option<CancelHandle> {
        self.connections.get(&id).map(|connection| connection.reading.handle())
    }

    /// Sends everything the role wants to send.
    pub(super) fn flush(&mut self, now: Instant) {
        while let Some(transmit) = self.role.poll_transmit() {
            self.send(now, transmit);
        }
    }

    /// Routes one message.
    pub(super) fn send(&mut self, now: Instant, transmit: Transmit) {
        let id = match transmit.destination {
            Destination::Flow(Flow { transport: Transport::Udp, id, remote, listener, .. }) => {
                let socket = self.sockets.iter().position(|s| s.as_ref().is_some_and(|s| s.flow_id() == id));
                // A flow of an earlier process has no socket of its own here.
                let socket = socket.or_else(|| self.socket_for(listener, remote));
                return self.send_datagram(now, socket, remote, transmit);
            }
            Destination::Address { transport: Transport::Udp, remote, listener } => {
                let socket = self.socket_for(listener, remote);
                return self.send_datagram(now, socket, remote, transmit);
            }
            Destination::Flow(flow) => Some(flow.id),
            Destination::Address {
                transport: transport @ (Transport::Tcp | Transport::Tls),
                remote,
                listener,
            } => {
                let open = self.by_remote.get(&(transport, remote)).copied();
                open.or_else(|| self.connect(now, transport, remote, listener))
            }
        };
        match id {
            Some(id) => self.queue(now, id, transmit),
            None => self.fail(now, &transmit),
        }
    }

    pub(super) fn fail(&mut self, now: Instant, transmit: &Transmit) {
        self.counters.send_failures.add(1);
        self.role.handle_send_failed(now, transmit);
    }

    /// The listener's own UDP socket, else any of the right family.
    fn socket_for(&self, listener: u16, remote: SocketAddr) -> Option<usize> {
        let own = usize::from(listener);
        let fits = |s: &Option<Socket>| s.as_ref().is_some_and(|s| s.local().is_ipv4() == remote.is_ipv4());
        if self.sockets.get(own).is_some_and(fits) {
            return Some(own);
        }
        self.sockets.iter().position(fits)
    }

    fn send_datagram(&mut self, now: Instant, index: Option<usize>, remote: SocketAddr, transmit: Transmit) {
        let shared = self.shared();
        let Some((index, socket)) =
            index.and_then(|index| Some((index, self.sockets.get_mut(index)?.as_mut()?)))
        else {
            return self.fail(now, &transmit);
        };
        if !socket.push(remote, transmit) {
            return self.counters.datagrams_dropped.add(1);
        }
        if let Some(socket) = socket.start_writing() {
            self.spawn(datagram::write(shared, index, socket));
        }
    }

    /// Begins to open a connection; `None` when there may be no more or TLS is not set up.
    fn connect(
        &mut self,
        now: Instant,
        transport: Transport,
        remote: SocketAddr,
        listener: u16,
    ) -> Option<FlowId> {
        if self.is_full() {
            if self.log.take(now, "connections_max_outgoing") {
                tracing::warn!(%remote, "no connection opened: connections_max are open");
            }
            return None;
        }
        let local = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
        let id = next_flow_id();
        let flow = Flow { id, listener, transport, local, remote };
        let mut connection = Connection::new(now, flow, Stage::Connecting);
        if transport == Transport::Tls {
            connection.tls = Some(self.call(now, remote)?);
        }
        self.insert(connection);
        self.spawn(stream::connect(self.shared(), id, remote));
        Some(id)
    }

    fn call(&mut self, now: Instant, remote: SocketAddr) -> Option<Box<TlsSession>> {
        let why = match &self.tls {
            Some(setup) => match TlsSession::called(setup, self.role.tls_name(remote), remote.ip()) {
                Ok(session) => return Some(Box::new(session)),
                Err(error) => error.to_string(),
            },
            None => "this node has no certificate".to_owned(),
        };
        if self.log.take(now, "tls_outgoing") {
            tracing::warn!(%remote, "no connection opened: TLS: {why}");
        }
        None
    }

    /// Puts a message into a connection's queue and sees that it is written.
    pub(super) fn queue(&mut self, now: Instant, id: FlowId, transmit: Transmit) {
        let connection = self.connections.get_mut(&id);
        // Who sends nothing more cannot answer a request.
        let is_deaf = |c: &Connection| {
            matches!(c.stage, Stage::HalfClosed { .. }) && !transmit.bytes.starts_with(b"SIP/2.0 ")
        };
        let Some(connection) = connection.filter(|c| !c.is_ending() && !is_deaf(c)) else {
            return self.fail(now, &transmit);
        };
        connection.active = now;
        if is_final_response(&transmit.bytes) {
            connection.owed = connection.owed.saturating_sub(1);
        }
        connection.push(now, transmit);
        if connection.is_unread(now) {
            return self.close(now, id, Cause::Unread);
        }
        if let Stage::HalfClosed { until } = &mut connection.stage {
            *until = now + HALF_CLOSED;
            if connection.owed == 0 {
                return self.end(now, id, Cause::Peer);
            }
        }
        self.start_writing(id);
    }

    /// Starts the task that writes a connection's queue, unless it runs.
    pub(super) fn start_writing(&mut self, id: FlowId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(writer) = connection.writer.take() {
            self.spawn(stream::write(self.shared(), id, writer));
        }
    }

    /// Ends a connection after what is queued: its framing is lost or its peer has finished.
    pub(super) fn end(&mut self, now: Instant, id: FlowId, cause: Cause) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let peer_done = matches!(cause, Cause::Peer);
        if peer_done && connection.queue.is_empty() && connection.writer.is_some() {
            return self.close(now, id, cause);
        }
        connection.stage = Stage::Ending { until: now + LINGER, peer_done };
        let flow = connection.flow;
        // What was meant for a peer that is not whom it should be is not for its eyes.
        let unsent =
            if cause.failure().is_some() { std::mem::take(&mut connection.queue) } else { <_>::default() };
        connection.ending = Some(cause);
        self.forget_remote(&flow);
        for transmit in unsent {
            self.fail(now, &transmit);
        }
        self.start_writing(id);
    }

    /// Ends a connection now, counts and logs why, and tells the role.
    pub(super) fn close(&mut self, now: Instant, id: FlowId, cause: Cause) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        let flow = connection.flow;
        self.forget_remote(&flow);
        if let Some(source) = connection.source {
            self.sources.close(source);
        }
        let is_known = connection.is_known();
        if !matches!(cause, Cause::Broken(_))
            && let Some((writer, bytes)) = connection.goodbye()
        {
            self.spawn(stream::say_goodbye(writer, bytes));
        }
        drop(connection.canceller.cancel());
        drop(connection.reading.cancel());
        let cause = connection.ending.unwrap_or(cause);
        self.note_close(now, &flow, &cause, is_known);
        if matches!(cause, Cause::End) {
            return;
        }
        for transmit in &connection.queue {
            self.fail(now, transmit);
        }
        if is_known {
            self.role.handle_flow_closed(now, id);
        }
    }

    fn note_close(&mut self, now: Instant, flow: &Flow, cause: &Cause, is_known: bool) {
        let remote = flow.remote;
        let Some(counter) = cause.counter(&self.counters) else {
            return tracing::debug!(%remote, "connection closed: {cause}");
        };
        counter.add(1);
        if let Some(failure) = cause.failure() {
            if self.log.take(now, failure.rule()) {
                let what = if is_known { "connection closed" } else { "refused" };
                tracing::warn!(peer = %remote, transport = "tls", rule = failure.rule(), "{what}: {cause}");
            }
        } else if let Cause::Revoked(error) = cause {
            let rule = Failure::of(error).rule();
            tracing::warn!(peer = %remote, transport = "tls", rule, "connection closed: {cause}");
        } else {
            tracing::info!(%remote, "connection closed: {cause}");
        }
    }

    /// Closes idle and slow peers, and those that linger at their end.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + SWEEP_INTERVAL);
        let limits = self.limits;
        let overdue = |c: &Connection| match c.stage {
            Stage::Connecting => None,
            Stage::Handshaking { until } => (now >= until).then_some(Cause::HandshakeTimeout),
            Stage::Open if c.partial_since.is_some_and(|at| now >= at + limits.message_timeout) => {
                Some(Cause::Slow)
            }
            Stage::Open if now >= c.active + limits.idle_timeout => Some(Cause::Idle),
            Stage::Open => None,
            Stage::HalfClosed { until } | Stage::Ending { until, .. } => {
                (now >= until).then_some(Cause::Peer)
            }
        };
        let closing: Vec<_> =
            self.connections.iter().filter_map(|(&id, c)| Some((id, overdue(c)?))).collect();
        for (id, cause) in closing {
            self.close(now, id, cause);
        }
        for socket in &mut self.sockets {
            if socket.as_ref().is_some_and(|socket| socket.is_over(now)) {
                *socket = None;
            }
        }
    }

    /// Stops listening; connections go on.
    pub(super) fn stop_listening(&mut self) {
        self.stopping = true;
        self.gates.drain(..).flatten().for_each(|gate| gate.shut());
        self.kept.clear();
    }

    /// Closes everything without a word to the role.
    pub(super) fn close_all(&mut self, now: Instant) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.ending = Some(Cause::End);
            }
            self.close(now, id, Cause::End);
        }
    }
}

/// A response with a status of 200 or more.
fn is_final_response(bytes: &[u8]) -> bool {
    bytes.strip_prefix(b"SIP/2.0 ").and_then(<[u8]>::first).is_some_and(|digit| matches!(digit, b'2'..=b'6'))
}
