//! TLS as a client: trust anchors, our own certificate, and a stream that `poll` can drive.
//!
//! A refused client certificate shows late in TLS 1.3: the handshake is done on our side when the
//! peer's alert comes (RFC 8446 §4.4.3). Every reading and writing step therefore names an alert.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::clock;

/// What the command line says about TLS.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsOptions {
    /// Trust the certificates of this PEM file; the server's must lead to one of them.
    #[arg(help_heading = "TLS", long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Our certificate and its chain, PEM. Without it we show none.
    #[arg(help_heading = "TLS", long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The private key of --cert, PEM.
    #[arg(help_heading = "TLS", long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Take any certificate of the server.
    #[arg(help_heading = "TLS", long, conflicts_with = "ca")]
    pub insecure: bool,
    /// The server's certificate must be for this name (default: the host of the URI).
    #[arg(help_heading = "TLS", long, visible_alias = "name", value_name = "NAME")]
    pub tls_name: Option<String>,
    /// Speak TLS 1.2 only.
    #[arg(help_heading = "TLS", long)]
    pub tls12: bool,
}

/// Ready to open TLS connections.
#[derive(Debug, Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: Option<String>,
}

impl TlsClient {
    /// Reads the files. `None` when the options say nothing of TLS.
    ///
    /// # Errors
    /// A file is missing or holds no PEM of its kind, or the key does not belong to the certificate.
    pub fn load(options: &TlsOptions) -> Result<Option<Self>> {
        if options.ca.is_none() && !options.insecure {
            ensure!(
                options.cert.is_none(),
                "--cert without --ca: say whom to trust with --ca FILE, or trust anybody with --insecure"
            );
            return Ok(None);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[_] =
            if options.tls12 { &[&rustls::version::TLS12] } else { rustls::DEFAULT_VERSIONS };
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let builder = match &options.ca {
            Some(ca) => builder.with_root_certificates(roots(ca)?),
            None => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(Arc::clone(&provider))))
            }
        };
        let mut config = match (&options.cert, &options.key) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .with_context(|| format!("{} and {} do not fit", cert.display(), key.display()))?,
            _ => builder.with_no_client_auth(),
        };
        // Every connection is a full handshake: what is measured must not depend on those before it.
        config.resumption = Resumption::disabled();
        Ok(Some(Self { config: Arc::new(config), name: options.tls_name.clone() }))
    }

    /// As `load`, where TLS is what the command is about.
    ///
    /// # Errors
    /// As `load`, and when there is neither `--ca` nor `--insecure`.
    pub fn required(options: &TlsOptions) -> Result<Self> {
        Self::load(options)?.context(NO_TRUST)
    }

    /// A connection that has said nothing yet, to a peer called `host` unless `--tls-name` says else.
    ///
    /// # Errors
    /// `host` can be in no certificate.
    pub fn connection(&self, host: &str) -> Result<ClientConnection> {
        let name = self.name.as_deref().unwrap_or(host);
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| anyhow!("{name:?} can be in no certificate; name one with --tls-name"))?;
        ClientConnection::new(Arc::clone(&self.config), server).context("TLS")
    }
}

/// Why TLS is refused without a word on trust.
pub const NO_TRUST: &str = "TLS needs --ca FILE (whom to trust) or --insecure (anybody)";

/// The certificates of a PEM file.
///
/// # Errors
/// The file cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    ensure!(!list.is_empty(), "{} holds no PEM certificate", path.display());
    Ok(list)
}

/// The private key of a PEM file.
///
/// # Errors
/// The file cannot be read or holds none.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .with_context(|| format!("cannot read a private key from {}", path.display()))
}

/// Trust anchors of a PEM file.
///
/// # Errors
/// The file cannot be read, holds none, or one that is no trust anchor.
pub fn roots(path: &Path) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).with_context(|| format!("{}: no trust anchor", path.display()))?;
    }
    Ok(store)
}

/// A TLS connection over a non-blocking socket.
#[derive(Debug)]
pub struct TlsStream {
    /// The socket below, for `poll`.
    pub socket: TcpStream,
    connection: ClientConnection,
}

impl TlsStream {
    /// Shakes hands. In TLS 1.3 the peer may still refuse our certificate afterwards.
    ///
    /// # Errors
    /// Either side refuses the other, or it is not done by `deadline`.
    pub fn open(socket: TcpStream, connection: ClientConnection, deadline: Instant) -> Result<Self> {
        socket.set_nonblocking(true)?;
        let mut stream = Self { socket, connection };
        loop {
            stream.flush()?;
            let handshaking = stream.connection.is_handshaking();
            if !handshaking && !stream.connection.wants_write() {
                return Ok(stream);
            }
            if !handshaking || !stream.take_in()? {
                stream.wait(deadline).context("the TLS handshake is not done")?;
            }
        }
    }

    /// Writes all of `bytes`, encrypted.
    ///
    /// # Errors
    /// The connection broke, or took nothing until `deadline`.
    pub fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() || self.connection.wants_write() {
            rest = &rest[self.connection.writer().write(rest)?..];
            self.flush()?;
            if self.connection.wants_write() {
                self.wait(deadline).context("the peer takes nothing")?;
            }
        }
        Ok(())
    }

    /// Takes as many of `bytes` as there is room for without waiting, and sends what the socket takes.
    ///
    /// # Errors
    /// The connection broke.
    pub fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = self.connection.writer().write(bytes)?;
        self.flush()?;
        Ok(taken)
    }

    /// True while some of what was taken is still to be sent.
    pub fn is_holding(&self) -> bool {
        self.connection.wants_write()
    }

    /// Reads what is there. `None`: nothing yet; `Some(0)`: the peer is done.
    ///
    /// # Errors
    /// The peer's alert, a broken connection, or bytes that are no TLS.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        loop {
            match self.connection.reader().read(buffer) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) => {}
            }
            if !self.take_in()? {
                return Ok(None);
            }
            // Key updates ask for an answer.
            self.flush()?;
        }
    }

    /// Waits until the socket has something for us, or takes what we still hold.
    ///
    /// # Errors
    /// `deadline` passed.
    pub fn wait(&self, deadline: Instant) -> Result<()> {
        let rest = deadline.saturating_duration_since(clock::now());
        ensure!(rest > Duration::ZERO, "no answer in time");
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.connection.wants_write());
        let mut fds = [PollFd::new(self.socket.as_fd(), flags)];
        // An interrupted wait is only a shorter one.
        let _ = nix::poll::poll(&mut fds, PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX));
        Ok(())
    }

    /// Sends what TLS wants to send, as far as the socket takes it.
    fn flush(&mut self) -> Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    // The alert that says why may be waiting.
                    while self.take_in()? {}
                    return Err(error).context("writing");
                }
            }
        }
        Ok(())
    }

    /// Takes in what the socket holds; false when it holds nothing.
    fn take_in(&mut self) -> Result<bool> {
        match self.connection.read_tls(&mut self.socket) {
            Ok(0) if self.connection.is_handshaking() => bail!("the peer closed during the TLS handshake"),
            Ok(count) => {
                if let Err(error) = self.connection.process_new_packets() {
                    // Our own alert tells the peer what we think of it; it may be gone already.
                    let _ = self.connection.write_tls(&mut self.socket);
                    return Err(explain(error));
                }
                Ok(count > 0)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("reading"),
        }
    }
}

/// Says who refused whom, and why.
pub fn explain(error: rustls::Error) -> anyhow::Error {
    match error {
        rustls::Error::AlertReceived(alert) if is_about_certificate(alert) => {
            anyhow!("the peer refused our certificate: {alert:?}")
        }
        rustls::Error::AlertReceived(alert) => anyhow!("the peer ended TLS: {alert:?}"),
        rustls::Error::InvalidCertificate(reason) => {
            anyhow!("we refuse the peer's certificate: {reason}")
        }
        other => anyhow!("TLS: {other}"),
    }
}

/// Alerts about a certificate (RFC 8446 §6.2).
fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    [
        A::NoCertificate,
        A::BadCertificate,
        A::UnsupportedCertificate,
        A::CertificateRevoked,
        A::CertificateExpired,
        A::CertificateUnknown,
        A::UnknownCA,
        A::AccessDenied,
        A::CertificateRequired,
    ]
    .contains(&alert)
}

/// `--insecure`: whoever holds the key of the certificate it shows is taken.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
