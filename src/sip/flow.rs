//! Where a message came from and where one goes: names for sockets that `sip` never touches.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A transport of RFC 3261 §18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Datagrams; transactions resend.
    Udp,
    /// Streams; messages framed by Content-Length.
    Tcp,
    /// TCP under TLS.
    Tls,
}

impl Transport {
    /// True where the transport resends by itself, so that transactions do not (RFC 3261 §17).
    pub fn is_reliable(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls => true,
        }
    }

    /// The `transport=` parameter's value and, in upper case, the Via's (RFC 3261 §25.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// Names one connection, or one UDP socket, for the life of the process. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

impl FlowId {
    /// Of a process that is gone; none here has it.
    pub const GONE: Self = Self(u64::MAX);
}

/// One connection, or one remote address on a UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The connection or UDP socket.
    pub id: FlowId,
    /// Index of the listener it belongs to, in the order the role gave them.
    pub listener: u16,
    /// What carries it.
    pub transport: Transport,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

/// Where a message is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Down an existing flow, which may meanwhile be gone.
    Flow(Flow),
    /// To an address: over a connection that is open already, or a new one.
    Address {
        /// What to carry it with.
        transport: Transport,
        /// Where to.
        remote: SocketAddr,
        /// On whose behalf: the listener whose UDP socket or address is used.
        listener: u16,
    },
}

/// Bytes to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub destination: Destination,
    /// One whole message, or a keep-alive.
    pub bytes: Bytes,
}

/// Whom a TLS peer's certificate names: what a gateway's certificate name is compared with
/// (RFC 5922 §7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerNames {
    /// subjectAltName dNSName entries, in lower case.
    pub dns_names: Vec<String>,
    /// subjectAltName iPAddress entries.
    pub ip_addresses: Vec<IpAddr>,
    /// The subject's common name, in lower case; `None` where the certificate has a dNSName or
    /// iPAddress, which then are the only names that count (RFC 6125 §6.4.4).
    pub common_name: Option<String>,
}

impl fmt::Display for PeerNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.ip_addresses.iter().map(IpAddr::to_string);
        let names: Vec<_> =
            self.dns_names.iter().cloned().chain(addresses).chain(self.common_name.clone()).collect();
        f.write_str(&names.join(","))
    }
}
