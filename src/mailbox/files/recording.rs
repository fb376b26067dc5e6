//! One recording's task: from its first file to the last one gone.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{Desk, Input, Start};
use crate::mailbox::audio::{self, HEADER_BYTES};
use crate::mailbox::disk::Trouble;
use crate::mailbox::fs::File;
use crate::mailbox::service::{MailboxReply, count};
use crate::mailbox::spool::{self, Found, Lane, SpoolError, duration_ms};
use crate::media::order::{CodedBlock, RecordingMeta};

/// A recording's own task.
pub(super) struct Recording<'a> {
    desk: &'a Desk,
    /// Where its files are: our lane, or that of a worker that died.
    lane: Rc<Lane>,
    meta: RecordingMeta,
    /// `<id>.wav.part`; `None` when it could not be made.
    file: Option<File>,
    /// Samples in the file.
    written: u64,
    /// Samples that stay, once `End` came.
    ended: Option<u64>,
    /// The first write the disk refused; nothing is written after it, so that there is no gap.
    error: Option<String>,
}

impl<'a> Recording<'a> {
    pub(super) fn new(desk: &'a Desk, meta: RecordingMeta) -> Self {
        let lane = Rc::clone(&desk.lane);
        Self { desk, lane, meta, file: None, written: 0, ended: None, error: None }
    }

    /// Makes its files, or finds them. False: there is nothing to record, which is answered.
    pub(super) async fn start(&mut self, start: Start) -> bool {
        match start {
            Start::New => {
                self.begin().await;
                true
            }
            Start::Anew => self.adopt(0, false).await.is_some(),
            Start::Adopted { samples, ended } => {
                let Some(found) = self.adopt(samples, ended).await else { return false };
                self.desk.reply(MailboxReply::Adopted { id: self.meta.id.clone(), found });
                true
            }
        }
    }

    /// Goes on with what a worker that died wrote, made `samples` long; gives how many of them were
    /// there. `None`: it is decided about already, which is answered.
    async fn adopt(&mut self, samples: u64, ended: bool) -> Option<u64> {
        let found = self.find_files(samples).await;
        let (file, there) = match found {
            Ok(Found::Part { file, there }) => (file, there),
            Ok(Found::Gone(reason)) => {
                self.desk.fail(self.meta.id.clone(), reason);
                return None;
            }
            Err(error) => {
                self.refused(&error);
                // Its files stay as they are, for the next sweep.
                self.desk.fail(self.meta.id.clone(), error);
                return None;
            }
        };
        self.file = Some(file);
        // With nothing left of it, one that has ended is empty rather than a stretch of silence.
        self.written = if ended && there == 0 { 0 } else { samples };
        if ended {
            self.end(samples).await;
        }
        Some(there.min(samples))
    }

    async fn find_files(&mut self, samples: u64) -> Result<Found, SpoolError> {
        let (desk, id) = (self.desk, &self.meta.id);
        if let Some(lane) = desk.find_lane(id).await? {
            self.lane = lane;
        }
        desk.mover.adopt(&self.lane, &self.meta, samples).await
    }

    async fn begin(&mut self) {
        match self.desk.mover.begin(&self.lane, &self.meta).await {
            Ok(file) => self.file = Some(file),
            Err(error) => self.refused(&error),
        }
    }

    /// The disk refused: log once, keep what is there, go on taking blocks.
    fn refused(&mut self, error: &SpoolError) {
        if self.error.is_none() {
            count(&self.desk.ends.counters.write_errors, 1);
            tracing::error!(
                id = %self.meta.id, mailbox = self.meta.mailbox, call_id = self.meta.call_id,
                written_ms = duration_ms(self.written), %error, "recording cut short"
            );
            self.error = Some(error.to_string());
            let why = Trouble::of_spool(error).unwrap_or(Trouble::Other);
            self.desk.ends.disk.cut_short(self.meta.id.clone(), why);
        }
    }

    /// Takes inputs until the recording is kept, thrown away or given up.
    pub(super) async fn follow(&mut self, inputs: &mut UnboundedReceiver<Input>) {
        let mut is_kept = false;
        let mut reviews = Vec::new();
        let instead = loop {
            let input = inputs.recv().await;
            match input {
                Some(Input::Block(block)) => self.append(&block).await,
                Some(Input::End { samples }) => self.end(samples).await,
                Some(Input::Keep) if is_kept => self.desk.fail(self.meta.id.clone(), "asked for twice"),
                Some(Input::Keep) => is_kept = true,
                Some(Input::Review { token }) => reviews.push(token),
                Some(Input::Discard | Input::Missed) => break input,
                // The worker ends, and no `End` will come.
                None if self.ended.is_none() => self.end(self.written).await,
                None => break None,
            }
            if self.ended.is_some() {
                for token in reviews.drain(..) {
                    self.review(token).await;
                }
                if is_kept {
                    return self.keep().await;
                }
            }
        };
        // Every request has its reply, even when a later one made it void.
        for token in reviews {
            self.desk.refuse(&self.meta.id, Input::Review { token });
        }
        if is_kept {
            self.desk.refuse(&self.meta.id, Input::Keep);
        }
        match instead {
            Some(Input::Missed) => self.desk.miss(&self.lane, &self.meta).await,
            Some(_) => self.discard().await,
            None => self.settle().await,
        }
    }

    async fn append(&mut self, block: &CodedBlock) {
        self.desk.blocks_waiting.set(self.desk.blocks_waiting.get() - 1);
        if self.error.is_some() || self.ended.is_some() {
            return;
        }
        let Some(file) = &self.file else { return };
        let position = HEADER_BYTES as u64 + self.written * 2;
        let result = match self.desk.mover.step() {
            Ok(()) => file.write_at(audio::to_bytes(&block.to_pcm()), position).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.written += block.samples(),
            Err(error) => self.refused(&error.into()),
        }
    }

    async fn end(&mut self, samples: u64) {
        let samples = samples.min(self.written);
        self.ended = Some(samples);
        if let Some(file) = &self.file {
            let sealed = self.desk.mover.seal(&self.lane, &self.meta.id, file, samples).await;
            if let Err(error) = sealed {
                self.refused(&error);
            }
        }
    }

    async fn keep(&mut self) {
        let samples = self.ended.unwrap_or(self.written);
        if samples == 0 {
            return match self.error.take() {
                Some(error) => self.desk.fail(self.meta.id.clone(), error),
                None => self.desk.miss(&self.lane, &self.meta).await,
            };
        }
        match self.desk.mover.keep(&self.lane, &self.meta, samples).await {
            Ok(()) => {
                count(&self.desk.ends.counters.kept, 1);
                let duration = Duration::from_millis(duration_ms(samples));
                self.desk.reply(MailboxReply::Kept { id: self.meta.id.clone(), duration });
            }
            Err(error) => {
                if let Some(why) = Trouble::of_spool(&error) {
                    self.desk.ends.disk.refused(why);
                }
                self.desk.fail(self.meta.id.clone(), error);
            }
        }
    }

    async fn discard(&mut self) {
        let id = self.meta.id.clone();
        match self.desk.mover.discard(&self.lane, &id).await {
            Ok(()) => {
                count(&self.desk.ends.counters.discarded, 1);
                self.desk.reply(MailboxReply::Discarded { id });
            }
            Err(error) => self.desk.fail(id, error),
        }
    }

    async fn review(&self, token: u64) {
        let bytes = self.ended.unwrap_or_default() * 2;
        let samples = match &self.file {
            Some(file) => file.read_at(HEADER_BYTES as u64, bytes).await,
            None => Err(std::io::Error::other("nothing could be recorded")),
        };
        let samples = samples.map(|data| audio::from_bytes(&data).into()).map_err(|error| error.to_string());
        self.desk.reply(MailboxReply::Review { token, id: self.meta.id.clone(), samples });
    }

    /// Ends a recording nobody decided about by the rules of recovery: speech is kept.
    async fn settle(&mut self) {
        self.file = None;
        let recovered = spool::recover_one(&self.lane, &self.desk.mover, &self.meta.id).await;
        count(&self.desk.ends.counters.kept, recovered.messages);
        count(&self.desk.ends.counters.missed, recovered.missed);
    }
}
