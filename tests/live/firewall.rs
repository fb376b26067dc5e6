//! The generated firewall in front of a node: in network namespaces of the test's own, as root.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use toml::Table;

use crate::common::node::Node;
use crate::common::{audio, peers, raw, wait_for};

/// The hosts on the link: namespace, IPv4 (RFC 5737) and IPv6 (RFC 3849) address.
const NODE: (&str, &str, &str) = ("node", "192.0.2.10", "2001:db8::10");
const GATEWAY: (&str, &str, &str) = ("gateway", "192.0.2.20", "2001:db8::20");
const STRANGER: (&str, &str, &str) = ("stranger", "192.0.2.66", "2001:db8::66");

/// Datagrams a stranger sends to a live port, and to the SIP port.
const DATAGRAMS: u64 = 20;

/// Three hosts on one link, and the switch between them. Gone with its owner.
struct Link {
    prefix: String,
}

impl Link {
    fn up() -> Self {
        let link = Self { prefix: format!("voxring-{}", raw::unique()) };
        let switch = link.namespace("switch");
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add bridge type bridge"));
        ip(&format!("-n {switch} link set bridge up"));
        for (host, v4, v6) in [NODE, GATEWAY, STRANGER] {
            let inside = link.namespace(host);
            ip(&format!("netns add {inside}"));
            ip(&format!("-n {switch} link add {host} type veth peer name eth0 netns {inside}"));
            ip(&format!("-n {switch} link set {host} master bridge up"));
            ip(&format!("-n {inside} link set lo up"));
            ip(&format!("-n {inside} addr add {v4}/24 dev eth0"));
            ip(&format!("-n {inside} addr add {v6}/64 dev eth0 nodad"));
            ip(&format!("-n {inside} link set eth0 up"));
        }
        link
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// Runs a program on a host.
    fn on(&self, host: (&str, &str, &str), arguments: &[&str]) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host.0)]).args(arguments).stdin(Stdio::null());
        command.output().expect("ip can be started")
    }

    /// Runs a program on the node and gives what it prints.
    fn said_on_node(&self, arguments: &[&str]) -> String {
        let output = self.on(NODE, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Packets of a named counter.
    fn counted(&self, name: &str) -> u64 {
        let listing = self.said_on_node(&["nft", "-j", "list", "counter", "inet", "voxring", name]);
        let listing: Value = serde_json::from_str(&listing).expect("JSON");
        let counter =
            listing["nftables"].as_array().and_then(|all| all.iter().find(|o| o["counter"].is_object()));
        counter.and_then(|found| found["counter"]["packets"].as_u64()).expect("a counter of that name")
    }

    /// How a TCP connection to the node ends within a second: open, refused, or silence.
    fn knocks(&self, host: (&str, &str, &str), node: &str, port: u16) -> &'static str {
        let knock = format!("exec 3<>/dev/tcp/{node}/{port}");
        match self.on(host, &["timeout", "1", "bash", "-c", &knock]).status.code() {
            Some(0) => "open",
            Some(124) => "silence",
            _ => "refused",
        }
    }

    /// Sends [`DATAGRAMS`] packets that look like RTP to the node.
    fn sprays(&self, host: (&str, &str, &str), node: &str, port: u16) {
        let rtp = r"'\x80\x00\x00\x01\x00\x00\x00\xa0\x12\x34\x56\x78audio'";
        let spray = format!("for n in $(seq {DATAGRAMS}); do printf {rtp} > /dev/udp/{node}/{port}; done");
        assert!(self.on(host, &["bash", "-c", &spray]).status.success());
    }

    /// UDP ports that are bound on the node.
    fn bound(&self) -> BTreeSet<u16> {
        let tables = self.said_on_node(&["cat", "/proc/net/udp", "/proc/net/udp6"]);
        let port = |line: &str| {
            let local = line.split_ascii_whitespace().nth(1)?;
            u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
        };
        tables.lines().filter_map(port).collect()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for host in [NODE.0, GATEWAY.0, STRANGER.0, "switch"] {
            // One that was never made cannot be deleted either.
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(host)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip can be started");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// True when namespaces and rulesets can be made here. Otherwise says so.
fn can_build_networks() -> bool {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: network namespaces need root");
        return false;
    }
    peers::has_peer("ip") && peers::has_peer("nft")
}

/// A node behind its own firewall, trusting the gateway.
fn guarded(link: &Link, addresses: &[&str], gateway: &str) -> Node {
    let list = || toml::Value::from(addresses.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    let node = Node::start_inside(&link.namespace(NODE.0), |config: &mut Table| {
        for table in ["router", "service", "worker", "rtp"] {
            config[table].as_table_mut().expect("a table").insert("address".into(), list());
        }
        let mut trusted = Table::new();
        trusted.insert("name".into(), "sbc".into());
        trusted.insert("address".into(), gateway.into());
        config.insert("gateway".into(), vec![toml::Value::Table(trusted)].into());
    })
    .greeting_shortly();
    load(link, &node, &[]);
    node
}

/// Loads what `voxring firewall` prints, as its head says.
fn load(link: &Link, node: &Node, options: &[&str]) {
    let printed = node.client(&[&["firewall"], options].concat());
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let file = node.file("ruleset");
    std::fs::write(&file, printed.stdout).expect("the folder is ours");
    let is_json = options.contains(&"--json");
    let nft = if is_json { &["nft", "-j", "-f"][..] } else { &["nft", "-f"] };
    link.said_on_node(&[nft, &[file.to_str().expect("a plain path")]].concat());
}

/// What `voxring firewall --check` finds, as `kind object name`; its exit status must agree.
fn found(node: &Node, options: &[&str]) -> Vec<String> {
    let output = node.client(&[&["firewall", "--check", "--json"], options].concat());
    let checked: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let found: Vec<String> = checked["differences"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| [text(&one["kind"]), text(&one["object"]), text(&one["name"])].join(" "))
        .collect();
    assert_eq!(output.status.code(), Some(i32::from(!found.is_empty())));
    assert_eq!(checked["equal"], found.is_empty());
    found
}

/// Calls from the gateway and leaves a message, while the stranger tries all that the gateway may.
fn gateway_talks_and_stranger_does_not(link: &Link, node: &Node, address: &str) {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let ports = [node.ports.router(), node.ports.service(), node.ports.worker_a()];
    for port in ports {
        assert_eq!(link.knocks(GATEWAY, address, port), "open", "{port}");
    }
    let before = link.bound();
    let heard = node.file("heard.wav");
    let to = format!("sip:1001@{host}:{};transport=tcp", node.ports.router());
    let speech = audio::speech_file();
    let mut call = Command::new("ip");
    call.args(["netns", "exec", &link.namespace(GATEWAY.0)]).arg(peers::voxperf());
    call.args(["call", "--to", &to, "--play-after-beep", "--hangup-after-play", "0", "--duration", "40"]);
    call.arg("--play").arg(&speech).arg("--record").arg(&heard).arg("--json");
    call.stdin(Stdio::null()).stdout(Stdio::piped());
    let call = peers::Running::new(call.spawn().expect("voxperf starts"));
    let (first, last) = node.ports.rtp();
    let live = wait_for("the call's media port", Duration::from_secs(20), || {
        let new = link.bound().difference(&before).copied().find(|port| (first..=last).contains(port))?;
        (node.calls() == 1 && link.counted("media") > 0).then_some(new & !1)
    });

    // A stranger: no port of SIP answers, not even with a reset; no datagram arrives.
    let dropped = link.counted("dropped");
    for port in ports {
        assert_eq!(link.knocks(STRANGER, address, port), "silence", "{port}");
    }
    link.sprays(STRANGER, address, live);
    link.sprays(STRANGER, address, node.ports.router());
    let knocks = u64::try_from(ports.len()).expect("three");
    let now_dropped = link.counted("dropped") - dropped;
    assert!(now_dropped >= knocks + 2 * DATAGRAMS, "{now_dropped}");
    // Not every kernel tells what it tracks.
    if Path::new("/proc/net/nf_conntrack").exists() {
        let tracked = link.said_on_node(&["cat", "/proc/net/nf_conntrack"]);
        assert!(!tracked.contains(&format!("port={live} ")), "media is not tracked: {tracked}");
        assert!(tracked.contains(&format!("port={} ", node.ports.router())), "signalling is: {tracked}");
    }

    // The gateway: speech arrived, greeting and beep were heard.
    call.finish().assert_complete();
    let messages = node.wait_messages("1001", 1, Duration::from_secs(10));
    audio::assert_same_speech(&audio::speech(), &node.export(&messages[0].id));
    let loudest = audio::read(&heard).iter().map(|sample| sample.unsigned_abs()).max();
    assert!(loudest > Some(3000), "greeting and beep: {loudest:?}");
    for (counter, least) in [("router", 1), ("service", 1), ("worker", 1), ("media", 500)] {
        assert!(link.counted(counter) >= least, "{counter}: {}", link.counted(counter));
    }
}

/// Goal: behind the generated ruleset a configured gateway calls and is heard and hears, a stranger
/// reaches nothing, and counters tell both.
/// Method: namespaces on one bridge; voxperf leaves a message from the gateway's, while bash tries all
/// SIP ports and the call's RTP port from the stranger's.
#[test]
fn a_gateway_calls_and_a_stranger_reaches_nothing() {
    if !can_build_networks() {
        return;
    }
    let link = Link::up();
    let node = guarded(&link, &[NODE.1], GATEWAY.1);
    gateway_talks_and_stranger_does_not(&link, &node, NODE.1);
    assert_eq!(found(&node, &[]), Vec::<String>::new());
}

/// Goal: the same over IPv6. Method: the same, with a node that has both families.
#[test]
fn over_ipv6_a_gateway_calls_and_a_stranger_reaches_nothing() {
    if !can_build_networks() {
        return;
    }
    let link = Link::up();
    let node = guarded(&link, &[NODE.1, NODE.2], GATEWAY.2);
    gateway_talks_and_stranger_does_not(&link, &node, NODE.2);
    assert_eq!(found(&node, &[]), Vec::<String>::new());
}

/// Goal: `--check` says equal of what it printed, in text and in JSON, with any options; and finds each
/// change. Method: load, compare, change the running ruleset with nft, compare.
#[test]
fn the_check_finds_what_was_changed_in_the_running_ruleset() {
    if !can_build_networks() {
        return;
    }
    let link = Link::up();
    let node = Node::start_inside(&link.namespace(NODE.0), |config| {
        let gateway = toml::toml! {
            name = "sbc"
            address = ["192.0.2.20", "198.51.100.0/24", "2001:db8::/64"]
        };
        config.insert("gateway".into(), vec![toml::Value::Table(gateway)].into());
    });
    assert_eq!(found(&node, &[]), ["missing table voxring"]);
    let wide = ["--media-from", "any", "--management", "10.0.0.0/8,2001:db8:9::/48", "--allow-tcp", "none"];
    let narrow = ["--media-from", "0.0.0.0/0,203.0.113.7", "--allow-tcp", "2222,22", "--management", "::/0"];
    for options in [&[][..], &wide, &narrow, &["--table", "other"]] {
        for json in [&[][..], &["--json"]] {
            load(&link, &node, &[options, json].concat());
            assert_eq!(found(&node, options), Vec::<String>::new(), "{options:?} {json:?}");
        }
    }
    load(&link, &node, &[]);
    let nft =
        |command: &str| link.said_on_node(&[&["nft"], &command.split(' ').collect::<Vec<_>>()[..]].concat());
    for (change, difference) in [
        ("add element inet voxring gateways4 { 192.0.2.66 }", "extra element gateways4 192.0.2.66"),
        ("delete element inet voxring gateways4 { 192.0.2.20 }", "missing element gateways4 192.0.2.20"),
        ("add rule inet voxring input tcp dport 23 accept comment telnet", "extra rule input: telnet"),
        ("flush chain inet voxring untracked_out", "missing rule untracked_out: media out"),
        ("add chain inet voxring input { policy accept ; }", "changed chain input"),
    ] {
        nft(change);
        assert_eq!(found(&node, &[]), [difference], "{change}");
        load(&link, &node, &[]);
        assert_eq!(found(&node, &[]), Vec::<String>::new(), "loading again repairs: {change}");
    }
    let listing = nft("-a list chain inet voxring input");
    let line = listing.lines().find(|line| line.contains("call router, SIP over TCP")).expect("its rule");
    let handle = line.rsplit(' ').next().expect("a handle");
    nft(&format!("replace rule inet voxring input handle {handle} tcp dport 1-65535 accept"));
    let now = found(&node, &[]);
    assert_eq!(now.len(), 2, "{now:?}");
    assert_eq!(now[0], "missing rule input: call router, SIP over TCP, IPv4");
    assert!(now[1].starts_with("extra rule input: without a comment, handle "), "{now:?}");
}
