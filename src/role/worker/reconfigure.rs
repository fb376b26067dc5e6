//! A new configuration for a running worker.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crossbeam::channel::Receiver;
use crossbeam::queue::ArrayQueue;

use crate::base::clock;
use crate::base::config::Config;
use crate::control::tls;
use crate::role::link::FromWorker;
use crate::role::listening::{Change, Listening, Open};
use crate::role::user_agent;
use crate::role::worker::calls::Calls;
use crate::role::worker::start;
use crate::signal::{Listener, SignalOrder};
use crate::sip::flow::Transport;
use crate::uring::SocketLine;

/// The worker's orders to its own SIP loop.
#[derive(Debug)]
pub struct Edge {
    listening: Listening<()>,
    /// Listeners on their way.
    change: Option<Change<()>>,
    /// Who keeps listeners for the next worker.
    line: Option<Arc<SocketLine>>,
}

impl Edge {
    /// Of a loop that begins with these listeners; `line`: who keeps them for the next worker.
    pub fn new(
        orders: Arc<ArrayQueue<SignalOrder>>,
        listeners: &[Listener],
        line: Option<Arc<SocketLine>>,
    ) -> Self {
        let owned: Vec<_> = listeners.iter().map(|listener| ((), *listener)).collect();
        // No port is 0 in a configuration, so each is bound where it says.
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
        Self { listening: Listening::new(orders, &owned, &addresses), change: None, line }
    }

    /// Opens a listener on the loopback, any port, plain TCP; its index, and where its address is told.
    pub(super) fn open_aside(&mut self) -> (u16, Receiver<io::Result<SocketAddr>>) {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        self.listening.open_aside(Listener { transport: Transport::Tcp, address })
    }

    /// Closes it again.
    pub(super) fn close_aside(&self, index: u16) {
        self.listening.order(SignalOrder::Unlisten { index });
    }

    /// What it listens on.
    pub(super) fn open(&self) -> &[Open<()>] {
        self.listening.open()
    }
}

impl Calls {
    /// Works by `config` from now on. Calls that are up keep their rules, their flow and
    /// its limits.
    pub(super) fn reconfigure(&mut self, config: Box<Config>) {
        self.config = config;
        if let Err(error) = self.gate.reload(&self.config) {
            tracing::error!(slot = self.slot.name(), %error, "gateways' names cannot be looked up");
        }
        self.limits.reload(&self.config);
        self.overload.reload(&self.config);
        self.rules = Arc::new(start::call_rules(&self.config));
        self.edge.listening.order(SignalOrder::Limits(user_agent::connection_limits(&self.config)));
        self.renew_tls();
        let wanted: Vec<_> =
            start::listeners(&self.config, self.slot).into_iter().map(|listener| ((), listener)).collect();
        if let Some(overtaken) = self.edge.change.take() {
            self.edge.listening.abort(overtaken);
        }
        self.edge.change = Some(self.edge.listening.begin(&wanted, |_, ()| {}));
    }

    /// Loads the TLS files anew; what is in force stays where they are unfit.
    pub(super) fn renew_tls(&mut self) {
        match tls::load(&self.config, clock::calendar()) {
            Ok(Some(setup)) => self.edge.listening.order(SignalOrder::Tls(setup)),
            Ok(None) => {}
            Err(problem) => {
                tracing::error!(slot = self.slot.name(), %problem, "the worker keeps its old certificate");
            }
        }
    }

    /// Looks whether new listeners are bound, and tells the supervisor.
    pub(super) fn settle_listeners(&mut self) {
        let Some(mut change) = self.edge.change.take() else { return };
        match change.poll() {
            Ok(false) => self.edge.change = Some(change),
            Ok(true) => {
                let before = self.edge.listening.open().to_vec();
                self.edge.listening.commit(change);
                let open = self.edge.listening.open();
                if *open != *before {
                    // A new one is bound anew by the next worker; an old one must not stay open.
                    let closed = before.iter().filter(|old| !open.contains(old));
                    for (old, line) in closed.zip(self.edge.line.iter().cycle()) {
                        if let Err(error) = line.unlisten(old.address) {
                            tracing::warn!(address = %old.address, %error, "an old listener stays open");
                        }
                    }
                    let status =
                        open.iter().map(|o| start::listener_status(self.slot, &o.listener, o.address));
                    self.link.report(FromWorker::Listeners { listeners: status.collect() });
                }
            }
            Err(problem) => {
                tracing::error!(slot = self.slot.name(), %problem, "the worker keeps its old listeners");
                self.edge.listening.abort(change);
            }
        }
    }
}
