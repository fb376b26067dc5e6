use bytes::Bytes;

use super::*;
use crate::sip::message::Message;

fn parse(text: String) -> Message {
    Message::parse(Bytes::from(text)).unwrap()
}

/// The peer's INVITE, as a record-routing proxy passes it on.
fn invite(extra: &str) -> Request {
    let text = format!(
        "INVITE sip:1001@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKa\r\n\
         From: \"A\" <sip:alice@pbx.example>;tag=alice\r\nTo: <sip:1001@pbx.example>\r\n\
         Call-ID: c1\r\nCSeq: 314 INVITE\r\n{extra}\r\n"
    );
    match parse(text) {
        Message::Request(request) => request,
        Message::Response(_) => panic!("a request"),
    }
}

const CONTACT: &str = "Contact: <sip:alice@192.0.2.7:5070>\r\n";

fn in_dialog(method: &str, cseq: u32, extra: &str) -> Request {
    let text = format!(
        "{method} sip:us@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKb\r\n\
         From: <sip:alice@pbx.example>;tag=alice\r\nTo: <sip:1001@pbx.example>;tag=us\r\n\
         Call-ID: c1\r\nCSeq: {cseq} {method}\r\n{extra}\r\n"
    );
    match parse(text) {
        Message::Request(request) => request,
        Message::Response(_) => panic!("a request"),
    }
}

fn uas(extra: &str) -> Dialog {
    Dialog::uas(&invite(&format!("{CONTACT}{extra}")), "us", "<sip:us@192.0.2.1:5065>").unwrap()
}

fn routes(request: &Request) -> Vec<Bytes> {
    request.headers.all(&Name::Route).cloned().collect()
}

/// Goal: the UAS keeps Record-Route in order, sends to the first entry, and turns From and To
/// around (RFC 3261 §12.1.1, §12.2.1.1). Method: BYE of a dialog through two proxies.
#[test]
fn a_request_of_the_uas_takes_the_route_set_in_order() {
    let mut dialog = uas("Record-Route: <sip:p2.example;lr>, <sip:p1.example;lr>\r\n");
    let bye = dialog.request(Method::Bye);
    assert_eq!(bye.uri, "sip:alice@192.0.2.7:5070");
    assert_eq!(routes(&bye), ["<sip:p2.example;lr>", "<sip:p1.example;lr>"]);
    assert_eq!(dialog.next_hop().to_string(), "sip:p2.example;lr");
    assert_eq!(bye.from().unwrap().tag(), Some("us"));
    assert_eq!(bye.from().unwrap().uri.to_string(), "sip:1001@pbx.example");
    assert_eq!(bye.to().unwrap().tag(), Some("alice"));
    assert_eq!(bye.headers.first(&Name::CallId).unwrap(), "c1");
    assert_eq!(bye.headers.first(&Name::CSeq).unwrap(), "1 BYE");
    assert!(!bye.headers.contains(&Name::Contact));
}

/// Goal: each request takes the next CSeq; only target refreshes carry Contact. Method: INVITE,
/// then BYE.
#[test]
fn cseq_grows_by_one_and_refreshes_carry_contact() {
    let mut dialog = uas("");
    let reinvite = dialog.request(Method::Invite);
    assert_eq!(reinvite.headers.first(&Name::CSeq).unwrap(), "1 INVITE");
    assert_eq!(reinvite.headers.first(&Name::Contact).unwrap(), "<sip:us@192.0.2.1:5065>");
    assert_eq!(dialog.ack(1).headers.first(&Name::CSeq).unwrap(), "1 ACK");
    assert_eq!(dialog.request(Method::Bye).headers.first(&Name::CSeq).unwrap(), "2 BYE");
}

/// Goal: a strict router gets itself as Request-URI and the target as last Route (RFC 3261
/// §12.2.1.1). Method: a first Record-Route without lr.
#[test]
fn a_strict_router_becomes_the_request_uri() {
    let mut dialog = uas("Record-Route: <sip:strict.example>, <sip:p1.example;lr>\r\n");
    let bye = dialog.request(Method::Bye);
    assert_eq!(bye.uri, "sip:strict.example");
    assert_eq!(routes(&bye), ["<sip:p1.example;lr>", "<sip:alice@192.0.2.7:5070>"]);
}

/// Goal: the UAC reverses Record-Route and takes target, tags and numbers from the exchange
/// (RFC 3261 §12.1.2). Method: our INVITE and the peer's 200.
#[test]
fn the_uac_reverses_the_route_set() {
    let mut request = Request::new(Method::Invite, "sip:bob@pbx.example");
    for (name, value) in [
        (Name::From, "<sip:us@x>;tag=us"),
        (Name::To, "<sip:bob@pbx.example>"),
        (Name::CallId, "c2"),
        (Name::CSeq, "7 INVITE"),
        (Name::Contact, "<sip:us@192.0.2.1>"),
    ] {
        request.headers.push(name, value);
    }
    let mut response = Response::for_request(&request, 200, "OK");
    response.headers.set(Name::To, "<sip:bob@pbx.example>;tag=bob");
    response.headers.push(Name::RecordRoute, "<sip:p2.example;lr>, <sip:p1.example;lr>");
    response.headers.push(Name::Contact, "<sip:bob@192.0.2.8>");
    let mut dialog = Dialog::uac(&request, &response).unwrap();
    assert_eq!(Some(dialog.id()), DialogId::of_response(&response).as_ref());
    assert_eq!(dialog.id().local_tag, "us");
    let ack = dialog.ack(7);
    assert_eq!(ack.uri, "sip:bob@192.0.2.8");
    assert_eq!(routes(&ack), ["<sip:p1.example;lr>", "<sip:p2.example;lr>"]);
    assert_eq!(ack.headers.first(&Name::CSeq).unwrap(), "7 ACK");
    assert_eq!(dialog.request(Method::Bye).headers.first(&Name::CSeq).unwrap(), "8 BYE");
    response.headers.remove(&Name::Contact);
    let forgiven = Dialog::uac(&request, &response).unwrap();
    assert_eq!(forgiven.remote_target().to_string(), "sip:bob@pbx.example");
}

/// Goal: an overtaken request is refused with 500, a gap is not (RFC 3261 §12.2.2); ACK has no
/// number of its own. Method: numbers around 314.
#[test]
fn an_overtaken_request_is_refused_with_500() {
    let mut dialog = uas("");
    assert_eq!(dialog.accept(&in_dialog("INVITE", 320, CONTACT)), Ok(()));
    assert_eq!(dialog.accept(&in_dialog("BYE", 319, "")), Err(500));
    assert_eq!(dialog.accept(&in_dialog("ACK", 314, "")), Ok(()));
    assert_eq!(dialog.accept(&in_dialog("BYE", 321, "")), Ok(()));
}

/// Goal: a 2xx to a re-INVITE moves the target, a refusal does not (RFC 3261 §12.2.2, RFC 6141
/// §4.9); a request without To tag gets ours. Method: 488, then 200.
#[test]
fn only_a_2xx_moves_the_remote_target() {
    let mut dialog = uas("");
    let moved = in_dialog("INVITE", 315, "Contact: <sip:alice@192.0.2.77>\r\n");
    let refusal = dialog.response(&moved, 488, "Not Acceptable Here");
    assert_eq!(dialog.remote_target().to_string(), "sip:alice@192.0.2.7:5070");
    assert!(!refusal.headers.contains(&Name::Contact));
    dialog.response(&moved, 200, "OK");
    assert_eq!(dialog.remote_target().to_string(), "sip:alice@192.0.2.77");
    let two = in_dialog("INVITE", 316, "Contact: <sip:x@192.0.2.1>, <sip:y@192.0.2.2>\r\n");
    dialog.response(&two, 200, "OK");
    assert_eq!(dialog.remote_target().to_string(), "sip:alice@192.0.2.77");
}

/// Goal: the response that makes the dialog has its To tag, Contact and the request's
/// Record-Route (RFC 3261 §12.1.1); a 100 has no tag. Method: 100, 180, 200.
#[test]
fn the_first_responses_carry_tag_contact_and_record_route() {
    let request = invite(&format!("{CONTACT}Record-Route: <sip:p;lr>\r\n"));
    let mut dialog = Dialog::uas(&request, "us", "<sip:us@192.0.2.1>").unwrap();
    assert_eq!(dialog.response(&request, 100, "Trying").to().unwrap().tag(), None);
    for status in [180, 200] {
        let response = dialog.response(&request, status, "Test");
        assert_eq!(response.to().unwrap().tag(), Some("us"));
        assert_eq!(response.headers.first(&Name::Contact).unwrap(), "<sip:us@192.0.2.1>");
        assert_eq!(response.headers.first(&Name::RecordRoute).unwrap(), "<sip:p;lr>");
    }
}

/// Goal: a request that cannot make a dialog is told why. Method: no Contact, two of them, too
/// many routes.
#[test]
fn an_invite_without_one_contact_makes_no_dialog() {
    let of = |extra: &str| Dialog::uas(&invite(extra), "us", "<sip:us@x>").map(|_| ()).unwrap_err();
    assert_eq!(of(""), DialogError::Contact);
    assert_eq!(of("Contact: <sip:a@x>, <sip:b@x>\r\n"), DialogError::Contact);
    let routes = "Record-Route: <sip:p;lr>\r\n".repeat(33);
    assert_eq!(of(&format!("{CONTACT}{routes}")), DialogError::RouteSet);
}

/// Goal: a request names the dialog by Call-ID and both tags, from our side; outside of dialogs
/// there is none (RFC 3261 §12). Method: BYE and INVITE.
#[test]
fn a_request_names_its_dialog() {
    let dialog = uas("");
    assert_eq!(DialogId::of_request(&in_dialog("BYE", 315, "")).as_ref(), Some(dialog.id()));
    assert_eq!(DialogId::of_request(&invite("")), None);
}

/// Goal: the INVITE that begins a dialog of ours has what RFC 3261 §8.1.1 asks for, and its answer makes
/// the dialog. Method: the INVITE field by field, then a BYE after a 200.
#[test]
fn a_dialog_of_ours_begins_with_an_invite() {
    let address = |text: &str| NameAddr::parse(text.as_bytes()).unwrap();
    let (local, remote) = (address("\"A\" <sip:2000@us>;tag=us"), address("<sip:1001@gw.example>"));
    let target = Uri::parse("sip:1001@gw.example;transport=tcp").unwrap();
    let mut dialog = Dialog::begin(target, &local, &remote, "c9", "<sip:2000@192.0.2.1:5065>");
    let invite = dialog.request(Method::Invite);
    assert_eq!(invite.uri, "sip:1001@gw.example;transport=tcp");
    assert_eq!(invite.headers.first(&Name::From).unwrap(), "\"A\" <sip:2000@us>;tag=us");
    assert_eq!(invite.headers.first(&Name::To).unwrap(), "<sip:1001@gw.example>");
    assert_eq!(invite.headers.first(&Name::CSeq).unwrap(), "1 INVITE");
    assert_eq!(invite.headers.first(&Name::Contact).unwrap(), "<sip:2000@192.0.2.1:5065>");
    let mut response = Response::for_request(&invite, 200, "OK");
    response.headers.set(Name::To, "<sip:1001@gw.example>;tag=them");
    response.headers.push(Name::Contact, "<sip:1001@192.0.2.7>");
    let bye = Dialog::uac(&invite, &response).unwrap().request(Method::Bye);
    assert_eq!((&bye.uri[..], bye.to().unwrap().tag()), (&b"sip:1001@192.0.2.7"[..], Some("them")));
    assert_eq!(bye.headers.first(&Name::CSeq).unwrap(), "2 BYE");
}
