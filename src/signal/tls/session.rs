//! One connection's TLS: bytes in, bytes out, no socket.

use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, Error, HandshakeKind, ProtocolVersion, ServerConnection};

use super::names;
use super::setup::{TlsSetup, server_name};
use crate::sip::flow::PeerNames;
use crate::sip::framer::Framer;

/// What the library may keep of each direction: plaintext before the handshake ends, which we never
/// give it, and records that wait to be taken, which we take at once.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Plaintext sealed at once; a record holds no more (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What received bytes did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::signal) struct Received {
    /// The handshake ended with them.
    pub(in crate::signal) secured: bool,
    /// The peer said that nothing follows.
    pub(in crate::signal) closed: bool,
}

pub(in crate::signal) struct TlsSession {
    tls: rustls::Connection,
    setup: Arc<TlsSetup>,
    /// Whom we called; `None` when the peer called.
    called: Option<ServerName<'static>>,
    secured: bool,
    /// Only a session ticket waits: it leaves with whatever follows, since nobody waits for it.
    holds_ticket: bool,
    goodbye_said: bool,
}

impl TlsSession {
    /// For a peer that connected.
    pub(in crate::signal) fn accepted(setup: &Arc<TlsSetup>) -> Result<Self, Error> {
        let tls = ServerConnection::new(Arc::clone(&setup.server))?;
        Ok(Self::new(tls.into(), setup, None))
    }

    /// For a peer we call, whose certificate must have `name`, else its address.
    pub(in crate::signal) fn called(
        setup: &Arc<TlsSetup>,
        name: Option<String>,
        address: IpAddr,
    ) -> Result<Self, Error> {
        let name = server_name(name, address);
        let tls = ClientConnection::new(Arc::clone(&setup.client), name.clone())?;
        Ok(Self::new(tls.into(), setup, Some(name)))
    }

    fn new(mut tls: rustls::Connection, setup: &Arc<TlsSetup>, called: Option<ServerName<'static>>) -> Self {
        tls.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        Self {
            tls,
            setup: Arc::clone(setup),
            called,
            secured: false,
            holds_ticket: false,
            goodbye_said: false,
        }
    }

    /// Takes what the socket brought; plaintext goes to `framer`.
    ///
    /// # Errors
    /// The connection is lost; an alert that tells the peer waits in [`Self::take_output`].
    pub(in crate::signal) fn receive(
        &mut self,
        mut bytes: &[u8],
        framer: &mut Framer,
    ) -> Result<Received, Error> {
        let was_secured = self.secured;
        self.holds_ticket = false;
        let mut closed = false;
        while !bytes.is_empty() && !closed {
            let taken = self.tls.read_tls(&mut bytes).map_err(|error| Error::General(error.to_string()))?;
            let state = self.tls.process_new_packets()?;
            self.read_plaintext(framer);
            closed = state.peer_has_closed() || taken == 0;
        }
        self.secured = !self.tls.is_handshaking();
        let secured = self.secured && !was_secured;
        // RFC 8446 §4.6.1: of a TLS 1.3 server that has all of the handshake only tickets are left.
        self.holds_ticket = secured
            && !closed
            && self.called.is_none()
            && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        Ok(Received { secured, closed })
    }

    fn read_plaintext(&mut self, framer: &mut Framer) {
        let mut reader = self.tls.reader();
        // An error says that there is nothing more now.
        while let Ok(chunk) = reader.fill_buf()
            && !chunk.is_empty()
        {
            let len = chunk.len();
            framer.push(chunk);
            reader.consume(len);
        }
    }

    /// True from the end of the handshake.
    pub(in crate::signal) fn is_secured(&self) -> bool {
        self.secured
    }

    /// True when the library has something to write of its own that somebody waits for: handshake,
    /// alert, key update.
    pub(in crate::signal) fn has_output(&self) -> bool {
        self.tls.wants_write() && !self.holds_ticket
    }

    /// Records for the socket.
    pub(in crate::signal) fn take_output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        self.take_output_into(&mut output);
        output
    }

    fn take_output_into(&mut self, output: &mut Vec<u8>) {
        while self.tls.wants_write() {
            // Writing into memory cannot fail.
            if self.tls.write_tls(output).is_err() {
                return;
            }
        }
    }

    /// One message as records; only after the handshake.
    pub(in crate::signal) fn seal(&mut self, message: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(message.len() + 128);
        self.take_output_into(&mut output);
        for piece in message.chunks(RECORD_BYTES_MAX) {
            // The buffer was emptied after the piece before, so that this one fits.
            if self.tls.writer().write_all(piece).is_err() {
                break;
            }
            self.take_output_into(&mut output);
        }
        output
    }

    /// Queues close_notify, once (RFC 8446 §6.1); true when there is something to write then.
    pub(in crate::signal) fn say_goodbye(&mut self) -> bool {
        if self.secured && !std::mem::replace(&mut self.goodbye_said, true) {
            self.tls.send_close_notify();
        }
        self.tls.wants_write()
    }

    /// True when the handshake resumed an earlier session.
    pub(in crate::signal) fn is_resumed(&self) -> bool {
        matches!(self.tls.handshake_kind(), Some(HandshakeKind::Resumed))
    }

    /// True when the handshake itself asked `setup` about the peer's certificate.
    pub(in crate::signal) fn was_judged_by(&self, setup: &Arc<TlsSetup>) -> bool {
        Arc::ptr_eq(&self.setup, setup) && !self.is_resumed()
    }

    /// Would `setup` take this peer at `now`?
    pub(in crate::signal) fn judge(&self, setup: &TlsSetup, now: SystemTime) -> Result<(), Error> {
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        match &self.called {
            Some(name) => setup.judge_server(self.tls.peer_certificates(), name, now),
            None => setup.judge_client(self.tls.peer_certificates(), now),
        }
    }

    /// What a judgement depends on, for those who judge many.
    pub(in crate::signal) fn judged_by(&self) -> (Option<ServerName<'static>>, Vec<CertificateDer<'static>>) {
        (self.called.clone(), self.tls.peer_certificates().unwrap_or_default().to_vec())
    }

    /// Whom the peer's certificate names; `None` without one.
    pub(in crate::signal) fn peer_names(&self) -> Option<PeerNames> {
        self.tls.peer_certificates()?.first().and_then(names::of_der)
    }

    /// Version and cipher, for the log.
    pub(in crate::signal) fn describe(&self) -> String {
        let version = self.tls.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
        let suite = self.tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("");
        format!("{version} {suite}")
    }
}
