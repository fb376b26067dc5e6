//! Worker life: recycled, upgraded, drained, stopped, stalled, crashing; and what callers notice of it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde_json::Value;
use toml::Table;

use crate::common::caller::{Caller, Wish};
use crate::common::node::{Node, is_alive, signal};
use crate::common::raw::{Connection, Request, Response, offer, options_tcp, unique};
use crate::common::{now, peers, wait_for};

fn set(config: &mut Table, table: &str, key: &str, value: impl Into<toml::Value>) {
    let table = config.entry(table).or_insert_with(|| Table::new().into());
    table.as_table_mut().expect("a table").insert(key.into(), value.into());
}

/// The worker of a slot, as status shows it; `Null` when there is none.
fn worker(node: &Node, slot: &str) -> Value {
    let status = node.status();
    let workers = status["workers"].as_array().expect("a list of workers");
    workers.iter().find(|worker| worker["slot"] == slot).cloned().unwrap_or_default()
}

fn wait_state(node: &Node, slot: &str, state: &Value) {
    wait_for(&format!("worker {slot} to be {state}"), Duration::from_secs(15), || {
        (worker(node, slot)["state"] == *state).then_some(())
    });
}

/// Callers of the echo who talk for some seconds.
fn callers(node: &Node, calls: &str, rate: &str, seconds: &str) -> peers::Running {
    let uri = node.uri("9196", "tcp");
    peers::voxperf_start(&["call", "--to", &uri, "--calls", calls, "--rate", rate, "--duration", seconds])
}

/// Every call was answered, lost nothing, and ended in order.
fn assert_unharmed(report: &peers::Report) {
    report.assert_complete();
    assert_eq!(report.0["summary"]["rx_lost"], 0, "{:#}", report.0);
}

fn invite(node: &Node, port: u16) -> Response {
    let mut connection = Connection::open(port);
    let uri = format!("sip:9196@127.0.0.1:{port};transport=tcp");
    let body = offer(node.ports.peer_media());
    let request = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    let bytes = request.render("TCP", connection.local(), &unique());
    connection.send(&bytes);
    connection.final_response(Duration::from_secs(5)).expect("an answer")
}

/// Goal: recycles under calls: none fails, none loses a packet, both workers are seen meanwhile, and the
/// old one ends with its last call; a caller who comes straight to it is sent on.
/// Method: calls that begin all the time; two recycles, the second back to slot A; voxperf's counters.
#[test]
fn calls_do_not_notice_a_recycle() {
    let node = Node::start(|_| {});
    let old = node.worker_pid().expect("a worker is ready");
    let running = callers(&node, "20", "4", "4");
    wait_for("some calls", Duration::from_secs(10), || (node.calls() >= 4).then_some(()));
    let change = node.json(&["recycle"]);
    assert_eq!(change["state"], "done", "{change:#}");
    let (a, b) = (worker(&node, "A"), worker(&node, "B"));
    assert_eq!((&a["state"], &b["state"]), (&"draining".into(), &"ready".into()), "{a:#} {b:#}");
    assert!(a["drain_left_s"].as_u64().is_some_and(|left| left > 3500), "{a:#}");
    let calls = node.json(&["calls"]);
    let of =
        |slot: &str| calls.as_array().expect("a list").iter().filter(|call| call["slot"] == slot).count();
    assert!(of("A") > 0, "{calls:#}");
    let sent_on = invite(&node, node.ports.worker_a());
    assert_eq!(sent_on.status, 302, "{}", sent_on.head);
    let contact = sent_on.header("Contact").expect("a 302 has one");
    assert!(contact.contains(&format!(":{}", node.ports.worker_b())), "{contact}");
    assert_eq!(options_tcp(node.ports.worker_a()).expect("it answers").status, 503);

    wait_state(&node, "A", &Value::Null);
    assert!(!is_alive(old), "a drained worker ends");
    assert_eq!(node.json(&["recycle"])["state"], "done");
    assert_unharmed(&running.finish());
    let status = node.status();
    assert_eq!(status["calls_total"], 20, "self-test calls do not count: {status:#}");
    assert_eq!(worker(&node, "A")["restarts"], 0);
}

/// A copy of the program under test, in a file of its own.
fn copy(node: &Node, name: &str) -> PathBuf {
    let file = node.file(name);
    std::fs::copy(env!("CARGO_BIN_EXE_voxring"), &file).expect("the program can be copied");
    file
}

fn program_of(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).expect("a process has a program")
}

fn ask_options(connection: &mut Connection, port: u16) -> Response {
    let uri = format!("sip:127.0.0.1:{port};transport=tcp");
    let request = Request { method: "OPTIONS", uri: &uri, extra: &[], body: "" };
    let bytes = request.render("TCP", connection.local(), &unique());
    connection.send(&bytes);
    connection.final_response(Duration::from_secs(5)).expect("an answer")
}

/// Goal: an upgrade replaces supervisor and worker under running calls: same process id, the new program,
/// no call harmed, the router's connections still up, and nothing that was counted is lost.
/// Method: a copy of the program; calls that begin all the time; a connection to the router from before
/// with half a request on its way; a program that is none first.
#[test]
fn an_upgrade_replaces_the_program_under_running_calls() {
    let node = Node::start(|_| {});
    let (supervisor, old) = (node.supervisor_pid(), node.worker_pid());
    let no_program = node.file("no-program");
    std::fs::write(&no_program, "nothing").expect("the disk has room");
    let refused = node.client(&["upgrade", "--json", "--binary", &no_program.to_string_lossy()]);
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(told.contains("cannot be run") && told.contains("failed"), "{told}");
    assert_eq!(node.worker_pid(), old, "nothing has changed");

    let mut connection = Connection::open(node.ports.router());
    assert_eq!(ask_options(&mut connection, node.ports.router()).status, 200);
    let running = callers(&node, "20", "4", "4");
    wait_for("some calls", Duration::from_secs(10), || (node.calls() >= 4).then_some(()));
    let binary = copy(&node, "voxring-new");
    let change = node.json(&["upgrade", "--binary", &binary.to_string_lossy()]);
    assert_eq!(change["state"], "done", "{change:#}");
    assert_eq!(node.supervisor_pid(), supervisor);
    assert_eq!(program_of(supervisor), binary);
    let new = node.worker_pid().expect("a worker is ready");
    assert_ne!(Some(new), old);
    assert_eq!(program_of(new), binary);
    assert_eq!(worker(&node, "A")["state"], "draining");
    assert_eq!(ask_options(&mut connection, node.ports.router()).status, 200, "the same connection");
    assert_unharmed(&running.finish());
    wait_state(&node, "A", &Value::Null);
    let status = node.status();
    assert_eq!(status["calls_total"], 20, "{status:#}");
    assert_eq!(status["change"]["state"], "done");
    // The new supervisor starts workers, of the new program.
    let killed = node.kill_worker();
    wait_for("a new worker", Duration::from_secs(15), || node.worker_pid().filter(|pid| *pid != killed));
    peers::call(&node, "9196", &["--duration", "1"]).assert_complete();
}

/// Goal: the same where io_uring is forbidden, and again from the new program. Method: two upgrades, to the
/// file the node was started from at last, over one connection.
#[test]
fn an_upgrade_needs_no_io_uring() {
    let node = Node::start_without_io_uring(|_| {});
    let mut connection = Connection::open(node.ports.router());
    assert_eq!(ask_options(&mut connection, node.ports.router()).status, 200);
    let binary = copy(&node, "voxring-new");
    for (arguments, drained) in
        [(vec!["upgrade", "--binary", binary.to_str().expect("a plain path")], "A"), (vec!["upgrade"], "B")]
    {
        assert_eq!(node.json(&arguments)["state"], "done");
        assert_eq!(program_of(node.supervisor_pid()), binary);
        assert_eq!(ask_options(&mut connection, node.ports.router()).status, 200, "the same connection");
        wait_state(&node, drained, &Value::Null);
    }
    peers::call(&node, "9196", &["--duration", "0.5"]).assert_complete();
}

/// Goal: a drained node refuses OPTIONS and new calls at each hop with 503 and Retry-After, shows it,
/// lets calls finish, and takes calls again when told. Method: a call that is up; `drain on`, `drain off`.
#[test]
fn a_drained_node_refuses_new_calls_and_finishes_the_old() {
    let node = Node::start(|_| {});
    let running = callers(&node, "1", "1", "3");
    wait_for("the call", Duration::from_secs(10), || (node.calls() == 1).then_some(()));
    let drained = node.json(&["drain", "on"]);
    assert_eq!(drained["draining"], true);
    let hops = [node.ports.router(), node.ports.service(), node.ports.worker_a()];
    wait_for("503 at each hop", Duration::from_secs(5), || {
        hops.iter().all(|port| options_tcp(*port).is_some_and(|r| r.status == 503)).then_some(())
    });
    for port in hops {
        let refused = invite(&node, port);
        assert_eq!(refused.status, 503, "{}", refused.head);
        assert!(
            refused.header("Retry-After").is_some() && refused.header("Warning").is_some(),
            "{}",
            refused.head
        );
    }
    let status = node.status();
    assert_eq!((&status["draining"], &status["ready"]), (&true.into(), &false.into()));
    let text = String::from_utf8_lossy(&node.client(&["status"]).stdout).into_owned();
    assert!(text.contains("being drained"), "{text}");
    running.finish().assert_complete();
    assert_eq!(node.json(&["drain", "off"])["draining"], false);
    wait_for("200 at each hop", Duration::from_secs(5), || {
        hops.iter().all(|port| options_tcp(*port).is_some_and(|r| r.status == 200)).then_some(())
    });
    peers::call(&node, "9196", &["--duration", "0.5"]).assert_complete();
}

/// Goal: after SIGTERM calls that are up finish and the node ends with the last one; a second SIGTERM ends
/// them at once with BYE. Method: a call of 3 s and a minute to give; one of 30 s and two signals.
#[test]
fn sigterm_lets_calls_finish_and_a_second_one_does_not() {
    let mut node = Node::start(|config| set(config, "node", "stop_timeout_s", 60));
    let running = callers(&node, "1", "1", "3");
    wait_for("the call", Duration::from_secs(10), || (node.calls() == 1).then_some(()));
    let start = now();
    signal("-TERM", &node.supervisor_pid().to_string());
    wait_for("503", Duration::from_secs(2), || {
        options_tcp(node.ports.router()).is_some_and(|r| r.status == 503).then_some(())
    });
    let report = running.finish();
    report.assert_complete();
    let ended = report.call(0)["ended"].as_str().unwrap_or_default();
    assert!(ended.starts_with("hung up"), "the caller ends it: {:#}", report.0);
    node.wait_end();
    assert!(start.elapsed() < Duration::from_secs(30));

    node.start_again();
    let running = callers(&node, "1", "1", "30");
    wait_for("the call", Duration::from_secs(10), || (node.calls() == 1).then_some(()));
    signal("-TERM", &node.supervisor_pid().to_string());
    wait_for("503", Duration::from_secs(2), || {
        options_tcp(node.ports.router()).is_some_and(|r| r.status == 503).then_some(())
    });
    assert_eq!(node.calls(), 1, "it has time");
    signal("-TERM", &node.supervisor_pid().to_string());
    running.finish().assert_complete();
    node.wait_end();
}

/// Goal: `kill -9` of the supervisor: its worker ends its call by BYE, leaves no process, and its ports are
/// free in 2 s. Method: a call whose peer never answers the BYE.
#[test]
fn a_worker_without_its_supervisor_leaves_its_ports_in_two_seconds() {
    let mut node = Node::start(|_| {});
    let worker = node.worker_pid().expect("a worker is ready");
    let uri = format!("sip:9196@127.0.0.1:{};transport=tcp", node.ports.worker_a());
    let called = Caller::call(Connection::open(node.ports.worker_a()), &uri, Wish::default());
    let mut caller = called.unwrap_or_else(|refused| panic!("{}", refused.head));
    signal("-KILL", &node.supervisor_pid().to_string());
    node.wait_killed();
    wait_for("the ports to be free", Duration::from_secs(2), || {
        let ports = [node.ports.router(), node.ports.worker_a()];
        let is_free = |port: &u16| match TcpListener::bind((Ipv4Addr::LOCALHOST, *port)) {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::AddrInUse,
        };
        ports.iter().all(is_free).then_some(())
    });
    assert!(caller.hears_bye(Duration::from_secs(3)));
    wait_for("the worker to end", Duration::from_secs(2), || (!is_alive(worker)).then_some(()));
    node.start_again();
}

/// Goal: a media shard that hangs is named in the log with where it is, and its worker is replaced.
/// Method: the shard's thread alone is held by ptrace, where that is allowed.
#[test]
fn a_worker_with_a_hanging_shard_is_replaced() {
    let node = Node::start(|_| {});
    let pid = node.worker_pid().expect("a worker is ready");
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it has threads");
    let shard = tasks.flatten().find(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == "media-0")
    });
    let shard = shard.and_then(|task| task.file_name().to_str()?.parse().ok()).expect("it has a shard");
    let thread = Pid::from_raw(shard);
    if ptrace::attach(thread).is_err() {
        return eprintln!("skipped: ptrace is not allowed here");
    }
    waitpid(thread, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("it stops");
    let line = node.wait_log(&["a loop of the worker does not turn", "media-0"]);
    assert!(line.contains("state t"), "{line}");
    wait_state(&node, "B", &"ready".into());
    peers::call(&node, "9196", &["--duration", "0.5"]).assert_complete();
    // The worker it held may have been killed by now: it cannot end without its shard.
    let _ = ptrace::detach(thread, None);
}

/// Goal: a worker that keeps dying is not started for ever: the node says that it gave up, refuses calls
/// with 503, and starts one again when an operator says so. Method: two deaths are the limit.
#[test]
fn a_crash_loop_ends_in_a_clear_state() {
    let node = Node::start(|config| set(config, "worker", "crashes_max", 2));
    let first = node.kill_worker();
    wait_for("a new worker", Duration::from_secs(15), || node.worker_pid().filter(|pid| *pid != first));
    node.kill_worker();
    let told = wait_for("the node to give up", Duration::from_secs(10), || {
        node.status()["gave_up"].as_str().map(str::to_owned)
    });
    assert_eq!(told, "gave up: worker died 2 times in 60 s; `voxring recycle` tries again");
    node.wait_log(&["gave up"]);
    wait_for("503", Duration::from_secs(2), || {
        (invite(&node, node.ports.router()).status == 503).then_some(())
    });
    assert_eq!(node.json(&["recycle"])["state"], "done");
    peers::call(&node, "9196", &["--duration", "0.5"]).assert_complete();
}
