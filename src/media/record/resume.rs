//! A recording that goes on in another process, where the first one's samples end.

use std::time::{Duration, Instant};

use super::{Recorder, Recording};
use crate::base::clock;
use crate::base::id::MessageId;
use crate::media::jitter::ReorderWindow;
use crate::media::mark::RecordMark;
use crate::media::media_clock::MediaClock;
use crate::media::order::{RecordEnd, RecordPlan};
use crate::media::silence::EnergyGate;

impl Recorder {
    /// What [`Self::resume`] needs. The next sample goes behind the block that is being filled, whose
    /// samples die with this process.
    pub fn mark(&self) -> RecordMark {
        RecordMark {
            tag: self.id.random(),
            end: None,
            samples: self.window.start(),
            sound: self.gate.sound(),
            sound_end: self.gate.sound_end(),
            began: clock::uptime(self.began),
            clock: self.clock.mark(),
            packet_len: u16::try_from(self.packet_len).unwrap_or(u16::MAX),
        }
    }

    /// Goes on where `mark` was made: timestamps lie where they lay, and what is missing between is
    /// silence. Limit and silence count from the recording's own beginning.
    pub fn resume(now: Instant, id: MessageId, plan: &RecordPlan, mark: &RecordMark) -> Self {
        Self {
            began: clock::at_uptime(mark.began),
            clock: MediaClock::resume(&mark.clock),
            window: ReorderWindow::at(mark.samples),
            gate: EnergyGate::resume(mark.samples, mark.sound, mark.sound_end),
            packet_len: i64::from(mark.packet_len).max(1),
            block_start: mark.samples,
            resumed: true,
            ..Self::new(now, id, plan, None)
        }
    }
}

impl Recording {
    /// What this one came to, for a process that must tell of it once more.
    pub fn mark(&self, end: RecordEnd) -> RecordMark {
        RecordMark {
            tag: self.id.random(),
            end: Some(end),
            samples: self.samples,
            sound: self.sound,
            sound_end: 0,
            began: Duration::ZERO,
            clock: MediaClock::new(None).mark(),
            packet_len: 0,
        }
    }
}
