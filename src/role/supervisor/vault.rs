//! What outlasts a worker: the sockets of its calls and the ledger that tells what the calls are.
//!
//! The supervisor only keeps them. A worker that dies leaves them to the next one of its slot; one that
//! ends in order leaves nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use socket2::Socket;

use crate::base::config::PortRange;
use crate::role::legacy::Legacy;
use crate::shard::ledger::Ledger;
use crate::uring::inherit::{self, Inherited};
use crate::uring::{SocketLine, Told};

/// One slot's.
#[derive(Debug, Default)]
pub(super) struct Vault {
    ledger: Option<Ledger>,
    /// While no worker adds to them.
    sockets: Sockets,
    keeper: Option<Keeper>,
}

/// What is kept for a slot's next worker.
#[derive(Debug, Default)]
struct Sockets {
    /// RTP and RTCP, by the even port.
    pairs: BTreeMap<u16, [OwnedFd; 2]>,
    /// Where the worker takes calls: who connects while there is none waits in their backlog.
    listeners: Vec<Socket>,
}

/// A vault whose keeper rests.
#[derive(Debug, Default)]
pub(super) struct Kept {
    ledger: Option<Ledger>,
    line: Option<SocketLine>,
    sockets: Sockets,
}

/// The same as it passes from one program to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct VaultState {
    ledger: Option<RawFd>,
    line: Option<RawFd>,
    pairs: Vec<(u16, [RawFd; 2])>,
    listeners: Vec<RawFd>,
}

impl Vault {
    /// What a worker with these ports and so many calls at most starts with: what a dead one has left,
    /// or an empty ledger.
    ///
    /// # Errors
    /// No descriptors or memory: its calls would not outlast it.
    pub(super) fn open(&mut self, ports: PortRange, calls_max: usize) -> io::Result<Legacy> {
        self.collect();
        let ledger = match &self.ledger {
            Some(ledger) => ledger.clone(),
            None => self.ledger.insert(Ledger::create(ports, calls_max)?).clone(),
        };
        let mut sockets = Vec::new();
        for socket in self.sockets.pairs.values().flatten() {
            sockets.push(socket.try_clone()?);
        }
        for listener in &self.sockets.listeners {
            sockets.push(listener.try_clone()?.into());
        }
        let (ours, theirs) = SocketLine::pair()?;
        self.keeper = Some(Keeper::spawn(ours, std::mem::take(&mut self.sockets))?);
        Ok(Legacy { line: theirs, ledger: ledger.as_fd().try_clone_to_owned()?, sockets })
    }

    /// The worker is gone: what it left is for the next one.
    pub(super) fn collect(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            self.sockets = keeper.take().1;
        }
    }

    /// The worker is gone, and nobody goes on with its calls.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Calls' legs that wait for the next worker.
    pub(super) fn legs(&self) -> usize {
        self.sockets.pairs.len()
    }

    /// Lets the keeper rest; what the worker says meanwhile waits in its line.
    pub(super) fn rest(&mut self) -> Kept {
        let (line, sockets) = match self.keeper.take() {
            Some(keeper) => keeper.take(),
            None => (None, std::mem::take(&mut self.sockets)),
        };
        Kept { ledger: self.ledger.take(), line, sockets }
    }

    /// Goes on where one rested.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn resume(kept: Kept) -> io::Result<Self> {
        let Kept { ledger, line, sockets } = kept;
        Ok(match line {
            Some(line) => {
                Self { ledger, sockets: Sockets::default(), keeper: Some(Keeper::spawn(line, sockets)?) }
            }
            None => Self { ledger, sockets, keeper: None },
        })
    }
}

impl Kept {
    /// Has the next program inherit it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn pass(&self) -> io::Result<VaultState> {
        let pair = |(port, [rtp, rtcp]): (&u16, &[OwnedFd; 2])| {
            io::Result::Ok((*port, [inherit::pass(rtp)?, inherit::pass(rtcp)?]))
        };
        Ok(VaultState {
            ledger: self.ledger.as_ref().map(inherit::pass).transpose()?,
            line: self.line.as_ref().map(inherit::pass).transpose()?,
            pairs: self.sockets.pairs.iter().map(pair).collect::<io::Result<_>>()?,
            listeners: self.sockets.listeners.iter().map(inherit::pass).collect::<io::Result<_>>()?,
        })
    }

    /// What the program before has passed. Of a ledger that cannot be read nothing is kept.
    pub(super) fn receive(state: &VaultState, inherited: &mut Inherited) -> Self {
        let mut take = |number: RawFd| inherited.get(number);
        let line = state.line.and_then(&mut take).map(SocketLine::from);
        let ledger = state.ledger.and_then(&mut take).and_then(|file| Ledger::open(file).ok());
        let mut sockets = Sockets::default();
        for (port, [rtp, rtcp]) in &state.pairs {
            if let (Some(rtp), Some(rtcp)) = (take(*rtp), take(*rtcp)) {
                sockets.pairs.insert(*port, [rtp, rtcp]);
            }
        }
        sockets.listeners = state.listeners.iter().filter_map(|number| Some(take(*number)?.into())).collect();
        Self { ledger, line, sockets }
    }
}

/// A thread that takes in what one worker gives to keep.
#[derive(Debug)]
struct Keeper {
    stop: Arc<EventFd>,
    thread: JoinHandle<(Option<SocketLine>, Sockets)>,
}

impl Keeper {
    fn spawn(line: SocketLine, sockets: Sockets) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let told = Arc::clone(&stop);
        let thread =
            thread::Builder::new().name("keeper".into()).spawn(move || keep(line, sockets, &told))?;
        Ok(Self { stop, thread })
    }

    /// Ends it after what it was told so far; the line, if the worker is still there, and what is kept.
    fn take(self) -> (Option<SocketLine>, Sockets) {
        // It fails only when it was said often before.
        let _ = self.stop.write(1);
        self.thread.join().unwrap_or_default()
    }
}

fn address(listener: &Socket) -> Option<SocketAddr> {
    listener.local_addr().ok()?.as_socket()
}

/// The thread's body.
fn keep(line: SocketLine, mut sockets: Sockets, stop: &EventFd) -> (Option<SocketLine>, Sockets) {
    loop {
        let mut ends =
            [PollFd::new(line.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ends, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => tracing::error!(%error, "the keeper of calls' sockets cannot wait"),
        }
        let is_told_to_stop = ends[1].any().unwrap_or(true);
        loop {
            match line.receive() {
                Ok(Told::Keep(port, pair)) => _ = sockets.pairs.insert(port, pair),
                Ok(Told::Release(port)) => _ = sockets.pairs.remove(&port),
                Ok(Told::Listen(listener)) => sockets.listeners.push(listener.into()),
                Ok(Told::Unlisten(at)) => sockets.listeners.retain(|listener| address(listener) != Some(at)),
                Ok(Told::Missed(port)) => {
                    tracing::error!(
                        port,
                        "no descriptor is left to keep a call's sockets: it would not outlast its worker"
                    );
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return (None, sockets),
                Err(error) => {
                    tracing::error!(%error, "the line for calls' sockets broke");
                    return (None, sockets);
                }
            }
        }
        if is_told_to_stop {
            return (Some(line), sockets);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;

    const PORTS: PortRange = PortRange { first: 20_000, last: 20_007 };

    fn socket() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// Goal: the sockets of a worker that dies wait for the next one, those released before do not, and
    /// ledger and sockets come through a change of program. Method: a worker that keeps two pairs,
    /// releases one and dies; a rest and a return between.
    #[test]
    fn what_a_worker_kept_is_there_for_the_next() {
        let mut vault = Vault::default();
        let legacy = vault.open(PORTS, 10).unwrap();
        assert!(legacy.sockets.is_empty());
        let rtp = socket();
        let address = rtp.local_addr().unwrap();
        legacy.line.keep(20_000, &rtp, &socket()).unwrap();
        legacy.line.keep(20_002, &socket(), &socket()).unwrap();
        let (kept, closed) = (socket(), socket());
        legacy.line.listen(&kept).unwrap();
        legacy.line.listen(&closed).unwrap();
        let mut vault = Vault::resume(vault.rest()).unwrap();
        legacy.line.release(20_002).unwrap();
        legacy.line.unlisten(closed.local_addr().unwrap()).unwrap();
        drop((legacy, rtp));
        vault.collect();
        assert_eq!(vault.legs(), 1);
        let mut vault = Vault::resume(vault.rest()).unwrap();
        let next = vault.open(PORTS, 10).unwrap();
        let ports: Vec<_> = next
            .sockets
            .iter()
            .map(|fd| UdpSocket::from(fd.try_clone().unwrap()).local_addr().unwrap())
            .collect();
        assert_eq!((ports.len(), ports[0], ports[2]), (3, address, kept.local_addr().unwrap()));
        drop(next);
        vault.collect();
        assert_eq!(vault.legs(), 1, "kept until its end is told");
        vault.clear();
        assert_eq!(vault.legs(), 0);
    }
}
