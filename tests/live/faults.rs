//! Resource faults made for real: what callers are told while something is missing, that calls which are
//! up go on, that a node answers again a second after the fault, and that no message is lost.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use rusqlite::Connection as Database;
use serde_json::Value;
use toml::Table;
use voxring::mailbox::Store;

use crate::common::node::Node;
use crate::common::raw::{Connection, Request, Response, offer, unique};
use crate::common::{audio, peers, wait_for};

fn set(config: &mut Table, table: &str, key: &str, value: impl Into<toml::Value>) {
    let table = config.entry(table).or_insert_with(|| Table::new().into());
    table.as_table_mut().expect("a table").insert(key.into(), value.into());
}

/// Callers of a mailbox who speak after the beep until they hang up, `seconds` after the answer; waits
/// until all are up.
fn speakers(node: &Node, mailbox: &str, calls: usize, seconds: &str) -> peers::Running {
    let (speech, uri, before) = (audio::speech_file(), node.uri(mailbox, "tcp"), node.calls());
    let speech = speech.to_str().expect("a plain path");
    let count = calls.to_string();
    let who = ["call", "--to", &uri, "--calls", &count, "--rate", "20", "--duration", seconds];
    let running = peers::voxperf_start(&[&who[..], &["--play", speech, "--play-after-beep"]].concat());
    wait_for("the speakers", Duration::from_secs(10), || (node.calls() == before + calls).then_some(()));
    running
}

/// Waits until so many calls are being recorded.
fn wait_recording(node: &Node, calls: usize) {
    wait_for("recordings", Duration::from_secs(5), || {
        let list = node.json(&["calls"]);
        let list = list.as_array().expect("a list of calls");
        (list.iter().filter(|call| call["state"] == "recording").count() == calls).then_some(())
    });
}

/// Waits until a caller of a mailbox is asked to retry, with the reason, which log, counter and status
/// tell too.
fn wait_refused(node: &Node, rules: &[&str], why: &str) {
    let refused = wait_for("a call to be refused", Duration::from_secs(10), || {
        let report = peers::call(node, "1001", &["--duration", "0.2"]);
        (report.call(0)["status"] == 503).then(|| report.call(0).clone())
    });
    let text = |key: &str| refused[key].as_str().unwrap_or_default().to_owned();
    assert!(text("retry_after").parse::<u32>().is_ok(), "{refused:#}");
    assert!(text("warning").contains(why), "{refused:#}");
    node.wait_log(&["refused", "worker", why]);
    wait_for("the counter", Duration::from_secs(5), || {
        rules.iter().any(|rule| node.refused(rule) > 0).then_some(())
    });
}

/// Waits until status tells what a worker is short of.
fn wait_trouble(node: &Node, why: &str) {
    wait_for("status to tell", Duration::from_secs(10), || {
        let text = String::from_utf8_lossy(&node.client(&["status"]).stdout).into_owned();
        text.lines().any(|line| line.contains("refuses new calls") && line.contains(why)).then_some(())
    });
}

/// A second after the fault is gone a caller is answered, and leaves a message.
fn answers_within_a_second(node: &Node) {
    std::thread::sleep(Duration::from_secs(1));
    speakers(node, "1001", 1, "2").finish().assert_complete();
    assert!(!node.client(&["status"]).stdout.windows(7).any(|word| word == b"refuses"));
}

/// Mailbox 1001 holds this many messages, each of them the speech, as far as it was heard.
fn assert_stored(node: &Node, count: usize) {
    assert_stored_for(node, count, usize::MAX);
}

/// The same, the speech in no more than their first samples.
fn assert_stored_for(node: &Node, count: usize, samples: usize) {
    let source = audio::through_ulaw(&audio::speech());
    for message in node.wait_messages("1001", count, Duration::from_secs(10)) {
        let sound = node.export(&message.id);
        assert_eq!(audio::ms(sound.len()), message.duration_ms, "{message:?}");
        assert!(message.duration_ms >= 400, "{message:?}");
        let sound = &sound[..sound.len().min(samples)];
        let found = audio::best_match(&source[..sound.len().min(source.len())], sound, 1600);
        assert!(found.correlation >= 0.95, "{message:?}: {found:?}");
    }
}

/// Writes into the node's data folder until only so many bytes are free; 0: until nothing fits.
fn fill(node: &Node, free: u64) {
    let mut file =
        OpenOptions::new().create(true).append(true).open(node.data().join("fill")).expect("a file");
    let room = || statvfs(&node.data()).map(|stat| stat.blocks_available() * stat.fragment_size());
    while room().expect("it is a file system") > free && file.write_all(&[0; 4096]).is_ok() {}
}

/// Goal: with little room left new calls are refused and recordings under way finish; with none those are
/// ended, kept as far as they got, and delivered once there is room. Method: a small file system in memory,
/// filled in two steps; two callers who finish between them, two who do not.
#[test]
fn a_full_disk_refuses_calls_and_loses_no_message() {
    let Some(node) = Node::start_on_disk_of(24, |config| set(config, "recording", "free_mib_min", 8)) else {
        return;
    };
    let node = node.greeting_shortly();
    let late = speakers(&node, "1001", 2, "30");
    let early = speakers(&node, "1001", 2, "3");
    fill(&node, 4 << 20);
    wait_refused(&node, &["storage"], "the disk for messages is full");
    wait_trouble(&node, "the disk for messages is full");
    early.finish().assert_complete();
    assert_stored(&node, 2);
    fill(&node, 0);
    late.finish().assert_complete();
    node.wait_log(&["recording cut short"]);
    assert_eq!(node.messages("1001").len(), 2, "they wait in the spool");
    std::fs::remove_file(node.data().join("fill")).expect("it was made");
    answers_within_a_second(&node);
    assert_stored(&node, 5);
}

/// Goal: where the data folder cannot be written new calls are refused, those under way finish, a worker
/// starts all the same, and messages are delivered once it can. Method: the folder mounted over itself,
/// read-only; the worker killed meanwhile.
#[test]
fn a_read_only_folder_refuses_calls_and_loses_no_message() {
    let Some(node) = Node::start_on_disk_of(32, |config| set(config, "recording", "free_mib_min", 8)) else {
        return;
    };
    let node = node.greeting_shortly();
    let early = speakers(&node, "1001", 2, "3");
    wait_recording(&node, 2);
    let data = node.own_data();
    let data = data.to_str().expect("a plain path");
    node.mount(&["--bind", data, data]);
    node.mount(&["-o", "remount,bind,ro", data]);
    wait_refused(&node, &["storage"], "the folder for messages is read-only");
    wait_trouble(&node, "read-only");
    early.finish().assert_complete();
    node.wait_log(&["recording not stored"]);
    let old = node.kill_worker();
    wait_for("a new worker", Duration::from_secs(15), || node.worker_pid().filter(|&pid| pid != old));
    wait_refused(&node, &["storage"], "the folder for messages is read-only");
    assert!(node.messages("1001").is_empty(), "they wait in the spool");
    node.mount(&["-o", "remount,bind,rw", data]);
    answers_within_a_second(&node);
    assert_stored(&node, 3);
}

/// Goal: while another program holds the database calls that are up finish, messages wait in the spool, and
/// new calls are refused once commits are known to fail; mailboxes are still looked up. Method: an open
/// transaction.
#[test]
fn a_locked_database_refuses_calls_and_loses_no_message() {
    let node = Node::with_short_greeting(|_| {});
    let early = speakers(&node, "1001", 2, "2.5");
    let other = Database::open(node.data().join("voxring.db")).expect("it opens beside the node");
    other.execute_batch("BEGIN IMMEDIATE").expect("the database is free");
    early.finish().assert_complete();
    wait_trouble(&node, "locked by another program");
    wait_refused(&node, &["storage"], "the message store is locked by another program");
    assert_eq!(peers::call(&node, "4711", &[]).call(0)["status"], 404);
    assert!(node.messages("1001").is_empty(), "they wait in the spool");
    other.execute_batch("ROLLBACK").expect("it was begun");
    answers_within_a_second(&node);
    assert_stored(&node, 3);
}

/// Overwrites the whole database; gives what it was. What the node keeps of it in memory is made old first.
fn damage(file: &Path) -> Vec<u8> {
    let other = Database::open(file).expect("it opens beside the node");
    other.busy_timeout(Duration::from_secs(5)).expect("a setting");
    other.pragma_update(None, "user_version", 1).expect("a write that changes nothing");
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody reads now");
    drop(other);
    let whole = std::fs::read(file).expect("it is there");
    overwrite(file, &vec![0xA5; whole.len()]);
    whole
}

fn overwrite(file: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(file).expect("it is there");
    file.write_all_at(bytes, 0).expect("the disk has room");
}

/// Goal: a damaged database refuses calls whose mailbox cannot be looked up or whose message could not be
/// stored, and the spool keeps what is said; `voxring check` and a start name the file and what to do; once
/// it is whole the running node goes on. Method: the file overwritten under the node, and before a start.
#[test]
fn a_damaged_database_refuses_calls_and_loses_no_message() {
    let mut node = Node::with_short_greeting(|_| {});
    let file = node.data().join("voxring.db");
    let early = speakers(&node, "1001", 2, "3");
    let whole = damage(&file);
    wait_refused(&node, &["store", "storage"], "the message store is damaged");
    wait_trouble(&node, "the message store is damaged");
    early.finish().assert_complete();
    node.wait_log(&["recording not stored"]);
    let check = node.client(&["check"]);
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    let name = file.display();
    assert!(
        !check.status.success() && told.contains(&format!("the message store {name} is damaged")),
        "{told}"
    );
    assert!(told.contains("put a backup in its place"), "{told}");
    overwrite(&file, &whole);
    answers_within_a_second(&node);
    assert_stored(&node, 3);

    node.stop();
    overwrite(&file, &vec![0xA5; whole.len()]);
    let start = node.client(&["serve"]);
    let told = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(!start.status.success() && told.contains(&format!("{name} is damaged")), "{told}");
}

fn open_descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// Sets a soft limit of a running process.
fn limit(pid: u32, what: &str, value: &str) {
    let limit = format!("--{what}={value}:");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(status.expect("prlimit runs").success(), "{limit}");
}

/// What a process may have open.
fn descriptor_limit(pid: u32) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    line.split_ascii_whitespace().next().expect("a number").to_owned()
}

fn invite_over(connection: &mut Connection, node: &Node, port: u16) -> Response {
    let uri = format!("sip:1001@127.0.0.1:{port};transport=tcp");
    let body = offer(node.ports.peer_media());
    let request = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    let bytes = request.render("TCP", connection.local(), &unique());
    connection.send(&bytes);
    connection.final_response(Duration::from_secs(5)).expect("an answer")
}

/// Goal: a worker short of descriptors refuses new calls while those that are up record; without any, it and
/// the supervisor live on and answer whom they know; then all is well. Method: the limit lowered under the
/// running processes, first to a few more than are open, then to what is open.
#[test]
fn without_descriptors_calls_are_refused_and_no_message_is_lost() {
    let node = Node::with_short_greeting(|_| {});
    let (supervisor, worker) = (node.supervisor_pid(), node.worker_pid().expect("a worker is ready"));
    let [of_supervisor, of_worker] = [supervisor, worker].map(descriptor_limit);
    let (router, port) = (node.ports.router(), node.ports.worker_a());
    let (mut to_router, mut to_worker) = (Connection::open(router), Connection::open(port));
    let early = speakers(&node, "1001", 2, "4");
    limit(worker, "nofile", &(open_descriptors(worker) + 56).to_string());
    wait_refused(&node, &["descriptors"], "the worker is short of file descriptors");
    wait_trouble(&node, "short of file descriptors");
    wait_recording(&node, 2);
    limit(worker, "nofile", &open_descriptors(worker).to_string());
    limit(supervisor, "nofile", &open_descriptors(supervisor).to_string());
    let refused = invite_over(&mut to_worker, &node, port);
    assert_eq!(refused.status, 503, "{}", refused.head);
    assert!(
        refused.header("Retry-After").is_some() && refused.header("Warning").is_some(),
        "{}",
        refused.head
    );
    assert_eq!(invite_over(&mut to_router, &node, router).status, 302, "the router needs none for it");
    let waiting = [router, port].map(Connection::open);
    early.finish().assert_complete();
    limit(worker, "nofile", &of_worker);
    limit(supervisor, "nofile", &of_supervisor);
    drop(waiting);
    answers_within_a_second(&node);
    assert_stored(&node, 3);
    assert_eq!(node.worker_pid(), Some(worker), "nobody was replaced");
}

/// Goal: without a free pair of RTP ports a call is refused with the reason, and taken once there is one.
/// Method: two pairs for each worker; three callers.
#[test]
fn without_media_ports_calls_are_refused() {
    let node = Node::with_short_greeting(|config| {
        let ports = config["rtp"]["ports"].as_str().expect("a range").to_owned();
        let first: u16 = ports.split('-').next().and_then(|port| port.parse().ok()).expect("a port");
        set(config, "rtp", "ports", format!("{first}-{}", first + 7));
        set(config, "rtp", "quarantine_s", 0);
    });
    let early = speakers(&node, "1001", 2, "3");
    wait_refused(&node, &["media_ports"], "no free RTP port pair");
    early.finish().assert_complete();
    answers_within_a_second(&node);
    assert_stored(&node, 3);
}

/// Gives a mailbox a greeting of five minutes, which takes some 10 MiB of the worker that plays it.
fn greet_at_length(node: &Node, number: &str) {
    let mut store = Store::open(&node.data()).expect("the store opens beside the node");
    audio::write(&store.greeting_path("long.wav"), &audio::tone(440.0, 4000.0, 300 * 8000));
    store.set_greeting(number, Some("long.wav")).expect("the greeting is set");
}

fn worker(node: &Node, slot: &str) -> Value {
    let status = node.status();
    let workers = status["workers"].as_array().expect("a list of workers");
    workers.iter().find(|worker| worker["slot"] == slot).cloned().unwrap_or_default()
}

/// Goal: a worker that uses all the memory it may refuses new calls, lets those that are up finish, and gives
/// way to a new one as soon as a slot is free. Method: the other slot drains; a greeting of five minutes, and
/// a limit below what it takes.
#[test]
fn a_worker_at_its_memory_limit_refuses_calls_and_gives_way() {
    let node = Node::with_short_greeting(|_| {});
    greet_at_length(&node, "1002");
    let first = speakers(&node, "1001", 1, "9");
    assert_eq!(node.json(&["recycle"])["state"], "done");
    let early = speakers(&node, "1001", 1, "8");
    wait_recording(&node, 2);
    // A first call takes some MiB of its own, and the node looks at a worker's memory once a second.
    std::thread::sleep(Duration::from_secs(2));
    let used_mib = worker(&node, "B")["memory_kib"].as_u64().expect("a number") / 1024;
    let file = node.file("voxring.toml");
    let mut config: Table = std::fs::read_to_string(&file).expect("it is there").parse().expect("it is TOML");
    set(&mut config, "worker", "memory_max_mib", i64::try_from(used_mib + 6).expect("a small number"));
    std::fs::write(&file, config.to_string()).expect("the disk has room");
    node.json(&["reload"]);
    peers::call(&node, "1002", &["--duration", "0.2"]);
    wait_refused(&node, &["memory"], "the worker uses all the memory it may");
    wait_trouble(&node, "the worker uses all the memory it may");
    first.finish().assert_complete();
    early.finish().assert_complete();
    wait_for("a new worker", Duration::from_secs(10), || {
        (worker(&node, "A")["state"] == "ready").then_some(())
    });
    answers_within_a_second(&node);
    assert_stored(&node, 3);
}

/// Goal: a worker to which the kernel gives no memory ends, is replaced, and what was recorded is delivered.
/// Method: its address space limited under it, and a greeting that needs some.
#[test]
fn a_worker_without_memory_is_replaced_and_loses_no_message() {
    let node = Node::with_short_greeting(|_| {});
    greet_at_length(&node, "1002");
    let old = node.worker_pid().expect("a worker is ready");
    let callers = speakers(&node, "1001", 2, "20");
    std::thread::sleep(Duration::from_secs(4));
    limit(old, "as", "4096");
    peers::call(&node, "1002", &["--duration", "0.2", "--patience", "1"]);
    wait_for("a new worker", Duration::from_secs(15), || node.worker_pid().filter(|&pid| pid != old));
    drop(callers);
    answers_within_a_second(&node);
    // The last second before the fault may be lost; greeting and beep take 0.9 s.
    assert_stored_for(&node, 3, 2 * 8000);
}
