//! A callee that outlasts the process that called it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{OutboundCall, State};
use crate::base::id::LegId;
use crate::call::inbound::CallRules;
use crate::call::leg::{KeptLeg, Leg};
use crate::sip::header::SyntaxError;

/// An answered call of ours, for another process to go on with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptOutbound {
    /// Its leg.
    pub leg: KeptLeg,
    rang: Duration,
}

impl OutboundCall {
    /// For another process; `None` unless it was answered and stands.
    pub fn kept(&self) -> Option<KeptOutbound> {
        let rang =
            self.answered_at.zip(self.called_at).map(|(at, since)| at.saturating_duration_since(since));
        Some(KeptOutbound { leg: self.leg.kept()?, rang: rang.unwrap_or_default() })
    }

    /// Goes on where [`Self::kept`] was said, `now`.
    ///
    /// # Errors
    /// What was kept is of another form.
    pub fn resume(
        now: Instant,
        id: LegId,
        kept: KeptOutbound,
        rules: &CallRules,
    ) -> Result<Self, SyntaxError> {
        Ok(Self {
            leg: Leg::resume(id, kept.leg)?,
            state: State::Done,
            headers: Vec::new(),
            try_timeout: Duration::ZERO,
            ring_timeout: Duration::ZERO,
            session_rules: rules.session,
            invite: None,
            failure: None,
            called_at: now.checked_sub(kept.rang),
            answered_at: Some(now),
        })
    }
}
