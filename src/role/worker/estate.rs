//! Calls that outlast the worker: written down as they change, and taken up by the next worker of the
//! slot.
//!
//! What is written is what cannot be had elsewhere. How far the media of a leg has come is the shard's to
//! note, audio is loaded anew, and the rest follows from the configuration.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::clock;
use crate::base::id::{LegId, MessageId};
use crate::call::anchor::Anchor;
use crate::call::inbound::{InboundCall, KeptInbound};
use crate::call::leg::CallLeg;
use crate::call::outbound::{KeptOutbound, OutboundCall};
use crate::call::target::Caller;
use crate::mailbox::service::MailboxRequest;
use crate::media::mark::LegMark;
use crate::media::order::{Adoption, LegMode, Order};
use crate::role::hop::SELF_TEST;
use crate::role::worker::anchor::Far;
use crate::role::worker::calls::Calls;
use crate::role::worker::entry::{Asked, Entry, Patience, Readiness};
use crate::shard::ledger::{EntryId, Ledger, Records};
use crate::sip::flow::{Flow as SipFlow, FlowId, Transport};
use crate::sip::header::SyntaxError;
use crate::sip::layer::{Layer, ServerId};
use crate::um::answering::CallAnswering;
use crate::um::flow::{Flow, FlowState, ResumedMedia};
use crate::um::test_extension::TestExtension;

mod early;

use early::Early;

/// A call whose workers die one after the other may be what they die of.
const DEATHS_MAX: u8 = 3;
/// Deaths further apart have nothing to do with each other, seconds.
const DEATHS_APART_S: u32 = 60;
/// A greeting is loaded within this, or the built-in one serves.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the worker writes its calls down.
#[derive(Debug)]
pub struct Estate {
    ledger: Ledger,
    records: Records,
    /// Calls that were written to or are over since the last look.
    changed: Vec<LegId>,
    bytes: Vec<u8>,
    /// Calls that go on once their greeting is loaded, and when they go on without it.
    waiting: Vec<(Instant, LegId)>,
    /// Calls of dead workers that went on here.
    resumed: u64,
    /// And those that could not.
    lost: u64,
    /// Records for which there was no room.
    unkept: u64,
}

/// What is written down of a call.
#[derive(Debug, Serialize, Deserialize)]
enum Written {
    /// Answered: it goes on.
    Call(Box<Record>),
    /// Not answered yet.
    Early(Early),
}

/// An answered call. Times are uptimes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    call: KeptInbound,
    far: Option<KeptFar>,
    flow: Option<FlowState>,
    target: (Box<str>, Box<str>, Box<str>),
    caller: (String, String),
    seen: (Transport, SocketAddr, SocketAddr),
    gateway: Box<str>,
    started: Duration,
    latched: Option<SocketAddr>,
    deaths: Deaths,
}

/// The far side of an anchored call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeptFar {
    pub(super) callee: KeptOutbound,
    pub(super) route: String,
    pub(super) number: String,
    pub(super) gateway: String,
    pub(super) tries: u32,
    pub(super) transport: Option<Transport>,
    pub(super) latched: Option<SocketAddr>,
}

/// Workers that died with a call in their hands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deaths {
    count: u8,
    /// Uptime in seconds.
    last_s: u32,
}

impl Deaths {
    fn one_more(self, now: Duration) -> Self {
        let now_s = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let is_apart = now_s.saturating_sub(self.last_s) >= DEATHS_APART_S;
        Self { count: if is_apart { 1 } else { self.count.saturating_add(1) }, last_s: now_s }
    }
}

/// A dead worker's calls.
#[derive(Debug, Default)]
pub struct Heritage(Vec<(EntryId, Written)>);

impl Heritage {
    /// Even RTP ports of the calls' legs.
    pub fn ports(&self) -> HashSet<u16> {
        let of_far = |record: &Record| record.far.as_ref().map(|far| far.callee.leg.rtp_port());
        self.records()
            .flat_map(|record| [Some(record.call.leg.rtp_port()), of_far(record)])
            .flatten()
            .collect()
    }

    /// Recordings that are under way, or that the callers have still to decide about.
    pub fn recordings(&self) -> HashSet<MessageId> {
        let recording = |record: &Record| record.flow.as_ref().and_then(FlowState::recording).cloned();
        self.records().filter_map(recording).collect()
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.0.iter().filter_map(|(_, written)| match written {
            Written::Call(record) => Some(&**record),
            Written::Early(_) => None,
        })
    }
}

impl Estate {
    /// With what a dead worker has left in the ledger.
    pub fn new(ledger: Ledger) -> (Self, Heritage) {
        let mut records = Records::new(ledger.clone());
        let mut heritage = Heritage::default();
        let mut lost = 0;
        for (place, bytes) in ledger.records() {
            match postcard::from_bytes(&bytes) {
                Ok(record) => heritage.0.push((place, record)),
                Err(error) => {
                    tracing::error!(%error, "a dead worker's call cannot be read; it is lost");
                    records.clear(place);
                    lost += 1;
                }
            }
        }
        let estate = Self {
            ledger,
            records,
            changed: Vec::new(),
            bytes: Vec::new(),
            waiting: Vec::new(),
            resumed: 0,
            lost,
            unkept: 0,
        };
        (estate, heritage)
    }

    /// A call has changed.
    pub(super) fn note(&mut self, leg: LegId) {
        if self.changed.last() != Some(&leg) {
            self.changed.push(leg);
        }
    }

    /// A call is over.
    pub(super) fn forget(&mut self, place: Option<EntryId>) {
        if let Some(place) = place {
            self.records.clear(place);
        }
    }

    fn write(&mut self, entry: &mut Entry, layer: &Layer) {
        let record = Record::of(entry).map(|record| Written::Call(Box::new(record)));
        let record = record.or_else(|| Early::of(entry, layer).map(Written::Early));
        let Some(record) = record else { return self.forget(entry.place.take()) };
        self.bytes.clear();
        match postcard::to_extend(&record, std::mem::take(&mut self.bytes)) {
            Ok(bytes) => {
                entry.place = self.records.write(entry.place, &bytes);
                self.unkept += u64::from(entry.place.is_none());
                self.bytes = bytes;
            }
            // Memory is all it needs.
            Err(error) => tracing::error!(%error, "a call cannot be written down"),
        }
    }

    /// For the heartbeat.
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("calls_resumed", self.resumed),
            ("calls_not_resumed", self.lost),
            ("calls_not_written_down", self.unkept),
        ]
    }
}

impl Record {
    /// `None`: the call is not answered, or is ending; nobody goes on with it.
    fn of(entry: &Entry) -> Option<Self> {
        let call = entry.call.kept().filter(|_| *entry.gateway != *SELF_TEST)?;
        let far = match &entry.far {
            Some(far) => Some(far.kept()?),
            None => None,
        };
        let flow = entry.flow.as_ref().and_then(Flow::snapshot);
        let flow = flow.or_else(|| entry.ready.resuming.as_deref().cloned());
        if far.is_none() && flow.is_none() {
            return None;
        }
        let Asked { number, called, diversion_reason, .. } = &entry.target;
        let SipFlow { transport, local, remote, .. } = entry.seen;
        Some(Self {
            call,
            far,
            flow,
            target: (number.clone(), called.clone(), diversion_reason.clone()),
            caller: (entry.caller.number.clone(), entry.caller.name.clone()),
            seen: (transport, local, remote),
            gateway: entry.gateway.clone(),
            started: clock::uptime(entry.started),
            latched: entry.latched,
            deaths: entry.deaths,
        })
    }
}

impl Calls {
    /// Writes down what has changed.
    pub(super) fn write_down(&mut self) {
        let Some(estate) = &mut self.estate else { return };
        let mut changed = std::mem::take(&mut estate.changed);
        changed.sort_unstable();
        changed.dedup();
        for leg in changed.drain(..) {
            if let Some(entry) = self.calls.get_mut(&leg) {
                estate.write(entry, &self.layer);
            }
        }
        estate.changed = changed;
    }

    /// Goes on with a dead worker's calls.
    pub fn inherit(&mut self, now: Instant, heritage: Heritage) {
        let (calls, all) = (heritage.records().count(), heritage.0.len());
        for (place, written) in heritage.0 {
            let resumed = match written {
                Written::Call(record) => self.resume(now, place, *record),
                Written::Early(early) => {
                    self.forget_place(place);
                    self.settle_early(now, early);
                    Ok(())
                }
            };
            if let Err(error) = resumed {
                tracing::error!(%error, "a dead worker's call cannot be read; it is lost");
                self.forget_place(place);
                self.count_resumed(|estate| &mut estate.lost);
            }
        }
        if all > 0 {
            let unanswered = all - calls;
            tracing::warn!(
                slot = self.slot.name(),
                calls,
                unanswered,
                "the calls of a worker that died go on"
            );
        }
    }

    fn forget_place(&mut self, place: EntryId) {
        if let Some(estate) = &mut self.estate {
            estate.records.clear(place);
        }
    }

    pub(super) fn new_leg(&mut self) -> LegId {
        self.next_leg += 1;
        LegId(self.next_leg - 1)
    }

    fn resume(&mut self, now: Instant, place: EntryId, record: Record) -> Result<(), SyntaxError> {
        let leg = self.new_leg();
        let rules = Arc::clone(&self.rules);
        let port = record.call.leg.rtp_port();
        let call = InboundCall::resume(leg, record.call)?;
        let shard = self.shards.as_ref().and_then(|shards| shards.of_port(port));
        let far = match record.far {
            Some(kept) => {
                let callee = OutboundCall::resume(now, self.new_leg(), kept.callee.clone(), &rules)?;
                let anchor = Anchor::resume(&kept.gateway, callee, kept.tries);
                Some(Box::new(Far::resume(anchor, kept, shard)))
            }
            None => None,
        };
        let (number, called, diversion_reason) = record.target;
        let (transport, local, remote) = record.seen;
        let entry = Entry {
            call,
            rules,
            flow: None,
            flow_panicked: false,
            far,
            end: None,
            target: Asked { number, header: "", called, diversion_reason },
            caller: Caller { number: record.caller.0, name: record.caller.1 },
            seen: SipFlow { id: FlowId::GONE, listener: 0, transport, local, remote },
            gateway: record.gateway,
            server: ServerId::GONE,
            reinvites: Vec::new(),
            ready: Readiness { shard, ..Readiness::default() },
            started: clock::at_uptime(record.started),
            latched: record.latched,
            stats: None,
            timer: None,
            patience: Patience::Endless,
            place: Some(place),
            deaths: record.deaths.one_more(clock::uptime(now)),
        };
        self.enter(leg, entry);
        match record.flow {
            Some(state) if state.wants_greeting() => self.await_greeting(now, leg, state),
            state => self.go_on(now, leg, state),
        }
        Ok(())
    }

    /// Makes a call known by all its names.
    pub(super) fn enter(&mut self, leg: LegId, entry: Entry) {
        self.by_dialog.insert(Arc::clone(entry.call.dialog_id()), leg);
        *self.of_gateway.entry(entry.gateway.to_string()).or_default() += 1;
        if let Some((far, callee)) = entry.far.as_ref().and_then(|far| Some((far, far.anchor.callee()?))) {
            self.by_dialog.insert(Arc::clone(callee.dialog_id()), callee.id());
            self.owners.insert(callee.id(), leg);
            self.call_ids.insert(callee.dialog_id().call_id.clone());
            *self.of_gateway.entry(far.gateway.clone()).or_default() += 1;
        }
        self.calls.insert(leg, Box::new(entry));
    }

    fn await_greeting(&mut self, now: Instant, leg: LegId, state: FlowState) {
        let Some(entry) = self.calls.get_mut(&leg) else { return };
        let number = entry.target.number.to_string();
        entry.ready.resuming = Some(Box::new(state));
        if let Some(estate) = &mut self.estate {
            estate.waiting.push((now + GREETING_TIMEOUT, leg));
        }
        self.ask_mailbox(MailboxRequest::LoadGreeting { token: leg.0, number });
    }

    /// Lets calls go on whose greeting is not to be had.
    pub(super) fn check_resuming(&mut self, now: Instant) {
        while let Some(estate) = &mut self.estate
            && let Some((at, leg)) = estate.waiting.first().copied()
            && (at <= now || self.calls.get(&leg).is_none_or(|entry| entry.ready.resuming.is_none()))
        {
            estate.waiting.remove(0);
            if self.calls.get(&leg).is_some_and(|entry| entry.ready.resuming.is_some()) {
                tracing::error!(leg = leg.0, "no greeting in time; the built-in one serves");
                self.handle_greeting(now, leg, Ok(None));
            }
        }
    }

    /// Takes up flow and media of a call; `state` is of its flow.
    pub(super) fn go_on(&mut self, now: Instant, leg: LegId, state: Option<FlowState>) {
        let flow = state.and_then(|state| self.resumed_flow(leg, state));
        let media = flow.as_ref().map(Flow::resume_media).unwrap_or_default();
        let Some(entry) = self.calls.get_mut(&leg) else { return };
        entry.flow = flow;
        let may_go_on = entry.deaths.count <= DEATHS_MAX;
        if may_go_on && self.adopt_legs(leg, media) {
            self.count_resumed(|estate| &mut estate.resumed);
            return self.settle(now, leg);
        }
        tracing::error!(leg = leg.0, "a dead worker's call cannot go on; it is ended");
        self.count_resumed(|estate| &mut estate.lost);
        self.with(now, leg, |entry| entry.call.handle_closed(now, None));
    }

    fn count_resumed(&mut self, which: impl FnOnce(&mut Estate) -> &mut u64) {
        if let Some(estate) = &mut self.estate {
            *which(estate) += 1;
        }
    }

    fn resumed_flow(&mut self, leg: LegId, state: FlowState) -> Option<Flow> {
        Some(match state {
            FlowState::Answering(state) => {
                let party = self.party(leg, true)?;
                let greeting = self.calls.get(&leg)?.ready.greeting.clone();
                let greeting = greeting.unwrap_or_else(|| self.prompts.greeting.clone());
                let (prompts, limits) = (Arc::clone(&self.prompts), self.answering_limits());
                Flow::Answering(Box::new(CallAnswering::resume(party, greeting, prompts, limits, state)))
            }
            FlowState::Test(state) => {
                let (prompt, party) = (self.demo_loop.clone(), self.party(leg, false)?);
                let duration_max = self.recording_duration_max();
                Flow::Test(Box::new(TestExtension::resume(party, prompt, duration_max, state)))
            }
        })
    }

    /// Has the shard go on with the call's legs; false if it is not known how far they have come.
    fn adopt_legs(&mut self, leg: LegId, media: ResumedMedia) -> bool {
        let (Some(entry), Some(estate), Some(shards)) =
            (self.calls.get_mut(&leg), &self.estate, &mut self.shards)
        else {
            return false;
        };
        let mark_of = |call: &dyn CallLeg| {
            LegMark::from_words(&estate.ledger.mark(call.rtp_port())?).map(|mark| (call.rtp_port(), mark))
        };
        let Some((shard, (rtp_port, mark))) = entry.ready.shard.zip(mark_of(&entry.call)) else {
            return false;
        };
        let callee = entry.far.as_ref().and_then(|far| far.anchor.callee());
        let far_mark = callee.map(|callee| (callee.id(), callee.media_plan(&entry.rules), mark_of(callee)));
        if let Some(meta) = media.recording {
            // One that the shard has not heard of yet begins as a new one.
            if let Some(known) = mark.recording(&meta.id) {
                let (samples, ended) = (known.samples, known.end.is_some());
                self.waiting.push_back(MailboxRequest::Adopt { meta, samples, ended });
            }
        }
        let peer = match far_mark {
            None => None,
            Some((_, _, None)) => return false,
            Some((callee, plan, Some((rtp_port, mark)))) => {
                let adoption = Adoption { rtp_port, plan, mark, play: None, record: None, peer: None };
                Some((callee, Box::new(adoption)))
            }
        };
        let plan = entry.call.media_plan(&entry.rules);
        let legs = 1 + usize::from(peer.is_some());
        let adoption = Adoption { rtp_port, plan, mark, play: media.play, record: media.record, peer };
        shards.adopt(shard, legs, Order::Adopt(leg, Box::new(adoption)));
        if media.mode != LegMode::Voice {
            shards.send(shard, Order::Mode(leg, media.mode));
        }
        self.flush_mailbox();
        true
    }
}
