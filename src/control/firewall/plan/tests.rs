use super::*;

use std::path::Path;

/// Two families, two gateways with a name and a network within another, one disabled.
pub(in super::super) const CONFIG: &str = r#"
[router]
address = ["192.0.2.10", "2001:db8::10"]
udp = true
[service]
address = "192.0.2.10"
[worker]
address = "192.0.2.10"
[tls]
certificate = "a"
key = "b"
ca = "c"
[rtp]
address = ["192.0.2.10", "2001:db8::10"]
ports = "16384-16483"
[[gateway]]
name = "sbc"
address = ["198.51.100.7", "198.51.100.0/24", "2001:db8:1::/64"]
[[gateway]]
name = "named"
address = "gw.example.com"
[[gateway]]
name = "old"
address = "203.0.113.77"
status = "disabled"
"#;

pub(in super::super) fn choices() -> Choices {
    Choices {
        table: "voxring".into(),
        origin: "a.toml".into(),
        media_from: MediaFrom::Gateways,
        management: Vec::new(),
        allow_tcp: [22].into(),
    }
}

pub(in super::super) fn planned_for(text: &str, choices: &Choices) -> (Ruleset, Vec<String>) {
    let (config, _) = Config::parse(text, Path::new("a.toml")).unwrap();
    let resolve = |name: &str| match name {
        "gw.example.com" => Ok(vec!["203.0.113.9".parse().unwrap()]),
        _ => Err(io::Error::other("nobody knows it")),
    };
    plan(&config, choices, &resolve)
}

fn set(ruleset: &Ruleset, name: &str) -> String {
    let set = ruleset.sets.iter().find(|set| set.name == name).unwrap();
    set.networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn input(ruleset: &Ruleset) -> Vec<String> {
    let chain = ruleset.chains.iter().find(|chain| chain.name == "input").unwrap();
    assert_eq!(chain.policy, "drop");
    chain.rules.iter().map(ToString::to_string).collect()
}

/// Goal: just the gateways that are on may signal, none of a set's elements lies within another, and a
/// disabled one is out. Method: the sets of the configuration above.
#[test]
fn enabled_gateways_are_in_the_sets_and_nobody_else() {
    let (ruleset, lost) = planned_for(CONFIG, &choices());
    assert_eq!(set(&ruleset, "gateways4"), "198.51.100.0/24 203.0.113.9");
    assert_eq!(set(&ruleset, "gateways6"), "2001:db8:1::/64");
    assert!(lost.is_empty());
    assert!(ruleset.to_string().contains("# gateway named: gw.example.com is 203.0.113.9 (now;"));
    assert!(!ruleset.to_string().contains("203.0.113.77"));
}

/// Goal: without gateways this machine only; with all of them off nobody. Method: both.
#[test]
fn without_gateways_the_loopback_only() {
    let (ruleset, _) = planned_for("", &choices());
    assert_eq!(
        (set(&ruleset, "gateways4"), set(&ruleset, "gateways6")),
        ("127.0.0.0/8".into(), "::1".into())
    );
    let off = "[[gateway]]\nname = \"a\"\naddress = \"192.0.2.1\"\nstatus = \"disabled\"\n";
    assert_eq!(set(&planned_for(off, &choices()).0, "gateways4"), "");
}

/// Goal: a name nobody knows lets nobody in, and is told in the text and beside it. Method: one.
#[test]
fn a_name_that_is_not_found_is_told_and_not_allowed() {
    let text = "[[gateway]]\nname = \"a\"\naddress = \"gone.example.com\"\n";
    let (ruleset, lost) = planned_for(text, &choices());
    assert_eq!(set(&ruleset, "gateways4"), "");
    assert!(ruleset.to_string().contains("gone.example.com NOT FOUND, so not allowed"));
    assert_eq!(lost.len(), 1);
}

/// Goal: a rule for every socket that listens and for no other. Method: the ports of the design, TLS
/// beside TCP, UDP at the router only, IPv6 at the router only.
#[test]
fn every_listener_has_its_rule_and_nothing_else_is_open() {
    let rules = input(&planned_for(CONFIG, &choices()).0);
    let sip: Vec<_> = rules.iter().filter(|rule| rule.contains("SIP")).collect();
    for (rule, start) in sip.iter().zip([
        r#"ip saddr @gateways4 tcp dport { 5060, 5061 } counter name "router" accept"#,
        r#"ip6 saddr @gateways6 tcp dport { 5060, 5061 } counter name "router" accept"#,
        r#"ip saddr @gateways4 udp dport 5060 counter name "router" accept"#,
        r#"ip6 saddr @gateways6 udp dport 5060 counter name "router" accept"#,
        r#"ip saddr @gateways4 tcp dport { 5062, 5063 } counter name "service" accept"#,
        r#"ip saddr @gateways4 tcp dport { 5065, 5066, 5067, 5068 } counter name "worker" accept"#,
    ]) {
        assert!(rule.starts_with(start), "{rule}");
    }
    assert_eq!(sip.len(), 6);
    assert!(!rules.iter().any(|rule| rule.contains("8443")));
    assert!(rules.last().unwrap().starts_with("counter name \"dropped\""));
    let unconditional = rules.iter().filter(|rule| rule.starts_with("tcp") || rule.starts_with("udp"));
    assert_eq!(unconditional.count(), 1, "only --allow-tcp is open to everybody");
}

/// Goal: media is judged before anything that needs connection tracking, which it is taken out of, both
/// ways. Method: positions and chains.
#[test]
fn media_depends_on_no_connection_tracking() {
    let (ruleset, _) = planned_for(CONFIG, &choices());
    let rules = input(&ruleset);
    let media = rules.iter().rposition(|rule| rule.contains("udp dport 16384-16483")).unwrap();
    let tracked = rules.iter().position(|rule| rule.contains("ct state")).unwrap();
    assert!(media < tracked);
    for (chain, rule) in [
        ("untracked_in", "ip6 daddr 2001:db8::10 udp dport 16384-16483 notrack"),
        ("untracked_out", "udp sport 16384-16483 notrack"),
    ] {
        let chain = ruleset.chains.iter().find(|one| one.name == chain).unwrap();
        assert_eq!(chain.priority, Priority::Raw);
        assert!(chain.rules.iter().any(|one| one.to_string().starts_with(rule)), "{chain:?}");
    }
}

/// Goal: each option opens what it says. Method: media from anybody and from networks, management, no
/// TCP port at all.
#[test]
fn options_open_what_they_say() {
    let network = |text: &str| match text.parse() {
        Ok(GatewayAddress::Network(network)) => network,
        other => panic!("{other:?}"),
    };
    let mut choices = Choices { media_from: MediaFrom::Any, allow_tcp: BTreeSet::new(), ..choices() };
    choices.management = vec![network("10.1.2.3/8")];
    let (ruleset, _) = planned_for(CONFIG, &choices);
    assert_eq!(set(&ruleset, "mgmt4"), "10.0.0.0/8", "the host part of a network is nothing");
    let rules = input(&ruleset);
    assert!(rules.iter().any(|rule| rule.starts_with("ip saddr @mgmt4 tcp dport 8443")));
    assert!(rules.iter().any(|rule| rule.starts_with("ip daddr 192.0.2.10 udp dport 16384-16483 counter")));
    assert!(!rules.iter().any(|rule| rule.starts_with("tcp dport")));
    choices.media_from = MediaFrom::Networks(vec![network("::ffff:192.0.2.0/120")]);
    let (ruleset, _) = planned_for(CONFIG, &choices);
    assert_eq!(set(&ruleset, "media4"), "192.0.2.0/24", "IPv4 mapped into IPv6 is IPv4");
    assert!(input(&ruleset).iter().any(|rule| rule.starts_with("ip saddr @media4 ip daddr 192.0.2.10 udp")));
}

/// Goal: comments fit nftables, which takes 128 bytes. Method: all of them.
#[test]
fn comments_are_unique_in_their_chain_and_fit() {
    let mut choices = choices();
    choices.management = vec![Network::from(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    for chain in planned_for(CONFIG, &choices).0.chains {
        let comments: BTreeSet<_> = chain.rules.iter().map(|rule| rule.comment.clone()).collect();
        assert_eq!(comments.len(), chain.rules.len());
        assert!(comments.iter().all(|comment| comment.len() < 128));
    }
}
