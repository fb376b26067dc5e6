use bytes::Bytes;

use super::*;
use crate::sip::message::Message;

fn request(method: &str, uri: &str, extra: &str, body: &str) -> Request {
    let text = format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKa\r\n\
         From: <sip:alice@x>;tag=alice\r\nTo: <sip:1001@x>\r\nCall-ID: c1\r\nCSeq: 1 {method}\r\n\
         {extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    match Message::parse(Bytes::from(text)).unwrap() {
        Message::Request(request) => request,
        Message::Response(_) => panic!("a request"),
    }
}

/// The refusal: its status, and the value of the header field that says what would do.
fn refusal(request: &Request, name: &Name) -> (u16, String) {
    let response = inspect(request, &UasRules::default()).unwrap_err();
    let warning = response.headers.first(&Name::Warning).unwrap();
    assert!(warning.starts_with(b"399 voxring \""), "{warning:?}");
    assert!(response.headers.contains(&Name::Via) && response.headers.contains(&Name::CSeq));
    let value = response.headers.first(name).map(|value| String::from_utf8_lossy(value).into_owned());
    (response.status, value.unwrap_or_default())
}

/// Goal: a known method not served is 405, an unknown one 501, both with Allow (RFC 3261
/// §21.4.6, §21.5.2). Method: REGISTER and NEWMETHOD.
#[test]
fn methods_not_served_are_refused_with_allow() {
    let allow = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE".to_owned();
    let register = request("REGISTER", "sip:x", "", "");
    assert_eq!(refusal(&register, &Name::Allow), (405, allow.clone()));
    let unknown = request("NEWMETHOD", "sip:x", "", "");
    assert_eq!(refusal(&unknown, &Name::Allow), (501, allow));
}

/// Goal: 416 for a scheme we cannot route, 414 for an endless Request-URI (RFC 3261 §21.4.14,
/// §21.4.12); tel is fine. Method: one URI each.
#[test]
fn request_uris_are_checked() {
    let scheme = request("INVITE", "nobodyKnowsThisScheme:totallyopaquecontent", "", "");
    assert_eq!(refusal(&scheme, &Name::Warning).0, 416);
    let long = request("INVITE", &format!("sip:{}@x", "1".repeat(2048)), "", "");
    assert_eq!(refusal(&long, &Name::Warning).0, 414);
    assert!(inspect(&request("INVITE", "tel:+4930123", "", ""), &UasRules::default()).is_ok());
}

/// Goal: 420 names every option tag not understood, and only those (RFC 3261 §8.2.2.3); CANCEL
/// and ACK are spared. Method: Require over two fields.
#[test]
fn unknown_extensions_are_named_in_unsupported() {
    let require = "Require: timer, foo\r\nRequire: bar\r\n";
    let invite = request("INVITE", "sip:x", require, "");
    assert_eq!(refusal(&invite, &Name::Unsupported), (420, "foo, bar".to_owned()));
    for spared in ["ACK", "CANCEL"] {
        assert!(inspect(&request(spared, "sip:x", require, ""), &UasRules::default()).is_ok());
    }
    assert!(inspect(&request("INVITE", "sip:x", "Require: Timer\r\n", ""), &UasRules::default()).is_ok());
}

/// Goal: 415 with Accept for a body we do not read or that is encoded, 413 for one too large
/// (RFC 3261 §8.2.3, §21.4.11, §21.4.13). Method: one body each.
#[test]
fn bodies_not_understood_are_refused() {
    let sdp = "Content-Type: application/SDP;charset=utf-8\r\n";
    let accept = "application/sdp".to_owned();
    let text = request("INVITE", "sip:x", "Content-Type: text/plain\r\n", "hello");
    assert_eq!(refusal(&text, &Name::Accept), (415, accept.clone()));
    let untyped = request("INVITE", "sip:x", "", "hello");
    assert_eq!(refusal(&untyped, &Name::Accept), (415, accept.clone()));
    let zipped = request("INVITE", "sip:x", &format!("{sdp}Content-Encoding: gzip\r\n"), "v=0");
    assert_eq!(refusal(&zipped, &Name::AcceptEncoding), (415, "identity".to_owned()));
    let huge = request("INVITE", "sip:x", sdp, &"x".repeat(16_385));
    assert_eq!(refusal(&huge, &Name::Warning).0, 413);
    assert!(inspect(&request("INVITE", "sip:x", sdp, "v=0"), &UasRules::default()).is_ok());
}

/// Goal: a body that may be ignored, or means nothing, refuses nothing (RFC 3261 §20.11, §8.2.3).
/// Method: handling=optional; a BYE with text.
#[test]
fn bodies_that_do_not_matter_are_ignored() {
    let optional = "Content-Type: text/plain\r\nContent-Disposition: render;handling=optional\r\n";
    assert!(inspect(&request("INVITE", "sip:x", optional, "hello"), &UasRules::default()).is_ok());
    let bye = request("BYE", "sip:x", "Content-Type: text/plain\r\n", "bye");
    assert!(inspect(&bye, &UasRules::default()).is_ok());
}

/// Goal: a Warning stays one quoted string whatever it quotes (RFC 3261 §20.43). Method: quotes,
/// a backslash, a line end and other control characters.
#[test]
fn a_warning_quotes_its_text() {
    assert_eq!(warning("voxring", "a \"b\" \\ c\0\x1B\r\n"), r#"399 voxring "a \"b\" \\ c""#);
}
