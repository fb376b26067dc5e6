//! Why a TLS connection failed, in the words of the log and the counters.

use rustls::{AlertDescription, CertificateError, Error};

use crate::signal::counters::{Counter, Counters};

/// One class of failure; each has a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::signal) enum Failure {
    NoCertificate,
    UnknownCa,
    Expired,
    Revoked,
    BadCertificate,
    CrlExpired,
    Timeout,
    Other,
}

impl Failure {
    pub(in crate::signal) fn of(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::InvalidCertRevocationList(_) => Self::CrlExpired,
            // What the other side says of ours, where it says it.
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::NoCertificate,
            Error::AlertReceived(AlertDescription::UnknownCA) => Self::UnknownCa,
            Error::AlertReceived(AlertDescription::CertificateExpired) => Self::Expired,
            Error::AlertReceived(AlertDescription::CertificateRevoked) => Self::Revoked,
            Error::AlertReceived(AlertDescription::BadCertificate) => Self::BadCertificate,
            // The rest is no certificate's fault; the log line has the words.
            _ => Self::Other,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Expired,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownCa,
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::CrlExpired,
            // A signature, name, purpose or encoding that does not fit; the log line says which.
            _ => Self::BadCertificate,
        }
    }

    /// The rule in the log line.
    pub(in crate::signal) fn rule(self) -> &'static str {
        match self {
            Self::NoCertificate => "tls_no_certificate",
            Self::UnknownCa => "tls_unknown_ca",
            Self::Expired => "tls_expired",
            Self::Revoked => "tls_revoked",
            Self::BadCertificate => "tls_bad_certificate",
            Self::CrlExpired => "tls_crl_expired",
            Self::Timeout => "tls_timeout",
            Self::Other => "tls_other",
        }
    }

    pub(in crate::signal) fn counter(self, counters: &Counters) -> &Counter {
        match self {
            Self::NoCertificate => &counters.tls_no_certificate,
            Self::UnknownCa => &counters.tls_unknown_ca,
            Self::Expired => &counters.tls_expired,
            Self::Revoked => &counters.tls_revoked,
            Self::BadCertificate => &counters.tls_bad_certificate,
            Self::CrlExpired => &counters.tls_crl_expired,
            Self::Timeout => &counters.tls_timeout,
            Self::Other => &counters.tls_other,
        }
    }
}
