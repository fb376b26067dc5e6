//! What the worker must know of storage that refuses: why, whose recording was cut short, and whether
//! new calls make sense.
//!
//! A caller who speaks on while nothing is written believes to have left a message. The worker
//! therefore ends such a call, and takes no new ones until everything a message needs was written
//! to: spool, audio folder and database. Room for the recordings under way is kept by refusing new
//! ones while there is still some.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use crate::base::id::MessageId;
use crate::mailbox::spool::SpoolError;
use crate::mailbox::store::StoreError;

/// How often storage that refused is tried again. A node is to answer a second after the fault.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How often storage that works is looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What must fit: some seconds of speech, so that a call is not taken for the last free byte.
const PROBE_BYTES: usize = 256 * 1024;
/// Recordings cut short that the worker has not heard of; more lose the oldest, whose call then
/// goes on to its own end.
const CUT_SHORT_MAX: usize = 4_096;

/// Why messages cannot be stored. Ours or the machine's doing, never the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Trouble {
    /// No room, or hardly any.
    #[error("the disk for messages is full")]
    Full = 1,
    /// A folder or file that this process may not write.
    #[error("the folder for messages is read-only")]
    ReadOnly,
    /// Another program holds the database for longer than a commit takes.
    #[error("the message store is locked by another program")]
    Locked,
    /// The database is no database, or not whole.
    #[error("the message store is damaged")]
    Damaged,
    /// No file can be opened.
    #[error("no file descriptor is left for messages")]
    Descriptors,
    /// Anything else; the log has the error.
    #[error("messages cannot be stored now")]
    Other,
}

impl Trouble {
    const ALL: [Self; 6] =
        [Self::Full, Self::ReadOnly, Self::Locked, Self::Damaged, Self::Descriptors, Self::Other];

    /// What a file operation's error means.
    pub(super) fn of_io(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => Self::Full,
            Some(Errno::EROFS | Errno::EACCES | Errno::EPERM) => Self::ReadOnly,
            Some(Errno::EMFILE | Errno::ENFILE) => Self::Descriptors,
            _ => Self::Other,
        }
    }

    /// What a failed spool step means; `None`: it is about one recording, or the store thread's to judge.
    pub(super) fn of_spool(error: &SpoolError) -> Option<Self> {
        match error {
            SpoolError::Io(error) => Some(Self::of_io(error)),
            SpoolError::Audio(error) => Some(io_source(error).map_or(Self::Other, Self::of_io)),
            SpoolError::Broken(_) | SpoolError::Store(_) => None,
        }
    }

    /// What a store's error means; `None`: it is about one message or mailbox.
    pub(super) fn of_store(error: &StoreError) -> Option<Self> {
        use rusqlite::ErrorCode::{
            DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, ReadOnly,
        };
        match error {
            StoreError::Damaged { .. } => Some(Self::Damaged),
            StoreError::Io(error) => Some(Self::of_io(error)),
            StoreError::Sqlite(error) => match error.sqlite_error_code()? {
                DatabaseBusy | DatabaseLocked => Some(Self::Locked),
                DatabaseCorrupt | NotADatabase => Some(Self::Damaged),
                DiskFull => Some(Self::Full),
                ReadOnly => Some(Self::ReadOnly),
                _ => Some(Self::Other),
            },
            StoreError::Newer { .. }
            | StoreError::BadNumber(_)
            | StoreError::BadName
            | StoreError::BadPin(_)
            | StoreError::MailboxExists(_)
            | StoreError::NoMailbox(_)
            | StoreError::NoMessage(_)
            | StoreError::NoAudio(_) => None,
        }
    }
}

/// The error of the file system below an error of the audio store.
fn io_source(error: &object_store::Error) -> Option<&io::Error> {
    let mut error: &(dyn Error + 'static) = error;
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = error.source()?;
    }
}

/// Written by the mailbox's threads, read by the signalling shard.
#[derive(Debug)]
pub(super) struct Disk {
    /// A [`Trouble`]; 0: none.
    trouble: AtomicU8,
    cut_short: ArrayQueue<MessageId>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { trouble: AtomicU8::new(0), cut_short: ArrayQueue::new(CUT_SHORT_MAX) }
    }
}

impl Disk {
    /// Why the last write was refused, if none has succeeded since.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let number = self.trouble.load(Ordering::Relaxed);
        Trouble::ALL.into_iter().find(|trouble| *trouble as u8 == number)
    }

    /// Notes a refused write.
    pub(super) fn refused(&self, why: Trouble) {
        if self.trouble.swap(why as u8, Ordering::Relaxed) == 0 {
            tracing::error!(%why, "messages cannot be stored: calls for mailboxes are refused");
        }
    }

    /// Notes a recording whose end is missing on disk.
    pub(super) fn cut_short(&self, id: MessageId, why: Trouble) {
        self.refused(why);
        self.cut_short.force_push(id);
    }

    /// Everything a message needs was written to.
    pub(super) fn restored(&self) {
        if self.trouble.swap(0, Ordering::Relaxed) != 0 {
            tracing::info!("messages can be stored again");
        }
    }

    /// The next recording that was cut short.
    pub(super) fn try_cut_short(&self) -> Option<MessageId> {
        self.cut_short.pop()
    }
}

/// Where a message goes, to be tried.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// A file of no recording's in the spool, and one in the audio folder.
    pub(super) probes: [PathBuf; 2],
    /// The database.
    pub(super) store: PathBuf,
    /// Less room than this is none, bytes.
    pub(super) free_min: u64,
}

impl Places {
    /// Looks whether all can be written and have room, without writing.
    pub(super) fn look(&self) -> Result<(), Trouble> {
        for folder in self.probes.iter().filter_map(|probe| probe.parent()) {
            may_write(folder, AccessFlags::W_OK | AccessFlags::X_OK)?;
            let Ok(stat) = statvfs(folder) else { continue };
            if stat.blocks_available() * stat.fragment_size() < self.free_min {
                return Err(Trouble::Full);
            }
        }
        may_write(&self.store, AccessFlags::W_OK)
    }

    /// Writes to the folders and removes what was written.
    pub(super) fn write(&self) -> Result<(), Trouble> {
        self.look()?;
        for probe in &self.probes {
            let written = try_write(probe);
            let removed = std::fs::remove_file(probe);
            written.and(removed).map_err(|error| Trouble::of_io(&error))?;
        }
        Ok(())
    }
}

fn may_write(path: &Path, flags: AccessFlags) -> Result<(), Trouble> {
    access(path, flags).map_err(|error| Trouble::of_io(&error.into()))
}

fn try_write(file: &Path) -> io::Result<()> {
    let mut out = std::fs::File::create(file)?;
    out.write_all(&vec![0; PROBE_BYTES])?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(data: &Path, free_min: u64) -> Places {
        let store = data.join("voxring.db");
        Places { probes: [data.join("spool/.probe"), data.join("messages/.probe")], store, free_min }
    }

    /// Goal: a refused write stays known, with its reason, until told otherwise. Method: refuse one.
    #[test]
    fn trouble_lasts_until_storage_is_restored() {
        let disk = Disk::default();
        assert_eq!(disk.trouble(), None);
        let id = MessageId::new(std::time::UNIX_EPOCH, 1);
        disk.cut_short(id.clone(), Trouble::ReadOnly);
        assert_eq!(disk.trouble(), Some(Trouble::ReadOnly));
        disk.refused(Trouble::Full);
        assert_eq!(disk.trouble(), Some(Trouble::Full));
        disk.restored();
        assert_eq!(disk.trouble(), None);
        assert_eq!((disk.try_cut_short(), disk.try_cut_short()), (Some(id), None));
    }

    /// Goal: every place is tried, nothing stays behind, and too little room is none. Method: make them
    /// one after the other; ask for more room than any disk has.
    #[test]
    fn all_places_must_be_there_and_have_room() {
        let data = tempfile::tempdir().unwrap();
        for name in ["spool", "messages"] {
            assert_eq!(places(data.path(), 0).write(), Err(Trouble::Other), "no {name} yet");
            std::fs::create_dir(data.path().join(name)).unwrap();
        }
        std::fs::write(data.path().join("voxring.db"), "").unwrap();
        assert_eq!(places(data.path(), 0).write(), Ok(()));
        assert_eq!(std::fs::read_dir(data.path().join("spool")).unwrap().count(), 0);
        assert_eq!(places(data.path(), u64::MAX).look(), Err(Trouble::Full));
    }

    /// Goal: an error of the audio store tells what the file system said. Method: a chain as
    /// `object_store` builds it.
    #[test]
    fn the_reason_is_found_below_the_audio_store() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(full) };
        assert_eq!(Trouble::of_spool(&SpoolError::Audio(error)), Some(Trouble::Full));
        let error = SpoolError::Io(io::Error::from_raw_os_error(libc::EROFS));
        assert_eq!(Trouble::of_spool(&error), Some(Trouble::ReadOnly));
        assert_eq!(Trouble::of_spool(&SpoolError::Store("locked".into())), None);
    }
}
