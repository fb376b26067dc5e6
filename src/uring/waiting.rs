//! Datagrams that wait in a socket: read several at a time, each with the time it came or the port it was
//! sent to.
#![expect(unsafe_code, reason = "recvmmsg has no safe form that allocates nothing")]

use std::array;
use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

use super::io::{Arrived, FORWARD_ROOM_BYTES};
use super::raw_send::HEADERS_BYTES;
use super::sockaddr::{self, SOCKADDR_BYTES};
use super::thread::realtime;
use crate::base::limits::RTP_DATAGRAM_BYTES_MAX;

/// Datagrams of one system call for one stream: what it brings in 100 ms, and a look whether that is all.
pub(super) const STREAM_BATCH: usize = 6;
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

/// What the kernel tells beside a datagram: when it came, or to which port.
#[repr(C)]
#[derive(Clone, Copy)]
struct Note {
    header: libc::cmsghdr,
    /// `struct timespec` or `struct sockaddr_in`.
    told: [u8; 16],
}

/// Room for one datagram, and what was told of the last one.
#[derive(Clone, Copy)]
struct Place {
    note: Note,
    note_bytes: usize,
    name: [u8; SOCKADDR_BYTES],
    name_bytes: usize,
    /// Of the datagram; more than any if it was longer than its room.
    length: usize,
    /// Headers, if it goes on with some of our own, the datagram, and what protection may add.
    bytes: [u8; HEADERS_BYTES + RTP_DATAGRAM_BYTES_MAX + FORWARD_ROOM_BYTES],
}

/// Room for the datagrams of one system call, the same for all sockets, so that it stays near.
#[derive(Default)]
pub(super) struct Waiting<const BATCH: usize>(Box<[Place]>);

impl<const BATCH: usize> Waiting<BATCH> {
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
            match self.fill(socket) {
                Ok(count) => {
                    for index in 0..count {
                        let Some(arrived) = self.arrived(index, moment) else { continue };
                        take(Ok(arrived));
                    }
                    if count < BATCH {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // Reading it cleared it, and what waits behind it is still there.
                Err(error) => take(Err(error)),
            }
        }
        false
    }

    /// One system call; how many datagrams there were, over those of the last one.
    ///
    /// # Errors
    /// `WouldBlock` when none waits, or a pending error of the socket.
    pub(super) fn fill(&mut self, socket: RawFd) -> io::Result<usize> {
        let Some(places) = self.0.first_chunk_mut::<BATCH>() else { return Ok(0) };
        let mut vectors: [libc::iovec; BATCH] = array::from_fn(|index| {
            let room = &mut places[index].bytes[HEADERS_BYTES..];
            libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() }
        });
        let mut headers: [libc::mmsghdr; BATCH] = array::from_fn(|index| libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: places[index].name.as_mut_ptr().cast(),
                msg_namelen: libc::socklen_t::try_from(SOCKADDR_BYTES).unwrap_or(0),
                msg_iov: &raw mut vectors[index],
                msg_iovlen: 1,
                msg_control: (&raw mut places[index].note).cast(),
                msg_controllen: size_of::<Note>(),
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
            let is_whole = message.msg_flags & libc::MSG_TRUNC == 0;
            let length = usize::try_from(header.msg_len).ok().filter(|_| is_whole);
            place.length = length.unwrap_or(usize::MAX);
            place.name_bytes = usize::try_from(message.msg_namelen).unwrap_or(0);
            place.note_bytes = message.msg_controllen;
        }
        Ok(read)
    }

    /// The datagram at this place of the last call, if it has a sender.
    pub(super) fn arrived(&mut self, index: usize, moment: Moment) -> Option<Arrived<'_>> {
        let place = self.0.get_mut(index)?;
        let from = sockaddr::decode(place.name.get(..place.name_bytes)?)?;
        let at = place.note.time(place.note_bytes).map_or(moment.now, |wall| moment.of(wall));
        Some(Arrived { from, at, bytes: &mut place.bytes[HEADERS_BYTES..], length: place.length })
    }

    /// The port it was sent to, if the socket tells that.
    pub(super) fn port(&self, index: usize) -> Option<u16> {
        let place = self.0.get(index)?;
        place.note.port(place.note_bytes)
    }

    /// So many of its bytes, with [`HEADERS_BYTES`] of room before them.
    pub(super) fn packet(&mut self, index: usize, length: usize) -> Option<&mut [u8]> {
        self.0.get_mut(index)?.bytes.get_mut(..HEADERS_BYTES.checked_add(length)?)
    }

    /// The same, to be read only.
    pub(super) fn written(&self, index: usize, length: usize) -> &[u8] {
        let bytes = self.0.get(index).and_then(|place| place.bytes.get(..HEADERS_BYTES + length));
        bytes.unwrap_or_default()
    }
}

impl Note {
    /// When the datagram came, if the kernel wrote so many bytes and that is what they say.
    fn time(&self, written: usize) -> Option<Duration> {
        let told = self.of(written, (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS))?;
        let seconds = i64::from_ne_bytes(*told.first_chunk()?);
        let nanoseconds = i64::from_ne_bytes(*told.last_chunk()?);
        Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?))
    }

    /// To which port, likewise.
    fn port(&self, written: usize) -> Option<u16> {
        let told = self.of(written, (libc::SOL_IP, libc::IP_RECVORIGDSTADDR))?;
        Some(sockaddr::decode(told)?.port())
    }

    fn of(&self, written: usize, kind: (libc::c_int, libc::c_int)) -> Option<&[u8; 16]> {
        let is_it = (self.header.cmsg_level, self.header.cmsg_type) == kind;
        (is_it && written >= size_of::<Self>()).then_some(&self.told)
    }
}

/// Lets the kernel note when each datagram comes. Without it they seem to come when they are read.
pub(super) fn stamp(socket: &Socket) {
    let _ = setsockopt(socket, sockopt::ReceiveTimestampns, &true);
}
