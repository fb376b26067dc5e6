//! Other people's programs, and ours that calls: voxperf, SIPp, baresip.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use serde_json::Value;

use crate::common::node::Node;

/// True when `program` can be run. Otherwise says so, and fails if `VOXRING_REQUIRE_PEERS=1`.
pub(crate) fn has_peer(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let required = std::env::var("VOXRING_REQUIRE_PEERS").is_ok_and(|value| value == "1");
    assert!(!required, "{program} is not installed and VOXRING_REQUIRE_PEERS=1");
    // Past the test harness, which would keep it for itself: the summary of tests/run counts these.
    let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed");
    false
}

/// A program of the release build, if `VOXRING_RELEASE_DIR` says where that is.
pub(crate) fn release(program: &str) -> Option<PathBuf> {
    std::env::var_os("VOXRING_RELEASE_DIR").map(|folder| PathBuf::from(folder).join(program))
}

/// The voxperf binary: of the release build, or beside this test and built first.
pub(crate) fn voxperf() -> PathBuf {
    if let Some(program) = release("voxperf") {
        return program;
    }
    static BUILT: Once = Once::new();
    let test = std::env::current_exe().expect("this test is a file");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "voxperf", "--target-dir"]);
        build.arg(profile.parent().expect("target"));
        build.args(profile.ends_with("release").then_some("--release"));
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().expect("cargo runs").success(), "voxperf does not build");
    });
    profile.join("voxperf")
}

/// One voxperf run and its report.
#[derive(Debug)]
pub(crate) struct Report(pub(crate) Value);

impl Report {
    /// The n-th call of a `call` report, from 0.
    pub(crate) fn call(&self, index: usize) -> &Value {
        &self.0["calls"][index]
    }

    /// A number of the n-th call.
    ///
    /// # Panics
    /// There is none of that name.
    pub(crate) fn number(&self, index: usize, key: &str) -> u64 {
        let call = self.call(index);
        call[key].as_u64().unwrap_or_else(|| panic!("no {key} in {call:#}"))
    }

    /// Asserts that every call was answered and ended by a BYE.
    pub(crate) fn assert_complete(&self) {
        let summary = &self.0["summary"];
        assert_eq!(summary["complete"], summary["calls"], "{:#}", self.0);
    }
}

/// Starts `voxperf` in the background; `finish` waits for its report.
pub(crate) fn voxperf_start(arguments: &[&str]) -> Running {
    let child = Command::new(voxperf())
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("voxperf starts");
    Running(Some(child))
}

/// Runs `voxperf call` against a node and gives its report, whatever became of the calls.
pub(crate) fn call(node: &Node, to: &str, arguments: &[&str]) -> Report {
    let transport = if to.contains(';') { "" } else { ";transport=tcp" };
    let uri = match to.split_once(';') {
        Some((user, transport)) => node.uri(user, transport.trim_start_matches("transport=")),
        None => node.uri(to, transport.trim_start_matches(";transport=")),
    };
    voxperf_start(&[&["call", "--to", &uri], arguments].concat()).finish()
}

/// A peer in the background; ended with its owner.
#[derive(Debug)]
pub(crate) struct Running(Option<Child>);

impl Running {
    /// Takes over a child.
    pub(crate) fn new(child: Child) -> Self {
        Self(Some(child))
    }

    /// Waits for the end and reads the report on its standard output.
    pub(crate) fn finish(mut self) -> Report {
        let child = self.0.take().expect("it was started");
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout);
        Report(
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("voxperf's report: {error}\n{text}")),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
