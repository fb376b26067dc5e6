use super::*;

use crate::control::firewall::json::objects;
use crate::control::firewall::plan::tests::{CONFIG, choices, planned_for};

/// What nft 1.0.6 lists (`nft -j list table inet voxring`) after loading the text of the ruleset of
/// `CONFIG`.
const LISTING: &str = include_str!("listing.json");

fn listing() -> Vec<Value> {
    let listing: Value = serde_json::from_str(LISTING).unwrap();
    listing["nftables"].as_array().unwrap().clone()
}

fn expected() -> Vec<Value> {
    objects(&planned_for(CONFIG, &choices()).0)
}

/// The differences after `change`, as `kind object name`.
fn after(change: impl FnOnce(&mut Vec<Value>)) -> Vec<String> {
    let mut running = listing();
    change(&mut running);
    let text = |found: &Difference| format!("{} {} {}", found.kind.name(), found.object, found.name);
    compare(&expected(), &running).iter().map(text).collect()
}

/// Where a rule stands in the listing.
fn at(running: &[Value], comment: &str) -> usize {
    let is_it = |entry: &Value| entry["rule"]["comment"].as_str().is_some_and(|text| text == comment);
    running.iter().position(is_it).unwrap()
}

const ROUTER: &str = "call router, SIP over UDP, IPv4";

/// Goal: nft's own listing of our text is equal. Method: a listing it made.
#[test]
fn what_nft_lists_of_our_ruleset_is_equal() {
    assert_eq!(after(|_| {}), Vec::<String>::new());
}

/// Goal: counts, handles and the order within sets are no difference. Method: change them.
#[test]
fn what_varies_by_itself_is_no_difference() {
    let same = after(|running| {
        for entry in running.iter_mut() {
            if let Some(counter) = entry.get_mut("counter") {
                counter["packets"] = 7.into();
            }
            if let Some(set) = entry.get_mut("set").filter(|set| set["name"] == "gateways4") {
                set["elem"].as_array_mut().unwrap().reverse();
            }
        }
        let rule = at(running, "control messages IPv6");
        let types = &mut running[rule]["rule"]["expr"][0]["match"]["right"]["set"];
        types.as_array_mut().unwrap().reverse();
        let rule = at(running, "answers to what this machine began");
        running[rule]["rule"]["expr"][0]["match"]["right"] = json!({ "|": ["related", "established"] });
    });
    assert_eq!(same, Vec::<String>::new());
}

/// Goal: one rule less, more, twice, changed or elsewhere is found, and just that. Method: each in the
/// listing.
#[test]
fn each_change_of_a_rule_is_found() {
    let missing = after(|running| drop(running.remove(at(running, ROUTER))));
    assert_eq!(missing, [format!("missing rule input: {ROUTER}")]);
    let extra = after(|running| {
        let chain = json!({ "family": "inet", "table": "voxring", "chain": "input", "handle": 99,
            "expr": [{ "accept": null }] });
        running.push(json!({ "rule": chain }));
    });
    assert_eq!(extra, ["extra rule input: without a comment, handle 99"]);
    let twice = after(|running| running.push(running[at(running, ROUTER)].clone()));
    assert_eq!(twice, [format!("extra rule input: {ROUTER}")]);
    let changed = after(|running| {
        let rule = at(running, ROUTER);
        running[rule]["rule"]["expr"][1]["match"]["right"] = 5061.into();
    });
    assert_eq!(changed, [format!("changed rule input: {ROUTER}")]);
    let opened = after(|running| {
        let rule = at(running, ROUTER);
        running[rule]["rule"]["expr"].as_array_mut().unwrap().remove(0);
    });
    assert_eq!(opened, [format!("changed rule input: {ROUTER}")]);
    let moved = after(|running| {
        let rule = running.remove(at(running, "everything else is dropped by the policy"));
        running.insert(at(running, "loopback"), rule);
    });
    assert_eq!(moved, ["order rules input"]);
}

/// Goal: a set with an address less, more, or a wider network is found by element. Method: each.
#[test]
fn each_change_of_a_set_is_found() {
    let with = |elements: Value| {
        after(move |running| {
            let sets = running.iter_mut().filter_map(|entry| entry.get_mut("set"));
            sets.filter(|set| set["name"] == "gateways4").for_each(|set| set["elem"] = elements.clone());
        })
    };
    let network = json!({ "prefix": { "addr": "198.51.100.0", "len": 24 } });
    assert_eq!(with(json!([network])), ["missing element gateways4 203.0.113.9"]);
    let more = with(json!([network, "203.0.113.9", "192.0.2.66"]));
    assert_eq!(more, ["extra element gateways4 192.0.2.66"]);
    let wider = with(json!([{ "prefix": { "addr": "198.51.100.0", "len": 23 } }, "203.0.113.9"]));
    assert_eq!(wider, ["extra element gateways4 198.51.100.0/23"]);
    let halves = json!([
        { "range": ["198.51.100.0", "198.51.100.99"] }, { "range": ["198.51.100.100", "198.51.100.255"] },
        { "elem": { "val": "203.0.113.9", "comment": "another way to say it" } }
    ]);
    assert_eq!(with(halves), Vec::<String>::new(), "the same addresses said in another way");
}

/// Goal: a policy, a hook, a dormant table, a missing counter, objects we never make are found. Method:
/// one each.
#[test]
fn other_changes_are_found() {
    let field = |kind: &'static str, name: &'static str, key: &'static str, value: Value| {
        after(move |running| {
            let all = running.iter_mut().filter_map(|entry| entry.get_mut(kind));
            all.filter(|one| one["name"] == name).for_each(|one| one[key] = value.clone());
        })
    };
    assert_eq!(field("chain", "input", "policy", json!("accept")), ["changed chain input"]);
    assert_eq!(field("chain", "input", "prio", json!(10)), ["changed chain input"]);
    assert_eq!(field("table", "voxring", "flags", json!(["dormant"])), ["changed table voxring"]);
    assert_eq!(field("set", "gateways6", "timeout", json!(60)), ["changed set gateways6"]);
    let gone = after(|running| running.retain(|entry| entry["counter"]["name"] != "media"));
    assert_eq!(gone, ["missing counter media"]);
    let map = json!({ "map": { "family": "inet", "table": "voxring", "name": "m", "handle": 3 } });
    assert_eq!(after(|running| running.push(map)), ["extra map m"]);
}
