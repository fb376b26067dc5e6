//! Worker life as it passes from one program to the next in the same process.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Do, Life, Phase, Rules, SlotLife};
use crate::control::cli::Slot;
use crate::control::protocol::{Change, ChangeState};

/// What outlasts a change of program.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct LifeState {
    taking: Slot,
    slots: [SlotState; 2],
    change: Option<Change>,
    changes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SlotState {
    /// Has a process: one that takes calls, or drains for this long.
    drain_left_ms: Option<u64>,
    started_ago_ms: u64,
    restarts: u32,
}

impl LifeState {
    /// The slot that takes calls.
    pub(in super::super) fn taking(&self) -> Slot {
        self.taking
    }
}

impl Life {
    /// To go on in another program.
    pub(in super::super) fn state(&self, now: Instant) -> LifeState {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let slot = |own: &SlotLife| SlotState {
            drain_left_ms: own.drains.map(|until| ms(until.saturating_duration_since(now))),
            started_ago_ms: ms(now.saturating_duration_since(own.started)),
            restarts: own.restarts,
        };
        LifeState {
            taking: self.taking,
            slots: [slot(&self.slots[0]), slot(&self.slots[1])],
            change: self.change.clone(),
            changes: self.changes,
        }
    }

    /// Goes on with the workers of the program before; `has_process` tells which slots have one.
    pub(in super::super) fn resume(
        now: Instant,
        rules: Rules,
        state: LifeState,
        has_process: [bool; 2],
    ) -> Self {
        let mut life = Self::new(now, rules);
        life.taking = state.taking;
        (life.change, life.changes) = (state.change, state.changes);
        for slot in Slot::BOTH {
            let SlotState { drain_left_ms, started_ago_ms, restarts } = state.slots[slot.index()];
            let is_taking = slot == state.taking;
            let own = life.slot(slot);
            own.started = now.checked_sub(Duration::from_millis(started_ago_ms)).unwrap_or(now);
            own.restarts = restarts;
            own.drains = drain_left_ms.map(|left| now + Duration::from_millis(left));
            own.phase = match (has_process[slot.index()], drain_left_ms) {
                (true, Some(left)) => Phase::Draining { until: now + Duration::from_millis(left) },
                (true, None) if is_taking => Phase::Ready,
                // Nothing else is passed on: let it end.
                (true, None) => Phase::Draining { until: now },
                (false, _) if is_taking => Phase::Due { at: now },
                (false, _) => Phase::Down,
            };
        }
        life.outputs.push_back(Do::Front);
        life.note(ChangeState::Done);
        life
    }
}
