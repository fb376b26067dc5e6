//! A certificate authority per test: a server's certificate, and clients good and bad in every way.
//!
//! Everything lies as PEM files in a folder of its own, for the node, voxperf and phones alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use time::OffsetDateTime;
use toml::{Table, Value, toml};

/// The name in the gateway's certificate, and in `[[gateway]]`.
pub(crate) const GATEWAY_NAME: &str = "gateway.test";

/// What a client shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paper {
    /// The gateway's certificate, by the authority the node trusts.
    Good,
    /// The same name, by an authority nobody knows.
    OtherAuthority,
    /// The gateway's name, a year too old.
    Expired,
    /// The gateway's name; the revocation list names its serial number.
    Revoked,
    /// By the right authority, for somebody else.
    WrongName,
    /// Nothing.
    None,
}

impl Paper {
    const ALL: [Self; 5] = [Self::Good, Self::OtherAuthority, Self::Expired, Self::Revoked, Self::WrongName];

    fn file(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::OtherAuthority => "other-authority",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::WrongName => "wrong-name",
            Self::None => "none",
        }
    }

    /// Serial number, the same in every test: a revocation list names it.
    fn serial(self) -> u64 {
        match self {
            Self::Good => 101,
            Self::OtherAuthority => 102,
            Self::Expired => 103,
            Self::Revoked => 104,
            Self::WrongName => 105,
            Self::None => 100,
        }
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

/// An authority, its papers, and their folder.
pub(crate) struct Pki {
    folder: TempDir,
    authority: Authority,
}

impl Pki {
    /// Writes `ca.pem`, `crl.pem`, `server.pem`, `server.key`, and three files for each [`Paper`]:
    /// certificate, key, and both in one, as baresip wants them.
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("voxring-pki-").expect("a folder can be made");
        let pki = Self { authority: authority("voxring test"), folder };
        replace(&pki.path("ca.pem"), &pki.authority.pem());
        pki.revoke(&[Paper::Revoked]);
        pki.renew_server();
        let other = authority("somebody else");
        for paper in Paper::ALL {
            let issuer = if paper == Paper::OtherAuthority { &other } else { &pki.authority };
            pki.issue_client(paper, issuer);
        }
        pki
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The client's certificate and key files.
    pub(crate) fn files(&self, paper: Paper) -> Option<(PathBuf, PathBuf)> {
        let file = |suffix: &str| self.path(&format!("{}.{suffix}", paper.file()));
        (paper != Paper::None).then(|| (file("pem"), file("key")))
    }

    /// Key and certificate in one file.
    pub(crate) fn bundle(&self, paper: Paper) -> Option<PathBuf> {
        (paper != Paper::None).then(|| self.path(&format!("{}.both", paper.file())))
    }

    /// Gives the server a new certificate and key; its serial number.
    pub(crate) fn renew_server(&self) -> u64 {
        static SERIAL: AtomicU64 = AtomicU64::new(10_000);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mut params = leaf("server", serial, &["localhost"]);
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            params.subject_alt_names.push(SanType::IpAddress(address));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.authority).expect("a certificate");
        replace(&self.path("server.key"), &key.serialize_pem());
        replace(&self.path("server.pem"), &certificate.pem());
        serial
    }

    /// Writes a revocation list of exactly these.
    pub(crate) fn revoke(&self, papers: &[Paper]) {
        self.write_crl(papers, calendar() + DAY);
    }

    /// Writes a revocation list of nobody that should have had a successor half an hour ago.
    pub(crate) fn let_crl_expire(&self) {
        self.write_crl(&[], calendar() - Duration::from_secs(1800));
    }

    fn write_crl(&self, papers: &[Paper], next_update: OffsetDateTime) {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let issued = calendar() - Duration::from_secs(3600);
        let revoked_certs = papers.iter().map(|paper| RevokedCertParams {
            serial_number: paper.serial().into(),
            revocation_time: issued,
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let crl = CertificateRevocationListParams {
            this_update: issued,
            next_update,
            crl_number: NUMBER.fetch_add(1, Ordering::Relaxed).into(),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let crl = crl.signed_by(&self.authority).expect("a revocation list");
        replace(&self.path("crl.pem"), &crl.pem().expect("PEM"));
    }

    fn issue_client(&self, paper: Paper, issuer: &Authority) {
        let name = if paper == Paper::WrongName { "somebody.test" } else { GATEWAY_NAME };
        let mut params = leaf(name, paper.serial(), &[name]);
        if paper == Paper::Expired {
            params.not_before = calendar() - 800 * DAY;
            params.not_after = calendar() - 365 * DAY;
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, issuer).expect("a certificate").pem();
        let key = key.serialize_pem();
        let (certificate_file, key_file) = self.files(paper).expect("there is one");
        replace(&self.bundle(paper).expect("there is one"), &format!("{key}{certificate}"));
        replace(&certificate_file, &certificate);
        replace(&key_file, &key);
    }

    /// Turns TLS on in a node's configuration, and makes the loopback one gateway with
    /// [`GATEWAY_NAME`] in its certificate.
    pub(crate) fn secure(&self, config: &mut Table) {
        let file = |name: &str| self.path(name).to_string_lossy().into_owned();
        let [certificate, key, ca, crl] = ["server.pem", "server.key", "ca.pem", "crl.pem"].map(file);
        let more = toml! {
            [tls]
            certificate = certificate
            key = key
            ca = ca
            crl = crl
            [[gateway]]
            name = "loopback"
            address = ["127.0.0.0/8", "::1"]
            certificate_name = GATEWAY_NAME
        };
        config.extend(more);
    }

    /// What a rustls client of this paper speaks with: both versions, trusting our authority only,
    /// session tickets kept.
    pub(crate) fn client(&self, paper: Paper) -> Arc<ClientConfig> {
        self.client_speaking(paper, rustls::DEFAULT_VERSIONS)
    }

    /// The same with some versions of TLS.
    pub(crate) fn client_speaking(
        &self,
        paper: Paper,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).expect("PEM")).expect("an authority");
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .expect("versions the provider has")
                .with_root_certificates(roots);
        Arc::new(match self.files(paper) {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_file(certificate).expect("PEM")];
                let key = PrivateKeyDer::from_pem_file(key).expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("they belong together")
            }
        })
    }

    /// The arguments that make voxperf show this paper.
    pub(crate) fn voxperf(&self, paper: Paper) -> Vec<String> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut arguments = vec!["--ca".to_owned(), path(self.path("ca.pem"))];
        if let Some((certificate, key)) = self.files(paper) {
            arguments.extend(["--cert".to_owned(), path(certificate), "--key".to_owned(), path(key)]);
        }
        arguments
    }
}

/// Sets a key of a table in a configuration, which is made if need be.
pub(crate) fn set(config: &mut Table, table: &str, key: &str, value: impl Into<Value>) {
    let table = config.entry(table).or_insert_with(|| Table::new().into());
    table.as_table_mut().expect("a table").insert(key.into(), value.into());
}

/// Adds the dial plan `secured`: TLS and SRTP, or nothing.
pub(crate) fn demand_srtp(config: &mut Table) {
    config.extend(toml! {
        [[dial_plan]]
        name = "secured"
        security = "secured"
    });
}

const DAY: Duration = Duration::from_secs(86_400);

fn calendar() -> OffsetDateTime {
    OffsetDateTime::from(voxring::base::clock::calendar())
}

fn authority(name: &str) -> Authority {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let mut params = CertificateParams::default();
    // Two authorities of one name would be taken for one with two keys.
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    params.distinguished_name.push(DnType::CommonName, format!("{name} {} {number}", std::process::id()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Authority::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

fn leaf(common_name: &str, serial: u64, dns_names: &[&str]) -> CertificateParams {
    let names: Vec<String> = dns_names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("DNS names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(serial.into());
    params.not_before = calendar() - DAY;
    params.not_after = calendar() + 30 * DAY;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Whole or not at all: a reader never sees half a file.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).expect("the disk has room");
    std::fs::rename(&draft, path).expect("the disk has room");
}
