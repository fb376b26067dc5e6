//! The call router's settings, changed while it runs and kept over a restart.

use super::Supervisor;
use super::reload::Candidate;
use crate::base::config::Config;
use crate::control::call_router;
use crate::control::protocol::{CallRouterReport, CallRouterSettings, ErrorKind, Reply};
use crate::role::front::Hop;

impl Supervisor {
    /// The settings in force, where each comes from, and the router's sockets.
    pub(super) fn call_router(&self) -> CallRouterReport {
        let mut listeners = self.front.listeners();
        listeners.retain(|listener| listener.role == Hop::Router.name());
        CallRouterReport { settings: call_router::settings(&self.config, &self.source), listeners }
    }

    /// Changes settings; `reset` first drops all that were set before.
    pub(super) fn set_call_router(&mut self, settings: CallRouterSettings, reset: bool) -> Reply {
        if self.life.is_stopping() {
            return Reply::error(ErrorKind::Unavailable, "the node is stopping");
        }
        let before = if reset { CallRouterSettings::default() } else { self.overlay.clone() };
        let overlay = settings.over(before);
        let problems = overlay.problems();
        if !problems.is_empty() {
            let texts: Vec<_> = problems.iter().map(|(key, message)| format!("{key}: {message}")).collect();
            return Reply::error(ErrorKind::BadRequest, texts.join("\n"));
        }
        let candidate = self.with_overlay(overlay);
        match self.put_in_force(candidate, true) {
            Ok(()) => {
                let report = self.call_router();
                let sockets: Vec<_> = report
                    .listeners
                    .iter()
                    .map(|listener| format!("{}/{}", listener.address, listener.transport.name()))
                    .collect();
                tracing::info!(listeners = sockets.join(" "), "the call router's settings have changed");
                Reply::CallRouter(report)
            }
            Err(problems) => {
                tracing::warn!(problems = problems.join("; "), "the call router's settings stay as they are");
                Reply::error(ErrorKind::BadRequest, format!("{}\nnothing was changed", problems.join("\n")))
            }
        }
    }

    /// The running configuration with other settings laid over the file's.
    fn with_overlay(&self, overlay: CallRouterSettings) -> Candidate {
        let mut config = Config::clone(&self.config);
        let (router, source) = &self.file;
        config.router.clone_from(router);
        let mut source = source.clone();
        overlay.lay_over(&mut config, &mut source, &call_router::file(&self.config.node.data));
        Candidate { config, source, file: self.file.clone(), overlay }
    }
}
