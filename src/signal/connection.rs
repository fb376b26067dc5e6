//! One connection, as the core keeps it.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use monoio::io::Canceller;
use monoio::net::tcp::TcpOwnedWriteHalf;

use super::counters::{Counter, Counters};
use super::sources::SourceKey;
use super::tls::{Failure, TlsSession};
use crate::base::bucket::TokenBucket;
use crate::sip::flow::{Flow, Transmit};

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
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("TLS: the handshake was not complete in time")]
    HandshakeTimeout,
    #[error("the new TLS setup does not take the peer: {0}")]
    Revoked(rustls::Error),
    #[error("the shard ends")]
    End,
}

impl Cause {
    /// What counts it; `None` for an end that is nobody's fault.
    pub(super) fn counter<'a>(&self, counters: &'a Counters) -> Option<&'a Counter> {
        Some(match self {
            Self::Peer | Self::End => return None,
            Self::Broken(_) => &counters.broken_closed,
            Self::Connect(_) => &counters.connect_failed,
            Self::Idle => &counters.idle_closed,
            Self::Slow => &counters.slow_closed,
            Self::Unread => &counters.unread_closed,
            Self::Framing => &counters.frame_errors,
            Self::Revoked(_) => &counters.revoked_closed,
            Self::Tls(_) | Self::HandshakeTimeout => return self.failure().map(|f| f.counter(counters)),
        })
    }

    /// What went wrong with TLS, if that did.
    pub(super) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Tls(error) => Some(Failure::of(error)),
            Self::HandshakeTimeout => Some(Failure::Timeout),
            Self::Peer
            | Self::Broken(_)
            | Self::Connect(_)
            | Self::Idle
            | Self::Slow
            | Self::Unread
            | Self::Framing
            | Self::Revoked(_)
            | Self::End => None,
        }
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    /// TLS is agreed on; what is to be sent waits.
    Handshaking {
        until: Instant,
    },
    Open,
    /// The peer sends nothing more but has requests without a final response. Each message sent
    /// moves `until`.
    HalfClosed {
        until: Instant,
    },
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
    pub(super) tls: Option<Box<TlsSession>>,
    pub(super) queue: VecDeque<Transmit>,
    /// Memory that `queue` takes: short messages, pongs above all, are more entry than text.
    pub(super) queue_bytes: usize,
    /// `None` while connecting and while a task writes with it.
    pub(super) writer: Option<TcpOwnedWriteHalf>,
    pub(super) canceller: Canceller,
    /// Last message or keep-alive, either way.
    pub(super) active: Instant,
    /// When the message began that is not complete; on a connection we accepted, when it was
    /// opened, until the first message or keep-alive is.
    pub(super) partial_since: Option<Instant>,
    /// Requests that have no final response yet.
    pub(super) owed: u32,
    /// Messages the peer may bring.
    pub(super) pace: TokenBucket,
    /// Where it was counted; `None` for one we opened.
    pub(super) source: Option<SourceKey>,
    /// Set when the end was our decision; logged and counted at the end.
    pub(super) ending: Option<Cause>,
}

impl Connection {
    pub(super) fn new(now: Instant, flow: Flow, stage: Stage) -> Self {
        Self {
            flow,
            stage,
            tls: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            writer: None,
            canceller: Canceller::new(),
            active: now,
            partial_since: None,
            owed: 0,
            pace: TokenBucket::default(),
            source: None,
            ending: None,
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending { .. })
    }

    /// True when the role has heard of it: it was opened and, with TLS, secured.
    pub(super) fn is_known(&self) -> bool {
        self.stage != Stage::Connecting && self.tls.as_ref().is_none_or(|tls| tls.is_secured())
    }

    /// The next bytes for the socket, with the message they are. `None`: nothing for now.
    pub(super) fn next_output(&mut self) -> Option<(Bytes, Option<Transmit>)> {
        let Some(tls) = &mut self.tls else {
            let transmit = self.pop()?;
            return Some((transmit.bytes.clone(), Some(transmit)));
        };
        if tls.is_secured()
            && let Some(transmit) = pop(&mut self.queue, &mut self.queue_bytes)
        {
            // What the library has to say goes before it in the same segment.
            return Some((tls.seal(&transmit.bytes).into(), Some(transmit)));
        }
        if tls.has_output() {
            return Some((tls.take_output().into(), None));
        }
        let says_goodbye = matches!(self.stage, Stage::Ending { .. }) && tls.say_goodbye();
        says_goodbye.then(|| (tls.take_output().into(), None))
    }

    /// Puts a message behind those that wait.
    pub(super) fn push(&mut self, transmit: Transmit) {
        self.queue_bytes += memory_of(&transmit);
        self.queue.push_back(transmit);
    }

    fn pop(&mut self) -> Option<Transmit> {
        pop(&mut self.queue, &mut self.queue_bytes)
    }

    /// The last bytes for a peer that is closed without waiting for it.
    pub(super) fn goodbye(&mut self) -> Option<(TcpOwnedWriteHalf, Vec<u8>)> {
        let tls = self.tls.as_mut().filter(|tls| tls.is_secured())?;
        let writer = self.writer.take()?;
        tls.say_goodbye().then(|| (writer, tls.take_output()))
    }
}

fn pop(queue: &mut VecDeque<Transmit>, bytes: &mut usize) -> Option<Transmit> {
    let transmit = queue.pop_front()?;
    *bytes -= memory_of(&transmit);
    Some(transmit)
}

fn memory_of(transmit: &Transmit) -> usize {
    size_of::<Transmit>() + transmit.bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::flow::{Destination, FlowId, Transport};

    /// Goal: a peer that pings and never reads takes no more memory than the queue's bound says: a pong
    /// is two bytes, its entry many more. Method: 1,000 pongs and 1,000 messages; then all are taken.
    #[test]
    fn what_waits_counts_with_all_the_memory_it_takes() {
        #[expect(clippy::disallowed_methods, reason = "any start will do")]
        let now = Instant::now();
        let address = ([127, 0, 0, 1], 5060).into();
        let flow =
            Flow { id: FlowId(1), listener: 0, transport: Transport::Tcp, local: address, remote: address };
        let mut connection = Connection::new(now, flow, Stage::Open);
        for bytes in [Bytes::from_static(b"\r\n"), Bytes::from(vec![b'x'; 500])] {
            let before = connection.queue_bytes;
            for _ in 0..1000 {
                connection.push(Transmit { destination: Destination::Flow(flow), bytes: bytes.clone() });
            }
            let entry = size_of::<Transmit>() + bytes.len();
            assert_eq!(connection.queue_bytes - before, 1000 * entry);
        }
        while connection.next_output().is_some() {}
        assert_eq!((connection.queue_bytes, connection.queue.len()), (0, 0));
    }
}
