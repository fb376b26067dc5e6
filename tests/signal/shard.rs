//! A shard on a thread of its own, its role, and what talks to it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use voxring::signal::{
    ConnectionLimits, Counters, Listener, Passed, Role, SignalConfig, SignalOrder, run_with,
};
use voxring::sip::flow::{Destination, Flow, FlowId, PeerNames, Transmit, Transport};
use voxring::sip::message::{Message, Method, Response};

/// Nothing on loopback takes this long; a test that waits it out fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What the role saw.
#[derive(Debug)]
pub(crate) enum Seen {
    Message(Flow, Message),
    Closed(FlowId),
    Failed(Transmit),
    Secured(Flow, Option<Arc<PeerNames>>),
}

/// Answers OPTIONS with 200 and whatever `send` brings.
pub(crate) struct TestRole {
    pub(crate) out: VecDeque<Transmit>,
    pub(crate) send: Receiver<Transmit>,
    pub(crate) seen: Sender<Seen>,
    pub(crate) finish: Arc<AtomicBool>,
    pub(crate) timer: Option<Instant>,
    /// The listener at which nobody is known; `u16::MAX`: none.
    pub(crate) closed_to_all: Arc<AtomicU16>,
    /// The name every TLS server must have.
    pub(crate) tls_name: Option<String>,
}

impl Role for TestRole {
    fn admits(&mut self, _: Instant, listener: u16, _: SocketAddr) -> bool {
        listener != self.closed_to_all.load(Ordering::Relaxed)
    }

    fn tls_name(&self, _: SocketAddr) -> Option<String> {
        self.tls_name.clone()
    }

    fn handle_secured(&mut self, _: Instant, flow: Flow, peer: Option<Arc<PeerNames>>) {
        let _ = self.seen.send(Seen::Secured(flow, peer));
    }

    fn handle_message(&mut self, now: Instant, flow: Flow, message: Message) {
        if let Message::Request(request) = &message {
            if request.method == Method::Options {
                self.answer(flow, &message);
            } else if request.method == Method::Info {
                self.timer = Some(now + Duration::from_millis(30));
            }
        }
        let _ = self.seen.send(Seen::Message(flow, message));
    }

    fn handle_flow_closed(&mut self, _: Instant, flow: FlowId) {
        let _ = self.seen.send(Seen::Closed(flow));
    }

    fn handle_send_failed(&mut self, _: Instant, transmit: &Transmit) {
        let _ = self.seen.send(Seen::Failed(transmit.clone()));
    }

    fn handle_timeout(&mut self, now: Instant) {
        let due = self.timer.take().expect("a timer runs");
        assert!(due <= now);
        self.finish.store(true, Ordering::Relaxed);
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timer
    }

    fn pump(&mut self, _: Instant) -> Duration {
        self.out.extend(self.send.try_iter());
        Duration::from_millis(5)
    }

    fn is_finished(&self) -> bool {
        self.finish.load(Ordering::Relaxed)
    }
}

impl TestRole {
    fn answer(&mut self, flow: Flow, message: &Message) {
        let Message::Request(request) = message else { return };
        let response = Response::for_request(request, 200, "OK");
        let bytes = Message::Response(response).to_bytes();
        self.out.push_back(Transmit { destination: Destination::Flow(flow), bytes });
    }
}

/// A shard on its own thread; ends when dropped.
pub(crate) struct Shard {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) seen: Receiver<Seen>,
    pub(crate) send: Sender<Transmit>,
    pub(crate) orders: Arc<ArrayQueue<SignalOrder>>,
    pub(crate) closed_to_all: Arc<AtomicU16>,
    finish: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Shard {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut SignalConfig)) -> Self {
        Self::start_named(None, change)
    }

    /// `tls_name` is the name its TLS servers must have.
    pub(crate) fn start_named(tls_name: Option<String>, change: impl FnOnce(&mut SignalConfig)) -> Self {
        Self::start_all(Passed::default(), tls_name, change)
    }

    /// Goes on with what another one has passed on.
    pub(crate) fn start_over(passed: Passed) -> Self {
        Self::start_all(passed, None, |_| {})
    }

    fn start_all(passed: Passed, tls_name: Option<String>, change: impl FnOnce(&mut SignalConfig)) -> Self {
        let listener = |transport| Listener { transport, address: (Ipv4Addr::LOCALHOST, 0).into() };
        let counters = Arc::new(Counters::default());
        let mut config = SignalConfig {
            listeners: vec![listener(Transport::Tcp), listener(Transport::Udp)],
            connections_max: 16,
            idle_timeout: PATIENCE,
            message_timeout: PATIENCE,
            limits: ConnectionLimits::default(),
            tls: None,
            orders: Arc::new(ArrayQueue::new(16)),
            cpu: Some(0),
            counters: Arc::clone(&counters),
        };
        change(&mut config);
        let finish = Arc::new(AtomicBool::new(false));
        let (send, sends) = mpsc::channel();
        let (seen_by_role, seen) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let stop = Arc::clone(&finish);
        let orders = Arc::clone(&config.orders);
        let closed_to_all = Arc::new(AtomicU16::new(u16::MAX));
        let closed = Arc::clone(&closed_to_all);
        let thread = std::thread::spawn(move || {
            let role = TestRole {
                out: VecDeque::new(),
                send: sends,
                seen: seen_by_role,
                finish: stop,
                timer: None,
                closed_to_all: closed,
                tls_name,
            };
            run_with(config, passed, role, |bound| tell.send(bound).expect("the test waits"))
        });
        let addresses = told.recv_timeout(PATIENCE).expect("bound is called").expect("bound");
        Self { addresses, counters, seen, send, orders, closed_to_all, finish, thread: Some(thread) }
    }

    pub(crate) fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.addresses[0]).expect("listening");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client
    }

    /// Gives an order that the loop takes at its next pump.
    pub(crate) fn order(&self, order: SignalOrder) {
        self.orders.push(order).expect("room for an order");
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("the role sees something")
    }

    /// Waits until a count is reached.
    pub(crate) fn wait_for(&self, what: &str, count: impl Fn(&Counters) -> u64, least: u64) {
        for _ in 0..500 {
            if count(&self.counters) >= least {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}: {} instead of {least}", count(&self.counters));
    }

    pub(crate) fn join(&mut self) -> std::io::Result<()> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("no panic in the shard"))
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.finish.store(true, Ordering::Relaxed);
        let ended = self.join();
        if !std::thread::panicking() {
            ended.expect("an orderly end");
        }
    }
}

pub(crate) fn request(method: &str, cseq: u32, body: &str) -> String {
    format!(
        "{method} sip:test@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bK{cseq}\r\n\
         From: <sip:a@127.0.0.1>;tag=1\r\nTo: <sip:test@127.0.0.1>\r\nCall-ID: {cseq}@test\r\n\
         CSeq: {cseq} {method}\r\nMax-Forwards: 70\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn options(cseq: u32) -> String {
    request("OPTIONS", cseq, "")
}

/// Reads until `count` responses with empty bodies came, and gives their status and CSeq.
pub(crate) fn responses(client: &mut impl Read, count: usize) -> Vec<(String, String)> {
    let mut text = String::new();
    let mut buffer = [0; 65_536];
    while text.matches("\r\n\r\n").count() < count {
        let len = client.read(&mut buffer).expect("a response");
        assert!(len > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..len]).expect("text"));
    }
    assert!(text.ends_with("\r\n\r\n"), "{text:?}");
    let line = |head: &str, start: &str| {
        head.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned()
    };
    text.split_terminator("\r\n\r\n").map(|head| (line(head, "SIP/2.0 "), line(head, "CSeq: "))).collect()
}

pub(crate) fn ok(cseq: u32) -> (String, String) {
    ("200 OK".to_owned(), format!("{cseq} OPTIONS"))
}

/// True when the peer has closed; what it sent before is thrown away.
pub(crate) fn is_closed(client: &mut impl Read) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof);
            }
        }
    }
}

pub(crate) fn to(transport: Transport, remote: SocketAddr, listener: u16, bytes: String) -> Transmit {
    Transmit { destination: Destination::Address { transport, remote, listener }, bytes: Bytes::from(bytes) }
}

/// For tests that spoil what they send: a seed, numbers below a bound, and how long to go on. The seed is
/// printed; `VOXRING_SEED` replays it, `VOXRING_FUZZ_SECONDS` (default 2) sets the time. `test` is
/// what selects the test.
#[expect(clippy::disallowed_methods, reason = "a seed, not protocol time")]
pub(crate) fn fuzz(test: &str) -> (u64, impl FnMut(usize) -> usize, Duration) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("VOXRING_SEED").unwrap_or(age.map_or(0, |age| age.as_secs()));
    println!("VOXRING_SEED={seed} cargo test --test signal -- {test}");
    let mut state = seed | 1;
    let random = move |bound: usize| {
        // Xorshift: plain and good enough to choose bytes.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % 0xFFFF_FFFF).expect("it has 32 bits") % bound
    };
    (seed, random, Duration::from_secs(number("VOXRING_FUZZ_SECONDS").unwrap_or(2)))
}
