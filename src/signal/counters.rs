//! What a signalling shard counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A number that only grows, written by one thread and read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The count so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Serialize for Counter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.value())
    }
}

/// Counters of one shard, all since its start.
#[derive(Debug, Default, Serialize)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed at once because `connections_max` were open.
    pub refused: Counter,
    /// Connections closed at once because hardly a descriptor was left.
    pub descriptors_refused: Counter,
    /// Times the kernel could not hand out a new connection (no file descriptor left).
    pub accept_errors: Counter,
    /// Connections we opened.
    pub connected: Counter,
    /// Connections we could not open.
    pub connect_failed: Counter,
    /// Closed after `idle_timeout` without a message.
    pub idle_closed: Counter,
    /// Closed because a message was not complete after `message_timeout`.
    pub slow_closed: Counter,
    /// Closed because the peer did not read what we sent.
    pub unread_closed: Counter,
    /// Closed by a network error.
    pub broken_closed: Counter,
    /// Closed because the stream could not be cut into messages any more.
    pub frame_errors: Counter,
    /// Messages refused by the parser.
    pub parse_errors: Counter,
    /// Keep-alives that arrived (RFC 5626 §3.5.1).
    pub keep_alives: Counter,
    /// Messages with sound syntax that arrived.
    pub messages_in: Counter,
    /// Messages handed to the kernel.
    pub messages_out: Counter,
    /// Messages reported as failed to the role.
    pub send_failures: Counter,
    /// Datagrams thrown away because their socket's queue was full.
    pub datagrams_dropped: Counter,
    /// Bytes that arrived, over all transports.
    pub bytes_in: Counter,
    /// Bytes handed to the kernel.
    pub bytes_out: Counter,
    /// TLS handshakes that ended well, resumed ones included.
    pub tls_handshakes: Counter,
    /// TLS handshakes that resumed a session.
    pub tls_resumed: Counter,
    /// TLS failed: there was no certificate. This and the next four count what we say of the peer's
    /// certificate and what its alert says of ours; the log line tells which.
    pub tls_no_certificate: Counter,
    /// TLS failed: the certificate is by no known authority.
    pub tls_unknown_ca: Counter,
    /// TLS failed: the certificate has expired or is not valid yet.
    pub tls_expired: Counter,
    /// TLS failed: the certificate is revoked.
    pub tls_revoked: Counter,
    /// TLS failed: the certificate's signature, purpose, name or form does not fit.
    pub tls_bad_certificate: Counter,
    /// TLS failed: our revocation list has expired, so nobody can be believed.
    pub tls_crl_expired: Counter,
    /// TLS failed: the handshake was not complete in time.
    pub tls_timeout: Counter,
    /// TLS failed otherwise: no TLS, no common version or cipher, broken records, the peer's alert.
    pub tls_other: Counter,
    /// Closed because a new TLS setup does not take the peer's certificate any more.
    pub revoked_closed: Counter,
    /// Times a connection was left unread because it had brought its messages for now.
    pub throttled: Counter,
    /// Connections closed at once because their source had opened too many.
    pub source_refused: Counter,
    /// Connections and datagrams dropped because the role does not know their source.
    pub unknown_source: Counter,
}
