//! Does the kernel do here what a backend of the media loop needs? Found out by doing it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::io::{Forward, MediaIo, Receive};
use super::per_socket::PerSocket;
use super::steered::Steered;
use super::wake::Waker;
use crate::base::clock;

/// How long the self-test waits for its datagrams.
const PATIENCE: Duration = Duration::from_secs(1);

/// What works here, for `voxring check` and `voxring status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The running kernel, as `uname -r` says.
    pub kernel: String,
    /// Absolute wait deadlines (6.12). Without them ticks are a little less even.
    pub absolute_deadlines: bool,
}

/// Why there is no io_uring for us, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{reason}; {fix}")]
pub struct ProbeError {
    /// What was found.
    pub reason: String,
    /// What helps.
    pub fix: String,
}

/// Makes a ring and a loopback socket, and receives two datagrams, the first without payload.
///
/// # Errors
/// With the reason and the fix.
pub fn probe() -> Result<Probe, ProbeError> {
    let kernel = kernel();
    let waker = Waker::new().map_err(|error| explain(&error, None, &kernel))?;
    let mut io = PerSocket::new(clock::now(), 1, Arc::new(waker))
        .map_err(|error| explain(&error, disabled().as_deref(), &kernel))?;
    let counted = self_test(&mut io).map_err(|error| ProbeError {
        reason: format!("the self-test could not run on 127.0.0.1: {error}"),
        fix: "bring the loopback interface up and raise the limit of open files".to_owned(),
    })?;
    if counted != [0, 4] {
        return Err(ProbeError {
            reason: format!("multishot receive lost datagrams on kernel {kernel}: {counted:?}"),
            fix: "use Linux 6.1 or newer, at its latest patch release".to_owned(),
        });
    }
    Ok(Probe { kernel, absolute_deadlines: io.is_absolute() })
}

/// Steers a port, has a datagram come to it and go back.
///
/// # Errors
/// With the reason and the fix.
pub fn probe_steered() -> Result<(), ProbeError> {
    let fail = |error: io::Error| explain_steered(&error, &kernel());
    let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let (socket, peer) = (UdpSocket::bind(loopback).map_err(fail)?, UdpSocket::bind(loopback).map_err(fail)?);
    let to = socket.local_addr().map_err(fail)?;
    let waker = Arc::new(Waker::new().map_err(fail)?);
    let mut io = Steered::new(1, waker).map_err(fail)?;
    io.open(0, socket.into());
    let mut seen = Seen { echo: true, ..Seen::default() };
    let mut echo = || {
        peer.set_read_timeout(Some(PATIENCE))?;
        peer.send_to(b"echo", to)?;
        turn_until(&mut io, &mut seen, clock::now() + PATIENCE, |seen| !seen.lengths.is_empty())?;
        // What goes on leaves at the reap that brought it.
        peer.recv_from(&mut [0; 8])
    };
    match echo() {
        Ok((4, from)) if from == to && io.is_steered(0) => Ok(()),
        Ok((length, from)) => Err(ProbeError {
            reason: format!("the self-test sent 4 bytes through {to} and got {length} from {from}"),
            fix: "use another backend, and tell us".to_owned(),
        }),
        Err(error) => Err(ProbeError {
            reason: format!("the self-test through {to} failed: {error}"),
            fix: "see whether a firewall drops packets of raw sockets; or use another backend".to_owned(),
        }),
    }
}

/// Lengths of what arrived, in order, and whether the stream has closed.
#[derive(Default)]
struct Seen {
    lengths: Vec<usize>,
    closed: bool,
    /// Send it back.
    echo: bool,
}

impl Receive for Seen {
    fn datagram(
        &mut self,
        stream: u32,
        from: SocketAddr,
        _: Instant,
        _: &mut [u8],
        length: usize,
    ) -> Option<Forward> {
        self.lengths.push(length);
        self.echo.then_some(Forward { stream, length, to: from })
    }
    fn send_failed(&mut self, _: u32) {}
    fn closed(&mut self, _: u32) {
        self.closed = true;
    }
}

fn self_test(io: &mut PerSocket) -> io::Result<Vec<usize>> {
    let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind(&loopback.into())?;
    let to = socket.local_addr()?;
    let peer = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut seen = Seen::default();
    io.open(0, socket);
    // Arm first, so that the datagrams meet a receive in flight.
    io.wait(1, clock::now())?;
    peer.send_to(&[], &to)?;
    peer.send_to(b"echo", &to)?;
    let end = clock::now() + PATIENCE;
    turn_until(io, &mut seen, end, |seen| seen.lengths.len() >= 2)?;
    io.close(0);
    turn_until(io, &mut seen, end, |seen| seen.closed)?;
    Ok(seen.lengths)
}

fn turn_until(
    io: &mut impl MediaIo,
    seen: &mut Seen,
    end: Instant,
    done: impl Fn(&Seen) -> bool,
) -> io::Result<()> {
    loop {
        let now = clock::now();
        io.reap(now, seen);
        if done(seen) || now >= end {
            return Ok(());
        }
        io.wait(1, now + Duration::from_millis(1))?;
    }
}

fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// `kernel.io_uring_disabled`; absent before Linux 6.6.
fn disabled() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    Some(text.trim().to_owned())
}

/// Names the culprit behind `error`, given the sysctl's value.
fn explain(error: &io::Error, disabled: Option<&str>, kernel: &str) -> ProbeError {
    let (reason, fix) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some(value @ ("1" | "2"))) => (
            format!("io_uring is switched off (kernel.io_uring_disabled = {value})"),
            "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        ),
        (Some(libc::EPERM | libc::EACCES), _) => (
            "io_uring is forbidden, most likely by a container's seccomp profile".to_owned(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the profile \
             (--security-opt seccomp=...)"
                .to_owned(),
        ),
        (Some(libc::ENOSYS), _) => (
            format!("kernel {kernel} has no io_uring, or a seccomp profile hides it"),
            "use Linux 6.1 or newer and allow io_uring_setup".to_owned(),
        ),
        (Some(libc::EINVAL), _) => (
            format!("kernel {kernel} lacks a feature of io_uring that the media loop needs"),
            "use Linux 6.1 or newer".to_owned(),
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => (
            "no file descriptor is left for io_uring".to_owned(),
            "raise the limit: ulimit -n, or LimitNOFILE= in the systemd unit".to_owned(),
        ),
        (Some(libc::ENOMEM), _) => (
            "no memory for io_uring: the machine's, or the locked-memory limit".to_owned(),
            "raise the limit: ulimit -l, or LimitMEMLOCK= in the systemd unit".to_owned(),
        ),
        _ => (format!("io_uring failed on kernel {kernel}: {error}"), "see the kernel log".to_owned()),
    };
    ProbeError { reason, fix }
}

/// Likewise, why nothing can be steered.
fn explain_steered(error: &io::Error, kernel: &str) -> ProbeError {
    let (reason, fix) = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => (
            "steering is forbidden to this process".to_owned(),
            "give it the capabilities: setcap cap_net_admin,cap_net_raw,cap_bpf+ep, or AmbientCapabilities= in \
             the systemd unit; and let a container's seccomp profile allow bpf"
                .to_owned(),
        ),
        Some(libc::ENOSYS | libc::EINVAL) => (
            format!("kernel {kernel} cannot steer sockets (sk_lookup)"),
            "use Linux 5.9 or newer, with CONFIG_BPF_SYSCALL".to_owned(),
        ),
        Some(libc::E2BIG) => (
            "the network namespace has 64 programs that steer sockets already".to_owned(),
            "see bpftool link; give nodes namespaces of their own".to_owned(),
        ),
        _ => (format!("sockets cannot be steered here: {error}"), "use another backend".to_owned()),
    };
    ProbeError { reason, fix }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the probe passes where the other tests of this room run. Method: run it.
    #[test]
    fn probe_passes_on_a_machine_with_io_uring() {
        let probe = probe().unwrap();
        assert!(probe.kernel.starts_with(|c: char| c.is_ascii_digit()), "{probe:?}");
    }

    /// Goal: each refusal names its culprit and a fix an operator can type.
    /// Method: the errno the kernel documents for each.
    #[test]
    fn refusals_name_sysctl_seccomp_and_kernel() {
        let told =
            |code, disabled| explain(&io::Error::from_raw_os_error(code), disabled, "5.10.0").to_string();
        assert!(told(libc::EPERM, Some("2")).contains("sysctl -w kernel.io_uring_disabled=0"));
        assert!(told(libc::EPERM, Some("0")).contains("seccomp"));
        assert!(told(libc::ENOSYS, None).contains("5.10.0"));
        assert!(told(libc::EINVAL, None).contains("Linux 6.1"));
        assert!(told(libc::EMFILE, None).contains("ulimit -n"));
    }
}
