//! The `store` thread of a worker: the one place of the process that waits for the database.
//!
//! Messages that arrive while a commit is under way share the next one, so that a hundred hang-ups
//! at once cost a few disk flushes, not a hundred.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use crate::base::clock;
use crate::base::id::MessageId;
use crate::mailbox::disk::{Disk, Trouble};
use crate::mailbox::service::{MailboxInfo, MailboxReply};
use crate::mailbox::store::{Mailbox, Message, Store, StoreError, database};

/// Jobs that may wait for the thread.
const JOBS_MAX: usize = 8_192;
/// Messages in one transaction.
const BATCH_MAX: usize = 256;
/// How long the thread waits for another program's transaction: lookups wait behind it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Pause between two tries to insert.
const RETRY: Duration = Duration::from_millis(20);
/// A message waits this long for another program's transaction before it is given back to the spool.
const LOCKED_MAX: Duration = Duration::from_secs(3);

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
    /// [`Store::try_write`], on the database as it is now.
    TryWrite { reply: oneshot::Sender<Result<(), Trouble>> },
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

    /// Whether the database can be written now.
    pub(super) async fn try_write(&self) -> Result<(), Trouble> {
        self.put(|reply| Job::TryWrite { reply }).await.unwrap_or(Err(Trouble::Other))
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Job) -> Result<T, String> {
        self.put(job).await.unwrap_or_else(|| Err("the store thread has ended".into()))
    }

    /// Queues a job, waiting for room, and waits for its reply; `None`: the thread has ended.
    async fn put<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let mut job = job(reply);
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => job = back,
                Err(TrySendError::Disconnected(_)) => return None,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        answer.await.ok()
    }
}

/// Opens the store and starts the thread, which ends when every client is dropped.
///
/// A store that cannot be opened now is no reason not to start: calls that need none are served, and
/// it is tried again until it can.
pub(super) fn spawn(
    data: &Path,
    replies: Sender<MailboxReply>,
    disk: Arc<Disk>,
) -> Result<(StoreClient, std::thread::JoinHandle<()>), StoreError> {
    let (jobs, queue) = bounded(JOBS_MAX);
    let mut keeper = Keeper::new(data.to_owned(), replies, disk);
    match open(data) {
        Ok(mut store) => {
            if let Err(error) = store.sweep() {
                tracing::warn!(%error, "deleted messages could not be swept");
                keeper.is_stale = Trouble::of_store(&error) == Some(Trouble::ReadOnly);
            }
            keeper.store = Some(store);
        }
        Err(error) => match Trouble::of_store(&error) {
            Some(trouble) => keeper.refused(trouble, &error),
            None => return Err(error),
        },
    }
    let thread = std::thread::Builder::new().name("store".into()).spawn(move || keeper.run(&queue))?;
    Ok((StoreClient { jobs }, thread))
}

fn open(data: &Path) -> Result<Store, StoreError> {
    let store = Store::open(data)?;
    store.set_patience(PATIENCE)?;
    Ok(store)
}

/// The thread's own.
struct Keeper {
    data: PathBuf,
    /// `None`: it could not be opened.
    store: Option<Store>,
    /// What is kept of the database in memory may not be what it is.
    is_stale: bool,
    replies: Sender<MailboxReply>,
    disk: Arc<Disk>,
    /// To be inserted, and who waits for that.
    messages: Vec<Message>,
    waiting: Vec<oneshot::Sender<Result<bool, String>>>,
    /// Since when.
    since: Option<Instant>,
}

impl Keeper {
    fn new(data: PathBuf, replies: Sender<MailboxReply>, disk: Arc<Disk>) -> Self {
        Self {
            data,
            store: None,
            is_stale: false,
            replies,
            disk,
            messages: Vec::new(),
            waiting: Vec::new(),
            since: None,
        }
    }

    fn run(mut self, queue: &Receiver<Job>) {
        while let Some(first) = self.next(queue) {
            for job in first.into_iter().chain(queue.try_iter().take(BATCH_MAX - 1)) {
                self.take(job);
            }
            self.insert();
        }
    }

    /// The next job. `Some(None)`: none, but messages wait for the database.
    fn next(&self, queue: &Receiver<Job>) -> Option<Option<Job>> {
        if self.messages.is_empty() {
            return queue.recv().ok().map(Some);
        }
        match queue.recv_timeout(RETRY) {
            Ok(job) => Some(Some(job)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Insert { message, reply } => {
                self.messages.push(*message);
                self.waiting.push(reply);
            }
            Job::Lookup { token, number } => {
                let mailbox = self.ask(|store| store.mailbox(&number)).map(|found| found.map(info));
                super::service::send_reply(&self.replies, MailboxReply::Lookup { token, mailbox });
            }
            Job::Greeting { number, reply } => {
                let _ = reply.send(self.ask(|store| greeting(store, &number)));
            }
            Job::IsSettled { id, reply } => {
                let _ = reply.send(self.ask(|store| store.is_settled(&id)));
            }
            Job::TryWrite { reply } => {
                let _ = reply.send(self.try_write());
            }
        }
    }

    /// Asks the store; what is wrong with it is noted.
    fn ask<T>(&mut self, question: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, String> {
        let Some(store) = &self.store else { return Err("the message store is not open".to_owned()) };
        question(store).map_err(|error| self.note(&error))
    }

    /// Gives the error's text; where it is the store's and no message's, calls are refused from now on.
    fn note(&mut self, error: &StoreError) -> String {
        if let Some(trouble) = Trouble::of_store(error) {
            self.refused(trouble, error);
        }
        error.to_string()
    }

    fn refused(&mut self, trouble: Trouble, error: &StoreError) {
        if self.disk.trouble().is_none() {
            tracing::error!(%error, file = %database(&self.data).display(), "the message store fails");
        }
        self.is_stale |= !matches!(trouble, Trouble::Locked | Trouble::Full);
        self.disk.refused(trouble);
    }

    /// Writes, with a connection of its own to what is there now if the old one met damage.
    fn try_write(&mut self) -> Result<(), Trouble> {
        let result = match &self.store {
            Some(store) if !self.is_stale => store.try_write(),
            Some(_) | None => self.open_again(),
        };
        let result = result.map_err(|error| Trouble::of_store(&error).unwrap_or(Trouble::Other));
        // One that was opened while nothing could be written never will.
        self.is_stale |= matches!(result, Err(Trouble::ReadOnly | Trouble::Damaged | Trouble::Other));
        result
    }

    fn open_again(&mut self) -> Result<(), StoreError> {
        self.store = None;
        let store = Store::open_checked(&self.data)?;
        store.set_patience(PATIENCE)?;
        store.try_write()?;
        (self.store, self.is_stale) = (Some(store), false);
        Ok(())
    }

    /// Inserts what waits in one transaction. Where another program holds the database it is tried
    /// again for a while; where one message cannot be stored it takes no other with it.
    fn insert(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let now = clock::now();
        let has_time = now < *self.since.get_or_insert(now) + LOCKED_MAX && self.disk.trouble().is_none();
        let result = match &mut self.store {
            Some(store) => store.insert_all(&self.messages),
            None => Err(std::io::Error::other("it is not open").into()),
        };
        let results: Vec<Result<bool, String>> = match (result, &mut self.store) {
            (Ok(new), _) => new.into_iter().map(Ok).collect(),
            (Err(error), Some(store)) => match Trouble::of_store(&error) {
                Some(Trouble::Locked) if has_time => return,
                Some(_) => vec![Err(self.note(&error)); self.messages.len()],
                None => self.messages.iter().map(|m| store.insert(m).map_err(|e| e.to_string())).collect(),
            },
            (Err(error), None) => vec![Err(error.to_string()); self.messages.len()],
        };
        self.since = None;
        self.messages.clear();
        for (reply, result) in self.waiting.drain(..).zip(results) {
            let _ = reply.send(result);
        }
    }
}

fn info(mailbox: Mailbox) -> MailboxInfo {
    MailboxInfo { number: mailbox.number, name: mailbox.name, has_greeting: mailbox.greeting.is_some() }
}

fn greeting(store: &Store, number: &str) -> Result<Option<PathBuf>, StoreError> {
    let mailbox = store.mailbox(number)?;
    Ok(mailbox.and_then(|mailbox| mailbox.greeting).map(|file| store.greeting_path(&file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::store::NewMailbox;

    fn start(data: &Path) -> (StoreClient, Receiver<MailboxReply>, Arc<Disk>) {
        let (sender, replies) = bounded(8);
        let disk = Arc::new(Disk::default());
        let (client, _) = spawn(data, sender, Arc::clone(&disk)).unwrap();
        (client, replies, disk)
    }

    fn lookup(client: &StoreClient, replies: &Receiver<MailboxReply>) -> Result<bool, String> {
        client.try_send(Job::Lookup { token: 1, number: "1001".into() }).unwrap();
        let MailboxReply::Lookup { mailbox, .. } = replies.recv().unwrap() else {
            panic!("a lookup's reply")
        };
        mailbox.map(|mailbox| mailbox.is_some())
    }

    fn try_write(client: &StoreClient) -> Result<(), Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(client.try_write())
    }

    fn message(number: u64) -> Message {
        Message {
            id: MessageId::new(std::time::UNIX_EPOCH, number),
            mailbox: "1001".into(),
            kind: crate::mailbox::MessageKind::Voice,
            caller: String::new(),
            caller_name: String::new(),
            called: String::new(),
            diversion_reason: String::new(),
            call_id: String::new(),
            started_ms: 0,
            duration_ms: 1,
            read: false,
        }
    }

    /// Goal: messages wait while another program holds the database for a moment, and lookups do not wait
    /// behind them; what can never be stored takes none of them with it. Method: two messages, one of no
    /// possible mailbox, a second connection in a transaction that ends after a lookup.
    #[test]
    fn messages_wait_for_a_moment_and_lookups_pass_them() {
        let data = tempfile::tempdir().unwrap();
        add_1001(data.path());
        let (client, replies, disk) = start(data.path());
        let other = rusqlite::Connection::open(database(data.path())).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let bad = Message { mailbox: "../etc".into(), ..message(3) };
        let answers = [message(1), message(2), bad].map(|message| {
            let (reply, answer) = oneshot::channel();
            client.try_send(Job::Insert { message: Box::new(message), reply }).unwrap();
            answer
        });
        assert_eq!(lookup(&client, &replies), Ok(true));
        other.execute_batch("ROLLBACK").unwrap();
        let stored = answers.map(|answer| answer.blocking_recv().unwrap().ok());
        assert_eq!((stored, disk.trouble()), ([Some(true), Some(true), None], None));
    }

    fn add_1001(data: &Path) {
        let new = NewMailbox { number: "1001".into(), name: String::new(), pin: "135790".into() };
        Store::open(data).unwrap().add_mailbox(&new).unwrap();
    }

    /// Goal: a store that is damaged when the thread starts fails lookups with the reason, and serves them
    /// once it is whole. Method: a file that is no database, then a sound one in its place.
    #[test]
    fn a_damaged_store_is_opened_again_once_it_is_whole() {
        let data = tempfile::tempdir().unwrap();
        add_1001(data.path());
        let whole = std::fs::read(database(data.path())).unwrap();
        std::fs::write(database(data.path()), vec![0xA5; whole.len()]).unwrap();
        let (client, replies, disk) = start(data.path());
        assert_eq!(disk.trouble(), Some(Trouble::Damaged));
        assert!(lookup(&client, &replies).is_err());
        assert_eq!(try_write(&client), Err(Trouble::Damaged));
        std::fs::write(database(data.path()), whole).unwrap();
        assert_eq!(try_write(&client), Ok(()));
        assert_eq!(lookup(&client, &replies), Ok(true));
    }

    /// Goal: while another program holds the database mailboxes are still found, a trial says why nothing
    /// can be written, and afterwards all is well. Method: a second connection in a transaction.
    #[test]
    fn a_locked_store_still_finds_mailboxes() {
        let data = tempfile::tempdir().unwrap();
        add_1001(data.path());
        let (client, replies, disk) = start(data.path());
        let other = rusqlite::Connection::open(database(data.path())).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(try_write(&client), Err(Trouble::Locked));
        assert_eq!(lookup(&client, &replies), Ok(true));
        assert_eq!(disk.trouble(), None, "a trial only tells");
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(try_write(&client), Ok(()));
    }
}
