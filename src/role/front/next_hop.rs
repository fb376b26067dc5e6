//! Where a call goes on to: address, port and transport of the next hop, and its URI.
//!
//! What came over TLS, or for a `sips:` URI, goes on over TLS or not at all.

use std::net::{IpAddr, SocketAddr};

use crate::base::config::{Addresses, Config};
use crate::control::listeners::{self, ListenRole};
use crate::sip::flow::{Flow, Transport};
use crate::sip::message::Request;
use crate::sip::uri::{Host, SipUri, Uri};

/// The ports somebody takes calls on; `None` where the transport is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HopPorts {
    /// For TCP.
    pub tcp: Option<u16>,
    /// For TLS.
    pub tls: Option<u16>,
    /// For UDP.
    pub udp: Option<u16>,
}

impl HopPorts {
    /// Those of these listeners.
    pub fn of_listeners(listeners: impl IntoIterator<Item = (Transport, SocketAddr)>) -> Self {
        let mut ports = Self::default();
        for (transport, address) in listeners {
            let slot = match transport {
                Transport::Tcp => &mut ports.tcp,
                Transport::Tls => &mut ports.tls,
                Transport::Udp => &mut ports.udp,
            };
            *slot = slot.or(Some(address.port()));
        }
        ports
    }

    /// Those `config` gives to `role`.
    pub fn of_role(config: &Config, role: ListenRole) -> Self {
        Self::of_listeners(listeners::of_role(config, role).into_iter().map(|l| (l.transport, l.address)))
    }

    fn port(self, transport: Transport) -> Option<u16> {
        match transport {
            Transport::Tcp => self.tcp,
            Transport::Tls => self.tls,
            Transport::Udp => self.udp,
        }
    }

    /// What carried the request, else what the hop has, but never plain after TLS.
    fn choose(self, came_over: Transport, is_secure: bool) -> Option<(Transport, u16)> {
        let order: &[Transport] = if is_secure {
            &[Transport::Tls]
        } else if came_over == Transport::Udp {
            &[Transport::Udp, Transport::Tcp, Transport::Tls]
        } else {
            &[Transport::Tcp, Transport::Tls]
        };
        order.iter().find_map(|transport| Some((*transport, self.port(*transport)?)))
    }
}

/// A next hop.
#[derive(Debug, Clone)]
pub(in crate::role) struct NextHop {
    pub(in crate::role) addresses: Addresses,
    pub(in crate::role) ports: HopPorts,
}

/// One request's way on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::role) struct Way {
    pub(in crate::role) transport: Transport,
    pub(in crate::role) remote: SocketAddr,
    /// What the Request-URI or the Contact becomes.
    pub(in crate::role) uri: String,
}

impl NextHop {
    /// `fqdn`: `node.fqdn`, which stands in URIs of what goes over TLS, so that it fits the
    /// certificate; empty: the address does.
    ///
    /// `None`: the hop has no transport that protects the call as it was protected so far.
    pub(in crate::role) fn way(&self, fqdn: &str, flow: &Flow, request: &Request) -> Option<Way> {
        let called = request.uri().ok();
        let is_sips = matches!(&called, Some(Uri::Sip(uri)) if uri.secure);
        let is_secure = is_sips || flow.transport == Transport::Tls;
        let (transport, port) = self.ports.choose(flow.transport, is_secure)?;
        // The address this hop was reached at, unless the next hop listens elsewhere.
        let address = listeners::reach(&self.addresses, flow.local.ip());
        let mut uri = SipUri::new(None, host(fqdn, transport, address), Some(port));
        uri.secure = is_sips;
        let phone = match called {
            Some(Uri::Sip(called)) => {
                let phone =
                    called.params.value("user").is_some_and(|kind| kind.eq_ignore_ascii_case("phone"));
                uri.user = called.user;
                phone
            }
            Some(Uri::Tel(called)) => {
                // A key such as # has to be escaped in a user part.
                uri = SipUri::new(Some(&called.digits()), uri.host, uri.port);
                true
            }
            Some(Uri::Other { .. }) | None => false,
        };
        if phone {
            uri.params.set("user", Some("phone"));
        }
        uri.params.set("transport", Some(transport.name()));
        Some(Way { transport, remote: SocketAddr::new(address, port), uri: uri.to_string() })
    }

    /// True where this hop takes TLS at `remote`.
    pub(in crate::role) fn is_at(&self, remote: SocketAddr) -> bool {
        self.ports.tls == Some(remote.port())
            && self.addresses.iter().any(|own| own.is_unspecified() || own == remote.ip())
    }
}

fn host(fqdn: &str, transport: Transport, address: IpAddr) -> Host {
    if transport == Transport::Tls && !fqdn.is_empty() {
        Host::Name(fqdn.to_owned())
    } else {
        Host::from(address)
    }
}
