//! Offer and answer as whole texts, judged by RFC 3264 and RFC 8866.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::sdp::{Origin, SrtpRules};

fn local() -> LocalMedia {
    LocalMedia {
        addresses: IpAddr::from(Ipv4Addr::new(198, 51, 100, 7)).into(),
        codecs: vec![Codec::Pcmu, Codec::Pcma],
        dtmf: true,
        nat: None,
        srtp: SrtpRules::plain(),
    }
}

/// Plain media needs no keys.
const NO_KEYS: OwnKeys<'_> = OwnKeys { in_use: None, source: |_| false };

fn body(lines: &[&str]) -> String {
    let head = ["v=0", "o=alice 1 1 IN IP4 192.0.2.1", "s=-", "c=IN IP4 192.0.2.1", "t=0 0"];
    head.iter().chain(lines).map(|line| format!("{line}\r\n")).collect()
}

fn try_negotiate(lines: &[&str]) -> Result<Negotiated, OfferError> {
    negotiate(&parse(body(lines).as_bytes())?, &local(), NO_KEYS)
}

fn plan(lines: &[&str]) -> MediaPlan {
    try_negotiate(lines).unwrap().plan().clone()
}

/// The lines of the answer after the session part.
fn answer(lines: &[&str]) -> Vec<String> {
    let body = Origin::new(4).answer(&try_negotiate(lines).unwrap(), 16_384);
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.ends_with("\r\n"));
    text.split("\r\n").skip(5).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Goal: a common phone's offer gets the answer RFC 3264 §6 describes, whole.
/// Method: the text, line by line.
#[test]
fn an_ordinary_offer_is_answered_with_one_codec_and_events() {
    let offer = body(&[
        "m=audio 49170 RTP/AVP 9 8 0 96",
        "a=rtpmap:9 G722/8000",
        "a=rtpmap:8 PCMA/8000",
        "a=rtpmap:0 PCMU/8000",
        "a=rtpmap:96 telephone-event/8000",
        "a=fmtp:96 0-15",
        "a=ptime:30",
        "a=sendrecv",
    ]);
    let negotiated = negotiate(&parse(offer.as_bytes()).unwrap(), &local(), NO_KEYS).unwrap();
    let expected_plan = MediaPlan {
        remote_rtp: Some("192.0.2.1:49170".parse().unwrap()),
        remote_rtcp: Some("192.0.2.1:49171".parse().unwrap()),
        codec: Codec::Pcma,
        payload_type: 8,
        dtmf_payload_type: Some(96),
        ptime_ms: 30,
        send: true,
        receive: true,
        nat: None,
        srtp: None,
    };
    assert_eq!(*negotiated.plan(), expected_plan);
    let body = Origin::new(8).answer(&negotiated, 16_384);
    let expected = "v=0\r\no=- 4 2 IN IP4 198.51.100.7\r\ns=-\r\nc=IN IP4 198.51.100.7\r\nt=0 0\r\n\
        m=audio 16384 RTP/AVP 8 96\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:96 telephone-event/8000\r\n\
        a=fmtp:96 0-15\r\na=ptime:30\r\na=sendrecv\r\n";
    assert_eq!(std::str::from_utf8(&body).unwrap(), expected);
}

/// Goal: static payload types need no rtpmap, and one that says otherwise wins (RFC 3551 §6).
/// Method: formats with and without attributes.
#[test]
fn codecs_are_known_by_static_type_or_by_rtpmap() {
    let codec = |lines: &[&str]| {
        let plan = plan(lines);
        (plan.codec, plan.payload_type)
    };
    assert_eq!(codec(&["m=audio 4000 RTP/AVP 8 0"]), (Codec::Pcma, 8));
    assert_eq!(codec(&["m=audio 4000 RTP/AVP 3 18 0"]), (Codec::Pcmu, 0));
    assert_eq!(codec(&["m=audio 4000 RTP/AVP 97", "a=rtpmap:97 pcmu/8000/1"]), (Codec::Pcmu, 97));
    assert_eq!(codec(&["m=audio 4000 RTP/AVP 0 8", "a=rtpmap:0 GSM/8000"]), (Codec::Pcma, 8));
    assert_eq!(codec(&["m=audio 4000 RTP/AVP 97 0", "a=rtpmap:97 PCMU/16000"]), (Codec::Pcmu, 0));
    assert_eq!(codec(&["m=audio 4000 RTP/AVP 97 0", "a=rtpmap:97 PCMU/8000/2"]), (Codec::Pcmu, 0));
}

/// Goal: every media line is answered in its place, all but one with port 0 (RFC 3264 §6).
/// Method: video, SRTP audio, plain audio, plain audio again, an application line.
#[test]
fn every_media_line_is_answered_in_order() {
    let lines = answer(&[
        "m=video 5000/2 RTP/AVP 31 32",
        "a=rtpmap:31 H261/90000",
        "m=audio 5002 RTP/SAVP 0",
        "m=audio 5004 RTP/AVP 0",
        "m=audio 5006 RTP/AVP 0",
        "m=image 5008 udptl t38",
    ]);
    let media: Vec<_> = lines.iter().filter(|line| line.starts_with("m=")).map(String::as_str).collect();
    assert_eq!(
        media,
        [
            "m=video 0 RTP/AVP 31 32",
            "m=audio 0 RTP/SAVP 0",
            "m=audio 16384 RTP/AVP 0",
            "m=audio 0 RTP/AVP 0",
            "m=image 0 udptl t38",
        ]
    );
}

/// Goal: an unusable offer gets 488 and the reason of the line that came closest.
/// Method: one offer for each reason, and mixtures.
#[test]
fn offers_without_anything_in_common_get_488_with_a_reason() {
    const IPV6: OfferError = OfferError::Family { theirs: "IPv6", ours: "IPv4" };
    for (lines, expected, warn_code) in [
        (&[][..], OfferError::NoAudio, 304),
        (&["m=video 4000 RTP/AVP 31"], OfferError::NoAudio, 304),
        (&["m=audio 0 RTP/AVP 0"], OfferError::NoAudio, 304),
        (&["m=audio 4000 RTP/SAVP 0"], OfferError::SrtpOverPlain, 302),
        (&["m=audio 4000 RTP/SAVPF 0"], OfferError::Transport, 302),
        (&["m=audio 4000 UDP/TLS/RTP/SAVPF 0"], OfferError::Transport, 302),
        (&["m=audio 4000 RTP/AVPF 0"], OfferError::Transport, 302),
        (&["m=audio 4000 RTP/AVP 9 18 999 x"], OfferError::NoCommonCodec, 305),
        (&["m=audio 4000 RTP/AVP 9", "m=audio 4002 RTP/SAVP 0"], OfferError::NoCommonCodec, 305),
        (&["m=audio 4000 RTP/AVP 0", "c=IN IP4 phone.example"], OfferError::Address, 301),
        (&["m=audio 4000 RTP/AVP 0", "c=IN IP4 224.2.1.1/127"], OfferError::Address, 301),
        (&["m=audio 4000 RTP/AVP 0", "c=IN IP4 224.2.1.1"], OfferError::Address, 301),
        (&["m=audio 4000 RTP/AVP 0", "c=IN IP4 255.255.255.255"], OfferError::Address, 301),
        (&["m=audio 4000 RTP/AVP 0", "c=IN IP6 2001:db8::1"], IPV6, 301),
    ] {
        let error = try_negotiate(lines).unwrap_err();
        assert_eq!(error, expected, "{lines:?}");
        assert_eq!((error.status(), error.warn_code()), (488, warn_code));
    }
    let bare = parse(b"v=0\r\nm=audio 4000 RTP/AVP 0\r\n").unwrap();
    assert_eq!(negotiate(&bare, &local(), NO_KEYS), Err(OfferError::Address));
}

/// Goal: the media line's address goes before the session's, and IPv6 works as IPv4 does.
/// Method: both in one offer; an IPv6 peer of an IPv6 node.
#[test]
fn addresses_come_from_the_media_line_or_the_session() {
    let plan = plan(&["m=audio 4000 RTP/AVP 0", "c=IN IP4 203.0.113.9"]);
    assert_eq!(plan.remote_rtp, Some("203.0.113.9:4000".parse().unwrap()));
    let local = LocalMedia { addresses: IpAddr::from(Ipv6Addr::LOCALHOST).into(), ..local() };
    let offer = parse(b"v=0\r\nc=IN IP6 2001:db8::5\r\nm=audio 4000 RTP/AVP 0\r\n").unwrap();
    let negotiated = negotiate(&offer, &local, NO_KEYS).unwrap();
    assert_eq!(negotiated.plan().remote_rtcp, Some("[2001:db8::5]:4001".parse().unwrap()));
    let text = String::from_utf8(Origin::new(0).answer(&negotiated, 2000).to_vec()).unwrap();
    assert!(text.contains("o=- 0 0 IN IP6 ::1\r\n") && text.contains("c=IN IP6 ::1\r\n"), "{text}");
}

/// Goal: RTCP goes where a=rtcp says (RFC 3605), else to the next port.
/// Method: port alone, with address, nonsense, and the highest port, which has no next one.
#[test]
fn rtcp_goes_to_the_next_port_or_where_the_attribute_says() {
    let rtcp = |port: u16, attribute: &str| {
        let line = format!("m=audio {port} RTP/AVP 0");
        plan(&[&line, attribute]).remote_rtcp.map(|address| address.to_string())
    };
    assert_eq!(rtcp(4000, "a=rtcp:5001").as_deref(), Some("192.0.2.1:5001"));
    assert_eq!(rtcp(4000, "a=rtcp:5001 IN IP4 203.0.113.3").as_deref(), Some("203.0.113.3:5001"));
    assert_eq!(rtcp(4000, "a=rtcp:5001 IN IP4 0.0.0.0").as_deref(), Some("192.0.2.1:5001"));
    assert_eq!(rtcp(4000, "a=rtcp:oops").as_deref(), Some("192.0.2.1:4001"));
    assert_eq!(rtcp(65_535, "a=ptime:20"), None);
}

/// Goal: RTCP multiplexing is declined by silence (RFC 5761 §5.1.1), as are attributes we do not
/// know. Method: an offer with them.
#[test]
fn attributes_we_do_not_support_are_left_out_of_the_answer() {
    let lines =
        answer(&["a=group:BUNDLE 0", "m=audio 4000 RTP/AVP 0", "a=rtcp-mux", "a=mid:0", "a=crypto:1 x"]);
    assert_eq!(lines, ["m=audio 16384 RTP/AVP 0", "a=rtpmap:0 PCMU/8000", "a=ptime:20", "a=sendrecv"]);
}

/// Goal: each direction is answered by its mirror, media line before session (RFC 3264 §6.1), and
/// 0.0.0.0 is the old hold (§8.4). Method: all directions at both levels.
#[test]
fn hold_and_the_other_directions_are_mirrored() {
    let both = |session: &str, media: &str| {
        let lines = [session, "m=audio 4000 RTP/AVP 0", media];
        let plan = plan(&lines);
        (answer(&lines).pop().unwrap(), plan.send, plan.receive)
    };
    let is = |name: &str, send, receive| (format!("a={name}"), send, receive);
    assert_eq!(both("a=x", "a=sendonly"), is("recvonly", false, true));
    assert_eq!(both("a=x", "a=recvonly"), is("sendonly", true, false));
    assert_eq!(both("a=x", "a=inactive"), is("inactive", false, false));
    assert_eq!(both("a=sendonly", "a=x"), is("recvonly", false, true));
    assert_eq!(both("a=sendonly", "a=sendrecv"), is("sendrecv", true, true));
    assert_eq!(both("a=x", "c=IN IP4 0.0.0.0"), is("recvonly", false, true));
    let held = plan(&["m=audio 4000 RTP/AVP 0", "c=IN IP4 0.0.0.0", "a=inactive"]);
    assert_eq!((held.remote_rtp, held.remote_rtcp, held.send, held.receive), (None, None, false, false));
}

/// Goal: packet time is a multiple of 10 from 10 to 60 and never above maxptime.
/// Method: values on and off the grid.
#[test]
fn packet_time_is_a_multiple_of_ten_within_maxptime() {
    let ms = |lines: &[&str]| plan(&[&["m=audio 4000 RTP/AVP 0"], lines].concat()).ptime_ms;
    for (lines, expected) in [
        (&["a=x"][..], 20),
        (&["a=ptime:10"], 10),
        (&["a=ptime:60"], 60),
        (&["a=ptime:100"], 60),
        (&["a=ptime:35"], 30),
        (&["a=ptime:5"], 10),
        (&["a=ptime:0"], 20),
        (&["a=ptime: 30.0"], 30),
        (&["a=ptime:99999999999"], 20),
        (&["a=ptime:40", "a=maxptime:30"], 30),
        (&["a=maxptime:10"], 10),
        (&["a=maxptime:150"], 20),
    ] {
        assert_eq!(ms(lines), expected, "{lines:?}");
    }
}

/// Goal: telephone-event keeps the offerer's payload type and the events both know (RFC 4733
/// §2.4.1, §2.5.1.1). Method: lists, no list, no digits, another clock rate, DTMF off.
#[test]
fn telephone_events_are_intersected() {
    let offer = |fmtp: &str, rate: u32| {
        let map = format!("a=rtpmap:120 telephone-event/{rate}");
        let lines = ["m=audio 4000 RTP/AVP 0 120", &map, fmtp];
        let found = answer(&lines).into_iter().find(|line| line.starts_with("a=fmtp"));
        (plan(&lines).dtmf_payload_type, found)
    };
    let agreed = |events: &str| (Some(120), Some(format!("a=fmtp:120 {events}")));
    assert_eq!(offer("a=fmtp:120 0-16,32,36", 8000), agreed("0-16,36"));
    assert_eq!(offer("a=fmtp:120 0-11", 8000), agreed("0-11"));
    assert_eq!(offer("a=x", 8000), agreed("0-15"));
    assert_eq!(offer("a=fmtp:120 32,36", 8000), (None, None));
    assert_eq!(offer("a=fmtp:120 0-15", 16_000), (None, None));
    let lines = ["m=audio 4000 RTP/AVP 0 120", "a=rtpmap:120 telephone-event/8000"];
    let without = LocalMedia { dtmf: false, ..local() };
    let negotiated = negotiate(&parse(body(&lines).as_bytes()).unwrap(), &without, NO_KEYS).unwrap();
    assert_eq!(negotiated.plan().dtmf_payload_type, None);
}

/// Goal: the answer's t= is the offer's (RFC 3264 §6) and the version tells of changes only (§8).
/// Method: the same answer twice, another port, then the first again.
#[test]
fn the_version_grows_by_one_when_the_description_changes() {
    let offer = parse(
        body(&["t=0 0", "m=audio 4000 RTP/AVP 0"]).replace("t=0 0\r\nt=0 0", "t=2873397496 0").as_bytes(),
    );
    let negotiated = negotiate(&offer.unwrap(), &local(), NO_KEYS).unwrap();
    let mut origin = Origin::new(40);
    let mut line = |port: u16| {
        let text = String::from_utf8(origin.answer(&negotiated, port).to_vec()).unwrap();
        assert!(text.contains("\r\nt=2873397496 0\r\n"), "{text}");
        text.lines().nth(1).unwrap().to_owned()
    };
    assert_eq!(line(2000), "o=- 20 10 IN IP4 198.51.100.7");
    assert_eq!(line(2000), "o=- 20 10 IN IP4 198.51.100.7");
    assert_eq!(line(2002), "o=- 20 11 IN IP4 198.51.100.7");
    assert_eq!(line(2000), "o=- 20 12 IN IP4 198.51.100.7");
}

/// Goal: our offer names all we have, and we can read an answer to it (RFC 3264 §5, §7).
/// Method: the text; an answer that takes PCMA; our own answer to our own offer.
#[test]
fn our_offer_is_complete_and_its_answer_is_read() {
    let offer = Origin::new(0).offer(&local(), &OfferKeys::plain(), 16_400, Direction::BOTH);
    let expected = "v=0\r\no=- 0 0 IN IP4 198.51.100.7\r\ns=-\r\nc=IN IP4 198.51.100.7\r\nt=0 0\r\n\
        m=audio 16400 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
        a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16,36\r\na=ptime:20\r\na=sendrecv\r\n";
    assert_eq!(std::str::from_utf8(&offer).unwrap(), expected);
    let answer = body(&["m=audio 5000 RTP/AVP 8", "a=sendonly"]);
    let plan = read_answer(&local(), &OfferKeys::plain(), answer.as_bytes()).unwrap();
    assert_eq!(
        (plan.codec, plan.dtmf_payload_type, plan.send, plan.receive),
        (Codec::Pcma, None, false, true)
    );
    let mirror = negotiate(&parse(&offer).unwrap(), &local(), NO_KEYS).unwrap();
    let plan = read_answer(&local(), &OfferKeys::plain(), &Origin::new(1).answer(&mirror, 2000)).unwrap();
    assert_eq!((plan.codec, plan.dtmf_payload_type, plan.ptime_ms), (Codec::Pcmu, Some(101), 20));
}

/// Goal: an answer that rejects or does not fit our offer is an error. Method: one of each.
#[test]
fn answers_that_reject_or_invent_are_refused() {
    for (lines, expected) in [
        (&[][..], OfferError::NoAudio),
        (&["m=audio 0 RTP/AVP 0"], OfferError::NoAudio),
        (&["m=video 4000 RTP/AVP 31", "m=audio 4000 RTP/AVP 0"], OfferError::NoAudio),
        (&["m=audio 4000 RTP/SAVP 0"], OfferError::AnswerTransport),
        (&["m=audio 4000 RTP/AVP 18"], OfferError::NoCommonCodec),
    ] {
        assert_eq!(
            read_answer(&local(), &OfferKeys::plain(), body(lines).as_bytes()),
            Err(expected),
            "{lines:?}"
        );
    }
    assert_eq!(read_answer(&local(), &OfferKeys::plain(), b"nonsense").unwrap_err().status(), 400);
}

/// Goal: text from an offer cannot add lines to our answer. Method: a rejected line whose format
/// list carries a NUL and a bare CR is refused as syntax; odd bytes are only repeated.
#[test]
fn an_offer_cannot_inject_lines_into_the_answer() {
    assert_eq!(try_negotiate(&["m=video 4 x y\rm=audio 9 RTP/AVP 0"]).unwrap_err().status(), 400);
    let lines = answer(&["m=video 4 x a=b c=d", "m=audio 4000 RTP/AVP 0"]);
    assert_eq!(lines[0], "m=video 0 x a=b c=d");
}

mod security;
