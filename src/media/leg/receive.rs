//! What arrives: source latch, validity, and where each packet goes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Heard, Leg, Verdict};
use crate::base::clock;
use crate::base::limits::SAMPLE_RATE_HZ;
use crate::media::jitter::Content;
use crate::media::mark::{HeardMark, LegMark};
use crate::media::media_clock::Arrival;
use crate::media::order::{Event, LegMode};
use crate::rtp::packet::{self, Packet, RtpHeader, RtpTimestamp, SeqNo};
use crate::rtp::sequence::{SourceState, Validity, clock_units, units_in};

/// After a new answer the old source's last packets are not taken for the new one's first.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// A stream whose last packet is older than this is not running.
const RUNNING: Duration = Duration::from_millis(100);
/// Comfort noise (RFC 3389), a static payload type.
const COMFORT_NOISE: u8 = 13;
/// The stretch one comfort noise packet stands for, samples; the pause after it shows by itself.
const COMFORT_NOISE_SAMPLES: u64 = 8;

/// Who sends to us and how well it arrives.
#[derive(Debug)]
pub(super) struct Receiver {
    opened: Instant,
    latched: Option<SocketAddr>,
    /// The source before the last update, ignored until the instant.
    released: Option<Box<(SocketAddr, Instant)>>,
    source: Option<Source>,
    /// Lost by earlier sources of this leg.
    lost_before: u64,
    media_timeout: Duration,
    /// Media timeout runs from here; `None` once it was raised.
    heard: Option<Instant>,
}

/// One SSRC.
#[derive(Debug)]
struct Source {
    ssrc: u32,
    state: SourceState,
    duplicates: u64,
    newest: SeqNo,
    /// What the packet after the newest audio will carry, and when that one came.
    next: Option<(RtpTimestamp, Instant)>,
}

impl Receiver {
    pub(super) fn new(now: Instant, media_timeout: Duration) -> Self {
        Self {
            opened: now,
            latched: None,
            released: None,
            source: None,
            lost_before: 0,
            media_timeout,
            heard: Some(now),
        }
    }

    /// A receiver that goes on with the source another process heard. The media timeout starts `now`.
    pub(super) fn resume(now: Instant, media_timeout: Duration, mark: &LegMark) -> Self {
        let source = mark.source.as_ref().map(|source| Source {
            ssrc: source.ssrc,
            state: SourceState::resume(&source.counted),
            duplicates: source.duplicates.into(),
            newest: source.newest,
            next: source.next.map(|(timestamp, heard)| (timestamp, clock::at_uptime(heard))),
        });
        Self { latched: mark.latched, source, lost_before: mark.lost_before, ..Self::new(now, media_timeout) }
    }

    /// What [`Self::resume`] needs of the source.
    pub(super) fn mark(&self) -> Option<HeardMark> {
        self.source.as_ref().map(|source| HeardMark {
            ssrc: source.ssrc,
            counted: source.state.mark(),
            duplicates: u32::try_from(source.duplicates).unwrap_or(u32::MAX),
            newest: source.newest,
            next: source.next.map(|(timestamp, heard)| (timestamp, clock::uptime(heard))),
        })
    }

    /// Packets lost by sources before this one.
    pub(super) fn lost_before(&self) -> u64 {
        self.lost_before
    }

    pub(super) fn latched(&self) -> Option<SocketAddr> {
        self.latched
    }

    pub(super) fn release_latch(&mut self, now: Instant) {
        self.released = self.latched.take().map(|source| Box::new((source, now + STRAGGLERS)));
    }

    pub(super) fn restart_media_timeout(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// True once, when nothing was heard for too long.
    pub(super) fn is_media_timeout(&mut self, now: Instant) -> bool {
        let over = self.heard.is_some_and(|heard| now.duration_since(heard) >= self.media_timeout);
        if over {
            self.heard = None;
        }
        over
    }

    /// Timestamp of the audio packet that comes next and the samples since the last one came, if the
    /// stream is running.
    pub(super) fn next_timestamp(&self, now: Instant) -> Option<(RtpTimestamp, i64)> {
        let (timestamp, heard) = self.source.as_ref()?.next?;
        let age = now.saturating_duration_since(heard);
        let samples = i64::try_from(units_in(age, SAMPLE_RATE_HZ)).ok()?;
        (age <= RUNNING).then_some((timestamp, samples))
    }

    /// Packets that never came.
    pub(super) fn lost(&self) -> u64 {
        self.lost_before + self.source.as_ref().map_or(0, Source::lost)
    }

    /// Interarrival jitter, RTP timestamp units.
    pub(super) fn jitter(&self) -> u32 {
        self.source.as_ref().map_or(0, |source| source.state.jitter())
    }

    /// The peer's SSRC and its statistics.
    pub(super) fn source(&mut self) -> Option<(u32, &mut SourceState)> {
        self.source.as_mut().map(|source| (source.ssrc, &mut source.state))
    }

    /// Judges the sequence number. `None`: not to be used; `duplicate` tells why.
    fn judge(&mut self, now: Instant, header: &RtpHeader) -> Result<Arrival, Refusal> {
        let arrival = clock_units(now.saturating_duration_since(self.opened), SAMPLE_RATE_HZ);
        let changed = self.source.as_ref().is_none_or(|source| source.ssrc != header.ssrc);
        if changed {
            self.lost_before = self.lost();
            let state = SourceState::new(header.sequence);
            // One before, so that the first packet is the newest and follows it.
            let newest = header.sequence.plus(u16::MAX);
            self.source = Some(Source { ssrc: header.ssrc, state, duplicates: 0, newest, next: None });
        }
        let Some(source) = &mut self.source else { return Err(Refusal::Invalid) };
        let mut restarted = changed;
        match source.state.handle(header.sequence) {
            Validity::Valid { .. } => {
                source.state.handle_arrival(header.timestamp, arrival);
            }
            // Two packets of a stream that has just begun are not given up for its probation: the
            // source address and payload type were checked, and a greeting's first word counts.
            Validity::Probation => {}
            Validity::Duplicate { .. } => {
                source.duplicates += 1;
                return Err(Refusal::Duplicate);
            }
            Validity::Invalid => return Err(Refusal::Invalid),
            Validity::Restarted { .. } => {
                source.state.handle_arrival(header.timestamp, arrival);
                source.newest = header.sequence.plus(u16::MAX);
                restarted = true;
            }
        }
        let steps = header.sequence.since(source.newest);
        let newest = steps != 0 && steps < 0x8000;
        if newest {
            source.newest = header.sequence;
        }
        Ok(Arrival { newest, in_sequence: steps == 1, restarted, marker: header.marker })
    }
}

impl Source {
    fn lost(&self) -> u64 {
        let duplicates = i64::try_from(self.duplicates).unwrap_or(i64::MAX);
        u64::try_from(self.state.lost().saturating_add(duplicates)).unwrap_or(0)
    }
}

/// Why a packet is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Duplicate,
    Invalid,
}

/// What arrived, and from where.
struct Datagram<'a> {
    from: SocketAddr,
    /// The plain packet, and room where its protection was.
    bytes: &'a mut [u8],
    /// Bytes of the plain packet.
    len: usize,
}

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Audio,
    Event,
    ComfortNoise,
}

impl Leg {
    /// Takes one datagram from the RTP socket. It may be rewritten in place (echo).
    pub fn handle_rtp(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) -> Verdict {
        if self.media.is_none() || self.closing {
            return Verdict::Consumed;
        }
        if !self.is_expected(now, from) {
            self.stats.source_filtered += 1;
            return Verdict::Consumed;
        }
        let Some(len) = self.unprotect_rtp(datagram) else { return Verdict::Consumed };
        let kind = datagram.get(..len).zip(self.media.as_ref()).and_then(|(plain, media)| {
            let packet = packet::parse(plain).ok()?;
            let payload_type = packet.header.payload_type;
            let kind = if payload_type == media.payload_type {
                Kind::Audio
            } else if Some(payload_type) == media.dtmf_payload_type {
                Kind::Event
            } else if payload_type == COMFORT_NOISE {
                Kind::ComfortNoise
            } else {
                return None;
            };
            Some((kind, packet))
        });
        let Some((kind, packet)) = kind else {
            self.stats.invalid += 1;
            return Verdict::Consumed;
        };
        match self.receiver.judge(now, &packet.header) {
            Ok(arrival) => self.accept(now, Datagram { from, bytes: datagram, len }, kind, &packet, arrival),
            Err(Refusal::Duplicate) => {
                self.stats.duplicate += 1;
                Verdict::Consumed
            }
            Err(Refusal::Invalid) => {
                self.stats.invalid += 1;
                Verdict::Consumed
            }
        }
    }

    /// Whether RTP may come from there: from the latched source and no other, else from where the
    /// peer said, or from beside its signalling when it is behind a NAT.
    fn is_expected(&self, now: Instant, from: SocketAddr) -> bool {
        let Some(media) = &self.media else { return false };
        if let Some(latched) = self.receiver.latched {
            return from == latched;
        }
        let released = self.receiver.released.as_deref();
        let straggler = released.is_some_and(|(old, until)| *old == from && now < *until);
        (media.nat == Some(from.ip()) && !straggler) || media.remote_rtp == Some(from)
    }

    fn accept(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        kind: Kind,
        packet: &Packet,
        arrival: Arrival,
    ) -> Verdict {
        self.stats.rx_packets += 1;
        self.stats.rx_bytes += packet.payload.len() as u64;
        self.receiver.heard = Some(now);
        if self.receiver.latched.is_none() {
            self.receiver.latched = Some(datagram.from);
            self.emit(Event::Latched { leg: self.id, peer: datagram.from });
        }
        if self.media.as_ref().is_some_and(|media| media.receive) {
            let payload = datagram.bytes.get(packet.payload.clone()).unwrap_or_default();
            self.hear(now, kind, packet.header.timestamp, payload, arrival);
            self.check_recording(now);
        }
        let Some(codec) = self.media.as_ref().map(|media| media.codec) else { return Verdict::Consumed };
        let heard = Heard {
            kind,
            codec,
            header: packet.header,
            payload: (packet.payload.start, packet.payload.end),
            len: datagram.len,
            newest: arrival.newest,
            restarted: arrival.restarted,
        };
        match self.mode {
            LegMode::Echo => match self.relay(now, &heard, datagram.bytes) {
                Some((len, to)) => Verdict::Send { len, to },
                None => Verdict::Consumed,
            },
            LegMode::Bridged => Verdict::Onward(heard),
            LegMode::Voice | LegMode::Sink => Verdict::Consumed,
        }
    }

    /// Records what a packet says and watches it for keys.
    fn hear(&mut self, now: Instant, kind: Kind, timestamp: RtpTimestamp, payload: &[u8], arrival: Arrival) {
        let Some(codec) = self.media.as_ref().map(|media| media.codec) else { return };
        let watched = self.mode == LegMode::Voice;
        if arrival.restarted {
            if let Some(recorder) = &mut self.recorder {
                recorder.restart();
            }
            if let Some(key) = self.digits.events.restart().filter(|_| watched) {
                self.handle_event_key(now, key);
            }
        }
        let content = match kind {
            Kind::Event => {
                let told = self.digits.events.handle_packet(now, timestamp, payload);
                if let (Some(recorder), Some((from, duration))) = (&mut self.recorder, told.span) {
                    recorder.handle_event(now, from, duration, &mut self.files);
                }
                if watched {
                    self.handle_told(now, told);
                }
                return;
            }
            Kind::Audio => Content::Coded(codec, payload),
            Kind::ComfortNoise => Content::Silence(COMFORT_NOISE_SAMPLES),
        };
        if let Some(recorder) = &mut self.recorder
            && !recorder.handle_packet(now, arrival, timestamp, content, &mut self.files)
        {
            self.stats.late += 1;
        }
        if arrival.newest && kind == Kind::Audio {
            if let Some(source) = &mut self.receiver.source {
                let len = u32::try_from(payload.len()).unwrap_or(0);
                source.next = Some((timestamp.plus(len), now));
            }
            self.digits.listened = Some(now);
            if watched && let Some(tone) = self.digits.tones.handle_audio(codec, payload) {
                self.handle_tone(now, tone);
            }
        }
    }
}
