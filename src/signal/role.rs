//! What a signalling shard is for: router, UM service or worker, seen from below.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sip::flow::{Flow, FlowId, PeerNames, Transmit};
use crate::sip::message::Message;

/// The sans-IO part that lives on a signalling shard.
///
/// After every call that takes `now`, `poll_transmit` is drained.
pub trait Role {
    /// May this address speak to us at all? Asked when a connection is accepted, which is closed
    /// without a byte if not, and for each datagram that is no sound response, which is dropped.
    /// Connections we open are not asked about.
    fn admits(&mut self, _now: Instant, _listener: u16, _remote: SocketAddr) -> bool {
        true
    }

    /// The name, a DNS name or an IP address, that the certificate of the TLS server at `remote`
    /// must have. `None`, or what is no name: the address itself.
    fn tls_name(&self, _remote: SocketAddr) -> Option<String> {
        None
    }

    /// A TLS connection finished its handshake; called before its first message. `peer` is whom
    /// the certificate names, `None` where peers need none.
    fn handle_secured(&mut self, _now: Instant, _flow: Flow, _peer: Option<Arc<PeerNames>>) {}

    /// A message with sound syntax arrived.
    fn handle_message(&mut self, now: Instant, flow: Flow, message: Message);

    /// A connection is gone; its id never comes back. Messages that still waited for it are
    /// reported one by one to [`Self::handle_send_failed`] before.
    fn handle_flow_closed(&mut self, now: Instant, flow: FlowId);

    /// A message could not be sent: its connection was or is gone, could not be opened in time,
    /// or the transport does not exist here. UDP reports only what the kernel refuses at once.
    fn handle_send_failed(&mut self, now: Instant, transmit: &Transmit);

    /// [`Self::poll_timeout`] has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// The next message to send.
    fn poll_transmit(&mut self) -> Option<Transmit>;

    /// When to call [`Self::handle_timeout`]; `None`: no timer runs.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Drains the queues from other threads. Returns how long until it wants to be called again;
    /// kept between 1 and 50 ms.
    fn pump(&mut self, now: Instant) -> Duration;

    /// For so many thousandths of the last 200 ms the loop's thread ran or waited for a processor.
    fn handle_busy(&mut self, _permille: u16) {}

    /// True when nothing is under way that another program could not take up from the sockets alone.
    fn is_settled(&self) -> bool {
        true
    }

    /// What is not settled by now will not be: end it with a word.
    fn give_up(&mut self, _now: Instant) {}

    /// True when the shard may end: what is queued is still sent, then [`super::run()`] returns.
    fn is_finished(&self) -> bool;
}
