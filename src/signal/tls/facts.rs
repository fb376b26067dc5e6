//! What a node's certificate files say about themselves, for status and expiry warnings.

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Serialize;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::names;
use crate::sip::flow::PeerNames;

/// What a loaded [`super::TlsSetup`] consists of. Times are in **seconds since 1970**.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TlsFacts {
    /// The certificate's subject, as RFC 4514 writes it.
    pub subject: String,
    /// Whom the certificate names.
    pub names: PeerNames,
    /// The certificate is valid from here.
    pub not_before_unix_s: i64,
    /// The certificate is valid to here.
    pub not_after_unix_s: i64,
    /// SHA-256 of the certificate's DER, in lower-case hex without separators.
    pub fingerprint_sha256: String,
    /// The authorities peers may be certified by.
    pub authorities: Vec<CaFacts>,
    /// The revocation lists.
    pub crls: Vec<CrlFacts>,
    /// What is wrong already but does not keep the setup from being loaded.
    pub warnings: Vec<String>,
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaFacts {
    /// Its subject.
    pub subject: String,
    /// Valid to here, in seconds since 1970.
    pub not_after_unix_s: i64,
}

/// One certificate revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CrlFacts {
    /// Who signed it.
    pub issuer: String,
    /// When the next one must be there, in seconds since 1970; from then on every peer is refused.
    /// `None`: the list does not say (RFC 5280 §5.1.2.5 forbids that), and is taken as expired.
    pub next_update_unix_s: Option<i64>,
    /// Certificates it names.
    pub revoked: usize,
}

impl TlsFacts {
    /// The earliest end among the authorities, in seconds since 1970.
    pub fn ca_not_after_unix_s(&self) -> Option<i64> {
        self.authorities.iter().map(|authority| authority.not_after_unix_s).min()
    }

    /// The earliest next update among the revocation lists, in seconds since 1970.
    pub fn crl_next_update_unix_s(&self) -> Option<i64> {
        self.crls.iter().filter_map(|crl| crl.next_update_unix_s).min()
    }

    /// Reads the files' contents; `Err` is the name of the first part that is no X.509.
    pub(super) fn read(
        certificate: &CertificateDer<'_>,
        authorities: &[CertificateDer<'_>],
        crls: &[CertificateRevocationListDer<'_>],
        now_unix_s: i64,
    ) -> Result<Self, Unreadable> {
        let (_, own) = X509Certificate::from_der(certificate).map_err(|_| Unreadable::Certificate)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let mut facts = Self {
            subject: own.subject().to_string(),
            names: names::of_certificate(&own),
            not_before_unix_s: own.validity().not_before.timestamp(),
            not_after_unix_s: own.validity().not_after.timestamp(),
            fingerprint_sha256: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            ..Self::default()
        };
        for der in authorities {
            let (_, ca) = X509Certificate::from_der(der).map_err(|_| Unreadable::Authority)?;
            let not_after_unix_s = ca.validity().not_after.timestamp();
            facts.authorities.push(CaFacts { subject: ca.subject().to_string(), not_after_unix_s });
        }
        for der in crls {
            let (_, crl) = CertificateRevocationList::from_der(der).map_err(|_| Unreadable::Crl)?;
            facts.crls.push(CrlFacts {
                issuer: crl.issuer().to_string(),
                next_update_unix_s: crl.next_update().map(|at| at.timestamp()),
                revoked: crl.iter_revoked_certificates().count(),
            });
        }
        facts.warnings = facts.warn(now_unix_s);
        Ok(facts)
    }

    fn warn(&self, now_unix_s: i64) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.not_before_unix_s > now_unix_s {
            warnings.push(format!("the certificate of {} is not valid yet", self.subject));
        }
        if self.not_after_unix_s < now_unix_s {
            warnings.push(format!("the certificate of {} has expired", self.subject));
        }
        for authority in &self.authorities {
            if authority.not_after_unix_s < now_unix_s {
                warnings.push(format!("the CA certificate of {} has expired", authority.subject));
            }
            if !self.crls.is_empty() && !self.crls.iter().any(|crl| crl.issuer == authority.subject) {
                warnings.push(format!(
                    "there is no revocation list of {}: peers it certified are refused",
                    authority.subject
                ));
            }
        }
        for crl in &self.crls {
            if crl.next_update_unix_s.is_none_or(|at| at < now_unix_s) {
                warnings
                    .push(format!("the revocation list of {} has expired: peers are refused", crl.issuer));
            }
        }
        warnings
    }
}

/// Which file is no X.509.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    Certificate,
    Authority,
    Crl,
}
