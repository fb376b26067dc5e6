//! Recordings of a worker that died, which go on here.
//!
//! Its lane is free once it is dead. What lies in it stays there, under its lock, until the last recording
//! that goes on is decided about; so there is no moving of files that another crash could come between.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Desk, Input, Open, Start};
use crate::base::id::MessageId;
use crate::mailbox::service::{MailboxReply, count};
use crate::mailbox::spool::{Lane, SpoolError};
use crate::media::order::RecordingMeta;

/// Recordings that nobody asked for by then are finished as any that a crash left.
pub(super) const AWAITED_MAX: Duration = Duration::from_secs(60);
/// The kernel frees the lock of a process that was killed with its last descriptor, which may be a
/// moment after its end: a lane is looked for so many times.
const LOOKS: u32 = 10;
/// And so often.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What is open from the beginning.
pub(super) fn awaited(ids: &HashSet<MessageId>) -> HashMap<MessageId, Open> {
    ids.iter().map(|id| (id.clone(), Open::Awaited(Vec::new()))).collect()
}

impl Desk {
    /// Starts the task of a recording that goes on. `None`: not now, since a sweep may be about to finish
    /// it.
    pub(super) fn adopt(self: &Rc<Self>, meta: &RecordingMeta, samples: u64, ended: bool) -> Option<()> {
        let is_awaited = match self.open.borrow().get(&meta.id) {
            Some(Open::Awaited(_)) => true,
            None => false,
            Some(Open::Task(_) | Open::ThrownAway(_)) => {
                self.fail(meta.id.clone(), "it is being recorded already");
                return Some(());
            }
        };
        if !is_awaited && self.is_sweeping.get() {
            return None;
        }
        self.start(meta.clone(), Start::Adopted { samples, ended });
        Some(())
    }

    /// Counts on what is thrown away as it comes.
    pub(super) fn start_thrown_away(&self, id: MessageId, start: &Start, early: Vec<Input>) {
        let (mut samples, mut ended) = (0, false);
        if let Start::Adopted { samples: before, ended: at_once } = start {
            (samples, ended) = (*before, *at_once);
            self.reply(MailboxReply::Adopted { id: id.clone(), found: samples });
        }
        for input in early {
            match input {
                Input::Block(block) => {
                    self.blocks_waiting.set(self.blocks_waiting.get() - 1);
                    samples += block.samples();
                }
                Input::End { .. } => ended = true,
                Input::Keep | Input::Discard | Input::Missed | Input::Review { .. } => {}
            }
        }
        if ended {
            count(&self.ends.counters.thrown_away_samples, samples);
        } else {
            self.open.borrow_mut().insert(id, Open::ThrownAway(samples));
        }
    }

    /// Stops to wait for adoptions when their time is over.
    pub(super) fn give_up_awaited(&self, now: Instant) {
        if self.awaiting_until.get().is_none_or(|until| now < until) {
            return;
        }
        self.awaiting_until.set(None);
        self.open.borrow_mut().retain(|id, open| match open {
            Open::Awaited(early) => {
                let blocks = early.iter().filter(|input| matches!(input, Input::Block(_))).count();
                self.blocks_waiting.set(self.blocks_waiting.get() - blocks);
                tracing::warn!(%id, blocks, "nobody went on with the recording of a worker that died");
                false
            }
            Open::Task(_) | Open::ThrownAway(_) => true,
        });
    }

    /// Takes the lanes without an owner: all of them `at_start`, else those that had none at the last
    /// sweep either.
    pub(super) fn hold_orphans(&self, at_start: bool) -> std::io::Result<()> {
        let before = std::mem::take(&mut *self.orphans_seen.borrow_mut());
        for lane in Lane::orphans(&self.ends.config.data.join("spool"))? {
            if at_start || before.contains(lane.folder()) {
                self.held.borrow_mut().push(Rc::new(lane));
            } else {
                self.orphans_seen.borrow_mut().insert(lane.folder().to_owned());
            }
        }
        Ok(())
    }

    /// Lets go of the lanes in which nothing goes on.
    pub(super) fn release_finished(&self) {
        let open = self.open.borrow();
        self.held
            .borrow_mut()
            .retain(|lane| Rc::strong_count(lane) > 1 || lane.has_any(|id| open.contains_key(id)));
    }

    /// The lane in which files of the recording lie. `None`: no lane but those of living workers.
    pub(super) async fn find_lane(&self, id: &MessageId) -> Result<Option<Rc<Lane>>, SpoolError> {
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            if let Some(lane) = self.look_for(id)? {
                return Ok(Some(lane));
            }
            if self.mover.is_settled(id).await? {
                break;
            }
        }
        Ok(None)
    }

    fn look_for(&self, id: &MessageId) -> Result<Option<Rc<Lane>>, SpoolError> {
        let mut held = self.held.borrow_mut();
        if let Some(lane) = [&self.lane].into_iter().chain(&*held).find(|lane| lane.has(id)) {
            return Ok(Some(Rc::clone(lane)));
        }
        for lane in Lane::orphans(&self.ends.config.data.join("spool"))? {
            if lane.has(id) {
                let lane = Rc::new(lane);
                held.push(Rc::clone(&lane));
                return Ok(Some(lane));
            }
        }
        Ok(None)
    }
}
