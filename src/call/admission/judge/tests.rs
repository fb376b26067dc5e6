//! Every way in and every way out, one configuration and one INVITE at a time.

use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::base::config::GatewayStatus;
use crate::call::admission::{Limits, Load};
use crate::sip::flow::PeerNames;
use crate::sip::message::{Message, Method, Name};

const AVP: &str = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\n";
const SAVP: &str = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/SAVP 0\r\n";

/// Three gateways on two addresses, four dial plans, and hunt groups for each.
const EDGE: &str = r#"
[tls]
certificate = "c"
key = "k"
ca = "a"
[[gateway]]
name = "pbx"
address = ["192.0.2.0/24", "2001:db8::/64"]
[[gateway]]
name = "lync"
address = "Lync.Example.com"
[[gateway]]
name = "other"
address = "198.51.100.7"
certificate_name = "other.example.com"
status = "no_new_calls"
[[gateway]]
name = "off"
address = "198.51.100.8"
status = "disabled"
[[dial_plan]]
name = "main"
uri_type = "tel_extn"
extension_digits = 4
[[dial_plan]]
name = "uri"
uri_type = "sip_uri"
security = "sip_secured"
[[dial_plan]]
name = "world"
uri_type = "e164"
[[dial_plan]]
name = "safe"
security = "secured"
[[hunt_group]]
gateway = "pbx"
pilot = "5000"
dial_plan = "main"
mailbox = "1001"
[[hunt_group]]
gateway = "pbx"
pilot = "+49-30-5001"
dial_plan = "world"
[[hunt_group]]
gateway = "pbx"
pilot = "safe@vm.example"
dial_plan = "safe"
[[hunt_group]]
gateway = "pbx"
pilot = "safe"
dial_plan = "world"
[[hunt_group]]
gateway = "lync"
pilot = ""
dial_plan = "uri"
[[hunt_group]]
gateway = "lync"
pilot = "5000"
dial_plan = "safe"
"#;

fn admission(text: &str) -> Admission {
    let mut admission = Admission::new(&Config::parse(text, Path::new("a.toml")).unwrap().0);
    let lync = ["198.51.100.7", "198.51.100.9"].map(|ip| ip.parse().unwrap()).to_vec();
    admission.set_names(HashMap::from([("lync.example.com".to_owned(), lync)]));
    admission
}

/// A call in words: what stands in the request, and how it came.
#[derive(Clone)]
struct Call {
    uri: &'static str,
    from: &'static str,
    to: &'static str,
    diversion: &'static str,
    body: &'static str,
    source: &'static str,
    transport: Transport,
    names: Option<PeerNames>,
    vouched: Option<&'static str>,
}

const PLAIN: Call = Call {
    uri: "sip:5000@127.0.0.1",
    from: "<sip:2000@pbx>;tag=1",
    to: "<sip:5000@127.0.0.1>",
    diversion: "",
    body: AVP,
    source: "192.0.2.7",
    transport: Transport::Tcp,
    names: None,
    vouched: None,
};

fn dns(names: &[&str]) -> Option<PeerNames> {
    Some(PeerNames { dns_names: names.iter().map(|n| (*n).to_owned()).collect(), ..PeerNames::default() })
}

impl Call {
    fn judge(&self, admission: &Admission) -> Decision {
        let mut invite = Request::new(Method::Invite, self.uri);
        invite.headers.push(Name::From, self.from);
        invite.headers.push(Name::To, self.to);
        if !self.diversion.is_empty() {
            invite.headers.push(Name::Diversion, self.diversion);
        }
        invite.body = Bytes::from_static(self.body.as_bytes());
        let source = std::net::SocketAddr::new(self.source.parse().unwrap(), 33_000);
        let identity = self.names.as_ref();
        let origin = Origin { source, transport: self.transport, identity, vouched: self.vouched };
        admission.judge(&origin, &invite)
    }

    /// (gateway, dial plan, purpose, number, header) of a call that must get in.
    fn admitted(&self, admission: &Admission) -> (String, String, Purpose, String, &'static str) {
        let decision = self.judge(admission);
        let names: Vec<_> = decision.steps.iter().map(|step| step.name).collect();
        assert_eq!(names, ["source", "certificate", "hunt_group", "dial_plan", "security", "purpose"]);
        assert!(decision.steps.iter().all(|step| step.passed && !step.text.is_empty()), "{decision:?}");
        let admitted = decision.outcome.unwrap();
        let target = admitted.target;
        (admitted.gateway, admitted.dial_plan, admitted.purpose, target.number, target.header)
    }

    /// (status, rule, why) of a call that must not, and the step that says so.
    fn refused(&self, admission: &Admission) -> (u16, &'static str, &'static str, String) {
        let decision = self.judge(admission);
        let refused = decision.outcome.unwrap_err();
        let (last, before) = decision.steps.split_last().unwrap();
        assert!(before.iter().all(|step| step.passed) && !last.passed, "{:?}", decision.steps);
        assert_eq!(last.text, refused.why);
        (refused.status, refused.rule, last.name, refused.why)
    }
}

/// Goal: without gateways, plans and groups this machine's callers reach any number, and nobody else
/// does. Method: the defaults; callers from both loopbacks and from elsewhere, over each transport.
#[test]
fn without_gateways_the_loopback_reaches_any_number() {
    let admission = Admission::new(&Config::default());
    for source in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let call = Call { source, transport, uri: "sip:jo.doe@127.0.0.1", ..PLAIN };
            let found =
                ("loopback".into(), "default".into(), Purpose::Mailbox, "jo.doe".into(), "Request-URI");
            assert_eq!(call.admitted(&admission), found, "{source}");
        }
        assert!(admission.knows(source.parse().unwrap()));
    }
    let call = Call { source: "192.0.2.7", ..PLAIN };
    let why = "192.0.2.7 is no gateway's address".to_owned();
    assert_eq!(call.refused(&admission), (403, "unknown_source", "source", why));
    assert!(!admission.knows("192.0.2.7".parse().unwrap()));
    let tls = Call { source: "::1", transport: Transport::Tls, ..PLAIN };
    assert_eq!(tls.refused(&admission).1, "no_certificate");
    Call { names: dns(&["anybody"]), ..tls.clone() }.admitted(&admission);
    let encryption_only = self::admission("[tls]\npeer_certificate = \"none\"\n");
    tls.admitted(&encryption_only);
}

/// Goal: a gateway is known by address, network or looked-up name, the narrowest first, and its
/// standing counts. Method: one source each; names that are not looked up yet know nobody.
#[test]
fn a_gateway_is_known_by_its_addresses_and_its_standing_counts() {
    let admission = admission(EDGE);
    let cases = [
        ("203.0.113.1", 403, "unknown_source", "203.0.113.1 is no gateway's address"),
        ("2001:db8:0:1::1", 403, "unknown_source", "2001:db8:0:1::1 is no gateway's address"),
        ("198.51.100.8", 403, "gateway_disabled", "gateway \"off\" is disabled"),
    ];
    for (source, status, rule, why) in cases {
        let call = Call { source, ..PLAIN };
        assert_eq!(call.refused(&admission), (status, rule, "source", why.into()));
    }
    for source in ["192.0.2.255", "2001:db8::9", "::ffff:192.0.2.1"] {
        assert_eq!(Call { source, ..PLAIN }.admitted(&admission).0, "pbx", "{source}");
    }
    let narrow = format!(
        "{EDGE}[[gateway]]\nname=\"one\"\naddress=\"192.0.2.7\"\n[[hunt_group]]\ngateway=\"one\"\ndial_plan=\"main\"\nmailbox=\"1\"\n"
    );
    let narrow = self::admission(&narrow);
    assert_eq!(Call { uri: "sip:1001@x", ..PLAIN }.admitted(&narrow).0, "one");
    assert_eq!(Call { source: "192.0.2.8", ..PLAIN }.admitted(&narrow).0, "pbx");
    let mut unresolved = narrow;
    assert_eq!(unresolved.dns_names(), ["lync.example.com"]);
    assert!(unresolved.knows("198.51.100.9".parse().unwrap()));
    unresolved.set_names(HashMap::new());
    assert!(!unresolved.knows("198.51.100.9".parse().unwrap()));
}

/// Goal: over TLS the certificate must be the gateway's: a dNSName, the common name only without
/// one, whole names, no wildcards; the address itself for a gateway without names.
/// Method: certificates right and wrong for each kind of gateway.
#[test]
fn the_certificate_must_be_the_gateways() {
    let admission = admission(EDGE);
    let from = |source, names| Call { source, names, transport: Transport::Tls, ..PLAIN };
    let common = |name: &str| Some(PeerNames { common_name: Some(name.to_owned()), ..PeerNames::default() });
    let address =
        |ip: &str| Some(PeerNames { ip_addresses: vec![ip.parse().unwrap()], ..PeerNames::default() });
    let lync = |names| Call { body: SAVP, ..from("198.51.100.9", names) };
    assert_eq!(
        lync(dns(&["x.example.com", "lync.example.com"])).judge(&admission).outcome.unwrap_err().rule,
        "pilot_purpose"
    );
    for names in [common("lync.example.com"), dns(&["LYNC.example.com."])] {
        assert!(lync(names).judge(&admission).steps[1].passed);
    }
    let mut both = dns(&["a.example.com"]);
    both.as_mut().unwrap().common_name = Some("lync.example.com".into());
    let many: Vec<_> = (0..100).map(|n| format!("n{n}.example")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for names in [
        dns(&["*.example.com"]),
        common("*.example.com"),
        dns(&[]),
        both,
        address("198.51.100.9"),
        dns(&many),
    ] {
        let (status, rule, step, why) = lync(names).refused(&admission);
        assert_eq!((status, rule, step), (403, "wrong_certificate", "certificate"));
        assert!(why.ends_with("not \"lync.example.com\" of gateway \"lync\"") && why.len() < 250, "{why}");
    }
    assert_eq!(lync(None).refused(&admission).1, "no_certificate");
    assert_eq!(from("192.0.2.7", address("192.0.2.7")).admitted(&admission).0, "pbx");
    for names in [address("192.0.2.8"), dns(&["192.0.2.7"]), dns(&["pbx"])] {
        let why = from("192.0.2.7", names).refused(&admission).3;
        assert!(why.ends_with("not the address 192.0.2.7 of gateway \"pbx\""), "{why}");
    }
}

/// Goal: gateways that share an address are told apart by the name, each with its own standing.
/// Method: two at 198.51.100.7, one of which takes no calls.
#[test]
fn the_certificate_tells_gateways_on_one_address_apart() {
    let admission = admission(EDGE);
    let names = |name| Call {
        source: "198.51.100.7",
        transport: Transport::Tls,
        names: dns(&[name]),
        uri: "sip:ann@vm.example",
        ..PLAIN
    };
    assert_eq!(names("lync.example.com").admitted(&admission).0, "lync");
    let (status, rule, step, _) = names("other.example.com").refused(&admission);
    assert_eq!((status, rule, step), (503, "no_new_calls", "certificate"));
    let why = names("third.example.com").refused(&admission).3;
    let both = ["\"lync.example.com\" of gateway \"lync\"", "\"other.example.com\" of gateway \"other\""];
    assert!(both.iter().all(|text| why.contains(text)), "{why}");
}

/// Goal: the pilot picks the dial plan, user and host before user before any; a number that is no
/// pilot gets 404. Method: each rank, To in place of an empty Request-URI, separators in numbers.
#[test]
fn the_pilot_picks_the_dial_plan() {
    let admission = admission(EDGE);
    let plan = |uri, to| {
        let call = Call { uri, to, from: "<sip:+492000@pbx>;tag=1", diversion: "<tel:+491001>", ..PLAIN };
        call.judge(&admission).steps[2].text.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(plan("sip:5000@x", "<sip:9@x>"), "\"main\"");
    assert_eq!(plan("tel:5-0-00", "<sip:9@x>"), "\"main\"");
    assert_eq!(plan("sip:x.example", "<sip:5000@x>"), "\"main\"");
    assert_eq!(plan("sip:+49305001@x", "<sip:9@x>"), "\"world\"");
    assert_eq!(plan("sip:safe@VM.example", "<sip:9@x>"), "\"safe\"");
    assert_eq!(plan("sip:safe@elsewhere", "<sip:9@x>"), "\"world\"");
    for (uri, to) in [("sip:5001@x", "<sip:5000@x>"), ("sip:x", "<sip:x>")] {
        let (status, rule, step, why) = Call { uri, to, ..PLAIN }.refused(&admission);
        assert_eq!((status, rule, step), (404, "no_pilot", "hunt_group"));
        assert!(why.ends_with("is no pilot of gateway \"pbx\""), "{why}");
    }
}

/// One gateway whose numbers must look as `text` says.
fn numbering(text: &str) -> Admission {
    let gateway = "[[gateway]]\nname=\"g\"\naddress=\"192.0.2.7\"\n[[dial_plan]]\nname=\"p\"\n";
    admission(&format!("{gateway}{text}\n"))
}

const EXTENSIONS: &str = "uri_type = \"tel_extn\"\nextension_digits = 4";
const URIS: &str = "uri_type = \"sip_uri\"";
const NUMBERS: &str = "uri_type = \"e164\"";

/// Goal: each type takes what it is for: extensions, numbers of the world, URIs, anonymous callers.
/// Method: Request-URI, From and diversion of calls in a plan of each type.
#[test]
fn numbers_of_each_dial_plan_are_taken() {
    let good: [(&str, &'static str, &'static str, &'static str); 9] = [
        (EXTENSIONS, "sip:1001@x", "<sip:0301234567@pbx>", ""),
        (EXTENSIONS, "tel:+49301234", "\"Anonymous\" <sip:anonymous@anonymous.invalid>", ""),
        (EXTENSIONS, "sip:0800123@x", "<tel:1002>", "<tel:10-01>;reason=no-answer"),
        (URIS, "sip:ann@x", "<sip:bob@y>", "<sip:carol@z>"),
        (URIS, "sips:5000@x", "<sip:Anonymous@y>", ""),
        (NUMBERS, "tel:+1-425-5550123", "<sip:+4930123@y;user=phone>", "<tel:+14255550124>"),
        (NUMBERS, "sip:+14255550123@x", "<sip:anonymous@y>", ""),
        (EXTENSIONS, "sip:1001@x", "<sip:+123456789012345@pbx>", ""),
        (EXTENSIONS, "sip:(10)01@x", "<sip:1@pbx>", ""),
    ];
    for (plan, uri, from, diversion) in good {
        Call { uri, from, diversion, ..PLAIN }.admitted(&numbering(plan));
    }
    // The caller's own extension may have any length.
    Call { uri: "sip:1001@x", from: "<sip:20@pbx>", ..PLAIN }.admitted(&numbering(EXTENSIONS));
}

/// Request-URI, From, Diversion.
type Uris = [&'static str; 3];

/// Goal: From, diversion and called number look as the plan wants them; the refusal names URI, field
/// and plan (um-behaviour §1.3.3). Method: one plan of each type, one slip at a time.
#[test]
fn other_numbers_are_refused_by_field_and_plan() {
    let bad: [(&str, Uris, &str, &str); 9] = [
        (
            EXTENSIONS,
            ["sip:1001@x", "<sip:bob:pw@pbx>", ""],
            "uri_type",
            "SIP URI \"sip:bob@pbx\" in From is not valid for dial plan \"p\"",
        ),
        (EXTENSIONS, ["sip:1001@x", "<sip:pbx>", ""], "uri_type", "SIP URI \"sip:pbx\" in From"),
        (EXTENSIONS, ["sip:ann@x", "<sip:2@pbx>", ""], "uri_type", "SIP URI \"sip:ann@x\" in Request-URI"),
        (
            EXTENSIONS,
            ["sip:1001@x", "<sip:2@pbx>", "<sip:ann@x>"],
            "uri_type",
            "SIP URI \"sip:ann@x\" in Diversion",
        ),
        (
            EXTENSIONS,
            ["sip:100@x", "<sip:2@pbx>", ""],
            "extension_digits",
            "SIP URI \"sip:100@x\" in Request-URI is not valid for dial plan \"p\", which takes extensions of 4 digits",
        ),
        (
            EXTENSIONS,
            ["sip:100@x", "<sip:2@pbx>", "<tel:10010>"],
            "extension_digits",
            "SIP URI \"tel:10010\" in Diversion",
        ),
        (URIS, ["tel:1001", "<sip:bob@y>", ""], "uri_type", "SIP URI \"tel:1001\" in Request-URI"),
        (NUMBERS, ["sip:1001@x", "<sip:+49@y>", ""], "uri_type", "SIP URI \"sip:1001@x\" in Request-URI"),
        (NUMBERS, ["tel:+0301", "<sip:+49@y>", ""], "uri_type", "SIP URI \"tel:+0301\" in Request-URI"),
    ];
    for (plan, [uri, from, diversion], rule, text) in bad {
        let call = Call { uri, from, diversion, ..PLAIN };
        let (status, found, step, why) = call.refused(&numbering(plan));
        assert_eq!((status, found, step), (404, rule, "dial_plan"), "{why}");
        assert!(why.starts_with(text) && !why.contains("pw"), "{why}");
    }
}

/// Goal: signalling and media are as safe as the plan wants them, else 488 (um-behaviour §1.6).
/// Method: each security with each transport and offer.
#[test]
fn a_plans_security_binds_signalling_and_media() {
    let plan = |security: &str| {
        let text = "[tls]\ncertificate=\"c\"\nkey=\"k\"\npeer_certificate=\"none\"\n[[gateway]]\nname=\"g\"\naddress=\"192.0.2.7\"\n";
        admission(&format!("{text}[[dial_plan]]\nname=\"p\"\nsecurity=\"{security}\"\n"))
    };
    let (tls, tcp, udp) = (Transport::Tls, Transport::Tcp, Transport::Udp);
    let best_effort = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\n";
    let video = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\nm=video 4002 RTP/SAVP 96\r\n";
    let cases = [
        ("unsecured", udp, AVP, None),
        ("unsecured", tls, SAVP, None),
        ("sip_secured", udp, AVP, Some("security_sip")),
        ("sip_secured", tcp, SAVP, Some("security_sip")),
        ("sip_secured", tls, AVP, None),
        ("secured", tcp, SAVP, Some("security_sip")),
        ("secured", tls, AVP, Some("security_media")),
        ("secured", tls, best_effort, Some("security_media")),
        ("secured", tls, video, Some("security_media")),
        ("secured", tls, SAVP, None),
        ("secured", tls, "", None),
    ];
    for (security, transport, body, rule) in cases {
        let call = Call { transport, body, ..PLAIN };
        match rule {
            None => assert_eq!(call.admitted(&plan(security)).1, "p"),
            Some(rule) => {
                let (status, found, step, why) = call.refused(&plan(security));
                assert_eq!((status, found, step), (488, rule, "security"), "{security} {why}");
                assert!(why.contains("dial plan \"p\" takes"), "{why}");
            }
        }
    }
}

/// Goal: a diversion means call answering, the pilot itself its own mailbox or 404, any other number
/// its mailbox, and nobody 404. Method: one call each.
#[test]
fn the_purpose_follows_from_diversion_and_pilot() {
    let admission = admission(EDGE);
    let pilot = ("pbx".into(), "main".into(), Purpose::PilotMailbox, "1001".into(), "hunt group");
    assert_eq!(PLAIN.admitted(&admission), pilot);
    let diverted = Call { diversion: "<tel:1002>;reason=no-answer", ..PLAIN };
    let found = ("pbx".into(), "main".into(), Purpose::CallAnswering, "1002".into(), "Diversion");
    assert_eq!(diverted.admitted(&admission), found);
    let bare = Call { uri: "tel:+49305001", from: "<sip:+492000@pbx>;tag=1", ..PLAIN };
    let (status, rule, step, why) = bare.refused(&admission);
    assert_eq!((status, rule, step), (404, "pilot_purpose", "purpose"));
    assert_eq!(why, "pilot \"+49-30-5001\" has no mailbox of its own, and the call was not diverted");
    let nobody = Call { uri: "sip:127.0.0.1", to: "<sip:127.0.0.1>", source: "::1", ..PLAIN };
    let (status, rule, ..) = nobody.refused(&Admission::new(&Config::default()));
    assert_eq!((status, rule), (404, "no_number"));
}

/// Goal: what another hop of this node has found stands, but a gateway that is gone or disabled
/// meanwhile does not. Method: vouched names, at an address nobody has.
#[test]
fn a_vouched_gateway_needs_no_address_and_no_certificate() {
    let admission = admission(EDGE);
    let via = |vouched| Call { vouched: Some(vouched), source: "203.0.113.1", ..PLAIN };
    assert_eq!(via("pbx").admitted(&admission).0, "pbx");
    let tls = Call { transport: Transport::Tls, body: SAVP, uri: "sip:ann@x", ..via("lync") };
    assert_eq!(tls.admitted(&admission).1, "uri");
    assert_eq!(via("off").refused(&admission).1, "gateway_disabled");
    assert_eq!(via("gone").refused(&admission).1, "unknown_source");
}

/// Goal: requests other than INVITE take the first two steps, and a gateway that takes no new calls
/// may still ask. Method: sources of each kind.
#[test]
fn other_requests_take_the_first_two_steps() {
    let admission = admission(EDGE);
    let judge = |source: &str, transport, names: Option<&PeerNames>| {
        let source = std::net::SocketAddr::new(source.parse().unwrap(), 1);
        admission.judge_peer(&Origin { source, transport, identity: names, vouched: None })
    };
    assert_eq!(judge("192.0.2.7", Transport::Udp, None).unwrap(), "pbx");
    assert_eq!(judge("198.51.100.7", Transport::Tls, dns(&["other.example.com"]).as_ref()).unwrap(), "other");
    assert_eq!(judge("198.51.100.8", Transport::Tcp, None).unwrap_err().rule, "gateway_disabled");
    assert_eq!(judge("203.0.113.1", Transport::Tcp, None).unwrap_err().rule, "unknown_source");
    assert_eq!(judge("198.51.100.9", Transport::Tls, None).unwrap_err().rule, "no_certificate");
}

/// Goal: whatever a peer writes is judged without a panic and without a long text. Method: URIs and
/// headers off every path, in every plan.
#[test]
fn odd_requests_are_judged_too() {
    let admission = admission(EDGE);
    let odd = ["sip:@", "mailto:ann@x", "sip:%2B49%00@x", "tel:", "", "sip:5000;a=b@x", "sips:5000:p@x"];
    for uri in odd {
        for source in ["192.0.2.1", "198.51.100.9"] {
            let call = Call { uri, from: uri, to: uri, diversion: uri, body: uri, source, ..PLAIN };
            assert!(call.judge(&admission).steps.iter().all(|step| step.text.len() < 300));
        }
    }
    let text = "INVITE sip:5000@x SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=z9hG4bK1\r\nFrom: <sip:1@x>;tag=1\r\nTo: <sip:5000@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n";
    let Message::Request(invite) = Message::parse(Bytes::from_static(text.as_bytes())).unwrap() else {
        panic!()
    };
    let source = "192.0.2.1:1".parse().unwrap();
    let origin = Origin { source, transport: Transport::Udp, identity: None, vouched: None };
    assert!(admission.judge(&origin, &invite).outcome.is_ok());
}

/// Goal: calls at once and calls a second are limited, in the node, for a gateway and for a source,
/// and each refusal names the key. Method: limits of one or two, a fake clock.
#[test]
fn limits_are_told_apart_and_named() {
    use std::time::Duration;
    let text = "[calls]\ncalls_max=9\ncalls_per_s=3\n[limits]\nsource_calls_per_s=1\nsource_calls_burst=2\n\
                [[gateway]]\nname=\"g\"\naddress=\"192.0.2.0/24\"\ncalls_max=2\n";
    let config = Config::parse(text, Path::new("a.toml")).unwrap().0;
    let mut limits = Limits::new(&config);
    let now = crate::base::clock::now();
    let mut take = |at: u64, source: &str, gateway: &str, calls, gateway_calls| {
        let now = now + Duration::from_millis(at);
        let load = Load { calls, gateway_calls };
        let taken = limits.take(now, source.parse().unwrap(), gateway, load);
        taken.map_err(|refused| {
            assert_eq!((refused.status, refused.reason), (503, "Service Unavailable"));
            (refused.rule, refused.why)
        })
    };
    assert_eq!(take(0, "192.0.2.1", "g", 9, 0).unwrap_err().0, "calls_max");
    let (rule, why) = take(0, "192.0.2.1", "g", 8, 2).unwrap_err();
    assert_eq!((rule, why.as_str()), ("gateway_calls_max", "calls_max = 2 of gateway \"g\" is reached"));
    assert_eq!(take(0, "192.0.2.1", "loopback", 8, 8), Ok(()));
    assert_eq!(take(0, "192.0.2.1", "g", 8, 1), Ok(()));
    assert_eq!(take(0, "192.0.2.1", "g", 0, 0).unwrap_err().0, "source_calls");
    assert_eq!(take(0, "192.0.2.2", "g", 0, 0), Ok(()));
    assert_eq!(take(0, "192.0.2.2", "g", 0, 0).unwrap_err().0, "calls_per_s");
    assert_eq!(take(1000, "192.0.2.1", "g", 0, 0), Ok(()));
    limits.reload(&Config::parse("[calls]\ncalls_max=0\n", Path::new("a.toml")).unwrap().0);
    let load = Load { calls: 0, gateway_calls: 0 };
    assert_eq!(limits.take(now, "192.0.2.1".parse().unwrap(), "g", load).unwrap_err().rule, "calls_max");
}

const ROUTES: &str = r#"
[[gateway]]
name = "pbx"
address = ["192.0.2.0/24"]
[[gateway]]
name = "carrier"
address = ["198.51.100.7"]
call_uri = "sip:GW.example.com:5070;transport=tcp"
certificate_name = "sbc.example.com"
[[route]]
name = "out"
pattern = "0*"
gateways = ["carrier"]
strip_digits = 1
prefix = "+49"
[[dial_plan]]
name = "main"
uri_type = "tel_extn"
extension_digits = 4
"#;

/// Goal: what was dialled finds the route, whoever it was diverted from, and the length of extensions
/// binds mailboxes only. Method: a routed number, a mailbox's, and a diversion from a routed number.
#[test]
fn a_dialled_number_with_a_route_goes_on() {
    let admission = admission(ROUTES);
    let judge = |to: &str, diversion: Option<&'static str>| {
        let mut invite = Request::new(Method::Invite, to.to_owned());
        invite.headers.push(Name::From, "<sip:2000@pbx>;tag=1");
        invite.headers.push(Name::To, format!("<{to}>"));
        if let Some(diversion) = diversion {
            invite.headers.push(Name::Diversion, diversion);
        }
        let source = "192.0.2.7:5060".parse().unwrap();
        let origin = Origin { source, transport: Transport::Tcp, identity: None, vouched: None };
        admission.judge(&origin, &invite)
    };
    let decision = judge("sip:030123@vm", None);
    let admitted = decision.outcome.unwrap();
    assert_eq!(admitted.purpose, Purpose::Onward);
    assert_eq!(admitted.route.unwrap().number("030123"), "+4930123");
    let last = decision.steps.last().unwrap();
    assert_eq!((last.name, &last.text[..]), ("purpose", "route \"out\" (0*): \"+4930123\" at carrier"));
    let mailbox = judge("sip:1001@vm", Some("<sip:03012@pbx>;reason=no-answer")).outcome.unwrap_err();
    assert_eq!(mailbox.rule, "extension_digits", "the diversion names a mailbox");
    let admitted = judge("sip:1001@vm", None).outcome.unwrap();
    assert_eq!((admitted.purpose, admitted.route), (Purpose::Mailbox, None));
}

/// Goal: a gateway is called where its URI says, once its name has an address, and only while it takes
/// calls. Method: the name before and after it is looked up; a gateway without URI; one switched off.
#[test]
fn a_gateway_is_called_where_its_uri_says() {
    let mut admission = admission(ROUTES);
    assert_eq!(admission.way("carrier"), Err("the name in its call_uri has no address"));
    assert_eq!(admission.dns_names(), ["gw.example.com"]);
    let ip: IpAddr = "198.51.100.7".parse().unwrap();
    admission.set_names(HashMap::from([("gw.example.com".to_owned(), vec![ip])]));
    let (uri, remote) = admission.way("carrier").unwrap();
    assert_eq!(
        (uri.to_string().as_str(), remote),
        ("sip:gw.example.com:5070;transport=tcp", (ip, 5070).into())
    );
    assert_eq!(admission.callee_tls_name(ip, "carrier").as_deref(), Some("sbc.example.com"));
    assert_eq!(admission.way("pbx"), Err("it has no call_uri any more"));
    assert_eq!(admission.way("gone"), Err("it is not configured any more"));
    let mut config = Config::parse(ROUTES, Path::new("a.toml")).unwrap().0;
    config.gateway[1].status = GatewayStatus::NoNewCalls;
    admission.reload(&config);
    assert_eq!(admission.way("carrier"), Err("its status is not \"enabled\""));
}
