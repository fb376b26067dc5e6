//! A ruleset in nftables' JSON (libnftables-json(5)), as `nft -j list` shows it and `nft -j -f` takes
//! it.

use serde_json::{Value, json};

use super::rules::{Chain, Family, Match, Ports, Rule, Ruleset, Set, Verdict};
use crate::base::config::Network;

/// The objects of the ruleset, as a listing has them but for handles and counts.
pub(super) fn objects(ruleset: &Ruleset) -> Vec<Value> {
    let table = ruleset.table.as_str();
    let mut objects = vec![json!({ "table": { "family": "inet", "name": table } })];
    for name in &ruleset.counters {
        objects.push(json!({ "counter": { "family": "inet", "table": table, "name": name } }));
    }
    objects.extend(ruleset.sets.iter().map(|each| set(each, table)));
    objects.extend(ruleset.chains.iter().map(|each| chain(each, table)));
    for chain in &ruleset.chains {
        objects.extend(chain.rules.iter().map(|each| rule(each, chain.name, table)));
    }
    objects
}

/// The document that replaces the table, for `nft -j -f`.
pub(super) fn document(ruleset: &Ruleset) -> Value {
    let table = json!({ "table": { "family": "inet", "name": ruleset.table } });
    let mut commands = vec![json!({ "add": table }), json!({ "delete": table })];
    commands.extend(objects(ruleset).into_iter().map(|object| json!({ "add": object })));
    json!({ "nftables": commands })
}

fn set(set: &Set, table: &str) -> Value {
    let mut object = json!({
        "family": "inet", "table": table, "name": set.name,
        "type": set.family.set_type(), "flags": ["interval"],
    });
    if !set.networks.is_empty() {
        object["elem"] = set.networks.iter().map(network).collect();
    }
    json!({ "set": object })
}

fn network(network: &Network) -> Value {
    let single = Network::from(network.address).prefix;
    if network.prefix == single { json!(network.address) } else { prefix(*network) }
}

fn prefix(network: Network) -> Value {
    json!({ "prefix": { "addr": network.address, "len": network.prefix } })
}

fn chain(chain: &Chain, table: &str) -> Value {
    json!({ "chain": {
        "family": "inet", "table": table, "name": chain.name, "type": "filter",
        "hook": chain.hook, "prio": chain.priority.number(), "policy": chain.policy,
    } })
}

fn rule(rule: &Rule, chain: &str, table: &str) -> Value {
    let mut expressions: Vec<Value> = rule.matches.iter().map(expression).collect();
    if let Some(counter) = rule.counter {
        expressions.push(json!({ "counter": counter }));
    }
    match rule.verdict {
        Verdict::Accept => expressions.push(json!({ "accept": null })),
        Verdict::NoTrack => expressions.push(json!({ "notrack": null })),
        Verdict::Continue => {}
    }
    json!({ "rule": {
        "family": "inet", "table": table, "chain": chain, "comment": rule.comment, "expr": expressions,
    } })
}

fn expression(one: &Match) -> Value {
    let field = |protocol: &str, field: &str| json!({ "payload": { "protocol": protocol, "field": field } });
    let (left, right) = match one {
        Match::Loopback => (json!({ "meta": { "key": "iif" } }), json!("lo")),
        Match::Tracked => {
            let left = json!({ "ct": { "key": "state" } });
            let right = ["established", "related"];
            return json!({ "match": { "op": "in", "left": left, "right": right } });
        }
        Match::FromSet(family, set) => (field(family.protocol(), "saddr"), json!(format!("@{set}"))),
        Match::FromLink => (field("ip6", "saddr"), json!({ "prefix": { "addr": "fe80::", "len": 10 } })),
        Match::To(address) => (field(Family::of(*address).protocol(), "daddr"), json!(address)),
        Match::Port(protocol, end, list) => (field(protocol.name(), end.field()), ports(list)),
        Match::ControlMessage(family, types) => {
            (field(family.control_messages(), "type"), json!({ "set": types }))
        }
    };
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn ports(ports: &Ports) -> Value {
    match ports {
        Ports::List(list) => match list.as_slice() {
            [one] => json!(one),
            several => json!({ "set": several }),
        },
        Ports::Range(range) => json!({ "range": [range.first, range.last] }),
    }
}
