//! Ports: between listeners, against the RTP range, and against what the kernel hands out itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::machine::Machine;
use super::report::Report;
use crate::base::config::{Config, Source};
use crate::control::listeners::{PlannedListener, planned};
use crate::sip::flow::Transport;

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Span {
    /// Reads `"5060"` or `"16384-32767"`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(Self { first, last })
    }

    fn overlap(self, other: Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Self { first, last })
    }

    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Compares all ports of `config` with each other and with the kernel's.
pub(super) fn examine(report: &mut Report, config: &Config, source: &Source, machine: &Machine) {
    let listeners = planned(config);
    conflicts(report, config, source);
    against_kernel(report, config, &listeners, source, machine);
    enough_pairs(report, config, source);
}

/// Compares the ports of `config` with each other alone.
pub(super) fn conflicts(report: &mut Report, config: &Config, source: &Source) {
    let listeners = planned(config);
    between_listeners(report, &listeners, source);
    against_rtp(report, config, &listeners, source);
}

/// Two sockets of one transport at one place.
fn between_listeners(report: &mut Report, listeners: &[PlannedListener], source: &Source) {
    let mut found = false;
    for (index, one) in listeners.iter().enumerate() {
        for other in listeners.iter().skip(index + 1) {
            if one.transport.is_reliable()
                && other.transport.is_reliable()
                && one.address.port() == other.address.port()
                && share_address(one.address.ip(), other.address.ip())
            {
                found = true;
                report.error(
                    source.locate(other.key),
                    format!("{} and {} both listen on {}", one.role.name(), other.role.name(), other.address),
                    format!("give {} or {} another port", one.key, other.key),
                );
            }
        }
    }
    if !found {
        report.pass("listeners have ports of their own");
    }
}

/// A SIP socket over UDP amid the media ports.
fn against_rtp(report: &mut Report, config: &Config, listeners: &[PlannedListener], source: &Source) {
    let rtp = rtp_span(config);
    for listener in listeners {
        if listener.transport == Transport::Udp
            && rtp.contains(listener.address.port())
            && config.rtp.address.iter().any(|media| share_address(listener.address.ip(), media))
        {
            report.error(
                source.locate("rtp.ports"),
                format!("{rtp} contains {}'s UDP port {}", listener.role.name(), listener.address.port()),
                format!("move {} out of the range, or the range away from it", listener.key),
            );
        }
    }
}

/// Ports that the kernel may give to any other program.
fn against_kernel(
    report: &mut Report,
    config: &Config,
    listeners: &[PlannedListener],
    source: &Source,
    machine: &Machine,
) {
    let Some(ephemeral) = machine.ephemeral else { return };
    let rtp = rtp_span(config);
    let taken =
        |port: u16| ephemeral.contains(port) && !machine.reserved.iter().any(|span| span.contains(port));
    let mut wanted = Vec::new();
    if let Some(overlap) = rtp.overlap(ephemeral)
        && (overlap.first..=overlap.last).any(taken)
    {
        wanted.push(("rtp.ports", overlap));
    }
    let mut seen = BTreeSet::new();
    for listener in listeners {
        let port = listener.address.port();
        if taken(port) && seen.insert(port) {
            wanted.push((listener.key, Span { first: port, last: port }));
        }
    }
    // One line reserves them all: the sysctl replaces what was reserved before.
    let all: Vec<String> =
        machine.reserved.iter().chain(wanted.iter().map(|(_, span)| span)).map(ToString::to_string).collect();
    let fix = format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", all.join(","));
    for (key, span) in &wanted {
        report.warning(
            source.locate(key),
            format!("the kernel gives ports {span} to outgoing sockets of any program ({ephemeral})"),
            fix.clone(),
        );
    }
    if wanted.is_empty() {
        report.pass(format!("RTP ports {rtp} and listeners lie outside the kernel's ephemeral ports"));
    }
}

/// A pair of ports for every call that may be.
fn enough_pairs(report: &mut Report, config: &Config, source: &Source) {
    let pairs = config.rtp.ports.pairs() / 2;
    // Each shard of each slot has a slice of its own; there is at least one.
    let shards = u32::from(config.worker.media_shards.max(1));
    if pairs < shards {
        report.error(
            source.locate("rtp.ports"),
            format!(
                "a worker has {pairs} port pairs (half the range) for {shards} media shards: it cannot start"
            ),
            format!("widen rtp.ports to {} ports", config.calls.calls_max * 4),
        );
    } else if pairs < config.calls.calls_max {
        report.warning(
            source.locate("rtp.ports"),
            format!(
                "a worker has {pairs} port pairs (half the range) but calls.calls_max is {}; calls beyond \
                 {pairs} get 503",
                config.calls.calls_max
            ),
            format!("widen rtp.ports to {} ports, or lower calls.calls_max", config.calls.calls_max * 4),
        );
    } else {
        report.pass(format!("{pairs} RTP port pairs a worker for {} calls", config.calls.calls_max));
    }
}

fn rtp_span(config: &Config) -> Span {
    Span { first: config.rtp.ports.first, last: config.rtp.ports.last }
}

/// True when sockets bound to both would meet: same address, or one of them is every address of their
/// family. IPv6 listeners take no IPv4, so families never meet.
fn share_address(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::{Addresses, PortRange};

    fn machine() -> Machine {
        Machine { ephemeral: Span::parse("32768-60999"), ..Machine::default() }
    }

    fn problems(config: &Config, machine: &Machine) -> Vec<(String, String, String)> {
        let mut report = Report::default();
        examine(&mut report, config, &Source::default(), machine);
        report.problems.into_iter().map(|p| (p.place, p.what, p.fix)).collect()
    }

    /// Goal: the defaults have no conflict on a kernel with its own defaults. Method: that range.
    #[test]
    fn the_default_ports_conflict_with_nothing() {
        assert_eq!(problems(&Config::default(), &machine()), []);
    }

    /// Goal: one port for two roles is an error that names both. Method: slot A on the service's port.
    #[test]
    fn one_port_for_two_roles_is_an_error() {
        let mut config = Config::default();
        config.worker.port_a = 5062;
        let found = problems(&config, &machine());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, "service and worker A both listen on 127.0.0.1:5062");
        config.worker.address = "127.0.0.2".parse().unwrap();
        assert_eq!(problems(&config, &machine()), [], "another address is another place");
    }

    /// Goal: "::" beside "0.0.0.0", which each stand for both families, is no conflict; every address
    /// beside one of the same family is. Method: all roles on "::"; the router on the service's port.
    #[test]
    fn listeners_of_both_families_share_a_port() {
        let mut config = Config::default();
        for address in ["::", "0.0.0.0"] {
            let address: Addresses = address.parse().unwrap();
            config.router.address = address.clone();
            config.service.address = address.clone();
            config.worker.address = address;
            assert_eq!(problems(&config, &machine()), []);
        }
        config.service.address = "::1".parse().unwrap();
        config.router.port = config.service.port;
        let found = problems(&config, &machine());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].1, "router and service both listen on [::1]:5062");
    }

    /// Goal: media ports may not swallow a SIP listener over UDP; over TCP they cannot. Method: a range
    /// around 5060 with UDP off and on.
    #[test]
    fn a_udp_listener_in_the_rtp_range_is_an_error() {
        let mut config = Config::default();
        config.rtp.ports = PortRange { first: 5000, last: 15_999 };
        assert_eq!(problems(&config, &machine()), []);
        config.router.udp = true;
        assert_eq!(problems(&config, &machine())[0].1, "5000-15999 contains router's UDP port 5060");
    }

    /// Goal: a range the kernel hands out needs a reservation, and the fix keeps the ones there are.
    /// Method: the range of the original, 1024-65535, with one port reserved already.
    #[test]
    fn an_rtp_range_over_the_ephemeral_ports_names_the_sysctl() {
        let mut config = Config::default();
        config.rtp.ports = PortRange { first: 10_000, last: 65_535 };
        let mut machine = machine();
        machine.reserved = vec![Span { first: 8080, last: 8080 }];
        let found = problems(&config, &machine);
        assert_eq!(found[0].2, "sysctl -w net.ipv4.ip_local_reserved_ports=8080,32768-60999");
        machine.reserved = vec![Span { first: 32_768, last: 60_999 }];
        assert_eq!(problems(&config, &machine), [], "reserved ports are ours");
    }

    /// Goal: a range that leaves a media shard without a pair is an error, as the node does not start
    /// with it. Method: one pair for two slots; three pairs a slot for four shards.
    #[test]
    fn fewer_pairs_than_shards_is_an_error() {
        for (first, last, media_shards) in [(16_384, 16_385, 0), (16_384, 16_395, 4)] {
            let mut config = Config::default();
            config.rtp.ports = PortRange { first, last };
            config.worker.media_shards = media_shards;
            let mut report = Report::default();
            enough_pairs(&mut report, &config, &Source::default());
            assert_eq!(report.errors(), 1, "{first}-{last}");
        }
    }

    /// Goal: too few pairs for the calls is told. Method: 100 ports are 50 pairs, 25 a worker.
    #[test]
    fn too_few_pairs_for_the_calls_is_a_warning() {
        let mut config = Config::default();
        config.rtp.ports = PortRange { first: 20_000, last: 20_099 };
        let found = problems(&config, &machine());
        assert!(found[0].1.starts_with("a worker has 25 port pairs"), "{found:?}");
    }
}
