//! Another program in this one's place: looked at, tried as a worker, then run in this very process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::handover::{self, FORM};
use super::{Signals, Supervisor, Told};
use crate::base::clock;
use crate::control::protocol::Reply;
use crate::role::process::HANDOVER;

/// How long a program may take to tell its version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls that router and service are handing on may take before the program is replaced.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a signal that has come needs to be heard.
const SIGNAL_WAIT: Duration = Duration::from_millis(2);

/// What a look at a program gave: its version.
pub(super) type Checked = Result<String, String>;

/// systemd wants to hear now and then that the supervisor turns.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    due: Instant,
}

impl Watchdog {
    /// `None`: it does not want to (`WatchdogSec`).
    pub(super) fn of_systemd(now: Instant) -> Option<Self> {
        let interval = sd_notify::watchdog_enabled()? / 3;
        Some(Self { interval, due: now })
    }

    pub(super) fn feed(&mut self, now: Instant) {
        if self.due <= now {
            self.due = now + self.interval;
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

impl Supervisor {
    /// `voxring upgrade`.
    pub(super) fn upgrade(&mut self, binary: Option<PathBuf>) -> Reply {
        let binary = binary.unwrap_or_else(|| self.own_file.clone());
        let begun = self.life.prepare_upgrade(clock::now(), format!("upgrade to {}", binary.display()));
        if begun.is_ok() {
            tracing::info!(binary = %binary.display(), "upgrade: the program is looked at");
            self.program = Some(binary.clone());
            let told = self.checks.0.clone();
            tokio::task::spawn_local(async move {
                // The supervisor ends with its receiver.
                let _ = told.send(check(&binary).await).await;
            });
        }
        self.reply_change(begun)
    }

    pub(super) fn handle_checked(&mut self, checked: Checked) {
        if let Ok(version) = &checked {
            tracing::info!(version, "upgrade: a worker of it is started");
        }
        self.life.upgrade(clock::now(), checked.map(|_version| ()));
    }

    /// Runs the new program in this process. Comes back only if that cannot be, or if a signal came
    /// meanwhile, which the new program would not have seen.
    pub(super) async fn replace_program(&mut self, signals: &mut Signals) -> Option<Told> {
        let binary = self.program.clone()?;
        let mut told = None;
        let result = self.pass_on(&binary, signals, &mut told).await;
        if let Err(why) = result {
            self.life.fail_change(clock::now(), format!("the supervisor keeps its program: {why}"));
        }
        told
    }

    async fn pass_on(
        &mut self,
        binary: &Path,
        signals: &mut Signals,
        told: &mut Option<Told>,
    ) -> Result<(), String> {
        // The next program could not serve without them.
        super::load_tls(&self.config, &self.source).map_err(|error| error.to_string())?;
        let control = self.control.as_ref().ok_or("the control socket cannot be passed on")?;
        let control = control.try_clone().map_err(|error| error.to_string())?;
        let Some(front) = self.front.pass_on(SETTLE_TIMEOUT) else {
            return Err("router and service do not answer".into());
        };
        let mut lines = Vec::new();
        for worker in &self.workers {
            if let Some(process) = &worker.process {
                lines.push((worker.slot, process.pass_on().await));
            }
        }
        // What workers said last.
        while let Ok(event) = self.inbox.try_recv() {
            if let Err(error) = self.handle_process(event) {
                tracing::error!(%error, "while the program is replaced");
            }
        }
        let kept = self.workers.iter_mut().map(|worker| (worker.slot, worker.vault.rest())).collect();
        let parts = handover::Parts { front, control, lines, kept };
        *told = tokio::time::timeout(SIGNAL_WAIT, signals.next()).await.ok();
        if told.is_some() {
            self.carry_on(parts);
            return Err("a signal came meanwhile".into());
        }
        let (error, parts) = handover::execute(self, binary, parts);
        self.carry_on(parts);
        Err(error.to_string())
    }

    /// The program stays: so do its sockets.
    fn carry_on(&mut self, parts: handover::Parts) {
        let tls = super::load_tls(&self.config, &self.source).ok().flatten();
        match crate::role::front::spawn(&self.config, tls, self.hop_secret.clone(), Some(parts.front)) {
            Ok(front) => self.front = front,
            Err(error) => tracing::error!(%error, "router and service could not go on"),
        }
        self.keep_again(parts.kept);
        for (slot, line) in parts.lines {
            self.watch_again(slot, line);
        }
        self.tell_front();
    }
}

/// Looks whether a program is a voxring that can take over from this one; its version.
async fn check(binary: &Path) -> Checked {
    let named = |error: String| format!("{}: {error}", binary.display());
    let version = answer(binary, "--version").await.map_err(named)?;
    let Some(version) = version.strip_prefix("voxring ") else {
        return Err(named(format!("it says {version:?}, which is no voxring")));
    };
    let form = answer(binary, "handover-form").await;
    match form {
        Ok(form) if form == FORM.to_string() => Ok(version.to_owned()),
        Ok(form) => Err(named(format!(
            "version {version} takes over in form {form}, this one hands over in {FORM}; restart"
        ))),
        Err(_) => Err(named(format!("version {version} cannot take over from a running node; restart"))),
    }
}

/// The first line a program prints.
async fn answer(binary: &Path, argument: &str) -> Result<String, String> {
    let mut command = Command::new(binary);
    command.arg(argument).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    // What an earlier upgrade has left is for nobody else.
    command.env_remove(HANDOVER);
    let output = tokio::time::timeout(ANSWER_TIMEOUT, command.output()).await;
    let output = output.map_err(|_| format!("{argument} takes longer than {ANSWER_TIMEOUT:?}"))?;
    let output = output.map_err(|error| format!("it cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(format!("{argument} ends with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Goal: what cannot take over is told by name and reason, and never started as a worker.
    /// Method: no file, no program, another program, one that ends badly, one of another form.
    #[test]
    fn a_program_that_does_not_fit_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let looked = |script: Option<&str>, mode: u32| {
            if let Some(script) = script {
                std::fs::write(&file, script).unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            runtime.block_on(check(&file))
        };
        let told = |looked: Checked, words: &str| {
            let error = looked.unwrap_err();
            assert!(error.starts_with(&file.display().to_string()) && error.contains(words), "{error}");
        };
        told(looked(None, 0), "cannot be run: No such file");
        told(looked(Some("#!/bin/sh\n"), 0o600), "cannot be run");
        told(looked(Some("#!/bin/sh\necho other 1.0\n"), 0o700), "which is no voxring");
        told(looked(Some("#!/bin/sh\nexit 3\n"), 0o700), "exit status: 3");
        let old = "#!/bin/sh\n[ $1 = --version ] && echo voxring 0.0.1 || exit 2\n";
        told(looked(Some(old), 0o700), "version 0.0.1 cannot take over");
        let form = |form: u32| format!("#!/bin/sh\n[ $1 = --version ] && echo voxring 9.0 || echo {form}\n");
        told(looked(Some(&form(FORM + 1)), 0o700), "takes over in form");
        assert_eq!(looked(Some(&form(FORM)), 0o700), Ok("9.0".to_owned()));
    }
}
