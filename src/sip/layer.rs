//! The transaction layer of one signalling shard (RFC 3261 §17, RFC 6026), sans-IO.
//!
//! Messages and time go in; bytes to send and [`TuEvent`]s for the transaction user come out.
//! After every input drain [`Layer::poll_transmit`] and [`Layer::poll_event`].
//!
//! The layer does by itself: matching (branch, with RFC 2543 as a fallback), retransmission and
//! its absorption, 100 after 200 ms, ACK of a refusal, 200 or 481 to CANCEL, 482 to a merged
//! request, resending of a 2xx until its ACK, `received` and `rport`. What it has no room for it
//! hands up without a transaction, to be refused. Every transaction dies by a timer, so a user that forgets one leaks nothing.
//!
//! Not done, on purpose: `maddr` in a Via is ignored, since a peer could aim our responses at a
//! third party with it (RFC 3261 §18.2.2 wants it for multicast); CANCEL ends nothing but INVITE.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::flow::{Destination, Flow, FlowId, Transmit};
use super::message::{Message, Name, Request, Response};
use super::transaction::Timers;
use client::Client;
use key::{Identity, Key};
use server::Server;
use token::Tokens;

mod client;
mod key;
mod server;
mod token;

/// Names a server transaction, for the life of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u64);

impl ServerId {
    /// Of a process that is gone; none here has it.
    pub const GONE: Self = Self(u64::MAX);
}

/// Names a client transaction, for the life of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// What the layer is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Timer values.
    pub timers: Timers,
    /// Goes out as Server in responses and User-Agent in requests; empty: neither.
    pub server: String,
    /// Most server transactions at once; one more request is [`TuEvent::NoRoom`]. Requests inside a
    /// dialog may use as many again, so that calls can end while new ones are refused.
    pub server_transactions_max: usize,
    /// Most bytes server transactions keep of their requests and responses, about; beyond, the same.
    /// A few hundred bytes a request are usual, so only an attack gets here.
    pub server_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            timers: Timers::default(),
            server: String::new(),
            server_transactions_max: 20_000,
            server_bytes_max: 64 << 20,
        }
    }
}

/// What the transaction user hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TuEvent {
    /// A new request. Answer with [`Layer::respond`].
    Request {
        /// Its transaction.
        id: ServerId,
        /// Where it came from.
        flow: Flow,
        /// The request, `received` and `rport` noted in its top Via.
        request: Request,
    },
    /// A new request that gets no transaction: refuse it with [`Layer::respond_stateless`].
    NoRoom {
        /// Where it came from.
        flow: Flow,
        /// The request.
        request: Request,
        /// What there is no room for.
        why: NoRoom,
    },
    /// An ACK that acknowledges no refusal: that of a 2xx, each copy, or one that belongs to
    /// nothing any more.
    Ack {
        /// Where it came from.
        flow: Flow,
        /// The ACK.
        request: Request,
    },
    /// A CANCEL for an INVITE without final response. It is answered; the INVITE's 487 is yours.
    Cancelled {
        /// The INVITE's transaction.
        id: ServerId,
    },
    /// A response, provisional or final; copies are left out, 2xx of other dialogs are not.
    Response {
        /// The transaction.
        id: ClientId,
        /// The response.
        response: Response,
    },
    /// No final response in time: as good as a 408 (RFC 3261 §8.1.3.1). The transaction is gone.
    ClientTimeout {
        /// The transaction.
        id: ClientId,
    },
    /// The message could not be sent: as good as a 503 (RFC 3261 §8.1.3.1). The transaction is
    /// gone.
    ClientTransportError {
        /// The transaction.
        id: ClientId,
    },
    /// The ACK of our final response never came, or cannot, since the response reaches nobody; after a
    /// 2xx the call is to be ended with BYE (RFC 3261 §13.3.1.4). Or nobody answered the request in time. The transaction is gone.
    ServerTimeout {
        /// The transaction.
        id: ServerId,
    },
    /// The connection a request came over closed before its final response. The transaction
    /// lives: an answer is sent to the address in the Via (RFC 3261 §18.2.2).
    ServerTransportError {
        /// The transaction.
        id: ServerId,
    },
}

/// Why a request gets no transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// [`Config::server_transactions_max`] are open.
    #[error("too many transactions are open")]
    Transactions,
    /// They keep [`Config::server_bytes_max`].
    #[error("open transactions keep too much memory")]
    Bytes,
    /// Only a share of the new calls is taken, see [`Layer::take_share`].
    #[error("more calls come than can be served")]
    Share,
}

/// What the layer met. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Responses that belong to no transaction of ours, dropped.
    pub stray_responses: u64,
    /// Requests that lack what matching needs, dropped.
    pub malformed: u64,
    /// Copies of messages, absorbed or answered again.
    pub retransmissions_received: u64,
    /// Messages we sent again.
    pub retransmissions_sent: u64,
    /// 482: requests that came by two paths.
    pub merged: u64,
    /// INVITEs outside dialogs, copies left out.
    pub invites: u64,
    /// Requests without a transaction, see [`NoRoom`].
    pub overload: u64,
}

/// Either kind of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    Server(ServerId),
    Client(ClientId),
}

/// All transactions of one signalling shard.
#[derive(Debug)]
pub struct Layer {
    config: Config,
    timer_values: Arc<Timers>,
    /// Of a thousand new INVITEs so many are taken.
    share_permille: u32,
    /// What the share has added up to; at 1000 the next INVITE is taken.
    credit: u32,
    tokens: Tokens,
    next_id: u64,
    servers: HashMap<ServerId, Box<Server>>,
    clients: HashMap<ClientId, Box<Client>>,
    /// What all `servers` keep together.
    server_bytes: usize,
    server_keys: HashMap<Key, ServerId>,
    client_keys: HashMap<Key, ClientId>,
    /// INVITEs answered with a 2xx, by what their ACK will say.
    ack_keys: HashMap<Key, ServerId>,
    /// Requests outside dialogs that are unanswered or accepted.
    merge_keys: HashMap<Key, ServerId>,
    /// One entry for each transaction: when its next timer is due.
    timers: BTreeSet<(Instant, Id)>,
    /// Which transactions a connection carries. Datagram sockets do not close.
    flows: BTreeSet<(FlowId, Id)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<TuEvent>,
    counters: Counters,
}

impl Layer {
    /// An empty layer. Branches and tags come from `seed`, which must be random in operation.
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            timer_values: Arc::new(config.timers),
            config,
            share_permille: 1000,
            credit: 0,
            tokens: Tokens::new(seed),
            next_id: 0,
            servers: HashMap::new(),
            clients: HashMap::new(),
            server_bytes: 0,
            server_keys: HashMap::new(),
            client_keys: HashMap::new(),
            ack_keys: HashMap::new(),
            merge_keys: HashMap::new(),
            timers: BTreeSet::new(),
            flows: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// From now on so many of a thousand INVITEs outside dialogs are taken, evenly spread. At 1000, as
    /// at first, all are.
    pub fn take_share(&mut self, permille: u32) {
        self.share_permille = permille;
    }

    /// Takes a message that arrived over `flow`.
    pub fn handle_message(&mut self, now: Instant, flow: Flow, message: Message) {
        match message {
            Message::Request(request) => self.handle_request(now, flow, request),
            Message::Response(response) => self.handle_response(now, flow, response),
        }
    }

    /// Answers a request, provisionally or finally. Adds a To tag (but to a 100) and Server where
    /// they are missing. False: the transaction is gone or has its final response; nothing was
    /// sent.
    pub fn respond(&mut self, now: Instant, id: ServerId, response: Response) -> bool {
        self.respond_as_uas(now, id, response)
    }

    /// Refuses what [`TuEvent::NoRoom`] brought. Adds a To tag, the same one for each copy (RFC 3261
    /// §8.2.7), and Server.
    pub fn respond_stateless(&mut self, flow: &Flow, request: &Request, response: Response) {
        if let Ok(identity) = Identity::read(request) {
            self.respond_without_state(flow, &identity, response);
        }
    }

    /// Passes a response from downstream on, our Via already removed: nothing is added, and a 2xx
    /// is not resent, for the UAS does that (RFC 6026 §7.1). False as for [`Self::respond`].
    pub fn forward_response(&mut self, now: Instant, id: ServerId, response: Response) -> bool {
        self.respond_as_proxy(now, id, response)
    }

    /// The To tag that [`Self::respond`] gives to responses of this transaction, for a dialog made
    /// from them. `None`: the transaction is gone.
    pub fn local_tag(&self, id: ServerId) -> Option<&str> {
        self.servers.get(&id).map(|server| &*server.local_tag)
    }

    /// A new tag, for From of a request outside a dialog.
    pub fn new_tag(&mut self) -> String {
        self.tokens.tag()
    }

    /// Sends a request other than ACK in a new transaction. Adds the top Via, naming `sent_by`,
    /// and Max-Forwards where it is missing.
    pub fn request(
        &mut self,
        now: Instant,
        destination: Destination,
        request: Request,
        sent_by: SocketAddr,
    ) -> ClientId {
        self.start_client(now, destination, request, sent_by)
    }

    /// Sends the ACK of a 2xx (RFC 3261 §13.2.2.4), a message without transaction. The layer
    /// keeps it to answer copies of that 2xx, which then no longer reach the user.
    pub fn ack(&mut self, id: ClientId, destination: Destination, request: Request, sent_by: SocketAddr) {
        self.send_ack(id, destination, request, sent_by);
    }

    /// Sends a request without transaction: an ACK that a proxy passes on. Adds the top Via.
    pub fn send_stateless(&mut self, destination: Destination, mut request: Request, sent_by: SocketAddr) {
        let branch = self.tokens.branch();
        self.prepare(&mut request, &destination, sent_by, &branch);
        self.transmit(destination, Message::Request(request).to_bytes());
    }

    /// Gives up on an INVITE without final response: CANCEL goes out as soon as a provisional
    /// response allows (RFC 3261 §9.1). A final response or `ClientTimeout` follows in any case.
    pub fn cancel(&mut self, now: Instant, id: ClientId) {
        self.cancel_client(now, id);
    }

    /// The INVITE as it was sent, but for its body, while it has no final response: for another process to
    /// end it by [`Self::cancel_sent`].
    pub fn sent_invite(&self, id: ClientId) -> Option<&Request> {
        self.clients.get(&id)?.sent_invite()
    }

    /// Gives up on an INVITE that a process sent which died. What it is answered with finds no transaction:
    /// a refusal needs none of us, and a callee whose 2xx gets no ACK ends the call itself (RFC 3261
    /// §13.3.1.4).
    pub fn cancel_sent(
        &mut self,
        now: Instant,
        destination: Destination,
        invite: &Request,
        sent_by: SocketAddr,
    ) {
        self.cancel_orphan(now, destination, invite, sent_by);
    }

    /// A connection closed. Unanswered requests sent over it fail now.
    pub fn handle_flow_closed(&mut self, flow: FlowId) {
        let first = (flow, Id::Server(ServerId(0)));
        let last = (flow, Id::Client(ClientId(u64::MAX)));
        let ids: Vec<Id> = self.flows.range(first..=last).map(|(_, id)| *id).collect();
        for id in ids {
            self.flows.remove(&(flow, id));
            match id {
                Id::Server(id) => self.server_flow_closed(id),
                Id::Client(id) => self.client_transport_error(id),
            }
        }
    }

    /// A message could not be sent: its connection is gone or could not be opened.
    ///
    /// A request that was not answered yet fails (RFC 3261 §17.1.4). A response whose connection
    /// is gone is sent once more, to the source's address and the port its Via names (§18.2.2); if
    /// that fails too, a final one to INVITE waits for its ACK no longer (§17.2.4).
    /// Datagrams are resent by their timers, so nothing happens for them.
    pub fn handle_send_failed(&mut self, now: Instant, transmit: &Transmit) {
        if !destination_transport(&transmit.destination).is_reliable() {
            return;
        }
        match Message::parse(transmit.bytes.clone()) {
            Ok(Message::Request(request)) => self.request_failed(&request),
            Ok(Message::Response(response)) => match (&transmit.destination, response.top_via()) {
                (Destination::Flow(flow), Ok(via)) => {
                    self.transmit(server::fallback(flow, server::via_port(&via)), transmit.bytes.clone());
                }
                (Destination::Address { .. }, Ok(via)) => self.response_failed(now, &response, &via),
                (_, Err(_)) => {} // Not from this layer.
            },
            Err(_) => {} // Not from this layer.
        }
    }

    /// Lets due timers fire.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            match id {
                Id::Server(id) => self.server_timeout(now, id),
                Id::Client(id) => self.client_timeout(now, id),
            }
        }
    }

    /// When [`Self::handle_timeout`] is due; `None` without transactions.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing the transaction user must hear.
    pub fn poll_event(&mut self) -> Option<TuEvent> {
        self.events.pop_front()
    }

    /// Transactions alive, client and server.
    pub fn len(&self) -> usize {
        self.servers.len() + self.clients.len()
    }

    /// True without transactions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the layer met so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn transmit(&mut self, destination: Destination, bytes: Bytes) {
        self.transmits.push_back(Transmit { destination, bytes });
    }

    /// Moves the timer entry of `id` from `old` to `new`.
    fn reschedule(&mut self, id: Id, old: Option<Instant>, new: Option<Instant>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.timers.remove(&(old, id));
        }
        if let Some(new) = new {
            self.timers.insert((new, id));
        }
    }

    /// Puts our Via on top, and what a request of our own needs besides. Datagrams ask for the
    /// source port they were seen with (RFC 3581 §3).
    fn prepare(&self, request: &mut Request, to: &Destination, sent_by: SocketAddr, branch: &str) {
        let is_ours = !request.headers.contains(&Name::Via);
        let transport = destination_transport(to);
        let rport = if transport.is_reliable() { "" } else { ";rport" };
        let name = transport.name().to_ascii_uppercase();
        request.headers.push_front(Name::Via, format!("SIP/2.0/{name} {sent_by};branch={branch}{rport}"));
        if !request.headers.contains(&Name::MaxForwards) {
            request.headers.push(Name::MaxForwards, "70"); // RFC 3261 §8.1.1.6
        }
        if is_ours && !self.config.server.is_empty() && !request.headers.contains(&Name::UserAgent) {
            request.headers.push(Name::UserAgent, self.config.server.clone());
        }
    }
}

/// What carries messages to `destination`.
fn destination_transport(destination: &Destination) -> super::flow::Transport {
    match destination {
        Destination::Flow(flow) => flow.transport,
        Destination::Address { transport, .. } => *transport,
    }
}

/// The connection behind `destination`, if it is one that can close.
fn stream_flow(destination: &Destination) -> Option<FlowId> {
    match destination {
        Destination::Flow(flow) if flow.transport.is_reliable() => Some(flow.id),
        Destination::Flow(_) | Destination::Address { .. } => None,
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod loss;
#[cfg(test)]
mod chaos;
