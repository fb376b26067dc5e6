//! An inbound call: the dialog a caller opened with us, and the leg that carries its media.
//!
//! RFC 3261 §13.3 (UAS), §14.2 (re-INVITE), §15 (BYE); RFC 3264 through `sdp`; RFC 4028 session
//! timers. The call asks for its leg with an [`Order`], answers once the leg is open, and is over
//! when the leg has reported its final counters.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::base::id::LegId;
use crate::call::outcome::{End, EndCause, Output};
use crate::media::order::{LegPlan, LegStats, MediaPlan, Order};
use crate::sdp::{self, KeySource, LocalMedia, Negotiated, OfferError, OfferKeys, Origin, OwnKeys};
use crate::sip::dialog::{Dialog, DialogId};
use crate::sip::flow::{Destination, Flow, FlowId, Transport};
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Method, Name, Request, Response};
use crate::sip::session_timer::{self, SessionEvent, SessionRules, SessionTimer};
use crate::sip::target;
use crate::sip::uas::{UasRules, refuse, warning_of};

mod contact;
mod renegotiation;

use contact::contact;
use renegotiation::Reinvite;

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

#[derive(Debug)]
enum State {
    /// The mailbox is looked up.
    Routing,
    /// The leg is asked for.
    Opening,
    /// The leg is open and 180 sent; the worker says when to answer.
    Ringing { rtp_port: u16 },
    /// 200 is sent, ACK awaited.
    Answered {
        rtp_port: u16,
        at: Instant,
        /// We want the call over, but a BYE has to wait for the ACK (RFC 3261 §15).
        ending: Option<EndCause>,
    },
    /// Both sides agree on a dialog.
    Established { rtp_port: u16, at: Instant },
    /// The dialog is over, the leg is closing.
    Closing { cause: EndCause, talked: Option<Duration> },
    /// All is over and said.
    Ended,
}

/// An inbound call. `Debug` shows little of it: descriptions have keys.
pub struct InboundCall {
    leg: LegId,
    state: State,
    /// What we bring to each offer and answer; one address once the leg's is known.
    local: LocalMedia,
    /// A leg was asked for and is not gone as far as we know.
    has_leg: bool,
    flow: Flow,
    server: ServerId,
    invite: Request,
    dialog: Dialog,
    origin: Origin,
    /// The INVITE's offer, if it had one.
    offer: Option<Negotiated>,
    /// Keys in the latest offer of ours.
    offered: OfferKeys,
    plan: Option<MediaPlan>,
    reinvite: Option<Reinvite>,
    /// What the INVITE's 200 will say about the session interval.
    interval: Option<session_timer::Negotiated>,
    session: Option<SessionTimer>,
    refresh: Option<(ClientId, Request)>,
    /// The caller's connection is gone; requests need a new one.
    flow_closed: bool,
    ends_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

impl std::fmt::Debug for InboundCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboundCall")
            .field("leg", &self.leg)
            .field("state", &self.state)
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
        leg: LegId,
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
        let plan = offer.as_ref().map(|offer| offer.plan().clone());
        let trying = Response::for_request(&invite, 100, "Trying");
        let outputs = VecDeque::from([Output::Respond(server, trying)]);
        Ok(Self {
            leg,
            state: State::Routing,
            local,
            has_leg: false,
            flow,
            server,
            dialog,
            origin: Origin::new(leg.0),
            invite,
            offer,
            offered,
            plan,
            reinvite: None,
            interval,
            session: None,
            refresh: None,
            flow_closed: false,
            ends_at: None,
            outputs,
        })
    }

    /// Whom the dialog is with.
    pub fn dialog_id(&self) -> &DialogId {
        self.dialog.id()
    }

    /// The INVITE that opened the call.
    pub fn invite(&self) -> &Request {
        &self.invite
    }

    /// What was agreed on last.
    pub fn plan(&self) -> Option<&MediaPlan> {
        self.plan.as_ref()
    }

    /// True until the dialog begins to end.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Closing { .. } | State::Ended)
    }

    /// True until the INVITE has its final response.
    pub fn awaits_answer(&self) -> bool {
        matches!(self.state, State::Routing | State::Opening | State::Ringing { .. })
    }

    /// The re-INVITE that was accepted and not acknowledged yet.
    pub fn pending_reinvite(&self) -> Option<ServerId> {
        self.reinvite.as_ref().map(|reinvite| reinvite.server)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`InboundCall::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Answered { .. } => self.ends_at,
            State::Established { .. } => {
                let session = self.session.as_ref().and_then(SessionTimer::poll_timeout);
                self.ends_at.into_iter().chain(session).min()
            }
            State::Routing
            | State::Opening
            | State::Ringing { .. }
            | State::Closing { .. }
            | State::Ended => None,
        }
    }

    /// There is a mailbox: ask for a leg and ring.
    pub fn accept(&mut self, rules: &CallRules) {
        if let State::Routing = self.state {
            let plan = LegPlan {
                media: self.plan.clone(),
                address: self.local.addresses.first(),
                cname: rules.cname.clone(),
                media_timeout: rules.media_timeout,
            };
            self.outputs.push_back(Output::Order(Order::Open(self.leg, Box::new(plan))));
            let invite = self.invite.clone();
            let ringing = self.response(&invite, 180, "Ringing", rules);
            self.outputs.push_back(Output::Respond(self.server, ringing));
            self.state = State::Opening;
            self.has_leg = true;
        }
    }

    /// Refuses the INVITE; without effect once it is answered.
    pub fn refuse(&mut self, response: Response) {
        if self.awaits_answer() {
            let cause = EndCause::Refused(response.status);
            self.outputs.push_back(Output::Respond(self.server, response));
            self.close(cause, None);
        }
    }

    /// The shard could not open the leg.
    pub fn handle_open_failed(&mut self, response: Response) {
        if let State::Opening = self.state {
            let cause = EndCause::Refused(response.status);
            self.outputs.push_back(Output::Respond(self.server, response));
            self.has_leg = false;
            self.close(cause, None);
        } else {
            // Refused or cancelled meanwhile: there is no leg to wait for.
            self.end(None);
        }
    }

    /// The shard opened the leg.
    pub fn handle_opened(&mut self, rtp_port: u16) {
        if let State::Opening = self.state {
            self.state = State::Ringing { rtp_port };
        }
    }

    /// Answers the INVITE with 200.
    pub fn answer(&mut self, now: Instant, rules: &CallRules) {
        let State::Ringing { rtp_port } = self.state else {
            return;
        };
        let sdp = match &self.offer {
            Some(offer) => self.origin.answer(offer, rtp_port),
            None => self.origin.offer(&self.local, &self.offered, rtp_port),
        };
        let invite = self.invite.clone();
        let mut response = self.response(&invite, 200, "OK", rules);
        describe(&mut response, sdp);
        self.agree_on_interval(now, self.interval, &mut response);
        self.outputs.push_back(Output::Respond(self.server, response));
        self.state = State::Answered { rtp_port, at: now, ending: None };
        self.ends_at = Some(now + rules.duration_max);
    }

    /// An ACK of a 2xx in this dialog.
    pub fn handle_ack(&mut self, now: Instant, ack: &Request) {
        match self.state {
            // RFC 3261 §13.2.2.4: an ACK has its INVITE's CSeq number.
            State::Answered { rtp_port, at, ending } if cseq_number(ack) == cseq_number(&self.invite) => {
                self.state = State::Established { rtp_port, at };
                if let Some(cause) = ending {
                    self.hang_up(now, cause);
                } else if self.offer.is_some() || self.take_answer(now, ack) {
                    self.outputs.push_back(Output::Started);
                }
            }
            State::Established { .. } => {
                let ours = |reinvite: &mut Reinvite| cseq_number(ack) == Some(reinvite.cseq);
                if let Some(reinvite) = self.reinvite.take_if(ours)
                    && reinvite.offered
                {
                    self.take_answer(now, ack);
                }
            }
            State::Routing
            | State::Opening
            | State::Ringing { .. }
            | State::Answered { .. }
            | State::Closing { .. }
            | State::Ended => {}
        }
    }

    /// CANCEL of the INVITE.
    pub fn handle_cancel(&mut self, now: Instant) {
        if self.awaits_answer() {
            self.part(now, EndCause::Cancelled);
        }
    }

    /// A request inside the dialog, other than ACK and CANCEL.
    ///
    /// # Errors
    /// The final response to one that cannot be served; the session is as it was (RFC 3261 §14.1).
    pub fn handle_request(
        &mut self,
        now: Instant,
        server: ServerId,
        request: &Request,
        rules: &CallRules,
    ) -> Result<(), Refusal> {
        self.dialog.accept(request).map_err(|status| match status {
            400 => ("malformed", refusal(request, 400, "Bad Request", "no CSeq", rules)),
            _ => ("cseq", refusal(request, status, "Server Internal Error", "CSeq out of order", rules)),
        })?;
        let response = match request.method {
            Method::Bye => self.handle_bye(now, request),
            // Only a BYE that crossed ours still finds the dialog (RFC 3261 §15.1.2).
            _ if !self.is_alive() => {
                let why = "the call is over";
                return Err(("no_dialog", refusal(request, 481, "Call Does Not Exist", why, rules)));
            }
            Method::Invite => self.handle_reinvite(now, server, request, rules)?,
            Method::Update => self.handle_update(now, request, rules)?,
            // OPTIONS: `uas::inspect` lets nothing else through.
            _ => {
                let mut response = self.response(request, 200, "OK", rules);
                response.headers.push(Name::Accept, rules.uas.accept());
                response
            }
        };
        self.outputs.push_back(Output::Respond(server, response));
        Ok(())
    }

    /// The id of the request just sent; a session refresh is remembered by it.
    pub fn sent(&mut self, client: ClientId, request: Request) {
        if request.method != Method::Bye {
            self.refresh = Some((client, request));
        }
    }

    /// A connection closed; if it was the caller's, our next request opens one to the Contact.
    pub fn handle_flow_closed(&mut self, flow: FlowId) {
        self.flow_closed |= self.flow.id == flow;
    }

    /// A request of ours was never answered or could not be sent.
    pub fn handle_client_failed(&mut self, now: Instant, client: ClientId) {
        if self.refresh.take_if(|(refresh, _)| *refresh == client).is_some() {
            self.hang_up(now, EndCause::PeerLost);
        }
    }

    /// The ACK of our final response never came.
    pub fn handle_no_ack(&mut self, now: Instant, server: ServerId) {
        if server == self.server {
            let ending = if let State::Answered { ending, .. } = self.state { ending } else { None };
            self.part(now, ending.unwrap_or(EndCause::NoAck));
        } else if self.pending_reinvite() == Some(server) {
            self.hang_up(now, EndCause::NoAck);
        }
    }

    /// Ends the call from our side: a refusal while it is not answered, BYE once it is, and
    /// between 200 and ACK a BYE that waits for the ACK or its absence (RFC 3261 §15).
    pub fn hang_up(&mut self, now: Instant, cause: EndCause) {
        if let State::Answered { ending, .. } = &mut self.state {
            ending.get_or_insert(cause);
        } else {
            self.part(now, cause);
        }
    }

    /// The leg is gone: because it was told to, or because its sockets broke.
    pub fn handle_closed(&mut self, now: Instant, stats: Option<Box<LegStats>>) {
        if self.is_alive() {
            self.has_leg = false;
            self.part(now, EndCause::MediaLost);
        }
        self.end(stats);
    }

    /// Runs what is due: session refresh, session expiry, the longest call.
    pub fn handle_timeout(&mut self, now: Instant, rules: &CallRules) {
        if self.ends_at.is_some_and(|at| at <= now) {
            self.ends_at = None;
            self.hang_up(now, EndCause::DurationLimit);
            return;
        }
        let State::Established { .. } = self.state else { return };
        match self.session.as_mut().and_then(|session| session.handle_timeout(now)) {
            Some(SessionEvent::Refresh) => self.send_refresh(rules),
            Some(SessionEvent::Expired) => self.hang_up(now, EndCause::SessionExpired),
            None => {}
        }
    }

    fn handle_bye(&mut self, now: Instant, request: &Request) -> Response {
        match self.state {
            State::Answered { at, .. } | State::Established { at, .. } => {
                self.close(EndCause::CallerHungUp, Some(now - at));
            }
            // RFC 3261 §15.1.2: the INVITE of an early dialog is answered 487.
            State::Routing | State::Opening | State::Ringing { .. } => {
                self.part(now, EndCause::CallerHungUp);
            }
            State::Closing { .. } | State::Ended => {}
        }
        Response::for_request(request, 200, "OK")
    }

    /// Tells the caller that it is over, and closes.
    fn part(&mut self, now: Instant, cause: EndCause) {
        match self.state {
            State::Routing | State::Opening | State::Ringing { .. } => {
                let (status, reason) = match cause {
                    EndCause::Cancelled | EndCause::CallerHungUp => (487, "Request Terminated"),
                    _ => (500, "Server Internal Error"),
                };
                let response = Response::for_request(&self.invite, status, reason);
                self.outputs.push_back(Output::Respond(self.server, response));
                self.close(cause, None);
            }
            State::Answered { at, .. } | State::Established { at, .. } => {
                let mut bye = self.dialog.request(Method::Bye);
                bye.headers.push(Name::Reason, format!("SIP;cause=200;text=\"{cause}\""));
                self.outputs.push_back(Output::Request(self.destination(), bye));
                self.close(cause, Some(now - at));
            }
            State::Closing { .. } | State::Ended => {}
        }
    }

    /// The dialog is over; the call is when its leg is.
    fn close(&mut self, cause: EndCause, talked: Option<Duration>) {
        self.state = State::Closing { cause, talked };
        if self.has_leg {
            self.outputs.push_back(Output::Order(Order::Close(self.leg)));
        } else {
            self.end(None);
        }
    }

    fn end(&mut self, stats: Option<Box<LegStats>>) {
        if let State::Closing { cause, talked } = self.state {
            self.outputs.push_back(Output::Ended(End { cause, stats, talked }));
            self.state = State::Ended;
        }
    }

    /// Where our requests go: back where the INVITE came from while that stands, for behind a NAT
    /// nothing else arrives; along the route set if there is one (RFC 3261 §12.2.1.1). A call that came
    /// over TLS is never spoken of in the clear, whatever its Contact or Record-Route says: our offers
    /// have keys in them.
    pub fn destination(&self) -> Destination {
        let direct = self.dialog.next_hop() == self.dialog.remote_target();
        if direct && !self.flow_closed {
            return Destination::Flow(self.flow);
        }
        let next_hop = self.dialog.next_hop();
        let found = match self.flow.transport {
            Transport::Tls => target::resolve_secure(next_hop).map(|remote| (Transport::Tls, remote)),
            Transport::Udp | Transport::Tcp => target::resolve(next_hop),
        };
        match found {
            Some((transport, remote)) => {
                Destination::Address { transport, remote, listener: self.flow.listener }
            }
            None => Destination::Flow(self.flow),
        }
    }

    /// Whether a request in the dialog may come over this transport: what began over TLS goes on over
    /// TLS, for who wants in must have shown a certificate, and our answers have keys in them.
    pub fn may_come_over(&self, transport: Transport) -> bool {
        self.flow.transport != Transport::Tls || transport == Transport::Tls
    }

    /// A response in the dialog that tells what we serve.
    fn response(&mut self, request: &Request, status: u16, reason: &str, rules: &CallRules) -> Response {
        let mut response = self.dialog.response(request, status, reason);
        response.headers.push(Name::Allow, rules.uas.allow());
        response.headers.push(Name::Supported, rules.uas.supported());
        response
    }
}

/// The offer in a request; `None` without a body.
fn read_offer(
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
fn refuse_media(request: &Request, error: &OfferError, rules: &CallRules) -> Refusal {
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
fn agreed_interval(
    request: &Request,
    rules: &CallRules,
) -> Result<Option<session_timer::Negotiated>, Refusal> {
    session_timer::answer(request, &rules.session).map_err(|response| {
        let rule = if response.status == 422 { "session_interval" } else { "malformed" };
        (rule, Box::new(response))
    })
}

fn cseq_number(request: &Request) -> Option<u32> {
    request.cseq().ok().map(|cseq| cseq.number)
}

fn refusal(request: &Request, status: u16, reason: &str, why: &str, rules: &CallRules) -> Box<Response> {
    Box::new(refuse(request, &rules.uas.agent, status, reason, why))
}

fn describe(response: &mut Response, sdp: Bytes) {
    response.headers.push(Name::ContentType, "application/sdp");
    response.body = sdp;
}

#[cfg(test)]
mod tests;
