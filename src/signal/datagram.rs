//! Tasks of a UDP socket: receive and send.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use monoio::net::udp::UdpSocket;

use super::core::{Core, Shared, flush};
use super::listen::Gate;
use super::role::Role;
use crate::base::clock;
use crate::sip::flow::{Flow, FlowId, Transmit, Transport};
use crate::sip::message::Message;

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// What a socket may have waiting to be sent, in bytes; more is dropped, as UDP does.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One UDP listener.
pub(super) struct Socket {
    socket: Rc<UdpSocket>,
    flow_id: FlowId,
    local: SocketAddr,
    queue: VecDeque<(SocketAddr, Transmit)>,
    queue_bytes: usize,
    writing: bool,
    /// Set when nobody listens here any more: when it goes.
    until: Option<Instant>,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket, flow_id: FlowId, local: SocketAddr) -> Self {
        Self {
            socket: Rc::new(socket),
            flow_id,
            local,
            queue: VecDeque::new(),
            queue_bytes: 0,
            writing: false,
            until: None,
        }
    }

    pub(super) fn flow_id(&self) -> FlowId {
        self.flow_id
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(super) fn is_flushed(&self) -> bool {
        !self.writing
    }

    /// Keeps the socket for sending only, until then.
    pub(super) fn retire(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// True when it only sends.
    pub(super) fn is_retired(&self) -> bool {
        self.until.is_some()
    }

    /// True when a retired socket's time has come.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Queues a datagram; false when there is no room.
    pub(super) fn push(&mut self, remote: SocketAddr, transmit: Transmit) -> bool {
        if self.queue_bytes + transmit.bytes.len() > QUEUE_BYTES_MAX {
            return false;
        }
        self.queue_bytes += transmit.bytes.len();
        self.queue.push_back((remote, transmit));
        true
    }

    /// The socket to write with, unless a task does already.
    pub(super) fn start_writing(&mut self) -> Option<Rc<UdpSocket>> {
        (!std::mem::replace(&mut self.writing, true)).then(|| Rc::clone(&self.socket))
    }

    fn pop(&mut self) -> Option<(SocketAddr, Transmit)> {
        let next = self.queue.pop_front();
        match &next {
            Some((_, transmit)) => self.queue_bytes -= transmit.bytes.len(),
            None => self.writing = false,
        }
        next
    }
}

/// Receives until its gate is shut. One buffer serves all datagrams.
pub(super) async fn receive<R: Role + 'static>(shared: Shared<R>, index: u16, gate: Rc<Gate>) {
    let Some((socket, flow_id, local)) = shared
        .borrow()
        .sockets
        .get(usize::from(index))
        .and_then(|socket| socket.as_ref())
        .map(|socket| (Rc::clone(&socket.socket), socket.flow_id, socket.local))
    else {
        return;
    };
    let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
    loop {
        let (result, returned) = socket.cancelable_recv_from(buffer, gate.handle()).await;
        buffer = returned;
        let now = clock::now();
        {
            let core = &mut *shared.borrow_mut();
            match result {
                Ok((len, remote)) => {
                    core.counters.bytes_in.add(len);
                    let flow =
                        Flow { id: flow_id, listener: index, transport: Transport::Udp, local, remote };
                    core.read_datagram(now, flow, buffer.get(..len).unwrap_or(&[]));
                }
                Err(_) if !gate.is_open() => return,
                // An ICMP error of an earlier datagram; the socket goes on.
                Err(error) => tracing::debug!(%local, "receiving a datagram: {error}"),
            }
        }
        flush(&shared, now);
        if !gate.is_open() {
            return;
        }
    }
}

impl<R: Role + 'static> Core<R> {
    fn read_datagram(&mut self, now: Instant, flow: Flow, datagram: &[u8]) {
        if is_keep_alive(datagram) {
            return self.counters.keep_alives.add(1);
        }
        let admits = |core: &mut Self| core.role.admits(now, flow.listener, flow.remote);
        // A response answers what we asked; its transaction knows it, or drops it.
        let is_response = datagram.starts_with(b"SIP/2.0 ");
        if !is_response && !admits(self) {
            return self.drop_unknown(now, flow.remote, flow.transport);
        }
        let parsed = Message::parse(Bytes::copy_from_slice(datagram));
        if is_response && parsed.is_err() && !admits(self) {
            return self.drop_unknown(now, flow.remote, flow.transport);
        }
        self.take_message(now, flow, parsed);
    }
}

/// Blank lines or nulls that only hold a NAT binding open.
fn is_keep_alive(datagram: &[u8]) -> bool {
    datagram.iter().all(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

/// Sends until the queue is empty.
pub(super) async fn write<R: Role + 'static>(shared: Shared<R>, index: usize, socket: Rc<UdpSocket>) {
    loop {
        let pop = |own: &mut Socket| Rc::ptr_eq(&own.socket, &socket).then(|| own.pop()).flatten();
        let next = shared.borrow_mut().sockets.get_mut(index).and_then(|own| pop(own.as_mut()?));
        let Some((remote, transmit)) = next else { return };
        let (result, _) = socket.send_to(transmit.bytes.clone(), remote).await;
        let now = clock::now();
        {
            let core = &mut *shared.borrow_mut();
            match result {
                Ok(len) => {
                    core.counters.bytes_out.add(len);
                    core.counters.messages_out.add(1);
                }
                Err(error) => {
                    tracing::info!(%remote, "datagram not sent: {error}");
                    core.fail(now, &transmit);
                }
            }
        }
        flush(&shared, now);
    }
}
