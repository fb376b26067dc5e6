//! File operations of the file thread: on its ring, or as blocking calls on tokio's threads where
//! there is none. Either way an operation is over when its future is, so what the spool's steps
//! promise holds for both.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::uring::Runtime;

/// Who carries operations out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fs {
    /// The thread's ring.
    Ring,
    /// tokio's threads for blocking calls.
    Blocking,
}

/// An open file or folder.
pub(super) enum File {
    Ring(tokio_uring::fs::File),
    Blocking(Arc<std::fs::File>),
}

impl Fs {
    /// What fits the runtime that operations are awaited on.
    pub(super) fn of(runtime: &Runtime) -> Self {
        match runtime {
            Runtime::Ring(_) => Self::Ring,
            Runtime::Plain { .. } => Self::Blocking,
        }
    }

    /// An empty file, to write and read.
    pub(super) async fn create(self, path: &Path) -> io::Result<File> {
        match self {
            Self::Ring => {
                let mut options = tokio_uring::fs::OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true);
                options.open(path).await.map(File::Ring)
            }
            Self::Blocking => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true);
                open(options, path).await
            }
        }
    }

    /// A file that is there, to read; or a folder, to flush.
    pub(super) async fn open(self, path: &Path) -> io::Result<File> {
        match self {
            Self::Ring => tokio_uring::fs::File::open(path).await.map(File::Ring),
            Self::Blocking => {
                let mut options = OpenOptions::new();
                options.read(true);
                open(options, path).await
            }
        }
    }

    /// A file that is there, to write and read.
    pub(super) async fn open_to_write(self, path: &Path) -> io::Result<File> {
        match self {
            Self::Ring => {
                let mut options = tokio_uring::fs::OpenOptions::new();
                options.read(true).write(true).open(path).await.map(File::Ring)
            }
            Self::Blocking => {
                let mut options = OpenOptions::new();
                options.read(true).write(true);
                open(options, path).await
            }
        }
    }

    /// Gives a file another name, and takes that name from whatever had it.
    pub(super) async fn rename(self, from: PathBuf, to: PathBuf) -> io::Result<()> {
        match self {
            Self::Ring => tokio_uring::fs::rename(from, to).await,
            Self::Blocking => blocking(move || std::fs::rename(from, to)).await,
        }
    }

    /// Removes a file.
    pub(super) async fn remove(self, path: PathBuf) -> io::Result<()> {
        match self {
            Self::Ring => tokio_uring::fs::remove_file(path).await,
            Self::Blocking => blocking(move || std::fs::remove_file(path)).await,
        }
    }

    /// Makes a file `bytes` long: cuts it, or adds noughts.
    pub(super) async fn resize(self, path: PathBuf, bytes: u64) -> io::Result<()> {
        blocking(move || OpenOptions::new().write(true).open(path)?.set_len(bytes)).await
    }

    /// Flushes a file or folder to disk.
    pub(super) async fn sync(self, path: &Path) -> io::Result<()> {
        let file = self.open(path).await?;
        file.sync().await?;
        file.close().await
    }
}

impl File {
    /// Writes all of `bytes` from byte `position` on.
    pub(super) async fn write_at(&self, bytes: Vec<u8>, position: u64) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.write_all_at(bytes, position).await.0,
            Self::Blocking(file) => {
                let file = Arc::clone(file);
                blocking(move || file.write_all_at(&bytes, position)).await
            }
        }
    }

    /// Reads exactly `length` bytes from byte `position` on.
    pub(super) async fn read_at(&self, position: u64, length: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; length];
        match self {
            Self::Ring(file) => {
                let (result, bytes) = file.read_exact_at(bytes, position).await;
                result.map(|()| bytes)
            }
            Self::Blocking(file) => {
                let file = Arc::clone(file);
                blocking(move || file.read_exact_at(&mut bytes, position).map(|()| bytes)).await
            }
        }
    }

    /// Flushes it to disk.
    pub(super) async fn sync(&self) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.sync_all().await,
            Self::Blocking(file) => {
                let file = Arc::clone(file);
                blocking(move || file.sync_all()).await
            }
        }
    }

    /// Closes it.
    pub(super) async fn close(self) -> io::Result<()> {
        match self {
            Self::Ring(file) => file.close().await,
            Self::Blocking(_) => Ok(()),
        }
    }
}

async fn open(options: OpenOptions, path: &Path) -> io::Result<File> {
    let path = path.to_owned();
    let file = blocking(move || options.open(path)).await?;
    Ok(File::Blocking(Arc::new(file)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
