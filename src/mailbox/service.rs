//! What a worker's signalling shard talks to: requests in, replies out, never a wait.
//!
//! Behind the handle run two threads. `store` owns the database; `files` writes recordings as they
//! come from the media shards and carries them to the message store. [`spawn`] returns when
//! everything an earlier process left in the spool has been dealt with, so that no new call is
//! taken before.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use serde::Serialize;

use crate::base::id::MessageId;
use crate::mailbox::disk::Disk;
pub use crate::mailbox::disk::Trouble;
use crate::mailbox::files;
use crate::mailbox::spool::Recovered;
use crate::mailbox::store::StoreError;
use crate::mailbox::store_thread::{self, Job, StoreClient};
use crate::media::order::{FileItem, RecordingMeta};

/// Requests that may be without their reply at once; a call flow has one or two.
pub const REQUESTS_MAX: usize = 8_192;

/// What [`spawn`] needs to know.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The node's data folder.
    pub data: PathBuf,
    /// What a crash left with less sound than this becomes a missed call, not a message.
    pub voiced_min: Duration,
    /// With less free space than this new recordings make no sense, bytes.
    pub free_min: u64,
    /// The recording queue of each media shard.
    pub files: Vec<Arc<ArrayQueue<FileItem>>>,
    /// Recordings of a worker that died, for which `MailboxRequest::Adopt` will come: nothing is done to
    /// them until then, or until a minute has passed. Their blocks may come before the request.
    pub adopting: HashSet<MessageId>,
}

/// What a call flow asks for. `token` comes back with the reply; each request has exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailboxRequest {
    /// Is there a mailbox of this number? Answered by `Lookup`.
    Lookup {
        /// The asker's own mark.
        token: u64,
        /// The number.
        number: String,
    },
    /// The mailbox's own greeting. Answered by `Greeting`.
    LoadGreeting {
        /// The asker's own mark.
        token: u64,
        /// The mailbox's number.
        number: String,
    },
    /// Make the recording a message, as soon as its `End` is here. Answered by `Kept`, `Missed`
    /// (it turned out empty) or `Failed`.
    Keep {
        /// Which recording.
        id: MessageId,
    },
    /// Throw the recording away, ended or not. Answered by `Discarded` or `Failed`.
    Discard {
        /// Which recording.
        id: MessageId,
    },
    /// The samples of a recording that ended and is neither kept nor discarded. Answered by
    /// `Review`.
    Review {
        /// The asker's own mark.
        token: u64,
        /// Which recording.
        id: MessageId,
    },
    /// Go on with a recording of a worker that died, as if it had begun here and had `samples` samples
    /// so far: surplus is cut, what is missing is silence. Answered by `Adopted`, or `Failed` when it is
    /// decided about already or the disk refuses.
    Adopt {
        /// What it began with.
        meta: Box<RecordingMeta>,
        /// Where its next sample goes.
        samples: u64,
        /// Its `End` came too. If nothing of it is left it is then an empty one.
        ended: bool,
    },
    /// Note a missed call; a recording of this id, if any, is thrown away. Answered by `Missed` or
    /// `Failed`.
    Missed(Box<RecordingMeta>),
}

/// A mailbox, as far as a call flow needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxInfo {
    /// Its number.
    pub number: String,
    /// Whose it is.
    pub name: String,
    /// It has its own greeting.
    pub has_greeting: bool,
}

/// The answer to a request. An error is ours (disk, database) and already logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailboxReply {
    /// To `Lookup`. `Ok(None)`: no such mailbox.
    Lookup {
        /// As asked.
        token: u64,
        /// The mailbox.
        mailbox: Result<Option<MailboxInfo>, String>,
    },
    /// To `LoadGreeting`. `Ok(None)`: it has none; 16-bit linear samples at 8000 Hz.
    Greeting {
        /// As asked.
        token: u64,
        /// The audio; the same `Arc` for as long as the file does not change.
        samples: Result<Option<Arc<[i16]>>, String>,
    },
    /// To `Keep`: the message is on disk and listed.
    Kept {
        /// Which.
        id: MessageId,
        /// Its playing time.
        duration: Duration,
    },
    /// To `Adopt`.
    Adopted {
        /// Which.
        id: MessageId,
        /// Samples of it that were on disk, at most as many as were asked for.
        found: u64,
    },
    /// To `Discard`.
    Discarded {
        /// Which.
        id: MessageId,
    },
    /// To `Review`: 16-bit linear samples at 8000 Hz.
    Review {
        /// As asked.
        token: u64,
        /// Which recording.
        id: MessageId,
        /// The audio.
        samples: Result<Arc<[i16]>, String>,
    },
    /// To `Missed`: noted and on disk.
    Missed {
        /// Which.
        id: MessageId,
    },
    /// To `Keep`, `Discard`, `Adopt` or `Missed`. What is recorded stays in the spool and is tried again.
    Failed {
        /// Which.
        id: MessageId,
        /// Why.
        error: String,
    },
}

/// Counters of the file thread. They only grow, but for `open`.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) open: AtomicU64,
    pub(super) kept: AtomicU64,
    pub(super) missed: AtomicU64,
    pub(super) discarded: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) blocks: AtomicU64,
    pub(super) thrown_away_samples: AtomicU64,
}

/// Adds to a counter nobody synchronises on.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What the mailbox threads did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MailboxSnapshot {
    /// Recordings under way or waiting for a decision, now.
    pub open: u64,
    /// Recordings that became messages.
    pub kept: u64,
    /// Missed calls noted.
    pub missed: u64,
    /// Recordings thrown away by their caller.
    pub discarded: u64,
    /// Requests answered with `Failed`.
    pub failed: u64,
    /// Recordings cut short because the disk refused a write.
    pub write_errors: u64,
    /// Blocks received from media shards.
    pub blocks: u64,
    /// Samples of `keep = false` recordings.
    pub thrown_away_samples: u64,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool, the audio folder, or a descriptor for the file thread.
    #[error("mailbox files: {0}")]
    Files(String),
}

/// The signalling shard's end. Dropping it ends the threads without waiting for them.
#[derive(Debug)]
pub struct MailboxHandle {
    requests: Arc<ArrayQueue<MailboxRequest>>,
    store: StoreClient,
    replies: Receiver<MailboxReply>,
    outstanding: AtomicUsize,
    counters: Arc<Counters>,
    disk: Arc<Disk>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts both threads and recovers the spool.
///
/// # Errors
/// `Store` when the database cannot be opened, `Files` when the spool cannot be used.
pub fn spawn(config: ServiceConfig) -> Result<(MailboxHandle, Recovered), ServiceError> {
    // One more than the requests: a reply always fits.
    let (reply_sender, replies) = bounded(REQUESTS_MAX + 1);
    let disk = Arc::new(Disk::default());
    let (store, store_thread) = store_thread::spawn(&config.data, reply_sender.clone(), Arc::clone(&disk))?;
    let requests = Arc::new(ArrayQueue::new(REQUESTS_MAX));
    let counters = Arc::new(Counters::default());
    let stop = Arc::new(AtomicBool::new(false));
    let ends = files::Ends {
        config,
        requests: Arc::clone(&requests),
        replies: reply_sender,
        store: store.clone(),
        counters: Arc::clone(&counters),
        disk: Arc::clone(&disk),
        stop: Arc::clone(&stop),
    };
    let (ready, started) = bounded(1);
    let files_thread = std::thread::Builder::new()
        .name("files".into())
        .spawn(move || files::run(ends, &ready))
        .map_err(|error| ServiceError::Files(error.to_string()))?;
    let recovered = started
        .recv()
        .unwrap_or_else(|_| Err("the file thread ended while starting".into()))
        .map_err(ServiceError::Files)?;
    let threads = vec![files_thread, store_thread];
    let outstanding = AtomicUsize::new(0);
    let handle = MailboxHandle { requests, store, replies, outstanding, counters, disk, stop, threads };
    Ok((handle, recovered))
}

impl MailboxHandle {
    /// Hands a request on.
    ///
    /// # Errors
    /// Gives it back when [`REQUESTS_MAX`] replies are outstanding or the threads are gone.
    pub fn request(&self, request: MailboxRequest) -> Result<(), MailboxRequest> {
        if self.outstanding.load(Ordering::Relaxed) >= REQUESTS_MAX {
            return Err(request);
        }
        match request {
            MailboxRequest::Lookup { token, number } => {
                self.store
                    .try_send(Job::Lookup { token, number: number.clone() })
                    .map_err(|_| MailboxRequest::Lookup { token, number })?;
            }
            MailboxRequest::LoadGreeting { .. }
            | MailboxRequest::Keep { .. }
            | MailboxRequest::Adopt { .. }
            | MailboxRequest::Discard { .. }
            | MailboxRequest::Review { .. }
            | MailboxRequest::Missed(_) => self.requests.push(request)?,
        }
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The next reply, if one is here.
    pub fn try_reply(&self) -> Option<MailboxReply> {
        let reply = self.replies.try_recv().ok()?;
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        Some(reply)
    }

    /// Why messages cannot be stored. After a write was refused, until one succeeds again: a caller
    /// taken now would speak to nobody.
    pub fn trouble(&self) -> Option<Trouble> {
        self.disk.trouble()
    }

    /// The next recording of which the disk refused a part; its call should end, since what the
    /// caller says is lost.
    pub fn try_cut_short(&self) -> Option<MessageId> {
        self.disk.try_cut_short()
    }

    /// What was done so far.
    pub fn snapshot(&self) -> MailboxSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MailboxSnapshot {
            open: read(&self.counters.open),
            kept: read(&self.counters.kept),
            missed: read(&self.counters.missed),
            discarded: read(&self.counters.discarded),
            failed: read(&self.counters.failed),
            write_errors: read(&self.counters.write_errors),
            blocks: read(&self.counters.blocks),
            thrown_away_samples: read(&self.counters.thrown_away_samples),
        }
    }

    /// Both threads live. When not, recordings are no longer written and the worker should end.
    pub fn is_running(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Takes what the shards still have in their queues, finishes every recording (those nobody
    /// decided about are kept if somebody spoke), and ends both threads. Join the shards first.
    pub fn join(mut self) {
        self.stop.store(true, Ordering::Release);
        let threads = std::mem::take(&mut self.threads);
        // The store thread ends when its last client is gone; the handle's own goes here.
        drop(self);
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a mailbox thread panicked");
            }
        }
    }
}

/// The far end of a mailbox that a test plays itself.
#[cfg(test)]
pub(crate) struct FakeMailbox {
    requests: Arc<ArrayQueue<MailboxRequest>>,
    jobs: Receiver<Job>,
    replies: Sender<MailboxReply>,
}

#[cfg(test)]
impl FakeMailbox {
    /// The next request, lookups first.
    pub(crate) fn request(&self) -> Option<MailboxRequest> {
        match self.jobs.try_recv() {
            Ok(Job::Lookup { token, number }) => Some(MailboxRequest::Lookup { token, number }),
            Ok(_) | Err(_) => self.requests.pop(),
        }
    }

    /// Answers one.
    pub(crate) fn reply(&self, reply: MailboxReply) {
        self.replies.try_send(reply).expect("there is room");
    }
}

#[cfg(test)]
impl MailboxHandle {
    /// A handle whose threads do nothing but what the test does at the other end; it takes `room`
    /// requests of a kind.
    pub(crate) fn fake(room: usize) -> (Self, FakeMailbox) {
        let requests = Arc::new(ArrayQueue::new(room));
        let (job_sender, jobs) = bounded(room);
        let (reply_sender, replies) = bounded(REQUESTS_MAX);
        let fake = FakeMailbox { requests: Arc::clone(&requests), jobs, replies: reply_sender };
        let handle = Self {
            requests,
            store: StoreClient::over(job_sender),
            replies,
            outstanding: AtomicUsize::new(0),
            counters: Arc::default(),
            stop: Arc::default(),
            disk: Arc::default(),
            threads: Vec::new(),
        };
        (handle, fake)
    }
}

impl Drop for MailboxHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Queues a reply. There is room for every request's, so a full queue is a bug; a reader that is
/// gone is not.
pub(super) fn send_reply(replies: &Sender<MailboxReply>, reply: MailboxReply) {
    if let Err(crossbeam::channel::TrySendError::Full(reply)) = replies.try_send(reply) {
        tracing::error!(?reply, "more mailbox replies than requests");
    }
}

#[cfg(test)]
mod tests;
