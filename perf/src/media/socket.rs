//! An even RTP port with its RTCP neighbour.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail};
use socket2::SockRef;

/// Bytes of receive buffer asked for; the kernel may grant less.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

/// Two bound sockets, RTP on the even port.
#[derive(Debug)]
pub struct Pair {
    /// RTP.
    pub rtp: UdpSocket,
    /// RTCP, one port higher.
    pub rtcp: UdpSocket,
    /// The even port.
    pub port: u16,
}

/// Binds a free pair on `address`, both non-blocking.
///
/// # Errors
/// No free pair was found in 200 attempts.
pub fn bind_pair(address: IpAddr) -> Result<Pair> {
    for _ in 0..200 {
        let rtp = UdpSocket::bind((address, 0)).with_context(|| format!("cannot bind UDP on {address}"))?;
        let port = rtp.local_addr()?.port();
        if port % 2 != 0 {
            continue;
        }
        let Ok(rtcp) = UdpSocket::bind((address, port + 1)) else { continue };
        rtp.set_nonblocking(true)?;
        rtcp.set_nonblocking(true)?;
        // A refused larger buffer is no failure: drops are counted and shown.
        let _ = SockRef::from(&rtp).set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
        return Ok(Pair { rtp, rtcp, port });
    }
    bail!("no free even/odd UDP port pair on {address}")
}

/// One datagram if there is one. ICMP errors of earlier sends count as nothing.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Ok(received) => return Some(received),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(_) => return None,
        }
    }
}
