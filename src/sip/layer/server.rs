//! Server transactions of the layer: requests in, responses out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::key::{Identity, Key, default_port};
use super::{Id, Layer, NoRoom, ServerId, TuEvent, stream_flow};
use crate::sip::flow::{Destination, Flow};
use crate::sip::header::Via;
use crate::sip::message::{Message, Method, Name, Request, Response};
use crate::sip::transaction::{Notify, ServerInvite, ServerRequest, Step};

/// One server transaction and what its messages need.
#[derive(Debug)]
pub(super) struct Server {
    machine: Machine,
    key: Key,
    merge_key: Option<Key>,
    ack_key: Option<Key>,
    /// Where responses go.
    destination: Destination,
    /// The port at the source's address where they go when the connection is gone (RFC 3261 §18.2.2).
    via_port: u16,
    /// A 100 for the request: what every response of the layer's own starts from. `None` once there
    /// is a final response.
    template: Option<Box<Response>>,
    /// About how much memory all this keeps, in bytes.
    pub(super) bytes: usize,
    pub(super) local_tag: Box<str>,
    /// The user was told of a CANCEL; a second one tells it nothing new.
    cancelled: bool,
    /// The layer answered in place of a user that never did, and told it so.
    abandoned: bool,
    scheduled: Option<Instant>,
}

#[derive(Debug)]
enum Machine {
    Invite(ServerInvite),
    Request(ServerRequest),
}

impl Machine {
    fn copy_arrived(&mut self) -> Step {
        match self {
            Self::Invite(machine) => machine.handle_invite(),
            Self::Request(machine) => machine.handle_request(),
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Step {
        match self {
            Self::Invite(machine) => machine.handle_timeout(now),
            Self::Request(machine) => machine.handle_timeout(now),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Invite(machine) => machine.poll_timeout(),
            Self::Request(machine) => machine.poll_timeout(),
        }
    }

    fn is_unanswered(&self) -> bool {
        match self {
            Self::Invite(machine) => machine.is_proceeding(),
            Self::Request(machine) => machine.is_pending(),
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
    pub(super) fn handle_request(&mut self, now: Instant, flow: Flow, mut request: Request) {
        let Ok(identity) = Identity::read(&request) else {
            self.counters.malformed += 1;
            return;
        };
        note_source(&mut request, &identity.via, &flow);
        if request.method == Method::Ack {
            return self.handle_ack(now, flow, request, &identity);
        }
        let key = identity.server_key(&request.method);
        if let Some(id) = self.server_keys.get(&key).copied() {
            self.counters.retransmissions_received += 1;
            return self.step_server(now, id, Machine::copy_arrived);
        }
        if request.method == Method::Cancel {
            return self.handle_cancel(now, &flow, &request, &identity, key);
        }
        if let Some(why) = self.lacks_room(&request, !identity.to_tag.is_empty()) {
            self.counters.overload += 1;
            return self.events.push_back(TuEvent::NoRoom { flow, request, why });
        }
        let merge_key = identity.merge_key(flow.listener, &request.method);
        if merge_key.as_ref().is_some_and(|key| self.merge_keys.contains_key(key)) {
            self.counters.merged += 1;
            let response = Response::for_request(&request, 482, "Loop Detected: Merged Request");
            return self.respond_without_state(&flow, &identity, response);
        }
        let id = self.start_server(now, &flow, &request, &identity, key, merge_key);
        self.events.push_back(TuEvent::Request { id, flow, request });
    }

    /// Why a new request gets no transaction, if it does not.
    fn lacks_room(&mut self, request: &Request, in_dialog: bool) -> Option<NoRoom> {
        let full = self.is_full(in_dialog);
        if request.method != Method::Invite || in_dialog {
            return full;
        }
        self.counters.invites += 1;
        full.or_else(|| (!self.takes_invite()).then_some(NoRoom::Share))
    }

    /// Requests inside dialogs have twice the room.
    fn is_full(&self, in_dialog: bool) -> Option<NoRoom> {
        let room = if in_dialog { 2 } else { 1 };
        if self.servers.len() >= self.config.server_transactions_max.saturating_mul(room) {
            return Some(NoRoom::Transactions);
        }
        let is_fat = self.server_bytes >= self.config.server_bytes_max.saturating_mul(room);
        is_fat.then_some(NoRoom::Bytes)
    }

    /// True for its share of the new INVITEs, evenly spread.
    fn takes_invite(&mut self) -> bool {
        self.credit += self.share_permille.min(1000);
        let takes = self.credit >= 1000;
        self.credit -= if takes { 1000 } else { 0 };
        takes
    }

    fn start_server(
        &mut self,
        now: Instant,
        flow: &Flow,
        request: &Request,
        identity: &Identity,
        key: Key,
        merge_key: Option<Key>,
    ) -> ServerId {
        let id = ServerId(self.new_id());
        let reliable = flow.transport.is_reliable();
        let machine = if request.method == Method::Invite {
            Machine::Invite(ServerInvite::new(now, Arc::clone(&self.timer_values), reliable))
        } else {
            Machine::Request(ServerRequest::new(now, Arc::clone(&self.timer_values), reliable))
        };
        let destination = response_destination(flow, &identity.via);
        if let Some(flow) = stream_flow(&destination) {
            self.flows.insert((flow, Id::Server(id)));
        }
        if let Some(merge_key) = &merge_key {
            self.merge_keys.insert(merge_key.clone(), id);
        }
        self.server_keys.insert(key.clone(), id);
        let (template, bytes) = template(request);
        self.server_bytes += bytes;
        let server = Server {
            machine,
            key,
            merge_key,
            ack_key: None,
            destination,
            via_port: via_port(&identity.via),
            template: Some(Box::new(template)),
            bytes,
            local_tag: self.tokens.tag().into(),
            cancelled: false,
            abandoned: false,
            scheduled: None,
        };
        self.servers.insert(id, Box::new(server));
        self.settle_server(id);
        id
    }

    /// RFC 3261 §17.2.3: an ACK belongs to a refusal by the INVITE's branch, to a 2xx by dialog.
    fn handle_ack(&mut self, now: Instant, flow: Flow, request: Request, identity: &Identity) {
        let by_branch = self.server_keys.get(&identity.server_key(&Method::Invite)).copied();
        let by_legacy = || {
            let id = *self.server_keys.get(&identity.legacy_ack_key()?)?;
            (self.local_tag(id) == Some(&identity.to_tag)).then_some(id)
        };
        let by_dialog = || self.ack_keys.get(&identity.ack_key()).copied();
        let Some(id) = by_branch.or_else(by_legacy).or_else(by_dialog) else {
            return self.events.push_back(TuEvent::Ack { flow, request });
        };
        let mut deliver = false;
        self.step_server(now, id, |machine| match machine {
            Machine::Invite(invite) => {
                let step = invite.handle_ack(now);
                deliver = step.notify == Notify::Deliver;
                Step { notify: Notify::Nothing, ..step }
            }
            Machine::Request(_) => Step::ABSORB,
        });
        if deliver {
            self.events.push_back(TuEvent::Ack { flow, request });
        }
    }

    /// RFC 3261 §9.2.
    fn handle_cancel(&mut self, now: Instant, flow: &Flow, request: &Request, identity: &Identity, key: Key) {
        let invite = self.server_keys.get(&identity.server_key(&Method::Invite)).copied();
        let Some((invite_id, invite)) = invite.and_then(|id| Some((id, self.servers.get_mut(&id)?))) else {
            let response = Response::for_request(request, 481, "Call/Transaction Does Not Exist");
            if self.is_full(true).is_some() {
                return self.respond_without_state(flow, identity, response);
            }
            let id = self.start_server(now, flow, request, identity, key, None);
            self.respond_as_uas(now, id, response);
            return;
        };
        // §9.2: both responses should have the same To tag.
        let local_tag = invite.local_tag.clone();
        let tell = invite.machine.is_unanswered() && !invite.cancelled;
        invite.cancelled |= tell;
        let id = self.start_server(now, flow, request, identity, key, None);
        if let Some(cancel) = self.servers.get_mut(&id) {
            cancel.local_tag = local_tag;
        }
        self.respond_as_uas(now, id, Response::for_request(request, 200, "OK"));
        if tell {
            self.events.push_back(TuEvent::Cancelled { id: invite_id });
        }
    }

    pub(super) fn respond_as_uas(&mut self, now: Instant, id: ServerId, mut response: Response) -> bool {
        let Some(server) = self.servers.get(&id) else { return false };
        add_to_tag(&mut response, &server.local_tag);
        if !self.config.server.is_empty() && !response.headers.contains(&Name::Server) {
            response.headers.push(Name::Server, self.config.server.clone());
        }
        self.answer(now, id, response, true)
    }

    pub(super) fn respond_as_proxy(&mut self, now: Instant, id: ServerId, response: Response) -> bool {
        self.answer(now, id, response, false)
    }

    fn answer(&mut self, now: Instant, id: ServerId, response: Response, as_uas: bool) -> bool {
        let Some(server) = self.servers.get_mut(&id) else { return false };
        let status = response.status;
        // A proxy waits for no ACK. Were it to, it would take that of a UAS in the same layer away.
        let awaits_ack =
            as_uas && (200..300).contains(&status) && matches!(server.machine, Machine::Invite(_));
        let ack_key = if awaits_ack { ack_key(&response) } else { None };
        let bytes = Message::Response(response).to_bytes();
        let step = match &mut server.machine {
            Machine::Invite(machine) if as_uas => machine.respond(now, status, bytes),
            Machine::Invite(machine) => machine.forward(now, status, bytes),
            Machine::Request(machine) => machine.respond(now, status, bytes),
        };
        let sent = step.transmit.is_some();
        if sent && let Some(key) = ack_key {
            // After a 2xx to an INVITE: its ACK will come with another branch.
            if let Some(old) = server.ack_key.replace(key.clone()) {
                self.ack_keys.remove(&old);
            }
            self.ack_keys.insert(key, id);
        }
        if sent && status >= 200 {
            self.finalise(id, status);
        }
        self.take_step(now, id, step);
        sent
    }

    /// Lets go of what is of no use after the final response.
    fn finalise(&mut self, id: ServerId, status: u16) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        if let Some(template) = server.template.take() {
            let freed = value_bytes(&template);
            server.bytes -= freed;
            self.server_bytes -= freed;
        }
        // A copy by another path would be refused like this one: nothing to guard any more.
        if status >= 300
            && let Some(key) = server.merge_key.take()
        {
            self.merge_keys.remove(&key);
        }
    }

    /// A response without transaction: to what we will not keep state for (RFC 3261 §8.2.7).
    pub(super) fn respond_without_state(&mut self, flow: &Flow, identity: &Identity, mut response: Response) {
        let tag = self.tokens.stateless_tag(&(&identity.call_id, &identity.from_tag, identity.cseq));
        add_to_tag(&mut response, &tag);
        if !self.config.server.is_empty() {
            response.headers.push(Name::Server, self.config.server.clone());
        }
        let destination = response_destination(flow, &identity.via);
        self.transmit(destination, Message::Response(response).to_bytes());
    }

    pub(super) fn server_timeout(&mut self, now: Instant, id: ServerId) {
        let sent = self.transmits.len();
        self.step_server(now, id, |machine| machine.handle_timeout(now));
        self.counters.retransmissions_sent += (self.transmits.len() - sent) as u64;
    }

    /// A response reaches nobody, neither down its connection nor at the Via's address.
    pub(super) fn response_failed(&mut self, now: Instant, response: &Response, via: &Via) {
        let Ok(cseq) = response.cseq() else { return };
        let id = Key::of_server(via, &cseq.method).and_then(|key| self.server_keys.get(&key).copied());
        let Some(id) = id else { return };
        self.step_server(now, id, |machine| match machine {
            Machine::Invite(machine) => machine.handle_transport_error(),
            Machine::Request(_) => Step::ABSORB,
        });
    }

    pub(super) fn server_flow_closed(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        if let Destination::Flow(flow) = &server.destination {
            server.destination = fallback(flow, server.via_port);
        }
        if server.machine.is_unanswered() {
            self.events.push_back(TuEvent::ServerTransportError { id });
        }
    }

    fn step_server(&mut self, now: Instant, id: ServerId, input: impl FnOnce(&mut Machine) -> Step) {
        if let Some(server) = self.servers.get_mut(&id) {
            let step = input(&mut server.machine);
            self.take_step(now, id, step);
        }
    }

    /// Does what a machine asks for, then reads its new timer or buries it.
    fn take_step(&mut self, now: Instant, id: ServerId, step: Step) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let told = server.abandoned;
        server.abandoned |= step.notify == Notify::Abandoned;
        let destination = server.destination;
        if let Some(bytes) = step.transmit {
            self.transmit(destination, bytes);
        }
        self.settle_server(id);
        match step.notify {
            Notify::Nothing => {}
            Notify::Timeout if told => {}
            Notify::Timeout => self.events.push_back(TuEvent::ServerTimeout { id }),
            Notify::Trying => self.respond_from_template(now, id, 100, "Trying"),
            Notify::Abandoned => {
                self.respond_from_template(now, id, 500, "No Decision In Time");
                self.events.push_back(TuEvent::ServerTimeout { id });
            }
            Notify::Deliver | Notify::DeliverAndCancel | Notify::Cancel => {
                unreachable!("server machines never ask for this")
            }
        }
    }

    fn respond_from_template(&mut self, now: Instant, id: ServerId, status: u16, reason: &str) {
        let template = self.servers.get(&id).and_then(|server| server.template.as_deref());
        let Some(mut response) = template.cloned() else { return };
        response.status = status;
        reason.clone_into(&mut response.reason);
        self.respond_as_uas(now, id, response);
    }

    fn settle_server(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let old = server.scheduled;
        let new = server.machine.poll_timeout();
        server.scheduled = new;
        if !server.machine.is_terminated() {
            return self.reschedule(Id::Server(id), old, new);
        }
        self.reschedule(Id::Server(id), old, None);
        let Some(server) = self.servers.remove(&id) else { return };
        self.server_bytes -= server.bytes;
        self.server_keys.remove(&server.key);
        if let Some(key) = server.merge_key {
            self.merge_keys.remove(&key);
        }
        // A later INVITE with the same numbers may own the entry by now.
        if let Some(key) = server.ack_key.filter(|key| self.ack_keys.get(key) == Some(&id)) {
            self.ack_keys.remove(&key);
        }
        if let Some(flow) = stream_flow(&server.destination) {
            self.flows.remove(&(flow, Id::Server(id)));
        }
    }
}

/// A 100 for `request`, and about how many bytes its transaction will keep: the template, a
/// response and the keys. Values are copied: a slice would keep the whole message alive.
fn template(request: &Request) -> (Response, usize) {
    let slices = Response::for_request(request, 100, "Trying");
    let mut template = Response::new(100, "Trying");
    for header in slices.headers.iter() {
        template.headers.push(header.name.clone(), Bytes::copy_from_slice(&header.value));
    }
    let bytes = value_bytes(&template);
    (template, 3 * bytes + size_of::<Server>())
}

fn value_bytes(response: &Response) -> usize {
    response.headers.iter().map(|header| header.value.len()).sum()
}

/// Names the ACK of this 2xx.
fn ack_key(response: &Response) -> Option<Key> {
    let (from, to) = (response.from().ok()?, response.to().ok()?);
    let (from_tag, to_tag) = (from.tag().unwrap_or_default(), to.tag().unwrap_or_default());
    Some(Key::of_ack(response.call_id().ok()?, from_tag, to_tag, response.cseq().ok()?.number))
}

/// Notes in the top Via where the request really came from (RFC 3261 §18.2.1, RFC 3581 §4).
fn note_source(request: &mut Request, via: &Via, flow: &Flow) {
    let source = flow.remote.ip().to_canonical();
    let asks_for_port = via.has_rport();
    if via.host.address() == Some(source) && !asks_for_port {
        return;
    }
    let mut via = via.clone();
    via.params.set("received", Some(&source.to_string()));
    if asks_for_port {
        via.params.set("rport", Some(&flow.remote.port().to_string()));
    }
    request.headers.remove_first_value(&Name::Via);
    request.headers.push_front(Name::Via, via.to_string());
}

/// Where responses go (RFC 3261 §18.2.2, RFC 3581 §4).
fn response_destination(flow: &Flow, via: &Via) -> Destination {
    if flow.transport.is_reliable() || via.has_rport() {
        return Destination::Flow(*flow);
    }
    let remote = SocketAddr::new(flow.remote.ip(), via_port(via));
    Destination::Flow(Flow { remote, ..*flow })
}

/// Where a response goes whose connection is gone (RFC 3261 §18.2.2): to the address the request came
/// from, at the port its Via names.
pub(super) fn fallback(flow: &Flow, via_port: u16) -> Destination {
    let remote = SocketAddr::new(flow.remote.ip(), via_port);
    Destination::Address { transport: flow.transport, remote, listener: flow.listener }
}

/// The port a Via names.
pub(super) fn via_port(via: &Via) -> u16 {
    via.port.filter(|port| *port != 0).unwrap_or_else(|| default_port(via))
}

/// RFC 3261 §8.2.6.2: every response but 100 has a To tag.
fn add_to_tag(response: &mut Response, tag: &str) {
    let Some(to) = response.headers.first(&Name::To) else { return };
    let has_tag = response.to().is_ok_and(|to| to.tag().is_some());
    if response.status > 100 && !has_tag {
        let to = format!("{};tag={tag}", String::from_utf8_lossy(to));
        response.headers.set(Name::To, to);
    }
}
