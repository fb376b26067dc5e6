use proptest::prelude::*;

use super::*;

/// Goal: the forms of a name-addr and an addr-spec are told apart. Method: RFC 3261 §20.10
/// examples and forms that phones send.
#[test]
fn addresses_are_understood_in_every_form() {
    for (text, display, uri, tag) in [
        ("\"Mr. Watson\" <sip:watson@w.com>;tag=1", Some("Mr. Watson"), "sip:watson@w.com", Some("1")),
        ("Mr Watson <sip:w@w.com;lr>", Some("Mr Watson"), "sip:w@w.com;lr", None),
        ("<sip:w@w.com> ; tag = x", None, "sip:w@w.com", Some("x")),
        ("sip:w@w.com;tag=y", None, "sip:w@w.com", Some("y")),
        ("\"\" <sip:w@w.com>", Some(""), "sip:w@w.com", None),
        ("\"a, \\\"b\\\"; <c>\"<sip:w@w.com>", Some("a, \"b\"; <c>"), "sip:w@w.com", None),
        ("Jürgen <sip:w@w.com>", Some("Jürgen"), "sip:w@w.com", None),
        ("<tel:+12025550123>", None, "tel:+12025550123", None),
        ("tel:+12025550123;tag=z", None, "tel:+12025550123", Some("z")),
        ("sip:w@w.com;note=\"<a>, b\"", None, "sip:w@w.com", None),
    ] {
        let address = NameAddr::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(address.display.as_deref(), display, "{text}");
        assert_eq!(address.uri.to_string(), uri, "{text}");
        assert_eq!(address.tag(), tag, "{text}");
        assert_eq!(NameAddr::parse(address.to_string().as_bytes()), Ok(address), "{text}");
    }
    let latin1 = NameAddr::parse(b"\"J\xFCrgen\" <sip:w@w.com>").unwrap();
    assert_eq!(latin1.display.as_deref(), Some("Jürgen"));
}

/// Goal: malformed addresses are refused. Method: one broken part each.
#[test]
fn malformed_addresses_are_refused() {
    for text in [
        "",
        "<>",
        "<sip:a@b",
        "\"a <sip:a@b>",
        "\"a\\",
        "a, b <sip:a@b>",
        "< sip:a@b >",
        "<sip:a@b>x",
        "<sip:a@b>;",
        "<sip:a@b>;;",
        "<sip:a@b>;tag=1;Tag=2",
        "<sip:a@b>;tag=\"x",
        "<sip:a@b>;t ag=1",
        "sip:a@b?x=y",
        "sip:a@b,c",
        "a b",
    ] {
        assert!(NameAddr::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// Goal: a stray or missing quote in a display name costs neither call nor diversion, while `<>`
/// still delimit the URI (um-behaviour §1.3.6, RFC 4475 §3.1.2.6). Method: each form alone; forms
/// that leave room for doubt are refused.
#[test]
fn stray_quotes_in_display_names_are_forgiven() {
    for (text, display, tag) in [
        ("\"Ann <sip:w@w.com>;tag=1", "Ann", Some("1")),
        ("\"Bell, Ann <sip:w@w.com>;tag=\"a;b\"", "Bell, Ann", Some("a;b")),
        ("Ann\" <sip:w@w.com>", "Ann", None),
        ("\"A\"B\" <sip:w@w.com>", "AB", None),
        ("\"A\" B<sip:w@w.com>", "A B", None),
        ("\"Ann\\\" <sip:w@w.com>;tag=2", "Ann", Some("2")),
        ("\"<sip:w@w.com>", "", None),
    ] {
        assert!(NameAddr::parse(text.as_bytes()).is_err(), "{text}");
        let address = NameAddr::parse_kindly(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(address.display.as_deref(), Some(display), "{text}");
        assert_eq!((address.uri.to_string().as_str(), address.tag()), ("sip:w@w.com", tag), "{text}");
        assert_eq!(NameAddr::parse(address.to_string().as_bytes()), Ok(address), "{text}");
    }
    for text in [
        "\"Ann <sip:w@w.com> <sip:realann@x.net>",
        "\"Ann <sip:w@w.com",
        "\"Ann sip:w@w.com>",
        "\"Ann <sip:\"w@w.com>",
        "\"Ann <sip:w@w.com>x",
        "Bell, Ann <sip:w@w.com>",
        "\"Ann\r\n <sip:w@w.com>",
        "\"Ann\" sip:w@w.com",
    ] {
        assert!(NameAddr::parse_kindly(text.as_bytes()).is_err(), "{text}");
    }
}

/// Goal: in a list a stray quote spoils no entry beside its own. Method: lists with it first, in the
/// middle and last; a quoted comma stays one.
#[test]
fn a_stray_quote_in_a_list_spoils_no_other_entry() {
    for text in [
        "\"Ann <sip:1@x>;reason=no-answer, \"Bob\" <sip:2@x>, <sip:3@x>",
        "<sip:1@x>, Bob\" <sip:2@x>;reason=\"a,b\", \"C, D\" <sip:3@x>",
        "\"A, B\" <sip:1@x>, <sip:2@x>, \"C\"D\" <sip:3@x>;counter=1",
        "sip:1@x;a=1,\"Ann <sip:2@x>,\"Ann <sip:3@x>",
    ] {
        let users =
            |list: Vec<Diverted>| -> Vec<_> { list.iter().filter_map(|d| d.address.uri.user()).collect() };
        assert_eq!(users(diversions(text.as_bytes())), ["1", "2", "3"], "{text}");
        assert_eq!(users(history(text.as_bytes())), ["1", "2", "3"], "{text}");
    }
}

/// Goal: Via hops are understood with blanks, IPv6, `received` and `rport`. Method: RFC 3261
/// §20.42, RFC 3581 §4, RFC 5118 §4.5.
#[test]
fn via_hops_are_understood() {
    let via =
        Via::parse(b"SIP / 2.0 / UDP first.example.com: 4000;ttl=16 ;maddr=224.2.0.1 ;branch=z9hG4bKa7c6")
            .unwrap();
    assert_eq!((via.transport.as_str(), via.port), ("UDP", Some(4000)));
    assert_eq!(via.params.value("maddr"), Some("224.2.0.1"));
    assert_eq!(via.branch(), Some("z9hG4bKa7c6"));

    let via = Via::parse(b"SIP/2.0/UDP 10.1.1.1:4540;received=192.0.2.1;rport=9988").unwrap();
    assert_eq!(via.received(), Some([192, 0, 2, 1].into()));
    assert_eq!(via.rport(), Some(9988));

    for received in ["2001:db8::9:255", "[2001:db8::9:255]"] {
        let text = format!("SIP/2.0/TLS [2001:db8::9:1];received={received};rport");
        let mut via = Via::parse(text.as_bytes()).unwrap();
        assert_eq!(via.received(), Some("2001:db8::9:255".parse().unwrap()));
        assert!(via.has_rport() && via.rport().is_none());
        via.params.set("rport", Some("5070"));
        assert_eq!(via.to_string(), format!("{text}=5070"));
    }
    for text in [
        "",
        "SIP/2.0/UDP",
        "SIP/2.0/UDP ",
        "SIP/3.0/UDP a",
        "HTTP/2.0/UDP a",
        "SIP/2.0 a",
        "SIP/2.0/UDP a:b",
        "SIP/2.0/UDP a;;",
        "SIP/2.0/UDP a b",
        "SIP/2.0/UDP 2001:db8::1",
    ] {
        assert!(Via::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// Goal: CSeq holds 32 bits and a method told by case. Method: limits of RFC 3261 §8.1.1.5.
#[test]
fn cseq_is_a_number_of_32_bits_and_a_method() {
    let cseq = CSeq::parse(b"0009\t INVITE").unwrap();
    assert_eq!(cseq, CSeq { number: 9, method: Method::Invite });
    assert_eq!(cseq.to_string(), "9 INVITE");
    assert_eq!(CSeq::parse(b"4294967295 invite").unwrap().method, Method::Other("invite".into()));
    for text in ["", "1", "INVITE", "1INVITE", "4294967296 INVITE", "-1 INVITE", "+1 INVITE", "1 IN VITE"] {
        assert!(CSeq::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// Goal: Diversion gives who diverted and why, latest first; a bad entry spoils no other.
/// Method: RFC 5806 §9 and a broken element.
#[test]
fn diversions_name_who_diverted_and_why() {
    let field = b"<sip:bob@example.com>;reason=user-busy;counter=1, <sip:a b>, \
        \"Carol, at work\" <tel:+12025550123>;Reason=\"No-Answer\"";
    let list = diversions(field);
    let read: Vec<_> =
        list.iter().map(|d| (d.address.uri.user().unwrap(), d.reason.clone().unwrap())).collect();
    let expected = [("bob", "user-busy"), ("+12025550123", "no-answer")];
    assert_eq!(read, expected.map(|(user, reason)| (user.to_owned(), reason.to_owned())));
}

/// Goal: History-Info gives the targets in order and why the call left each. Method: RFC 7044
/// appendix style Reason, and RFC 4458 cause, with the words of RFC 7544.
#[test]
fn history_names_each_target_and_why_the_call_left_it() {
    let field = b"<sip:bob@example.com?Reason=SIP%3Bcause%3D486%3Btext%3D%22Busy%22>;index=1, \
        <sip:carol@example.com>;index=1.1;mp=1, \
        <sip:voicemail@example.com;target=sip:bob%40example.com;cause=408>;index=1.2;mp=1.1";
    let read: Vec<_> =
        history(field).into_iter().map(|d| (d.address.uri.user().unwrap(), d.reason)).collect();
    let expected = [("bob", Some("user-busy")), ("carol", Some("no-answer")), ("voicemail", None)];
    assert_eq!(read, expected.map(|(user, reason)| (user.to_owned(), reason.map(str::to_owned))));
}

/// Goal: seconds are read with what stands behind them, and too many count as the most.
/// Method: RFC 3261 §20.33, RFC 4028 §4 examples, RFC 4475 §3.1.2.5.
#[test]
fn retry_after_and_session_expires_are_understood() {
    let read = |text: &str| RetryAfter::parse(text.as_bytes());
    assert_eq!(read("18000;duration=3600"), Ok(RetryAfter { delay_s: 18000, duration_s: Some(3600) }));
    assert_eq!(read("120 (I'm in a (short) meeting)"), Ok(RetryAfter { delay_s: 120, duration_s: None }));
    assert_eq!(read("949302838503028349304023988").unwrap().delay_s, u32::MAX);
    assert!(read("soon").is_err() && read("").is_err() && read("1 (").is_err());

    let read = |text: &str| SessionExpires::parse(text.as_bytes());
    let expected = SessionExpires { delta_s: 4000, refresher: Some(Refresher::Uac) };
    assert_eq!(read("4000;refresher=uac"), Ok(expected));
    assert_eq!(read("4000 ; Refresher = UAC"), Ok(expected));
    assert_eq!(expected.to_string(), "4000;refresher=uac");
    assert_eq!(read("90").unwrap().refresher, None);
    assert!(read("90;refresher=me").is_err() && read(";refresher=uac").is_err());
}

/// Goal: parameters set here are quoted when they must be and replaced, not doubled.
/// Method: RFC 3261 §25.1, `gen-value`.
#[test]
fn parameters_are_quoted_when_they_must_be() {
    let mut params = Params::default();
    params.set("a", Some("tok-en"));
    params.set("b", Some("two \"words\"\r\n"));
    params.set("c", None);
    params.set("A", Some("2001:db8::1"));
    params.set("d", Some(""));
    assert_eq!(params.to_string(), ";A=2001:db8::1;b=\"two \\\"words\\\"\";c;d=\"\"");
    params.remove("B");
    assert!(!params.has("b") && params.has("C"));
}

proptest! {
    /// Goal: no value makes a typed reader panic, and an address that is read is written and read
    /// again the same. Method: random bytes of the grammar's own characters.
    #[test]
    fn any_value_is_refused_or_survives_writing(
        value in proptest::collection::vec(
            proptest::sample::select(&b"ab10:@;=,<>\"\\ \t%?sip:()./[]\xFC\x00*"[..]), 0..60),
        prefix in "(<sip:a@b>|\"|sip:a@b|SIP/2.0/UDP |1 |)",
    ) {
        let mut bytes = prefix.into_bytes();
        bytes.extend(value);
        if let Ok(address) = NameAddr::parse(&bytes) {
            prop_assert_eq!(NameAddr::parse(address.to_string().as_bytes()), Ok(address));
        }
        if let Ok(address) = NameAddr::parse_kindly(&bytes) {
            prop_assert_eq!(NameAddr::parse(address.to_string().as_bytes()), Ok(address));
        }
        if let Ok(via) = Via::parse(&bytes) {
            prop_assert_eq!(Via::parse(via.to_string().as_bytes()), Ok(via));
        }
        let _ = (CSeq::parse(&bytes), RetryAfter::parse(&bytes), SessionExpires::parse(&bytes));
        let _ = (diversions(&bytes), history(&bytes), NameAddr::parse_list(&bytes));
    }
}
