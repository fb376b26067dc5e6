//! Orders from other threads, carried out between two pumps.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use rustls::pki_types::{CertificateDer, ServerName};

use super::connection::Cause;
use super::core::{Core, Shared};
use super::datagram::Socket;
use super::listen;
use super::order::SignalOrder;
use super::role::Role;
use super::run::{ListenError, Listener};
use super::tls::TlsSetup;
use crate::base::clock;
use crate::sip::flow::{FlowId, Transport};

/// How often, and how far apart, an address in use is tried again: a listener that was just given
/// up is closed by the kernel a little later.
const BIND_TRIES: u32 = 20;
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// A peer's proof, as far as the judgement depends on it.
type Proof = (Option<ServerName<'static>>, Vec<CertificateDer<'static>>);

impl<R: Role + 'static> Core<R> {
    /// Carries one order out.
    pub(super) fn obey(&mut self, now: Instant, order: SignalOrder) {
        match order {
            SignalOrder::Tls(setup) => self.renew_tls(now, setup),
            SignalOrder::Listen { index, listener, bound } => {
                self.free_retired(index, &listener);
                self.binding.insert(index);
                self.spawn(start_listening(self.shared(), index, listener, bound));
            }
            SignalOrder::Unlisten { index } => {
                // One whose address is in use is not to come after all.
                self.binding.remove(&index);
                self.unlisten(now, index);
            }
            SignalOrder::Limits(limits) => self.limits.peers = limits,
            SignalOrder::PassOn { within, passed } => self.begin_to_pass(now, within, passed),
        }
    }

    /// New handshakes use `setup`; who proved something it does not take is closed.
    fn renew_tls(&mut self, now: Instant, setup: Arc<TlsSetup>) {
        let calendar = clock::calendar();
        // Many connections show one certificate, and judging takes a signature or two.
        let mut judged: HashMap<Proof, Result<(), rustls::Error>> = HashMap::new();
        let mut closing: Vec<(FlowId, rustls::Error)> = Vec::new();
        for (&id, connection) in &self.connections {
            let session = connection.tls.as_ref().filter(|tls| tls.is_secured() && !connection.is_ending());
            let Some(session) = session else { continue };
            let verdict =
                judged.entry(session.judged_by()).or_insert_with(|| session.judge(&setup, calendar));
            closing.extend(verdict.clone().err().map(|error| (id, error)));
        }
        self.tls = Some(setup);
        for (id, error) in closing {
            self.close(now, id, Cause::Revoked(error));
        }
    }

    /// A socket that only sends must not keep a new listener from its address or its place.
    fn free_retired(&mut self, index: u16, listener: &Listener) {
        let is_at = |socket: &Socket| {
            listener.transport == Transport::Udp && socket.local().port() == listener.address.port()
        };
        for (place, own) in self.sockets.iter_mut().enumerate() {
            let in_the_way =
                |socket: &Socket| socket.is_retired() && (place == usize::from(index) || is_at(socket));
            if own.as_ref().is_some_and(in_the_way) {
                *own = None;
            }
        }
    }

    fn is_taken(&self, index: u16) -> bool {
        self.gates.get(usize::from(index)).is_some_and(Option::is_some)
    }
}

async fn start_listening<R: Role + 'static>(
    shared: Shared<R>,
    index: u16,
    listener: Listener,
    bound: Sender<io::Result<SocketAddr>>,
) {
    for left in (0..BIND_TRIES).rev() {
        let result = {
            let core = &mut *shared.borrow_mut();
            if core.stopping || !core.binding.contains(&index) {
                return;
            }
            if core.is_taken(index) {
                let error = io::Error::new(io::ErrorKind::AlreadyExists, "the listener's index is in use");
                Err(io::Error::new(error.kind(), ListenError { listener, error }))
            } else {
                listen::bind(&listener, core.tls.is_some()).map(|bound| {
                    let local = bound.local;
                    core.listen(index, listener.transport, bound);
                    local
                })
            }
        };
        let is_in_use = matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
        if !is_in_use || left == 0 {
            shared.borrow_mut().binding.remove(&index);
            // Whoever does not wait for it does not want to know.
            let _ = bound.send(result);
            return;
        }
        monoio::time::sleep(BIND_PAUSE).await;
    }
}
