//! Calls that go on to gateways: both legs on one shard, nothing of either left behind.

use super::*;
use crate::base::config::{GatewayNames, Route};

const ANSWER: &str = "v=0\r\no=b 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n\
    m=audio 50000 RTP/AVP 0\r\n";

/// A worker that sends 47xx on to these gateways, over TCP.
fn rig(gateways: &[&str]) -> Rig {
    rig_with(gateways, |_| {})
}

fn rig_with(gateways: &[&str], change: impl FnOnce(&mut Config)) -> Rig {
    Rig::with(1000, |config| {
        for name in gateways {
            let mut gateway = gateway(name, "192.0.2.9");
            gateway.call_uri.0 = Some("sip:192.0.2.9;transport=tcp".parse().unwrap());
            config.gateway.push(gateway);
        }
        config.route.push(Route {
            name: "out".into(),
            pattern: "47xx".parse().unwrap(),
            gateways: GatewayNames(gateways.iter().map(ToString::to_string).collect()),
            ..Route::default()
        });
        change(config);
    })
}

impl Rig {
    fn dials(&mut self, name: &str) {
        self.sends_to("4711", name, "INVITE", 1, OFFER);
    }

    /// The leg that the shard was asked to open.
    fn asked(&self) -> LegId {
        let asked = std::iter::from_fn(|| self.order()).find_map(|order| match order {
            Order::Open(leg, _) => Some(leg),
            _ => None,
        });
        asked.expect("a leg is asked for")
    }

    fn opens(&mut self) -> LegId {
        let leg = self.asked();
        self.media(Event::Opened { leg, rtp_port: 20_000 + 2 * u16::try_from(leg.0).unwrap() });
        leg
    }

    /// The latest request of a method that went to a gateway.
    fn to_callee(&self, method: Method) -> Request {
        let mut newest_first = self.sent.iter().rev();
        let request = newest_first.find_map(|message| match message {
            Message::Request(r) if r.method == method && r.uri.starts_with(b"sip:4711@192.0.2.9") => {
                Some(r.clone())
            }
            Message::Request(_) | Message::Response(_) => None,
        });
        request.unwrap_or_else(|| panic!("no {method}: {:?}", self.words()))
    }

    /// Everything sent, as words.
    fn words(&self) -> Vec<String> {
        let word = |message: &Message| match message {
            Message::Response(r) => format!("{} {}", r.status, r.cseq().unwrap().method),
            Message::Request(r) => format!("{} {}", r.method, String::from_utf8_lossy(&r.uri)),
        };
        self.sent.iter().map(word).collect()
    }

    fn callee_says(&mut self, invite: &Request, status: u16, body: &str) {
        let mut response = Response::for_request(invite, status, "Whatever");
        if status > 100 && invite.to().unwrap().tag().is_none() {
            response.headers.set(Name::To, format!("{};tag=callee", invite.to().unwrap()));
            response.headers.push(Name::Contact, "<sip:4711@192.0.2.9:5060;transport=tcp>");
        }
        response.body = Bytes::from(body.to_owned());
        self.calls.handle_message(self.now, Self::callee_flow(), Message::Response(response));
        self.collect();
    }

    fn callee_flow() -> SipFlow {
        SipFlow { id: FlowId(9), remote: "192.0.2.9:5060".parse().unwrap(), ..Self::flow() }
    }

    /// The callee's BYE in the dialog that `invite` began.
    fn callee_hangs_up(&mut self, invite: &Request, transport: Transport) {
        let (from, to) = (invite.to().unwrap(), invite.from().unwrap());
        let text = format!(
            "BYE sip:x@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.9;branch=z9hG4bKbye{}\r\n\
             From: {from};tag=callee\r\nTo: {to}\r\nCall-ID: {}\r\nCSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n",
            transport.name(),
            invite.call_id().unwrap()
        );
        let message = Message::parse(Bytes::from(text)).unwrap();
        let flow = SipFlow { transport, ..Self::callee_flow() };
        self.calls.handle_message(self.now, flow, message);
        self.collect();
    }

    /// A call that talks: its legs, and the INVITE of the callee's.
    fn anchored(&mut self, name: &str) -> (LegId, LegId, Request) {
        self.dials(name);
        let near = self.opens();
        let far = self.opens();
        let invite = self.to_callee(Method::Invite);
        self.callee_says(&invite, 200, ANSWER);
        self.sends_to("4711", name, "ACK", 1, "");
        (near, far, invite)
    }

    /// The shard closes what it was told to.
    fn closes_all(&mut self) -> Vec<LegId> {
        let mut closed = Vec::new();
        while let Some(order) = self.order() {
            if let Order::Close(leg) = order {
                closed.push(leg);
                self.media(Event::Closed { leg, stats: Box::default() });
            }
        }
        closed.sort();
        closed
    }

    fn assert_all_forgotten(&mut self) {
        let calls = &self.calls;
        assert_eq!((calls.owners.len(), calls.left.len(), calls.call_ids.len()), (0, 0, 0));
        assert!(calls.of_gateway.values().all(|count| *count == 0), "{:?}", calls.of_gateway);
        assert_eq!(calls.shards.as_ref().unwrap().status()[0].legs, 0);
        self.assert_forgotten();
    }
}

/// Goal: both legs are opened on one shard and joined there; the call counts once, and with both its
/// gateways; whoever ends it, nothing stays. Method: BYE of each side.
#[test]
fn a_call_that_goes_on_has_two_legs_and_counts_once() {
    for callee_ends in [false, true] {
        let mut rig = rig(&["carrier"]);
        rig.dials("a");
        assert_eq!(rig.heard("a"), ["100 INVITE"]);
        let near = rig.opens();
        let far = rig.opens();
        let invite = rig.to_callee(Method::Invite);
        assert_eq!(invite.uri, "sip:4711@192.0.2.9;transport=tcp");
        assert_eq!(invite.top_via().unwrap().port, Some(5065));
        rig.callee_says(&invite, 180, "");
        rig.callee_says(&invite, 200, ANSWER);
        assert_eq!(rig.heard("a"), ["100 INVITE", "180 INVITE", "200 INVITE"]);
        let orders: Vec<_> = std::iter::from_fn(|| rig.order()).collect();
        assert!(
            matches!(orders[..], [Order::Update(f, _), Order::Bridge(a, b), Order::Update(n, _)]
                if (f, a, b, n) == (far, near, far, near)),
            "{orders:?}"
        );
        rig.sends_to("4711", "a", "ACK", 1, "");
        assert_eq!(rig.calls.calls.len(), 1);
        assert_eq!((rig.calls.of_gateway["pbx"], rig.calls.of_gateway["carrier"]), (1, 1));
        if callee_ends {
            rig.callee_hangs_up(&invite, Transport::Tcp);
            assert_eq!(rig.heard("a").last().unwrap(), "BYE");
            rig.answers(200);
        } else {
            rig.sends_to("4711", "a", "BYE", 2, "");
            let bye = rig.to_callee(Method::Bye);
            rig.callee_says(&bye, 200, "");
        }
        assert_eq!(rig.closes_all(), [near, far]);
        let cause = if callee_ends { "calls_ended_callee_hung_up" } else { "calls_ended_caller_hung_up" };
        assert_eq!(rig.calls.ended[cause], 1);
        rig.assert_all_forgotten();
    }
}

/// Goal: a gateway that says nothing is left behind with its leg, and its late 200 gets ACK and BYE though
/// the call talks to another, or is over. Method: two gateways, the first one answers at last.
#[test]
fn a_late_answer_of_a_gateway_left_behind_is_turned_away() {
    for is_over in [false, true] {
        let mut rig = rig(&["silent", "carrier"]);
        rig.dials("a");
        let near = rig.opens();
        let first = rig.opens();
        let late = rig.to_callee(Method::Invite);
        rig.wait(ms(4100));
        assert!(matches!(rig.order(), Some(Order::Close(leg)) if leg == first));
        let second = rig.opens();
        assert_eq!((rig.calls.of_gateway["silent"], rig.calls.of_gateway["carrier"]), (1, 1));
        rig.media(Event::Closed { leg: first, stats: Box::default() });
        let invite = rig.to_callee(Method::Invite);
        assert_ne!(invite.call_id(), late.call_id());
        rig.callee_says(&invite, 200, ANSWER);
        rig.sends_to("4711", "a", "ACK", 1, "");
        if is_over {
            rig.sends_to("4711", "a", "BYE", 2, "");
            let bye = rig.to_callee(Method::Bye);
            rig.callee_says(&bye, 200, "");
            assert_eq!(rig.closes_all(), [near, second]);
            assert_eq!(rig.calls.calls.len(), 0);
        }
        let before = rig.sent.len();
        rig.callee_says(&late, 200, ANSWER);
        let words = &rig.words()[before..];
        assert!(words[0].starts_with("ACK ") && words[1].starts_with("BYE "), "{words:?}");
        assert_eq!(rig.calls.of_gateway["silent"], 0);
        let bye = rig.to_callee(Method::Bye);
        rig.callee_says(&bye, 200, "");
        if !is_over {
            rig.callee_hangs_up(&invite, Transport::Tcp);
            rig.answers(200);
            rig.closes_all();
        }
        rig.assert_all_forgotten();
    }
}

/// Goal: a full gateway, one that is switched off and one without a listener for it are passed over; with
/// none left it is 503 with Retry-After. Method: calls_max of 1, status, a URI over UDP.
#[test]
fn gateways_that_cannot_be_called_are_passed_over() {
    let mut rig = rig_with(&["full", "off", "udp", "carrier"], |config| {
        config.gateway[1].calls_max = 1;
        config.gateway[2].status = crate::base::config::GatewayStatus::NoNewCalls;
        config.gateway[3].call_uri.0 = Some("sip:192.0.2.9".parse().unwrap());
        config.gateway[4].calls_max = 1;
    });
    rig.anchored("a");
    assert_eq!(rig.calls.of_gateway["full"], 1);
    rig.anchored("b");
    assert_eq!(rig.calls.of_gateway["carrier"], 1);
    rig.dials("c");
    rig.opens();
    assert_eq!(rig.heard("c"), ["100 INVITE", "503 INVITE"]);
    assert!(rig.last_response().headers.contains(&Name::RetryAfter));
    assert_eq!(rig.calls.refusals.totals()["no_gateway"], 1);
}

/// Goal: a call that has come round is refused before it takes anything: by its hops 483, by our own
/// Call-ID 482. Method: Max-Forwards 0; the callee's INVITE as a caller's.
#[test]
fn a_call_that_comes_round_is_refused() {
    let mut rig = rig(&["carrier"]);
    let text = rig.text("4711", "a", "INVITE", 1, OFFER).replace("Max-Forwards: 70", "Max-Forwards: 0");
    rig.sends_text(text);
    assert_eq!(rig.heard("a"), ["483 INVITE"]);
    let (.., invite) = rig.anchored("b");
    let own = invite.call_id().unwrap().to_owned();
    let text = rig.text("4711", "c", "INVITE", 1, OFFER).replace("Call-ID: c", &format!("Call-ID: {own}"));
    rig.sends_text(text);
    assert_eq!(rig.last_response().status, 482);
    assert_eq!(rig.calls.calls.len(), 1);
}

/// Goal: a callee's leg that cannot be opened is 503, one that its shard never closes goes 10 s later, and
/// one whose shard never opens it is given up after 5 s. Method: OpenFailed; no Closed; no Opened.
#[test]
fn a_callees_leg_that_fails_leaves_nothing_behind() {
    let mut failing = rig(&["carrier"]);
    failing.dials("a");
    failing.opens();
    let far = failing.asked();
    failing.media(Event::OpenFailed { leg: far, error: OpenError::NoPort });
    assert_eq!(failing.heard("a"), ["100 INVITE", "503 INVITE"]);
    failing.sends_to("4711", "a", "ACK", 1, "");
    failing.closes_all();
    failing.assert_all_forgotten();

    let mut unclosed = rig(&["carrier"]);
    let (near, far, _) = unclosed.anchored("a");
    unclosed.sends_to("4711", "a", "BYE", 2, "");
    let bye = unclosed.to_callee(Method::Bye);
    unclosed.callee_says(&bye, 200, "");
    unclosed.media(Event::Closed { leg: near, stats: Box::default() });
    assert_eq!(unclosed.calls.calls.len(), 1, "{far:?} has not closed");
    unclosed.wait(ms(10_100));
    assert_eq!(unclosed.calls.calls.len(), 0);

    let mut unopened = rig(&["carrier"]);
    unopened.dials("a");
    unopened.opens();
    unopened.asked();
    unopened.wait(ms(5_100));
    assert_eq!(unopened.heard("a"), ["100 INVITE", "503 INVITE"]);
    unopened.sends_to("4711", "a", "ACK", 1, "");
    unopened.closes_all();
    assert_eq!(unopened.calls.calls.len(), 0);
}

/// Goal: a stop ends both dialogs, and a call that still rings. Method: the supervisor's order with one of
/// each.
#[test]
fn a_stop_ends_both_dialogs() {
    let mut rig = rig(&["carrier"]);
    rig.anchored("a");
    rig.dials("b");
    rig.opens();
    rig.opens();
    let invite = rig.to_callee(Method::Invite);
    rig.callee_says(&invite, 180, "");
    rig.orders.push(Some(ToWorker::Stop)).unwrap();
    rig.pump();
    assert_eq!(rig.heard("a").last().unwrap(), "BYE");
    assert_eq!(rig.heard("b").last().unwrap(), "503 INVITE");
    rig.to_callee(Method::Bye);
    let cancel = rig.to_callee(Method::Cancel);
    rig.callee_says(&cancel, 200, "");
    rig.callee_says(&invite, 487, "");
    rig.sends_to("4711", "b", "ACK", 1, "");
    assert_eq!(rig.closes_all().len(), 4);
    rig.pump();
    assert!(rig.calls.is_finished());
}

/// Goal: `voxring calls` shows both sides of a call. Method: a query while it talks, each leg reported.
#[test]
fn the_supervisor_hears_of_both_sides() {
    let mut rig = rig(&["carrier"]);
    let (near, far, invite) = rig.anchored("a");
    while rig.order().is_some() {}
    rig.orders.push(Some(ToWorker::Calls { query: 7 })).unwrap();
    rig.pump();
    assert!(matches!(rig.order(), Some(Order::Report)));
    for (leg, packets) in [(far, 9), (near, 5)] {
        let stats = Box::new(LegStats { rx_packets: packets, ..LegStats::default() });
        rig.media(Event::Report { leg, stats });
    }
    rig.wait(ms(30));
    let calls = std::iter::from_fn(|| rig.reports.try_recv().ok()).find_map(|report| match report {
        FromWorker::Calls { calls, .. } => Some(calls),
        _ => None,
    });
    let call = calls.unwrap().pop().unwrap();
    assert_eq!((call.state.as_str(), call.mailbox.as_deref()), ("anchored", None));
    assert_eq!(call.stats.unwrap().rx_packets, 5);
    let callee = call.callee.unwrap();
    assert_eq!((callee.gateway.as_str(), callee.number.as_str(), callee.tries), ("carrier", "4711", 1));
    assert_eq!(callee.call_id, invite.call_id().unwrap());
    assert_eq!(callee.remote_media, Some("192.0.2.9:50000".parse().unwrap()));
    assert_eq!((callee.security.as_str(), callee.stats.unwrap().rx_packets), ("tcp", 9));
}

/// Goal: over TLS the called gateway's certificate must have the configured name, or the address that is
/// called, and SRTP is offered. Method: both, asked while the call is set up.
#[test]
fn a_called_gateway_must_show_its_certificate() {
    let uri = "sip:192.0.2.9;transport=tls";
    for (configured, expected) in [("", None), ("cert.example", Some("cert.example"))] {
        let mut rig = rig_with(&["carrier"], |config| {
            config.gateway[1].call_uri.0 = Some(uri.parse().unwrap());
            config.gateway[1].certificate_name = configured.into();
        });
        let remote: SocketAddr = "192.0.2.9:5061".parse().unwrap();
        rig.dials("a");
        rig.opens();
        rig.opens();
        assert_eq!(rig.calls.tls_name(remote).as_deref(), expected);
        let invite = rig.sent.iter().find_map(|message| match message {
            Message::Request(request) => Some(String::from_utf8_lossy(&request.body).into_owned()),
            Message::Response(_) => None,
        });
        assert!(invite.unwrap().contains("RTP/SAVP"), "over TLS it is SRTP");
    }
}

/// Goal: what went to a gateway over TLS is spoken of over TLS only (RFC 4568 §7.1). Method: the callee's BYE
/// over TCP, then over TLS.
#[test]
fn a_callee_over_tls_is_heard_over_tls_only() {
    let mut rig = rig_with(&["carrier"], |config| {
        config.gateway[1].call_uri.0 = Some("sip:192.0.2.9;transport=tls".parse().unwrap());
    });
    rig.dials("a");
    rig.opens();
    rig.opens();
    let invite = rig.to_callee(Method::Invite);
    let offer = String::from_utf8(invite.body.to_vec()).unwrap();
    let crypto = offer.lines().find(|line| line.starts_with("a=crypto:1 ")).expect("a key");
    let answer = ANSWER.replace("RTP/AVP", "RTP/SAVP") + crypto + "\r\n";
    rig.callee_says(&invite, 200, &answer);
    rig.sends_to("4711", "a", "ACK", 1, "");
    assert_eq!(rig.heard("a").last().unwrap(), "200 INVITE");
    rig.callee_hangs_up(&invite, Transport::Tcp);
    assert_eq!(rig.last_response().status, 403);
    rig.callee_hangs_up(&invite, Transport::Tls);
    assert_eq!(rig.heard("a").last().unwrap(), "BYE");
}

/// Goal: an anchored call goes on in the next worker with both legs in one bridge; a callee that still
/// rang is told to stop, in the transaction it knows. Method: a call that was picked up and one that was
/// not, each written down by one worker and read by the next.
#[test]
fn anchored_calls_go_on_in_the_next_worker_and_ringing_ends() {
    let ledger = outlast::ledger();
    let (mut dead, mut next) = (rig(&["carrier"]), rig(&["carrier"]));
    dead.writes_to(&ledger);
    dead.dials("a");
    let (caller, callee) = (dead.opens(), dead.opens());
    let invite = dead.to_callee(Method::Invite);
    dead.callee_says(&invite, 200, ANSWER);
    dead.sends_to("4711", "a", "ACK", 1, "");
    dead.pump();
    for (leg, port) in [(caller, 20_000), (callee, 20_002)] {
        outlast::note(&ledger, dead.now, port, leg);
    }
    let heritage = next.writes_to(&ledger);
    assert_eq!(heritage.ports(), [20_000, 20_002].into());
    next.follows(dead, heritage);
    let Some(Order::Adopt(_, adoption)) = next.order() else { panic!("no leg is adopted") };
    let (_, far) = adoption.peer.expect("its callee's leg");
    assert_eq!((adoption.rtp_port, far.rtp_port), (20_000, 20_002));
    assert_eq!(far.plan.media.unwrap().remote_rtp, Some("192.0.2.9:50000".parse().unwrap()));
    next.callee_hangs_up(&invite, Transport::Tcp);
    assert_eq!(next.heard("a").last().unwrap(), "BYE", "the caller is told");

    let ledger = outlast::ledger();
    let (mut dead, mut next) = (rig(&["carrier"]), rig(&["carrier"]));
    dead.writes_to(&ledger);
    dead.dials("b");
    dead.opens();
    dead.opens();
    let invite = dead.to_callee(Method::Invite);
    dead.callee_says(&invite, 180, "");
    dead.pump();
    let heritage = next.writes_to(&ledger);
    next.follows(dead, heritage);
    next.collect();
    let cancel = next.to_callee(Method::Cancel);
    assert_eq!(cancel.top_via().unwrap().branch(), invite.top_via().unwrap().branch());
    assert_eq!(next.heard("b"), ["100 INVITE", "180 INVITE"], "its connection is gone, and says it all");
    assert!(ledger.records().is_empty());
}
