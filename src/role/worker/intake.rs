//! From an INVITE to an answered call: whose mailbox, is there one, its greeting, a leg.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::config::Security;
use crate::base::id::{LegId, MessageId};
use crate::base::random::SplitMix64;
use crate::call::admission::{Admitted, Load, Purpose};
use crate::call::inbound::{CallSecurity, InboundCall};
use crate::call::leg::CallLeg;
use crate::call::target::{self, Target};
use crate::mailbox::service::{MailboxHandle, MailboxInfo, MailboxRequest, Trouble};
use crate::media::order::RecordingMeta;
use crate::role::gate::Seen;
use crate::role::hop::SELF_TEST;
use crate::role::worker::calls::Calls;
use crate::role::worker::entry::{Entry, Patience, Readiness};
use crate::role::worker::estate::Deaths;
use crate::role::worker::refuse::Refusal;
use crate::role::worker::shards::Shards;
use crate::sip::flow::{Flow as SipFlow, Transport};
use crate::sip::layer::ServerId;
use crate::sip::message::{Request, Response};
use crate::sip::uas;
use crate::sip::uri::{Host, SipUri, Uri};
use crate::um::answering::{CallAnswering, Limits};
use crate::um::flow::{Flow, Party};
use crate::um::test_extension::{Kind, TestExtension};

/// How a call of ours to ourselves is admitted.
fn own_call() -> Admitted {
    Admitted {
        gateway: SELF_TEST.to_owned(),
        dial_plan: String::new(),
        security: Security::Unsecured,
        purpose: Purpose::Mailbox,
        target: Target {
            number: SELF_TEST.to_owned(),
            header: "Request-URI",
            uri: Uri::Sip(SipUri::new(Some(SELF_TEST), Host::Name(SELF_TEST.to_owned()), None)),
            called: SELF_TEST.to_owned(),
            diversion_reason: String::new(),
        },
        route: None,
    }
}

impl Calls {
    /// An INVITE outside a dialog.
    pub(super) fn handle_invite(
        &mut self,
        now: Instant,
        id: ServerId,
        flow: SipFlow,
        seen: &Seen,
        invite: Request,
    ) {
        if self.turns_away(now, id, &flow, seen, &invite) {
            return;
        }
        if let Err((rule, response)) = self.admit(now, id, (flow, seen), &invite) {
            self.refuse(now, id, rule, &seen.flow, &invite, *response);
        }
    }

    /// Admission, then the limits.
    fn judge(&mut self, now: Instant, seen: &Seen, invite: &Request) -> Result<Admitted, Refusal> {
        if self.tests_itself(seen) {
            return Ok(own_call());
        }
        let admitted = self.gate.judge(seen, invite).outcome;
        let admitted = admitted.map_err(|refused| self.not_admitted(invite, &refused))?;
        let gateway_calls = self.of_gateway.get(&admitted.gateway).copied().unwrap_or_default();
        let load = Load { calls: self.calls.len(), gateway_calls };
        let taken = self.limits.take(now, seen.flow.remote.ip(), &admitted.gateway, load);
        taken.map_err(|refused| self.not_admitted(invite, &refused))?;
        Ok(admitted)
    }

    fn admit(
        &mut self,
        now: Instant,
        id: ServerId,
        (sip_flow, seen): (SipFlow, &Seen),
        invite: &Request,
    ) -> Result<(), Refusal> {
        let unavailable = |why: &str| Box::new(self.unavailable(invite, why));
        if !self.is_serving() {
            let rule = if self.waiting.is_empty() { "stopping" } else { "mailbox_busy" };
            return Err((rule, unavailable("the worker takes no calls now")));
        }
        if let Some(shortage) = self.resources.shortage() {
            return Err((shortage.rule(), unavailable(&shortage.to_string())));
        }
        if self.shards.as_ref().is_some_and(Shards::are_behind) {
            return Err((
                "media_overload",
                unavailable("the media shards are busy with the calls they have"),
            ));
        }
        let Admitted { gateway, target, security, route, .. } = self.judge(now, seen, invite)?;
        let leg = LegId(self.next_leg);
        let tag = self.layer.local_tag(id).unwrap_or_default().to_owned();
        let security = self.security(&sip_flow, seen, security);
        let call = InboundCall::new(leg, id, sip_flow, invite.clone(), &tag, security, &self.rules)?;
        self.next_leg += 1;
        let kind = Kind::of(&target.number).filter(|_| self.config.test_extensions.enabled);
        let kind = if self.tests_itself(seen) { Some(Kind::Echo) } else { kind };
        let route = route.filter(|_| kind.is_none());
        if route.is_some() {
            self.check_hops(invite)?;
        }
        let number = target.number.clone();
        let entry = Entry {
            call,
            rules: Arc::clone(&self.rules),
            flow: None,
            flow_panicked: false,
            far: None,
            end: None,
            caller: target::caller(invite),
            target: target.into(),
            seen: seen.flow,
            gateway: gateway.as_str().into(),
            server: id,
            reinvites: Vec::new(),
            ready: Readiness::default(),
            started: now,
            latched: None,
            stats: None,
            timer: None,
            patience: Patience::for_answer(now),
            place: None,
            deaths: Deaths::default(),
        };
        self.enter(leg, entry);
        self.by_invite.insert(id, leg);
        match (kind, route) {
            (Some(kind), _) => self.accept_test(now, leg, kind),
            (None, Some(route)) => self.anchor(now, leg, &route),
            (None, None) => {
                self.settle(now, leg);
                self.ask_mailbox(MailboxRequest::Lookup { token: leg.0, number });
            }
        }
        Ok(())
    }

    /// What the call may and must do about SRTP. Keys that came to the node under TLS are good only
    /// if they came on to us under TLS too, or inside this machine.
    fn security(&self, flow: &SipFlow, seen: &Seen, required: Security) -> CallSecurity {
        let inside = flow.remote.ip().is_loopback() || flow.remote.ip() == flow.local.ip();
        let is_encrypted =
            seen.flow.transport == Transport::Tls && (flow.transport == Transport::Tls || inside);
        CallSecurity {
            allowed: is_encrypted || self.config.srtp.sdes_over_plain,
            required: required == Security::Secured,
            caller: Some(seen.flow.remote.ip()),
        }
    }

    fn accept_test(&mut self, now: Instant, leg: LegId, kind: Kind) {
        let Some(party) = self.party(leg, false) else {
            return;
        };
        let duration_max = self.recording_duration_max();
        let flow = TestExtension::new(kind, party, self.demo_loop.clone(), duration_max);
        self.with(now, leg, |entry| {
            entry.flow = Some(Flow::Test(Box::new(flow)));
            entry.call.accept(&entry.rules);
        });
    }

    /// The mailbox was looked up.
    pub(super) fn handle_lookup(
        &mut self,
        now: Instant,
        leg: LegId,
        mailbox: Result<Option<MailboxInfo>, String>,
    ) {
        let Some(entry) = self.calls.get(&leg) else { return };
        let Some(invite) = entry.call.invite() else { return };
        let trouble = self.mailbox.as_ref().and_then(MailboxHandle::trouble);
        let (rule, mut response) = match (mailbox, trouble) {
            (Ok(Some(_)), Some(trouble)) => ("storage", self.unavailable(invite, &trouble.to_string())),
            (Ok(Some(mailbox)), None) => return self.accept(now, leg, &mailbox),
            (Ok(None), _) => {
                let why = format!("{} names {}, no mailbox here", entry.target.header, entry.target.number);
                ("no_mailbox", self.not_found(invite, &why))
            }
            (Err(_), trouble) => {
                let trouble = trouble.unwrap_or(Trouble::Other);
                ("store", self.unavailable(invite, &trouble.to_string()))
            }
        };
        self.note_refused_call(now, leg, rule, &mut response);
        self.with(now, leg, |entry| entry.call.refuse(response));
    }

    fn accept(&mut self, now: Instant, leg: LegId, mailbox: &MailboxInfo) {
        let builtin = self.prompts.greeting.clone();
        self.with(now, leg, |entry| {
            entry.ready.wants_greeting = true;
            if !mailbox.has_greeting {
                entry.ready.greeting = Some(builtin);
            }
            entry.call.accept(&entry.rules);
        });
        if mailbox.has_greeting {
            self.ask_mailbox(MailboxRequest::LoadGreeting { token: leg.0, number: mailbox.number.clone() });
        }
    }

    /// The mailbox's own greeting is here; without it the built-in one serves.
    pub(super) fn handle_greeting(
        &mut self,
        now: Instant,
        leg: LegId,
        samples: Result<Option<Arc<[i16]>>, String>,
    ) {
        let Some(number) = self.calls.get(&leg).map(|entry| entry.target.number.to_string()) else {
            return;
        };
        let greeting = match samples {
            Ok(Some(samples)) => self.greetings.audio(&number, samples),
            // The mailbox has logged why.
            Ok(None) | Err(_) => self.prompts.greeting.clone(),
        };
        let mut resuming = None;
        self.with(now, leg, |entry| {
            entry.ready.greeting = Some(greeting);
            resuming = entry.ready.resuming.take();
        });
        match resuming {
            Some(state) => self.go_on(now, leg, Some(*state)),
            None => self.answer_when_ready(now, leg),
        }
    }

    /// Answers once leg and greeting are there.
    pub(super) fn answer_when_ready(&mut self, now: Instant, leg: LegId) {
        let is_ready =
            |entry: &Entry| entry.far.is_none() && entry.ready.is_complete() && entry.call.awaits_answer();
        let Some(entry) = self.calls.get(&leg).filter(|entry| is_ready(entry)) else {
            return;
        };
        if entry.flow.is_none() {
            let flow = self.answering_flow(leg);
            if let Some(entry) = self.calls.get_mut(&leg) {
                entry.flow = flow;
            }
        }
        self.with(now, leg, |entry| entry.call.answer(now, &entry.rules));
    }

    fn answering_flow(&mut self, leg: LegId) -> Option<Flow> {
        let party = self.party(leg, true)?;
        let greeting = self.calls.get(&leg)?.ready.greeting.clone()?;
        let (prompts, limits) = (Arc::clone(&self.prompts), self.answering_limits());
        Some(Flow::Answering(Box::new(CallAnswering::new(party, greeting, prompts, limits))))
    }

    pub(super) fn answering_limits(&self) -> Limits {
        let recording = &self.config.recording;
        Limits {
            duration_max: self.recording_duration_max(),
            silence_max: Duration::from_secs(u64::from(recording.silence_s)),
            voiced_min: Duration::from_millis(u64::from(recording.voiced_min_ms)),
            input_failures_max: self.config.calls.input_failures_max,
        }
    }

    pub(super) fn recording_duration_max(&self) -> Duration {
        Duration::from_secs(60 * u64::from(self.config.recording.duration_max_min))
    }

    /// What the flow knows of its call.
    pub(super) fn party(&mut self, leg: LegId, keep: bool) -> Option<Party> {
        let entry = self.calls.get(&leg)?;
        let meta = RecordingMeta {
            // Each recording gets its own; this one is never used.
            id: MessageId::new(std::time::SystemTime::UNIX_EPOCH, 0),
            mailbox: if keep { entry.target.number.to_string() } else { String::new() },
            caller: entry.caller.number.clone(),
            caller_name: entry.caller.name.clone(),
            called: entry.target.called.to_string(),
            diversion_reason: entry.target.diversion_reason.to_string(),
            call_id: entry.call.dialog_id().call_id.clone(),
            started_ms: 0,
            keep,
        };
        Some(Party { leg, meta, random: SplitMix64(self.random.bits()) })
    }

    fn not_found(&self, request: &Request, why: &str) -> Response {
        uas::refuse(request, &self.rules.uas.agent, 404, "Not Found", why)
    }
}
