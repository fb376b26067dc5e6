//! Processor time of threads and memory of processes, read from the system at the window's edges.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::load::media::tally::micros;
use crate::load::result::{Server, ServerThread, count};
use crate::{clock, machine};

/// A thread, by process and thread number.
type Id = (u32, u32);

/// Processor time of every thread of some processes at one instant.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Instant,
    threads: BTreeMap<Id, (String, Duration)>,
}

impl Sample {
    /// Of these processes, without their children. A process that ended has no threads.
    pub fn take(pids: &[u32]) -> Self {
        let threads = pids.iter().flat_map(|&pid| threads_of(pid)).collect();
        Self { at: clock::now(), threads }
    }

    /// What was used since `before`, busiest first; threads that used nothing are left out.
    pub fn since(&self, before: &Self) -> Vec<ServerThread> {
        let elapsed = self.at.saturating_duration_since(before.at);
        let mut threads: Vec<_> = self
            .threads
            .iter()
            .map(|(id, (name, time))| {
                let earlier = before.threads.get(id).map_or(Duration::ZERO, |(_, time)| *time);
                let used = time.saturating_sub(earlier);
                let cpu_percent = 100.0 * used.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
                ServerThread { pid: id.0, name: name.clone(), cpu_percent, cpu_us: micros(used) }
            })
            .filter(|thread| thread.cpu_us > 0)
            .collect();
        threads.sort_by_key(|thread| std::cmp::Reverse(thread.cpu_us));
        threads
    }
}

/// Sums threads up. `packets` are those that the media threads worked on in the same time.
pub fn server(
    threads: Vec<ServerThread>,
    packets: u64,
    resident_before_bytes: u64,
    resident_bytes: u64,
) -> Server {
    let sum =
        |threads: &mut dyn Iterator<Item = &ServerThread>| threads.map(|thread| thread.cpu_us).sum::<u64>();
    let cpu_us = sum(&mut threads.iter());
    let has_media = threads.iter().any(is_media);
    let media_us =
        if has_media { sum(&mut threads.iter().filter(|thread| is_media(thread))) } else { cpu_us };
    Server {
        cpu_percent: threads.iter().map(|thread| thread.cpu_percent).sum(),
        cpu_us,
        media_us,
        media_us_per_packet: if packets == 0 { 0.0 } else { count(media_us) / count(packets) },
        resident_bytes,
        resident_before_bytes,
        threads,
    }
}

fn is_media(thread: &ServerThread) -> bool {
    thread.name.starts_with("media-")
}

/// These processes and all that descend from them.
///
/// # Errors
/// One of those named does not exist.
pub fn family(pids: &[u32]) -> Result<Vec<u32>> {
    for pid in pids {
        fs::metadata(format!("/proc/{pid}")).ok().with_context(|| format!("--pid: no process {pid}"))?;
    }
    let (mut found, mut open) = (BTreeSet::new(), pids.to_vec());
    while let Some(pid) = open.pop() {
        if found.insert(pid) {
            open.extend(children(pid));
        }
    }
    Ok(found.into_iter().collect())
}

/// Resident memory of all of them, bytes.
pub fn resident_bytes(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|&pid| machine::resident_bytes(pid).ok()).sum()
}

fn tasks(pid: u32) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn children(pid: u32) -> Vec<u32> {
    let lists = tasks(pid).filter_map(|task| fs::read_to_string(task.join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn threads_of(pid: u32) -> Vec<(Id, (String, Duration))> {
    let read = |task: std::path::PathBuf| {
        let tid = task.file_name()?.to_str()?.parse().ok()?;
        let name = fs::read_to_string(task.join("comm")).ok()?.trim_end().to_owned();
        // Nanoseconds on a processor come first.
        let spent = fs::read_to_string(task.join("schedstat")).ok()?;
        let nanos = spent.split_ascii_whitespace().next()?.parse().ok()?;
        Some(((pid, tid), (name, Duration::from_nanos(nanos))))
    };
    tasks(pid).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: children are found through their parent, and time goes to the thread that used it.
    /// Method: this process with a shell as its child, and a thread that burns 50 ms.
    #[test]
    fn children_and_threads_are_found() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(family(&[own]).unwrap().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(family(&[u32::MAX]).unwrap_err().to_string().contains("no process"));

        let before = Sample::take(&[own]);
        let (told, done) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel::<()>());
        let burner = std::thread::Builder::new().name("media-9".into()).spawn(move || {
            let start = clock::thread_time();
            while clock::thread_time() - start < Duration::from_millis(50) {}
            told.0.send(()).unwrap();
            let _ = done.1.recv();
        });
        told.1.recv().unwrap();
        let threads = Sample::take(&[own]).since(&before);
        drop(done.0);
        burner.unwrap().join().unwrap();
        let burnt = threads.iter().find(|thread| thread.name == "media-9").unwrap().cpu_us;
        assert!(burnt >= 45_000, "{threads:?}");
        let server = server(threads, 1000, 1, 2);
        assert_eq!(server.media_us, burnt);
        assert!((server.media_us_per_packet * 1000.0 - count(burnt)).abs() < 1.0);
        assert!(server.cpu_us >= burnt && resident_bytes(&[own]) > 1 << 20);
    }
}
