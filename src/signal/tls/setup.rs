//! Loading certificates, keys and revocation lists into one unchanging setup.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};

use super::facts::{TlsFacts, Unreadable};

/// Sessions a setup remembers for resumption, both sides together; the oldest are forgotten.
const SESSIONS_MAX: usize = 1024;
/// A certificate, key or list larger than this is no such file.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Whether peers that connect must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerCertificate {
    /// Without one of the CA's there is no connection.
    #[default]
    Required,
    /// None is asked for: peers are not identified.
    None,
}

/// Where a setup comes from; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our certificate, followed by the intermediate ones.
    pub certificate: PathBuf,
    /// Our certificate's private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// The authorities that peers are certified by, whichever side opened the connection.
    pub ca: PathBuf,
    /// Revocation lists of all these authorities.
    pub crl: Option<PathBuf>,
    /// Asked of peers that connect to us.
    pub peer_certificate: PeerCertificate,
}

/// Why a setup could not be loaded. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {error}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is no PEM.
    #[error("{}: is not PEM: {reason}", .file.display())]
    Pem {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file has no section of the kind wanted.
    #[error("{}: has no {wanted} in it", .file.display())]
    Empty {
        /// Which.
        file: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
    /// A section's contents are not what its title says.
    #[error("{}: holds a {wanted} that cannot be used: {reason}", .file.display())]
    Unusable {
        /// Which.
        file: PathBuf,
        /// What should be there.
        wanted: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate are no pair.
    #[error("{}: is not the key of the certificate in {}", .key.display(), .certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The TLS library refuses the whole.
    #[error("TLS cannot be set up: {0}")]
    Library(rustls::Error),
}

/// What a node shows its peers and which of them it believes. Never changed: reload makes a new one.
pub struct TlsSetup {
    pub(in crate::signal) server: Arc<ServerConfig>,
    pub(in crate::signal) client: Arc<ClientConfig>,
    /// `None`: peers that connect need no certificate.
    client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    server_verifier: Arc<WebPkiServerVerifier>,
    facts: TlsFacts,
}

impl fmt::Debug for TlsSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSetup").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl TlsSetup {
    /// Reads the files and makes a setup with a session storage of its own.
    ///
    /// An expired certificate or revocation list is no error here: it is in the facts' warnings,
    /// and peers judge for themselves.
    ///
    /// # Errors
    /// The first file that is missing or unfit, with what is wrong with it.
    pub fn load(files: &TlsFiles, now: SystemTime) -> Result<Self, TlsError> {
        let chain: Vec<CertificateDer<'static>> = sections(&files.certificate, "certificate")?;
        let authorities: Vec<CertificateDer<'static>> = sections(&files.ca, "CA certificate")?;
        let crls: Vec<CertificateRevocationListDer<'static>> = match &files.crl {
            Some(file) => sections(file, "revocation list")?,
            None => Vec::new(),
        };
        let end_entity = chain
            .first()
            .ok_or(TlsError::Empty { file: files.certificate.clone(), wanted: "certificate" })?;
        let now_unix_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now_unix_s = i64::try_from(now_unix_s).unwrap_or(i64::MAX);
        let facts = TlsFacts::read(end_entity, &authorities, &crls, now_unix_s)
            .map_err(|part| unreadable(files, part))?;
        let provider = Arc::new(provider());
        let own = own_key(files, chain, &provider)?;
        let roots = roots(files, authorities)?;
        let server_verifier = server_verifier(files, &roots, &crls, &provider)?;
        let client_verifier = match files.peer_certificate {
            PeerCertificate::Required => Some(client_verifier(files, &roots, crls, &provider)?),
            PeerCertificate::None => None,
        };
        Ok(Self {
            server: server_config(&provider, client_verifier.clone(), Arc::clone(&own))?,
            client: client_config(&provider, Arc::clone(&server_verifier), own)?,
            client_verifier,
            server_verifier,
            facts,
        })
    }

    /// What the files say about themselves.
    pub fn facts(&self) -> &TlsFacts {
        &self.facts
    }

    /// Would this setup take a peer that connected and showed `chain`?
    pub(in crate::signal) fn judge_client(
        &self,
        chain: Option<&[CertificateDer<'static>]>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let Some(verifier) = &self.client_verifier else { return Ok(()) };
        let (end_entity, intermediates) =
            chain.and_then(<[_]>::split_first).ok_or(rustls::Error::NoCertificatesPresented)?;
        verifier.verify_client_cert(end_entity, intermediates, now).map(drop)
    }

    /// Would this setup take a server we called by `name` that showed `chain`?
    pub(in crate::signal) fn judge_server(
        &self,
        chain: Option<&[CertificateDer<'static>]>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (end_entity, intermediates) =
            chain.and_then(<[_]>::split_first).ok_or(rustls::Error::NoCertificatesPresented)?;
        self.server_verifier.verify_server_cert(end_entity, intermediates, name, &[], now).map(drop)
    }
}

/// The name a server's certificate must have: `name` where it is a DNS name or an address, else the
/// address itself.
pub(in crate::signal) fn server_name(name: Option<String>, address: IpAddr) -> ServerName<'static> {
    let named = name.and_then(|name| ServerName::try_from(name).ok());
    named.unwrap_or_else(|| ServerName::IpAddress(address.into()))
}

fn sections<T: PemObject>(file: &Path, wanted: &'static str) -> Result<Vec<T>, TlsError> {
    let text = read(file)?;
    let found: Vec<T> = T::pem_slice_iter(&text)
        .collect::<Result<_, pem::Error>>()
        .map_err(|error| TlsError::Pem { file: file.into(), reason: error.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Empty { file: file.into(), wanted });
    }
    Ok(found)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |error| TlsError::Read { file: file.into(), error };
    if std::fs::metadata(file).map_err(fail)?.len() > FILE_BYTES_MAX {
        return Err(fail(io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read(file).map_err(fail)
}

fn unreadable(files: &TlsFiles, part: Unreadable) -> TlsError {
    let (file, wanted) = match part {
        Unreadable::Certificate => (&files.certificate, "certificate"),
        Unreadable::Authority => (&files.ca, "CA certificate"),
        Unreadable::Crl => (files.crl.as_ref().unwrap_or(&files.ca), "revocation list"),
    };
    TlsError::Unusable { file: file.clone(), wanted, reason: "it is no X.509".into() }
}

/// The library's, with AES-128-GCM first: it protects as long as the certificates do, and its
/// SHA-256 has instructions of its own in processors where SHA-384 often has none.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    provider
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

fn own_key(
    files: &TlsFiles,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let unusable =
        |reason: String| TlsError::Unusable { file: files.key.clone(), wanted: "private key", reason };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Empty { file: files.key.clone(), wanted: "private key" },
        // The others are about the text's form.
        error => TlsError::Pem { file: files.key.clone(), reason: error.to_string() },
    })?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| unusable(error.to_string()))?;
    let own = CertifiedKey::new(chain, key);
    match own.keys_match() {
        Ok(()) => Ok(Arc::new(own)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(TlsError::KeyMismatch { key: files.key.clone(), certificate: files.certificate.clone() })
        }
        Err(error) => Err(TlsError::Unusable {
            file: files.certificate.clone(),
            wanted: "certificate",
            reason: error.to_string(),
        }),
    }
}

fn roots(
    files: &TlsFiles,
    authorities: Vec<CertificateDer<'static>>,
) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| TlsError::Unusable {
            file: files.ca.clone(),
            wanted: "CA certificate",
            reason: error.to_string(),
        })?;
    }
    Ok(Arc::new(roots))
}

/// An error of a verifier's builder can only come from the revocation lists: there are roots.
fn unusable_crl(files: &TlsFiles, error: &rustls::server::VerifierBuilderError) -> TlsError {
    let file = files.crl.clone().unwrap_or_else(|| files.ca.clone());
    TlsError::Unusable { file, wanted: "revocation list", reason: error.to_string() }
}

fn client_verifier(
    files: &TlsFiles,
    roots: &Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .with_crls(crls)
        // Without this an expired list is believed for ever.
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| unusable_crl(files, &error))
}

fn server_verifier(
    files: &TlsFiles,
    roots: &Arc<RootCertStore>,
    crls: &[CertificateRevocationListDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .with_crls(crls.iter().cloned())
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| unusable_crl(files, &error))
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    own: Arc<CertifiedKey>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Library)?;
    let is_open = verifier.is_none();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.ignore_client_order = true;
    // A peer that reconnects gets another one.
    config.send_tls13_tickets = 1;
    config.session_storage = if is_open {
        // Nothing was proved that would be worth keeping.
        Arc::new(NoServerSessionStorage {})
    } else {
        ServerSessionMemoryCache::new(SESSIONS_MAX)
    };
    Ok(Arc::new(config))
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    own: Arc<CertifiedKey>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Library)?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what hardware does best is taken first, and nothing is lost. Method: the library's
    /// suites beside ours; in each version the first is AES-128-GCM with SHA-256 (RFC 8446 §B.4,
    /// RFC 5289 §3.2).
    #[test]
    fn aes_128_is_the_first_suite_of_each_version() {
        let suites = provider().cipher_suites;
        let all = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        assert!(suites.len() == all.len() && all.iter().all(|suite| suites.contains(suite)));
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let first = suites.iter().find(|suite| suite.version() == version).unwrap();
            let name = first.suite().as_str().unwrap();
            assert!(name.ends_with("AES_128_GCM_SHA256"), "{name}");
        }
    }
}
