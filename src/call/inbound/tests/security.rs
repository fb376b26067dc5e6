//! Calls over TLS and under SRTP (RFC 4568), with peers of both address families and behind a NAT.

use super::*;
use crate::rtp::srtp::SrtpPlan;

const THEIRS: &str = "inline:MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm";
const OTHERS: &str = "inline:NzB4d1BINUAvLEw6UzF3WSJ+PSdFcGdUJShpX1Zj";
const ALLOWED: CallSecurity = CallSecurity { allowed: true, required: false, caller: None };
const REQUIRED: CallSecurity = CallSecurity { allowed: true, required: true, caller: None };

/// An offer of RTP/SAVP with this key.
fn secured(key: &str) -> String {
    let crypto = format!("a=crypto:2 AES_CM_128_HMAC_SHA1_80 {key}\r\n");
    OFFER.replace("RTP/AVP", "RTP/SAVP") + &crypto
}

fn tls() -> Flow {
    Flow { transport: Transport::Tls, local: "192.0.2.1:5066".parse().unwrap(), ..flow() }
}

fn invite(body: &str) -> Request {
    request("INVITE", 1, "", "", body)
}

fn call(invite: Request, security: CallSecurity, rules: &CallRules) -> Result<InboundCall, Refusal> {
    InboundCall::new(LEG, INVITE, tls(), invite, "ours", security, rules)
}

/// 200 is sent.
fn answered(body: &str, security: CallSecurity) -> Script {
    let call = call(invite(body), security, &rules()).unwrap();
    Script::of(call, rules()).accepted()
}

fn established(security: CallSecurity) -> Script {
    let mut script = answered(&secured(THEIRS), security);
    script.ack(1, "");
    assert_eq!(script.said(), ["started"]);
    script
}

fn keys(script: &Script) -> SrtpPlan {
    *script.call.plan().unwrap().srtp.clone().expect("the call is under SRTP")
}

fn body_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The key in the only `a=crypto` line of a description.
fn key_in(description: &str) -> String {
    let lines: Vec<_> = description.lines().filter(|line| line.starts_with("a=crypto:")).collect();
    assert_eq!(lines.len(), 1, "{description}");
    lines[0].split_once("inline:").unwrap().1.to_owned()
}

/// Goal: refusals tell security from media and from the rest, each by rule, status and text (RFC 3261
/// §20.43). Method: INVITEs that cannot be calls, over TLS and TCP.
#[test]
fn refusals_name_their_rule() {
    let refused = |invite: Request, security: CallSecurity, rules: &CallRules| {
        let (rule, response) = call(invite, security, rules).unwrap_err();
        let warning = response.headers.first(&Name::Warning).map(|value| String::from_utf8_lossy(value));
        (rule, response.status, warning.unwrap_or_default().into_owned())
    };
    let no_random = CallRules { key_source: |_| false, ..rules() };
    let codec = OFFER.replace("RTP/AVP 0 101", "RTP/AVP 18");
    let hidden = CallSecurity { allowed: false, required: true, caller: None };
    for (body, security, rules, expected, text) in [
        (secured(THEIRS), PLAIN, rules(), ("security_media", 488), "302 voxring \"keys over an unencrypted"),
        (OFFER.to_owned(), REQUIRED, rules(), ("security_media", 488), "SRTP (RTP/SAVP) is required"),
        (secured("inline:x"), ALLOWED, rules(), ("security_media", 488), "306 voxring \"no a=crypto line"),
        (String::new(), hidden, rules(), ("security_media", 488), "srtp.sdes_over_plain"),
        (codec, ALLOWED, rules(), ("media_mismatch", 488), "305 voxring"),
        (secured(THEIRS), ALLOWED, no_random.clone(), ("no_random", 500), "no random numbers"),
        (String::new(), REQUIRED, no_random, ("no_random", 500), "no random numbers"),
        ("nonsense".to_owned(), ALLOWED, rules(), ("malformed", 400), "399 voxring"),
    ] {
        let (rule, status, warning) = refused(invite(&body), security, &rules);
        assert_eq!((rule, status), expected, "{warning}");
        assert!(warning.contains(text), "{warning}");
    }
    let timer = "Supported: timer\r\nSession-Expires: 60\r\n";
    let (rule, status, _) = refused(request("INVITE", 1, "", timer, OFFER), ALLOWED, &rules());
    assert_eq!((rule, status), ("session_interval", 422));
    let mut no_contact = invite(OFFER);
    no_contact.headers.remove(&Name::Contact);
    let (rule, status, _) = refused(no_contact, ALLOWED, &rules());
    assert_eq!((rule, status), ("malformed", 400));
}

/// Goal: a call under SRTP has the peer's key and one of ours in its plan from the start; an offer
/// that is the same is answered the same, to the byte (RFC 3264 §8). Method: INVITE, re-INVITE.
#[test]
fn a_call_under_srtp_keeps_its_keys_while_the_offer_stays() {
    let mut script = established(REQUIRED);
    let first = keys(&script);
    assert_eq!(first.receive.key_and_salt(), b"123456789ABCDE0123456789ABcdef");
    assert_ne!(first.send.key_and_salt(), first.receive.key_and_salt());
    assert_eq!(script.opened[0].media.as_ref().unwrap().srtp.as_deref(), Some(&first));
    let answer = script.response().body.clone();
    let text = body_of(&answer);
    assert!(text.contains("m=audio 20000 RTP/SAVP 0 101\r\n"), "{text}");
    assert!(text.contains("a=crypto:2 AES_CM_128_HMAC_SHA1_80 inline:"), "{text}");
    script.asks("INVITE", "", &secured(THEIRS));
    assert_eq!(script.said(), ["update", "200 INVITE"]);
    assert_eq!((&script.response().body, &keys(&script)), (&answer, &first));
}

/// Goal: a new key of the peer's is taken at once, and ours is new too; RTP/AVP is taken where SRTP
/// is no must, and the way back has a key that was never used (RFC 3711 §9.1).
/// Method: re-INVITEs with another key, without SRTP and with it again.
#[test]
fn a_reinvite_can_change_keys_and_leave_srtp() {
    let mut script = established(ALLOWED);
    let first = keys(&script);
    script.asks("INVITE", "", &secured(OTHERS));
    assert_eq!(script.said(), ["update", "200 INVITE"]);
    let second = script.plans.last().unwrap().srtp.clone().unwrap();
    assert_eq!(second.receive.key_and_salt(), b"70xwPH5@/,L:S1wY\"~='EpgT%(i_Vc");
    assert_ne!(second.send, first.send);
    script.ack(script.cseq, "");
    script.asks("INVITE", "", OFFER);
    assert_eq!(script.said(), ["update", "200 INVITE"]);
    assert_eq!(script.plans.last().unwrap().srtp, None);
    assert!(!body_of(&script.response().body).contains("crypto"));
    script.ack(script.cseq, "");
    script.asks("INVITE", "", &secured(OTHERS));
    script.said();
    let third = keys(&script);
    assert!(third.send != second.send && third.send != first.send);
}

/// Goal: where SRTP is a must a re-INVITE cannot end it, and the session stays as it was (RFC 3261
/// §14.2); where keys may not travel it cannot begin. Method: 488 and the plan after it.
#[test]
fn a_reinvite_cannot_break_the_calls_security() {
    let mut script = established(REQUIRED);
    let first = keys(&script);
    script.asks("INVITE", "", OFFER);
    assert_eq!(script.said(), ["488 INVITE"]);
    assert_eq!(keys(&script), first);
    let mut plain = Script::established("");
    plain.asks("INVITE", "", &secured(THEIRS));
    assert_eq!(plain.said(), ["488 INVITE"]);
    assert!(plain.header(&Name::Warning).contains("srtp.sdes_over_plain"));
}

/// Goal: an INVITE without offer gets RTP/SAVP with every suite if SRTP is a must, and the ACK's
/// tag picks our key; an answer of RTP/AVP ends the call (RFC 4568 §5.1.3). Where it is no must the
/// offer is RTP/AVP. Method: our offer's lines; good and bad answers.
#[test]
fn an_offerless_invite_gets_every_suite_if_srtp_is_a_must() {
    let mut script = answered("", REQUIRED);
    let offer = body_of(&script.response().body);
    assert!(offer.contains("m=audio 20000 RTP/SAVP 0 8 101\r\n"), "{offer}");
    let lines: Vec<_> = offer.lines().filter(|line| line.starts_with("a=crypto:")).collect();
    let begins = [
        "a=crypto:1 AEAD_AES_128_GCM inline:",
        "a=crypto:2 AEAD_AES_256_GCM inline:",
        "a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:",
        "a=crypto:4 AES_CM_128_HMAC_SHA1_32 inline:",
    ];
    assert!(lines.len() == 4 && lines.iter().zip(begins).all(|(line, begin)| line.starts_with(begin)));
    script.ack(1, &secured(THEIRS).replace("crypto:2", "crypto:3"));
    assert_eq!(script.said(), ["update", "started"]);
    let agreed = keys(&script);
    let sent = OFFER.replace("RTP/AVP", "RTP/SAVP") + lines[2] + "\r\n";
    let as_peer = call(invite(&sent), ALLOWED, &rules()).unwrap();
    let offered = as_peer.plan().unwrap().srtp.clone().unwrap().receive;
    assert_eq!(agreed.send, offered, "we send with the key that was offered");

    for answer in [OFFER, &secured(THEIRS), ""] {
        let mut script = answered("", REQUIRED);
        script.ack(1, answer);
        assert_eq!(script.said(), ["BYE", "close"], "{answer}");
        assert_eq!(script.closes(), ["ended BadAnswer"]);
    }
    let plain = answered("", ALLOWED);
    assert!(body_of(&plain.response().body).contains("m=audio 20000 RTP/AVP 0 8 101\r\n"));
}

/// Goal: our session refresh offers the key in use and nothing else, so that nothing is re-keyed
/// (RFC 4028 §7.4); an offer that a re-INVITE asks for has every suite, the key in use among them.
/// Method: the refresh's body, an answer with a new key of the peer's; an offerless re-INVITE.
#[test]
fn a_refresh_does_not_change_our_key() {
    let mut script = established(ALLOWED);
    let first = keys(&script);
    let own = key_in(&body_of(&script.response().body));
    script.wakes();
    assert_eq!(script.said(), ["INVITE"]);
    let refresh = body_of(&script.requests.last().unwrap().1.body);
    assert!(refresh.contains("RTP/SAVP") && refresh.contains("a=crypto:1 AES_CM_128_HMAC_SHA1_80 "));
    assert_eq!(key_in(&refresh), own);
    script.replies(200, &[], &secured(THEIRS).replace("crypto:2", "crypto:1"));
    assert!(script.said().is_empty(), "nothing has changed");
    assert_eq!(keys(&script), first);

    script.wakes();
    script.said();
    script.replies(200, &[], &secured(OTHERS).replace("crypto:2", "crypto:1"));
    assert_eq!(script.said(), ["update"]);
    assert_eq!(keys(&script).send, first.send);
    assert_ne!(keys(&script).receive, first.receive);

    script.asks("INVITE", "", "");
    let offer = {
        script.said();
        body_of(&script.response().body)
    };
    assert_eq!(offer.lines().filter(|line| line.starts_with("a=crypto:")).count(), 4);
    assert!(offer.contains(&format!("a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:{own}")), "{offer}");
}

/// Goal: RFC 3261 §12.1.1, §26.2.2: over TLS our Contact is at the node's name, and a sips: URI if
/// the request speaks of one; over UDP or TCP a sips: Request-URI is refused. Method: one INVITE each.
#[test]
fn the_contact_over_tls_has_the_nodes_name() {
    let named = CallRules { fqdn: Some("vm.example".into()), ..rules() };
    let contact = |rules: &CallRules, invite: Request| {
        let mut call = call(invite, ALLOWED, rules).unwrap();
        call.accept(rules);
        let ringing = std::iter::from_fn(|| call.poll_output()).find_map(|output| match output {
            Output::Respond(_, response) if response.status == 180 => Some(response),
            _ => None,
        });
        String::from_utf8(ringing.unwrap().headers.first(&Name::Contact).unwrap().to_vec()).unwrap()
    };
    let plain_uri = || invite(OFFER);
    let mut sips_uri = invite(OFFER);
    sips_uri.uri = "sips:1001@vm.example".into();
    let mut sips_to = invite(OFFER);
    sips_to.headers.remove(&Name::To);
    sips_to.headers.push(Name::To, "<sips:1001@vm.example>");
    let mut sips_contact = invite(OFFER);
    sips_contact.headers.remove(&Name::Contact);
    sips_contact.headers.push(Name::Contact, "<sips:2000@192.0.2.7>");
    assert_eq!(contact(&named, plain_uri()), "<sip:1001@vm.example:5066;transport=tls>");
    assert_eq!(contact(&rules(), plain_uri()), "<sip:1001@192.0.2.1:5066;transport=tls>");
    for secure in [sips_uri.clone(), sips_to, sips_contact] {
        assert_eq!(contact(&named, secure), "<sips:1001@vm.example:5066>");
    }
    let over_tcp = InboundCall::new(LEG, INVITE, flow(), sips_uri, "ours", ALLOWED, &named);
    let (rule, response) = over_tcp.unwrap_err();
    assert_eq!((rule, response.status), ("sips_over_plain", 403));
}

/// Goal: media is where the offer's family is, or, for an offer of ours, the SIP flow's; the leg is
/// bound there and stays there. Method: a node with two addresses; a re-INVITE of the other family.
#[test]
fn the_legs_address_is_of_the_offers_family_or_the_flows() {
    let addresses = serde_json::from_str(r#"["192.0.2.1", "2001:db8::1"]"#).unwrap();
    let mut both = rules();
    both.local.addresses = addresses;
    let v6_flow = Flow {
        local: "[2001:db8::1]:5065".parse().unwrap(),
        remote: "[2001:db8::7]:33000".parse().unwrap(),
        ..flow()
    };
    let v6_offer = OFFER.replace("IP4 192.0.2.7", "IP6 2001:db8::7");
    for (flow, body, address) in [
        (flow(), OFFER, "192.0.2.1"),
        (flow(), &v6_offer, "2001:db8::1"),
        (v6_flow, OFFER, "192.0.2.1"),
        (flow(), "", "192.0.2.1"),
        (v6_flow, "", "2001:db8::1"),
    ] {
        let call = InboundCall::new(LEG, INVITE, flow, invite(body), "ours", PLAIN, &both).unwrap();
        let mut script = Script::of(call, both.clone()).accepted();
        assert_eq!(script.opened[0].address, address.parse::<std::net::IpAddr>().unwrap());
        let sent = body_of(&script.response().body);
        assert!(sent.contains(&format!(" {address}\r\nt=0 0")), "{sent}");
        let (same, other) = if address.contains(':') { (&*v6_offer, OFFER) } else { (OFFER, &*v6_offer) };
        script.ack(1, same);
        script.said();
        script.asks("INVITE", "", other);
        assert_eq!(script.said(), ["488 INVITE"]);
        assert!(script.header(&Name::Warning).contains("301"));
    }
}

/// Goal: with `rtp.nat` the plan names the address that signals, in every offer and answer; without
/// it none. Method: an INVITE whose flow comes from another address than its SDP, and a re-INVITE.
#[test]
fn behind_a_nat_media_may_come_from_the_address_that_signals() {
    let natted = Flow { remote: "203.0.113.5:40001".parse().unwrap(), ..flow() };
    let behind = CallRules { nat: true, ..rules() };
    for (rules, expected) in [(behind, Some("203.0.113.5".parse().unwrap())), (rules(), None)] {
        let call = InboundCall::new(LEG, INVITE, natted, invite(OFFER), "ours", PLAIN, &rules).unwrap();
        assert_eq!(call.plan().unwrap().nat, expected);
        let mut script = Script::of(call, rules).accepted();
        script.ack(1, "");
        script.asks("INVITE", "", &OFFER.replace("40000", "40002"));
        script.said();
        assert_eq!(script.plans[0].nat, expected);
    }
}

/// Goal: neither a call nor what it does shows a key. Method: `Debug` of a call under SRTP.
#[test]
fn a_call_under_srtp_shows_no_key() {
    let script = established(ALLOWED);
    let own = key_in(&body_of(&script.response().body));
    let shown = format!("{:?} {:?} {:?}", script.call, script.opened, script.call.plan());
    for secret in [own.as_str(), "MTIz", "12345", "49, 50, 51"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

/// Goal: keys of a call over TLS never leave in the clear, whatever the caller's Contact says (RFC 4568
/// §7.1: the hop must be protected). Method: a Contact of `transport=tcp`, a closed connection, then a
/// session refresh, which offers the key in use.
#[test]
fn a_refresh_of_a_call_over_tls_goes_over_tls_or_not_at_all() {
    let mut script = established(ALLOWED);
    assert_eq!(script.call.destination(), Destination::Flow(tls()));
    script.call.handle_flow_closed(tls().id);
    script.wakes();
    let sent = std::iter::from_fn(|| script.call.poll_output()).find_map(|output| match output {
        Output::Request(destination, request) => Some((destination, body_of(&request.body))),
        _ => None,
    });
    let (destination, body) = sent.expect("the session is refreshed");
    assert!(body.contains("a=crypto:"), "{body}");
    let remote = "192.0.2.7:5070".parse().unwrap();
    assert_eq!(
        destination.destination,
        Destination::Address { transport: Transport::Tls, remote, listener: 0 }
    );
    let plain = Script::established("");
    assert!(plain.call.may_come_over(Transport::Udp) && plain.call.may_come_over(Transport::Tls));
    assert!(script.call.may_come_over(Transport::Tls));
    assert!(!script.call.may_come_over(Transport::Tcp) && !script.call.may_come_over(Transport::Udp));
}

/// Goal: whatever byte a description fails at, the Warning stays a quoted string without control
/// characters (RFC 3261 §25.1). Method: lines of every ASCII type.
#[test]
fn a_warning_of_a_bad_description_is_well_formed() {
    for byte in (0..128u8).filter(|byte| !b"\r\n".contains(byte)) {
        let body = format!(
            "v=0\r\no=a 1 1 IN IP4 192.0.2.7\r\ns=-\r\n{}=x\r\n{}=\"\\\r\n",
            byte as char, byte as char
        );
        let Err((_, response)) = call(invite(&body), ALLOWED, &rules()) else { continue };
        let warning = response.headers.first(&Name::Warning).expect("it says why").to_vec();
        let warning = String::from_utf8(warning).unwrap();
        let text = warning.splitn(3, ' ').nth(2).unwrap();
        let inside = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap();
        let plain = inside.replace("\\\\", "").replace("\\\"", "");
        assert!(!plain.contains(['"', '\\']) && !plain.contains(char::is_control), "{warning:?}");
    }
}
