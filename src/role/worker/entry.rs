//! One call of the worker: dialog and leg in [`InboundCall`], what the caller experiences in
//! [`Flow`], and what is needed to put the two together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::inbound::{CallRules, InboundCall};
use crate::call::target::{Caller, Target};
use crate::control::cli::Slot;
use crate::control::protocol::CallInfo;
use crate::media::order::{Audio, LegStats};
use crate::sip;
use crate::sip::layer::ServerId;
use crate::um::flow::Flow;

/// What the call needs before it can be answered.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// The shard that has the leg.
    pub(super) shard: Option<usize>,
    /// The leg is open.
    pub(super) opened: bool,
    /// The greeting is here; test extensions need none.
    pub(super) greeting: Option<Audio>,
    pub(super) wants_greeting: bool,
}

impl Readiness {
    pub(super) fn is_complete(&self) -> bool {
        self.opened && (!self.wants_greeting || self.greeting.is_some())
    }

    pub(super) fn lacks_only_greeting(&self) -> bool {
        self.opened && self.wants_greeting && self.greeting.is_none()
    }
}

/// An INVITE is answered or refused within this, well below what a caller's proxy waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A leg is closed within this.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for other threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// For mailbox and media shard, to be answered.
    ForAnswer(Instant),
    /// It waits for nobody but its caller.
    Endless,
    /// For the media shard, to be over.
    ForClose(Instant),
}

impl Patience {
    /// That of a new call.
    pub(super) fn for_answer(now: Instant) -> Self {
        Self::ForAnswer(now + ANSWER_TIMEOUT)
    }

    /// What it is after something happened.
    pub(super) fn next(self, now: Instant, call: &InboundCall) -> Self {
        match self {
            Self::ForAnswer(_) if call.awaits_answer() => self,
            Self::ForClose(_) => self,
            Self::ForAnswer(_) | Self::Endless if call.is_alive() => Self::Endless,
            Self::ForAnswer(_) | Self::Endless => Self::ForClose(now + CLOSE_TIMEOUT),
        }
    }

    fn poll_timeout(self) -> Option<Instant> {
        match self {
            Self::ForAnswer(at) | Self::ForClose(at) => Some(at),
            Self::Endless => None,
        }
    }
}

/// One call.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) call: InboundCall,
    /// Those of its start: a reload is for new calls.
    pub(super) rules: Arc<CallRules>,
    pub(super) flow: Option<Flow>,
    pub(super) target: Target,
    pub(super) caller: Caller,
    pub(super) sip_flow: sip::flow::Flow,
    /// The flow with the address and transport the call came to this node by, for log and display.
    pub(super) seen: sip::flow::Flow,
    /// The gateway's name.
    pub(super) gateway: String,
    /// The INVITE's transaction.
    pub(super) server: ServerId,
    /// The latest re-INVITE that was accepted, for its ACK's absence.
    pub(super) reinvite: Option<ServerId>,
    pub(super) ready: Readiness,
    pub(super) started: Instant,
    pub(super) latched: Option<SocketAddr>,
    /// As of the last report.
    pub(super) stats: Option<Box<LegStats>>,
    /// Where the call stands in the timer queue.
    pub(super) timer: Option<Instant>,
    pub(super) patience: Patience,
}

impl Entry {
    /// When the call or its flow wants to be woken.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let of_flow = self.flow.as_ref().and_then(Flow::poll_timeout);
        of_flow.into_iter().chain(self.call.poll_timeout()).chain(self.patience.poll_timeout()).min()
    }

    /// For `voxring calls`.
    pub(super) fn info(&self, now: Instant, slot: Slot) -> CallInfo {
        let invite = self.call.invite();
        let uri = |address: Result<sip::header::NameAddr, _>| {
            address.map_or_else(|_: sip::uri::SyntaxError| String::new(), |a| a.uri.to_string())
        };
        let plan = self.call.plan();
        let state = match &self.flow {
            _ if !self.call.is_alive() => "ending",
            Some(flow) => flow.state(),
            None => "ringing",
        };
        CallInfo {
            call_id: invite.call_id().unwrap_or_default().to_owned(),
            slot: slot.name().to_owned(),
            from: uri(invite.from()),
            to: uri(invite.to()),
            mailbox: Some(self.target.number.clone()),
            gateway: self.gateway.clone(),
            security: {
                let media = if plan.is_some_and(|plan| plan.srtp.is_some()) { "+srtp" } else { "" };
                format!("{}{media}", self.seen.transport.name())
            },
            state: state.to_owned(),
            duration_s: now.saturating_duration_since(self.started).as_secs(),
            codec: plan.map(|plan| plan.codec),
            remote_media: self.latched.or_else(|| plan.and_then(|plan| plan.remote_rtp)),
            stats: self.stats.as_deref().cloned(),
        }
    }

    /// Seconds since the INVITE, for the log.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}
