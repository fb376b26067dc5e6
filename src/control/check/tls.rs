//! TLS files, and listeners that strangers reach: what `check` says of the secure edge.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use super::report::Report;
use crate::base::config::{Config, GatewayAddress, Source, StartupMode};
use crate::control::listeners::{ListenRole, port_of};
use crate::control::protocol::CertificateDate;
use crate::control::tls;
use crate::sip::flow::Transport;

/// Fewer days than this are worth a warning.
const DAYS_MIN: i64 = 30;

/// Loads the files and looks at what listens to whom.
pub(super) fn examine(report: &mut Report, config: &Config, source: &Source, now: SystemTime) {
    files(report, config, source, now);
    key_file(report, config, source);
    without_certificate(report, config, source);
    next_hops(report, config, source);
    gateways(report, config, source);
}

fn files(report: &mut Report, config: &Config, source: &Source, now: SystemTime) {
    let setup = match tls::load(config, now) {
        Ok(Some(setup)) => setup,
        Ok(None) => return report.pass("TLS is off: tls.certificate is not set"),
        Err(problem) => {
            let fix = format!("name the right file in {}, or renew it", problem.key);
            return report.error(source.locate(problem.key), problem.error.to_string(), fix);
        }
    };
    let facts = setup.facts();
    let status = tls::status(facts, now);
    report.pass(format!("TLS: key and certificate of {} fit", status.names.join(", ")));
    for warning in facts.warnings.iter().filter(|warning| warning.starts_with("there is no revocation")) {
        report.warning(source.locate("tls.crl"), warning.clone(), "add its list to the file");
    }
    if facts.not_before_unix_s > tls::unix_s(now) {
        let what = format!("the certificate of {} is not valid yet", facts.subject);
        report.error(source.locate("tls.certificate"), what, "set the clock, or wait");
    }
    date(report, source, "tls.certificate", "the certificate of", &status.certificate);
    for ca in &status.authorities {
        date(report, source, "tls.ca", "the CA certificate of", ca);
    }
    for crl in &status.revocation_lists {
        // Lists live a week or so: only the end itself matters.
        if crl.days_left.is_none_or(|days| days < 0) {
            date(report, source, "tls.crl", "the revocation list of", crl);
        }
    }
    let fqdn = &config.node.fqdn;
    if !fqdn.is_empty() && !facts.names.dns_names.iter().any(|name| name.eq_ignore_ascii_case(fqdn)) {
        report.warning(
            source.locate("node.fqdn"),
            format!("{fqdn} is not among the certificate's names: {}", status.names.join(", ")),
            "get a certificate that names it; peers that check names refuse this one",
        );
    }
}

fn date(report: &mut Report, source: &Source, key: &str, what: &str, date: &CertificateDate) {
    let until = date.until.as_deref().unwrap_or("an end it does not tell");
    let text = |how: String| format!("{what} {} {how} ({until})", date.subject);
    match date.days_left {
        Some(days) if days >= DAYS_MIN => {}
        Some(days) if days >= 0 => {
            report.warning(source.locate(key), text(format!("expires in {days} days")), "renew it");
        }
        Some(_) | None => {
            let fix = "renew it; until then TLS connections fail";
            report.error(source.locate(key), text("has expired".to_owned()), fix);
        }
    }
}

/// A private key others can read is none.
fn key_file(report: &mut Report, config: &Config, source: &Source) {
    let file = &config.tls.key;
    let Ok(found) = std::fs::metadata(file) else { return };
    let mode = found.permissions().mode();
    if mode & 0o007 != 0 {
        report.warning(
            source.locate("tls.key"),
            format!("{} may be used by every user of this machine (mode {:o})", file.display(), mode & 0o777),
            format!("chmod o= {}", file.display()),
        );
    }
}

fn roles(config: &Config) -> [(ListenRole, &'static str, StartupMode, Vec<IpAddr>); 3] {
    let (router, service, worker) = (&config.router, &config.service, &config.worker);
    [
        (ListenRole::Router, "router", router.startup_mode, router.address.listening(router.address_family)),
        (
            ListenRole::Service,
            "service",
            service.startup_mode,
            service.address.listening(service.address_family),
        ),
        (
            ListenRole::Worker(crate::control::cli::Slot::A),
            "worker",
            worker.startup_mode,
            worker.address.listening(worker.address_family),
        ),
    ]
}

/// `dual` is TCP alone where there is no certificate; that should be meant.
fn without_certificate(report: &mut Report, config: &Config, source: &Source) {
    if !config.tls.certificate.as_os_str().is_empty() {
        return;
    }
    for (_, table, mode, addresses) in roles(config) {
        let open = addresses.iter().find(|address| !address.is_loopback());
        if let (StartupMode::Dual, Some(open)) = (mode, open) {
            report.warning(
                source.locate(&format!("{table}.startup_mode")),
                format!("{table} listens on {open} without TLS: \"dual\" has no certificate to use"),
                format!("set tls.certificate, tls.key and tls.ca; or {table}.startup_mode = \"tcp\" if that is meant"),
            );
        }
    }
}

/// A hop that takes TLS before one that does not ends every call over TLS with 503.
fn next_hops(report: &mut Report, config: &Config, source: &Source) {
    let [router, service, worker] = roles(config);
    for (one, next) in [(&router, &service), (&service, &worker)] {
        let has_tls = |role| port_of(config, role, Transport::Tls).is_some();
        if has_tls(one.0) && !has_tls(next.0) {
            report.warning(
                source.locate(&format!("{}.startup_mode", next.1)),
                format!("{} takes TLS and {} does not: calls over TLS are refused with 503", one.1, next.1),
                format!("{}.startup_mode = \"dual\" or \"tls\"", next.1),
            );
        }
    }
}

/// Who may call, where strangers can reach us; and names that must be found.
fn gateways(report: &mut Report, config: &Config, source: &Source) {
    let is_open = roles(config).iter().any(|(.., addresses)| addresses.iter().any(|a| !a.is_loopback()));
    if config.gateway.is_empty() && is_open {
        report.warning(
            source.locate("gateway"),
            "there is no gateway: only loopback callers are let in",
            "add a [[gateway]] with the addresses that calls come from",
        );
    }
    for (index, gateway) in config.gateway.iter().enumerate() {
        for address in &gateway.address.0 {
            let GatewayAddress::Name(name) = address else { continue };
            let found = (name.as_str(), 0).to_socket_addrs();
            if found.map_or(true, |mut found| found.next().is_none()) {
                report.warning(
                    source.locate(&format!("gateway[{index}].address")),
                    format!("{name} has no address now: calls from gateway {} are not known", gateway.name),
                    "correct the name, or the resolver",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    /// 2026-06-01.
    const NOW_S: i64 = 1_780_272_000;
    const DAY_S: i64 = 86_400;

    fn problems(config: &Config) -> Vec<String> {
        let mut report = Report::default();
        let now = UNIX_EPOCH + Duration::from_secs(NOW_S.unsigned_abs());
        examine(&mut report, config, &Source::default(), now);
        report.problems.into_iter().map(|p| format!("{:?} {}: {}", p.level, p.place, p.what)).collect()
    }

    /// Writes a CA and a certificate for `um.example.com` that ends in `days`, and names them.
    fn with_files(folder: &Path, days: i64) -> Config {
        let at = |days: i64| OffsetDateTime::from_unix_timestamp(NOW_S + days * DAY_S).unwrap();
        let params = |names: &[&str], end: i64| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            (params.not_before, params.not_after) = (at(-400), at(end));
            params
        };
        let mut ca = params(&[], 400);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let own = params(&["um.example.com"], days).signed_by(&key, &ca).unwrap();
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut config = Config::default();
        config.tls.certificate = file("server.pem", own.pem());
        config.tls.key = file("server.key", key.serialize_pem());
        config.tls.ca = file("ca.pem", ca.pem());
        std::fs::set_permissions(&config.tls.key, std::fs::Permissions::from_mode(0o600)).unwrap();
        config
    }

    /// Goal: each file's fault is named with its key: expiry, a key of somebody else, a key others can
    /// read, a file that is not there, a name the certificate has not. Method: one fault at a time.
    #[test]
    fn each_fault_of_the_files_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = with_files(folder.path(), 100);
        assert_eq!(problems(&good), Vec::<String>::new());

        let mut named = good.clone();
        named.node.fqdn = "other.example.com".into();
        assert!(problems(&named)[0].contains("node.fqdn (default): other.example.com is not among"));

        let other = tempfile::tempdir().unwrap();
        let mut mixed = good.clone();
        mixed.tls.key = with_files(other.path(), 100).tls.key;
        let found = problems(&mixed);
        assert!(
            found[0].starts_with("Error tls.key (default): ") && found[0].contains("is not the key of"),
            "{found:?}"
        );

        for (days, told) in
            [(20, "Warning tls.certificate (default): the certificate of "), (-1, "Error tls.certificate")]
        {
            let ends = tempfile::tempdir().unwrap();
            let found = problems(&with_files(ends.path(), days));
            assert!(found[0].starts_with(told) && found[0].contains("expire"), "{found:?}");
        }

        std::fs::set_permissions(&good.tls.key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(problems(&good)[0].contains("may be used by every user of this machine (mode 644)"));
        std::fs::remove_file(&good.tls.ca).unwrap();
        assert!(problems(&good)[0].starts_with("Error tls.ca (default): "), "{:?}", problems(&good));
    }

    /// Goal: an open listener without TLS, without gateways, before a hop without TLS, and a gateway
    /// name nobody knows are warned of. Method: one at a time; ".invalid" never resolves (RFC 6761).
    #[test]
    fn an_open_edge_is_warned_of() {
        assert_eq!(problems(&Config::default()), Vec::<String>::new(), "loopback is nobody's business");
        let mut open = Config::default();
        open.router.address = "192.0.2.5".parse().unwrap();
        let found = problems(&open);
        assert!(found[0].contains("router listens on 192.0.2.5 without TLS"), "{found:?}");
        assert!(found[1].contains("only loopback callers are let in"), "{found:?}");

        let folder = tempfile::tempdir().unwrap();
        let mut mixed = with_files(folder.path(), 100);
        mixed.service.startup_mode = StartupMode::Tcp;
        assert!(
            problems(&mixed)[0].contains("router takes TLS and service does not"),
            "{:?}",
            problems(&mixed)
        );

        let text = "[[gateway]]\nname = \"gw\"\naddress = [\"gw.invalid\"]\n";
        let (named, _) = Config::parse(text, Path::new("a.toml")).unwrap();
        assert!(problems(&named)[0].contains("gw.invalid has no address now"), "{:?}", problems(&named));
    }
}
