//! `voxperf find`, `compare` and `report` against the node, from calls to the page.

use std::time::Duration;

use serde_json::Value;

use crate::common::node::Node;
use crate::common::{peers, wait_for};

/// What every command is told: a small load for a short time.
fn told<'a>(target: &'a str, pid: &'a str) -> [&'a str; 10] {
    ["--target", target, "--scenario", "echo", "--cps", "20", "--duration", "1", "--pid", pid]
}

fn page(path: &std::path::Path) -> String {
    let html = std::fs::read_to_string(path).expect("the page was written");
    assert!(html.starts_with("<!doctype html>") && html.contains("<svg"), "{html}");
    assert!(!html.contains("<script") && !html.contains("http"), "it needs nothing from elsewhere");
    html
}

/// Goal: a search ends by itself, says what it found and draws it; its JSON can be drawn again.
/// Method: at most four calls with limits that a busy machine keeps too, so all are kept: a floor.
#[test]
fn a_search_ends_with_a_page() {
    let _alone = crate::common::heavy();
    let node = Node::start_for_load();
    let folder = tempfile::tempdir().expect("a folder");
    let [json, html, again] = ["found.json", "found.html", "again.html"].map(|name| folder.path().join(name));
    let (target, pid) = (node.uri("9196", "tcp"), node.supervisor_pid().to_string());
    let limits = ["--slo", "loss_by_server<50%, failed<50%", "--start", "2", "--max-calls", "4"];
    let files = ["--out", json.to_str().expect("UTF-8"), "--html", html.to_str().expect("UTF-8")];
    let found = peers::voxperf_start(&[&["find"][..], &told(&target, &pid), &limits, &files].concat());
    let found: Value = found.finish().0;
    assert_eq!((&found["knee"], &found["recommended"]), (&4.into(), &3.into()), "{found:#}");
    assert_eq!((&found["kind"], &found["end"]), (&"floor".into(), &"all_kept".into()), "{found:#}");
    assert_eq!(found["steps"].as_array().map(Vec::len), Some(3), "2, 4, and 4 again: {found:#}");
    assert!(page(&html).contains("This machine carries at least 4 echoed calls"));
    let arguments = ["report", json.to_str().expect("UTF-8"), "--html", again.to_str().expect("UTF-8")];
    let status = std::process::Command::new(peers::voxperf()).args(arguments).status();
    assert!(status.expect("voxperf runs").success());
    assert_eq!(page(&again), page(&html));
    wait_for("the end of all calls", Duration::from_secs(10), || (node.calls() == 0).then_some(()));
}

/// Goal: the node and rtpengine are given the same load in turns, and nothing is left behind.
/// Method: one pair of rounds with four calls; counts are judged, times are not.
#[test]
fn the_node_is_compared_with_rtpengine() {
    if !peers::has_peer("rtpengine") {
        return;
    }
    let _alone = crate::common::heavy();
    let node = Node::start_for_load();
    let folder = tempfile::tempdir().expect("a folder");
    let html = folder.path().join("compared.html");
    let (target, pid) = (node.uri("9196", "tcp"), node.supervisor_pid().to_string());
    let rounds = ["--calls", "4", "--rounds", "1", "--html", html.to_str().expect("UTF-8")];
    let arguments = [&["compare", "rtpengine"][..], &told(&target, &pid), &rounds].concat();
    let compared = peers::voxperf_start(&arguments).finish().0;
    let pair = &compared["levels"][0]["pairs"][0];
    for side in ["ours", "theirs"] {
        // Four streams of 50 packets a second for a second, one or two at the window's edges.
        let expected = pair[side]["packets"]["expected"].as_u64();
        assert!(expected.is_some_and(|expected| (192..=208).contains(&expected)), "{side}: {compared:#}");
        assert!(pair[side]["cpu_us"].as_u64().is_some_and(|spent| spent > 0), "{side}: {compared:#}");
    }
    assert_eq!(
        (&compared["ours"]["name"], &compared["theirs"]["name"]),
        (&"voxring".into(), &"rtpengine".into())
    );
    page(&html);
    wait_for("the end of all calls", Duration::from_secs(10), || (node.calls() == 0).then_some(()));
}
