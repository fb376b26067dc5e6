//! Tasks of a UDP socket: receive and send.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use monoio::net::udp::UdpSocket;

use super::core::{Shared, flush};
use super::role::Role;
use crate::base::clock;
use crate::sip::flow::{Flow, FlowId, Transmit, Transport};

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

/// Receives until the shard stops. One buffer serves all datagrams.
pub(super) async fn receive<R: Role + 'static>(shared: Shared<R>, index: u16) {
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
        let cancel = shared.borrow().listening.handle();
        let (result, returned) = socket.cancelable_recv_from(buffer, cancel).await;
        buffer = returned;
        let now = clock::now();
        {
            let core = &mut *shared.borrow_mut();
            if core.stopping {
                return;
            }
            match result {
                Ok((len, remote)) => {
                    core.counters.bytes_in.add(len);
                    let datagram = buffer.get(..len).unwrap_or(&[]);
                    if is_keep_alive(datagram) {
                        core.counters.keep_alives.add(1);
                    } else {
                        let flow =
                            Flow { id: flow_id, listener: index, transport: Transport::Udp, local, remote };
                        core.read_message(now, flow, Bytes::copy_from_slice(datagram));
                    }
                }
                // An ICMP error of an earlier datagram; the socket goes on.
                Err(error) => tracing::debug!(%local, "receiving a datagram: {error}"),
            }
        }
        flush(&shared, now);
    }
}

/// Blank lines or nulls that only hold a NAT binding open.
fn is_keep_alive(datagram: &[u8]) -> bool {
    datagram.iter().all(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

/// Sends until the queue is empty.
pub(super) async fn write<R: Role + 'static>(shared: Shared<R>, index: usize, socket: Rc<UdpSocket>) {
    loop {
        let next = shared.borrow_mut().sockets.get_mut(index).and_then(|s| s.as_mut()?.pop());
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
