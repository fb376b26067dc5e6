//! Offer and answer under SRTP, judged by RFC 4568 §5 and §7; two address families.

use super::*;
use crate::base::config::{Addresses, SrtpSuite};
use crate::rtp::srtp::SrtpPlan;
use crate::sdp::CryptoError;

/// Key and salt of RFC 4568's examples, 30 bytes, and another.
const THEIRS: &str = "inline:MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm";
const OTHERS: &str = "inline:NzB4d1BINUAvLEw6UzF3WSJ+PSdFcGdUJShpX1Zj";
/// 28 bytes, 0 to 27.
const GCM: &str = "inline:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw==";

/// Keys of 7s: in base64 `BwcH` for three of them.
const SEVENS: OwnKeys<'_> = OwnKeys { in_use: None, source: |key| fill(key, 7) };

fn fill(key: &mut [u8], with: u8) -> bool {
    key.fill(with);
    true
}

fn secured() -> LocalMedia {
    let srtp = SrtpRules { suites: SrtpSuite::ALL.to_vec(), allowed: true, required: false };
    LocalMedia { srtp, ..local() }
}

fn required() -> LocalMedia {
    let srtp = SrtpRules { required: true, ..secured().srtp };
    LocalMedia { srtp, ..local() }
}

fn savp(lines: &[&str]) -> String {
    body(&[&["m=audio 4000 RTP/SAVP 0"], lines].concat())
}

fn take(body: &str, local: &LocalMedia, keys: OwnKeys<'_>) -> Result<Negotiated, OfferError> {
    negotiate(&parse(body.as_bytes())?, local, keys)
}

fn keys_of(negotiated: &Negotiated) -> SrtpPlan {
    *negotiated.plan().srtp.clone().expect("SRTP was agreed on")
}

fn text_of(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}

/// Goal: RFC 4568 §5.1.2: the answer is RTP/SAVP with tag and suite of the line that was taken and a
/// key of the answerer's; the peer's key is for receiving. Method: the text, whole.
#[test]
fn an_offer_under_srtp_is_answered_with_its_tag_and_our_key() {
    let offer = savp(&[
        &format!("a=crypto:3 AES_CM_128_HMAC_SHA1_80 {THEIRS}|2^20|1:4 WSH=64"),
        &format!("a=crypto:4 AEAD_AES_128_GCM {GCM}"),
    ]);
    let negotiated = take(&offer, &secured(), SEVENS).unwrap();
    let expected = format!(
        "m=audio 16384 RTP/SAVP 0\r\na=rtpmap:0 PCMU/8000\r\na=ptime:20\r\na=sendrecv\r\n\
         a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:{}\r\n",
        "BwcH".repeat(10)
    );
    let mut origin = Origin::new(8);
    let answer = origin.answer(&negotiated, 16_384);
    assert!(text_of(&answer).ends_with(&expected), "{}", text_of(&answer));
    let SrtpPlan { send, receive } = keys_of(&negotiated);
    assert_eq!((send.key_and_salt(), send.mki()), (&[7; 30][..], None));
    assert_eq!(receive.key_and_salt(), b"123456789ABCDE0123456789ABcdef");
    assert_eq!(receive.mki().map(|mki| (mki.value, mki.bytes)), Some((1, 4)));
    assert_eq!(origin.answer(&negotiated, 16_384), answer, "the version did not grow");
}

/// Goal: the offerer's order decides among what we have (RFC 4568 §5.1.2); lines that cannot be used
/// are as if not there. Method: lists of lines, the tag that is taken.
#[test]
fn the_first_line_that_can_be_used_is_taken() {
    let cm = format!("AES_CM_128_HMAC_SHA1_80 {THEIRS}");
    let gcm = format!("AEAD_AES_128_GCM {GCM}");
    let few = |suites: &[SrtpSuite]| {
        let srtp = SrtpRules { suites: suites.to_vec(), ..secured().srtp };
        LocalMedia { srtp, ..local() }
    };
    let all = secured();
    let only_gcm = few(&[SrtpSuite::AeadAes128Gcm]);
    for (lines, local, tag) in [
        ([format!("1 {cm}"), format!("2 {gcm}")], &all, 1),
        ([format!("9 {gcm}"), format!("2 {cm}")], &all, 9),
        ([format!("1 {cm}"), format!("2 {gcm}")], &only_gcm, 2),
        ([format!("1 {cm}|1:5"), format!("2 {gcm}")], &all, 2),
        ([format!("1 {cm} UNENCRYPTED_SRTP"), format!("2 {cm}")], &all, 2),
        ([format!("1 F8_128_HMAC_SHA1_80 {THEIRS}"), format!("2 {cm}")], &all, 2),
    ] {
        let lines = lines.map(|line| format!("a=crypto:{line}"));
        let negotiated = take(&savp(&[&lines[0], &lines[1]]), local, SEVENS).unwrap();
        assert_eq!(negotiated.accepted.crypto_tag, Some(tag), "{lines:?}");
    }
}

/// Goal: what is not agreed on gets 488, a text that says what would be right and a rule that tells
/// security from the rest; no key is in it. Method: one offer for each reason.
#[test]
fn media_that_is_not_secure_as_it_must_be_is_refused_with_its_reason() {
    let crypto = format!("a=crypto:1 AES_CM_128_HMAC_SHA1_80 {THEIRS}");
    let plain_hop = LocalMedia { srtp: SrtpRules { allowed: false, ..required().srtp }, ..local() };
    let avp = ["m=audio 4000 RTP/AVP 0", crypto.as_str()];
    let savp = ["m=audio 4000 RTP/SAVP 0", crypto.as_str()];
    let line = |end: &str| format!("{crypto}{end}");
    let bad = |why| OfferError::Crypto(why);
    for (lines, local, expected, text) in [
        (&savp[..], local(), OfferError::SrtpOverPlain, "srtp.sdes_over_plain"),
        (&savp, plain_hop, OfferError::SrtpOverPlain, "srtp.sdes_over_plain"),
        (&avp, required(), OfferError::SrtpRequired, "RTP/SAVP) is required"),
        (&["m=audio 4000 RTP/SAVP 0"], secured(), bad(CryptoError::Missing), "there is none"),
        (&[savp[0], &line("==")], secured(), bad(CryptoError::Key), "not as long as"),
        (&[savp[0], &line("|1:32")], required(), bad(CryptoError::Mki), "MKI"),
        (&[savp[0], &line(" KDR=3")], secured(), bad(CryptoError::Parameter), "session parameters"),
        (&[savp[0], "a=crypto:1 X inline:y"], secured(), bad(CryptoError::Suite), "srtp.suites"),
        (
            &["m=audio 4000 RTP/AVP 0", "m=audio 4002 RTP/SAVP 0"],
            required(),
            bad(CryptoError::Missing),
            "none",
        ),
    ] {
        let error = take(&body(lines), &local, SEVENS).unwrap_err();
        assert_eq!(error, expected, "{lines:?}");
        assert_eq!((error.status(), error.rule()), (488, "security_media"));
        let told = error.to_string();
        assert!(told.contains(text) && !told.contains("MTIz"), "{told}");
    }
    let feedback = body(&["m=audio 4000 RTP/SAVPF 0", &crypto]);
    let error = take(&feedback, &required(), SEVENS).unwrap_err();
    assert_eq!((error.clone(), error.rule()), (OfferError::Transport, "media_mismatch"));
    let g729 = take(&body(&["m=audio 4000 RTP/SAVP 18", &crypto]), &secured(), SEVENS).unwrap_err();
    assert_eq!((g729.clone(), g729.rule()), (OfferError::NoCommonCodec, "media_mismatch"));
    let no_random = OwnKeys { in_use: None, source: |_| false };
    let error = take(&body(&savp), &secured(), no_random).unwrap_err();
    assert_eq!((error.status(), error.rule()), (500, "no_random"));
}

/// Goal: of two audio lines the one under SRTP is taken if it may and can be; "best effort" lines
/// stay plain (RFC 4568 §5: a=crypto is for RTP/SAVP). Method: the ports of the answer's lines.
#[test]
fn srtp_is_preferred_where_it_is_allowed_and_never_mixed_into_plain_rtp() {
    let crypto = format!("a=crypto:1 AES_CM_128_HMAC_SHA1_80 {THEIRS}");
    let both = body(&["m=audio 4000 RTP/AVP 0", "m=audio 4002 RTP/SAVP 0", &crypto]);
    let unusable = both.replace("inline", "uri");
    for (offer, local, expected) in [
        (&both, secured(), ["m=audio 0 RTP/AVP 0", "m=audio 16384 RTP/SAVP 0"]),
        (&both, required(), ["m=audio 0 RTP/AVP 0", "m=audio 16384 RTP/SAVP 0"]),
        (&both, local(), ["m=audio 16384 RTP/AVP 0", "m=audio 0 RTP/SAVP 0"]),
        (&unusable, secured(), ["m=audio 16384 RTP/AVP 0", "m=audio 0 RTP/SAVP 0"]),
    ] {
        let answer = text_of(&Origin::new(1).answer(&take(offer, &local, SEVENS).unwrap(), 16_384));
        let media: Vec<_> = answer.lines().filter(|line| line.starts_with("m=")).collect();
        assert_eq!(media, expected);
    }
    let best_effort = take(&body(&["m=audio 4000 RTP/AVP 0", &crypto]), &secured(), SEVENS).unwrap();
    assert_eq!(best_effort.plan().srtp, None);
    let answer = text_of(&Origin::new(1).answer(&best_effort, 16_384));
    assert!(answer.contains("m=audio 16384 RTP/AVP 0\r\n") && !answer.contains("crypto"), "{answer}");
}

/// Goal: our key stays while the peer's does and is new with a new peer's key or suite, so that no
/// packet index is used twice under one key (RFC 3711 §9.1). Method: offers after a first one.
#[test]
fn our_key_stays_as_long_as_the_peers_does() {
    let cm = |key: &str| savp(&[&format!("a=crypto:1 AES_CM_128_HMAC_SHA1_80 {key}")]);
    let first = take(&cm(THEIRS), &secured(), SEVENS).unwrap();
    let in_use = keys_of(&first);
    let again = OwnKeys { in_use: Some(&in_use), source: |key| fill(key, 8) };
    assert_eq!(keys_of(&take(&cm(THEIRS), &secured(), again).unwrap()), in_use);
    let tag = cm(THEIRS).replace("crypto:1", "crypto:5");
    assert_eq!(keys_of(&take(&tag, &secured(), again).unwrap()), in_use, "a tag is no key");
    let rekeyed = keys_of(&take(&cm(OTHERS), &secured(), again).unwrap());
    assert_eq!(rekeyed.receive.key_and_salt(), b"70xwPH5@/,L:S1wY\"~='EpgT%(i_Vc");
    assert_eq!(rekeyed.send.key_and_salt(), [8; 30]);
    let short = cm(THEIRS).replace("SHA1_80", "SHA1_32");
    let other_suite = keys_of(&take(&short, &secured(), again).unwrap());
    assert_eq!(other_suite.send.suite(), SrtpSuite::AesCm128HmacSha1_32);
    assert_eq!(other_suite.send.key_and_salt(), [8; 30]);
}

/// Goal: our offer under SRTP has one line a suite in our order, each with its own key (RFC 4568
/// §5.1.1), and the answer's tag picks among them (§5.1.3). Method: the text; answers to it.
#[test]
fn our_offer_has_a_key_for_each_suite_and_the_answer_picks_one() {
    let keys = OfferKeys::every_suite(&secured().srtp, SEVENS).unwrap();
    let offer = text_of(&Origin::new(0).offer(&secured(), &keys, 16_400, Direction::BOTH));
    let seven = |count| "BwcH".repeat(count);
    let expected = format!(
        "a=sendrecv\r\na=crypto:1 AEAD_AES_128_GCM inline:{}Bw==\r\na=crypto:2 AEAD_AES_256_GCM inline:{}Bwc=\r\n\
         a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:{}\r\na=crypto:4 AES_CM_128_HMAC_SHA1_32 inline:{}\r\n",
        seven(9),
        seven(14),
        seven(10),
        seven(10)
    );
    assert!(offer.contains("m=audio 16400 RTP/SAVP 0 8 101\r\n") && offer.ends_with(&expected), "{offer}");
    let read = |lines: &[&str]| read_answer(&secured(), &keys, body(lines).as_bytes());
    let with = |tag: u32, suite: &str| {
        let line = format!("a=crypto:{tag} {suite} {THEIRS}");
        read(&["m=audio 5000 RTP/SAVP 0", &line])
    };
    let srtp = with(3, "AES_CM_128_HMAC_SHA1_80").unwrap().srtp.unwrap();
    assert_eq!((srtp.send.suite(), srtp.send.key_and_salt()), (SrtpSuite::AesCm128HmacSha1_80, &[7; 30][..]));
    assert_eq!(srtp.receive.key_and_salt(), b"123456789ABCDE0123456789ABcdef");
    let wrong = Err(OfferError::Crypto(CryptoError::Suite));
    assert_eq!(with(3, "AES_CM_128_HMAC_SHA1_32"), wrong);
    assert_eq!(with(5, "AES_CM_128_HMAC_SHA1_80"), wrong);
    assert_eq!(with(0, "AES_CM_128_HMAC_SHA1_80"), wrong);
    assert_eq!(read(&["m=audio 5000 RTP/SAVP 0"]), Err(OfferError::Crypto(CryptoError::Missing)));
    assert_eq!(read(&["m=audio 5000 RTP/AVP 0"]), Err(OfferError::AnswerTransport));

    let mirror = take(&offer, &secured(), SEVENS).unwrap();
    let answer = Origin::new(1).answer(&mirror, 2000);
    let plan = read_answer(&secured(), &keys, &answer).unwrap();
    assert_eq!(plan.srtp.unwrap().send.suite(), SrtpSuite::AeadAes128Gcm);
}

/// Goal: an offer that changes nothing has the key in use alone; one that asks anew keeps it for
/// its suite; none is made where keys may not travel. Method: the lines of each.
#[test]
fn an_offer_within_a_call_keeps_the_key_in_use() {
    let offer = savp(&[&format!("a=crypto:2 AES_CM_128_HMAC_SHA1_80 {THEIRS}")]);
    let in_use = keys_of(&take(&offer, &secured(), SEVENS).unwrap());
    let lines = |keys: &OfferKeys| {
        let text = text_of(&Origin::new(0).offer(&secured(), keys, 2000, Direction::BOTH));
        text.lines().filter(|line| line.starts_with("a=crypto")).map(str::to_owned).collect::<Vec<_>>()
    };
    let own = format!("AES_CM_128_HMAC_SHA1_80 inline:{}", "BwcH".repeat(10));
    assert_eq!(lines(&OfferKeys::unchanged(Some(&in_use))), [format!("a=crypto:1 {own}")]);
    assert!(lines(&OfferKeys::unchanged(None)).is_empty());
    let again = OwnKeys { in_use: Some(&in_use), source: |key| fill(key, 8) };
    let every = lines(&OfferKeys::every_suite(&secured().srtp, again).unwrap());
    assert_eq!(every[2], format!("a=crypto:3 {own}"));
    assert_eq!(every[3], format!("a=crypto:4 AES_CM_128_HMAC_SHA1_32 inline:{}", "CAgI".repeat(10)));
    assert_eq!(OfferKeys::every_suite(&local().srtp, SEVENS), Err(OfferError::SrtpOverPlain));
}

/// Goal: no key is printed by what a log or a panic may show. Method: `Debug` of everything that
/// has one, for keys in base64, in bytes and in hexadecimal.
#[test]
fn keys_are_never_shown() {
    let offer = savp(&[&format!("a=crypto:2 AES_CM_128_HMAC_SHA1_80 {THEIRS}")]);
    let description = parse(offer.as_bytes()).unwrap();
    let negotiated = negotiate(&description, &secured(), SEVENS).unwrap();
    let mut origin = Origin::new(1);
    origin.answer(&negotiated, 2000);
    let keys = OfferKeys::every_suite(&secured().srtp, SEVENS).unwrap();
    let shown = format!("{description:?} {negotiated:?} {origin:?} {keys:?} {:?}", negotiated.plan());
    for secret in ["MTIz", "12345", "49, 50, 51", "BwcH", "7, 7, 7", "0707", "3132"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

/// Goal: the offer's family chooses our address, a family that we lack is named, and the old hold's
/// 0.0.0.0 fits any (RFC 3264 §8.4). Method: a node with both, and with IPv6 alone.
#[test]
fn the_offers_family_chooses_our_address() {
    let addresses: Addresses = serde_json::from_str(r#"["198.51.100.7", "2001:db8::7"]"#).unwrap();
    let both = LocalMedia { addresses, ..local() };
    let offer = |connection: &str| {
        format!("v=0\r\no=- 1 1 {connection}\r\ns=-\r\nc={connection}\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n")
    };
    let (v4, v6) = (offer("IN IP4 192.0.2.1"), offer("IN IP6 2001:db8::5"));
    for (offer, address) in [(&v4, "198.51.100.7"), (&v6, "2001:db8::7")] {
        let negotiated = take(offer, &both, NO_KEYS).unwrap();
        assert_eq!(negotiated.address(), address.parse::<IpAddr>().unwrap());
        let answer = text_of(&Origin::new(0).answer(&negotiated, 2000));
        assert!(answer.contains(&format!(" {address}\r\ns=-\r\nc=IN IP")), "{answer}");
    }
    let only_v6 = LocalMedia { addresses: "2001:db8::7".parse().unwrap(), ..local() };
    let error = take(&v4, &only_v6, NO_KEYS).unwrap_err();
    assert_eq!((error.status(), error.warn_code(), error.rule()), (488, 301, "media_mismatch"));
    assert_eq!(error.to_string(), "the connection address is IPv4, media here is IPv6");
    let held = take(&offer("IN IP4 0.0.0.0"), &only_v6, NO_KEYS).unwrap();
    assert_eq!((held.address(), held.plan().remote_rtp), ("2001:db8::7".parse().unwrap(), None));
}
