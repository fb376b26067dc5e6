//! Many datagrams in one system call, each way, over a few hot sockets; nothing allocated per packet.
//!
//! Measured on Linux 6.18 (ns a packet, 1000 destinations): `sendmmsg` of 64 on one unconnected
//! socket 733, io_uring `SEND` with an address 765, `sendto` 786. `UDP_SEGMENT` would cost 53, but
//! only towards one destination, and every call has its own. So this is safe `nix`, without io_uring.
//!
//! The kernel tells a socket's drops with each datagram too (`SO_RXQ_OVFL`), but `nix` 0.30 shrinks the
//! room for control messages to what the last datagram took: the count would be cut off just when
//! there is one, and the time stamp with it. [`crate::machine::udp_drops`] reads it elsewhere.

use std::array::from_fn;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage, recvmmsg,
    sendmmsg,
};
use nix::sys::time::TimeSpec;

/// Datagrams handed to the kernel at once. A frame's stamp is at most one batch older than its
/// departure: some 50 µs.
pub const SEND_BATCH: usize = 32;
/// Datagrams taken from the kernel at once.
const RECEIVE_BATCH: usize = 64;
/// Room for G.711 at 20 ms with header, SRTP tag and MKI, and for an RTCP report; a longer datagram
/// is cut.
pub const DATAGRAM_BYTES: usize = 320;

/// Datagrams on their way out of one socket.
pub struct Outgoing {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; DATAGRAM_BYTES]; SEND_BATCH]>,
    lengths: [usize; SEND_BATCH],
    to: [Option<SockaddrStorage>; SEND_BATCH],
    count: usize,
}

impl Outgoing {
    /// Empty; every buffer begins as a copy of `template`.
    pub fn new(template: &[u8; DATAGRAM_BYTES]) -> Self {
        Self {
            headers: MultiHeaders::preallocate(SEND_BATCH, None),
            buffers: Box::new([*template; SEND_BATCH]),
            lengths: [0; SEND_BATCH],
            to: [None; SEND_BATCH],
            count: 0,
        }
    }

    /// Adds a datagram. `fill` gets a buffer that holds what an earlier one left in it, and gives
    /// the datagram's length, or `None` when there is to be none. True when there is one; a full
    /// batch takes none.
    pub fn push(
        &mut self,
        to: SockaddrStorage,
        fill: impl FnOnce(&mut [u8; DATAGRAM_BYTES]) -> Option<usize>,
    ) -> bool {
        let filled = self.buffers.get_mut(self.count).and_then(fill);
        if let Some(length) = filled {
            self.lengths[self.count] = length.min(DATAGRAM_BYTES);
            self.to[self.count] = Some(to);
            self.count += 1;
        }
        filled.is_some()
    }

    /// Sends all and empties the batch. Gives how many the kernel refused: late sound is worthless,
    /// so none is kept for another attempt.
    pub fn send(&mut self, socket: &UdpSocket) -> usize {
        let (mut at, mut refused) = (0, 0);
        while at < self.count {
            let slices: [[IoSlice<'_>; 1]; SEND_BATCH] =
                from_fn(|index| [IoSlice::new(&self.buffers[index][..self.lengths[index]])]);
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let rest = at..self.count;
            let sent = sendmmsg(fd, &mut self.headers, &slices[rest.clone()], &self.to[rest], [], flags);
            match sent.map(Iterator::count) {
                Ok(count @ 1..) => at += count,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => (at, refused) = (at + 1, refused + 1),
            }
        }
        self.count = 0;
        refused
    }
}

/// Buffers for what comes in.
pub struct Incoming {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; DATAGRAM_BYTES]; RECEIVE_BATCH]>,
}

impl Default for Incoming {
    fn default() -> Self {
        Self::new()
    }
}

impl Incoming {
    /// For sockets of one address family with `SO_TIMESTAMPNS` on.
    pub fn new() -> Self {
        let headers = MultiHeaders::preallocate(RECEIVE_BATCH, Some(cmsg_space!(TimeSpec)));
        Self { headers, buffers: Box::new([[0; DATAGRAM_BYTES]; RECEIVE_BATCH]) }
    }

    /// Gives what waits in `socket` to `take`: arrival since 1970, source, datagram. At most
    /// `limit` datagrams, in whole batches.
    pub fn drain(
        &mut self,
        socket: &UdpSocket,
        limit: usize,
        mut take: impl FnMut(Duration, SocketAddr, &[u8]),
    ) {
        for _ in 0..limit.div_ceil(RECEIVE_BATCH) {
            let mut slices = self.buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let Ok(messages) = recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None) else {
                return;
            };
            let mut count = 0;
            for message in messages {
                count += 1;
                let arrival = message.cmsgs().into_iter().flatten().find_map(|control| match control {
                    ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
                    _ => None,
                });
                let from = message.address.as_ref().and_then(socket_addr);
                if let (Some(arrival), Some(from), Some(bytes)) = (arrival, from, message.iovs().next()) {
                    take(arrival, from, bytes);
                }
            }
            if count < RECEIVE_BATCH {
                return;
            }
        }
    }
}

fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match storage.family()? {
        AddressFamily::Inet => storage.as_sockaddr_in().map(|&address| SocketAddr::V4(address.into())),
        AddressFamily::Inet6 => storage.as_sockaddr_in6().map(|&address| SocketAddr::V6(address.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::media::socket::MediaSocket;

    /// Goal: every datagram of a batch reaches its own destination, with source and the kernel's time.
    /// Method: 32 datagrams, even ones to one ear and odd ones to the other; then a second batch.
    #[test]
    fn a_batch_reaches_its_destinations() {
        let ip = "127.0.0.1".parse().unwrap();
        let [mouth, even, odd] = from_fn(|_| MediaSocket::bind(ip).unwrap());
        let address = |socket: &MediaSocket| SocketAddr::new(ip, socket.port());
        let mut outgoing = Outgoing::new(&[7; DATAGRAM_BYTES]);
        let before = crate::clock::calendar();
        for round in 0..2u8 {
            for n in 0..32u8 {
                let ear = if n % 2 == 0 { &even } else { &odd };
                let added = outgoing.push(address(ear).into(), |buffer| {
                    (buffer[0], buffer[1]) = (round, n);
                    Some(100 + usize::from(n))
                });
                assert!(added);
            }
            assert!(!outgoing.push(address(&odd).into(), |_| Some(1)), "the batch is full");
            assert_eq!(outgoing.send(&mouth.rtp), 0);
        }
        let mut incoming = Incoming::new();
        for (ear, parity) in [(&even, 0), (&odd, 1)] {
            let mut seen = Vec::new();
            incoming.drain(&ear.rtp, 1000, |arrival, from, bytes| {
                assert!(arrival >= before, "{before:?} {arrival:?}");
                assert_eq!((from, bytes.len()), (address(&mouth), 100 + usize::from(bytes[1])));
                assert_eq!(bytes[2], 7);
                seen.push((bytes[0], bytes[1]));
            });
            let expected: Vec<_> =
                (0..2).flat_map(|round| (parity..32).step_by(2).map(move |n| (round, n))).collect();
            assert_eq!(seen, expected);
        }
    }

    /// Goal: a datagram the kernel refuses is counted and holds up none behind it.
    /// Method: the broadcast address without leave to broadcast, between two good ones.
    #[test]
    fn a_refused_datagram_holds_up_none_behind_it() {
        let ip = "127.0.0.1".parse().unwrap();
        let (mouth, ear) = (MediaSocket::bind(ip).unwrap(), MediaSocket::bind(ip).unwrap());
        let good = SocketAddr::new(ip, ear.port());
        let mut outgoing = Outgoing::new(&[0; DATAGRAM_BYTES]);
        for to in [good, "255.255.255.255:9".parse().unwrap(), good] {
            assert!(outgoing.push(to.into(), |_| Some(50)));
        }
        assert_eq!(outgoing.send(&mouth.rtp), 1);
        let mut heard = 0;
        Incoming::new().drain(&ear.rtp, 1000, |_, _, _| heard += 1);
        assert_eq!(heard, 2);
    }
}
