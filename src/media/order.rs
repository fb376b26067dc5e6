//! The contract between signalling and media shards: `Order` down, `Event` up, `FileOrder` aside.
//!
//! All three travel over bounded queues. A full order queue answers the INVITE with 503; events
//! other than `Opened`, `Recorded` and `Closed` may be dropped with a count.

use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::base::id::{LegId, MessageId, PlayId};
use crate::media::mark::LegMark;
pub use crate::sdp::plan::{Codec, MediaPlan};

/// What a shard needs to open a leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegPlan {
    /// `None` when the offer is ours to make (INVITE without SDP); an `Update` follows.
    pub media: Option<MediaPlan>,
    /// Where RTP and RTCP are bound.
    pub address: IpAddr,
    /// RTCP canonical name (RFC 3550 §6.5.1).
    pub cname: String,
    /// No RTP for this long while we may receive raises `MediaTimeout`.
    pub media_timeout: Duration,
}

/// Immutable audio in every codec of the wire, shared by all shards; one byte a sample.
#[derive(Clone, PartialEq, Eq)]
pub struct Audio {
    /// G.711 µ-law.
    pub pcmu: Arc<[u8]>,
    /// G.711 A-law, as long as `pcmu`.
    pub pcma: Arc<[u8]>,
}

impl Audio {
    /// The bytes for `codec`.
    pub fn bytes(&self, codec: Codec) -> &[u8] {
        match codec {
            Codec::Pcmu => &self.pcmu,
            Codec::Pcma => &self.pcma,
        }
    }

    /// Playing time.
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.pcmu.len() as u64 * 125)
    }
}

impl std::fmt::Debug for Audio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Audio({:?})", self.duration())
    }
}

/// Audio played one after the other, without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Playlist {
    /// The pieces, in order. Empty: `Played` comes at once.
    pub items: Vec<Audio>,
    /// Start again at the end, for ever.
    pub repeat: bool,
}

/// Who and what a recording is for; travels with it to the spool so that a crash loses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingMeta {
    /// Becomes the message's id.
    pub id: MessageId,
    /// The mailbox number it is for; empty when `keep` is false.
    pub mailbox: String,
    /// The caller's number or user part, empty when anonymous.
    pub caller: String,
    /// The caller's display name, or empty.
    pub caller_name: String,
    /// The number that was called: the Request-URI's user part.
    pub called: String,
    /// The reason of the diversion (RFC 5806) or empty.
    pub diversion_reason: String,
    /// The SIP Call-ID.
    pub call_id: String,
    /// When the recording began, Unix milliseconds.
    pub started_ms: u64,
    /// False for the record test extension: blocks are counted and thrown away.
    pub keep: bool,
}

/// How a leg records what it hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordPlan {
    /// Handed on to the file thread as the recording's first item.
    pub meta: Box<RecordingMeta>,
    /// The recording ends by itself here.
    pub duration_max: Duration,
    /// It also ends after this much silence (or absence of RTP), which is cut from it.
    pub silence_max: Duration,
}

/// What a leg does with received audio besides recording it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegMode {
    /// Interactive voice: audio is watched for DTMF and silence, playlists are sent.
    Voice,
    /// Each packet goes back to its sender with our SSRC and sequence (test extension 9196).
    Echo,
    /// Packets are counted and thrown away; silence is sent (test extension 9199).
    Sink,
    /// Packets go to the leg that [`Order::Bridge`] named; nothing of our own is sent. Ordered by
    /// [`Order::Mode`], a leg without a peer throws them away.
    Bridged,
}

/// A leg whose process died and that goes on here, with the sockets it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The even port it had, and has.
    pub rtp_port: u16,
    /// What was agreed for it, as signalling knew it last.
    pub plan: LegPlan,
    /// How far it had come.
    pub mark: LegMark,
    /// What it should be playing.
    pub play: Option<(PlayId, Playlist)>,
    /// What it should be recording.
    pub record: Option<RecordPlan>,
    /// The leg that it is in a bridge with: adopted in the same moment, so that nothing it hears goes
    /// astray.
    pub peer: Option<(LegId, Box<Adoption>)>,
}

/// Signalling to a media shard.
#[derive(Debug)]
pub enum Order {
    /// Bind a port pair and arm it; answered by `Opened` or `OpenFailed`.
    Open(LegId, Box<LegPlan>),
    /// Go on with a leg of a process that died; answered by `Opened` or `OpenFailed`.
    Adopt(LegId, Box<Adoption>),
    /// A new offer or answer took effect.
    Update(LegId, Box<MediaPlan>),
    /// Choose what happens to received audio. Legs start in `Voice`. Ends a bridge; the other leg
    /// falls back to `Voice`.
    Mode(LegId, LegMode),
    /// Join two open legs of this shard: what one receives goes out on the other, as one of its own
    /// packets, translated between PCMU and PCMA and between RTP and SRTP as their plans say. Lasts
    /// until one of them is closed or gets a mode or another bridge.
    Bridge(LegId, LegId),
    /// Replace what is playing; `Played` follows at its end, not when it is replaced or stopped.
    Play(LegId, PlayId, Playlist),
    /// End playing, no event.
    StopPlay(LegId),
    /// Start recording; `Recorded` follows, always.
    Record(LegId, RecordPlan),
    /// End the recording now.
    StopRecord(LegId),
    /// RTCP BYE, cancel, quarantine the ports; ends a recording first. Answered by `Closed`.
    Close(LegId),
    /// Tell the counters of all legs, some in each turn; answered by a `Report` of each.
    Report,
    /// Take no new legs; leave the loop when the last is closed.
    Drain,
}

/// Why a recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordEnd {
    /// `StopRecord`, by a digit or the flow.
    Stopped,
    /// `silence_max` passed; the recording was cut back to where the silence began.
    Silence,
    /// `duration_max` was reached.
    Limit,
    /// The leg was closed: the caller hung up.
    Closed,
}

/// How a digit arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DigitSource {
    /// Telephone-event (RFC 4733).
    Event,
    /// Tones found in the audio (ITU-T Q.23).
    InBand,
}

/// Why a leg could not be opened. All are ours, answered with 503 and Retry-After.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum OpenError {
    /// Every pair of the slice is in use or in quarantine.
    #[error("no free RTP port pair in this shard's slice")]
    NoPort,
    /// The kernel refused sockets or buffers.
    #[error("no socket for media: {}", std::io::Error::from_raw_os_error(*.0))]
    Socket(i32),
    /// The shard is draining.
    #[error("the media shard is draining")]
    Draining,
}

/// What one leg received and sent. Counters only grow; `jitter` and `rtt` are the last values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct LegStats {
    /// RTP packets accepted from the latched source.
    pub rx_packets: u64,
    /// Their payload bytes.
    pub rx_bytes: u64,
    /// RTP packets handed to the kernel.
    pub tx_packets: u64,
    /// Their payload bytes.
    pub tx_bytes: u64,
    /// Sends the kernel refused (full buffer or ICMP error).
    pub tx_errors: u64,
    /// Packets of the other leg of a bridge that could not go out here: on hold, no address, or no
    /// payload type agreed for them.
    pub relay_dropped: u64,
    /// Expected but never seen (RFC 3550 §6.4.1, cumulative number lost).
    pub lost: u64,
    /// Arrived after their place had been recorded or played.
    pub late: u64,
    /// Sequence numbers seen twice.
    pub duplicate: u64,
    /// Datagrams that are no valid RTP (RFC 3550 A.1) or of an unknown payload type.
    pub invalid: u64,
    /// Datagrams from another source than the latched one.
    pub source_filtered: u64,
    /// SRTP and SRTCP packets of the right source that do not authenticate, are too short or carry
    /// another MKI.
    pub srtp_auth_failed: u64,
    /// Plain RTCP packets of the right source where SRTCP was agreed: dropped. Some phones send the
    /// first and last one of a call so.
    pub srtcp_missing: u64,
    /// SRTP and SRTCP packets that came before, or more than 127 packets late (RFC 3711 §3.3.2).
    pub srtp_replayed: u64,
    /// Interarrival jitter, RTP timestamp units (8 = 1 ms).
    pub jitter: u32,
    /// Loss the far end reports, out of 256 (RFC 3550 §6.4.1).
    pub remote_fraction_lost: u8,
    /// Round trip from RTCP, microseconds; `None` until a report allows it.
    pub rtt_us: Option<u32>,
}

impl LegStats {
    /// The first bytes: counters of packets and bytes, which grow with every packet.
    pub const HOT_BYTES: usize = offset_of!(Self, tx_errors);
}

/// A media shard to signalling.
#[derive(Debug)]
pub enum Event {
    /// The pair is bound and armed; RTP arrives at `rtp_port`, RTCP at the next port.
    Opened {
        /// Which leg.
        leg: LegId,
        /// Even port.
        rtp_port: u16,
    },
    /// The leg does not exist.
    OpenFailed {
        /// Which leg.
        leg: LegId,
        /// Why.
        error: OpenError,
    },
    /// A complete key press, once.
    Digit {
        /// Which leg.
        leg: LegId,
        /// `0`-`9`, `*`, `#`, `A`-`D`, or `f` for event 16, `c` for event 36 (CNG).
        digit: char,
        /// RFC 4733 or in-band.
        source: DigitSource,
    },
    /// A playlist reached its end.
    Played {
        /// Which leg.
        leg: LegId,
        /// Which `Play`.
        play: PlayId,
    },
    /// A recording ended; its blocks are already on the way to the file thread.
    Recorded {
        /// Which leg.
        leg: LegId,
        /// Which recording.
        id: MessageId,
        /// What is in the file.
        duration: Duration,
        /// Time above the silence threshold: nought means nobody spoke.
        voiced: Duration,
        /// Why it ended.
        end: RecordEnd,
    },
    /// The first valid packet fixed the source.
    Latched {
        /// Which leg.
        leg: LegId,
        /// RTP now goes to and comes from here.
        peer: SocketAddr,
    },
    /// No RTP for `LegPlan::media_timeout`.
    MediaTimeout {
        /// Which leg.
        leg: LegId,
    },
    /// The leg's counters now.
    Report {
        /// Which leg.
        leg: LegId,
        /// Its counters.
        stats: Box<LegStats>,
    },
    /// The leg is gone and its ports are in quarantine.
    Closed {
        /// Which leg.
        leg: LegId,
        /// Its final counters.
        stats: Box<LegStats>,
    },
}

/// Audio on its way to disk, as it came: one byte a sample, at most `RECORD_BLOCK_SAMPLES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodedBlock {
    /// What the bytes are.
    pub codec: Codec,
    /// The samples.
    pub bytes: BytesMut,
}

/// A media shard to the file thread. `Begin`, blocks and `End` of one recording keep their order
/// because one shard sends them.
#[derive(Debug)]
pub enum FileItem {
    /// Create `spool/<id>.wav.part` and `spool/<id>.json`.
    Begin(Box<RecordingMeta>),
    /// Append.
    Block(MessageId, CodedBlock),
    /// Cut the file to `samples` (silence at its end is dropped) and close it.
    End {
        /// Which recording.
        id: MessageId,
        /// Samples that stay.
        samples: u64,
    },
}
