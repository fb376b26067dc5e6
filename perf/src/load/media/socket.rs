//! A socket that many streams share, with its RTCP neighbour.

use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use crate::media::socket::{Pair, bind_pair};

/// Receive buffer asked for: more than a second of 200 streams.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// RTP on the even port, RTCP on the next.
#[derive(Debug)]
pub struct MediaSocket {
    /// RTP.
    pub rtp: UdpSocket,
    /// RTCP.
    pub rtcp: UdpSocket,
    port: u16,
}

impl MediaSocket {
    /// Binds a free pair, with large buffers and the kernel's receive times.
    ///
    /// # Errors
    /// No free pair, or a kernel without receive times.
    pub fn bind(address: IpAddr) -> Result<Self> {
        let Pair { rtp, rtcp, port } = bind_pair(address)?;
        // Without CAP_NET_ADMIN the kernel grants no more than net.core.rmem_max; drops are counted.
        let _ = setsockopt(&rtp, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)
            .or_else(|_| setsockopt(&rtp, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES));
        for socket in [&rtp, &rtcp] {
            setsockopt(socket, sockopt::ReceiveTimestampns, &true).context("SO_TIMESTAMPNS")?;
        }
        Ok(Self { rtp, rtcp, port })
    }

    /// The even port, for SDP.
    pub fn port(&self) -> u16 {
        self.port
    }
}
