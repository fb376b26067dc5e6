//! For tests: a certificate authority of their own, a TLS server that answers pings, made-up runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::sip::tls::{TlsOptions, certificates, private_key, roots};

pub(crate) mod runs;

/// A folder with `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`; removed at the end.
pub(crate) struct Papers(PathBuf);

impl Papers {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("voxperf-tls-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Two authorities of one name would be taken for one with two keys.
        params.distinguished_name.push(DnType::CommonName, format!("voxperf test CA {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
        for (who, names) in [("server", vec!["localhost", "127.0.0.1"]), ("client", vec!["gateway.test"])] {
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
            std::fs::write(folder.join(format!("{who}.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.join(format!("{who}.key")), key.serialize_pem()).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What a client of this authority says: trust and own certificate.
    pub(crate) fn options(&self) -> TlsOptions {
        TlsOptions {
            ca: Some(self.path("ca.pem")),
            cert: Some(self.path("client.pem")),
            key: Some(self.path("client.key")),
            ..TlsOptions::default()
        }
    }

    /// Serves `connections` connections, one after the other: asks for a certificate of the
    /// authority, answers each CRLFCRLF with CRLF and returns any other bytes.
    pub(crate) fn serve(&self, connections: usize) -> SocketAddr {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let anchors = Arc::new(roots(&self.path("ca.pem")).unwrap());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(anchors, Arc::clone(&provider)).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                certificates(&self.path("server.pem")).unwrap(),
                private_key(&self.path("server.key")).unwrap(),
            )
            .unwrap();
        let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config));
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming().take(connections).flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, socket);
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let answer = if &buffer[..count] == b"\r\n\r\n" { b"\r\n" } else { &buffer[..count] };
                    if stream.write_all(answer).is_err() {
                        break;
                    }
                }
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        address
    }
}

impl Drop for Papers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
