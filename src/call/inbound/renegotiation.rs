//! What changes inside an established dialog: re-INVITE, UPDATE and our own session refresh.
//!
//! RFC 3261 §14, RFC 3311, RFC 4028 §7.4 and §10.

use std::time::{Duration, Instant};

use super::{CallRules, ClientId, EndCause, MediaPlan, Method, Name, Output, Request, Response, ServerId};
use super::{InboundCall, Refusal, State};
use super::{agreed_interval, cseq_number, describe, read_offer, refusal, refuse_media};
use crate::media::order::Order;
use crate::rtp::srtp::SrtpPlan;
use crate::sdp::{self, OfferError, OfferKeys, OwnKeys};
use crate::sip::session_timer::{self, SessionTimer};

/// A refresh that was refused is tried again after this, in case the reason passes.
const REFRESH_RETRY: Duration = Duration::from_secs(20);

/// A re-INVITE that was accepted but not acknowledged.
#[derive(Debug)]
pub(super) struct Reinvite {
    pub(super) server: ServerId,
    pub(super) cseq: u32,
    /// We made the offer; the answer comes in the ACK.
    pub(super) offered: bool,
}

impl InboundCall {
    /// The response to a request of ours in the dialog. Gives the ACK when it is a 2xx to INVITE.
    pub fn handle_response(
        &mut self,
        now: Instant,
        client: ClientId,
        response: &Response,
    ) -> Option<Request> {
        if response.status < 200 {
            return None;
        }
        let (_, request) = self.refresh.take_if(|(refresh, _)| *refresh == client)?;
        self.dialog.handle_response(response);
        let is_invite = request.method == Method::Invite;
        match response.status {
            200..=299 => {
                if let Some(session) = &mut self.session {
                    session.renew(now, &request, response);
                }
                if is_invite {
                    self.take_refreshed_answer(response);
                }
            }
            // RFC 3261 §12.2.1.2: the dialog is gone.
            408 | 481 => self.hang_up(now, EndCause::PeerLost),
            _ => self.retry_refresh(now, response),
        }
        (is_invite && response.status < 300).then(|| self.dialog.ack(cseq_number(&request).unwrap_or(0)))
    }

    /// A refusal leaves the session as it is (RFC 3261 §14.1), but the interval runs on.
    fn retry_refresh(&mut self, now: Instant, response: &Response) {
        // §14.1: we do not own the Call-ID, so 0 to 2 s in units of 10 ms; the leg's number spreads.
        let glare = Duration::from_millis(10 * (self.leg.0 * 37 % 200 + 1));
        let Some(session) = &mut self.session else { return };
        let raised = session_timer::read_422(response).is_some_and(|min_se_s| session.raise(min_se_s));
        let soon = response.status == 491 || raised;
        session.retry(now + if soon { glare } else { REFRESH_RETRY });
    }

    /// The answer to the offer of a refresh (RFC 3264 §8): the peer may have moved meanwhile.
    fn take_refreshed_answer(&mut self, response: &Response) {
        match sdp::read_answer(&self.local, &self.offered, &response.body) {
            Ok(plan) if self.is_alive() && self.plan.as_ref() != Some(&plan) => self.adopt(plan),
            Ok(_) => {}
            // The session of before is still good; a refresh is no reason to lose it.
            Err(error) => {
                tracing::warn!(peer = %self.flow.remote, %error, "a refresh's answer cannot be used")
            }
        }
    }

    pub(super) fn handle_reinvite(
        &mut self,
        now: Instant,
        server: ServerId,
        request: &Request,
        rules: &CallRules,
    ) -> Result<Response, Refusal> {
        let State::Established { rtp_port, .. } = self.state else {
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
        let (response, offered) = self.renegotiate(now, request, rtp_port, rules, true)?;
        self.reinvite = Some(Reinvite { server, cseq, offered });
        Ok(response)
    }

    pub(super) fn handle_update(
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
        let State::Established { rtp_port, .. } = self.state else {
            return Err(self.busy_with_invite(request, rules));
        };
        self.renegotiate(now, request, rtp_port, rules, false).map(|(response, _)| response)
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

    /// We made an offer that was not answered yet: in a refresh, or in a 200 to an INVITE without.
    fn has_offered(&self) -> bool {
        let in_refresh = self.refresh.as_ref().is_some_and(|(_, request)| request.method == Method::Invite);
        let in_reinvite = self.reinvite.as_ref().is_some_and(|reinvite| reinvite.offered);
        in_refresh || in_reinvite || (self.offer.is_none() && matches!(self.state, State::Answered { .. }))
    }

    /// Answers a re-INVITE or UPDATE. The flag tells that the answer carries our offer.
    fn renegotiate(
        &mut self,
        now: Instant,
        request: &Request,
        rtp_port: u16,
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
        if let Some(offer) = offer {
            describe(&mut response, self.origin.answer(&offer, rtp_port));
            self.adopt(offer.plan().clone());
        } else if let Some(keys) = offered {
            describe(&mut response, self.origin.offer(&self.local, &keys, rtp_port));
            self.offered = keys;
        }
        self.agree_on_interval(now, interval, &mut response);
        Ok((response, is_ours))
    }

    fn keys_in_use(&self) -> Option<&SrtpPlan> {
        self.plan.as_ref().and_then(|plan| plan.srtp.as_ref())
    }

    /// For a new offer in the dialog: every suite if the call is under SRTP, or must be.
    fn keys_to_offer(&self, rules: &CallRules) -> Result<OfferKeys, OfferError> {
        let in_use = self.keys_in_use();
        if in_use.is_none() && !self.local.srtp.required {
            return Ok(OfferKeys::plain());
        }
        OfferKeys::every_suite(&self.local.srtp, OwnKeys { in_use, source: rules.key_source })
    }

    fn adopt(&mut self, plan: MediaPlan) {
        self.plan = Some(plan.clone());
        self.outputs.push_back(Output::Order(Order::Update(self.leg, Box::new(plan))));
    }

    /// Reads the SDP answer in an ACK; a bad one ends the call.
    pub(super) fn take_answer(&mut self, now: Instant, ack: &Request) -> bool {
        match sdp::read_answer(&self.local, &self.offered, &ack.body) {
            Ok(plan) => {
                self.adopt(plan);
                true
            }
            Err(error) => {
                tracing::warn!(peer = %self.flow.remote, %error, "the SDP answer in an ACK cannot be used");
                self.hang_up(now, EndCause::BadAnswer);
                false
            }
        }
    }

    /// RFC 4028 §9: the 2xx says the interval, and the timer starts with it.
    pub(super) fn agree_on_interval(
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

    pub(super) fn send_refresh(&mut self, rules: &CallRules) {
        let (State::Established { rtp_port, .. }, Some(session)) = (&self.state, &self.session) else {
            return;
        };
        let method = session.refresh_method();
        let mut request = self.dialog.request(method.clone());
        session.offer(&mut request);
        request.headers.push(Name::Supported, rules.uas.supported());
        request.headers.push(Name::Allow, rules.uas.allow());
        if method == Method::Invite {
            let keys = OfferKeys::unchanged(self.plan.as_ref().and_then(|plan| plan.srtp.as_ref()));
            request.headers.push(Name::ContentType, "application/sdp");
            request.body = self.origin.offer(&self.local, &keys, *rtp_port);
            self.offered = keys;
        }
        self.outputs.push_back(Output::Request(self.destination(), request));
    }

    /// RFC 3261 §14.2: a second INVITE before the first is done.
    fn busy_with_invite(&self, request: &Request, rules: &CallRules) -> Refusal {
        let why = "an INVITE of this dialog is under way";
        let mut response = refusal(request, 500, "Server Internal Error", why, rules);
        // "A randomly chosen value of between 0 and 10 seconds": the leg's number spreads them.
        response.headers.push(Name::RetryAfter, (self.leg.0 % 10 + 1).to_string());
        ("invite_pending", response)
    }
}

/// RFC 3261 §14.2, RFC 3311 §5.2.
fn offer_pending(request: &Request, rules: &CallRules) -> Refusal {
    let why = "our offer awaits its answer";
    ("offer_pending", refusal(request, 491, "Request Pending", why, rules))
}
