//! Keys on one leg, by event or by tone, each once.

use std::time::{Duration, Instant};

use super::Leg;
use crate::media::dtmf_event::{EventReceiver, Told};
use crate::media::order::{DigitSource, Event, LegMode};
use crate::media::tones::{Tone, ToneDetector};

/// A tone this soon after the same key's event is that event, leaking into the audio.
const TONE_AFTER_EVENT: Duration = Duration::from_millis(500);
/// An event this soon after the same key's tone is what a gateway made of that tone.
const EVENT_AFTER_TONE: Duration = Duration::from_millis(300);
/// Without audio for this long a tone is over.
const TONE_LOST: Duration = Duration::from_millis(60);

/// Both ways to hear a key.
#[derive(Debug, Default)]
pub(super) struct DigitWatch {
    pub(super) events: EventReceiver,
    pub(super) tones: ToneDetector,
    last_event: Option<(char, Instant)>,
    last_tone: Option<(char, Instant)>,
    /// When audio was last watched for tones.
    pub(super) listened: Option<Instant>,
}

impl Leg {
    pub(super) fn handle_told(&mut self, now: Instant, told: Told) {
        for key in told.keys.into_iter().flatten() {
            self.handle_event_key(now, key);
        }
    }

    pub(super) fn handle_event_key(&mut self, now: Instant, key: char) {
        let watch = &mut self.digits;
        let told_by_tone = is_recent(watch.last_tone, key, now, EVENT_AFTER_TONE);
        watch.last_event = Some((key, now));
        if !told_by_tone {
            self.emit(Event::Digit { leg: self.id, digit: key, source: DigitSource::Event });
        }
    }

    pub(super) fn handle_tone(&mut self, now: Instant, tone: Tone) {
        if let Some(recorder) = &mut self.recorder {
            recorder.cut_tone(u64::from(tone.age));
        }
        let watch = &mut self.digits;
        let is_event = watch.events.active() == Some(tone.key)
            || is_recent(watch.last_event, tone.key, now, TONE_AFTER_EVENT);
        if !is_event {
            watch.last_tone = Some((tone.key, now));
            self.emit(Event::Digit { leg: self.id, digit: tone.key, source: DigitSource::InBand });
        }
    }

    /// Ends keys of which nothing is heard any more.
    pub(super) fn handle_digit_timeout(&mut self, now: Instant) {
        let watched = self.mode == LegMode::Voice;
        if let Some(key) = self.digits.events.handle_timeout(now).filter(|_| watched) {
            self.handle_event_key(now, key);
        }
        let silent = |since: Instant| now.saturating_duration_since(since) >= TONE_LOST;
        if self.digits.tones.is_listening()
            && self.digits.listened.is_some_and(silent)
            && let Some(tone) = self.digits.tones.handle_pause()
        {
            self.handle_tone(now, tone);
        }
    }
}

fn is_recent(last: Option<(char, Instant)>, key: char, now: Instant, within: Duration) -> bool {
    last.is_some_and(|(other, at)| other == key && now.saturating_duration_since(at) < within)
}
