//! The worker's signalling role: where dialogs, flows, media and mailbox meet.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::config::Config;
use crate::base::id::LegId;
use crate::base::random::SplitMix64;
use crate::call::admission::Limits;
use crate::call::inbound::CallRules;
use crate::call::leg::CallLeg;
use crate::call::outcome::EndCause;
use crate::control::cli::Slot;
use crate::mailbox::service::{MailboxHandle, MailboxRequest};
use crate::media::order::Audio;
use crate::role::gate::Gate;
use crate::role::link::{FromWorker, HEARTBEAT_INTERVAL, Heartbeat, WorkerLink};
use crate::role::overload::Overload;
use crate::role::refusals::Refusals;
use crate::role::user_agent;
use crate::role::worker::anchor::Left;
use crate::role::worker::duty::{Duty, Step};
use crate::role::worker::entry::{Entry, Patience};
use crate::role::worker::estate::Estate;
use crate::role::worker::greetings::Greetings;
use crate::role::worker::reconfigure::Edge;
use crate::role::worker::resources::Resources;
use crate::role::worker::shards::Shards;
use crate::role::worker::watchdog::Turns;
use crate::signal::{Counters, Role};
use crate::sip::dialog::DialogId;
use crate::sip::flow::{Destination, Flow as SipFlow, FlowId, PeerNames, Transmit};
use crate::sip::layer::{ClientId, Layer, ServerId, TuEvent};
use crate::sip::message::{Message, Method, Request, Response};
use crate::um::answering::Prompts;

/// How soon queues are looked at while something is going on: well inside a packet time.
const PUMP_BUSY: Duration = Duration::from_millis(2);
/// And while nothing is, though calls may be up: each look wakes a thread.
const PUMP_IDLE: Duration = Duration::from_millis(10);
/// What happened is followed by more for so long: an answer to an order, the next key.
const BUSY_FOR: Duration = Duration::from_millis(100);
/// An orderly stop waits this long for legs to close.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The same without a supervisor: the next one wants the ports.
pub(super) const ORPHAN_TIMEOUT: Duration = Duration::from_secs(1);

/// What the worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Calls were told to end.
    Stopping {
        deadline: Instant,
    },
    Over,
}

/// All calls of the worker.
pub struct Calls {
    pub(super) config: Box<Config>,
    pub(super) slot: Slot,
    pub(super) rules: Arc<CallRules>,
    pub(super) layer: Layer,
    pub(super) calls: HashMap<LegId, Box<Entry>>,
    pub(super) by_dialog: HashMap<Arc<DialogId>, LegId>,
    pub(super) by_invite: HashMap<ServerId, LegId>,
    pub(super) by_client: HashMap<ClientId, LegId>,
    /// Which call a callee's leg belongs to, by the caller's leg.
    pub(super) owners: HashMap<LegId, LegId>,
    /// Callees' legs that belong to no call any more and have still to end.
    pub(super) left: HashMap<LegId, Left>,
    /// Call-IDs of INVITEs of ours: one that comes back has gone round.
    pub(super) call_ids: HashSet<String>,
    pub(super) timers: BTreeSet<(Instant, LegId)>,
    pub(super) shards: Option<Shards>,
    pub(super) mailbox: Option<MailboxHandle>,
    /// Requests that found the mailbox's queue full. New calls are refused then; these must get
    /// through.
    pub(super) waiting: VecDeque<MailboxRequest>,
    pub(super) link: Arc<WorkerLink>,
    pub(super) prompts: Arc<Prompts>,
    pub(super) demo_loop: Audio,
    pub(super) greetings: Greetings,
    pub(super) next_leg: u64,
    pub(super) random: SplitMix64,
    pub(super) answered: u64,
    /// Calls by the cause of their end.
    pub(super) ended: BTreeMap<String, u64>,
    pub(super) gate: Gate,
    pub(super) refusals: Refusals,
    pub(super) limits: Limits,
    pub(super) overload: Overload,
    pub(super) resources: Resources,
    /// Calls of each gateway.
    pub(super) of_gateway: HashMap<String, usize>,
    counters: Arc<Counters>,
    pub(super) edge: Edge,
    /// Queries for calls, each with the moment its answer goes out.
    pub(super) queries: VecDeque<(Instant, u64)>,
    next_heartbeat: Option<Instant>,
    phase: Phase,
    /// What becomes of new calls.
    pub(super) duty: Duty,
    turns: Turns,
    /// Something happened shortly before this.
    busy_until: Instant,
    /// Flows that panicked.
    pub(super) flows_panicked: u64,
    /// Where calls are written down, if they outlast the worker.
    pub(super) estate: Option<Estate>,
}

/// What [`Calls::new`] puts together.
pub struct Parts {
    /// The node's configuration.
    pub config: Box<Config>,
    /// Which slot this is.
    pub slot: Slot,
    /// What calls have in common.
    pub rules: CallRules,
    /// The transaction layer.
    pub layer: Layer,
    /// Running media shards.
    pub shards: Shards,
    /// Who may call.
    pub gate: Gate,
    /// The running mailbox.
    pub mailbox: MailboxHandle,
    /// The line to the supervisor.
    pub link: Arc<WorkerLink>,
    /// What callers hear.
    pub prompts: Prompts,
    /// What 9197 plays.
    pub demo_loop: Audio,
    /// Random.
    pub seed: u64,
    /// The SIP loop's.
    pub counters: Arc<Counters>,
    /// The SIP loop's listeners and certificate.
    pub edge: Edge,
    /// Counted at each turn of the SIP loop, for the watchdog.
    pub turns: Turns,
    /// Where calls are written down, if they outlast the worker.
    pub estate: Option<Estate>,
}

impl Calls {
    /// A worker without calls.
    pub fn new(parts: Parts) -> Self {
        let limits = Limits::new(&parts.config);
        let overload = Overload::new(&parts.config);
        Self {
            config: parts.config,
            slot: parts.slot,
            rules: Arc::new(parts.rules),
            layer: parts.layer,
            calls: HashMap::new(),
            by_dialog: HashMap::new(),
            by_invite: HashMap::new(),
            by_client: HashMap::new(),
            owners: HashMap::new(),
            left: HashMap::new(),
            call_ids: HashSet::new(),
            timers: BTreeSet::new(),
            shards: Some(parts.shards),
            mailbox: Some(parts.mailbox),
            waiting: VecDeque::new(),
            link: parts.link,
            prompts: Arc::new(parts.prompts),
            demo_loop: parts.demo_loop,
            greetings: Greetings::default(),
            next_leg: 0,
            random: SplitMix64(parts.seed),
            answered: 0,
            ended: BTreeMap::new(),
            gate: parts.gate,
            refusals: Refusals::default(),
            limits,
            overload,
            resources: Resources::default(),
            of_gateway: HashMap::new(),
            counters: parts.counters,
            edge: parts.edge,
            queries: VecDeque::new(),
            next_heartbeat: None,
            phase: Phase::Serving,
            duty: Duty::default(),
            turns: parts.turns,
            busy_until: clock::now() + BUSY_FOR,
            flows_panicked: 0,
            estate: parts.estate,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving && self.waiting.is_empty()
    }

    fn handle_tu_events(&mut self, now: Instant) {
        while let Some(event) = self.layer.poll_event() {
            match event {
                TuEvent::Request { id, flow, request } => self.handle_request(now, id, flow, request),
                TuEvent::NoRoom { flow, request, why } => self.refuse_for_room(now, &flow, &request, why),
                TuEvent::Ack { flow, request } => self.handle_ack(now, &flow, &request),
                TuEvent::Cancelled { id } => {
                    if let Some(leg) = self.by_invite.get(&id).copied() {
                        self.with(now, leg, |entry| entry.call.handle_cancel(now));
                    }
                }
                TuEvent::ServerTimeout { id } => {
                    if let Some(leg) = self.by_invite.get(&id).copied() {
                        self.with_leg(now, leg, |call, _| call.handle_no_ack(now, id));
                    }
                }
                TuEvent::Response { id, response } => self.handle_response(now, id, &response),
                TuEvent::ClientTimeout { id } | TuEvent::ClientTransportError { id } => {
                    if let Some(leg) = self.by_client.remove(&id) {
                        self.with_leg(now, leg, |call, _| call.handle_client_failed(now, id));
                    }
                }
                // The transaction lives on and answers to the Via's address.
                TuEvent::ServerTransportError { .. } => {}
            }
        }
    }

    fn handle_request(&mut self, now: Instant, id: ServerId, flow: SipFlow, request: Request) {
        let dialog = DialogId::of_request(&request);
        let seen = self.gate.seen(&flow, &request);
        if let Err((rule, response)) = self.inspect(&seen, dialog.is_some(), &request) {
            return self.refuse(now, id, rule, &seen.flow, &request, *response);
        }
        let Some(dialog) = dialog else {
            return match request.method {
                Method::Invite => self.handle_invite(now, id, flow, &seen, request),
                Method::Options => self.handle_options(now, id, &request),
                _ => self.refuse_no_dialog(now, id, &seen.flow, &request),
            };
        };
        let Some(leg) = self.by_dialog.get(&dialog).copied() else {
            return self.refuse_no_dialog(now, id, &seen.flow, &request);
        };
        if !self.may_come_over(leg, &flow) {
            return self.refuse_in_clear(now, id, &seen.flow, &request);
        }
        let mut taken = Ok(());
        self.with_leg(now, leg, |call, rules| {
            call.handle_flow(flow);
            taken = call.handle_request(now, id, &request, rules);
        });
        match taken {
            Ok(()) => self.note_reinvite(id, leg),
            Err((rule, response)) => self.refuse(now, id, rule, &seen.flow, &request, *response),
        }
    }

    fn handle_ack(&mut self, now: Instant, flow: &SipFlow, ack: &Request) {
        let leg = DialogId::of_request(ack).and_then(|dialog| self.by_dialog.get(&dialog).copied());
        if let Some(leg) = leg.filter(|leg| self.may_come_over(*leg, flow)) {
            self.with_leg(now, leg, |call, _| call.handle_ack(now, ack));
        }
    }

    fn handle_response(&mut self, now: Instant, id: ClientId, response: &Response) {
        let Some(leg) = self.by_client.get(&id).copied() else {
            return;
        };
        // Another one may answer an INVITE after the first has (RFC 3261 §13.2.2.4).
        let may_fork = response.status < 300 && self.began_with(leg, id);
        if response.status >= 200 && !may_fork {
            self.by_client.remove(&id);
        }
        self.with_leg(now, leg, |call, _| call.handle_response(now, id, response));
    }

    /// Remembers which leg a re-INVITE's transaction belongs to, if the leg took it and now
    /// waits for its ACK. One that was refused must not take the place of one that waits.
    fn note_reinvite(&mut self, id: ServerId, leg: LegId) {
        let owner = self.owner(leg);
        let Some(entry) = self.calls.get_mut(&owner) else { return };
        if entry.leg(leg).is_some_and(|call| call.pending_reinvite() == Some(id)) {
            if let Some(at) = entry.reinvites.iter().position(|(of, _)| *of == leg) {
                let (_, earlier) = entry.reinvites.swap_remove(at);
                self.by_invite.remove(&earlier);
            }
            entry.reinvites.push((leg, id));
            self.by_invite.insert(id, leg);
        }
    }

    /// Acts on a call and does what it then wants done.
    pub(super) fn with(&mut self, now: Instant, leg: LegId, act: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.calls.get_mut(&leg) {
            act(entry);
            self.settle(now, leg);
        }
    }

    /// Asks the mailbox; what finds its queue full waits here, in order.
    pub(super) fn ask_mailbox(&mut self, request: MailboxRequest) {
        self.waiting.push_back(request);
        self.flush_mailbox();
    }

    /// Another thread does not answer: the call must not wait for ever.
    fn check_patience(&mut self, now: Instant, leg: LegId) {
        let Some(entry) = self.calls.get(&leg) else { return };
        match entry.patience {
            Patience::ForAnswer(at) if at <= now && entry.ready.lacks_only_greeting() => {
                tracing::error!(
                    mailbox = &*entry.target.number,
                    "no greeting in time; the built-in one serves"
                );
                self.handle_greeting(now, leg, Ok(None));
            }
            Patience::ForAnswer(at) if at <= now => {
                let why = if entry.ready.shard.is_some() {
                    "the media shard does not answer"
                } else {
                    "the mailbox does not answer"
                };
                let Some(invite) = entry.call.invite() else { return };
                let mut response = self.unavailable(invite, why);
                self.note_refused_call(now, leg, "not_ready", &mut response);
                self.with(now, leg, |entry| entry.call.refuse(response));
            }
            Patience::ForClose(at) if at <= now => {
                // Its shard keeps the leg in its count and so gets fewer new ones.
                tracing::error!(?leg, "the media shard did not close a leg");
                self.with(now, leg, |entry| {
                    entry.call.handle_closed(now, None);
                    if let Some(callee) = entry.far.as_mut().and_then(|far| far.anchor.callee_mut()) {
                        callee.handle_closed(now, None);
                    }
                });
            }
            Patience::ForAnswer(_) | Patience::ForClose(_) | Patience::Endless => {}
        }
    }

    /// The calls so far are not to be seen in any sum.
    pub(super) fn forget_counts(&mut self) {
        self.answered = 0;
        self.ended.clear();
    }

    /// Ends every call, within `patience`.
    pub(super) fn stop(&mut self, now: Instant, why: &str, patience: Duration) {
        let deadline = now + patience;
        match &mut self.phase {
            Phase::Serving => {}
            Phase::Stopping { deadline: earlier } => return *earlier = deadline.min(*earlier),
            Phase::Over => return,
        }
        tracing::info!(why, calls = self.calls.len(), "stopping");
        self.phase = Phase::Stopping { deadline };
        let legs: Vec<_> = self.calls.keys().copied().collect();
        for leg in legs {
            let Some(entry) = self.calls.get(&leg) else { continue };
            let unavailable = |invite| self.unavailable(invite, "the worker is stopping");
            let response = entry.call.invite().map(unavailable);
            self.with(now, leg, |entry| {
                if let Some(response) = response {
                    entry.call.refuse(response);
                }
                entry.call.hang_up(now, EndCause::Shutdown);
            });
        }
    }

    /// Ends the worker when it has been told to and is done, or cannot go on.
    fn check_phase(&mut self, now: Instant) {
        let broken = self.shards.as_ref().is_some_and(Shards::is_broken)
            || self.mailbox.as_ref().is_some_and(|mailbox| !mailbox.is_running());
        match self.phase {
            Phase::Serving | Phase::Stopping { .. } if broken => {
                // The supervisor starts another; the spool keeps what was recorded.
                tracing::error!("a media shard or the mailbox ended; the worker gives up");
                self.phase = Phase::Over;
            }
            Phase::Stopping { deadline }
                if (self.calls.is_empty() && self.left.is_empty() && self.waiting.is_empty())
                    || deadline <= now =>
            {
                self.end_in_order();
            }
            Phase::Serving => self.check_duty(now),
            Phase::Stopping { .. } | Phase::Over => {}
        }
        if self.phase == Phase::Over {
            self.turns.end();
        }
    }

    /// Ends a worker that gave way once it has nothing left to do, or no time.
    fn check_duty(&mut self, now: Instant) {
        let is_empty = self.calls.is_empty() && self.left.is_empty() && self.waiting.is_empty();
        match self.duty.step(now, is_empty) {
            Step::Wait => {}
            Step::WindUp => self.wind_up(now),
            Step::Stop => self.stop(now, "the time to drain is over", STOP_TIMEOUT),
            Step::Leave => {
                tracing::info!(slot = self.slot.name(), "drained");
                self.end_in_order();
            }
        }
    }

    /// Ends in order: nobody has to go on with its calls.
    fn end_in_order(&mut self) {
        self.phase = Phase::Over;
        self.link.report(FromWorker::Over);
    }

    fn beat(&mut self, now: Instant) {
        if self.next_heartbeat.is_none_or(|at| at <= now) {
            self.next_heartbeat = Some(now + HEARTBEAT_INTERVAL);
            let mut refused_total = self.refusals.totals().clone();
            user_agent::add_transport_refusals(&mut refused_total, &self.counters);
            let mut counters = user_agent::counters("sip_", &*self.counters);
            counters.extend(self.ended.clone());
            counters.insert("flows_panicked".to_owned(), self.flows_panicked);
            let kept = self.estate.iter().flat_map(Estate::counters);
            counters.extend(kept.map(|(name, count)| (name.to_owned(), count)));
            if let Some(mailbox) = &self.mailbox {
                counters.extend(user_agent::counters("mailbox_", &mailbox.snapshot()));
            }
            self.link.report(FromWorker::Heartbeat(Heartbeat {
                calls_active: self.calls.len() as u64,
                calls_total: self.answered,
                refused_total,
                counters,
                shards: self.shards.as_ref().map(Shards::status).unwrap_or_default(),
                trouble: self.trouble(),
            }));
        }
    }

    /// Something happened: more may follow soon.
    pub(super) fn be_busy(&mut self, now: Instant) {
        self.busy_until = now + BUSY_FOR;
    }
}

impl Role for Calls {
    fn admits(&mut self, _now: Instant, _listener: u16, remote: SocketAddr) -> bool {
        self.gate.admits(remote) || (self.duty.is_proving() && self.gate.is_own(remote.ip()))
    }

    fn tls_name(&self, remote: SocketAddr) -> Option<String> {
        // A call whose caller's connection is gone, and who is to be called back there.
        let calls_back = |entry: &Entry| matches!(entry.call.destination(), Destination::Address { remote: at, .. } if at == remote);
        let gateway = self.calls.values().find(|entry| calls_back(entry)).map(|entry| &*entry.gateway);
        match self.calls.values().find_map(|entry| entry.far.as_ref()?.gateway_at(remote)) {
            Some(called) => self.gate.callee_tls_name(remote, called),
            None => self.gate.tls_name(remote, gateway),
        }
    }

    fn handle_secured(&mut self, _now: Instant, flow: SipFlow, peer: Option<Arc<PeerNames>>) {
        self.gate.handle_secured(&flow, peer);
    }

    fn handle_message(&mut self, now: Instant, flow: SipFlow, message: Message) {
        if self.gate.drops(now, &flow, &message, &mut self.refusals) {
            return;
        }
        self.be_busy(now);
        self.layer.handle_message(now, flow, message);
        self.handle_tu_events(now);
    }

    fn handle_flow_closed(&mut self, now: Instant, flow: FlowId) {
        self.gate.handle_flow_closed(flow);
        self.layer.handle_flow_closed(flow);
        for entry in self.calls.values_mut() {
            entry.call.handle_flow_closed(flow);
        }
        self.handle_tu_events(now);
    }

    fn handle_send_failed(&mut self, now: Instant, transmit: &Transmit) {
        self.layer.handle_send_failed(now, transmit);
        self.handle_tu_events(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.layer.handle_timeout(now);
        self.handle_tu_events(now);
        while let Some((at, leg)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.remove(&(at, leg));
            self.with(now, leg, |entry| {
                entry.timer = None;
                entry.call.handle_timeout(now, &entry.rules);
                entry.with_flow(|flow| flow.handle_timeout(now));
                if let Some(far) = &mut entry.far {
                    far.anchor.handle_timeout(now, &entry.rules);
                }
            });
            self.check_patience(now, leg);
            self.give_up_left(now, leg);
        }
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.layer.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let of_calls = self.timers.first().map(|(at, _)| *at);
        self.layer.poll_timeout().into_iter().chain(of_calls).min()
    }

    fn pump(&mut self, now: Instant) -> Duration {
        self.turns.count();
        self.gate.pump();
        self.take_orders(now);
        self.settle_listeners();
        self.take_media_events(now);
        self.look_at_shards(now);
        self.resources.look(now, &self.config);
        self.take_mailbox_replies(now);
        self.answer_queries(now);
        self.take_cut_short(now);
        self.take_proof();
        self.check_resuming(now);
        self.write_down();
        self.check_phase(now);
        self.beat(now);
        if now < self.busy_until { PUMP_BUSY } else { PUMP_IDLE }
    }

    fn handle_busy(&mut self, permille: u16) {
        self.overload.handle_busy(permille, &mut self.layer);
    }

    fn is_finished(&self) -> bool {
        self.phase == Phase::Over
    }
}

impl Drop for Calls {
    /// Ends the shards first: the mailbox then takes what they still had.
    fn drop(&mut self) {
        if let Some(shards) = self.shards.take() {
            shards.join();
        }
        if let Some(mailbox) = self.mailbox.take() {
            mailbox.join();
        }
    }
}

#[cfg(test)]
mod tests;
