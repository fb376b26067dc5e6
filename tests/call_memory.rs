//! What an established call keeps of memory in signalling: dialogs, transactions that still wait for
//! their last timer, and what may be negotiated again. The media shard's part is not in here.
//!
//! A process of its own, for the allocator counts for all threads.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::alloc::System;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use voxring::base::clock;
use voxring::base::id::LegId;
use voxring::call::inbound::{CallRules, CallSecurity, InboundCall};
use voxring::call::leg::CallLeg;
use voxring::call::outbound::{Callee, OutboundCall, Progress, Proposal};
use voxring::call::outcome::Output;
use voxring::media::order::{Codec, Order};
use voxring::sdp::{LocalMedia, SrtpRules};
use voxring::sip::flow::{Flow, FlowId, Transport};
use voxring::sip::header::{Name, NameAddr};
use voxring::sip::layer::{Config, Layer, TuEvent};
use voxring::sip::message::{Message, Request, Response};
use voxring::sip::session_timer::SessionRules;
use voxring::sip::uas::UasRules;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 1000;
/// Of the caller's side, which is all that a played call has: some 2,000 when this was written.
const CALLER_BYTES_MAX: usize = 2300;
/// Of the callee's side of an anchored call: some 2,770 then.
const CALLEE_BYTES_MAX: usize = 3100;

/// As the phones of our own measurements offer and answer.
const SDP: &str = "v=0\r\no=- 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\n\
    m=audio 40000 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\n";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn flow() -> Flow {
    let (local, remote) = (address("192.0.2.1:5065"), address("192.0.2.7:33000"));
    Flow { id: FlowId(1), listener: 0, transport: Transport::Tcp, local, remote }
}

fn local_media() -> LocalMedia {
    LocalMedia {
        addresses: "192.0.2.1".parse().unwrap(),
        codecs: vec![Codec::Pcmu, Codec::Pcma],
        dtmf: true,
        nat: None,
        srtp: SrtpRules::plain(),
    }
}

fn rules() -> CallRules {
    CallRules {
        local: local_media(),
        nat: false,
        key_source: |_| true,
        fqdn: None,
        cname: "voxring@192.0.2.1".into(),
        media_timeout: Duration::from_secs(60),
        duration_max: Duration::from_secs(3600),
        session: SessionRules { session_expires_s: 1800, min_se_s: 90 },
        uas: UasRules::default(),
    }
}

/// A request of caller `index`.
fn request(method: &str, index: usize, to_tag: &str, body: &str) -> Message {
    let content = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    let text = format!(
        "{method} sip:8000@192.0.2.1:5065;transport=tcp SIP/2.0\r\n\
         Via: SIP/2.0/TCP 192.0.2.7:33000;branch=z9hG4bK-{method}-{index:016x};rport\r\n\
         Max-Forwards: 70\r\nFrom: \"Caller\" <sip:2000@192.0.2.7>;tag={index:016x}\r\n\
         To: <sip:8000@192.0.2.1>{to_tag}\r\nCall-ID: {index:032x}@192.0.2.7\r\nCSeq: 1 {method}\r\n\
         Contact: <sip:2000@192.0.2.7:33000;transport=tcp>\r\nUser-Agent: a phone\r\n\
         Allow: INVITE, ACK, BYE, CANCEL, OPTIONS\r\n{content}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Message::parse(Bytes::from(text)).unwrap()
}

/// A transaction layer and the calls above it.
struct Side {
    now: Instant,
    rules: CallRules,
    layer: Layer,
}

impl Side {
    fn new() -> Self {
        let config = Config { server: "voxring/1".into(), ..Config::default() };
        Self { now: clock::now(), rules: rules(), layer: Layer::new(config, 1) }
    }

    /// Does what a leg wants; gives the messages that leave.
    fn settle(&mut self, call: &mut dyn CallLeg) -> Vec<Message> {
        while let Some(output) = call.poll_output() {
            match output {
                Output::Respond(id, response) => {
                    self.layer.respond(self.now, id, response);
                }
                Output::Request(hop, request) => {
                    let client = self.layer.request(self.now, hop.destination, request.clone(), hop.sent_by);
                    call.sent(client, request);
                }
                Output::Ack(client, hop, ack) => self.layer.ack(client, hop.destination, ack, hop.sent_by),
                Output::Order(Order::Open(..)) => call.handle_opened(20_000),
                Output::Order(_) | Output::Started => {}
                Output::Cancel(_) | Output::Ended(_) => panic!("the call ends"),
            }
        }
        std::iter::from_fn(|| self.layer.poll_transmit()).map(|t| Message::parse(t.bytes).unwrap()).collect()
    }

    /// A call to us, up to its ACK.
    fn answered(&mut self, index: usize) -> Box<InboundCall> {
        self.layer.handle_message(self.now, flow(), request("INVITE", index, "", SDP));
        let Some(TuEvent::Request { id, flow, request: invite }) = self.layer.poll_event() else {
            panic!("no INVITE")
        };
        let tag = self.layer.local_tag(id).unwrap().to_owned();
        let security = CallSecurity { allowed: false, required: false, caller: None };
        let leg = LegId(index as u64);
        let call = InboundCall::new(leg, id, flow, invite, &tag, security, &self.rules);
        let mut call = Box::new(call.map_err(|(rule, _)| rule).unwrap());
        call.accept(&self.rules);
        self.settle(&mut *call);
        call.answer(self.now, &self.rules);
        self.settle(&mut *call);
        self.layer.handle_message(self.now, flow, request("ACK", index, &format!(";tag={tag}"), ""));
        let Some(TuEvent::Ack { request, .. }) = self.layer.poll_event() else { panic!("no ACK") };
        call.handle_ack(self.now, &request);
        self.settle(&mut *call);
        call
    }

    /// A call of ours, up to our ACK.
    fn called(&mut self, index: usize) -> Box<OutboundCall> {
        let uri = |text: &str| NameAddr::parse(text.as_bytes()).unwrap();
        let tag = self.layer.new_tag();
        let callee = Callee {
            target: uri("<sip:8000@192.0.2.9:5080;transport=tcp>").uri,
            from: uri(&format!("\"Caller\" <sip:2000@192.0.2.1>;tag={tag}")),
            to: uri("<sip:8000@192.0.2.9:5080>"),
            call_id: format!("{index:032x}@192.0.2.1"),
            contact: "<sip:2000@192.0.2.1:5065;transport=tcp>".into(),
            headers: vec![(Name::MaxForwards, "69".into())],
            transport: Transport::Tcp,
            remote: address("192.0.2.9:5080"),
            listener: 0,
            sent_by: address("192.0.2.1:5065"),
        };
        let wait = Duration::from_secs(60);
        let proposal = Proposal { local: local_media(), try_timeout: wait, ring_timeout: wait };
        let mut call = Box::new(OutboundCall::new(LegId(index as u64), callee, proposal, &self.rules));
        self.settle(&mut *call);
        call.call(self.now, &self.rules);
        let sent = self.settle(&mut *call);
        let [Message::Request(invite)] = sent.as_slice() else { panic!("{sent:?}") };
        self.layer.handle_message(self.now, flow(), Message::Response(answer(invite, index)));
        let Some(TuEvent::Response { id, response }) = self.layer.poll_event() else { panic!("no answer") };
        call.handle_response(self.now, id, &response);
        let sent = self.settle(&mut *call);
        assert!(matches!(sent.as_slice(), [Message::Request(ack)] if ack.method.as_str() == "ACK"));
        assert_eq!(call.progress(), Progress::Answered);
        call
    }
}

fn answer(invite: &Request, index: usize) -> Response {
    let mut response = Response::for_request(invite, 200, "OK");
    let to =
        format!("{};tag={index:016x}", String::from_utf8_lossy(invite.headers.first(&Name::To).unwrap()));
    response.headers.set(Name::To, to);
    response.headers.push(Name::Contact, "<sip:8000@192.0.2.9:5080;transport=tcp>");
    response.headers.push(Name::ContentType, "application/sdp");
    response.body = Bytes::from_static(SDP.as_bytes());
    response
}

/// Bytes that each of [`CALLS`] calls keeps.
fn kept<T>(mut establish: impl FnMut(usize) -> T) -> usize {
    let mut calls = Vec::with_capacity(CALLS);
    let region = Region::new(ALLOCATOR);
    calls.extend((0..CALLS).map(&mut establish));
    let stats = region.change();
    let kept = stats.bytes_allocated.checked_sub(stats.bytes_deallocated).unwrap();
    drop(calls);
    kept / CALLS
}

/// Goal: a call takes so much memory in signalling and no more, its transactions included, which live
/// for 32 s after the answer. Method: count what a thousand of each side keep.
#[test]
fn an_established_call_keeps_little_memory() {
    let mut side = Side::new();
    let caller = kept(|index| side.answered(index));
    assert_eq!(side.layer.len(), CALLS);
    let mut side = Side::new();
    let callee = kept(|index| side.called(index));
    assert_eq!(side.layer.len(), CALLS);
    println!("{caller} bytes for each caller, {callee} for each callee");
    assert!((500..=CALLER_BYTES_MAX).contains(&caller), "{caller} bytes for each caller");
    assert!((500..=CALLEE_BYTES_MAX).contains(&callee), "{callee} bytes for each callee");
}
