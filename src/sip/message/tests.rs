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
