use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::sip::dialog::DialogId;
use crate::sip::flow::Transport;
use crate::sip::message::Method;

const US: &str = "192.0.2.1:5060";
const PEER: &str = "192.0.2.7:5060";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn flow(transport: Transport) -> Flow {
    Flow { id: FlowId(7), listener: 0, transport, local: address(US), remote: address(PEER) }
}

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn layer() -> (Instant, Layer) {
    let config = Config { server: "voxring".into(), server_transactions_max: 3, ..Config::default() };
    (crate::base::clock::now(), Layer::new(config, 1))
}

/// A request of the peer's; `method` also names the CSeq method, `extra` are whole header lines.
fn request(method: &str, branch: &str, extra: &str) -> Request {
    let text = format!(
        "{method} sip:1001@192.0.2.1 SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.0.2.7:5060;branch={branch}\r\n\
         From: <sip:alice@192.0.2.7>;tag=alice\r\n\
         To: <sip:1001@192.0.2.1>\r\n\
         Call-ID: call-1\r\n\
         CSeq: 1 {method}\r\n\
         Contact: <sip:alice@192.0.2.7>\r\n{extra}\r\n"
    );
    parse_request(text)
}

fn parse_request(text: String) -> Request {
    match Message::parse(Bytes::from(text)).unwrap() {
        Message::Request(request) => request,
        Message::Response(_) => panic!("a request"),
    }
}

/// What the layer sent, parsed.
fn sent(layer: &mut Layer) -> Vec<Message> {
    std::iter::from_fn(|| layer.poll_transmit()).map(|t| Message::parse(t.bytes).unwrap()).collect()
}

fn statuses(layer: &mut Layer) -> Vec<u16> {
    let status = |message| match message {
        Message::Response(response) => response.status,
        Message::Request(request) => panic!("sent {}", request.method),
    };
    sent(layer).into_iter().map(status).collect()
}

fn methods(layer: &mut Layer) -> Vec<Method> {
    let method = |message| match message {
        Message::Request(request) => request.method,
        Message::Response(response) => panic!("sent {}", response.status),
    };
    sent(layer).into_iter().map(method).collect()
}

fn events(layer: &mut Layer) -> Vec<TuEvent> {
    std::iter::from_fn(|| layer.poll_event()).collect()
}

/// Hands a request in and gives its transaction.
fn receive(layer: &mut Layer, now: Instant, transport: Transport, request: Request) -> ServerId {
    layer.handle_message(now, flow(transport), Message::Request(request));
    match events(layer).as_slice() {
        [TuEvent::Request { id, .. }] => *id,
        other => panic!("expected one request, not {other:?}"),
    }
}

fn answer(status: u16, request: &Request) -> Response {
    Response::for_request(request, status, "Test")
}

/// Runs all timers until none is left, and gives the events of that time.
fn run_dry(layer: &mut Layer) -> Vec<TuEvent> {
    while let Some(at) = layer.poll_timeout() {
        layer.handle_timeout(at);
    }
    assert_eq!(layer.len(), 0);
    assert!(layer.server_keys.is_empty() && layer.client_keys.is_empty());
    assert!(layer.ack_keys.is_empty() && layer.merge_keys.is_empty() && layer.flows.is_empty());
    events(layer)
}

/// Goal: a copy of an INVITE is answered again and never reaches the user twice (RFC 3261
/// §17.2.1). Method: the same INVITE three times over UDP.
#[test]
fn invite_copies_get_the_last_response_again() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    assert!(layer.respond(now, id, answer(180, &invite)));
    assert_eq!(statuses(&mut layer), [180]);
    for _ in 0..2 {
        layer.handle_message(now, flow(Transport::Udp), Message::Request(invite.clone()));
    }
    assert_eq!(statuses(&mut layer), [180, 180]);
    assert_eq!(events(&mut layer), []);
    assert_eq!(layer.counters().retransmissions_received, 2);
}

/// Goal: 100 after 200 ms of a silent user (RFC 3261 §17.2.1), without To tag, 500 and an event
/// when it forgets the call. Method: never answer.
#[test]
fn a_forgotten_invite_gets_100_then_500() {
    let (now, mut layer) = layer();
    let id = receive(&mut layer, now, Transport::Tcp, request("INVITE", "z9hG4bKa", ""));
    layer.handle_timeout(now + ms(200));
    let trying = sent(&mut layer);
    assert_eq!(trying.len(), 1);
    assert!(!String::from_utf8_lossy(trying[0].headers().first(&Name::To).unwrap()).contains("tag="));
    assert_eq!(run_dry(&mut layer), [TuEvent::ServerTimeout { id }]);
    assert_eq!(statuses(&mut layer), [500]);
}

/// Goal: 200 goes out again until its ACK, which has another branch (RFC 3261 §13.3.1.4), over
/// TCP too; the ACK reaches the user; then Timer L buries the transaction. Method: no ACK for two
/// resends, then one.
#[test]
fn a_200_is_resent_until_its_ack() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (now, mut layer) = layer();
        let invite = request("INVITE", "z9hG4bKa", "");
        let id = receive(&mut layer, now, transport, invite.clone());
        let tag = layer.local_tag(id).unwrap().to_owned();
        layer.respond(now, id, answer(200, &invite));
        layer.handle_timeout(now + ms(500));
        layer.handle_timeout(now + ms(1500));
        assert_eq!(statuses(&mut layer), [200, 200, 200]);
        let mut ack = request("ACK", "z9hG4bKb", "");
        ack.headers.set(Name::To, format!("<sip:1001@192.0.2.1>;tag={tag}"));
        layer.handle_message(now + ms(1600), flow(transport), Message::Request(ack));
        assert!(matches!(events(&mut layer).as_slice(), [TuEvent::Ack { .. }]));
        assert_eq!(run_dry(&mut layer), []);
        assert_eq!(statuses(&mut layer), [] as [u16; 0]);
    }
}

/// Goal: a 200 never acknowledged is reported so that the call can be ended (RFC 3261
/// §13.3.1.4). Method: no ACK at all: 1 + 10 copies, then the event.
#[test]
fn a_200_without_ack_is_reported_after_64_t1() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    layer.respond(now, id, answer(200, &invite));
    assert_eq!(run_dry(&mut layer), [TuEvent::ServerTimeout { id }]);
    assert_eq!(statuses(&mut layer).len(), 11);
}

/// Goal: CANCEL gets 200, the user answers 487, its ACK is absorbed, and the To tags of 200 and
/// 487 agree (RFC 3261 §9.2). Method: the whole exchange over UDP.
#[test]
fn a_cancelled_invite_ends_with_487() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    layer.handle_message(now, flow(Transport::Udp), Message::Request(request("CANCEL", "z9hG4bKa", "")));
    assert_eq!(events(&mut layer), [TuEvent::Cancelled { id }]);
    layer.respond(now, id, answer(487, &invite));
    let out = sent(&mut layer);
    let [Message::Response(ok), Message::Response(terminated)] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!((ok.status, terminated.status), (200, 487));
    assert_eq!(ok.cseq().unwrap().method, Method::Cancel);
    assert_eq!(ok.to().unwrap().tag(), terminated.to().unwrap().tag());
    assert!(ok.to().unwrap().tag().is_some());
    layer.handle_message(now, flow(Transport::Udp), Message::Request(request("ACK", "z9hG4bKa", "")));
    assert_eq!(run_dry(&mut layer), []);
    assert_eq!(statuses(&mut layer), [] as [u16; 0]);
}

/// Goal: a copy of a CANCEL tells the user nothing new, over TCP either, where its transaction
/// is gone at once. Method: CANCEL twice.
#[test]
fn a_second_cancel_is_answered_but_not_reported() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (now, mut layer) = layer();
        receive(&mut layer, now, transport, request("INVITE", "z9hG4bKa", ""));
        for _ in 0..2 {
            layer.handle_message(now, flow(transport), Message::Request(request("CANCEL", "z9hG4bKa", "")));
        }
        assert_eq!(events(&mut layer).len(), 1);
        assert_eq!(statuses(&mut layer), [200, 200]);
    }
}

/// Goal: a CANCEL after the final response changes nothing but is answered 200; one that matches
/// nothing gets 481 (RFC 3261 §9.2). Method: both.
#[test]
fn a_late_cancel_gets_200_and_a_stray_one_481() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    layer.respond(now, id, answer(200, &invite));
    layer.handle_message(now, flow(Transport::Udp), Message::Request(request("CANCEL", "z9hG4bKa", "")));
    layer.handle_message(now, flow(Transport::Udp), Message::Request(request("CANCEL", "z9hG4bKx", "")));
    assert_eq!(events(&mut layer), []);
    assert_eq!(statuses(&mut layer), [200, 200, 481]);
}

/// Goal: the same request by two paths is answered 482 (RFC 3261 §8.2.2.2), but not when the
/// first was refused, when it came to another listener, or inside a dialog. Method: one each.
#[test]
fn a_merged_request_gets_482() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    let other_path = || Message::Request(request("INVITE", "z9hG4bKb", ""));
    layer.handle_message(now, flow(Transport::Udp), other_path());
    assert_eq!(statuses(&mut layer), [482]);
    assert_eq!(events(&mut layer), []);
    let elsewhere = Flow { listener: 1, ..flow(Transport::Udp) };
    layer.handle_message(now, elsewhere, other_path());
    assert_eq!(events(&mut layer).len(), 1);
    layer.respond(now, id, answer(302, &invite));
    receive(&mut layer, now, Transport::Udp, request("INVITE", "z9hG4bKc", ""));
}

/// Refuses what the layer has no room for; why, and the response.
fn refused(layer: &mut Layer, now: Instant, request: Request) -> (NoRoom, Response) {
    layer.handle_message(now, flow(Transport::Tcp), Message::Request(request));
    let heard = events(layer);
    let [TuEvent::NoRoom { flow, request, why }] = heard.as_slice() else { panic!("{heard:?}") };
    layer.respond_stateless(flow, request, Response::for_request(request, 503, "Busy"));
    let mut sent = sent(layer);
    match (sent.pop(), sent.as_slice()) {
        (Some(Message::Response(response)), []) => (*why, response),
        other => panic!("{other:?}"),
    }
}

fn invite_of(call_id: &str) -> Request {
    let mut invite = request("INVITE", &format!("z9hG4bK{call_id}"), "");
    invite.headers.set(Name::CallId, call_id.to_owned());
    invite
}

/// Goal: a request beyond the limit is handed up to be refused and leaves no state; its copy gets the
/// same To tag (RFC 3261 §8.2.7); requests of dialogs still get through. Method: three transactions fill
/// this layer.
#[test]
fn beyond_its_transactions_a_request_is_refused_without_state() {
    let (now, mut layer) = layer();
    for index in 0..3 {
        let mut options = request("OPTIONS", &format!("z9hG4bK{index}"), "");
        options.headers.set(Name::CallId, format!("call-{index}"));
        receive(&mut layer, now, Transport::Tcp, options);
    }
    let (why, refusal) = refused(&mut layer, now, invite_of("late"));
    assert_eq!((why, refusal.status), (NoRoom::Transactions, 503));
    assert!(refusal.to().unwrap().tag().is_some());
    let (_, again) = refused(&mut layer, now, invite_of("late"));
    assert_eq!(again, refusal);
    assert_eq!((layer.len(), layer.counters().overload), (3, 2));
    let mut bye = request("BYE", "z9hG4bKbye", "");
    bye.headers.set(Name::To, "<sip:1001@192.0.2.1>;tag=ours");
    receive(&mut layer, now, Transport::Tcp, bye);
}

/// Goal: a share of the new INVITEs is taken, evenly spread; copies of those, requests of dialogs and
/// other requests outside dialogs are not counted. Method: 300 per mille of ten calls, then all.
#[test]
fn a_share_of_the_new_calls_is_taken() {
    let config = Config { server_transactions_max: 100, ..Config::default() };
    let (now, mut layer) = (crate::base::clock::now(), Layer::new(config, 1));
    layer.take_share(300);
    let mut taken = Vec::new();
    for index in 0..10 {
        let invite = invite_of(&format!("call-{index}"));
        layer.handle_message(now, flow(Transport::Udp), Message::Request(invite));
        let heard = events(&mut layer);
        if matches!(heard.as_slice(), [TuEvent::Request { .. }]) {
            taken.push(index);
        } else {
            assert!(matches!(heard.as_slice(), [TuEvent::NoRoom { why: NoRoom::Share, .. }]), "{heard:?}");
        }
    }
    assert_eq!(taken, [3, 6, 9]);
    layer.handle_message(now, flow(Transport::Udp), Message::Request(invite_of("call-3")));
    assert_eq!(events(&mut layer), [], "a copy of one that was taken");
    receive(&mut layer, now, Transport::Udp, request("OPTIONS", "z9hG4bKo", ""));
    layer.take_share(1000);
    receive(&mut layer, now, Transport::Udp, invite_of("call-10"));
    assert_eq!((layer.counters().invites, layer.counters().overload), (11, 7));
}

/// Goal: a flood of requests as large as they may be cannot fill the memory. Method: Via of 30 kB
/// against a limit of 200 kB, which one keeps half of.
#[test]
fn large_requests_are_limited_by_their_bytes() {
    let config = Config { server_bytes_max: 200_000, ..Config::default() };
    let (now, mut layer) = (crate::base::clock::now(), Layer::new(config, 1));
    for index in 0..5 {
        let mut options = request("OPTIONS", "z9hG4bKa", "");
        let via = format!("SIP/2.0/UDP gw.example;branch=z9hG4bK{index};x={}", "y".repeat(30_000));
        options.headers.set(Name::Via, via);
        options.headers.set(Name::CallId, format!("call-{index}"));
        layer.handle_message(now, flow(Transport::Udp), Message::Request(options));
    }
    assert_eq!(layer.len(), 3);
    let refused = events(&mut layer);
    let for_bytes = |e: &&TuEvent| matches!(e, TuEvent::NoRoom { why: NoRoom::Bytes, .. });
    assert_eq!(refused.iter().filter(for_bytes).count(), 2);
    while let Some(at) = layer.poll_timeout() {
        layer.handle_timeout(at);
    }
    assert_eq!(layer.server_bytes, 0);
}

/// Goal: `received` and `rport` say where a request came from and responses go there (RFC 3261
/// §18.2.1, RFC 3581 §4). Method: Via of a peer behind a NAT, with and without rport.
#[test]
fn responses_over_udp_go_to_received_and_rport() {
    let source = Flow { remote: address("198.51.100.9:40000"), ..flow(Transport::Udp) };
    for (rport, expected) in [(";rport", "198.51.100.9:40000"), ("", "198.51.100.9:5062")] {
        let (now, mut layer) = layer();
        let mut options = request("OPTIONS", "z9hG4bKa", "");
        let via = format!("SIP/2.0/UDP 10.0.0.1:5062{rport};branch=z9hG4bKa");
        options.headers.set(Name::Via, via);
        layer.handle_message(now, source, Message::Request(options));
        let events = events(&mut layer);
        let [TuEvent::Request { id, request, .. }] = events.as_slice() else { panic!("{events:?}") };
        let via = request.top_via().unwrap();
        assert_eq!(via.received(), Some(source.remote.ip()));
        assert_eq!(via.rport(), (!rport.is_empty()).then_some(40_000));
        layer.respond(now, *id, answer(200, request));
        let transmit = layer.poll_transmit().unwrap();
        let expected = Flow { remote: address(expected), ..source };
        assert_eq!(transmit.destination, Destination::Flow(expected));
    }
}

/// Goal: noting the source leaves the other hops of a comma list alone. Method: two hops in one
/// field.
#[test]
fn only_the_top_via_is_changed() {
    let (now, mut layer) = layer();
    let mut options = request("OPTIONS", "z9hG4bKa", "");
    let list = "SIP/2.0/UDP gw.example;branch=z9hG4bKa, SIP/2.0/TCP 10.1.1.1;branch=z9hG4bKb";
    options.headers.set(Name::Via, list);
    layer.handle_message(now, flow(Transport::Udp), Message::Request(options));
    let events = events(&mut layer);
    let [TuEvent::Request { request, .. }] = events.as_slice() else { panic!("{events:?}") };
    let vias: Vec<Bytes> = request.headers.values(&Name::Via).collect();
    assert_eq!(
        vias,
        ["SIP/2.0/UDP gw.example;branch=z9hG4bKa;received=192.0.2.7", "SIP/2.0/TCP 10.1.1.1;branch=z9hG4bKb"]
    );
}

/// Goal: over TCP responses use the connection; when it is gone, a new one to the source's
/// address and the Via's port (RFC 3261 §18.2.2). Method: close the flow before the answer.
#[test]
fn a_response_after_its_connection_closed_goes_to_the_via_port() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Tcp, invite.clone());
    layer.respond(now, id, answer(180, &invite));
    assert_eq!(layer.poll_transmit().unwrap().destination, Destination::Flow(flow(Transport::Tcp)));
    layer.handle_flow_closed(FlowId(7));
    assert_eq!(events(&mut layer), [TuEvent::ServerTransportError { id }]);
    layer.respond(now, id, answer(486, &invite));
    let expected = Destination::Address { transport: Transport::Tcp, remote: address(PEER), listener: 0 };
    assert_eq!(layer.poll_transmit().unwrap().destination, expected);
    run_dry(&mut layer);
}

/// Goal: RFC 2543 elements have no branch; INVITE copies, ACK and CANCEL still match (RFC 3261
/// §17.2.3). Method: the exchange without branch.
#[test]
fn requests_without_branch_are_matched_by_everything_else() {
    let (now, mut layer) = layer();
    let old = |method: &str| {
        let mut request = request(method, "x", "");
        request.headers.set(Name::Via, "SIP/2.0/UDP 192.0.2.7:5060");
        request
    };
    let invite = old("INVITE");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    layer.handle_message(now, flow(Transport::Udp), Message::Request(old("INVITE")));
    layer.handle_message(now, flow(Transport::Udp), Message::Request(old("CANCEL")));
    assert_eq!(events(&mut layer), [TuEvent::Cancelled { id }]);
    let tag = layer.local_tag(id).unwrap().to_owned();
    layer.respond(now, id, answer(487, &invite));
    let mut ack = old("ACK");
    ack.headers.set(Name::To, format!("<sip:1001@192.0.2.1>;tag={tag}"));
    layer.handle_message(now, flow(Transport::Udp), Message::Request(ack));
    assert_eq!(statuses(&mut layer), [200, 487]);
    assert_eq!(run_dry(&mut layer), []);
}

/// Goal: an ACK that belongs to nothing reaches the user, who may be a proxy. Method: ACK alone.
#[test]
fn a_stray_ack_reaches_the_user_and_leaves_no_state() {
    let (now, mut layer) = layer();
    layer.handle_message(now, flow(Transport::Udp), Message::Request(request("ACK", "z9hG4bKa", "")));
    assert!(matches!(events(&mut layer).as_slice(), [TuEvent::Ack { .. }]));
    assert_eq!(layer.len(), 0);
}

/// Goal: an answer to a transaction that is over is refused, not sent. Method: respond twice
/// over TCP.
#[test]
fn respond_tells_when_nothing_was_sent() {
    let (now, mut layer) = layer();
    let options = request("OPTIONS", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Tcp, options.clone());
    assert!(layer.respond(now, id, answer(200, &options)));
    assert!(!layer.respond(now, id, answer(200, &options)));
    assert_eq!(statuses(&mut layer), [200]);
}

/// An INVITE of ours on its way.
fn call(layer: &mut Layer, now: Instant, transport: Transport) -> (ClientId, Request) {
    let mut invite = Request::new(Method::Invite, "sip:bob@192.0.2.7");
    invite.headers.push(Name::From, "<sip:us@192.0.2.1>;tag=us");
    invite.headers.push(Name::To, "<sip:bob@192.0.2.7>");
    invite.headers.push(Name::CallId, "call-2");
    invite.headers.push(Name::CSeq, "1 INVITE");
    invite.headers.push(Name::Route, "<sip:192.0.2.7;lr>");
    invite.body = Bytes::from_static(b"v=0\r\n");
    let id = layer.request(now, Destination::Flow(flow(transport)), invite, address(US));
    let out = sent(layer);
    let [Message::Request(invite)] = out.as_slice() else { panic!("{out:?}") };
    (id, invite.clone())
}

/// The peer's response to a request of ours.
fn peer_answers(layer: &mut Layer, now: Instant, status: u16, request: &Request, tag: &str) {
    let mut response = answer(status, request);
    let to = format!("<sip:bob@192.0.2.7>;tag={tag}");
    response.headers.set(Name::To, to);
    layer.handle_message(now, flow(Transport::Udp), Message::Response(response));
}

/// Goal: a request of ours gets Via with branch, rport over UDP only, Max-Forwards and our name
/// (RFC 3261 §8.1.1, RFC 3581 §3). Method: look at what was sent.
#[test]
fn our_requests_carry_via_and_max_forwards() {
    for (transport, name, rport) in [(Transport::Udp, "UDP", true), (Transport::Tcp, "TCP", false)] {
        let (now, mut layer) = layer();
        let (_, invite) = call(&mut layer, now, transport);
        let via = invite.top_via().unwrap();
        assert_eq!(via.transport, name);
        assert!(via.branch().unwrap().starts_with("z9hG4bK"));
        assert_eq!(via.has_rport(), rport);
        assert_eq!(via.port, Some(5060));
        assert_eq!(invite.headers.first(&Name::MaxForwards).unwrap(), "70");
        assert_eq!(invite.headers.first(&Name::UserAgent).unwrap(), "voxring");
    }
}

/// Goal: the ACK of a refusal has the INVITE's Request-URI, Via, Route, From, Call-ID and CSeq
/// number and the response's To (RFC 3261 §17.1.1.3), and no body. Method: 486 twice.
#[test]
fn a_refusal_is_acknowledged_by_the_layer() {
    let (now, mut layer) = layer();
    let (id, invite) = call(&mut layer, now, Transport::Udp);
    for _ in 0..2 {
        peer_answers(&mut layer, now, 486, &invite, "bob");
    }
    assert!(matches!(events(&mut layer).as_slice(), [TuEvent::Response { id: of, .. }] if *of == id));
    let acks = sent(&mut layer);
    assert_eq!(acks.len(), 2);
    assert_eq!(acks[0], acks[1]);
    let [Message::Request(ack), _] = acks.as_slice() else { panic!("{acks:?}") };
    assert_eq!((&ack.method, &ack.uri), (&Method::Ack, &invite.uri));
    for name in [Name::Via, Name::Route, Name::From, Name::CallId] {
        assert!(ack.headers.all(&name).eq(invite.headers.all(&name)), "{name}");
    }
    assert_eq!(ack.headers.first(&Name::CSeq).unwrap(), "1 ACK");
    assert_eq!(ack.to().unwrap().tag(), Some("bob"));
    assert!(ack.body.is_empty());
    assert_eq!(run_dry(&mut layer), []);
}

/// Goal: the user's ACK of a 2xx is repeated for each copy of it, which the user does not see;
/// the 2xx of another fork it does see (RFC 3261 §13.2.2.4). Method: two forks.
#[test]
fn copies_of_a_200_get_the_ack_again() {
    let (now, mut layer) = layer();
    let (id, invite) = call(&mut layer, now, Transport::Udp);
    peer_answers(&mut layer, now, 200, &invite, "bob");
    assert_eq!(events(&mut layer).len(), 1);
    let mut ack = Request::new(Method::Ack, "sip:bob@192.0.2.7");
    for (name, value) in
        [(Name::From, "<sip:us@x>;tag=us"), (Name::To, "<sip:bob@x>;tag=bob"), (Name::CallId, "call-2")]
    {
        ack.headers.push(name, value);
    }
    ack.headers.push(Name::CSeq, "1 ACK");
    layer.ack(id, Destination::Flow(flow(Transport::Udp)), ack, address(US));
    peer_answers(&mut layer, now, 200, &invite, "bob");
    let acks = sent(&mut layer);
    assert_eq!(acks.len(), 2);
    assert_eq!(acks[0], acks[1]);
    assert_ne!(acks[0].headers().top_via().unwrap().branch(), invite.top_via().unwrap().branch());
    assert_eq!(events(&mut layer), []);
    peer_answers(&mut layer, now, 200, &invite, "fork");
    let fork = events(&mut layer);
    let [TuEvent::Response { response, .. }] = fork.as_slice() else { panic!("{fork:?}") };
    assert_eq!(DialogId::of_response(response).unwrap().remote_tag, "fork");
    assert_eq!(run_dry(&mut layer), []);
}

/// Goal: CANCEL waits for a provisional response, shares the INVITE's Via and Route, and its own
/// response stays unseen (RFC 3261 §9.1). Method: cancel at once, then 100, 200 (CANCEL), 487.
#[test]
fn our_cancel_follows_the_first_provisional_response() {
    let (now, mut layer) = layer();
    let (id, invite) = call(&mut layer, now, Transport::Udp);
    layer.cancel(now, id);
    assert_eq!(methods(&mut layer), []);
    peer_answers(&mut layer, now, 100, &invite, "bob");
    let out = sent(&mut layer);
    let [Message::Request(cancel)] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!((&cancel.method, &cancel.uri), (&Method::Cancel, &invite.uri));
    assert_eq!(cancel.headers.first(&Name::CSeq).unwrap(), "1 CANCEL");
    assert_eq!(cancel.headers.first(&Name::To), invite.headers.first(&Name::To));
    for name in [Name::Via, Name::Route] {
        assert!(cancel.headers.all(&name).eq(invite.headers.all(&name)), "{name}");
    }
    peer_answers(&mut layer, now, 200, cancel, "bob");
    peer_answers(&mut layer, now, 487, &invite, "bob");
    let heard = events(&mut layer);
    let [TuEvent::Response { response: trying, .. }, TuEvent::Response { response: end, .. }] =
        heard.as_slice()
    else {
        panic!("{heard:?}")
    };
    assert_eq!((trying.status, end.status), (100, 487));
    assert_eq!(methods(&mut layer), [Method::Ack]);
    assert_eq!(run_dry(&mut layer), []);
}

/// Goal: silence is reported once, after 64*T1, and leaves nothing. Method: no answer.
#[test]
fn an_unanswered_request_times_out() {
    let (now, mut layer) = layer();
    let (id, _) = call(&mut layer, now, Transport::Udp);
    assert_eq!(run_dry(&mut layer), [TuEvent::ClientTimeout { id }]);
    assert_eq!(methods(&mut layer), vec![Method::Invite; 6]);
    assert_eq!(layer.counters().retransmissions_sent, 6);
}

/// Goal: responses that are not to requests of ours are dropped (RFC 3261 §17.1.3, §18.1.2).
/// Method: another branch, another sent-by, another method.
#[test]
fn responses_to_nothing_of_ours_are_dropped() {
    let (now, mut layer) = layer();
    let (_, invite) = call(&mut layer, now, Transport::Udp);
    let via = String::from_utf8(invite.headers.first(&Name::Via).unwrap().to_vec()).unwrap();
    let changed = [
        (Name::Via, "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKguess".to_owned()),
        (Name::Via, via.replace("192.0.2.1", "192.0.2.2")),
        (Name::CSeq, "1 OPTIONS".to_owned()),
    ];
    for (name, value) in changed {
        let mut response = answer(200, &invite);
        response.headers.set(name, value);
        layer.handle_message(now, flow(Transport::Udp), Message::Response(response));
    }
    assert_eq!(events(&mut layer), []);
    assert_eq!(layer.counters().stray_responses, 3);
}

/// Goal: a lost or impossible connection fails what was not answered yet. Method: close the flow
/// of one call, fail the address of another.
#[test]
fn a_request_fails_with_its_connection() {
    let (now, mut layer) = layer();
    let (first, _) = call(&mut layer, now, Transport::Tcp);
    layer.handle_flow_closed(FlowId(7));
    assert_eq!(events(&mut layer), [TuEvent::ClientTransportError { id: first }]);
    let there = Destination::Address { transport: Transport::Tcp, remote: address(PEER), listener: 0 };
    let mut options = request("OPTIONS", "z9hG4bKx", "");
    options.headers.remove(&Name::Via);
    let second = layer.request(now, there, options, address(US));
    let failed = std::iter::from_fn(|| layer.poll_transmit()).last().unwrap();
    assert_eq!(failed.destination, there);
    layer.handle_send_failed(now, &failed);
    assert_eq!(events(&mut layer), [TuEvent::ClientTransportError { id: second }]);
    assert_eq!(layer.len(), 0);
    assert_eq!(run_dry(&mut layer), []);
}

/// Goal: a proxied 200 is passed as it is, each copy, never resent by us (RFC 6026 §7.1).
/// Method: forward it twice, run dry.
#[test]
fn a_proxied_200_passes_each_time_it_comes() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Udp, invite.clone());
    let mut response = answer(200, &invite);
    response.headers.set(Name::To, "<sip:1001@192.0.2.1>;tag=worker");
    for _ in 0..2 {
        assert!(layer.forward_response(now, id, response.clone()));
    }
    let out = sent(&mut layer);
    assert_eq!(out, [Message::Response(response.clone()), Message::Response(response)]);
    assert_eq!(run_dry(&mut layer), []);
    assert_eq!(sent(&mut layer), []);
}

/// Goal: where a layer serves a proxy and the UAS behind it, the ACK finds the UAS. Method: one
/// INVITE at two listeners; the UAS accepts, the proxy passes its 200 on, the ACK comes.
#[test]
fn the_ack_of_a_200_finds_the_uas_not_the_proxy_before_it() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let proxy = receive(&mut layer, now, Transport::Udp, invite.clone());
    let behind = Flow { listener: 1, ..flow(Transport::Udp) };
    layer.handle_message(now, behind, Message::Request(request("INVITE", "z9hG4bKb", "")));
    let heard = events(&mut layer);
    let [TuEvent::Request { id: uas, .. }] = heard.as_slice() else { panic!("{heard:?}") };
    let mut ok = answer(200, &invite);
    ok.headers.set(Name::To, "<sip:1001@192.0.2.1>;tag=uas");
    layer.respond(now, *uas, ok.clone());
    layer.forward_response(now, proxy, ok);
    let mut ack = request("ACK", "z9hG4bKc", "");
    ack.headers.set(Name::To, "<sip:1001@192.0.2.1>;tag=uas");
    layer.handle_message(now, behind, Message::Request(ack));
    assert_eq!(events(&mut layer).len(), 1);
    assert_eq!(run_dry(&mut layer), [], "the UAS was acknowledged");
}

/// Goal: a response that could not be written is sent once more over a new connection, also when
/// its transaction is over (RFC 3261 §18.2.2); a second failure ends it. Method: OPTIONS over TCP.
#[test]
fn a_response_that_could_not_be_written_goes_to_the_via_port() {
    let (now, mut layer) = layer();
    let options = request("OPTIONS", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Tcp, options.clone());
    layer.respond(now, id, answer(200, &options));
    let first = layer.poll_transmit().unwrap();
    layer.handle_send_failed(now, &first);
    let second = layer.poll_transmit().unwrap();
    assert_eq!(second.bytes, first.bytes);
    let expected = Destination::Address { transport: Transport::Tcp, remote: address(PEER), listener: 0 };
    assert_eq!(second.destination, expected);
    layer.handle_send_failed(now, &second);
    assert_eq!(layer.poll_transmit(), None);
}

/// Goal: a final response to an INVITE that reaches nobody ends the wait for its ACK: its user hears of
/// it at once, not after 32 s (RFC 3261 §17.2.4); an INVITE that is not answered yet goes on. Method: 180
/// and 200, both over a connection that is gone and to an address that takes none; after its ACK a 200
/// does not matter any more.
#[test]
fn a_200_that_reaches_nobody_ends_the_wait_for_its_ack() {
    let (now, mut layer) = layer();
    let invite = request("INVITE", "z9hG4bKa", "");
    let id = receive(&mut layer, now, Transport::Tcp, invite.clone());
    for (status, expected) in [(180, vec![]), (200, vec![TuEvent::ServerTimeout { id }])] {
        layer.respond(now, id, answer(status, &invite));
        let first = layer.poll_transmit().unwrap();
        layer.handle_send_failed(now, &first);
        let second = layer.poll_transmit().unwrap();
        layer.handle_send_failed(now, &second);
        assert_eq!(events(&mut layer), expected, "{status}");
    }
    assert!(layer.is_empty());
    let id = receive(&mut layer, now, Transport::Tcp, invite.clone());
    layer.respond(now, id, answer(200, &invite));
    let mut copy = layer.poll_transmit().unwrap();
    let Message::Response(ok) = Message::parse(copy.bytes.clone()).unwrap() else { panic!("a response") };
    let mut ack = request("ACK", "z9hG4bKb", "");
    ack.headers.set(Name::To, ok.headers.first(&Name::To).unwrap().clone());
    layer.handle_message(now, flow(Transport::Tcp), Message::Request(ack));
    assert_eq!(events(&mut layer).len(), 1);
    copy.destination = Destination::Address { transport: Transport::Tcp, remote: address(PEER), listener: 0 };
    layer.handle_send_failed(now, &copy);
    assert_eq!(events(&mut layer), []);
}
