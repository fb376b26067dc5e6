//! Router and service on a fake net: one role is both, as in the node.

use bytes::Bytes;
use crossbeam::channel;

use super::*;
use crate::base::config::{
    Gateway, GatewayAddresses, GatewayStatus, PeerCertificate, Security, StartupMode, UnknownSource,
};
use crate::control::cli::Slot;
use crate::sip::flow::Transport;
use crate::sip::header::Via;

const CALLER: FlowId = FlowId(1);
/// The router's connection to the service, seen from each end.
const DOWN: FlowId = FlowId(2);
const UP: FlowId = FlowId(3);
const WORKER: FlowId = FlowId(4);

/// The role, and what is around it.
struct Net {
    now: Instant,
    role: FrontRole,
    transport: Transport,
    /// Listener index of router and service for `transport`.
    listener: (u16, u16),
    caller: Vec<Response>,
    worker: Vec<Request>,
    /// Start lines between router and service.
    between: Vec<String>,
    service_is_up: bool,
    worker_is_up: bool,
    config: Config,
}

impl Net {
    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        let everywhere =
            ["192.0.2.0/24", "2001:db8::/32", "127.0.0.0/8"].map(|a| a.parse().unwrap()).to_vec();
        let address = GatewayAddresses(everywhere);
        config.gateway.push(Gateway { name: "pbx".into(), address, ..Gateway::default() });
        change(&mut config);
        let listeners = listeners::wanted(&config);
        let (orders, reports) = (Arc::new(ArrayQueue::new(4)), Arc::new(ArrayQueue::new(4)));
        let mut role = FrontRole::new(
            &config,
            &listeners,
            (Arc::clone(&orders), reports),
            Arc::default(),
            HopSecret::random().unwrap(),
        )
        .unwrap();
        orders
            .push(FrontOrder::Worker(Some(HopPorts::of_role(&config, ListenRole::Worker(Slot::A)))))
            .unwrap();
        let now = crate::base::clock::now();
        role.pump(now);
        Self {
            now,
            role,
            transport: Transport::Tcp,
            listener: (0, 1 + u16::from(config.router.udp)),
            caller: Vec::new(),
            worker: Vec::new(),
            between: Vec::new(),
            service_is_up: true,
            worker_is_up: true,
            config,
        }
    }
    /// Orders another configuration; what is given back hears when it is in force.
    fn configure(&self, config: &Config) -> channel::Receiver<()> {
        let (taken, in_force) = channel::bounded(1);
        let order = FrontOrder::Config { config: Arc::new(config.clone()), taken };
        self.role.orders.push(order).unwrap();
        in_force
    }

    fn redirect() -> Self {
        Self::with(|_| {})
    }

    fn proxy() -> Self {
        Self::with(|config| config.router.handoff = Handoff::Proxy)
    }

    /// `udp`: of router, service, worker.
    fn over_udp(handoff: Handoff, udp: [bool; 3]) -> Self {
        let mut net = Self::with(|config| {
            config.router.handoff = handoff;
            [config.router.udp, config.service.udp, config.worker.udp] = udp;
        });
        net.transport = Transport::Udp;
        net.listener = (1, 3);
        net
    }

    fn flow(&self, id: FlowId) -> Flow {
        let at = |address: &str| address.parse().unwrap();
        let (listener, local, remote) = match id {
            DOWN => (self.listener.0, at("127.0.0.1:41000"), at("127.0.0.1:5062")),
            UP => (self.listener.1, at("127.0.0.1:5062"), at("127.0.0.1:41000")),
            WORKER => (self.listener.1, at("127.0.0.1:42000"), at("127.0.0.1:5065")),
            _ => (self.listener.0, at("127.0.0.1:5060"), at("192.0.2.7:33000")),
        };
        Flow { id, listener, transport: self.transport, local, remote }
    }

    /// The caller sends over its own connection to the router.
    fn caller_sends(&mut self, text: &str) {
        self.sends_over(self.flow(CALLER), text);
    }

    fn sends_over(&mut self, flow: Flow, text: &str) {
        let message = Message::parse(Bytes::from(text.to_owned())).unwrap();
        self.role.handle_message(self.now, flow, message);
        self.carry();
    }

    fn asks(&mut self, method: &str, uri: &str, extra: &str) -> &Response {
        self.caller_sends(&request(method, uri, "", extra));
        self.caller.last().expect("every request is answered")
    }

    /// Carries all messages to where they go.
    fn carry(&mut self) {
        while let Some(transmit) = self.role.poll_transmit() {
            let message = Message::parse(transmit.bytes.clone()).unwrap();
            let port = match transmit.destination {
                Destination::Flow(flow) if flow.id == UP => {
                    self.note(&message);
                    self.role.handle_message(self.now, self.flow(DOWN), message);
                    continue;
                }
                Destination::Flow(_) => 0,
                Destination::Address { remote, .. } => remote.port(),
            };
            match (port, message) {
                (5062, message) if self.service_is_up => {
                    self.note(&message);
                    self.role.handle_message(self.now, self.flow(UP), message);
                }
                (5065, Message::Request(request)) if self.worker_is_up => self.worker.push(request),
                (5062 | 5065, _) => self.role.handle_send_failed(self.now, &transmit),
                (_, Message::Response(response)) => self.caller.push(response),
                (_, message) => panic!("nobody awaits {message:?}"),
            }
        }
    }

    fn note(&mut self, message: &Message) {
        self.between.push(match message {
            Message::Request(request) => request.method.to_string(),
            Message::Response(response) => response.status.to_string(),
        });
    }

    /// The worker answers the last request of this method.
    fn worker_says(&mut self, method: Method, status: u16) {
        let request = self.worker.iter().rev().find(|request| request.method == method).unwrap();
        let mut response = Response::for_request(request, status, "Whatever");
        if status > 100 {
            let to = format!("{};tag=worker", request.to().unwrap());
            response.headers.set(Name::To, to);
        }
        self.role.handle_message(self.now, self.flow(WORKER), Message::Response(response));
        self.carry();
    }

    /// Runs every timer until `passed`.
    fn wait(&mut self, passed: Duration) {
        let end = self.now + passed;
        while let Some(at) = self.role.poll_timeout().filter(|at| *at <= end) {
            self.now = at;
            self.role.handle_timeout(at);
            self.carry();
        }
        self.now = end;
        self.role.pump(end);
    }

    /// Statuses the caller got since the last look.
    fn heard(&mut self) -> Vec<u16> {
        self.caller.drain(..).map(|response| response.status).collect()
    }

    fn assert_forgotten(&mut self) {
        self.wait(Duration::from_secs(300));
        let left = (self.role.forwarded.len(), self.role.forwarding.len(), self.role.accepted.len());
        assert_eq!((left, self.role.accepted_until.len(), self.role.layer.len()), ((0, 0, 0), 0, 0));
    }
}

fn request(method: &str, uri: &str, to_tag: &str, extra: &str) -> String {
    let branch = if method == "CANCEL" { "INVITE" } else { method };
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.7:33000;branch=z9hG4bK{branch}\r\n\
         From: <sip:2000@pbx>;tag=c\r\nTo: <sip:1001@pbx>{to_tag}\r\nCall-ID: c1\r\nCSeq: 1 {method}\r\n\
         Max-Forwards: 70\r\nContact: <sip:2000@192.0.2.7>\r\n{extra}Content-Length: 0\r\n\r\n"
    )
}

fn contact(response: &Response) -> String {
    assert_eq!(response.status, 302);
    String::from_utf8(response.headers.first(&Name::Contact).unwrap().to_vec()).unwrap()
}

/// Goal: both hops redirect by 302: user part and `user=phone` kept, the next hop's port and the
/// transport set, a tel: URI made a SIP URI whose keys are escaped (RFC 3261 §19.1.6, §25.1).
/// Method: one URI a rule at the router, one at the service.
#[test]
fn a_redirect_keeps_the_user_and_names_the_next_hop() {
    let table = [
        ("sip:1001@pbx.example", "<sip:1001@127.0.0.1:5062;transport=tcp>"),
        ("sip:101@pbx.local;user=phone", "<sip:101@127.0.0.1:5062;user=phone;transport=tcp>"),
        ("sip:a%40b:pw@pbx:5060;transport=udp;lr", "<sip:a%40b@127.0.0.1:5062;transport=tcp>"),
        ("sip:pbx.example", "<sip:127.0.0.1:5062;transport=tcp>"),
        ("tel:+49-30-1234;ext=5", "<sip:+49301234@127.0.0.1:5062;user=phone;transport=tcp>"),
        ("tel:*98#;phone-context=pbx", "<sip:*98%23@127.0.0.1:5062;user=phone;transport=tcp>"),
    ];
    for (uri, expected) in table {
        let mut net = Net::redirect();
        assert_eq!(contact(net.asks("INVITE", uri, "")), expected, "{uri}");
    }
    let mut net = Net::redirect();
    let service = net.flow(UP);
    net.sends_over(service, &request("INVITE", "sip:1001@x", "", ""));
    // The caller of the service is the far end of UP.
    assert_eq!(net.between, ["302"]);
}

/// Goal: a hop without an address of its own names the one it was reached at, IPv6 in brackets;
/// a next hop without UDP is named with TCP.
/// Method: unspecified addresses over an IPv6 flow; UDP at the router alone.
#[test]
fn a_redirect_names_an_address_and_transport_the_caller_can_reach() {
    let mut net = Net::with(|config| config.service.address = "::".parse().unwrap());
    let flow = Flow {
        local: "[2001:db8::1]:5060".parse().unwrap(),
        remote: "[2001:db8::7]:33000".parse().unwrap(),
        ..net.flow(CALLER)
    };
    net.sends_over(flow, &request("INVITE", "sip:1001@[2001:db8::1]", "", ""));
    assert_eq!(contact(&net.caller[0]), "<sip:1001@[2001:db8::1]:5062;transport=tcp>");

    let mut all = Net::over_udp(Handoff::Redirect, [true; 3]);
    assert!(contact(all.asks("INVITE", "sip:1001@x", "")).ends_with("transport=udp>"));
    let mut first = Net::over_udp(Handoff::Redirect, [true, false, false]);
    assert!(contact(first.asks("INVITE", "sip:1001@x", "")).ends_with("transport=tcp>"));
}

/// Goal: without a worker every hop refuses calls and OPTIONS with 503 and Retry-After, counted.
/// Method: the worker goes and comes.
#[test]
fn without_a_worker_calls_and_options_get_503() {
    let mut net = Net::redirect();
    net.role.orders.push(FrontOrder::Worker(None)).unwrap();
    net.wait(Duration::from_millis(20));
    for method in ["INVITE", "OPTIONS"] {
        let response = net.asks(method, "sip:1001@x", "");
        assert_eq!(response.status, 503);
        assert_eq!(response.headers.first(&Name::RetryAfter).unwrap(), "4");
    }
    assert_eq!(net.role.refusals.totals()["no_worker"], 2);
    net.role
        .orders
        .push(FrontOrder::Worker(Some(HopPorts { tcp: Some(5067), ..HopPorts::default() })))
        .unwrap();
    net.wait(Duration::from_secs(60));
    let response = net.asks("OPTIONS", "sip:x", "");
    assert_eq!(response.status, 200);
    assert_eq!(response.headers.first(&Name::Allow).unwrap(), "INVITE, ACK, CANCEL, OPTIONS");
}

/// Goal: what cannot be served is refused as RFC 3261 §8.2 orders: 405 with Allow, 501, 416, 420
/// with Unsupported, 481 for a dialog that is not here.
/// Method: one request each, in both handoffs.
#[test]
fn requests_a_hop_cannot_serve_are_refused() {
    for new in [Net::redirect, Net::proxy] {
        let response = new().asks("BYE", "sip:1001@x", "").clone();
        assert_eq!(response.status, 405);
        assert!(response.headers.contains(&Name::Allow));
        assert_eq!(new().asks("FROB", "sip:1001@x", "").status, 501);
        assert_eq!(new().asks("INVITE", "http://x/", "").status, 416);
        let response = new().asks("INVITE", "sip:1001@x", "Require: timer, 100rel\r\n").clone();
        assert_eq!(response.status, 420);
        assert_eq!(response.headers.first(&Name::Unsupported).unwrap(), "100rel");
        let mut net = new();
        net.caller_sends(&request("INVITE", "sip:1001@x", ";tag=gone", ""));
        assert_eq!(net.heard(), [481]);
        assert_eq!(net.role.refusals.totals()["no_dialog"], 1);
    }
}

/// Goal: RFC 3261 §16.6, §16.7: each hop answers 100, sets the Request-URI, lowers Max-Forwards, adds
/// its Via and stays out of the dialog; responses go back without them, each 2xx copy once.
/// Method: a call through both hops; the worker's view and the caller's.
#[test]
fn a_forwarded_call_passes_both_hops() {
    let mut net = Net::proxy();
    net.caller_sends(&request("INVITE", "sip:1001@pbx;user=phone", "", "Diversion: <tel:1>\r\n"));
    assert_eq!(net.heard(), [100]);
    assert_eq!(net.between, ["INVITE", "100"]);
    let invite = net.worker.last().unwrap().clone();
    assert_eq!(invite.uri, "sip:1001@127.0.0.1:5065;user=phone;transport=tcp");
    assert_eq!(invite.headers.first(&Name::MaxForwards).unwrap(), "68");
    assert_eq!(invite.headers.first(&Name::Diversion).unwrap(), "<tel:1>");
    assert!(!invite.headers.contains(&Name::RecordRoute));
    let sent_by = |via: &Via| via.port.unwrap();
    let vias: Vec<_> = invite.headers.vias().unwrap().iter().map(sent_by).collect();
    assert_eq!(vias, [5062, 5060, 33_000]);

    net.worker_says(Method::Invite, 100);
    assert!(net.heard().is_empty(), "a 100 goes one hop");
    net.worker_says(Method::Invite, 180);
    net.worker_says(Method::Invite, 200);
    let answer = net.caller.last().unwrap().clone();
    assert_eq!(answer.headers.vias().unwrap().len(), 1);
    assert_eq!(answer.to().unwrap().tag(), Some("worker"));
    assert_eq!(net.heard(), [180, 200]);
    net.wait(Duration::from_secs(10));
    assert!(net.heard().is_empty(), "the worker resends its 2xx, we do not");
    net.worker_says(Method::Invite, 200);
    assert_eq!(net.heard(), [200], "RFC 6026 §7.1: each copy passes, once");
    net.assert_forgotten();
    assert!(net.heard().is_empty());
}

/// Goal: over UDP the same, and copies of the INVITE are absorbed. Method: INVITE twice.
#[test]
fn a_forwarded_call_over_udp_is_forwarded_once() {
    let mut net = Net::over_udp(Handoff::Proxy, [true; 3]);
    let invite = request("INVITE", "sip:1001@pbx", "", "").replace("/TCP ", "/UDP ");
    net.caller_sends(&invite);
    net.caller_sends(&invite);
    assert_eq!(net.heard(), [100, 100]);
    assert_eq!(net.worker.len(), 1);
    assert!(net.worker[0].uri.ends_with(b";transport=udp"));
    net.worker_says(Method::Invite, 200);
    assert_eq!(net.heard(), [200]);
    net.assert_forgotten();
}

/// Goal: RFC 3261 §9.1, §16.10: CANCEL is answered by each hop and passed on once the next hop gave
/// a provisional response; the 487 comes back and is acknowledged hop by hop.
/// Method: CANCEL before the worker said anything; between hops with and without a gateway's address.
#[test]
fn a_cancel_follows_the_call() {
    let own_addresses_are_no_gateways = |config: &mut Config| {
        config.router.handoff = Handoff::Proxy;
        config.gateway[0].address = GatewayAddresses(vec!["192.0.2.0/24".parse().unwrap()]);
    };
    for mut net in [Net::proxy(), Net::with(own_addresses_are_no_gateways)] {
        cancel_follows(&mut net);
    }
}

fn cancel_follows(net: &mut Net) {
    net.caller_sends(&request("INVITE", "sip:1001@pbx", "", ""));
    net.heard();
    net.caller_sends(&request("CANCEL", "sip:1001@pbx", "", ""));
    assert_eq!(net.heard(), [200]);
    assert_eq!(net.worker.len(), 1, "no CANCEL before a provisional response");
    net.worker_says(Method::Invite, 180);
    let cancel = net.worker.last().unwrap();
    assert_eq!(cancel.method, Method::Cancel);
    assert_eq!(cancel.uri, net.worker[0].uri);
    assert_eq!(cancel.top_via().unwrap(), net.worker[0].top_via().unwrap());
    net.worker_says(Method::Cancel, 200);
    net.worker_says(Method::Invite, 487);
    assert_eq!(net.heard(), [487], "who cancelled need not hear it ring");
    assert_eq!(net.worker.last().unwrap().method, Method::Ack);
    net.caller_sends(&request("ACK", "sip:1001@pbx", ";tag=worker", ""));
    assert!(net.heard().is_empty());
    net.assert_forgotten();
}

/// Goal: refusals of the worker come back as they are. Method: 404 and 486.
#[test]
fn a_refusal_comes_back_to_the_caller() {
    for status in [404, 486] {
        let mut net = Net::proxy();
        net.caller_sends(&request("INVITE", "sip:4711@pbx", "", ""));
        net.worker_says(Method::Invite, status);
        assert_eq!(net.heard(), [100, status]);
        net.assert_forgotten();
    }
}

/// Goal: a next hop that cannot be reached is 503 with Retry-After (RFC 3261 §16.9), one that is
/// silent 408 after 64*T1 (§16.7 step 6), at either hop.
/// Method: service or worker down; a worker that takes the INVITE and says nothing.
#[test]
fn an_unreachable_next_hop_is_503_and_a_silent_one_408() {
    for (service_is_up, worker_is_up) in [(false, true), (true, false)] {
        let mut net = Net::proxy();
        (net.service_is_up, net.worker_is_up) = (service_is_up, worker_is_up);
        net.caller_sends(&request("INVITE", "sip:1001@pbx", "", ""));
        assert_eq!(net.caller.last().unwrap().headers.first(&Name::RetryAfter).unwrap(), "4");
        assert_eq!(net.heard(), [100, 503]);
        assert_eq!(net.role.refusals.totals()["next_hop"], 1);
        net.assert_forgotten();
    }
    let mut silent = Net::proxy();
    silent.caller_sends(&request("INVITE", "sip:1001@pbx", "", ""));
    silent.wait(Duration::from_secs(33));
    assert_eq!(silent.heard(), [100, 408]);
    silent.assert_forgotten();
}

/// Goal: a worker that rings for ever is cancelled (RFC 3261 §16.8) and the caller told; nothing is
/// left. Method: 180, then minutes.
#[test]
fn a_call_that_rings_for_ever_is_given_up() {
    let mut net = Net::proxy();
    net.caller_sends(&request("INVITE", "sip:1001@pbx", "", ""));
    net.worker_says(Method::Invite, 180);
    net.wait(Duration::from_secs(400));
    let heard = net.heard();
    assert_eq!(heard[..2], [100, 180]);
    assert!(heard[2..].iter().all(|status| *status >= 400) && heard.len() > 2, "{heard:?}");
    assert!(net.worker.iter().any(|request| request.method == Method::Cancel));
    net.assert_forgotten();
}

/// Goal: a caller whose connection closes can still cancel over another one, and leaves nothing
/// behind if it does not.
/// Method: close, then CANCEL over a new flow; close, then nothing.
#[test]
fn a_lost_caller_leaves_nothing_behind() {
    let mut back = Net::proxy();
    back.caller_sends(&request("INVITE", "sip:1001@pbx", "", ""));
    back.worker_says(Method::Invite, 180);
    back.role.handle_flow_closed(back.now, CALLER);
    let again = Flow { id: FlowId(9), ..back.flow(CALLER) };
    back.sends_over(again, &request("CANCEL", "sip:1001@pbx", "", ""));
    assert_eq!(back.worker.last().unwrap().method, Method::Cancel);
    back.worker_says(Method::Invite, 487);
    back.assert_forgotten();

    let mut gone = Net::proxy();
    gone.caller_sends(&request("INVITE", "sip:1001@pbx", "", ""));
    gone.role.handle_flow_closed(gone.now, CALLER);
    gone.role.handle_flow_closed(gone.now, DOWN);
    gone.role.handle_flow_closed(gone.now, WORKER);
    gone.assert_forgotten();
}

/// Goal: RFC 3261 §16.3, §16.4: no hops left is 483 and counted; a Route that names the hop is its own.
/// Method: Max-Forwards 0 and 1; two Route values.
#[test]
fn a_hop_honours_max_forwards_and_route() {
    let with_hops = |hops: u8| {
        let mut net = Net::proxy();
        let invite = request("INVITE", "sip:1001@pbx", "", "");
        net.caller_sends(&invite.replace("Max-Forwards: 70", &format!("Max-Forwards: {hops}")));
        assert_eq!(net.role.refusals.totals()["not_forwarded"], 1);
        net.heard()
    };
    assert_eq!(with_hops(0), [483]);
    assert_eq!(with_hops(1), [100, 483], "the second hop refuses");

    let mut net = Net::proxy();
    let route = "Route: <sip:127.0.0.1:5060;lr;transport=tcp>\r\n";
    net.caller_sends(&request("INVITE", "sip:1001@pbx", "", route));
    assert!(!net.worker[0].headers.contains(&Name::Route));
}

/// The steps' outcome as the caller hears it: status, Warning, Reason.
fn refusal(response: &Response) -> (u16, String, String) {
    let text = |name| response.headers.first(name).map(|v| String::from_utf8_lossy(v).into_owned());
    (response.status, text(&Name::Warning).unwrap_or_default(), text(&Name::Reason).unwrap_or_default())
}

/// Two pilots of one gateway, one of them with a mailbox.
fn edge() -> Config {
    let text = "[[gateway]]\nname=\"pbx\"\naddress=\"192.0.2.0/24\"\n\
        [[dial_plan]]\nname=\"main\"\nuri_type=\"tel_extn\"\nextension_digits=4\n\
        [[dial_plan]]\nname=\"open\"\n\
        [[hunt_group]]\ngateway=\"pbx\"\npilot=\"5000\"\ndial_plan=\"main\"\n\
        [[hunt_group]]\ngateway=\"pbx\"\npilot=\"1001\"\ndial_plan=\"main\"\nmailbox=\"1001\"\n";
    Config::parse(text, std::path::Path::new("a.toml")).unwrap().0
}

/// What is changed, what is called, and the status, rule and text that follow.
type Case = (fn(&mut Config), &'static str, u16, &'static str, &'static str);

/// Goal: each rule of admission is heard with its status, Warning and Reason, and counted. Method: one
/// gateway a rule, INVITE and OPTIONS at the router.
#[test]
fn a_refusal_says_why_and_is_counted() {
    let edge = edge();
    let with = |change: fn(&mut Config)| {
        let edge = edge.clone();
        Net::with(move |config| {
            config.gateway = edge.gateway;
            config.dial_plan = edge.dial_plan;
            config.hunt_group = edge.hunt_group;
            change(config);
        })
    };
    let cases: [Case; 6] = [
        (|_| {}, "sip:77@x", 404, "no_pilot", "\\\"77\\\" is no pilot of gateway \\\"pbx\\\""),
        (|_| {}, "sip:5000@x", 404, "pilot_purpose", "pilot \\\"5000\\\" has no mailbox of its own"),
        (
            |c| c.gateway[0].status = GatewayStatus::Disabled,
            "sip:1001@x",
            403,
            "gateway_disabled",
            "is disabled",
        ),
        (
            |c| c.gateway[0].status = GatewayStatus::NoNewCalls,
            "sip:1001@x",
            503,
            "no_new_calls",
            "no new calls",
        ),
        (
            |c| c.dial_plan[0].security = Security::SipSecured,
            "sip:1001@x",
            488,
            "security_sip",
            "over TLS only",
        ),
        (
            |c| c.gateway[0].address = GatewayAddresses(Vec::new()),
            "sip:1001@x",
            403,
            "unknown_source",
            "no gateway's",
        ),
    ];
    for (change, uri, status, rule, why) in cases {
        let mut net = with(change);
        net.role
            .gate
            .reload(&Config {
                limits: crate::base::config::Limits {
                    unknown_source: UnknownSource::Refuse,
                    ..edge.limits.clone()
                },
                ..net.config.clone()
            })
            .unwrap();
        let response = net.asks("INVITE", uri, "").clone();
        let (found, warning, reason) = refusal(&response);
        assert_eq!(found, status, "{rule}");
        assert!(warning.starts_with("399 voxring \"") && warning.contains(why), "{warning}");
        assert!(
            reason.starts_with(&format!("SIP;cause={status};text=\"{rule}: ")) && reason.contains(why),
            "{reason}"
        );
        assert_eq!(response.headers.contains(&Name::RetryAfter), status == 503);
        assert_eq!(net.role.refusals.totals().get(rule), Some(&1));
        let options = net.asks("OPTIONS", "sip:x", "").status;
        assert_eq!(options, if status == 403 { 403 } else { 200 }, "{rule}");
    }
    let mut net = with(|_| {});
    assert_eq!(net.asks("INVITE", "sip:1001@x", "").status, 302);
}

/// Goal: nobody's requests get no answer and are counted; connections are not even let in.
/// Method: the hook and a message from an address that no gateway has.
#[test]
fn unknown_sources_hear_nothing() {
    let mut net = Net::redirect();
    let nobody: SocketAddr = "203.0.113.9:5060".parse().unwrap();
    assert!(!net.role.admits(net.now, 0, nobody));
    assert!(net.role.admits(net.now, 0, "192.0.2.9:1".parse().unwrap()));
    let flow = Flow { remote: nobody, ..net.flow(CALLER) };
    net.sends_over(flow, &request("INVITE", "sip:1001@x", "", ""));
    net.sends_over(flow, &request("OPTIONS", "sip:1001@x", "", ""));
    assert!(net.caller.is_empty());
    assert_eq!(net.role.refusals.totals()["unknown_source"], 2);
    assert_eq!(net.role.layer.len(), 0);
}

/// Goal: where strangers are refused, a flood of them is answered within bounds: over UDP its source may
/// be forged, and each answer is a transaction. Gateways are served meanwhile. Method: a thousand
/// INVITEs from as many addresses at once, then a gateway's.
#[test]
fn a_flood_of_strangers_is_refused_within_bounds() {
    let mut net = Net::with(|config| config.limits.unknown_source = UnknownSource::Refuse);
    for nth in 0..1000u16 {
        let [high, low] = nth.to_be_bytes();
        let flow = Flow { remote: SocketAddr::from(([203, 0, high, low], 5060)), ..net.flow(CALLER) };
        net.sends_over(
            flow,
            &request("INVITE", "sip:1001@x", "", "").replace("z9hG4bK", &format!("z9hG4bK{nth}")),
        );
    }
    let heard = net.heard();
    assert!(heard.len() == 200 && heard.iter().all(|status| *status == 403), "{}", heard.len());
    assert_eq!(net.role.layer.len(), 200);
    assert_eq!(net.role.refusals.totals()["unknown_source"], 1000);
    assert_eq!(net.asks("INVITE", "sip:1001@x", "").status, 302);
}

/// Goal: a forwarded call is judged by its caller at every hop, and nobody else can say who calls.
/// Method: proxying between hops whose own address is no gateway's; a caller that brings the field.
#[test]
fn own_hops_vouch_for_the_caller_and_nobody_else_does() {
    let mut net = Net::with(|config| {
        config.router.handoff = Handoff::Proxy;
        config.gateway[0].address = GatewayAddresses(vec!["192.0.2.0/24".parse().unwrap()]);
    });
    let forged = "X-Voxring-Hop: token=00;gateway=pbx;dial-plan=default;source=9.9.9.9:9;transport=tls\r\n";
    net.caller_sends(&request("INVITE", "sip:1001@x", "", forged));
    let field = Name::Other("X-Voxring-Hop".into());
    let at_worker = net.worker[0].headers.all(&field).map(|v| String::from_utf8_lossy(v).into_owned());
    let values: Vec<_> = at_worker.collect();
    assert_eq!(values.len(), 1);
    let told = ";gateway=pbx;dial-plan=default;source=192.0.2.7:33000;transport=tcp";
    assert!(values[0].ends_with(told) && !values[0].contains("token=00;"), "{values:?}");
    // The service, from our own address, without the secret.
    assert!(net.role.admits(net.now, 2, "127.0.0.1:41000".parse().unwrap()));
    let up = net.flow(UP);
    net.between.clear();
    net.sends_over(up, &request("INVITE", "sip:1001@x", "", forged).replace("z9hG4bK", "z9hG4bKx"));
    assert!(net.between.is_empty());
    assert_eq!((net.worker.len(), net.role.refusals.totals()["unknown_source"]), (1, 1));
}

/// Goal: over TLS the gateway's certificate decides, for as long as the connection lives. Method: one
/// gateway with a name; connections with the right name, a wrong one and none.
#[test]
fn the_certificate_of_the_connection_decides() {
    let mut net = Net::with(|config| config.gateway[0].certificate_name = "pbx.example".into());
    let names =
        |name: &str| Some(Arc::new(PeerNames { dns_names: vec![name.into()], ..PeerNames::default() }));
    let tls = Flow { transport: Transport::Tls, ..net.flow(CALLER) };
    for (peer, status, rule) in [
        (names("pbx.example"), 200, ""),
        (names("other.example"), 403, "wrong_certificate"),
        (None, 403, "no_certificate"),
    ] {
        net.role.handle_secured(net.now, tls, peer);
        net.sends_over(tls, &request("OPTIONS", "sip:x", "", ""));
        assert_eq!(net.caller.pop().unwrap().status, status, "{rule}");
        assert_eq!(net.role.refusals.totals().get(rule).copied(), (status != 200).then_some(1));
        net.role.handle_flow_closed(net.now, tls.id);
        net.wait(Duration::from_secs(64));
    }
}

/// A caller over TLS at the router's TLS listener, in a node with a certificate.
fn over_tls(change: impl FnOnce(&mut Config)) -> Net {
    let mut net = Net::with(|config| {
        config.tls.certificate = "server.pem".into();
        // Whose certificate it is has tests of its own.
        config.tls.peer_certificate = PeerCertificate::None;
        change(config);
    });
    net.transport = Transport::Tls;
    net.listener = (1, 3);
    net
}

/// Goal: a call over TLS is redirected to the next hop's TLS port with `transport=tls`, its host
/// `node.fqdn` where that is set; `sips:` stays `sips:`.
/// Method: router and service over TLS, with and without a name; a sips: URI over TLS and over TCP.
#[test]
fn a_call_over_tls_is_redirected_to_tls() {
    let at_router = |fqdn: &str, uri: &str, transport: Transport| {
        let mut net = over_tls(|config| config.node.fqdn = fqdn.into());
        net.transport = transport;
        contact(net.asks("INVITE", uri, ""))
    };
    let (tls, tcp, name) = (Transport::Tls, Transport::Tcp, "um.example.com");
    let table = [
        ("", "sip:1001@x;user=phone", tls, "<sip:1001@127.0.0.1:5063;user=phone;transport=tls>"),
        (name, "sip:1001@x", tls, "<sip:1001@um.example.com:5063;transport=tls>"),
        (name, "sips:1001@x", tls, "<sips:1001@um.example.com:5063;transport=tls>"),
        (name, "sips:1001@x", tcp, "<sips:1001@um.example.com:5063;transport=tls>"),
        (name, "sip:1001@x", tcp, "<sip:1001@127.0.0.1:5062;transport=tcp>"),
    ];
    for (fqdn, uri, transport, expected) in table {
        assert_eq!(at_router(fqdn, uri, transport), expected, "{uri} {transport:?}");
    }
    let mut service = over_tls(|_| {});
    service.listener = (3, 3);
    let contact = contact(service.asks("INVITE", "sip:1001@x", ""));
    assert_eq!(contact, "<sip:1001@127.0.0.1:5066;transport=tls>");
}

/// Goal: what came over TLS never goes on in the clear: where the next hop has no TLS the call is
/// refused with 503 and the rule is counted, in both handoffs; a plain call goes on to a hop that has
/// TLS alone.
/// Method: a service with TCP only, and one with TLS only.
#[test]
fn tls_is_never_downgraded() {
    for handoff in [Handoff::Redirect, Handoff::Proxy] {
        let mut net = over_tls(|config| {
            config.service.startup_mode = StartupMode::Tcp;
            config.router.handoff = handoff;
        });
        let response = net.asks("INVITE", "sip:1001@x", "");
        assert_eq!(response.status, 503);
        let warning = String::from_utf8_lossy(response.headers.first(&Name::Warning).unwrap()).into_owned();
        assert!(warning.contains("the next hop has no TLS"), "{warning}");
        assert_eq!(net.role.refusals.totals()["next_hop_tls"], 1);
    }
    let mut up = over_tls(|config| config.service.startup_mode = StartupMode::Tls);
    up.transport = Transport::Tcp;
    up.listener = (0, 0);
    assert_eq!(contact(up.asks("INVITE", "sip:1001@x", "")), "<sip:1001@127.0.0.1:5063;transport=tls>");
}

/// Goal: over TLS our own next hops are asked for `node.fqdn`, everybody else for their address.
/// Method: the name for each hop's TLS address, for its plain port, and for a stranger.
#[test]
fn our_own_hops_must_show_our_name() {
    let net = over_tls(|config| config.node.fqdn = "um.example.com".into());
    let name = |at: &str| net.role.tls_name(at.parse().unwrap());
    assert_eq!(name("127.0.0.1:5063").as_deref(), Some("um.example.com"), "the service");
    assert_eq!(name("127.0.0.1:5066").as_deref(), Some("um.example.com"), "the worker");
    assert_eq!(name("127.0.0.1:5062"), None);
    assert_eq!(name("192.0.2.7:5063"), None);
}

/// Goal: a new configuration acts on the next request, and maintenance refuses calls and OPTIONS at
/// the router alone. Method: orders between requests.
#[test]
fn a_new_configuration_acts_on_the_next_request() {
    let mut net = Net::redirect();
    let mut config = net.config.clone();
    config.router.maintenance = true;
    config.calls.retry_after_s = 9;
    let taken = net.configure(&config);
    assert!(taken.is_empty(), "not before the front's next turn");
    net.wait(Duration::from_millis(20));
    assert_eq!(taken.try_recv(), Ok(()));
    for method in ["INVITE", "OPTIONS"] {
        let response = net.asks(method, "sip:1001@x", "");
        assert_eq!(response.status, 503);
        assert_eq!(response.headers.first(&Name::RetryAfter).unwrap(), "9");
    }
    assert_eq!(net.role.refusals.totals()["maintenance"], 2);
    let service = net.flow(UP);
    let another = request("INVITE", "sip:1001@x", "", "").replace("z9hG4bKINVITE", "z9hG4bKanother");
    net.sends_over(service, &another);
    assert_eq!(net.between, ["302"], "the service goes on");
    config.router.maintenance = false;
    net.configure(&config);
    net.wait(Duration::from_secs(60));
    assert_eq!(contact(net.asks("INVITE", "sip:1001@x", "")), "<sip:1001@127.0.0.1:5062;transport=tcp>");
}

/// Goal: a listener that opens at run time belongs to its hop from its first message on.
/// Method: an INVITE over a new index before the front's next turn.
#[test]
fn a_new_listener_belongs_to_its_hop_at_once() {
    let mut net = Net::redirect();
    net.role.orders.push(FrontOrder::Listener { index: 40, hop: Hop::Service }).unwrap();
    net.listener.0 = 40;
    assert_eq!(contact(net.asks("INVITE", "sip:1001@x", "")), "<sip:1001@127.0.0.1:5065;transport=tcp>");
}
