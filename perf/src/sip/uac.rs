//! One call's SIP side: places it, follows redirects, keeps it up, ends it.
//!
//! The owner polls `fd`, calls `handle_readable` and `handle_timeout`, and drains `poll_event`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rsip::headers::{self, UntypedHeader};
use rsip::{Header, Method, Request, SipMessage, Uri};

use crate::rng::Rng;
use crate::sip::link::Link;
use crate::sip::target::{Target, Transport};
use crate::sip::tls::TlsClient;
use crate::sip::wire::{self, Identity, Incoming, Parts};
use crate::sip::{sdes, sdp};

/// RFC 3261 timer T1.
const T1: Duration = Duration::from_millis(500);
/// RFC 3261 timer T2.
const T2: Duration = Duration::from_secs(4);
/// Redirects followed before a call is given up.
const REDIRECTS_MAX: usize = 8;

/// How a call is to be placed.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// User part of From.
    pub from: String,
    /// Further header lines of the INVITE.
    pub headers: Vec<String>,
    /// Offer in the INVITE; otherwise answer in the ACK.
    pub offer: bool,
    /// Ask for session timers with this interval (RFC 4028), seconds.
    pub session_expires_s: Option<u32>,
    /// A call that rings longer is cancelled.
    pub patience: Duration,
    /// For hops over TLS; without it they are refused.
    pub tls: Option<TlsClient>,
    /// Keys to offer.
    pub srtp: sdes::Wish,
}

/// Why the far side did not take the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Final status code.
    pub status: u16,
    /// Its phrase.
    pub reason: String,
    /// Warning header.
    pub warning: Option<String>,
    /// Retry-After header.
    pub retry_after: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A provisional response.
    Progress(u16),
    /// A 3xx was followed to this URI.
    Redirected(String),
    /// 200: the call is up.
    Answered(sdp::Remote),
    /// A final response of 300 or more that was not followed.
    Refused(Refusal),
    /// A new offer or answer took effect; the flag says whether we asked for it.
    Changed(sdp::Remote, bool),
    /// Our re-INVITE was refused with this status.
    ChangeRefused(u16),
    /// The call is over.
    Ended(String),
}

/// A client transaction under way.
#[derive(Debug)]
struct Pending {
    method: Method,
    cseq: u32,
    branch: String,
    bytes: Vec<u8>,
    /// Unreliable transports: next copy and the time between copies.
    resend: Option<(Instant, Duration)>,
    give_up: Instant,
}

/// How far the call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Calling,
    Up,
    Leaving,
    Over,
}

/// One call.
#[derive(Debug)]
pub struct Uac {
    link: Link,
    identity: Identity,
    wishes: Wishes,
    /// What we describe in offers and answers; change it before `reinvite`.
    pub local: sdp::Local,
    state: State,
    target: Uri,
    redirects: usize,
    cseq: u32,
    pending: Option<Pending>,
    last_ack: Option<(u32, Vec<u8>)>,
    refresh_at: Option<Instant>,
    events: VecDeque<Event>,
    rng: Rng,
}

impl Uac {
    /// Connects and sends the INVITE.
    ///
    /// # Errors
    /// The first hop cannot be reached, or a wished header is malformed.
    pub fn place(now: Instant, target: Target, wishes: Wishes, local: sdp::Local, rng: Rng) -> Result<Self> {
        let link = Link::connect(&target, wishes.tls.as_ref())?;
        let mut rng = rng;
        let identity = Identity {
            call_id: format!("{:016x}@voxperf", rng.bits()),
            from: format!("<sip:{}@{}>;tag={:08x}", wishes.from, host_of(link.local), rng.word()),
            to: format!("<{}>", without_parameters(&target.uri)),
            contact: String::new(),
            via: String::new(),
            routes: Vec::new(),
        };
        let mut uac = Self {
            link,
            identity,
            wishes,
            local,
            state: State::Calling,
            target: target.uri,
            redirects: 0,
            cseq: 0,
            pending: None,
            last_ack: None,
            refresh_at: None,
            events: VecDeque::new(),
            rng,
        };
        uac.name_link();
        uac.invite(now)?;
        Ok(uac)
    }

    /// The call's Call-ID.
    pub fn call_id(&self) -> &str {
        &self.identity.call_id
    }

    /// Readable means `handle_readable`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.fd()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let resend = self.pending.as_ref().and_then(|p| p.resend.map(|(at, _)| at));
        [resend, self.pending.as_ref().map(|p| p.give_up), self.refresh_at].into_iter().flatten().min()
    }

    /// Takes in what arrived. A broken link ends the call.
    pub fn handle_readable(&mut self, now: Instant) {
        let result = self.link.receive().and_then(|messages| {
            messages.iter().try_for_each(|bytes| {
                let message = Incoming::read(bytes)?;
                match &message.sip {
                    SipMessage::Request(request) => self.handle_request(now, request, &message),
                    SipMessage::Response(response) => {
                        self.handle_response(now, response.status_code.code(), &message)
                    }
                }
            })
        });
        if let Err(error) = result {
            self.end(format!("{error:#}"));
        }
    }

    /// Resends, gives up, refreshes.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            self.reinvite(now);
        }
        let Some(pending) = &mut self.pending else { return };
        if pending.give_up <= now {
            let method = pending.method;
            self.end(format!("no final response to {method}"));
            return;
        }
        if let Some((at, interval)) = pending.resend.filter(|(at, _)| *at <= now) {
            let next = if pending.method == Method::Invite { interval * 2 } else { (interval * 2).min(T2) };
            pending.resend = Some((at + next, next));
            let bytes = pending.bytes.clone();
            self.send(&bytes);
        }
    }

    /// Offers `local` anew: hold, resume, another port, or only a session refresh.
    pub fn reinvite(&mut self, now: Instant) {
        if self.state != State::Up || self.pending.is_some() {
            self.events.push_back(Event::ChangeRefused(491));
            return;
        }
        self.local.version += 1;
        if let Err(error) = self.invite(now) {
            self.end(format!("{error:#}"));
        }
    }

    /// Ends the call: CANCEL while it rings, BYE when it is up.
    pub fn hang_up(&mut self, now: Instant) {
        let result = match self.state {
            State::Up => {
                self.state = State::Leaving;
                self.start(now, Method::Bye, None)
            }
            State::Calling => self.cancel(now),
            State::Leaving | State::Over => Ok(()),
        };
        if let Err(error) = result {
            self.end(format!("{error:#}"));
        }
    }

    /// True once `Event::Ended` or `Event::Refused` was raised.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    fn invite(&mut self, now: Instant) -> Result<()> {
        let body = (self.wishes.offer || self.state == State::Up).then(|| self.local.render());
        self.start(now, Method::Invite, body)
    }

    /// A new client transaction; its bytes stay for resending.
    fn start(&mut self, now: Instant, method: Method, body: Option<String>) -> Result<()> {
        self.cseq += 1;
        let branch = format!("z9hG4bK{:016x}", self.rng.bits());
        let mut extra = Vec::new();
        if method == Method::Invite {
            if self.state == State::Calling {
                extra.clone_from(&self.wishes.headers);
            }
            if let Some(seconds) = self.wishes.session_expires_s {
                extra.push("Supported: timer".to_owned());
                extra.push(format!("Session-Expires: {seconds}"));
            }
        }
        let uri = &self.target;
        let parts = Parts { method, uri, cseq: self.cseq, branch: &branch, extra: &extra, body };
        let bytes = wire::request(&self.identity, parts)?;
        let waits = if method == Method::Invite { self.wishes.patience } else { 64 * T1 };
        let resend = (self.link.transport == Transport::Udp).then_some((now + T1, T1));
        self.send(&bytes);
        let pending = Pending { method, cseq: self.cseq, branch, bytes, resend, give_up: now + waits };
        self.pending = Some(pending);
        Ok(())
    }

    fn cancel(&mut self, now: Instant) -> Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        pending.give_up = now + 64 * T1;
        let (cseq, branch) = (pending.cseq, pending.branch.clone());
        let parts = Parts {
            method: Method::Cancel,
            uri: &self.target,
            cseq,
            branch: &branch,
            extra: &[],
            body: None,
        };
        let bytes = wire::request(&self.identity, parts)?;
        self.send(&bytes);
        Ok(())
    }

    fn handle_response(&mut self, now: Instant, status: u16, message: &Incoming) -> Result<()> {
        let (cseq, method) = message.cseq()?;
        if let Some((acked, bytes)) = self.last_ack.clone() {
            // A 2xx again: our ACK was lost (RFC 3261 §13.2.2.4).
            if acked == cseq && method == Method::Invite && (200..300).contains(&status) {
                self.send(&bytes);
                return Ok(());
            }
        }
        let Some(pending) = self.pending.as_mut().filter(|p| p.cseq == cseq && p.method == method) else {
            return Ok(());
        };
        if status < 200 {
            pending.resend = pending.resend.filter(|_| method != Method::Invite);
            self.events.push_back(Event::Progress(status));
            return Ok(());
        }
        let Some(pending) = self.pending.take() else { return Ok(()) };
        if method != Method::Invite {
            self.end(format!("hung up, BYE answered {status}"));
            return Ok(());
        }
        if status < 300 {
            return self.handle_2xx(now, message);
        }
        self.handle_refusal(now, status, message, &pending)
    }

    /// Acknowledges, takes over dialog and media.
    fn handle_2xx(&mut self, now: Instant, message: &Incoming) -> Result<()> {
        let first = self.state == State::Calling;
        if first {
            self.identity.to = message.value("To").context("the 200 has no To")?;
            let mut routes = message.values("Record-Route");
            routes.reverse();
            self.identity.routes = routes;
        }
        if let Ok(contact) = message.contact() {
            self.target = contact;
            self.relink()?;
        }
        let offerless = first && !self.wishes.offer;
        let remote = sdp::read(message.body());
        if let Some(remote) = remote.as_ref().ok().filter(|_| offerless) {
            // Keys that do not fit show when the owner joins both sides' lines.
            self.local.crypto = sdes::answer(&self.local.crypto, &remote.crypto)
                .unwrap_or_else(|_| self.local.crypto.clone());
        }
        let body = offerless.then(|| self.local.render());
        let branch = format!("z9hG4bK{:016x}", self.rng.bits());
        let (cseq, uri) = (self.cseq, &self.target);
        let parts = Parts { method: Method::Ack, uri, cseq, branch: &branch, extra: &[], body };
        let bytes = wire::request(&self.identity, parts)?;
        self.send(&bytes);
        self.last_ack = Some((cseq, bytes));
        self.state = State::Up;
        self.schedule_refresh(now, message);
        let remote = remote?;
        self.events.push_back(if first { Event::Answered(remote) } else { Event::Changed(remote, true) });
        Ok(())
    }

    /// We refresh at half the interval when the answer made us the refresher (RFC 4028 §7.2).
    fn schedule_refresh(&mut self, now: Instant, message: &Incoming) {
        self.refresh_at = None;
        let Some(value) = message.value("Session-Expires") else { return };
        let seconds: Option<u64> = value.split(';').next().and_then(|seconds| seconds.trim().parse().ok());
        if let Some(seconds) = seconds.filter(|_| value.contains("refresher=uac")) {
            self.refresh_at = Some(now + Duration::from_secs(seconds) / 2);
        }
    }

    /// ACKs a 3xx-6xx within its transaction (RFC 3261 §17.1.1.3), then follows or reports it.
    fn handle_refusal(&mut self, now: Instant, status: u16, message: &Incoming, old: &Pending) -> Result<()> {
        let to = self.identity.to.clone();
        self.identity.to = message.value("To").unwrap_or_else(|| to.clone());
        let (method, branch) = (Method::Ack, old.branch.as_str());
        let parts = Parts { method, uri: &self.target, cseq: old.cseq, branch, extra: &[], body: None };
        let ack = wire::request(&self.identity, parts)?;
        self.identity.to = to;
        self.send(&ack);
        if self.state == State::Up {
            self.events.push_back(Event::ChangeRefused(status));
            return Ok(());
        }
        if (300..400).contains(&status) {
            return self.follow(now, message);
        }
        if status == 422 && self.redirects < REDIRECTS_MAX {
            // The interval was too small (RFC 4028 §7.3).
            self.redirects += 1;
            self.wishes.session_expires_s = message.value("Min-SE").and_then(|min| min.parse().ok());
            return self.invite(now);
        }
        self.state = State::Over;
        self.events.push_back(Event::Refused(Refusal {
            status,
            reason: message.reason.clone(),
            warning: message.value("Warning"),
            retry_after: message.value("Retry-After"),
        }));
        Ok(())
    }

    /// A new INVITE to the Contact, same Call-ID, To and From (RFC 3261 §8.1.3.4).
    fn follow(&mut self, now: Instant, message: &Incoming) -> Result<()> {
        self.redirects += 1;
        if self.redirects > REDIRECTS_MAX {
            bail!("more than {REDIRECTS_MAX} redirects");
        }
        self.target = message.contact()?;
        self.events.push_back(Event::Redirected(self.target.to_string()));
        self.relink()?;
        self.invite(now)
    }

    /// Makes sure the link leads to the next hop.
    fn relink(&mut self) -> Result<()> {
        let next = match self.identity.routes.first() {
            Some(route) => Target::parse(route.trim_matches(['<', '>']).split('>').next().unwrap_or(route))?,
            None => Target::from_uri(self.target.clone())?,
        };
        if !next.is_at(self.link.remote) || next.transport != self.link.transport {
            self.link = Link::connect(&next, self.wishes.tls.as_ref())?;
            self.name_link();
        }
        Ok(())
    }

    fn name_link(&mut self) {
        let (local, transport) = (self.link.local, self.link.transport.name());
        self.identity.via = format!("SIP/2.0/{transport} {local}");
        self.identity.contact = format!("<sip:voxperf@{local};transport={}>", transport.to_ascii_lowercase());
    }

    /// The far side asks: hang-up, new offer, refresh, or a sign of life.
    fn handle_request(&mut self, now: Instant, request: &Request, message: &Incoming) -> Result<()> {
        let answer = match request.method {
            Method::Ack => return Ok(()),
            Method::Bye => {
                self.send(&wire::response(request, 200, Vec::new(), None));
                let reason = message.value("Reason").map(|reason| format!(" ({reason})")).unwrap_or_default();
                self.end(format!("far side hung up{reason}"));
                return Ok(());
            }
            Method::Invite | Method::Update => self.answer_offer(now, request, message),
            Method::Options | Method::Info | Method::Notify | Method::Message => {
                wire::response(request, 200, Vec::new(), None)
            }
            Method::Cancel
            | Method::PRack
            | Method::Publish
            | Method::Refer
            | Method::Register
            | Method::Subscribe => wire::response(request, 501, Vec::new(), None),
        };
        self.send(&answer);
        Ok(())
    }

    fn answer_offer(&mut self, now: Instant, request: &Request, message: &Incoming) -> Vec<u8> {
        if self.pending.is_some() {
            return wire::response(request, 491, Vec::new(), None);
        }
        let mut extra: Vec<Header> = vec![headers::Contact::new(self.identity.contact.clone()).into()];
        if let Some(interval) = message.value("Session-Expires") {
            extra.push(Header::Other("Session-Expires".to_owned(), interval));
            extra.push(headers::Require::new("timer").into());
        }
        let is_update_without_offer = message.body().is_empty() && request.method == Method::Update;
        if is_update_without_offer {
            return wire::response(request, 200, extra, None);
        }
        if message.body().is_empty() {
            return wire::response(request, 200, extra, Some(self.local.render()));
        }
        let Ok(remote) = sdp::read(message.body()) else {
            return wire::response(request, 488, Vec::new(), None);
        };
        let Ok(crypto) = sdes::answer(&self.local.crypto, &remote.crypto) else {
            return wire::response(request, 488, Vec::new(), None);
        };
        self.local.crypto = crypto;
        self.refresh_at = self.refresh_at.map(|_| now + Duration::from_secs(900));
        self.local.version += 1;
        let answer = sdp::Local { direction: remote.direction.answered(), ..self.local.clone() };
        self.events.push_back(Event::Changed(remote, false));
        wire::response(request, 200, extra, Some(answer.render()))
    }

    fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.link.send(bytes) {
            self.end(format!("sending failed: {error:#}"));
        }
    }

    fn end(&mut self, why: String) {
        if self.state != State::Over {
            self.state = State::Over;
            self.events.push_back(Event::Ended(why));
        }
        self.pending = None;
        self.refresh_at = None;
    }
}

/// An address as the host of a URI: IPv6 in brackets.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

/// The URI for To: no port, no parameters (RFC 3261 §19.1.1).
fn without_parameters(uri: &Uri) -> Uri {
    let mut plain = uri.clone();
    plain.params.clear();
    plain.host_with_port.port = None;
    plain
}
