//! A whole signalling shard of a worker whose caller, media shard, mailbox and supervisor the test
//! plays, on a fake clock: no thread, no socket.

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;

use super::*;
use crate::base::config::{Gateway, GatewayAddresses};
use crate::base::id::PlayId;
use crate::mailbox::service::{FakeMailbox, MailboxInfo, MailboxReply};
use crate::media::order::{Codec, Event, LegStats, OpenError, Order};
use crate::role::hop::HopSecret;
use crate::role::link::ToWorker;
use crate::sdp::{LocalMedia, SrtpRules};
use crate::shard::FakeShard;
use crate::signal::Listener;
use crate::sip::flow::Transport;
use crate::sip::message::Name;
use crate::sip::session_timer::SessionRules;
use crate::sip::uas::UasRules;

mod anchored;
mod outlast;

const OFFER: &str = "v=0\r\no=a 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\n\
    m=audio 40000 RTP/AVP 0\r\n";

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn gateway(name: &str, address: &str) -> Gateway {
    let address = GatewayAddresses(vec![address.parse().unwrap()]);
    Gateway { name: name.into(), address, ..Gateway::default() }
}

fn listeners() -> Vec<Listener> {
    let listener = |transport, port| Listener { transport, address: ([192, 0, 2, 1], port).into() };
    vec![listener(Transport::Tcp, 5065), listener(Transport::Tls, 5066)]
}

/// The secret of the rig's node.
fn secret() -> HopSecret {
    serde_json::from_str("\"0123456789abcdef0123456789abcdef\"").unwrap()
}

fn audio(samples: usize) -> Audio {
    Audio::from_pcm(&vec![0; samples])
}

/// The worker and all around it. The far ends go before the near ones.
struct Rig {
    shard: Option<FakeShard>,
    mailbox: FakeMailbox,
    orders: Arc<crossbeam::queue::ArrayQueue<Option<ToWorker>>>,
    reports: crossbeam::channel::Receiver<FromWorker>,
    now: Instant,
    sent: Vec<Message>,
    calls: Calls,
    /// What the caller sends over.
    over: SipFlow,
}

impl Rig {
    fn new() -> Self {
        Self::with(1000, |_| {})
    }

    /// `room` of the mailbox's queues.
    fn with(room: usize, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.test_extensions.enabled = true;
        config.gateway.push(gateway("pbx", "192.0.2.0/24"));
        change(&mut config);
        let (shards, mut fakes) = Shards::fake(1);
        let (mailbox, fake_mailbox) = MailboxHandle::fake(room);
        let (link, orders, reports) = WorkerLink::fake();
        let rules = CallRules {
            local: LocalMedia {
                addresses: "192.0.2.1".parse().unwrap(),
                codecs: vec![Codec::Pcmu],
                dtmf: true,
                nat: None,
                srtp: SrtpRules { suites: config.srtp.suites.0.clone(), ..SrtpRules::plain() },
            },
            nat: config.rtp.nat,
            key_source: |key| getrandom::fill(key).is_ok(),
            fqdn: None,
            cname: "test".into(),
            media_timeout: Duration::from_secs(60),
            duration_max: Duration::from_secs(3600),
            session: SessionRules { session_expires_s: 1800, min_se_s: 90 },
            uas: UasRules::default(),
        };
        let [greeting, beep, other] = [audio(80), audio(8), audio(16)];
        let prompts = Prompts {
            greeting,
            beep,
            after_recording: other.clone(),
            sent: other.clone(),
            nothing_recorded: other.clone(),
            invalid_key: other.clone(),
            goodbye: other,
        };
        let calls = Calls::new(Parts {
            layer: user_agent::layer(&config).unwrap(),
            gate: Gate::new(&config, secret()).unwrap(),
            config: Box::new(config),
            slot: Slot::A,
            rules,
            shards,
            mailbox,
            link: Arc::new(link),
            prompts,
            demo_loop: audio(800),
            counters: Arc::default(),
            edge: Edge::new(Arc::new(ArrayQueue::new(64)), &listeners(), None),
            turns: Turns::default(),
            seed: 1,
            estate: None,
        });
        let now = crate::base::clock::now();
        Self {
            shard: fakes.pop(),
            mailbox: fake_mailbox,
            orders,
            reports,
            now,
            sent: Vec::new(),
            calls,
            over: Self::flow(),
        }
    }

    fn flow() -> SipFlow {
        SipFlow {
            id: FlowId(1),
            listener: 0,
            transport: Transport::Tcp,
            local: "192.0.2.1:5065".parse().unwrap(),
            remote: "192.0.2.7:33000".parse().unwrap(),
        }
    }

    /// The caller of call `name` sends a request.
    fn sends(&mut self, name: &str, method: &str, cseq: u32, body: &str) {
        self.sends_to("1001", name, method, cseq, body);
    }

    fn sends_to(&mut self, user: &str, name: &str, method: &str, cseq: u32, body: &str) {
        let text = self.text(user, name, method, cseq, body);
        self.sends_text(text);
    }

    fn sends_text(&mut self, text: String) {
        let message = Message::parse(Bytes::from(text)).unwrap();
        self.calls.handle_message(self.now, self.over, message);
        self.collect();
    }

    fn text(&self, user: &str, name: &str, method: &str, cseq: u32, body: &str) -> String {
        let to_tag = self.to_tag(name).filter(|_| method != "CANCEL" && (method, cseq) != ("INVITE", 1));
        let to_tag = to_tag.map(|tag| format!(";tag={tag}")).unwrap_or_default();
        let branch = if method == "CANCEL" { "INVITE" } else { method };
        let content = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        format!(
            "{method} sip:{user}@192.0.2.1:5065 SIP/2.0\r\n\
             Via: SIP/2.0/TCP 192.0.2.7:33000;branch=z9hG4bK{name}{branch}{cseq}\r\n\
             From: <sip:2000@192.0.2.7>;tag={name}\r\nTo: <sip:{user}@192.0.2.1>{to_tag}\r\n\
             Call-ID: {name}\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\n\
             Contact: <sip:2000@192.0.2.7:33000;transport=tcp>\r\n{content}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Our tag in the call, once a response has told it.
    fn to_tag(&self, name: &str) -> Option<String> {
        self.sent.iter().find_map(|message| match message {
            Message::Response(r) if r.call_id() == Ok(name) => r.to().unwrap().tag().map(str::to_owned),
            Message::Response(_) | Message::Request(_) => None,
        })
    }

    fn collect(&mut self) {
        while let Some(transmit) = self.calls.poll_transmit() {
            self.sent.push(Message::parse(transmit.bytes).unwrap());
        }
    }

    fn pump(&mut self) {
        self.calls.pump(self.now);
        self.collect();
    }

    /// Runs all timers until `passed`.
    fn wait(&mut self, passed: Duration) {
        let end = self.now + passed;
        while let Some(at) = self.calls.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.calls.handle_timeout(self.now);
            self.pump();
        }
        self.now = end;
        self.pump();
    }

    /// Everything said to the caller of `name`, as words.
    fn heard(&self, name: &str) -> Vec<String> {
        let of_call = self.sent.iter().filter(|message| message.headers().call_id() == Ok(name));
        let word = |message: &Message| match message {
            Message::Response(r) => format!("{} {}", r.status, r.cseq().unwrap().method),
            Message::Request(r) => r.method.to_string(),
        };
        of_call.map(word).collect()
    }

    fn last_response(&self) -> &Response {
        let mut newest_first = self.sent.iter().rev();
        let response = newest_first.find_map(|message| match message {
            Message::Response(response) => Some(response),
            Message::Request(_) => None,
        });
        response.expect("one was sent")
    }

    /// The caller answers our last request.
    fn answers(&mut self, status: u16) {
        let mut newest_first = self.sent.iter().rev();
        let request = newest_first.find_map(|message| match message {
            Message::Request(request) => Some(request),
            Message::Response(_) => None,
        });
        let request = request.expect("one was sent");
        let response = Message::Response(Response::for_request(request, status, "Whatever"));
        self.calls.handle_message(self.now, Self::flow(), response);
        self.collect();
    }

    fn order(&self) -> Option<Order> {
        self.shard.as_ref().unwrap().order()
    }

    fn media(&mut self, event: Event) {
        self.shard.as_ref().unwrap().say(event);
        self.pump();
    }

    fn opened(&mut self) -> LegId {
        let Some(Order::Open(leg, _)) = self.order() else { panic!("no leg is asked for") };
        self.media(Event::Opened { leg, rtp_port: 20_000 });
        leg
    }

    fn closed(&mut self, leg: LegId) {
        assert!(matches!(self.order(), Some(Order::Close(id)) if id == leg));
        self.media(Event::Closed { leg, stats: Box::default() });
    }

    fn looked_up(&mut self, has_greeting: bool) {
        let Some(MailboxRequest::Lookup { token, number }) = self.mailbox.request() else {
            panic!("no lookup")
        };
        let mailbox = Ok(Some(MailboxInfo { number, name: "Ann".into(), has_greeting }));
        self.mailbox.reply(MailboxReply::Lookup { token, mailbox });
        self.pump();
    }

    /// A call to mailbox 1001 that hears its greeting.
    fn established(name: &str) -> (Self, LegId) {
        let mut rig = Self::new();
        rig.sends(name, "INVITE", 1, OFFER);
        rig.looked_up(false);
        let leg = rig.opened();
        rig.sends(name, "ACK", 1, "");
        assert_eq!(rig.heard(name), ["100 INVITE", "180 INVITE", "200 INVITE"]);
        assert!(matches!(rig.order(), Some(Order::Play(id, PlayId(_), _)) if id == leg));
        (rig, leg)
    }

    /// No map knows anything of any call; nor does the layer, minutes later.
    fn assert_forgotten(&mut self) {
        let calls = &self.calls;
        let left = (calls.calls.len(), calls.by_dialog.len(), calls.by_invite.len(), calls.timers.len());
        assert_eq!(left, (0, 0, 0, 0));
        self.wait(Duration::from_secs(300));
        assert_eq!((self.calls.by_client.len(), self.calls.layer.len()), (0, 0));
        assert!(self.calls.waiting.is_empty());
    }
}

/// Goal: a call leaves nothing behind. Method: to a mailbox, ended by the caller; to an extension,
/// ended by us.
#[test]
fn a_plain_call_is_forgotten() {
    let (mut rig, leg) = Rig::established("a");
    rig.sends("a", "BYE", 2, "");
    rig.closed(leg);
    assert!(matches!(rig.mailbox.request(), Some(MailboxRequest::Missed(_))));
    rig.assert_forgotten();

    let mut rig = Rig::new();
    rig.sends_to("9196", "b", "INVITE", 1, OFFER);
    let leg = rig.opened();
    rig.sends_to("9196", "b", "ACK", 1, "");
    rig.media(Event::MediaTimeout { leg });
    assert_eq!(rig.heard("b").last().unwrap(), "BYE");
    while let Some(order) = rig.order() {
        if matches!(order, Order::Close(_)) {
            rig.media(Event::Closed { leg, stats: Box::default() });
        }
    }
    rig.answers(200);
    rig.assert_forgotten();
}

/// Goal: a mailbox that never answers costs the caller 5 s and a 503 with Retry-After, not the call.
/// Method: no reply; the reply comes too late.
#[test]
fn a_mailbox_that_never_answers_is_503() {
    let mut rig = Rig::new();
    rig.sends("a", "INVITE", 1, OFFER);
    rig.wait(ms(4900));
    assert_eq!(rig.heard("a"), ["100 INVITE"]);
    rig.wait(ms(200));
    assert_eq!(rig.heard("a"), ["100 INVITE", "503 INVITE"]);
    assert!(rig.last_response().headers.contains(&Name::RetryAfter));
    assert_eq!(rig.calls.refusals.totals()["not_ready"], 1);
    rig.looked_up(false);
    assert!(rig.order().is_none(), "too late for a leg");
    rig.sends("a", "ACK", 1, "");
    rig.assert_forgotten();
}

/// Goal: a greeting that never comes gives way to the built-in one. Method: everything but it.
#[test]
fn a_greeting_that_never_comes_gives_way_to_the_built_in_one() {
    let mut rig = Rig::new();
    rig.sends("a", "INVITE", 1, OFFER);
    rig.looked_up(true);
    assert!(matches!(rig.mailbox.request(), Some(MailboxRequest::LoadGreeting { .. })));
    let leg = rig.opened();
    rig.wait(ms(5100));
    assert_eq!(rig.heard("a").last().unwrap(), "200 INVITE");
    rig.mailbox.reply(MailboxReply::Greeting { token: leg.0, samples: Ok(Some(vec![0; 9].into())) });
    rig.pump();
    rig.sends("a", "ACK", 1, "");
    let Some(Order::Play(_, _, list)) = rig.order() else { panic!("nothing plays") };
    assert_eq!(list.items[0].pcmu.len(), 80);
}

/// Goal: a media shard that does not answer costs the caller 5 s, and the call goes 10 s later.
/// Method: neither Opened nor Closed.
#[test]
fn a_media_shard_that_never_answers_is_503_and_the_call_is_forgotten() {
    let mut rig = Rig::new();
    rig.sends("a", "INVITE", 1, OFFER);
    rig.looked_up(false);
    rig.wait(ms(5100));
    assert_eq!(rig.heard("a").last().unwrap(), "503 INVITE");
    rig.sends("a", "ACK", 1, "");
    assert!(matches!(rig.order(), Some(Order::Open(..))));
    assert!(matches!(rig.order(), Some(Order::Close(_))));
    assert_eq!(rig.calls.calls.len(), 1);
    rig.wait(ms(10_000));
    rig.assert_forgotten();
}

/// Goal: a leg that cannot be opened is 503; one that breaks ends the call by BYE.
/// Method: OpenFailed; Closed without an order.
#[test]
fn a_leg_that_fails_or_breaks_ends_its_call() {
    let mut rig = Rig::new();
    rig.sends("a", "INVITE", 1, OFFER);
    rig.looked_up(false);
    let Some(Order::Open(leg, _)) = rig.order() else { panic!("no leg is asked for") };
    rig.media(Event::OpenFailed { leg, error: OpenError::NoPort });
    assert_eq!(rig.heard("a"), ["100 INVITE", "180 INVITE", "503 INVITE"]);
    rig.sends("a", "ACK", 1, "");
    rig.assert_forgotten();

    let (mut rig, leg) = Rig::established("b");
    rig.media(Event::Closed { leg, stats: Box::new(LegStats::default()) });
    assert_eq!(rig.heard("b").last().unwrap(), "BYE");
    assert!(rig.order().is_none());
    rig.answers(200);
    rig.assert_forgotten();
}

impl Rig {
    /// The supervisor orders something.
    fn ordered(&mut self, order: ToWorker) {
        self.orders.force_push(Some(order));
        self.pump();
    }

    fn reported(&self) -> Vec<FromWorker> {
        self.reports.try_iter().filter(|report| !matches!(report, FromWorker::Heartbeat(_))).collect()
    }

    /// A request that the service has vouched for.
    fn forwarded(&self, name: &str) -> String {
        let claim = "X-Voxring-Hop: token=0123456789abcdef0123456789abcdef;gateway=pbx;dial-plan=any;\
                     source=192.0.2.7:33000;transport=tcp";
        self.text("1001", name, "INVITE", 1, OFFER).replacen("Call-ID:", &format!("{claim}\r\nCall-ID:"), 1)
    }
}

/// Goal: a worker that gave way keeps its calls, sends callers who come straight to it to the one that
/// took over, takes what the service was still forwarding and then refuses it, answers OPTIONS with 503,
/// and leaves when the last call is over. Method: a call that is up, then each of these.
#[test]
fn a_worker_that_gave_way_keeps_its_calls_and_sends_new_ones_on() {
    let (mut rig, leg) = Rig::established("a");
    let successor = vec![crate::control::protocol::ListenerStatus {
        role: "worker B".into(),
        transport: Transport::Tcp,
        address: "192.0.2.1:5067".parse().unwrap(),
    }];
    rig.ordered(ToWorker::Retire { successor, within_ms: 60_000 });
    let straggler = rig.forwarded("straggler");
    rig.sends_text(straggler);
    assert_eq!(rig.heard("straggler"), ["100 INVITE"], "it is taken");
    rig.sends("straggler", "CANCEL", 1, "");
    rig.wait(ms(1000));

    rig.sends("b", "INVITE", 1, OFFER);
    assert_eq!(rig.heard("b"), ["302 INVITE"]);
    let contact = rig.last_response().headers.first(&Name::Contact).unwrap().clone();
    // Where workers listen by default.
    assert_eq!(contact, "<sip:1001@127.0.0.1:5067;transport=tcp>");
    let late = rig.forwarded("late");
    rig.sends_text(late);
    assert_eq!(rig.heard("late"), ["503 INVITE"]);
    assert!(rig.last_response().headers.contains(&Name::RetryAfter));
    rig.sends("c", "OPTIONS", 1, "");
    assert_eq!(rig.heard("c"), ["503 OPTIONS"]);

    assert!(!rig.calls.is_finished());
    rig.sends("a", "BYE", 2, "");
    assert_eq!(rig.heard("a").last().unwrap(), "200 BYE");
    while let Some(order) = rig.order() {
        if matches!(order, Order::Close(_)) {
            rig.media(Event::Closed { leg, stats: Box::default() });
        }
    }
    rig.wait(ms(1900));
    assert!(!rig.calls.is_finished(), "a copy of the last INVITE may still come");
    rig.wait(ms(200));
    assert!(rig.calls.is_finished());
}

/// Goal: a drained node's worker refuses new calls and OPTIONS until it is told otherwise, whoever
/// vouches for them. Method: refuse, a caller and a forwarded one, take again.
#[test]
fn a_drained_worker_refuses_until_told_otherwise() {
    let mut rig = Rig::new();
    rig.ordered(ToWorker::Refuse { on: true });
    rig.sends("a", "INVITE", 1, OFFER);
    let forwarded = rig.forwarded("b");
    rig.sends_text(forwarded);
    for name in ["a", "b"] {
        assert_eq!(rig.heard(name), ["503 INVITE"]);
    }
    assert!(rig.last_response().headers.contains(&Name::Warning));
    assert_eq!(rig.calls.refusals.totals()["draining"], 2);
    rig.ordered(ToWorker::Refuse { on: false });
    rig.sends("c", "INVITE", 1, OFFER);
    assert_eq!(rig.heard("c"), ["100 INVITE"]);
}

/// Goal: at the end of the time to drain a caller hears goodbye, then the call is ended by BYE. Method:
/// a call that is up, no time.
#[test]
fn a_call_that_outlasts_the_drain_hears_goodbye_and_is_ended() {
    let (mut rig, leg) = Rig::established("a");
    rig.ordered(ToWorker::Retire { successor: Vec::new(), within_ms: 0 });
    let Some(Order::Play(id, _, list)) = rig.order() else { panic!("nothing is said") };
    assert_eq!((id, list.items[0].pcmu.len()), (leg, 16));
    rig.wait(ms(4100));
    assert_eq!(rig.heard("a").last().unwrap(), "BYE");
    assert!(matches!(rig.order(), Some(Order::Close(_))));
    rig.media(Event::Closed { leg, stats: Box::default() });
    rig.answers(200);
    rig.pump();
    assert!(rig.calls.is_finished());
}

/// Goal: a flow with a fault ends its own call by BYE and is counted; other calls and the worker go on.
/// Method: a flow that panics at a key, beside a sound one.
#[test]
fn a_panic_in_a_flow_ends_its_call_alone() {
    let (mut rig, leg) = Rig::established("a");
    rig.sends_to("9196", "b", "INVITE", 1, OFFER);
    let other = rig.opened();
    rig.sends_to("9196", "b", "ACK", 1, "");
    rig.calls.calls.get_mut(&leg).unwrap().flow = Some(crate::um::flow::Flow::Faulty);
    rig.media(Event::Digit { leg, digit: '1', source: crate::media::order::DigitSource::Event });
    assert_eq!(rig.heard("a").last().unwrap(), "BYE");
    assert_eq!(rig.calls.flows_panicked, 1);
    assert!(rig.calls.calls[&other].flow.is_some());
    assert!(!rig.calls.is_finished());
}

/// Goal: a call of the worker's own is taken only while it proves itself and only with the node's secret,
/// whatever gateways say, and counts nowhere. Method: before, meanwhile with and without the secret.
#[test]
fn a_self_test_call_is_taken_only_while_the_worker_proves_itself() {
    let mut rig = Rig::with(1000, |config| config.test_extensions.enabled = false);
    let own = |rig: &Rig, name: &str, token: &str| {
        let text = rig.text("self-test", name, "INVITE", 1, OFFER);
        let claim = format!(
            "X-Voxring-Hop: token={token};gateway=self-test;dial-plan=self-test;source=127.0.0.1:1;transport=tcp"
        );
        text.replacen("Call-ID:", &format!("{claim}\r\nCall-ID:"), 1)
    };
    let token = "0123456789abcdef0123456789abcdef";
    let early = own(&rig, "early", token);
    rig.sends_text(early);
    assert_eq!(rig.heard("early"), ["403 INVITE"]);
    // No turn yet: in the next one it hears that the real test cannot get through.
    rig.calls.prove();
    let forged = own(&rig, "forged", "0");
    rig.sends_text(forged);
    assert_ne!(rig.heard("forged").last().unwrap(), "180 INVITE");
    let wanted = own(&rig, "own", token);
    rig.sends_text(wanted);
    let leg = loop {
        match rig.order() {
            Some(Order::Open(leg, _)) => break leg,
            Some(_) => {}
            None => panic!("no leg is asked for: {:?}", rig.heard("own")),
        }
    };
    rig.media(Event::Opened { leg, rtp_port: 20_000 });
    assert_eq!(rig.heard("own").last().unwrap(), "200 INVITE");
    // The rig's listeners are nobody's: the real test cannot get through, and says so.
    let proof = loop {
        rig.pump();
        if let Some(FromWorker::Proof { error }) = rig.reported().pop() {
            break error;
        }
        std::thread::yield_now();
    };
    assert!(proof.is_some_and(|why| why.starts_with("call 0: ")), "the listener's address is not ours");
    assert_eq!(rig.calls.answered, 0);
}

/// Goal: a re-INVITE that was refused hides neither the missing ACK of the INVITE nor its CANCEL,
/// nor the missing ACK of an accepted re-INVITE.
/// Method: each; 64*T1 pass, and the BYE stays unanswered too.
#[test]
fn a_refused_reinvite_hides_nothing() {
    let mut early = Rig::new();
    early.sends("a", "INVITE", 1, OFFER);
    early.looked_up(false);
    early.sends("a", "INVITE", 2, OFFER);
    assert_eq!(early.heard("a").last().unwrap(), "500 INVITE");
    early.sends("a", "CANCEL", 1, "");
    assert!(early.heard("a").contains(&"487 INVITE".to_owned()));

    let mut unacked = Rig::new();
    unacked.sends("b", "INVITE", 1, OFFER);
    unacked.looked_up(false);
    let leg = unacked.opened();
    unacked.sends("b", "INVITE", 2, OFFER);
    unacked.wait(ms(32_100));
    assert_eq!(unacked.heard("b").last().unwrap(), "BYE");
    unacked.closed(leg);
    unacked.assert_forgotten();

    let (mut second, leg) = Rig::established("c");
    second.sends("c", "INVITE", 2, OFFER);
    assert!(matches!(second.order(), Some(Order::Update(..))));
    second.sends("c", "INVITE", 3, OFFER);
    second.wait(ms(32_100));
    assert_eq!(second.heard("c").last().unwrap(), "BYE");
    second.closed(leg);
    second.assert_forgotten();
}

/// Goal: a thread that is behind refuses a share of the new calls with 503, Retry-After and a Warning,
/// counted by rule, and takes all again when it is not. Method: 30 calls before each of two looks, busy all
/// the time, ten more; then many looks at an idle thread.
#[test]
fn a_busy_thread_refuses_a_share_of_the_new_calls() {
    let mut rig = Rig::new();
    let call = |rig: &mut Rig, index: usize| rig.sends_to("9199", &format!("c{index}"), "INVITE", 1, OFFER);
    for calls in [0..30, 30..60] {
        calls.for_each(|index| call(&mut rig, index));
        rig.calls.handle_busy(1000);
    }
    (60..70).for_each(|index| call(&mut rig, index));
    assert_eq!(rig.calls.calls.len(), 69, "nine of ten");
    assert_eq!(rig.calls.refusals.totals()["overload"], 1);
    let is_refusal = |message: &&Message| matches!(message, Message::Response(r) if r.status == 503);
    let refusal = rig.sent.iter().find(is_refusal).expect("one was refused").headers();
    let text = |name| String::from_utf8_lossy(refusal.first(&name).unwrap()).into_owned();
    assert_eq!(text(Name::RetryAfter), "4");
    assert_eq!(text(Name::Warning), "399 voxring \"more calls come than can be served\"");
    assert!(text(Name::Reason).contains("overload: "), "{}", text(Name::Reason));
    rig.calls.handle_busy(10);
    (70..80).for_each(|index| call(&mut rig, index));
    assert_eq!(rig.calls.calls.len(), 79);
}

/// Goal: a worker whose media shards do not keep up refuses new calls with 503 and keeps those it has.
/// Method: one call; then its only shard is behind; then it keeps up again.
#[test]
fn media_shards_that_are_behind_get_no_new_calls() {
    let (mut rig, _) = Rig::established("a");
    rig.calls.shards.as_mut().unwrap().fall_behind(rig.now);
    rig.sends("b", "INVITE", 1, OFFER);
    assert_eq!(rig.heard("b"), ["503 INVITE"]);
    assert_eq!(rig.calls.refusals.totals()["media_overload"], 1);
    assert!(rig.last_response().headers.contains(&Name::RetryAfter));
    assert_eq!(rig.calls.calls.len(), 1);
    rig.now += ms(1000);
    rig.pump();
    rig.sends("c", "INVITE", 1, OFFER);
    assert_eq!(rig.heard("c"), ["100 INVITE"]);
}

/// Goal: a caller who is gone does not keep a call for 32 s: when the 200 reaches nobody the call ends.
/// Method: the connection closes between INVITE and 200, and the Via's address takes nothing.
#[test]
fn a_call_whose_answer_reaches_nobody_ends() {
    let mut rig = Rig::new();
    rig.sends("a", "INVITE", 1, OFFER);
    rig.looked_up(false);
    rig.calls.handle_flow_closed(rig.now, Rig::flow().id);
    let leg = rig.opened();
    assert_eq!(rig.heard("a").last().unwrap(), "200 INVITE");
    let ok = Message::Response(rig.last_response().clone()).to_bytes();
    let remote = "192.0.2.7:33000".parse().unwrap();
    let nowhere = Destination::Address { transport: Transport::Tcp, remote, listener: 0 };
    rig.calls.handle_send_failed(rig.now, &Transmit { destination: nowhere, bytes: ok });
    rig.collect();
    assert_eq!(rig.heard("a").last().unwrap(), "BYE");
    rig.closed(leg);
    assert!(rig.calls.calls.is_empty());
}

/// Goal: requests beyond the mailbox's room wait and arrive in order; meanwhile new calls are 503.
/// Method: room for two lookups.
#[test]
fn a_full_mailbox_refuses_new_calls_and_loses_nothing() {
    let mut rig = Rig::with(2, |_| {});
    for name in ["a", "b", "c", "d"] {
        rig.sends(name, "INVITE", 1, OFFER);
    }
    assert_eq!(rig.calls.waiting.len(), 1, "the third lookup waits");
    assert_eq!(rig.heard("d"), ["503 INVITE"]);
    assert_eq!(rig.calls.refusals.totals()["mailbox_busy"], 1);
    for _ in 0..3 {
        rig.looked_up(false);
    }
    assert!(rig.heard("c").contains(&"180 INVITE".to_owned()));
    rig.sends("e", "INVITE", 1, OFFER);
    assert_eq!(rig.heard("e"), ["100 INVITE"]);
}

/// Goal: an orderly stop: ringing callers get 503, talking ones BYE, new ones 503, and the worker
/// ends when all is closed.
/// Method: one of each, then Stop.
#[test]
fn a_stop_ends_every_call_in_order() {
    let (mut rig, leg) = Rig::established("up");
    rig.sends("ringing", "INVITE", 1, OFFER);
    rig.orders.push(Some(ToWorker::Stop)).unwrap();
    rig.pump();
    assert_eq!(rig.heard("up").last().unwrap(), "BYE");
    assert_eq!(rig.heard("ringing").last().unwrap(), "503 INVITE");
    rig.sends("late", "INVITE", 1, OFFER);
    assert_eq!(rig.heard("late"), ["503 INVITE"]);
    assert!(!rig.calls.is_finished());
    rig.closed(leg);
    assert!(rig.calls.is_finished());
}

/// Goal: the supervisor hears how it goes. Method: heartbeat and calls of one call.
#[test]
fn the_supervisor_hears_of_calls() {
    let (mut rig, _) = Rig::established("a");
    rig.orders.push(Some(ToWorker::Calls { query: 7 })).unwrap();
    rig.pump();
    assert!(matches!(rig.order(), Some(Order::Report)), "legs are asked for their counters first");
    rig.wait(HEARTBEAT_INTERVAL);
    let reports: Vec<_> = rig.reports.try_iter().collect();
    let beat = reports.iter().rev().find_map(|report| match report {
        FromWorker::Heartbeat(beat) => Some(beat),
        _ => None,
    });
    assert_eq!(beat.map(|beat| (beat.calls_active, beat.calls_total)), Some((1, 1)));
    let told = reports.iter().find_map(|report| match report {
        FromWorker::Calls { query: 7, calls } => Some(calls),
        _ => None,
    });
    assert_eq!(told.unwrap()[0].call_id, "a");
}

/// One random thing that callers, shard, mailbox or time do.
fn random_step(rig: &mut Rig, open: &mut Vec<LegId>, random: &mut impl FnMut(u64) -> u64) {
    let name = ["a", "b", "c"][usize::try_from(random(3)).unwrap()];
    let user = ["1001", "9196", "4711"][usize::try_from(random(3)).unwrap()];
    let cseq = u32::try_from(random(4)).unwrap() + 1;
    match random(14) {
        0 | 1 => rig.sends_to(user, name, "INVITE", 1, OFFER),
        2 => rig.sends(name, "ACK", 1, ""),
        3 => rig.sends(name, "ACK", cseq, ""),
        4 => rig.sends(name, "CANCEL", 1, ""),
        5 => rig.sends(name, "BYE", cseq + 4, ""),
        6 => rig.sends(name, "INVITE", cseq + 1, OFFER),
        7 => rig.sends(name, "UPDATE", cseq + 2, ""),
        8 => rig.wait(ms(random(20_000))),
        9 => {
            rig.calls.handle_flow_closed(rig.now, FlowId(1));
            rig.collect();
        }
        10 if rig.sent.iter().any(|message| matches!(message, Message::Request(_))) => {
            rig.answers([200, 200, 481, 500][usize::try_from(random(4)).unwrap()]);
        }
        11 => match rig.mailbox.request() {
            Some(MailboxRequest::Lookup { token, number }) => {
                let info = MailboxInfo { number, name: String::new(), has_greeting: random(2) == 0 };
                let mailbox = Ok((random(3) > 0).then_some(info));
                rig.mailbox.reply(MailboxReply::Lookup { token, mailbox });
            }
            Some(MailboxRequest::LoadGreeting { token, .. }) => {
                rig.mailbox.reply(MailboxReply::Greeting { token, samples: Ok(None) });
            }
            _ => {}
        },
        12 if random(4) == 0 && !open.is_empty() => {
            let leg = open.swap_remove(0);
            rig.media(Event::Closed { leg, stats: Box::default() });
        }
        _ => serve_media(rig, open, random(8) > 0),
    }
    rig.pump();
}

/// The shard obeys what was ordered.
fn serve_media(rig: &mut Rig, open: &mut Vec<LegId>, works: bool) {
    while let Some(order) = rig.order() {
        match order {
            Order::Open(leg, _) if works => {
                open.push(leg);
                rig.media(Event::Opened { leg, rtp_port: 20_000 });
            }
            Order::Open(leg, _) => rig.media(Event::OpenFailed { leg, error: OpenError::NoPort }),
            Order::Close(leg) if open.contains(&leg) => {
                open.retain(|other| *other != leg);
                rig.media(Event::Closed { leg, stats: Box::default() });
            }
            _ => {}
        }
    }
}

/// Goal: however calls go and end, no map keeps anything and the shard's leg count returns to nought.
/// Method: 300 seeded walks over three callers, then a stop, the shard's last work, and minutes.
#[test]
fn no_walk_leaves_anything_behind() {
    for seed in 0..300_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |below: u64| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
        };
        let mut rig = Rig::new();
        let mut open = Vec::new();
        for _ in 0..60 {
            random_step(&mut rig, &mut open, &mut random);
        }
        rig.orders.push(Some(ToWorker::Stop)).unwrap();
        rig.pump();
        for _ in 0..20 {
            rig.wait(Duration::from_secs(5));
            serve_media(&mut rig, &mut open, true);
        }
        assert!(open.is_empty(), "seed {seed}: legs stay open");
        let left = (rig.calls.calls.len(), rig.calls.by_dialog.len(), rig.calls.by_invite.len());
        assert_eq!((left, rig.calls.timers.len()), ((0, 0, 0), 0), "seed {seed}");
        rig.wait(Duration::from_secs(400));
        assert_eq!((rig.calls.by_client.len(), rig.calls.layer.len()), (0, 0), "seed {seed}");
    }
}

/// Goal: the limits on calls refuse with 503, Retry-After and the rule; a gateway's calls are counted
/// while they last. Method: two gateways on one address each; limits of one call.
#[test]
fn limits_refuse_and_a_gateways_calls_are_counted() {
    for (rule, change) in [
        ("calls_max", (|c| c.calls.calls_max = 1) as fn(&mut Config)),
        ("gateway_calls_max", |c| c.gateway[0].calls_max = 1),
        ("source_calls", |c| c.limits.source_calls_burst = 1),
        ("calls_per_s", |c| c.calls.calls_per_s = 1),
    ] {
        let mut rig = Rig::with(1000, change);
        rig.sends_to("9196", "a", "INVITE", 1, OFFER);
        assert_eq!(rig.calls.of_gateway["pbx"], 1);
        rig.sends_to("9196", "b", "INVITE", 1, OFFER);
        let response = rig.last_response();
        let reason = response.headers.first(&Name::Reason).unwrap();
        assert_eq!((response.status, response.headers.contains(&Name::RetryAfter)), (503, true), "{rule}");
        assert!(reason.starts_with(format!("SIP;cause=503;text=\"{rule}: ").as_bytes()), "{reason:?}");
        assert_eq!(rig.calls.refusals.totals()[rule], 1);
        let leg = rig.opened();
        rig.sends_to("9196", "a", "ACK", 1, "");
        rig.sends_to("9196", "a", "BYE", 2, "");
        while let Some(order) = rig.order() {
            if matches!(order, Order::Close(_)) {
                rig.media(Event::Closed { leg, stats: Box::default() });
            }
        }
        assert_eq!(rig.calls.of_gateway["pbx"], 0, "{rule}");
    }
}

/// Goal: the worker judges like the front, knows a call by what its own hop says, and shows it.
/// Method: a pilot that is none; a claim with the secret and one without, from an address of nobody.
#[test]
fn the_worker_judges_by_the_call_s_own_origin() {
    let mut rig = Rig::with(1000, |config| {
        config.gateway = vec![gateway("far", "198.51.100.0/24")];
        config.router.handoff = crate::base::config::Handoff::Proxy;
    });
    let claim = |token: &str, gateway: &str| {
        format!(
            "X-Voxring-Hop: token={token};gateway={gateway};dial-plan=default;source=198.51.100.7:5061;transport=tls\r\n"
        )
    };
    let text = |name: &str, extra: &str| {
        format!(
            "INVITE sip:9196@192.0.2.1:5065 SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.7:33000;branch=z9hG4bK{name}\r\n\
             From: <sip:2000@192.0.2.7>;tag={name}\r\nTo: <sip:9196@192.0.2.1>\r\nCall-ID: {name}\r\nCSeq: 1 INVITE\r\n\
             Max-Forwards: 70\r\nContact: <sip:2000@192.0.2.7:33000;transport=tcp>\r\n{extra}\
             Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{OFFER}",
            OFFER.len()
        )
    };
    let says = |rig: &mut Rig, name: &str, extra: &str| {
        let message = Message::parse(Bytes::from(text(name, extra))).unwrap();
        rig.calls.handle_message(rig.now, Rig::flow(), message);
        rig.collect();
        rig.heard(name)
    };
    assert!(says(&mut rig, "a", "").is_empty());
    assert!(says(&mut rig, "b", &claim("00", "far")).is_empty());
    let token = "0123456789abcdef0123456789abcdef";
    assert_eq!(says(&mut rig, "c", &claim(token, "gone")), ["403 INVITE"]);
    assert_eq!(says(&mut rig, "d", &claim(token, "far")), ["100 INVITE", "180 INVITE"]);
    let entry = rig.calls.calls.values().next().unwrap().info(rig.now, Slot::A);
    assert_eq!((entry.gateway.as_str(), entry.security.as_str()), ("far", "tls"));
    assert_eq!(rig.calls.refusals.totals()["unknown_source"], 3);
}

/// A key of AES_CM_128_HMAC_SHA1_80, 30 bytes, or of AEAD_AES_256_GCM, 44 bytes, in an offer.
fn secure_offer(suite: &str, key_bytes: usize) -> String {
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, vec![7; key_bytes]);
    OFFER.replace("RTP/AVP", "RTP/SAVP") + &format!("a=crypto:1 {suite} inline:{key}\r\n")
}

/// Goal: a call that is up keeps the rules it began with; a new one has the new ones. Method: a reload
/// forbids the call's SRTP suite, its session interval and that media come from behind a NAT; the
/// call's re-INVITE wants what it began with, and so do new calls, then one what is allowed now.
#[test]
fn a_reload_is_for_new_calls() {
    use crate::base::config::{SrtpSuite, SrtpSuites};
    let before = secure_offer("AES_CM_128_HMAC_SHA1_80", 30);
    let after = secure_offer("AEAD_AES_256_GCM", 44);
    let mut rig = Rig::with(1000, |config| {
        config.srtp.sdes_over_plain = true;
        config.srtp.suites = SrtpSuites(vec![SrtpSuite::AesCm128HmacSha1_80]);
        config.rtp.nat = true;
    });
    let nat = |plan: &crate::media::order::MediaPlan| plan.nat.map(|address| address.to_string());
    rig.sends_to("9199", "up", "INVITE", 1, &before);
    let Some(Order::Open(leg, plan)) = rig.order() else { panic!("no leg is asked for") };
    assert_eq!(plan.media.as_ref().and_then(nat).as_deref(), Some("192.0.2.7"));
    rig.media(Event::Opened { leg, rtp_port: 20_000 });
    rig.sends_to("9199", "up", "ACK", 1, "");

    let mut config = rig.calls.config.clone();
    config.srtp.suites = SrtpSuites(vec![SrtpSuite::AeadAes256Gcm]);
    config.rtp.nat = false;
    config.sip.min_se_s = 900;
    rig.orders.push(Some(ToWorker::Config { config })).unwrap();
    rig.pump();

    let timed = |text: String| {
        text.replace("Max-Forwards", "Supported: timer\r\nSession-Expires: 600\r\nMax-Forwards")
    };
    rig.sends_text(timed(rig.text("9199", "up", "INVITE", 2, &before)));
    assert_eq!(rig.last_response().status, 200, "{:?}", rig.last_response());
    let update = std::iter::from_fn(|| rig.order()).find_map(|order| match order {
        Order::Update(id, plan) if id == leg => Some(plan),
        _ => None,
    });
    assert_eq!(update.as_deref().and_then(nat).as_deref(), Some("192.0.2.7"));

    rig.sends_to("9199", "new", "INVITE", 1, &before);
    assert_eq!(rig.last_response().status, 488);
    rig.sends_text(timed(rig.text("9199", "brief", "INVITE", 1, &after)));
    assert_eq!(rig.last_response().status, 422);
    rig.sends_to("9199", "newer", "INVITE", 1, &after);
    let Some(Order::Open(_, plan)) = rig.order() else { panic!("{:?}", rig.last_response()) };
    assert_eq!(plan.media.as_ref().and_then(nat), None);
}

/// Goal: a refusal inside a dialog says why in a Reason (RFC 3326) and counts by its rule, like one
/// outside. Method: a re-INVITE without a codec of ours, one while another is under way, a CSeq from
/// the past, and a request after the end.
#[test]
fn a_refusal_inside_a_dialog_has_its_rule() {
    let (mut rig, leg) = Rig::established("a");
    let refused = |rig: &mut Rig, method: &str, cseq, body: &str| {
        rig.sends("a", method, cseq, body);
        let response = rig.last_response();
        let reason = response.headers.first(&Name::Reason).map(|reason| reason.to_vec()).unwrap_or_default();
        (response.status, String::from_utf8(reason).unwrap())
    };
    let begins = |(status, reason): (u16, String), rule: &str| {
        assert!(reason.starts_with(&format!("SIP;cause={status};text=\"{rule}: ")), "{reason}");
        status
    };
    let opus = OFFER.replace("RTP/AVP 0", "RTP/AVP 96") + "a=rtpmap:96 opus/48000/2\r\n";
    assert_eq!(begins(refused(&mut rig, "INVITE", 2, &opus), "media_mismatch"), 488);
    rig.sends("a", "ACK", 2, "");
    rig.sends("a", "INVITE", 3, OFFER);
    assert_eq!(begins(refused(&mut rig, "INVITE", 4, OFFER), "invite_pending"), 500);
    assert_eq!(begins(refused(&mut rig, "OPTIONS", 1, ""), "cseq"), 500);
    rig.sends("a", "BYE", 5, "");
    assert_eq!(begins(refused(&mut rig, "OPTIONS", 6, ""), "no_dialog"), 481);
    let totals = rig.calls.refusals.totals().clone();
    assert_eq!(totals.values().sum::<u64>(), 4, "{totals:?}");
    while let Some(order) = rig.order() {
        if matches!(order, Order::Close(_)) {
            rig.media(Event::Closed { leg, stats: Box::default() });
        }
    }
}

/// Goal: where the worker itself connects by TLS because the caller's connection is gone, the
/// certificate must have the name of the call's gateway, wherever its Contact points; for nobody's
/// call that of the address's gateway, and the address itself where no name is known. Method: two
/// gateways on one address, one of them named by certificate; the call is the other's.
#[test]
fn whom_we_call_back_must_show_the_gateways_name() {
    let mut rig = Rig::with(1000, |config| {
        let named = |name: &str, certificate: &str| Gateway {
            certificate_name: certificate.into(),
            ..gateway(name, "192.0.2.0/24")
        };
        config.gateway = vec![named("pbx", "pbx.example.com"), named("sbc", "sbc.example.com")];
        config.gateway.push(gateway("bare", "198.51.100.7"));
        config.tls.certificate = "certificate.pem".into();
    });
    let by = |rig: &Rig, at: &str| rig.calls.tls_name(at.parse().unwrap());
    assert_eq!(by(&rig, "192.0.2.9:5061").as_deref(), Some("pbx.example.com"));
    assert_eq!(by(&rig, "198.51.100.7:5061"), None);
    assert_eq!(by(&rig, "203.0.113.1:5061"), None);

    let flow = SipFlow { transport: Transport::Tls, ..Rig::flow() };
    let names = PeerNames { dns_names: vec!["sbc.example.com".into()], ..PeerNames::default() };
    rig.calls.handle_secured(rig.now, flow, Some(Arc::new(names)));
    let text = rig.text("9199", "a", "INVITE", 1, OFFER);
    let contact = "<sip:2000@192.0.2.7:33000;transport=tcp>";
    assert!(text.contains(contact));
    let text = text.replace(contact, "<sip:2000@203.0.113.1:5061;transport=tls>").replace("/TCP ", "/TLS ");
    rig.calls.handle_message(rig.now, flow, Message::parse(Bytes::from(text)).unwrap());
    assert_eq!(rig.calls.of_gateway["sbc"], 1);
    assert_eq!(by(&rig, "203.0.113.1:5061"), None, "the call's own connection is up");
    rig.calls.handle_flow_closed(rig.now, flow.id);
    assert_eq!(by(&rig, "203.0.113.1:5061").as_deref(), Some("sbc.example.com"));
    assert_eq!(by(&rig, "192.0.2.9:5061").as_deref(), Some("pbx.example.com"));
}

/// Goal: nobody speaks in the clear in a call that came over TLS: an answer would carry keys, and the
/// speaker has shown no certificate. Method: ACK, re-INVITE and BYE over TCP from the caller's own
/// address with the right tags, then over TLS.
#[test]
fn a_call_over_tls_takes_nothing_in_the_clear() {
    let mut rig = Rig::new();
    let tls = SipFlow { id: FlowId(9), transport: Transport::Tls, ..Rig::flow() };
    let names = PeerNames { ip_addresses: vec!["192.0.2.7".parse().unwrap()], ..PeerNames::default() };
    rig.calls.handle_secured(rig.now, tls, Some(Arc::new(names)));
    rig.over = tls;
    let key = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm\r\n";
    let offer = OFFER.replace("RTP/AVP", "RTP/SAVP") + key;
    rig.sends("a", "INVITE", 1, &offer);
    rig.looked_up(false);
    let leg = rig.opened();
    assert_eq!(rig.heard("a"), ["100 INVITE", "180 INVITE", "200 INVITE"]);
    rig.over = Rig::flow();
    rig.sends("a", "ACK", 1, "");
    assert!(rig.order().is_none(), "the ACK counts for nothing");
    rig.over = tls;
    rig.sends("a", "ACK", 1, "");
    assert!(matches!(rig.order(), Some(Order::Play(..))));
    rig.over = Rig::flow();
    for (method, cseq, body) in [("INVITE", 2, offer.as_str()), ("BYE", 3, "")] {
        rig.sends("a", method, cseq, body);
        assert_eq!(rig.last_response().status, 403, "{method}");
        assert!(!rig.last_response().body.windows(7).any(|w| w == b"inline:"), "{method}");
    }
    assert_eq!(rig.calls.refusals.totals()["security_sip"], 2);
    rig.over = tls;
    rig.sends("a", "BYE", 4, "");
    assert_eq!(rig.last_response().status, 200);
    rig.closed(leg);
}
