//! `voxring explain-call`: takes a call through admission without placing it, and prints every step.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::cli::{Output, Place};
use super::commands::CommandError;
use super::protocol::{ErrorKind, Reply, Request};
use super::{client, names, print};
use crate::base::config::{Config, ConfigError, GatewayAddress};
use crate::call::admission::{Admission, Admitted, Decision, Origin, Purpose, Refused, Step};
use crate::sip;
use crate::sip::flow::{PeerNames, Transport};
use crate::sip::header::{NameAddr, SyntaxError};
use crate::sip::message::{Message, Method, Name, ParseError};
use crate::um::test_extension::Kind;

/// The call to explain.
#[derive(Debug, Clone, Args)]
pub struct ExplainCall {
    /// A captured INVITE: the SIP message as text
    #[arg(value_name = "FILE", required_unless_present_all = ["from", "to", "peer"], conflicts_with_all = ["from", "to"])]
    pub file: Option<PathBuf>,
    /// Who calls: a SIP or tel: URI, or a whole From value
    #[arg(long, value_name = "URI")]
    pub from: Option<String>,
    /// What is called: the Request-URI
    #[arg(long, value_name = "URI")]
    pub to: Option<String>,
    /// Where it comes from; default for a FILE: its topmost Via
    #[arg(long, value_name = "IP[:PORT]", value_parser = peer)]
    pub peer: Option<SocketAddr>,
    /// What carries it; default for a FILE: its topmost Via's, else tcp
    #[arg(long, value_name = "TRANSPORT", value_parser = transport)]
    pub transport: Option<Transport>,
    /// The name in the peer's certificate: a DNS name or an address; may stand several times
    #[arg(long, value_name = "DNS")]
    pub peer_name: Vec<String>,
    /// Who diverted it: a URI, or a whole Diversion value; the latest first, when it stands several times
    #[arg(long, value_name = "URI")]
    pub diversion: Vec<String>,
    /// The offer is of SRTP
    #[arg(long)]
    pub srtp: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Why a call cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file.
    #[error("{}: {error}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// It holds no SIP message.
    #[error("{}: {error}", .file.display())]
    Message {
        /// Which.
        file: PathBuf,
        /// What the message would be answered with.
        error: ParseError,
    },
    /// It holds another message.
    #[error("{}: no INVITE", .0.display())]
    NoInvite(PathBuf),
    /// Nothing says where it came from.
    #[error("where did it come from? Its Via names no address; say --peer IP")]
    NoPeer,
    /// An option's value.
    #[error("--{option} {value:?}: {error}")]
    Option {
        /// Which.
        option: &'static str,
        /// As given.
        value: String,
        /// What is wrong.
        error: SyntaxError,
    },
    /// Standard output, or a node of another version.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// What comes out, as JSON.
#[derive(Debug, Serialize)]
struct Explained<'a> {
    admitted: bool,
    /// Of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a Refused>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dial_plan: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<Purpose>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<&'a str>,
    /// The route that takes the call in place of a mailbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a Onward>,
    steps: &'a [Step],
}

/// Where a call goes on to.
#[derive(Debug, Serialize)]
struct Onward {
    /// The route's name.
    name: String,
    /// The number its gateways are asked for.
    number: String,
    /// They, in the order they are tried.
    gateways: Vec<String>,
}

/// Runs `voxring explain-call`; true when the call would come in.
///
/// # Errors
/// See [`ExplainError`].
pub fn run(place: &Place, call: &ExplainCall) -> Result<bool, ExplainError> {
    let (config, _) = place.load()?;
    let (invite, peer, transport) = read(call)?;
    let identity = identity(&call.peer_name);
    let origin = Origin { source: peer, transport, identity: identity.as_ref(), vouched: None };
    let mut decision = admission(&config).judge(&origin, &invite);
    let onward = decision.outcome.as_ref().ok().and_then(|admitted| onward(&config, admitted));
    if let Ok(admitted) = decision.outcome.clone()
        && onward.is_none()
    {
        ask_node(&config, &admitted, &mut decision);
    }
    let onward = onward.as_ref();
    let text =
        if call.output.json { json(&decision, onward) } else { plain(peer, transport, &decision, onward) };
    print::emit(&text).map_err(CommandError::Output)?;
    Ok(decision.outcome.is_ok())
}

/// Admission with its gateways' names looked up now.
fn admission(config: &Config) -> Admission {
    let mut admission = Admission::new(config);
    let mut found = HashMap::new();
    for name in admission.dns_names() {
        match names::look_up(&name) {
            Ok(addresses) => {
                found.insert(name, addresses);
            }
            Err(error) => {
                let of =
                    config.gateway.iter().find(|g| g.address.0.contains(&GatewayAddress::Name(name.clone())));
                let gateway = of.map_or("", |gateway| gateway.name.as_str());
                eprintln!("voxring: gateway {gateway:?}: {name} cannot be looked up: {error}");
            }
        }
    }
    admission.set_names(found);
    admission
}

/// The INVITE and where it comes from.
fn read(call: &ExplainCall) -> Result<(sip::message::Request, SocketAddr, Transport), ExplainError> {
    let invite = match &call.file {
        Some(file) => read_file(file)?,
        None => compose(call)?,
    };
    let via = invite.top_via().ok().filter(|_| call.file.is_some());
    let by_via = via.as_ref().and_then(|via| {
        let address = via.received().or_else(|| via.host.address())?;
        Some(SocketAddr::new(address, via.rport().or(via.port).unwrap_or(5060)))
    });
    let peer = call.peer.or(by_via).ok_or(ExplainError::NoPeer)?;
    let by_via = via.and_then(|via| transport(&via.transport.to_ascii_lowercase()).ok());
    Ok((invite, peer, call.transport.or(by_via).unwrap_or(Transport::Tcp)))
}

/// A capture may have lost the carriage returns; a body without them is the same body.
fn read_file(file: &Path) -> Result<sip::message::Request, ExplainError> {
    let bytes = std::fs::read(file).map_err(|error| ExplainError::File { file: file.into(), error })?;
    let bytes = if bytes.windows(2).any(|pair| pair == b"\r\n") { bytes } else { with_line_ends(&bytes) };
    let message = Message::parse(Bytes::from(bytes));
    match message.map_err(|error| ExplainError::Message { file: file.into(), error })? {
        Message::Request(request) if request.method == Method::Invite => Ok(request),
        Message::Request(_) | Message::Response(_) => Err(ExplainError::NoInvite(file.into())),
    }
}

/// Each LF as CR LF, and no Content-Length, which then is wrong.
fn with_line_ends(text: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(text.len() + 64);
    let mut in_body = false;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
        let is_length = [&b"content-length"[..], b"l"].iter().any(|n| name.eq_ignore_ascii_case(n));
        if in_body || !is_length {
            whole.extend_from_slice(line);
            whole.extend_from_slice(b"\r\n");
        }
        in_body |= line.is_empty();
    }
    if !in_body {
        whole.extend_from_slice(b"\r\n");
    }
    whole
}

/// An INVITE from the options.
fn compose(call: &ExplainCall) -> Result<sip::message::Request, ExplainError> {
    let to = call.to.clone().unwrap_or_default();
    let bad = |option, value: &str, error| ExplainError::Option { option, value: value.to_owned(), error };
    sip::uri::Uri::parse(&to).map_err(|error| bad("to", &to, error))?;
    let mut invite = sip::message::Request::new(Method::Invite, to.clone());
    let from = call.from.clone().unwrap_or_default();
    NameAddr::parse_kindly(from.as_bytes()).map_err(|error| bad("from", &from, error))?;
    invite.headers.push(Name::From, from);
    invite.headers.push(Name::To, format!("<{to}>"));
    for diversion in &call.diversion {
        NameAddr::parse_kindly(diversion.as_bytes()).map_err(|error| bad("diversion", diversion, error))?;
        invite.headers.push(Name::Diversion, diversion.clone());
    }
    let profile = if call.srtp { "RTP/SAVP" } else { "RTP/AVP" };
    invite.body = format!("v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 {profile} 0\r\n").into();
    Ok(invite)
}

/// What a certificate with these names tells.
fn identity(names: &[String]) -> Option<PeerNames> {
    let addresses = names.iter().filter_map(|name| name.parse().ok());
    let dns_names = names.iter().filter(|name| name.parse::<IpAddr>().is_err());
    let dns_names = dns_names.map(|name| name.to_ascii_lowercase()).collect();
    let identity = PeerNames { dns_names, ip_addresses: addresses.collect(), common_name: None };
    (!names.is_empty()).then_some(identity)
}

/// Where the call goes on to, if it does: test extensions come before routes.
fn onward(config: &Config, admitted: &Admitted) -> Option<Onward> {
    let is_extension = config.test_extensions.enabled && Kind::of(&admitted.target.number).is_some();
    let route = admitted.route.as_ref().filter(|_| !is_extension)?;
    Some(Onward {
        name: route.name.clone(),
        number: route.number(&admitted.target.called),
        gateways: route.gateways.clone(),
    })
}

/// A last step: is there such a mailbox? Only a running node knows.
fn ask_node(config: &Config, admitted: &Admitted, decision: &mut Decision) {
    let number = &admitted.target.number;
    let socket = config.node.data.join(super::protocol::SOCKET_NAME);
    let extension = config.test_extensions.enabled && Kind::of(number).is_some();
    let reply = client::request(&socket, &Request::MailboxShow { number: number.clone() });
    let (passed, text) = match reply {
        _ if extension => (true, format!("{number} is a test extension")),
        Ok(Reply::Mailbox(mailbox)) => (true, format!("{number} is {:?}'s", mailbox.name)),
        Ok(Reply::Error { kind: ErrorKind::NotFound, .. }) => (false, format!("{number} is no mailbox here")),
        Ok(_) | Err(_) => (true, format!("{number} was not looked up: no node answers")),
    };
    if !passed {
        let why = format!("{} names {number}, no mailbox here", admitted.target.header);
        let refused = Refused { rule: "no_mailbox", status: 404, reason: "Not Found", why };
        decision.outcome = Err(refused);
    }
    decision.steps.push(Step { name: "mailbox", passed, text });
}

fn json(decision: &Decision, onward: Option<&Onward>) -> String {
    let admitted = decision.outcome.as_ref().ok();
    let explained = Explained {
        admitted: admitted.is_some(),
        refused: decision.outcome.as_ref().err(),
        gateway: admitted.map(|a| a.gateway.as_str()),
        dial_plan: admitted.map(|a| a.dial_plan.as_str()),
        purpose: admitted.map(|a| a.purpose),
        number: admitted.map(|a| a.target.number.as_str()),
        route: onward,
        steps: &decision.steps,
    };
    // Plain data always becomes JSON.
    serde_json::to_string_pretty(&explained).unwrap_or_default() + "\n"
}

fn plain(peer: SocketAddr, transport: Transport, decision: &Decision, onward: Option<&Onward>) -> String {
    let mut text = format!("INVITE from {peer} over {}\n", transport.name());
    let rows: Vec<_> = decision
        .steps
        .iter()
        .map(|step| {
            let passed = if step.passed { "pass" } else { "FAIL" };
            vec![passed.to_owned(), step.name.to_owned(), step.text.clone()]
        })
        .collect();
    text.push_str(&print::table(&["", "STEP", "FOUND"], &rows));
    // Writing to a String cannot fail.
    let _ = match (&decision.outcome, onward) {
        (Ok(Admitted { gateway, dial_plan, .. }), Some(Onward { name, number, gateways })) => {
            let gateways = gateways.join(", then ");
            writeln!(
                text,
                "admitted: gateway {gateway}, dial plan {dial_plan}; goes on by route {name}: {number} at {gateways}"
            )
        }
        (Ok(admitted), None) => {
            let Admitted { gateway, dial_plan, purpose, target, .. } = admitted;
            let purpose = purpose.name();
            let number = &target.number;
            writeln!(text, "admitted: gateway {gateway}, dial plan {dial_plan}, {purpose}, number {number}")
        }
        (Err(Refused { rule, status, reason, why }), _) => {
            writeln!(text, "refused: {status} {reason}, rule {rule}: {why}")
        }
    };
    text
}

/// An address, with or without a port.
fn peer(text: &str) -> Result<SocketAddr, &'static str> {
    let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 5060)));
    address.map_err(
        |_: std::net::AddrParseError| "no address, such as 192.0.2.7, 192.0.2.7:5060 or [2001:db8::1]:5060",
    )
}

fn transport(text: &str) -> Result<Transport, &'static str> {
    match text {
        "udp" => Ok(Transport::Udp),
        "tcp" => Ok(Transport::Tcp),
        "tls" => Ok(Transport::Tls),
        _ => Err("none of udp, tcp and tls"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a capture with bare line ends is the message it was. Method: an INVITE with and without
    /// carriage returns, its Content-Length counted with them.
    #[test]
    fn a_capture_without_carriage_returns_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let body = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/SAVP 0\r\n";
        let text = format!(
            "INVITE sip:1001@x SIP/2.0\r\nVia: SIP/2.0/TLS pbx:5061;branch=z9hG4bK1;received=192.0.2.7;rport=33000\r\n\
             From: \"Ann <sip:2000@x>;tag=1\r\nTo: <sip:1001@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        for text in [text.clone(), text.replace('\r', "")] {
            let file = folder.path().join("invite.txt");
            std::fs::write(&file, text).unwrap();
            let call = ExplainCall {
                file: Some(file),
                from: None,
                to: None,
                peer: None,
                transport: None,
                peer_name: Vec::new(),
                diversion: Vec::new(),
                srtp: false,
                output: Output { json: false },
            };
            let (invite, peer, transport) = read(&call).unwrap();
            assert_eq!(invite.body, body);
            assert_eq!((peer.to_string().as_str(), transport), ("192.0.2.7:33000", Transport::Tls));
            let elsewhere = ExplainCall { peer: Some("[::1]:1".parse().unwrap()), ..call };
            assert_eq!(read(&elsewhere).unwrap().1.ip().to_string(), "::1");
        }
    }

    /// Goal: addresses with and without port are taken, others told. Method: one each.
    #[test]
    fn a_peer_is_an_address_with_or_without_port() {
        assert_eq!(peer("192.0.2.7").unwrap().to_string(), "192.0.2.7:5060");
        assert_eq!(peer("2001:db8::1").unwrap().to_string(), "[2001:db8::1]:5060");
        assert_eq!(peer("[2001:db8::1]:7").unwrap().to_string(), "[2001:db8::1]:7");
        assert!(peer("pbx.example").is_err() && transport("sctp").is_err());
    }
}
