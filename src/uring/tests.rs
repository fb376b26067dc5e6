//! What every backend does, each alone on real loopback sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{Epoll, Forward, MediaIo, PerSocket, ProbeError, Receive, Steered, Waker, probe_steered};
use crate::base::clock;

const PATIENCE: Duration = Duration::from_secs(5);

/// Collects what arrives; `echo` sends it back with its first byte raised.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) datagrams: Vec<(u32, SocketAddr, Vec<u8>)>,
    /// When each came.
    pub(super) times: Vec<Instant>,
    pub(super) failed: Vec<u32>,
    pub(super) closed: Vec<u32>,
    pub(super) echo: bool,
}

impl Receive for Seen {
    fn datagram(
        &mut self,
        stream: u32,
        from: SocketAddr,
        at: Instant,
        bytes: &mut [u8],
        length: usize,
    ) -> Option<Forward> {
        self.datagrams.push((stream, from, bytes[..length].to_vec()));
        self.times.push(at);
        if !self.echo {
            return None;
        }
        *bytes[..length].first_mut()? += 1;
        Some(Forward { stream, length, to: from })
    }
    fn send_failed(&mut self, stream: u32) {
        self.failed.push(stream);
    }
    fn closed(&mut self, stream: u32) {
        self.closed.push(stream);
    }
}

/// A backend that can be made for a test.
pub(super) trait Made: MediaIo + Sized {
    fn made(streams: usize, waker: Arc<Waker>) -> Self;
}

impl Made for PerSocket {
    fn made(streams: usize, waker: Arc<Waker>) -> Self {
        Self::new(clock::now(), streams, waker).unwrap()
    }
}

impl Made for Epoll {
    fn made(streams: usize, waker: Arc<Waker>) -> Self {
        Self::new(streams, waker).unwrap()
    }
}

impl Made for Steered {
    fn made(streams: usize, waker: Arc<Waker>) -> Self {
        Self::new(streams, waker).unwrap()
    }
}

pub(super) fn backend<I: Made>(streams: usize) -> I {
    I::made(streams, Arc::new(Waker::new().unwrap()))
}

/// Whether sockets can be steered; if not, says why.
pub(crate) fn may_steer() -> bool {
    static PROBED: LazyLock<Result<(), ProbeError>> = LazyLock::new(probe_steered);
    PROBED.as_ref().inspect_err(|error| eprintln!("skipped: {error}")).is_ok()
}

/// Runs each of these bodies on every backend, as `uring::name` and `epoll::name`.
macro_rules! on_every_backend {
    ($($name:ident,)*) => {
        mod uring {
            $(#[test] fn $name() { super::$name::<super::PerSocket>(); })*
        }
        mod epoll {
            $(#[test] fn $name() { super::$name::<super::Epoll>(); })*
        }
        mod steered {
            $(#[test] fn $name() {
                if super::may_steer() {
                    super::$name::<super::Steered>();
                }
            })*
        }
    };
}

/// A socket for the backend with a large queue, and its address.
pub(super) fn socket(ip: IpAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket: Socket = UdpSocket::bind((ip, 0))?.into();
    socket.set_recv_buffer_size(2 << 20)?;
    let address = socket.local_addr()?.as_socket().expect("an internet address");
    Ok((socket, address))
}

pub(super) fn v4() -> (Socket, SocketAddr) {
    socket(Ipv4Addr::LOCALHOST.into()).unwrap()
}

pub(super) fn turn(io: &mut impl MediaIo, seen: &mut Seen) {
    let now = clock::now();
    io.reap(now, seen);
    io.wait(1, now + Duration::from_millis(1)).unwrap();
}

pub(super) fn until(io: &mut impl MediaIo, seen: &mut Seen, done: impl Fn(&Seen) -> bool) {
    let end = clock::now() + PATIENCE;
    while !done(seen) {
        assert!(clock::now() < end, "it never came: {:?}", io.counters());
        turn(io, seen);
    }
}

on_every_backend! {
    datagrams_arrive_with_their_source,
    a_backlog_arrives_whole_and_in_order,
    buffers_never_leak,
    replies_leave_from_the_receive_buffer,
    batches_larger_than_the_queue_leave_whole,
    refused_sends_are_reported,
    icmp_errors_do_not_end_reception,
    reused_streams_get_only_their_own_datagrams,
    closing_between_receives_closes_once,
    dropping_an_armed_backend_frees_its_ports_at_once,
    waits_end_at_their_deadline_and_parks_at_a_notification,
    what_waits_is_read_when_asked_for_with_its_time,
    nothing_is_lost_between_rest_and_waking,
    a_flood_is_read_in_shares,
    a_stream_at_rest_sends_and_closes_like_any,
}

/// Goal: datagrams and their source arrive over IPv4 and IPv6. Method: one each (IPv6 only where
/// the machine has it).
fn datagrams_arrive_with_their_source<I: Made>() {
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let Ok((receiver, to)) = socket(ip) else { continue };
        let (mut io, mut seen) = (backend::<I>(1), Seen::default());
        io.open(0, receiver);
        let peer = UdpSocket::bind((ip, 0)).unwrap();
        peer.send_to(b"hello", to).unwrap();
        until(&mut io, &mut seen, |seen| !seen.datagrams.is_empty());
        assert_eq!(seen.datagrams, [(0, peer.local_addr().unwrap(), b"hello".to_vec())]);
    }
}

/// Goal: a backlog is received whole and in order. Method: 400 datagrams queue up before the first
/// turn.
fn a_backlog_arrives_whole_and_in_order<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    queue_up_400(&mut io, &mut seen);
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 400);
    let order: Vec<u16> =
        seen.datagrams.iter().map(|(_, _, bytes)| u16::from_be_bytes([bytes[0], bytes[1]])).collect();
    assert_eq!(order, (0..400).collect::<Vec<u16>>());
}

/// Opens stream 0 and sends it the numbers up to 400, all before a turn takes the first.
pub(super) fn queue_up_400(io: &mut impl MediaIo, seen: &mut Seen) {
    let (receiver, to) = v4();
    io.open(0, receiver);
    turn(io, seen);
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for n in 0..400_u16 {
        peer.send_to(&n.to_be_bytes(), to).unwrap();
    }
    // One wait that takes all the kernel has.
    io.wait(400, clock::now() + Duration::from_millis(20)).unwrap();
}

/// Goal: every receive buffer comes back, whatever happened to its datagram.
/// Method: 4000 datagrams, more than a backend has room for: echoed, empty, too long, for a closed stream.
fn buffers_never_leak<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen { echo: true, ..Seen::default() });
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let noise: [&[u8]; 4] = [b"echo me", &[], &[1; 1800], &[1; 3000]];
    for round in 0..20_usize {
        let (receiver, to) = v4();
        io.open(0, receiver);
        turn(&mut io, &mut seen);
        for n in 0..200_usize {
            peer.send_to(noise[n % 4], to).unwrap();
            if n % 20 == 0 {
                turn(&mut io, &mut seen);
            }
        }
        io.close(0);
        until(&mut io, &mut seen, |seen| seen.closed.len() == round + 1);
    }
    seen.datagrams.clear();
    let (receiver, to) = v4();
    io.open(0, receiver);
    for n in 0..250_u8 {
        peer.send_to(&[n], to).unwrap();
    }
    turn(&mut io, &mut seen);
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 250);
    assert_eq!(io.counters().unknown, 0);
}

/// Goal: a reply leaves from the receive buffer, rewritten in place. Method: echo a number, raised
/// by one.
fn replies_leave_from_the_receive_buffer<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen { echo: true, ..Seen::default() });
    let (receiver, to) = v4();
    io.open(0, receiver);
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    peer.set_nonblocking(true).unwrap();
    for n in 0..100 {
        peer.send_to(&[n, 7, 7], to).unwrap();
    }
    let (mut heard, mut buffer, end) = (Vec::new(), [0; 10], clock::now() + PATIENCE);
    while heard.len() < 100 {
        assert!(clock::now() < end, "{heard:?}");
        turn(&mut io, &mut seen);
        while let Ok((length, from)) = peer.recv_from(&mut buffer) {
            assert_eq!((length, from, buffer[1]), (3, to, 7));
            heard.push(buffer[0]);
        }
    }
    assert_eq!(heard, (1..=100).collect::<Vec<u8>>());
}

/// Goal: a batch larger than the submission queue leaves whole and in order.
/// Method: 3000 sends without a wait in between; a ring's queue holds 1024.
fn batches_larger_than_the_queue_leave_whole<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let (sender, from) = v4();
    let (receiver, to) = v4();
    io.open(0, sender);
    for n in 0..3000_u16 {
        assert!(io.send(0, &mut |out| {
            out[..2].copy_from_slice(&n.to_be_bytes());
            Some((2, to))
        }));
    }
    turn(&mut io, &mut seen);
    let receiver = UdpSocket::from(receiver);
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 10];
    for n in 0..3000_u16 {
        let (length, source) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], source), (&n.to_be_bytes()[..], from));
    }
    assert_eq!(io.counters().send_errors, 0);
}

/// Goal: a refused send is reported for its stream. Method: broadcast without permission (EACCES).
fn refused_sends_are_reported<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(4), Seen::default());
    io.open(3, v4().0);
    let to: SocketAddr = "255.255.255.255:9".parse().unwrap();
    // Told at once or at a reap, but once.
    if io.send(3, &mut |_| Some((10, to))) {
        until(&mut io, &mut seen, |seen| !seen.failed.is_empty());
        assert_eq!(seen.failed, [3]);
    }
    turn(&mut io, &mut seen);
    assert!(seen.failed.len() <= 1, "{seen:?}");
    assert_eq!(io.counters().send_errors, 1);
}

/// Goal: an ICMP error, which ends the receive of a connected socket, does not end reception.
/// Method: connect to a closed port, send, let a peer appear there.
fn icmp_errors_do_not_end_reception<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let (receiver, to) = v4();
    let vanished = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = vanished.local_addr().unwrap();
    drop(vanished);
    receiver.connect(&peer.into()).unwrap();
    io.open(0, receiver);
    turn(&mut io, &mut seen);
    io.send(0, &mut |_| Some((10, peer)));
    let end = clock::now() + PATIENCE;
    while io.counters().rearms_error == 0 {
        assert!(clock::now() < end, "{:?}", io.counters());
        turn(&mut io, &mut seen);
    }
    UdpSocket::bind(peer).unwrap().send_to(b"back", to).unwrap();
    until(&mut io, &mut seen, |seen| !seen.datagrams.is_empty());
    assert_eq!(seen.datagrams[0].2, b"back");
}

/// Goal: a stream's number can be used again at once, and the old socket's datagrams never reach
/// the new user. Method: 100 times close with datagrams under way, reopen on `closed`.
fn reused_streams_get_only_their_own_datagrams<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for round in 0..100_u8 {
        let (receiver, to) = v4();
        io.open(0, receiver);
        turn(&mut io, &mut seen);
        seen.datagrams.clear();
        for _ in 0..10 {
            peer.send_to(&[round], to).unwrap();
        }
        turn(&mut io, &mut seen);
        io.close(0);
        until(&mut io, &mut seen, |seen| seen.closed.len() == usize::from(round) + 1);
        assert!(seen.datagrams.iter().all(|(_, _, bytes)| bytes == &[round]));
    }
    assert_eq!(seen.closed.len(), 100);
}

/// Goal: closing while the receive is not in flight works too. Method: an empty datagram ends it;
/// close before it may start again.
fn closing_between_receives_closes_once<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let (receiver, to) = v4();
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    io.open(0, receiver);
    turn(&mut io, &mut seen);
    peer.send_to(&[], to).unwrap();
    until(&mut io, &mut seen, |seen| !seen.datagrams.is_empty());
    io.close(0);
    io.close(0);
    until(&mut io, &mut seen, |seen| !seen.closed.is_empty());
    for _ in 0..10 {
        turn(&mut io, &mut seen);
    }
    assert_eq!(seen.closed, [0]);
}

/// Goal: dropping the backend with receives in flight frees the ports at once.
/// Method: 100 armed sockets; bind their ports again right after.
fn dropping_an_armed_backend_frees_its_ports_at_once<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(100), Seen::default());
    let mut addresses = Vec::new();
    for stream in 0..100 {
        let (receiver, address) = v4();
        io.open(stream, receiver);
        addresses.push(address);
    }
    turn(&mut io, &mut seen);
    drop(io);
    for address in addresses {
        UdpSocket::bind(address).unwrap();
    }
}

/// Goal: `wait` keeps its deadline and a notification ends `park`. Method: time both.
fn waits_end_at_their_deadline_and_parks_at_a_notification<I: Made>() {
    let waker = Arc::new(Waker::new().unwrap());
    let mut io = I::made(1, Arc::clone(&waker));
    let began = clock::now();
    io.wait(1, began + Duration::from_millis(20)).unwrap();
    assert!(clock::now() - began >= Duration::from_millis(20));
    for _ in 0..3 {
        let notify = std::thread::spawn({
            let waker = Arc::clone(&waker);
            move || waker.notify()
        });
        io.park(clock::now() + Duration::from_secs(60)).unwrap();
        notify.join().unwrap();
        io.reap(clock::now(), &mut Seen::default());
    }
    assert!(clock::now() - began < PATIENCE);
}

/// Opens stream 0 at rest; where to send to it.
fn resting<I: Made>(io: &mut I, seen: &mut Seen) -> SocketAddr {
    let (receiver, to) = v4();
    io.open(0, receiver);
    turn(io, seen);
    io.rest(0);
    for _ in 0..3 {
        turn(io, seen);
    }
    to
}

fn phone() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// The first bytes of what was seen.
fn first_bytes(seen: &Seen) -> Vec<u8> {
    seen.datagrams.iter().map(|(_, _, bytes)| bytes[0]).collect()
}

/// Goal: a stream at rest brings nothing by itself; when asked, all that waits, in order, with the time each
/// datagram came at; after waking datagrams come by themselves. Method: three, 30 ms apart, an empty one among
/// them; then one more.
fn what_waits_is_read_when_asked_for_with_its_time<I: Made>() {
    const PAUSE: Duration = Duration::from_millis(30);
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let (to, peer) = (resting(&mut io, &mut seen), phone());
    let began = clock::now();
    for datagram in [&b"one"[..], b"", b"three"] {
        std::thread::sleep(PAUSE);
        peer.send_to(datagram, to).unwrap();
    }
    std::thread::sleep(PAUSE);
    turn(&mut io, &mut seen);
    assert!(seen.datagrams.is_empty(), "{seen:?}");
    let now = clock::now();
    io.reap(now, &mut seen);
    assert!(io.read(0, &mut seen));
    let from = peer.local_addr().unwrap();
    let expected = [&b"one"[..], b"", b"three"].map(|bytes| (0, from, bytes.to_vec()));
    assert_eq!(seen.datagrams, expected);
    // The kernel counts by another clock, which may be slewed.
    let apart = PAUSE * 9 / 10;
    let times = [&[began][..], &seen.times, &[now]].concat();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= apart), "{times:?}");
    io.wake(0);
    peer.send_to(b"four", to).unwrap();
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 4);
    assert!(io.read(0, &mut seen), "there is nothing to be asked for");
    assert_eq!(seen.datagrams[3].2, b"four");
}

/// Goal: every datagram comes once and in order, whenever a stream goes to rest or wakes. Method: numbers are
/// sent all along while it does both, with and without a turn in between.
fn nothing_is_lost_between_rest_and_waking<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let (receiver, to) = v4();
    let peer = phone();
    io.open(0, receiver);
    let mut sent = 0..=u8::MAX;
    let mut send = || sent.next().map(|number| peer.send_to(&[number], to).unwrap());
    for round in 0..51 {
        send();
        io.rest(0);
        send();
        if round % 3 > 0 {
            turn(&mut io, &mut seen);
        }
        send();
        io.read(0, &mut seen);
        send();
        if round % 3 > 1 {
            turn(&mut io, &mut seen);
        }
        io.wake(0);
        send();
        turn(&mut io, &mut seen);
    }
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 255);
    assert_eq!(first_bytes(&seen), (0..255).collect::<Vec<u8>>());
}

/// Goal: a flood costs a bounded time when it is read and is told; nothing of it is lost, not even to whoever
/// wakes in the middle of it. Method: 250 wait, are read as often as there are more, and 250 again.
fn a_flood_is_read_in_shares<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen::default());
    let (to, peer) = (resting(&mut io, &mut seen), phone());
    let numbers: Vec<u8> = (0..250).collect();
    let flood = || numbers.iter().for_each(|number| assert!(peer.send_to(&[*number], to).is_ok()));
    flood();
    let mut shares = 1;
    while !io.read(0, &mut seen) {
        shares += 1;
    }
    assert_eq!((first_bytes(&seen), shares), (numbers.clone(), 5));
    flood();
    assert!(!io.read(0, &mut seen));
    io.wake(0);
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 500);
    assert_eq!(first_bytes(&seen)[250..], numbers);
}

/// Goal: a stream at rest answers from what it read, sends, and closes once; its number and port are then
/// free. Method: an echo, a packet, a close with a datagram waiting, and another socket.
fn a_stream_at_rest_sends_and_closes_like_any<I: Made>() {
    let (mut io, mut seen) = (backend::<I>(1), Seen { echo: true, ..Seen::default() });
    let (to, peer) = (resting(&mut io, &mut seen), phone());
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(&[1], to).unwrap();
    assert!(io.read(0, &mut seen));
    let from = peer.local_addr().unwrap();
    assert!(io.send(0, &mut |out| {
        out[0] = 7;
        Some((1, from))
    }));
    turn(&mut io, &mut seen);
    let mut heard = [0; 2];
    for byte in &mut heard {
        assert_eq!(peer.recv_from(std::slice::from_mut(byte)).unwrap(), (1, to));
    }
    assert_eq!(heard, [2, 7]);
    peer.send_to(&[3], to).unwrap();
    io.close(0);
    until(&mut io, &mut seen, |seen| !seen.closed.is_empty());
    assert_eq!((seen.closed.as_slice(), seen.datagrams.len()), (&[0][..], 1));
    io.rest(0);
    io.wake(0);
    assert!(io.read(0, &mut seen));
    io.open(0, UdpSocket::bind(to).unwrap().into());
    peer.send_to(&[4], to).unwrap();
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 2);
}
