//! What is judged, and what comes of it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::base::config::Security;
use crate::call::route::Route;
use crate::call::target::Target;
use crate::sip::flow::{PeerNames, Transport};

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The peer's address.
    pub source: SocketAddr,
    /// What carried the request.
    pub transport: Transport,
    /// Whom the peer's certificate names; `None` when it showed none.
    pub identity: Option<&'a PeerNames>,
    /// The gateway's name when another hop of this node has done the first two steps.
    pub vouched: Option<&'a str>,
}

/// One step of the way in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `source`, `certificate`, `hunt_group`, `dial_plan`, `security` or `purpose`; `voxring
    /// explain-call` adds `mailbox`.
    pub name: &'static str,
    /// Whether the next one was taken.
    pub passed: bool,
    /// What was found, for a person.
    pub text: String,
}

/// Every step that was taken, and the outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// In order; only the last one can have failed.
    pub steps: Vec<Step>,
    /// Admitted, or refused by the last step.
    pub outcome: Result<Admitted, Refused>,
}

/// A call that may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The gateway's name.
    pub gateway: String,
    /// The dial plan's name.
    pub dial_plan: String,
    /// What the plan wants calls protected with.
    pub security: Security,
    /// What the call is for.
    pub purpose: Purpose,
    /// Whose mailbox.
    pub target: Target,
    /// The route that takes the call in place of a mailbox; test extensions still come first.
    pub route: Option<Arc<Route>>,
}

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// It was diverted: the mailbox of who diverted it takes a message.
    CallAnswering,
    /// A pilot itself was dialled: its own mailbox.
    PilotMailbox,
    /// The mailbox of the number that was dialled.
    Mailbox,
    /// It goes on to another gateway.
    Onward,
}

impl Purpose {
    /// For people and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::CallAnswering => "call answering",
            Self::PilotMailbox => "pilot's mailbox",
            Self::Mailbox => "mailbox",
            Self::Onward => "another gateway",
        }
    }
}

/// A call that may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Counter and log call it so; stable.
    pub rule: &'static str,
    /// SIP status: 403, 404, 488 or 503.
    pub status: u16,
    /// SIP reason phrase.
    pub reason: &'static str,
    /// What is wrong and what would be right, for a person at the far end.
    pub why: String,
}

impl Refused {
    /// A refusal; the reason phrase follows from the status (RFC 3261 §21).
    pub(super) fn new(rule: &'static str, status: u16, why: impl Into<String>) -> Self {
        let reason = match status {
            403 => "Forbidden",
            404 => "Not Found",
            488 => "Not Acceptable Here",
            _ => "Service Unavailable",
        };
        Self { rule, status, reason, why: why.into() }
    }
}
