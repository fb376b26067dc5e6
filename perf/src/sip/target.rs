//! Where a SIP URI leads: address, port, transport.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, anyhow, bail};
use rsip::common::uri::Param;

/// TCP, UDP or TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A stream, framed by Content-Length.
    Tcp,
    /// A datagram a message.
    Udp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    /// As in a Via.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Tls => "TLS",
        }
    }
}

/// A URI and where its requests go.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The Request-URI.
    pub uri: rsip::Uri,
    /// Host as the URI names it, without brackets: what a TLS certificate must be for.
    pub host: String,
    /// Where to send.
    pub address: SocketAddr,
    /// The host's further addresses, tried in turn when nobody listens there.
    pub others: Vec<SocketAddr>,
    /// How to send.
    pub transport: Transport,
}

impl Target {
    /// Reads `sip:user@host:port;transport=tcp`; without `transport` UDP is meant, and TLS for `sips:`
    /// (RFC 3263 §4.1).
    ///
    /// # Errors
    /// No SIP URI, a transport other than tcp, udp and tls, or a host that does not resolve.
    pub fn parse(text: &str) -> Result<Self> {
        Self::from_uri(read_uri(text)?)
    }

    /// Resolves a URI that was already read, say from a Contact.
    ///
    /// # Errors
    /// As `parse`.
    pub fn from_uri(uri: rsip::Uri) -> Result<Self> {
        let is_sips = uri.is_sips().unwrap_or(false);
        let transport = match uri.transport() {
            Some(rsip::Transport::Tls) => Transport::Tls,
            Some(rsip::Transport::Tcp) | None if is_sips => Transport::Tls,
            Some(rsip::Transport::Tcp) => Transport::Tcp,
            None | Some(rsip::Transport::Udp) => Transport::Udp,
            Some(other) => bail!("{uri}: voxperf speaks tcp, udp and tls, not {other}"),
        };
        let maddr = uri.params.iter().find_map(|param| {
            let Param::Maddr(maddr) = param else { return None };
            Some(maddr.value().to_owned())
        });
        let bare = |host: &str| host.trim_matches(['[', ']']).to_owned();
        let host = bare(&uri.host().to_string());
        let way = maddr.map_or_else(|| host.clone(), |maddr| bare(&maddr));
        let default_port = if transport == Transport::Tls { 5061 } else { 5060 };
        let port = uri.port().map_or(default_port, |port| *port.value());
        let mut addresses =
            (way.as_str(), port).to_socket_addrs().with_context(|| format!("cannot resolve {way}"))?;
        let address = addresses.next().with_context(|| format!("{way} has no address"))?;
        Ok(Self { uri, host, address, others: addresses.collect(), transport })
    }

    /// True when a link to `remote` leads there.
    pub fn is_at(&self, remote: SocketAddr) -> bool {
        self.address == remote || self.others.contains(&remote)
    }
}

/// What stands in for an IPv6 address while `rsip` reads.
const STAND_IN: &str = "ipv6.invalid";

/// Reads a SIP URI. `rsip` cannot read an IPv6 host: another stands in for it meanwhile.
///
/// # Errors
/// No SIP URI.
pub fn read_uri(text: &str) -> Result<rsip::Uri> {
    let (plain, six) = without_ipv6(text);
    let mut uri = rsip::Uri::try_from(plain.as_str()).map_err(|error| {
        anyhow!("{text:?} is no SIP URI ({error}); want sip:1001@127.0.0.1:5060;transport=tcp")
    })?;
    if let Some(six) = six {
        uri.host_with_port.host = rsip::Host::Domain(six.into());
    }
    Ok(uri)
}

/// `text` with its first `[IPv6 address]` replaced, and that address in its brackets.
pub fn without_ipv6(text: &str) -> (String, Option<&str>) {
    let six = text.find('[').and_then(|from| Some(&text[from..=from + text[from..].find(']')?]));
    match six {
        Some(six) => (text.replacen(six, STAND_IN, 1), Some(six)),
        None => (text.to_owned(), None),
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
        let secured = Target::parse("sip:1001@127.0.0.1;transport=tls").unwrap();
        assert_eq!((secured.address.port(), secured.transport), (5061, Transport::Tls));
        assert_eq!(Target::parse("sips:1001@127.0.0.1").unwrap().transport, Transport::Tls);
        assert!(Target::parse("sip:1001@127.0.0.1;transport=sctp").is_err());
    }

    /// Goal: a name leads to its address and stays the name that a certificate must be for; an
    /// IPv6 host comes in brackets.
    /// Method: a Contact of a UM server with the one name every machine resolves; `[::1]`.
    #[test]
    fn a_host_name_is_resolved_and_kept_for_the_certificate() {
        let named = Target::parse("sip:1001@localhost:5066;user=phone;transport=tls").unwrap();
        assert!(named.address.ip().is_loopback());
        assert_eq!((named.host.as_str(), named.address.port()), ("localhost", 5066));
        let six = Target::parse("sip:1001@[::1]:5066;transport=tls").unwrap();
        assert_eq!((six.host.as_str(), six.address.to_string().as_str()), ("::1", "[::1]:5066"));
        assert_eq!(six.uri.to_string(), "sip:1001@[::1]:5066;transport=TLS");
    }
}
