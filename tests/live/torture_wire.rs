//! The torture tests of RFC 4475 against a running node, over TCP and UDP.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::common::node::Node;
use crate::common::raw::{Connection, options_tcp, options_udp};

/// What may happen to a message.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    /// Understood (RFC 4475 §3.1.1): whatever a node says to a good request, but never 400.
    Understood,
    /// Broken: one of these statuses, or the connection is closed.
    Refused(&'static [u16]),
    /// A response, or nothing a server answers: only its survival counts.
    Ignored,
}

use Verdict::{Ignored, Refused, Understood};

/// Any refusal a sane element may choose where the RFC leaves a choice.
const SOME: &[u16] = &[400, 404, 405, 406, 415, 416, 420, 481, 483, 488, 493, 500, 501, 503, 505];

/// Section 3.1.1 to 3.4 of RFC 4475: file, verdict.
const CORPUS: &[(&str, Verdict)] = &[
    ("wsinv", Understood),
    ("intmeth", Understood),
    ("esc01", Understood),
    ("escnull", Understood),
    ("esc02", Understood),
    ("lwsdisp", Understood),
    ("longreq", Understood),
    ("dblreq", Understood),
    ("semiuri", Understood),
    ("transports", Understood),
    ("mpart01", Understood),
    ("unreason", Ignored),
    ("noreason", Ignored),
    ("badinv01", Refused(&[400])),
    ("clerr", Refused(&[400])),
    ("ncl", Refused(&[400])),
    ("scalar02", Refused(&[400, 405, 501])),
    ("scalarlg", Ignored),
    ("quotbal", Refused(&[400])),
    ("ltgtruri", Refused(&[400])),
    ("lwsruri", Refused(&[400])),
    ("lwsstart", Refused(&[400])),
    ("trws", Refused(&[400, 405, 200])),
    ("escruri", Refused(&[400, 302, 404, 416])),
    ("baddate", Refused(&[400, 302, 404, 488])),
    ("regbadct", Refused(&[400, 405])),
    ("badaspec", Refused(&[400, 200, 404])),
    ("baddn", Refused(&[400, 200, 404])),
    ("badvers", Refused(&[505])),
    ("mismatch01", Refused(&[400])),
    ("mismatch02", Refused(&[400, 501])),
    ("bigcode", Ignored),
    ("badbranch", Refused(&[400, 200, 404])),
    ("insuf", Refused(&[400])),
    ("unkscm", Refused(&[416])),
    ("novelsc", Refused(&[416])),
    ("unksm2", Refused(&[400, 405])),
    ("bext01", Refused(&[420])),
    ("invut", Refused(&[415, 302, 404])),
    ("regaut01", Refused(SOME)),
    ("multi01", Refused(&[400])),
    ("mcl01", Refused(&[400])),
    ("bcast", Ignored),
    ("zeromf", Refused(&[200, 483])),
    ("cparam01", Refused(SOME)),
    ("cparam02", Refused(SOME)),
    ("regescrt", Refused(SOME)),
    ("sdp01", Refused(&[406, 415, 488, 302, 404])),
    // No Content-Length: right over UDP, not over a stream (RFC 3261 §20.14).
    ("inv2543", Refused(&[400, 200, 302, 404, 488])),
];

fn corpus() -> Vec<(&'static str, Verdict, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rfc4475");
    let read = |name: &str| {
        let path = folder.join(format!("{name}.dat"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    CORPUS.iter().map(|&(name, verdict)| (name, verdict, read(name))).collect()
}

/// Judges what came back over TCP: a status, or `None` for silence or a closed connection.
fn judge(verdict: Verdict, status: Option<u16>, closed: bool) -> Result<(), String> {
    match (verdict, status) {
        (Ignored, _) => Ok(()),
        (Understood, Some(status)) if status != 400 && status != 505 => Ok(()),
        (Refused(allowed), Some(status)) if allowed.contains(&status) => Ok(()),
        // A parser that cannot go on closes the connection.
        (Refused(_), None) if closed => Ok(()),
        (_, Some(status)) => Err(format!("answered {status}, wanted {verdict:?}")),
        (_, None) => Err(format!("no answer, wanted {verdict:?}")),
    }
}

/// Goal: over TCP every message of RFC 4475 is understood or refused as it should be, and the node
/// answers OPTIONS after each (acceptance 6).
/// Method: a connection a message, to router and worker; half-close is not used.
#[test]
fn torture_messages_over_tcp_are_answered_and_survived() {
    // Some end in the middle of a message: the node waits this long for the rest.
    let node = Node::start(|config| {
        config.insert("sip".into(), toml::Table::from_iter([("message_timeout_s".into(), 1.into())]).into());
    });
    let mut wrong = Vec::new();
    for (role, port) in [("router", node.ports.router()), ("worker", node.ports.worker_a())] {
        for (name, verdict, bytes) in corpus() {
            let mut connection = Connection::open(port);
            connection.send(&bytes);
            let limit = Duration::from_millis(if matches!(verdict, Ignored) { 100 } else { 4000 });
            let status = connection.final_response(limit).map(|response| response.status);
            let closed = status.is_none() && connection.is_closed(Duration::from_millis(100));
            if let Err(why) = judge(verdict, status, closed) {
                wrong.push(format!("{role}, {name}: {why}"));
            }
            let options = options_tcp(port).map(|response| response.status);
            assert_eq!(options, Some(200), "{role} is silent after {name}");
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Goal: over UDP the same messages harm nothing.
/// Method: one datagram each; answers go to the address in Via and are not seen here; OPTIONS is
/// answered after each. The longest message still fits a datagram.
#[test]
fn torture_messages_over_udp_are_survived() {
    let node = Node::start(|_| {});
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let before = (node.supervisor_pid(), node.worker_pid());
    for port in [node.ports.router(), node.ports.worker_a()] {
        for (name, _, bytes) in corpus() {
            socket.send_to(&bytes, (Ipv4Addr::LOCALHOST, port)).expect("it fits a datagram");
            let options = options_udp(port).map(|response| response.status);
            assert_eq!(options, Some(200), "{port} is silent after {name}");
        }
    }
    assert_eq!((node.supervisor_pid(), node.worker_pid()), before, "no process was replaced");
}

/// Goal: over UDP what is understood is answered too.
/// Method: the good requests with Via rewritten to name our socket, so that the answer reaches us.
#[test]
fn good_torture_messages_over_udp_are_answered() {
    let node = Node::start(|_| {});
    let mut wrong = Vec::new();
    for (name, verdict, bytes) in corpus() {
        if !matches!(verdict, Understood) && name != "inv2543" {
            continue;
        }
        let verdict = Understood;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket option");
        let port = socket.local_addr().expect("it is bound").port();
        let via = format!("Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bKtorture{name}");
        let Some(bytes) = with_own_via(&bytes, &via) else { continue };
        socket.send_to(&bytes, (Ipv4Addr::LOCALHOST, node.ports.router())).expect("it fits a datagram");
        let mut buffer = [0; 16_384];
        let status = (0..2).find_map(|_| {
            let count = socket.recv(&mut buffer).ok()?;
            crate::common::raw::read_response(&buffer[..count])
                .map(|r| r.status)
                .filter(|&status| status >= 200)
        });
        if let Err(why) = judge(verdict, status, false) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The message with one more Via line on top.
fn with_own_via(bytes: &[u8], via: &str) -> Option<Vec<u8>> {
    let line_end = bytes.windows(2).position(|window| window == b"\r\n")? + 2;
    Some([&bytes[..line_end], via.as_bytes(), b"\r\n", &bytes[line_end..]].concat())
}
