//! Who speaks and hears, and what came of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use nix::sys::socket::SockaddrStorage;

use crate::load::media::batch::DATAGRAM_BYTES;
use crate::load::media::continuity::{Course, Courses};
use crate::load::media::engine::SLOTS;
use crate::load::media::press::{Press, Reaction, is_voiced};
use crate::load::media::rtcp::{self, REPORT_BYTES, Report};
use crate::load::media::stamp::Stamp;
use crate::load::media::tally::{Hearing, Journey, Rests, Window, histogram, micros};
use crate::load::result::Packets;
use crate::media::packet;
use crate::media::srtp::Srtp;
use crate::sip::sdes::Agreed;

/// Highest number of a stream; a bound on what a caller's numbering can make us reserve.
const STREAM_MAX: u32 = 1 << 20;

/// Ticks between two RTCP reports of a stream: 5 s.
const REPORT_TICKS: u64 = 5 * 50 * SLOTS as u64;

/// From the streams of one tick to those of the next; without a divisor in common with
/// [`REPORT_TICKS`], so that all are reached, and far from 1, so that few streams report evenly too.
const REPORT_STEP: u64 = 3583;

/// A stream younger than this may have heard nothing yet.
const SET_UP: Duration = Duration::from_millis(100);
/// Frames arrive this long after the answer, or the stream is silent.
const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// Bytes of the RTP header we write.
const HEADER_BYTES: usize = 12;
/// Header and 20 ms of G.711.
const FRAME_BYTES: usize = HEADER_BYTES + 160;

/// What a stream should hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hears {
    /// Nothing that counts.
    Nothing,
    /// Sound of the far side's own making, judged by its sequence numbers.
    Sound,
    /// Our own frames, sent by this stream: itself for an echo, the other leg for an anchored call.
    FramesOf(u32),
}

/// One leg's media, as SIP or another control protocol agreed on it.
#[derive(Debug, Clone)]
pub struct Stream {
    /// The socket it uses, an index into the engine's.
    pub socket: usize,
    /// Where the far side takes this leg's RTP, and sends its own from.
    pub remote: SocketAddr,
    /// A frame leaves every 20 ms.
    pub sends: bool,
    /// What should be heard.
    pub hears: Hears,
    /// Payload type of what is sent.
    pub payload_type: u8,
    /// SRTP keys; `None` for plain RTP.
    pub keys: Option<Box<Agreed>>,
    /// When the call was acknowledged, since 1970; from here the time to first audio runs.
    pub up_since: Duration,
}

/// Tells our sources from those of other runs on the same machine.
const SSRC_MARK: u32 = 0x5650_0000;

/// A stream and its counts.
pub(super) struct Entry {
    pub(super) stream: Stream,
    pub(super) to: SockaddrStorage,
    pub(super) slot: usize,
    srtp: Option<Srtp>,
    frame: u32,
    first_sequence: u16,
    has_heard: bool,
    /// No frame leaves and none is due back.
    resting: bool,
    rests: Rests,
    press: Option<Press>,
    reaction: Option<Reaction>,
    /// The newest packet was no silence.
    hears_sound: bool,
    course: Course,
    hearing: Hearing,
    /// The same since the stream was opened, for our own RTCP reports.
    life: Hearing,
    /// Frames lost by the far side's reports: the last one, and the last before the window.
    reported: Option<i32>,
    reported_before: i32,
}

/// Every stream, found by number and by where its packets come from.
pub(super) struct Book {
    entries: Vec<Option<Box<Entry>>>,
    /// Frames of each stream; they outlive it, for those that hear it.
    journeys: Vec<Journey>,
    by_source: Vec<HashMap<SocketAddr, u32>>,
    /// Our own reports are asked for.
    pub(super) reports: bool,
    /// A frame counts only once one before it has arrived: streams open within the window.
    pub(super) is_patient: bool,
    pub(super) window: Option<Window>,
    pub(super) tallies: Tallies,
}

/// What is counted for all streams together.
#[derive(Debug, Clone)]
pub(super) struct Tallies {
    pub(super) spacing: Histogram<u64>,
    pub(super) added: Histogram<u64>,
    pub(super) first_audio: Histogram<u64>,
    pub(super) jitter: Histogram<u64>,
    pub(super) packets: Packets,
    /// Frames sent that nobody returns or reports.
    pub(super) unheard: u64,
    pub(super) silent: u64,
    pub(super) courses: Courses,
    /// Keys pressed into silence, and those that sound answered.
    pub(super) keys: (u64, u64),
}

impl Default for Tallies {
    fn default() -> Self {
        let [spacing, added, first_audio, jitter] = std::array::from_fn(|_| histogram());
        Self {
            spacing,
            added,
            first_audio,
            jitter,
            packets: Packets::default(),
            unheard: 0,
            silent: 0,
            courses: Courses::default(),
            keys: (0, 0),
        }
    }
}

impl Book {
    pub(super) fn new(sockets: usize) -> Self {
        Self {
            entries: Vec::new(),
            journeys: Vec::new(),
            by_source: vec![HashMap::new(); sockets],
            reports: false,
            is_patient: false,
            window: None,
            tallies: Tallies::default(),
        }
    }

    /// Adds a stream under a number of the caller's choice.
    pub(super) fn open(&mut self, id: u32, stream: Stream, slot: usize, sequence: u16) -> Result<()> {
        ensure!(id <= STREAM_MAX, "stream {id}: the highest number is {STREAM_MAX}");
        ensure!(stream.socket < self.by_source.len(), "stream {id}: no socket {}", stream.socket);
        let index = id as usize;
        if index >= self.entries.len() {
            self.entries.resize_with(index + 1, || None);
            self.journeys.resize(index + 1, Journey::default());
        }
        ensure!(self.entries[index].is_none(), "stream {id} is already open");
        let srtp = stream.keys.as_deref().map(|keys| -> Result<Srtp> {
            let mut srtp = Srtp::default();
            srtp.agree(Some(keys))?;
            Ok(srtp)
        });
        self.by_source[stream.socket].insert(stream.remote, id);
        self.journeys[index] = Journey::default();
        self.entries[index] = Some(Box::new(Entry {
            to: stream.remote.into(),
            slot,
            srtp: srtp.transpose()?,
            frame: 0,
            first_sequence: sequence,
            has_heard: false,
            resting: false,
            rests: Rests::default(),
            press: None,
            reaction: None,
            hears_sound: false,
            course: Course::default(),
            hearing: Hearing::default(),
            life: Hearing::default(),
            reported: None,
            reported_before: 0,
            stream,
        }));
        Ok(())
    }

    /// Removes a stream at this time; what it counted within the window stays counted.
    pub(super) fn close(&mut self, id: u32, now: Duration) -> Option<Box<Entry>> {
        let entry = self.entries.get_mut(id as usize)?.take()?;
        let sources = &mut self.by_source[entry.stream.socket];
        if sources.get(&entry.stream.remote) == Some(&id) {
            sources.remove(&entry.stream.remote);
        }
        if let Some(window) = self.window {
            let window = Window { until: window.until.min(now), ..window };
            self.tallies.settle(id, &entry, &self.journeys, window);
        }
        Some(entry)
    }

    pub(super) fn entry(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_deref_mut()
    }

    /// The stream whose far side sends from `from` to our socket.
    pub(super) fn find(&self, socket: usize, from: SocketAddr) -> Option<u32> {
        self.by_source.get(socket)?.get(&from).copied()
    }

    /// Begins to count anew.
    pub(super) fn begin(&mut self, window: Window) {
        self.window = Some(window);
        // What was first heard before the window was set-up, and is told once; keys are of the whole run.
        let first_audio = std::mem::replace(&mut self.tallies.first_audio, histogram());
        let keys = self.tallies.keys;
        self.tallies = Tallies { first_audio, keys, ..Tallies::default() };
        for entry in self.entries.iter_mut().flatten() {
            entry.hearing = Hearing::default();
            entry.course.restart();
            entry.reported_before = entry.reported.unwrap_or(0);
        }
        self.journeys.iter_mut().for_each(|journey| journey.restart());
    }

    /// Marks the streams that are open.
    pub(super) fn mark(&mut self) {
        self.entries.iter_mut().flatten().for_each(|entry| entry.course.mark());
    }

    /// Lets the window end now, if it is not over.
    pub(super) fn cut(&mut self, now: Duration) {
        if let Some(window) = &mut self.window {
            window.until = window.until.min(now.max(window.from));
        }
    }

    /// Ends the window: adds up what the open streams counted in it.
    pub(super) fn end(&mut self) -> Tallies {
        let mut tallies = std::mem::take(&mut self.tallies);
        if let Some(window) = self.window.take() {
            let entries = (0u32..).zip(&self.entries).filter_map(|(id, entry)| Some((id, entry.as_ref()?)));
            entries.for_each(|(id, entry)| tallies.settle(id, entry, &self.journeys, window));
        }
        tallies
    }

    /// A frame of `id` left at `sent`. True when that is within the window.
    pub(super) fn frame_left(&mut self, id: u32, sent: Duration) -> bool {
        let counts = self.window.is_some_and(|window| window.contains(sent)) && self.is_awaited(id);
        let frame = self.entry(id).map_or(0, |entry| entry.frame);
        if let Some(journey) = self.journeys.get_mut(id as usize).filter(|_| counts) {
            journey.leaves(frame);
        }
        counts
    }

    /// True when the frames of `id` may be counted on to arrive: one has.
    fn is_awaited(&self, id: u32) -> bool {
        let entry = self.entries.get(id as usize).and_then(Option::as_ref);
        let is_returned = entry.is_some_and(|entry| matches!(entry.stream.hears, Hears::FramesOf(_)));
        let has_arrived = self.journeys.get(id as usize).is_some_and(|journey| journey.has_arrived);
        !self.is_patient || !is_returned || has_arrived
    }

    /// True while a stream sends nothing.
    pub(super) fn is_resting(&self, id: u32) -> bool {
        self.entries.get(id as usize).and_then(Option::as_ref).is_some_and(|entry| entry.resting)
    }

    /// Sends nothing any more and misses nothing; what is on its way still counts.
    pub(super) fn rest(&mut self, id: u32, now: Duration) {
        if let Some(entry) = self.entry(id) {
            entry.rests.begin(now);
            entry.resting = true;
            entry.course.rest();
        }
    }

    /// Misses nothing from now on, but goes on sending.
    pub(super) fn expect_nothing(&mut self, id: u32, now: Duration) {
        if let Some(entry) = self.entry(id) {
            entry.rests.begin(now);
            entry.course.rest();
        }
    }

    /// Rests for ever: its far side is to find out by itself.
    pub(super) fn forsake(&mut self, id: u32, now: Duration) {
        self.rest(id, now);
        if let Some(entry) = self.entry(id) {
            entry.stream.hears = Hears::Nothing;
        }
    }

    /// Goes on after [`Book::rest`].
    pub(super) fn resume(&mut self, id: u32, now: Duration) {
        if let Some(entry) = self.entry(id) {
            entry.rests.end(now);
            entry.resting = false;
            entry.course.resume(now);
        }
    }

    /// Presses a key. Where it is silent before, sound until this time is the answer to it.
    pub(super) fn press(&mut self, id: u32, (key, payload_type): (char, u8), until: Duration) {
        let Some(entry) = self.entry(id) else { return };
        entry.press = Press::new(key, payload_type, entry.frame.wrapping_mul(160));
        if !entry.hears_sound {
            entry.reaction = Some(Reaction::until(until));
            self.tallies.keys.0 += 1;
        }
    }

    /// A datagram that belongs to no stream.
    pub(super) fn stray(&mut self, arrival: Duration) {
        if self.window.is_some_and(|window| window.contains(arrival)) {
            self.tallies.packets.stray += 1;
        }
    }

    /// An RTP packet for the stream `id`.
    pub(super) fn hear(&mut self, id: u32, arrival: Duration, datagram: &[u8]) {
        let (window, reports) = (self.window, self.reports);
        let Some(entry) = self.entry(id) else { return self.stray(arrival) };
        let opened;
        let plain = match &mut entry.srtp {
            None => datagram,
            Some(srtp) => match srtp.open(datagram) {
                Some(packet) => {
                    opened = packet;
                    &opened
                }
                None => return self.stray(arrival),
            },
        };
        let Some((header, payload)) = packet::parse(plain) else { return self.stray(arrival) };
        entry.hears_sound = is_voiced(header.payload_type, payload);
        let reacts =
            entry.reaction.as_mut().is_some_and(|reaction| reaction.hears(arrival, &header, payload));
        if reacts {
            entry.reaction = None;
        }
        if reports {
            entry.life.count(arrival, &header);
        }
        if !entry.has_heard {
            entry.has_heard = true;
            let waited = micros(arrival.saturating_sub(entry.stream.up_since));
            if entry.stream.hears != Hears::Nothing {
                self.tallies.first_audio.saturating_record(waited.max(1));
            }
        }
        self.tallies.keys.1 += u64::from(reacts);
        self.note_arrival(id, payload);
        let Some(window) = window else { return };
        let Some(entry) = self.entry(id) else { return };
        let hears = entry.stream.hears;
        if window.contains(arrival) {
            entry.course.count(arrival, &header);
        }
        if hears != Hears::Nothing
            && window.contains(arrival)
            && let Some(spacing) = entry.hearing.count(arrival, &header)
        {
            self.tallies.spacing.saturating_record(micros(spacing).max(1));
        }
        if let Hears::FramesOf(sender) = hears {
            self.frame_arrives(sender, arrival, payload, window);
        }
    }

    /// An RTCP packet from `from`, the port above a stream's.
    pub(super) fn hear_report(&mut self, socket: usize, from: SocketAddr, packet: &[u8]) {
        let source = from.port().checked_sub(1).map(|port| SocketAddr::new(from.ip(), port));
        let Some(id) = source.and_then(|source| self.find(socket, source)) else { return };
        let Some(entry) = self.entry(id) else { return };
        let opened = match &mut entry.srtp {
            None => packet.to_vec(),
            Some(srtp) => match srtp.open_rtcp(packet) {
                Some(opened) => opened,
                None => return,
            },
        };
        if let Some(block) = rtcp::block_about(&opened, id ^ SSRC_MARK) {
            entry.reported = Some(block.lost);
        }
        self.tallies.packets.rtcp_received += 1;
    }

    /// Numbers of the streams whose reports are due at a tick, each once in [`REPORT_TICKS`].
    pub(super) fn reporting(&self, tick: u64) -> impl Iterator<Item = u32> + use<> {
        let first = u32::try_from(tick % REPORT_TICKS * REPORT_STEP % REPORT_TICKS).unwrap_or(u32::MAX);
        let end = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        (first..end).step_by(usize::try_from(REPORT_TICKS).unwrap_or(usize::MAX))
    }

    /// Notes that frames come through to `id`, within the window or before it.
    fn note_arrival(&mut self, id: u32, payload: &[u8]) {
        let Some(Hears::FramesOf(sender)) = self.entry(id).map(|entry| entry.stream.hears) else { return };
        let Some(journey) = self.journeys.get_mut(sender as usize) else { return };
        journey.has_arrived |= Stamp::read(payload).is_some_and(|stamp| stamp.stream == sender);
    }

    /// A frame of ours, at the stream that hears `sender`.
    fn frame_arrives(&mut self, sender: u32, arrival: Duration, payload: &[u8], window: Window) {
        let stamp = Stamp::read(payload).filter(|stamp| window.contains(stamp.sent));
        let Some(stamp) = stamp else { return };
        if stamp.stream != sender {
            self.tallies.packets.misdelivered += 1;
            return;
        }
        let Some(journey) = self.journeys.get_mut(sender as usize) else { return };
        if !journey.counts(stamp.frame) {
            return;
        }
        if journey.comes_back(stamp.frame) {
            self.tallies.added.saturating_record(micros(arrival.saturating_sub(stamp.sent)).max(1));
        }
    }
}

impl Tallies {
    /// Adds what one stream counted in `window`.
    fn settle(&mut self, id: u32, entry: &Entry, journeys: &[Journey], window: Window) {
        let stream = &entry.stream;
        let reported = entry.reported.map(|lost| lost.saturating_sub(entry.reported_before));
        let reported = reported.map(|lost| u64::try_from(lost).unwrap_or(0));
        self.packets.reported_lost += reported.unwrap_or(0);
        let (expected, received) = match stream.hears {
            Hears::Nothing => {
                let sent = journeys.get(id as usize).map_or(0, |journey| journey.sent);
                return self.take_their_word(sent, reported);
            }
            Hears::Sound => {
                let due = Window { from: window.from.max(stream.up_since), ..window };
                (entry.hearing.expected(due, &entry.rests), entry.hearing.packets)
            }
            Hears::FramesOf(sender) => {
                let journey = journeys.get(sender as usize);
                self.packets.duplicates += journey.map_or(0, |journey| journey.duplicates);
                journey.map_or((0, 0), |journey| (journey.sent, journey.returned))
            }
        };
        self.courses.settle(id, &entry.course, window);
        self.packets.expected += expected;
        self.packets.received += received;
        self.packets.lost += expected.saturating_sub(received);
        let age = window.until.saturating_sub(stream.up_since);
        let is_mute = match stream.hears {
            Hears::FramesOf(sender) => journeys.get(sender as usize).is_some_and(Journey::is_mute),
            Hears::Nothing | Hears::Sound => false,
        };
        self.silent += u64::from(!entry.has_heard && age > SET_UP || is_mute && age > FIRST_LIMIT);
        if let Some(jitter) = entry.hearing.jitter_us() {
            self.jitter.saturating_record(jitter.max(1));
        }
    }
}

impl Tallies {
    /// Frames that only the far side can count: by its last RTCP report, if there was one.
    fn take_their_word(&mut self, sent: u64, reported: Option<u64>) {
        let Some(lost) = reported.map(|lost| lost.min(sent)) else {
            self.unheard += sent;
            return;
        };
        self.packets.expected += sent;
        self.packets.received += sent - lost;
        self.packets.lost += lost;
    }
}

impl Entry {
    /// Writes the next frame into `buffer`, which holds sound behind the place of the stamp; gives
    /// its length. `None` when SRTP refused it.
    pub(super) fn write_frame(
        &mut self,
        id: u32,
        sent: Duration,
        sound: &[u8; DATAGRAM_BYTES],
        buffer: &mut [u8; DATAGRAM_BYTES],
    ) -> Option<usize> {
        let [_, _, high, low] = self.frame.to_be_bytes();
        let sequence = self.first_sequence.wrapping_add(u16::from_be_bytes([high, low]));
        buffer[0] = 0x80;
        buffer[1] = self.stream.payload_type & 0x7F | u8::from(self.frame == 0) << 7;
        buffer[2..4].copy_from_slice(&sequence.to_be_bytes());
        buffer[4..8].copy_from_slice(&self.frame.wrapping_mul(160).to_be_bytes());
        buffer[8..12].copy_from_slice(&(id ^ SSRC_MARK).to_be_bytes());
        Stamp { stream: id, frame: self.frame, sent }.write(&mut buffer[HEADER_BYTES..]);
        self.frame = self.frame.wrapping_add(1);
        let pressed = self.press.as_mut().map(|press| press.write(buffer));
        if pressed == Some(None) {
            self.press = None;
        }
        let length = pressed.flatten().unwrap_or(FRAME_BYTES);
        let Some(srtp) = &mut self.srtp else { return Some(length) };
        // An earlier ciphertext may lie where the sound should be.
        let sound_at = HEADER_BYTES + crate::load::media::stamp::STAMP_BYTES;
        buffer[sound_at..FRAME_BYTES].copy_from_slice(&sound[sound_at..FRAME_BYTES]);
        let packet = srtp.protect(&buffer[..length]).ok()?;
        buffer.get_mut(..packet.len())?.copy_from_slice(&packet);
        Some(packet.len())
    }

    /// Where RTCP goes, and a report into `buffer` with its length. `None` before anything is to be
    /// reported, or when SRTP refused it.
    pub(super) fn write_report(
        &mut self,
        id: u32,
        now: Duration,
        buffer: &mut [u8; DATAGRAM_BYTES],
    ) -> Option<usize> {
        let octets = self.frame.wrapping_mul(160);
        let sent = (self.stream.sends && self.frame > 0).then_some((octets, self.frame, octets));
        let report = Report { ssrc: id ^ SSRC_MARK, now, sent, heard: self.life.report() };
        let mut plain = [0; REPORT_BYTES];
        let length = report.write(&mut plain);
        let packet = match &mut self.srtp {
            None => plain[..length].to_vec(),
            Some(srtp) => srtp.protect_rtcp(&plain[..length]).ok()?,
        };
        buffer.get_mut(..packet.len())?.copy_from_slice(&packet);
        Some(packet.len())
    }

    /// Where the far side takes RTCP: the port above its RTP.
    pub(super) fn rtcp(&self) -> Option<SocketAddr> {
        let remote = self.stream.remote;
        remote.port().checked_add(1).map(|port| SocketAddr::new(remote.ip(), port))
    }
}
