//! The ruleset that a configuration needs.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rules::{Chain, End, Family, Match, Ports, Priority, Protocol, Rule, Ruleset, Set, Verdict};
use crate::base::config::{Config, GatewayAddress, GatewayStatus, Network};
use crate::control::cli::Slot;
use crate::control::listeners::{ListenRole, PlannedListener, planned};
use crate::sip::flow::Transport;

/// Where the web services listen.
const WEB_PORT: u16 = 8443;

/// Control messages without which IPv4 fails; errors about media are not tracked, so no rule on
/// connections lets them in.
const ICMP: &[&str] = &["destination-unreachable", "echo-request", "parameter-problem", "time-exceeded"];

/// The same for IPv6 (RFC 4890 §4.4): path MTU, neighbours, routers, multicast groups.
const ICMPV6: &[&str] = &[
    "destination-unreachable",
    "echo-request",
    "mld-listener-query",
    "nd-neighbor-advert",
    "nd-neighbor-solicit",
    "nd-router-advert",
    "packet-too-big",
    "parameter-problem",
    "time-exceeded",
];

/// Who may send media.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum MediaFrom {
    /// Those who may signal.
    #[default]
    Gateways,
    /// Everybody; the SDP's addresses and SRTP decide.
    Any,
    /// These networks.
    Networks(Vec<Network>),
}

/// What the operator chose beside the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choices {
    pub(super) table: String,
    /// What the configuration is called in the text's head.
    pub(super) origin: String,
    pub(super) media_from: MediaFrom,
    /// Who may reach the web services; nobody: only this machine.
    pub(super) management: Vec<Network>,
    /// TCP ports open to everybody.
    pub(super) allow_tcp: BTreeSet<u16>,
}

/// Finds a name's addresses.
pub(super) type Resolve<'r> = &'r dyn Fn(&str) -> io::Result<Vec<IpAddr>>;

/// The ruleset, and the names that were not found.
pub(super) fn plan(config: &Config, choices: &Choices, resolve: Resolve<'_>) -> (Ruleset, Vec<String>) {
    let mut lost = Vec::new();
    let mut sets = gateway_sets(config, resolve, &mut lost);
    if let MediaFrom::Networks(networks) = &choices.media_from {
        sets.extend(operator_sets("media", networks, "--media-from"));
    }
    if !choices.management.is_empty() {
        sets.extend(operator_sets("mgmt", &choices.management, "--management"));
    }
    let chains =
        vec![untracked(config, End::Destination), untracked(config, End::Source), input(config, choices)];
    let counters = [
        "router",
        "service",
        "worker",
        "media",
        "web",
        "admin",
        "tracked",
        "control_messages",
        "dhcpv6",
        "dropped",
    ];
    let ruleset = Ruleset {
        table: choices.table.clone(),
        origin: choices.origin.clone(),
        remarks: remarks(config, choices),
        counters: counters.to_vec(),
        sets,
        chains,
    };
    (ruleset, lost)
}

fn remarks(config: &Config, choices: &Choices) -> Vec<String> {
    let mut remarks = Vec::new();
    if choices.allow_tcp.is_empty() {
        remarks.push("No TCP port is left open to everybody: mind how you log in.".to_owned());
    } else {
        let open: Vec<_> = choices.allow_tcp.iter().map(ToString::to_string).collect();
        remarks.push(format!("TCP ports left open to everybody (--allow-tcp): {}.", open.join(", ")));
    }
    if choices.management.is_empty() {
        remarks
            .push(format!("Web services, TCP {WEB_PORT}: this machine only (--management CIDR opens them)."));
    }
    if config.rtp.ports.last >= 32_768 {
        remarks.push(
            "rtp.ports reach into the ports that the kernel hands out (32768-60999): reserve them".into(),
        );
        remarks.push("(voxring sysctl), or answers to other programs over UDP are dropped.".into());
    }
    remarks.push(
        "A program that draws its own UDP ports, such as a DNS resolver, must draw them outside".into(),
    );
    remarks.push(format!(
        "of {}-{}: media is not tracked, so answers there are not known as such.",
        config.rtp.ports.first, config.rtp.ports.last
    ));
    remarks
}

/// Those who may signal, a set for each family.
fn gateway_sets(config: &Config, resolve: Resolve<'_>, lost: &mut Vec<String>) -> Vec<Set> {
    let mut networks = Vec::new();
    let mut remarks: Vec<(Option<Family>, String)> = Vec::new();
    if config.gateway.is_empty() {
        remarks.push((None, "no [[gateway]]: this machine only".to_owned()));
        networks.push(Network { address: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 });
        networks.push(Network::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }
    for gateway in &config.gateway {
        let name = &gateway.name;
        if gateway.status == GatewayStatus::Disabled {
            remarks.push((None, format!("gateway {name}: disabled")));
            continue;
        }
        for address in &gateway.address.0 {
            let found = match address {
                GatewayAddress::Network(network) => Ok(vec![masked(*network)]),
                GatewayAddress::Name(host) => resolved(host, resolve),
            };
            match found {
                Ok(found) => {
                    for network in found {
                        let looked_up = match address {
                            GatewayAddress::Network(_) => "",
                            GatewayAddress::Name(_) => " (now; print this anew when the name moves)",
                        };
                        let from =
                            if looked_up.is_empty() { String::new() } else { format!(" {address} is") };
                        let remark = format!("gateway {name}:{from} {network}{looked_up}");
                        remarks.push((Some(Family::of(network.address)), remark));
                        networks.push(network);
                    }
                }
                Err(why) => {
                    remarks.push((None, format!("gateway {name}: {address} NOT FOUND, so not allowed")));
                    lost.push(format!(
                        "gateway {name}: {address} is not allowed, its address was not found: {why}"
                    ));
                }
            }
        }
    }
    family_sets("gateways", &networks, &remarks)
}

/// A name's addresses; the error says why there are none.
fn resolved(host: &str, resolve: Resolve<'_>) -> Result<Vec<Network>, String> {
    let found = resolve(host).map_err(|error| error.to_string())?;
    let found: BTreeSet<IpAddr> = found.iter().map(IpAddr::to_canonical).collect();
    if found.is_empty() {
        Err("no address".to_owned())
    } else {
        Ok(found.into_iter().map(Network::from).collect())
    }
}

fn operator_sets(name: &str, networks: &[Network], option: &str) -> Vec<Set> {
    family_sets(name, networks, &[(None, format!("from {option}"))])
}

/// A set for each family; nftables takes no element within another.
fn family_sets(name: &str, networks: &[Network], remarks: &[(Option<Family>, String)]) -> Vec<Set> {
    let networks: Vec<Network> = networks.iter().copied().map(masked).collect();
    let within =
        |inner: &Network, outer: &Network| outer.prefix < inner.prefix && outer.contains(inner.address);
    Family::ALL
        .into_iter()
        .map(|family| {
            let mut own: Vec<Network> = networks
                .iter()
                .filter(|network| Family::of(network.address) == family)
                .filter(|network| !networks.iter().any(|other| within(network, other)))
                .copied()
                .collect();
            own.sort_by_key(|network| (network.address, network.prefix));
            own.dedup();
            let name = format!("{name}{}", family.digit());
            let is_about = |of: &Option<Family>| of.is_none_or(|of| of == family);
            let remarks =
                remarks.iter().filter(|(of, _)| is_about(of)).map(|(_, text)| text.clone()).collect();
            Set { name, family, networks: own, remarks }
        })
        .collect()
}

/// The network's first address; one of IPv4 mapped into IPv6 is one of IPv4.
fn masked(network: Network) -> Network {
    let network = match (network.address.to_canonical(), network.prefix.checked_sub(96)) {
        (IpAddr::V4(v4), Some(prefix)) if network.address.is_ipv6() => Network { address: v4.into(), prefix },
        _ => network,
    };
    let keep = u32::from(network.prefix);
    let address = match network.address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - keep.min(32)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - keep.min(128)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    };
    Network { address, prefix: network.prefix }
}

/// Takes media out of connection tracking, which would cost an entry a stream and a look-up a
/// packet. Packets come in by the destination's port, go out by the source's.
fn untracked(config: &Config, end: End) -> Chain {
    let (name, hook, way) = match end {
        End::Destination => ("untracked_in", "prerouting", "in"),
        End::Source => ("untracked_out", "output", "out"),
    };
    let rule = |address: IpAddr| {
        // The way out is told by the ports alone: the kernel chose the address.
        let to = (end == End::Destination).then_some(Match::To(address));
        let port = Match::Port(Protocol::Udp, end, Ports::Range(config.rtp.ports));
        Rule {
            comment: format!("media {way} {}", address),
            matches: to.into_iter().chain([port]).collect(),
            counter: None,
            verdict: Verdict::NoTrack,
        }
    };
    let mut rules: Vec<Rule> = config.rtp.address.iter().map(rule).collect();
    if end == End::Source {
        rules.truncate(1);
        rules.iter_mut().for_each(|rule| rule.comment = "media out".to_owned());
    }
    Chain { name, hook, priority: Priority::Raw, policy: "accept", rules }
}

fn input(config: &Config, choices: &Choices) -> Chain {
    let accept = |comment: &str, matches: Vec<Match>, counter: Option<&'static str>| Rule {
        comment: comment.to_owned(),
        matches,
        counter,
        verdict: Verdict::Accept,
    };
    let mut rules = vec![accept("loopback", vec![Match::Loopback], None)];
    // Before the rule on connections, which never sees a tracked packet of it.
    rules.extend(media(config, &choices.media_from));
    rules.push(accept("answers to what this machine began", vec![Match::Tracked], Some("tracked")));
    for (family, types) in [(Family::V4, ICMP), (Family::V6, ICMPV6)] {
        let comment = format!("control messages {}", family.name());
        rules.push(accept(&comment, vec![Match::ControlMessage(family, types)], Some("control_messages")));
    }
    let from_server = Match::Port(Protocol::Udp, End::Destination, Ports::List(vec![546]));
    rules.push(accept("DHCPv6 answers", vec![Match::FromLink, from_server], Some("dhcpv6")));
    rules.extend(signalling(config));
    if !choices.management.is_empty() {
        for family in Family::ALL {
            let from = Match::FromSet(family, format!("mgmt{}", family.digit()));
            let port = Match::Port(Protocol::Tcp, End::Destination, Ports::List(vec![WEB_PORT]));
            rules.push(accept(&format!("web services {}", family.name()), vec![from, port], Some("web")));
        }
    }
    if !choices.allow_tcp.is_empty() {
        let ports = Ports::List(choices.allow_tcp.iter().copied().collect());
        let port = Match::Port(Protocol::Tcp, End::Destination, ports);
        rules.push(accept("open to everybody, so that nobody is locked out", vec![port], Some("admin")));
    }
    let rest = "everything else is dropped by the policy".to_owned();
    rules.push(Rule {
        comment: rest,
        matches: Vec::new(),
        counter: Some("dropped"),
        verdict: Verdict::Continue,
    });
    Chain { name: "input", hook: "input", priority: Priority::Filter, policy: "drop", rules }
}

/// RTP and RTCP, to each address that media is bound to.
fn media(config: &Config, from: &MediaFrom) -> Vec<Rule> {
    let rule = |address: IpAddr| {
        let family = Family::of(address);
        let from = match from {
            MediaFrom::Gateways => Some(Match::FromSet(family, format!("gateways{}", family.digit()))),
            MediaFrom::Any => None,
            MediaFrom::Networks(_) => Some(Match::FromSet(family, format!("media{}", family.digit()))),
        };
        let port = Match::Port(Protocol::Udp, End::Destination, Ports::Range(config.rtp.ports));
        Rule {
            comment: format!("RTP and RTCP {}", family.name()),
            matches: from.into_iter().chain([Match::To(address), port]).collect(),
            counter: Some("media"),
            verdict: Verdict::Accept,
        }
    };
    config.rtp.address.iter().map(rule).collect()
}

/// SIP to each role. Redirected calls come to every role straight from the gateway.
fn signalling(config: &Config) -> Vec<Rule> {
    let listeners = planned(config);
    let roles: [(&str, &'static str, &[ListenRole]); 3] = [
        ("call router", "router", &[ListenRole::Router]),
        ("UM service", "service", &[ListenRole::Service]),
        ("worker process", "worker", &[ListenRole::Worker(Slot::A), ListenRole::Worker(Slot::B)]),
    ];
    let mut rules = Vec::new();
    for (name, counter, roles) in roles {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for family in Family::ALL {
                let is_of = |listener: &&PlannedListener| {
                    roles.contains(&listener.role)
                        && protocol_of(listener.transport) == protocol
                        && Family::of(listener.address.ip()) == family
                };
                let ports: BTreeSet<u16> =
                    listeners.iter().filter(is_of).map(|listener| listener.address.port()).collect();
                if ports.is_empty() {
                    continue;
                }
                let ports = Ports::List(ports.into_iter().collect());
                rules.push(Rule {
                    comment: format!(
                        "{name}, SIP over {}, {}",
                        protocol.name().to_uppercase(),
                        family.name()
                    ),
                    matches: vec![
                        Match::FromSet(family, format!("gateways{}", family.digit())),
                        Match::Port(protocol, End::Destination, ports),
                    ],
                    counter: Some(counter),
                    verdict: Verdict::Accept,
                });
            }
        }
    }
    rules
}

fn protocol_of(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp | Transport::Tls => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    }
}

#[cfg(test)]
pub(super) mod tests;
