//! Sockets that pass from one program to the next in the same process.
//!
//! Listeners pass on as they are: who connects meanwhile waits in their backlog. A plain TCP connection
//! passes on between two messages, once nothing is owed to its peer; what the peer has sent since waits
//! in the kernel. A TLS connection cannot: its keys are the library's. It is closed with a word when
//! nothing is owed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use monoio::net::TcpStream;

use super::connection::{Cause, Connection, Stage};
use super::core::{Core, next_flow_id};
use super::role::Role;
use super::stream;
use crate::sip::flow::{Flow, FlowId, Transport};
use crate::uring::inherit;

/// Whom the kernel had let in when the gates were shut is taken up within this.
const SETTLE_MIN: Duration = Duration::from_millis(10);
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What one loop gives away and another takes up.
#[derive(Debug, Default)]
pub struct Passed {
    /// Listeners by their index.
    pub listeners: Vec<(u16, OwnedFd)>,
    /// Connections that were accepted.
    pub connections: Vec<PassedConnection>,
}

/// A plain TCP connection.
#[derive(Debug)]
pub struct PassedConnection {
    /// Index of the listener that accepted it.
    pub listener: u16,
    /// Our end, as it was called.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// The socket.
    pub socket: OwnedFd,
}

/// Sockets are being passed on.
pub(super) struct Passing {
    began: Instant,
    until: Instant,
    /// When the role was told that its time is up.
    gave_up: Option<Instant>,
    passed: Sender<Passed>,
    connections: Vec<PassedConnection>,
}

impl<R: Role + 'static> Core<R> {
    pub(super) fn begin_to_pass(&mut self, now: Instant, within: Duration, passed: Sender<Passed>) {
        for (gate, socket) in self.gates.iter().zip(&self.sockets) {
            // Answers to what we asked come by a UDP socket too: that one is shut last.
            if let (Some(gate), None) = (gate, socket) {
                gate.shut();
            }
        }
        let connections = Vec::new();
        self.passing = Some(Passing { began: now, until: now + within, gave_up: None, passed, connections });
    }

    /// Nobody reads the connection any more.
    pub(super) fn park(&mut self, id: FlowId, reader: monoio::net::tcp::TcpOwnedReadHalf) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.parked = Some(reader);
        }
    }

    /// Goes on passing sockets on, if that was ordered. True: all are, and the loop ends.
    pub(super) fn pass_on(&mut self, now: Instant) -> bool {
        let Some(Passing { began, until, gave_up, .. }) = &self.passing else { return false };
        let (settles_at, gave_up) = (*began + SETTLE_MIN, *gave_up);
        if gave_up.is_none() && *until <= now {
            self.role.give_up(now);
            self.flush(now);
            if let Some(passing) = &mut self.passing {
                passing.gave_up = Some(now);
            }
        }
        let opened: HashSet<SocketAddr> =
            self.connections.values().filter(|c| c.source.is_none()).map(|c| c.flow.local).collect();
        // A connection from ourselves ends with our other end of it.
        let is_ours = |connection: &Connection| opened.contains(&connection.flow.remote);
        let of_others = self.connections.iter().filter(|(_, connection)| !is_ours(connection));
        let ids: Vec<_> = of_others.map(|(id, _)| *id).collect();
        let left = ids.into_iter().filter(|id| !self.pass_connection(now, *id)).count();
        let is_late = gave_up.is_some_and(|at| at + LAST_WORDS <= now);
        let is_done = left == 0 && self.role.is_settled() && settles_at <= now;
        if !is_done && !is_late {
            return false;
        }
        self.finish_passing();
        true
    }

    /// Passes a connection on, or closes it; false: it is not that far.
    fn pass_connection(&mut self, now: Instant, id: FlowId) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return true };
        // Those we opened ourselves, and those that end, need nothing.
        if connection.source.is_none() || !matches!(connection.stage, Stage::Open | Stage::HalfClosed { .. })
        {
            return true;
        }
        if connection.tls.is_some() {
            if connection.is_quiet() {
                self.close(now, id, Cause::End);
            }
            return !self.connections.contains_key(&id);
        }
        if connection.parked.is_none() {
            let reading = std::mem::take(&mut connection.reading);
            connection.reading = reading.cancel();
            return false;
        }
        if !connection.is_quiet() {
            return false;
        }
        let Some(mut connection) = self.connections.remove(&id) else { return true };
        self.forget_remote(&connection.flow);
        let (reader, writer) = (connection.parked.take(), connection.writer.take());
        if let (Some(reader), Some(writer)) = (reader, writer)
            && let Ok(stream) = reader.reunite(writer)
            && let Some(passing) = &mut self.passing
        {
            let Flow { listener, local, remote, .. } = connection.flow;
            let socket = inherit::owned(stream);
            passing.connections.push(PassedConnection { listener, local, remote, socket });
        }
        true
    }

    fn finish_passing(&mut self) {
        let Some(Passing { passed, connections, .. }) = self.passing.take() else { return };
        let kept = (0_u16..).zip(self.kept.drain(..));
        let listeners = kept.filter_map(|(index, socket)| Some((index, socket?))).collect();
        // Whoever ordered it and left wants the node to end.
        let _ = passed.send(Passed { listeners, connections });
    }

    /// Takes a connection up that another loop has passed on.
    pub(super) fn take_up(&mut self, now: Instant, passed: PassedConnection) {
        let PassedConnection { listener, local, remote, socket } = passed;
        let stream = std::net::TcpStream::from(socket);
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%remote, %error, "a connection could not be taken up"),
        };
        let flow = Flow { id: next_flow_id(), listener, transport: Transport::Tcp, local, remote };
        let mut connection = Connection::new(now, flow, Stage::Open);
        connection.source = Some(self.sources.keep(now, remote.ip()));
        self.insert(connection);
        stream::open(self, now, flow, stream);
        if let Some(connection) = self.connections.get_mut(&flow.id) {
            // It has proved long ago that it speaks.
            connection.partial_since = None;
        }
    }
}
