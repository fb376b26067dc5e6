//! The IPv6 torture messages of RFC 5118 against the parser and its typed readers.

use bytes::Bytes;
use voxring::sip::message::{Message, ParseError, Request};
use voxring::sip::uri::{Host, Uri};

/// The files have bare line feeds, two of them no empty line, and lengths that fit no body.
fn read(text: &str) -> Result<Message, ParseError> {
    let lines = text.lines().filter(|line| !line.starts_with("Content-Length:"));
    let text: String = lines.flat_map(|line| [line, "\r\n"]).collect();
    Message::parse(Bytes::from(text + "\r\n"))
}

macro_rules! message {
    ($name:literal) => {
        read(include_str!(concat!("rfc5118/", $name)))
    };
}

macro_rules! request {
    ($name:literal) => {
        match message!($name) {
            Ok(Message::Request(request)) => request,
            other => panic!("{}: {other:?}", $name),
        }
    };
}

/// The host of the Request-URI as an address, and its port.
fn target(request: &Request) -> (String, Option<u16>) {
    let Ok(Uri::Sip(uri)) = request.uri() else { panic!("{request:?}") };
    (uri.host.address().expect("an address").to_string(), uri.port)
}

/// Goal: §4.1 to §4.4: an address needs brackets, and what is in them is no port.
/// Method: values of the RFC.
#[test]
fn brackets_decide_what_is_address_and_what_is_port() {
    let good = request!("ipv6-good");
    assert_eq!(target(&good), ("2001:db8::10".to_owned(), None));
    assert_eq!(good.top_via().unwrap().host.to_string(), "[2001:db8::9:1]");
    assert_eq!(good.contacts().unwrap()[0].uri.to_string(), "sip:caller@[2001:db8::1]");
    let error = message!("ipv6-bad").unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.response().unwrap().starts_with(b"SIP/2.0 400 "));
    assert_eq!(target(&request!("port-ambiguous")), ("2001:db8::10:5070".to_owned(), None));
    assert_eq!(target(&request!("port-unambiguous")), ("2001:db8::10".to_owned(), Some(5070)));
}

/// Goal: §4.5: `received` is understood with and without brackets. Method: values of the RFC.
#[test]
fn received_is_understood_with_and_without_brackets() {
    let expected = "2001:db8::9:255".parse().ok();
    assert_eq!(request!("via-received-param-with-delim").top_via().unwrap().received(), expected);
    assert_eq!(request!("via-received-param-no-delim").top_via().unwrap().received(), expected);
}

/// Goal: §4.6 to §4.9: addresses of both families mix. Method: values of the RFC.
#[test]
fn addresses_of_both_families_mix() {
    assert!(request!("ipv6-in-sdp").body.starts_with(b"v=0\r\n"));
    assert_eq!(target(&request!("mult-ip-in-sdp")), ("2001:db8::10".to_owned(), None));
    let vias = request!("mult-ip-in-header").headers.vias().unwrap();
    let sent_by: Vec<_> = vias.iter().map(|via| (via.host.to_string(), via.port)).collect();
    let expected = [("[2001:db8::9:1]", Some(6050)), ("192.0.2.1", None), ("[2001:db8::9:255]", None)];
    assert_eq!(sent_by, expected.map(|(host, port)| (host.to_owned(), port)));
    let mapped = request!("ipv4-mapped-ipv6");
    let via = mapped.top_via().unwrap();
    assert_eq!(via.host, Host::V6("::ffff:192.0.2.10".parse().unwrap()));
    assert_eq!(via.port, Some(19823));
}

/// Goal: §4.10: the extra colon that RFC 3261's grammar allowed is tolerated.
/// Method: both messages of the RFC, which mean the same address.
#[test]
fn an_extra_colon_is_tolerated() {
    let expected = ("2001:db8::c000:201".to_owned(), None);
    assert_eq!(target(&request!("ipv6-correct-abnf-2-colons")), expected);
    let extra = request!("ipv6-bug-abnf-3-colons");
    assert_eq!(target(&extra), expected);
    assert_eq!(extra.to().unwrap().uri.to_string(), "sip:user@[2001:db8::c000:201]");
}
