use proptest::prelude::*;

use super::*;

fn sip(text: &str) -> SipUri {
    match Uri::parse(text) {
        Ok(Uri::Sip(uri)) => uri,
        other => panic!("{text}: {other:?}"),
    }
}

/// Goal: the examples of RFC 3261 §19.1.3 are understood part by part and written as they came.
/// Method: the RFC's own list.
#[test]
fn the_examples_of_the_rfc_are_understood() {
    for text in [
        "sip:alice@atlanta.com",
        "sip:alice:secretword@atlanta.com;transport=tcp",
        "sips:alice@atlanta.com?subject=project%20x&priority=urgent",
        "sip:+1-212-555-1212:1234@gateway.com;user=phone",
        "sips:1212@gateway.com",
        "sip:alice@192.0.2.4",
        "sip:atlanta.com;method=REGISTER?to=alice%40atlanta.com",
        "sip:alice;day=tuesday@atlanta.com",
    ] {
        assert_eq!(sip(text).to_string(), text);
    }
    let uri = sip("sip:+1-212-555-1212:1234@gateway.com;user=phone");
    assert_eq!(uri.user.as_deref(), Some("+1-212-555-1212"));
    assert_eq!(uri.password.as_deref(), Some("1234"));
    assert_eq!(uri.params.value("user"), Some("phone"));
    let uri = sip("sips:alice@atlanta.com?subject=project%20x&priority=urgent");
    assert!(uri.secure);
    assert_eq!(uri.headers.as_deref(), Some("subject=project%20x&priority=urgent"));
    assert_eq!(sip("sip:alice;day=tuesday@atlanta.com").user_text().as_deref(), Some("alice;day=tuesday"));
}

/// Goal: IPv6 hosts work with and without port, and are written in brackets. Method: RFC 5118 §4.
#[test]
fn ipv6_hosts_work_with_and_without_port() {
    let uri = sip("sip:bob@[2001:db8::9:1]:5061;transport=tcp");
    assert_eq!(uri.host, Host::V6("2001:db8::9:1".parse().unwrap()));
    assert_eq!(uri.port, Some(5061));
    assert_eq!(uri.to_string(), "sip:bob@[2001:db8::9:1]:5061;transport=tcp");
    assert_eq!(sip("sip:[::1]").port, None);
    // RFC 5118 §4.1, §4.2: without brackets the address cannot be told from the port.
    for text in ["sip:2001:db8::10:5070", "sip:[::1", "sip:[::1]x", "sip:[::1]:", "sip:[1.2.3.4]"] {
        assert!(Uri::parse(text).is_err(), "{text}");
    }
}

/// Goal: a caller's number is found in each place it stands. Method: RFC 3966 and RFC 3261
/// §19.1.6 examples.
#[test]
fn the_user_of_a_telephone_uri_is_its_number() {
    let user = |text: &str| Uri::parse(text).unwrap().user();
    assert_eq!(user("tel:+1-201-555-0123").as_deref(), Some("+12015550123"));
    assert_eq!(user("tel:7042;phone-context=example.com").as_deref(), Some("7042"));
    assert_eq!(user("sip:+15551234;phone-context=a@gw;user=phone").as_deref(), Some("+15551234"));
    assert_eq!(user("sip:%34001@gw").as_deref(), Some("4001"));
    assert_eq!(user("sip:*98#@gw").as_deref(), Some("*98#"));
    assert_eq!(user("sip:gw"), None);
    assert_eq!(user("mailto:a@b"), None);
    let Uri::Tel(uri) = Uri::parse("tel:7042;phone-context=example.com").unwrap() else { panic!() };
    assert_eq!(uri.params.value("phone-context"), Some("example.com"));
    for text in ["tel:", "tel:+", "tel:+abc", "tel:xyz", "tel:-()", "tel:12;", "tel:12 34"] {
        assert!(Uri::parse(text).is_err(), "{text}");
    }
}

/// Goal: what is no URI is refused. Method: one broken part each.
#[test]
fn malformed_uris_are_refused() {
    for text in [
        "",
        "sip",
        "sip:",
        "1sip:a@b",
        "<sip:a@b>",
        "sip:a@b c",
        "sip:a@",
        "sip:@b",
        "sip:a@b@c",
        "sip:a:b:c@d",
        "sip:a@b:",
        "sip:a@b:65536",
        "sip:a@b:-1",
        "sip:a@b;",
        "sip:a@b;;x",
        "sip:a@b;x=",
        "sip:a@b;x;X=1",
        "sip:%4@b",
        "sip:%zz@b",
        "sip:a@b/c",
        "sip:\"a\"@b",
        "sip:a@.b",
        "sip:a\u{0}@b",
    ] {
        assert!(Uri::parse(text).is_err(), "{text:?}");
    }
    let many: String = (0..=crate::sip::header::PARAMS_MAX).map(|n| format!(";p{n}")).collect();
    assert!(Uri::parse(format!("sip:a@b{many}")).is_err());
}

/// Goal: equality is that of RFC 3261 §19.1.4. Method: the RFC's own pairs.
#[test]
fn uris_compare_as_the_rfc_says() {
    let equal = |a: &str, b: &str| {
        assert_eq!(sip(a).is_equivalent(&sip(b)), sip(b).is_equivalent(&sip(a)), "{a} {b}");
        sip(a).is_equivalent(&sip(b))
    };
    for (a, b) in [
        ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
        (
            "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
            "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
        ),
        (
            "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
            "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
        ),
    ] {
        assert!(equal(a, b), "{a} {b}");
    }
    for (a, b) in [
        ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
        ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
        ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
        ("sip:a@b", "sips:a@b"),
    ] {
        assert!(!equal(a, b), "{a} {b}");
    }
}

/// Goal: a user part made here is escaped where it must be. Method: RFC 3261 §25.1, `user`.
#[test]
fn a_new_uri_escapes_its_user() {
    let uri = SipUri::new(Some("a b@c:4001"), Host::V4([127, 0, 0, 1].into()), Some(5062));
    assert_eq!(uri.to_string(), "sip:a%20b%40c%3A4001@127.0.0.1:5062");
    assert_eq!(uri.user_text().as_deref(), Some("a b@c:4001"));
}

/// Goal: a parameter written twice alike is read once, as phones that repeat themselves mean it; two
/// values for one name have no meaning (RFC 3261 §19.1.1). Method: what baresip 1.0 sends, and a
/// contradiction.
#[test]
fn a_repeated_parameter_is_read_once_and_a_contradiction_is_refused() {
    let uri = sip("sip:1001@127.0.0.1;transport=tcp;transport=tcp");
    assert_eq!(uri.to_string(), "sip:1001@127.0.0.1;transport=tcp");
    assert!(Uri::parse("sip:1001@127.0.0.1;transport=tcp;transport=udp").is_err());
}

proptest! {
    /// Goal: any bytes are refused or read, and what is read is written and read again the same.
    /// Method: random URI-like bytes.
    #[test]
    fn any_bytes_are_refused_or_survive_writing(
        scheme in "(sip|sips|tel|SIP|x-y)",
        rest in proptest::collection::vec(proptest::sample::select(&b"ab1%40@:;=?&[].-+*#\xC3\xA4 <\""[..]), 0..40),
    ) {
        let mut bytes = scheme.into_bytes();
        bytes.push(b':');
        bytes.extend(rest);
        if let Ok(uri) = Uri::parse(&bytes) {
            let _ = uri.user();
            let written = uri.to_string();
            let again = Uri::parse(&written);
            prop_assert_eq!(Ok(uri), again, "{}", written);
        }
    }
}
