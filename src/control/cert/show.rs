//! Reading PEM files: what is in a certificate, what in a revocation list.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::num_bigint::BigUint;
use x509_parser::pem::Pem;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::CertError;

/// Largest file that is read, in bytes: a CRL of 10,000 entries is a tenth of it.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What a file holds, in its order.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    certificates: Vec<Certificate>,
    revocation_lists: Vec<List>,
}

/// A certificate for people.
#[derive(Debug, Serialize)]
struct Certificate {
    subject: String,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    issuer: String,
    is_ca: bool,
    not_before: String,
    not_after: String,
    serial: String,
    sha256: String,
}

/// A revocation list for people.
#[derive(Debug, Serialize)]
struct List {
    issuer: String,
    number: Option<String>,
    this_update: String,
    next_update: Option<String>,
    revoked: Vec<String>,
}

/// A certificate for revoking it.
pub(super) struct OneCertificate {
    pub(super) serial: BigUint,
}

/// A revocation list for going on with it.
pub(super) struct OneList {
    pub(super) number: BigUint,
    pub(super) entries: Vec<(BigUint, OffsetDateTime)>,
}

impl Shown {
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for certificate in &self.certificates {
            let kind = if certificate.is_ca { "CA certificate" } else { "certificate" };
            let addresses: Vec<_> = certificate.addresses.iter().map(ToString::to_string).collect();
            text += &format!("{kind} {}\n", certificate.subject);
            for (label, value) in [
                ("names", certificate.names.join(", ")),
                ("addresses", addresses.join(", ")),
                ("issuer", certificate.issuer.clone()),
                ("valid", format!("{} to {}", certificate.not_before, certificate.not_after)),
                ("serial", certificate.serial.clone()),
                ("sha256", certificate.sha256.clone()),
            ] {
                if !value.is_empty() {
                    text += &format!("  {label:<10} {value}\n");
                }
            }
        }
        for list in &self.revocation_lists {
            text += &format!("revocation list of {}\n", list.issuer);
            let until = list.next_update.as_deref().unwrap_or("no end");
            text += &format!("  {:<10} {}\n", "number", list.number.as_deref().unwrap_or("none"));
            text += &format!("  {:<10} {} to {until}\n", "valid", list.this_update);
            text += &format!("  {:<10} {}\n", "revoked", list.revoked.len());
            list.revoked.iter().for_each(|serial| text += &format!("             {serial}\n"));
        }
        text
    }
}

/// Reads a PEM file of certificates and revocation lists; keys in it are passed over.
pub(super) fn read(file: &Path) -> Result<Shown, CertError> {
    let mut shown = Shown { certificates: Vec::new(), revocation_lists: Vec::new() };
    for block in blocks(file)? {
        match block.label.as_str() {
            "CERTIFICATE" => {
                let parsed = block.parse_x509().map_err(|error| content(file, error.to_string()))?;
                shown.certificates.push(certificate(&parsed, &block.contents));
            }
            "X509 CRL" => shown.revocation_lists.push(list(&parse_list(file, &block)?)),
            _ => {}
        }
    }
    if shown.certificates.is_empty() && shown.revocation_lists.is_empty() {
        return Err(content(file, "holds no certificate and no CRL in PEM"));
    }
    Ok(shown)
}

/// The first certificate of a file.
pub(super) fn one_certificate(file: &Path) -> Result<OneCertificate, CertError> {
    let blocks = blocks(file)?;
    let block = blocks.iter().find(|block| block.label == "CERTIFICATE");
    let block = block.ok_or_else(|| content(file, "holds no certificate in PEM"))?;
    let parsed = block.parse_x509().map_err(|error| content(file, error.to_string()))?;
    Ok(OneCertificate { serial: parsed.tbs_certificate.serial.clone() })
}

/// The first revocation list of a file.
pub(super) fn one_list(file: &Path) -> Result<OneList, CertError> {
    let blocks = blocks(file)?;
    let block = blocks.iter().find(|block| block.label == "X509 CRL");
    let parsed = parse_list(file, block.ok_or_else(|| content(file, "holds no CRL in PEM"))?)?;
    let entries = parsed
        .iter_revoked_certificates()
        .map(|entry| (entry.serial().clone(), entry.revocation_date.to_datetime()))
        .collect();
    Ok(OneList { number: parsed.crl_number().cloned().unwrap_or_default(), entries })
}

/// A file as text.
pub(super) fn text(file: &Path) -> Result<String, CertError> {
    let failed = |error| CertError::File { file: file.into(), error };
    if fs::metadata(file).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(content(file, "is larger than 4 MiB"));
    }
    fs::read_to_string(file).map_err(failed)
}

/// `1a:2b:…`.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn blocks(file: &Path) -> Result<Vec<Pem>, CertError> {
    let text = text(file)?;
    let blocks = Pem::iter_from_buffer(text.as_bytes()).collect::<Result<_, _>>();
    blocks.map_err(|error| content(file, format!("is no PEM: {error}")))
}

fn parse_list<'b>(file: &Path, block: &'b Pem) -> Result<CertificateRevocationList<'b>, CertError> {
    match x509_parser::parse_x509_crl(&block.contents) {
        Ok((_, list)) => Ok(list),
        Err(error) => Err(content(file, error.to_string())),
    }
}

fn content(file: &Path, why: impl Into<String>) -> CertError {
    CertError::Content { file: file.into(), why: why.into() }
}

fn certificate(parsed: &X509Certificate<'_>, der: &[u8]) -> Certificate {
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in &extension.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push((*name).to_owned());
            } else if let GeneralName::IPAddress(bytes) = name {
                addresses.extend(address(bytes));
            } else if let GeneralName::URI(uri) = name {
                names.push((*uri).to_owned());
            }
        }
    }
    Certificate {
        subject: parsed.subject().to_string(),
        names,
        addresses,
        issuer: parsed.issuer().to_string(),
        is_ca: parsed.is_ca(),
        not_before: when(parsed.validity().not_before),
        not_after: when(parsed.validity().not_after),
        serial: hex(&parsed.tbs_certificate.serial.to_bytes_be()),
        sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref()),
    }
}

fn list(parsed: &CertificateRevocationList<'_>) -> List {
    List {
        issuer: parsed.issuer().to_string(),
        number: parsed.crl_number().map(ToString::to_string),
        this_update: when(parsed.last_update()),
        next_update: parsed.next_update().map(when),
        revoked: parsed.iter_revoked_certificates().map(|entry| hex(&entry.serial().to_bytes_be())).collect(),
    }
}

/// Four bytes or sixteen (RFC 5280 §4.2.1.6).
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn when(time: ASN1Time) -> String {
    time.to_datetime().format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}
