//! What travels over the control socket: one request as a line of JSON, one reply as a line of JSON.
//!
//! Only a reply to `message_export` is followed by something else: as many raw bytes as it says.
//! The types are also what `--json` prints, so names and units here are an interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::config::{AddressFamily, Addresses, PortRange, StartupMode};
use crate::base::id::MessageId;
use crate::mailbox::Message;
use crate::media::order::{Codec, LegStats};
use crate::sip::flow::Transport;

/// Longest request line, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Longest reply line, in bytes: a listing of some hundred thousand messages.
pub const REPLY_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Name of the socket in the data folder.
pub const SOCKET_NAME: &str = "control.sock";

/// A client to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How the node is; answered by `Status`.
    Status,
    /// The calls there are now; answered by `Calls`.
    Calls,
    /// Create a mailbox; answered by `MailboxAdded`.
    MailboxAdd {
        /// Its number: letters, digits, "+", "-", "_" and ".".
        number: String,
        /// Its owner's name.
        name: String,
        /// Its PIN, digits; `None` draws one.
        pin: Option<String>,
    },
    /// All mailboxes; answered by `Mailboxes`.
    MailboxList,
    /// One mailbox; answered by `Mailbox`.
    MailboxShow {
        /// Its number.
        number: String,
    },
    /// Give a mailbox a greeting of its own, or take it away; answered by `MailboxGreeting`.
    MailboxGreeting {
        /// Its number.
        number: String,
        /// Absolute path of a WAV file, which the node reads: 16-bit PCM, 8000 Hz, mono, at most
        /// [`GREETING_S_MAX`](crate::base::limits::GREETING_S_MAX). `None`: the built-in greeting.
        file: Option<String>,
    },
    /// A mailbox's messages, oldest first; answered by `Messages`.
    MessageList {
        /// The mailbox's number.
        mailbox: String,
    },
    /// A message's audio as a WAV file; answered by `Audio` and that many bytes.
    MessageExport {
        /// Which message.
        id: MessageId,
    },
    /// Delete a message and its audio; answered by `MessageDeleted`.
    MessageDelete {
        /// Which message.
        id: MessageId,
    },
    /// Read the configuration and the TLS files anew; answered by `Reload`.
    Reload,
    /// Put a new worker in the place of the one that takes calls; answered by `Change`.
    Recycle,
    /// The same from another program, which then takes the supervisor's place too; answered by
    /// `Change`.
    Upgrade {
        /// Absolute path of the program. `None`: the file this node was started from.
        binary: Option<PathBuf>,
    },
    /// How far a change of worker is; answered by `Change`.
    Change {
        /// As `Change` told it.
        number: u64,
    },
    /// Refuse new calls, or take them again; answered by `Drain`.
    Drain {
        /// Refuse.
        on: bool,
    },
    /// The call router's settings; answered by `CallRouter`.
    CallRouterGet,
    /// Change the call router's settings while it runs, and keep them; answered by `CallRouter`.
    CallRouterSet {
        /// What changes.
        settings: CallRouterSettings,
        /// First drop all that was set at run time before.
        #[serde(default)]
        reset: bool,
    },
}

/// The node to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `Status`.
    Status(Box<Status>),
    /// To `Calls`.
    Calls {
        /// Oldest first.
        calls: Vec<CallInfo>,
    },
    /// To `MailboxAdd`.
    MailboxAdded {
        /// As stored.
        mailbox: MailboxInfo,
        /// The PIN that was drawn: told this once, stored only as a hash. `None`: it was given.
        pin: Option<String>,
    },
    /// To `MailboxList`.
    Mailboxes {
        /// By number.
        mailboxes: Vec<MailboxInfo>,
    },
    /// To `MailboxShow`.
    Mailbox(MailboxInfo),
    /// To `MailboxGreeting`.
    MailboxGreeting {
        /// As stored.
        mailbox: MailboxInfo,
        /// Playing time of the new greeting, milliseconds; `None`: it was taken away.
        duration_ms: Option<u64>,
    },
    /// To `MessageList`.
    Messages {
        /// Oldest first.
        messages: Vec<Message>,
    },
    /// To `MessageExport`; the audio itself follows the line.
    Audio {
        /// Whose audio it is.
        message: Message,
        /// Length of the WAV file that follows, in bytes.
        bytes: u64,
        /// The WAV file; not part of the line.
        #[serde(skip)]
        audio: bytes::Bytes,
    },
    /// To `MessageDelete`.
    MessageDeleted {
        /// What is gone.
        id: MessageId,
    },
    /// To `Reload`.
    Reload(ReloadReport),
    /// To `Recycle`, `Upgrade` and `Change`: the change as it stands.
    Change(Change),
    /// To `Drain`.
    Drain {
        /// New calls are refused.
        on: bool,
        /// Calls that are up.
        calls: u64,
    },
    /// To `CallRouterGet` and `CallRouterSet`.
    CallRouter(CallRouterReport),
    /// The request could not be done.
    Error {
        /// Whose doing it is.
        kind: ErrorKind,
        /// What went wrong, for a person.
        message: String,
    },
}

/// Whose doing a refused request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself: unreadable, unknown, or a value that is not allowed.
    BadRequest,
    /// It names a mailbox or message that does not exist.
    NotFound,
    /// It would create something that exists already.
    Exists,
    /// The node cannot do it now: it is starting, stopping or overloaded.
    Unavailable,
    /// Store or disk failed.
    Failed,
}

impl Reply {
    /// A refusal.
    pub fn error(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Error { kind, message: message.into() }
    }
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// `table.key` of each changed value that is in force now; for new calls where the reference
    /// says so.
    pub applied: Vec<String>,
    /// `table.key` of each changed value that takes effect at the next start only.
    pub needs_restart: Vec<String>,
    /// Why nothing was changed, each with file, line and key as far as they are known.
    pub problems: Vec<String>,
}

/// A change of the worker that takes calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Counts changes from the node's start.
    pub number: u64,
    /// Who or what asked for it.
    pub why: String,
    /// How far it is.
    pub state: ChangeState,
    /// Why it failed; the worker from before still takes calls then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeState {
    /// The new program is looked at.
    Checking,
    /// The new worker starts.
    Starting,
    /// It places its self-test calls.
    Proving,
    /// It will take calls; the supervisor is being replaced too.
    Replacing,
    /// Router and service learn where calls go now.
    Switching,
    /// It takes calls.
    Done,
    /// It came to nothing.
    Failed,
}

impl ChangeState {
    /// Nothing more comes of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Starting => "starting",
            Self::Proving => "proving",
            Self::Replacing => "replacing",
            Self::Switching => "switching",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// The call router's settings, as far as they are set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallRouterSettings {
    /// `router.address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Addresses>,
    /// `router.address_family`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_family: Option<AddressFamily>,
    /// `router.startup_mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_mode: Option<StartupMode>,
    /// `router.port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `router.tls_port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_port: Option<u16>,
    /// `router.udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<bool>,
    /// `router.maintenance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<bool>,
}

/// The call router as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRouterReport {
    /// Every setting in force.
    pub settings: Vec<CallRouterSetting>,
    /// Its sockets.
    pub listeners: Vec<ListenerStatus>,
}

/// One setting of the call router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRouterSetting {
    /// Its name in the table `[router]`.
    pub key: String,
    /// As in the file: a text, a number, true or false, or a list.
    pub value: serde_json::Value,
    /// `default`, `FILE:LINE` or `set at run time`.
    pub origin: String,
}

/// How the node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `node.name`.
    pub node: String,
    /// Of the program.
    pub version: String,
    /// The supervisor's process id.
    pub pid: u32,
    /// Since the supervisor started, seconds.
    pub uptime_s: u64,
    /// The data folder, absolute.
    pub data: PathBuf,
    /// New calls are taken: a worker is ready.
    pub ready: bool,
    /// `router.maintenance` in force: the router refuses new calls.
    pub maintenance: bool,
    /// `voxring drain on` in force: router, service and workers refuse new calls.
    pub draining: bool,
    /// Why no worker is started any more; `None`: one runs or will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<String>,
    /// The latest change of worker since the start of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Every socket that takes SIP.
    pub listeners: Vec<ListenerStatus>,
    /// Every worker slot in use.
    pub workers: Vec<WorkerStatus>,
    /// Calls now, over all workers.
    pub calls_active: u64,
    /// Calls answered since the start of the node.
    pub calls_total: u64,
    /// Calls refused since the start of the node, by reason.
    pub refused_total: BTreeMap<String, u64>,
    /// What router and service met on the wire, since the start of the node: `sip_…`.
    pub front_counters: BTreeMap<String, u64>,
    /// What router, service and workers met in TLS, summed: `tls_handshakes`, `tls_expired`…
    pub tls_counters: BTreeMap<String, u64>,
    /// The node's certificate; `None`: TLS is off.
    pub certificate: Option<CertificateStatus>,
    /// Reloads of configuration or TLS files that took effect, since the start of the node.
    pub reloads: u64,
    /// Reloads that were refused for an error.
    pub reloads_failed: u64,
    /// Voice messages in the store.
    pub messages_stored: u64,
    /// Missed calls in the store.
    pub missed_stored: u64,
}

/// The node's certificate and what it believes others' by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The DNS names and addresses it names; where there are none, its common name.
    pub names: Vec<String>,
    /// Its subject and end.
    pub certificate: CertificateDate,
    /// SHA-256 of its DER, in lower-case hex without separators.
    pub fingerprint_sha256: String,
    /// The authorities that vouch for peers.
    pub authorities: Vec<CertificateDate>,
    /// Their revocation lists: issuer and next update.
    pub revocation_lists: Vec<CertificateDate>,
}

/// How long something with a date is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateDate {
    /// Whose it is.
    pub subject: String,
    /// The end, RFC 3339 in UTC; `None`: it does not say, and is not believed.
    pub until: Option<String>,
    /// Whole days until then; negative: it has expired.
    pub days_left: Option<i64>,
}

/// One socket that takes SIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `router`, `service`, `worker A` or `worker B`.
    pub role: String,
    /// What it carries.
    pub transport: Transport,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// One worker slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// `A` or `B`.
    pub slot: String,
    /// The process, if one runs.
    pub pid: Option<u32>,
    /// What it does.
    pub state: WorkerState,
    /// Its program's; empty before it is ready.
    pub version: String,
    /// Until its last calls are ended, seconds, while it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_left_s: Option<u64>,
    /// What it is short of, so that it refuses new calls or those for mailboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Resident memory, KiB.
    pub memory_kib: u64,
    /// Since this process started, seconds.
    pub uptime_s: u64,
    /// How often the slot's worker was replaced after it died or fell silent.
    pub restarts: u32,
    /// Since its last heartbeat, milliseconds; `None` before the first.
    pub heartbeat_age_ms: Option<u64>,
    /// Calls now.
    pub calls_active: u64,
    /// What it met on the wire and on disk, since its start: `sip_…`, `mailbox_…`.
    pub counters: BTreeMap<String, u64>,
    /// Its media shards.
    pub shards: Vec<ShardStatus>,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Started, not ready yet.
    Starting,
    /// Ready; places calls to itself before it takes any.
    Proving,
    /// Takes new calls.
    Ready,
    /// Finishes its calls and takes no new ones.
    Draining,
    /// Ends its calls.
    Stopping,
    /// Dead or silent; about to be replaced.
    Down,
}

impl WorkerState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Proving => "proving",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Down => "down",
        }
    }
}

/// One media shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number in its worker.
    pub index: u16,
    /// The processor it is pinned to.
    pub cpu: Option<u32>,
    /// How it talks to the kernel: `io_uring` or `epoll`.
    pub backend: String,
    /// Why it is not `io_uring`, which was tried first, and what helps; `None`: it is, or the
    /// configuration does not want it.
    pub backend_reason: Option<String>,
    /// Its slice of the RTP ports.
    pub ports: PortRange,
    /// Legs now.
    pub legs: u64,
    /// Its counters by metric name (`…_total`).
    pub counters: BTreeMap<String, u64>,
}

/// One call now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallInfo {
    /// The SIP Call-ID.
    pub call_id: String,
    /// The worker slot that has it.
    pub slot: String,
    /// Until it is ended, seconds, where its worker drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_left_s: Option<u64>,
    /// The caller's URI.
    pub from: String,
    /// The called URI.
    pub to: String,
    /// The mailbox it reached, or the test extension; `None` for a call that goes on to a gateway.
    pub mailbox: Option<String>,
    /// The gateway it came by.
    pub gateway: String,
    /// What protects it: `tcp`, `udp` or `tls`, then `+srtp` where media are encrypted.
    pub security: String,
    /// What it does: `greeting`, `recording`, `menu`, `echo`…
    pub state: String,
    /// Since the INVITE, seconds.
    pub duration_s: u64,
    /// The codec, once agreed.
    pub codec: Option<Codec>,
    /// Where its RTP comes from and goes to.
    pub remote_media: Option<SocketAddr>,
    /// What its leg received and sent.
    pub stats: Option<LegStats>,
    /// The far side of a call that goes on to a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callee: Option<CalleeInfo>,
}

/// Whom a call goes on to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalleeInfo {
    /// The route that took the call.
    pub route: String,
    /// The gateway it goes to; empty before the first is called.
    pub gateway: String,
    /// The number asked for there.
    pub number: String,
    /// Gateways called so far.
    pub tries: u32,
    /// The SIP Call-ID of this side; empty while nobody is called.
    pub call_id: String,
    /// As [`CallInfo::security`].
    pub security: String,
    /// The codec, once agreed.
    pub codec: Option<Codec>,
    /// Where its RTP comes from and goes to.
    pub remote_media: Option<SocketAddr>,
    /// What its leg received and sent.
    pub stats: Option<LegStats>,
}

/// One mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxInfo {
    /// Its number.
    pub number: String,
    /// Its owner's name.
    pub name: String,
    /// Voice messages nobody heard yet.
    pub unread: u64,
    /// Voice messages, read and unread.
    pub messages: u64,
    /// Missed calls.
    pub missed: u64,
    /// Callers hear its own greeting, not the built-in one.
    pub greeting: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the wire form is what the documentation says. Method: texts written by hand.
    #[test]
    fn requests_and_replies_have_the_documented_form() {
        let request = Request::MailboxShow { number: "1001".into() };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"request":"mailbox_show","number":"1001"}"#);
        let read: Request = serde_json::from_str(r#"{"request":"status"}"#).unwrap();
        assert_eq!(read, Request::Status);
        let refusal = Reply::error(ErrorKind::NotFound, "no mailbox 7");
        assert_eq!(
            serde_json::to_string(&refusal).unwrap(),
            r#"{"reply":"error","kind":"not_found","message":"no mailbox 7"}"#
        );
    }

    /// Goal: an id that could walk out of the folder never enters the node. Method: such a request.
    #[test]
    fn a_request_with_a_path_for_an_id_is_refused() {
        let text = r#"{"request":"message_export","id":"../../../etc/passwd"}"#;
        assert!(serde_json::from_str::<Request>(text).is_err());
    }
}
