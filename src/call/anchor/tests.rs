//! Two legs as one call on a fake clock: caller, callee and shard as a script, what goes out as short
//! words: `< ` to the caller, `> ` to the callee.

use bytes::Bytes;

use super::*;
use crate::base::config::SrtpSuite;
use crate::base::id::LegId;
use crate::call::inbound::CallSecurity;
use crate::call::outbound::{Proposal, Way};
use crate::call::outcome::End;
use crate::media::order::MediaPlan;
use crate::sdp::{Codec, LocalMedia, SrtpRules};
use crate::sip::flow::{Flow, FlowId, Transport};
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Message, Method, Request};
use crate::sip::session_timer::SessionRules;
use crate::sip::uas::UasRules;

const OFFER: &str = "v=0\r\no=a 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\n\
    m=audio 40000 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\n";
const ANSWER: &str = "v=0\r\no=b 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n\
    m=audio 50000 RTP/AVP 8 101\r\na=rtpmap:101 telephone-event/8000\r\n";
const CALLER: LegId = LegId(1);

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
        key_source: |key| getrandom::fill(key).is_ok(),
        fqdn: None,
        cname: "node@192.0.2.1".into(),
        media_timeout: Duration::from_secs(60),
        duration_max: Duration::from_secs(3600),
        session: SessionRules { session_expires_s: 1800, min_se_s: 90 },
        uas: UasRules::default(),
    }
}

fn request_of_caller(method: &str, cseq: u32, to_tag: &str, body: &str) -> Request {
    let text = format!(
        "{method} sip:4711@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.7;branch=z9hG4bK{method}{cseq}\r\n\
         Max-Forwards: 70\r\nFrom: \"Ann\" <sip:2000@pbx>;tag=caller\r\nTo: <sip:4711@192.0.2.1>{to_tag}\r\n\
         Call-ID: c1\r\nCSeq: {cseq} {method}\r\nContact: <sip:2000@192.0.2.7>\r\n\
         Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    request(text)
}

fn request(text: String) -> Request {
    match Message::parse(Bytes::from(text)).unwrap() {
        Message::Request(request) => request,
        Message::Response(_) => unreachable!("a request was written"),
    }
}

/// Everything around one anchored call.
struct Rig {
    now: Instant,
    rules: CallRules,
    caller: InboundCall,
    anchor: Anchor,
    /// Legs that the call has left.
    left: Vec<OutboundCall>,
    srtp: bool,
    next: u64,
    cseq: u32,
    callee_cseq: u32,
    /// Sent to the callee, newest last.
    to_callee: Vec<(ClientId, Request)>,
    /// Sent to the caller: requests.
    to_caller: Vec<(ClientId, Request)>,
    responses: Vec<Response>,
    plans: Vec<(LegId, MediaPlan)>,
    end: Option<End>,
    said: Vec<String>,
    /// Gateways that cannot be called.
    full: Vec<&'static str>,
}

impl Rig {
    fn new(gateways: &[&str]) -> Self {
        Self::with(gateways, OFFER, false)
    }

    fn with(gateways: &[&str], offer: &str, srtp: bool) -> Self {
        let rules = rules();
        let flow = Flow {
            id: FlowId(3),
            listener: 0,
            transport: Transport::Tcp,
            local: "192.0.2.1:5065".parse().unwrap(),
            remote: "192.0.2.7:33000".parse().unwrap(),
        };
        let security = CallSecurity { allowed: false, required: false, caller: None };
        let invite = request_of_caller("INVITE", 1, "", offer);
        let caller = InboundCall::new(CALLER, ServerId(1), flow, invite, "ours", security, &rules).unwrap();
        let mut rig = Self {
            now: crate::base::clock::now(),
            rules,
            caller,
            anchor: Anchor::new(gateways.iter().map(ToString::to_string)),
            left: Vec::new(),
            srtp,
            next: 1,
            cseq: 1,
            callee_cseq: 0,
            to_callee: Vec::new(),
            to_caller: Vec::new(),
            responses: Vec::new(),
            plans: Vec::new(),
            end: None,
            said: Vec::new(),
            full: Vec::new(),
        };
        rig.caller.anchor(&rig.rules);
        rig.settle();
        rig
    }

    /// The call is up.
    fn talking() -> Self {
        let mut rig = Self::new(&["a"]);
        rig.opens_both();
        rig.callee_answers(200, ANSWER);
        rig.acks();
        rig.said();
        rig
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn opens_both(&mut self) {
        self.caller.handle_opened(20_000);
        self.settle();
        self.opens_callee();
    }

    fn opens_callee(&mut self) {
        self.anchor.callee_mut().expect("a callee").handle_opened(20_002);
        self.settle();
    }

    /// What the worker does.
    fn settle(&mut self) {
        loop {
            while self.step() {}
            self.anchor.couple(self.now, &mut self.caller, &self.rules);
            if !self.step() {
                break;
            }
        }
    }

    fn step(&mut self) -> bool {
        if let Some(output) = self.anchor.poll_callee() {
            if let Output::Ended(end) = output {
                self.anchor.note_stats(end.stats);
            } else if let Some((request, word)) = self.note(">", output) {
                let client = ClientId(self.next());
                self.anchor.callee_mut().unwrap().sent(client, request.clone());
                self.to_callee.push((client, request));
                self.said.push(word);
            }
        } else if let Some(output) = self.anchor.poll_output() {
            self.obey(output);
        } else if let Some(output) = self.caller.poll_output() {
            if let Some((request, word)) = self.note("<", output) {
                let client = ClientId(self.next());
                self.caller.sent(client, request.clone());
                self.to_caller.push((client, request));
                self.said.push(word);
            }
        } else {
            return self.step_left();
        }
        true
    }

    fn step_left(&mut self) -> bool {
        let Some((at, output)) = (0..self.left.len()).find_map(|at| Some((at, self.left[at].poll_output()?)))
        else {
            return false;
        };
        if !matches!(output, Output::Ended(_))
            && let Some((request, word)) = self.note("left>", output)
        {
            let client = ClientId(self.next());
            self.left[at].sent(client, request);
            self.said.push(word);
        }
        true
    }

    fn obey(&mut self, output: AnchorOutput) {
        match output {
            AnchorOutput::Call { gateway, .. } if self.full.contains(&&gateway[..]) => {
                self.said.push(format!("skip {gateway}"));
                self.anchor.skip();
            }
            AnchorOutput::Call { gateway, plain } => {
                let id = LegId(self.next());
                let way = Way {
                    uri: "sip:192.0.2.9;transport=tcp".parse().unwrap(),
                    remote: "192.0.2.9:5060".parse().unwrap(),
                    listener: 0,
                    local: "192.0.2.1:5065".parse().unwrap(),
                    fqdn: None,
                };
                let callee =
                    way.callee("+4711", self.caller.invite().unwrap(), "us", format!("c{}", id.0)).unwrap();
                let mut local = self.rules.local.clone();
                local.srtp.allowed = self.srtp;
                local.srtp.required = self.srtp && !plain;
                let proposal = Proposal {
                    local,
                    try_timeout: Duration::from_secs(4),
                    ring_timeout: Duration::from_secs(60),
                };
                self.said.push(format!("call {gateway}"));
                self.anchor.begin(&gateway, OutboundCall::new(id, callee, proposal, &self.rules));
            }
            AnchorOutput::Order(Order::Bridge(one, _)) => {
                assert_eq!(one, CALLER);
                self.said.push("bridge".into());
            }
            AnchorOutput::Order(other) => panic!("no business of an anchor: {other:?}"),
            AnchorOutput::Leave(call) => self.left.push(*call),
            AnchorOutput::Unavailable(_) => {
                let response =
                    Response::for_request(self.caller.invite().unwrap(), 503, "Service Unavailable");
                self.caller.refuse(response);
            }
        }
    }

    /// Notes an output as a word, unless it is a request, which gets an id first.
    fn note(&mut self, to: &str, output: Output) -> Option<(Request, String)> {
        let word = match output {
            Output::Respond(_, response) => {
                let word = format!("{} {}", response.status, response.cseq().unwrap().method);
                self.responses.push(response);
                word
            }
            Output::Request(_, request) => {
                let word = format!("{to} {}", request.method);
                return Some((request, word));
            }
            Output::Ack(..) => "ACK".into(),
            Output::Cancel(_) => "CANCEL".into(),
            Output::Order(Order::Open(..)) => "open".into(),
            Output::Order(Order::Close(_)) => "close".into(),
            Output::Order(Order::Update(leg, plan)) => {
                self.plans.push((leg, *plan));
                return None;
            }
            Output::Order(other) => panic!("no business of a leg: {other:?}"),
            Output::Started => "started".into(),
            Output::Ended(end) => {
                let word = format!("ended {}", end.cause.name());
                self.end = Some(end);
                word
            }
        };
        self.said.push(format!("{to} {word}"));
        None
    }

    fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    fn invite_of_callee(&self) -> &(ClientId, Request) {
        self.to_callee.iter().rfind(|(_, request)| request.method == Method::Invite).expect("an INVITE")
    }

    /// The callee's response to the latest INVITE.
    fn response(&self, status: u16, body: &str) -> (ClientId, Response) {
        let (client, invite) = self.invite_of_callee();
        let mut response = Response::for_request(invite, status, "Whatever");
        if status > 100 {
            let to = format!("{};tag=callee", invite.to().unwrap());
            let has_tag = invite.to().unwrap().tag().is_some();
            if !has_tag {
                response.headers.set(Name::To, to);
            }
            response.headers.push(Name::Contact, "<sip:4711@192.0.2.9:5070;transport=tcp>");
        }
        response.body = Bytes::from(body.to_owned());
        (*client, response)
    }

    fn callee_answers(&mut self, status: u16, body: &str) {
        let (client, response) = self.response(status, body);
        self.anchor.callee_mut().expect("a callee").handle_response(self.now, client, &response);
        self.settle();
    }

    /// The caller answers our latest request.
    fn caller_answers(&mut self, status: u16, body: &str) {
        let (client, ours) = self.to_caller.last().expect("we sent a request").clone();
        let mut response = Response::for_request(&ours, status, "Whatever");
        response.body = Bytes::from(body.to_owned());
        self.caller.handle_response(self.now, client, &response);
        self.settle();
    }

    fn acks(&mut self) {
        let ack = request_of_caller("ACK", self.cseq, ";tag=ours", "");
        self.caller.handle_ack(self.now, &ack);
        self.settle();
    }

    fn caller_asks(&mut self, method: &str, body: &str) {
        self.cseq += 1;
        let server = ServerId(self.next());
        let request = request_of_caller(method, self.cseq, ";tag=ours", body);
        let taken = self.caller.handle_request(self.now, server, &request, &self.rules);
        if let Err((_, response)) = taken {
            self.said.push(format!("< {} {method}", response.status));
        }
        self.settle();
    }

    fn callee_request(&mut self, method: &str, body: &str) -> Request {
        self.callee_cseq += 1;
        let id = self.anchor.callee().unwrap().dialog_id().clone();
        let text = format!(
            "{method} sip:2000@192.0.2.1:5065 SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.9;branch=z9hG4bK9{}\r\n\
             From: <sip:4711@192.0.2.9>;tag=callee\r\nTo: <sip:2000@192.0.2.1>;tag={}\r\nCall-ID: {}\r\n\
             CSeq: {} {method}\r\nContact: <sip:4711@192.0.2.9:5070;transport=tcp>\r\nContent-Length: {}\r\n\r\n{body}",
            self.callee_cseq,
            id.local_tag,
            id.call_id,
            self.callee_cseq,
            body.len()
        );
        request(text)
    }

    fn callee_asks(&mut self, method: &str, body: &str) {
        let request = self.callee_request(method, body);
        let server = ServerId(self.next());
        let callee = self.anchor.callee_mut().unwrap();
        if let Err((_, response)) = callee.handle_request(self.now, server, &request, &self.rules) {
            self.said.push(format!("> {} {method}", response.status));
        }
        self.settle();
    }

    /// Jumps to the next timer of either side.
    fn wakes(&mut self) {
        let at = self.caller.poll_timeout().into_iter().chain(self.anchor.poll_timeout()).min();
        self.now = at.expect("a timer runs");
        self.caller.handle_timeout(self.now, &self.rules);
        self.anchor.handle_timeout(self.now, &self.rules);
        self.settle();
    }

    fn all_closed(&mut self) {
        self.caller.handle_closed(self.now, Some(Box::default()));
        if let Some(callee) = self.anchor.callee_mut() {
            callee.handle_closed(self.now, Some(Box::default()));
        }
        for call in &mut self.left {
            call.handle_closed(self.now, None);
        }
        self.settle();
    }

    fn plan_of(&self, leg: LegId) -> &MediaPlan {
        &self.plans.iter().rfind(|(of, _)| *of == leg).expect("a plan").1
    }

    fn callee_id(&self) -> LegId {
        self.anchor.callee().unwrap().id()
    }

    fn body_to_callee(&self) -> String {
        String::from_utf8(self.invite_of_callee().1.body.to_vec()).unwrap()
    }

    fn body_to_caller(&self) -> String {
        let body = &self.to_caller.last().expect("a request").1.body;
        String::from_utf8(body.to_vec()).unwrap()
    }
}

fn held(sdp: &str, direction: &str) -> String {
    format!("{sdp}a={direction}\r\n")
}

/// Goal: INVITE, 180, 200, ACK, BYE through both legs; the answer to the caller has the callee's codec, so
/// that nothing is translated. Method: the plain call, each step.
#[test]
fn a_plain_call_goes_through_and_ends_on_both_sides() {
    let mut rig = Rig::new(&["a"]);
    assert_eq!(rig.said(), ["< 100 INVITE", "< open"]);
    rig.caller.handle_opened(20_000);
    rig.settle();
    assert_eq!(rig.said(), ["call a", "> open"]);
    rig.opens_callee();
    assert_eq!(rig.said(), ["> INVITE"]);
    let body = rig.body_to_callee();
    assert!(body.contains("m=audio 20002 RTP/AVP 0 8 101") && body.contains("a=sendrecv"), "{body}");
    let invite = &rig.invite_of_callee().1;
    assert!(
        invite.headers.has_token(&Name::Supported, "timer")
            && !invite.headers.has_token(&Name::Supported, "100rel")
    );
    rig.callee_answers(100, "");
    assert!(rig.said().is_empty(), "100 is each hop's own");
    rig.callee_answers(180, "");
    rig.callee_answers(180, "");
    assert_eq!(rig.said(), ["< 180 INVITE"]);
    assert_eq!(rig.anchor.state(), "ringing");
    rig.callee_answers(200, ANSWER);
    assert_eq!(rig.said(), ["> ACK", "bridge", "< 200 INVITE"]);
    let answer = String::from_utf8(rig.responses.last().unwrap().body.to_vec()).unwrap();
    assert!(answer.contains("m=audio 20000 RTP/AVP 8 101"), "{answer}");
    assert_eq!(rig.plan_of(CALLER).codec, Codec::Pcma);
    rig.acks();
    assert_eq!(rig.said(), ["< started"]);
    rig.now += Duration::from_secs(10);
    rig.caller_asks("BYE", "");
    assert_eq!(rig.said(), ["< close", "< 200 BYE", "> BYE", "> close"]);
    let bye = &rig.to_callee.last().unwrap().1;
    let reason = String::from_utf8(bye.headers.first(&Name::Reason).unwrap().to_vec()).unwrap();
    assert!(reason.contains("the caller hung up") && reason.contains("Q.850;cause=16"), "{reason}");
    rig.all_closed();
    assert_eq!(rig.said(), ["< ended caller_hung_up"]);
    assert!(rig.anchor.is_over());
    assert_eq!(rig.end.as_ref().unwrap().talked, Some(Duration::from_secs(10)));
    let report = rig.anchor.report(rig.now);
    assert_eq!((&report.gateway[..], report.tries, report.rang), ("a", 1, Duration::ZERO));
    assert!(report.stats.is_some());
}

/// Goal: whoever goes, the other side hears of it by BYE with a Reason, and the first cause stands.
/// Method: the callee's BYE, silence on its media, its lost dialog, the longest call.
#[test]
fn whoever_goes_takes_the_other_side_along() {
    let mut rig = Rig::talking();
    rig.callee_asks("BYE", "");
    assert_eq!(rig.said(), ["> close", "> 200 BYE", "< BYE", "< close"]);
    rig.all_closed();
    assert_eq!(rig.said(), ["< ended callee_hung_up"]);

    let mut silent = Rig::talking();
    let now = silent.now;
    silent.anchor.callee_mut().unwrap().handle_media_timeout(now);
    silent.settle();
    assert_eq!(silent.said(), ["> BYE", "> close", "< BYE", "< close"]);
    silent.all_closed();
    assert_eq!(silent.said(), ["< ended callee_media_timeout"]);

    let mut broken = Rig::talking();
    broken.anchor.callee_mut().unwrap().handle_closed(now, None);
    broken.settle();
    assert_eq!(broken.said(), ["> BYE", "< BYE", "< close"]);

    let mut long = Rig::talking();
    while long.end.is_none() && long.caller.is_alive() {
        long.wakes();
        if let Some("UPDATE" | "INVITE") = long.to_caller.last().map(|(_, r)| r.method.as_str()) {
            long.caller_answers(200, "");
        }
    }
    long.all_closed();
    assert!(matches!(long.end.unwrap().cause, EndCause::DurationLimit | EndCause::SessionExpired));
    assert!(long.said.contains(&"> BYE".to_owned()));
}

/// Goal: early media is heard: 183 with our answer, both legs joined, and the 200 has the same answer.
/// Method: 183 with SDP, then a 200 with and without it; and for a caller without offer only 180.
#[test]
fn early_media_is_passed_on_once() {
    for last in [ANSWER, ""] {
        let mut rig = Rig::new(&["a"]);
        rig.opens_both();
        rig.said();
        rig.callee_answers(183, ANSWER);
        assert_eq!(rig.said(), ["bridge", "< 183 INVITE"]);
        assert_eq!(rig.anchor.state(), "early media");
        let early = rig.responses.last().unwrap().body.clone();
        assert!(!early.is_empty());
        rig.callee_answers(180, "");
        assert!(rig.said().is_empty(), "the caller hears it ring");
        rig.callee_answers(200, last);
        assert_eq!(rig.said(), ["> ACK", "< 200 INVITE"]);
        assert_eq!(rig.responses.last().unwrap().body, early);
    }
    let mut offerless = Rig::with(&["a"], "", false);
    offerless.opens_both();
    offerless.callee_answers(183, ANSWER);
    offerless.callee_answers(200, ANSWER);
    let said = offerless.said();
    assert!(said.contains(&"< 180 INVITE".to_owned()), "{said:?}");
    let offer = String::from_utf8(offerless.responses.last().unwrap().body.to_vec()).unwrap();
    assert!(offer.contains("m=audio 20000 RTP/AVP 0 8 101"), "{offer}");
    let ack = request_of_caller("ACK", 1, ";tag=ours", &held(OFFER, "sendonly"));
    let now = offerless.now;
    offerless.caller.handle_ack(now, &ack);
    offerless.settle();
    assert_eq!(offerless.said(), ["< started", "> INVITE"]);
    assert!(offerless.body_to_callee().contains("a=sendonly"), "a caller that answers on hold is on hold");
}

/// Goal: media that is silent while it rings ends nothing: the shard waits once more.
/// Method: MediaTimeout of each leg after a 183, then the answer.
#[test]
fn silence_before_the_answer_ends_nothing() {
    let mut rig = Rig::new(&["a"]);
    rig.opens_both();
    rig.callee_answers(183, ANSWER);
    let before = rig.plans.len();
    let now = rig.now;
    rig.caller.handle_media_timeout(now);
    rig.anchor.callee_mut().unwrap().handle_media_timeout(now);
    rig.settle();
    let receives: Vec<_> = rig.plans[before..].iter().map(|(_, plan)| plan.receive).collect();
    assert_eq!(receives, [false, true, false, true]);
    rig.said();
    rig.callee_answers(200, "");
    assert_eq!(rig.said(), ["> ACK", "< 200 INVITE"]);
}

/// Goal: the next gateway is tried after 5xx, 408, 3xx, 401, no connection, and silence; a busy, unknown or
/// declining callee is the answer. Method: each as the first of two gateways' answers.
#[test]
fn a_gateways_fault_leads_to_the_next_one_and_a_callees_no_to_the_caller() {
    for status in [500, 503, 599, 408, 302, 401, 407] {
        let mut rig = Rig::new(&["a", "b"]);
        rig.opens_both();
        rig.said();
        rig.callee_answers(status, "");
        assert_eq!(rig.said(), ["> close", "call b", "> open"], "{status}");
        rig.opens_callee();
        rig.callee_answers(200, ANSWER);
        assert_eq!(rig.said(), ["> INVITE", "> ACK", "bridge", "< 200 INVITE"]);
        assert_eq!(rig.anchor.report(rig.now).tries, 2);
    }
    for status in [486, 404, 480, 484, 600, 603] {
        let mut rig = Rig::new(&["a", "b"]);
        rig.opens_both();
        rig.said();
        rig.callee_answers(status, "");
        assert_eq!(rig.said(), ["> close".to_owned(), format!("< {status} INVITE"), "< close".into()]);
        let reason = rig.responses.last().unwrap().headers.first(&Name::Reason).unwrap().clone();
        assert!(reason.starts_with(format!("SIP;cause={status};").as_bytes()), "{reason:?}");
        rig.all_closed();
        assert_eq!(rig.said(), ["< ended callee_refused"]);
    }
}

/// Goal: a gateway that says nothing costs four seconds, one whose connection fails nothing; the silent
/// one's late answer gets ACK and BYE. Method: both, then the silent one answers.
#[test]
fn a_silent_gateway_is_left_and_its_late_answer_turned_away() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.opens_both();
    rig.said();
    let start = rig.now;
    let late = rig.response(200, ANSWER);
    rig.wakes();
    assert_eq!(rig.now - start, Duration::from_secs(4));
    assert_eq!(rig.said(), ["> CANCEL", "> close", "call b", "> open"]);
    rig.opens_callee();
    rig.left[0].handle_closed(rig.now, None);
    assert!(!rig.left[0].is_over(), "its final response has to come");
    rig.left[0].handle_response(rig.now, late.0, &late.1);
    rig.settle();
    assert_eq!(rig.said(), ["> INVITE", "left> ACK", "left> BYE"]);
    assert!(rig.left[0].is_over());

    let client = rig.invite_of_callee().0;
    let now = rig.now;
    rig.anchor.callee_mut().unwrap().handle_client_failed(now, client);
    rig.settle();
    assert_eq!(rig.said(), ["> close", "< 503 INVITE", "< close"]);
}

/// Goal: when all fail the caller hears the last answer, or 503 when there was none it can use; full
/// gateways are passed over. Method: 503 of the last one, a redirection by it, and both full.
#[test]
fn all_gateways_failed_is_the_last_answer_or_503() {
    for (status, heard) in [(504, 504), (302, 503), (407, 503)] {
        let mut rig = Rig::new(&["full", "a"]);
        rig.full.push("full");
        rig.opens_both();
        assert_eq!(rig.said()[2..], ["skip full", "call a", "> open", "> INVITE"]);
        rig.callee_answers(status, "");
        assert_eq!(rig.said(), ["> close".to_owned(), format!("< {heard} INVITE"), "< close".into()]);
    }
    let mut rig = Rig::new(&["full", "full"]);
    rig.full.push("full");
    rig.caller.handle_opened(20_000);
    rig.settle();
    assert_eq!(rig.said()[2..], ["skip full", "skip full", "< 503 INVITE", "< close"]);
}

/// Goal: SRTP that a gateway does not take is offered plain once more, and to nobody else's harm.
/// Method: 488 twice.
#[test]
fn refused_srtp_is_offered_again_as_plain_rtp_once() {
    let mut rig = Rig::with(&["a"], OFFER, true);
    rig.opens_both();
    assert!(rig.body_to_callee().contains("RTP/SAVP"));
    rig.said();
    rig.callee_answers(488, "");
    assert_eq!(rig.said(), ["> close", "call a", "> open"]);
    rig.opens_callee();
    assert!(rig.body_to_callee().contains("RTP/AVP"));
    rig.said();
    rig.callee_answers(488, "");
    assert_eq!(rig.said(), ["> close", "< 488 INVITE", "< close"]);
}

/// Goal: CANCEL goes on to who rings; a callee that answers all the same gets ACK and BYE (RFC 3261 §9.1,
/// §13.2.2.4). Method: CANCEL while it rings, then 487, or 200.
#[test]
fn a_cancel_goes_on_and_an_answer_that_crosses_it_is_turned_away() {
    for status in [487, 200] {
        let mut rig = Rig::new(&["a", "b"]);
        rig.opens_both();
        rig.callee_answers(180, "");
        rig.said();
        let crossing = rig.response(status, ANSWER);
        let now = rig.now;
        rig.caller.handle_cancel(now);
        rig.settle();
        assert_eq!(rig.said(), ["< 487 INVITE", "< close", "left> CANCEL", "left> close"]);
        assert!(rig.anchor.is_over(), "what is left is no more the call's");
        rig.left[0].handle_response(rig.now, crossing.0, &crossing.1);
        rig.settle();
        let expected: &[&str] = if status == 200 { &["left> ACK", "left> BYE"] } else { &[] };
        assert_eq!(rig.said(), expected);
        rig.all_closed();
        assert!(rig.left[0].is_over());
        assert_eq!(rig.said(), ["< ended cancelled"]);
    }
}

/// Goal: a phone that nobody answers rings for as long as the route says; no other gateway rings it again.
/// Method: 180, then the clock.
#[test]
fn nobody_answers_in_time_is_480() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.opens_both();
    rig.callee_answers(180, "");
    rig.said();
    let start = rig.now;
    rig.wakes();
    assert_eq!(rig.now - start, Duration::from_secs(60));
    assert_eq!(rig.said(), ["> CANCEL", "> close", "< 480 INVITE", "< close"]);
    rig.all_closed();
    assert_eq!(rig.said(), ["< ended no_answer"]);
}

/// Goal: hold and resume are felt at the other end, from either side, and answered for their own leg at
/// once (RFC 3264 §8.4, RFC 3261 §14). Method: the caller holds and resumes, then the callee.
#[test]
fn hold_and_resume_pass_through_in_both_directions() {
    let mut rig = Rig::talking();
    rig.caller_asks("INVITE", &held(OFFER, "sendonly"));
    assert_eq!(rig.said(), ["< 200 INVITE", "> INVITE"]);
    assert!(rig.body_to_callee().contains("m=audio 20002") && rig.body_to_callee().contains("a=sendonly"));
    rig.acks();
    rig.callee_answers(200, &held(ANSWER, "recvonly"));
    assert_eq!(rig.said(), ["> ACK"]);
    let (near, far) = (rig.plan_of(CALLER).direction(), rig.plan_of(rig.callee_id()).direction());
    assert_eq!((near.send, near.receive, far.send, far.receive), (false, true, true, false));
    rig.caller_asks("UPDATE", &held(OFFER, "sendrecv"));
    assert_eq!(rig.said(), ["< 200 UPDATE", "> INVITE"]);
    assert!(rig.body_to_callee().contains("a=sendrecv"));
    rig.callee_answers(200, ANSWER);
    rig.said();

    rig.callee_asks("INVITE", &held(ANSWER, "inactive"));
    assert_eq!(rig.said(), ["> 200 INVITE", "< INVITE"]);
    assert!(rig.body_to_caller().contains("a=inactive"));
    rig.caller_answers(200, &held(OFFER, "inactive"));
    assert_eq!(rig.said(), ["< ACK"]);
    let ack = rig.callee_request("ACK", "");
    let ack_cseq = rig.callee_cseq - 1;
    let mut ack = ack;
    ack.headers.set(Name::CSeq, format!("{ack_cseq} ACK"));
    let now = rig.now;
    rig.anchor.callee_mut().unwrap().handle_ack(now, &ack);
    rig.settle();
    rig.callee_asks("INVITE", ANSWER);
    assert_eq!(rig.said(), ["> 200 INVITE", "< INVITE"]);
    assert!(rig.body_to_caller().contains("a=sendrecv"));
}

/// Goal: who resumes while the other side still holds is told so in the answer. Method: the callee offers
/// while the caller holds.
#[test]
fn an_answer_does_not_promise_what_the_other_side_withholds() {
    let mut rig = Rig::talking();
    rig.caller_asks("INVITE", &held(OFFER, "sendonly"));
    rig.acks();
    rig.callee_answers(200, &held(ANSWER, "recvonly"));
    rig.said();
    rig.callee_asks("INVITE", ANSWER);
    assert_eq!(rig.said(), ["> 200 INVITE"], "the caller already knows that the callee would");
    let answer = String::from_utf8(rig.responses.last().unwrap().body.to_vec()).unwrap();
    assert!(answer.contains("a=sendonly"), "{answer}");
}

/// Goal: what concerns one leg only stays there: another port or codec (RFC 3264 §8.3).
/// Method: a re-INVITE from another port, with the other codec.
#[test]
fn a_new_port_or_codec_is_the_legs_own_affair() {
    let mut rig = Rig::talking();
    rig.caller_asks("INVITE", &OFFER.replace("40000", "41000").replace("0 8 101", "0 101"));
    assert_eq!(rig.said(), ["< 200 INVITE"]);
    assert_eq!(rig.plan_of(CALLER).remote_rtp.unwrap().port(), 41_000);
    assert_eq!(rig.plan_of(CALLER).codec, Codec::Pcmu);
    assert_eq!(rig.plan_of(rig.callee_id()).codec, Codec::Pcma);
}

/// Goal: RFC 3261 §14.1: a hold that the far side refuses leaves its session as it was; on 491 it is
/// offered again a little later, 2.1 to 4 s where the Call-ID is ours; an offer that crosses ours gets 491.
/// Method: 488; 491 and the clock; the callee's offer between our INVITE and its answer.
#[test]
fn a_refused_hold_leaves_the_session_and_glare_is_tried_again() {
    let mut refused = Rig::talking();
    let before = refused.plan_of(refused.callee_id()).clone();
    refused.caller_asks("INVITE", &held(OFFER, "sendonly"));
    refused.acks();
    refused.said();
    refused.callee_answers(488, "");
    assert!(refused.said().is_empty(), "it is not asked again");
    assert_eq!(*refused.plan_of(refused.callee_id()), before);

    let mut glare = Rig::talking();
    glare.caller_asks("INVITE", &held(OFFER, "inactive"));
    glare.acks();
    glare.said();
    glare.callee_asks("INVITE", ANSWER);
    assert_eq!(glare.said(), ["> 491 INVITE"]);
    let start = glare.now;
    glare.callee_answers(491, "");
    assert!(glare.said().is_empty());
    glare.wakes();
    let waited = glare.now - start;
    assert!((2_100..=4_000).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(glare.said(), ["> INVITE"]);
    assert!(glare.body_to_callee().contains("a=inactive"));

    let mut lost = Rig::talking();
    lost.caller_asks("INVITE", &held(OFFER, "inactive"));
    lost.acks();
    lost.said();
    lost.callee_answers(481, "");
    assert_eq!(lost.said(), ["> BYE", "> close", "< BYE", "< close"]);
}

/// Goal: a call that the caller ends before its ACK, and a callee that hangs up before it, leave nothing
/// behind (RFC 3261 §15). Method: both.
#[test]
fn an_end_between_answer_and_ack_ends_both_sides() {
    let answered = || {
        let mut rig = Rig::new(&["a"]);
        rig.opens_both();
        rig.callee_answers(200, ANSWER);
        rig.said();
        rig
    };
    let mut rig = answered();
    rig.callee_asks("BYE", "");
    assert_eq!(rig.said(), ["> close", "> 200 BYE"], "our BYE waits for the ACK");
    rig.acks();
    assert_eq!(rig.said(), ["< BYE", "< close"]);

    let mut rig = answered();
    let now = rig.now;
    rig.caller.handle_no_ack(now, ServerId(1));
    rig.settle();
    assert_eq!(rig.said(), ["< BYE", "< close", "> BYE", "> close"]);
    rig.all_closed();
    assert_eq!(rig.said(), ["< ended no_ack"]);
}

/// Goal: a 2xx whose answer cannot be used ends that dialog with ACK and BYE, and the caller hears 502.
/// Method: nonsense, and no answer at all.
#[test]
fn a_callee_with_an_unusable_answer_is_hung_up_on() {
    for body in ["nonsense", ""] {
        let mut rig = Rig::new(&["a", "b"]);
        rig.opens_both();
        rig.said();
        rig.callee_answers(200, body);
        let said = rig.said();
        assert_eq!(said, ["> ACK", "> BYE", "> close", "< 502 INVITE", "< close"], "{body}");
        rig.all_closed();
        assert_eq!(rig.said(), ["< ended callee_bad_answer"]);
    }
}

/// Goal: RFC 4028 §7.3: a callee that wants a longer interval is asked again with it; §10: who does not
/// refresh is gone. Method: 422 with Min-SE, then a 200 that makes us refresh, then silence.
#[test]
fn the_callees_session_interval_is_agreed_on_and_kept() {
    let mut rig = Rig::new(&["a"]);
    rig.opens_both();
    rig.said();
    let (client, mut response) = rig.response(422, "");
    response.headers.push(Name::MinSe, "3600");
    rig.anchor.callee_mut().unwrap().handle_response(rig.now, client, &response);
    rig.settle();
    assert_eq!(rig.said(), ["> INVITE"]);
    let invite = &rig.invite_of_callee().1;
    assert!(invite.headers.first(&Name::SessionExpires).unwrap().starts_with(b"3600"));
    assert_eq!(invite.cseq().unwrap().number, 2);
    let (client, mut response) = rig.response(200, ANSWER);
    response.headers.push(Name::SessionExpires, "3600;refresher=uac");
    response.headers.push(Name::Allow, "INVITE, UPDATE");
    rig.rules.duration_max = Duration::from_secs(100_000);
    rig.anchor.callee_mut().unwrap().handle_response(rig.now, client, &response);
    rig.settle();
    rig.caller.leg().session = None;
    rig.acks();
    rig.said();
    let start = rig.now;
    rig.wakes();
    assert_eq!((rig.now - start, rig.said()), (Duration::from_secs(1800), vec!["> UPDATE".to_owned()]));
    rig.wakes();
    assert_eq!(rig.said(), ["> BYE", "> close", "< BYE", "< close"]);
    rig.all_closed();
    assert_eq!(rig.said(), ["< ended callee_session_expired"]);
}

/// Goal: whatever comes in whatever order, the call ends once, each leg that was opened is closed once, and
/// nobody who answered is left without BYE. Method: random inputs of caller, callee, shard and clock; then
/// the caller goes, or has gone, and all is closed.
#[test]
fn any_sequence_of_inputs_ends_both_legs_once() {
    let mut talked = 0;
    for seed in 0..2_000 {
        let mut random = crate::base::random::SplitMix64(seed);
        let mut rig = Rig::with(&["a", "b"], if seed % 5 == 0 { "" } else { OFFER }, false);
        // Some begin where both legs are open, some where both sides talk.
        if seed % 3 > 0 {
            rig.opens_both();
        }
        if seed % 3 > 1 {
            rig.callee_answers(200, ANSWER);
            rig.acks();
        }
        for _ in 0..24 {
            any_input(&mut rig, random.bits());
        }
        let now = rig.now;
        rig.caller.hang_up(now, EndCause::Shutdown);
        rig.settle();
        rig.acks();
        rig.caller.handle_no_ack(now, ServerId(1));
        rig.settle();
        rig.all_closed();
        let words = rig.said();
        let count = |wanted: &str| words.iter().filter(|word| word.ends_with(wanted)).count();
        let ends = words.iter().filter(|word| word.starts_with("< ended")).count();
        assert_eq!(ends, 1, "seed {seed}: {words:?}");
        assert!(rig.anchor.is_over(), "seed {seed}: {words:?}");
        assert!(count("close") <= count("open"), "seed {seed}: {words:?}");
        let says = |wanted: &str| words.iter().any(|word| word == wanted);
        assert!(!says("> ACK") || says("> BYE") || says("> 200 BYE"), "seed {seed}: {words:?}");
        assert!(!says("< started") || says("< BYE") || says("< 200 BYE"), "seed {seed}: {words:?}");
        talked += u32::from(says("< started"));
    }
    assert!(talked > 100, "{talked} calls of 2,000 came to talking");
}

fn any_input(rig: &mut Rig, random: u64) {
    let now = rig.now;
    let body = [OFFER.to_owned(), held(OFFER, "sendonly"), held(OFFER, "inactive"), String::new()];
    let body = &body[usize::try_from(random >> 8 & 3).unwrap()];
    let status = [100, 180, 183, 200, 200, 200, 302, 408, 422, 486, 491, 503]
        [usize::try_from(random >> 16).unwrap() % 12];
    let has_callee = rig.anchor.callee().is_some();
    let has_invite = has_callee && !rig.to_callee.is_empty();
    match random % 16 {
        0 | 1 => rig.caller.handle_opened(20_000),
        2 | 3 if has_callee => rig.anchor.callee_mut().unwrap().handle_opened(20_002),
        4..=6 if has_invite => {
            rig.callee_answers(status, if random & 1 << 20 == 0 { ANSWER } else { "" });
        }
        7 | 8 => rig.acks(),
        9 => {
            rig.caller_asks(["INVITE", "UPDATE", "OPTIONS"][usize::try_from(random >> 24).unwrap() % 3], body)
        }
        10 if has_callee => {
            rig.callee_asks(
                ["INVITE", "UPDATE", "INVITE", "BYE"][usize::try_from(random >> 24).unwrap() % 4],
                body,
            );
        }
        11 if !rig.to_caller.is_empty() => rig.caller_answers(status, body),
        12 if random >> 32 & 3 == 0 => rig.caller.handle_cancel(now),
        13 if has_callee && random >> 32 & 3 == 0 => {
            rig.anchor.callee_mut().unwrap().handle_media_timeout(now)
        }
        14 if has_invite => {
            let client = rig.invite_of_callee().0;
            rig.anchor.callee_mut().unwrap().handle_client_failed(now, client);
        }
        15 if rig.caller.poll_timeout().or(rig.anchor.poll_timeout()).is_some() => rig.wakes(),
        _ => {}
    }
    rig.settle();
}
