//! Client transactions of the layer: requests out, responses in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::key::Key;
use super::{ClientId, Id, Layer, TuEvent, destination_transport, stream_flow};
use crate::sip::flow::{Destination, Flow};
use crate::sip::header::CSeq;
use crate::sip::message::{Message, Method, Name, Request, Response};
use crate::sip::transaction::{ClientInvite, ClientRequest, Notify, Step};

/// Most 2xx of one forked INVITE whose ACKs are kept to be sent again.
const FORKS_MAX: usize = 8;

/// One client transaction and what its messages need.
#[derive(Debug)]
pub(super) struct Client {
    machine: Machine,
    key: Key,
    destination: Destination,
    method: Method,
    /// An INVITE as sent, without its body, until its final response: what the ACK of a refusal and
    /// CANCEL are made from.
    invite: Option<Box<Request>>,
    sent_by: SocketAddr,
    /// A CANCEL is the layer's own; nobody waits for its response.
    is_silent: bool,
    /// ACKs sent for 2xx, by To tag, to be sent again.
    acks: Vec<(String, Destination, Bytes)>,
    scheduled: Option<Instant>,
}

impl Client {
    pub(super) fn sent_invite(&self) -> Option<&Request> {
        self.invite.as_deref()
    }
}

#[derive(Debug)]
enum Machine {
    Invite(ClientInvite),
    Request(ClientRequest),
}

impl Machine {
    fn handle_timeout(&mut self, now: Instant) -> Step {
        match self {
            Self::Invite(machine) => machine.handle_timeout(now),
            Self::Request(machine) => machine.handle_timeout(now),
        }
    }

    fn handle_transport_error(&mut self) -> bool {
        match self {
            Self::Invite(machine) => machine.handle_transport_error(),
            Self::Request(machine) => machine.handle_transport_error(),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Invite(machine) => machine.poll_timeout(),
            Self::Request(machine) => machine.poll_timeout(),
        }
    }

    fn is_terminated(&self) -> bool {
        match self {
            Self::Invite(machine) => machine.is_terminated(),
            Self::Request(machine) => machine.is_terminated(),
        }
    }
}

impl Layer {
    pub(super) fn start_client(
        &mut self,
        now: Instant,
        destination: Destination,
        mut request: Request,
        sent_by: SocketAddr,
    ) -> ClientId {
        assert!(request.method != Method::Ack, "an ACK is no transaction: use ack() or send_stateless()");
        let branch = self.tokens.branch();
        self.prepare(&mut request, &destination, sent_by, &branch);
        let key = Key::of_client(&branch, false);
        self.add_client(now, destination, request, sent_by, key)
    }

    /// Sends a request that has its Via, in a transaction.
    fn add_client(
        &mut self,
        now: Instant,
        destination: Destination,
        mut request: Request,
        sent_by: SocketAddr,
        key: Key,
    ) -> ClientId {
        let id = ClientId(self.new_id());
        let reliable = destination_transport(&destination).is_reliable();
        let bytes = Message::Request(request.clone()).to_bytes();
        self.transmit(destination, bytes.clone());
        request.body = Bytes::new();
        let method = request.method.clone();
        let timers = Arc::clone(&self.timer_values);
        let (machine, invite) = if method == Method::Invite {
            (Machine::Invite(ClientInvite::new(now, timers, reliable, bytes)), Some(Box::new(request)))
        } else {
            (Machine::Request(ClientRequest::new(now, timers, reliable, bytes)), None)
        };
        if let Some(flow) = stream_flow(&destination) {
            self.flows.insert((flow, Id::Client(id)));
        }
        self.client_keys.insert(key.clone(), id);
        let is_silent = method == Method::Cancel;
        let client = Client {
            machine,
            key,
            destination,
            method,
            invite,
            sent_by,
            is_silent,
            acks: Vec::new(),
            scheduled: None,
        };
        self.clients.insert(id, Box::new(client));
        self.settle_client(id);
        id
    }

    pub(super) fn handle_response(&mut self, now: Instant, _flow: Flow, response: Response) {
        let Some(id) = self.match_response(&response) else {
            self.counters.stray_responses += 1;
            return;
        };
        let Some(client) = self.clients.get_mut(&id) else { return };
        let to_tag = response.to().ok().and_then(|to| to.tag().map(str::to_owned)).unwrap_or_default();
        if (200..300).contains(&response.status)
            && let Some((_, destination, ack)) = client.acks.iter().find(|(tag, ..)| *tag == to_tag)
        {
            // RFC 3261 §13.2.2.4: each copy of the 2xx gets the ACK again.
            let (destination, ack) = (*destination, ack.clone());
            self.counters.retransmissions_received += 1;
            return self.transmit(destination, ack);
        }
        let step = match (&mut client.machine, &client.invite) {
            (Machine::Invite(machine), Some(invite)) => {
                machine.handle_response(now, response.status, || ack_of_refusal(invite, &response))
            }
            // Its final response is here: no other one gets an ACK of its own.
            (Machine::Invite(machine), None) => machine.handle_response(now, response.status, Bytes::new),
            (Machine::Request(machine), _) => machine.handle_response(now, response.status),
        };
        if response.status >= 200 {
            client.invite = None;
        }
        self.take_client_step(now, id, step, Some(response));
    }

    /// RFC 3261 §17.1.3: top branch and CSeq method; §18.1.2: sent-by must be ours.
    fn match_response(&self, response: &Response) -> Option<ClientId> {
        let via = response.top_via().ok()?;
        let method = response.cseq().ok()?.method;
        let key = Key::of_client(via.branch()?, method == Method::Cancel);
        let id = *self.client_keys.get(&key)?;
        let client = self.clients.get(&id)?;
        let ours = via.host.address() == Some(client.sent_by.ip()) && via.port == Some(client.sent_by.port());
        (ours && client.method == method).then_some(id)
    }

    pub(super) fn send_ack(
        &mut self,
        id: ClientId,
        destination: Destination,
        mut request: Request,
        sent_by: SocketAddr,
    ) {
        let branch = self.tokens.branch();
        self.prepare(&mut request, &destination, sent_by, &branch);
        let to_tag = request.to().ok().and_then(|to| to.tag().map(str::to_owned)).unwrap_or_default();
        let bytes = Message::Request(request).to_bytes();
        if let Some(client) = self.clients.get_mut(&id)
            && client.acks.len() < FORKS_MAX
        {
            client.acks.reserve_exact(1);
            client.acks.push((to_tag, destination, bytes.clone()));
        }
        self.transmit(destination, bytes);
    }

    pub(super) fn cancel_client(&mut self, now: Instant, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if let Machine::Invite(machine) = &mut client.machine {
            let step = machine.cancel(now);
            self.take_client_step(now, id, step, None);
        }
    }

    pub(super) fn cancel_orphan(
        &mut self,
        now: Instant,
        destination: Destination,
        invite: &Request,
        sent_by: SocketAddr,
    ) {
        let branch = invite.top_via().ok();
        if let Some(key) = branch.and_then(|via| Some(Key::of_client(via.branch()?, true))) {
            self.add_client(now, destination, sibling(invite, Method::Cancel, None), sent_by, key);
        }
    }

    pub(super) fn client_timeout(&mut self, now: Instant, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let step = client.machine.handle_timeout(now);
        self.counters.retransmissions_sent += u64::from(step.transmit.is_some());
        self.take_client_step(now, id, step, None);
    }

    /// A request of ours could not be sent. An ACK has no transaction; the peer will resend.
    pub(super) fn request_failed(&mut self, request: &Request) {
        let Ok(via) = request.top_via() else { return };
        let branch = via.branch().unwrap_or_default();
        let key = Key::of_client(branch, request.method == Method::Cancel);
        if let Some(id) = self.client_keys.get(&key).copied() {
            self.client_transport_error(id);
        }
    }

    pub(super) fn client_transport_error(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.machine.handle_transport_error() && !client.is_silent {
            self.events.push_back(TuEvent::ClientTransportError { id });
        }
        self.settle_client(id);
    }

    /// Does what a machine asks for, then reads its new timer or buries it.
    fn take_client_step(&mut self, now: Instant, id: ClientId, step: Step, response: Option<Response>) {
        let Some(client) = self.clients.get(&id) else { return };
        let is_silent = client.is_silent;
        if let Some(bytes) = step.transmit {
            self.transmit(client.destination, bytes);
        }
        let cancel = match step.notify {
            Notify::Cancel | Notify::DeliverAndCancel => {
                self.clients.get(&id).and_then(|client| cancel_of(client))
            }
            Notify::Nothing | Notify::Deliver | Notify::Trying | Notify::Abandoned | Notify::Timeout => None,
        };
        if let Some((destination, request, sent_by, key)) = cancel {
            self.add_client(now, destination, request, sent_by, key);
        }
        self.settle_client(id);
        match (step.notify, response) {
            _ if is_silent => {}
            (Notify::Deliver | Notify::DeliverAndCancel, Some(response)) => {
                self.events.push_back(TuEvent::Response { id, response });
            }
            (Notify::Nothing, Some(_)) => self.counters.retransmissions_received += 1,
            (Notify::Timeout, _) => self.events.push_back(TuEvent::ClientTimeout { id }),
            // Timers that only resend or end, and a CANCEL already sent above.
            (_, _) => {}
        }
    }

    fn settle_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let old = client.scheduled;
        let new = client.machine.poll_timeout();
        client.scheduled = new;
        if !client.machine.is_terminated() {
            return self.reschedule(Id::Client(id), old, new);
        }
        self.reschedule(Id::Client(id), old, None);
        let Some(client) = self.clients.remove(&id) else { return };
        self.client_keys.remove(&client.key);
        if let Some(flow) = stream_flow(&client.destination) {
            self.flows.remove(&(flow, Id::Client(id)));
        }
    }
}

/// A request of the same transaction as `request`: same top Via only, Request-URI, From, Call-ID,
/// Route set and CSeq number.
fn sibling(request: &Request, method: Method, to: Option<&Bytes>) -> Request {
    let mut sibling = Request::new(method.clone(), request.uri.clone());
    let headers = &request.headers;
    if let Some(via) = headers.values(&Name::Via).next() {
        sibling.headers.push(Name::Via, via);
    }
    for name in [Name::From, Name::CallId, Name::Route, Name::MaxForwards, Name::UserAgent] {
        for value in headers.all(&name) {
            sibling.headers.push(name.clone(), value.clone());
        }
    }
    if let Some(to) = to.or_else(|| headers.first(&Name::To)) {
        sibling.headers.push(Name::To, to.clone());
    }
    if let Ok(CSeq { number, .. }) = request.cseq() {
        sibling.headers.push(Name::CSeq, CSeq { number, method }.to_string());
    }
    sibling
}

/// The ACK of a 3xx-6xx (RFC 3261 §17.1.1.3): To as in the response.
fn ack_of_refusal(request: &Request, response: &Response) -> Bytes {
    Message::Request(sibling(request, Method::Ack, response.headers.first(&Name::To))).to_bytes()
}

/// The CANCEL of an INVITE (RFC 3261 §9.1), and all its transaction needs.
fn cancel_of(client: &Client) -> Option<(Destination, Request, SocketAddr, Key)> {
    let invite = client.invite.as_deref()?;
    let key = Key::of_client(invite.top_via().ok()?.branch()?, true);
    Some((client.destination, sibling(invite, Method::Cancel, None), client.sent_by, key))
}
