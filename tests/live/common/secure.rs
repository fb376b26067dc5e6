//! TLS from outside: rustls as a client, and what a handshake came to.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, StreamOwned};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::common::raw::{Connection, Request, Response, unique};

/// A stream under TLS.
pub(crate) type SecureStream = StreamOwned<ClientConnection, TcpStream>;

/// How long a handshake and its first answer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// What a handshake came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// Serial number of the server's certificate; a resumed session has that of its first handshake.
    pub(crate) serial: u64,
    /// An earlier session went on.
    pub(crate) resumed: bool,
    /// 1.2 or 1.3.
    pub(crate) version: ProtocolVersion,
}

/// Connects and completes our half of the handshake. In TLS 1.3 the server judges our certificate
/// only after that (RFC 8446 §4.4.3), so a refusal may come with the first read.
///
/// # Errors
/// The words of rustls or the kernel.
pub(crate) fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<(SecureStream, Handshake), String> {
    let socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
    socket.set_nodelay(true).expect("a socket option");
    socket.set_read_timeout(Some(LIMIT)).expect("a socket option");
    let name = ServerName::IpAddress(address.ip().into());
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a sound configuration");
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|error| error.to_string())?;
    }
    let serial = stream.conn.peer_certificates().and_then(|chain| {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        Some(certificate.raw_serial().iter().fold(0, |serial, &byte| serial << 8 | u64::from(byte)))
    });
    let handshake = Handshake {
        serial: serial.unwrap_or_default(),
        resumed: stream.conn.handshake_kind() == Some(HandshakeKind::Resumed),
        version: stream.conn.protocol_version().expect("it is negotiated"),
    };
    Ok((stream, handshake))
}

/// A SIP connection under TLS.
///
/// # Errors
/// As [`connect`].
pub(crate) fn open(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<(Connection, Handshake), String> {
    connect(address, config).map(|(stream, handshake)| (Connection::over_tls(stream), handshake))
}

/// Sends OPTIONS over a fresh TLS connection and gives its response.
///
/// # Errors
/// The handshake failed, or the connection ended without a response: with the words of the alert.
pub(crate) fn options(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<(Response, Handshake), String> {
    let (mut stream, handshake) = connect(address, config)?;
    let uri = format!("sip:{address};transport=tls");
    let request = Request { method: "OPTIONS", uri: &uri, extra: &[], body: "" };
    let local = stream.sock.local_addr().expect("it is connected");
    stream.write_all(&request.render("TLS", local, &unique())).map_err(|error| error.to_string())?;
    // The first bytes, or the alert in their place.
    let mut first = [0; 1];
    match stream.read(&mut first) {
        Ok(0) => return Err("closed".to_owned()),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            return Err(format!("no answer in {LIMIT:?}"));
        }
        Err(error) => return Err(error.to_string()),
    }
    let mut connection = Connection::over_tls(stream);
    connection.put_back(&first);
    let response = connection.final_response(LIMIT).ok_or_else(|| "closed in an answer".to_owned())?;
    Ok((response, handshake))
}
