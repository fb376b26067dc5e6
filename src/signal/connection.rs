//! One connection, as the core keeps it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use monoio::io::Canceller;
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};

use super::counters::{Counter, Counters};
use super::sources::SourceKey;
use super::tls::{Failure, TlsSession};
use crate::base::bucket::TokenBucket;
use crate::sip::flow::{Flow, Transmit};

/// What one write carries of the messages that wait: a TLS record's worth.
const WRITE_BYTES_MAX: usize = 16 * 1024;
/// What may wait for a peer that takes nothing, in bytes of memory.
const UNREAD_BYTES_MAX: usize = 512 * 1024;
/// Who has taken nothing for this long does not read.
const UNREAD_MAX: Duration = Duration::from_secs(2);
/// What may wait for any peer: a gateway that is busy for a moment may come to this.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

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
    /// When the peer last took something, or something was first to be taken.
    pub(super) taken_at: Instant,
    /// `None` while connecting and while a task writes with it.
    pub(super) writer: Option<TcpOwnedWriteHalf>,
    /// Ends the write in flight.
    pub(super) canceller: Canceller,
    /// Ends the read in flight.
    pub(super) reading: Canceller,
    /// The reading end, while nobody reads: the connection is to be passed on.
    pub(super) parked: Option<TcpOwnedReadHalf>,
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
            taken_at: now,
            writer: None,
            canceller: Canceller::new(),
            reading: Canceller::new(),
            parked: None,
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

    /// True when nothing is on its way to the peer, nor owed to it.
    pub(super) fn is_quiet(&self) -> bool {
        self.stage == Stage::Open && self.owed == 0 && self.queue.is_empty() && self.writer.is_some()
    }

    /// True when the role has heard of it: it was opened and, with TLS, secured.
    pub(super) fn is_known(&self) -> bool {
        self.stage != Stage::Connecting && self.tls.as_ref().is_none_or(|tls| tls.is_secured())
    }

    /// The next bytes for the socket, with the messages they are. `None`: nothing for now.
    pub(super) fn next_output(&mut self) -> Option<(Bytes, Vec<Transmit>)> {
        let Some(tls) = &mut self.tls else {
            return pop_some(&mut self.queue, &mut self.queue_bytes);
        };
        if tls.is_secured()
            && let Some((bytes, transmits)) = pop_some(&mut self.queue, &mut self.queue_bytes)
        {
            // What the library has to say goes before it in the same segment.
            return Some((tls.seal(&bytes).into(), transmits));
        }
        if tls.has_output() {
            return Some((tls.take_output().into(), Vec::new()));
        }
        let says_goodbye = matches!(self.stage, Stage::Ending { .. }) && tls.say_goodbye();
        says_goodbye.then(|| (tls.take_output().into(), Vec::new()))
    }

    /// Puts a message behind those that wait.
    pub(super) fn push(&mut self, now: Instant, transmit: Transmit) {
        if self.queue.is_empty() {
            self.taken_at = now;
        }
        self.queue_bytes += memory_of(&transmit);
        self.queue.push_back(transmit);
    }

    /// True when more waits than a peer may let wait: much, and it takes nothing, or too much, even if
    /// it is only slow.
    pub(super) fn is_unread(&self, now: Instant) -> bool {
        let takes_nothing = now > self.taken_at + UNREAD_MAX;
        self.queue_bytes > QUEUE_BYTES_MAX || (takes_nothing && self.queue_bytes > UNREAD_BYTES_MAX)
    }

    /// The last bytes for a peer that is closed without waiting for it.
    pub(super) fn goodbye(&mut self) -> Option<(TcpOwnedWriteHalf, Vec<u8>)> {
        let tls = self.tls.as_mut().filter(|tls| tls.is_secured())?;
        let writer = self.writer.take()?;
        tls.say_goodbye().then(|| (writer, tls.take_output()))
    }
}

/// Takes what one write may carry. A loop that is behind turns seldom: were each message a write, and a
/// turn, of its own, its answers would pile up.
fn pop_some(queue: &mut VecDeque<Transmit>, bytes: &mut usize) -> Option<(Bytes, Vec<Transmit>)> {
    let mut len = 0;
    let mut transmits = Vec::new();
    while let Some(transmit) =
        queue.pop_front_if(|next| transmits.is_empty() || len + next.bytes.len() <= WRITE_BYTES_MAX)
    {
        *bytes -= memory_of(&transmit);
        len += transmit.bytes.len();
        transmits.push(transmit);
    }
    let joined = match transmits.as_slice() {
        [] => return None,
        [transmit] => transmit.bytes.clone(),
        several => several.iter().map(|transmit| &*transmit.bytes).collect::<Vec<_>>().concat().into(),
    };
    Some((joined, transmits))
}

fn memory_of(transmit: &Transmit) -> usize {
    size_of::<Transmit>() + transmit.bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::flow::{Destination, FlowId, Transport};

    fn flow() -> Flow {
        let address = ([127, 0, 0, 1], 5060).into();
        Flow { id: FlowId(1), listener: 0, transport: Transport::Tcp, local: address, remote: address }
    }

    fn connection() -> (Instant, Connection) {
        let now = crate::base::clock::now();
        (now, Connection::new(now, flow(), Stage::Open))
    }

    /// Goal: a peer that pings and never reads takes no more memory than the queue's bound says: a pong
    /// is two bytes, its entry many more. Method: 1,000 pongs and 1,000 messages; then all are taken.
    #[test]
    fn what_waits_counts_with_all_the_memory_it_takes() {
        let (now, mut connection) = connection();
        let flow = flow();
        for bytes in [Bytes::from_static(b"\r\n"), Bytes::from(vec![b'x'; 500])] {
            let before = connection.queue_bytes;
            for _ in 0..1000 {
                connection.push(now, Transmit { destination: Destination::Flow(flow), bytes: bytes.clone() });
            }
            let entry = size_of::<Transmit>() + bytes.len();
            assert_eq!(connection.queue_bytes - before, 1000 * entry);
        }
        while connection.next_output().is_some() {}
        assert_eq!((connection.queue_bytes, connection.queue.len()), (0, 0));
    }

    /// Goal: what waits leaves in few writes, in order, none larger than a TLS record; a message that is
    /// larger by itself leaves whole. Method: a hundred of 500 bytes, then one of 20,000.
    #[test]
    fn what_waits_leaves_in_few_writes() {
        let (now, mut connection) = connection();
        let transmit =
            |bytes: Vec<u8>| Transmit { destination: Destination::Flow(flow()), bytes: bytes.into() };
        (0..100).for_each(|number| connection.push(now, transmit(vec![number; 500])));
        connection.push(now, transmit(vec![200; 20_000]));
        let writes: Vec<_> = std::iter::from_fn(|| connection.next_output()).collect();
        let sizes: Vec<_> = writes.iter().map(|(bytes, transmits)| (bytes.len(), transmits.len())).collect();
        assert_eq!(sizes, [(16_000, 32), (16_000, 32), (16_000, 32), (2000, 4), (20_000, 1)]);
        let all: Vec<u8> = writes.iter().flat_map(|(bytes, _)| bytes.to_vec()).collect();
        assert!(all.is_sorted(), "in the order they were sent");
    }

    /// Goal: a peer that is slow for a moment keeps its connection, one that reads nothing does not, nor
    /// one that lets ever more wait. Method: 600 KiB, taken in part now and then; 600 KiB untouched for
    /// two seconds; 4 MiB.
    #[test]
    fn a_slow_peer_is_not_one_that_does_not_read() {
        let (start, mut connection) = connection();
        let kib = |count: usize| Transmit {
            destination: Destination::Flow(flow()),
            bytes: vec![0; count * 1024].into(),
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        connection.push(start, kib(600));
        assert!(!connection.is_unread(at(2)));
        assert!(connection.is_unread(at(3)));
        connection.taken_at = at(3);
        assert!(!connection.is_unread(at(5)));
        connection.push(at(5), kib(3500));
        assert!(connection.is_unread(at(5)));
    }
}
