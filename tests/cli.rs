//! The `voxring` command as an operator meets it, mostly without a running node.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Runs the command in `folder`.
fn voxring(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_voxring"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the command is built with the tests")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Goal: a broken configuration stops every command that reads it, naming file, line and key, and a
/// wrong command line is another exit status. Method: run both.
#[test]
fn a_broken_configuration_is_told_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("v.toml"), "[rtp]\nnat = true\nport = 5\n").unwrap();
    for command in [&["serve"][..], &["status"], &["mailbox", "list"]] {
        let output = voxring(folder.path(), &[command, &["--config", "v.toml"]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(
            text(&output.stderr).contains("v.toml:3: rtp.port: unknown key; did you mean ports?"),
            "{output:?}"
        );
    }
    assert_eq!(voxring(folder.path(), &["stauts"]).status.code(), Some(2));
}

/// Goal: without a node the error names the socket and the command that starts one, and no traceback
/// or data folder is left. Method: ask in an empty folder, then look into it.
#[test]
fn without_a_node_commands_say_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["status"][..], &["calls", "--json"], &["message", "list", "--mailbox", "1001"]] {
        let output = voxring(folder.path(), command);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        let told = text(&output.stderr);
        assert!(
            told.contains("voxring-data/control.sock") && told.contains("voxring serve --data"),
            "{told}"
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Goal: `check --json` is for programs: valid JSON, every problem with level, place, what and fix, exit
/// status 1 when one is an error. Method: a file that cannot work anywhere (RFC 5737 address).
#[test]
fn check_prints_json_with_a_fix_for_each_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = "[rtp]\naddress = \"192.0.2.1\"\n[worker]\nport_a = 5062\n";
    std::fs::write(folder.path().join("v.toml"), file).unwrap();
    let output = voxring(folder.path(), &["check", "--json", "--config", "v.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = report["problems"].as_array().unwrap();
    for problem in problems {
        for key in ["level", "where", "what", "fix"] {
            assert!(problem[key].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
    }
    let places: Vec<_> = problems.iter().filter_map(|problem| problem["where"].as_str()).collect();
    assert!(
        places.contains(&"v.toml:2 rtp.address") && places.contains(&"v.toml:4 worker.port_a"),
        "{places:?}"
    );
}

/// Goal: the files the project ships are accepted by the command itself. Method: check them; machine
/// problems aside, no problem may lie in the file.
#[test]
fn the_shipped_configurations_pass_the_check() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["voxring.toml", "voxring.dev.toml"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
        let output = voxring(folder.path(), &["check", "--json", "--config", file.to_str().unwrap()]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let passed = report["passed"].as_array().unwrap();
        assert!(passed.iter().any(|line| line.as_str().unwrap().contains("every key is known")), "{report}");
    }
}

/// Goal: a file that is no greeting is told with its name and what is wrong, before any node is asked.
/// Method: without a node, files wrong in each way; a good one then misses the node.
#[test]
fn a_file_that_is_no_greeting_is_told_by_name_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let wav = |name: &str, channels, sample_rate, bits_per_sample, samples: usize| {
        let spec = hound::WavSpec {
            channels,
            sample_rate,
            bits_per_sample,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(folder.path().join(name), spec).unwrap();
        (0..samples).for_each(|_| writer.write_sample(7i8).unwrap());
        writer.finalize().unwrap();
    };
    wav("stereo.wav", 2, 8000, 16, 8);
    wav("fast.wav", 1, 44_100, 16, 8);
    wav("coarse.wav", 1, 8000, 8, 8);
    wav("empty.wav", 1, 8000, 16, 0);
    wav("long.wav", 1, 8000, 16, 5 * 60 * 8000 + 1);
    wav("good.wav", 1, 8000, 16, 8);
    std::fs::write(folder.path().join("text.wav"), "hello").unwrap();
    for (file, what) in [
        ("stereo.wav", "stereo.wav: 2 channels, not 1"),
        ("fast.wav", "fast.wav: 44100 samples a second, not 8000"),
        ("coarse.wav", "coarse.wav: 8 bits a sample, not 16"),
        ("empty.wav", "empty.wav: empty"),
        ("long.wav", "long.wav: longer than 5 minutes"),
        ("text.wav", "text.wav: not a WAV file"),
        ("none.wav", "none.wav: cannot read"),
        (".", ".: not a file"),
        ("good.wav", "voxring serve --data"),
    ] {
        let output = voxring(folder.path(), &["mailbox", "greeting", "1001", file]);
        assert_eq!(output.status.code(), Some(1), "{file}");
        assert!(text(&output.stderr).contains(what), "{output:?}");
    }
    let neither = voxring(folder.path(), &["mailbox", "greeting", "1001"]);
    assert_eq!(neither.status.code(), Some(2));
    let help = text(&voxring(folder.path(), &["mailbox", "greeting", "--help"]).stdout);
    assert!(help.contains("--remove") && help.contains("voxring mailbox greeting 1003 jo.wav"), "{help}");
}

/// Goal: each command teaches itself, with an example, and prints JSON for programs. Method: ask all
/// for help.
#[test]
fn every_command_has_help_with_an_example() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        "serve",
        "check",
        "firewall",
        "sysctl",
        "cert dev",
        "cert revoke",
        "cert show",
        "status",
        "calls",
        "explain-call",
        "reload",
        "call-router get",
        "call-router set",
        "mailbox add",
        "mailbox list",
        "mailbox show",
        "mailbox greeting",
        "message list",
        "message export",
        "message delete",
    ] {
        let words: Vec<_> = std::iter::once("help").chain(command.split(' ')).collect();
        let output = voxring(folder.path(), &words);
        let help = text(&output.stdout);
        assert!(output.status.success() && help.contains("Usage:"), "{command}");
        let example = help.split("Example").nth(1).unwrap_or_default();
        assert!(example.contains(&format!("voxring {command}")), "{command}: {help}");
        assert!(command == "serve" || help.contains("--json"), "{command}: {help}");
    }
}

/// Goal: a node whose start-up table nobody reads (`voxring serve | head`) serves on, and its files
/// are its user's alone even in a folder that was open before. Method: close its outputs before it
/// writes, ask for its status, look at the modes, end it.
#[test]
fn a_node_outlives_the_readers_of_its_outputs_and_keeps_its_files_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
    let free: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let port = |n: usize| free[n].local_addr().unwrap().port();
    let config = format!(
        "[node]\ndata = \"data\"\n[router]\nport = {}\n[service]\nport = {}\n[worker]\nport_a = {}\nport_b = {}\n\
         [rtp]\nports = \"62000-62199\"\n",
        port(0),
        port(1),
        port(2),
        port(3)
    );
    std::fs::write(folder.path().join("v.toml"), config).unwrap();
    drop(free);
    let mut node = Command::new(env!("CARGO_BIN_EXE_voxring"))
        .args(["serve", "--config", "v.toml"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((node.stdout.take(), node.stderr.take()));
    let ready = || voxring(folder.path(), &["status", "--data", "data"]).status.success();
    let is_ready = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        ready()
    });
    // The table comes after the first answers to `status`; give it time to bring the node down.
    std::thread::sleep(Duration::from_secs(1));
    let lives = node.try_wait().unwrap().is_none();
    let mode = |name: &str| std::fs::metadata(data.join(name)).map(|m| m.permissions().mode() & 0o077);
    let modes = ["voxring.db", "spool", "messages"].map(|name| mode(name).ok());
    let _ = Command::new("kill").arg(node.id().to_string()).status();
    assert!(is_ready && lives);
    assert_eq!(node.wait().unwrap().code(), Some(0));
    assert_eq!(modes, [Some(0); 3]);
}
