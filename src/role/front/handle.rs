//! The supervisor's end of the front: it starts it, orders, hears, and passes its sockets on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, Sender};
use crossbeam::queue::ArrayQueue;

use super::{FrontRole, Hop, HopPorts, listeners};
use crate::base::clock;
use crate::base::config::Config;
use crate::control::protocol::ListenerStatus;
use crate::role::hop::HopSecret;
use crate::role::listening::{Change, Listening, Open, OpenError};
use crate::role::supervisor::ServeError;
use crate::role::user_agent;
use crate::signal::{self, Counters, Listener, Passed, PassedConnection, SignalOrder, TlsSetup};
use crate::sip::flow::Transport;

/// Orders that may wait; the front takes all of them every `PUMP_INTERVAL`.
const ORDERS_MAX: usize = 256;
/// The front takes an order within this, or it is stuck.
const TAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// A loop that passes its sockets on answers this much later at most.
const PASS_TIMEOUT: Duration = Duration::from_secs(2);

/// Supervisor to front.
#[derive(Debug)]
pub enum FrontOrder {
    /// What a listener that is about to open is for.
    Listener {
        /// Its index in flows.
        index: u16,
        /// Whose it is.
        hop: Hop,
    },
    /// From now on work by this one.
    Config {
        /// The whole configuration.
        config: Arc<Config>,
        /// Told once it is in force.
        taken: Sender<()>,
    },
    /// The ports of the worker that takes new calls; `None`: there is none.
    Worker(Option<HopPorts>),
    /// Refuse new calls and OPTIONS at both hops, or take them again.
    Drain(bool),
    /// Finish what is under way and leave.
    Stop,
}

/// Refused calls by reason, since the start.
type Counts = BTreeMap<String, u64>;

/// Front to supervisor: at once when the worker changes, else every half second.
#[derive(Debug, Clone, Default)]
pub(super) struct FrontReport {
    pub(super) refused: Counts,
    pub(super) worker: Option<HopPorts>,
}

/// What one program's front gives to the next one's.
#[derive(Debug, Default)]
pub struct PassedFront {
    /// Listeners.
    pub listeners: Vec<(Hop, Listener, OwnedFd)>,
    /// Connections that were accepted; each names its listener by its place above.
    pub connections: Vec<PassedConnection>,
    /// The ports of the worker that takes new calls.
    pub worker: Option<HopPorts>,
    /// New calls are refused.
    pub draining: bool,
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Front {
    orders: Arc<ArrayQueue<FrontOrder>>,
    reports: Arc<ArrayQueue<FrontReport>>,
    last: FrontReport,
    draining: bool,
    listening: Listening<Hop>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Queues an order. The queue outlasts any burst of worker restarts; the newest order wins.
    pub fn send(&self, order: FrontOrder) {
        self.orders.force_push(order);
    }

    /// Refuses new calls and OPTIONS at both hops, or takes them again.
    pub fn drain(&mut self, on: bool) {
        self.draining = on;
        self.send(FrontOrder::Drain(on));
    }

    /// Takes the newest counters over.
    pub fn collect(&mut self) {
        while let Some(report) = self.reports.pop() {
            self.last = report;
        }
    }

    /// Where new calls go now; an order takes a moment to get here.
    pub fn worker(&self) -> Option<HopPorts> {
        self.last.worker
    }

    /// Refused calls by reason.
    pub fn refused(&self) -> &Counts {
        &self.last.refused
    }

    /// What their SIP loop met, by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        user_agent::counters("sip_", &*self.counters)
    }

    /// Where router and service listen now.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        let status = |open: &Open<Hop>| ListenerStatus {
            role: open.owner.name().to_owned(),
            transport: open.listener.transport,
            address: open.address,
        };
        self.listening.open().iter().map(status).collect()
    }

    /// Opens what `config` asks for beside what is open; `tls` is its setup.
    ///
    /// Waits for the loop, a turn of it as a rule and a second where an address is in use.
    ///
    /// # Errors
    /// The first listener that cannot be bound; nothing has changed then.
    pub fn prepare(
        &mut self,
        config: &Config,
        tls: Option<&Arc<TlsSetup>>,
    ) -> Result<Change<Hop>, OpenError> {
        let had_tls = self.listening.open().iter().any(|open| open.listener.transport == Transport::Tls);
        if let Some(tls) = tls
            && !had_tls
        {
            // Nobody is connected who could be judged by it.
            self.listening.order(SignalOrder::Tls(Arc::clone(tls)));
        }
        let orders = &self.orders;
        let mut change = self.listening.begin(&listeners::wanted(config), |index, hop| {
            orders.force_push(FrontOrder::Listener { index, hop });
        });
        match change.wait(clock::now()) {
            Ok(()) => Ok(change),
            Err(error) => {
                self.listening.abort(change);
                Err(error)
            }
        }
    }

    /// Puts in force what was prepared: closes the listeners `config` does not ask for.
    pub fn commit(&mut self, change: Change<Hop>, config: &Arc<Config>, tls: Option<&Arc<TlsSetup>>) {
        let (taken, in_force) = channel::bounded(1);
        self.send(FrontOrder::Config { config: Arc::clone(config), taken });
        self.listening.commit(change);
        self.listening.order(SignalOrder::Limits(user_agent::connection_limits(config)));
        if let Some(tls) = tls {
            self.renew_tls(tls);
        }
        // Whoever asked for the change may then rely on it; a turn of the loop as a rule.
        if in_force.recv_timeout(TAKE_TIMEOUT).is_err() {
            tracing::error!("router and service do not take their new configuration");
        }
    }

    /// Takes back what was prepared.
    pub fn abort(&mut self, change: Change<Hop>) {
        self.listening.abort(change);
    }

    /// New connections get this; those whose peer it does not take are closed.
    pub fn renew_tls(&self, tls: &Arc<TlsSetup>) {
        self.listening.order(SignalOrder::Tls(Arc::clone(tls)));
    }

    /// Gives listeners and connections away and ends the thread. What is under way finishes within
    /// `within`; forwarded INVITEs without an answer then get 503. `None`: the front does not answer.
    pub fn pass_on(&mut self, within: Duration) -> Option<PassedFront> {
        let (passed, answer) = channel::bounded(1);
        self.listening.order(SignalOrder::PassOn { within, passed });
        let Passed { mut listeners, mut connections } = answer.recv_timeout(within + PASS_TIMEOUT).ok()?;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the front signalling shard had panicked");
        }
        self.collect();
        let open = self.listening.open();
        for connection in &mut connections {
            // Only the router's listeners change at run time, and the first one is the router's.
            let place = open.iter().position(|own| own.index == connection.listener).unwrap_or(0);
            connection.listener = u16::try_from(place).unwrap_or(0);
        }
        let mut socket = |index: u16| {
            let own = listeners.iter().position(|(place, _)| *place == index)?;
            Some(listeners.swap_remove(own).1)
        };
        let listeners = open.iter().filter_map(|own| Some((own.owner, own.listener, socket(own.index)?)));
        let listeners = listeners.collect();
        Some(PassedFront { listeners, connections, worker: self.last.worker, draining: self.draining })
    }

    /// Ends the thread.
    pub fn stop(&mut self) {
        self.send(FrontOrder::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the front signalling shard had panicked");
        }
    }
}

/// Starts the shard; returns once its sockets are bound. `passed`: those of the program before.
///
/// # Errors
/// A port that is taken, or no thread.
pub fn spawn(
    config: &Config,
    tls: Option<Arc<TlsSetup>>,
    hop_secret: HopSecret,
    passed: Option<PassedFront>,
) -> Result<Front, ServeError> {
    let (worker, draining) = passed.as_ref().map_or((None, false), |p| (p.worker, p.draining));
    let (listeners, passed) = match passed {
        None => (listeners::wanted(config), Passed::default()),
        Some(PassedFront { listeners, connections, .. }) => {
            let sockets = (0_u16..).zip(listeners);
            let (known, sockets) =
                sockets.map(|(index, (hop, listener, socket))| ((hop, listener), (index, socket))).unzip();
            (known, Passed { listeners: sockets, connections })
        }
    };
    let orders = Arc::new(ArrayQueue::new(ORDERS_MAX));
    let reports = Arc::new(ArrayQueue::new(4));
    let signal_config = user_agent::signal_config(config, tls, listeners.iter().map(|(_, l)| *l).collect());
    let queues = (Arc::clone(&orders), Arc::clone(&reports));
    let mut role =
        FrontRole::new(config, &listeners, queues, Arc::clone(&signal_config.counters), hop_secret)?;
    (role.worker, role.draining) = (worker, draining);
    let counters = Arc::clone(&signal_config.counters);
    let loop_orders = Arc::clone(&signal_config.orders);
    let (bound, binding) = channel::bounded(1);
    let body = move || {
        let report_bound = move |result| {
            // The spawner waits for exactly this one result.
            let _ = bound.send(result);
        };
        // A failed bind is the spawner's to tell.
        if let Err(error) = signal::run_with(signal_config, passed, role, report_bound) {
            tracing::debug!(%error, "the front signalling shard ended");
        }
    };
    let thread = thread::Builder::new().name("sip-front".into()).spawn(body)?;
    let addresses = binding.recv().unwrap_or_else(|_| Err(io::Error::other("the shard died at its start")));
    let addresses = addresses.map_err(|error| listeners::listen_error(&listeners, error))?;
    let listening = Listening::new(loop_orders, &listeners, &addresses);
    let last = FrontReport { worker, ..FrontReport::default() };
    Ok(Front { orders, reports, last, draining, listening, counters, thread: Some(thread) })
}
