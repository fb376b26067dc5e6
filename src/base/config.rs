//! The configuration: one struct a table, one field a key. Unknown keys are errors.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node as a whole.
    pub node: Node,
    /// The call router.
    pub router: Router,
    /// The UM service.
    pub service: Service,
    /// Worker processes.
    pub worker: Worker,
    /// SIP transport and dialogs.
    pub sip: Sip,
    /// Media.
    pub rtp: Rtp,
    /// What a call may do.
    pub calls: Calls,
    /// Voice-mail recordings.
    pub recording: Recording,
    /// Extensions for tests.
    pub test_extensions: TestExtensions,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Name in `Server`, RTCP CNAME and logs.
    pub name: String,
    /// Folder of database, audio, spool and control socket.
    pub data: PathBuf,
    /// Create mailboxes 1001 and 1002 in an empty store and print their PINs once.
    pub demo_mailboxes: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self { name: "voxring".into(), data: "voxring-data".into(), demo_mailboxes: false }
    }
}

/// How router and service hand a call on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handoff {
    /// 302 with the next hop in Contact.
    #[default]
    Redirect,
    /// Forward the INVITE and stay out of the dialog.
    Proxy,
}

/// `[router]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Router {
    /// Listening address.
    pub address: IpAddr,
    /// Listening port.
    pub port: u16,
    /// Listen on UDP too.
    pub udp: bool,
    /// For router and service.
    pub handoff: Handoff,
}

impl Default for Router {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 5060, udp: false, handoff: Handoff::Redirect }
    }
}

/// `[service]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// Listening address.
    pub address: IpAddr,
    /// Listening port.
    pub port: u16,
    /// Listen on UDP too.
    pub udp: bool,
}

impl Default for Service {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 5062, udp: false }
    }
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// Listening address.
    pub address: IpAddr,
    /// Slot A's port.
    pub port_a: u16,
    /// Slot B's port.
    pub port_b: u16,
    /// Listen on UDP too.
    pub udp: bool,
    /// Media shards; 0: one less than the processors the process may use, at least one.
    pub media_shards: u16,
    /// A worker silent for this long is stopped and replaced, seconds.
    pub heartbeat_timeout_s: u16,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            port_a: 5065,
            port_b: 5067,
            udp: false,
            media_shards: 0,
            heartbeat_timeout_s: 5,
        }
    }
}

/// `[sip]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sip {
    /// Connections a signalling shard holds; one more is closed at once.
    pub connections_max: u32,
    /// A connection without a message or keep-alive for this long is closed, seconds.
    pub idle_timeout_s: u32,
    /// A message must be complete this long after its first byte, seconds.
    pub message_timeout_s: u16,
    /// Session interval we ask for (RFC 4028), seconds; 0 turns session timers off.
    pub session_expires_s: u32,
    /// Smallest session interval we accept (RFC 4028), seconds.
    pub min_se_s: u32,
}

impl Default for Sip {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            idle_timeout_s: 600,
            message_timeout_s: 10,
            session_expires_s: 1800,
            min_se_s: 90,
        }
    }
}

/// `[rtp]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rtp {
    /// Address media sockets bind to and SDP names.
    pub address: IpAddr,
    /// The port range of both worker slots.
    pub ports: PortRange,
    /// Latch onto any first source, not just the address in the SDP.
    pub nat: bool,
    /// A closed call's ports rest this long, seconds.
    pub quarantine_s: u16,
    /// A call without RTP for this long is ended, seconds.
    pub media_timeout_s: u16,
}

impl Default for Rtp {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            ports: PortRange { first: 16_384, last: 32_767 },
            nat: false,
            quarantine_s: 10,
            media_timeout_s: 60,
        }
    }
}

/// Ports `first` to `last`, both included, as text `"16384-32767"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl PortRange {
    /// Cuts the range into `parts` slices of whole even/odd pairs and gives slice `index`.
    ///
    /// Empty parts do not happen while `parts` is at most the number of pairs; beyond that the
    /// result is `None`.
    pub fn slice(self, index: u16, parts: u16) -> Option<Self> {
        let first = u32::from(self.first).next_multiple_of(2);
        let pairs = (u32::from(self.last) + 1).saturating_sub(first) / 2;
        let per_slice = pairs.checked_div(u32::from(parts))?;
        if per_slice == 0 || index >= parts {
            return None;
        }
        let start = first + u32::from(index) * per_slice * 2;
        let end = start + per_slice * 2 - 1;
        Some(Self { first: u16::try_from(start).ok()?, last: u16::try_from(end).ok()? })
    }

    /// How many even/odd pairs the range holds.
    pub fn pairs(self) -> u32 {
        (u32::from(self.last) + 1).saturating_sub(u32::from(self.first).next_multiple_of(2)) / 2
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a port range like \"16384-32767\" within 1024-65535");
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let first: u16 = first.trim().parse().map_err(|_| bad())?;
        let last: u16 = last.trim().parse().map_err(|_| bad())?;
        if first < 1024 || last <= first {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        format!("{}-{}", range.first, range.last)
    }
}

/// Which of several diversions names the mailbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Diversion {
    /// The first one that happened (RFC 5806: the last in the message).
    #[default]
    Bottom,
    /// The most recent one.
    Top,
}

/// `[calls]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calls {
    /// Calls at once in a worker; one more gets 503.
    pub calls_max: u32,
    /// Longest call, minutes.
    pub duration_max_min: u16,
    /// Retry-After in a 503, seconds.
    pub retry_after_s: u16,
    /// Which of stacked Diversion headers counts.
    pub diversion: Diversion,
    /// Wrong or missing key presses before the call is ended.
    pub input_failures_max: u8,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            calls_max: 1000,
            duration_max_min: 30,
            retry_after_s: 4,
            diversion: Diversion::Bottom,
            input_failures_max: 3,
        }
    }
}

/// `[recording]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recording {
    /// Longest message, minutes; less than a call.
    pub duration_max_min: u16,
    /// Silence that ends a message, seconds.
    pub silence_s: u16,
    /// A recording with less sound than this is a missed call, not a message, milliseconds.
    pub voiced_min_ms: u16,
}

impl Default for Recording {
    fn default() -> Self {
        Self { duration_max_min: 20, silence_s: 5, voiced_min_ms: 200 }
    }
}

/// `[test_extensions]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TestExtensions {
    /// Answer 9196 (echo), 9197 (prompt loop), 9198 (record, throw away), 9199 (sink).
    pub enabled: bool,
}
