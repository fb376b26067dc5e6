//! SRTP of one leg: keys come with its media, and what fails is counted.

use super::Leg;
use crate::base::limits::RTP_DATAGRAM_BYTES_MAX;
use crate::media::order::MediaPlan;
use crate::rtp::packet::{HEADER_BYTES, SeqNo};
use crate::rtp::rtcp::{self, COMPOUND_BYTES_MAX};
use crate::rtp::srtp::{OVERHEAD_BYTES_MAX, SrtpError, SrtpSession};
use crate::uring::HugeBox;

/// Bytes of the longest payload we send: 60 ms of G.711.
const PAYLOAD_BYTES_MAX: usize = 480;
const _: () = assert!(HEADER_BYTES + PAYLOAD_BYTES_MAX + OVERHEAD_BYTES_MAX <= RTP_DATAGRAM_BYTES_MAX);
const _: () = assert!(COMPOUND_BYTES_MAX + OVERHEAD_BYTES_MAX <= RTP_DATAGRAM_BYTES_MAX);

impl Leg {
    /// Takes what was agreed, and its keys.
    pub(super) fn set_media(&mut self, media: Option<MediaPlan>) {
        if let Some(plan) = media.as_ref().and_then(|media| media.srtp.as_ref()) {
            if let Some(session) = &mut self.srtp {
                session.update(plan);
            } else if let Some(before) = self.srtp_before.take() {
                self.srtp = Some(HugeBox::new(SrtpSession::resume(plan, &before, self.sender.sequence.0, 0)));
            } else {
                self.srtp = Some(HugeBox::new(SrtpSession::new(plan)));
                if self.stats.tx_packets == 0 {
                    // A peer that hears us only after our numbers wrapped would never find our rollover
                    // counter (RFC 3711 §3.3.1: it begins with nought), so the wrap is far away.
                    self.sender.sequence = SeqNo(self.sender.sequence.0 & 0x7FFF);
                }
            }
        }
        self.media = media;
    }

    /// The RTP packet `buf[..len]` as it goes out, and its length. `None`, which is counted: `buf` is
    /// too short or the key protects no more.
    pub(super) fn protect_rtp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let Some(session) = self.session() else { return Some(len) };
        let protected = session.protect_rtp(buf, len);
        self.stats.tx_errors += u64::from(protected.is_none());
        protected
    }

    /// As `protect_rtp`, for an RTCP compound.
    pub(super) fn protect_rtcp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let Some(session) = self.session() else { return Some(len) };
        let protected = session.protect_rtcp(buf, len);
        self.stats.tx_errors += u64::from(protected.is_none());
        protected
    }

    /// Opens what the RTP socket brought, in place, and gives its plain length. `None`, which is
    /// counted: it does not authenticate.
    pub(super) fn unprotect_rtp(&mut self, datagram: &mut [u8]) -> Option<usize> {
        let Some(session) = self.session() else { return Some(datagram.len()) };
        let opened = session.unprotect_rtp(datagram);
        opened.map_err(|error| self.count(error)).ok()
    }

    /// As `unprotect_rtp`, for what the RTCP socket brought; gives the plain compound.
    pub(super) fn unprotect_rtcp<'a>(&mut self, datagram: &'a mut [u8]) -> Option<&'a [u8]> {
        let Some(session) = self.session() else { return Some(datagram) };
        let is_plain = rtcp::is_plain(datagram);
        match session.unprotect_rtcp(datagram) {
            Ok(len) => return datagram.get(..len),
            Err(SrtpError::Replay) => self.count(SrtpError::Replay),
            Err(_) if is_plain => self.stats.srtcp_missing += 1,
            Err(error) => self.count(error),
        }
        None
    }

    fn session(&mut self) -> Option<&mut SrtpSession> {
        self.media.as_ref()?.srtp.as_ref()?;
        self.srtp.as_deref_mut()
    }

    fn count(&mut self, error: SrtpError) {
        match error {
            SrtpError::Short | SrtpError::Mki | SrtpError::Auth => self.stats.srtp_auth_failed += 1,
            SrtpError::Replay => self.stats.srtp_replayed += 1,
        }
    }
}
