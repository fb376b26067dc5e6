//! An inbound call: the leg that a caller opened with us.
//!
//! RFC 3261 §13.3 (UAS), §15 (BYE); RFC 3264 through `sdp`; RFC 4028 session timers. The call asks the
//! shard for its media leg, answers once that is open, and is over when it has reported its final
//! counters.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::base::id::LegId;
use crate::call::leg::{
    CallLeg, KeptLeg, Leg, Life, Path, agreed_interval, cseq_number, describe, read_offer,
};
use crate::call::leg::{refusal, refuse_media};
use crate::call::outcome::{EndCause, Output};
use crate::media::order::{LegPlan, LegStats, MediaPlan};
use crate::sdp::{KeySource, LocalMedia, Negotiated, OfferKeys, OwnKeys};
use crate::sip::dialog::{Dialog, DialogId};
use crate::sip::flow::{Destination, Flow, FlowId, Transport};
use crate::sip::header::SyntaxError;
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Method, Request, Response};
use crate::sip::session_timer::{self, SessionRules};
use crate::sip::uas::UasRules;

mod contact;

use contact::contact;

/// What every call of a worker has in common.
#[derive(Debug, Clone)]
pub struct CallRules {
    /// Codecs, addresses, crypto suites. Each call has its own `nat`, `srtp.allowed` and
    /// `srtp.required`.
    pub local: LocalMedia,
    /// Callers may be behind a NAT: media from the address that signals is taken too.
    pub nat: bool,
    /// Random bytes for our SRTP keys.
    pub key_source: KeySource,
    /// Our name in Contact over TLS, where a certificate is checked against it.
    pub fqdn: Option<String>,
    /// RTCP canonical name.
    pub cname: String,
    /// No RTP for this long ends the call.
    pub media_timeout: Duration,
    /// Longest call.
    pub duration_max: Duration,
    /// Session intervals we ask for and accept.
    pub session: SessionRules,
    /// What we serve, for Allow, Accept and Supported.
    pub uas: UasRules,
}

/// What a call may and must do about SRTP, and whose media it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSecurity {
    /// Keys may be exchanged: the hop is encrypted, or `srtp.sdes_over_plain` is set.
    pub allowed: bool,
    /// The dial plan takes calls under SRTP only.
    pub required: bool,
    /// Who called the node, where another hop forwarded the call: behind a NAT media come from there.
    /// `None`: who is at the other end of the flow.
    pub caller: Option<IpAddr>,
}

/// Why an INVITE cannot become a call, or a request in its dialog is not served: the rule's name for
/// log and counters, and the final response.
pub type Refusal = (&'static str, Box<Response>);

/// How far an INVITE without final response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// What the call is for is looked up.
    Routing,
    /// The media leg is asked for.
    Opening,
    /// The media leg is open; the worker says when to answer.
    Opened,
}

/// The INVITE and what is to be answered: nobody needs it once its final response was sent.
struct Opening {
    state: State,
    invite: Request,
    /// The INVITE's offer, if it had one.
    offer: Option<Negotiated>,
    /// Our answer to it, once it was sent in a 183: the 200 has the same.
    answer: Option<Bytes>,
    /// What the INVITE's 200 will say about the session interval.
    interval: Option<session_timer::Negotiated>,
    has_rung: bool,
}

/// An answered call, for another process to go on with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptInbound {
    /// Its leg.
    pub leg: KeptLeg,
    cseq: Option<u32>,
    is_established: bool,
}

/// An inbound call. `Debug` shows little of it: descriptions have keys.
pub struct InboundCall {
    leg: Leg,
    /// The INVITE's transaction.
    server: ServerId,
    /// Its CSeq number, and its ACK's.
    cseq: Option<u32>,
    /// The INVITE had an offer, so that its ACK has no answer.
    was_offered: bool,
    opening: Option<Box<Opening>>,
}

impl std::fmt::Debug for InboundCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboundCall")
            .field("leg", &self.leg.id)
            .field("state", &self.state())
            .field("life", &self.leg.life)
            .finish_non_exhaustive()
    }
}

impl InboundCall {
    /// Takes an INVITE outside a dialog and answers 100.
    ///
    /// `local_tag` is the To tag of all our responses.
    ///
    /// # Errors
    /// The final response to an INVITE that cannot become a call: 400, 403, 422 or 488; 500 without
    /// random numbers for a key.
    pub fn new(
        id: LegId,
        server: ServerId,
        flow: Flow,
        invite: Request,
        local_tag: &str,
        security: CallSecurity,
        rules: &CallRules,
    ) -> Result<Self, Refusal> {
        if flow.transport != Transport::Tls && contact::is_sips(&invite) {
            let why = "a sips: URI is served over TLS only";
            return Err(("sips_over_plain", refusal(&invite, 403, "Forbidden", why, rules)));
        }
        let mut local = rules.local.clone();
        local.nat = rules.nat.then(|| security.caller.unwrap_or(flow.remote.ip()));
        local.srtp.allowed = security.allowed;
        local.srtp.required = security.required;
        let keys = OwnKeys { in_use: None, source: rules.key_source };
        let offer = read_offer(&invite, &local, keys, rules)?;
        let (address, offered) = match &offer {
            Some(offer) => (offer.address(), OfferKeys::plain()),
            None => {
                let address = local.addresses.of_family(flow.local.ip());
                let offered = if security.required {
                    let keys = OfferKeys::every_suite(&local.srtp, keys);
                    keys.map_err(|error| refuse_media(&invite, &error, rules))?
                } else {
                    OfferKeys::plain()
                };
                (address.unwrap_or(local.addresses.first()), offered)
            }
        };
        local.addresses = address.into();
        let interval = agreed_interval(&invite, rules)?;
        let dialog = Dialog::uas(&invite, local_tag, &contact(&invite, &flow, rules.fqdn.as_deref()));
        let dialog = dialog.map_err(|error| {
            ("malformed", refusal(&invite, 400, "Bad Request", &error.to_string(), rules))
        })?;
        let mut leg = Leg::new(id, Path::From { flow, closed: false }, dialog, local, offered);
        leg.plan = offer.as_ref().map(|offer| offer.plan().clone());
        if let Some(plan) = &leg.plan {
            leg.described.peer = plan.direction().reversed();
        }
        leg.put(Output::Respond(server, Response::for_request(&invite, 100, "Trying")));
        let (cseq, was_offered) = (cseq_number(&invite), offer.is_some());
        let state = State::Routing;
        let opening = Opening { state, invite, offer, answer: None, interval, has_rung: false };
        Ok(Self { leg, server, cseq, was_offered, opening: Some(Box::new(opening)) })
    }

    /// For another process; `None` unless it was answered and stands.
    pub fn kept(&self) -> Option<KeptInbound> {
        let is_established = matches!(self.leg.life, Life::Established { .. });
        // An answer that is still to come in an ACK would come to the dead.
        let leg = self.leg.kept().filter(|_| is_established || self.was_offered)?;
        Some(KeptInbound { leg, cseq: self.cseq, is_established })
    }

    /// Goes on where [`Self::kept`] was said. An ACK that had not come is taken as come: it may have
    /// reached the process that died.
    ///
    /// # Errors
    /// What was kept is of another form.
    pub fn resume(id: LegId, kept: KeptInbound) -> Result<Self, SyntaxError> {
        let mut leg = Leg::resume(id, kept.leg)?;
        if !kept.is_established {
            leg.put(Output::Started);
        }
        Ok(Self { leg, server: ServerId::GONE, cseq: kept.cseq, was_offered: true, opening: None })
    }

    /// The INVITE that opened the call; `None` once it has its final response.
    pub fn invite(&self) -> Option<&Request> {
        self.opening.as_ref().map(|opening| &opening.invite)
    }

    /// The dialog with the caller.
    pub fn dialog(&self) -> &Dialog {
        &self.leg.dialog
    }

    fn state(&self) -> Option<State> {
        self.opening.as_ref().map(|opening| opening.state)
    }

    /// The state of an INVITE that awaits its answer, to be changed.
    fn opening_in(&mut self, state: State) -> Option<&mut Opening> {
        self.opening.as_deref_mut().filter(|opening| opening.state == state)
    }

    /// True until the dialog begins to end.
    pub fn is_alive(&self) -> bool {
        self.leg.is_alive()
    }

    /// The cause of its end, once it begins; also while our BYE waits for an ACK.
    pub fn ending(&self) -> Option<EndCause> {
        self.leg.ending()
    }

    /// The media leg is open, and the INVITE awaits its answer.
    pub fn is_ready(&self) -> bool {
        self.state() == Some(State::Opened)
    }

    /// True until the INVITE has its final response.
    pub fn awaits_answer(&self) -> bool {
        self.opening.is_some()
    }

    /// What its INVITE came over.
    pub fn flow(&self) -> Option<Flow> {
        match self.leg.path {
            Path::From { flow, .. } => Some(flow),
            Path::To { .. } => None,
        }
    }

    /// Where our requests to the caller go.
    pub fn destination(&self) -> Destination {
        self.leg.destination()
    }

    /// There is a mailbox: ask for a media leg and ring.
    pub fn accept(&mut self, rules: &CallRules) {
        if let Some(opening) = self.opening_in(State::Routing) {
            opening.state = State::Opening;
            self.leg.open(self.leg.plan.clone(), rules);
            self.ring(rules);
        }
    }

    /// The call goes on to somebody else: ask for a media leg, which learns what was agreed on once that
    /// one has answered.
    pub fn anchor(&mut self, rules: &CallRules) {
        if let Some(opening) = self.opening_in(State::Routing) {
            opening.state = State::Opening;
            self.leg.open(None, rules);
            self.leg.plan = None;
        }
    }

    /// What the INVITE's offer comes to, if it had one and awaits our answer.
    pub fn offer(&self) -> Option<&MediaPlan> {
        self.opening.as_ref()?.offer.as_ref().map(Negotiated::plan)
    }

    /// Tells the caller that it rings, once.
    pub fn ring(&mut self, rules: &CallRules) {
        if let Some(opening) = &mut self.opening
            && !std::mem::replace(&mut opening.has_rung, true)
        {
            let ringing = self.leg.response(&opening.invite, 180, "Ringing", rules);
            self.leg.put(Output::Respond(self.server, ringing));
        }
    }

    /// Lets the caller hear what comes before the answer: 183 with our answer to its offer, once. Without
    /// an offer it only rings: ours has to wait for the 200, which is sure to arrive.
    pub fn progress(&mut self, rules: &CallRules) {
        if !self.was_offered {
            return self.ring(rules);
        }
        if let Some(opening) = self.opening.as_deref_mut()
            && opening.state == State::Opened
            && opening.answer.is_none()
        {
            let sdp = opening.describe_answer(&mut self.leg);
            let mut response = self.leg.response(&opening.invite, 183, "Session Progress", rules);
            if let Some(sdp) = sdp {
                describe(&mut response.headers, &mut response.body, sdp);
            }
            self.leg.put(Output::Respond(self.server, response));
        }
    }

    /// What the callee has agreed on: our answer takes the same codec where the caller has it, and key
    /// presses only where both sides have them. Without effect once our answer was sent.
    pub fn match_with(&mut self, callee: &MediaPlan, rules: &CallRules) {
        let Some(opening) = self.opening.as_deref_mut() else { return };
        if opening.offer.is_none() || opening.answer.is_some() {
            return;
        }
        let local = &mut self.leg.local;
        let all = std::mem::replace(&mut local.codecs, vec![callee.codec]);
        local.dtmf &= callee.dtmf_payload_type.is_some();
        let same = opening.read_offer(local, rules);
        local.codecs = all;
        if let Some(offer) = same.or_else(|| opening.read_offer(local, rules)) {
            opening.offer = Some(offer);
        }
    }

    /// Refuses the INVITE; without effect once it is answered.
    pub fn refuse(&mut self, response: Response) {
        let cause = EndCause::Refused(response.status);
        self.refuse_because(response, cause);
    }

    /// The same for another cause than a refusal of ours.
    pub fn refuse_because(&mut self, response: Response, cause: EndCause) {
        if self.opening.take().is_some() {
            self.leg.put(Output::Respond(self.server, response));
            self.leg.close(cause, None);
        }
    }

    /// The shard could not open the media leg: `response` is for an INVITE that still awaits one.
    pub fn handle_open_failed(&mut self, response: Option<Response>) {
        match response {
            Some(response) if self.state() == Some(State::Opening) => {
                self.leg.has_media = false;
                self.refuse(response);
            }
            // Refused or cancelled meanwhile: there is no leg to wait for.
            Some(_) | None => self.leg.end(None),
        }
    }

    /// Answers the INVITE with 200.
    pub fn answer(&mut self, now: Instant, rules: &CallRules) {
        let Some(mut opening) = self.opening.take_if(|opening| opening.state == State::Opened) else {
            return;
        };
        let sdp = opening.describe_answer(&mut self.leg).unwrap_or_else(|| {
            self.leg.described.awaits_answer = true;
            self.leg.describe_offer(self.leg.offered.clone())
        });
        let mut response = self.leg.response(&opening.invite, 200, "OK", rules);
        describe(&mut response.headers, &mut response.body, sdp);
        self.leg.agree_on_interval(now, opening.interval, &mut response);
        self.leg.put(Output::Respond(self.server, response));
        self.leg.life = Life::Answered { at: now, ending: None };
        self.leg.ends_at = Some(now + rules.duration_max);
    }

    /// CANCEL of the INVITE.
    pub fn handle_cancel(&mut self, now: Instant) {
        if self.awaits_answer() {
            self.hang_up(now, EndCause::Cancelled);
        }
    }

    /// What it has in common with the callee's side.
    pub(super) fn leg(&mut self) -> &mut Leg {
        &mut self.leg
    }

    /// Tells the caller that it is over, and closes.
    fn part(&mut self, now: Instant, cause: EndCause) {
        let Some(opening) = &self.opening else {
            return self.leg.part(now, cause);
        };
        let (status, reason) = match cause {
            EndCause::Cancelled | EndCause::CallerHungUp => (487, "Request Terminated"),
            _ => (500, "Server Internal Error"),
        };
        let response = Response::for_request(&opening.invite, status, reason);
        self.refuse_because(response, cause);
    }
}

impl Opening {
    fn read_offer(&self, local: &LocalMedia, rules: &CallRules) -> Option<Negotiated> {
        let keys = OwnKeys { in_use: None, source: rules.key_source };
        read_offer(&self.invite, local, keys, rules).ok().flatten()
    }

    /// Our answer to the INVITE's offer, made once; `None` without an offer.
    fn describe_answer(&mut self, leg: &mut Leg) -> Option<Bytes> {
        if self.answer.is_none() {
            let offer = self.offer.as_mut()?;
            self.answer = Some(leg.describe_answer(offer));
            let plan = offer.plan().clone();
            if leg.plan.as_ref() != Some(&plan) {
                leg.adopt(plan);
            }
        }
        self.answer.clone()
    }
}

impl CallLeg for InboundCall {
    fn handle_flow(&mut self, flow: Flow) {
        self.leg.handle_flow(flow);
    }

    fn media_plan(&self, rules: &CallRules) -> LegPlan {
        self.leg.media_plan(rules)
    }

    fn rtp_port(&self) -> u16 {
        self.leg.rtp_port
    }

    fn is_answered(&self) -> bool {
        self.leg.is_answered()
    }

    fn id(&self) -> LegId {
        self.leg.id
    }

    fn dialog_id(&self) -> &Arc<DialogId> {
        self.leg.dialog.shared_id()
    }

    fn plan(&self) -> Option<&MediaPlan> {
        self.leg.plan.as_ref()
    }

    fn handle_opened(&mut self, rtp_port: u16) {
        if let Some(opening) = self.opening_in(State::Opening) {
            opening.state = State::Opened;
            self.leg.rtp_port = rtp_port;
        }
    }

    fn handle_closed(&mut self, now: Instant, stats: Option<Box<LegStats>>) {
        if self.is_alive() {
            self.leg.has_media = false;
            self.part(now, EndCause::MediaLost);
        }
        self.leg.end(stats);
    }

    fn handle_media_timeout(&mut self, now: Instant) {
        if self.awaits_answer() {
            self.leg.restart_media_timeout();
        } else {
            self.hang_up(now, EndCause::MediaTimeout);
        }
    }

    fn handle_request(
        &mut self,
        now: Instant,
        server: ServerId,
        request: &Request,
        rules: &CallRules,
    ) -> Result<(), Refusal> {
        self.leg.accept(request, rules)?;
        let response = match request.method {
            Method::Bye => {
                // RFC 3261 §15.1.2: the INVITE of an early dialog is answered 487.
                if self.awaits_answer() {
                    self.part(now, EndCause::CallerHungUp);
                }
                self.leg.handle_bye(now);
                Response::for_request(request, 200, "OK")
            }
            Method::Invite => self.leg.handle_reinvite(now, server, request, rules)?,
            Method::Update => self.leg.handle_update(now, request, rules)?,
            _ => self.leg.options_response(request, rules),
        };
        self.leg.put(Output::Respond(server, response));
        Ok(())
    }

    fn handle_ack(&mut self, now: Instant, ack: &Request) {
        match self.leg.life {
            // RFC 3261 §13.2.2.4: an ACK has its INVITE's CSeq number.
            Life::Answered { at, ending } if cseq_number(ack) == self.cseq => {
                self.leg.life = Life::Established { at };
                if let Some(cause) = ending {
                    self.hang_up(now, cause);
                } else if self.was_offered || self.leg.take_answer(now, &ack.body) {
                    self.leg.put(Output::Started);
                }
            }
            Life::Established { .. } => self.leg.handle_reinvite_ack(now, ack),
            Life::Early | Life::Answered { .. } | Life::Closing { .. } | Life::Ended { .. } => {}
        }
    }

    fn handle_no_ack(&mut self, now: Instant, server: ServerId) {
        if server == self.server {
            let cause = self.leg.ending().unwrap_or(EndCause::NoAck);
            self.part(now, cause);
        } else {
            self.leg.handle_no_ack(now, server);
        }
    }

    fn sent(&mut self, client: ClientId, request: Request) {
        self.leg.sent(client, request);
    }

    fn handle_response(&mut self, now: Instant, client: ClientId, response: &Response) {
        self.leg.handle_response(now, client, response);
    }

    fn handle_client_failed(&mut self, now: Instant, client: ClientId) {
        self.leg.handle_client_failed(now, client);
    }

    fn handle_flow_closed(&mut self, flow: FlowId) {
        self.leg.handle_flow_closed(flow);
    }

    /// A refusal while the INVITE is not answered, BYE once it is, and between 200 and ACK a BYE that
    /// waits for the ACK or its absence (RFC 3261 §15).
    fn hang_up(&mut self, now: Instant, cause: EndCause) {
        if self.awaits_answer() {
            self.part(now, cause);
        } else {
            self.leg.hang_up(now, cause);
        }
    }

    fn handle_timeout(&mut self, now: Instant, rules: &CallRules) {
        self.leg.handle_timeout(now, rules);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.leg.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.leg.poll_timeout()
    }

    fn pending_reinvite(&self) -> Option<ServerId> {
        self.leg.pending_reinvite()
    }

    fn may_come_over(&self, transport: Transport) -> bool {
        self.leg.may_come_over(transport)
    }
}

#[cfg(test)]
mod tests;
