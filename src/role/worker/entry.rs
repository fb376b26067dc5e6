//! One call of the worker: dialog and leg in [`InboundCall`], what the caller experiences in
//! [`Flow`], and what is needed to put the two together.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::id::LegId;
use crate::call::inbound::{CallRules, InboundCall};
use crate::call::leg::CallLeg;
use crate::call::outcome::End;
use crate::call::target::{Caller, Target};
use crate::control::cli::Slot;
use crate::control::protocol::CallInfo;
use crate::media::order::{Audio, LegStats};
use crate::role::worker::anchor::Far;
use crate::role::worker::estate::Deaths;
use crate::shard::ledger::EntryId;
use crate::sip;
use crate::sip::layer::ServerId;
use crate::um::flow::{Flow, FlowState};

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
    /// Where the flow stood in a worker that died; it goes on once the greeting is here.
    pub(super) resuming: Option<Box<FlowState>>,
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

/// What an INVITE asked for: of [`Target`] what is wanted later.
#[derive(Debug)]
pub(super) struct Asked {
    /// The mailbox's or test extension's number.
    pub(super) number: Box<str>,
    /// What said so.
    pub(super) header: &'static str,
    /// The number that was dialled.
    pub(super) called: Box<str>,
    pub(super) diversion_reason: Box<str>,
}

impl From<Target> for Asked {
    fn from(target: Target) -> Self {
        let Target { number, header, uri: _, called, diversion_reason } = target;
        let (number, called, diversion_reason) = (number.into(), called.into(), diversion_reason.into());
        Self { number, header, called, diversion_reason }
    }
}

/// One call.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) call: InboundCall,
    /// Those of its start: a reload is for new calls.
    pub(super) rules: Arc<CallRules>,
    pub(super) flow: Option<Flow>,
    /// The flow is gone by a fault of its own.
    pub(super) flow_panicked: bool,
    /// Whom an anchored call goes to, in place of a flow.
    pub(super) far: Option<Box<Far>>,
    /// How it ended, once the caller's leg has.
    pub(super) end: Option<End>,
    pub(super) target: Asked,
    pub(super) caller: Caller,
    /// The flow with the address and transport the call came to this node by, for log and display.
    pub(super) seen: sip::flow::Flow,
    /// The gateway's name.
    pub(super) gateway: Box<str>,
    /// The INVITE's transaction.
    pub(super) server: ServerId,
    /// The latest re-INVITE that each leg accepted, for its ACK's absence.
    pub(super) reinvites: Vec<(LegId, ServerId)>,
    pub(super) ready: Readiness,
    pub(super) started: Instant,
    pub(super) latched: Option<SocketAddr>,
    /// As of the last report.
    pub(super) stats: Option<Box<LegStats>>,
    /// Where the call stands in the timer queue.
    pub(super) timer: Option<Instant>,
    pub(super) patience: Patience,
    /// Where the call is written down.
    pub(super) place: Option<EntryId>,
    /// Workers that died with it.
    pub(super) deaths: Deaths,
}

impl Entry {
    /// Lets the flow do something. A panic of it ends this call only, at the next settling.
    pub(super) fn with_flow<T>(&mut self, act: impl FnOnce(&mut Flow) -> T) -> Option<T> {
        let flow = self.flow.as_mut()?;
        // A flow that panicked is never looked at again, and it shares nothing with other calls.
        let done = catch_unwind(AssertUnwindSafe(|| act(flow))).ok();
        if done.is_none() {
            (self.flow, self.flow_panicked) = (None, true);
        }
        done
    }

    /// When the call or its flow wants to be woken.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let of_flow = self.flow.as_ref().and_then(Flow::poll_timeout);
        let of_callee = self.far.as_ref().and_then(|far| far.anchor.poll_timeout());
        let of_call = self.call.poll_timeout().into_iter().chain(self.patience.poll_timeout());
        of_flow.into_iter().chain(of_callee).chain(of_call).min()
    }

    /// The call's leg of that number.
    pub(super) fn leg(&self, leg: LegId) -> Option<&dyn CallLeg> {
        if self.call.id() == leg {
            return Some(&self.call);
        }
        let callee = self.far.as_ref()?.anchor.callee()?;
        (callee.id() == leg).then_some(callee as &dyn CallLeg)
    }

    /// The same, to tell it something.
    pub(super) fn leg_mut(&mut self, leg: LegId) -> Option<&mut dyn CallLeg> {
        if self.call.id() == leg {
            return Some(&mut self.call);
        }
        let callee = self.far.as_mut()?.anchor.callee_mut()?;
        (callee.id() == leg).then_some(callee as &mut dyn CallLeg)
    }

    /// Neither leg needs anything any more.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() && self.far.as_ref().is_none_or(|far| far.anchor.is_over())
    }

    /// For `voxring calls`.
    pub(super) fn info(&self, now: Instant, slot: Slot) -> CallInfo {
        let dialog = self.call.dialog();
        let plan = self.call.plan();
        let state = match (&self.flow, &self.far) {
            _ if !self.call.is_alive() => "ending",
            (_, Some(far)) => far.anchor.state(),
            (Some(flow), None) => flow.state(),
            (None, None) => "ringing",
        };
        CallInfo {
            call_id: dialog.id().call_id.clone(),
            slot: slot.name().to_owned(),
            drain_left_s: None,
            from: dialog.remote_uri(),
            to: dialog.local_uri(),
            mailbox: self.far.is_none().then(|| self.target.number.to_string()),
            gateway: self.gateway.to_string(),
            security: {
                let media = if plan.is_some_and(|plan| plan.srtp.is_some()) { "+srtp" } else { "" };
                format!("{}{media}", self.seen.transport.name())
            },
            state: state.to_owned(),
            duration_s: now.saturating_duration_since(self.started).as_secs(),
            codec: plan.map(|plan| plan.codec),
            remote_media: self.latched.or_else(|| plan.and_then(|plan| plan.remote_rtp)),
            stats: self.stats.as_deref().cloned(),
            callee: self.far.as_ref().map(|far| far.info()),
        }
    }

    /// Seconds since the INVITE, for the log.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what the worker keeps for each call does not grow unseen; what it points to is counted by
    /// `tests/call_memory`. Method: the sizes, with little room.
    #[test]
    fn an_entry_is_small() {
        let sizes = [size_of::<Entry>(), size_of::<Far>()];
        assert!(sizes[0] <= 1280 && sizes[1] <= 320, "call and far side: {sizes:?} bytes");
    }
}
