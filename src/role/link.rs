//! The line between supervisor and worker: one JSON object a line over a Unix socket pair.
//!
//! The worker finds its end as standard input, so that no descriptor number has to be agreed on.
//! A closed line is the other side's death: a worker then ends its calls in order and exits.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::queue::ArrayQueue;
use nix::sys::signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::base::config::Config;
use crate::control::cli::Slot;
use crate::control::protocol::{CallInfo, ListenerStatus, ShardStatus};
use crate::role::hop::HopSecret;

/// How often a worker says that it lives.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// A worker whose supervisor is gone ends its calls within less.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);
/// Reports that may wait for a supervisor that does not read; then the worker drops heartbeats.
const REPORTS_MAX: usize = 256;
/// Orders that may wait for the worker's signalling shard.
const ORDERS_MAX: usize = 256;

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum ToWorker {
    /// The first line: what to be.
    Start {
        /// Which slot.
        slot: Slot,
        /// The whole configuration.
        config: Box<Config>,
        /// What the node's own hops prove themselves with.
        hop_secret: HopSecret,
    },
    /// Tell the calls there are; answered by `FromWorker::Calls`.
    Calls {
        /// Comes back with the answer.
        query: u64,
    },
    /// From now on work by this one: new calls, limits, listeners.
    Config {
        /// The whole configuration; what takes effect at a start only is as it was.
        config: Box<Config>,
    },
    /// The TLS files have changed: load them anew.
    Tls,
    /// Place self-test calls through the own listeners and every media shard; answered by
    /// `FromWorker::Proof`.
    Prove,
    /// Keep the calls there are, take no new ones, and exit once they are over.
    Retire {
        /// Where new calls go: callers who come straight here are sent there. Empty: nowhere.
        successor: Vec<ListenerStatus>,
        /// Then what is left is ended as by `Stop`, in milliseconds.
        within_ms: u64,
    },
    /// Refuse new calls and OPTIONS, or take them again.
    Refuse {
        /// Refuse.
        on: bool,
    },
    /// End every call in order, store what was recorded, exit.
    Stop,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum FromWorker {
    /// Sockets are bound and the spool is recovered: calls may come.
    Ready {
        /// Its program's version.
        version: String,
        /// Where it listens.
        listeners: Vec<ListenerStatus>,
        /// Its media shards.
        shards: Vec<ShardStatus>,
        /// Recordings that an earlier worker left and this one finished.
        recovered: u64,
    },
    /// It listens elsewhere now.
    Listeners {
        /// All of them.
        listeners: Vec<ListenerStatus>,
    },
    /// It could not start.
    Failed {
        /// Why, for a person.
        reason: String,
    },
    /// To `ToWorker::Prove`: what went wrong, if anything did.
    Proof {
        /// For a person; `None`: all self-test calls were answered and heard.
        error: Option<String>,
    },
    /// One of its threads does not turn.
    Stalled(Stall),
    /// Its last call is over, and it exits in order: nobody has to go on for it.
    Over,
    /// It lives; every [`HEARTBEAT_INTERVAL`], from the signalling shard itself.
    Heartbeat(Heartbeat),
    /// To `ToWorker::Calls`.
    Calls {
        /// The query's number.
        query: u64,
        /// Oldest first.
        calls: Vec<CallInfo>,
    },
}

/// A thread that does not turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// `signalling` or `media-N`.
    pub thread: String,
    /// Since its last turn.
    pub for_ms: u64,
    /// What the kernel knows of it: state, what it waits in, its stack where that may be read.
    pub at: String,
}

/// A worker's counters; they grow from the process's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Calls now.
    pub calls_active: u64,
    /// Calls answered.
    pub calls_total: u64,
    /// Calls refused, by reason.
    pub refused_total: BTreeMap<String, u64>,
    /// Of its SIP loop and its mailbox, by name.
    pub counters: BTreeMap<String, u64>,
    /// Its media shards.
    pub shards: Vec<ShardStatus>,
    /// What it is short of, so that it refuses new calls or those for mailboxes.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// The worker's end, shared out to two small threads; the signalling shard only touches queues.
#[derive(Debug)]
pub struct WorkerLink {
    orders: Arc<ArrayQueue<Option<ToWorker>>>,
    reports: Sender<FromWorker>,
}

impl WorkerLink {
    /// Takes standard input as the line and reads its first order.
    ///
    /// # Errors
    /// Standard input is no socket, or its first line is not `Start`: not run by a supervisor.
    pub fn open() -> io::Result<(Self, Slot, Box<Config>, HopSecret)> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut reader = BufReader::new(stream.try_clone()?);
        let Some(ToWorker::Start { slot, config, hop_secret }) = read_line(&mut reader)? else {
            return Err(io::Error::other("the supervisor did not say what to be"));
        };
        let orders = Arc::new(ArrayQueue::new(ORDERS_MAX));
        let inbox = Arc::clone(&orders);
        thread::Builder::new().name("link-read".into()).spawn(move || {
            read_orders(reader, &inbox);
            // Without a supervisor nobody else would end a worker whose loop hangs.
            thread::sleep(ORPHAN_LIMIT);
            tracing::error!("the supervisor is gone and the worker does not end; it is killed");
            let _ = signal::kill(Pid::this(), signal::Signal::SIGKILL);
        })?;
        let (reports, outbox) = channel::bounded(REPORTS_MAX);
        thread::Builder::new().name("link-write".into()).spawn(move || write_reports(stream, &outbox))?;
        Ok((Self { orders, reports }, slot, config, hop_secret))
    }

    /// A line whose other end a test holds: the orders it gives, the reports it gets.
    #[cfg(test)]
    pub(crate) fn fake() -> (Self, Arc<ArrayQueue<Option<ToWorker>>>, Receiver<FromWorker>) {
        let orders = Arc::new(ArrayQueue::new(ORDERS_MAX));
        let (reports, outbox) = channel::bounded(REPORTS_MAX);
        (Self { orders: Arc::clone(&orders), reports }, orders, outbox)
    }

    /// The next order; `Some(None)` once the supervisor is gone.
    pub fn try_order(&self) -> Option<Option<ToWorker>> {
        self.orders.pop()
    }

    /// Queues a report. A supervisor that has not read hundreds of them gets no more; its own
    /// watchdog then decides.
    pub fn report(&self, report: FromWorker) {
        if self.reports.try_send(report).is_err() {
            tracing::warn!("the supervisor does not read; a report is dropped");
        }
    }
}

fn read_orders(mut reader: BufReader<UnixStream>, orders: &ArrayQueue<Option<ToWorker>>) {
    loop {
        let order = read_line(&mut reader).unwrap_or_else(|error| {
            tracing::error!(%error, "the line from the supervisor broke");
            None
        });
        let over = order.is_none();
        // The end of the line must get through: a full queue loses its oldest order instead.
        orders.force_push(order);
        if over {
            return;
        }
    }
}

fn read_line(reader: &mut BufReader<UnixStream>) -> io::Result<Option<ToWorker>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

fn write_reports(mut stream: UnixStream, reports: &Receiver<FromWorker>) {
    for report in reports {
        let sent = encode(&report).and_then(|line| stream.write_all(&line));
        if sent.is_err() {
            // The reader thread sees the same end and says so.
            return;
        }
    }
}

/// One object as a line.
///
/// # Errors
/// None in practice: every type here can be written as JSON.
pub fn encode(object: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listeners::{ListenRole, port_of};
    use crate::control::protocol::CalleeInfo;
    use crate::media::order::Codec;
    use crate::sip::flow::Transport;

    fn read<T: serde::de::DeserializeOwned>(line: &[u8]) -> T {
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line an object");
        serde_json::from_slice(line).unwrap()
    }

    fn shard() -> ShardStatus {
        ShardStatus {
            index: 1,
            cpu: Some(3),
            backend: "epoll".into(),
            backend_reason: Some("io_uring is switched off".into()),
            ports: Config::default().rtp.ports,
            legs: 7,
            counters: BTreeMap::from([("rx_packets".into(), u64::MAX)]),
        }
    }

    fn call() -> CallInfo {
        CallInfo {
            call_id: "a@b".into(),
            slot: "A".into(),
            drain_left_s: Some(3),
            from: "sip:a".into(),
            to: "sip:b".into(),
            mailbox: Some("1001".into()),
            gateway: "pbx".into(),
            security: "tls".into(),
            state: "recording".into(),
            duration_s: 5,
            codec: Some(Codec::Pcma),
            remote_media: Some("[2001:db8::1]:4000".parse().unwrap()),
            stats: None,
            callee: Some(CalleeInfo {
                route: "out".into(),
                gateway: "carrier".into(),
                number: "+4930".into(),
                tries: 2,
                call_id: "b@a".into(),
                security: "tcp".into(),
                codec: Some(Codec::Pcmu),
                remote_media: None,
                stats: None,
            }),
        }
    }

    /// Goal: what supervisor and worker say arrives as it was said, in one line each.
    /// Method: every message with every field set, written and read.
    #[test]
    fn every_message_survives_the_line() {
        let mut config = Config::default();
        config.node.name = "two\nlines \"quoted\"".into();
        let orders = [
            ToWorker::Start {
                slot: Slot::B,
                config: Box::new(config),
                hop_secret: HopSecret::random().unwrap(),
            },
            ToWorker::Calls { query: u64::MAX },
            ToWorker::Config { config: Box::default() },
            ToWorker::Tls,
            ToWorker::Prove,
            ToWorker::Retire {
                successor: vec![ListenerStatus {
                    role: "worker B".into(),
                    transport: Transport::Tls,
                    address: "[::1]:5068".parse().unwrap(),
                }],
                within_ms: 3_600_000,
            },
            ToWorker::Refuse { on: true },
            ToWorker::Stop,
        ];
        for order in orders {
            assert_eq!(read::<ToWorker>(&encode(&order).unwrap()), order);
        }
        let (shard, call) = (shard(), call());
        let heartbeat = Heartbeat {
            calls_active: 1,
            calls_total: 2,
            refused_total: BTreeMap::from([("no_mailbox".into(), 3)]),
            counters: BTreeMap::from([("sip_accepted".into(), 4)]),
            shards: vec![shard.clone()],
            trouble: Some("the disk for messages is full".into()),
        };
        let reports = [
            FromWorker::Ready {
                version: "1.2".into(),
                listeners: Vec::new(),
                shards: vec![shard],
                recovered: 4,
            },
            FromWorker::Listeners { listeners: Vec::new() },
            FromWorker::Proof { error: None },
            FromWorker::Proof { error: Some("no RTP came back".into()) },
            FromWorker::Stalled(Stall { thread: "media-0".into(), for_ms: 2000, at: "S\nfutex".into() }),
            FromWorker::Failed { reason: "no \u{1F4DE}".into() },
            FromWorker::Over,
            FromWorker::Heartbeat(heartbeat),
            FromWorker::Calls { query: 9, calls: vec![call] },
        ];
        for report in reports {
            assert_eq!(read::<FromWorker>(&encode(&report).unwrap()), report);
        }
    }

    /// Goal: orders arrive in order, a line cut short or the end of the line is the supervisor's
    /// death. Method: a socket pair, with and without the last newline.
    #[test]
    fn the_end_of_the_line_is_an_order_too() {
        for tail in [&b""[..], b"{\"order\":", b"nonsense\n"] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let orders = ArrayQueue::new(8);
            ours.write_all(&encode(&ToWorker::Calls { query: 1 }).unwrap()).unwrap();
            ours.write_all(tail).unwrap();
            drop(ours);
            read_orders(BufReader::new(theirs), &orders);
            assert_eq!(orders.pop(), Some(Some(ToWorker::Calls { query: 1 })));
            assert_eq!(orders.pop(), Some(None));
            assert!(orders.is_empty());
        }
    }

    /// Goal: the slots share the RTP range without overlap. Method: both halves of the default.
    #[test]
    fn slots_have_ports_of_their_own() {
        let config = Config::default();
        let [a, b] = [Slot::A, Slot::B].map(|slot| slot.rtp_ports(&config).unwrap());
        assert_ne!(a, b);
        let port = |slot| port_of(&config, ListenRole::Worker(slot), Transport::Tcp).unwrap();
        assert_ne!(port(Slot::A), port(Slot::B));
    }
}
