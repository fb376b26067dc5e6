//! What a worker process inherits: a line for its calls' sockets, the ledger of its slot, and the
//! sockets of a worker that died before it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::process::Command;

use socket2::Socket;

use crate::shard::ledger::Ledger;
use crate::uring::SocketLine;
use crate::uring::inherit::{self, Inherited};

/// Where a worker finds line and ledger: two descriptors' numbers.
const LEGACY: &str = "VOXRING_LEGACY";

/// For a worker to be.
#[derive(Debug)]
pub struct Legacy {
    /// The worker's end.
    pub line: SocketLine,
    /// Its slot's.
    pub ledger: OwnedFd,
    /// Listeners, and RTP and RTCP sockets of calls to go on with.
    pub sockets: Vec<OwnedFd>,
}

/// In the worker.
#[derive(Debug)]
pub struct Inheritance {
    /// Where sockets are kept.
    pub line: SocketLine,
    /// What is known of calls.
    pub ledger: Ledger,
    /// With their addresses, and whether they are of datagrams.
    pub sockets: Vec<(SocketAddr, bool, Socket)>,
}

impl Legacy {
    /// Starts a program that inherits it.
    ///
    /// # Errors
    /// No process, or no more descriptors.
    pub fn spawn(self, command: &mut Command) -> io::Result<u32> {
        let (line, ledger) = (inherit::pass(&self.line)?, inherit::pass(&self.ledger)?);
        for socket in &self.sockets {
            inherit::pass(socket)?;
        }
        // Ours are closed on return, so no other program gets them.
        Ok(command.env(LEGACY, format!("{line}:{ledger}")).spawn()?.id())
    }
}

/// A program that inherits nothing of this.
pub fn disown(command: &mut Command) {
    command.env_remove(LEGACY);
}

impl Inheritance {
    /// Takes it over. To be called before this process opens anything. `None`: there is none, so no call
    /// outlasts this worker.
    pub fn take() -> Option<Self> {
        let taken = Self::try_take();
        if let Err(error) = &taken {
            tracing::error!(%error, "calls do not outlast this worker");
        }
        taken.ok().flatten()
    }

    fn try_take() -> io::Result<Option<Self>> {
        let Some(numbers) = std::env::var_os(LEGACY) else { return Ok(None) };
        let numbers = numbers.to_str().and_then(|numbers| numbers.split_once(':'));
        let numbers = numbers.and_then(|(line, ledger)| line.parse::<RawFd>().ok().zip(ledger.parse().ok()));
        let (line, ledger) =
            numbers.ok_or_else(|| io::Error::other(format!("{LEGACY} is not understood")))?;
        let mut inherited = Inherited::take()?;
        let mut get =
            |number| inherited.get(number).ok_or_else(|| io::Error::other("a descriptor is missing"));
        let line = SocketLine::from(get(line)?);
        let ledger = Ledger::open(get(ledger)?)?;
        Ok(Some(Self { line, ledger, sockets: inherited.into_sockets() }))
    }
}
