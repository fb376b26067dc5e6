//! What an idle connection costs.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::certificates::{Authority, Wish, connect};
use crate::shard::{PATIENCE, Shard, options, responses};
use crate::tls::{secure, serves};

const CONNECTIONS: usize = 1000;
/// All of a connection that has been used and is idle, the kernel's part apart, in bytes.
const IDLE_BYTES_MAX: u64 = 20 * 1024;

/// Memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("the kernel tells and grants");
    let line =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells and grants");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("the kernel tells and grants") * 1024
}

fn shard() -> (Authority, Shard) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the kernel tells and grants");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the kernel tells and grants");
    let authority = Authority::new("CA");
    let setup = authority.node();
    let shard = Shard::start_with(|config| {
        secure(&setup)(config);
        config.connections_max = 2 * CONNECTIONS + 10;
        config.idle_timeout = 60 * PATIENCE;
    });
    (authority, shard)
}

/// What the role saw is the test's memory, not the connection's.
fn forget_seen(shard: &Shard) {
    while shard.seen.try_recv().is_ok() {}
}

/// Prints and judges what a connection costs.
fn judge(kind: &str, before: u64) {
    let each = resident().saturating_sub(before) / CONNECTIONS as u64;
    println!("{kind}: {each} bytes per idle connection");
    assert!((1..=IDLE_BYTES_MAX).contains(&each), "{kind}: {each} bytes per idle connection");
}

/// The child's part of the test below, in a process of its own, where nothing else takes memory.
#[test]
#[ignore = "run by the test below"]
fn idle_connections_in_a_process_of_their_own() {
    let (authority, shard) = shard();
    let own = authority.client_13(&authority.issue(&Wish::default()));
    let secured = || {
        let mut client = connect(shard.addresses[0], &own);
        serves(&mut client, 1);
        forget_seen(&shard);
        // The client's session goes; its socket stays.
        client.sock
    };
    let plain = || {
        let mut client = TcpStream::connect(shard.addresses[1]).unwrap();
        client.write_all(options(1).as_bytes()).unwrap();
        assert_eq!(responses(&mut client, 1).len(), 1);
        forget_seen(&shard);
        client
    };
    let _warm = [secured(), plain()];
    let before = resident();
    let _plain: Vec<_> = (0..CONNECTIONS).map(|_| plain()).collect();
    judge("TCP", before);
    let before = resident();
    let _secured: Vec<_> = (0..CONNECTIONS).map(|_| secured()).collect();
    judge("TLS", before);
    assert_eq!(shard.counters.accepted.value(), 2 * CONNECTIONS as u64 + 2);
}

/// Goal: an idle connection costs at most 20 KiB, TLS included. Method: growth of a process that
/// holds a thousand of each kind, each of which has had a request and its answer.
#[test]
fn idle_connections_are_small() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["memory::idle_connections_in_a_process_of_their_own", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    println!("{text}");
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}
