//! The SIP torture messages of RFC 4475 against framer, parser and typed readers.

#[path = "rfc4475/table.rs"]
mod table;

use bytes::Bytes;
use table::{Answer, CASES, Case, Class, Datagram, Stream};
use voxring::sip::framer::{Frame, Framer, FramerLimits};
use voxring::sip::message::{Message, Method, Name, Request, Response};
use voxring::sip::uri::{Host, Uri};

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).expect("a name of the table")
}

fn request(name: &str) -> Request {
    match Message::parse(Bytes::from_static(case(name).bytes)) {
        Ok(Message::Request(request)) => request,
        other => panic!("{name}: {other:?}"),
    }
}

fn response(name: &str) -> Response {
    match Message::parse(Bytes::from_static(case(name).bytes)) {
        Ok(Message::Response(response)) => response,
        other => panic!("{name}: {other:?}"),
    }
}

fn user(uri: &Uri) -> &str {
    uri.as_sip().and_then(|uri| uri.user.as_deref()).expect("a user")
}

/// Goal: the table covers the RFC: 49 messages, of them 13 valid and 19 invalid, each expectation
/// at peace with the others. Method: count, and compare columns.
#[test]
fn the_table_has_all_49_messages_and_does_not_contradict_itself() {
    let count = |class| CASES.iter().filter(|case| case.class == class).count();
    assert_eq!(CASES.len(), 49);
    assert_eq!(count(Class::Valid), 13);
    assert_eq!(count(Class::Invalid), 19);
    assert_eq!(count(Class::Transaction), 1);
    assert_eq!(count(Class::Application), 15);
    assert_eq!(count(Class::Compatibility), 1);
    for case in CASES {
        let is_response = case.bytes.starts_with(b"SIP/2.0 ");
        assert_eq!(case.answer == Answer::Nothing, is_response, "{} {}", case.section, case.name);
        if let Datagram::Refused(status) = case.datagram {
            assert!(matches!(case.answer, Answer::OneOf(all) if all.contains(&status)), "{}", case.name);
        }
    }
}

/// Goal: each message as a datagram is understood, refused with the status of the RFC, or dropped
/// where the RFC drops it. Method: the table, against the parser.
#[test]
fn every_message_fares_as_the_rfc_says_in_a_datagram() {
    for case in CASES {
        let outcome = match Message::parse(Bytes::from_static(case.bytes)) {
            Ok(_) => Datagram::Understood,
            Err(error) => match error.response() {
                None => Datagram::Dropped,
                Some(bytes) => {
                    assert_eq!(refusal_status(&bytes), Some(error.status), "{}: {bytes:?}", case.name);
                    Datagram::Refused(error.status)
                }
            },
        };
        assert_eq!(outcome, case.datagram, "{} {}", case.section, case.name);
    }
}

/// The status of a refusal, which must be one frame. It copies what is malformed, so it need not
/// be a message to our own parser.
fn refusal_status(bytes: &Bytes) -> Option<u16> {
    let mut framer = Framer::new(FramerLimits::default());
    framer.push(bytes);
    if framer.poll() != Ok(Some(Frame::Message(bytes.clone()))) {
        return None;
    }
    let line = bytes.strip_prefix(b"SIP/2.0 ")?;
    std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
}

/// Goal: each message on a stream is framed, waited for, or ends the connection, as the RFC says.
/// Method: the table, against the framer, all at once and byte by byte.
#[test]
fn every_message_fares_as_the_rfc_says_on_a_stream() {
    for case in CASES {
        for chunk in [usize::MAX, 1] {
            let mut framer = Framer::new(FramerLimits::default());
            let mut messages = Vec::new();
            let mut broken = false;
            for bytes in case.bytes.chunks(chunk.min(case.bytes.len())) {
                framer.push(bytes);
                loop {
                    match framer.poll() {
                        Ok(Some(Frame::Message(message))) => messages.push(message),
                        Ok(Some(Frame::Ping | Frame::Pong)) => {}
                        Ok(None) => break,
                        Err(error) => {
                            assert_eq!(error.status, 400, "{}", case.name);
                            broken = true;
                            break;
                        }
                    }
                }
            }
            let outcome = match (broken, messages.len()) {
                (true, 0) => Stream::Broken,
                (false, 0) => Stream::Waits,
                (_, count) => Stream::Messages(count),
            };
            assert_eq!(outcome, case.stream, "{} {} by {chunk}", case.section, case.name);
            if let (Datagram::Understood, Some(first)) = (case.datagram, messages.first()) {
                assert!(Message::parse(first.clone()).is_ok(), "{}", case.name);
            }
        }
    }
}

/// Goal: §3.1.1.1: folds, blanks and mixed names are understood. Method: values read off the RFC.
#[test]
fn wsinv_is_understood_in_every_field() {
    let request = request("wsinv");
    let Uri::Sip(uri) = request.uri().unwrap() else { panic!("sip") };
    assert!(uri.params.has("unknownparam"));
    assert_eq!(request.to().unwrap().tag(), Some("1918181833n"));
    let from = request.from().unwrap();
    assert_eq!(from.display.as_deref(), Some("J Rosenberg \\\""));
    assert_eq!(from.tag(), Some("98asjd8"));
    assert_eq!(request.headers.max_forwards(), Ok(Some(68)));
    assert_eq!(request.cseq().unwrap().number, 9);
    assert_eq!(request.body.len(), 150);
    let vias = request.headers.vias().unwrap();
    let hops: Vec<_> = vias.iter().map(|via| (via.transport.as_str(), via.host.to_string())).collect();
    let expected = [("UDP", "192.0.2.2"), ("TCP", "spindle.example.com"), ("UDP", "192.168.255.111")];
    assert_eq!(hops, expected.map(|(transport, host)| (transport, host.to_owned())));
    let branches: Vec<_> = vias.iter().map(|via| via.branch().unwrap()).collect();
    assert_eq!(branches, ["390skdjuw", "z9hG4bK9ikj8", "z9hG4bK30239"]);
    assert_eq!(request.headers.first(&Name::Subject).unwrap(), "");
    let unknown = |name: &str| request.headers.first(&Name::parse(name.as_bytes()).unwrap()).unwrap();
    assert_eq!(unknown("newfangledheader"), "newfangled value continued newfangled value");
    assert_eq!(unknown("UnknownHeaderWithUnusualValue"), ";;,,;;,;");
    let contacts = request.contacts().unwrap();
    assert_eq!(contacts[0].display.as_deref(), Some("Quoted string \"\""));
    assert_eq!(contacts[0].params.value("newparam"), Some("newvalue"));
    assert!(contacts[0].params.has("secondparam"));
    assert_eq!(contacts[0].params.value("q"), Some("0.33"));
    let route = request.headers.addresses(&Name::Route).unwrap();
    assert!(route[0].uri.as_sip().unwrap().params.has("lr"));
}

/// Goal: §3.1.1.2: every token character, quoted NUL and UTF-8 survive. Method: values of the RFC.
#[test]
fn intmeth_keeps_the_whole_range_of_characters() {
    let request = request("intmeth");
    assert_eq!(request.method, Method::Other("!interesting-Method0123456789_*+`.%indeed'~".into()));
    let Uri::Sip(uri) = request.uri().unwrap() else { panic!("sip") };
    assert_eq!(uri.user.as_deref(), Some("1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"));
    assert_eq!(uri.password.as_deref(), Some("&it+has=1,weird!*pas$wo~d_too.(doesn't-it)"));
    assert_eq!(request.top_via().unwrap().branch(), Some("z9hG4bK-.!%66*_+`'~"));
    assert_eq!(request.to().unwrap().display.as_deref(), Some("BEL:\u{7} NUL:\u{0} DEL:\u{7f}"));
    let from = request.from().unwrap();
    assert_eq!(from.display.as_deref(), Some("token1~` token2'+_ token3*%!.-"));
    assert_eq!(from.params.value("fromParam''~+*_!.-%"), Some("работающий"));
    assert_eq!(from.tag(), Some("_token~1'+`*%!-."));
    assert_eq!(request.call_id().unwrap(), "intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{");
    let extension = Name::parse(b"extensionHeader-!.%*+_`'~").unwrap();
    assert_eq!(&request.headers.first(&extension).unwrap()[..], "\u{feff}大停電".as_bytes());
}

/// Goal: §3.1.1.3 to §3.1.1.5: escapes mean something in URIs and nothing in names.
/// Method: values of the RFC.
#[test]
fn escapes_are_undone_where_they_are_escapes_and_nowhere_else() {
    let esc01 = request("esc01");
    assert_eq!(user(&esc01.uri().unwrap()), "sips%3Auser%40example.com");
    assert_eq!(esc01.uri().unwrap().user().as_deref(), Some("sips:user@example.com"));
    assert_eq!(esc01.to().unwrap().uri.user().as_deref(), Some("user"));
    assert_eq!(esc01.from().unwrap().uri.user().as_deref(), Some("I have spaces"));
    let contact = &esc01.contacts().unwrap()[0];
    assert_eq!(contact.uri.user().as_deref(), Some("caller"));
    assert!(contact.uri.as_sip().unwrap().params.has("%6C%72"));

    let escnull = request("escnull");
    assert_eq!(escnull.to().unwrap().uri.user().as_deref(), Some("null-\0-null"));
    let users: Vec<_> = escnull.contacts().unwrap().iter().map(|c| c.uri.user().unwrap()).collect();
    assert_eq!(users, ["\0", "\0\0"]);

    let esc02 = request("esc02");
    assert_eq!(esc02.method, Method::Other("RE%47IST%45R".into()));
    assert_eq!(esc02.to().unwrap().display.as_deref(), Some("%Z%45"));
    assert_eq!(esc02.contacts().unwrap().len(), 2);
}

/// Goal: §3.1.1.6 to §3.1.1.11: a name against its bracket, long values, a second request behind
/// the first, `;` in a user part, unknown transports, a binary body. Method: values of the RFC.
#[test]
fn the_other_valid_requests_are_understood() {
    assert_eq!(request("lwsdisp").from().unwrap().display.as_deref(), Some("caller"));

    let longreq = request("longreq");
    let vias = longreq.headers.vias().unwrap();
    assert_eq!(vias.len(), 34);
    assert_eq!(vias[33].received().unwrap().to_string(), "192.0.2.5");
    assert_eq!(longreq.to().unwrap().uri.as_sip().unwrap().port, Some(6000));
    assert_eq!(longreq.body.len(), 150);

    let dblreq = request("dblreq");
    assert_eq!(dblreq.method, Method::Register);
    assert!(dblreq.body.is_empty());

    let semiuri = request("semiuri").uri().unwrap();
    assert_eq!(semiuri.user().as_deref(), Some("user;par=u@example.net"));
    assert_eq!(semiuri.as_sip().unwrap().host, Host::Name("example.com".to_owned()));
    let accepted: Vec<_> = request("semiuri").headers.values(&Name::Accept).collect();
    assert_eq!(accepted.len(), 6);

    let transports = request("transports").headers.vias().unwrap();
    let names: Vec<_> = transports.iter().map(|via| via.transport.as_str()).collect();
    assert_eq!(names, ["UDP", "SCTP", "TLS", "UNKNOWN", "TCP"]);

    let mpart01 = request("mpart01");
    assert_eq!(mpart01.method, Method::Message);
    assert_eq!(mpart01.body.len(), 553);
    assert_eq!(mpart01.headers.content_type().as_deref(), Some("multipart/mixed"));
    assert!(mpart01.top_via().unwrap().has_rport());
}

/// Goal: §3.1.1.12 and §3.1.1.13: any reason phrase, even none. Method: values of the RFC.
#[test]
fn responses_with_strange_reason_phrases_are_understood() {
    let unreason = response("unreason");
    assert_eq!(unreason.status, 200);
    assert_eq!(unreason.reason, "= 2**3 * 5**2 но сто девяносто девять - простое");
    assert_eq!(unreason.body.len(), 154);
    let noreason = response("noreason");
    assert_eq!((noreason.status, noreason.reason.as_str()), (100, ""));
    assert_eq!(noreason.cseq().unwrap().method, Method::Invite);
}

/// Goal: §3.3.12 to §3.3.14: parameters and header fields of a Contact belong to the URI only
/// inside brackets. Method: values of the RFC.
#[test]
fn contact_parameters_belong_where_the_brackets_say() {
    let contact = |name: &str| request(name).contacts().unwrap().remove(0);
    let (outside, inside) = (contact("cparam01"), contact("cparam02"));
    assert!(outside.params.has("unknownparam") && inside.params.is_empty());
    assert!(outside.uri.as_sip().unwrap().params.is_empty());
    assert!(inside.uri.as_sip().unwrap().params.has("unknownparam"));
    let uri = contact("regescrt").uri;
    assert_eq!(uri.as_sip().unwrap().headers.as_deref(), Some("Route=%3Csip:sip.example.com%3E"));
}

/// Goal: §3.2 to §3.4: what upper layers must see is there. Method: values of the RFC.
#[test]
fn messages_for_upper_layers_show_what_those_need() {
    assert_eq!(request("badbranch").top_via().unwrap().branch(), Some("z9hG4bK"));
    let unknown = Uri::Other { scheme: "nobodyKnowsThisScheme".into(), rest: "totallyopaquecontent".into() };
    assert_eq!(request("unkscm").uri().unwrap(), unknown);
    assert!(matches!(request("novelsc").uri().unwrap(), Uri::Other { scheme, .. } if scheme == "soap.beep"));
    assert!(matches!(request("unksm2").to().unwrap().uri, Uri::Other { scheme, .. } if scheme == "isbn"));
    assert!(request("bext01").headers.has_token(&Name::Require, "nothingSupportsThisEither"));
    assert_eq!(request("invut").headers.content_type().as_deref(), Some("application/unknownformat"));
    assert_eq!(response("bcast").headers.vias().unwrap().len(), 2);
    assert_eq!(request("zeromf").headers.max_forwards(), Ok(Some(0)));
    let inv2543 = request("inv2543");
    assert_eq!(inv2543.top_via().unwrap().branch(), None);
    assert_eq!(inv2543.from().unwrap().tag(), None);
    assert!(inv2543.body.ends_with(b"m=audio 49217 RTP/AVP 0\r\n"));
    assert_eq!(inv2543.headers.max_forwards(), Ok(None));
}
