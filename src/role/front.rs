//! The front signalling shard: call router and UM service.
//!
//! Both answer OPTIONS and send a mailbox call on, by 302 or by forwarding the INVITE. Neither ever
//! touches media or mailboxes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use crate::base::config::{Addresses, Config, Handoff};
use crate::call::admission::Admitted;
use crate::control::listeners::ListenRole;
use crate::role::gate::{Gate, Seen};
use crate::role::hop::HopSecret;
use crate::role::overload::Overload;
use crate::role::refusals::Refusals;
use crate::role::user_agent;
use crate::signal::{Counters, Listener, Role};
use crate::sip::flow::{Destination, Flow, FlowId, PeerNames, Transmit};
use crate::sip::layer::{ClientId, Layer, ServerId, TuEvent};
use crate::sip::message::{Message, Method, Name, Request, Response};
use crate::sip::uas::UasRules;
use crate::sip::uri::Uri;
use crate::sip::{proxy, target, uas};

mod handle;
mod listeners;
mod next_hop;
mod refuse;

use handle::FrontReport;
pub use handle::{Front, FrontOrder, PassedFront, spawn};
pub use listeners::Hop;
pub use next_hop::HopPorts;
pub(in crate::role) use next_hop::{NextHop, Way};

/// How often the front looks for orders.
const PUMP_INTERVAL: Duration = Duration::from_millis(20);
/// How long copies of a 2xx may come: timer L, 64*T1.
const ACCEPTED_LIFE: Duration = Duration::from_secs(32);
/// How often it reports its counters.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// An INVITE on its way to the next hop.
struct Forwarded {
    server: ServerId,
    request: Request,
}

/// What the configuration says to a front.
struct Settings {
    handoff: Handoff,
    service: NextHop,
    worker_addresses: Addresses,
    /// `node.fqdn`.
    fqdn: String,
    /// `router.maintenance`.
    maintenance: bool,
    retry_after_s: u16,
}

impl Settings {
    fn of(config: &Config) -> Self {
        Self {
            handoff: config.router.handoff,
            service: NextHop {
                addresses: config.service.address.clone(),
                ports: HopPorts::of_role(config, ListenRole::Service),
            },
            worker_addresses: config.worker.address.clone(),
            fqdn: config.node.fqdn.clone(),
            maintenance: config.router.maintenance,
            retry_after_s: config.calls.retry_after_s,
        }
    }
}

/// Router and service as the SIP loop drives them.
struct FrontRole {
    layer: Layer,
    /// By listener index; those that are closed stay for the connections they took.
    hops: BTreeMap<u16, Hop>,
    settings: Settings,
    /// The ports of the worker that takes calls.
    worker: Option<HopPorts>,
    rules: UasRules,
    /// INVITEs that were forwarded: the caller's transaction by ours, and back.
    forwarded: HashMap<ClientId, Forwarded>,
    forwarding: HashMap<ServerId, ClientId>,
    /// Forwarded INVITEs with a 2xx: its copies are passed on too (RFC 6026 §7.1).
    accepted: HashMap<ClientId, ServerId>,
    /// When each of them is forgotten, in order.
    accepted_until: VecDeque<(Instant, ClientId)>,
    orders: Arc<ArrayQueue<FrontOrder>>,
    reports: Arc<ArrayQueue<FrontReport>>,
    counters: Arc<Counters>,
    gate: Gate,
    refusals: Refusals,
    overload: Overload,
    next_report: Option<Instant>,
    /// `voxring drain on`.
    draining: bool,
    stopping: bool,
}

impl FrontRole {
    fn new(
        config: &Config,
        listeners: &[(Hop, Listener)],
        (orders, reports): (Arc<ArrayQueue<FrontOrder>>, Arc<ArrayQueue<FrontReport>>),
        counters: Arc<Counters>,
        hop_secret: HopSecret,
    ) -> io::Result<Self> {
        Ok(Self {
            layer: user_agent::layer(config)?,
            hops: (0..).zip(listeners.iter().map(|(hop, _)| *hop)).collect(),
            settings: Settings::of(config),
            worker: None,
            rules: user_agent::uas_rules(&FRONT_METHODS),
            forwarded: HashMap::new(),
            forwarding: HashMap::new(),
            accepted: HashMap::new(),
            accepted_until: VecDeque::new(),
            orders,
            reports,
            counters,
            gate: Gate::new(config, hop_secret)?,
            refusals: Refusals::default(),
            overload: Overload::new(config),
            next_report: None,
            draining: false,
            stopping: false,
        })
    }

    /// Works by `config` from now on; calls that are being forwarded go on as they began.
    fn reconfigure(&mut self, config: &Config) {
        self.settings = Settings::of(config);
        self.overload.reload(config);
        if let Err(error) = self.gate.reload(config) {
            tracing::error!(%error, "gateways' names cannot be looked up");
        }
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.layer.poll_event() {
            match event {
                TuEvent::Request { id, flow, request } => self.handle_request(now, id, flow, request),
                TuEvent::NoRoom { flow, request, why } => self.refuse_for_room(now, &flow, &request, why),
                TuEvent::Response { id, response } => self.handle_response(now, id, &response),
                TuEvent::Cancelled { id } => {
                    if let Some(client) = self.forwarding.get(&id) {
                        self.layer.cancel(now, *client);
                    }
                }
                TuEvent::ClientTimeout { id } => self.forwarding_failed(now, id, 408, "Request Timeout"),
                TuEvent::ClientTransportError { id } => {
                    self.forwarding_failed(now, id, 503, "Service Unavailable");
                }
                // Nobody decided in time (RFC 3261 §16.8), and the layer has said so.
                TuEvent::ServerTimeout { id } => {
                    if let Some(client) = self.forwarding.remove(&id) {
                        self.layer.cancel(now, client);
                    }
                }
                // The transaction lives on and answers to the Via's address.
                TuEvent::ServerTransportError { .. } => {}
                // An ACK to a 2xx is the worker's; one that comes here has lost its way.
                TuEvent::Ack { .. } => {}
            }
        }
    }

    fn handle_request(&mut self, now: Instant, id: ServerId, flow: Flow, request: Request) {
        if !self.hops.contains_key(&flow.listener) {
            // It has just opened, and what it is for was ordered before that.
            self.take_orders();
        }
        let hop = self.hops.get(&flow.listener).copied().unwrap_or(Hop::Router);
        let seen = self.gate.seen(&flow, &request);
        let forwarded = match self.route(hop, &flow, &seen, &request) {
            Ok(Routed::Answer(response)) => {
                self.layer.respond(now, id, *response);
                return;
            }
            Ok(Routed::Forward(admitted)) => self.forward(now, hop, id, (&flow, &seen, &admitted), &request),
            Err(refusal) => Err(refusal),
        };
        if let Err((rule, mut response)) = forwarded {
            self.refusals.note(now, hop.name(), rule, &seen.flow, &request, &mut response);
            self.layer.respond(now, id, response);
        }
    }

    /// What becomes of a request; or the rule that refuses it.
    fn route(&self, hop: Hop, flow: &Flow, seen: &Seen, request: &Request) -> Result<Routed, Refusal> {
        let unavailable =
            |why| user_agent::unavailable(request, &self.rules, self.settings.retry_after_s, why);
        self.gate.judge_peer(seen).map_err(|refused| self.not_admitted(request, &refused))?;
        uas::inspect(request, &self.rules).map_err(|response| ("not_served", response))?;
        let agent = &self.rules.agent;
        if request.to().is_ok_and(|to| to.tag().is_some()) {
            let why = "no dialogs live here";
            return Err(("no_dialog", uas::refuse(request, agent, 481, "Call Does Not Exist", why)));
        }
        if self.settings.maintenance && hop == Hop::Router {
            return Err(("maintenance", unavailable("the call router is under maintenance")));
        }
        if self.draining {
            return Err(("draining", unavailable("the node is being drained and takes no new calls")));
        }
        if self.worker.is_none() || self.stopping {
            return Err(("no_worker", unavailable("no worker takes calls")));
        }
        if request.method == Method::Options {
            return Ok(Routed::Answer(Box::new(user_agent::options_response(request, &self.rules))));
        }
        let admitted = self.gate.judge(seen, request).outcome;
        let admitted = admitted.map_err(|refused| self.not_admitted(request, &refused))?;
        match self.settings.handoff {
            Handoff::Proxy => Ok(Routed::Forward(Box::new(admitted))),
            Handoff::Redirect => {
                let contact = self.way(hop, flow, request)?.uri;
                let mut response = Response::for_request(request, 302, "Moved Temporarily");
                response.headers.push(Name::Contact, format!("<{contact}>"));
                Ok(Routed::Answer(Box::new(response)))
            }
        }
    }

    /// `route` has refused already when there is no worker.
    fn worker_hop(&self) -> NextHop {
        NextHop { addresses: self.settings.worker_addresses.clone(), ports: self.worker.unwrap_or_default() }
    }

    /// The request's way on; the refusal where the next hop cannot carry it as safely.
    fn way(&self, hop: Hop, flow: &Flow, request: &Request) -> Result<Way, Refusal> {
        let next = match hop {
            Hop::Router => self.settings.service.clone(),
            Hop::Service => self.worker_hop(),
        };
        next.way(&self.settings.fqdn, flow, request).ok_or_else(|| {
            let why =
                "the call is secured by TLS and the next hop has no TLS; it does not go on in the clear";
            ("next_hop_tls", user_agent::unavailable(request, &self.rules, self.settings.retry_after_s, why))
        })
    }

    fn forward(
        &mut self,
        now: Instant,
        hop: Hop,
        id: ServerId,
        (flow, seen, admitted): (&Flow, &Seen, &Admitted),
        request: &Request,
    ) -> Result<(), Refusal> {
        let Way { transport, remote, uri } = self.way(hop, flow, request)?;
        let is_us = |route: &Uri| target::resolve(route).is_some_and(|(_, address)| address == flow.local);
        let forwarded = proxy::forward(request, uri, &self.rules.agent, is_us);
        let mut forwarded = forwarded.map_err(|response| ("not_forwarded", response))?;
        self.gate.vouch(seen, admitted, &mut forwarded);
        self.layer.respond(now, id, Response::for_request(request, 100, "Trying"));
        let destination = Destination::Address { transport, remote, listener: flow.listener };
        let client = self.layer.request(now, destination, forwarded, flow.local);
        self.forwarded.insert(client, Forwarded { server: id, request: request.clone() });
        self.forwarding.insert(id, client);
        Ok(())
    }

    fn handle_response(&mut self, now: Instant, id: ClientId, response: &Response) {
        let forwarded = self.forwarded.get(&id).map(|forwarded| forwarded.server);
        let Some(server) = forwarded.or_else(|| self.accepted.get(&id).copied()) else {
            return;
        };
        if let Some(backward) = proxy::backward(response) {
            self.layer.forward_response(now, server, backward);
        }
        if response.status >= 200 && self.forwarded.remove(&id).is_some() {
            self.forwarding.remove(&server);
            if response.status < 300 {
                self.accepted.insert(id, server);
                self.accepted_until.push_back((now + ACCEPTED_LIFE, id));
            }
        }
    }

    fn forget_accepted(&mut self, now: Instant) {
        while let Some((_, id)) = self.accepted_until.pop_front_if(|(until, _)| *until <= now) {
            self.accepted.remove(&id);
        }
    }

    fn take_orders(&mut self) {
        while let Some(order) = self.orders.pop() {
            match order {
                FrontOrder::Listener { index, hop } => {
                    self.hops.insert(index, hop);
                }
                FrontOrder::Config { config, taken } => {
                    self.reconfigure(&config);
                    // Whoever does not wait for it does not want to know.
                    let _ = taken.send(());
                }
                FrontOrder::Worker(ports) => {
                    self.worker = ports;
                    self.next_report = None;
                }
                FrontOrder::Drain(on) => self.draining = on,
                FrontOrder::Stop => self.stopping = true,
            }
        }
    }
}

/// What router and service answer by themselves.
const FRONT_METHODS: [Method; 4] = [Method::Invite, Method::Ack, Method::Cancel, Method::Options];

/// The rule's name for the counter, and what the caller is told.
type Refusal = (&'static str, Response);

/// What becomes of a request that may come in.
enum Routed {
    /// We answer.
    Answer(Box<Response>),
    /// The next hop does.
    Forward(Box<Admitted>),
}

impl Role for FrontRole {
    fn admits(&mut self, _now: Instant, _listener: u16, remote: SocketAddr) -> bool {
        self.gate.admits(remote)
    }

    fn handle_secured(&mut self, _now: Instant, flow: Flow, peer: Option<Arc<PeerNames>>) {
        self.gate.handle_secured(&flow, peer);
    }

    fn handle_message(&mut self, now: Instant, flow: Flow, message: Message) {
        if self.gate.drops(now, &flow, &message, &mut self.refusals) {
            return;
        }
        self.layer.handle_message(now, flow, message);
        self.handle_events(now);
    }

    fn handle_flow_closed(&mut self, now: Instant, flow: FlowId) {
        self.gate.handle_flow_closed(flow);
        self.layer.handle_flow_closed(flow);
        self.handle_events(now);
    }

    fn handle_send_failed(&mut self, now: Instant, transmit: &Transmit) {
        self.layer.handle_send_failed(now, transmit);
        self.handle_events(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.layer.handle_timeout(now);
        self.handle_events(now);
    }

    fn tls_name(&self, remote: SocketAddr) -> Option<String> {
        let is_ours = self.settings.service.is_at(remote) || self.worker_hop().is_at(remote);
        (is_ours && !self.settings.fqdn.is_empty()).then(|| self.settings.fqdn.clone())
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.layer.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.layer.poll_timeout()
    }

    fn pump(&mut self, now: Instant) -> Duration {
        self.take_orders();
        self.gate.pump();
        self.forget_accepted(now);
        if self.next_report.is_none_or(|at| at <= now) {
            let mut refused = self.refusals.totals().clone();
            user_agent::add_transport_refusals(&mut refused, &self.counters);
            self.reports.force_push(FrontReport { refused, worker: self.worker });
            self.next_report = Some(now + REPORT_INTERVAL);
        }
        PUMP_INTERVAL
    }

    fn handle_busy(&mut self, permille: u16) {
        self.overload.handle_busy(permille, &mut self.layer);
    }

    fn is_settled(&self) -> bool {
        self.forwarded.is_empty()
    }

    fn give_up(&mut self, now: Instant) {
        let left: Vec<_> = self.forwarded.keys().copied().collect();
        for id in left {
            self.layer.cancel(now, id);
            self.forwarding_failed(now, id, 503, "Service Unavailable");
        }
    }

    fn is_finished(&self) -> bool {
        self.stopping
    }
}

#[cfg(test)]
mod tests;
