//! The spool: how a recording becomes a message without ever being lost or doubled.
//!
//! A worker owns one lane, `spool/<n>/`, by holding a lock on `spool/<n>/.lock` for its life; the
//! kernel frees the lock when the process dies, however it dies. A recording goes through
//!
//! ```text
//! <id>.json        who and what for          written when the recording begins
//! <id>.wav.part    header of length 0, then samples as they come
//!                  1 header with the length, fsync of both files       (seal)
//! <id>.wav         2 rename, 3 fsync of the lane
//! messages/<mailbox>/<id>.wav   4 through `object_store`, fsync of file and folder
//! row in the store 5 committed; from here on it is a message
//!                  6 <id>.wav removed, 7 <id>.json removed
//! ```
//!
//! and [`recover`] takes whatever a crash left to the end of that list. Every step may be repeated.
//! A recording to be thrown away is first renamed to `<id>.discard`, so that it cannot come back.
//! A worker that takes the place of a dead one goes on with recordings under way where they lie, in
//! whichever lane; they are nobody's to recover meanwhile.
//! What cannot be understood is set aside in `spool/broken`, never deleted.
//!
//! A process that dies loses what had not reached this thread: less than a second. When the whole
//! machine loses power, recordings under way also lose what the kernel had not yet flushed; those
//! that were sealed lose nothing.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::base::id::MessageId;
use crate::base::limits::SAMPLE_RATE_HZ;
use crate::mailbox::audio::{self, HEADER_BYTES};
use crate::mailbox::fs::{File, Fs};
use crate::mailbox::store::{self, Message, MessageKind};
use crate::mailbox::store_thread::StoreClient;
use crate::media::order::RecordingMeta;

mod adopt;

pub(super) use adopt::Found;

/// Lanes looked at: far more worker processes than a node ever runs.
const LANES_MAX: u32 = 64;
/// Recordings moved at once; each holds up to [`PUT_BYTES`] in memory.
const MOVES_MAX: usize = 8;
/// Largest piece of audio handed to `object_store` at once, bytes (S3 wants parts of 5 MiB).
const PUT_BYTES: usize = 5 << 20;

/// Why a spool step failed. Always ours: the disk, or a spool file somebody damaged.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file could not be written, flushed, renamed or removed.
    #[error("spool: {0}")]
    Io(#[from] io::Error),
    /// The audio could not be stored.
    #[error("audio store: {0}")]
    Audio(#[from] object_store::Error),
    /// The row could not be stored.
    #[error("{0}")]
    Store(String),
    /// The description of a recording cannot be read.
    #[error("{0}")]
    Broken(String),
}

/// What recovery found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Recordings that became voice messages.
    pub messages: u64,
    /// Recordings without speech that became missed calls.
    pub missed: u64,
    /// Leftovers of finished or discarded recordings, removed.
    pub cleaned: u64,
    /// Set aside in `spool/broken`.
    pub broken: u64,
    /// Left in the spool because the disk or the store refused; tried again later.
    pub failed: u64,
}

impl Recovered {
    /// Adds another lane's numbers.
    pub fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.missed += other.missed;
        self.cleaned += other.cleaned;
        self.broken += other.broken;
        self.failed += other.failed;
    }
}

/// One folder of the spool, owned by this process until dropped.
#[derive(Debug)]
pub struct Lane {
    folder: PathBuf,
    broken: PathBuf,
    _lock: std::fs::File,
}

impl Lane {
    /// Takes the first lane of `spool` that no living process owns.
    ///
    /// # Errors
    /// Those of the file system; `WouldBlock` when all lanes are taken.
    pub fn claim(spool: &Path) -> io::Result<Self> {
        for number in 0..LANES_MAX {
            std::fs::create_dir_all(spool.join(number.to_string()))?;
            if let Some(lane) = Self::try_lock(spool, number)? {
                return Ok(lane);
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "every spool lane belongs to a living worker"))
    }

    /// Takes every lane of `spool` whose owner died.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn orphans(spool: &Path) -> io::Result<Vec<Self>> {
        let mut lanes = Vec::new();
        for number in 0..LANES_MAX {
            if spool.join(number.to_string()).is_dir() {
                lanes.extend(Self::try_lock(spool, number)?);
            }
        }
        Ok(lanes)
    }

    fn try_lock(spool: &Path, number: u32) -> io::Result<Option<Self>> {
        let folder = spool.join(number.to_string());
        let file = folder.join(".lock");
        let lock = match std::fs::File::create(&file) {
            // A worker starts on a spool that cannot be written now; calls are refused until it can.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => std::fs::File::open(&file)?,
            result => result?,
        };
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { folder, broken: spool.join("broken"), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// `<id>.<extension>` in this lane.
    pub(super) fn path(&self, id: &MessageId, extension: &str) -> PathBuf {
        self.folder.join(format!("{id}.{extension}"))
    }

    /// A file that tells whether this lane can be written; it is no recording's.
    pub(super) fn probe(&self) -> PathBuf {
        self.folder.join(".probe")
    }

    /// The ids of everything that lies here. Files of other names are none of ours.
    fn scan(&self) -> io::Result<Vec<MessageId>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.split('.').next());
            ids.extend(stem.and_then(|stem| MessageId::parse(stem).ok()));
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Moves everything of `id` to `spool/broken`.
    fn set_aside(&self, id: &MessageId) -> io::Result<()> {
        std::fs::create_dir_all(&self.broken)?;
        for extension in ["json", "json.part", "wav.part", "wav"] {
            let name = format!("{id}.{extension}");
            ignore_missing(std::fs::rename(self.folder.join(&name), self.broken.join(&name)))?;
        }
        Ok(())
    }
}

/// Carries recordings from the spool to the message store. Belongs to the file thread.
pub struct Mover {
    fs: Fs,
    audio: Arc<dyn ObjectStore>,
    /// Where `audio` keeps its files, if it does so on this machine.
    audio_folder: Option<PathBuf>,
    store: StoreClient,
    permits: Semaphore,
    voiced_min_ms: u64,
    #[cfg(test)]
    pub(super) fault: fault::Fault,
}

impl Mover {
    /// A mover that writes audio to files under `folder` and rows through `store`. What a crash
    /// left behind with less than `voiced_min_ms` of sound becomes a missed call.
    pub(super) fn to_folder(
        fs: Fs,
        folder: &Path,
        store: StoreClient,
        voiced_min_ms: u64,
    ) -> Result<Self, SpoolError> {
        std::fs::create_dir_all(folder)?;
        let audio = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self {
            fs,
            audio: Arc::new(audio),
            audio_folder: Some(folder.to_owned()),
            store,
            permits: Semaphore::new(MOVES_MAX),
            voiced_min_ms,
            #[cfg(test)]
            fault: fault::Fault::default(),
        })
    }

    /// Stands before every change on disk: here a test may cut the power.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "a hook for tests")
    )]
    pub(super) fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        self.fault.step()?;
        Ok(())
    }

    /// Writes the description and the still empty audio file of a new recording.
    pub(super) async fn begin(&self, lane: &Lane, meta: &RecordingMeta) -> Result<File, SpoolError> {
        self.describe(lane, meta).await?;
        self.step()?;
        let part = self.fs.create(&lane.path(&meta.id, "wav.part")).await?;
        self.step()?;
        part.write_at(audio::header(0).to_vec(), 0).await?;
        Ok(part)
    }

    /// Writes a recording's description.
    async fn describe(&self, lane: &Lane, meta: &RecordingMeta) -> Result<(), SpoolError> {
        let json = serde_json::to_vec(meta).map_err(io::Error::from)?;
        let half = lane.path(&meta.id, "json.part");
        self.step()?;
        let file = self.fs.create(&half).await?;
        file.write_at(json, 0).await?;
        file.close().await?;
        self.step()?;
        self.fs.rename(half, lane.path(&meta.id, "json")).await?;
        Ok(())
    }

    /// Gives the recording its length and waits until it and its description are on disk.
    pub(super) async fn seal(
        &self,
        lane: &Lane,
        id: &MessageId,
        part: &File,
        samples: u64,
    ) -> Result<(), SpoolError> {
        self.step()?;
        part.write_at(audio::header(samples).to_vec(), 0).await?;
        self.step()?;
        part.sync().await?;
        self.fs.sync(&lane.path(id, "json")).await?;
        Ok(())
    }

    /// Makes a sealed recording of `samples` samples a voice message. On an error it stays in the
    /// spool, from where [`recover`] goes on.
    pub(super) async fn keep(
        &self,
        lane: &Lane,
        meta: &RecordingMeta,
        samples: u64,
    ) -> Result<(), SpoolError> {
        let wav = lane.path(&meta.id, "wav");
        self.step()?;
        ignore_missing(self.fs.rename(lane.path(&meta.id, "wav.part"), wav.clone()).await)?;
        self.step()?;
        self.fs.sync(&lane.folder).await?;
        self.step()?;
        self.put(&wav, meta, samples).await?;
        self.step()?;
        self.insert(message(meta, MessageKind::Voice, samples)).await?;
        // The message is safe; leftovers only cost the next start a moment.
        if let Err(error) = self.clean(lane, &meta.id).await {
            tracing::warn!(%error, id = %meta.id, "spool files of a stored message remain");
        }
        Ok(())
    }

    /// Notes a missed call, and removes what was recorded of it, if anything.
    pub(super) async fn miss(&self, lane: &Lane, meta: &RecordingMeta) -> Result<(), SpoolError> {
        self.step()?;
        self.insert(message(meta, MessageKind::Missed, 0)).await?;
        self.clean(lane, &meta.id).await?;
        Ok(())
    }

    /// Throws a recording away, for good even if the power fails half-way.
    pub(super) async fn discard(&self, lane: &Lane, id: &MessageId) -> Result<(), SpoolError> {
        let part = lane.path(id, "wav.part");
        self.step()?;
        ignore_missing(self.fs.rename(part, lane.path(id, "discard")).await)?;
        self.clean(lane, id).await?;
        Ok(())
    }

    /// Removes every file of `id`, the mark that makes this repeatable last.
    async fn clean(&self, lane: &Lane, id: &MessageId) -> io::Result<()> {
        for extension in ["wav.part", "wav", "json.part", "json", "discard"] {
            self.step()?;
            ignore_missing(self.fs.remove(lane.path(id, extension)).await)?;
        }
        Ok(())
    }

    /// Copies the header and `samples` samples of `wav` to the audio store. When this returns,
    /// file and folder are flushed (`LocalFileSystem::with_fsync`).
    async fn put(&self, wav: &Path, meta: &RecordingMeta, samples: u64) -> Result<(), SpoolError> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let key = object_store::path::Path::from(store::audio_key(&meta.mailbox, &meta.id));
        let file = self.fs.open(wav).await?;
        let bytes = HEADER_BYTES as u64 + samples * 2;
        if bytes <= PUT_BYTES as u64 {
            let payload = PutPayload::from(file.read_at(0, bytes).await?);
            self.audio.put(&key, payload).await?;
        } else {
            let mut upload = self.audio.put_multipart(&key).await?;
            let mut position = 0;
            while position < bytes {
                let length = (bytes - position).min(PUT_BYTES as u64);
                let payload = PutPayload::from(file.read_at(position, length).await?);
                upload.put_part(payload).await?;
                position += length;
            }
            upload.complete().await?;
        }
        file.close().await?;
        Ok(())
    }

    /// Removes what an upload of `meta`'s audio left when a crash cut it off: `LocalFileSystem`
    /// writes `<file>#1` (or a higher number if that exists) and renames it.
    fn remove_cut_off_uploads(&self, meta: &RecordingMeta) -> io::Result<()> {
        let Some(folder) = &self.audio_folder else { return Ok(()) };
        let key = store::audio_key(&meta.mailbox, &meta.id);
        for number in 1.. {
            match std::fs::remove_file(folder.join(format!("{key}#{number}"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                result => result?,
            }
        }
        Ok(())
    }

    async fn insert(&self, message: Message) -> Result<bool, SpoolError> {
        self.store.insert(message).await.map_err(SpoolError::Store)
    }
}

/// Takes everything in `lane` to its end, except the recordings `is_open` knows.
///
/// Recordings are handled side by side. One that fails stays where it is and is counted.
///
/// # Errors
/// Only when the lane's folder cannot be read.
pub async fn recover(
    lane: &Rc<Lane>,
    mover: &Rc<Mover>,
    is_open: impl Fn(&MessageId) -> bool,
) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    let mut ids = lane.scan()?;
    ids.retain(|id| !is_open(id));
    for group in ids.chunks(4 * MOVES_MAX) {
        let start = |id: &MessageId| {
            let (lane, mover, id) = (Rc::clone(lane), Rc::clone(mover), id.clone());
            tokio::task::spawn_local(async move { recover_one(&lane, &mover, &id).await })
        };
        let tasks: Vec<_> = group.iter().map(start).collect();
        for task in tasks {
            recovered.add(task.await.map_err(io::Error::other)?);
        }
    }
    Ok(recovered)
}

pub(super) async fn recover_one(lane: &Lane, mover: &Mover, id: &MessageId) -> Recovered {
    let result = match finish_found(lane, mover, id).await {
        Err(SpoolError::Broken(reason)) => {
            tracing::error!(%id, reason, "recording set aside in spool/broken");
            lane.set_aside(id).map(|()| Recovered { broken: 1, ..Default::default() }).map_err(Into::into)
        }
        result => result,
    };
    result.unwrap_or_else(|error: SpoolError| {
        tracing::error!(%id, %error, "recording stays in the spool");
        Recovered { failed: 1, ..Default::default() }
    })
}

async fn finish_found(lane: &Lane, mover: &Mover, id: &MessageId) -> Result<Recovered, SpoolError> {
    let cleaned = Recovered { cleaned: 1, ..Default::default() };
    if lane.path(id, "discard").exists() || mover.is_settled(id).await? {
        mover.clean(lane, id).await?;
        return Ok(cleaned);
    }
    let (wav, part) = (lane.path(id, "wav"), lane.path(id, "wav.part"));
    let meta = read_meta(&lane.path(id, "json"), id)?;
    // Renamed means somebody decided to keep it.
    let (path, decided) = if wav.exists() { (wav, true) } else { (part, false) };
    if !path.exists() {
        mover.miss(lane, &meta).await?;
        return Ok(Recovered { missed: 1, ..Default::default() });
    }
    let file = mover.fs.open_to_write(&path).await?;
    let samples = samples_in(&file, &path).await?;
    if samples == 0 || (!decided && !mover.is_voiced(&file, samples).await?) {
        mover.miss(lane, &meta).await?;
        return Ok(Recovered { missed: 1, ..Default::default() });
    }
    mover.remove_cut_off_uploads(&meta)?;
    mover.seal(lane, id, &file, samples).await?;
    file.close().await?;
    mover.keep(lane, &meta, samples).await?;
    tracing::info!(%id, mailbox = meta.mailbox, samples, "recording recovered from the spool");
    Ok(Recovered { messages: 1, ..Default::default() })
}

impl Mover {
    /// Says whether somebody spoke, piece by piece so that long recordings cost little memory.
    async fn is_voiced(&self, file: &File, samples: u64) -> Result<bool, SpoolError> {
        let bytes = samples * 2;
        let mut position = 0;
        let mut voiced_ms = 0;
        while position < bytes && voiced_ms < self.voiced_min_ms {
            let length = (bytes - position).min(1 << 20);
            let data = file.read_at(HEADER_BYTES as u64 + position, length).await?;
            voiced_ms += audio::voiced_ms(&audio::from_bytes(&data));
            position += length;
        }
        Ok(voiced_ms >= self.voiced_min_ms)
    }
}

/// How many samples a spool file holds: what its header says if that can be true, else all of it.
async fn samples_in(file: &File, path: &Path) -> Result<u64, SpoolError> {
    let there = std::fs::metadata(path)?.len().saturating_sub(HEADER_BYTES as u64) / 2;
    if there == 0 {
        return Ok(0);
    }
    let header = file.read_at(0, HEADER_BYTES as u64).await?;
    let promised = match header.get(40..44).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
        Some(bytes) if header.starts_with(b"RIFF") => u64::from(u32::from_le_bytes(bytes)) / 2,
        _ => 0,
    };
    Ok(if (1..=there).contains(&promised) { promised } else { there })
}

/// Reads a recording's description.
fn read_meta(path: &Path, id: &MessageId) -> Result<RecordingMeta, SpoolError> {
    let json = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SpoolError::Broken("its description is missing".into()));
        }
        result => result?,
    };
    let meta: RecordingMeta = serde_json::from_slice(&json)
        .map_err(|error| SpoolError::Broken(format!("its description cannot be read: {error}")))?;
    if meta.id != *id {
        return Err(SpoolError::Broken(format!("its description is that of {}", meta.id)));
    }
    store::check_number(&meta.mailbox).map_err(|error| SpoolError::Broken(error.to_string()))?;
    Ok(meta)
}

/// The message a recording becomes.
fn message(meta: &RecordingMeta, kind: MessageKind, samples: u64) -> Message {
    Message {
        id: meta.id.clone(),
        mailbox: meta.mailbox.clone(),
        kind,
        caller: meta.caller.clone(),
        caller_name: meta.caller_name.clone(),
        called: meta.called.clone(),
        diversion_reason: meta.diversion_reason.clone(),
        call_id: meta.call_id.clone(),
        started_ms: meta.started_ms,
        duration_ms: duration_ms(samples),
        read: false,
    }
}

/// Playing time of `samples` samples, milliseconds.
pub fn duration_ms(samples: u64) -> u64 {
    samples * 1000 / u64::from(SAMPLE_RATE_HZ)
}

/// A file that is gone already is as good as removed or moved.
fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Power cuts for tests.
#[cfg(test)]
pub(super) mod fault {
    use std::cell::Cell;
    use std::io;

    /// Lets a number of steps happen, then none.
    #[derive(Debug, Default)]
    pub(in crate::mailbox) struct Fault {
        /// Steps that still happen; `None`: all.
        pub(in crate::mailbox) steps_left: Cell<Option<u32>>,
        /// The power was cut.
        pub(in crate::mailbox) is_cut: Cell<bool>,
    }

    impl Fault {
        pub(super) fn step(&self) -> io::Result<()> {
            match self.steps_left.get() {
                None => Ok(()),
                Some(0) => {
                    self.is_cut.set(true);
                    Err(io::Error::other("power cut by the test"))
                }
                Some(left) => {
                    self.steps_left.set(Some(left - 1));
                    Ok(())
                }
            }
        }
    }
}
