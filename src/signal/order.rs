//! What other threads ask of a running SIP loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;

use super::pass::Passed;
use super::run::Listener;
use super::tls::TlsSetup;

/// A change to a running loop, taken from [`super::SignalConfig::orders`] at its next pump.
#[derive(Debug)]
pub enum SignalOrder {
    /// New handshakes use this; connections whose peer it would not take are closed.
    Tls(Arc<TlsSetup>),
    /// Listen at one more place.
    Listen {
        /// Its index in flows and destinations: the orderer's choice, not in use.
        index: u16,
        /// Where.
        listener: Listener,
        /// Told the address, or why there is none.
        bound: Sender<io::Result<SocketAddr>>,
    },
    /// Take nothing more in at this place; connections accepted there stay.
    Unlisten {
        /// The place.
        index: u16,
    },
    /// From now on these.
    Limits(ConnectionLimits),
    /// Give listeners and plain connections away and end. Nobody is turned away: who calls meanwhile
    /// waits in the kernel.
    PassOn {
        /// What is under way may take this long to finish.
        within: Duration,
        /// Told what is passed on.
        passed: Sender<Passed>,
    },
}

/// What peers may ask of a loop. 0 means no limit where a field says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// New connections a source may open per second in the long run; 0: any number. A source is
    /// one IPv4 address or one IPv6 /64.
    pub source_per_s: u32,
    /// New connections a source may open at once.
    pub source_burst: u32,
    /// Connections a source may have open; 0: any number.
    pub source_max: u32,
    /// Sources remembered; those beyond share one allowance.
    pub sources_max: usize,
    /// Messages and keep-alives a connection may bring per second; 0: any number. Faster ones wait
    /// in the kernel, nothing is lost.
    pub messages_per_s: u32,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            source_per_s: 0,
            source_burst: 0,
            source_max: 0,
            sources_max: 16_384,
            messages_per_s: 0,
            handshake_timeout: Duration::from_secs(5),
        }
    }
}
