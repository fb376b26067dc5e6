//! Media sockets: an even RTP and the next odd RTCP port, bound as a pair.
#![expect(unsafe_code, reason = "a byte slice handed to socket2 as uninitialised memory")]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// DSCP EF (RFC 3246) in the upper six bits of TOS or traffic class: voice.
pub(super) const TOS_EF: u32 = 0xB8;
/// Queue of an RTP socket in bytes (the kernel doubles it): about three seconds of one stream.
const RTP_QUEUE_BYTES: usize = 64 * 1024;
/// Queue of an RTCP socket in bytes.
const RTCP_QUEUE_BYTES: usize = 16 * 1024;

/// Binds `rtp_port` and the port after it: both or none.
///
/// The sockets are blocking on purpose: on a non-blocking socket the ring gives up at the first
/// `EAGAIN` instead of waiting for a datagram.
///
/// # Errors
/// `AddrInUse` when either port is taken, `InvalidInput` for an odd port, else what the kernel
/// says (out of descriptors, address not of this machine).
pub fn bind_pair(address: IpAddr, rtp_port: u16) -> io::Result<(Socket, Socket)> {
    if !rtp_port.is_multiple_of(2) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "RTP ports are even"));
    }
    let rtp = bind(SocketAddr::new(address, rtp_port), RTP_QUEUE_BYTES)?;
    let rtcp = bind(SocketAddr::new(address, rtp_port + 1), RTCP_QUEUE_BYTES)?;
    Ok((rtp, rtcp))
}

fn bind(address: SocketAddr, queue_bytes: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(queue_bytes)?;
    if address.is_ipv4() {
        socket.set_tos_v4(TOS_EF)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_tclass_v6(TOS_EF)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Reads one queued datagram without waiting. The length is the datagram's own, which may exceed
/// `buffer`: then the rest is lost.
///
/// # Errors
/// `WouldBlock` when none is queued, or a pending socket error.
pub(super) fn receive_now(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    let length = buffer.len();
    let memory = buffer.as_mut_ptr().cast::<MaybeUninit<u8>>();
    // SAFETY: same memory, same length, borrowed for this call only; socket2 writes initialised
    // bytes into it and never de-initialises.
    let spare = unsafe { std::slice::from_raw_parts_mut(memory, length) };
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let (received, from) = socket.recv_from_with_flags(spare, flags)?;
    let from = from.as_socket().ok_or_else(|| io::Error::other("not an internet address"))?;
    Ok((received, from))
}

/// Sends one packet without waiting.
///
/// # Errors
/// `WouldBlock` when the socket's queue is full, a pending socket error, or what the kernel has
/// against the packet.
pub(super) fn send_now(socket: &Socket, packet: &[u8], to: SocketAddr) -> io::Result<()> {
    socket.send_to_with_flags(packet, &to.into(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, UdpSocket};

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn free_even_port() -> u16 {
        for _ in 0..1000 {
            let probe = UdpSocket::bind((LOOPBACK, 0)).unwrap();
            let port = probe.local_addr().unwrap().port() & !1;
            drop(probe);
            if bind_pair(LOOPBACK, port).is_ok() {
                return port;
            }
        }
        panic!("no free pair");
    }

    /// Goal: RTP and RTCP bind as a pair or not at all.
    /// Method: occupy the odd port; binding fails and leaves the even one free.
    #[test]
    fn busy_rtcp_port_leaves_the_rtp_port_unbound() {
        let port = free_even_port();
        let squatter = UdpSocket::bind((LOOPBACK, port + 1)).unwrap();
        let error = bind_pair(LOOPBACK, port).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(UdpSocket::bind((LOOPBACK, port)).is_ok());
        drop(squatter);
    }

    /// Goal: a pair can only start at an even port (RFC 3550 §11). Method: ask for an odd one.
    #[test]
    fn odd_rtp_ports_are_refused() {
        let error = bind_pair(LOOPBACK, 40_001).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    /// Goal: reading directly shows the true length of a datagram that does not fit.
    /// Method: 300 bytes into a buffer of 100; then nothing is queued.
    #[test]
    fn direct_reads_show_truncation_and_never_wait() {
        let port = free_even_port();
        let (rtp, _rtcp) = bind_pair(LOOPBACK, port).unwrap();
        let peer = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        peer.send_to(&[7; 300], (LOOPBACK, port)).unwrap();
        let mut buffer = [0; 100];
        let (length, from) = receive_now(&rtp, &mut buffer).unwrap();
        assert_eq!((length, from), (300, peer.local_addr().unwrap()));
        let error = receive_now(&rtp, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
