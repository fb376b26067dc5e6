//! What leaves a shard: events to signalling, audio to the file thread, both over bounded queues.
//!
//! A full event queue costs events that can be missed, never those that end something. A full file
//! queue is backed by memory up to a limit; beyond it audio becomes silence of the same length, so
//! that a recording keeps its duration, and is counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::base::id::MessageId;
use crate::base::limits::{RECORD_BLOCK_SAMPLES, SAMPLE_RATE_HZ};
use crate::media::order::{Codec, CodedBlock, Event, FileItem};

/// Audio held back for the file thread before it turns into silence: half an hour over all legs,
/// 14 MB.
const HELD_SAMPLES_MAX: u64 = 1800 * SAMPLE_RATE_HZ as u64;

/// A file item that found its queue full.
enum Held {
    Item(FileItem),
    /// Silence in the place of audio there was no room for.
    Gap(MessageId, u64),
}

/// The sending ends, with what could not be sent yet.
pub(super) struct Outbox {
    events: Arc<ArrayQueue<Event>>,
    files: Arc<ArrayQueue<FileItem>>,
    held_events: VecDeque<Event>,
    held_files: VecDeque<Held>,
    held_samples: u64,
    /// Samples missing since the recording's last item.
    gaps: HashMap<MessageId, u64>,
    /// Events given up.
    pub(super) dropped: u64,
    /// Samples given up.
    pub(super) gap_samples: u64,
}

impl Outbox {
    /// Nothing held.
    pub(super) fn new(events: Arc<ArrayQueue<Event>>, files: Arc<ArrayQueue<FileItem>>) -> Self {
        Self {
            events,
            files,
            held_events: VecDeque::new(),
            held_files: VecDeque::new(),
            held_samples: 0,
            gaps: HashMap::new(),
            dropped: 0,
            gap_samples: 0,
        }
    }

    /// Tells signalling. Events that may be missed are dropped when it does not listen.
    pub(super) fn event(&mut self, event: Event) {
        if !self.held_events.is_empty() {
            self.hold(event);
        } else if let Err(event) = self.events.push(event) {
            self.hold(event);
        }
    }

    /// Hands an item to the file thread, in order.
    pub(super) fn file(&mut self, item: FileItem) {
        if let FileItem::Block(id, block) = &item
            && self.held_samples >= HELD_SAMPLES_MAX
        {
            let samples = block.samples();
            *self.gaps.entry(id.clone()).or_default() += samples;
            self.gap_samples += samples;
            return;
        }
        let id = match &item {
            FileItem::Begin(meta) => &meta.id,
            FileItem::Block(id, _) | FileItem::End { id, .. } => id,
        };
        if let Some((id, samples)) = self.gaps.remove_entry(id) {
            self.held_files.push_back(Held::Gap(id, samples));
        }
        if self.held_files.is_empty() {
            if let Err(item) = self.files.push(item) {
                self.hold_file(item);
            }
        } else {
            self.hold_file(item);
        }
    }

    /// Tries again what was held back.
    pub(super) fn flush(&mut self) {
        while let Some(event) = self.held_events.pop_front() {
            if let Err(event) = self.events.push(event) {
                self.held_events.push_front(event);
                break;
            }
        }
        while let Some(held) = self.held_files.pop_front() {
            if let Some(rest) = self.offer(held) {
                self.held_files.push_front(rest);
                break;
            }
        }
    }

    /// Everything was taken over by the queues.
    pub(super) fn is_empty(&self) -> bool {
        self.held_events.is_empty() && self.held_files.is_empty()
    }

    /// Events waiting for room.
    pub(super) fn events_held(&self) -> usize {
        self.held_events.len()
    }

    fn hold(&mut self, event: Event) {
        match event {
            Event::Opened { .. }
            | Event::OpenFailed { .. }
            | Event::Recorded { .. }
            | Event::Closed { .. } => self.held_events.push_back(event),
            Event::Digit { .. }
            | Event::Played { .. }
            | Event::Latched { .. }
            | Event::Report { .. }
            | Event::MediaTimeout { .. } => self.dropped += 1,
        }
    }

    fn hold_file(&mut self, item: FileItem) {
        if let FileItem::Block(_, block) = &item {
            self.held_samples += block.samples();
        }
        self.held_files.push_back(Held::Item(item));
    }

    /// `None` if the queue took all of it, else what is left.
    fn offer(&mut self, held: Held) -> Option<Held> {
        match held {
            Held::Item(item) => {
                let samples = match &item {
                    FileItem::Block(_, block) => block.samples(),
                    FileItem::Begin(_) | FileItem::End { .. } => 0,
                };
                if let Err(item) = self.files.push(item) {
                    return Some(Held::Item(item));
                }
                self.held_samples -= samples;
                None
            }
            Held::Gap(id, mut samples) => {
                while samples > 0 {
                    let block = samples.min(RECORD_BLOCK_SAMPLES as u64);
                    let codec = Codec::Pcmu;
                    let count = usize::try_from(block).unwrap_or(RECORD_BLOCK_SAMPLES);
                    let bytes = std::iter::repeat_n(codec.silence(), count).collect();
                    let silence = CodedBlock { codec, bytes };
                    if self.files.push(FileItem::Block(id.clone(), silence)).is_err() {
                        return Some(Held::Gap(id, samples));
                    }
                    samples -= block;
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::LegId;
    use crate::media::order::{LegStats, OpenError};
    use std::time::{Duration, UNIX_EPOCH};

    fn outbox(events: usize, files: usize) -> Outbox {
        Outbox::new(Arc::new(ArrayQueue::new(events)), Arc::new(ArrayQueue::new(files)))
    }

    fn timeout(leg: u64) -> Event {
        Event::MediaTimeout { leg: LegId(leg) }
    }

    fn failed(leg: u64) -> Event {
        Event::OpenFailed { leg: LegId(leg), error: OpenError::NoPort }
    }

    /// Goal: a full queue costs what may be missed, never an end, and keeps the order.
    /// Method: a queue of one; then it is drained and flushed.
    #[test]
    fn events_that_end_something_survive_a_full_queue() {
        let mut outbox = outbox(1, 1);
        outbox.event(failed(1));
        outbox.event(timeout(2));
        outbox.event(failed(3));
        outbox.event(Event::Closed { leg: LegId(4), stats: Box::new(LegStats::default()) });
        assert_eq!((outbox.dropped, outbox.events_held()), (1, 2));
        assert!(matches!(outbox.events.pop(), Some(Event::OpenFailed { leg: LegId(1), .. })));
        // What is held goes first even though there is room.
        outbox.event(failed(5));
        outbox.flush();
        assert!(matches!(outbox.events.pop(), Some(Event::OpenFailed { leg: LegId(3), .. })));
        outbox.flush();
        assert!(matches!(outbox.events.pop(), Some(Event::Closed { leg: LegId(4), .. })));
        outbox.flush();
        assert!(matches!(outbox.events.pop(), Some(Event::OpenFailed { leg: LegId(5), .. })));
        assert!(outbox.is_empty());
    }

    /// Goal: audio that finds no room becomes silence of the same length, in its place.
    /// Method: a file thread that sleeps through 35 minutes, then takes everything.
    #[test]
    fn audio_beyond_the_limit_becomes_silence_of_the_same_length() {
        let mut outbox = outbox(1, 4);
        let id = MessageId::new(UNIX_EPOCH + Duration::from_secs(1), 1);
        let blocks = 35 * 60 * 8000 / RECORD_BLOCK_SAMPLES as u64;
        let audio = CodedBlock { codec: Codec::Pcmu, bytes: [7; RECORD_BLOCK_SAMPLES][..].into() };
        for _ in 0..blocks {
            outbox.file(FileItem::Block(id.clone(), audio.clone()));
        }
        let samples = blocks * RECORD_BLOCK_SAMPLES as u64;
        outbox.file(FileItem::End { id: id.clone(), samples });
        let (mut heard, mut silence, mut ended) = (0, 0, false);
        while !ended {
            outbox.flush();
            while let Some(item) = outbox.files.pop() {
                match item {
                    FileItem::Block(_, block) if block.bytes[0] == 7 => heard += block.samples(),
                    FileItem::Block(_, block) => silence += block.samples(),
                    FileItem::End { samples: stated, .. } => {
                        assert_eq!(stated, samples);
                        ended = true;
                    }
                    FileItem::Begin(_) => unreachable!("none was begun"),
                }
            }
        }
        assert_eq!(heard + silence, samples);
        assert_eq!(silence, outbox.gap_samples);
        // Held: the limit; in the queue: 4 blocks; one block may cross the limit.
        let kept = HELD_SAMPLES_MAX + 4 * RECORD_BLOCK_SAMPLES as u64;
        assert!(heard >= kept && heard <= kept + RECORD_BLOCK_SAMPLES as u64, "{heard}");
        assert!(outbox.is_empty() && outbox.held_samples == 0);
    }
}
