//! `voxring call-router`: the router's listeners move while calls come in.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::node::Node;
use crate::common::pki::set;
use crate::common::raw::{Connection, Request, offer, options_tcp, options_udp, unique};
use crate::common::{peers, wait_for};

/// Connections that call again and again.
const CALLERS: usize = 8;

/// Callers that place one call after the other, each over a connection of its own that stays.
struct Callers {
    is_over: Arc<AtomicBool>,
    redirected: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(port: u16) -> Self {
        let (is_over, redirected) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let call = |_| {
            let (is_over, redirected) = (Arc::clone(&is_over), Arc::clone(&redirected));
            let mut connection = Connection::open(port);
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(
                        invite(&mut connection, port),
                        Some(302),
                        "an established connection was lost"
                    );
                    redirected.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..CALLERS).map(call).collect();
        Self { is_over, redirected, threads }
    }

    /// Waits until each has called some more times.
    fn wait_for_more(&self) {
        let before = self.redirected.load(Ordering::Relaxed);
        wait_for("more redirects", Duration::from_secs(20), || {
            (self.redirected.load(Ordering::Relaxed) >= before + 20 * CALLERS).then_some(())
        });
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no caller lost its connection"));
    }
}

/// Calls once and acknowledges; the final status, or `None` when the connection is gone.
fn invite(connection: &mut Connection, port: u16) -> Option<u16> {
    let (tag, body) = (unique(), offer(40_000));
    let uri = format!("sip:1001@127.0.0.1:{port};transport=tcp");
    let invite = Request { method: "INVITE", uri: &uri, extra: &[], body: &body };
    connection.send(&invite.render("TCP", connection.local(), &tag));
    let status = connection.final_response(Duration::from_secs(10))?.status;
    let ack = Request { method: "ACK", uri: &uri, extra: &[], body: "" };
    connection.send(&ack.render("TCP", connection.local(), &tag));
    Some(status)
}

fn is_listening(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn set_port(node: &Node, port: u16) {
    let report = node.json(&["call-router", "set", "--port", &port.to_string()]);
    let listeners = report["listeners"].as_array().expect("a list");
    let address = format!("127.0.0.1:{port}");
    assert_eq!(listeners.len(), 2, "TCP and UDP: {report:#}");
    assert!(listeners.iter().all(|listener| listener["address"] == *address), "{report:#}");
}

/// Goal: the router moves to another port under load and back; no established connection is lost,
/// calls that are up go on, and new connections are taken at the new port at once (acceptance 6).
/// Method: eight connections that call without a pause, ten voxperf calls that last over both moves;
/// a fresh connection and a datagram to each port after each move.
#[test]
fn the_router_moves_under_load_and_back_without_losing_a_connection() {
    // These callers never rest, which alone is no overload.
    let node = Node::start(|config| set(config, "calls", "signalling_busy_max", 100));
    let (home, away) = (node.ports.router(), node.ports.peer());
    let uri = node.uri("9197", "tcp");
    let calls = ["call", "--to", &uri, "--calls", "10", "--rate", "10", "--duration", "30"];
    let calls = peers::voxperf_start(&calls);
    wait_for("ten calls", Duration::from_secs(20), || (node.calls() == 10).then_some(()));
    let callers = Callers::start(home);
    callers.wait_for_more();
    for (from, to) in [(home, away), (away, home), (home, away), (away, home)] {
        set_port(&node, to);
        assert_eq!(options_tcp(to).expect("the new port answers").status, 200);
        assert_eq!(options_udp(to).expect("the new port answers over UDP").status, 200);
        wait_for("the old port to close", Duration::from_secs(5), || (!is_listening(from)).then_some(()));
        callers.wait_for_more();
    }
    callers.end();
    assert_eq!(node.calls(), 10, "all calls are still up");
    calls.finish().assert_complete();
}

/// Goal: what was set outlives the process, `get` tells where each value comes from, and --reset
/// goes back to the file. Method: set, restart, reset.
#[test]
fn settings_outlive_a_restart_until_they_are_reset() {
    let mut node = Node::start(|_| {});
    let (home, away) = (node.ports.router(), node.ports.peer());
    set_port(&node, away);
    node.stop();
    node.start_again();
    assert!(is_listening(away) && !is_listening(home));
    let origin = |node: &Node, key: &str| {
        let report = node.json(&["call-router", "get"]);
        let settings = report["settings"].as_array().expect("a list").clone();
        let found = settings.iter().find(|setting| setting["key"] == key).expect("it is there").clone();
        (found["value"].clone(), found["origin"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(origin(&node, "port"), (away.into(), "set at run time".to_owned()));
    assert!(origin(&node, "udp").1.contains("voxring.toml:"), "{:?}", origin(&node, "udp"));
    assert_eq!(origin(&node, "startup_mode"), ("dual".into(), "default".to_owned()));

    node.json(&["call-router", "set", "--maintenance", "on"]);
    assert_eq!(options_tcp(away).expect("it answers").status, 503);
    let told = String::from_utf8(node.client(&["status"]).stdout).expect("text");
    assert!(node.status()["maintenance"] == true && told.contains("is under maintenance"), "{told}");
    node.json(&["call-router", "set", "--reset"]);
    assert_eq!(node.status()["maintenance"], false);
    assert_eq!(options_tcp(home).expect("it answers").status, 200);
    wait_for("the port that was set to close", Duration::from_secs(5), || {
        (!is_listening(away)).then_some(())
    });
    assert!(!node.data().join("call-router.toml").exists());
}

/// Goal: a value that cannot work is refused with the reason and changes nothing.
/// Method: the service's port, a port somebody else holds, TLS without a certificate; each time the
/// old listener answers and nothing is kept.
#[test]
fn settings_that_cannot_work_are_refused_and_change_nothing() {
    let node = Node::start(|_| {});
    let held = TcpListener::bind((Ipv4Addr::LOCALHOST, node.ports.peer())).expect("the port is ours");
    let (service, taken) = (node.ports.service().to_string(), node.ports.peer().to_string());
    for (arguments, reason) in [
        (["--port", service.as_str()], "router and service both listen"),
        (["--port", taken.as_str()], "in use"),
        (["--startup-mode", "tls"], "needs tls.certificate"),
        (["--address", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ] {
        let output = node.client(&[&["call-router", "set"], &arguments[..]].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(reason), "{arguments:?}: {told}");
        assert_eq!(options_tcp(node.ports.router()).expect("the old listener answers").status, 200);
        assert!(!node.data().join("call-router.toml").exists(), "{arguments:?}");
    }
    drop(held);
    set_port(&node, node.ports.peer());
}
