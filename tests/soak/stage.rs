//! What a soak runs on: whether it is asked for, its seed, and a node with room.

use std::io::Write as _;

use toml::Table;

use crate::common::node::Node;
use crate::common::pki::{Paper, Pki, set};
use crate::common::{Heavy, heavy, unix_ms};

/// True when soaks are asked for. Otherwise says that this one is skipped.
pub(crate) fn is_asked() -> bool {
    if std::env::var("VOXRING_SOAK").is_ok_and(|value| value == "1") {
        return true;
    }
    // Past the test harness: the summary of tests/run counts these.
    let _ = writeln!(std::io::stderr(), "skipped: soaks run with VOXRING_SOAK=1 (tests/run --soak)");
    false
}

/// A whole number of the environment, or `default`.
pub(crate) fn asked_number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"))
}

/// The run's seed, printed, so that a run can be repeated.
pub(crate) fn seed() -> u64 {
    let seed = asked_number("VOXRING_SEED", unix_ms() % 1_000_000);
    let _ = writeln!(std::io::stderr(), "soak: repeat with VOXRING_SEED={seed}");
    seed
}

/// How calls come to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Plain TCP.
    Tcp,
    /// TLS, both sides with certificates.
    Tls,
}

/// A node with room for thousands of calls, and what its callers need.
pub(crate) struct Stage {
    /// The node.
    pub(crate) node: Node,
    /// How it is called.
    pub(crate) carrier: Carrier,
    /// Certificates, over TLS.
    pub(crate) pki: Option<Pki>,
    _alone: Heavy,
}

impl Stage {
    /// Waits until no other heavy test runs, and starts a node, after `change` had its say.
    pub(crate) fn set(carrier: Carrier, change: impl FnOnce(&mut Table)) -> Self {
        let alone = heavy();
        let pki = (carrier == Carrier::Tls).then(Pki::new);
        let node = Node::start_changed_for_load(|config| {
            pki.iter().for_each(|pki| pki.secure(config));
            make_room(config);
            change(config);
        });
        Self { node: node.greeting_shortly(), carrier, pki, _alone: alone }
    }

    /// The address of its media, which no other node has.
    pub(crate) fn media_address(&self) -> String {
        media_address(self.node.ports.router())
    }

    /// Whom to call, and with which papers.
    pub(crate) fn target(&self) -> Vec<String> {
        let transport = if self.carrier == Carrier::Tls { "tls" } else { "tcp" };
        let uri = self.node.uri("", transport).replace("sip:@", "sip:");
        let papers = self.pki.iter().flat_map(|pki| pki.voxperf(Paper::Good));
        ["--target".to_owned(), uri].into_iter().chain(papers).collect()
    }
}

fn media_address(router: u16) -> String {
    // As many addresses of the loopback as there are blocks of ports.
    format!("127.0.1.{}", (router / 20) % 250 + 1)
}

/// Room for thousands of calls, a route to voxperf's second phone, and short timers for peers that vanish.
fn make_room(config: &mut Table) {
    let router = config["router"]["port"].as_integer().and_then(|port| u16::try_from(port).ok());
    let router = router.expect("a port");
    set(config, "rtp", "address", media_address(router));
    set(config, "rtp", "ports", "1024-32767");
    set(config, "rtp", "media_timeout_s", 5);
    set(config, "calls", "calls_max", 10_000);
    set(config, "calls", "calls_per_s", 10_000);
    set(config, "limits", "source_calls_per_s", 10_000);
    set(config, "worker", "drain_timeout_s", 60);
    set(config, "worker", "crashes_max", 1000);
    // As `Ports::peer` has it.
    let call_uri = format!("sip:127.0.0.1:{};transport=tcp", router + 11);
    let mut gateways = config.remove("gateway").and_then(|list| list.as_array().cloned()).unwrap_or_default();
    let mut phones = gateways.pop().and_then(|gateway| gateway.as_table().cloned()).unwrap_or_default();
    phones.insert("name".to_owned(), "phones".into());
    phones.entry("address").or_insert_with(|| vec!["127.0.0.0/8"].into());
    phones.insert("call_uri".to_owned(), call_uri.into());
    gateways.push(phones.into());
    config.insert("gateway".to_owned(), gateways.into());
    config.extend(toml::toml! {
        route = [{ name = "phones", pattern = "8*", gateways = ["phones"] }]
    });
}
