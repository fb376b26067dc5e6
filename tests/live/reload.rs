//! SIGHUP and `voxring reload`: a new configuration for a running node, whole or not at all.

use std::time::Duration;

use toml::Table;

use crate::common::node::{Node, signal};
use crate::common::raw::options_tcp;
use crate::common::{peers, wait_for};

fn file(node: &Node) -> String {
    std::fs::read_to_string(node.file("voxring.toml")).expect("the file is there")
}

fn write(node: &Node, text: &str) {
    std::fs::write(node.file("voxring.toml"), text).expect("the file can be written");
}

/// Sends SIGHUP and waits until the node has counted its outcome.
fn hang_up(node: &Node) {
    let count = || {
        let status = node.json(&["status", "--data", &node.data().to_string_lossy()]);
        let number = |key: &str| status[key].as_u64().expect("a number");
        number("reloads") + number("reloads_failed")
    };
    let before = count();
    signal("-HUP", &node.supervisor_pid().to_string());
    wait_for("the reload", Duration::from_secs(10), || (count() > before).then_some(()));
}

/// Goal: SIGHUP with a wrong file keeps the old configuration, names file, line and key in the log,
/// and the node goes on; the right file then acts without a restart.
/// Method: an unknown key, a value out of range and a port conflict beside a good change, then the
/// good change alone; a call that is up meanwhile ends in order.
#[test]
fn a_wrong_file_keeps_the_old_configuration_and_names_the_line() {
    let node = Node::start(|_| {});
    let good = file(&node);
    let uri = node.uri("9197", "tcp");
    let call = peers::voxperf_start(&["call", "--to", &uri, "--calls", "1", "--duration", "20"]);
    wait_for("the call", Duration::from_secs(20), || (node.calls() == 1).then_some(()));
    let worker = node.worker_pid();
    let no_extensions =
        good.replace("[test_extensions]\nenabled = true", "[test_extensions]\nenabled = false");
    assert_ne!(no_extensions, good);
    let lines = no_extensions.lines().count();
    let service = node.ports.service();
    for (slip, line, told) in [
        ("[calls]\ncals_max = 5\n".to_owned(), lines + 2, "calls.cals_max: unknown key"),
        (
            "[calls]\nretry_after_s = 0\n".to_owned(),
            lines + 2,
            "calls.retry_after_s: 0 is not a whole number",
        ),
    ] {
        write(&node, &format!("{}\n{slip}", no_extensions.trim_end()));
        hang_up(&node);
        let expected = format!("{}:{line}: {told}", node.file("voxring.toml").display());
        assert!(node.log().contains(&expected), "{expected} in\n{}", node.log());
        assert_eq!(peers::call(&node, "9199", &["--duration", "1"]).call(0)["status"], 200);
    }
    let router = format!("port = {}", node.ports.router());
    write(&node, &no_extensions.replace(&router, &format!("port = {service}")));
    hang_up(&node);
    assert!(node.log().contains("both listen on"), "{}", node.log());
    assert_eq!(options_tcp(node.ports.router()).expect("the old listener answers").status, 200);

    write(&node, &no_extensions);
    hang_up(&node);
    assert_eq!(peers::call(&node, "9199", &["--duration", "1"]).call(0)["status"], 404, "no extensions now");
    assert_eq!(node.worker_pid(), worker, "nothing was restarted");
    assert_eq!(node.calls(), 1);
    call.finish().assert_complete();
}

/// Goal: `voxring reload` tells what is in force, what needs a restart, and that a router port in the
/// file moves the listener. Method: one key of each kind.
#[test]
fn reload_tells_what_acts_now_and_what_needs_a_restart() {
    let node = Node::start(|_| {});
    let mut config: Table = file(&node).parse().expect("it is TOML");
    let set = |config: &mut Table, table: &str, key: &str, value: toml::Value| {
        let table = config.entry(table).or_insert_with(|| Table::new().into());
        table.as_table_mut().expect("a table").insert(key.into(), value);
    };
    set(&mut config, "router", "port", i64::from(node.ports.peer()).into());
    set(&mut config, "sip", "idle_timeout_s", 300.into());
    set(&mut config, "calls", "calls_max", 0.into());
    write(&node, &config.to_string());
    let report = node.json(&["reload"]);
    assert_eq!(report["applied"], serde_json::json!(["router.port", "calls.calls_max"]), "{report:#}");
    assert_eq!(report["needs_restart"], serde_json::json!(["sip.idle_timeout_s"]), "{report:#}");
    assert_eq!(report["problems"], serde_json::json!([]));
    assert_eq!(options_tcp(node.ports.peer()).expect("the new port answers").status, 200);
    let uri = format!("sip:1001@127.0.0.1:{};transport=tcp", node.ports.peer());
    let refused = peers::voxperf_start(&["call", "--to", &uri, "--calls", "1"]).finish();
    assert_eq!(refused.call(0)["status"], 503, "calls_max is 0: {:#}", refused.0);
}
