//! Messages without sense: any method, branch, tag and order, answered at random.

use std::time::Duration;

use bytes::Bytes;

use super::loss::Random;
use super::*;
use crate::sip::flow::Transport;
use crate::sip::message::Method;

const METHODS: [&str; 6] = ["INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "WHATEVER"];
const STATUSES: [u16; 7] = [100, 180, 200, 299, 302, 486, 699];

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    let index = usize::try_from(random.next() % from.len() as u64).unwrap();
    from[index]
}

fn random_flow(random: &mut Random) -> Flow {
    let transport = pick(random, &[Transport::Udp, Transport::Tcp]);
    let (local, remote) = ("192.0.2.1:5060".parse().unwrap(), "[2001:db8::7]:5060".parse().unwrap());
    Flow { id: FlowId(random.next() % 3), listener: 0, transport, local, remote }
}

fn random_request(random: &mut Random) -> Message {
    let method = pick(random, &METHODS);
    let branch = pick(random, &[";branch=z9hG4bKa", ";branch=z9hG4bKb;rport", ";branch=1", ""]);
    let to_tag = pick(random, &["", ";tag=a", ";tag=b"]);
    let (call, cseq) = (random.next() % 3, random.next() % 2);
    let text = format!(
        "{method} sip:x SIP/2.0\r\nVia: SIP/2.0/UDP gw.example{branch}\r\nFrom: <sip:a@x>;tag=f\r\n\
         To: <sip:b@x>{to_tag}\r\nCall-ID: {call}\r\nCSeq: {cseq} {method}\r\n\r\n"
    );
    Message::parse(Bytes::from(text)).unwrap()
}

/// Every index names what lives, each living transaction has one timer.
fn check_books(layer: &Layer, seed: u64) {
    assert_eq!(layer.timers.len(), layer.len(), "seed {seed}: timers");
    assert_eq!(layer.server_keys.len(), layer.servers.len(), "seed {seed}: server keys");
    assert_eq!(layer.client_keys.len(), layer.clients.len(), "seed {seed}: client keys");
    let alive = |id: &ServerId| layer.servers.contains_key(id);
    assert!(layer.ack_keys.values().all(alive), "seed {seed}: ACK keys");
    assert!(layer.merge_keys.values().all(alive), "seed {seed}: merge keys");
    let bytes: usize = layer.servers.values().map(|server| server.bytes).sum();
    assert_eq!(layer.server_bytes, bytes, "seed {seed}: bytes");
    for (_, id) in &layer.flows {
        let lives = match id {
            Id::Server(id) => alive(id),
            Id::Client(id) => layer.clients.contains_key(id),
        };
        assert!(lives, "seed {seed}: flows");
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut now = crate::base::clock::now();
    let config = Config { server_transactions_max: 20, ..Config::default() };
    let mut layer = Layer::new(config, seed);
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let flow = random_flow(&mut random);
        match random.next() % 8 {
            0..=2 => layer.handle_message(now, flow, random_request(&mut random)),
            3 => {
                let mut request = Request::new(pick_method(&mut random), "sip:x");
                for (name, value) in [(Name::From, "<sip:a@x>;tag=f"), (Name::To, "<sip:b@x>")] {
                    request.headers.push(name, value);
                }
                request.headers.push(Name::CallId, "ours");
                request.headers.push(Name::CSeq, format!("1 {}", request.method));
                clients.push(layer.request(now, Destination::Flow(flow), request, flow.local));
            }
            4 if !servers.is_empty() => {
                let at = usize::try_from(random.next()).unwrap() % servers.len();
                let (id, request): &(ServerId, Request) = &servers[at];
                let response = Response::for_request(request, pick(&mut random, &STATUSES), "Chaos");
                if random.percent(50) {
                    layer.respond(now, *id, response);
                } else {
                    layer.forward_response(now, *id, response);
                }
            }
            5 if !clients.is_empty() => {
                let at = usize::try_from(random.next()).unwrap() % clients.len();
                layer.cancel(now, clients[at]);
            }
            6 => layer.handle_flow_closed(flow.id),
            _ => now += random.up_to_ms(20_000),
        }
        layer.handle_timeout(now);
        while let Some(transmit) = layer.poll_transmit() {
            // What we send is SIP, and our requests come to be answered.
            let Message::Request(request) = Message::parse(transmit.bytes).unwrap() else { continue };
            if random.percent(60) {
                let response = Response::for_request(&request, pick(&mut random, &STATUSES), "Chaos");
                layer.handle_message(now, flow, Message::Response(response));
            }
        }
        while let Some(event) = layer.poll_event() {
            if let TuEvent::Request { id, request, .. } = event {
                servers.push((id, request));
            }
        }
        check_books(&layer, seed);
    }
    while let Some(at) = layer.poll_timeout() {
        layer.handle_timeout(at.max(now));
        now = now.max(at) + Duration::from_millis(1);
    }
    check_books(&layer, seed);
    assert!(layer.is_empty(), "seed {seed}");
    assert!(layer.flows.is_empty() && layer.ack_keys.is_empty() && layer.merge_keys.is_empty());
}

fn pick_method(random: &mut Random) -> Method {
    if random.percent(50) { Method::Invite } else { Method::Options }
}

/// Goal: no sequence of messages, answers, closed connections and time breaks the layer's books,
/// and nothing outlives its timers. Method: 300 seeds of 300 steps, books checked at each.
#[test]
fn no_order_of_messages_breaks_the_books() {
    for seed in 0..300 {
        run(seed);
    }
}
