//! The state all tasks of a shard share: the role, its connections and UDP sockets.
//!
//! Tasks borrow it between two awaits and never across one.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use monoio::io::{CancelHandle, Canceller};
use monoio::net::tcp::TcpOwnedWriteHalf;

use super::counters::Counters;
use super::datagram::{self, Socket};
use super::role::Role;
use super::stream;
use crate::sip::flow::{Destination, Flow, FlowId, Transmit, Transport};

/// What a connection may have waiting to be written, in bytes; more means nobody reads.
const QUEUE_BYTES_MAX: usize = 512 * 1024;
/// How long a connection that is being given up may take to read our last message.
const LINGER: Duration = Duration::from_secs(1);
/// Time between two looks for idle and slow peers.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

pub(super) type Shared<R> = Rc<RefCell<Core<R>>>;

/// Limits of [`super::SignalConfig`] that connections need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections_max: usize,
    pub(super) idle_timeout: Duration,
    pub(super) message_timeout: Duration,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error("the peer closed it")]
    Peer,
    #[error("network error: {0}")]
    Broken(std::io::Error),
    #[error("it could not be opened: {0}")]
    Connect(std::io::Error),
    #[error("no message within the idle timeout")]
    Idle,
    #[error("a message was not complete in time")]
    Slow,
    #[error("the peer does not read")]
    Unread,
    #[error("the peer lost the framing")]
    Framing,
    #[error("the shard ends")]
    End,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    Open,
    /// Nothing more is taken in: the queue is written, then our side is shut down, then what the
    /// peer still sends is thrown away until it closes or `until` passes.
    Ending {
        until: Instant,
        peer_done: bool,
    },
}

pub(super) struct Connection {
    pub(super) flow: Flow,
    pub(super) stage: Stage,
    pub(super) queue: VecDeque<Transmit>,
    pub(super) queue_bytes: usize,
    /// `None` while connecting and while a task writes with it.
    pub(super) writer: Option<TcpOwnedWriteHalf>,
    canceller: Canceller,
    /// Last message or keep-alive, either way.
    pub(super) active: Instant,
    /// When the message began that is not complete; on a connection we accepted, when it was
    /// opened, until the first message or keep-alive is.
    pub(super) partial_since: Option<Instant>,
    /// Set when the end was our decision; logged and counted at the end.
    ending: Option<Cause>,
}

pub(super) struct Core<R> {
    this: Weak<RefCell<Self>>,
    pub(super) role: R,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) connections: HashMap<FlowId, Connection>,
    by_remote: HashMap<SocketAddr, FlowId>,
    /// By listener; `None` for listeners that are no UDP sockets.
    pub(super) sockets: Vec<Option<Socket>>,
    /// Cancels accepting and receiving at the end.
    pub(super) listening: Canceller,
    pub(super) stopping: bool,
    next_sweep: Option<Instant>,
    pub(super) log: LogBudget,
    tasks: Rc<Cell<usize>>,
}

/// Lines a second about peers that send what cannot be read; the rest is counted only.
const LOG_LINES_PER_S: u32 = 20;

/// Keeps a flood of unreadable messages from becoming a flood of log lines.
#[derive(Debug, Default)]
pub(super) struct LogBudget {
    until: Option<Instant>,
    left: u32,
}

impl LogBudget {
    /// True when a line may be written now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.until.is_none_or(|until| until <= now) {
            self.until = Some(now + Duration::from_secs(1));
            self.left = LOG_LINES_PER_S;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
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
        sockets: Vec<Option<Socket>>,
    ) -> Shared<R> {
        Rc::new_cyclic(|this| {
            RefCell::new(Self {
                this: this.clone(),
                role,
                limits,
                counters,
                connections: HashMap::new(),
                by_remote: HashMap::new(),
                sockets,
                listening: Canceller::new(),
                stopping: false,
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

    /// Takes a connection up; `writer` is `None` while it is being opened.
    pub(super) fn insert(&mut self, now: Instant, flow: Flow, writer: Option<TcpOwnedWriteHalf>) {
        let writer_is_new = writer.is_some();
        let stage = if writer_is_new { Stage::Open } else { Stage::Connecting };
        let connection = Connection {
            flow,
            stage,
            queue: VecDeque::new(),
            queue_bytes: 0,
            writer,
            canceller: Canceller::new(),
            active: now,
            // A peer that connects and says nothing is as slow as one that stops in the middle.
            partial_since: writer_is_new.then_some(now),
            ending: None,
        };
        self.connections.insert(flow.id, connection);
        self.by_remote.insert(flow.remote, flow.id);
    }

    /// The handle that ends reads and writes of a connection; `None` when it is gone.
    pub(super) fn cancel_handle(&self, id: FlowId) -> Option<CancelHandle> {
        self.connections.get(&id).map(|connection| connection.canceller.handle())
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
            Destination::Flow(Flow { transport: Transport::Udp, id, remote, .. }) => {
                let socket = self.sockets.iter().position(|s| s.as_ref().is_some_and(|s| s.flow_id() == id));
                return self.send_datagram(now, socket, remote, transmit);
            }
            Destination::Address { transport: Transport::Udp, remote, listener } => {
                let socket = self.socket_for(listener, remote);
                return self.send_datagram(now, socket, remote, transmit);
            }
            Destination::Flow(flow) => Some(flow.id),
            Destination::Address { transport: Transport::Tcp, remote, listener } => {
                self.by_remote.get(&remote).copied().or_else(|| self.connect(now, remote, listener))
            }
            Destination::Address { transport: Transport::Tls, .. } => None,
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

    /// Begins to open a connection; `None` when there may be no more.
    fn connect(&mut self, now: Instant, remote: SocketAddr, listener: u16) -> Option<FlowId> {
        if self.is_full() {
            tracing::warn!(%remote, "no connection opened: connections_max are open");
            return None;
        }
        let local = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
        let id = next_flow_id();
        self.insert(now, Flow { id, listener, transport: Transport::Tcp, local, remote }, None);
        self.spawn(stream::connect(self.shared(), id, remote));
        Some(id)
    }

    /// Puts a message into a connection's queue and sees that it is written.
    pub(super) fn queue(&mut self, now: Instant, id: FlowId, transmit: Transmit) {
        let connection = self.connections.get_mut(&id);
        let Some(connection) = connection.filter(|c| !matches!(c.stage, Stage::Ending { .. })) else {
            return self.fail(now, &transmit);
        };
        connection.active = now;
        connection.queue_bytes += transmit.bytes.len();
        connection.queue.push_back(transmit);
        if connection.queue_bytes > QUEUE_BYTES_MAX {
            return self.close(now, id, Cause::Unread);
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
        connection.ending = Some(cause);
        let remote = connection.flow.remote;
        if self.by_remote.get(&remote) == Some(&id) {
            self.by_remote.remove(&remote);
        }
        self.start_writing(id);
    }

    /// Ends a connection now, counts and logs why, and tells the role.
    pub(super) fn close(&mut self, now: Instant, id: FlowId, cause: Cause) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if self.by_remote.get(&connection.flow.remote) == Some(&id) {
            self.by_remote.remove(&connection.flow.remote);
        }
        drop(connection.canceller.cancel());
        let cause = connection.ending.unwrap_or(cause);
        self.note_close(&connection.flow, &cause);
        if matches!(cause, Cause::End) {
            return;
        }
        for transmit in &connection.queue {
            self.fail(now, transmit);
        }
        if connection.stage != Stage::Connecting {
            self.role.handle_flow_closed(now, id);
        }
    }

    fn note_close(&self, flow: &Flow, cause: &Cause) {
        let remote = flow.remote;
        let counter = match cause {
            Cause::Peer | Cause::End => return tracing::debug!(%remote, "connection closed: {cause}"),
            Cause::Broken(_) => &self.counters.broken_closed,
            Cause::Connect(_) => &self.counters.connect_failed,
            Cause::Idle => &self.counters.idle_closed,
            Cause::Slow => &self.counters.slow_closed,
            Cause::Unread => &self.counters.unread_closed,
            Cause::Framing => &self.counters.frame_errors,
        };
        counter.add(1);
        tracing::info!(%remote, "connection closed: {cause}");
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
            Stage::Open if c.partial_since.is_some_and(|at| now >= at + limits.message_timeout) => {
                Some(Cause::Slow)
            }
            Stage::Open if now >= c.active + limits.idle_timeout => Some(Cause::Idle),
            Stage::Open => None,
            Stage::Ending { until, .. } => (now >= until).then_some(Cause::Peer),
        };
        let closing: Vec<_> =
            self.connections.iter().filter_map(|(&id, c)| Some((id, overdue(c)?))).collect();
        for (id, cause) in closing {
            self.close(now, id, cause);
        }
    }

    /// Stops listening; connections go on.
    pub(super) fn stop_listening(&mut self) {
        self.stopping = true;
        self.listening = std::mem::take(&mut self.listening).cancel();
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
