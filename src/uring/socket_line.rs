//! A line over which one process gives another its sockets to keep (SCM_RIGHTS).
//!
//! What was received is owned by the receiver, and stays open when the giver dies.
//!
//! * **R1 received**: a descriptor that `recvmsg` has just put into this process has no other owner.
#![expect(unsafe_code, reason = "a received number becomes an owned descriptor only by from_raw_fd")]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

const KEEP: u8 = 1;
const RELEASE: u8 = 2;

/// One end of the line.
#[derive(Debug)]
pub struct SocketLine(OwnedFd);

/// What the other end said.
#[derive(Debug)]
pub enum Told {
    /// Keep this pair, named by its even port.
    Keep(u16, [OwnedFd; 2]),
    /// This process was out of descriptors, and so is without the pair.
    Missed(u16),
    /// Close what is kept of this pair.
    Release(u16),
}

impl SocketLine {
    /// Both ends.
    ///
    /// # Errors
    /// No descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(one), Self(other)))
    }

    /// Gives a pair of sockets, and keeps them too. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when the other end is far behind, or it is gone.
    pub fn keep(&self, port: u16, rtp: &impl AsFd, rtcp: &impl AsFd) -> io::Result<()> {
        let sockets = [rtp.as_fd().as_raw_fd(), rtcp.as_fd().as_raw_fd()];
        self.send(KEEP, port, &[ControlMessage::ScmRights(&sockets)])
    }

    /// Has the other end close a pair. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when the other end is far behind, or it is gone.
    pub fn release(&self, port: u16) -> io::Result<()> {
        self.send(RELEASE, port, &[])
    }

    fn send(&self, kind: u8, port: u16, control: &[ControlMessage<'_>]) -> io::Result<()> {
        let [high, low] = port.to_be_bytes();
        let bytes = [kind, high, low];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
        Ok(())
    }

    /// What the other end says next, if it has said it yet.
    ///
    /// # Errors
    /// `WouldBlock`: not yet. `UnexpectedEof`: it is gone. `InvalidData`: it is none of ours.
    pub fn receive(&self) -> io::Result<Told> {
        let mut bytes = [0; 3];
        let mut space = nix::cmsg_space!([RawFd; 2]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                received => break received?,
            }
        };
        let length = received.bytes;
        let mut sockets = Vec::new();
        for message in received.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: just received, and nobody else knows of them (R1).
                sockets.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        let [kind, high, low] = bytes;
        let port = u16::from_be_bytes([high, low]);
        match (length, kind) {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (3, KEEP) => Ok(match sockets.try_into() {
                Ok(pair) => Told::Keep(port, pair),
                Err(_) => Told::Missed(port),
            }),
            (3, RELEASE) => Ok(Told::Release(port)),
            (_, _) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl From<OwnedFd> for SocketLine {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<SocketLine> for OwnedFd {
    fn from(line: SocketLine) -> Self {
        line.0
    }
}

impl AsFd for SocketLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;

    /// Goal: a kept socket goes on receiving when its giver is gone, messages come in order, and the end
    /// of the line is told after what was said before it. Method: a pair of sockets given, then closed.
    #[test]
    fn a_kept_socket_outlasts_its_giver() {
        let (ours, theirs) = SocketLine::pair().unwrap();
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (rtp, rtcp, peer) = (bind(), bind(), bind());
        let to = rtp.local_addr().unwrap();
        theirs.keep(40_000, &rtp, &rtcp).unwrap();
        theirs.release(40_002).unwrap();
        drop((theirs, rtp, rtcp));
        let Ok(Told::Keep(40_000, [rtp, _rtcp])) = ours.receive() else { panic!("the pair first") };
        peer.send_to(b"late", to).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(UdpSocket::from(rtp).recv(&mut buffer).unwrap(), 4);
        assert!(matches!(ours.receive(), Ok(Told::Release(40_002))));
        assert_eq!(ours.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (ours, _theirs) = SocketLine::pair().unwrap();
        assert_eq!(ours.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
