//! What every leg of a call has, whoever opened it: a dialog, its media, and how the two end.
//!
//! [`super::inbound`] is a leg that somebody opened with us, [`super::outbound`] one that we opened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::id::LegId;
use crate::base::outputs::Outputs;
use crate::call::inbound::{CallRules, Refusal};
use crate::call::outcome::{End, EndCause, Hop, Output};
use crate::media::order::{LegPlan, LegStats, MediaPlan, Order};
use crate::sdp::{Direction, LocalMedia, OfferKeys, Origin};
use crate::sip::dialog::{Dialog, DialogId};
use crate::sip::flow::{Destination, Flow, FlowId, Transport};
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Method, Name, Request, Response};
use crate::sip::session_timer::{SessionEvent, SessionTimer};
use crate::sip::target;
use crate::sip::uas::refuse;

mod kept;
mod renegotiation;

pub use kept::KeptLeg;
pub(super) use renegotiation::{Described, agreed_interval, describe, read_offer, refuse_media};
use renegotiation::{Pending, Reinvite};

/// What the worker tells a leg, whichever side of a call it is.
pub trait CallLeg {
    /// The leg's number.
    fn id(&self) -> LegId;

    /// Whom the dialog is with.
    fn dialog_id(&self) -> &Arc<DialogId>;

    /// What was agreed on last.
    fn plan(&self) -> Option<&MediaPlan>;

    /// The shard opened the leg.
    fn handle_opened(&mut self, rtp_port: u16);

    /// The leg is gone: because it was told to, or because its sockets broke.
    fn handle_closed(&mut self, now: Instant, stats: Option<Box<LegStats>>);

    /// No RTP for the media timeout.
    fn handle_media_timeout(&mut self, now: Instant);

    /// A request inside the dialog, other than ACK and CANCEL.
    ///
    /// # Errors
    /// The final response to one that cannot be served; the session is as it was (RFC 3261 §14.1).
    fn handle_request(
        &mut self,
        now: Instant,
        server: ServerId,
        request: &Request,
        rules: &CallRules,
    ) -> Result<(), Refusal>;

    /// An ACK of a 2xx in this dialog.
    fn handle_ack(&mut self, now: Instant, ack: &Request);

    /// The ACK of our final response never came.
    fn handle_no_ack(&mut self, now: Instant, server: ServerId);

    /// The id of the request just sent; what is to be answered is remembered by it.
    fn sent(&mut self, client: ClientId, request: Request);

    /// The response to a request of ours.
    fn handle_response(&mut self, now: Instant, client: ClientId, response: &Response);

    /// A request of ours was never answered or could not be sent.
    fn handle_client_failed(&mut self, now: Instant, client: ClientId);

    /// A connection closed; if it was this leg's, our next request opens another.
    fn handle_flow_closed(&mut self, flow: FlowId);

    /// A request in the dialog came over this flow: with the old one gone, ours go there too.
    fn handle_flow(&mut self, flow: Flow);

    /// The media leg's even port.
    fn rtp_port(&self) -> u16;

    /// There is a 2xx, and the dialog stands.
    fn is_answered(&self) -> bool;

    /// What its media leg is to be, for one that goes on after its process's death.
    fn media_plan(&self, rules: &CallRules) -> LegPlan;

    /// Ends the call from our side.
    fn hang_up(&mut self, now: Instant, cause: EndCause);

    /// Runs what is due.
    fn handle_timeout(&mut self, now: Instant, rules: &CallRules);

    /// The next thing to do.
    fn poll_output(&mut self) -> Option<Output>;

    /// When [`CallLeg::handle_timeout`] is due.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The re-INVITE that was accepted and not acknowledged yet.
    fn pending_reinvite(&self) -> Option<ServerId>;

    /// Whether a request in the dialog may come over this transport: what began over TLS goes on over
    /// TLS, for who wants in must have shown a certificate, and our answers have keys in them.
    fn may_come_over(&self, transport: Transport) -> bool;
}

/// How far a leg is.
#[derive(Debug)]
pub(super) enum Life {
    /// No 2xx yet.
    Early,
    /// Our 200 is sent, ACK awaited.
    Answered {
        at: Instant,
        /// We want the call over, but a BYE has to wait for the ACK (RFC 3261 §15).
        ending: Option<EndCause>,
    },
    /// Both sides agree on a dialog.
    Established { at: Instant },
    /// The dialog is over, the leg is closing.
    Closing { cause: EndCause, talked: Option<Duration> },
    /// All is over and said.
    Ended { cause: EndCause },
}

/// Where a leg's requests go, and which side of the call that is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path {
    /// The caller's, who came over this flow.
    From {
        flow: Flow,
        /// The connection is gone; requests need a new one.
        closed: bool,
    },
    /// The callee's.
    To { transport: Transport, remote: SocketAddr, listener: u16, sent_by: SocketAddr },
}

/// One leg.
pub(super) struct Leg {
    pub(super) id: LegId,
    pub(super) life: Life,
    /// What we bring to each offer and answer; one address once the leg's is known.
    pub(super) local: LocalMedia,
    /// The media leg was asked for and is not gone as far as we know.
    pub(super) has_media: bool,
    pub(super) rtp_port: u16,
    pub(super) path: Path,
    pub(super) dialog: Dialog,
    pub(super) origin: Origin,
    /// Keys in the latest offer of ours.
    pub(super) offered: OfferKeys,
    pub(super) plan: Option<MediaPlan>,
    pub(super) described: Described,
    pub(super) session: Option<SessionTimer>,
    reinvite: Option<Reinvite>,
    /// Our INVITE or UPDATE that has no final response.
    pending: Option<Box<Pending>>,
    pub(super) ends_at: Option<Instant>,
    outputs: Outputs<Output>,
}

impl Leg {
    /// A leg without media and without a 2xx.
    pub(super) fn new(id: LegId, path: Path, dialog: Dialog, local: LocalMedia, offered: OfferKeys) -> Self {
        Self {
            id,
            life: Life::Early,
            local,
            has_media: false,
            rtp_port: 0,
            path,
            dialog,
            origin: Origin::new(id.0),
            offered,
            plan: None,
            described: Described::default(),
            session: None,
            reinvite: None,
            pending: None,
            ends_at: None,
            outputs: Outputs::default(),
        }
    }

    /// Wants something done.
    pub(super) fn put(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// The next thing to do.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// Asks for the media leg.
    pub(super) fn open(&mut self, media: Option<MediaPlan>, rules: &CallRules) {
        let plan = LegPlan { media, ..self.media_plan(rules) };
        self.put(Output::Order(Order::Open(self.id, Box::new(plan))));
        self.has_media = true;
    }

    /// True until the dialog begins to end.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.life, Life::Closing { .. } | Life::Ended { .. })
    }

    pub(super) fn is_answered(&self) -> bool {
        matches!(self.life, Life::Answered { .. } | Life::Established { .. })
    }

    /// Why it ends, once it does; also while our BYE waits for an ACK.
    pub(super) fn ending(&self) -> Option<EndCause> {
        match self.life {
            Life::Answered { ending, .. } => ending,
            Life::Closing { cause, .. } | Life::Ended { cause } => Some(cause),
            Life::Early | Life::Established { .. } => None,
        }
    }

    /// A fault of this side.
    pub(super) fn fault(&self, cause: EndCause) -> EndCause {
        match self.path {
            Path::From { .. } => cause,
            Path::To { .. } => cause.of_callee(),
        }
    }

    /// BYE once the leg is established, between 200 and ACK a BYE that waits for the ACK or its absence
    /// (RFC 3261 §15); before that nothing but the end.
    pub(super) fn hang_up(&mut self, now: Instant, cause: EndCause) {
        if let Life::Answered { ending, .. } = &mut self.life {
            ending.get_or_insert(cause);
        } else {
            self.part(now, cause);
        }
    }

    /// Tells the peer that it is over, and closes.
    pub(super) fn part(&mut self, now: Instant, cause: EndCause) {
        match self.life {
            Life::Early => self.close(cause, None),
            Life::Answered { at, .. } | Life::Established { at } => {
                let mut bye = self.dialog.request(Method::Bye);
                bye.headers.push(Name::Reason, cause.reason());
                self.put(Output::Request(self.hop(), bye));
                self.close(cause, Some(now - at));
            }
            Life::Closing { .. } | Life::Ended { .. } => {}
        }
    }

    /// The dialog is over; the call is when its leg is.
    pub(super) fn close(&mut self, cause: EndCause, talked: Option<Duration>) {
        self.life = Life::Closing { cause, talked };
        if self.has_media {
            self.put(Output::Order(Order::Close(self.id)));
        } else {
            self.end(None);
        }
    }

    pub(super) fn end(&mut self, stats: Option<Box<LegStats>>) {
        if let Life::Closing { cause, talked } = self.life {
            self.put(Output::Ended(End { cause, stats, talked }));
            self.life = Life::Ended { cause };
        }
    }

    /// BYE from the peer, once there is a dialog.
    pub(super) fn handle_bye(&mut self, now: Instant) {
        if let Life::Answered { at, .. } | Life::Established { at } = self.life {
            self.close(self.fault(EndCause::CallerHungUp), Some(now - at));
        }
    }

    /// A request that needs a dialog but changes no session: BYE, OPTIONS.
    ///
    /// # Errors
    /// RFC 3261 §12.2.2: it is out of order, or the dialog is over.
    pub(super) fn accept(&mut self, request: &Request, rules: &CallRules) -> Result<(), Refusal> {
        self.dialog.accept(request).map_err(|status| match status {
            400 => ("malformed", refusal(request, 400, "Bad Request", "no CSeq", rules)),
            _ => ("cseq", refusal(request, status, "Server Internal Error", "CSeq out of order", rules)),
        })?;
        // Only a BYE that crossed ours still finds the dialog (RFC 3261 §15.1.2).
        if self.is_alive() || request.method == Method::Bye {
            return Ok(());
        }
        let why = "the call is over";
        Err(("no_dialog", refusal(request, 481, "Call Does Not Exist", why, rules)))
    }

    /// Session refresh, session expiry, the longest call, an offer whose time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant, rules: &CallRules) {
        if self.ends_at.is_some_and(|at| at <= now) {
            self.ends_at = None;
            self.hang_up(now, EndCause::DurationLimit);
            return;
        }
        let Life::Established { .. } = self.life else { return };
        match self.session.as_mut().and_then(|session| session.handle_timeout(now)) {
            Some(SessionEvent::Refresh) => self.send_refresh(rules),
            Some(SessionEvent::Expired) => self.hang_up(now, self.fault(EndCause::SessionExpired)),
            None => {}
        }
        self.offer_what_changed(now, rules);
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.life {
            Life::Answered { .. } => self.ends_at,
            Life::Established { .. } => {
                let session = self.session.as_ref().and_then(SessionTimer::poll_timeout);
                self.ends_at.into_iter().chain(session).chain(self.next_offer()).min()
            }
            Life::Early | Life::Closing { .. } | Life::Ended { .. } => None,
        }
    }

    /// Where our requests go and what is our address there.
    pub(super) fn hop(&self) -> Hop {
        let sent_by = match self.path {
            Path::From { flow, .. } => flow.local,
            Path::To { sent_by, .. } => sent_by,
        };
        Hop { destination: self.destination(), sent_by }
    }

    /// Back where the INVITE came from while that stands, for behind a NAT nothing else arrives; else
    /// along the route set or to the peer's Contact (RFC 3261 §12.2.1.1). What came or went over TLS is
    /// never spoken of in the clear, whatever Contact or Record-Route say: our offers have keys in them.
    pub(super) fn destination(&self) -> Destination {
        let (listener, otherwise) = match self.path {
            Path::From { flow, closed } => {
                let Flow { transport, remote, listener, .. } = flow;
                let back = match transport {
                    // Its socket's own name died with an earlier process.
                    Transport::Udp if closed => Destination::Address { transport, remote, listener },
                    Transport::Udp | Transport::Tcp | Transport::Tls => Destination::Flow(flow),
                };
                if self.dialog.is_direct() && (!closed || transport == Transport::Udp) {
                    return back;
                }
                (listener, back)
            }
            Path::To { transport, remote, listener, .. } => {
                let first = Destination::Address { transport, remote, listener };
                if let Life::Early = self.life {
                    return first;
                }
                (listener, first)
            }
        };
        let next_hop = self.dialog.next_hop();
        let found = match self.transport() {
            Transport::Tls => target::resolve_secure(&next_hop).map(|remote| (Transport::Tls, remote)),
            Transport::Udp | Transport::Tcp => target::resolve(&next_hop),
        };
        found.map_or(otherwise, |(transport, remote)| Destination::Address { transport, remote, listener })
    }

    pub(super) fn handle_flow_closed(&mut self, gone: FlowId) {
        if let Path::From { flow, closed } = &mut self.path {
            *closed |= flow.id == gone;
        }
    }

    pub(super) fn handle_flow(&mut self, came: Flow) {
        if let Path::From { flow, closed } = &mut self.path
            && *closed
            && flow.transport == came.transport
        {
            (*flow, *closed) = (came, false);
        }
    }

    pub(super) fn may_come_over(&self, transport: Transport) -> bool {
        self.transport() != Transport::Tls || transport == Transport::Tls
    }

    fn transport(&self) -> Transport {
        match self.path {
            Path::From { flow, .. } => flow.transport,
            Path::To { transport, .. } => transport,
        }
    }

    /// For the log.
    fn peer(&self) -> SocketAddr {
        match self.path {
            Path::From { flow, .. } => flow.remote,
            Path::To { remote, .. } => remote,
        }
    }

    /// A response in the dialog that tells what we serve.
    pub(super) fn response(
        &mut self,
        request: &Request,
        status: u16,
        reason: &str,
        rules: &CallRules,
    ) -> Response {
        let mut response = self.dialog.response(request, status, reason);
        response.headers.push(Name::Allow, rules.uas.allow());
        response.headers.push(Name::Supported, rules.uas.supported());
        response
    }

    /// The 200 to OPTIONS; `uas::inspect` lets no other method through here.
    pub(super) fn options_response(&mut self, request: &Request, rules: &CallRules) -> Response {
        let mut response = self.response(request, 200, "OK", rules);
        response.headers.push(Name::Accept, rules.uas.accept());
        response
    }

    /// What the peer sends and receives, as far as it has said.
    pub(super) fn peer_direction(&self) -> Direction {
        self.described.peer
    }
}

/// A refusal with a Warning that says why.
pub(super) fn refusal(
    request: &Request,
    status: u16,
    reason: &str,
    why: &str,
    rules: &CallRules,
) -> Box<Response> {
    Box::new(refuse(request, &rules.uas.agent, status, reason, why))
}

pub(super) fn cseq_number(request: &Request) -> Option<u32> {
    request.cseq().ok().map(|cseq| cseq.number)
}
