//! Calls on a fake clock: signalling and media as a script, what the call does as short words.

use super::*;
use crate::base::config::SrtpSuite;
use crate::call::outcome::End;
use crate::media::order::{Codec, LegPlan, Order};
use crate::sdp::SrtpRules;
use crate::sip::message::{Message, Name};

const OFFER: &str = "v=0\r\no=a 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\n\
    m=audio 40000 RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000\r\n";
const LEG: LegId = LegId(7);
const INVITE: ServerId = ServerId(1);

fn rules() -> CallRules {
    CallRules {
        local: LocalMedia {
            addresses: "192.0.2.1".parse().unwrap(),
            codecs: vec![Codec::Pcmu, Codec::Pcma],
            dtmf: true,
            nat: None,
            srtp: SrtpRules { suites: SrtpSuite::ALL.to_vec(), ..SrtpRules::plain() },
        },
        nat: false,
        key_source: random_key,
        fqdn: None,
        cname: "node@192.0.2.1".into(),
        media_timeout: Duration::from_secs(60),
        duration_max: Duration::from_secs(3600),
        session: SessionRules { session_expires_s: 1800, min_se_s: 90 },
        uas: UasRules::default(),
    }
}

fn flow() -> Flow {
    Flow {
        id: FlowId(3),
        listener: 0,
        transport: Transport::Tcp,
        local: "192.0.2.1:5065".parse().unwrap(),
        remote: "192.0.2.7:33000".parse().unwrap(),
    }
}

/// A request of the caller; `to_tag` is ours once there is a dialog.
fn request(method: &str, cseq: u32, to_tag: &str, extra: &str, body: &str) -> Request {
    let content = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    let text = format!(
        "{method} sip:1001@192.0.2.1:5065;transport=tcp SIP/2.0\r\n\
         Via: SIP/2.0/TCP 192.0.2.7;branch=z9hG4bK{method}{cseq}\r\nMax-Forwards: 70\r\n\
         From: <sip:2000@192.0.2.7>;tag=caller\r\nTo: <sip:1001@192.0.2.1>{to_tag}\r\nCall-ID: c1\r\n\
         CSeq: {cseq} {method}\r\nContact: <sip:2000@192.0.2.7:5070;transport=tcp>\r\n{extra}{content}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    match Message::parse(Bytes::from(text)).unwrap() {
        Message::Request(request) => request,
        Message::Response(_) => unreachable!("a request was written"),
    }
}

/// Another key each time.
fn random_key(key: &mut [u8]) -> bool {
    getrandom::fill(key).is_ok()
}

const PLAIN: CallSecurity = CallSecurity { allowed: false, required: false, caller: None };

fn new_call(invite: Request, rules: &CallRules) -> Result<InboundCall, Refusal> {
    InboundCall::new(LEG, INVITE, flow(), invite, "ours", PLAIN, rules)
}

/// The caller, the shard and the clock around one call.
struct Script {
    now: Instant,
    rules: CallRules,
    call: InboundCall,
    next_server: u64,
    next_client: u64,
    cseq: u32,
    /// Refusals since the last look.
    refused: Vec<(ServerId, Response)>,
    /// Full outputs since the last look.
    responses: Vec<(ServerId, Response)>,
    requests: Vec<(ClientId, Request)>,
    plans: Vec<MediaPlan>,
    opened: Vec<LegPlan>,
    ends: Vec<End>,
    trail: Vec<String>,
    /// Of 2xx to our re-INVITEs.
    acks: Vec<Request>,
    /// Said already, looked at next time.
    words: Vec<String>,
}

/// The worker's refusal of the INVITE.
fn refusal_of(status: u16) -> Response {
    Response::for_request(&request("INVITE", 1, "", "", OFFER), status, "No")
}

impl Script {
    fn with(extra: &str, body: &str) -> Self {
        let rules = rules();
        let call = new_call(request("INVITE", 1, "", extra, body), &rules).unwrap();
        Self::of(call, rules)
    }

    fn of(call: InboundCall, rules: CallRules) -> Self {
        Self {
            now: crate::base::clock::now(),
            rules,
            call,
            next_server: 1,
            next_client: 0,
            cseq: 1,
            refused: Vec::new(),
            responses: Vec::new(),
            requests: Vec::new(),
            plans: Vec::new(),
            opened: Vec::new(),
            ends: Vec::new(),
            trail: Vec::new(),
            acks: Vec::new(),
            words: Vec::new(),
        }
    }

    fn new() -> Self {
        Self::with("", OFFER)
    }

    /// 200 is sent.
    fn answered(extra: &str, body: &str) -> Self {
        Self::with(extra, body).accepted()
    }

    /// 200 is sent.
    fn accepted(self) -> Self {
        let mut script = self;
        script.call.accept(&script.rules.clone());
        script.call.handle_opened(20_000);
        script.answer();
        script.said();
        script
    }

    fn established(extra: &str) -> Self {
        let mut script = Self::answered(extra, OFFER);
        script.ack(1, "");
        assert_eq!(script.said(), ["started"]);
        script
    }

    fn answer(&mut self) {
        self.call.answer(self.now, &self.rules);
    }

    fn ack(&mut self, cseq: u32, body: &str) {
        let ack = request("ACK", cseq, ";tag=ours", "", body);
        self.call.handle_ack(self.now, &ack);
    }

    /// A request in the dialog with the next CSeq; its transaction.
    fn asks(&mut self, method: &str, extra: &str, body: &str) -> ServerId {
        self.cseq += 1;
        self.asks_at(self.cseq, method, extra, body)
    }

    fn asks_at(&mut self, cseq: u32, method: &str, extra: &str, body: &str) -> ServerId {
        self.next_server += 1;
        let id = ServerId(self.next_server);
        let request = request(method, cseq, ";tag=ours", extra, body);
        if let Err((_, response)) = self.call.handle_request(self.now, id, &request, &self.rules) {
            self.refused.push((id, *response));
        }
        id
    }

    /// Answers our latest request.
    fn replies(&mut self, status: u16, extra: &[(Name, &str)], body: &str) -> Option<Request> {
        let (client, ours) = self.requests.last().expect("we sent a request").clone();
        let mut response = Response::for_request(&ours, status, "Whatever");
        for (name, value) in extra {
            response.headers.push(name.clone(), (*value).to_owned());
        }
        response.body = Bytes::from(body.to_owned());
        self.call.handle_response(self.now, client, &response);
        let said = self.said();
        self.words = said;
        self.acks.pop()
    }

    /// What the call did since the last look, and remembers it all.
    fn said(&mut self) -> Vec<String> {
        let word = |response: &Response| format!("{} {}", response.status, response.cseq().unwrap().method);
        let mut said = Vec::new();
        while let Some(output) = self.call.poll_output() {
            said.push(match output {
                Output::Ack(_, _, ack) => {
                    self.acks.push(ack);
                    continue;
                }
                Output::Cancel(_) => panic!("a caller's leg has no INVITE of ours to cancel"),
                Output::Respond(id, response) => {
                    let word = word(&response);
                    self.responses.push((id, response));
                    word
                }
                Output::Request(_, request) => {
                    self.next_client += 1;
                    let client = ClientId(self.next_client);
                    self.call.sent(client, request.clone());
                    let word = request.method.to_string();
                    self.requests.push((client, request));
                    word
                }
                Output::Order(Order::Open(_, plan)) => {
                    self.opened.push(*plan);
                    "open".into()
                }
                Output::Order(Order::Close(_)) => "close".into(),
                Output::Order(Order::Update(_, plan)) => {
                    self.plans.push(*plan);
                    "update".into()
                }
                Output::Order(other) => panic!("no business of a call: {other:?}"),
                Output::Started => "started".into(),
                Output::Ended(end) => {
                    let word = format!("ended {:?}", end.cause);
                    self.ends.push(end);
                    word
                }
            });
        }
        said.extend(self.refused.iter().map(|(_, response)| word(response)));
        self.responses.append(&mut self.refused);
        self.trail.extend(said.iter().cloned());
        [std::mem::take(&mut self.words), said].concat()
    }

    fn response(&self) -> &Response {
        &self.responses.last().expect("a response was sent").1
    }

    fn header(&self, name: &Name) -> String {
        let value = self.response().headers.first(name);
        String::from_utf8_lossy(value.unwrap_or_else(|| panic!("no {name}"))).into_owned()
    }

    fn closes(&mut self) -> Vec<String> {
        self.call.handle_closed(self.now, Some(Box::default()));
        self.said()
    }

    /// Jumps to the call's next timer.
    fn wakes(&mut self) -> Duration {
        let at = self.call.poll_timeout().expect("a timer runs");
        let passed = at - self.now;
        self.now = at;
        self.call.handle_timeout(at, &self.rules);
        passed
    }
}

/// Goal: RFC 3261 §13.3.1: 100, 180, 200 in order, the flow only after the ACK; BYE is answered and
/// the end waits for the leg.
/// Method: the plain call, each step.
#[test]
fn a_plain_call_rings_is_answered_and_ends_when_its_leg_is_closed() {
    let mut script = Script::new();
    assert_eq!(script.said(), ["100 INVITE"]);
    script.call.accept(&script.rules.clone());
    assert_eq!(script.said(), ["open", "180 INVITE"]);
    script.answer();
    assert!(script.said().is_empty(), "no answer before there is a port");
    script.call.handle_opened(20_000);
    script.answer();
    assert_eq!(script.said(), ["200 INVITE"]);
    let body = String::from_utf8(script.response().body.to_vec()).unwrap();
    assert!(body.contains("m=audio 20000 RTP/AVP 0 101"), "{body}");
    assert_eq!(script.response().to().unwrap().tag(), Some("ours"));
    assert!(script.header(&Name::Contact).contains("1001@192.0.2.1:5065;transport=tcp"));
    script.ack(1, "");
    assert_eq!(script.said(), ["started"]);
    script.ack(1, "");
    assert!(script.said().is_empty(), "a copy of the ACK means nothing");
    script.now += Duration::from_secs(10);
    script.asks("BYE", "", "");
    assert_eq!(script.said(), ["close", "200 BYE"]);
    assert_eq!(script.closes(), ["ended CallerHungUp"]);
    assert_eq!(script.ends[0].talked, Some(Duration::from_secs(10)));
    assert!(script.ends[0].stats.is_some());
    assert!(script.closes().is_empty(), "it ends once");
}

/// Goal: an INVITE that cannot be a call is refused: no Contact 400, bad SDP 400, nothing in
/// common 488 (RFC 3261 §21.4.26), a short interval 422 with Min-SE (RFC 4028 §6).
/// Method: one INVITE each.
#[test]
fn an_unfit_invite_is_refused_with_the_status_of_the_rfc() {
    let refused = |invite: Request| new_call(invite, &rules()).unwrap_err().1;
    let mut no_contact = request("INVITE", 1, "", "", OFFER);
    no_contact.headers.remove(&Name::Contact);
    assert_eq!(refused(no_contact).status, 400);
    assert_eq!(refused(request("INVITE", 1, "", "", "nonsense")).status, 400);
    let g729 = OFFER.replace("RTP/AVP 0 101", "RTP/AVP 18");
    let response = refused(request("INVITE", 1, "", "", &g729));
    assert_eq!(response.status, 488);
    assert!(response.headers.contains(&Name::Warning));
    let short = refused(request("INVITE", 1, "", "Supported: timer\r\nSession-Expires: 60\r\n", OFFER));
    assert_eq!(short.status, 422);
    assert_eq!(short.headers.first(&Name::MinSe).unwrap(), "90");
}

/// Goal: RFC 3261 §13.2.1, RFC 3264: without an offer ours goes out in the 200, the answer comes in
/// the ACK and only then media is known; an ACK without a usable answer ends the call by BYE.
/// Method: an INVITE without body, then a good, a missing and a bad answer.
#[test]
fn an_offerless_invite_gets_our_offer_and_its_answer_comes_with_the_ack() {
    let mut script = Script::answered("", "");
    assert!(script.call.plan().is_none());
    let body = String::from_utf8(script.response().body.to_vec()).unwrap();
    assert!(body.contains("m=audio 20000 RTP/AVP 0 8 101"), "{body}");
    script.ack(1, OFFER);
    assert_eq!(script.said(), ["update", "started"]);
    assert_eq!(script.plans[0].remote_rtp, Some("192.0.2.7:40000".parse().unwrap()));

    for answer in ["", "nonsense"] {
        let mut script = Script::answered("", "");
        script.ack(1, answer);
        assert_eq!(script.said(), ["BYE", "close"]);
        assert_eq!(script.closes(), ["ended BadAnswer"]);
    }
}

/// Goal: an ACK has its INVITE's CSeq number (RFC 3261 §13.2.2.4); another one starts nothing.
/// Method: ACK 2, then ACK 1.
#[test]
fn an_ack_of_another_cseq_does_not_establish_the_call() {
    let mut script = Script::answered("", OFFER);
    script.ack(2, "");
    assert!(script.said().is_empty());
    script.ack(1, "");
    assert_eq!(script.said(), ["started"]);
}

/// Goal: CANCEL before the answer gives 487 and closes a leg that was asked for; after it, nothing
/// (RFC 3261 §9.2).
/// Method: CANCEL in each state.
#[test]
fn cancel_ends_an_unanswered_call_only() {
    let mut routing = Script::new();
    routing.call.handle_cancel(routing.now);
    assert_eq!(routing.said(), ["100 INVITE", "487 INVITE", "ended Cancelled"]);

    let mut opening = Script::new();
    opening.call.accept(&opening.rules.clone());
    opening.said();
    opening.call.handle_cancel(opening.now);
    assert_eq!(opening.said(), ["487 INVITE", "close"]);
    opening.call.handle_opened(20_000);
    opening.answer();
    assert!(opening.said().is_empty(), "the leg came too late");
    assert_eq!(opening.closes(), ["ended Cancelled"]);
    assert_eq!(opening.ends[0].talked, None);

    let mut failing = Script::new();
    failing.call.accept(&failing.rules.clone());
    failing.call.handle_cancel(failing.now);
    failing.said();
    failing.call.handle_open_failed(None);
    assert_eq!(failing.said(), ["ended Cancelled"], "a leg that never was closes nothing");

    let mut answered = Script::answered("", OFFER);
    answered.call.handle_cancel(answered.now);
    assert!(answered.said().is_empty());
}

/// Goal: RFC 3261 §15.1.2: BYE is answered 200 in every state, an early dialog's INVITE 487, and
/// none is answered with a BYE of ours.
/// Method: BYE in each state, and again after it.
#[test]
fn a_bye_is_answered_in_every_state() {
    let mut opening = Script::new();
    opening.call.accept(&opening.rules.clone());
    opening.said();
    opening.asks("BYE", "", "");
    assert_eq!(opening.said(), ["487 INVITE", "close", "200 BYE"]);
    opening.asks("BYE", "", "");
    assert_eq!(opening.said(), ["200 BYE"]);
    assert_eq!(opening.closes(), ["ended CallerHungUp"]);

    let mut answered = Script::answered("", OFFER);
    answered.asks("BYE", "", "");
    assert_eq!(answered.said(), ["close", "200 BYE"]);

    let mut crossing = Script::established("");
    crossing.call.hang_up(crossing.now, EndCause::WeHungUp);
    crossing.asks("BYE", "", "");
    assert_eq!(crossing.said(), ["BYE", "close", "200 BYE"]);
    assert_eq!(crossing.closes(), ["ended WeHungUp"], "the first cause stands");
}

/// Goal: RFC 3261 §12.2.2: in a dialog that ended nothing but BYE is served; an overtaken CSeq is 500.
/// Method: OPTIONS, INVITE and UPDATE while the leg closes; a low CSeq before.
#[test]
fn requests_of_an_ended_dialog_get_481_and_overtaken_ones_500() {
    let mut script = Script::established("");
    script.asks("OPTIONS", "", "");
    assert_eq!(script.said(), ["200 OPTIONS"]);
    script.asks_at(1, "OPTIONS", "", "");
    assert_eq!(script.said(), ["500 OPTIONS"]);
    script.call.hang_up(script.now, EndCause::WeHungUp);
    script.said();
    for method in ["OPTIONS", "INVITE", "UPDATE"] {
        script.asks(method, "", "");
        assert_eq!(script.said(), [format!("481 {method}")]);
    }
}

/// Goal: RFC 3261 §15: "MUST NOT send a BYE ... until it has received an ACK for its 2xx response or
/// until the server transaction times out".
/// Method: hang up between 200 and ACK; then the ACK comes, or does not, or the caller's BYE does.
#[test]
fn our_bye_waits_for_the_ack_of_our_answer() {
    let mut acked = Script::answered("", OFFER);
    acked.call.hang_up(acked.now, EndCause::Shutdown);
    assert!(acked.said().is_empty());
    acked.ack(1, "");
    assert_eq!(acked.said(), ["BYE", "close"], "the flow is not started any more");
    assert_eq!(acked.closes(), ["ended Shutdown"]);

    let mut silent = Script::answered("", OFFER);
    silent.call.hang_up(silent.now, EndCause::Shutdown);
    silent.call.handle_no_ack(silent.now, INVITE);
    assert_eq!(silent.said(), ["BYE", "close"]);
    assert_eq!(silent.closes(), ["ended Shutdown"]);

    let mut crossing = Script::answered("", OFFER);
    crossing.call.hang_up(crossing.now, EndCause::Shutdown);
    crossing.asks("BYE", "", "");
    assert_eq!(crossing.said(), ["close", "200 BYE"]);
    assert_eq!(crossing.closes(), ["ended CallerHungUp"]);
}

/// Goal: no ACK within 64*T1 ends the call by BYE (RFC 3261 §13.3.1.4). Method: the layer's notice
/// for the INVITE, for a re-INVITE, and for a refused one, which means nothing.
#[test]
fn an_answer_nobody_acknowledges_ends_the_call() {
    let mut first = Script::answered("", OFFER);
    first.call.handle_no_ack(first.now, INVITE);
    assert_eq!(first.said(), ["BYE", "close"]);
    assert_eq!(first.closes(), ["ended NoAck"]);

    let mut second = Script::established("");
    let accepted = second.asks("INVITE", "", OFFER);
    let refused = second.asks("INVITE", "", OFFER);
    assert_eq!(second.said(), ["update", "200 INVITE", "500 INVITE"]);
    assert_eq!(second.call.pending_reinvite(), Some(accepted));
    second.call.handle_no_ack(second.now, refused);
    assert!(second.said().is_empty(), "the refusal's ACK may be missing");
    second.call.handle_no_ack(second.now, accepted);
    assert_eq!(second.said(), ["BYE", "close"]);
    assert_eq!(second.closes(), ["ended NoAck"]);
}

/// Goal: RFC 3264 §8: hold, resume and a moved port take effect with the answer, whose `o=` line
/// grows when it says something new.
/// Method: three re-INVITEs, reading plan and answer.
#[test]
fn reinvites_hold_resume_and_move_the_media() {
    let mut script = Script::established("");
    let steps = [
        (format!("{OFFER}a=sendonly\r\n"), "a=recvonly", 40_000, false),
        (OFFER.to_owned(), "a=sendrecv", 40_000, true),
        (OFFER.replace("40000", "41000"), "a=sendrecv", 41_000, true),
        (format!("{OFFER}a=inactive\r\n"), "a=inactive", 40_000, false),
    ];
    for (offer, direction, port, send) in steps {
        script.asks("INVITE", "", &offer);
        assert_eq!(script.said(), ["update", "200 INVITE"]);
        let answer = String::from_utf8(script.response().body.to_vec()).unwrap();
        assert!(direction == "a=sendrecv" || answer.contains(direction), "{answer}");
        assert!(answer.contains("m=audio 20000 "), "our port stays: {answer}");
        let plan = script.plans.last().unwrap();
        assert_eq!((plan.remote_rtp.unwrap().port(), plan.send), (port, send));
        script.ack(script.cseq, "");
        assert!(script.said().is_empty());
    }
}

/// Goal: a re-INVITE that cannot be served leaves the session as it was (RFC 3261 §14.2).
/// Method: nothing in common, then a call that goes on; a good one afterwards.
#[test]
fn a_refused_reinvite_changes_nothing() {
    let mut script = Script::established("");
    let before = script.call.plan().cloned();
    script.asks("INVITE", "", &OFFER.replace("RTP/AVP 0 101", "RTP/AVP 18"));
    assert_eq!(script.said(), ["488 INVITE"]);
    assert_eq!(script.call.plan().cloned(), before);
    assert!(script.call.pending_reinvite().is_none());
    script.asks("INVITE", "", OFFER);
    assert_eq!(script.said(), ["update", "200 INVITE"]);
}

/// Goal: an offerless re-INVITE gets an offer, and the ACK its answer. Method: good and bad answer;
/// UPDATE with an offer meanwhile is 491 (RFC 3311 §5.2).
#[test]
fn an_offerless_reinvite_is_answered_in_its_ack() {
    let mut script = Script::established("");
    script.asks("INVITE", "", "");
    assert_eq!(script.said(), ["200 INVITE"]);
    let reinvite = script.cseq;
    script.asks("UPDATE", "", OFFER);
    assert_eq!(script.said(), ["491 UPDATE"]);
    script.ack(reinvite, &OFFER.replace("40000", "42000"));
    assert_eq!(script.said(), ["update"]);
    assert_eq!(script.plans[0].remote_rtp.unwrap().port(), 42_000);

    script.asks("INVITE", "", "");
    script.said();
    script.ack(script.cseq, "nonsense");
    assert_eq!(script.said(), ["BYE", "close"]);
}

/// Goal: RFC 3261 §14.2: a second INVITE is 500 with Retry-After 0-10; RFC 3311 §5.2: so is an
/// offer by UPDATE before our answer, 491 while our own offer is open, and UPDATE without offer is
/// served from the early dialog on.
/// Method: each at its moment.
#[test]
fn overlapping_offers_are_asked_to_come_later() {
    let mut early = Script::new();
    early.call.accept(&early.rules.clone());
    early.said();
    early.asks("INVITE", "", OFFER);
    assert_eq!(early.said(), ["500 INVITE"]);
    let seconds: u32 = early.header(&Name::RetryAfter).parse().unwrap();
    assert!(seconds <= 10);
    early.asks("UPDATE", "", OFFER);
    assert_eq!(early.said(), ["500 UPDATE"]);
    early.header(&Name::RetryAfter);
    early.asks("UPDATE", "", "");
    assert_eq!(early.said(), ["200 UPDATE"]);
    assert!(early.response().body.is_empty());

    let mut offerless = Script::answered("", "");
    offerless.asks("UPDATE", "", OFFER);
    assert_eq!(offerless.said(), ["491 UPDATE"]);

    let mut up = Script::established("");
    up.asks("UPDATE", "", &OFFER.replace("40000", "43000"));
    assert_eq!(up.said(), ["update", "200 UPDATE"]);
    assert!(!up.response().body.is_empty());
}

/// Goal: RFC 4028 §9, §10: the caller that refreshes is expected within the interval less 32 s (1768 of
/// 1800), then BYE; a re-INVITE starts the interval anew.
/// Method: timers of a call with `refresher=uac`.
#[test]
fn a_session_that_is_not_refreshed_ends() {
    let mut script = Script::established("Supported: timer\r\nSession-Expires: 1800;refresher=uac\r\n");
    assert!(script.responses.iter().any(|(_, r)| r.headers.first(&Name::SessionExpires).is_some()));
    script.now += Duration::from_secs(1000);
    script.asks("UPDATE", "Supported: timer\r\nSession-Expires: 1800;refresher=uac\r\n", "");
    assert_eq!(script.header(&Name::SessionExpires), "1800;refresher=uac");
    script.said();
    assert_eq!(script.wakes(), Duration::from_secs(1768));
    assert_eq!(script.said(), ["BYE", "close"]);
    assert_eq!(script.closes(), ["ended SessionExpired"]);
}

/// Goal: RFC 4028 §7.4, §10: as refresher we send UPDATE at half the interval if the caller allows
/// it, else re-INVITE with our description unchanged; the 2xx renews, and an answer that moved is
/// taken (RFC 3264 §8).
/// Method: a caller that does not know session timers, with and without UPDATE in Allow.
#[test]
fn we_refresh_at_half_the_interval() {
    let mut script = Script::established("Allow: INVITE, UPDATE\r\n");
    assert_eq!(script.wakes(), Duration::from_secs(900));
    assert_eq!(script.said(), ["UPDATE"]);
    assert!(script.replies(200, &[], "").is_none());
    assert_eq!(script.wakes(), Duration::from_secs(900), "the 2xx started it anew");
    assert_eq!(script.said(), ["UPDATE"]);

    let mut script = Script::established("");
    script.wakes();
    assert_eq!(script.said(), ["INVITE"]);
    let ack = script.replies(200, &[], &OFFER.replace("40000", "44000")).expect("a 2xx is acknowledged");
    let invite = script.requests[0].1.cseq().unwrap().number;
    assert_eq!((ack.method.clone(), ack.cseq().unwrap().number), (Method::Ack, invite));
    assert_eq!(script.said(), ["update"]);
    assert_eq!(script.plans[0].remote_rtp.unwrap().port(), 44_000);
}

/// Goal: glare: our open re-INVITE refuses theirs with 491 (RFC 3261 §14.2); a 491 to ours is tried
/// again within 2 s (§14.1), a 422 with a longer interval (RFC 4028 §7.3); 481, 408 and silence
/// end the call (§12.2.1.2).
/// Method: each reply to a refresh.
#[test]
fn a_refused_refresh_is_tried_again_or_ends_the_call() {
    let mut script = Script::established("");
    script.wakes();
    script.said();
    script.asks("INVITE", "", OFFER);
    assert_eq!(script.said(), ["491 INVITE"]);
    assert!(script.replies(491, &[], "").is_none());
    assert!(script.wakes() <= Duration::from_secs(2));
    assert_eq!(script.said(), ["INVITE"]);
    script.replies(422, &[(Name::MinSe, "3600")], "");
    assert!(script.wakes() <= Duration::from_secs(2));
    assert_eq!(script.said(), ["INVITE"]);
    let (_, again) = script.requests.last().unwrap();
    assert_eq!(again.headers.first(&Name::SessionExpires).unwrap(), "3600;refresher=uac");
    assert_eq!(again.headers.first(&Name::MinSe).unwrap(), "3600");
    script.replies(500, &[], "");
    assert!(script.wakes() > Duration::from_secs(2));
    assert_eq!(script.said(), ["INVITE"]);
    script.replies(481, &[], "");
    assert_eq!(script.said(), ["BYE", "close"]);
    assert_eq!(script.closes(), ["ended PeerLost"]);

    let mut silent = Script::established("");
    silent.wakes();
    silent.said();
    let client = silent.requests[0].0;
    silent.call.handle_client_failed(silent.now, client);
    assert_eq!(silent.said(), ["BYE", "close"]);
}

/// Goal: no call is longer than allowed. Method: refresh the session until it ends all the same.
#[test]
fn the_longest_call_ends_by_bye() {
    let mut script = Script::established("Allow: UPDATE\r\n");
    let start = script.now;
    loop {
        script.wakes();
        match script.said().first().map(String::as_str) {
            Some("UPDATE") => drop(script.replies(200, &[], "")),
            Some("BYE") => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(script.now - start, Duration::from_secs(3600));
    assert_eq!(script.closes(), ["ended DurationLimit"]);
}

/// Goal: a shard that cannot open a leg, or loses it, ends the call with the right word to the
/// caller, and no order goes to a leg that is not there.
/// Method: failure while opening; loss while ringing and while talking; media timeout.
#[test]
fn a_leg_that_fails_ends_the_call() {
    let mut failed = Script::new();
    failed.call.accept(&failed.rules.clone());
    failed.said();
    failed.call.handle_open_failed(Some(refusal_of(503)));
    assert_eq!(failed.said(), ["503 INVITE", "ended Refused(503)"]);

    let mut ringing = Script::new();
    ringing.call.accept(&ringing.rules.clone());
    ringing.call.handle_opened(20_000);
    ringing.said();
    assert_eq!(ringing.closes(), ["500 INVITE", "ended MediaLost"]);

    let mut up = Script::established("");
    assert_eq!(up.closes(), ["BYE", "ended MediaLost"]);

    let mut quiet = Script::established("");
    quiet.call.hang_up(quiet.now, EndCause::MediaTimeout);
    quiet.call.hang_up(quiet.now, EndCause::Shutdown);
    assert_eq!(quiet.said(), ["BYE", "close"]);
    assert_eq!(quiet.closes(), ["ended MediaTimeout"]);
}

/// Goal: a refusal by the worker closes a leg that was asked for and is without effect after 200.
/// Method: 404 while routing, 503 while ringing, 503 when answered.
#[test]
fn the_worker_can_refuse_until_the_answer() {
    let refuse = |script: &mut Script, status| {
        script.call.refuse(refusal_of(status));
        script.said()
    };
    let mut routing = Script::new();
    routing.said();
    assert_eq!(refuse(&mut routing, 404), ["404 INVITE", "ended Refused(404)"]);
    let mut ringing = Script::new();
    ringing.call.accept(&ringing.rules.clone());
    ringing.said();
    assert_eq!(refuse(&mut ringing, 503), ["503 INVITE", "close"]);
    assert_eq!(ringing.closes(), ["ended Refused(503)"]);
    assert!(refuse(&mut Script::answered("", OFFER), 503).is_empty());
}

/// Goal: requests go down the caller's connection while it stands, then to its Contact; along its
/// route set if there is one (RFC 3261 §12.2.1.1).
/// Method: the destination before and after the close, of another flow too, and with Record-Route.
#[test]
fn requests_follow_the_connection_then_the_contact() {
    let mut script = Script::established("");
    assert_eq!(script.call.destination(), Destination::Flow(flow()));
    script.call.handle_flow_closed(FlowId(99));
    assert_eq!(script.call.destination(), Destination::Flow(flow()));
    script.call.handle_flow_closed(flow().id);
    let address = |remote: &str| Destination::Address {
        transport: Transport::Tcp,
        remote: remote.parse().unwrap(),
        listener: 0,
    };
    assert_eq!(script.call.destination(), address("192.0.2.7:5070"));
    let routed = Script::established("Record-Route: <sip:192.0.2.9;lr;transport=tcp>\r\n");
    assert_eq!(routed.call.destination(), address("192.0.2.9:5060"));
}

/// A random step of caller, shard, worker or clock.
fn random_step(script: &mut Script, random: &mut impl FnMut(u64) -> u64) {
    let bodies = ["", OFFER, "nonsense", "v=0\r\n"];
    let body = bodies[usize::try_from(random(4)).unwrap()];
    let cseq = u32::try_from(random(u64::from(script.cseq) + 2)).unwrap();
    match random(20) {
        0 => script.call.accept(&script.rules.clone()),
        1 => script.call.handle_opened(20_000),
        2 => script.answer(),
        3 => script.ack(1, body),
        4 => script.ack(cseq, body),
        5 => script.call.handle_cancel(script.now),
        6 | 7 => drop(script.asks("INVITE", "", body)),
        8 => drop(script.asks("UPDATE", "Supported: timer\r\nSession-Expires: 90\r\n", body)),
        9 if random(4) == 0 => drop(script.asks("BYE", "", "")),
        10 => drop(script.asks_at(cseq, "OPTIONS", "", body)),
        11 if script.call.poll_timeout().is_some() => drop(script.wakes()),
        12 => script.call.handle_flow_closed(flow().id),
        13 if !script.requests.is_empty() => {
            let statuses = [100, 200, 200, 422, 481, 491, 500];
            let status = statuses[usize::try_from(random(7)).unwrap()];
            script.replies(status, &[(Name::MinSe, "1900")], body);
        }
        14 if random(4) == 0 => script.call.handle_client_failed(script.now, ClientId(random(3) + 1)),
        15 if random(4) == 0 => script.call.handle_no_ack(script.now, ServerId(random(4) + 1)),
        16 if random(8) == 0 => script.call.hang_up(script.now, EndCause::WeHungUp),
        17 if random(8) == 0 => script.call.refuse(refusal_of(503)),
        18 if random(8) == 0 && script.trail.iter().any(|word| word == "open") => {
            script.call.handle_closed(script.now, None);
        }
        19 if random(8) == 0 => {
            script.call.handle_open_failed(Some(refusal_of(503)));
        }
        _ => script.now += Duration::from_millis(random(400_000)),
    }
}

/// Goal: whatever happens in whatever order, nothing panics, the INVITE has one final response, a
/// BYE goes out at most once, Close at most once and only for a leg that was asked for, every
/// other request has one response, and the call ends once.
/// Method: 2000 seeded walks of 60 random inputs, then hang-up, no ACK, and the leg's end.
#[test]
fn any_sequence_of_inputs_ends_the_call_once() {
    for seed in 0..2000_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |below: u64| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
        };
        let offer = if random(3) == 0 { "" } else { OFFER };
        let mut script = Script::with(if random(2) == 0 { "" } else { "Allow: UPDATE\r\n" }, offer);
        for _ in 0..60 {
            random_step(&mut script, &mut random);
            script.said();
        }
        script.call.hang_up(script.now, EndCause::Shutdown);
        script.call.handle_no_ack(script.now, INVITE);
        script.said();
        script.closes();
        let trail = script.trail.join(", ");
        let count = |word: &str| script.trail.iter().filter(|said| *said == word).count();
        let finals = script.responses.iter().filter(|(id, r)| *id == INVITE && r.status >= 200).count();
        assert_eq!(finals, 1, "seed {seed}: {trail}");
        assert_eq!(script.ends.len(), 1, "seed {seed}: {trail}");
        assert!(count("BYE") <= 1, "seed {seed}: {trail}");
        assert!(count("close") <= count("open") && count("open") <= 1, "seed {seed}: {trail}");
        assert!(count("started") <= 1, "seed {seed}: {trail}");
        for server in 2..=script.next_server {
            let answers = script.responses.iter().filter(|(id, _)| id.0 == server).count();
            assert_eq!(answers, 1, "seed {seed}, request {server}: {trail}");
        }
        assert!(script.call.poll_timeout().is_none(), "seed {seed}: {trail}");
    }
}

mod security;
