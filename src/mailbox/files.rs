//! The `files` thread of a worker: writes recordings as they come and moves them to the store.
//!
//! One turn every [`POLL`] empties the media shards' queues and the requests; each recording is a
//! task of its own, so that one that waits for the disk holds up no other. What the tasks have not
//! written yet is bounded by [`BLOCKS_MAX`]; beyond it the shards' queues fill, and they count.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
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
use crate::mailbox::audio::{self, HEADER_BYTES};
use crate::mailbox::disk::{Disk, Trouble};
use crate::mailbox::fs::{File, Fs};
use crate::mailbox::service::{Counters, MailboxReply, MailboxRequest, ServiceConfig, count, send_reply};
use crate::mailbox::spool::{self, Lane, Mover, Recovered, SpoolError, duration_ms};
use crate::mailbox::store_thread::{Job, StoreClient};
use crate::media::order::{FileItem, PcmBlock, RecordingMeta};
use crate::uring::Runtime;

mod watch;

/// How often the queues are looked at.
const POLL: Duration = Duration::from_millis(5);
/// Blocks accepted and not yet written: 105 MB.
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
            let recovered = desk.sweep().await?;
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
        ends,
        lane,
        mover,
        open: RefCell::default(),
        unknown: RefCell::default(),
        greetings: RefCell::default(),
        reading: tokio::sync::Mutex::default(),
        sweep_at: Cell::new(clock::now()),
        is_sweeping: Cell::new(false),
        watched: Cell::new(clock::now()),
        is_watching: Cell::new(false),
        blocks_waiting: Cell::new(0),
        tasks: Cell::new(0),
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
                if let Err(error) = sweeper.sweep().await {
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
    Block(PcmBlock),
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
}

/// Everything the loop and the tasks share; one thread, so no locks.
struct Desk {
    ends: Ends,
    lane: Rc<Lane>,
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
            FileItem::Begin(meta) if open.contains_key(&meta.id) => {
                tracing::error!(id = %meta.id, "a recording began twice");
            }
            FileItem::Begin(meta) if meta.keep => {
                let (sender, inputs) = unbounded_channel();
                open.insert(meta.id.clone(), Open::Task(sender));
                count(&self.ends.counters.open, 1);
                let desk = Rc::clone(self);
                self.spawn(async move { desk.record(*meta, inputs).await });
            }
            FileItem::Begin(meta) => {
                open.insert(meta.id, Open::ThrownAway(0));
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
                    Some(Open::ThrownAway(samples)) => *samples += block.len() as u64,
                    None => tracing::debug!(%id, "a block of no open recording"),
                }
            }
            FileItem::End { id, samples } => match open.get(&id) {
                Some(Open::Task(task)) => {
                    let _ = task.send(Input::End { samples });
                }
                Some(Open::ThrownAway(samples)) => {
                    count(&self.ends.counters.thrown_away_samples, *samples);
                    open.remove(&id);
                }
                None => tracing::debug!(%id, "the end of no open recording"),
            },
        }
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
            MailboxRequest::Keep { id } => (id, Input::Keep),
            MailboxRequest::Discard { id } => (id, Input::Discard),
            MailboxRequest::Review { token, id } => (id, Input::Review { token: *token }),
            MailboxRequest::Missed(meta) => (&meta.id, Input::Missed),
        };
        let is_sent = match self.open.borrow().get(id) {
            Some(Open::Task(task)) => task.send(input).is_ok(),
            Some(Open::ThrownAway(_)) | None => false,
        };
        if is_sent {
            return;
        }
        match request {
            // Most missed calls ended before any recording began.
            MailboxRequest::Missed(meta) => {
                let desk = Rc::clone(self);
                self.spawn(async move { desk.miss(&meta).await });
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
            MailboxRequest::Lookup { .. } | MailboxRequest::LoadGreeting { .. } => {}
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

    /// Finishes what lies in our lane and belongs to no task, and in lanes whose worker died.
    async fn sweep(&self) -> Result<Recovered, SpoolError> {
        let is_open = |id: &MessageId| self.open.borrow().contains_key(id);
        let mut recovered = spool::recover(&self.lane, &self.mover, is_open).await?;
        for orphan in Lane::orphans(&self.ends.config.data.join("spool"))? {
            recovered.add(spool::recover(&Rc::new(orphan), &self.mover, |_| false).await?);
        }
        count(&self.ends.counters.kept, recovered.messages);
        count(&self.ends.counters.missed, recovered.missed);
        Ok(recovered)
    }

    async fn miss(&self, meta: &RecordingMeta) {
        match self.mover.miss(&self.lane, meta).await {
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
    async fn record(&self, meta: RecordingMeta, mut inputs: UnboundedReceiver<Input>) {
        let id = meta.id.clone();
        let mut recording = Recording { desk: self, meta, file: None, written: 0, ended: None, error: None };
        recording.begin().await;
        recording.follow(&mut inputs).await;
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

/// A recording's own task.
struct Recording<'a> {
    desk: &'a Desk,
    meta: RecordingMeta,
    /// `<id>.wav.part`; `None` when it could not be made.
    file: Option<File>,
    /// Samples in the file.
    written: u64,
    /// Samples that stay, once `End` came.
    ended: Option<u64>,
    /// The first write the disk refused; nothing is written after it, so that there is no gap.
    error: Option<String>,
}

impl Recording<'_> {
    async fn begin(&mut self) {
        match self.desk.mover.begin(&self.desk.lane, &self.meta).await {
            Ok(file) => self.file = Some(file),
            Err(error) => self.refused(&error),
        }
    }

    /// The disk refused: log once, keep what is there, go on taking blocks.
    fn refused(&mut self, error: &SpoolError) {
        if self.error.is_none() {
            count(&self.desk.ends.counters.write_errors, 1);
            tracing::error!(
                id = %self.meta.id, mailbox = self.meta.mailbox, call_id = self.meta.call_id,
                written_ms = duration_ms(self.written), %error, "recording cut short"
            );
            self.error = Some(error.to_string());
            let why = Trouble::of_spool(error).unwrap_or(Trouble::Other);
            self.desk.ends.disk.cut_short(self.meta.id.clone(), why);
        }
    }

    /// Takes inputs until the recording is kept, thrown away or given up.
    async fn follow(&mut self, inputs: &mut UnboundedReceiver<Input>) {
        let mut is_kept = false;
        let mut reviews = Vec::new();
        let instead = loop {
            let input = inputs.recv().await;
            match input {
                Some(Input::Block(block)) => self.append(&block).await,
                Some(Input::End { samples }) => self.end(samples).await,
                Some(Input::Keep) if is_kept => self.desk.fail(self.meta.id.clone(), "asked for twice"),
                Some(Input::Keep) => is_kept = true,
                Some(Input::Review { token }) => reviews.push(token),
                Some(Input::Discard | Input::Missed) => break input,
                // The worker ends, and no `End` will come.
                None if self.ended.is_none() => self.end(self.written).await,
                None => break None,
            }
            if self.ended.is_some() {
                for token in reviews.drain(..) {
                    self.review(token).await;
                }
                if is_kept {
                    return self.keep().await;
                }
            }
        };
        // Every request has its reply, even when a later one made it void.
        for token in reviews {
            self.desk.refuse(&self.meta.id, Input::Review { token });
        }
        if is_kept {
            self.desk.refuse(&self.meta.id, Input::Keep);
        }
        match instead {
            Some(Input::Missed) => self.desk.miss(&self.meta).await,
            Some(_) => self.discard().await,
            None => self.settle().await,
        }
    }

    async fn append(&mut self, block: &[i16]) {
        self.desk.blocks_waiting.set(self.desk.blocks_waiting.get() - 1);
        if self.error.is_some() || self.ended.is_some() {
            return;
        }
        let Some(file) = &self.file else { return };
        let position = HEADER_BYTES as u64 + self.written * 2;
        let result = match self.desk.mover.step() {
            Ok(()) => file.write_at(audio::to_bytes(block), position).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.written += block.len() as u64,
            Err(error) => self.refused(&error.into()),
        }
    }

    async fn end(&mut self, samples: u64) {
        let samples = samples.min(self.written);
        self.ended = Some(samples);
        if let Some(file) = &self.file {
            let sealed = self.desk.mover.seal(&self.desk.lane, &self.meta.id, file, samples).await;
            if let Err(error) = sealed {
                self.refused(&error);
            }
        }
    }

    async fn keep(&mut self) {
        let samples = self.ended.unwrap_or(self.written);
        if samples == 0 {
            return match self.error.take() {
                Some(error) => self.desk.fail(self.meta.id.clone(), error),
                None => self.desk.miss(&self.meta).await,
            };
        }
        match self.desk.mover.keep(&self.desk.lane, &self.meta, samples).await {
            Ok(()) => {
                count(&self.desk.ends.counters.kept, 1);
                let duration = Duration::from_millis(duration_ms(samples));
                self.desk.reply(MailboxReply::Kept { id: self.meta.id.clone(), duration });
            }
            Err(error) => {
                if let Some(why) = Trouble::of_spool(&error) {
                    self.desk.ends.disk.refused(why);
                }
                self.desk.fail(self.meta.id.clone(), error);
            }
        }
    }

    async fn discard(&mut self) {
        let id = self.meta.id.clone();
        match self.desk.mover.discard(&self.desk.lane, &id).await {
            Ok(()) => {
                count(&self.desk.ends.counters.discarded, 1);
                self.desk.reply(MailboxReply::Discarded { id });
            }
            Err(error) => self.desk.fail(id, error),
        }
    }

    async fn review(&self, token: u64) {
        let bytes = self.ended.unwrap_or_default() * 2;
        let samples = match &self.file {
            Some(file) => file.read_at(HEADER_BYTES as u64, bytes).await,
            None => Err(std::io::Error::other("nothing could be recorded")),
        };
        let samples = samples.map(|data| audio::from_bytes(&data).into()).map_err(|error| error.to_string());
        self.desk.reply(MailboxReply::Review { token, id: self.meta.id.clone(), samples });
    }

    /// Ends a recording nobody decided about by the rules of recovery: speech is kept.
    async fn settle(&mut self) {
        self.file = None;
        let recovered = spool::recover_one(&self.desk.lane, &self.desk.mover, &self.meta.id).await;
        count(&self.desk.ends.counters.kept, recovered.messages);
        count(&self.desk.ends.counters.missed, recovered.missed);
    }
}

#[cfg(test)]
mod tests;
