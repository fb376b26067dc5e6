//! The worker's signalling role: where dialogs, flows, media and mailbox meet.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::config::Config;
use crate::base::id::LegId;
use crate::base::random::SplitMix64;
use crate::call::admission::Limits;
use crate::call::inbound::CallRules;
use crate::call::outcome::{End, EndCause, Output as CallOutput};
use crate::control::cli::Slot;
use crate::mailbox::service::{MailboxHandle, MailboxRequest};
use crate::media::order::{Audio, Order};
use crate::role::gate::Gate;
use crate::role::link::{FromWorker, HEARTBEAT_INTERVAL, Heartbeat, WorkerLink};
use crate::role::refusals::Refusals;
use crate::role::user_agent;
use crate::role::worker::entry::{Entry, Patience};
use crate::role::worker::greetings::Greetings;
use crate::role::worker::reconfigure::Edge;
use crate::role::worker::shards::Shards;
use crate::signal::{Counters, Role};
use crate::sip::dialog::DialogId;
use crate::sip::flow::{Destination, Flow as SipFlow, FlowId, PeerNames, Transmit};
use crate::sip::layer::{ClientId, Layer, ServerId, TuEvent};
use crate::sip::message::{Message, Method, Request, Response};
use crate::um::answering::Prompts;
use crate::um::flow::{Flow, Input, Need, Output as FlowOutput};

/// How soon queues are looked at while calls are up: well inside a packet time.
const PUMP_BUSY: Duration = Duration::from_millis(2);
/// And while there are none.
const PUMP_IDLE: Duration = Duration::from_millis(10);
/// An orderly stop waits this long for legs to close.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

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
    pub(super) calls: HashMap<LegId, Entry>,
    pub(super) by_dialog: HashMap<DialogId, LegId>,
    pub(super) by_invite: HashMap<ServerId, LegId>,
    by_client: HashMap<ClientId, LegId>,
    timers: BTreeSet<(Instant, LegId)>,
    pub(super) shards: Option<Shards>,
    pub(super) mailbox: Option<MailboxHandle>,
    /// Requests that found the mailbox's queue full. New calls are refused then; these must get
    /// through.
    pub(super) waiting: VecDeque<MailboxRequest>,
    pub(super) link: Arc<WorkerLink>,
    pub(super) prompts: Prompts,
    pub(super) demo_loop: Audio,
    pub(super) greetings: Greetings,
    pub(super) next_leg: u64,
    pub(super) random: SplitMix64,
    answered: u64,
    pub(super) gate: Gate,
    pub(super) refusals: Refusals,
    pub(super) limits: Limits,
    /// Calls of each gateway.
    pub(super) of_gateway: HashMap<String, usize>,
    counters: Arc<Counters>,
    pub(super) edge: Edge,
    /// Queries for calls, each with the moment its answer goes out.
    pub(super) queries: VecDeque<(Instant, u64)>,
    next_heartbeat: Option<Instant>,
    phase: Phase,
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
}

impl Calls {
    /// A worker without calls.
    pub fn new(parts: Parts) -> Self {
        let limits = Limits::new(&parts.config);
        Self {
            config: parts.config,
            slot: parts.slot,
            rules: Arc::new(parts.rules),
            layer: parts.layer,
            calls: HashMap::new(),
            by_dialog: HashMap::new(),
            by_invite: HashMap::new(),
            by_client: HashMap::new(),
            timers: BTreeSet::new(),
            shards: Some(parts.shards),
            mailbox: Some(parts.mailbox),
            waiting: VecDeque::new(),
            link: parts.link,
            prompts: parts.prompts,
            demo_loop: parts.demo_loop,
            greetings: Greetings::default(),
            next_leg: 0,
            random: SplitMix64(parts.seed),
            answered: 0,
            gate: parts.gate,
            refusals: Refusals::default(),
            limits,
            of_gateway: HashMap::new(),
            counters: parts.counters,
            edge: parts.edge,
            queries: VecDeque::new(),
            next_heartbeat: None,
            phase: Phase::Serving,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving && self.waiting.is_empty()
    }

    fn handle_tu_events(&mut self, now: Instant) {
        while let Some(event) = self.layer.poll_event() {
            match event {
                TuEvent::Request { id, flow, request } => self.handle_request(now, id, flow, request),
                TuEvent::Ack { flow, request } => self.handle_ack(now, &flow, &request),
                TuEvent::Cancelled { id } => {
                    self.with_invite(now, id, |entry| entry.call.handle_cancel(now));
                }
                TuEvent::ServerTimeout { id } => {
                    self.with_invite(now, id, |entry| entry.call.handle_no_ack(now, id));
                }
                TuEvent::Response { id, response } => self.handle_response(now, id, &response),
                TuEvent::ClientTimeout { id } | TuEvent::ClientTransportError { id } => {
                    if let Some(leg) = self.by_client.remove(&id) {
                        self.with(now, leg, |entry| entry.call.handle_client_failed(now, id));
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
        self.with(now, leg, |entry| taken = entry.call.handle_request(now, id, &request, &entry.rules));
        match taken {
            Ok(()) => self.note_reinvite(id, leg),
            Err((rule, response)) => self.refuse(now, id, rule, &seen.flow, &request, *response),
        }
    }

    fn handle_ack(&mut self, now: Instant, flow: &SipFlow, ack: &Request) {
        let leg = DialogId::of_request(ack).and_then(|dialog| self.by_dialog.get(&dialog).copied());
        if let Some(leg) = leg.filter(|leg| self.may_come_over(*leg, flow)) {
            self.with(now, leg, |entry| entry.call.handle_ack(now, ack));
        }
    }

    fn handle_response(&mut self, now: Instant, id: ClientId, response: &Response) {
        let Some(leg) = self.by_client.get(&id).copied() else {
            return;
        };
        if response.status >= 200 {
            self.by_client.remove(&id);
        }
        let mut ack = None;
        self.with(now, leg, |entry| {
            let call = &mut entry.call;
            ack = call.handle_response(now, id, response).map(|ack| (call.destination(), ack));
        });
        if let Some((destination, ack)) = ack
            && let Some(entry) = self.calls.get(&leg)
        {
            self.layer.ack(id, destination, ack, entry.sip_flow.local);
        }
    }

    /// Remembers which call a re-INVITE's transaction belongs to, if the call took it and now
    /// waits for its ACK. One that was refused must not take the place of one that waits.
    fn note_reinvite(&mut self, id: ServerId, leg: LegId) {
        let Some(entry) = self.calls.get_mut(&leg) else { return };
        if entry.call.pending_reinvite() == Some(id) {
            if let Some(earlier) = entry.reinvite.replace(id) {
                self.by_invite.remove(&earlier);
            }
            self.by_invite.insert(id, leg);
        }
    }

    fn with_invite(&mut self, now: Instant, id: ServerId, act: impl FnOnce(&mut Entry)) {
        if let Some(leg) = self.by_invite.get(&id).copied() {
            self.with(now, leg, act);
        }
    }

    /// Acts on a call and does what it then wants done.
    pub(super) fn with(&mut self, now: Instant, leg: LegId, act: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.calls.get_mut(&leg) {
            act(entry);
            self.settle(now, leg);
        }
    }

    /// Does what a call and its flow want, until they want nothing more.
    pub(super) fn settle(&mut self, now: Instant, leg: LegId) {
        let Some(mut entry) = self.calls.remove(&leg) else {
            return;
        };
        let mut end = None;
        loop {
            if let Some(output) = entry.call.poll_output() {
                end = self.handle_call_output(now, leg, &mut entry, output).or(end);
            } else if let Some(output) = entry.flow.as_mut().and_then(Flow::poll_output) {
                self.handle_flow_output(now, leg, &mut entry, output);
            } else if let Some(end) = &end
                && entry.flow.is_some()
            {
                // The flow's last word: what becomes of a recording.
                self.hang_up_flow(now, leg, &mut entry);
                tracing::debug!(cause = %end.cause, "flow ended");
            } else {
                break;
            }
        }
        if let Some(at) = entry.timer.take() {
            self.timers.remove(&(at, leg));
        }
        match end {
            Some(end) => self.forget(now, leg, &entry, &end),
            None => {
                entry.patience = entry.patience.next(now, &entry.call);
                entry.timer = entry.poll_timeout();
                self.timers.extend(entry.timer.map(|at| (at, leg)));
                self.calls.insert(leg, entry);
            }
        }
    }

    fn handle_call_output(
        &mut self,
        now: Instant,
        leg: LegId,
        entry: &mut Entry,
        output: CallOutput,
    ) -> Option<End> {
        match output {
            CallOutput::Respond(id, response) => {
                self.layer.respond(now, id, response);
            }
            CallOutput::Request(destination, request) => {
                let client = self.layer.request(now, destination, request.clone(), entry.sip_flow.local);
                self.by_client.insert(client, leg);
                entry.call.sent(client, request);
            }
            CallOutput::Order(order @ Order::Open(..)) => self.open_leg(now, entry, order),
            CallOutput::Order(order) => self.send_order(entry, order),
            CallOutput::Started => {
                self.answered += 1;
                if let Some(flow) = &mut entry.flow {
                    flow.handle_input(now, clock::calendar(), Input::Started);
                }
            }
            CallOutput::Ended(end) => return Some(end),
        }
        None
    }

    fn handle_flow_output(&mut self, now: Instant, leg: LegId, entry: &mut Entry, output: FlowOutput) {
        match output {
            FlowOutput::Order(order) => self.send_order(entry, order),
            FlowOutput::HangUp => entry.call.hang_up(now, EndCause::WeHungUp),
            FlowOutput::Need(need) => {
                let request = match need {
                    Need::Keep(id) => MailboxRequest::Keep { id },
                    Need::Discard(id) => MailboxRequest::Discard { id },
                    Need::Review(id) => MailboxRequest::Review { token: leg.0, id },
                    Need::Missed(meta) => MailboxRequest::Missed(meta),
                };
                self.ask_mailbox(request);
            }
        }
    }

    fn hang_up_flow(&mut self, now: Instant, leg: LegId, entry: &mut Entry) {
        let Some(mut flow) = entry.flow.take() else {
            return;
        };
        flow.handle_input(now, clock::calendar(), Input::HungUp);
        while let Some(output) = flow.poll_output() {
            self.handle_flow_output(now, leg, entry, output);
        }
    }

    fn open_leg(&mut self, now: Instant, entry: &mut Entry, order: Order) {
        let opened = self.shards.as_mut().map(|shards| shards.open(order));
        if let Some(Ok(shard)) = opened {
            entry.ready.shard = Some(shard);
            return;
        }
        let mut response = self.unavailable(entry.call.invite(), "the media shards take no more orders");
        self.note_refusal(now, "media_busy", &entry.seen, entry.call.invite(), &mut response);
        entry.call.handle_open_failed(response);
    }

    fn send_order(&mut self, entry: &Entry, order: Order) {
        if let (Some(shards), Some(shard)) = (&mut self.shards, entry.ready.shard) {
            shards.send(shard, order);
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
                    mailbox = entry.target.number,
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
                let mut response = self.unavailable(entry.call.invite(), why);
                self.note_refused_call(now, leg, "not_ready", &mut response);
                self.with(now, leg, |entry| entry.call.refuse(response));
            }
            Patience::ForClose(at) if at <= now => {
                // Its shard keeps the leg in its count and so gets fewer new ones.
                tracing::error!(?leg, "the media shard did not close a leg");
                self.with(now, leg, |entry| entry.call.handle_closed(now, None));
            }
            Patience::ForAnswer(_) | Patience::ForClose(_) | Patience::Endless => {}
        }
    }

    fn forget(&mut self, now: Instant, leg: LegId, entry: &Entry, end: &End) {
        self.by_dialog.remove(entry.call.dialog_id());
        for id in [Some(entry.server), entry.reinvite].into_iter().flatten() {
            self.by_invite.remove(&id);
        }
        if let Some(calls) = self.of_gateway.get_mut(&entry.gateway) {
            *calls = calls.saturating_sub(1);
        }
        let stats = end.stats.as_deref().cloned().unwrap_or_default();
        tracing::info!(
            leg = leg.0,
            call_id = entry.call.invite().call_id().unwrap_or_default(),
            peer = %entry.seen.remote,
            gateway = entry.gateway,
            number = entry.target.number,
            cause = %end.cause,
            lasted_ms = entry.age(now).as_millis(),
            talked_ms = end.talked.map_or(0, |talked| talked.as_millis()),
            rx_packets = stats.rx_packets,
            tx_packets = stats.tx_packets,
            lost = stats.lost,
            late = stats.late,
            invalid = stats.invalid,
            source_filtered = stats.source_filtered,
            srtp_auth_failed = stats.srtp_auth_failed,
            srtcp_missing = stats.srtcp_missing,
            srtp_replayed = stats.srtp_replayed,
            "call ended"
        );
    }

    pub(super) fn stop(&mut self, now: Instant, why: &str) {
        if self.phase != Phase::Serving {
            return;
        }
        tracing::info!(why, calls = self.calls.len(), "stopping");
        self.phase = Phase::Stopping { deadline: now + STOP_TIMEOUT };
        let legs: Vec<_> = self.calls.keys().copied().collect();
        for leg in legs {
            let Some(entry) = self.calls.get(&leg) else { continue };
            let response = self.unavailable(entry.call.invite(), "the worker is stopping");
            self.with(now, leg, |entry| {
                entry.call.refuse(response);
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
                if (self.calls.is_empty() && self.waiting.is_empty()) || deadline <= now =>
            {
                self.phase = Phase::Over;
            }
            Phase::Serving | Phase::Stopping { .. } | Phase::Over => {}
        }
    }

    fn beat(&mut self, now: Instant) {
        if self.next_heartbeat.is_none_or(|at| at <= now) {
            self.next_heartbeat = Some(now + HEARTBEAT_INTERVAL);
            let mut refused_total = self.refusals.totals().clone();
            user_agent::add_transport_refusals(&mut refused_total, &self.counters);
            let mut counters = user_agent::counters("sip_", &*self.counters);
            if let Some(mailbox) = &self.mailbox {
                counters.extend(user_agent::counters("mailbox_", &mailbox.snapshot()));
            }
            self.link.report(FromWorker::Heartbeat(Heartbeat {
                calls_active: self.calls.len() as u64,
                calls_total: self.answered,
                refused_total,
                counters,
                shards: self.shards.as_ref().map(Shards::status).unwrap_or_default(),
            }));
        }
    }
}

impl Role for Calls {
    fn admits(&mut self, _now: Instant, _listener: u16, remote: SocketAddr) -> bool {
        self.gate.admits(remote)
    }

    fn tls_name(&self, remote: SocketAddr) -> Option<String> {
        // A call whose caller's connection is gone, and who is to be called back there.
        let calls_back = |entry: &&Entry| matches!(entry.call.destination(), Destination::Address { remote: at, .. } if at == remote);
        let gateway = self.calls.values().find(calls_back).map(|entry| entry.gateway.as_str());
        self.gate.tls_name(remote, gateway)
    }

    fn handle_secured(&mut self, _now: Instant, flow: SipFlow, peer: Option<Arc<PeerNames>>) {
        self.gate.handle_secured(&flow, peer);
    }

    fn handle_message(&mut self, now: Instant, flow: SipFlow, message: Message) {
        if self.gate.drops(now, &flow, &message, &mut self.refusals) {
            return;
        }
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
        self.layer.handle_send_failed(transmit);
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
                if let Some(flow) = &mut entry.flow {
                    flow.handle_timeout(now);
                }
            });
            self.check_patience(now, leg);
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
        self.gate.pump();
        self.take_orders(now);
        self.settle_listeners();
        self.take_media_events(now);
        self.take_mailbox_replies(now);
        self.answer_queries(now);
        self.take_cut_short(now);
        self.check_phase(now);
        self.beat(now);
        if self.calls.is_empty() { PUMP_IDLE } else { PUMP_BUSY }
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
