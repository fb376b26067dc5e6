//! Calls that play a part: their steps, in time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{BURST, Signaller, Slot};
use crate::load::life::{Life, Part, Step, script};
use crate::load::media::engine::Order;
use crate::load::sip::call::Ending;
use crate::load::sip::text::{Glance, Start};
use crate::rng::Rng;
use crate::sip::sdp::Direction;

/// The play: what is due, and what it came to.
pub(super) struct Play {
    /// Call `n` plays the `n`-th of these, counted around.
    parts: Vec<Part>,
    mean: Duration,
    rng: Rng,
    due: BinaryHeap<Reverse<(Instant, u32)>>,
    pub(super) told: Life,
}

/// A call's part in it.
pub(super) struct Act {
    pub(super) part: Part,
    steps: VecDeque<(Instant, Step)>,
    /// Payload type of telephone-event.
    pub(super) dtmf: Option<u8>,
    /// The server has to end it.
    left_to_server: bool,
    /// It was up at the mark.
    marked: bool,
    /// It answers nothing any more.
    vanished: bool,
}

impl Play {
    pub(super) fn new(parts: Vec<Part>, mean: Duration, seed: u64) -> Self {
        Self { parts, mean, rng: Rng::new(seed), due: BinaryHeap::new(), told: Life::default() }
    }

    /// The part of a call that begins.
    pub(super) fn cast(&mut self, number: u32) -> Option<Act> {
        let part = *self.parts.get(number as usize % self.parts.len().max(1))?;
        self.told.part(part).begun += 1;
        Some(Act {
            part,
            steps: VecDeque::new(),
            dtmf: None,
            left_to_server: false,
            marked: false,
            vanished: false,
        })
    }

    /// When the next step is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Nothing more is begun; calls that wait for the server's end are counted by their slots.
    pub(super) fn stop(&mut self) {
        self.due.clear();
    }
}

impl Slot {
    /// Nothing reaches the call any more.
    pub(super) fn has_vanished(&self) -> bool {
        self.act.as_ref().is_some_and(|act| act.vanished)
    }
}

impl Signaller<'_> {
    /// Draws the times of a call's steps, from `from` on.
    pub(super) fn rehearse(&mut self, number: u32, from: Instant) {
        let Some(play) = &mut self.play else { return };
        let slot = self.slots.get_mut(number as usize).and_then(Option::as_mut);
        let Some(act) = slot.and_then(|slot| slot.act.as_mut()) else { return };
        let steps = script(act.part, play.mean, &mut play.rng);
        act.steps = steps.into_iter().map(|(after, step)| (from + after, step)).collect();
        play.due.extend(act.steps.front().map(|(at, _)| Reverse((*at, number))));
    }

    /// The steps that are due.
    pub(super) fn act_due(&mut self, now: Instant) {
        for _ in 0..BURST {
            let Some(play) = &mut self.play else { return };
            let Some(Reverse((_, number))) = play.due.peek().copied().filter(|Reverse((at, _))| *at <= now)
            else {
                return;
            };
            play.due.pop();
            let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { continue };
            let Some(act) = slot.act.as_mut().filter(|_| !slot.call.is_over()) else { continue };
            let Some((_, step)) = act.steps.pop_front() else { continue };
            play.due.extend(act.steps.front().map(|(at, _)| Reverse((*at, number))));
            self.act(now, number, step);
        }
    }

    fn act(&mut self, now: Instant, number: u32, step: Step) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let (Some(act), Some(play)) = (&mut slot.act, &mut self.play) else { return };
        match step {
            Step::Direct(direction) => {
                play.told.changes += 1;
                let asked = slot.call.change(now, direction, &mut self.pool);
                match direction {
                    // Who says that it sends has to, or the call is silent.
                    Direction::SendOnly => self.order(Order::ExpectNothing(2 * number)),
                    Direction::Inactive | Direction::RecvOnly => self.order(Order::Rest(2 * number)),
                    Direction::SendRecv => {}
                }
                if let Err(error) = asked {
                    self.note(format!("re-INVITE: {error:#}"));
                }
                self.set_timer(number);
            }
            Step::Press(key) => {
                if let Some(payload_type) = act.dtmf {
                    act.left_to_server |= key == '1';
                    self.order(Order::Press(2 * number, key, payload_type));
                }
            }
            Step::Rest => {
                self.order(Order::Rest(2 * number));
                self.order(Order::Rest(2 * number + 1));
            }
            Step::HangUp => self.hang_up(now, number),
            Step::Drop => {
                act.left_to_server = true;
                self.pool.abandon(number);
                self.order(Order::Forsake(2 * number));
            }
            Step::Vanish => {
                (act.left_to_server, act.vanished) = (true, true);
                self.order(Order::Forsake(2 * number));
                self.progress.up.fetch_sub(1, Ordering::Relaxed);
                self.progress.over.fetch_add(1, Ordering::Relaxed);
            }
            Step::Overdue => {
                act.left_to_server = false;
                play.told.overdue += 1;
                self.hang_up(now, number);
            }
        }
    }

    /// Marks the calls that are up and should stay so.
    pub(super) fn mark(&mut self) {
        let Some(play) = &mut self.play else { return };
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.call.is_up()) {
            let Some(act) = slot.act.as_mut().filter(|act| !act.left_to_server) else { continue };
            act.marked = true;
            play.told.marked += 1;
        }
    }

    /// Ends a call from our side.
    pub(super) fn hang_up(&mut self, now: Instant, number: u32) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        slot.leaving = true;
        let event = slot.call.hang_up(now, &mut self.pool);
        self.close_media(number);
        self.happened(now, number, event);
    }

    /// A re-INVITE was answered.
    pub(super) fn changed(&mut self, number: u32, is_taken: bool) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        if let Some(play) = &mut self.play {
            play.told.changes_taken += u64::from(is_taken);
        }
        if slot.call.local().direction == Direction::SendRecv {
            self.order(Order::Resume(2 * number));
        }
        if !is_taken {
            self.note("a re-INVITE was refused".to_owned());
        }
    }

    /// A message for a call that vanished: only the server's BYE is seen, and not answered.
    pub(super) fn heard_by_nobody(&mut self, number: u32, message: &Glance<'_>) -> bool {
        let slot = self.slots.get(number as usize).and_then(Option::as_ref);
        let Some(act) = slot.and_then(|slot| slot.act.as_ref()).filter(|act| act.vanished) else {
            return false;
        };
        let part = act.part;
        if matches!(message.start, Start::Request("BYE", _)) {
            self.slots[number as usize] = None;
            self.close_media(number);
            if let Some(play) = &mut self.play {
                play.told.part(part).ended_by_server += 1;
            }
        }
        true
    }

    /// Enters the end of a call that plays a part; true when nothing more is to be said of it.
    pub(super) fn act_over(&mut self, number: u32, ending: &Ending) -> bool {
        let Some(play) = &mut self.play else { return false };
        let Some(slot) = self.slots.get(number as usize).and_then(Option::as_ref) else { return false };
        let Some(act) = &slot.act else { return false };
        play.told.moved += slot.call.moves;
        let (answered, leaving, due) = (slot.answered, slot.leaving, act.left_to_server);
        let part = act.part;
        let early = match ending {
            Ending::HungUp => {
                play.told.part(part).ended_by_us += 1;
                return true;
            }
            Ending::Refused { status: 487, .. } if leaving && !answered => {
                play.told.part(part).ended_by_us += 1;
                return true;
            }
            Ending::EndedEarly(_) if due => {
                play.told.part(part).ended_by_server += 1;
                return true;
            }
            // Both ended it at the same time.
            Ending::EndedEarly(_) | Ending::Disowned(_) if leaving && due => return true,
            Ending::Disowned(status) => {
                *play.told.disowned.entry(status.to_string()).or_default() += 1;
                format!("BYE answered with {status}")
            }
            Ending::EndedEarly(reason) if reason.is_empty() => "BYE".to_owned(),
            Ending::EndedEarly(reason) => format!("BYE: {reason}"),
            Ending::Failed(why) if answered => why.clone(),
            Ending::Refused { .. } | Ending::Failed(_) => {
                play.told.part(part).failed += 1;
                return false;
            }
        };
        play.told.part(part).early += 1;
        play.told.marked_early += u64::from(act.marked);
        *play.told.early.entry(early).or_default() += 1;
        self.totals.calls.ended_early += 1;
        true
    }

    /// What the play came to.
    pub(super) fn curtain(&mut self) -> Option<Life> {
        let mut told = self.play.take()?.told;
        let acts = self.slots.iter().flatten().filter_map(|slot| slot.act.as_ref());
        told.left_to_server = acts.filter(|act| act.left_to_server).count() as u64;
        Some(told)
    }
}
