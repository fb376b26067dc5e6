//! A certificate authority for the length of a test, and peers that use it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;
use voxring::signal::{PeerCertificate, TlsError, TlsFiles, TlsSetup};

use crate::shard::{PATIENCE, options};

/// An authority, its files in a directory of its own.
pub(crate) struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
}

/// What a certificate is to be like.
pub(crate) struct Wish<'a> {
    pub(crate) names: &'a [&'a str],
    pub(crate) common_name: &'a str,
    pub(crate) serial: u64,
    pub(crate) not_after_year: i32,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self { names: &["localhost", "127.0.0.1"], common_name: "peer", serial: 1, not_after_year: 2100 }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2100, 1, 1));
        let key = KeyPair::generate().expect("sound parameters");
        let certificate = params.self_signed(&key).expect("sound parameters");
        Self {
            certificate,
            issuer: Issuer::new(params, key),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    pub(crate) fn issue(&self, wish: &Wish<'_>) -> Identity {
        let names: Vec<_> = wish.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("sound parameters");
        params.distinguished_name.push(DnType::CommonName, wish.common_name);
        params.serial_number = Some(SerialNumber::from(wish.serial));
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(wish.not_after_year, 1, 1);
        let key = KeyPair::generate().expect("sound parameters");
        Identity { certificate: params.signed_by(&key, &self.issuer).expect("sound parameters"), key }
    }

    /// A revocation list in PEM.
    fn crl(&self, serials: &[u64], next_update_year: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2001, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2000, 1, 1),
            next_update: date_time_ymd(next_update_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("sound parameters").pem().expect("sound parameters")
    }

    /// Files of a node that shows `own`.
    pub(crate) fn files(&self, own: &Identity) -> TlsFiles {
        TlsFiles {
            certificate: self.write("node.crt", &own.certificate.pem()),
            key: self.write("node.key", &own.key.serialize_pem()),
            ca: self.write("ca.crt", &self.certificate.pem()),
            crl: None,
            peer_certificate: PeerCertificate::Required,
        }
    }

    /// The same with a revocation list.
    pub(crate) fn files_with_crl(&self, own: &Identity, revoked: &[u64], next_update_year: i32) -> TlsFiles {
        let crl = self.write("ca.crl", &self.crl(revoked, next_update_year));
        TlsFiles { crl: Some(crl), ..self.files(own) }
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("a directory of our own");
        path
    }

    /// A node of this authority's with the default wish.
    pub(crate) fn node(&self) -> Arc<TlsSetup> {
        load(&self.files(&self.issue(&Wish::default()))).expect("sound parameters")
    }

    /// This authority as the only one believed.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("sound parameters");
        roots
    }

    /// A client's configuration; `None` shows no certificate.
    pub(crate) fn client(
        &self,
        own: Option<&Identity>,
        version: &'static SupportedProtocolVersion,
    ) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("sound parameters")
            .with_root_certificates(self.roots());
        match own {
            Some(own) => {
                let key = PrivateKeyDer::try_from(own.key.serialize_der()).expect("sound parameters");
                builder
                    .with_client_auth_cert(vec![own.certificate.der().clone()], key)
                    .expect("sound parameters")
            }
            None => builder.with_no_client_auth(),
        }
    }

    /// A client of TLS 1.3 that shows `own`.
    pub(crate) fn client_13(&self, own: &Identity) -> Arc<ClientConfig> {
        Arc::new(self.client(Some(own), &rustls::version::TLS13))
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates are valid by the calendar")]
pub(crate) fn load(files: &TlsFiles) -> Result<Arc<TlsSetup>, TlsError> {
    TlsSetup::load(files, SystemTime::now()).map(Arc::new)
}

/// A TLS client on a socket; nothing is exchanged yet.
pub(crate) type Client = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    let socket = TcpStream::connect(address).expect("listening");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let name = ServerName::try_from("localhost").expect("sound parameters");
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).expect("sound parameters"), socket)
}

/// Sends a request and reads; gives the error of a peer that is refused, however far TLS 1.3 lets
/// it go before it is told.
pub(crate) fn refusal(mut client: Client) -> std::io::Error {
    let written = client.write_all(options(1).as_bytes()).and_then(|()| client.flush());
    let read = written.and_then(|()| client.read(&mut [0; 100]));
    read.expect_err("the connection is refused")
}
