//! One worker process as the supervisor sees it: spawned, fed over its line, watched, ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command as TokioCommand};
use tokio::sync::mpsc;

use crate::base::config::Config;
use crate::control::cli::Slot;
use crate::role::hop::HopSecret;
use crate::role::link::{FromWorker, ToWorker, encode};

/// Orders that may wait for a worker that does not read.
const ORDERS_MAX: usize = 64;

/// What a worker process did. `generation` tells a dead worker's last words from its successor's.
#[derive(Debug)]
pub struct ProcessEvent {
    /// Which process of the slot.
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

/// A running worker.
#[derive(Debug)]
pub struct Process {
    /// Of the operating system.
    pub pid: u32,
    /// Counts the slot's processes.
    pub generation: u64,
    /// When it was started.
    pub started: Instant,
    orders: mpsc::Sender<ToWorker>,
    kill: mpsc::Sender<()>,
}

impl Process {
    /// Starts `voxring worker` for `slot`, the same program that runs now.
    ///
    /// # Errors
    /// No process or no socket pair could be had.
    pub fn spawn(
        now: Instant,
        slot: Slot,
        generation: u64,
        config: &Config,
        hop_secret: &HopSecret,
        events: &mpsc::Sender<ProcessEvent>,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // Not by path: the file may have been replaced by an upgrade meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("voxring").args(["worker", "--slot", slot.name()]);
        // A group of its own, so that the terminal's ^C reaches the supervisor alone.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
        let child = TokioCommand::from(command).spawn()?;
        let pid = child.id().unwrap_or_default();
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let (orders, order_queue) = mpsc::channel(ORDERS_MAX);
        let (kill, kill_queue) = mpsc::channel(1);
        tokio::task::spawn_local(write_orders(writer, order_queue));
        tokio::task::spawn_local(watch(generation, child, reader, kill_queue, events.clone()));
        let process = Self { pid, generation, started: now, orders, kill };
        process.send(ToWorker::Start {
            slot,
            config: Box::new(config.clone()),
            hop_secret: hop_secret.clone(),
        });
        Ok(process)
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
}

async fn write_orders(mut writer: OwnedWriteHalf, mut orders: mpsc::Receiver<ToWorker>) {
    while let Some(order) = orders.recv().await {
        let Ok(line) = encode(&order) else { continue };
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Passes on what the worker says and, last, how it ended.
async fn watch(
    generation: u64,
    mut child: Child,
    reader: OwnedReadHalf,
    mut kill: mpsc::Receiver<()>,
    events: mpsc::Sender<ProcessEvent>,
) {
    let mut lines = BufReader::new(reader).lines();
    let said = |kind| events.send(ProcessEvent { generation, kind });
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(report) => if said(ProcessEventKind::Report(report)).await.is_err() { break },
                    Err(error) => tracing::error!(%error, "the worker said what is no report"),
                },
                Ok(None) | Err(_) => break,
            },
            _ = kill.recv() => break,
        }
    }
    // Its line is closed or we want it gone: either way it has no business any more.
    let _ = child.start_kill();
    let how = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    // The supervisor is gone only when the node ends, and then nobody asks.
    let _ = said(ProcessEventKind::Exited(how)).await;
}
