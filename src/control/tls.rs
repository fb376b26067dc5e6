//! TLS files as the configuration names them: loading, what is wrong with which key, and dates.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::protocol::{CertificateDate, CertificateStatus};
use crate::base::config::{Config, PeerCertificate, StartupMode};
use crate::signal::{self, TlsError, TlsFacts, TlsFiles, TlsSetup};

/// Seconds in a day.
const DAY_S: i64 = 86_400;

/// A file that keeps TLS from being set up, with the key that names it.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {error}")]
pub struct TlsProblem {
    /// `tls.certificate`, say.
    pub key: &'static str,
    /// What is wrong with the file.
    pub error: TlsError,
}

/// The files `config` names; `None`: TLS is off.
pub fn files(config: &Config) -> Option<TlsFiles> {
    let tls = &config.tls;
    (!tls.certificate.as_os_str().is_empty()).then(|| TlsFiles {
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        // Where peers need no certificate there may be no authorities; the servers we call, which are
        // our own next hops, are then believed by our own certificate.
        ca: if tls.ca.as_os_str().is_empty() { tls.certificate.clone() } else { tls.ca.clone() },
        crl: (!tls.crl.as_os_str().is_empty()).then(|| tls.crl.clone()),
        peer_certificate: match tls.peer_certificate {
            PeerCertificate::Required => signal::PeerCertificate::Required,
            PeerCertificate::None => signal::PeerCertificate::None,
        },
    })
}

/// Why a configuration that leaves room for TLS has none.
pub fn why_off(config: &Config) -> Option<&'static str> {
    let modes = [config.router.startup_mode, config.service.startup_mode, config.worker.startup_mode];
    let is_off = files(config).is_none() && modes.contains(&StartupMode::Dual);
    is_off.then_some("tls.certificate is not set")
}

/// The keys that name files, each with its file; those that are set.
pub fn keys(config: &Config) -> Vec<(&'static str, &Path)> {
    let tls = &config.tls;
    let all = [
        ("tls.certificate", tls.certificate.as_path()),
        ("tls.key", &tls.key),
        ("tls.ca", &tls.ca),
        ("tls.crl", &tls.crl),
    ];
    all.into_iter().filter(|(_, file)| !file.as_os_str().is_empty()).collect()
}

/// Loads what `config` names; `None`: TLS is off.
///
/// # Errors
/// The first file that is missing or unfit, with the key that names it.
pub fn load(config: &Config, now: SystemTime) -> Result<Option<Arc<TlsSetup>>, TlsProblem> {
    let Some(files) = files(config) else { return Ok(None) };
    match TlsSetup::load(&files, now) {
        Ok(setup) => Ok(Some(Arc::new(setup))),
        Err(error) => Err(TlsProblem { key: key_of(config, &error), error }),
    }
}

fn key_of(config: &Config, error: &TlsError) -> &'static str {
    let file = match error {
        TlsError::Read { file, .. }
        | TlsError::Pem { file, .. }
        | TlsError::Empty { file, .. }
        | TlsError::Unusable { file, .. } => file,
        TlsError::KeyMismatch { key, .. } => key,
        TlsError::Library(_) => return "tls.certificate",
    };
    keys(config).into_iter().find(|(_, known)| known == file).map_or("tls.ca", |(key, _)| key)
}

/// What `voxring status` tells of a loaded setup.
pub fn status(facts: &TlsFacts, now: SystemTime) -> CertificateStatus {
    let now_s = unix_s(now);
    let addresses = facts.names.ip_addresses.iter().map(ToString::to_string);
    let names = facts.names.dns_names.iter().cloned().chain(addresses).chain(facts.names.common_name.clone());
    let ca = facts.authorities.iter().map(|ca| date(&ca.subject, Some(ca.not_after_unix_s), now_s));
    let crls = facts.crls.iter().map(|crl| date(&crl.issuer, crl.next_update_unix_s, now_s));
    CertificateStatus {
        names: names.collect(),
        certificate: date(&facts.subject, Some(facts.not_after_unix_s), now_s),
        fingerprint_sha256: facts.fingerprint_sha256.clone(),
        authorities: ca.collect(),
        revocation_lists: crls.collect(),
    }
}

/// Seconds since 1970.
pub fn unix_s(at: SystemTime) -> i64 {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Whole days until `at_unix_s`, rounded down: nought on the last day, negative afterwards.
pub fn days_left(at_unix_s: i64, now_unix_s: i64) -> i64 {
    at_unix_s.saturating_sub(now_unix_s).div_euclid(DAY_S)
}

fn date(subject: &str, at_unix_s: Option<i64>, now_unix_s: i64) -> CertificateDate {
    CertificateDate {
        subject: subject.to_owned(),
        until: at_unix_s.map(rfc3339),
        days_left: at_unix_s.map(|at| days_left(at, now_unix_s)),
    }
}

/// `2027-01-31T12:00:00Z`.
fn rfc3339(unix_s: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix_s).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_s} s"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::tls::{CaFacts, CrlFacts};

    /// Goal: a file that is missing is told with the key that names it. Method: four files that are
    /// not there; the first one read is the certificate.
    #[test]
    fn a_missing_file_is_told_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        assert!(load(&config, SystemTime::UNIX_EPOCH).unwrap().is_none(), "TLS is off");
        assert_eq!(why_off(&config), Some("tls.certificate is not set"));
        config.tls.certificate = folder.path().join("server.pem");
        config.tls.key = folder.path().join("server.key");
        config.tls.ca = folder.path().join("ca.pem");
        let error = load(&config, SystemTime::UNIX_EPOCH).unwrap_err().to_string();
        assert!(error.starts_with("tls.certificate: ") && error.contains("server.pem"), "{error}");
        assert_eq!(keys(&config).len(), 3);
    }

    /// Goal: dates read as RFC 3339, days are rounded down. Method: 1000000000 s is
    /// 2001-09-09T01:46:40Z; one second less than two days, and one second after.
    #[test]
    fn dates_are_rfc_3339_and_days_are_whole() {
        let facts = TlsFacts {
            subject: "CN=node".into(),
            not_after_unix_s: 1_000_000_000,
            authorities: vec![CaFacts { subject: "CN=ca".into(), not_after_unix_s: 999_827_199 + 172_800 }],
            crls: vec![CrlFacts { issuer: "CN=ca".into(), next_update_unix_s: None, revoked: 2 }],
            ..TlsFacts::default()
        };
        let now = UNIX_EPOCH + std::time::Duration::from_secs(999_827_201);
        let status = status(&facts, now);
        assert_eq!(status.certificate.until.as_deref(), Some("2001-09-09T01:46:40Z"));
        assert_eq!(status.certificate.days_left, Some(1));
        assert_eq!(status.authorities[0].days_left, Some(1));
        assert_eq!(status.revocation_lists[0].days_left, None);
        assert_eq!(days_left(10, 11), -1, "expired a second ago");
    }
}
