//! The `store` thread of a worker: the one place of the process that waits for the database.
//!
//! Messages that arrive while a commit is under way share the next one, so that a hundred hang-ups
//! at once cost a few disk flushes, not a hundred.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use crate::base::id::MessageId;
use crate::mailbox::service::{MailboxInfo, MailboxReply};
use crate::mailbox::store::{Message, Store, StoreError};

/// Jobs that may wait for the thread.
const JOBS_MAX: usize = 8_192;
/// Messages in one transaction.
const BATCH_MAX: usize = 256;

/// What the thread is asked for. A dropped reply channel is no error: nobody waits any more.
#[derive(Debug)]
pub(super) enum Job {
    /// Answered on the worker's reply queue.
    Lookup { token: u64, number: String },
    /// The file of a mailbox's own greeting.
    Greeting { number: String, reply: oneshot::Sender<Result<Option<PathBuf>, String>> },
    /// Answered when the message is on disk: is it new?
    Insert { message: Box<Message>, reply: oneshot::Sender<Result<bool, String>> },
    /// [`Store::is_settled`].
    IsSettled { id: MessageId, reply: oneshot::Sender<Result<bool, String>> },
}

/// Access to the thread, from signalling (which never waits) and from the file thread (async).
#[derive(Debug, Clone)]
pub(super) struct StoreClient {
    jobs: Sender<Job>,
}

impl StoreClient {
    /// A client of a thread that a test plays itself.
    #[cfg(test)]
    pub(super) fn over(jobs: Sender<Job>) -> Self {
        Self { jobs }
    }

    /// Queues a job; gives it back when the queue is full or the thread is gone.
    pub(super) fn try_send(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Makes `message` durable. `false`: it was there already, or was deleted.
    pub(super) async fn insert(&self, message: Message) -> Result<bool, String> {
        self.ask(|reply| Job::Insert { message: Box::new(message), reply }).await
    }

    /// As [`Store::is_settled`].
    pub(super) async fn is_settled(&self, id: MessageId) -> Result<bool, String> {
        self.ask(|reply| Job::IsSettled { id, reply }).await
    }

    /// The file of a mailbox's own greeting, if it has one.
    pub(super) async fn greeting(&self, number: String) -> Result<Option<PathBuf>, String> {
        self.ask(|reply| Job::Greeting { number, reply }).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Job) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let mut job = job(reply);
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => job = back,
                Err(TrySendError::Disconnected(_)) => return Err("the store thread has ended".into()),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        answer.await.unwrap_or_else(|_| Err("the store thread has ended".into()))
    }
}

/// Opens the store and starts the thread, which ends when every client is dropped.
pub(super) fn spawn(
    data: &Path,
    replies: Sender<MailboxReply>,
) -> Result<(StoreClient, std::thread::JoinHandle<()>), StoreError> {
    let mut store = Store::open(data)?;
    if let Err(error) = store.sweep() {
        tracing::warn!(%error, "deleted messages could not be swept");
    }
    let (jobs, queue) = bounded(JOBS_MAX);
    let thread =
        std::thread::Builder::new().name("store".into()).spawn(move || run(&mut store, &queue, &replies))?;
    Ok((StoreClient { jobs }, thread))
}

type Waiting = (Message, oneshot::Sender<Result<bool, String>>);

fn run(store: &mut Store, queue: &Receiver<Job>, replies: &Sender<MailboxReply>) {
    let mut batch: Vec<Waiting> = Vec::new();
    while let Ok(first) = queue.recv() {
        for job in std::iter::once(first).chain(queue.try_iter().take(BATCH_MAX - 1)) {
            match job {
                Job::Insert { message, reply } => batch.push((*message, reply)),
                Job::Lookup { token, number } => {
                    let mailbox = lookup(store, &number);
                    super::service::send_reply(replies, MailboxReply::Lookup { token, mailbox });
                }
                Job::Greeting { number, reply } => {
                    let _ = reply.send(greeting(store, &number).map_err(|error| error.to_string()));
                }
                Job::IsSettled { id, reply } => {
                    let _ = reply.send(store.is_settled(&id).map_err(|error| error.to_string()));
                }
            }
        }
        insert(store, &mut batch);
    }
}

/// Inserts the batch in one transaction; if that fails, one by one, so that a message that cannot
/// be stored takes no other with it.
fn insert(store: &mut Store, batch: &mut Vec<Waiting>) {
    let (messages, waiting): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
    if messages.is_empty() {
        return;
    }
    let results: Vec<Result<bool, String>> = match store.insert_all(&messages) {
        Ok(new) => new.into_iter().map(Ok).collect(),
        Err(_) => messages.iter().map(|m| store.insert(m).map_err(|error| error.to_string())).collect(),
    };
    for (reply, result) in waiting.into_iter().zip(results) {
        let _ = reply.send(result);
    }
}

fn lookup(store: &Store, number: &str) -> Result<Option<MailboxInfo>, String> {
    let found = store.mailbox(number).map_err(|error| {
        tracing::error!(%error, number, "mailbox lookup failed");
        error.to_string()
    })?;
    Ok(found.map(|mailbox| MailboxInfo {
        number: mailbox.number,
        name: mailbox.name,
        has_greeting: mailbox.greeting.is_some(),
    }))
}

fn greeting(store: &Store, number: &str) -> Result<Option<PathBuf>, StoreError> {
    let mailbox = store.mailbox(number)?;
    Ok(mailbox.and_then(|mailbox| mailbox.greeting).map(|file| store.greeting_path(&file)))
}
