//! A recording of a worker that died: its files, for the one that goes on with it.

use std::path::Path;

use super::{Lane, Mover, SpoolError, recover_one};
use crate::base::id::MessageId;
use crate::mailbox::audio::{self, HEADER_BYTES};
use crate::mailbox::fs::File;
use crate::media::order::RecordingMeta;

/// What there is of a recording.
pub(in crate::mailbox) enum Found {
    /// Its audio, as long as was asked for; so many samples were `there`.
    Part {
        /// `<id>.wav.part`.
        file: File,
        /// Samples it had.
        there: u64,
    },
    /// It is decided about, and why.
    Gone(&'static str),
}

impl Lane {
    /// Its folder.
    pub(in crate::mailbox) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Some file of the recording lies here.
    pub(in crate::mailbox) fn has(&self, id: &MessageId) -> bool {
        ["json", "wav.part", "wav", "discard"].iter().any(|extension| self.path(id, extension).exists())
    }

    /// Files of a recording that `is_one` is true of lie here. True too if the folder cannot be read.
    pub(in crate::mailbox) fn has_any(&self, is_one: impl Fn(&MessageId) -> bool) -> bool {
        self.scan().map_or(true, |ids| ids.iter().any(is_one))
    }
}

impl Mover {
    /// Whether the recording is a message already, or was one that is deleted.
    pub(in crate::mailbox) async fn is_settled(&self, id: &MessageId) -> Result<bool, SpoolError> {
        self.store.is_settled(id.clone()).await.map_err(SpoolError::Store)
    }

    /// The files of `meta`'s recording in `lane`, ready to go on: exactly `samples` samples, silence for
    /// what is missing, no length in the header. Without files, new ones. What somebody had decided
    /// about is brought to its end instead.
    pub(in crate::mailbox) async fn adopt(
        &self,
        lane: &Lane,
        meta: &RecordingMeta,
        samples: u64,
    ) -> Result<Found, SpoolError> {
        let id = &meta.id;
        if lane.path(id, "discard").exists() {
            self.clean(lane, id).await?;
            return Ok(Found::Gone("it was thrown away"));
        }
        if self.is_settled(id).await? {
            self.clean(lane, id).await?;
            return Ok(Found::Gone("it is in the store, or was"));
        }
        if lane.path(id, "wav").exists() {
            recover_one(lane, self, id).await;
            return Ok(Found::Gone("it was to be kept already, and goes to the store"));
        }
        self.describe(lane, meta).await?;
        let part = lane.path(id, "wav.part");
        let there = match std::fs::metadata(&part) {
            Ok(file) => file.len().saturating_sub(HEADER_BYTES as u64) / 2,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        self.step()?;
        let file =
            if part.exists() { self.fs.open_to_write(&part).await? } else { self.fs.create(&part).await? };
        self.step()?;
        file.write_at(audio::header(0).to_vec(), 0).await?;
        self.step()?;
        self.fs.resize(part, HEADER_BYTES as u64 + samples * 2).await?;
        Ok(Found::Part { file, there })
    }
}
