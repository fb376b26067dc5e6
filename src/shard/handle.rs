//! Starting a shard, and the other threads' end of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::base::clock;
use crate::base::config::PortRange;
use crate::base::limits::{EVENTS_MAX, ORDERS_MAX};
use crate::media::order::{Event, FileItem, Order};
use crate::shard::counters::{Published, ShardSnapshot};
use crate::shard::keeping::Keeping;
use crate::shard::turn::Shard;
use crate::uring::{Backend, Epoll, MediaIo, PerSocket, Steered, Waker, thread as own};

/// File items that may wait for the file thread: at most 52 MB of audio.
const FILES_MAX: usize = 4096;

/// What a shard is.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Its number in the worker, from 0; names the thread.
    pub index: u16,
    /// The processor it is pinned to, if any.
    pub cpu: Option<usize>,
    /// How it talks to the kernel.
    pub backend: Backend,
    /// This shard's slice of the RTP range; no other process may use it.
    pub ports: PortRange,
    /// How long a pair rests after a call.
    pub quarantine: Duration,
    /// Most legs open or closing at once; more are refused with `NoPort`.
    pub legs_max: usize,
}

/// What the shard's thread and its handle share.
pub(super) struct Shared {
    pub(super) orders: ArrayQueue<Order>,
    pub(super) events: Arc<ArrayQueue<Event>>,
    pub(super) files: Arc<ArrayQueue<FileItem>>,
    pub(super) published: Published,
    /// The shard sleeps with nothing to do, and must be woken for an order.
    pub(super) parked: AtomicBool,
    /// The handle is gone: close everything and leave.
    pub(super) stop: AtomicBool,
    pub(super) waker: Arc<Waker>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            orders: ArrayQueue::new(ORDERS_MAX),
            events: Arc::new(ArrayQueue::new(EVENTS_MAX)),
            files: Arc::new(ArrayQueue::new(FILES_MAX)),
            published: Published::default(),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            waker: Arc::new(Waker::new()?),
        })
    }

    /// Wakes the shard if it parks. Costs a fence when it does not.
    fn wake(&self) {
        // The shard stores `parked`, fences, then looks for orders; we store an order, fence, then
        // look at `parked`. One of us sees the other.
        fence(Ordering::SeqCst);
        if self.parked.swap(false, Ordering::AcqRel) {
            self.waker.notify();
        }
    }
}

/// The signalling thread's end of a shard.
///
/// Dropping it stops the shard: legs are closed without waiting for their last events.
pub struct ShardHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Whether a shard turns.
pub struct Pulse(Arc<Shared>);

impl Pulse {
    /// Turns so far. It stands still for more than a second only if the shard is stuck.
    pub fn turns(&self) -> u64 {
        self.0.published.load().turns
    }
}

/// Starts a shard on its own thread.
///
/// # Errors
/// The backend is not to be had ([`crate::uring::choose()`] knows before), or no thread or
/// descriptor is.
pub fn spawn(config: ShardConfig) -> io::Result<ShardHandle> {
    spawn_keeping(config, None)
}

/// The same, with legs that outlast the process.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_keeping(config: ShardConfig, keeping: Option<Keeping>) -> io::Result<ShardHandle> {
    let shared = Arc::new(Shared::new()?);
    let (ready, started) = mpsc::sync_channel(1);
    let theirs = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name(format!("media-{}", config.index))
        .spawn(move || run(config, theirs, keeping, &ready))?;
    let mut handle = ShardHandle { shared, thread: Some(thread) };
    match started.recv() {
        Ok(()) => Ok(handle),
        Err(_) => Err(handle.wait().err().unwrap_or_else(|| io::ErrorKind::Other.into())),
    }
}

/// The shard's thread. The backend must be made where it is used.
fn run(
    config: ShardConfig,
    shared: Arc<Shared>,
    keeping: Option<Keeping>,
    ready: &mpsc::SyncSender<()>,
) -> io::Result<()> {
    if let Some(id) = config.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(shard = config.index, cpu = id, "cannot pin the media shard; it will float");
    }
    if let Err(error) = own::prefer() {
        let shard = config.index;
        tracing::info!(shard, %error, "the media shard has no priority over other threads");
    }
    let streams = config.legs_max.saturating_mul(2);
    let waker = Arc::clone(&shared.waker);
    match config.backend {
        Backend::Uring => {
            serve(PerSocket::new(clock::now(), streams, waker)?, (config, shared, keeping), ready)
        }
        Backend::Epoll => serve(Epoll::new(streams, waker)?, (config, shared, keeping), ready),
        Backend::Steered => serve(Steered::new(streams, waker)?, (config, shared, keeping), ready),
    }
}

fn serve<I: MediaIo>(
    io: I,
    (config, shared, keeping): (ShardConfig, Arc<Shared>, Option<Keeping>),
    ready: &mpsc::SyncSender<()>,
) -> io::Result<()> {
    let mut shard = Shard::new(config, io, shared, keeping)?;
    // The receiver waits for this; if it is gone there is nobody to serve.
    if ready.send(()).is_err() {
        return Ok(());
    }
    shard.run()
}

impl ShardHandle {
    /// Gives an order.
    ///
    /// # Errors
    /// The order comes back if the queue is full: answer 503 with Retry-After.
    pub fn send(&self, order: Order) -> Result<(), Order> {
        self.shared.orders.push(order)?;
        self.shared.wake();
        Ok(())
    }

    /// The next event, if one waits.
    pub fn try_event(&self) -> Option<Event> {
        self.shared.events.pop()
    }

    /// Where recordings come out, for the file thread.
    pub fn files(&self) -> Arc<ArrayQueue<FileItem>> {
        Arc::clone(&self.shared.files)
    }

    /// Counters and gauges, at most a tenth of a second old.
    pub fn snapshot(&self) -> ShardSnapshot {
        self.shared.published.load()
    }

    /// Tells whether the shard turns, to another thread.
    pub fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.shared))
    }

    /// The thread has ended: drained, or broken.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread to end. Send [`Order::Drain`] first and take events meanwhile: the
    /// shard stays until its last leg is closed and its last event is in the queue.
    ///
    /// # Errors
    /// A broken ring, or a panic of the shard itself.
    pub fn join(mut self) -> io::Result<()> {
        self.wait()
    }

    fn wait(&mut self) -> io::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the media shard panicked")),
        }
    }
}

/// The far end of a shard that a test plays itself. Drop it before the handle.
#[cfg(test)]
pub(crate) struct FakeShard {
    shared: Arc<Shared>,
    /// The thread that stands for the shard ends with this.
    _life: mpsc::Sender<()>,
}

#[cfg(test)]
impl FakeShard {
    /// The next order.
    pub(crate) fn order(&self) -> Option<Order> {
        self.shared.orders.pop()
    }

    /// Tells signalling something.
    pub(crate) fn say(&self, event: Event) {
        self.shared.events.push(event).expect("a test says little");
    }
}

#[cfg(test)]
impl ShardHandle {
    /// A handle whose shard does nothing but what the test does at the other end.
    pub(crate) fn fake() -> (Self, FakeShard) {
        let shared = Arc::new(Shared::new().expect("a waker can be made"));
        let (life, end) = mpsc::channel::<()>();
        let thread = thread::spawn(move || end.recv().map_or(Ok(()), Ok));
        let fake = FakeShard { shared: Arc::clone(&shared), _life: life };
        (Self { shared, thread: Some(thread) }, fake)
    }
}

impl Drop for ShardHandle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Err(error) = self.wait() {
            tracing::error!(%error, "a media shard ended badly");
        }
    }
}

#[cfg(test)]
mod tests;
