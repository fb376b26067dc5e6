//! The names in a certificate.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::sip::flow::PeerNames;

/// Names one certificate may bring; a longer list is cut, so that no peer makes a long search.
const NAMES_MAX: usize = 64;

/// The names of an end-entity certificate; `None` when it cannot be read.
pub(in crate::signal) fn of_der(der: &CertificateDer<'_>) -> Option<PeerNames> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| of_certificate(&certificate))
}

/// SAN dNSName and iPAddress; the common name only where there are none (RFC 6125 §6.4.4).
pub(super) fn of_certificate(certificate: &X509Certificate<'_>) -> PeerNames {
    let mut names = PeerNames::default();
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let general = alternative.iter().flat_map(|extension| &extension.value.general_names);
    for name in general.take(NAMES_MAX) {
        match name {
            GeneralName::DNSName(name) => names.dns_names.push(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => names.ip_addresses.extend(ip_address(bytes)),
            // Other forms name no SIP host.
            _ => {}
        }
    }
    if names.dns_names.is_empty() && names.ip_addresses.is_empty() {
        let common_name = certificate.subject().iter_common_name().last();
        names.common_name = common_name.and_then(|cn| cn.as_str().ok()).map(str::to_ascii_lowercase);
    }
    names
}

/// RFC 5280 §4.2.1.6: four or sixteen octets in network order.
fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
