//! Many datagrams in one system call, each with the kernel's receive time.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use nix::sys::time::TimeSpec;

/// Datagrams taken at once.
const BATCH: usize = 8;
/// Enough for G.711 at 60 ms; a longer one is cut, which does not matter here.
const DATAGRAM_BYTES: usize = 512;

/// Reused buffers.
pub struct Stamps {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Vec<[u8; DATAGRAM_BYTES]>,
}

impl Default for Stamps {
    fn default() -> Self {
        Self::new()
    }
}

impl Stamps {
    /// For sockets with `SO_TIMESTAMPNS` and `SO_RXQ_OVFL` on.
    pub fn new() -> Self {
        let space = cmsg_space!(TimeSpec, u32);
        Self {
            headers: MultiHeaders::preallocate(BATCH, Some(space)),
            buffers: vec![[0; DATAGRAM_BYTES]; BATCH],
        }
    }

    /// Gives everything waiting in `socket` to `take`: arrival since 1970, the socket's drops so
    /// far, the datagram.
    pub fn drain(&mut self, socket: &UdpSocket, mut take: impl FnMut(Duration, u32, &[u8])) {
        loop {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let flags = MsgFlags::MSG_DONTWAIT;
            let Ok(results) = recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None)
            else {
                return;
            };
            let mut count = 0;
            for message in results {
                count += 1;
                let (mut arrival, mut dropped) = (Duration::ZERO, 0);
                for control in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmTimestampns(stamp) = control {
                        arrival = Duration::from(stamp);
                    } else if let ControlMessageOwned::RxqOvfl(total) = control {
                        dropped = total;
                    }
                }
                if let Some(bytes) = message.iovs().next() {
                    take(arrival, dropped, bytes);
                }
            }
            if count < BATCH {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{setsockopt, sockopt};

    /// Goal: every datagram comes out once, in order, with a time between sending and reading.
    /// Method: twenty datagrams through the loopback, more than two batches.
    #[test]
    fn every_datagram_comes_with_the_kernels_time() {
        let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
        setsockopt(&ear, sockopt::ReceiveTimestampns, &true).unwrap();
        // The kernel turns time-stamping on in the background.
        std::thread::sleep(Duration::from_millis(50));
        let mouth = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = crate::clock::calendar();
        for n in 0..20u8 {
            mouth.send_to(&[n; 100], ear.local_addr().unwrap()).unwrap();
        }
        let after = crate::clock::calendar();
        let mut seen = Vec::new();
        Stamps::new().drain(&ear, |arrival, _, bytes| {
            assert!((before..=after).contains(&arrival), "{before:?} {arrival:?} {after:?}");
            assert_eq!(bytes.len(), 100);
            seen.push(bytes[0]);
        });
        assert_eq!(seen, (0..20).collect::<Vec<u8>>());
    }
}
