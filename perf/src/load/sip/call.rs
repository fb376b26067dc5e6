//! One call of a load, as a state machine: places it, follows redirects, keeps it up, ends it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::load::sip::text::{Glance, Request, Start, contact, write_response};
use crate::sip::sdp;
use crate::sip::target::{Target, Transport};

mod change;

/// RFC 3261 timer T1.
const T1: Duration = Duration::from_millis(500);
/// RFC 3261 timer T2.
const T2: Duration = Duration::from_secs(4);
/// Redirects followed before a call is given up.
const REDIRECTS_MAX: u32 = 8;
/// How long a call that is over still answers copies over UDP: timer J, RFC 3261 §17.2.2.
const MEMORY: Duration = Duration::from_secs(32);

/// A URI and where it leads.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// As it was written.
    pub uri: String,
    /// Address and transport.
    pub target: Target,
}

/// A connection or socket to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Its number.
    pub connection: usize,
    /// Our end.
    pub local: SocketAddr,
    /// TCP, UDP or TLS.
    pub transport: Transport,
}

/// What a call needs of the world.
pub trait Hops {
    /// Reads a URI and finds where it leads.
    ///
    /// # Errors
    /// It is no SIP URI, or leads nowhere.
    fn resolve(&mut self, uri: &str) -> Result<Rc<Place>>;
    /// A way there; calls share connections by their number.
    ///
    /// # Errors
    /// The neighbour cannot be reached.
    fn way(&mut self, target: &Target, call: u32) -> Result<Way>;
    /// Sends one message. A connection that breaks is told to every call that waits on it.
    fn send(&mut self, connection: usize, message: &[u8]);
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// We hung up.
    HungUp,
    /// We hung up, and the far side answered with this status instead of 200.
    Disowned(u16),
    /// The far side hung up, for this reason if it gave one.
    EndedEarly(String),
    /// A final response of 300 or more that was not followed.
    Refused {
        /// Its status code.
        status: u16,
        /// Warning header.
        warning: Option<String>,
        /// It has a Retry-After header.
        retry_after: bool,
    },
    /// No final response, a broken connection, a message that makes no sense.
    Failed(String),
}

/// What the owner has to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// 200: the call is up. The ACK is on its way.
    Answered(Box<Answer>),
    /// What a re-INVITE of ours came to: true when it was taken.
    Changed(bool),
    /// The call is over; at most once.
    Over(Ending),
}

/// What the 200 said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its SDP.
    pub remote: sdp::Remote,
    /// Server or User-Agent header.
    pub server: String,
}

/// A client transaction under way.
#[derive(Debug)]
struct Pending {
    cseq: u32,
    way: Way,
    /// The request, where it may have to be sent again; else nothing.
    message: Vec<u8>,
    /// Copies over UDP: the next one, the time between two.
    resend: Option<(Instant, Duration)>,
    give_up: Instant,
    /// It was sent over a second connection, for the first one broke.
    moved: bool,
}

/// How far it is. Each state owns its timers.
#[derive(Debug)]
enum State {
    /// INVITE sent.
    Calling(Pending),
    /// 200 acknowledged. The ACK is kept for copies of the 200 (RFC 3261 §13.2.2.4).
    Up {
        /// CSeq of the INVITE that was answered last.
        invite: u32,
        /// Its ACK, and where it went.
        ack: Vec<u8>,
        way: Way,
        /// When to hang up.
        leave: Option<Instant>,
        /// A re-INVITE under way.
        change: Option<Pending>,
    },
    /// BYE sent.
    Leaving(Pending),
    /// Over; copies are still answered until then.
    Over { forget: Instant },
}

/// What a call is told at its beginning.
#[derive(Debug, Clone)]
pub struct Dial {
    /// Number among its run.
    pub number: u32,
    /// Distinguishes runs.
    pub run: u32,
    /// Who is called.
    pub place: Rc<Place>,
    /// To without a tag.
    pub to: Rc<str>,
    /// Our description.
    pub local: sdp::Local,
    /// A call that rings longer is given up.
    pub patience: Duration,
    /// Hang up this long after the answer.
    pub hold: Option<Duration>,
    /// Where we take connections, for Contact over TCP; `None`: nowhere, Contact is our end of each.
    pub contact: Option<SocketAddr>,
    /// A request whose connection breaks before its answer leaves once more, over a new one.
    pub moves: bool,
}

/// One call.
#[derive(Debug)]
pub struct Call {
    dial: Dial,
    call_id: String,
    from: String,
    to: String,
    place: Rc<Place>,
    routes: Vec<String>,
    cseq: u32,
    redirects: u32,
    state: State,
    /// Copies sent over UDP.
    pub retransmissions: u64,
    /// Requests sent again over a new connection.
    pub moves: u64,
}

/// The number in a Call-ID of this run.
pub fn number_of(call_id: &str, run: u32) -> Option<u32> {
    let (marked, number) = call_id.strip_suffix("@voxperf")?.split_once('.')?;
    (u32::from_str_radix(marked, 16).ok()? == run).then(|| number.parse().ok())?
}

impl Call {
    /// Sends the INVITE.
    ///
    /// # Errors
    /// The first hop cannot be reached.
    pub fn place(now: Instant, dial: Dial, hops: &mut impl Hops) -> Result<Self> {
        let (number, run) = (dial.number, dial.run);
        let way = hops.way(&dial.place.target, number)?;
        let host = match dial.local.address {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("[{address}]"),
        };
        let mut call = Self {
            call_id: format!("{run:08x}.{number}@voxperf"),
            from: format!("<sip:p{number}@{host}>;tag={run:08x}.{number}"),
            to: dial.to.to_string(),
            place: Rc::clone(&dial.place),
            routes: Vec::new(),
            cseq: 0,
            redirects: 0,
            state: State::Over { forget: now },
            retransmissions: 0,
            moves: 0,
            dial,
        };
        call.invite(now, way, hops);
        Ok(call)
    }

    /// What we offered.
    pub fn local(&self) -> &sdp::Local {
        &self.dial.local
    }

    /// True from the 200 to the end.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// True from the INVITE to its final response.
    pub fn is_calling(&self) -> bool {
        matches!(self.state, State::Calling(_))
    }

    /// True after the last event. `poll_timeout` tells when it may be forgotten.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over { .. })
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Calling(pending) | State::Leaving(pending) => Some(pending.due()),
            State::Up { leave, change, .. } => {
                [*leave, change.as_ref().map(Pending::due)].into_iter().flatten().min()
            }
            State::Over { forget } => Some(*forget),
        }
    }

    /// Resends, gives up, hangs up.
    pub fn handle_timeout(&mut self, now: Instant, hops: &mut impl Hops) -> Option<Event> {
        match &mut self.state {
            State::Calling(pending) | State::Leaving(pending) => {
                if pending.give_up <= now {
                    let method = if self.is_calling() { "INVITE" } else { "BYE" };
                    return self.end(now, Ending::Failed(format!("no final response to {method}")));
                }
                self.retransmissions += u64::from(pending.resend(now, hops));
                None
            }
            State::Up { leave: Some(at), .. } if *at <= now => self.hang_up(now, hops),
            State::Up { change: Some(pending), .. } => {
                if pending.give_up <= now {
                    return self.end(now, Ending::Failed("no final response to re-INVITE".to_owned()));
                }
                self.retransmissions += u64::from(pending.resend(now, hops));
                None
            }
            State::Up { .. } => None,
            State::Over { .. } => None,
        }
    }

    /// Ends the call: CANCEL while it rings, BYE when it is up.
    pub fn hang_up(&mut self, now: Instant, hops: &mut impl Hops) -> Option<Event> {
        match &mut self.state {
            State::Calling(pending) => {
                pending.give_up = pending.give_up.min(now + 8 * T1);
                let (cseq, way) = (pending.cseq, pending.way);
                let cancel = self.request("CANCEL", cseq, "INVITE", way, None);
                hops.send(way.connection, &cancel);
                None
            }
            State::Up { .. } => {
                let way = match self.next_hop(hops) {
                    Ok(way) => way,
                    Err(error) => return self.end(now, Ending::Failed(format!("{error:#}"))),
                };
                self.cseq += 1;
                let bye = self.request("BYE", self.cseq, "BYE", way, None);
                self.state = State::Leaving(self.start(now, way, bye, 64 * T1, hops));
                None
            }
            State::Leaving(_) | State::Over { .. } => None,
        }
    }

    /// The connection under a transaction broke. What is up stays up: its next request finds a way.
    pub fn handle_broken(
        &mut self,
        now: Instant,
        connection: usize,
        why: &str,
        hops: &mut impl Hops,
    ) -> Option<Event> {
        let waits = self.pending().is_some_and(|pending| pending.way.connection == connection);
        if !waits || self.move_request(hops) {
            return None;
        }
        self.end(now, Ending::Failed(why.to_owned()))
    }

    /// Takes a response or a request of this call that came over a connection.
    pub fn handle_message(
        &mut self,
        now: Instant,
        connection: usize,
        message: &Glance<'_>,
        hops: &mut impl Hops,
    ) -> Option<Event> {
        let result = match message.start {
            Start::Response(status, _) => self.handle_response(now, status, message, hops),
            Start::Request(method, _) => Ok(self.handle_request(now, connection, method, message, hops)),
        };
        result.unwrap_or_else(|error| self.end(now, Ending::Failed(format!("{error:#}"))))
    }

    fn handle_response(
        &mut self,
        now: Instant,
        status: u16,
        message: &Glance<'_>,
        hops: &mut impl Hops,
    ) -> Result<Option<Event>> {
        let (cseq, method) = message.cseq().context("a response without CSeq")?;
        match &mut self.state {
            State::Calling(pending) if (cseq, method) == (pending.cseq, "INVITE") => {
                if status < 200 {
                    pending.resend = None;
                    return Ok(None);
                }
                let way = pending.way;
                if status < 300 {
                    self.handle_2xx(now, message, hops)
                } else {
                    self.refused(now, status, way, message, hops)
                }
            }
            State::Up { change: Some(pending), .. } if (cseq, method) == (pending.cseq, "INVITE") => {
                self.change_answered(now, status, message, hops)
            }
            State::Up { invite, ack, way, .. } => {
                // A 2xx again: our ACK was lost.
                if (cseq, method) == (*invite, "INVITE") && (200..300).contains(&status) {
                    hops.send(way.connection, ack);
                }
                Ok(None)
            }
            State::Leaving(pending) if cseq == pending.cseq && status >= 200 => {
                let ending = if status < 300 { Ending::HungUp } else { Ending::Disowned(status) };
                Ok(self.end(now, ending))
            }
            // Copies, provisional answers to BYE and answers to CANCEL change nothing.
            State::Calling(_) | State::Leaving(_) | State::Over { .. } => Ok(None),
        }
    }

    /// Acknowledges, takes over the dialog (RFC 3261 §12.1.2).
    fn handle_2xx(
        &mut self,
        now: Instant,
        message: &Glance<'_>,
        hops: &mut impl Hops,
    ) -> Result<Option<Event>> {
        message.value("To").context("a 200 without To")?.clone_into(&mut self.to);
        self.routes = message
            .values("Record-Route")
            .flat_map(|line| line.split(','))
            .map(|r| r.trim().to_owned())
            .collect();
        self.routes.reverse();
        if let Some(uri) = message.contact() {
            self.place = hops.resolve(uri)?;
        }
        let way = self.next_hop(hops)?;
        let ack = self.request("ACK", self.cseq, "ACK", way, None);
        let remote = sdp::read(message.body);
        hops.send(way.connection, &ack);
        let leave = self.dial.hold.map(|hold| now + hold);
        self.state = State::Up { invite: self.cseq, ack, way, leave, change: None };
        let server = message.value("Server").or_else(|| message.value("User-Agent"));
        let server = server.unwrap_or_default().to_owned();
        if remote.is_err() {
            // The far side believes in the call; the error then ends it here.
            self.hang_up(now, hops);
        }
        Ok(Some(Event::Answered(Box::new(Answer { remote: remote?, server }))))
    }

    /// ACKs a 3xx-6xx within its transaction (RFC 3261 §17.1.1.3), then follows or reports it.
    fn refused(
        &mut self,
        now: Instant,
        status: u16,
        way: Way,
        message: &Glance<'_>,
        hops: &mut impl Hops,
    ) -> Result<Option<Event>> {
        let to = std::mem::replace(&mut self.to, message.value("To").unwrap_or_default().to_owned());
        let ack = self.request("ACK", self.cseq, "INVITE", way, None);
        self.to = to;
        hops.send(way.connection, &ack);
        if (300..400).contains(&status) {
            self.redirects += 1;
            if self.redirects > REDIRECTS_MAX {
                bail!("more than {REDIRECTS_MAX} redirects");
            }
            // Same Call-ID, To and From (RFC 3261 §8.1.3.4).
            self.place = hops.resolve(message.contact().context("a redirect without Contact")?)?;
            let way = hops.way(&self.place.target, self.dial.number)?;
            self.invite(now, way, hops);
            return Ok(None);
        }
        let warning = message.value("Warning").map(str::to_owned);
        let retry_after = message.value("Retry-After").is_some();
        Ok(self.end(now, Ending::Refused { status, warning, retry_after }))
    }

    /// The far side asks: hang-up, new offer, refresh, or a sign of life.
    fn handle_request(
        &mut self,
        now: Instant,
        connection: usize,
        method: &str,
        message: &Glance<'_>,
        hops: &mut impl Hops,
    ) -> Option<Event> {
        let mut answer = |status: &str, extra: &[String], body: Option<&str>| {
            let mut out = Vec::new();
            write_response(&mut out, message, status, "", extra, body);
            hops.send(connection, &out);
        };
        match method {
            "ACK" => None,
            "BYE" => {
                answer("200 OK", &[], None);
                let reason = message.value("Reason").unwrap_or_default().to_owned();
                if self.is_up() { self.end(now, Ending::EndedEarly(reason)) } else { None }
            }
            "INVITE" | "UPDATE" => {
                let State::Up { way, change: None, .. } = &self.state else {
                    answer("491 Request Pending", &[], None);
                    return None;
                };
                let mut extra = vec![format!("Contact: {}", contact(self.contact(*way), way.transport))];
                if let Some(interval) = message.value("Session-Expires") {
                    // The far side refreshes, as RFC 4028 §9 lets us choose.
                    let seconds = interval.split(';').next().unwrap_or(interval);
                    extra.push(format!("Session-Expires: {seconds};refresher=uac"));
                    extra.push("Require: timer".to_owned());
                }
                let has_offer = method == "INVITE" || !message.body.is_empty();
                let description = has_offer.then(|| self.dial.local.render());
                answer("200 OK", &extra, description.as_deref());
                None
            }
            "OPTIONS" | "INFO" | "NOTIFY" | "MESSAGE" => {
                answer("200 OK", &[], None);
                None
            }
            _ => {
                answer("501 Not Implemented", &[], None);
                None
            }
        }
    }

    fn invite(&mut self, now: Instant, way: Way, hops: &mut impl Hops) {
        self.cseq += 1;
        let offer = self.dial.local.render();
        let message = self.request("INVITE", self.cseq, "INVITE", way, Some(&offer));
        self.state = State::Calling(self.start(now, way, message, self.dial.patience, hops));
    }

    fn start(
        &self,
        now: Instant,
        way: Way,
        message: Vec<u8>,
        patience: Duration,
        hops: &mut impl Hops,
    ) -> Pending {
        hops.send(way.connection, &message);
        let resend = (way.transport == Transport::Udp).then_some((now + T1, T1));
        let is_kept = resend.is_some() || self.dial.moves;
        let message = if is_kept { message } else { Vec::new() };
        Pending { cseq: self.cseq, way, message, resend, give_up: now + patience, moved: false }
    }

    /// A request's bytes. `of` names the transaction that an ACK or CANCEL belongs to.
    fn request(&self, method: &str, cseq: u32, of: &str, way: Way, body: Option<&str>) -> Vec<u8> {
        let branch = format!("z9hG4bK{:08x}.{}.{cseq}{}", self.dial.run, self.dial.number, &of[..1]);
        let mut message = Vec::with_capacity(1024);
        let request = Request {
            method,
            uri: &self.place.uri,
            local: way.local,
            contact: self.contact(way),
            transport: way.transport,
            branch: &branch,
            from: &self.from,
            to: &self.to,
            call_id: &self.call_id,
            cseq,
            routes: &self.routes,
            body,
        };
        request.write(&mut message);
        message
    }

    /// The way to the next hop of the dialog: the first route, else the remote target.
    fn next_hop(&self, hops: &mut impl Hops) -> Result<Way> {
        match self.routes.first() {
            Some(route) => {
                let place = hops.resolve(crate::load::sip::text::uri_of(route))?;
                hops.way(&place.target, self.dial.number)
            }
            None => hops.way(&self.place.target, self.dial.number),
        }
    }

    /// Where we can be reached, told over `way`.
    fn contact(&self, way: Way) -> SocketAddr {
        self.dial.contact.filter(|_| way.transport == Transport::Tcp).unwrap_or(way.local)
    }

    fn end(&mut self, now: Instant, ending: Ending) -> Option<Event> {
        let memory = match &self.state {
            State::Calling(Pending { way, .. })
            | State::Leaving(Pending { way, .. })
            | State::Up { way, .. } => {
                if way.transport == Transport::Udp {
                    MEMORY
                } else {
                    Duration::ZERO
                }
            }
            State::Over { .. } => return None,
        };
        self.state = State::Over { forget: now + memory };
        Some(Event::Over(ending))
    }
}

#[cfg(test)]
mod tests;
