//! `voxring cert`: certificates for development and tests, without an authority of one's own.
//!
//! A folder holds it all: `ca.pem` and `ca.key` of an authority that exists nowhere else, its
//! revocation list `crl.pem`, `server.pem` and `server.key` of the node, `NAME.pem` and `NAME.key` of
//! each client. Keys are P-256 and readable by their owner only. Profile: RFC 5280, and RFC 5922 §7.1
//! for the names of SIP hosts. Who calls also answers calls, so every leaf is for both sides of TLS.

mod show;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevocationReason, RevokedCertParams, SerialNumber,
};
use serde::Serialize;
use time::OffsetDateTime;
use x509_parser::num_bigint::BigUint;

use super::cli::Output;
use super::print;
use crate::base::clock;
use crate::base::config::GatewayAddress;

/// How far a certificate's life begins in the past, for peers whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(300);
/// Only the owner reads keys.
const KEY_MODE: u32 = 0o600;
/// Everybody may read the rest.
const PUBLIC_MODE: u32 = 0o644;
/// Names of files that no client may have.
const RESERVED_NAMES: [&str; 3] = ["ca", "crl", "server"];

/// What can be done with certificates.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Make a development CA, the node's certificate, clients' certificates and an empty CRL
    #[command(after_help = "\
Keys are P-256, readable by their owner only. Prints the lines for the configuration. Not for
production: whoever has ca.key can be anybody.

Example:
  voxring cert dev --out certs --name um.example.com --ip 192.0.2.10 --client sbc.example.com")]
    Dev(DevArgs),
    /// Revoke a certificate of a folder that `cert dev` made, and sign the CRL anew
    #[command(after_help = "\
Example:
  voxring cert revoke --out certs sbc.example.com && systemctl reload voxring")]
    Revoke(RevokeArgs),
    /// What is in a PEM file: names, issuer, validity, serial number, fingerprint; of a CRL the revoked
    #[command(after_help = "\
Example:
  voxring cert show certs/crl.pem")]
    Show {
        /// A file with certificates or CRLs, PEM
        file: PathBuf,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// Options of `voxring cert dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Folder for everything; made when missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// DNS name of the node, repeatable. Default: localhost and this machine's name
    #[arg(long = "name", value_name = "DNS", value_parser = dns_name)]
    pub names: Vec<String>,
    /// Address of the node, repeatable. Default: 127.0.0.1 and ::1
    #[arg(long = "ip", value_name = "ADDR")]
    pub ips: Vec<IpAddr>,
    /// DNS name of a client, repeatable. Default: gateway.localhost
    #[arg(long = "client", value_name = "NAME", value_parser = dns_name)]
    pub clients: Vec<String>,
    /// Days until certificates and CRL expire
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub days: u16,
    /// Replace files that exist, the CA among them
    #[arg(long)]
    pub force: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `voxring cert revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Folder that `cert dev` made
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The client's name, or "server"
    #[arg(value_parser = dns_name)]
    pub client: String,
    /// Days until the new CRL expires; an expired one refuses everybody
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub days: u16,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file exists.
    #[error("{} exists; --force replaces everything in the folder, the CA too", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {error}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {why}", .file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A client's name is that of another file.
    #[error("--client {0}: the folder has files of that name; give another one")]
    Reserved(String),
    /// A key or certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// `voxring cert …`.
///
/// # Errors
/// Files that exist, cannot be read or written, or are something else; no output.
pub fn run(command: &CertCommand) -> Result<(), CertError> {
    match command {
        CertCommand::Dev(args) => {
            let made = make(args)?;
            emit(args.output, &made, || made.render())
        }
        CertCommand::Revoke(args) => {
            let revoked = revoke(args)?;
            emit(args.output, &revoked, || revoked.render())
        }
        CertCommand::Show { file, output } => {
            let shown = show::read(file)?;
            emit(*output, &shown, || shown.render())
        }
    }
}

/// What `cert dev` made.
#[derive(Debug, Serialize)]
struct Made {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    ca_key: PathBuf,
    crl: PathBuf,
    names: Vec<String>,
    clients: Vec<MadeClient>,
    days: u16,
}

#[derive(Debug, Serialize)]
struct MadeClient {
    name: String,
    certificate: PathBuf,
    key: PathBuf,
}

impl Made {
    fn render(&self) -> String {
        let quoted = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned()).to_string();
        let mut text = format!(
            "made for {} days, the node as {}\n\nfor the node's configuration:\n\n[tls]\n\
             certificate = {}\nkey = {}\nca = {}\ncrl = {}\n",
            self.days,
            self.names.join(", "),
            quoted(&self.certificate),
            quoted(&self.key),
            quoted(&self.ca),
            quoted(&self.crl),
        );
        for MadeClient { name, certificate, key } in &self.clients {
            text += &format!(
                "\nfor the gateway or phone {name} ([[gateway]] certificate_name = \"{name}\"):\n  \
                 certificate {}\n  key         {}\n  trust       {}\n",
                certificate.display(),
                key.display(),
                self.ca.display(),
            );
        }
        text + &format!("\nkeep {} to yourself: it makes anybody\n", self.ca_key.display())
    }
}

/// What `cert revoke` did.
#[derive(Debug, Serialize)]
struct Revoked {
    client: String,
    serial: String,
    /// It was revoked before.
    already: bool,
    crl: PathBuf,
    crl_number: String,
    revoked: usize,
}

impl Revoked {
    fn render(&self) -> String {
        let Self { client, serial, already, crl, crl_number, revoked } = self;
        let done = if *already { "was revoked before" } else { "is revoked" };
        format!(
            "{client} (serial number {serial}) {done}\n{}: number {crl_number}, {revoked} revoked; a running \
             node takes it by itself within two seconds\n",
            crl.display()
        )
    }
}

fn make(args: &DevArgs) -> Result<Made, CertError> {
    let names = if args.names.is_empty() { own_names() } else { args.names.clone() };
    let ips = match args.ips.as_slice() {
        [] => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        ips => ips.to_vec(),
    };
    let clients: BTreeSet<String> = match args.clients.as_slice() {
        [] => ["gateway.localhost".to_owned()].into(),
        clients => clients.iter().cloned().collect(),
    };
    if let Some(name) = clients.iter().find(|name| RESERVED_NAMES.contains(&name.as_str())) {
        return Err(CertError::Reserved(name.clone()));
    }
    let folder =
        std::path::absolute(&args.out).map_err(|error| CertError::File { file: args.out.clone(), error })?;
    let file = |name: &str| folder.join(name);
    let life = Life::of_days(args.days);
    let authority = authority(life)?;
    let (key, params) = (KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?, authority);
    let ca_pem = params.self_signed(&key)?.pem();
    let ca_key_pem = key.serialize_pem();
    let issuer = Issuer::new(params, key);
    let mut files = vec![
        (file("ca.pem"), ca_pem, PUBLIC_MODE),
        (file("ca.key"), ca_key_pem, KEY_MODE),
        (file("crl.pem"), sign_list(&issuer, &BigUint::from(1u8), Vec::new(), life)?, PUBLIC_MODE),
    ];
    let alternative = names.iter().cloned().chain(ips.iter().map(ToString::to_string)).collect();
    leaf(&issuer, &folder, "server", alternative, life, &mut files)?;
    for client in &clients {
        leaf(&issuer, &folder, client, vec![client.clone()], life, &mut files)?;
    }
    write_all(&folder, &files, args.force)?;
    Ok(Made {
        certificate: file("server.pem"),
        key: file("server.key"),
        ca: file("ca.pem"),
        ca_key: file("ca.key"),
        crl: file("crl.pem"),
        names: names.into_iter().chain(ips.iter().map(ToString::to_string)).collect(),
        clients: clients
            .into_iter()
            .map(|name| MadeClient {
                certificate: file(&format!("{name}.pem")),
                key: file(&format!("{name}.key")),
                name,
            })
            .collect(),
        days: args.days,
    })
}

/// From when to when.
#[derive(Debug, Clone, Copy)]
struct Life {
    from: OffsetDateTime,
    until: OffsetDateTime,
}

impl Life {
    fn of_days(days: u16) -> Self {
        let now = OffsetDateTime::from(clock::calendar());
        Self { from: now - BACKDATED, until: now + time::Duration::days(days.into()) }
    }
}

fn params(common_name: &str, names: Vec<String>, life: Life) -> Result<CertificateParams, CertError> {
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    (params.not_before, params.not_after) = (life.from, life.until);
    Ok(params)
}

fn authority(life: Life) -> Result<CertificateParams, CertError> {
    // A name of its own, so that the authorities of two folders are not taken for one another.
    let made = life.from.unix_timestamp();
    let mut params = params(&format!("voxring development CA {made}"), Vec::new(), life)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A key and a certificate for both sides of TLS, as `STEM.pem` and `STEM.key`.
fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    folder: &Path,
    stem: &str,
    names: Vec<String>,
    life: Life,
    files: &mut Vec<(PathBuf, String, u32)>,
) -> Result<(), CertError> {
    let common_name = names.first().cloned().unwrap_or_else(|| stem.to_owned());
    let mut params = params(&common_name, names, life)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    files.push((folder.join(format!("{stem}.pem")), params.signed_by(&key, issuer)?.pem(), PUBLIC_MODE));
    files.push((folder.join(format!("{stem}.key")), key.serialize_pem(), KEY_MODE));
    Ok(())
}

/// A revocation list as PEM.
fn sign_list(
    issuer: &Issuer<'_, KeyPair>,
    number: &BigUint,
    revoked_certs: Vec<RevokedCertParams>,
    life: Life,
) -> Result<String, CertError> {
    let list = CertificateRevocationListParams {
        this_update: life.from,
        next_update: life.until,
        crl_number: SerialNumber::from(number.to_bytes_be()),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(issuer)?.pem()?)
}

fn revoke(args: &RevokeArgs) -> Result<Revoked, CertError> {
    let file = |name: &str| args.out.join(name);
    let certificate = show::one_certificate(&file(&format!("{}.pem", args.client)))?;
    let crl = file("crl.pem");
    let list = show::one_list(&crl)?;
    let ca_key = file("ca.key");
    let not_a_key = |_| CertError::Content { file: ca_key.clone(), why: "holds no private key".to_owned() };
    let key = KeyPair::from_pem(&show::text(&ca_key)?).map_err(not_a_key)?;
    let ca = file("ca.pem");
    let issuer = Issuer::from_ca_cert_pem(&show::text(&ca)?, key)?;
    let life = Life::of_days(args.days);
    let mut entries = list.entries;
    let serial = certificate.serial;
    let already = entries.iter().any(|(revoked, _)| *revoked == serial);
    if !already {
        entries.push((serial.clone(), OffsetDateTime::from(clock::calendar())));
    }
    let number = list.number + 1u8;
    let count = entries.len();
    let revoked = entries.into_iter().map(|(serial, revocation_time)| RevokedCertParams {
        serial_number: SerialNumber::from(serial.to_bytes_be()),
        revocation_time,
        reason_code: Some(RevocationReason::CessationOfOperation),
        invalidity_date: None,
    });
    let pem = sign_list(&issuer, &number, revoked.collect(), life)?;
    // A node may read it at any time: it is replaced whole.
    let part = file(&format!(".crl.{}.part", std::process::id()));
    write(&part, &pem, PUBLIC_MODE)?;
    fs::rename(&part, &crl).map_err(|error| CertError::File { file: crl.clone(), error })?;
    Ok(Revoked {
        client: args.client.clone(),
        serial: show::hex(&serial.to_bytes_be()),
        already,
        crl,
        crl_number: number.to_string(),
        revoked: count,
    })
}

/// Writes the files; none when one of them exists and `force` is off.
fn write_all(folder: &Path, files: &[(PathBuf, String, u32)], force: bool) -> Result<(), CertError> {
    let present = files.iter().find(|(file, _, _)| file.symlink_metadata().is_ok());
    if let (false, Some((file, _, _))) = (force, present) {
        return Err(CertError::Exists(file.clone()));
    }
    fs::create_dir_all(folder).map_err(|error| CertError::File { file: folder.into(), error })?;
    for (file, content, mode) in files {
        if force {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CertError::File { file: file.clone(), error });
                }
                Ok(()) | Err(_) => {}
            }
        }
        write(file, content, *mode)?;
    }
    Ok(())
}

/// Writes a file that does not exist, with its mode from the first byte on.
fn write(file: &Path, content: &str, mode: u32) -> Result<(), CertError> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file)
        .and_then(|mut open| open.write_all(content.as_bytes()).and_then(|()| open.sync_all()));
    written.map_err(|error| CertError::File { file: file.into(), error })
}

/// localhost, and this machine's name if it is one in DNS's sense.
fn own_names() -> Vec<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let own = dns_name(host.trim()).ok().filter(|name| name != "localhost");
    ["localhost".to_owned()].into_iter().chain(own).collect()
}

fn dns_name(text: &str) -> Result<String, &'static str> {
    match text.parse() {
        Ok(GatewayAddress::Name(name)) => Ok(name),
        Ok(GatewayAddress::Network(_)) | Err(_) => Err("no DNS name like gw.example.com"),
    }
}

fn emit<T: Serialize>(output: Output, value: &T, text: impl FnOnce() -> String) -> Result<(), CertError> {
    let text = if output.json {
        serde_json::to_string_pretty(value).expect("it is plain data") + "\n"
    } else {
        text()
    };
    print::emit(&text).map_err(CertError::Output)
}

#[cfg(test)]
mod tests;
