//! Where a SIP URI leads: address, port, transport.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, anyhow, bail};
use rsip::common::uri::Param;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A stream, framed by Content-Length.
    Tcp,
    /// A datagram a message.
    Udp,
}

impl Transport {
    /// As in a Via.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A URI and where its requests go.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The Request-URI.
    pub uri: rsip::Uri,
    /// Where to send.
    pub address: SocketAddr,
    /// How to send.
    pub transport: Transport,
}

impl Target {
    /// Reads `sip:user@host:port;transport=tcp`; without `transport` UDP is meant (RFC 3263 §4.1).
    ///
    /// # Errors
    /// No SIP URI, a transport other than tcp and udp, or a host that does not resolve.
    pub fn parse(text: &str) -> Result<Self> {
        let uri = rsip::Uri::try_from(text).map_err(|error| {
            anyhow!("{text:?} is no SIP URI ({error}); want sip:1001@127.0.0.1:5060;transport=tcp")
        })?;
        Self::from_uri(uri)
    }

    /// Resolves a URI that was already read, say from a Contact.
    ///
    /// # Errors
    /// As `parse`.
    pub fn from_uri(uri: rsip::Uri) -> Result<Self> {
        let transport = match uri.transport() {
            Some(rsip::Transport::Tcp) => Transport::Tcp,
            None | Some(rsip::Transport::Udp) => Transport::Udp,
            Some(other) => bail!("{uri}: voxperf speaks tcp and udp, not {other}"),
        };
        let maddr = uri.params.iter().find_map(|param| {
            let Param::Maddr(maddr) = param else { return None };
            Some(maddr.value().to_owned())
        });
        let host = maddr.unwrap_or_else(|| uri.host().to_string());
        let port = uri.port().map_or(5060, |port| *port.value());
        let address = (host.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {host}"))?
            .next()
            .with_context(|| format!("{host} has no address"))?;
        Ok(Self { uri, address, transport })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: port, transport and maddr decide where a request goes.
    /// Method: RFC 3261 §19.1.1 defaults and a redirect as a UM server writes it.
    #[test]
    fn port_transport_and_maddr_decide_the_way() {
        let plain = Target::parse("sip:1001@127.0.0.1").unwrap();
        assert_eq!((plain.address.port(), plain.transport), (5060, Transport::Udp));
        let redirect =
            Target::parse("sip:1001@pabx.invalid:5065;user=phone;transport=Tcp;maddr=127.0.0.2").unwrap();
        assert_eq!(redirect.address.to_string(), "127.0.0.2:5065");
        assert_eq!(redirect.transport, Transport::Tcp);
        assert!(Target::parse("sip:1001@127.0.0.1;transport=tls").is_err());
    }
}
