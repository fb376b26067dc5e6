//! What makes two legs one call: the callee is called for the caller, each hears of the other what
//! concerns it, and neither stays behind.
//!
//! After every input to either leg [`Anchor::couple`] looks at both and does what has become due, so that
//! no order of inputs is special. Media of both legs is joined in their shard.
//!
//! An offer within the dialog is answered at once for its own leg. What it says of the direction, hold
//! above all, goes on to the other side in a re-INVITE of ours; codecs, addresses and keys are each leg's
//! own affair, since the shard translates between them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::outputs::Outputs;
use crate::call::inbound::{CallRules, InboundCall};
use crate::call::leg::CallLeg;
use crate::call::outbound::{Failure, OutboundCall, Progress};
use crate::call::outcome::{EndCause, Output};
use crate::media::order::{LegStats, Order};
use crate::sip::message::{Name, Response};

/// What the worker must do for an anchored call, beside what its legs want.
#[derive(Debug)]
pub enum AnchorOutput {
    /// Call this gateway, with an offer of plain RTP if `plain` is set; answered by [`Anchor::begin`] or
    /// [`Anchor::skip`].
    Call {
        /// Its name.
        gateway: String,
        /// SRTP was refused there.
        plain: bool,
    },
    /// For the media shard.
    Order(Order),
    /// A leg that no longer belongs to the call, but has still to end.
    Leave(Box<OutboundCall>),
    /// No gateway is left, and none of them said anything fit for the caller: 503.
    Unavailable(&'static str),
}

/// How the far side went, for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The gateway that was called last.
    pub gateway: String,
    /// INVITEs that were sent to begin a call.
    pub tries: u32,
    /// From the last gateway's INVITE to its 2xx, or to the end.
    pub rang: Duration,
    /// The callee's media leg's final counters.
    pub stats: Option<Box<LegStats>>,
}

/// The far side of an anchored call.
#[derive(Debug)]
pub struct Anchor {
    /// Gateways to be tried, each with whether it refused SRTP.
    left: VecDeque<(String, bool)>,
    /// The worker was asked to call one.
    asked: bool,
    callee: Option<Box<OutboundCall>>,
    /// The callee has alerted the caller, so that 408 is its own answer.
    has_rung: bool,
    is_bridged: bool,
    last: Option<Failure>,
    report: Report,
    outputs: Outputs<AnchorOutput>,
}

impl Anchor {
    /// For a call that may go to any of these gateways, in this order.
    pub fn new(gateways: impl IntoIterator<Item = String>) -> Self {
        Self {
            left: gateways.into_iter().map(|gateway| (gateway, false)).collect(),
            asked: false,
            callee: None,
            has_rung: false,
            is_bridged: false,
            last: None,
            report: Report::default(),
            outputs: Outputs::default(),
        }
    }

    /// For a call that goes on after its process's death: an answered callee of this gateway, the last
    /// of so many tries. The caller has both legs bridged.
    pub fn resume(gateway: &str, callee: OutboundCall, tries: u32) -> Self {
        let mut anchor = Self::new([]);
        anchor.report.tries = tries.saturating_sub(1);
        anchor.begin(gateway, callee);
        (anchor.has_rung, anchor.is_bridged) = (true, true);
        anchor
    }

    /// The gateway that [`AnchorOutput::Call`] named is called.
    pub fn begin(&mut self, gateway: &str, callee: OutboundCall) {
        self.asked = false;
        self.is_bridged = false;
        self.report.tries += 1;
        gateway.clone_into(&mut self.report.gateway);
        self.callee = Some(Box::new(callee));
    }

    /// It cannot be called now.
    pub fn skip(&mut self) {
        self.asked = false;
    }

    /// Whom the caller talks to, or is about to.
    pub fn callee(&self) -> Option<&OutboundCall> {
        self.callee.as_deref()
    }

    /// The same, to tell it something.
    pub fn callee_mut(&mut self) -> Option<&mut OutboundCall> {
        self.callee.as_deref_mut()
    }

    /// The far side needs nothing any more.
    pub fn is_over(&self) -> bool {
        self.callee.as_ref().is_none_or(|callee| callee.is_over()) && self.outputs.is_empty()
    }

    /// INVITEs that began a call so far.
    pub fn tries(&self) -> u32 {
        self.report.tries
    }

    /// How it went.
    pub fn report(&self, now: Instant) -> Report {
        let rang = self.callee.as_ref().map_or(self.report.rang, |callee| callee.rang_for(now));
        Report { rang, ..self.report.clone() }
    }

    /// Who was called last is gone with these counters.
    pub fn note_stats(&mut self, stats: Option<Box<LegStats>>) {
        self.report.stats = stats;
    }

    /// `ringing`, `early`, `anchored` or `ending`, for `voxring calls`.
    pub fn state(&self) -> &'static str {
        match self.callee.as_ref().map(|callee| callee.progress()) {
            None | Some(Progress::Trying) => "calling",
            Some(Progress::Ringing) => "ringing",
            Some(Progress::Early) => "early media",
            Some(Progress::Answered) => "anchored",
            Some(Progress::Over) => "ending",
        }
    }

    /// The next thing the callee's leg wants done.
    pub fn poll_callee(&mut self) -> Option<Output> {
        self.callee.as_deref_mut()?.poll_output()
    }

    /// The next thing to do, once both legs want nothing more.
    pub fn poll_output(&mut self) -> Option<AnchorOutput> {
        self.outputs.pop()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.callee.as_ref().and_then(|callee| callee.poll_timeout())
    }

    /// Runs what is due on the far side.
    pub fn handle_timeout(&mut self, now: Instant, rules: &CallRules) {
        if let Some(callee) = &mut self.callee {
            callee.handle_timeout(now, rules);
        }
    }

    /// Looks at both legs and does what has become due.
    pub fn couple(&mut self, now: Instant, caller: &mut InboundCall, rules: &CallRules) {
        if let Some(cause) = caller.ending() {
            return self.part(now, cause);
        }
        let Some(callee) = &mut self.callee else {
            if caller.is_ready() {
                self.try_next(caller);
            }
            return;
        };
        match callee.progress() {
            Progress::Trying => callee.call(now, rules),
            Progress::Ringing => {
                self.has_rung = true;
                caller.ring(rules);
            }
            Progress::Early => {
                self.has_rung = true;
                self.join(caller, rules);
                caller.progress(rules);
            }
            Progress::Answered => {
                self.join(caller, rules);
                caller.answer(now, rules);
            }
            Progress::Over if callee.failure().is_some() => return self.fail_over(now, caller),
            Progress::Over => {
                let cause = callee.ending().unwrap_or(EndCause::CalleeLost);
                return caller.hang_up(now, cause);
            }
        }
        self.pass_on(now, caller, rules);
    }

    /// The caller is going: so must the callee.
    fn part(&mut self, now: Instant, cause: EndCause) {
        self.left.clear();
        let Some(callee) = &mut self.callee else { return };
        let was_answered = callee.progress() == Progress::Answered;
        if callee.is_alive() {
            self.report.rang = callee.rang_for(now);
            callee.hang_up(now, cause);
            // What a callee answers to our CANCEL is none of the caller's concern.
            if !was_answered {
                self.leave();
            }
        }
    }

    /// Media of both sides goes to the other from now on.
    fn join(&mut self, caller: &mut InboundCall, rules: &CallRules) {
        let Some(callee) = &mut self.callee else { return };
        if let Some(plan) = callee.plan() {
            caller.match_with(plan, rules);
        }
        if !std::mem::replace(&mut self.is_bridged, true) {
            let bridge = Order::Bridge(caller.id(), callee.id());
            self.outputs.push(AnchorOutput::Order(bridge));
        }
        caller.leg().described.most = callee.leg().peer_direction();
    }

    /// Each side hears whether the other sends and receives.
    fn pass_on(&mut self, now: Instant, caller: &mut InboundCall, rules: &CallRules) {
        let Some(callee) = &mut self.callee else { return };
        let (caller, callee) = (caller.leg(), callee.leg());
        callee.described.most = caller.peer_direction();
        caller.described.most = callee.peer_direction();
        caller.offer_what_changed(now, rules);
        callee.offer_what_changed(now, rules);
    }

    fn try_next(&mut self, caller: &mut InboundCall) {
        if self.asked {
            return;
        }
        match self.left.pop_front() {
            Some((gateway, plain)) => {
                self.asked = true;
                self.outputs.push(AnchorOutput::Call { gateway, plain });
            }
            None => self.refuse(caller),
        }
    }

    /// The callee was not reached: the next gateway, or the caller is told.
    fn fail_over(&mut self, now: Instant, caller: &mut InboundCall) {
        let Some(callee) = &self.callee else { return };
        let failure = callee.failure().cloned();
        self.report.rang = callee.rang_for(now);
        let refuses_srtp = callee.offered_srtp() && failure.as_ref().is_some_and(is_not_acceptable);
        let elsewhere = failure.as_ref().is_none_or(|failure| self.may_try_elsewhere(failure));
        tracing::info!(
            gateway = self.report.gateway,
            failure = failure.as_ref().map_or("", Failure::name),
            status = failure.as_ref().and_then(Failure::status),
            "the callee was not reached"
        );
        self.last = failure;
        self.leave();
        if refuses_srtp {
            self.left.push_front((self.report.gateway.clone(), true));
        } else if !elsewhere {
            self.left.clear();
        }
        self.try_next(caller);
    }

    /// True for what is the gateway's fault or has no answer of the callee in it.
    fn may_try_elsewhere(&self, failure: &Failure) -> bool {
        match failure {
            Failure::Refused(response) => match response.status {
                // It rang: the callee is reached this way, and does not answer.
                408 => !self.has_rung,
                // Nobody here follows a redirection, or has credentials.
                300..=399 | 401 | 407 | 500..=599 => true,
                _ => false,
            },
            Failure::Silent | Failure::Unreachable => true,
            Failure::NoAnswer | Failure::NoMedia | Failure::BadAnswer => false,
        }
    }

    fn leave(&mut self) {
        if let Some(callee) = self.callee.take() {
            self.outputs.push(AnchorOutput::Leave(callee));
        }
    }

    /// All gateways failed, or the callee said no: the caller hears the last answer.
    fn refuse(&mut self, caller: &mut InboundCall) {
        let (status, reason, cause) = match self.last.take() {
            Some(Failure::Refused(response)) if !matches!(response.status, 300..=399 | 401 | 407) => {
                return pass_back(caller, &response);
            }
            Some(Failure::NoAnswer) => (480, "Temporarily Unavailable", EndCause::NoAnswer),
            Some(Failure::BadAnswer) => (502, "Bad Gateway", EndCause::CalleeBadAnswer),
            Some(Failure::NoMedia) => {
                return self.outputs.push(AnchorOutput::Unavailable("no media leg for the callee"));
            }
            Some(Failure::Refused(_) | Failure::Silent | Failure::Unreachable) | None => {
                return self.outputs.push(AnchorOutput::Unavailable("no gateway can be reached"));
            }
        };
        let Some(invite) = caller.invite() else { return };
        let mut response = Response::for_request(invite, status, reason);
        response.headers.push(Name::Reason, format!("Q.850;cause={};text=\"{cause}\"", cause.q850()));
        caller.refuse_because(response, cause);
    }
}

impl Failure {
    /// For the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::NoAnswer => "no answer",
            Self::NoMedia => "no media leg",
            Self::BadAnswer => "bad answer",
        }
    }

    /// Of the refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(response) => Some(response.status),
            Self::Silent | Self::Unreachable | Self::NoAnswer | Self::NoMedia | Self::BadAnswer => None,
        }
    }
}

/// 488 and 606: what we offered is not taken there.
fn is_not_acceptable(failure: &Failure) -> bool {
    matches!(failure.status(), Some(488 | 606))
}

/// The callee's refusal as the caller hears it: status, reason phrase, and what explains them.
fn pass_back(caller: &mut InboundCall, refusal: &Response) {
    let Some(invite) = caller.invite() else { return };
    let mut response = Response::for_request(invite, refusal.status, refusal.reason.clone());
    for name in [Name::Reason, Name::RetryAfter, Name::Warning] {
        for value in refusal.headers.all(&name) {
            response.headers.push(name.clone(), value.clone());
        }
    }
    let cause = EndCause::CalleeRefused(refusal.status);
    if !response.headers.contains(&Name::Reason) {
        response.headers.push(Name::Reason, format!("SIP;cause={};text=\"{cause}\"", refusal.status));
    }
    caller.refuse_because(response, cause);
}

#[cfg(test)]
mod tests;
