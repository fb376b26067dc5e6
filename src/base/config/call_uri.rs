//! Where calls to a gateway are sent.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::check::is_dns_name;

/// What carries calls to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallTransport {
    /// Datagrams.
    Udp,
    /// A stream in the clear.
    Tcp,
    /// A stream under TLS.
    Tls,
}

/// A host as a URI names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CallHost {
    /// An address; IPv6 in brackets in the text.
    Address(IpAddr),
    /// A DNS name, lower case.
    Name(String),
}

/// A sip: or sips: URI without user: scheme, host, port and transport, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallUri {
    /// A sips: URI: every hop to the far end must be under TLS.
    pub secure: bool,
    /// Where to.
    pub host: CallHost,
    /// Only when written.
    pub port: Option<u16>,
    /// UDP unless the URI says otherwise (RFC 3263 §4.1).
    pub transport: CallTransport,
}

impl CallUri {
    /// The port written, or the transport's own (RFC 3261 §19.1.2).
    pub fn port_or_default(&self) -> u16 {
        let default = if self.transport == CallTransport::Tls { 5061 } else { 5060 };
        self.port.unwrap_or(default)
    }

    /// The DNS name that must be looked up; `None` for an address.
    pub fn dns_name(&self) -> Option<&str> {
        match &self.host {
            CallHost::Address(_) => None,
            CallHost::Name(name) => Some(name),
        }
    }
}

impl FromStr for CallUri {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once(':').ok_or("no scheme")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "sip" => false,
            "sips" => true,
            _ => return Err("no sip: or sips: URI"),
        };
        let mut parts = rest.split(';');
        let (host, port) = host_and_port(parts.next().unwrap_or_default())?;
        let mut transport = if secure { CallTransport::Tls } else { CallTransport::Udp };
        for parameter in parts {
            transport = match (parameter.to_ascii_lowercase().as_str(), secure) {
                ("transport=tls", _) | ("transport=tcp", true) => CallTransport::Tls,
                ("transport=tcp", false) => CallTransport::Tcp,
                ("transport=udp", false) => CallTransport::Udp,
                _ => return Err("a parameter other than transport=udp, tcp or tls"),
            };
        }
        Ok(Self { secure, host, port, transport })
    }
}

fn host_and_port(text: &str) -> Result<(CallHost, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, rest) = inner.split_once(']').ok_or("no closing bracket")?;
            let address: Ipv6Addr = address.parse().map_err(|_| "no IPv6 address in brackets")?;
            (CallHost::Address(address.into()), rest.strip_prefix(':'))
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let host = match host.parse::<IpAddr>() {
                Ok(address) => CallHost::Address(address),
                Err(_) if is_dns_name(host) => CallHost::Name(host.to_ascii_lowercase()),
                Err(_) => return Err("no address and no DNS name"),
            };
            (host, port)
        }
    };
    let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or("no port"));
    Ok((host, port.transpose()?))
}

impl fmt::Display for CallUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secure { "sips:" } else { "sip:" })?;
        match &self.host {
            CallHost::Address(address @ IpAddr::V6(_)) => write!(f, "[{address}]")?,
            CallHost::Address(address) => write!(f, "{address}")?,
            CallHost::Name(name) => f.write_str(name)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.transport {
            CallTransport::Tcp => f.write_str(";transport=tcp"),
            CallTransport::Tls if !self.secure => f.write_str(";transport=tls"),
            CallTransport::Udp | CallTransport::Tls => Ok(()),
        }
    }
}

/// A gateway's `call_uri`; in the file an empty text says that calls cannot be sent there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayCallUri(pub Option<CallUri>);

impl Serialize for GatewayCallUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(uri) => serializer.collect_str(uri),
            None => serializer.serialize_str(""),
        }
    }
}

impl<'de> Deserialize<'de> for GatewayCallUri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|uri| Self(Some(uri))).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: transport and port follow RFC 3263 §4.1 and RFC 3261 §19.1.2, and the text survives.
    /// Method: one URI a rule.
    #[test]
    fn transport_and_port_follow_from_the_uri() {
        for (text, transport, port) in [
            ("sip:192.0.2.7", CallTransport::Udp, 5060),
            ("sip:192.0.2.7:5070;transport=tcp", CallTransport::Tcp, 5070),
            ("sip:[2001:db8::1];transport=tls", CallTransport::Tls, 5061),
            ("sips:gw.example.com", CallTransport::Tls, 5061),
            ("sips:[2001:db8::1]:5071", CallTransport::Tls, 5071),
        ] {
            let uri: CallUri = text.parse().unwrap();
            assert_eq!((uri.transport, uri.port_or_default()), (transport, port), "{text}");
            assert_eq!(uri.to_string(), text);
        }
        let mixed: CallUri = "SIP:GW.Example.com;Transport=UDP".parse().unwrap();
        assert_eq!(mixed.to_string(), "sip:gw.example.com");
    }

    /// Goal: what is no place to send calls to is refused. Method: one slip each.
    #[test]
    fn nonsense_is_no_call_uri() {
        for text in [
            "192.0.2.7",
            "tel:+49301",
            "sip:",
            "sip:user@192.0.2.7",
            "sip:192.0.2.7:0",
            "sip:192.0.2.7:99999",
            "sip:192.0.2.7;transport=sctp",
            "sip:192.0.2.7;lr",
            "sips:192.0.2.7;transport=udp",
            "sip:[2001:db8::1",
            "sip:gw_1",
        ] {
            assert!(text.parse::<CallUri>().is_err(), "{text}");
        }
    }
}
