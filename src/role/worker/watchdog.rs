//! Looks whether the worker's loops turn, from a thread of its own, and tells what the kernel knows of one
//! that does not.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::role::link::{FromWorker, Stall, WorkerLink};
use crate::shard::Pulse;

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// It looks this much late only if the whole process, or the machine, did not run.
const PAUSE: Duration = Duration::from_millis(500);
/// What the signalling loop counts to when it ends: nobody watches any more.
const OVER: u64 = u64::MAX;
/// The name of the worker's first thread, which is the signalling loop.
pub(crate) const SIGNALLING: &str = "signalling";

/// Turns of the signalling loop.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<AtomicU64>);

impl Turns {
    /// One more.
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The loop ends; shards that end with it are not stuck.
    pub(super) fn end(&self) {
        self.0.store(OVER, Ordering::Relaxed);
    }
}

/// One loop.
#[derive(Debug)]
struct Watched {
    name: String,
    turns: u64,
    since: Instant,
    is_told: bool,
}

impl Watched {
    fn new(now: Instant, name: String) -> Self {
        Self { name, turns: 0, since: now, is_told: false }
    }

    /// For how long it has not turned, once, when that is too long.
    fn look(&mut self, now: Instant, turns: u64, limit: Duration) -> Option<Duration> {
        if turns != self.turns {
            (self.turns, self.since, self.is_told) = (turns, now, false);
        }
        let stood = now.saturating_duration_since(self.since);
        let is_news = stood >= limit && !std::mem::replace(&mut self.is_told, stood >= limit);
        is_news.then_some(stood)
    }
}

/// Watches until the signalling loop ends.
///
/// # Errors
/// No thread.
pub(super) fn spawn(
    signalling: Turns,
    shards: Vec<Pulse>,
    limit: Duration,
    link: Arc<WorkerLink>,
) -> io::Result<()> {
    let now = clock::now();
    let mut loops = vec![Watched::new(now, SIGNALLING.to_owned())];
    loops.extend((0..shards.len()).map(|index| Watched::new(now, format!("media-{index}"))));
    let body = move || {
        let mut looked = clock::now();
        loop {
            thread::sleep(LOOK_INTERVAL);
            let now = clock::now();
            let pause = now.saturating_duration_since(looked).saturating_sub(LOOK_INTERVAL);
            looked = now;
            let first = signalling.0.load(Ordering::Relaxed);
            if first == OVER {
                return;
            }
            let turns = [first].into_iter().chain(shards.iter().map(Pulse::turns));
            for (watched, turns) in loops.iter_mut().zip(turns) {
                if pause >= PAUSE {
                    // Nobody has run meanwhile: that is no fault of the loop's.
                    watched.since += pause;
                }
                if let Some(stood) = watched.look(now, turns, limit) {
                    link.report(FromWorker::Stalled(stall(&watched.name, stood)));
                }
            }
        }
    };
    thread::Builder::new().name("watchdog".into()).spawn(body)?;
    Ok(())
}

fn stall(name: &str, stood: Duration) -> Stall {
    let for_ms = u64::try_from(stood.as_millis()).unwrap_or(u64::MAX);
    Stall { thread: name.to_owned(), for_ms, at: whereabouts(name).unwrap_or_else(|error| error.to_string()) }
}

/// What the kernel knows of a thread of this process: its state, what it waits in, the system call it is
/// in, and its stack in the kernel where this user may read it.
fn whereabouts(name: &str) -> io::Result<String> {
    let folder = if name == SIGNALLING {
        format!("/proc/self/task/{}", std::process::id())
    } else {
        let mut found = None;
        for task in fs::read_dir("/proc/self/task")? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                found = Some(path);
            }
        }
        found.ok_or(io::ErrorKind::NotFound)?.display().to_string()
    };
    let read = |file: &str| fs::read_to_string(format!("{folder}/{file}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default();
    let mut text =
        format!("state {}, waits in {}, system call {}", state.trim(), read("wchan"), read("syscall").trim());
    let stack = read("stack");
    if !stack.is_empty() {
        text = format!(
            "{text}, stack {}",
            stack.split_whitespace().filter(|w| *w != "[<0>]").collect::<Vec<_>>().join(" < ")
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a loop that stands still is told once, and again only after it has turned. Method: a fake
    /// clock, a limit of 2 s.
    #[test]
    fn a_loop_that_stands_still_is_told_once() {
        let start = clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let limit = Duration::from_secs(2);
        let mut watched = Watched::new(start, "media-0".into());
        assert_eq!(watched.look(at(250), 9, limit), None);
        assert_eq!(watched.look(at(2_000), 9, limit), None);
        assert_eq!(watched.look(at(2_250), 9, limit), Some(limit));
        assert_eq!(watched.look(at(9_000), 9, limit), None);
        assert_eq!(watched.look(at(9_250), 10, limit), None);
        assert_eq!(watched.look(at(11_250), 10, limit), Some(limit));
    }

    /// Goal: the report says where the thread is. Method: a thread of that name that waits.
    #[test]
    fn a_waiting_thread_is_found_by_its_name() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let thread = thread::Builder::new().name("media-77".into()).spawn(move || held.recv()).unwrap();
        let found = loop {
            match whereabouts("media-77") {
                Ok(text) if text.contains("state S") => break text,
                _ => thread::yield_now(),
            }
        };
        assert!(found.contains("waits in") && found.contains("system call"), "{found}");
        assert_eq!(whereabouts("media-78").unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(hold);
        assert!(thread.join().unwrap().is_err());
    }
}
