//! The command.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::process::{Command, ExitCode};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::compare::{Difference, Kind, compare};
use super::json;
use super::plan::{Choices, MediaFrom, plan};
use super::rules::Ruleset;
use crate::base::config::{Config, GatewayAddress, Network, Source};
use crate::control::cli::Output;
use crate::control::print;

/// Longest name of a table that nftables takes is 255; ours are short.
const TABLE_CHARS_MAX: usize = 64;

/// Options of `voxring firewall`.
#[derive(Debug, Args)]
pub struct FirewallArgs {
    /// Compare with the running ruleset instead of printing; needs root. Exit status 1: it differs
    #[arg(long)]
    pub check: bool,
    /// Name of the table
    #[arg(long, default_value = "voxring", value_parser = table_name, value_name = "NAME")]
    pub table: String,
    /// Who may send media: gateways, any, or networks (comma separated), for SBCs whose media comes
    /// from other addresses than their signalling
    #[arg(long, default_value = "gateways", value_delimiter = ',', value_name = "WHO")]
    pub media_from: Vec<String>,
    /// Networks that may reach the web services; none: this machine only
    #[arg(long, value_delimiter = ',', value_parser = network, value_name = "CIDR")]
    pub management: Vec<Network>,
    /// TCP ports open to everybody, so that you are not locked out; none closes them all
    #[arg(long, default_value = "22", value_delimiter = ',', value_name = "PORT")]
    pub allow_tcp: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Why no ruleset was printed or compared.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// An option is wrong.
    #[error("--{option} {value}: {right}")]
    Option {
        /// Which.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// nft cannot be started.
    #[error("cannot run nft: {0}; it comes in the package nftables")]
    NoNft(io::Error),
    /// nft failed.
    #[error("nft {arguments}: {said}\nreading the running ruleset needs root (CAP_NET_ADMIN)")]
    Nft {
        /// What it was asked.
        arguments: String,
        /// Its standard error.
        said: String,
    },
    /// nft printed what is no listing.
    #[error("nft printed no JSON listing; it needs to be built with JSON ({0})")]
    Listing(serde_json::Error),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// `voxring firewall`: prints the ruleset, or compares it with the running one and gives exit code 1
/// when it differs.
///
/// # Errors
/// A wrong option, nft that does not do its part, or no output.
pub fn run(config: &Config, source: &Source, args: &FirewallArgs) -> Result<ExitCode, FirewallError> {
    let choices = choices(source, args)?;
    let (ruleset, lost) = plan(config, &choices, &look_up);
    for name in lost {
        tell(&name);
    }
    if args.check {
        return check(&ruleset, args.output);
    }
    let text = if args.output.json { pretty(&json::document(&ruleset)) } else { ruleset.to_string() };
    print::emit(&text).map_err(FirewallError::Output)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Checked<'a> {
    table: &'a str,
    equal: bool,
    differences: &'a [Difference],
}

fn check(ruleset: &Ruleset, output: Output) -> Result<ExitCode, FirewallError> {
    let table = ruleset.table.as_str();
    let is_table = |entry: &Value| entry.pointer("/table/name").and_then(Value::as_str) == Some(table);
    let running = if list(&["tables", "inet"])?.iter().any(is_table) {
        list(&["table", "inet", table])?
    } else {
        Vec::new()
    };
    let mut differences = compare(&json::objects(ruleset), &running);
    if running.is_empty() {
        // One line says it all.
        differences.truncate(1);
    }
    let text = if output.json {
        pretty(&Checked { table, equal: differences.is_empty(), differences: &differences })
    } else {
        report(table, &differences)
    };
    print::emit(&text).map_err(FirewallError::Output)?;
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(table: &str, differences: &[Difference]) -> String {
    if differences.is_empty() {
        return format!("table inet {table}: as it should be\n");
    }
    let mut text = String::new();
    for Difference { kind, object, name, expected, running } in differences {
        text += &format!("{:<8} {object} {name}\n", kind.name());
        if matches!(kind, Kind::Changed | Kind::Order) {
            let show = |value: &Option<Value>| value.as_ref().map(ToString::to_string).unwrap_or_default();
            text += &format!("         should be {}\n         is        {}\n", show(expected), show(running));
        }
    }
    text + &format!("table inet {table}: differs in {}\n", differences.len())
}

fn choices(source: &Source, args: &FirewallArgs) -> Result<Choices, FirewallError> {
    let media_from = match args.media_from.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["gateways"] => MediaFrom::Gateways,
        ["any"] => MediaFrom::Any,
        networks => {
            let right = "is not gateways, any, or networks like 192.0.2.0/24,2001:db8::/64";
            let wrong = |_| FirewallError::Option { option: "media-from", value: networks.join(","), right };
            let parsed = networks.iter().map(|text| network(text));
            MediaFrom::Networks(parsed.collect::<Result<_, _>>().map_err(wrong)?)
        }
    };
    let allow_tcp = match args.allow_tcp.as_slice() {
        [none] if none == "none" => BTreeSet::new(),
        ports => {
            let port = |text: &String| text.parse().ok().filter(|port| *port > 0);
            let parsed: Option<BTreeSet<u16>> = ports.iter().map(port).collect();
            parsed.ok_or_else(|| FirewallError::Option {
                option: "allow-tcp",
                value: ports.join(","),
                right: "is not none, or ports like 22,2222",
            })?
        }
    };
    let origin = match &source.file {
        Some(file) => file.display().to_string().replace(char::is_control, "?"),
        None => "the built-in configuration".to_owned(),
    };
    let management = args.management.clone();
    Ok(Choices { table: args.table.clone(), origin, media_from, management, allow_tcp })
}

fn table_name(text: &str) -> Result<String, &'static str> {
    let is_word = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_word && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.len() <= TABLE_CHARS_MAX {
        Ok(text.to_owned())
    } else {
        Err("a table's name is at most 64 letters, digits and \"_\", a letter first")
    }
}

fn network(text: &str) -> Result<Network, &'static str> {
    match text.parse() {
        Ok(GatewayAddress::Network(network)) => Ok(network),
        Ok(GatewayAddress::Name(_)) | Err(_) => Err("no address or network like 192.0.2.0/24"),
    }
}

fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect())
}

/// The objects of one of nft's listings.
fn list(what: &[&str]) -> Result<Vec<Value>, FirewallError> {
    let arguments = [&["-j", "list"], what].concat();
    let output = Command::new("nft").args(&arguments).output().map_err(FirewallError::NoNft)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(FirewallError::Nft { arguments: arguments.join(" "), said });
    }
    let listing: Value = serde_json::from_slice(&output.stdout).map_err(FirewallError::Listing)?;
    Ok(listing.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn pretty<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("it is plain data") + "\n"
}

/// To standard error, since standard output is for nft.
fn tell(what: &str) {
    use std::io::Write as _;
    // Nobody may be listening there.
    let _ = writeln!(io::stderr(), "voxring: {what}");
}
