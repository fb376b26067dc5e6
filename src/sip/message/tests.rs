use super::*;

const INVITE: &str = "INVITE sip:4001@voicemail.example.com;user=phone SIP/2.0\r\n\
    Via: SIP/2.0/TCP gw1.example.com:5060;branch=z9hG4bK74bf9,SIP/2.0/UDP [2001:db8::9]:5061;rport\r\n\
    f: \"Smith, John\" <sip:+12025550123@gw1.example.com;user=phone>;tag=9fxced76sl\r\n\
    To : <sip:4001@voicemail.example.com>\r\n\
    i: 3848276298220188511@gw1.example.com\r\n\
    CSeq: 1 INVITE\r\n\
    m: <sip:+12025550123@gw1.example.com;transport=tcp>\r\n\
    Subject: a\r\n\t folded\r\n  line\r\n\
    X-Odd:\r\n\
    Content-Length: 4\r\n\
    \r\n\
    v=0\n";

fn parse(text: &str) -> Result<Message, ParseError> {
    Message::parse(Bytes::copy_from_slice(text.as_bytes()))
}

fn invite() -> Request {
    match parse(INVITE).unwrap() {
        Message::Request(request) => request,
        Message::Response(_) => panic!("a request"),
    }
}

/// Goal: an ordinary INVITE with compact names, a fold, a Via list and blanks before a colon is
/// understood. Method: RFC 3261's grammar read by hand.
#[test]
fn an_ordinary_invite_is_understood() {
    let request = invite();
    assert_eq!(request.method, Method::Invite);
    assert_eq!(&request.uri[..], b"sip:4001@voicemail.example.com;user=phone");
    assert_eq!(&request.body[..], b"v=0\n");
    let vias = request.headers.vias().unwrap();
    assert_eq!(vias.len(), 2);
    assert_eq!(request.top_via().unwrap().branch(), Some("z9hG4bK74bf9"));
    assert_eq!(vias[1].port, Some(5061));
    assert!(vias[1].has_rport() && vias[1].rport().is_none());
    let from = request.from().unwrap();
    assert_eq!(from.display.as_deref(), Some("Smith, John"));
    assert_eq!(from.tag(), Some("9fxced76sl"));
    assert_eq!(from.uri.user().as_deref(), Some("+12025550123"));
    assert_eq!(request.cseq().unwrap(), CSeq { number: 1, method: Method::Invite });
    assert_eq!(request.call_id().unwrap(), "3848276298220188511@gw1.example.com");
    assert_eq!(request.headers.first(&Name::Subject).unwrap(), "a folded line");
    assert_eq!(request.headers.first(&Name::parse(b"x-odd").unwrap()).unwrap(), "");
    assert_eq!(request.contacts().unwrap().len(), 1);
}

fn refusal(text: &str) -> (u16, String, Option<String>) {
    let error = parse(text).expect_err(text);
    let response = error.response().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    (error.status, error.reason, response)
}

/// Goal: what was read is written in order, names long, the body as it was. Method: the INVITE
/// above, written by hand.
#[test]
fn a_message_is_written_with_long_names_and_its_content_length() {
    let written = Message::Request(invite()).to_bytes();
    let expected = "INVITE sip:4001@voicemail.example.com;user=phone SIP/2.0\r\n\
        Via: SIP/2.0/TCP gw1.example.com:5060;branch=z9hG4bK74bf9,SIP/2.0/UDP [2001:db8::9]:5061;rport\r\n\
        From: \"Smith, John\" <sip:+12025550123@gw1.example.com;user=phone>;tag=9fxced76sl\r\n\
        To: <sip:4001@voicemail.example.com>\r\n\
        Call-ID: 3848276298220188511@gw1.example.com\r\n\
        CSeq: 1 INVITE\r\n\
        Contact: <sip:+12025550123@gw1.example.com;transport=tcp>\r\n\
        Subject: a folded line\r\n\
        X-Odd: \r\n\
        Content-Length: 4\r\n\
        \r\n\
        v=0\n";
    assert_eq!(std::str::from_utf8(&written).unwrap(), expected);
    assert_eq!(Message::parse(written), Ok(Message::Request(invite())));
}

/// Goal: a response carries back what RFC 3261 §8.2.6 says and nothing else. Method: compare with
/// the request.
#[test]
fn a_response_copies_what_the_rfc_says() {
    let mut request = invite();
    request.headers.push(Name::Timestamp, "54");
    let response = Response::for_request(&request, 180, "Ringing");
    let names: Vec<&str> = response.headers.iter().map(|h| h.name.as_str()).collect();
    assert_eq!(names, ["Via", "From", "To", "Call-ID", "CSeq"]);
    assert_eq!(response.headers.vias(), request.headers.vias());
    assert_eq!(response.to().unwrap().tag(), None);
    let trying = Response::for_request(&request, 100, "Trying");
    assert_eq!(trying.headers.first(&Name::Timestamp).unwrap(), "54");
    assert!(Message::Response(trying).to_bytes().starts_with(b"SIP/2.0 100 Trying\r\n"));
}

/// Goal: the body of a datagram is what Content-Length says, all of the rest without it, and a
/// length beyond the datagram is 400. Method: RFC 3261 §18.3, one datagram each.
#[test]
fn content_length_rules_the_body_of_a_datagram() {
    let with = |line: &str| INVITE.replace("Content-Length: 4\r\n", line);
    let body = |text: String| match parse(&text).unwrap() {
        Message::Request(request) => request.body,
        Message::Response(_) => panic!("a request"),
    };
    assert_eq!(body(with("")), "v=0\n");
    assert_eq!(body(with("l:4\r\nContent-Length : 04\r\n")), "v=0\n");
    assert_eq!(body(with("Content-Length:\r\n 2\r\n")), "v=");
    for bad in ["5", "-1", "+4", "4 4", "0x4", "", "four", "4\r\nl: 3", "4, 4", "99999999999999999999999"] {
        let (status, _, response) = refusal(&with(&format!("Content-Length: {bad}\r\n")));
        assert_eq!(status, 400, "{bad}");
        assert!(response.unwrap().starts_with("SIP/2.0 400 "), "{bad}");
    }
}

/// Goal: a body is bytes, whatever they are, and a body that starts with a blank is no fold.
/// Method: every byte value, after each kind of start.
#[test]
fn bodies_are_bytes() {
    for start in [&b" "[..], b"\t", b"\r\n", b"\n", b""] {
        let mut request = invite();
        let mut body = start.to_vec();
        body.extend(0..=255u8);
        request.body = body.into();
        let message = Message::Request(request);
        assert_eq!(Message::parse(message.to_bytes()), Ok(message));
    }
}

/// Goal: what RFC 3261 makes mandatory or single is enforced, with a status and a response that
/// finds its way back. Method: the INVITE above with one thing wrong.
#[test]
fn a_request_with_one_thing_wrong_gets_its_status() {
    for (from, to, status, reason) in [
        ("i: 3848276298220188511@gw1.example.com\r\n", "", 400, "Missing Call-ID"),
        ("To : <sip:4001@voicemail.example.com>\r\n", "", 400, "Missing To"),
        ("CSeq: 1 INVITE", "CSeq: 1 INVITE\r\nCSeq: 2 INVITE", 400, "Repeated CSeq"),
        ("CSeq: 1 INVITE", "CSeq: 1 invite", 400, "CSeq Method Does Not Match"),
        ("CSeq: 1 INVITE", "CSeq: 4294967296 INVITE", 400, "Malformed CSeq"),
        ("i: 3848", "i: 38 48", 400, "Malformed Call-ID"),
        (" SIP/2.0\r\n", " SIP/3.0\r\n", 505, "Version Not Supported"),
        (" SIP/2.0\r\n", " HTTP/1.1\r\n", 400, "Malformed Request-Line"),
        ("INVITE sip", "INV(TE sip", 400, "Malformed Request-Line"),
        ("INVITE sip:4001@", "INVITE sip:@", 400, "Malformed Request-URI"),
        ("X-Odd:", "X-Odd", 400, "Header Field Without Colon"),
        ("X-Odd:", "X Odd:", 400, "Malformed Header Field Name"),
        ("X-Odd:", "X-Odd: a\nb: c", 400, "Bare LF in Message Head"),
        ("X-Odd:", "X-Odd: a\n b", 400, "Bare CR or LF in Header Field"),
        ("X-Odd:", "X-Odd: a\rb", 400, "Bare CR or LF in Header Field"),
        ("X-Odd:", "Max-Forwards: 256", 400, "Malformed Max-Forwards"),
        ("X-Odd:", "Max-Forwards: 70\r\nMax-Forwards: 70", 400, "Repeated Max-Forwards"),
        ("m: <", "m: *, <", 400, "Malformed Contact"),
        ("\r\n\r\nv=0\n", "\r\n", 400, "Incomplete Message"),
    ] {
        let text = INVITE.replacen(from, to, 1);
        assert_ne!(text, INVITE, "{from:?} is in the message");
        let (real_status, real_reason, response) = refusal(&text);
        assert_eq!((real_status, real_reason.as_str()), (status, reason), "{to:?}");
        let response = response.filter(|_| !to.starts_with("INV(TE"));
        if let Some(response) = response {
            assert!(
                response.starts_with(&format!("SIP/2.0 {status} {reason}\r\nVia: SIP/2.0/TCP gw1")),
                "{to}"
            );
            assert!(response.ends_with("Content-Length: 0\r\n\r\n"), "{to}");
        } else {
            assert!(to.starts_with("INV(TE"), "{to}");
        }
    }
}

/// Goal: a message typed with bare line feeds is refused, but told so. Method: the INVITE above
/// without its carriage returns.
#[test]
fn a_message_with_bare_line_feeds_is_told_so() {
    let (status, reason, response) = refusal(&INVITE.replace('\r', ""));
    assert_eq!((status, reason.as_str()), (400, "Bare LF in Message Head"));
    assert!(response.unwrap().contains("\r\nCSeq: 1 INVITE\r\n"));
}

/// Goal: a refusal has a To tag, the same for each copy of the request. Method: two copies, and
/// one with a tag already there.
#[test]
fn a_refusal_has_a_to_tag_that_copies_share() {
    let bad = INVITE.replace("CSeq: 1 INVITE", "CSeq: 1 BYE");
    let (_, _, first) = refusal(&bad);
    let (_, _, second) = refusal(&bad);
    assert_eq!(first, second);
    let Message::Response(response) = parse(&first.unwrap()).unwrap() else { panic!("a response") };
    assert!(response.to().unwrap().tag().is_some());
    let (_, _, tagged) = refusal(&bad.replace("example.com>\r\ni:", "example.com>;tag=me\r\ni:"));
    assert!(tagged.unwrap().contains("To: <sip:4001@voicemail.example.com>;tag=me\r\n"));
}

/// Goal: nothing is answered that must not or cannot be. Method: a broken response, a broken ACK,
/// requests without Via or CSeq, noise.
#[test]
fn responses_acks_and_noise_are_refused_silently() {
    let response = "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP a\r\nCSeq: 1 INVITE\r\n\r\n";
    let ack = INVITE.replace("INVITE", "ACK").replace("To :", "X:");
    let no_via = INVITE.replace("Via:", "X:").replace("CSeq: 1", "CSeq: x");
    let no_cseq = INVITE.replace("CSeq:", "X:");
    for text in [response, &ack, &no_via, &no_cseq, "", "\r\n\r\n", "\0\0\0\0", "GET / HTTP/1.1\r\n\r\n"] {
        let (status, _, response) = refusal(text);
        assert_eq!((status, response), (400, None), "{text:?}");
    }
}

/// Goal: status codes are three digits, 100 to 699. Method: the edges of RFC 3261 §7.2.
#[test]
fn status_codes_are_three_digits_from_100_to_699() {
    let status_line = |line: &str| {
        let text = "SIP/2.0 200 OK\r\nv: SIP/2.0/UDP a\r\nf: <sip:a@b>;tag=1\r\nt: <sip:c@d>\r\ni: x\r\n\
            CSeq: 1 OPTIONS\r\n\r\n";
        parse(&text.replace("SIP/2.0 200 OK", line))
    };
    for line in ["SIP/2.0 100 Trying", "sip/2.0 699 x", "SIP/2.0 200 ", "SIP/2.0 200", "SIP/2.0 200 a  b"] {
        assert!(matches!(status_line(line), Ok(Message::Response(_))), "{line}");
    }
    for line in
        ["SIP/2.0 099 x", "SIP/2.0 700 x", "SIP/2.0 20 x", "SIP/2.0 2000 x", "SIP/2.0  200 x", "SIP/2.0"]
    {
        assert!(status_line(line).is_err(), "{line}");
    }
}

/// Goal: size limits hold. Method: one header field and one byte too many.
#[test]
fn limits_hold() {
    let many = |count: usize| INVITE.replace("X-Odd:\r\n", &"X: y\r\n".repeat(count));
    let others = INVITE.lines().skip(1).take_while(|line| !line.is_empty()).count() - 3; // Folds, X-Odd.
    let room = crate::base::limits::SIP_HEADERS_MAX - others;
    assert!(parse(&many(room)).is_ok());
    assert_eq!(refusal(&many(room + 1)).1, "Too Many Header Fields");
    let long = |length: usize| {
        let text = INVITE.replace("Content-Length: 4\r\n", "").replace("v=0\n", "");
        let body = "x".repeat(length - text.len());
        parse(&format!("{text}{body}"))
    };
    assert!(long(SIP_MESSAGE_BYTES_MAX).is_ok());
    assert_eq!(long(SIP_MESSAGE_BYTES_MAX + 1).unwrap_err().status, 413);
}

/// Goal: header fields can be edited without making a second message of a value. Method: each
/// operation once.
#[test]
fn header_fields_are_edited_in_place() {
    let mut headers = invite().headers;
    headers.push_front(Name::Via, "SIP/2.0/UDP proxy;branch=z9hG4bK1");
    assert_eq!(headers.top_via().unwrap().host.to_string(), "proxy");
    assert_eq!(headers.remove_first_value(&Name::Via).unwrap(), "SIP/2.0/UDP proxy;branch=z9hG4bK1");
    assert!(headers.remove_first_value(&Name::Via).unwrap().starts_with(b"SIP/2.0/TCP gw1"));
    assert_eq!(headers.vias().unwrap().len(), 1);
    headers.push(Name::Via, "second");
    let at = headers.iter().position(|h| h.name == Name::Via);
    headers.set(Name::Via, " SIP/2.0/UDP only\r\nX-Injected: yes ");
    assert_eq!(headers.all(&Name::Via).collect::<Vec<_>>(), ["SIP/2.0/UDP only  X-Injected: yes"]);
    assert_eq!(headers.iter().position(|h| h.name == Name::Via), at);
    headers.push(Name::ContentLength, "7");
    assert!(!headers.contains(&Name::ContentLength));
    headers.push(Name::Supported, "timer, 100rel ,,");
    headers.push(Name::Supported, "");
    assert!(headers.has_token(&Name::Supported, "100REL") && !headers.has_token(&Name::Supported, ""));
    assert_eq!(headers.values(&Name::Supported).count(), 2);
    headers.remove(&Name::Via);
    assert!(headers.vias().unwrap().is_empty() && headers.top_via().is_err());
}

/// Goal: no message of ours, however made, reads as two. Method: values and a phrase with line
/// ends, parsed again.
#[test]
fn values_cannot_inject_fields() {
    let mut response = Response::for_request(&invite(), 400, "Bad\r\nX-Injected: yes");
    response.headers.push(Name::Warning, "399 a \"b\"\r\nX-Injected: yes\r\n\r\nbody");
    let again = Message::parse(Message::Response(response).to_bytes()).unwrap();
    assert!(!again.headers().contains(&Name::parse(b"X-Injected").unwrap()));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn token() -> impl Strategy<Value = String> {
        "[A-Za-z0-9.!%*_+`'~-]{1,12}"
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>().prop_map(|b| if matches!(b, 10 | 13) { 9 } else { b }), 0..30)
    }

    prop_compose! {
        fn message()(
            method in token(),
            fields in proptest::collection::vec((token(), value()), 0..12),
            body in proptest::collection::vec(any::<u8>(), 0..80),
            status in proptest::option::of(100u16..700),
            reason in "[^\r\n]{0,20}",
            number in any::<u32>(),
        ) -> Message {
            let mut headers = invite().headers;
            let method = Method::parse(method.as_bytes()).unwrap();
            headers.set(Name::CSeq, CSeq { number, method: method.clone() }.to_string());
            for (name, value) in fields {
                // A name with a meaning would be held to it.
                headers.push(Name::parse(format!("X-{name}").as_bytes()).unwrap(), value);
            }
            let body = Bytes::from(body);
            match status {
                Some(status) => Message::Response(Response { status, reason, headers, body }),
                None => Message::Request(Request { method, uri: "sip:a@b".into(), headers, body }),
            }
        }
    }

    proptest! {
        /// Goal: a message that is written reads as the same. Method: random methods, values of
        /// any byte but line ends, bodies of any byte.
        #[test]
        fn what_is_written_reads_the_same(message in message()) {
            prop_assert_eq!(Message::parse(message.to_bytes()), Ok(message));
        }

        /// Goal: no bytes make the parser panic, and what it takes it takes again after writing.
        /// Method: the INVITE with random cuts and splices.
        #[test]
        fn no_bytes_make_the_parser_panic(
            cuts in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3u8), 1..8),
        ) {
            let mut bytes = INVITE.as_bytes().to_vec();
            for (index, byte, kind) in cuts {
                let at = index.index(bytes.len().max(1)).min(bytes.len());
                match kind {
                    0 => bytes.insert(at, byte),
                    1 => bytes.truncate(at.max(40)),
                    _ => if let Some(there) = bytes.get_mut(at) { *there = byte },
                }
            }
            if let Ok(message) = Message::parse(bytes.into()) {
                prop_assert_eq!(Message::parse(message.to_bytes()), Ok(message));
            }
        }
    }
}
