//! Every socket for SIP that a configuration asks for: the port map, worked out once.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::cli::Slot;
use crate::base::config::{AddressFamily, Addresses, Config, StartupMode};
use crate::sip::flow::Transport;

/// A role that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenRole {
    /// The call router.
    Router,
    /// The UM service.
    Service,
    /// The worker in a slot.
    Worker(Slot),
}

impl ListenRole {
    /// All of them, in the order of the port map.
    pub const ALL: [Self; 4] = [Self::Router, Self::Service, Self::Worker(Slot::A), Self::Worker(Slot::B)];

    /// `router`, `service`, `worker A`, `worker B`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Service => "service",
            Self::Worker(Slot::A) => "worker A",
            Self::Worker(Slot::B) => "worker B",
        }
    }
}

/// A socket the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedListener {
    /// Whose it is.
    pub role: ListenRole,
    /// The key its port comes from.
    pub key: &'static str,
    /// What it carries.
    pub transport: Transport,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// The keys one role's sockets come from.
struct Keys<'c> {
    address: &'c Addresses,
    family: AddressFamily,
    mode: StartupMode,
    plain: (&'static str, u16),
    tls: (&'static str, u16),
    udp: bool,
}

/// Every socket for SIP that `config` asks for, in the order of the port map.
pub fn planned(config: &Config) -> Vec<PlannedListener> {
    ListenRole::ALL.into_iter().flat_map(|role| of_role(config, role)).collect()
}

/// The sockets of one role: for each address TCP, TLS and UDP, as far as they are on. TLS is on
/// once there is a certificate.
pub fn of_role(config: &Config, role: ListenRole) -> Vec<PlannedListener> {
    let keys = keys(config, role);
    let mut listeners = Vec::new();
    for address in keys.address.listening(keys.family) {
        let mut add = |transport, (key, port): (&'static str, u16)| {
            let address = SocketAddr::new(address, port);
            listeners.push(PlannedListener { role, key, transport, address });
        };
        if keys.mode != StartupMode::Tls {
            add(Transport::Tcp, keys.plain);
        }
        if has_tls(config, keys.mode) {
            add(Transport::Tls, keys.tls);
        }
        // TLS only means that nothing comes in the clear, by UDP neither.
        if keys.udp && keys.mode != StartupMode::Tls {
            add(Transport::Udp, keys.plain);
        }
    }
    listeners
}

/// The port a role takes `transport` on; `None` where that is off.
pub fn port_of(config: &Config, role: ListenRole, transport: Transport) -> Option<u16> {
    of_role(config, role).into_iter().find(|l| l.transport == transport).map(|l| l.address.port())
}

/// Where a next hop is reached, from a flow whose own end is `local`: the same address unless the
/// hop listens elsewhere.
pub fn reach(addresses: &Addresses, local: IpAddr) -> IpAddr {
    if addresses.iter().any(|address| address == local || address.is_unspecified()) {
        return local;
    }
    addresses.of_family(local).unwrap_or(addresses.first())
}

/// Binds a socket as a listener does, IPv6 without IPv4, and lets it go again.
///
/// # Errors
/// What the kernel says.
pub fn try_bind(transport: Transport, address: SocketAddr) -> io::Result<()> {
    let kind = if transport.is_reliable() { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if transport.is_reliable() {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if transport.is_reliable() { socket.listen(1) } else { Ok(()) }
}

fn has_tls(config: &Config, mode: StartupMode) -> bool {
    mode != StartupMode::Tcp && !config.tls.certificate.as_os_str().is_empty()
}

fn keys(config: &Config, role: ListenRole) -> Keys<'_> {
    let (router, service, worker) = (&config.router, &config.service, &config.worker);
    let of_worker = |plain: (&'static str, u16), beside: (&'static str, u16)| Keys {
        address: &worker.address,
        family: worker.address_family,
        mode: worker.startup_mode,
        plain,
        // Alone, TLS takes the slot's base port; beside TCP the port above.
        tls: if worker.startup_mode == StartupMode::Tls { plain } else { beside },
        udp: worker.udp,
    };
    match role {
        ListenRole::Router => Keys {
            address: &router.address,
            family: router.address_family,
            mode: router.startup_mode,
            plain: ("router.port", router.port),
            tls: ("router.tls_port", router.tls_port),
            udp: router.udp,
        },
        ListenRole::Service => Keys {
            address: &service.address,
            family: service.address_family,
            mode: service.startup_mode,
            plain: ("service.port", service.port),
            tls: ("service.tls_port", service.tls_port),
            udp: service.udp,
        },
        ListenRole::Worker(Slot::A) => {
            of_worker(("worker.port_a", worker.port_a), ("worker.tls_port_a", worker.tls_port_a))
        }
        ListenRole::Worker(Slot::B) => {
            of_worker(("worker.port_b", worker.port_b), ("worker.tls_port_b", worker.tls_port_b))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(config: &Config, role: ListenRole) -> Vec<String> {
        let text = |l: PlannedListener| format!("{}/{} {}", l.address, l.transport.name(), l.key);
        of_role(config, role).into_iter().map(text).collect()
    }

    /// Goal: the port map of the design: TLS beside TCP takes the port above, alone the base port; no
    /// TLS without a certificate. Method: slot B in each mode.
    #[test]
    fn startup_mode_and_certificate_decide_the_ports() {
        let mut config = Config::default();
        let slot = ListenRole::Worker(Slot::B);
        assert_eq!(texts(&config, slot), ["127.0.0.1:5067/tcp worker.port_b"]);
        config.tls.certificate = "server.pem".into();
        let dual = ["127.0.0.1:5067/tcp worker.port_b", "127.0.0.1:5068/tls worker.tls_port_b"];
        assert_eq!(texts(&config, slot), dual);
        config.worker.startup_mode = StartupMode::Tls;
        config.worker.udp = true;
        assert_eq!(texts(&config, slot), ["127.0.0.1:5067/tls worker.port_b"], "no UDP in the clear");
        config.worker.startup_mode = StartupMode::Tcp;
        let plain = ["127.0.0.1:5067/tcp worker.port_b", "127.0.0.1:5067/udp worker.port_b"];
        assert_eq!(texts(&config, slot), plain);
        assert_eq!(port_of(&config, slot, Transport::Tls), None);
        assert_eq!(port_of(&config, ListenRole::Router, Transport::Tls), Some(5061));
    }

    /// Goal: a redirect names an address its reader can reach. Method: a hop with addresses of its
    /// own, one that listens everywhere, one of the other family.
    #[test]
    fn a_hop_is_reached_where_the_caller_came_in_unless_it_is_elsewhere() {
        let addresses = |list: &str| -> Addresses { serde_json::from_str(list).unwrap() };
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (hop, local, reached) in [
            (r#""::""#, "192.0.2.1", "192.0.2.1"),
            (r#""0.0.0.0""#, "2001:db8::1", "2001:db8::1"),
            (r#"["192.0.2.1","2001:db8::1"]"#, "2001:db8::1", "2001:db8::1"),
            (r#"["192.0.2.1","192.0.2.2"]"#, "192.0.2.2", "192.0.2.2"),
            (r#"["192.0.2.9","2001:db8::9"]"#, "2001:db8::1", "2001:db8::9"),
            (r#""192.0.2.9""#, "2001:db8::1", "192.0.2.9"),
        ] {
            assert_eq!(reach(&addresses(hop), ip(local)), ip(reached), "{hop} {local}");
        }
    }
}
