//! One leg: what a call's media does, packet by packet.
//!
//! The shard owns sockets and time. It hands in datagrams and orders, calls `handle_timeout` and
//! then `poll_rtp` once a period (a packet time, as a rule) at the leg's own phase, and drains
//! `poll_output` after each.
//! Nothing here allocates per packet; a leg that records takes one block each 800 ms.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use crate::base::id::{LegId, MessageId, PlayId};
use crate::media::mark::RecordMark;
use crate::media::order::{
    Codec, Event, FileItem, LegMode, LegPlan, LegStats, MediaPlan, Playlist, RecordEnd, RecordPlan,
};
use crate::media::playout::Player;
use crate::media::record::Recorder;
use crate::rtp::packet::{HEADER_BYTES, RtpHeader, RtpTimestamp, SeqNo, write_header};
use crate::rtp::srtp::{SrtpMark, SrtpSession};
use crate::uring::{HugeBox, prefetch};

mod digits;
mod protect;
mod receive;
mod relay;
mod report;
mod resume;

use digits::DigitWatch;
use receive::Receiver;
pub use relay::Heard;
use relay::Offsets;
use report::Reporter;

/// RTP units in a millisecond at 8000 Hz.
const UNITS_PER_MS: u32 = 8;
/// How often a leg is served that has nothing to send by itself, ms.
const SELDOM_MS: u8 = 100;

/// Random beginnings of what we send (RFC 3550 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegSeed {
    /// Our SSRC.
    pub ssrc: u32,
    /// Sequence number of the first packet.
    pub sequence: u16,
    /// RTP timestamp of the first packet.
    pub timestamp: u32,
}

impl From<[u8; 10]> for LegSeed {
    /// Of random bytes.
    fn from(random: [u8; 10]) -> Self {
        let [s0, s1, s2, s3, q0, q1, t0, t1, t2, t3] = random;
        Self {
            ssrc: u32::from_ne_bytes([s0, s1, s2, s3]),
            sequence: u16::from_ne_bytes([q0, q1]),
            timestamp: u32::from_ne_bytes([t0, t1, t2, t3]),
        }
    }
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The buffer is free again.
    Consumed,
    /// The datagram was rewritten in place and goes out from the same buffer.
    Send {
        /// Its bytes.
        len: usize,
        /// Where it goes.
        to: SocketAddr,
    },
    /// The packet is for the other leg of the bridge, see [`Leg::relay`].
    Onward(Heard),
}

/// What a leg has to say.
#[derive(Debug)]
pub enum LegOutput {
    /// To signalling.
    Event(Event),
    /// To the file thread.
    File(FileItem),
}

/// One leg's media. What every packet needs comes first, up to the counters of packets: a leg that slept
/// for a packet time is far from the processor, and the rest of it need not come near for each.
#[derive(Debug)]
#[repr(C)]
pub struct Leg {
    mode: LegMode,
    closing: bool,
    /// It goes on from another process and has not been told its mode or bridge again.
    resumed: bool,
    id: LegId,
    recorder: Option<HugeBox<Recorder>>,
    /// In use while `media` says so. It stays when media goes without for a while: were it made
    /// again with the same key, it would use an index again.
    srtp: Option<HugeBox<SrtpSession>>,
    sender: Sender,
    media: Option<MediaPlan>,
    receiver: Receiver,
    events: VecDeque<Event>,
    files: VecDeque<FileItem>,
    stats: LegStats,
    player: Option<Player>,
    reporter: Reporter,
    digits: DigitWatch,
    /// The last playlist that reached its end, until another order.
    played: Option<PlayId>,
    /// What the last recording came to, until another order.
    recorded: Option<Box<RecordMark>>,
    /// Indices of a session whose keys this process has not seen yet.
    srtp_before: Option<Box<SrtpMark>>,
}

/// Our RTP stream.
#[derive(Debug)]
struct Sender {
    ssrc: u32,
    /// Of the next packet.
    sequence: SeqNo,
    /// Of the next packet; runs on with time while nothing is sent.
    timestamp: RtpTimestamp,
    /// The next packet is the first, or the first after a pause (RFC 3551 §4.1).
    marker: bool,
    /// How what is relayed differs from what was received; chosen at the first packet.
    offsets: Option<Offsets>,
}

impl Leg {
    /// A leg that was just opened. `wall` is calendar time at `now`, for RTCP.
    pub fn new(now: Instant, wall: SystemTime, leg: LegId, plan: LegPlan, seed: LegSeed) -> Self {
        let sender = Sender {
            ssrc: seed.ssrc,
            sequence: SeqNo(seed.sequence),
            timestamp: RtpTimestamp(seed.timestamp),
            marker: true,
            offsets: None,
        };
        let mut leg = Self {
            id: leg,
            media: None,
            srtp: None,
            srtp_before: None,
            mode: LegMode::Voice,
            resumed: false,
            sender,
            player: None,
            played: None,
            receiver: Receiver::new(now, plan.media_timeout),
            reporter: Reporter::new(now, wall, plan.cname, seed.ssrc),
            digits: DigitWatch::default(),
            recorder: None,
            recorded: None,
            events: VecDeque::new(),
            files: VecDeque::new(),
            stats: LegStats::default(),
            closing: false,
        };
        leg.set_media(plan.media);
        leg
    }

    /// A new offer or answer took effect. Another remote address releases the latch; a pause in
    /// either direction keeps playlist and recording where they are.
    pub fn update(&mut self, now: Instant, media: MediaPlan) {
        let remote = self.media.as_ref().and_then(|old| old.remote_rtp);
        if remote != media.remote_rtp {
            self.receiver.release_latch(now);
        }
        let held = self.media.as_ref().is_none_or(|old| old.receive != media.receive);
        if held {
            self.receiver.restart_media_timeout(now);
        }
        if let Some(recorder) = self.recorder.as_mut().filter(|_| held || remote != media.remote_rtp) {
            recorder.restart();
        }
        self.set_media(Some(media));
    }

    /// Chooses what happens to received audio.
    ///
    /// Where the numbers of relayed packets are moved to is chosen anew, but for a leg that goes on as
    /// it was in another process.
    pub fn set_mode(&mut self, mode: LegMode) {
        let goes_on = std::mem::take(&mut self.resumed) && self.mode == mode;
        self.mode = mode;
        if !goes_on {
            self.sender.offsets = None;
        }
    }

    /// Replaces what is playing. `Played` follows at its end, at once if there is nothing in it.
    pub fn play(&mut self, play: PlayId, playlist: Playlist) {
        self.player = Player::new(play, playlist);
        self.played = None;
        if self.player.is_none() {
            self.end_play(play);
        }
    }

    /// Ends playing; no event.
    pub fn stop_play(&mut self) {
        self.player = None;
        self.played = None;
    }

    /// Starts recording what arrives from now on. One that is under way ends first.
    pub fn record(&mut self, now: Instant, plan: RecordPlan) {
        self.end_recording(now, RecordEnd::Stopped);
        self.recorded = None;
        let id = plan.meta.id.clone();
        let next = self.receiver.next_timestamp(now);
        self.recorder = Some(HugeBox::new(Recorder::new(now, id, &plan, next)));
        self.files.push_back(FileItem::Begin(plan.meta));
        if self.closing {
            self.end_recording(now, RecordEnd::Closed);
        }
    }

    /// Ends the recording, if there is one.
    pub fn stop_record(&mut self, now: Instant) {
        self.end_recording(now, RecordEnd::Stopped);
    }

    /// Ends a recording and makes the next `poll_rtcp` say BYE. No RTP follows.
    pub fn close(&mut self, now: Instant) {
        self.end_recording(now, RecordEnd::Closed);
        self.closing = true;
        self.reporter.close();
    }

    /// To be called once a period, or when all that came was heard: recording, digits, media timeout.
    pub fn handle_timeout(&mut self, now: Instant) {
        let receive = self.media.as_ref().is_some_and(|media| media.receive);
        if receive && !self.closing && self.receiver.is_media_timeout(now) {
            self.emit(Event::MediaTimeout { leg: self.id });
        }
        self.handle_digit_timeout(now);
        if let Some(recorder) = &mut self.recorder {
            recorder.handle_timeout(now, &mut self.files);
        }
        self.check_recording(now);
    }

    /// The one packet due at this phase, written to `buf`: its length and destination. Silence when
    /// nothing plays. `None`: we may not send, know no address, echo, or are closed; the playlist
    /// then stands still.
    pub fn poll_rtp(&mut self, now: Instant, buf: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let timestamp = self.sender.timestamp;
        self.sender.timestamp = timestamp.plus(u32::from(self.period_ms()) * UNITS_PER_MS);
        let Some((to, codec, payload_type)) = self.destination() else {
            self.sender.marker = true;
            return None;
        };
        let samples = u32::from(self.ptime_ms()) * UNITS_PER_MS;
        let header = RtpHeader {
            marker: std::mem::take(&mut self.sender.marker),
            payload_type,
            sequence: self.sender.sequence,
            timestamp,
            ssrc: self.sender.ssrc,
        };
        let len = HEADER_BYTES + usize::try_from(samples).ok()?;
        let packet = buf.get_mut(..len)?;
        write_header(&header, packet);
        let payload = &mut packet[HEADER_BYTES..];
        match &mut self.player {
            Some(player) if self.mode == LegMode::Voice => {
                if player.fill(codec, payload) {
                    let play = player.play();
                    self.end_play(play);
                }
            }
            Some(_) | None => payload.fill(codec.silence()),
        }
        self.sender.sequence = self.sender.sequence.plus(1);
        let len = self.protect_rtp(buf, len)?;
        self.reporter.note_sent(now, timestamp);
        self.stats.tx_packets += 1;
        self.stats.tx_bytes += u64::from(samples);
        Some((len, to))
    }

    /// The shard stalled and `n` packets were not sent: our timestamps jump, the prompt does not.
    pub fn skip_packets(&mut self, n: u32) {
        let samples = u32::from(self.period_ms()) * UNITS_PER_MS;
        self.sender.timestamp = self.sender.timestamp.plus(samples.wrapping_mul(n));
        self.sender.marker |= n > 0;
    }

    /// The next output: file items first, so that `Recorded` finds its blocks on the way; each kind
    /// in order.
    pub fn poll_output(&mut self) -> Option<LegOutput> {
        match self.files.pop_front() {
            Some(item) => Some(LegOutput::File(item)),
            None => self.events.pop_front().map(LegOutput::Event),
        }
    }

    /// The kernel refused a packet of ours.
    pub fn handle_send_error(&mut self) {
        self.stats.tx_errors += 1;
    }

    /// Packet time of what we send, ms; 20 until media is agreed.
    pub fn ptime_ms(&self) -> u8 {
        self.media.as_ref().map_or(20, |media| media.ptime_ms)
    }

    /// How often the leg wants [`Self::handle_timeout`] and [`Self::poll_rtp`], ms: once a packet time,
    /// or seldom while it sends nothing but what it relays.
    pub fn period_ms(&self) -> u8 {
        if self.makes_packets() { self.ptime_ms() } else { SELDOM_MS }
    }

    /// The first bytes of a leg: what every packet needs of it.
    pub const HOT_BYTES: usize = offset_of!(Self, stats) + LegStats::HOT_BYTES;

    /// How many pointers away what a packet needs is at most.
    pub const DEPTH_MAX: usize = 2;

    /// Brings near what the next packet to arrive needs besides [`Self::HOT_BYTES`], `depth` pointers
    /// away: to be called with 1, when those are near, then, when that has arrived, with 2.
    pub fn prefetch_receive(&mut self, depth: usize) {
        if depth == 1 && self.mode == LegMode::Voice {
            prefetch(&self.digits.tones);
        }
        if let Some(session) = &self.srtp {
            session.prefetch_receive(depth);
        }
        self.prefetch_recorder(depth);
    }

    /// As [`Self::prefetch_receive`], for the packet that is due.
    pub fn prefetch_turn(&mut self, depth: usize) {
        if depth == 1 {
            prefetch(&self.player);
            prefetch(&self.reporter);
        } else if let Some(player) = &self.player {
            player.prefetch();
        }
        self.prefetch_relay(depth);
    }

    /// As [`Self::prefetch_receive`], for a packet to be relayed.
    pub fn prefetch_relay(&self, depth: usize) {
        if let Some(session) = &self.srtp {
            session.prefetch_send(depth);
        }
    }

    fn prefetch_recorder(&mut self, depth: usize) {
        match &mut self.recorder {
            Some(recorder) if depth > 1 => recorder.prefetch_block(),
            Some(recorder) => prefetch(&**recorder),
            None => {}
        }
    }

    /// The source that RTP comes from and goes to, once its first packet arrived.
    pub fn latched(&self) -> Option<SocketAddr> {
        self.receiver.latched()
    }

    /// Counters up to now.
    pub fn stats(&self) -> LegStats {
        LegStats { lost: self.receiver.lost(), jitter: self.receiver.jitter(), ..self.stats.clone() }
    }

    /// Where our packet goes and how it is coded, if one may go.
    fn destination(&self) -> Option<(SocketAddr, Codec, u8)> {
        let media = self.media.as_ref()?;
        if !self.makes_packets() || self.closing {
            return None;
        }
        let to = self.receiver.latched().or(media.remote_rtp)?;
        Some((to, media.codec, media.payload_type))
    }

    /// Whether what arrives may wait a while for [`Self::handle_rtp`]: it goes no further, and where it comes
    /// from is known.
    pub fn may_wait(&self) -> bool {
        !self.relays() && !self.closing && self.receiver.latched().is_some()
    }

    /// Whether what it hears goes on.
    fn relays(&self) -> bool {
        matches!(self.mode, LegMode::Echo | LegMode::Bridged)
    }

    /// Whether what it sends is its own: prompts and silence.
    fn makes_packets(&self) -> bool {
        !self.relays() && self.media.as_ref().is_some_and(|media| media.send)
    }

    fn emit(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Nothing of the playlist is left.
    fn end_play(&mut self, play: PlayId) {
        self.player = None;
        self.played = Some(play);
        self.emit(Event::Played { leg: self.id, play });
    }

    /// Ends a recording that has reached its limit or fallen silent.
    fn check_recording(&mut self, now: Instant) {
        if let Some(end) = self.recorder.as_ref().and_then(|recorder| recorder.ended()) {
            self.end_recording(now, end);
        }
    }

    fn end_recording(&mut self, now: Instant, end: RecordEnd) {
        let Some(recorder) = self.recorder.take() else { return };
        // It may have ended by itself since it was last asked.
        let end = recorder.ended().unwrap_or(end);
        let recording = recorder.into_inner().finish(now, end, &mut self.files);
        self.recorded = Some(Box::new(recording.mark(end)));
        self.emit(recorded(self.id, recording.id, recording.samples, recording.sound, end));
    }
}

/// The news that a recording ended with `samples`, of which `sound` are sound.
fn recorded(leg: LegId, id: MessageId, samples: u64, sound: u64, end: RecordEnd) -> Event {
    Event::Recorded { leg, id, duration: duration_of(samples), voiced: duration_of(sound), end }
}

/// `samples` as time.
fn duration_of(samples: u64) -> Duration {
    Duration::from_micros(samples.saturating_mul(125))
}

#[cfg(test)]
mod tests;
