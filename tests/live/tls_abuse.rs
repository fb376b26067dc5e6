//! Who abuses the TLS ports takes neither memory nor service away from the others.
//!
//! Small by default; `VOXRING_SOAK=1` (`tests/run --soak`) plays 1,000 half-open handshakes and
//! 10,000 connections. Abusers come from an address of their own, as they would.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::common::node::Node;
use crate::common::peers::{self, Running};
use crate::common::pki::{Paper, Pki, set};
use crate::common::{now, secure, wait_for};

/// Where the abuse comes from.
const ABUSER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
/// Memory a debug build may gain under attack, beyond what is still open.
const GROWTH_MAX_KIB: u64 = 48 * 1024;

/// `small`, or `full` in a soak.
fn scaled(small: usize, full: usize) -> usize {
    if std::env::var("VOXRING_SOAK").is_ok_and(|value| value == "1") { full } else { small }
}

fn node(pki: &Pki, limits: &[(&str, i64)]) -> Node {
    Node::start_changed_for_load(|config| {
        pki.secure(config);
        set(config, "tls", "handshake_timeout_s", 3);
        set(config, "sip", "connections_max", 20_000);
        for &(key, value) in limits {
            set(config, "limits", key, value);
        }
    })
}

fn router(node: &Node) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, node.ports.router_tls()).into()
}

/// Connects from the abuser's address.
fn connect(address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is left");
    socket.bind(&SocketAddr::from((ABUSER, 0)).into()).expect("the loopback has all of 127/8");
    socket.connect_timeout(&address.into(), Duration::from_secs(5)).ok()?;
    Some(socket.into())
}

/// Closed by the far side, whatever it says before.
fn is_closed(stream: &mut TcpStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).expect("a socket option");
    let mut buffer = [0; 4096];
    let start = now();
    while start.elapsed() < limit {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
    false
}

/// Calls by the gateway, over TLS with SRTP, that last as long as the abuse.
fn legitimate(node: &Node, pki: &Pki) -> Running {
    let uri = node.uri("9196", "tls");
    let tls = pki.voxperf(Paper::Good);
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let calls = ["call", "--to", &uri, "--calls", "10", "--rate", "2", "--duration", "3"];
    peers::voxperf_start(&[&calls[..], &tls, &["--srtp", "AEAD_AES_128_GCM"]].concat())
}

/// The head of a handshake message that promises more than comes.
fn half_a_client_hello() -> Vec<u8> {
    // TLS 1.0 record of 512 bytes, ClientHello of 508 (RFC 8446 §5.1, §4), and 100 bytes of it.
    let mut bytes = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3];
    bytes.resize(100, 0xAB);
    bytes
}

/// Goal: half-open handshakes are ended by their deadline and cost little; calls go on meanwhile
/// (acceptance 5).
/// Method: connections that send nothing or half a ClientHello, at router and worker; all are
/// closed and counted, ten calls complete, the memory is that of before.
#[test]
fn half_open_handshakes_are_ended_and_calls_go_on() {
    let _alone = crate::common::heavy();
    let count = scaled(300, 1000);
    let pki = Pki::new();
    let node = node(&pki, &[("source_connections_max", 2000), ("source_connections_burst", 2000)]);
    let before = node.memory_kib();
    let calls = legitimate(&node, &pki);
    let mut open = Vec::new();
    for index in 0..count {
        let mut stream = connect(router(&node)).expect("the listener takes connections");
        if index % 2 == 0 {
            stream.write_all(&half_a_client_hello()).expect("it is open");
        }
        open.push(stream);
    }
    let growth = node.memory_kib().saturating_sub(before);
    assert!(growth < GROWTH_MAX_KIB, "{growth} KiB more while {count} handshakes are half open");
    for stream in &mut open {
        assert!(is_closed(stream, Duration::from_secs(20)), "a handshake may not stay half open");
    }
    calls.finish().assert_complete();
    node.wait_counter("sip_tls_timeout", u64::try_from(count).expect("a count"));
    node.wait_log(&["tls_timeout", "127.0.0.66"]);
}

/// Goal: one source cannot have more connections than its limit; calls of others go on, and memory
/// is bounded (acceptance 5).
/// Method: thousands of connections from one address against a limit of 100; each beyond it is
/// closed at once and counted.
#[test]
fn one_source_cannot_take_all_connections() {
    let _alone = crate::common::heavy();
    let count = scaled(2000, 10_000);
    let pki = Pki::new();
    let limits = [
        ("source_connections_max", 100),
        ("source_connections_burst", 100_000),
        ("source_connections_per_s", 100_000),
    ];
    let node = node(&pki, &limits);
    let before = node.memory_kib();
    let calls = legitimate(&node, &pki);
    let (mut held, mut refused) = (Vec::new(), 0);
    for index in 0..count {
        let Some(mut stream) = connect(router(&node)) else {
            refused += 1;
            continue;
        };
        if index < 100 {
            held.push(stream);
        } else {
            // The first hundred may meanwhile have met their deadline: then others take their place.
            let _ = stream.write_all(&half_a_client_hello());
        }
    }
    let growth = node.memory_kib().saturating_sub(before);
    assert!(growth < GROWTH_MAX_KIB, "{growth} KiB more after {count} connections");
    calls.finish().assert_complete();
    // At most a hundred every three seconds get as far as a handshake.
    node.wait_counter("sip_source_refused", u64::try_from((count - refused) / 2).expect("a count"));
    drop(held);
    // The source has its allowance back when its connections are gone.
    wait_for("the abuser's connections to go", Duration::from_secs(10), || {
        let mut stream = connect(router(&node))?;
        (!is_closed(&mut stream, Duration::from_millis(300))).then_some(())
    });
}

/// Bytes that are no TLS, or not in that place.
fn garbage() -> Vec<Vec<u8>> {
    let mut noise = Vec::new();
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    for _ in 0..8192 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.push(state.to_le_bytes()[0]);
    }
    vec![
        noise,
        vec![0; 4096],
        b"OPTIONS sip:127.0.0.1 SIP/2.0\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // A record longer than any may be (RFC 8446 §5.2).
        [&[0x16, 3, 3, 0xFF, 0xFF][..], &[1; 2000]].concat(),
        // Application data, an alert, a change of cipher before any hello.
        vec![0x17, 3, 3, 0, 4, 1, 2, 3, 4],
        vec![0x15, 3, 3, 0, 2, 2, 40],
        vec![0x14, 3, 3, 0, 1, 1],
        // A hello of SSL 2 (RFC 5246 appendix E.2).
        vec![0x80, 0x2E, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80, 3, 0, 0x80],
        // Empty handshake records, many.
        [0x16, 3, 3, 0, 0].repeat(1000),
        // A ClientHello that says it has 16 MiB.
        [&[0x16, 3, 3, 0x40, 0, 1, 0xFF, 0xFF, 0xFF, 3, 3][..], &[0; 16_000]].concat(),
        half_a_client_hello(),
    ]
}

/// Goal: garbage instead of TLS, and TLS that turns to garbage, ends its own connection only.
/// Method: each kind at router and worker, several times; then broken records inside a session; the
/// gateway's OPTIONS is answered after each.
#[test]
fn garbage_ends_its_own_connection_only() {
    let pki = Pki::new();
    let node = node(&pki, &[]);
    let before = node.memory_kib();
    let good = pki.client(Paper::Good);
    for port in [node.ports.router_tls(), node.ports.worker_a_tls()] {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for bytes in &garbage() {
            for cut in [bytes.len(), bytes.len() / 2, 1] {
                let mut stream = connect(address).expect("the listener takes connections");
                // It may close in the middle: that is what it should do.
                let _ = stream.write_all(&bytes[..cut]);
            }
            let mut stream = connect(address).expect("the listener takes connections");
            let _ = stream.write_all(bytes);
            assert!(is_closed(&mut stream, Duration::from_secs(10)), "{:02x?}...", &bytes[..8]);
            secure::options(address, &good).expect("the gateway is served");
        }
        let (mut stream, _) = secure::connect(address, &good).expect("the gateway is let in");
        // A record that no key of the session made.
        stream.sock.write_all(&[&[0x17, 3, 3, 0, 64][..], &[7; 64]].concat()).expect("it is open");
        assert!(is_closed(&mut stream.sock, Duration::from_secs(5)), "a broken record ends a session");
        secure::options(address, &good).expect("the gateway is served");
    }
    node.wait_counter("sip_tls_other", 20);
    let growth = node.memory_kib().saturating_sub(before);
    assert!(growth < GROWTH_MAX_KIB, "{growth} KiB more after garbage");
}

/// Goal: a peer cannot make the node renegotiate TLS 1.2 (RFC 5746): it is refused.
/// Method: `openssl s_client` asks for it with its `R` command.
#[test]
fn renegotiation_is_refused() {
    if !peers::has_peer("openssl") {
        return;
    }
    let pki = Pki::new();
    let node = node(&pki, &[]);
    let (certificate, key) = pki.files(Paper::Good).expect("it has files");
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &router(&node).to_string(), "-cert"])
        .arg(certificate)
        .arg("-key")
        .arg(key)
        .arg("-CAfile")
        .arg(pki.path("ca.pem"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    wait_for("openssl's handshake", Duration::from_secs(10), || {
        (node.front_counter("sip_tls_handshakes") == 1).then_some(())
    });
    let mut input = client.stdin.take().expect("piped");
    for _ in 0..3 {
        // It may be gone already: then it was refused by closing.
        let _ = input.write_all(b"R\n");
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(input);
    let output = client.wait_with_output().expect("openssl ends");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(
        said.contains("no renegotiation") || said.contains("error:") || said.contains("closed"),
        "{said}"
    );
    assert_eq!(node.front_counter("sip_tls_handshakes"), 1, "it was one handshake, not more");
    secure::options(router(&node), &pki.client(Paper::Good)).expect("the gateway is served");
}

/// Goal: a connection that is up and idle costs little memory (acceptance 5; target 20 KiB).
/// Method: handshakes with a client certificate, from one process; the front's resident memory
/// before and after, divided. The figure is printed; the bound is four times the target.
#[test]
fn idle_tls_connections_cost_little_memory() {
    let _alone = crate::common::heavy();
    let count = scaled(400, 2000);
    let pki = Pki::new();
    let limits = [("source_connections_max", 5000), ("source_connections_burst", 5000)];
    let node = node(&pki, &limits);
    let client = pki.client(Paper::Good);
    // What is allocated once, for the first connections.
    let warm: Vec<_> = (0..20).map(|_| secure::options(router(&node), &client)).collect();
    assert!(warm.iter().all(Result::is_ok));
    let before = node.memory_kib();
    let idle: Vec<_> =
        (0..count).map(|_| secure::open(router(&node), &client).expect("the gateway is let in")).collect();
    wait_for("all handshakes", Duration::from_secs(10), || {
        (node.front_counter("sip_tls_handshakes") >= u64::try_from(count + 20).ok()?).then_some(())
    });
    let growth = node.memory_kib().saturating_sub(before);
    let bytes = growth * 1024 / u64::try_from(idle.len()).expect("a count");
    eprintln!("{count} idle TLS connections: {bytes} bytes each");
    assert!(bytes < 80 * 1024, "{bytes} bytes for an idle connection");
}
