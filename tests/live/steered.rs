//! One socket for all calls: they are served as on every other backend.

use std::process::Command;

use toml::Table;

use crate::common::node::Node;

/// Whether sockets can be steered here; if not, says why.
fn may_steer() -> bool {
    let probed = voxring::uring::probe_steered();
    probed.inspect_err(|error| eprintln!("skipped: {error}")).is_ok()
}

fn steer(config: &mut Table) {
    config["worker"].as_table_mut().expect("a table").insert("io_backend".into(), "steered".into());
}

fn steered() -> Node {
    let node = Node::with_short_greeting(steer);
    assert_eq!(node.status()["workers"][0]["shards"][0]["backend"], "steered");
    node
}

/// Goal: disorder and duplicates harm no message. Method: as in `impairment`.
#[test]
fn disorder_and_duplicates_harm_nothing_steered() {
    if may_steer() {
        crate::impairment::assert_disorder_harms_nothing(&steered());
    }
}

/// Goal: keys end and review a recording, which plays, records and rests. Method: as in `dtmf_hold`.
#[test]
fn keys_review_the_recording_steered() {
    if may_steer() {
        crate::dtmf_hold::review_by_keys(&steered(), "rfc4733");
    }
}

/// Goal: an anchored call outlasts its worker: what steers goes with that, the sockets stay. Method: as in
/// `outlast`.
#[test]
fn an_anchored_call_outlasts_its_worker_steered() {
    if may_steer() {
        crate::outlast::an_anchored_call_outlasts(steer);
    }
}

/// Goal: without the capabilities a node that is to steer does not start, and says what it lacks; `check` says
/// the same. Method: neither root's nor anybody's capabilities.
#[test]
fn a_node_without_capabilities_says_which() {
    let folder = tempfile::TempDir::with_prefix("voxring-test-").expect("a folder can be made");
    let config = folder.path().join("voxring.toml");
    std::fs::write(&config, "[worker]\nio_backend = \"steered\"\n").expect("a file can be written");
    for verb in ["serve", "check"] {
        // Who is not root has none anyway.
        let is_root = nix::unistd::geteuid().is_root();
        let mut command = Command::new(if is_root { "setpriv" } else { "env" });
        if is_root {
            command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        }
        command
            .arg(env!("CARGO_BIN_EXE_voxring"))
            .arg("--config")
            .arg(&config)
            .arg("--data")
            .arg(folder.path().join("data"))
            .arg(verb);
        let output = command.output().expect("setpriv runs");
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).replace('\n', " ");
        assert!(!output.status.success(), "{verb}: {told}");
        assert!(told.contains("worker.io_backend") && told.contains("cap_net_raw"), "{verb}: {told}");
    }
}
