//! One leg's SRTP and SRTCP: which packet has which index, and which was there before.
//!
//! What is kept about a source (rollover counter, replay window) changes only after a packet has
//! authenticated, and only such a packet makes a source known. Keys are derived once for a master
//! key (key derivation rate 0). An index is used once in sending too: a packet that would reuse one
//! is refused, since two packets under one index tell what is in both.

use smallvec::SmallVec;

use super::gcm;
use super::index::{RTCP_PACKETS_MAX, RTP_PACKETS_MAX, Window};
use super::keys::{MKI_BYTES_MAX, MasterKey, SrtpPlan};
use super::transform::{INDEX_BYTES, Protocol, RTCP_CLEAR_BYTES, RtpHead, Transform};
use crate::rtp::packet::HEADER_BYTES;
use crate::uring::{prefetch, prefetch_first};

mod resume;

pub use resume::{SrtpMark, SrtpSourceMark};

/// Most bytes that protection adds to a packet: tag, MKI and, for SRTCP, the index.
pub const OVERHEAD_BYTES_MAX: usize = gcm::TAG_BYTES + MKI_BYTES_MAX + INDEX_BYTES;
/// Sources whose rollover counters and windows are kept; one more replaces the one heard of least
/// recently.
const SOURCES_MAX: usize = 4;

/// Why a received packet was dropped. Always the peer's doing, or somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SrtpError {
    /// No RTP or RTCP of version 2 with room for header, MKI and tag.
    #[error("too short for SRTP, or no RTP at all")]
    Short,
    /// Another MKI than the agreed one, or none.
    #[error("SRTP packet of another master key (MKI)")]
    Mki,
    /// The tag does not belong to the packet: another key, or changed on its way.
    #[error("SRTP packet does not authenticate")]
    Auth,
    /// Its index was seen before, or is more than 127 below the highest.
    #[error("SRTP packet came before, or far too late")]
    Replay,
}

/// One leg's SRTP and SRTCP, both directions.
pub struct SrtpSession {
    send: Sending,
    receive: Receiving,
}

/// Our stream.
struct Sending {
    master: MasterKey,
    rtp: Transform,
    rtcp: Transform,
    /// Of the first RTP packet; no other follows, for the rollover counter is this source's.
    ssrc: Option<u32>,
    rtp_used: Window,
    rtcp_used: Window,
}

/// The peer's streams.
struct Receiving {
    master: MasterKey,
    rtp: Transform,
    rtcp: Transform,
    /// The one heard of last first.
    sources: SmallVec<[Source; SOURCES_MAX]>,
}

/// One SSRC of the peer.
struct Source {
    ssrc: u32,
    rtp: Window,
    rtcp: Window,
}

impl SrtpSession {
    /// Nothing was sent or received with these keys yet.
    pub fn new(plan: &SrtpPlan) -> Self {
        Self { send: Sending::new(&plan.send), receive: Receiving::new(&plan.receive) }
    }

    /// Brings near what the next RTP packet from the peer needs, `depth` pointers away: to be called with 1,
    /// then, when that has arrived, with 2.
    pub fn prefetch_receive(&self, depth: usize) {
        if depth > 1 {
            return self.receive.rtp.prefetch_key();
        }
        prefetch(&self.receive.rtp);
        // Of nearly all legs there is one.
        prefetch_first(&self.receive.sources, 2 * size_of::<Source>());
    }

    /// As [`Self::prefetch_receive`], for the next RTP packet to the peer.
    pub fn prefetch_send(&self, depth: usize) {
        if depth > 1 {
            return self.send.rtp.prefetch_key();
        }
        let Sending { rtp, ssrc, rtp_used, .. } = &self.send;
        prefetch(rtp);
        prefetch(ssrc);
        prefetch(rtp_used);
    }

    /// A new offer or answer took effect. A new master key changes no index: rollover counters and
    /// SRTCP indices go on, as RFC 3711 §3.3.1 and §3.4 demand. Replay windows stay while the key
    /// does; under a new one every index near the highest is good once more.
    pub fn update(&mut self, plan: &SrtpPlan) {
        if self.send.master != plan.send {
            let Sending { ssrc, rtp_used, rtcp_used, .. } = &mut self.send;
            let kept = (ssrc.take(), std::mem::take(rtp_used), std::mem::take(rtcp_used));
            self.send = Sending::new(&plan.send);
            (self.send.ssrc, self.send.rtp_used, self.send.rtcp_used) = kept;
        }
        if self.receive.master != plan.receive {
            let is_new = !self.receive.master.is_same_key(&plan.receive);
            let mut sources = std::mem::take(&mut self.receive.sources);
            for source in sources.iter_mut().filter(|_| is_new) {
                source.rtp.forget_used();
                source.rtcp.forget_used();
            }
            self.receive = Receiving { sources, ..Receiving::new(&plan.receive) };
        }
    }

    /// Protects the RTP packet `buf[..len]` in place (RFC 3711 §3.3) and gives its new length. `None`:
    /// `buf` has not [`OVERHEAD_BYTES_MAX`] more, it is no RTP of our one SSRC, its index was used, or
    /// the key's lifetime is spent (RFC 3711 §9.2).
    pub fn protect_rtp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        self.send.protect_rtp(buf, len)
    }

    /// Opens an SRTP packet in place; the RTP packet is what is returned bytes from its start.
    ///
    /// # Errors
    /// See [`SrtpError`]. The packet's bytes are then of no use.
    pub fn unprotect_rtp(&mut self, packet: &mut [u8]) -> Result<usize, SrtpError> {
        self.receive.unprotect_rtp(packet)
    }

    /// Protects the RTCP compound `buf[..len]` in place (RFC 3711 §3.4) and gives its new length.
    /// `None`: `buf` has not [`OVERHEAD_BYTES_MAX`] more, it is no RTCP, or the key's lifetime is spent.
    pub fn protect_rtcp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        self.send.protect_rtcp(buf, len)
    }

    /// Opens an SRTCP packet in place; the compound is what is returned bytes from its start.
    ///
    /// # Errors
    /// See [`SrtpError`]. The packet's bytes are then of no use.
    pub fn unprotect_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, SrtpError> {
        self.receive.unprotect_rtcp(packet)
    }
}

impl std::fmt::Debug for SrtpSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (send, receive) = (&self.send.master, &self.receive.master);
        f.debug_struct("SrtpSession").field("send", send).field("receive", receive).finish_non_exhaustive()
    }
}

impl Sending {
    fn new(master: &MasterKey) -> Self {
        Self {
            master: master.clone(),
            rtp: Transform::new(master, Protocol::Rtp),
            rtcp: Transform::new(master, Protocol::Rtcp),
            ssrc: None,
            rtp_used: Window::default(),
            rtcp_used: Window::default(),
        }
    }

    fn protect_rtp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let (bytes, sequence, ssrc) = rtp_head(buf.get(..len)?)?;
        let index = self.rtp_used.estimate(sequence);
        let fresh = index < RTP_PACKETS_MAX && self.rtp_used.is_fresh(index);
        if !fresh || self.ssrc.is_some_and(|ours| ours != ssrc) {
            return None;
        }
        let len = self.rtp.seal_rtp(buf, len, RtpHead { bytes, ssrc, index })?;
        self.rtp_used.accept(index);
        self.ssrc = Some(ssrc);
        Some(len)
    }

    fn protect_rtcp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let ssrc = rtcp_ssrc(buf.get(..len)?)?;
        // RFC 3711 §3.4: one counter serves any SSRC, and none sees an index twice.
        let index = self.rtcp_used.next();
        if index >= RTCP_PACKETS_MAX {
            return None;
        }
        let len = self.rtcp.seal_rtcp(buf, len, ssrc, u32::try_from(index).ok()?)?;
        self.rtcp_used.accept(index);
        Some(len)
    }
}

impl Receiving {
    fn new(master: &MasterKey) -> Self {
        Self {
            master: master.clone(),
            rtp: Transform::new(master, Protocol::Rtp),
            rtcp: Transform::new(master, Protocol::Rtcp),
            sources: SmallVec::new(),
        }
    }

    fn unprotect_rtp(&mut self, packet: &mut [u8]) -> Result<usize, SrtpError> {
        let (bytes, sequence, ssrc) = rtp_head(packet).ok_or(SrtpError::Short)?;
        let len = self.rtp.check(packet, bytes)?;
        let known = self.sources.iter().position(|source| source.ssrc == ssrc);
        let window = known.and_then(|at| self.sources.get(at)).map(|source| &source.rtp);
        let index = window.map_or(sequence.into(), |window| window.estimate(sequence));
        if index >= RTP_PACKETS_MAX || window.is_some_and(|window| !window.is_fresh(index)) {
            return Err(SrtpError::Replay);
        }
        self.rtp.open_rtp(packet, len, RtpHead { bytes, ssrc, index })?;
        self.source(known, ssrc).rtp.accept(index);
        Ok(len)
    }

    fn unprotect_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, SrtpError> {
        let ssrc = rtcp_ssrc(packet).ok_or(SrtpError::Short)?;
        let len = self.rtcp.check(packet, RTCP_CLEAR_BYTES)?;
        let index = u64::from(self.rtcp.rtcp_index(packet, len)?);
        let known = self.sources.iter().position(|source| source.ssrc == ssrc);
        let window = known.and_then(|at| self.sources.get(at)).map(|source| &source.rtcp);
        if window.is_some_and(|window| !window.is_fresh(index)) {
            return Err(SrtpError::Replay);
        }
        self.rtcp.open_rtcp(packet, len, ssrc)?;
        self.source(known, ssrc).rtcp.accept(index);
        Ok(len)
    }

    /// The state of a source that has just authenticated, now the first.
    fn source(&mut self, known: Option<usize>, ssrc: u32) -> &mut Source {
        match known {
            Some(0) => {}
            Some(at) => self.sources[..=at].rotate_right(1),
            None => {
                self.sources.truncate(SOURCES_MAX - 1);
                self.sources.insert(0, Source { ssrc, rtp: Window::default(), rtcp: Window::default() });
            }
        }
        &mut self.sources[0]
    }
}

/// Bytes of header, CSRC list and extension, sequence number and SSRC of an RTP packet (RFC 3550
/// §5.1). `None`: it is not of version 2 or ends within them.
fn rtp_head(packet: &[u8]) -> Option<(usize, u16, u32)> {
    let [first, _, s0, s1, _, _, _, _, c0, c1, c2, c3] = *packet.first_chunk::<HEADER_BYTES>()?;
    let mut bytes = HEADER_BYTES + usize::from(first & 0x0F) * 4;
    if first & 0x10 != 0 {
        let words = packet.get(bytes + 2..)?.first_chunk::<2>()?;
        bytes += 4 + usize::from(u16::from_be_bytes(*words)) * 4;
    }
    let sound = first >> 6 == 2 && bytes <= packet.len();
    sound.then_some((bytes, u16::from_be_bytes([s0, s1]), u32::from_be_bytes([c0, c1, c2, c3])))
}

/// The SSRC of an RTCP compound's first packet (RFC 3550 §6.4). `None`: not of version 2, or too short.
fn rtcp_ssrc(packet: &[u8]) -> Option<u32> {
    let [first, _, _, _, c0, c1, c2, c3] = *packet.first_chunk::<RTCP_CLEAR_BYTES>()?;
    (first >> 6 == 2).then_some(u32::from_be_bytes([c0, c1, c2, c3]))
}

#[cfg(test)]
mod tests;
