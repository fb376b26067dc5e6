//! What the worker must know of a disk that refuses writes: whose recording was cut short, and
//! whether new ones make sense.
//!
//! A caller who speaks on while nothing is written believes to have left a message. The worker
//! therefore ends such a call and takes no new ones until a write succeeds again.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::base::id::MessageId;

/// How often a disk that refused is tried again.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// What must fit: some seconds of speech, so that a call is not taken for the last free byte.
const PROBE_BYTES: usize = 256 * 1024;
/// Recordings cut short that the worker has not heard of; more lose the oldest, whose call then
/// goes on to its own end.
const CUT_SHORT_MAX: usize = 4_096;

/// Written by the file thread, read by the signalling shard.
#[derive(Debug)]
pub(super) struct Disk {
    refuses: AtomicBool,
    cut_short: ArrayQueue<MessageId>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { refuses: AtomicBool::new(false), cut_short: ArrayQueue::new(CUT_SHORT_MAX) }
    }
}

impl Disk {
    /// The last write was refused and none has succeeded since.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    /// Notes a refused write.
    pub(super) fn refused(&self) {
        if !self.refuses.swap(true, Ordering::Relaxed) {
            tracing::error!("messages cannot be stored: calls for mailboxes are refused");
        }
    }

    /// Notes a recording whose end is missing on disk.
    pub(super) fn cut_short(&self, id: MessageId) {
        self.refused();
        self.cut_short.force_push(id);
    }

    /// The next recording that was cut short.
    pub(super) fn try_cut_short(&self) -> Option<MessageId> {
        self.cut_short.pop()
    }

    /// Tries whether `file` can be written; removes it again.
    pub(super) fn probe(&self, file: &Path) {
        let written = try_write(file);
        let removed = std::fs::remove_file(file);
        if written.and(removed).is_ok() && self.refuses.swap(false, Ordering::Relaxed) {
            tracing::info!("messages can be stored again");
        }
    }
}

fn try_write(file: &Path) -> io::Result<()> {
    let mut out = std::fs::File::create(file)?;
    out.write_all(&vec![0; PROBE_BYTES])?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a refused write stays known until a write succeeds, and only then is forgotten.
    /// Method: probe a folder that does not exist, then create it.
    #[test]
    fn a_disk_that_refused_is_trusted_again_after_a_write() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("spool");
        let probe = folder.join(".probe");
        let disk = Disk::default();
        assert!(!disk.refuses());
        let id = MessageId::new(std::time::UNIX_EPOCH, 1);
        disk.cut_short(id.clone());
        disk.probe(&probe);
        assert!(disk.refuses());
        std::fs::create_dir(&folder).unwrap();
        disk.probe(&probe);
        assert!(!disk.refuses());
        assert!(!probe.exists());
        assert_eq!((disk.try_cut_short(), disk.try_cut_short()), (Some(id), None));
    }
}
