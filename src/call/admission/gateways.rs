//! Steps 1 and 2: whose address it is, and whether the certificate is theirs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::decision::{Origin, Refused};
use crate::base::config::{
    CallHost, CallUri, Config, Gateway, GatewayAddress, GatewayAddresses, GatewayStatus, Network,
    PeerCertificate,
};
use crate::sip::flow::{PeerNames, Transport};

/// A step's text when it passed, or why it did not.
pub(super) type Found<T> = Result<(T, String), Refused>;

/// All gateways there are.
#[derive(Debug, Clone)]
pub(super) struct Gateways {
    list: Vec<Gateway>,
    /// None is configured: the one in the list stands for this machine itself.
    is_implicit: bool,
    wants_certificate: bool,
    /// What their DNS names mean now.
    names: HashMap<String, Vec<IpAddr>>,
}

impl Gateways {
    pub(super) fn new(config: &Config) -> Self {
        let is_implicit = config.gateway.is_empty();
        let list = if is_implicit { vec![loopback()] } else { config.gateway.clone() };
        let wants_certificate = config.tls.peer_certificate == PeerCertificate::Required;
        Self { list, is_implicit, wants_certificate, names: HashMap::new() }
    }

    pub(super) fn set_names(&mut self, names: HashMap<String, Vec<IpAddr>>) {
        self.names = names;
    }

    pub(super) fn take_names(&mut self) -> HashMap<String, Vec<IpAddr>> {
        std::mem::take(&mut self.names)
    }

    /// DNS names to look up, each once.
    pub(super) fn dns_names(&self) -> Vec<String> {
        let called = self.list.iter().filter_map(|gateway| gateway.call_uri.0.as_ref()?.dns_name());
        let mut names: Vec<_> = self.list.iter().flat_map(fqdns).chain(called).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    pub(super) fn get(&self, name: &str) -> Option<&Gateway> {
        self.list.iter().find(|gateway| gateway.name == name)
    }

    /// Gateways with that address, the most narrowly named first, then as configured.
    pub(super) fn at(&self, source: IpAddr) -> Vec<&Gateway> {
        let source = source.to_canonical();
        let narrowness = |gateway: &Gateway| {
            gateway.address.0.iter().filter_map(|address| self.narrowness(address, source)).max()
        };
        let mut found: Vec<_> = self.list.iter().filter_map(|g| Some((narrowness(g)?, g))).collect();
        found.sort_by_key(|(bits, _)| std::cmp::Reverse(*bits));
        found.into_iter().map(|(_, gateway)| gateway).collect()
    }

    /// See [`super::Admission::tls_name`]. Of a gateway's several names the one that means `remote`.
    pub(super) fn tls_name(&self, remote: IpAddr, gateway: Option<&str>) -> Option<String> {
        let gateway = match gateway {
            Some(name) => self.get(name)?,
            None => *self.at(remote).first()?,
        };
        let names = certificate_names(gateway);
        let remote = remote.to_canonical();
        let means_it = |name: &&&str| {
            self.names.get(**name).is_some_and(|known| known.iter().any(|ip| ip.to_canonical() == remote))
        };
        names.iter().find(means_it).or(names.first()).map(|name| (*name).to_owned())
    }

    /// Where calls to a gateway go now: its `call_uri`, and what that means.
    pub(super) fn way(&self, gateway: &str) -> Result<(CallUri, SocketAddr), &'static str> {
        let gateway = self.get(gateway).ok_or("it is not configured any more")?;
        if gateway.status != GatewayStatus::Enabled {
            return Err("its status is not \"enabled\"");
        }
        let uri = gateway.call_uri.0.clone().ok_or("it has no call_uri any more")?;
        let address = match &uri.host {
            CallHost::Address(address) => Some(*address),
            CallHost::Name(name) => self.names.get(name).and_then(|known| known.first()).copied(),
        };
        let address = address.ok_or("the name in its call_uri has no address")?;
        let remote = SocketAddr::new(address, uri.port_or_default());
        Ok((uri, remote))
    }

    /// The name that the certificate of a gateway we call at `remote` must have: the configured one, else
    /// the one it is called by (RFC 5922 §4), else as [`Self::tls_name`].
    pub(super) fn callee_tls_name(&self, remote: IpAddr, gateway: &str) -> Option<String> {
        let callee = self.get(gateway)?;
        let called = callee.call_uri.0.as_ref().and_then(CallUri::dns_name);
        let name = Some(callee.certificate_name.as_str()).filter(|name| !name.is_empty()).or(called);
        name.map(str::to_owned).or_else(|| self.tls_name(remote, Some(gateway)))
    }

    /// Bits of the source that the address fixes; `None` when it is another's.
    fn narrowness(&self, address: &GatewayAddress, source: IpAddr) -> Option<u8> {
        match address {
            GatewayAddress::Network(network) if network.contains(source) => {
                Some(if source.is_ipv4() { network.prefix + 96 } else { network.prefix })
            }
            GatewayAddress::Network(_) => None,
            GatewayAddress::Name(name) => {
                let known = self.names.get(name)?;
                known.iter().any(|ip| ip.to_canonical() == source).then_some(128)
            }
        }
    }

    /// Step 1. Where the certificate has to tell several gateways apart, their standing is looked at
    /// in step 2.
    pub(super) fn source(&self, origin: &Origin<'_>, is_call: bool) -> Found<Vec<&Gateway>> {
        let source = origin.source.ip().to_canonical();
        if let Some(name) = origin.vouched {
            let gateway = self.get(name).ok_or_else(|| {
                let why = format!("{source} came as gateway {name:?}, which is not configured any more");
                Refused::new("unknown_source", 403, why)
            })?;
            check_status(gateway, is_call)?;
            return Ok((vec![gateway], format!("{source} is gateway {name:?}, as the hop before has found")));
        }
        let found = self.at(source);
        let Some(first) = found.first() else {
            let why = format!("{source} is no gateway's address");
            return Err(Refused::new("unknown_source", 403, why));
        };
        if origin.transport == Transport::Tls && found.len() > 1 {
            let names = quoted(found.iter().map(|gateway| gateway.name.as_str()));
            return Ok((found, format!("{source} is an address of the gateways {names}")));
        }
        check_status(first, is_call)?;
        let text = format!("{source} is gateway {:?}", first.name);
        Ok((found, text))
    }

    /// Step 2: which of the gateways of step 1 it is.
    pub(super) fn certificate<'g>(
        &self,
        origin: &Origin<'_>,
        found: &[&'g Gateway],
        is_call: bool,
    ) -> Found<&'g Gateway> {
        let Some(first) = found.first().copied() else {
            return Err(Refused::new("unknown_source", 403, "no gateway's address"));
        };
        let plain = |text: &str| Ok((first, text.to_owned()));
        if origin.vouched.is_some() {
            return plain("checked by the hop before");
        }
        if origin.transport != Transport::Tls {
            return plain("not over TLS: the address alone tells");
        }
        if !self.wants_certificate {
            check_status(first, is_call)?;
            return plain("tls.peer_certificate asks for none");
        }
        let Some(names) = origin.identity else {
            let why = "the peer showed no certificate";
            return Err(Refused::new("no_certificate", 403, why));
        };
        if self.is_implicit {
            return plain("any certificate that tls.ca vouches for");
        }
        let source = origin.source.ip().to_canonical();
        for gateway in found {
            if let Some(name) = proven(gateway, names, source) {
                check_status(gateway, is_call)?;
                return Ok((gateway, format!("the certificate names {name:?}: gateway {:?}", gateway.name)));
            }
        }
        let wanted: Vec<_> = found.iter().map(|gateway| wanted(gateway, source)).collect();
        let why = format!("the certificate names {}, not {}", shown(names), wanted.join(" or "));
        Err(Refused::new("wrong_certificate", 403, why))
    }
}

/// The gateway that stands for this machine when none is configured.
fn loopback() -> Gateway {
    let networks = [(Ipv4Addr::new(127, 0, 0, 0).into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let address =
        networks.map(|(address, prefix)| GatewayAddress::Network(Network { address, prefix })).to_vec();
    Gateway { name: "loopback".to_owned(), address: GatewayAddresses(address), ..Gateway::default() }
}

fn check_status(gateway: &Gateway, is_call: bool) -> Result<(), Refused> {
    let name = &gateway.name;
    match gateway.status {
        GatewayStatus::Disabled => {
            Err(Refused::new("gateway_disabled", 403, format!("gateway {name:?} is disabled")))
        }
        GatewayStatus::NoNewCalls if is_call => {
            let why = format!("gateway {name:?} takes no new calls now");
            Err(Refused::new("no_new_calls", 503, why))
        }
        GatewayStatus::Enabled | GatewayStatus::NoNewCalls => Ok(()),
    }
}

/// A gateway's DNS names among its addresses.
fn fqdns(gateway: &Gateway) -> impl Iterator<Item = &str> {
    gateway.address.0.iter().filter_map(|address| match address {
        GatewayAddress::Name(name) => Some(name.as_str()),
        GatewayAddress::Network(_) => None,
    })
}

/// DNS names that its certificate may have; empty for a gateway that is known by address only.
fn certificate_names(gateway: &Gateway) -> Vec<&str> {
    match gateway.certificate_name.as_str() {
        "" => fqdns(gateway).collect(),
        name => vec![name],
    }
}

/// The name in the certificate that makes it this gateway's: a dNSName, the common name only when
/// there is none (RFC 6125 §6.4.4), compared whole, so that no wildcard matches; for a gateway
/// without names the source as iPAddress.
fn proven(gateway: &Gateway, shown: &PeerNames, source: IpAddr) -> Option<String> {
    let wanted = certificate_names(gateway);
    if wanted.is_empty() {
        let has = shown.ip_addresses.iter().any(|address| address.to_canonical() == source);
        return has.then(|| source.to_string());
    }
    let same = |a: &str, b: &str| a.trim_end_matches('.').eq_ignore_ascii_case(b.trim_end_matches('.'));
    let common_name = shown.common_name.as_ref().filter(|_| shown.dns_names.is_empty());
    let mut candidates = shown.dns_names.iter().chain(common_name);
    candidates.find(|name| wanted.iter().any(|wanted| same(name, wanted))).cloned()
}

/// What the gateway's certificate should name, for a refusal.
fn wanted(gateway: &Gateway, source: IpAddr) -> String {
    let names = certificate_names(gateway);
    let what = if names.is_empty() { format!("the address {source}") } else { quoted(names.into_iter()) };
    format!("{what} of gateway {:?}", gateway.name)
}

/// Whom a certificate names, for a refusal.
fn shown(names: &PeerNames) -> String {
    let addresses: Vec<_> = names.ip_addresses.iter().map(ToString::to_string).collect();
    let common_name = names.common_name.as_deref().filter(|_| names.dns_names.is_empty());
    let all = names.dns_names.iter().map(String::as_str).chain(common_name);
    let text = quoted(all.chain(addresses.iter().map(String::as_str)));
    if text.is_empty() { "nobody".to_owned() } else { text }
}

/// Names in quotes, at most eight: a certificate may hold hundreds.
fn quoted<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    if names.len() > 8 {
        names.truncate(8);
        names.push("...".to_owned());
    }
    names.join(", ")
}
