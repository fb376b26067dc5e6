//! Datagrams that wait in a socket: read several at a time, each with the time it came.
#![expect(unsafe_code, reason = "recvmmsg has no safe form that allocates nothing")]

use std::array;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::io::{Arrived, FORWARD_ROOM_BYTES};
use super::sockaddr::{self, SOCKADDR_BYTES};
use super::thread::realtime;
use crate::base::limits::RTP_DATAGRAM_BYTES_MAX;

/// Datagrams of one system call: what a stream brings in 100 ms, and a look whether that is all.
const BATCH: usize = 6;
/// Datagrams read from one socket at a time.
const DATAGRAMS_MAX: usize = 64;

/// One moment by the loop's clock and by the one that datagrams are stamped with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// Since 1970.
    wall: Duration,
}

impl Moment {
    /// `now`, which it is.
    pub(super) fn new(now: Instant) -> Self {
        Self { now, wall: realtime() }
    }

    /// When something came that was stamped with `wall`: not in the future, whatever has become of that clock.
    fn of(self, wall: Duration) -> Instant {
        self.now.checked_sub(self.wall.saturating_sub(wall)).unwrap_or(self.now)
    }
}

/// What the kernel tells beside a datagram.
#[repr(C)]
#[derive(Clone, Copy)]
struct Stamp {
    header: libc::cmsghdr,
    time: libc::timespec,
}

/// Room for one datagram.
#[derive(Clone, Copy)]
struct Place {
    stamp: Stamp,
    name: [u8; SOCKADDR_BYTES],
    bytes: [u8; RTP_DATAGRAM_BYTES_MAX + FORWARD_ROOM_BYTES],
}

/// Room for the datagrams of one system call, the same for all sockets, so that it stays near.
#[derive(Default)]
pub(super) struct Waiting(Box<[Place]>);

impl Waiting {
    pub(super) fn new() -> Self {
        // SAFETY: numbers, for which all-zero is a valid value.
        let place = unsafe { std::mem::zeroed() };
        Self(vec![place; BATCH].into())
    }

    /// Gives `take` each datagram that waits in `socket`, or a pending error of the socket, which is over with
    /// that. False: there may be more than one turn's share, so that a flood costs a bounded time.
    pub(super) fn read(
        &mut self,
        socket: RawFd,
        moment: Moment,
        take: &mut dyn FnMut(io::Result<Arrived<'_>>),
    ) -> bool {
        for _ in 0..DATAGRAMS_MAX / BATCH {
            match self.fill(socket, moment, take) {
                Ok(BATCH) => {}
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // Reading it cleared it, and what waits behind it is still there.
                Err(error) => take(Err(error)),
            }
        }
        false
    }

    /// One system call; how many datagrams there were.
    fn fill(
        &mut self,
        socket: RawFd,
        moment: Moment,
        take: &mut dyn FnMut(io::Result<Arrived<'_>>),
    ) -> io::Result<usize> {
        let Some(places) = self.0.first_chunk_mut::<BATCH>() else { return Ok(0) };
        let mut vectors = places.each_mut().map(|place| libc::iovec {
            iov_base: place.bytes.as_mut_ptr().cast(),
            iov_len: place.bytes.len(),
        });
        let mut headers: [libc::mmsghdr; BATCH] = array::from_fn(|index| libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: places[index].name.as_mut_ptr().cast(),
                msg_namelen: libc::socklen_t::try_from(SOCKADDR_BYTES).unwrap_or(0),
                msg_iov: &raw mut vectors[index],
                msg_iovlen: 1,
                msg_control: (&raw mut places[index].stamp).cast(),
                msg_controllen: size_of::<Stamp>(),
                msg_flags: 0,
            },
            msg_len: 0,
        });
        let (first, count) = (headers.as_mut_ptr(), libc::c_uint::try_from(BATCH).unwrap_or(0));
        // SAFETY: each header points to memory of its own place of the stated length, and all of it outlives
        // the call; the kernel writes any bytes only where any will do.
        let read = unsafe { libc::recvmmsg(socket, first, count, libc::MSG_DONTWAIT, ptr::null_mut()) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        for (header, place) in headers.iter().zip(places).take(read) {
            let message = &header.msg_hdr;
            let name_bytes = usize::try_from(message.msg_namelen).unwrap_or(0);
            let Some(from) = place.name.get(..name_bytes).and_then(sockaddr::decode) else { continue };
            let is_whole = message.msg_flags & libc::MSG_TRUNC == 0;
            let length = usize::try_from(header.msg_len).ok().filter(|_| is_whole);
            let at = place.stamp.told(message.msg_controllen).map_or(moment.now, |wall| moment.of(wall));
            take(Ok(Arrived { from, at, bytes: &mut place.bytes, length: length.unwrap_or(usize::MAX) }));
        }
        Ok(read)
    }
}

impl Stamp {
    /// What it says, if the kernel wrote so many bytes of it.
    fn told(&self, written: usize) -> Option<Duration> {
        let kind = (self.header.cmsg_level, self.header.cmsg_type);
        if written < size_of::<Self>() || kind != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
            return None;
        }
        let seconds = u64::try_from(self.time.tv_sec).ok()?;
        Some(Duration::new(seconds, u32::try_from(self.time.tv_nsec).ok()?))
    }
}

/// Lets the kernel note when each datagram comes. Without it they seem to come when they are read.
pub(super) fn stamp(socket: &Socket) {
    let on: libc::c_int = 1;
    let bytes = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    let (socket, value) = (socket.as_raw_fd(), (&raw const on).cast());
    // SAFETY: the kernel reads `bytes` bytes of a live number.
    unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, value, bytes) };
}
