//! The `files` thread of a worker: writes recordings as they come and moves them to the store.
//!
//! One turn every [`POLL`] empties the media shards' queues and the requests; each recording is a
//! task of its own, so that one that waits for the disk holds up no other. What the tasks have not
//! written yet is bounded by [`BLOCKS_MAX`]; beyond it the shards' queues fill, and they count.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::base::clock;
use crate::base::id::MessageId;
use crate::base::limits::GREETINGS_SAMPLES_MAX;
use crate::mailbox::audio;
use crate::mailbox::disk::Disk;
use crate::mailbox::fs::Fs;
use crate::mailbox::service::{Counters, MailboxReply, MailboxRequest, ServiceConfig, count, send_reply};
use crate::mailbox::spool::{self, Lane, Mover, Recovered, SpoolError};
use crate::mailbox::store_thread::{Job, StoreClient};
use crate::media::order::{CodedBlock, FileItem, RecordingMeta};
use crate::uring::Runtime;

mod adopt;
mod recording;
mod watch;

use recording::Recording;

/// How often the queues are looked at.
const POLL: Duration = Duration::from_millis(5);
/// Blocks accepted and not yet written: 52 MB.
const BLOCKS_MAX: usize = 8_192;
/// A request for a recording that has not begun waits this long for it.
const UNKNOWN_MAX: Duration = Duration::from_secs(10);
/// How often recordings left behind, by us or by a worker that died, are tried again.
const SWEEP: Duration = Duration::from_secs(30);
/// Operations the ring takes at once.
const RING_ENTRIES: u32 = 1_024;

/// What the thread is connected to.
pub(super) struct Ends {
    pub(super) config: ServiceConfig,
    pub(super) requests: Arc<ArrayQueue<MailboxRequest>>,
    pub(super) replies: Sender<MailboxReply>,
    pub(super) store: StoreClient,
    pub(super) counters: Arc<Counters>,
    pub(super) disk: Arc<Disk>,
    pub(super) stop: Arc<AtomicBool>,
}

/// The thread's body. Says over `ready` what recovery found, or why the thread cannot work.
pub(super) fn run(ends: Ends, ready: &Sender<Result<Recovered, String>>) {
    let runtime = match Runtime::new(RING_ENTRIES) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error.to_string()));
            return;
        }
    };
    let fs = Fs::of(&runtime);
    runtime.block_on(async {
        let started = async {
            let desk = open(ends, fs)?;
            let recovered = desk.sweep(true).await?;
            desk.look().await;
            Ok::<_, SpoolError>((desk, recovered))
        };
        match started.await {
            Ok((desk, recovered)) => {
                tracing::info!(?recovered, "spool recovered");
                let _ = ready.send(Ok(recovered));
                serve(desk).await;
            }
            Err(error) => {
                let _ = ready.send(Err(error.to_string()));
            }
        }
    });
}

/// Claims a lane of the spool and opens the audio store.
fn open(ends: Ends, fs: Fs) -> Result<Rc<Desk>, SpoolError> {
    let data = &ends.config.data;
    let voiced_min_ms = u64::try_from(ends.config.voiced_min.as_millis()).unwrap_or(u64::MAX);
    let mover = Rc::new(Mover::to_folder(fs, &data.join("messages"), ends.store.clone(), voiced_min_ms)?);
    let lane = Rc::new(Lane::claim(&data.join("spool"))?);
    Ok(Rc::new(Desk {
        lane,
        mover,
        open: RefCell::new(adopt::awaited(&ends.config.adopting)),
        awaiting_until: Cell::new(Some(clock::now() + adopt::AWAITED_MAX)),
        held: RefCell::default(),
        orphans_seen: RefCell::default(),
        unknown: RefCell::default(),
        greetings: RefCell::default(),
        reading: tokio::sync::Mutex::default(),
        sweep_at: Cell::new(clock::now()),
        is_sweeping: Cell::new(false),
        watched: Cell::new(clock::now()),
        is_watching: Cell::new(false),
        blocks_waiting: Cell::new(0),
        tasks: Cell::new(0),
        ends,
    }))
}

/// The loop. Ends when told to and every recording is at its end.
async fn serve(desk: Rc<Desk>) {
    desk.sweep_at.set(clock::now() + SWEEP);
    loop {
        let now = clock::now();
        let is_stopping = desk.ends.stop.load(Ordering::Acquire);
        desk.turn(now);
        if now >= desk.sweep_at.get() && !desk.is_sweeping.replace(true) {
            desk.sweep_at.set(now + SWEEP);
            let sweeper = Rc::clone(&desk);
            desk.spawn(async move {
                if let Err(error) = sweeper.sweep(false).await {
                    tracing::error!(%error, "the spool cannot be read");
                }
                sweeper.is_sweeping.set(false);
            });
        }
        desk.watch(now);
        if is_stopping {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    // Without a sender each recording's task comes to its end by itself.
    desk.open.borrow_mut().clear();
    while desk.tasks.get() > 0 {
        tokio::time::sleep(POLL).await;
    }
}

/// What a recording's task is told.
enum Input {
    Block(CodedBlock),
    End { samples: u64 },
    Keep,
    Discard,
    Missed,
    Review { token: u64 },
}

/// A recording as the loop sees it.
enum Open {
    /// Its task.
    Task(UnboundedSender<Input>),
    /// `keep = false`: samples counted so far.
    ThrownAway(u64),
    /// A worker that died had begun it, and its adoption is still to be asked for: what came until then.
    Awaited(Vec<Input>),
}

/// How a recording's task starts.
enum Start {
    /// With new files.
    New,
    /// With the files of a worker that died, emptied.
    Anew,
    /// With the files of a worker that died, made `samples` long.
    Adopted { samples: u64, ended: bool },
}

/// Everything the loop and the tasks share; one thread, so no locks.
struct Desk {
    ends: Ends,
    lane: Rc<Lane>,
    /// Lanes of workers that died, in which recordings lie that go on here, or are being recovered.
    held: RefCell<Vec<Rc<Lane>>>,
    /// Folders of lanes without an owner at the last sweep: their owner may just be being replaced.
    orphans_seen: RefCell<HashSet<PathBuf>>,
    /// Until when adoptions are awaited.
    awaiting_until: Cell<Option<Instant>>,
    mover: Rc<Mover>,
    open: RefCell<HashMap<MessageId, Open>>,
    /// Requests for recordings that have not begun: their `Begin` may be held up in a full queue.
    unknown: RefCell<Vec<(Instant, MailboxRequest)>>,
    greetings: RefCell<HashMap<PathBuf, Greeting>>,
    /// Held while a greeting is read: callers who come together share one reading, and its `Arc`.
    reading: tokio::sync::Mutex<()>,
    /// One sweep at a time: two would take each other's work for a half-removed recording.
    is_sweeping: Cell<bool>,
    sweep_at: Cell<Instant>,
    /// One look at the disk at a time.
    is_watching: Cell<bool>,
    watched: Cell<Instant>,
    blocks_waiting: Cell<usize>,
    tasks: Cell<usize>,
}

/// A greeting in memory and the file it was read from.
struct Greeting {
    version: FileVersion,
    samples: Arc<[i16]>,
}

/// Tells a file from what took its place. Times alone do not: two files of one kernel tick share
/// them; but a file that replaces another by its name has another inode.
#[derive(PartialEq, Eq)]
struct FileVersion {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&std::fs::Metadata> for FileVersion {
    fn from(file: &std::fs::Metadata) -> Self {
        Self {
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Desk {
    /// One turn: requests are taken off their queue first and looked at last. A shard queues `End`
    /// before it reports the recording, so the recording a request speaks of is complete by then.
    fn turn(self: &Rc<Self>, now: Instant) {
        self.give_up_awaited(now);
        let mut requests: Vec<_> = std::iter::from_fn(|| self.ends.requests.pop()).collect();
        for queue in &self.ends.config.files {
            while self.blocks_waiting.get() < BLOCKS_MAX
                && let Some(item) = queue.pop()
            {
                self.take_item(item);
            }
        }
        let waiting = std::mem::take(&mut *self.unknown.borrow_mut());
        for (since, request) in waiting {
            self.take_request(now, since, request);
        }
        for request in requests.drain(..) {
            self.take_request(now, now, request);
        }
    }

    fn take_item(self: &Rc<Self>, item: FileItem) {
        let mut open = self.open.borrow_mut();
        match item {
            FileItem::Begin(meta) => {
                let start = match open.get(&meta.id) {
                    Some(Open::Awaited(_)) => Start::Anew,
                    None => Start::New,
                    Some(Open::Task(_) | Open::ThrownAway(_)) => {
                        tracing::error!(id = %meta.id, "a recording began twice");
                        return;
                    }
                };
                drop(open);
                self.start(*meta, start);
            }
            FileItem::Block(id, block) => {
                count(&self.ends.counters.blocks, 1);
                match open.get_mut(&id) {
                    Some(Open::Task(task)) => {
                        self.blocks_waiting.set(self.blocks_waiting.get() + 1);
                        if task.send(Input::Block(block)).is_err() {
                            self.blocks_waiting.set(self.blocks_waiting.get() - 1);
                        }
                    }
                    Some(Open::ThrownAway(samples)) => *samples += block.samples(),
                    Some(Open::Awaited(early)) => {
                        self.blocks_waiting.set(self.blocks_waiting.get() + 1);
                        early.push(Input::Block(block));
                    }
                    None => tracing::debug!(%id, "a block of no open recording"),
                }
            }
            FileItem::End { id, samples } => match open.get_mut(&id) {
                Some(Open::Task(task)) => {
                    let _ = task.send(Input::End { samples });
                }
                Some(Open::ThrownAway(samples)) => {
                    count(&self.ends.counters.thrown_away_samples, *samples);
                    open.remove(&id);
                }
                Some(Open::Awaited(early)) => early.push(Input::End { samples }),
                None => tracing::debug!(%id, "the end of no open recording"),
            },
        }
    }

    /// Opens a recording, with what came of it while it was awaited.
    fn start(self: &Rc<Self>, meta: RecordingMeta, start: Start) {
        let early = match self.open.borrow_mut().remove(&meta.id) {
            Some(Open::Awaited(early)) => early,
            Some(Open::Task(_) | Open::ThrownAway(_)) | None => Vec::new(),
        };
        if !meta.keep {
            return self.start_thrown_away(meta.id, &start, early);
        }
        let (sender, inputs) = unbounded_channel();
        for input in early {
            let _ = sender.send(input);
        }
        self.open.borrow_mut().insert(meta.id.clone(), Open::Task(sender));
        count(&self.ends.counters.open, 1);
        let desk = Rc::clone(self);
        self.spawn(async move { desk.record(meta, start, inputs).await });
    }

    /// Does what a request asks, or keeps it for a later turn. `since`: when it came.
    fn take_request(self: &Rc<Self>, now: Instant, since: Instant, request: MailboxRequest) {
        let (id, input) = match &request {
            MailboxRequest::Lookup { token, number } => {
                let job = Job::Lookup { token: *token, number: number.clone() };
                if self.ends.store.try_send(job).is_err() {
                    self.wait(since, request);
                }
                return;
            }
            MailboxRequest::LoadGreeting { token, number } => {
                let (desk, token, number) = (Rc::clone(self), *token, number.clone());
                self.spawn(async move {
                    let samples = desk.load_greeting(number).await;
                    desk.reply(MailboxReply::Greeting { token, samples });
                });
                return;
            }
            MailboxRequest::Adopt { meta, samples, ended } => {
                if self.adopt(meta, *samples, *ended).is_none() {
                    self.wait(since, request);
                }
                return;
            }
            MailboxRequest::Keep { id } => (id, Input::Keep),
            MailboxRequest::Discard { id } => (id, Input::Discard),
            MailboxRequest::Review { token, id } => (id, Input::Review { token: *token }),
            MailboxRequest::Missed(meta) => (&meta.id, Input::Missed),
        };
        let is_sent = match self.open.borrow().get(id) {
            Some(Open::Task(task)) => task.send(input).is_ok(),
            Some(Open::Awaited(_)) => {
                self.wait(since, request);
                return;
            }
            Some(Open::ThrownAway(_)) | None => false,
        };
        if is_sent {
            return;
        }
        match request {
            // Most missed calls ended before any recording began.
            MailboxRequest::Missed(meta) => {
                let desk = Rc::clone(self);
                self.spawn(async move { desk.miss(&desk.lane, &meta).await });
            }
            // What never was, or is thrown away as it comes, is discarded already; but its `Begin`
            // may still be behind what this turn could not take.
            MailboxRequest::Discard { id } if !self.is_backed_up() => {
                self.reply(MailboxReply::Discarded { id });
            }
            request if now.duration_since(since) < UNKNOWN_MAX => self.wait(since, request),
            MailboxRequest::Review { token, id } => {
                let samples = Err("no such recording".into());
                self.reply(MailboxReply::Review { token, id, samples });
            }
            MailboxRequest::Keep { id } | MailboxRequest::Discard { id } => {
                self.fail(id, "no such recording");
            }
            MailboxRequest::Lookup { .. }
            | MailboxRequest::LoadGreeting { .. }
            | MailboxRequest::Adopt { .. } => {}
        }
    }

    /// A shard's queue holds more than this turn could take.
    fn is_backed_up(&self) -> bool {
        self.ends.config.files.iter().any(|queue| !queue.is_empty())
    }

    fn wait(&self, since: Instant, request: MailboxRequest) {
        self.unknown.borrow_mut().push((since, request));
    }

    fn reply(&self, reply: MailboxReply) {
        send_reply(&self.ends.replies, reply);
    }

    fn fail(&self, id: MessageId, error: impl ToString) {
        count(&self.ends.counters.failed, 1);
        let error = error.to_string();
        tracing::error!(%id, error, "recording not stored");
        self.reply(MailboxReply::Failed { id, error });
    }

    /// Runs a task whose end [`serve`] waits for.
    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let desk = Rc::clone(self);
        desk.tasks.set(desk.tasks.get() + 1);
        tokio::task::spawn_local(async move {
            task.await;
            desk.tasks.set(desk.tasks.get() - 1);
        });
    }

    /// Finishes what lies in our lane and belongs to no task, and in lanes whose worker died. But for
    /// the sweep `at_start` such a lane has until the next sweep to be taken by a new worker, which goes
    /// on with the calls of the dead one.
    async fn sweep(&self, at_start: bool) -> Result<Recovered, SpoolError> {
        let is_open = |id: &MessageId| self.open.borrow().contains_key(id);
        self.hold_orphans(at_start)?;
        let mut recovered = spool::recover(&self.lane, &self.mover, is_open).await?;
        let held = self.held.borrow().clone();
        for lane in held {
            recovered.add(spool::recover(&lane, &self.mover, is_open).await?);
        }
        self.release_finished();
        count(&self.ends.counters.kept, recovered.messages);
        count(&self.ends.counters.missed, recovered.missed);
        Ok(recovered)
    }

    async fn miss(&self, lane: &Lane, meta: &RecordingMeta) {
        match self.mover.miss(lane, meta).await {
            Ok(()) => {
                count(&self.ends.counters.missed, 1);
                self.reply(MailboxReply::Missed { id: meta.id.clone() });
            }
            Err(error) => self.fail(meta.id.clone(), error),
        }
    }

    async fn load_greeting(&self, number: String) -> Result<Option<Arc<[i16]>>, String> {
        let Some(path) = self.ends.store.greeting(number.clone()).await? else { return Ok(None) };
        let result = self.read_greeting(&path).await;
        result.map(Some).map_err(|error| {
            tracing::error!(number, path = %path.display(), error, "greeting cannot be played");
            format!("{}: {error}", path.display())
        })
    }

    /// Reads a greeting, unless it is in memory and its file has not changed.
    async fn read_greeting(&self, path: &Path) -> Result<Arc<[i16]>, String> {
        let _turn = self.reading.lock().await;
        let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
        let version = FileVersion::from(&metadata);
        if let Some(known) = self.greetings.borrow().get(path)
            && known.version == version
        {
            return Ok(Arc::clone(&known.samples));
        }
        let file = path.to_owned();
        let read = tokio::task::spawn_blocking(move || audio::read(&file));
        let samples = read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let samples: Arc<[i16]> = samples.into();
        let mut greetings = self.greetings.borrow_mut();
        let kept: usize = greetings.values().map(|greeting| greeting.samples.len()).sum();
        if kept + samples.len() > GREETINGS_SAMPLES_MAX {
            greetings.clear();
        }
        greetings.insert(path.to_owned(), Greeting { version, samples: Arc::clone(&samples) });
        Ok(samples)
    }

    /// One recording, from `Begin` to its last file gone.
    async fn record(&self, meta: RecordingMeta, start: Start, mut inputs: UnboundedReceiver<Input>) {
        let id = meta.id.clone();
        let mut recording = Recording::new(self, meta);
        if recording.start(start).await {
            recording.follow(&mut inputs).await;
        }
        drop(recording);
        // Blocks still in the channel are never written.
        inputs.close();
        while let Some(input) = inputs.recv().await {
            self.refuse(&id, input);
        }
        self.open.borrow_mut().remove(&id);
        self.ends.counters.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Answers what reached a recording after its end.
    fn refuse(&self, id: &MessageId, input: Input) {
        match input {
            Input::Block(_) => self.blocks_waiting.set(self.blocks_waiting.get() - 1),
            Input::End { .. } => {}
            Input::Keep | Input::Missed => self.fail(id.clone(), "the recording is gone"),
            Input::Discard => self.reply(MailboxReply::Discarded { id: id.clone() }),
            Input::Review { token } => {
                let samples = Err("the recording is gone".into());
                self.reply(MailboxReply::Review { token, id: id.clone(), samples });
            }
        }
    }
}

#[cfg(test)]
mod tests;
