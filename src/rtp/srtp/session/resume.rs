//! A session that goes on in another process: its indices, without its keys.

use super::{Receiving, Sending, Source, SrtpSession};
use crate::rtp::srtp::index::Window;
use crate::rtp::srtp::keys::SrtpPlan;

/// SRTCP indices left out, for reports that may have left after the mark was made.
const RTCP_SKIPPED: u64 = 64;

/// How far a session's indices have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SrtpMark {
    /// One more than the highest RTP index we sent; nought before the first.
    pub rtp_next: u64,
    /// One more than the highest SRTCP index we sent.
    pub rtcp_next: u32,
    /// The source heard of last.
    pub source: Option<SrtpSourceMark>,
}

/// How far one source's indices have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SrtpSourceMark {
    /// Which source.
    pub ssrc: u32,
    /// One more than the highest RTP index that authenticated; nought before the first.
    pub rtp_next: u64,
    /// Bit `n`: the index `n` below the highest was used.
    pub rtp_used: u128,
    /// One more than the highest SRTCP index that authenticated.
    pub rtcp_next: u32,
}

impl SrtpSession {
    /// What [`Self::resume`] needs besides the keys.
    pub fn mark(&self) -> SrtpMark {
        let source = self.receive.sources.first().map(|source| {
            let (rtp_next, rtp_used) = source.rtp.state();
            SrtpSourceMark { ssrc: source.ssrc, rtp_next, rtp_used, rtcp_next: low(source.rtcp.state().0) }
        });
        SrtpMark {
            rtp_next: self.send.rtp_used.state().0,
            rtcp_next: low(self.send.rtcp_used.state().0),
            source,
        }
    }

    /// The session that had come as far as `mark`. `sequence` was the number of our next packet then;
    /// the next one now is `skipped` later, under the rollover counter that this brings, and no index
    /// below it is used any more (RFC 3711 §9.1: never two packets under one).
    ///
    /// With `skipped` nought, for packets that are relayed, an index used since the mark can only come
    /// again if its packet does, and then it is the same packet.
    pub fn resume(plan: &SrtpPlan, mark: &SrtpMark, sequence: u16, skipped: u64) -> Self {
        let index = Window::before(mark.rtp_next).estimate(sequence);
        let send = Sending {
            rtp_used: Window::before(mark.rtp_next.max(index + skipped)),
            rtcp_used: Window::before(u64::from(mark.rtcp_next) + RTCP_SKIPPED),
            ..Sending::new(&plan.send)
        };
        let sources = mark.source.iter().map(|source| Source {
            ssrc: source.ssrc,
            rtp: Window::with(source.rtp_next, source.rtp_used),
            rtcp: Window::before(source.rtcp_next.into()),
        });
        let mut receive = Receiving::new(&plan.receive);
        receive.sources.extend(sources);
        Self { send, receive }
    }
}

/// An SRTCP index, which has 31 bits, or one more than that.
fn low(next: u64) -> u32 {
    u32::try_from(next).unwrap_or(u32::MAX)
}
