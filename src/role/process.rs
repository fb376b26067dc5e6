//! One worker process as the supervisor sees it: spawned, fed over its line, watched, ended.
//!
//! A process is known by its id alone, so that a supervisor that replaces its own program can go on
//! with the workers it had: they stay its children, and their lines pass on as descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::base::config::Config;
use crate::control::cli::Slot;
use crate::role::hop::HopSecret;
use crate::role::legacy::{self, Legacy};
use crate::role::link::{FromWorker, ToWorker, encode};

/// Where a supervisor's next program finds its state: a descriptor's number. Not for workers.
pub const HANDOVER: &str = "VOXRING_HANDOVER";
/// Orders that may wait for a worker that does not read.
const ORDERS_MAX: usize = 64;
/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;
/// How often a process that was killed is asked whether it is gone.
const REAP_INTERVAL: Duration = Duration::from_millis(5);
/// How long orders may take to be written when a line is passed on.
const PASS_TIMEOUT: Duration = Duration::from_millis(500);

/// What a worker process did. `generation` tells a dead worker's last words from its successor's.
#[derive(Debug)]
pub struct ProcessEvent {
    /// Which process.
    pub generation: u64,
    /// What happened.
    pub kind: ProcessEventKind,
}

/// See [`ProcessEvent`].
#[derive(Debug)]
pub enum ProcessEventKind {
    /// It said something.
    Report(FromWorker),
    /// It ended; how, for a person.
    Exited(String),
}

/// The supervisor's end of a worker's line, and what was read of an unfinished object.
#[derive(Debug)]
pub struct Line {
    /// The socket.
    pub socket: OwnedFd,
    /// Bytes read.
    pub unread: Vec<u8>,
}

/// A running worker.
#[derive(Debug)]
pub struct Process {
    /// Of the operating system.
    pub pid: u32,
    /// Counts the node's worker processes.
    pub generation: u64,
    /// When it was started.
    pub started: Instant,
    orders: mpsc::Sender<ToWorker>,
    kill: mpsc::Sender<()>,
    pass: mpsc::Sender<oneshot::Sender<Line>>,
}

impl Process {
    /// Starts `voxring worker` for `slot`; `program`: another one than the program that runs now;
    /// `legacy`: what its calls outlast it by.
    ///
    /// # Errors
    /// No process or no socket pair could be had.
    pub fn spawn(
        now: Instant,
        (slot, generation): (Slot, u64),
        program: Option<&Path>,
        legacy: Option<Legacy>,
        config: &Config,
        hop_secret: &HopSecret,
        events: &mpsc::Sender<ProcessEvent>,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        // Not by path: the file may have been replaced by an upgrade meanwhile.
        let mut command = Command::new(program.unwrap_or(Path::new("/proc/self/exe")));
        command.arg0("voxring").args(["worker", "--slot", slot.name()]).env_remove(HANDOVER);
        // A group of its own, so that the terminal's ^C reaches the supervisor alone.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
        let pid = match legacy {
            Some(legacy) => legacy.spawn(&mut command)?,
            None => {
                legacy::disown(&mut command);
                start(&mut command)?
            }
        };
        let process = Self::watch(
            (pid, generation, now),
            Line { socket: ours.into(), unread: Vec::new() },
            events.clone(),
        )?;
        process.send(ToWorker::Start {
            slot,
            config: Box::new(config.clone()),
            hop_secret: hop_secret.clone(),
        });
        Ok(process)
    }

    /// Watches a child of this process: its id, its generation, when it was started.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn watch(
        (pid, generation, started): (u32, u64, Instant),
        line: Line,
        events: mpsc::Sender<ProcessEvent>,
    ) -> io::Result<Self> {
        let socket = StdUnixStream::from(line.socket);
        socket.set_nonblocking(true)?;
        let reader = Reader { stream: UnixStream::from_std(socket)?, unread: line.unread, scanned: 0 };
        let (orders, order_queue) = mpsc::channel(ORDERS_MAX);
        let (kill, kill_queue) = mpsc::channel(1);
        let (pass, pass_queue) = mpsc::channel(1);
        let queues = Queues { orders: order_queue, kill: kill_queue, pass: pass_queue };
        tokio::task::spawn_local(serve((pid, generation), reader, queues, events));
        Ok(Self { pid, generation, started, orders, kill, pass })
    }

    /// Queues an order; a worker that has stopped reading gets no more.
    pub fn send(&self, order: ToWorker) {
        if self.orders.try_send(order).is_err() {
            tracing::warn!(pid = self.pid, "the worker does not take orders");
        }
    }

    /// Ends it at once, without a last word.
    pub fn kill(&self) {
        // A second kill finds the queue full or closed: the first one stands.
        let _ = self.kill.try_send(());
    }

    /// Stops watching and gives the line away, after what was ordered is written; `None`: it is ending.
    pub async fn pass_on(&self) -> Option<Line> {
        let (answer, line) = oneshot::channel();
        self.pass.try_send(answer).ok()?;
        line.await.ok()
    }
}

/// What reaches a process's task.
struct Queues {
    orders: mpsc::Receiver<ToWorker>,
    kill: mpsc::Receiver<()>,
    pass: mpsc::Receiver<oneshot::Sender<Line>>,
}

/// Starts a process that is waited for by its id.
fn start(command: &mut Command) -> io::Result<u32> {
    Ok(command.spawn()?.id())
}

/// Reads lines; a line half read survives the loss of a future that reads it.
struct Reader {
    stream: UnixStream,
    unread: Vec<u8>,
    /// Bytes of `unread` without a line's end.
    scanned: usize,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let fresh = self.unread.get(self.scanned..).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', fresh) {
                let line = self.unread.drain(..=self.scanned + end).collect();
                self.scanned = 0;
                return Ok(Some(line));
            }
            self.scanned = self.unread.len();
            self.unread.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn write(&mut self, order: &ToWorker) -> io::Result<()> {
        self.stream.write_all(&encode(order)?).await
    }

    fn into_line(self) -> io::Result<Line> {
        Ok(Line { socket: self.stream.into_std()?.into(), unread: self.unread })
    }
}

/// Passes orders on, and what the worker says; last, how it ended.
async fn serve(
    (pid, generation): (u32, u64),
    mut reader: Reader,
    mut queues: Queues,
    events: mpsc::Sender<ProcessEvent>,
) {
    let said = |kind| events.send(ProcessEvent { generation, kind });
    loop {
        tokio::select! {
            line = reader.next() => match line {
                Ok(Some(line)) => match serde_json::from_slice(&line) {
                    Ok(report) => if said(ProcessEventKind::Report(report)).await.is_err() { break },
                    Err(error) => tracing::error!(%error, "the worker said what is no report"),
                },
                Ok(None) | Err(_) => break,
            },
            Some(order) = queues.orders.recv() => if reader.write(&order).await.is_err() { break },
            _ = queues.kill.recv() => break,
            Some(answer) = queues.pass.recv() => {
                let rest = async {
                    while let Ok(order) = queues.orders.try_recv() {
                        reader.write(&order).await?;
                    }
                    io::Result::Ok(())
                };
                // A worker that does not read is silent too, and killed for that.
                let _ = tokio::time::timeout(PASS_TIMEOUT, rest).await;
                // Whoever does not wait for the line wants the process gone.
                if reader.into_line().is_ok_and(|line| answer.send(line).is_ok()) {
                    return;
                }
                break;
            }
        }
    }
    // Its line is closed or we want it gone: either way it has no business any more.
    let how = end(pid).await;
    // The supervisor is gone only when the node ends, and then nobody asks.
    let _ = said(ProcessEventKind::Exited(how)).await;
}

/// Kills a child and waits for it; how it ended, for a person.
async fn end(pid: u32) -> String {
    let Ok(number) = i32::try_from(pid) else { return "it never was".to_owned() };
    let child = Pid::from_raw(number);
    loop {
        // Before the first look it may have ended by itself: that is how it is told.
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return format!("exit status {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => return format!("killed by {signal}"),
            Ok(_) => {}
            Err(error) => return format!("nobody knows how ({error})"),
        }
        // It is not reaped yet, so the id is still its own.
        let _ = kill(child, Signal::SIGKILL);
        tokio::time::sleep(REAP_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    /// Goal: a line can pass from one task to another between any two bytes, and nothing said or
    /// ordered is lost. Method: a child that is none of ours to read (`sleep`), a socket pair whose far
    /// end the test holds; an object cut in two by the change.
    #[test]
    fn a_line_passed_on_loses_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let pid = start(Command::new("sleep").arg("60")).unwrap();
            let (ours, mut theirs) = StdUnixStream::pair().unwrap();
            let (events, mut inbox) = mpsc::channel(8);
            let line = Line { socket: ours.into(), unread: Vec::new() };
            let now = clock::now();
            let first = Process::watch((pid, 1, now), line, events.clone()).unwrap();
            let report = encode(&FromWorker::Proof { error: Some("why".into()) }).unwrap();
            let (head, tail) = report.split_at(report.len() / 2);
            std::io::Write::write_all(&mut theirs, head).unwrap();
            first.send(ToWorker::Tls);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let line = first.pass_on().await.unwrap();
            assert_eq!(line.unread, head);
            let second = Process::watch((pid, 1, now), line, events).unwrap();
            second.send(ToWorker::Stop);
            std::io::Write::write_all(&mut theirs, tail).unwrap();
            let heard = inbox.recv().await.unwrap();
            assert!(matches!(heard.kind, ProcessEventKind::Report(FromWorker::Proof { .. })), "{heard:?}");
            second.kill();
            let ended = inbox.recv().await.unwrap();
            assert!(
                matches!(&ended.kind, ProcessEventKind::Exited(how) if how.contains("SIGKILL")),
                "{ended:?}"
            );
            let mut orders = String::new();
            std::io::Read::read_to_string(&mut theirs, &mut orders).unwrap();
            let expected = [ToWorker::Tls, ToWorker::Stop].map(|order| encode(&order).unwrap()).concat();
            assert_eq!(orders.as_bytes(), expected);
        });
    }
}
