//! A new configuration for a running node: read, checked, and put in force whole or not at all.

use std::sync::Arc;

use super::Supervisor;
use super::life::Rules;
use crate::base::clock;
use crate::base::config::{Config, Reload, Router, Source};
use crate::control::protocol::{CallRouterSettings, ReloadReport};
use crate::control::{call_router, check, tls};
use crate::role::link::ToWorker;

/// How often it was done, and refused.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    pub(super) done: u64,
    pub(super) refused: u64,
}

/// What may come into force.
pub(super) struct Candidate {
    pub(super) config: Config,
    pub(super) source: Source,
    /// `[router]` without what was set at run time.
    pub(super) file: (Router, Source),
    pub(super) overlay: CallRouterSettings,
}

/// Which changed keys act at once, and which at the next start only.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    applied: Vec<String>,
    needs_restart: Vec<String>,
}

impl Supervisor {
    /// Reads configuration and TLS files anew. Any error: everything stays as it was.
    pub(super) fn reload(&mut self, why: &str) -> ReloadReport {
        tracing::info!(why, "reloading");
        notify_reloading();
        let outcome = self.read_candidate().and_then(|(candidate, changes)| {
            self.put_in_force(candidate, false)?;
            Ok(changes)
        });
        // Ready again, with the old configuration or the new one.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        match outcome {
            Ok(Changes { applied, needs_restart }) => {
                self.reloads.done += 1;
                tracing::info!(
                    applied = applied.join(" "),
                    needs_restart = needs_restart.join(" "),
                    "reloaded"
                );
                ReloadReport { applied, needs_restart, problems: Vec::new() }
            }
            Err(problems) => {
                self.reloads.refused += 1;
                for problem in &problems {
                    tracing::error!("not reloaded: {problem}");
                }
                ReloadReport { problems, ..ReloadReport::default() }
            }
        }
    }

    fn read_candidate(&self) -> Result<(Candidate, Changes), Vec<String>> {
        let (mut config, mut source) = self.place.load_file().map_err(texts)?;
        let file = (config.router.clone(), source.clone());
        let running = &self.config.node.data;
        // A folder that is named otherwise, through a link say, is the same folder.
        let named = config.node.data.canonicalize().unwrap_or_else(|_| config.node.data.clone());
        // What was set at run time lies in the folder in use.
        config.node.data.clone_from(running);
        let overlay = call_router::apply(&mut config, &mut source).map_err(texts)?;
        config.node.data = named;
        let (config, changes) = merge(&self.config, config);
        Ok((Candidate { config, source, file, overlay }, changes))
    }

    /// Puts a configuration in force, whole or not at all; `keep`: with what was set at run time on
    /// disk.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with file, line and key as far as they are known.
    pub(super) fn put_in_force(&mut self, candidate: Candidate, keep: bool) -> Result<(), Vec<String>> {
        let Candidate { config, source, file, overlay } = candidate;
        let now = clock::now();
        let problems = contradictions(&config, &source);
        if !problems.is_empty() {
            return Err(problems);
        }
        let setup = tls::load(&config, clock::calendar())
            .map_err(|problem| vec![format!("{}: {}", source.locate(problem.key), problem.error)])?;
        let change = self.front.prepare(&config, setup.as_ref()).map_err(|error| {
            vec![format!(
                "cannot listen on {error}; the old listeners stay open until all new ones are bound"
            )]
        })?;
        if keep && let Err(error) = call_router::write(&config.node.data, &overlay) {
            self.front.abort(change);
            return Err(vec![format!("{}: {error}", call_router::file(&config.node.data).display())]);
        }
        let config = Arc::new(config);
        self.front.commit(change, &config, setup.as_ref());
        self.order_all(&ToWorker::Config { config: Box::new(Config::clone(&config)) });
        self.life.set_rules(Rules::of(&config));
        self.certificates.replace(now, setup, &config);
        (self.config, self.source, self.file, self.overlay) = (config, source, file, overlay);
        Ok(())
    }
}

/// `wanted` with the running values of keys that need a restart, and which keys differ.
fn merge(running: &Config, mut wanted: Config) -> (Config, Changes) {
    let mut changes = Changes::default();
    for (key, reload) in running.differences(&wanted) {
        match reload {
            Reload::Restart => changes.needs_restart.push(key),
            Reload::Now | Reload::Calls => changes.applied.push(key),
        }
    }
    wanted.keep_restart_keys(running);
    (wanted, changes)
}

/// What contradicts something else, in the file or on the machine's ports.
fn contradictions(config: &Config, source: &Source) -> Vec<String> {
    let values = config.contradictions().into_iter();
    let mut problems: Vec<_> =
        values.map(|(key, message)| format!("{}: {message}", source.locate(&key))).collect();
    let ports = check::conflicts(config, source).into_iter();
    problems.extend(ports.map(|problem| format!("{}: {}; {}", problem.place, problem.what, problem.fix)));
    problems
}

fn texts(error: crate::base::config::ConfigError) -> Vec<String> {
    error.problems.iter().map(ToString::to_string).collect()
}

/// Tells systemd that a reload has begun, and when by its clock.
fn notify_reloading() {
    let mut state = vec![sd_notify::NotifyState::Reloading];
    state.extend(sd_notify::NotifyState::monotonic_usec_now().ok());
    // Not under systemd: nobody to notify.
    let _ = sd_notify::notify(&state);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Goal: a changed key acts now or is named as one that needs a restart, and then keeps its
    /// running value. Method: one key of each class, and a list.
    #[test]
    fn keys_that_need_a_restart_keep_their_value() {
        let running = Config::default();
        let text = "[worker]\nport_a = 6065\n[calls]\ncalls_max = 7\n[router]\nport = 6060\n\
                    [[gateway]]\nname = \"gw\"\naddress = \"192.0.2.1\"\n";
        let (wanted, _) = Config::parse(text, Path::new("a.toml")).unwrap();
        let (merged, changes) = merge(&running, wanted);
        assert_eq!(changes.applied, ["router.port", "calls.calls_max", "gateway"]);
        assert_eq!(changes.needs_restart, ["worker.port_a"]);
        assert_eq!((merged.worker.port_a, merged.calls.calls_max, merged.router.port), (5065, 7, 6060));
        assert_eq!(merge(&merged, merged.clone()).1, Changes::default());
    }

    /// Goal: a port that another listener has, or that lies amid the media ports, is refused with
    /// file, line and a way out. Method: the router on the service's port; UDP in the RTP range.
    #[test]
    fn conflicting_ports_are_told_with_their_line() {
        let found = |text: &str| {
            let (config, source) = Config::parse(text, Path::new("a.toml")).unwrap();
            contradictions(&config, &source)
        };
        assert_eq!(found("[router]\nport = 5070\n"), Vec::<String>::new());
        let same = found("[router]\nport = 5062\n[service]\nport = 5062\n");
        assert!(same[0].starts_with("a.toml:4 service.port: router and service both listen"), "{same:?}");
        let media = found("[router]\nport = 16390\nudp = true\n");
        assert!(media[0].contains("contains router's UDP port 16390"), "{media:?}");
    }
}
