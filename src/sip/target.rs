//! From a URI to an address, without DNS (the part of RFC 3263 a node on given addresses needs).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::flow::Transport;
use super::uri::{Host, SipUri, Uri};

/// The transport and address a request for `uri` goes to: `maddr` before the host, the port it
/// names or the transport's default, UDP unless it names another (RFC 3263 §4.1).
///
/// `None` when it names a host that is no address (`localhost` aside), a transport we have not,
/// or is no SIP URI; over an existing flow such a peer can still be reached.
pub fn resolve(uri: &Uri) -> Option<(Transport, SocketAddr)> {
    let uri = uri.as_sip()?;
    let transport = match uri.params.value("transport") {
        Some(name) if name.eq_ignore_ascii_case("tls") => Transport::Tls,
        Some(name) if name.eq_ignore_ascii_case("tcp") && uri.secure => Transport::Tls,
        Some(name) if name.eq_ignore_ascii_case("tcp") => Transport::Tcp,
        Some(name) if name.eq_ignore_ascii_case("udp") && !uri.secure => Transport::Udp,
        Some(_) => return None,
        None if uri.secure => Transport::Tls,
        None => Transport::Udp,
    };
    let default_port = if transport == Transport::Tls { 5061 } else { 5060 };
    Some((transport, SocketAddr::new(address_in(uri)?, uri.port.unwrap_or(default_port))))
}

/// The address a request for `uri` goes to over TLS, whatever transport it names; the default port is
/// that of TLS. `None` as for [`resolve`], an unknown transport aside.
pub fn resolve_secure(uri: &Uri) -> Option<SocketAddr> {
    let uri = uri.as_sip()?;
    Some(SocketAddr::new(address_in(uri)?, uri.port.unwrap_or(5061)))
}

/// `maddr` before the host.
fn address_in(uri: &SipUri) -> Option<IpAddr> {
    match uri.params.value("maddr") {
        Some(maddr) => address_of(&Host::parse(maddr.as_bytes()).ok()?),
        None => address_of(&uri.host),
    }
}

fn address_of(host: &Host) -> Option<IpAddr> {
    match host {
        Host::Name(name) if name.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
        Host::Name(_) | Host::V4(_) | Host::V6(_) => host.address(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: transport, port and address follow RFC 3263 §4.1 and §4.2. Method: one URI a rule.
    #[test]
    fn addresses_follow_from_transport_maddr_and_port() {
        let table = [
            ("sip:a@192.0.2.1", Some((Transport::Udp, "192.0.2.1:5060"))),
            ("sip:a@192.0.2.1:5070;transport=TCP", Some((Transport::Tcp, "192.0.2.1:5070"))),
            ("sip:a@192.0.2.1;transport=tls", Some((Transport::Tls, "192.0.2.1:5061"))),
            ("sips:a@192.0.2.1;transport=tcp", Some((Transport::Tls, "192.0.2.1:5061"))),
            ("sips:a@[2001:db8::1]", Some((Transport::Tls, "[2001:db8::1]:5061"))),
            ("sip:a@pbx.example;maddr=192.0.2.9", Some((Transport::Udp, "192.0.2.9:5060"))),
            ("sip:localhost:5065", Some((Transport::Udp, "127.0.0.1:5065"))),
            ("sip:a@pbx.example", None),
            ("sip:a@192.0.2.1;transport=sctp", None),
            ("tel:+4930123", None),
        ];
        for (uri, expected) in table {
            let expected = expected.map(|(transport, at)| (transport, at.parse().unwrap()));
            assert_eq!(resolve(&Uri::parse(uri).unwrap()), expected, "{uri}");
        }
    }

    /// Goal: what must go over TLS goes to a TLS port. Method: URIs that name other transports.
    #[test]
    fn a_secure_address_ignores_the_uris_transport() {
        for (uri, expected) in [
            ("sip:a@192.0.2.1", Some("192.0.2.1:5061")),
            ("sip:a@192.0.2.1:5070;transport=udp", Some("192.0.2.1:5070")),
            ("sip:a@pbx.example;maddr=192.0.2.9;transport=tcp", Some("192.0.2.9:5061")),
            ("sip:a@pbx.example", None),
            ("tel:+4930123", None),
        ] {
            let expected = expected.map(|at| at.parse().unwrap());
            assert_eq!(resolve_secure(&Uri::parse(uri).unwrap()), expected, "{uri}");
        }
    }
}
