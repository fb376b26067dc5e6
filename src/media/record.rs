//! One recording: from packets to blocks of coded samples, in step with RTP timestamps.
//!
//! Packets wait in a reorder window until what lies before them came or is given up after
//! [`REORDER_WAIT`]; losses are concealed, pauses of the sender are silence. While nothing arrives,
//! real time fills in silence. What was written is final except for the block being filled.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::base::id::MessageId;
use crate::base::limits::{RECORD_BLOCK_SAMPLES, SAMPLE_RATE_HZ};
use crate::media::jitter::{Content, ReorderWindow};
use crate::media::media_clock::{AHEAD_MAX, Arrival, MediaClock, Place, Progress};
use crate::media::order::{Codec, CodedBlock, FileItem, RecordEnd, RecordPlan};
use crate::media::plc::Plc;
use crate::media::silence::EnergyGate;
use crate::rtp::packet::RtpTimestamp;
use crate::rtp::sequence::units_in;
use crate::uring::prefetch;

mod resume;
mod room;

/// A gap with later packets behind it is given up after this.
pub const REORDER_WAIT: Duration = Duration::from_millis(100);
/// Or when so much lies between the gap and the newest packet: 200 ms.
const REORDER_SAMPLES: u64 = 1600;
/// Nothing heard for this long: real time takes over, staying this far behind.
pub const STALL: Duration = Duration::from_millis(200);
/// As samples.
const STALL_SAMPLES: i64 = 1600;
/// Samples written at once.
const PART: usize = 480;
/// A key's tone is cut off the end when the recording is stopped this soon after it, samples.
const TONE_TAIL: u64 = 2_400;

/// A recording under way.
#[derive(Debug)]
pub struct Recorder {
    id: MessageId,
    began: Instant,
    clock: MediaClock,
    window: ReorderWindow,
    plc: Plc,
    gate: EnergyGate,
    /// When the first packet behind a gap came.
    gap_since: Option<Instant>,
    /// When audio last found a place.
    heard: Instant,
    /// Samples of the last packet.
    packet_len: i64,
    /// What is being filled, in the codec heard last.
    block: CodedBlock,
    /// Position of the block's first sample.
    block_start: u64,
    limit: u64,
    silence_max: u64,
    /// Where a key's tone began and was cut.
    tone: Option<(u64, u64)>,
    end: Option<RecordEnd>,
    /// Nothing was heard yet in this process; what came before it died with another one.
    resumed: bool,
}

/// What a recording came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Which.
    pub id: MessageId,
    /// Samples that stay in the file.
    pub samples: u64,
    /// Samples of sound in it.
    pub sound: u64,
}

impl Recorder {
    /// Begins `now`. `next`: see [`MediaClock::new`].
    pub fn new(now: Instant, id: MessageId, plan: &RecordPlan, next: Option<(RtpTimestamp, i64)>) -> Self {
        Self {
            id,
            began: now,
            clock: MediaClock::new(next),
            window: ReorderWindow::default(),
            plc: Plc::default(),
            gate: EnergyGate::default(),
            gap_since: None,
            heard: now,
            packet_len: 160,
            block: CodedBlock { codec: Codec::Pcmu, bytes: BytesMut::new() },
            block_start: 0,
            limit: samples_in(plan.duration_max),
            silence_max: samples_in(plan.silence_max),
            tone: None,
            end: None,
            resumed: false,
        }
    }

    /// Why it ended by itself, once it has.
    pub fn ended(&self) -> Option<RecordEnd> {
        self.end
    }

    /// Brings near where the next packet will be written.
    pub fn prefetch_block(&mut self) {
        let room = self.block.bytes.spare_capacity_mut();
        prefetch(&room[..room.len().min(160)]);
    }

    /// The stream was interrupted on purpose (hold): its timestamps may go anywhere.
    pub fn restart(&mut self) {
        self.clock.restart();
    }

    /// Takes a packet's audio, or its comfort noise as `Content::Silence`. False: too late.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        arrival: Arrival,
        timestamp: RtpTimestamp,
        content: Content<'_>,
        files: &mut VecDeque<FileItem>,
    ) -> bool {
        let len = match content {
            Content::Coded(_, bytes) => i64::try_from(bytes.len()).unwrap_or(0),
            Content::Silence(samples) => i64::try_from(samples).unwrap_or(0),
        };
        if len == 0 || self.end.is_some() {
            return true;
        }
        let progress = self.progress(now);
        let position = match self.clock.place(now, progress, arrival, timestamp, len) {
            Place::At(position) => position,
            Place::Late => return false,
            Place::Ahead => return true,
        };
        if matches!(content, Content::Coded(..)) {
            self.packet_len = len;
        }
        let followed = arrival.newest && (arrival.in_sequence || arrival.restarted);
        let resumed = std::mem::take(&mut self.resumed);
        if (followed || resumed) && position > progress.end {
            // Nothing was lost between, so the sender paused; or all of it was, with nothing to go by.
            let pause = Content::Silence(unsigned(position - progress.end));
            self.put(now, progress.end, pause, files);
        }
        self.put(now, position, content, files);
        true
    }

    /// Takes a telephone-event: silence from `timestamp` for `duration` samples (RFC 4733 §2.1:
    /// audio may be absent while an event lasts).
    pub fn handle_event(
        &mut self,
        now: Instant,
        timestamp: RtpTimestamp,
        duration: u16,
        files: &mut VecDeque<FileItem>,
    ) {
        let len = i64::from(duration);
        let progress = self.progress(now);
        let position = self.clock.place_event(progress, timestamp, len);
        let most = progress.elapsed + AHEAD_MAX - position;
        let len = len.min(most);
        if len > 0 && self.end.is_none() {
            self.clock.expect(timestamp.plus(u32::from(duration)));
            self.put(now, position, Content::Silence(unsigned(len)), files);
        }
    }

    /// Real time went on: gives gaps up and fills a stall.
    pub fn handle_timeout(&mut self, now: Instant, files: &mut VecDeque<FileItem>) {
        self.drain(now, false, files);
        if now.saturating_duration_since(self.heard) >= STALL {
            let target = self.elapsed(now) - self.clock.lag() - STALL_SAMPLES;
            self.fill_to(now, unsigned(target), files);
        }
    }

    /// A key's tone began `ago` samples before the newest audio. It is silenced as far as its block
    /// is not yet handed over, and cut off when the recording is stopped soon after it.
    pub fn cut_tone(&mut self, ago: u64) {
        let from = self.window.end().saturating_sub(ago);
        self.window.silence_from(from);
        let index = usize::try_from(from.saturating_sub(self.block_start)).unwrap_or(usize::MAX);
        if let Some(tail) = self.block.bytes.get_mut(index..) {
            tail.fill(self.block.codec.silence());
        }
        self.gate.withdraw(from);
        self.tone = Some((from, self.window.end()));
    }

    /// Ends it. `Silence` and `Limit` are only said after [`Self::ended`].
    pub fn finish(mut self, now: Instant, end: RecordEnd, files: &mut VecDeque<FileItem>) -> Recording {
        if self.end.is_none() {
            self.drain(now, true, files);
            // Whole packets that should have come by now are missing at the end.
            let missing = self.elapsed(now) - self.clock.lag() - signed(self.window.start());
            let missing = missing.max(0) / self.packet_len * self.packet_len;
            self.fill_to(now, self.window.start() + unsigned(missing), files);
        }
        let written = self.window.start().min(self.limit);
        let samples = match (end, self.tone) {
            (RecordEnd::Silence, _) => self.gate.sound_end().min(written),
            (RecordEnd::Stopped, Some((from, to)))
                if self.gate.sound_end() <= from && written.saturating_sub(to) <= TONE_TAIL =>
            {
                from.min(written)
            }
            (RecordEnd::Stopped | RecordEnd::Limit | RecordEnd::Closed, _) => written,
        };
        let keep = usize::try_from(samples.saturating_sub(self.block_start)).unwrap_or(usize::MAX);
        self.block.bytes.truncate(keep);
        self.flush(files);
        files.push_back(FileItem::End { id: self.id.clone(), samples });
        Recording { id: self.id, samples, sound: self.gate.sound().min(samples) }
    }

    fn elapsed(&self, now: Instant) -> i64 {
        signed(samples_in(now.saturating_duration_since(self.began)))
    }

    fn progress(&self, now: Instant) -> Progress {
        Progress {
            elapsed: self.elapsed(now),
            written: signed(self.window.start()),
            end: signed(self.window.end()),
        }
    }

    /// Puts content at `position` and writes what became complete.
    fn put(&mut self, now: Instant, position: i64, content: Content<'_>, files: &mut VecDeque<FileItem>) {
        let (position, content) = match content {
            Content::Silence(len) => {
                // Before the recording, or too far ahead for the window: only its end matters.
                let end = position.saturating_add(signed(len)).max(0);
                self.make_room(now, unsigned(end), files);
                let from = position.max(signed(self.window.start()));
                (from, Content::Silence(unsigned(end - from)))
            }
            Content::Coded(codec, bytes) => {
                self.code_as(codec, files);
                let skipped = usize::try_from(position.min(0).unsigned_abs()).unwrap_or(usize::MAX);
                let bytes = bytes.get(skipped..).unwrap_or_default();
                let position = position.max(0);
                self.make_room(now, unsigned(position) + bytes.len() as u64, files);
                if self.window.is_next(unsigned(position)) {
                    self.heard = now;
                    self.gap_since = None;
                    return self.append(bytes, files);
                }
                (position, Content::Coded(codec, bytes))
            }
        };
        if self.window.place(unsigned(position), content) > 0 {
            self.heard = now;
        }
        self.drain(now, false, files);
    }

    /// Writes audio that continues what is written while nothing waits: nearly every packet.
    fn append(&mut self, bytes: &[u8], files: &mut VecDeque<FileItem>) {
        for part in bytes.chunks(PART) {
            if self.end.is_some() {
                return;
            }
            self.window.advance(part.len() as u64);
            if self.plc.is_concealing() {
                let mut samples = [0; PART];
                let samples = &mut samples[..part.len()];
                self.block.codec.decode_into(part, samples);
                self.plc.heard(samples);
                self.write_samples(samples, files);
            } else {
                self.write(part, files);
            }
        }
    }

    /// Lets the window reach `end`, giving up what is missing at its start.
    fn make_room(&mut self, now: Instant, end: u64, files: &mut VecDeque<FileItem>) {
        if let Some(over) = end.checked_sub(self.window.reach()).filter(|over| *over > 0) {
            self.fill_to(now, self.window.start() + over, files);
        }
    }

    /// Writes until `target`: what there is, concealing gaps, then silence.
    fn fill_to(&mut self, now: Instant, target: u64, files: &mut VecDeque<FileItem>) {
        if target <= self.window.start() {
            return;
        }
        self.drain(now, true, files);
        let mut missing = target.saturating_sub(self.window.start());
        while missing > 0 && self.end.is_none() {
            let silence = [self.block.codec.silence(); PART];
            let part = missing.min(silence.len() as u64);
            missing -= part;
            self.window.advance(part);
            let part = usize::try_from(part).unwrap_or(silence.len());
            self.plc.silent();
            self.write(&silence[..part], files);
        }
    }

    /// Writes what is complete; with `force` everything, and gaps concealed without waiting.
    fn drain(&mut self, now: Instant, force: bool, files: &mut VecDeque<FileItem>) {
        while self.end.is_none() {
            let ready = self.window.ready().len();
            if ready > 0 {
                self.take_ready(ready, files);
                self.gap_since = None;
                continue;
            }
            let Some(gap) = self.window.gap() else {
                self.gap_since = None;
                return;
            };
            let since = *self.gap_since.get_or_insert(now);
            let waited = now.saturating_duration_since(since) >= REORDER_WAIT
                || self.window.end() - self.window.start() >= REORDER_SAMPLES;
            if !(force || waited) {
                return;
            }
            self.conceal(gap, files);
        }
    }

    fn take_ready(&mut self, mut ready: usize, files: &mut VecDeque<FileItem>) {
        let mut samples = [0; PART];
        while ready > 0 && self.end.is_none() {
            let part = &mut samples[..ready.min(PART)];
            part.copy_from_slice(&self.window.ready()[..part.len()]);
            self.window.advance(part.len() as u64);
            ready -= part.len();
            self.plc.heard(part);
            self.write_samples(part, files);
        }
    }

    fn conceal(&mut self, mut gap: u64, files: &mut VecDeque<FileItem>) {
        let mut samples = [0; PART];
        while gap > 0 && self.end.is_none() {
            let part = gap.min(samples.len() as u64);
            gap -= part;
            self.window.advance(part);
            let part = &mut samples[..usize::try_from(part).unwrap_or(0)];
            self.plc.conceal(self.block.codec, &self.block.bytes, part);
            self.write_samples(part, files);
        }
    }

    /// As [`Self::write`], for at most [`PART`] samples that were made here.
    fn write_samples(&mut self, samples: &[i16], files: &mut VecDeque<FileItem>) {
        let mut bytes = [0; PART];
        let bytes = &mut bytes[..samples.len()];
        self.block.codec.encode_into(samples, bytes);
        self.write(bytes, files);
    }

    /// Appends to the block, hands full ones over, and sees the recording's own ends. The samples
    /// end at the window's start.
    fn write(&mut self, bytes: &[u8], files: &mut VecDeque<FileItem>) {
        let start = self.window.start() - bytes.len() as u64;
        let allowed = self.limit.saturating_sub(start).min(bytes.len() as u64);
        let mut rest = &bytes[..usize::try_from(allowed).unwrap_or(bytes.len())];
        self.gate.push(self.block.codec, rest);
        while !rest.is_empty() {
            let block = &mut self.block.bytes;
            if block.capacity() == 0 {
                *block = room::block();
            }
            let (part, after) = rest.split_at(rest.len().min(RECORD_BLOCK_SAMPLES - block.len()));
            block.extend_from_slice(part);
            rest = after;
            if block.len() == RECORD_BLOCK_SAMPLES {
                self.flush(files);
            }
        }
        let written = start + allowed;
        if written >= self.limit {
            self.end = Some(RecordEnd::Limit);
        } else if written.saturating_sub(self.gate.sound_end()) >= self.silence_max {
            self.end = Some(RecordEnd::Silence);
        }
    }

    /// What follows is coded so.
    fn code_as(&mut self, codec: Codec, files: &mut VecDeque<FileItem>) {
        if self.block.codec != codec {
            self.flush(files);
            self.block.codec = codec;
        }
    }

    fn flush(&mut self, files: &mut VecDeque<FileItem>) {
        if !self.block.bytes.is_empty() {
            let codec = self.block.codec;
            let block = CodedBlock { codec, bytes: std::mem::take(&mut self.block.bytes) };
            self.plc.keep(codec, &block.bytes);
            self.block_start += block.samples();
            files.push_back(FileItem::Block(self.id.clone(), block));
        }
    }
}

/// `time` in samples, rounded down.
fn samples_in(time: Duration) -> u64 {
    units_in(time, SAMPLE_RATE_HZ)
}

fn signed(samples: u64) -> i64 {
    i64::try_from(samples).unwrap_or(i64::MAX)
}

/// Nought for what is negative.
fn unsigned(samples: i64) -> u64 {
    u64::try_from(samples).unwrap_or(0)
}
