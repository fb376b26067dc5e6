//! A mailbox's own greeting: `<data>/greetings/<number>.wav`, replaced whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::{Store, StoreError};
use crate::mailbox::audio;

impl Store {
    /// Makes `samples` (16-bit linear, 8000 Hz) what callers of `number` hear.
    ///
    /// They are on disk under another name before they take the old greeting's place, so a call
    /// under way hears what it began to hear, and after an error or a power cut the old one is there.
    ///
    /// # Errors
    /// `NoMailbox`; `Io` and `Sqlite` when they cannot be stored.
    pub fn replace_greeting(&mut self, number: &str, samples: &[i16]) -> Result<(), StoreError> {
        let mailbox = self.mailbox(number)?.ok_or_else(|| StoreError::NoMailbox(number.to_owned()))?;
        // Numbers are checked when a mailbox is added: they are file names.
        let name = format!("{}.wav", mailbox.number);
        let part = self.greeting_path(&format!(".{name}.part"));
        let path = self.greeting_path(&name);
        if let Err(error) = write(&part, samples).and_then(|()| std::fs::rename(&part, &path)) {
            let _ = std::fs::remove_file(&part);
            return Err(error.into());
        }
        sync_folder(&path)?;
        self.set_greeting(number, Some(&name))
    }

    /// Lets callers of `number` hear the built-in greeting again. No error if they do already.
    ///
    /// # Errors
    /// `NoMailbox`, `Sqlite`; `Io` when the file stays, which the next removal tries again.
    pub fn remove_greeting(&mut self, number: &str) -> Result<(), StoreError> {
        self.set_greeting(number, None)?;
        let path = self.greeting_path(&format!("{number}.wav"));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed.and_then(|()| sync_folder(&path))?),
        }
    }
}

/// A new file, on disk when this returns. One that a crash left half written makes room.
fn write(path: &Path, samples: &[i16]) -> io::Result<()> {
    // Somebody's voice: nobody else's to read.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&audio::header(samples.len() as u64))?;
    file.write_all(&audio::to_bytes(samples))?;
    file.sync_all()
}

/// Makes the names in the folder of `path` durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
