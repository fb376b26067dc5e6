//! An outbound call: the leg that we open with a callee, on behalf of a caller.
//!
//! RFC 3261 §13.2 (UAC), §9.1 (CANCEL), §15 (BYE); RFC 3264 through `sdp`; RFC 4028 session timers. It
//! asks the shard for its media leg, sends the INVITE with our offer once that is open, and is over when
//! the media leg has reported its final counters and the INVITE has its final response.
//!
//! 100rel (RFC 3262) is not offered, so that no provisional response wants a PRACK.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::base::id::LegId;
use crate::call::inbound::{CallRules, Refusal};
use crate::call::leg::{CallLeg, Leg, Life, Path, cseq_number, describe, refusal};
use crate::call::outcome::{EndCause, Hop, Output};
use crate::media::order::{LegPlan, LegStats, MediaPlan};
use crate::sdp::{LocalMedia, OfferKeys, OwnKeys};
use crate::sip::dialog::{Dialog, DialogId};
use crate::sip::flow::{Destination, Flow, FlowId, Transport};
use crate::sip::header::NameAddr;
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Method, Name, Request, Response};
use crate::sip::session_timer::{self, SessionRules, SessionTimer};
use crate::sip::uri::Uri;

mod invite;
mod kept;

pub use invite::{TooManyHops, Way};
pub use kept::KeptOutbound;

/// A media shard opens a leg within this.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom to call, and as whom.
#[derive(Debug, Clone)]
pub struct Callee {
    /// The Request-URI.
    pub target: Uri,
    /// From, with a tag of ours.
    pub from: NameAddr,
    /// To.
    pub to: NameAddr,
    /// Our Call-ID.
    pub call_id: String,
    /// Our Contact's whole value.
    pub contact: String,
    /// What else the INVITE says.
    pub headers: Vec<(Name, Bytes)>,
    /// What carries it.
    pub transport: Transport,
    /// Where it goes.
    pub remote: SocketAddr,
    /// On whose behalf: the index of a listener of ours.
    pub listener: u16,
    /// Our address in Via.
    pub sent_by: SocketAddr,
}

/// What we offer, and how long we wait.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Codecs in order of preference, addresses, what SRTP may and must be.
    pub local: LocalMedia,
    /// Nothing heard for this long after the INVITE.
    pub try_timeout: Duration,
    /// No final response for this long after the INVITE.
    pub ring_timeout: Duration,
}

/// Why a callee was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A final response other than 2xx.
    Refused(Box<Response>),
    /// Nothing at all was heard in time.
    Silent,
    /// No connection, or no final response ever.
    Unreachable,
    /// It rang for as long as it may.
    NoAnswer,
    /// No media leg of ours.
    NoMedia,
    /// A 2xx with an SDP answer, or without, that cannot be used.
    BadAnswer,
}

/// How far a callee is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nobody rings yet.
    Trying,
    /// It rings.
    Ringing,
    /// The callee's media came before its answer.
    Early,
    /// 2xx, and media is agreed on.
    Answered,
    /// It failed, or is over.
    Over,
}

#[derive(Debug)]
enum State {
    /// The media leg is asked for.
    Opening { give_up: Option<Instant> },
    /// The INVITE may go.
    Opened,
    /// Nothing heard of the INVITE.
    Calling { give_up: Instant },
    /// A provisional response came.
    Proceeding { give_up: Instant, progress: Progress },
    /// CANCEL was asked for; a final response has to come.
    Cancelling,
    /// The INVITE has its final response; the leg's life tells the rest.
    Done,
}

/// An outbound call. `Debug` shows little of it: descriptions have keys.
pub struct OutboundCall {
    leg: Leg,
    state: State,
    headers: Vec<(Name, Bytes)>,
    try_timeout: Duration,
    ring_timeout: Duration,
    session_rules: SessionRules,
    /// Transaction and text, once it was sent; of the text only what another answer needs, once it was
    /// answered.
    invite: Option<(ClientId, Box<Request>)>,
    failure: Option<Failure>,
    called_at: Option<Instant>,
    answered_at: Option<Instant>,
}

impl std::fmt::Debug for OutboundCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboundCall")
            .field("leg", &self.leg.id)
            .field("state", &self.state)
            .field("life", &self.leg.life)
            .finish_non_exhaustive()
    }
}

impl OutboundCall {
    /// Asks for a media leg.
    pub fn new(id: LegId, callee: Callee, proposal: Proposal, rules: &CallRules) -> Self {
        let Callee { target, from, to, call_id, contact, headers, transport, remote, listener, sent_by } =
            callee;
        let dialog = Dialog::begin(target, &from, &to, &call_id, &contact);
        let path = Path::To { transport, remote, listener, sent_by };
        let Proposal { local, try_timeout, ring_timeout } = proposal;
        let mut leg = Leg::new(id, path, dialog, local, OfferKeys::plain());
        leg.open(None, rules);
        Self {
            leg,
            state: State::Opening { give_up: None },
            headers,
            try_timeout,
            ring_timeout,
            session_rules: rules.session,
            invite: None,
            failure: None,
            called_at: None,
            answered_at: None,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match (&self.leg.life, &self.state) {
            (Life::Closing { .. } | Life::Ended { .. }, _) => Progress::Over,
            (Life::Answered { .. } | Life::Established { .. }, _) => Progress::Answered,
            (Life::Early, State::Proceeding { progress, .. }) => *progress,
            (Life::Early, _) => Progress::Trying,
        }
    }

    /// Why it was not reached.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The cause of its end, once it begins.
    pub fn ending(&self) -> Option<EndCause> {
        self.leg.ending()
    }

    /// True until the dialog begins to end.
    pub fn is_alive(&self) -> bool {
        self.leg.is_alive()
    }

    /// Media leg and INVITE are done with.
    pub fn is_over(&self) -> bool {
        matches!(self.leg.life, Life::Ended { .. }) && !matches!(self.state, State::Cancelling)
    }

    /// Where requests to it go.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.leg.destination() {
            Destination::Address { remote, .. } => Some(remote),
            Destination::Flow(_) => None,
        }
    }

    /// The transaction of the INVITE that began it.
    pub fn invite_client(&self) -> Option<ClientId> {
        self.invite.as_ref().map(|(client, _)| *client)
    }

    /// Its INVITE's transaction and where that went, until the final response.
    pub fn ringing(&self) -> Option<(ClientId, Hop)> {
        let is_open = matches!(self.state, State::Calling { .. } | State::Proceeding { .. });
        self.invite_client().filter(|_| is_open).map(|client| (client, self.leg.hop()))
    }

    /// The offer was of SRTP.
    pub fn offered_srtp(&self) -> bool {
        self.leg.local.srtp.required
    }

    /// From the INVITE to its 2xx, or to `now`.
    pub fn rang_for(&self, now: Instant) -> Duration {
        let end = self.answered_at.unwrap_or(now);
        self.called_at.map_or(Duration::ZERO, |at| end.saturating_duration_since(at))
    }

    /// What it has in common with the caller's side.
    pub(super) fn leg(&mut self) -> &mut Leg {
        &mut self.leg
    }

    /// Sends the INVITE as soon as there is a port to name in it.
    pub fn call(&mut self, now: Instant, rules: &CallRules) {
        match self.state {
            State::Opening { give_up: None } => {
                self.state = State::Opening { give_up: Some(now + OPEN_TIMEOUT) };
            }
            State::Opened => {
                self.called_at.get_or_insert(now);
                self.send_invite(now, rules);
            }
            State::Opening { .. }
            | State::Calling { .. }
            | State::Proceeding { .. }
            | State::Cancelling
            | State::Done => {}
        }
    }

    fn send_invite(&mut self, now: Instant, rules: &CallRules) {
        let srtp = &self.leg.local.srtp;
        let keys = OwnKeys { in_use: None, source: rules.key_source };
        let keys = if srtp.required { OfferKeys::every_suite(srtp, keys) } else { Ok(OfferKeys::plain()) };
        let Ok(keys) = keys else { return self.fail(now, Failure::NoMedia) };
        let sdp = self.leg.describe_offer(keys);
        let mut invite = self.leg.dialog.request(Method::Invite);
        for (name, value) in &self.headers {
            invite.headers.push(name.clone(), value.clone());
        }
        session_timer::offer(&mut invite, &self.session_rules);
        invite.headers.push(Name::Supported, rules.uas.supported());
        invite.headers.push(Name::Allow, rules.uas.allow());
        describe(&mut invite.headers, &mut invite.body, sdp);
        self.leg.put(Output::Request(self.leg.hop(), invite));
        self.state = State::Calling { give_up: now + self.try_timeout };
    }

    /// The shard could not open the media leg.
    pub fn handle_open_failed(&mut self, now: Instant) {
        self.leg.has_media = false;
        self.fail(now, Failure::NoMedia);
        self.leg.end(None);
    }

    /// Not to be reached: the first reason stands.
    fn fail(&mut self, now: Instant, failure: Failure) {
        if self.is_alive() {
            let cause = match &failure {
                Failure::Refused(response) => EndCause::CalleeRefused(response.status),
                Failure::NoAnswer => EndCause::NoAnswer,
                Failure::BadAnswer => EndCause::CalleeBadAnswer,
                Failure::Silent | Failure::Unreachable | Failure::NoMedia => EndCause::TriedElsewhere,
            };
            self.failure = Some(failure);
            self.hang_up(now, cause);
        }
    }

    fn handle_invite_response(&mut self, now: Instant, response: &Response) {
        let is_awaited = matches!(self.state, State::Calling { .. } | State::Proceeding { .. });
        match (&self.state, response.status) {
            (_, 100..=199) if is_awaited => self.handle_provisional(now, response),
            (_, 200..=299) if is_awaited => self.handle_answer(now, response),
            (_, 300..) if is_awaited => self.handle_refusal(now, response),
            // It answered before our CANCEL reached it, or another one answers too (§13.2.2.4).
            (State::Cancelling | State::Done, 200..=299) => {
                self.state = State::Done;
                self.turn_away(response);
            }
            (State::Cancelling, 300..) => self.state = State::Done,
            // What comes before the INVITE or after its final response says nothing new.
            (_, _) => {}
        }
    }

    fn handle_refusal(&mut self, now: Instant, response: &Response) {
        if response.status == 422 && self.raises_interval(response) {
            self.state = State::Opened;
            self.invite = None;
            return;
        }
        self.state = State::Done;
        self.fail(now, Failure::Refused(Box::new(response.clone())));
    }

    /// RFC 4028 §7.3: the INVITE is sent again with a longer interval; once for each step up.
    fn raises_interval(&mut self, response: &Response) -> bool {
        let min_se_s = session_timer::read_422(response).unwrap_or(0);
        let raised = min_se_s > self.session_rules.min_se_s.max(self.session_rules.session_expires_s);
        self.session_rules.min_se_s = self.session_rules.min_se_s.max(min_se_s);
        raised
    }

    fn handle_provisional(&mut self, now: Instant, response: &Response) {
        let (mut progress, give_up) = match self.state {
            State::Proceeding { progress, give_up } => (progress, give_up),
            _ => (Progress::Trying, self.called_at.unwrap_or(now) + self.ring_timeout),
        };
        if response.status == 180 && progress == Progress::Trying {
            progress = Progress::Ringing;
        }
        // RFC 3261 §13.2.1: what comes unreliably is a foretaste of the 2xx's answer.
        if response.status > 100 && !response.body.is_empty() {
            match self.leg.read_answer(&response.body) {
                Ok(plan) => {
                    self.adopt(plan);
                    progress = Progress::Early;
                }
                Err(error) => tracing::debug!(%error, "an early SDP answer cannot be used"),
            }
        }
        self.state = State::Proceeding { give_up, progress };
    }

    fn adopt(&mut self, plan: MediaPlan) {
        if self.leg.plan.as_ref() != Some(&plan) {
            self.leg.adopt(plan);
        }
    }

    fn handle_answer(&mut self, now: Instant, response: &Response) {
        let Some((client, invite)) = &self.invite else { return };
        let client = *client;
        let dialog = match Dialog::uac(invite, response) {
            Ok(dialog) => dialog,
            Err(error) => {
                tracing::warn!(%error, "a 2xx makes no dialog");
                self.state = State::Done;
                return self.fail(now, Failure::BadAnswer);
            }
        };
        let cseq = cseq_number(invite).unwrap_or(0);
        let session = session_timer::read_answer(invite, response);
        self.leg.session = session.map(|interval| SessionTimer::uac(now, interval));
        self.headers = Vec::new();
        self.invite = Some((client, Box::new(remains(invite))));
        self.leg.dialog = dialog;
        self.leg.life = Life::Established { at: now };
        self.answered_at = Some(now);
        self.state = State::Done;
        let ack = self.leg.dialog.ack(cseq);
        self.leg.put(Output::Ack(client, self.leg.hop(), ack));
        // Some send the answer in the 183 only.
        if response.body.is_empty() && self.leg.plan.is_some() {
            return;
        }
        match self.leg.read_answer(&response.body) {
            Ok(plan) => self.adopt(plan),
            Err(error) => {
                tracing::warn!(%error, "the SDP answer in a 2xx cannot be used");
                self.fail(now, Failure::BadAnswer);
            }
        }
    }

    /// ACK and BYE for a 2xx that nobody waits for.
    fn turn_away(&mut self, response: &Response) {
        let Some((client, invite)) = &self.invite else { return };
        let ours = DialogId::of_response(response).is_some_and(|id| id == *self.leg.dialog.id());
        let Ok(mut dialog) = Dialog::uac(invite, response) else { return };
        if ours {
            return;
        }
        let hop = self.leg.hop();
        let ack = dialog.ack(cseq_number(invite).unwrap_or(0));
        self.leg.put(Output::Ack(*client, hop, ack));
        let mut bye = dialog.request(Method::Bye);
        bye.headers.push(Name::Reason, EndCause::Cancelled.reason());
        self.leg.put(Output::Request(hop, bye));
    }
}

impl CallLeg for OutboundCall {
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
        if let State::Opening { .. } = self.state
            && self.is_alive()
        {
            self.leg.rtp_port = rtp_port;
            self.state = State::Opened;
        }
    }

    fn handle_closed(&mut self, now: Instant, stats: Option<Box<LegStats>>) {
        self.leg.has_media = false;
        if self.is_alive() {
            self.hang_up(now, EndCause::MediaLost);
        }
        self.leg.end(stats);
    }

    fn handle_media_timeout(&mut self, now: Instant) {
        match self.leg.life {
            Life::Early => self.leg.restart_media_timeout(),
            Life::Answered { .. } | Life::Established { .. } | Life::Closing { .. } | Life::Ended { .. } => {
                self.hang_up(now, EndCause::CalleeMediaTimeout);
            }
        }
    }

    fn handle_request(
        &mut self,
        now: Instant,
        server: ServerId,
        request: &Request,
        rules: &CallRules,
    ) -> Result<(), Refusal> {
        if let Life::Early = self.leg.life {
            let why = "the dialog is not confirmed";
            return Err(("no_dialog", refusal(request, 481, "Call Does Not Exist", why, rules)));
        }
        self.leg.accept(request, rules)?;
        let response = match request.method {
            Method::Bye => {
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
        if let Life::Established { .. } = self.leg.life {
            self.leg.handle_reinvite_ack(now, ack);
        }
    }

    fn handle_no_ack(&mut self, now: Instant, server: ServerId) {
        self.leg.handle_no_ack(now, server);
    }

    fn sent(&mut self, client: ClientId, request: Request) {
        match self.state {
            State::Calling { .. } => self.invite = Some((client, Box::new(request))),
            State::Opening { .. }
            | State::Opened
            | State::Proceeding { .. }
            | State::Cancelling
            | State::Done => self.leg.sent(client, request),
        }
    }

    fn handle_response(&mut self, now: Instant, client: ClientId, response: &Response) {
        if self.invite.as_ref().is_some_and(|(invite, _)| *invite == client) {
            self.handle_invite_response(now, response);
        } else {
            self.leg.handle_response(now, client, response);
        }
    }

    fn handle_client_failed(&mut self, now: Instant, client: ClientId) {
        if self.invite.as_ref().is_none_or(|(invite, _)| *invite != client) {
            return self.leg.handle_client_failed(now, client);
        }
        match self.state {
            State::Calling { .. } | State::Proceeding { .. } => {
                self.state = State::Done;
                self.fail(now, Failure::Unreachable);
            }
            State::Cancelling => self.state = State::Done,
            State::Opening { .. } | State::Opened | State::Done => {}
        }
    }

    fn handle_flow_closed(&mut self, flow: FlowId) {
        self.leg.handle_flow_closed(flow);
    }

    /// CANCEL before the final response, BYE after a 2xx.
    fn hang_up(&mut self, now: Instant, cause: EndCause) {
        if let State::Calling { .. } | State::Proceeding { .. } = self.state {
            self.state = match &self.invite {
                Some((client, _)) => {
                    self.leg.put(Output::Cancel(*client));
                    State::Cancelling
                }
                None => State::Done,
            };
        } else if let State::Opening { .. } | State::Opened = self.state {
            self.state = State::Done;
        }
        self.leg.hang_up(now, cause);
    }

    fn handle_timeout(&mut self, now: Instant, rules: &CallRules) {
        match self.state {
            State::Opening { give_up: Some(at) } if at <= now => {
                // The shard does not answer: there is nobody to wait for.
                self.leg.has_media = false;
                self.fail(now, Failure::NoMedia);
            }
            State::Calling { give_up } if give_up <= now => self.fail(now, Failure::Silent),
            State::Proceeding { give_up, .. } if give_up <= now => self.fail(now, Failure::NoAnswer),
            State::Opening { .. }
            | State::Opened
            | State::Calling { .. }
            | State::Proceeding { .. }
            | State::Cancelling
            | State::Done => self.leg.handle_timeout(now, rules),
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.leg.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Opening { give_up } => give_up,
            State::Calling { give_up } | State::Proceeding { give_up, .. } => Some(give_up),
            State::Opened | State::Cancelling | State::Done => None,
        };
        own.into_iter().chain(self.leg.poll_timeout()).min()
    }

    fn pending_reinvite(&self) -> Option<ServerId> {
        self.leg.pending_reinvite()
    }

    fn may_come_over(&self, transport: Transport) -> bool {
        self.leg.may_come_over(transport)
    }
}

/// What of an answered INVITE makes the dialog of another answer to it, see [`Dialog::uac`].
fn remains(invite: &Request) -> Request {
    let mut remains = Request::new(Method::Invite, Bytes::copy_from_slice(&invite.uri));
    for name in [Name::Contact, Name::CSeq] {
        if let Some(value) = invite.headers.first(&name) {
            remains.headers.push(name, Bytes::copy_from_slice(value));
        }
    }
    remains
}
