//! A line over which one process gives another its sockets to keep (SCM_RIGHTS).
//!
//! What was received is owned by the receiver, and stays open when the giver dies.
//!
//! * **R1 received**: a descriptor that `recvmsg` has just put into this process has no other owner.
#![expect(unsafe_code, reason = "a received number becomes an owned descriptor only by from_raw_fd")]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

const KEEP: u8 = 1;
const RELEASE: u8 = 2;
const LISTEN: u8 = 3;
const UNLISTEN: u8 = 4;
/// Longest message: an address as text, and what it is about.
const MESSAGE_BYTES_MAX: usize = 64;

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
    /// Keep this listener.
    Listen(OwnedFd),
    /// Close the listeners at this address.
    Unlisten(SocketAddr),
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
        self.send_of_pair(KEEP, port, &[ControlMessage::ScmRights(&sockets)])
    }

    /// Has the other end close a pair. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when the other end is far behind, or it is gone.
    pub fn release(&self, port: u16) -> io::Result<()> {
        self.send_of_pair(RELEASE, port, &[])
    }

    /// Gives a listener, and keeps it too. Never waits.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn listen(&self, listener: &impl AsFd) -> io::Result<()> {
        let sockets = [listener.as_fd().as_raw_fd()];
        self.send(&[LISTEN], &[ControlMessage::ScmRights(&sockets)])
    }

    /// Has the other end close the listeners at an address. Never waits.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn unlisten(&self, address: SocketAddr) -> io::Result<()> {
        self.send(&[&[UNLISTEN], address.to_string().as_bytes()].concat(), &[])
    }

    fn send_of_pair(&self, kind: u8, port: u16, control: &[ControlMessage<'_>]) -> io::Result<()> {
        let [high, low] = port.to_be_bytes();
        self.send(&[kind, high, low], control)
    }

    fn send(&self, bytes: &[u8], control: &[ControlMessage<'_>]) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
        Ok(())
    }

    /// What the other end says next, if it has said it yet.
    ///
    /// # Errors
    /// `WouldBlock`: not yet. `UnexpectedEof`: it is gone. `InvalidData`: it is none of ours. `EMFILE`: a
    /// listener for which this process has no descriptor.
    pub fn receive(&self) -> io::Result<Told> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
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
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        match bytes.get(..length).unwrap_or_default() {
            [] => Err(io::ErrorKind::UnexpectedEof.into()),
            [KEEP, high, low] => {
                let port = u16::from_be_bytes([*high, *low]);
                Ok(sockets.try_into().map_or(Told::Missed(port), |pair| Told::Keep(port, pair)))
            }
            [RELEASE, high, low] => Ok(Told::Release(u16::from_be_bytes([*high, *low]))),
            [LISTEN] => sockets.pop().map(Told::Listen).ok_or_else(|| Errno::EMFILE.into()),
            [UNLISTEN, address @ ..] => {
                let address = std::str::from_utf8(address).ok().and_then(|text| text.parse().ok());
                address.map(Told::Unlisten).ok_or_else(invalid)
            }
            _ => Err(invalid()),
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
        theirs.listen(&peer).unwrap();
        theirs.unlisten("[2001:db8::1]:5065".parse().unwrap()).unwrap();
        drop((theirs, rtp, rtcp));
        let Ok(Told::Keep(40_000, [rtp, _rtcp])) = ours.receive() else { panic!("the pair first") };
        peer.send_to(b"late", to).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(UdpSocket::from(rtp).recv(&mut buffer).unwrap(), 4);
        assert!(matches!(ours.receive(), Ok(Told::Release(40_002))));
        let Ok(Told::Listen(same)) = ours.receive() else { panic!("the listener") };
        assert_eq!(UdpSocket::from(same).local_addr().unwrap(), peer.local_addr().unwrap());
        assert!(
            matches!(ours.receive(), Ok(Told::Unlisten(at)) if at == "[2001:db8::1]:5065".parse().unwrap())
        );
        assert_eq!(ours.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (ours, _theirs) = SocketLine::pair().unwrap();
        assert_eq!(ours.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
