//! A server that we start ourselves: pinned, with its own log, ended with its owner.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Lines of a log shown when its writer failed.
const LOG_LINES: usize = 8;

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts a program on one processor (or on any), its standard error in a log of its own.
    ///
    /// # Errors
    /// It is not installed, or there is no such processor.
    pub fn start(name: &str, command: &mut Command, processor: Option<usize>) -> Result<Self> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("voxperf-{name}-{}-{number}.log", std::process::id()));
        let errors = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let started = on_processor(processor, || command.spawn().map_err(anyhow::Error::from));
        let child = started.with_context(|| format!("cannot start {name}")).inspect_err(|_| {
            let _ = fs::remove_file(&log);
        })?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard input, once; a server that ends with it lives until then.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Refuses when it has ended.
    ///
    /// # Errors
    /// It has, with the end of its log.
    pub fn ensure_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow::anyhow!("{} ended with {status}: {}", self.name, self.last_words())),
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

/// Runs `work` with this thread on one processor; what it starts stays there, the thread does not.
///
/// # Errors
/// No such processor, or what `work` says.
pub fn on_processor<T>(processor: Option<usize>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(processor) = processor else { return work() };
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread)?;
    pin(processor)?;
    let result = work();
    sched_setaffinity(this_thread, &before).context("cannot leave the processor again")?;
    result
}

/// Puts this thread, and those it starts, on one processor.
///
/// # Errors
/// No such processor.
pub fn pin(processor: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(processor).with_context(|| format!("no processor {processor}"))?;
    sched_setaffinity(Pid::from_raw(0), &only).with_context(|| format!("no processor {processor}"))
}

/// Keeps this thread, and those it starts, off one processor where there are others.
///
/// # Errors
/// The kernel refuses.
pub fn keep_off(processor: usize) -> Result<()> {
    let mut others = sched_getaffinity(Pid::from_raw(0))?;
    others.unset(processor).with_context(|| format!("no processor {processor}"))?;
    let has_others = (0..CpuSet::count()).any(|other| others.is_set(other).unwrap_or(false));
    if has_others {
        sched_setaffinity(Pid::from_raw(0), &others).context("cannot leave the server's processor")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a server runs on its processor alone, and is gone with its owner.
    /// Method: a sleeper on processor 0; its list of processors; its process afterwards.
    #[test]
    fn a_server_is_pinned_and_ends_with_its_owner() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let server = Server::start("sleep", Command::new("sleep").arg("60"), Some(0)).unwrap();
        let status = format!("/proc/{}/status", server.pid());
        let text = fs::read_to_string(&status).unwrap();
        assert!(text.contains("Cpus_allowed_list:\t0\n"), "{text}");
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before, "we are where we were");
        drop(server);
        assert!(!fs::exists(status).unwrap());
    }

    /// Goal: a server that failed is told with its own words. Method: a shell that complains.
    #[test]
    fn a_failed_server_is_told_with_its_last_words() {
        let mut command = Command::new("sh");
        let mut server =
            Server::start("sh", command.args(["-c", "echo no such port >&2; exit 3"]), None).unwrap();
        server.child.wait().unwrap();
        let error = server.ensure_alive().unwrap_err().to_string();
        assert!(error.starts_with("sh ended with") && error.ends_with("no such port"), "{error}");
        assert!(Server::start("nobody", &mut Command::new("/nonexistent"), None).is_err());
    }
}
