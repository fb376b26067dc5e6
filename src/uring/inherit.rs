//! Descriptors that pass from one program to the next, in the same process or in one it starts.
//!
//! * **I1 first**: [`Inherited::take`] runs once, before this program has opened any descriptor, so each
//!   one above standard error was left by the program before, and nothing here owns it.
//! * **I2 given up**: a descriptor that its owner has let go of by `into_raw_fd` has no other owner.
#![expect(unsafe_code, reason = "a number becomes an owned descriptor only by from_raw_fd")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use monoio::net::TcpStream;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socket2::{Socket, Type};

/// What the program before has left, by number. What is not taken out is closed.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<RawFd, OwnedFd>);

impl Inherited {
    /// Takes all descriptors above standard error. To be called first of all in `main`, and only there.
    ///
    /// # Errors
    /// `/proc` cannot be read, or this was called before.
    pub fn take() -> io::Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(io::Error::other("inherited descriptors are taken once"));
        }
        let mut numbers = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        let mut taken = BTreeMap::new();
        for number in numbers.into_iter().filter(|number| *number > 2) {
            // The one that listed them is closed again; it is told by that.
            if fs::read_link(format!("/proc/self/fd/{number}")).is_err() {
                continue;
            }
            // SAFETY: it is open, and by I1 nobody owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            taken.insert(number, fd);
        }
        Ok(Self(taken))
    }

    /// One of them, once.
    pub fn get(&mut self, number: RawFd) -> Option<OwnedFd> {
        self.0.remove(&number)
    }

    /// The sockets among those that are left, with their addresses and whether they are of datagrams; the
    /// others are closed.
    pub fn into_sockets(self) -> Vec<(SocketAddr, bool, Socket)> {
        let known = |socket: Socket| {
            let address = socket.local_addr().ok()?.as_socket()?;
            let kind = socket.r#type().ok()?;
            Some((address, kind == Type::DGRAM, socket))
        };
        self.0.into_values().map(Socket::from).filter_map(known).collect()
    }
}

/// Lets the next program have a descriptor; its number there.
///
/// # Errors
/// What the kernel says.
pub fn pass(fd: &impl AsFd) -> io::Result<RawFd> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Takes that back: no program that is started later has it.
///
/// # Errors
/// What the kernel says.
pub fn hold(fd: &impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Takes a connection out of its runtime. No operation may be in flight on it.
pub fn owned(stream: TcpStream) -> OwnedFd {
    // SAFETY: the stream gives its descriptor up (I2).
    unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) }
}
