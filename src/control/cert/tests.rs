use super::*;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

fn args(out: &Path) -> DevArgs {
    DevArgs {
        out: out.into(),
        names: vec!["um.example.com".into(), "localhost".into()],
        ips: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        clients: vec!["sbc.example.com".into(), "phone.example.com".into()],
        days: 30,
        force: false,
        output: Output { json: false },
    }
}

fn revoke_one(out: &Path, client: &str) -> Revoked {
    let output = Output { json: false };
    revoke(&RevokeArgs { out: out.into(), client: client.into(), days: 30, output }).unwrap()
}

/// `openssl` in a folder: whether it succeeded, and what it said.
fn openssl(folder: &Path, arguments: &str) -> (bool, String) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl can be started");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// True when there is an openssl to judge; otherwise says so.
fn has_openssl() -> bool {
    let is_there = Command::new("openssl").arg("version").output().is_ok();
    if !is_there {
        let required = std::env::var("VOXRING_REQUIRE_PEERS").is_ok_and(|value| value == "1");
        assert!(!required, "openssl is not installed and VOXRING_REQUIRE_PEERS=1");
        let _ = writeln!(io::stderr(), "skipped: openssl is not installed");
    }
    is_there
}

/// Goal: the certificates hold together for somebody else: chains, purposes, names, the empty list, and
/// after a revocation the list names just that client. Method: openssl verify with the CRL, before and
/// after.
#[test]
fn openssl_accepts_the_chain_and_sees_the_revocation() {
    if !has_openssl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    make(&args(folder.path())).unwrap();
    let verify = |rest: &str| {
        openssl(
            folder.path(),
            &format!("verify -x509_strict -crl_check -CRLfile crl.pem -CAfile ca.pem {rest}"),
        )
    };
    for rest in [
        "-purpose sslserver -verify_hostname um.example.com server.pem",
        "-purpose sslclient -verify_ip 2001:db8::10 server.pem",
        "-purpose sslclient -verify_hostname sbc.example.com sbc.example.com.pem",
        "-purpose sslserver phone.example.com.pem",
    ] {
        let (is_right, said) = verify(rest);
        assert!(is_right, "{rest}: {said}");
    }
    assert!(!verify("-verify_hostname other.example.com server.pem").0);
    assert_eq!(revoke_one(folder.path(), "sbc.example.com").crl_number, "2");
    let (is_right, said) = verify("sbc.example.com.pem");
    assert!(!is_right && said.contains("revoked"), "{said}");
    let (is_right, said) = verify("phone.example.com.pem");
    assert!(is_right, "{said}");
    let (_, list) = openssl(folder.path(), "crl -in crl.pem -noout -text");
    assert!(list.contains("X509v3 Authority Key Identifier") && list.contains("X509v3 CRL Number"), "{list}");
    let (_, key) = openssl(folder.path(), "pkey -in server.key -noout -text");
    assert!(key.contains("prime256v1"), "the curve of P-256");
}

/// Goal: serial number and fingerprint are those others see. Method: openssl's of the same file.
#[test]
fn show_prints_what_openssl_prints() {
    if !has_openssl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    make(&args(folder.path())).unwrap();
    let shown = serde_json::to_value(show::read(&folder.path().join("server.pem")).unwrap()).unwrap();
    let shown = &shown["certificates"][0];
    let (_, said) = openssl(folder.path(), "x509 -in server.pem -noout -serial -fingerprint -sha256");
    let said = said.to_lowercase();
    assert!(said.contains(shown["sha256"].as_str().unwrap()), "{said} {shown}");
    assert!(said.contains(&shown["serial"].as_str().unwrap().replace(':', "")), "{said} {shown}");
    assert_eq!(shown["names"], serde_json::json!(["um.example.com", "localhost"]));
    assert_eq!(shown["addresses"], serde_json::json!(["192.0.2.10", "2001:db8::10"]));
    assert_eq!(shown["is_ca"], false);
}

/// Goal: only the owner reads keys, and nothing is replaced unasked. Method: modes of all files; a
/// second run without and with force.
#[test]
fn keys_are_private_and_nothing_is_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    make(&args(folder.path())).unwrap();
    let mut keys = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|extension| extension == "key") {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            keys += 1;
        }
    }
    assert_eq!(keys, 4, "of the CA, the server and two clients");
    let before = fs::read(folder.path().join("ca.pem")).unwrap();
    assert!(matches!(make(&args(folder.path())), Err(CertError::Exists(_))));
    assert_eq!(fs::read(folder.path().join("ca.pem")).unwrap(), before);
    make(&DevArgs { force: true, ..args(folder.path()) }).unwrap();
    assert_ne!(fs::read(folder.path().join("ca.pem")).unwrap(), before);
}

/// Goal: revoking adds to the list, once for each certificate, and the number grows each time.
/// Method: two clients, one of them twice, then read the list.
#[test]
fn revocations_add_up() {
    let folder = tempfile::tempdir().unwrap();
    make(&args(folder.path())).unwrap();
    assert_eq!(revoke_one(folder.path(), "sbc.example.com").revoked, 1);
    assert_eq!(revoke_one(folder.path(), "phone.example.com").revoked, 2);
    let again = revoke_one(folder.path(), "sbc.example.com");
    assert!(again.already);
    assert_eq!((again.revoked, again.crl_number.as_str()), (2, "4"));
    let list = show::one_list(&folder.path().join("crl.pem")).unwrap();
    assert_eq!((list.entries.len(), list.number), (2, BigUint::from(4u8)));
}

/// Goal: the lines to paste are a configuration the node takes, and name the files. Method: parse them.
#[test]
fn the_lines_to_paste_are_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let text = make(&args(folder.path())).unwrap().render();
    let lines = text.split_once("[tls]").unwrap().1.split("\n\n").next().unwrap();
    let (config, _) = crate::base::config::Config::parse(&format!("[tls]{lines}"), Path::new("a")).unwrap();
    for file in [&config.tls.certificate, &config.tls.key, &config.tls.ca, &config.tls.crl] {
        assert!(file.is_file(), "{}", file.display());
    }
}

/// Goal: files that are something else are told, with their name. Method: a key, text, and nothing.
#[test]
fn what_is_no_certificate_is_told_with_the_files_name() {
    let folder = tempfile::tempdir().unwrap();
    make(&args(folder.path())).unwrap();
    fs::write(folder.path().join("text"), "no PEM").unwrap();
    for name in ["server.key", "text", "missing"] {
        let error = show::read(&folder.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let output = Output { json: false };
    let args = RevokeArgs { out: folder.path().into(), client: "nobody.example.com".into(), days: 1, output };
    assert!(revoke(&args).unwrap_err().to_string().contains("nobody.example.com.pem"));
}

/// Goal: a client cannot take the place of the CA or the node. Method: each such name.
#[test]
fn a_client_is_not_named_like_the_other_files() {
    for name in RESERVED_NAMES {
        let folder = tempfile::tempdir().unwrap();
        let args = DevArgs { clients: vec![name.to_owned()], ..args(folder.path()) };
        assert!(matches!(make(&args), Err(CertError::Reserved(_))), "{name}");
    }
}

/// Goal: the TLS library takes the chain and the list, with expiry of lists enforced, and refuses just
/// the revoked client. Method: its own verifier of client certificates, before and after a revocation.
#[test]
fn the_tls_library_accepts_the_chain_and_refuses_the_revoked() {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};

    let folder = tempfile::tempdir().unwrap();
    make(&args(folder.path())).unwrap();
    let certificate =
        |name: &str| CertificateDer::from_pem_file(folder.path().join(format!("{name}.pem"))).unwrap();
    let judge = |client: &str| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate("ca")).unwrap();
        let list = CertificateRevocationListDer::from_pem_file(folder.path().join("crl.pem")).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
            .with_crls([list])
            .enforce_revocation_expiration()
            .build()
            .unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::unix_ms(clock::calendar())));
        verifier.verify_client_cert(&certificate(client), &[], now).map(|_| ())
    };
    for client in ["sbc.example.com", "phone.example.com", "server"] {
        assert_eq!(judge(client), Ok(()), "{client}");
    }
    revoke_one(folder.path(), "sbc.example.com");
    let revoked = rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked);
    assert_eq!(judge("sbc.example.com"), Err(revoked));
    assert_eq!(judge("phone.example.com"), Ok(()));
}
