//! How far a leg has come, in a fixed number of words: a shard writes it to memory that outlives the
//! process, and a leg of another process goes on from there.
//!
//! Only what cannot be had elsewhere is in it. Plans, keys, playlists and descriptions are signalling's
//! to keep; times are uptimes, which every process of a machine shares.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::id::{LegId, MessageId, PlayId};
use crate::media::media_clock::ClockMark;
use crate::media::order::{LegMode, LegStats, RecordEnd};
use crate::rtp::packet::{RtpTimestamp, SeqNo};
use crate::rtp::sequence::SourceMark;
use crate::rtp::srtp::SrtpMark;

mod words;

/// Words of a mark.
pub const MARK_WORDS: usize = 40;

/// One leg at one instant. To be made when the leg has been served, not while packets are overdue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegMark {
    /// Which leg it was in the process that wrote this.
    pub leg: LegId,
    /// When, as uptime ([`crate::base::clock::uptime`]).
    pub at: Duration,
    /// What it did with received audio.
    pub mode: LegMode,
    /// It made packets of its own, one each so many milliseconds.
    pub makes_ms: Option<u8>,
    /// Our SSRC.
    pub ssrc: u32,
    /// Sequence number of our next packet.
    pub sequence: SeqNo,
    /// RTP timestamp of our next packet.
    pub timestamp: RtpTimestamp,
    /// What was added to sequence numbers and timestamps of relayed packets.
    pub offsets: Option<(u16, u32)>,
    /// The source that RTP was taken from. An IPv6 flow label is not kept.
    pub latched: Option<SocketAddr>,
    /// The SSRC heard last.
    pub source: Option<HeardMark>,
    /// Packets lost by sources before that one.
    pub lost_before: u64,
    /// Timestamp of the newest telephone-event that is over: its end may still be repeated.
    pub event_over: Option<RtpTimestamp>,
    /// What played and how many samples of it; `u64::MAX`: it has reached its end.
    pub playing: Option<(PlayId, u64)>,
    /// The recording that runs, or the last one.
    pub recording: Option<RecordMark>,
    /// Packet indices, if the leg ever had keys.
    pub srtp: Option<SrtpMark>,
    /// Its counters. `lost` and `jitter` are nought here, for they follow from `source`; what is no
    /// count of packets sent or received is kept up to 2^32.
    pub stats: LegStats,
}

/// One SSRC of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardMark {
    /// Which.
    pub ssrc: u32,
    /// Its statistics.
    pub counted: SourceMark,
    /// Duplicates among them, up to 2^32.
    pub duplicates: u32,
    /// Its youngest packet.
    pub newest: SeqNo,
    /// What the packet after the newest audio will carry, and when that audio came, as uptime.
    pub next: Option<(RtpTimestamp, Duration)>,
}

/// One recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMark {
    /// The random part of its id.
    pub tag: u64,
    /// Why it ended, if it did.
    pub end: Option<RecordEnd>,
    /// Samples of it: where the next one goes while it runs, what stays once it has ended.
    pub samples: u64,
    /// Samples of sound among them.
    pub sound: u64,
    /// Where the last sound ended, samples.
    pub sound_end: u64,
    /// When it began, as uptime.
    pub began: Duration,
    /// Where its timestamps lie.
    pub clock: ClockMark,
    /// Samples of a packet.
    pub packet_len: u16,
}

impl LegMark {
    /// As words, for [`Self::from_words`].
    pub fn to_words(&self) -> [u64; MARK_WORDS] {
        words::write(self)
    }

    /// What [`Self::to_words`] wrote. `None`: it did not write this.
    pub fn from_words(words: &[u64; MARK_WORDS]) -> Option<Self> {
        let mark = words::read(words)?;
        (mark.to_words() == *words && mark.is_possible()).then_some(mark)
    }

    /// The recording of this id, if the mark speaks of it.
    pub fn recording(&self, id: &MessageId) -> Option<&RecordMark> {
        self.recording.as_ref().filter(|recording| recording.tag == id.random())
    }

    /// Nothing in it is more than a leg can come to, so that what is counted on from it does not
    /// overflow.
    fn is_possible(&self) -> bool {
        /// Far beyond what a machine sends, records or counts in its life.
        const MOST: u64 = 1 << 48;
        let source = self.source.as_ref().map(|source| source.counted);
        let srtp = self.srtp.unwrap_or_default();
        let recording = self.recording.as_ref();
        let counts = [
            self.lost_before,
            source.map_or(0, |source| source.highest),
            source.map_or(0, |source| source.received),
            srtp.rtp_next,
            srtp.source.map_or(0, |source| source.rtp_next),
            recording.map_or(0, |recording| recording.samples),
            recording.map_or(0, |recording| recording.sound.max(recording.sound_end)),
            recording.and_then(|recording| recording.clock.anchor).map_or(0, |(_, at)| at.unsigned_abs()),
            self.stats.rx_packets,
            self.stats.rx_bytes,
            self.stats.tx_packets,
            self.stats.tx_bytes,
        ];
        let in_order = source.is_none_or(|source| (1 << 16..=source.highest).contains(&source.base));
        counts.iter().all(|count| *count <= MOST) && in_order
    }
}

#[cfg(test)]
pub(super) mod tests;
