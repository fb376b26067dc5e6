use super::*;
use crate::sip::link::Link;
use crate::sip::target::Target;
use crate::testing::Papers;

fn target(port: u16, host: &str) -> Target {
    Target::parse(&format!("sip:1001@{host}:{port};transport=tls")).unwrap()
}

/// The first thing that comes back, or what went wrong, within 5 s.
fn echo(link: &mut Link) -> Result<Vec<u8>> {
    link.send(b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 0\r\n\r\n")?;
    let start = clock::now();
    while start.elapsed() < Duration::from_secs(5) {
        if let Some(message) = link.receive()?.pop() {
            return Ok(message);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("nothing came back")
}

/// Goal: a message crosses TLS both ways, to a host by name and by address, over 1.3 and 1.2.
/// Method: a rustls server that asks for our certificate and returns what it gets.
#[test]
fn a_message_crosses_mutual_tls_by_name_and_by_address() {
    let papers = Papers::new();
    let port = papers.serve(3).port();
    for (host, tls12) in [("localhost", false), ("127.0.0.1", false), ("localhost", true)] {
        let options = TlsOptions { tls12, ..papers.options() };
        let tls = TlsClient::load(&options).unwrap();
        // `localhost` may be ::1 first; the server listens on 127.0.0.1.
        let mut target = target(port, host);
        target.address = ([127, 0, 0, 1], port).into();
        let mut link = Link::connect(&target, tls.as_ref()).unwrap();
        assert_eq!(link.transport.name(), "TLS");
        assert!(echo(&mut link).unwrap().starts_with(b"OPTIONS"));
    }
}

/// Goal: a refusal names who refused whom, and the alert.
/// Method: no certificate; one of another authority; a server of another authority; a wrong name.
/// RFC 8446 §6.2 gives certificate_required and unknown_ca (rustls: any chain that does not lead home).
#[test]
fn a_refusal_names_the_alert_and_the_side() {
    let (papers, strangers) = (Papers::new(), Papers::new());
    let address = papers.serve(8);
    let attempt = |options: &TlsOptions| {
        let tls = TlsClient::load(options).unwrap();
        let result = Link::connect(&target(address.port(), "127.0.0.1"), tls.as_ref());
        let error = result.and_then(|mut link| echo(&mut link)).unwrap_err();
        format!("{error:#}")
    };
    for tls12 in [false, true] {
        let bare = attempt(&TlsOptions { cert: None, key: None, tls12, ..papers.options() });
        assert!(bare.contains("the peer refused our certificate: "), "{bare}");
        assert!(tls12 || bare.contains("CertificateRequired"), "{bare}");
        let strange = TlsOptions { ca: papers.options().ca, tls12, ..strangers.options() };
        let strange = attempt(&strange);
        assert!(strange.contains("the peer refused our certificate: "), "{strange}");
    }
    let distrust = attempt(&TlsOptions { ca: strangers.options().ca, ..papers.options() });
    assert!(distrust.contains("we refuse the peer's certificate: "), "{distrust}");
    let wrong_name = TlsOptions { tls_name: Some("other.test".into()), ..papers.options() };
    let wrong_name = attempt(&wrong_name);
    assert!(wrong_name.contains("we refuse the peer's certificate: "), "{wrong_name}");
}

/// Goal: nothing is trusted by accident: without --ca TLS is refused, --insecure says it aloud.
/// Method: the same server, first without trust, then with --insecure and a wrong name.
#[test]
fn without_trust_anchors_tls_is_refused_unless_insecure() {
    let papers = Papers::new();
    let address = papers.serve(1);
    let target = target(address.port(), "127.0.0.1");
    let none = TlsClient::load(&TlsOptions::default()).unwrap();
    assert!(none.is_none());
    let error = Link::connect(&target, None).unwrap_err().to_string();
    assert!(error.contains("--ca FILE") && error.contains("--insecure"), "{error}");
    assert!(TlsClient::load(&TlsOptions { ca: None, ..papers.options() }).is_err());
    let name = Some("other.test".into());
    let insecure = TlsOptions { ca: None, insecure: true, tls_name: name, ..papers.options() };
    let tls = TlsClient::load(&insecure).unwrap();
    let mut link = Link::connect(&target, tls.as_ref()).unwrap();
    assert!(echo(&mut link).unwrap().starts_with(b"OPTIONS"));
}
