//! Addresses to listen on, and addresses that gateways call from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::AddressFamily;
use super::check::is_dns_name;

/// One address or several, in the file a text or a list of texts. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<IpAddr>);

impl Addresses {
    /// These; `None` when there are none.
    pub fn new(addresses: Vec<IpAddr>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self(addresses))
    }

    /// 127.0.0.1.
    pub fn loopback() -> Self {
        Self(vec![Ipv4Addr::LOCALHOST.into()])
    }

    /// In the file's order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().copied()
    }

    /// The first one.
    pub fn first(&self) -> IpAddr {
        self.0.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Those of IPv4.
    pub fn v4(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.iter().filter(IpAddr::is_ipv4)
    }

    /// Those of IPv6.
    pub fn v6(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.iter().filter(IpAddr::is_ipv6)
    }

    /// The first address of the same family as `other`.
    pub fn of_family(&self, other: IpAddr) -> Option<IpAddr> {
        self.iter().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// The addresses to bind: those of the family, each unspecified address standing for all of the
    /// family. Every IPv6 socket takes IPv6 only.
    pub fn listening(&self, family: AddressFamily) -> Vec<IpAddr> {
        let mut found = Vec::new();
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        for address in self.iter() {
            let candidates = if address.is_unspecified() { vec![v4, v6] } else { vec![address] };
            for candidate in candidates {
                let fits = match family {
                    AddressFamily::Any => true,
                    AddressFamily::Ipv4 => candidate.is_ipv4(),
                    AddressFamily::Ipv6 => candidate.is_ipv6(),
                };
                if fits && !found.contains(&candidate) {
                    found.push(candidate);
                }
            }
        }
        found
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        Self(vec![address])
    }
}

impl FromStr for Addresses {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpAddr>().map(Self::from)
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.iter().map(|address| address.to_string()).collect();
        f.write_str(&texts.join(", "))
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

/// A text or a list of texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(one) => Ok(Self(vec![one])),
            OneOrMore::More(more) if more.is_empty() => Err(serde::de::Error::custom("no address")),
            OneOrMore::More(more) => Ok(Self(more)),
        }
    }
}

/// A network in CIDR form; a single address is one of full length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its first address.
    pub address: IpAddr,
    /// Bits of it that count.
    pub prefix: u8,
}

impl Network {
    /// True when `address` lies in it. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                u128::from(network).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == full {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// Where a gateway calls from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayAddress {
    /// An address or a network.
    Network(Network),
    /// A DNS name, lower case; looked up again and again.
    Name(String),
}

impl FromStr for GatewayAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        if let Some((address, prefix)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| "no address before the slash")?;
            let full = Network::from(address).prefix;
            let prefix = prefix.parse().ok().filter(|bits| *bits <= full).ok_or("prefix too long")?;
            return Ok(Self::Network(Network { address, prefix }));
        }
        if is_dns_name(text) { Ok(Self::Name(text.to_ascii_lowercase())) } else { Err("no DNS name") }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// All of them, in the file a text or a list of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayAddresses(pub Vec<GatewayAddress>);

impl Serialize for GatewayAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

impl<'de> Deserialize<'de> for GatewayAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts: Vec<String> = match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        };
        let parsed = texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom));
        Ok(Self(parsed.collect::<Result<_, D::Error>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(text: &str) -> Option<GatewayAddress> {
        text.parse().ok()
    }

    /// Goal: networks hold what CIDR says, mapped addresses included. Method: edges of each.
    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
            ("2001:db8::/64", "2001:db8::ffff", "2001:db8:0:1::"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
        ] {
            let Some(GatewayAddress::Network(parsed)) = gateway(network) else { panic!("{network}") };
            assert!(parsed.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network} {outside}");
            assert_eq!(parsed.to_string(), network);
        }
    }

    /// Goal: what is neither address, network nor DNS name is refused. Method: one slip each.
    #[test]
    fn nonsense_is_no_gateway() {
        for text in
            ["", "192.0.2", "192.0.2.0/33", "::/129", "a b", "gw_1.example", "-a.example", "*.example.com"]
        {
            assert_eq!(gateway(text), None, "{text}");
        }
        assert_eq!(gateway("GW.Example.com"), Some(GatewayAddress::Name("gw.example.com".into())));
    }

    /// Goal: "all addresses" means both families unless one is chosen. Method: each family.
    #[test]
    fn unspecified_stands_for_all_addresses_of_the_family() {
        let any: Addresses = IpAddr::V4(Ipv4Addr::UNSPECIFIED).into();
        let texts = |family| any.listening(family).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(AddressFamily::Any), ["0.0.0.0", "::"]);
        assert_eq!(texts(AddressFamily::Ipv4), ["0.0.0.0"]);
        assert_eq!(texts(AddressFamily::Ipv6), ["::"]);
        assert!(Addresses::loopback().listening(AddressFamily::Ipv6).is_empty());
    }
}
