//! What changes inside an established dialog: re-INVITE and UPDATE from the peer, our own session
//! refresh, and our own re-INVITE when the other leg of the call has put its peer on hold.
//!
//! RFC 3261 §14, RFC 3311, RFC 3264 §8, RFC 4028 §7.4 and §10.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Leg, Life, Path, cseq_number, refusal};
use crate::call::inbound::{CallRules, Refusal};
use crate::call::outcome::{EndCause, Output};
use crate::media::order::{MediaPlan, Order};
use crate::rtp::srtp::SrtpPlan;
use crate::sdp::{self, Direction, LocalMedia, Negotiated, OfferError, OfferKeys, OwnKeys};
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Headers, Method, Name, Request, Response};
use crate::sip::session_timer::{self, SessionTimer};
use crate::sip::uas::warning_of;

/// A refresh that was refused is tried again after this, in case the reason passes.
const REFRESH_RETRY: Duration = Duration::from_secs(20);

/// A re-INVITE that was accepted but not acknowledged.
#[derive(Debug)]
pub(super) struct Reinvite {
    pub(super) server: ServerId,
    cseq: u32,
    /// We made the offer; the answer comes in the ACK.
    offered: bool,
}

/// Our INVITE or UPDATE in the dialog.
#[derive(Debug)]
pub(super) struct Pending {
    client: ClientId,
    request: Request,
    /// The direction in its offer.
    direction: Direction,
}

/// What the descriptions of both sides said of the direction of media.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described {
    /// What the peer sends and receives, apart from what we kept it from.
    pub(in crate::call) peer: Direction,
    /// The most that we may send and receive: what the other leg's peer does. Without another leg all.
    pub(in crate::call) most: Direction,
    /// `most` as it was in our latest description.
    pub(in crate::call) told: Direction,
    /// Our offer in a 200 to the INVITE awaits its answer in the ACK.
    pub(in crate::call) awaits_answer: bool,
    /// Both sides offered at once: ours waits until then (RFC 3261 §14.1).
    pub(super) offer_at: Option<Instant>,
}

impl Default for Described {
    fn default() -> Self {
        let all = Direction::BOTH;
        Self { peer: all, most: all, told: all, awaits_answer: false, offer_at: None }
    }
}

impl Leg {
    /// Remembers a request that will be answered.
    pub(in crate::call) fn sent(&mut self, client: ClientId, request: Request) {
        if request.method != Method::Bye {
            self.pending = Some(Box::new(Pending { client, request, direction: self.described.most }));
        }
    }

    /// The re-INVITE that was accepted and not acknowledged yet.
    pub(in crate::call) fn pending_reinvite(&self) -> Option<ServerId> {
        self.reinvite.as_ref().map(|reinvite| reinvite.server)
    }

    /// Our request in the dialog was never answered or could not be sent.
    pub(in crate::call) fn handle_client_failed(&mut self, now: Instant, client: ClientId) {
        if self.pending.take_if(|pending| pending.client == client).is_some() {
            self.hang_up(now, self.fault(EndCause::PeerLost));
        }
    }

    /// The ACK of a re-INVITE's 200 never came.
    pub(in crate::call) fn handle_no_ack(&mut self, now: Instant, server: ServerId) {
        if self.pending_reinvite() == Some(server) {
            self.hang_up(now, self.fault(EndCause::NoAck));
        }
    }

    /// The ACK of a re-INVITE's 200.
    pub(in crate::call) fn handle_reinvite_ack(&mut self, now: Instant, ack: &Request) {
        let ours = |reinvite: &mut Reinvite| cseq_number(ack) == Some(reinvite.cseq);
        if let Some(reinvite) = self.reinvite.take_if(ours)
            && reinvite.offered
        {
            self.take_answer(now, &ack.body);
        }
    }

    /// The response to a request of ours in the dialog; a 2xx to INVITE is acknowledged.
    pub(in crate::call) fn handle_response(&mut self, now: Instant, client: ClientId, response: &Response) {
        if response.status < 200 {
            return;
        }
        let Some(pending) = self.pending.take_if(|pending| pending.client == client) else { return };
        self.dialog.handle_response(response);
        let is_invite = pending.request.method == Method::Invite;
        match response.status {
            200..=299 => {
                if let Some(session) = &mut self.session {
                    session.renew(now, &pending.request, response);
                }
                if is_invite {
                    let ack = self.dialog.ack(cseq_number(&pending.request).unwrap_or(0));
                    self.put(Output::Ack(client, self.hop(), ack));
                    self.take_changed_answer(pending.direction, response);
                }
            }
            // RFC 3261 §12.2.1.2: the dialog is gone.
            408 | 481 => self.hang_up(now, self.fault(EndCause::PeerLost)),
            _ => self.handle_refusal(now, &pending, response),
        }
    }

    /// A refusal leaves the session as it is (RFC 3261 §14.1), but the interval runs on.
    fn handle_refusal(&mut self, now: Instant, pending: &Pending, response: &Response) {
        // §14.1: 0 to 2 s in units of 10 ms where the peer owns the Call-ID, 2.1 to 4 s where we do. The
        // leg's number spreads.
        let units = match self.path {
            Path::From { .. } => self.id.0 * 37 % 200 + 1,
            Path::To { .. } => self.id.0 * 37 % 190 + 210,
        };
        let glare = Duration::from_millis(10 * units);
        let is_glare = response.status == 491;
        if pending.request.method == Method::Invite {
            // Other refusals stand until the other leg's peer changes its mind again.
            self.described.offer_at = is_glare.then(|| now + glare);
            self.described.told = if is_glare { self.described.told } else { pending.direction };
        }
        let Some(session) = &mut self.session else { return };
        let raised = session_timer::read_422(response).is_some_and(|min_se_s| session.raise(min_se_s));
        session.retry(now + if is_glare || raised { glare } else { REFRESH_RETRY });
    }

    /// The answer to the offer of a re-INVITE of ours (RFC 3264 §8): the peer may have moved meanwhile.
    fn take_changed_answer(&mut self, direction: Direction, response: &Response) {
        self.described.told = direction;
        match self.read_answer(&response.body) {
            Ok(plan) if self.is_alive() && self.plan.as_ref() != Some(&plan) => self.adopt(plan),
            Ok(_) => {}
            // The session of before is still good; this is no reason to lose it.
            Err(error) => tracing::warn!(peer = %self.peer(), %error, "an SDP answer cannot be used"),
        }
    }

    /// Reads the answer to our latest offer, and from it what the peer does of what we let it do.
    pub(in crate::call) fn read_answer(&mut self, body: &[u8]) -> Result<MediaPlan, OfferError> {
        let mut plan = sdp::read_answer(&self.local, &self.offered, body)?;
        let theirs = plan.direction().reversed();
        let ours = self.described.told;
        if ours.receive {
            self.described.peer.send = theirs.send;
        }
        if ours.send {
            self.described.peer.receive = theirs.receive;
        }
        plan.restrict(ours);
        Ok(plan)
    }

    /// A re-INVITE.
    pub(in crate::call) fn handle_reinvite(
        &mut self,
        now: Instant,
        server: ServerId,
        request: &Request,
        rules: &CallRules,
    ) -> Result<Response, Refusal> {
        let Life::Established { .. } = self.life else {
            return Err(self.busy_with_invite(request, rules));
        };
        // RFC 3261 §14.2.
        if self.has_offered() {
            return Err(offer_pending(request, rules));
        }
        if self.reinvite.is_some() {
            return Err(self.busy_with_invite(request, rules));
        }
        let cseq = cseq_number(request).unwrap_or(0);
        let (response, offered) = self.renegotiate(now, request, rules, true)?;
        self.reinvite = Some(Reinvite { server, cseq, offered });
        Ok(response)
    }

    /// An UPDATE.
    pub(in crate::call) fn handle_update(
        &mut self,
        now: Instant,
        request: &Request,
        rules: &CallRules,
    ) -> Result<Response, Refusal> {
        if request.body.is_empty() {
            return self.refresh_by_peer(now, request, rules);
        }
        // RFC 3311 §5.2: an offer waits for the answer to ours, and for our answer to the INVITE's.
        if self.has_offered() {
            return Err(offer_pending(request, rules));
        }
        let Life::Established { .. } = self.life else {
            return Err(self.busy_with_invite(request, rules));
        };
        self.renegotiate(now, request, rules, false).map(|(response, _)| response)
    }

    /// An UPDATE without offer: target and session interval only.
    fn refresh_by_peer(
        &mut self,
        now: Instant,
        request: &Request,
        rules: &CallRules,
    ) -> Result<Response, Refusal> {
        let interval = agreed_interval(request, rules)?;
        let mut response = self.response(request, 200, "OK", rules);
        self.agree_on_interval(now, interval, &mut response);
        Ok(response)
    }

    /// We made an offer that was not answered yet: in a re-INVITE, or in a 200 to an INVITE without.
    fn has_offered(&self) -> bool {
        let in_invite = self.pending.as_ref().is_some_and(|pending| pending.request.method == Method::Invite);
        let in_reinvite = self.reinvite.as_ref().is_some_and(|reinvite| reinvite.offered);
        in_invite || in_reinvite || self.described.awaits_answer
    }

    /// Answers a re-INVITE or UPDATE. The flag tells that the answer carries our offer.
    fn renegotiate(
        &mut self,
        now: Instant,
        request: &Request,
        rules: &CallRules,
        must_describe: bool,
    ) -> Result<(Response, bool), Refusal> {
        let keys = OwnKeys { in_use: self.keys_in_use(), source: rules.key_source };
        let offer = read_offer(request, &self.local, keys, rules)?;
        let interval = agreed_interval(request, rules)?;
        let offered = match &offer {
            None if must_describe => {
                let keys = self.keys_to_offer(rules);
                Some(keys.map_err(|error| refuse_media(request, &error, rules))?)
            }
            Some(_) | None => None,
        };
        let mut response = self.response(request, 200, "OK", rules);
        let is_ours = offered.is_some();
        if let Some(mut offer) = offer {
            let sdp = self.describe_answer(&mut offer);
            describe(&mut response.headers, &mut response.body, sdp);
            self.adopt(offer.plan().clone());
        } else if let Some(keys) = offered {
            let sdp = self.describe_offer(keys);
            describe(&mut response.headers, &mut response.body, sdp);
        }
        self.agree_on_interval(now, interval, &mut response);
        Ok((response, is_ours))
    }

    /// Our answer to an offer, within what the other leg allows.
    pub(in crate::call) fn describe_answer(&mut self, offer: &mut Negotiated) -> Bytes {
        self.described.peer = offer.plan().direction().reversed();
        self.described.told = self.described.most;
        offer.restrict(self.described.most);
        self.origin.answer(offer, self.rtp_port)
    }

    /// An offer of ours with these keys, within what the other leg allows.
    pub(in crate::call) fn describe_offer(&mut self, keys: OfferKeys) -> Bytes {
        self.offered = keys;
        self.described.told = self.described.most;
        self.origin.offer(&self.local, &self.offered, self.rtp_port, self.described.most)
    }

    fn keys_in_use(&self) -> Option<&SrtpPlan> {
        self.plan.as_ref().and_then(|plan| plan.srtp.as_deref())
    }

    /// For a new offer in the dialog: every suite if the call is under SRTP, or must be.
    fn keys_to_offer(&self, rules: &CallRules) -> Result<OfferKeys, OfferError> {
        let in_use = self.keys_in_use();
        if in_use.is_none() && !self.local.srtp.required {
            return Ok(OfferKeys::plain());
        }
        OfferKeys::every_suite(&self.local.srtp, OwnKeys { in_use, source: rules.key_source })
    }

    pub(in crate::call) fn adopt(&mut self, plan: MediaPlan) {
        self.plan = Some(plan.clone());
        self.put(Output::Order(Order::Update(self.id, Box::new(plan))));
    }

    /// Media is not to be missed yet: the shard waits for it once more.
    pub(in crate::call) fn restart_media_timeout(&mut self) {
        if let Some(plan) = self.plan.clone() {
            let mut paused = plan.clone();
            paused.receive = false;
            self.adopt(paused);
            self.adopt(plan);
        }
    }

    /// Reads the SDP answer in an ACK; a bad one ends the call.
    pub(in crate::call) fn take_answer(&mut self, now: Instant, body: &[u8]) -> bool {
        self.described.awaits_answer = false;
        match self.read_answer(body) {
            Ok(plan) => {
                self.adopt(plan);
                true
            }
            Err(error) => {
                tracing::warn!(peer = %self.peer(), %error, "the SDP answer in an ACK cannot be used");
                self.hang_up(now, self.fault(EndCause::BadAnswer));
                false
            }
        }
    }

    /// RFC 4028 §9: the 2xx says the interval, and the timer starts with it.
    pub(in crate::call) fn agree_on_interval(
        &mut self,
        now: Instant,
        interval: Option<session_timer::Negotiated>,
        response: &mut Response,
    ) {
        if let Some(interval) = &interval {
            interval.write(response);
        }
        self.session = interval.map(|interval| SessionTimer::uas(now, interval));
    }

    /// The session interval is half over. A re-INVITE of ours that is under way does the same.
    pub(super) fn send_refresh(&mut self, rules: &CallRules) {
        let Some(session) = self.session.as_ref().filter(|_| self.pending.is_none()) else { return };
        let method = session.refresh_method();
        self.send_request(method, rules);
    }

    /// Tells the peer by re-INVITE what the other leg allows now, if that is not what it was told, as
    /// soon as no other offer is under way. True when it did.
    pub(in crate::call) fn offer_what_changed(&mut self, now: Instant, rules: &CallRules) -> bool {
        let is_due = self.next_offer().is_none_or(|at| at <= now) && self.has_news();
        if is_due {
            self.described.offer_at = None;
            self.send_request(Method::Invite, rules);
        }
        is_due
    }

    /// When an offer that had to wait may go.
    pub(super) fn next_offer(&self) -> Option<Instant> {
        self.described.offer_at.filter(|_| self.has_news())
    }

    fn has_news(&self) -> bool {
        let is_free = self.pending.is_none() && self.reinvite.is_none() && !self.has_offered();
        is_free && matches!(self.life, Life::Established { .. }) && self.described.told != self.described.most
    }

    fn send_request(&mut self, method: Method, rules: &CallRules) {
        let mut request = self.dialog.request(method.clone());
        if let Some(session) = &self.session {
            session.offer(&mut request);
        }
        request.headers.push(Name::Supported, rules.uas.supported());
        request.headers.push(Name::Allow, rules.uas.allow());
        if method == Method::Invite {
            // Until it is answered the peer knows nothing of it.
            let told = self.described.told;
            let keys = OfferKeys::unchanged(self.keys_in_use());
            let sdp = self.describe_offer(keys);
            self.described.told = told;
            describe(&mut request.headers, &mut request.body, sdp);
        }
        self.put(Output::Request(self.hop(), request));
    }

    /// RFC 3261 §14.2: a second INVITE before the first is done.
    fn busy_with_invite(&self, request: &Request, rules: &CallRules) -> Refusal {
        let why = "an INVITE of this dialog is under way";
        let mut response = refusal(request, 500, "Server Internal Error", why, rules);
        // "A randomly chosen value of between 0 and 10 seconds": the leg's number spreads them.
        response.headers.push(Name::RetryAfter, (self.id.0 % 10 + 1).to_string());
        ("invite_pending", response)
    }
}

/// RFC 3261 §14.2, RFC 3311 §5.2.
fn offer_pending(request: &Request, rules: &CallRules) -> Refusal {
    let why = "our offer awaits its answer";
    ("offer_pending", refusal(request, 491, "Request Pending", why, rules))
}

/// The offer in a request; `None` without a body.
pub(in crate::call) fn read_offer(
    request: &Request,
    local: &LocalMedia,
    keys: OwnKeys<'_>,
    rules: &CallRules,
) -> Result<Option<Negotiated>, Refusal> {
    if request.body.is_empty() {
        return Ok(None);
    }
    let negotiated = sdp::parse(&request.body).and_then(|offer| sdp::negotiate(&offer, local, keys));
    negotiated.map(Some).map_err(|error| refuse_media(request, &error, rules))
}

/// The refusal of an offer, or of an INVITE that wants one of us.
pub(in crate::call) fn refuse_media(request: &Request, error: &OfferError, rules: &CallRules) -> Refusal {
    let reason = match error.status() {
        400 => "Bad Request",
        500 => "Server Internal Error",
        _ => "Not Acceptable Here",
    };
    let mut response = Response::for_request(request, error.status(), reason);
    // A syntax error repeats what the peer wrote.
    let warning = warning_of(error.warn_code(), &rules.uas.agent, &error.to_string());
    response.headers.push(Name::Warning, warning);
    (error.rule(), Box::new(response))
}

/// What the response to the request will say about the session interval.
pub(in crate::call) fn agreed_interval(
    request: &Request,
    rules: &CallRules,
) -> Result<Option<session_timer::Negotiated>, Refusal> {
    session_timer::answer(request, &rules.session).map_err(|response| {
        let rule = if response.status == 422 { "session_interval" } else { "malformed" };
        (rule, Box::new(response))
    })
}

/// Puts a description into a message.
pub(in crate::call) fn describe(headers: &mut Headers, body: &mut Bytes, sdp: Bytes) {
    headers.push(Name::ContentType, "application/sdp");
    *body = sdp;
}
