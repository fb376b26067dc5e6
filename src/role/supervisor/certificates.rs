//! The node's certificate while it runs: files that change, and days that run out.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Supervisor;
use crate::base::clock;
use crate::base::config::Config;
use crate::control::protocol::CertificateStatus;
use crate::control::tls::{self, days_left, unix_s};
use crate::role::link::ToWorker;
use crate::signal::{TlsFacts, TlsSetup};

/// How often the files are looked at. A change is taken once it has lasted from one look to the
/// next, so that a certificate and its key which are replaced one after the other come together.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often dates are looked at.
const DATE_INTERVAL: Duration = Duration::from_secs(3600);
/// Days before the end at which the log warns, the last one: it is over.
const WARN_DAYS: [i64; 4] = [30, 7, 1, 0];

/// What tells one version of a file from another: when contents, owner or mode changed last (seconds and
/// nanoseconds), size, inode. `None`: it is not there.
type Stamp = Option<(i64, i64, u64, u64)>;

/// The setup in force and the state of its files.
#[derive(Debug)]
pub(super) struct Certificates {
    setup: Option<Arc<TlsSetup>>,
    /// Of the files when they were loaded, or failed to.
    loaded: BTreeMap<PathBuf, Stamp>,
    /// Of the files at the last look.
    seen: BTreeMap<PathBuf, Stamp>,
    look_at: Instant,
    dates_at: Instant,
    expiry: Expiry,
}

impl Certificates {
    pub(super) fn new(now: Instant, setup: Option<Arc<TlsSetup>>) -> Self {
        Self {
            setup,
            loaded: BTreeMap::new(),
            seen: BTreeMap::new(),
            look_at: now,
            dates_at: now,
            expiry: Expiry::default(),
        }
    }

    /// A new setup is in force, or TLS is off.
    pub(super) fn replace(&mut self, now: Instant, setup: Option<Arc<TlsSetup>>, config: &Config) {
        self.setup = setup;
        self.loaded = stamps(config);
        self.seen.clone_from(&self.loaded);
        self.dates_at = now;
    }

    pub(super) fn has_setup(&self) -> bool {
        self.setup.is_some()
    }

    pub(super) fn status(&self, now: SystemTime) -> Option<CertificateStatus> {
        self.setup.as_ref().map(|setup| tls::status(setup.facts(), now))
    }

    /// True when the files have changed and then stayed.
    fn have_changed(&mut self, now: Instant, config: &Config) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK_INTERVAL;
        let found = stamps(config);
        if self.loaded.is_empty() {
            // The first look: what was loaded at the start a moment ago.
            self.loaded.clone_from(&found);
        }
        let have_stayed = found == self.seen;
        self.seen = found;
        if !have_stayed || self.seen == self.loaded {
            return false;
        }
        // Whatever comes of it: it is not tried again before the next change.
        self.loaded.clone_from(&self.seen);
        true
    }

    /// Warnings that are due, each once.
    fn warnings(&mut self, now: Instant, calendar: SystemTime) -> Vec<String> {
        if now < self.dates_at {
            return Vec::new();
        }
        self.dates_at = now + DATE_INTERVAL;
        let Some(setup) = &self.setup else { return Vec::new() };
        self.expiry.due(&dates(setup.facts()), unix_s(calendar))
    }
}

impl Supervisor {
    /// Loads changed TLS files and warns of dates.
    pub(super) fn look_at_certificates(&mut self, now: Instant) {
        if self.certificates.has_setup() && self.certificates.have_changed(now, &self.config) {
            self.reload_certificates(now);
        }
        for warning in self.certificates.warnings(now, clock::calendar()) {
            tracing::warn!(rule = "tls_expiry", "{warning}");
        }
    }

    fn reload_certificates(&mut self, now: Instant) {
        match tls::load(&self.config, clock::calendar()) {
            Ok(Some(setup)) => {
                self.front.renew_tls(&setup);
                self.order_all(&ToWorker::Tls);
                self.certificates.replace(now, Some(setup), &self.config);
                self.reloads.done += 1;
                tracing::info!("the TLS files have changed and are in force");
            }
            Ok(None) => {}
            Err(problem) => {
                self.reloads.refused += 1;
                let place = self.source.locate(problem.key);
                tracing::error!(%place, error = %problem.error, "the TLS files have changed; the old ones stay in force");
            }
        }
    }
}

fn stamps(config: &Config) -> BTreeMap<PathBuf, Stamp> {
    let stamp = |file: &std::path::Path| {
        let found = std::fs::metadata(file).ok()?;
        Some((found.ctime(), found.ctime_nsec(), found.size(), found.ino()))
    };
    tls::keys(config).into_iter().map(|(_, file)| (file.to_owned(), stamp(file))).collect()
}

/// Everything with an end, named for a person; `None`: an end that is not told.
fn dates(facts: &TlsFacts) -> Vec<(String, Option<i64>)> {
    let mut dates = vec![(format!("the certificate of {}", facts.subject), Some(facts.not_after_unix_s))];
    let ca = |ca: &crate::signal::tls::CaFacts| {
        (format!("the CA certificate of {}", ca.subject), Some(ca.not_after_unix_s))
    };
    dates.extend(facts.authorities.iter().map(ca));
    let list = |crl: &crate::signal::tls::CrlFacts| {
        (format!("the revocation list of {}", crl.issuer), crl.next_update_unix_s)
    };
    dates.extend(facts.crls.iter().map(list));
    dates
}

/// Which warnings were given: for each thing and its end, the fewest days told.
#[derive(Debug, Default)]
struct Expiry {
    told: BTreeMap<(String, Option<i64>), i64>,
}

impl Expiry {
    fn due(&mut self, dates: &[(String, Option<i64>)], now_unix_s: i64) -> Vec<String> {
        // What is no longer loaded is forgotten.
        self.told.retain(|known, _| dates.contains(known));
        let mut due = Vec::new();
        for date in dates {
            let left = date.1.map_or(-1, |end| days_left(end, now_unix_s));
            let crossed = WARN_DAYS.into_iter().filter(|days| left < *days).min();
            let Some(crossed) = crossed else { continue };
            if self.told.get(date).is_some_and(|told| *told <= crossed) {
                continue;
            }
            self.told.insert(date.clone(), crossed);
            due.push(match left {
                ..0 => format!("{} has expired", date.0),
                0 => format!("{} expires within a day", date.0),
                _ => format!("{} expires in {left} days", date.0),
            });
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: i64 = 86_400;

    /// Goal: a warning at 30, 7 and 1 days and at the end, each once, and anew for a new certificate.
    /// Method: hourly looks over 40 days with a certificate that ends on day 35.
    #[test]
    fn each_threshold_warns_once() {
        let mut expiry = Expiry::default();
        let dates = vec![("the certificate of CN=node".to_owned(), Some(35 * DAY))];
        let mut told = Vec::new();
        for hour in 0..40 * 24 {
            told.extend(expiry.due(&dates, hour * 3600).into_iter().map(|text| (hour, text)));
        }
        let texts: Vec<_> =
            told.iter().map(|(hour, text)| (*hour, text.rsplit("node ").next().unwrap())).collect();
        // An hour past the threshold there are as many whole days less one.
        let expected = [
            (5 * 24 + 1, "expires in 29 days"),
            (28 * 24 + 1, "expires in 6 days"),
            (34 * 24 + 1, "expires within a day"),
            (35 * 24 + 1, "has expired"),
        ];
        assert_eq!(texts, expected);
        let renewed = vec![("the certificate of CN=node".to_owned(), Some(45 * DAY))];
        assert_eq!(expiry.due(&renewed, 40 * DAY).len(), 1, "5 days are left of the new one");
    }

    /// Goal: a start with little time left warns once, not once a threshold; a revocation list that
    /// does not say when it ends counts as expired. Method: the first look.
    #[test]
    fn the_first_look_warns_of_the_nearest_threshold_only() {
        let mut expiry = Expiry::default();
        let dates =
            vec![("a".to_owned(), Some(3 * DAY)), ("b".to_owned(), None), ("c".to_owned(), Some(99 * DAY))];
        assert_eq!(expiry.due(&dates, 0), ["a expires in 3 days", "b has expired"]);
        assert!(expiry.due(&dates, 1).is_empty());
    }

    /// Goal: a change is taken once, and only when it has lasted a look. Method: a file written anew,
    /// given another mode and removed, looked at on a fake clock.
    #[test]
    fn a_changed_file_is_taken_once_it_has_stayed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.pem");
        std::fs::write(&file, "one").unwrap();
        let mut config = Config::default();
        config.tls.certificate = file.clone();
        let mut now = clock::now();
        let mut certificates = Certificates::new(now, None);
        let mut look = |certificates: &mut Certificates| {
            now += LOOK_INTERVAL;
            certificates.have_changed(now, &config)
        };
        assert!(!look(&mut certificates) && !look(&mut certificates), "nothing has changed");
        std::fs::write(&file, "the second").unwrap();
        assert!(!look(&mut certificates), "it may still be changing");
        assert!(look(&mut certificates));
        assert!(!look(&mut certificates), "once");
        // A key that was written for somebody else and is ours to read only now.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(!look(&mut certificates));
        assert!(look(&mut certificates), "who may read it has changed");
        std::fs::remove_file(&file).unwrap();
        assert!(!look(&mut certificates));
        assert!(look(&mut certificates), "a file that is gone has changed too");
    }
}
