//! A leg that goes on in another process: same SSRC, numbers that go on, nothing said twice.
//!
//! What the first process did between its last mark and its end is not known. So our own packets leave
//! out as many numbers as time allowed it to use, and what only repeats (timestamps of relayed packets,
//! places in a recording) follows the peer's numbers, which bridge the gap by themselves.

use std::time::{Duration, Instant, SystemTime};

use super::receive::Receiver;
use super::relay::Offsets;
use super::{Leg, LegSeed, Recorder, SELDOM_MS, UNITS_PER_MS, recorded};
use crate::base::clock;
use crate::base::id::{LegId, PlayId};
use crate::media::dtmf_event::EventReceiver;
use crate::media::mark::LegMark;
use crate::media::order::{Adoption, LegMode, LegPlan, LegStats, MediaPlan, Playlist, RecordPlan};
use crate::rtp::packet::SeqNo;
use crate::rtp::srtp::SrtpSession;
use crate::uring::HugeBox;

/// Numbers left out besides those of whole periods: the one under way, and a stall's that was made up
/// for.
const MADE_MARGIN: u64 = 3;
/// The shortest packet time of a peer, ms, and packets beyond it that a network may have held up.
const RELAYED_MS: u64 = 10;
const RELAYED_MARGIN: u64 = 64;

impl Leg {
    /// How far the leg has come, for [`Self::resume`] in another process. To be taken when the leg has
    /// been served: packets that are overdue count as sent now.
    pub fn mark(&self, now: Instant) -> LegMark {
        let playing = self.player.as_ref().map(|player| (player.play(), player.position()));
        let recording = match &self.recorder {
            Some(recorder) => Some(recorder.mark()),
            None => self.recorded.as_deref().copied(),
        };
        let srtp = self.srtp.as_ref().map(|session| session.mark());
        LegMark {
            leg: self.id,
            at: clock::uptime(now),
            mode: self.mode,
            makes_ms: self.makes_packets().then(|| self.ptime_ms()),
            ssrc: self.sender.ssrc,
            sequence: self.sender.sequence,
            timestamp: self.sender.timestamp,
            offsets: self.sender.offsets.map(|offsets| (offsets.sequence, offsets.timestamp)),
            latched: self.receiver.latched(),
            source: self.receiver.mark(),
            lost_before: self.receiver.lost_before(),
            event_over: self.digits.events.over(),
            playing: playing.or(self.played.map(|play| (play, u64::MAX))),
            recording,
            srtp: srtp.or(self.srtp_before.as_deref().copied()),
            stats: LegStats { lost: 0, jitter: 0, ..self.stats.clone() },
        }
    }

    /// A leg that another process had as `adoption` says, called `leg` here. `wall` is calendar time at
    /// `now`, for RTCP. `Played` and `Recorded` that were due come again, in case they had not been heard.
    pub fn resume(now: Instant, wall: SystemTime, leg: LegId, adoption: Adoption) -> Self {
        let Adoption { rtp_port: _, plan, mark, play, record, peer: _ } = adoption;
        let LegPlan { media, address, cname, media_timeout } = plan;
        let seed = LegSeed { ssrc: mark.ssrc, sequence: mark.sequence.0, timestamp: mark.timestamp.0 };
        let plan = LegPlan { media: None, address, cname, media_timeout };
        let mut leg = Self::new(now, wall, leg, plan, seed);
        leg.mode = mark.mode;
        leg.resumed = true;
        leg.stats = mark.stats.clone();
        leg.receiver = Receiver::resume(now, media_timeout, &mark);
        leg.digits.events = EventReceiver::resume(mark.event_over);
        leg.recorded = mark.recording.filter(|recording| recording.end.is_some()).map(Box::new);
        leg.resume_sending(now, &mark, media);
        if let Some((play, playlist)) = play {
            leg.resume_play(play, playlist, &mark);
        }
        if let Some(plan) = record {
            leg.resume_record(now, plan, &mark);
        }
        leg
    }

    fn resume_sending(&mut self, now: Instant, mark: &LegMark, media: Option<MediaPlan>) {
        let elapsed = clock::uptime(now).saturating_sub(mark.at);
        let skipped = numbers_skipped(mark, elapsed);
        let keys = media.as_ref().and_then(|media| media.srtp.as_ref());
        match (keys, mark.srtp) {
            (Some(keys), Some(before)) => {
                // What is relayed has the peer's numbers, which begin where they ended.
                let skipped = if mark.makes_ms.is_some() { skipped } else { 0 };
                let session = SrtpSession::resume(keys, &before, mark.sequence.0, skipped);
                self.srtp = Some(HugeBox::new(session));
            }
            (None, Some(before)) => self.srtp_before = Some(Box::new(before)),
            (_, None) => {}
        }
        self.set_media(media);
        self.sender.offsets = mark.offsets.map(|(sequence, timestamp)| Offsets { sequence, timestamp });
        self.sender.sequence = SeqNo(low(u64::from(self.sender.sequence.0) + skipped));
        self.sender.timestamp = self.sender.timestamp.plus(units_skipped(mark, elapsed));
        self.reporter.note_sent(now, self.sender.timestamp);
    }

    fn resume_play(&mut self, play: PlayId, playlist: Playlist, mark: &LegMark) {
        self.play(play, playlist);
        let position = mark.playing.filter(|(known, _)| *known == play).map_or(0, |(_, position)| position);
        if let Some(player) = &mut self.player {
            player.skip_to(position);
        }
    }

    fn resume_record(&mut self, now: Instant, plan: RecordPlan, mark: &LegMark) {
        let Some(recording) = mark.recording(&plan.meta.id).copied() else { return self.record(now, plan) };
        match recording.end {
            None => {
                let id = plan.meta.id.clone();
                self.recorder = Some(HugeBox::new(Recorder::resume(now, id, &plan, &recording)));
            }
            Some(end) => {
                self.emit(recorded(self.id, plan.meta.id, recording.samples, recording.sound, end));
            }
        }
    }
}

/// Numbers of our own packets that may have been used since the mark.
fn numbers_skipped(mark: &LegMark, elapsed: Duration) -> u64 {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    match (mark.makes_ms, mark.mode) {
        (Some(period_ms), _) => elapsed_ms / u64::from(period_ms.max(1)) + MADE_MARGIN,
        (None, LegMode::Echo | LegMode::Bridged) => elapsed_ms / RELAYED_MS + RELAYED_MARGIN,
        // On hold: nothing was sent.
        (None, LegMode::Voice | LegMode::Sink) => 0,
    }
}

/// The sequence number within a number that counts on.
#[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap at 16 bits")]
fn low(number: u64) -> u16 {
    number as u16
}

/// What our clock went on since the mark, in RTP units and whole periods.
#[expect(clippy::cast_possible_truncation, reason = "RTP timestamps wrap at 32 bits")]
fn units_skipped(mark: &LegMark, elapsed: Duration) -> u32 {
    let period = Duration::from_millis(mark.makes_ms.unwrap_or(SELDOM_MS).max(1).into());
    let periods = elapsed.as_nanos().div_ceil(period.as_nanos());
    ((periods * period.as_millis()) as u32).wrapping_mul(UNITS_PER_MS)
}
