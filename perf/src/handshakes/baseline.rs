//! rustls against itself in memory: the least a mutual handshake can cost a server of this library.
//!
//! Cipher suites, their order and the number of session tickets are voxring's, so that both sides of
//! the comparison do the same work.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ClientConnection, ServerConfig, ServerConnection};

use super::Slice;
use crate::clock;
use crate::sip::tls::{TlsClient, TlsOptions, certificates, explain, private_key, roots};

/// Messages one way after which a handshake is lost; TLS 1.3 needs two, 1.2 three.
const FLIGHTS_MAX: usize = 8;

/// A server's configuration and a client's.
#[derive(Debug)]
pub(super) struct Baseline {
    server: Arc<ServerConfig>,
    client: TlsClient,
    name: String,
}

impl Baseline {
    /// The server asks for a certificate of `tls.ca`, as a live one does.
    pub(super) fn new(tls: &TlsOptions, cert: &Path, key: &Path, name: &str) -> Result<Self> {
        let ca = tls.ca.as_deref().context("a baseline needs --ca")?;
        let mut provider = aws_lc_rs::default_provider();
        let is_first = |suite: CipherSuite| suite == CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider.cipher_suites.sort_by_key(|suite| !is_first(suite.suite()));
        let provider = Arc::new(provider);
        let anchors = Arc::new(roots(ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(anchors, Arc::clone(&provider)).build()?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(cert)?, private_key(key)?)
            .with_context(|| format!("{} and {} do not fit", cert.display(), key.display()))?;
        server.ignore_client_order = true;
        server.send_tls13_tickets = 1;
        Ok(Self { server: Arc::new(server), client: TlsClient::required(tls)?, name: name.to_owned() })
    }

    /// Handshakes for `length`; `server_cpu_s` is the time inside the server's calls alone.
    pub(super) fn slice(&self, length: Duration) -> Result<Slice> {
        let start = clock::now();
        let (mut handshakes, mut spent) = (0, Duration::ZERO);
        while start.elapsed() < length {
            spent += self.shake_hands()?;
            handshakes += 1;
        }
        let wall_s = start.elapsed().as_secs_f64();
        Ok(Slice { handshakes, server_cpu_s: spent.as_secs_f64(), wall_s, ..Slice::default() })
    }

    fn shake_hands(&self) -> Result<Duration> {
        let mut client = self.client.connection(&self.name)?;
        let mut spent = Duration::ZERO;
        let mut server = None;
        let (mut to_server, mut to_client) = (Vec::with_capacity(8192), Vec::with_capacity(8192));
        for _ in 0..FLIGHTS_MAX {
            to_server.clear();
            to_client.clear();
            while client.wants_write() {
                client.write_tls(&mut to_server)?;
            }
            let before = clock::thread_time();
            let server = match &mut server {
                Some(server) => server,
                none => none.insert(ServerConnection::new(Arc::clone(&self.server))?),
            };
            serve(server, &to_server, &mut to_client)?;
            spent += clock::thread_time() - before;
            take(&mut client, &to_client)?;
            if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
                ensure!(server.peer_certificates().is_some(), "the baseline saw no client certificate");
                return Ok(spent);
            }
        }
        anyhow::bail!("the in-memory handshake did not end")
    }
}

/// All that a server does with one flight.
fn serve(server: &mut ServerConnection, mut flight: &[u8], out: &mut Vec<u8>) -> Result<()> {
    while !flight.is_empty() {
        server.read_tls(&mut flight)?;
        server.process_new_packets().map_err(explain)?;
    }
    while server.wants_write() {
        server.write_tls(out)?;
    }
    Ok(())
}

fn take(client: &mut ClientConnection, mut flight: &[u8]) -> Result<()> {
    while !flight.is_empty() {
        client.read_tls(&mut flight)?;
        client.process_new_packets().map_err(explain)?;
    }
    Ok(())
}
