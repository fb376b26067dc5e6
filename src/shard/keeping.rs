//! What lets a shard's legs outlast its process: their sockets are kept elsewhere too, and how far each
//! has come is noted in the ledger.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use socket2::Socket;

use crate::base::config::PortRange;
use crate::media::mark::LegMark;
use crate::shard::ledger::{Ledger, Marks};
use crate::uring::{SocketLine, bind_pair};

/// A shard's share in it.
#[derive(Debug)]
pub struct Keeping {
    /// Where it is noted how far legs have come.
    pub marks: Marks,
    /// Who keeps the sockets.
    pub line: Arc<SocketLine>,
    /// Those of legs that a dead process has left, by port, RTP and RTCP.
    pub sockets: BTreeMap<u16, Socket>,
}

/// What is to be shared out to shards.
#[derive(Debug)]
pub struct KeepingOfAll {
    /// The slot's.
    pub ledger: Ledger,
    /// Who keeps the sockets.
    pub line: Arc<SocketLine>,
    /// Those of legs that a dead process has left, by port, RTP and RTCP.
    pub sockets: BTreeMap<u16, Socket>,
}

impl KeepingOfAll {
    /// The share of a shard with these ports.
    pub fn share(&mut self, ports: PortRange) -> Keeping {
        let mut sockets = self.sockets.split_off(&ports.first);
        if let Some(after) = ports.last.checked_add(1) {
            self.sockets.append(&mut sockets.split_off(&after));
        }
        let marks = Marks::new(self.ledger.clone(), ports);
        Keeping { marks, line: Arc::clone(&self.line), sockets }
    }
}

/// The same in the shard; without it nothing is kept.
#[derive(Default)]
pub(super) struct Keeper {
    keeping: Option<Keeping>,
    /// Pairs that are over, whose keeper was too far behind to hear of it.
    unsaid: VecDeque<u16>,
    /// Legs that would not outlast the process: their sockets could not be given away.
    pub(super) unkept: u64,
}

impl Keeper {
    pub(super) fn new(keeping: Option<Keeping>) -> Self {
        Self { keeping, ..Self::default() }
    }

    /// A leg has these sockets from now on.
    pub(super) fn keep(&mut self, port: u16, rtp: &Socket, rtcp: &Socket) {
        let Some(keeping) = &self.keeping else { return };
        if keeping.line.keep(port, rtp, rtcp).is_err() {
            self.unkept += 1;
        }
    }

    /// The sockets of a dead process's leg. They are kept already; where they are missing, the ports are
    /// bound anew, and only what came meanwhile is lost.
    pub(super) fn take(&mut self, address: IpAddr, port: u16) -> io::Result<(Socket, Socket)> {
        let inherited = self.keeping.as_mut().and_then(|keeping| {
            let rtcp = keeping.sockets.remove(&port.checked_add(1)?)?;
            keeping.sockets.remove(&port).map(|rtp| (rtp, rtcp))
        });
        if let Some(pair) = inherited {
            return Ok(pair);
        }
        let (rtp, rtcp) = bind_pair(address, port)?;
        self.keep(port, &rtp, &rtcp);
        Ok((rtp, rtcp))
    }

    /// How far the leg at this port has come.
    pub(super) fn note(&mut self, port: u16, mark: &LegMark) {
        if let Some(keeping) = &mut self.keeping {
            keeping.marks.write(port, &mark.to_words());
        }
    }

    /// Whether marks are of use.
    pub(super) fn is_on(&self) -> bool {
        self.keeping.is_some()
    }

    /// The leg at this port is gone, and its sockets with it.
    pub(super) fn release(&mut self, port: u16) {
        if let Some(keeping) = &mut self.keeping {
            keeping.marks.clear(port);
            self.unsaid.push_back(port);
            self.flush();
        }
    }

    /// Says what could not be said before.
    pub(super) fn flush(&mut self) {
        let Some(keeping) = &self.keeping else { return };
        while let Some(port) = self.unsaid.front() {
            match keeping.line.release(*port) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A keeper that is gone has closed everything.
                Ok(()) | Err(_) => _ = self.unsaid.pop_front(),
            }
        }
    }
}
