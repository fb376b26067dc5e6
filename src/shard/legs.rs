//! The legs of a shard. A panic in one leg's code costs that leg, never the shard.

use std::collections::HashMap;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::base::id::{LegId, MessageId};
use crate::base::limits::SAMPLE_RATE_HZ;
use crate::media::leg::{Leg, LegOutput, Verdict};
use crate::media::order::{Adoption, Event, FileItem, LegMode, LegStats, RecordEnd};
use crate::shard::hearing::{Hearing, Step};
use crate::shard::keeping::Keeper;
use crate::shard::outbox::Outbox;
use crate::shard::wheel::Phase;
use crate::uring::{Forward, Receive, prefetch_first, want_huge_pages};

/// How often it is noted how far a leg has come, besides at each order, digit and block.
const MARK_INTERVAL: Duration = Duration::from_millis(200);
/// Sockets of a leg: RTP is stream `2 * slot`, RTCP the one after it.
pub(super) const HALVES: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Open,
    /// Its code panicked: nothing of it is called again.
    Broken,
    /// So many of its sockets are still open.
    Closing(u32),
}

/// A recording under way, so that a broken leg's file still ends well.
pub(super) struct Tape {
    id: MessageId,
    samples: u64,
}

impl Tape {
    /// That of a leg whose recording goes on from another process.
    pub(super) fn resume(adoption: &Adoption) -> Option<Self> {
        let id = &adoption.record.as_ref()?.meta.id;
        let recording = adoption.mark.recording(id).filter(|recording| recording.end.is_none())?;
        Some(Self { id: id.clone(), samples: recording.samples })
    }
}

/// One leg with what the shard knows about it; what every packet needs comes first, as in [`Leg`].
#[repr(C)]
pub(super) struct Slot {
    condition: Condition,
    /// The slot of the leg it is bridged to. Both are open and name each other, or neither does.
    peer: Option<u32>,
    pub(super) id: LegId,
    pub(super) hearing: Hearing,
    /// When it was noted how far it has come; `None`: that is due.
    marked: Option<Instant>,
    leg: Leg,
    tape: Option<Tape>,
    pub(super) phase: Phase,
    pub(super) port: u16,
}

/// What every packet needs of a slot.
const HOT_BYTES: usize = offset_of!(Slot, leg) + Leg::HOT_BYTES;

/// All legs, by slot and by id.
#[derive(Default)]
pub(super) struct Legs {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    by_id: HashMap<LegId, u32>,
    /// Slots whose code panicked and which are to be closed.
    broken: Vec<u32>,
    pub(super) panicked: u64,
}

impl Legs {
    /// Room for `most` legs, in one place from the beginning; memory is taken as they come.
    pub(super) fn new(most: usize) -> Self {
        let mut slots = Vec::with_capacity(most);
        want_huge_pages(slots.spare_capacity_mut());
        Self { slots, ..Self::default() }
    }

    /// Legs open or closing.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// No leg is open or closing.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The slot the next leg will get.
    pub(super) fn next_slot(&self) -> u32 {
        let fresh = || u32::try_from(self.slots.len()).expect("bounded by the ports of a slice");
        self.free.last().copied().unwrap_or_else(fresh)
    }

    /// Puts a leg into `next_slot`.
    pub(super) fn insert(&mut self, now: Instant, id: LegId, port: u16, phase: Phase, leg: Leg) {
        let (condition, hearing) = (Condition::Open, Hearing::AsItComes(now));
        let slot = Slot { id, port, phase, leg, condition, hearing, peer: None, tape: None, marked: None };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(slot);
                index
            }
            None => {
                self.slots.push(Some(slot));
                u32::try_from(self.slots.len() - 1).expect("bounded by the ports of a slice")
            }
        };
        self.by_id.insert(id, index);
    }

    /// Where a leg is.
    pub(super) fn find(&self, id: LegId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// The slot, if a leg is in it.
    pub(super) fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    /// Brings a slot near without a look at it, which would wait for it.
    fn prefetch(&self, index: u32) {
        if let Some(slot) = self.slots.get(index as usize) {
            prefetch_first(slot, HOT_BYTES);
        }
    }

    /// Brings near what a leg needs that is soon due: to be called with 0, 1 and 2, each when the one before
    /// has arrived.
    pub(super) fn prefetch_turn(&mut self, now: Instant, index: u32, depth: usize) {
        if depth == 0 {
            self.prefetch(index);
        } else if let Some(slot) = self.slot_mut(index) {
            slot.leg.prefetch_turn(depth);
            if !slot.hearing.waits(now) {
                slot.leg.prefetch_receive(depth);
            }
        }
    }

    /// What to hear at a leg's turn.
    pub(super) fn step(&mut self, now: Instant, index: u32) -> Step {
        let slot = self.slot_mut(index).filter(|slot| slot.condition == Condition::Open);
        slot.map_or(Step::Wait, |slot| slot.hearing.step(now, slot.leg.may_wait()))
    }

    /// Whether the slot still holds this leg.
    pub(super) fn holds(&self, index: u32, id: LegId) -> bool {
        matches!(self.slots.get(index as usize), Some(Some(slot)) if slot.id == id)
    }

    /// All occupied slots.
    pub(super) fn indices(&self) -> Vec<u32> {
        self.by_id.values().copied().collect()
    }

    /// Does `work` on an open leg and takes its outputs. `None` if there is no such leg, it is
    /// closing, or its code panicked, now or before.
    pub(super) fn with<R>(
        &mut self,
        index: u32,
        outbox: &mut Outbox,
        work: impl FnOnce(&mut Leg) -> R,
    ) -> Option<R> {
        let slot = self.slots.get_mut(index as usize)?.as_mut()?;
        if slot.condition != Condition::Open {
            return None;
        }
        // Unwind safe: after a panic nothing of the leg is used but its counters.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let result = work(&mut slot.leg);
            slot.take_outputs(outbox);
            result
        }));
        match outcome {
            Ok(result) => Some(result),
            Err(_) => {
                tracing::error!(leg = slot.id.0, "a leg's media code panicked; closing the leg");
                slot.condition = Condition::Broken;
                slot.end_tape(outbox);
                self.broken.push(index);
                self.panicked += 1;
                None
            }
        }
    }

    /// Notes how far an open leg has come.
    pub(super) fn mark(&mut self, now: Instant, index: u32, outbox: &mut Outbox, keeper: &mut Keeper) {
        if !keeper.is_on() {
            return;
        }
        let mark = self.with(index, outbox, |leg| leg.mark(now));
        if let (Some(mark), Some(slot)) = (mark, self.slot_mut(index)) {
            slot.marked = Some(now);
            keeper.note(slot.port, &mark);
        }
    }

    /// A recording goes on that began elsewhere.
    pub(super) fn resume_tape(&mut self, index: u32, tape: Option<Tape>) {
        if let (Some(slot), Some(tape)) = (self.slot_mut(index), tape) {
            slot.tape = Some(tape);
        }
    }

    /// Whether that was done long ago.
    pub(super) fn is_mark_due(&mut self, now: Instant, index: u32) -> bool {
        self.slot_mut(index).is_some_and(|slot| slot.marked.is_none_or(|at| at + MARK_INTERVAL <= now))
    }

    /// Slots whose code panicked since the last call.
    pub(super) fn take_broken(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.broken)
    }

    /// Joins two legs: what one receives goes out on the other. False if one of them is not open.
    pub(super) fn bridge(&mut self, outbox: &mut Outbox, one: u32, other: u32) -> bool {
        let mut is_open = |index| self.slot_mut(index).is_some_and(|slot| slot.condition == Condition::Open);
        if one == other || !is_open(one) || !is_open(other) {
            return false;
        }
        for (index, peer) in [(one, other), (other, one)] {
            self.part(outbox, index);
            self.with(index, outbox, Leg::bridge);
            if let Some(slot) = self.slot_mut(index) {
                slot.peer = Some(peer);
            }
        }
        true
    }

    /// Ends the bridge of a leg, if it has one; the other one goes back to prompts and silence.
    pub(super) fn part(&mut self, outbox: &mut Outbox, index: u32) {
        let Some(peer) = self.slot_mut(index).and_then(|slot| slot.peer.take()) else { return };
        if let Some(slot) = self.slot_mut(peer) {
            slot.peer = None;
        }
        self.with(peer, outbox, |leg| leg.set_mode(LegMode::Voice));
    }

    /// From now on the leg only waits for its sockets. False if it did before.
    pub(super) fn begin_closing(&mut self, index: u32) -> bool {
        let Some(slot) = self.slot_mut(index) else { return false };
        if matches!(slot.condition, Condition::Closing(_)) {
            return false;
        }
        slot.condition = Condition::Closing(HALVES);
        true
    }

    /// Frees the slot: id, port and final counters of its leg.
    pub(super) fn remove(&mut self, index: u32) -> Option<(LegId, u16, LegStats)> {
        let slot = self.slots.get_mut(index as usize)?.take()?;
        self.by_id.remove(&slot.id);
        self.free.push(index);
        let stats = catch_unwind(AssertUnwindSafe(|| slot.leg.stats())).unwrap_or_default();
        Some((slot.id, slot.port, stats))
    }
}

impl Slot {
    /// See [`Leg::may_wait`].
    pub(super) fn may_wait(&self) -> bool {
        self.leg.may_wait()
    }

    fn take_outputs(&mut self, outbox: &mut Outbox) {
        while let Some(output) = self.leg.poll_output() {
            match output {
                LegOutput::Event(event) => {
                    if let Event::Digit { .. } | Event::Played { .. } | Event::Recorded { .. } = &event {
                        self.marked = None;
                    }
                    outbox.event(event);
                }
                LegOutput::File(item) => {
                    // What was said must be known to have been said.
                    self.marked = None;
                    match &item {
                        FileItem::Begin(meta) => {
                            self.tape = Some(Tape { id: meta.id.clone(), samples: 0 });
                        }
                        FileItem::Block(_, block) => {
                            if let Some(tape) = &mut self.tape {
                                tape.samples += block.samples();
                            }
                        }
                        FileItem::End { .. } => self.tape = None,
                    }
                    outbox.file(item);
                }
            }
        }
    }

    /// Ends a recording in the leg's stead with what was handed on.
    fn end_tape(&mut self, outbox: &mut Outbox) {
        let Some(Tape { id, samples }) = self.tape.take() else { return };
        let duration = Duration::from_micros(samples * 1_000_000 / u64::from(SAMPLE_RATE_HZ));
        outbox.file(FileItem::End { id: id.clone(), samples });
        // How much of it was voice is lost with the leg; rather keep a silent message than lose one.
        outbox.event(Event::Recorded {
            leg: self.id,
            id,
            duration,
            voiced: duration,
            end: RecordEnd::Closed,
        });
    }
}

/// Hands what the kernel brings to the legs.
pub(super) struct Reaper<'a> {
    pub(super) now: Instant,
    pub(super) legs: &'a mut Legs,
    pub(super) outbox: &'a mut Outbox,
    /// Slots whose last socket closed.
    pub(super) closed: &'a mut Vec<u32>,
    /// When a packet was last relayed.
    pub(super) relayed: &'a mut Option<Instant>,
}

impl Receive for Reaper<'_> {
    fn expect(&mut self, stream: u32, depth: usize) {
        let index = stream / HALVES;
        let Some(deeper) = depth.checked_sub(1) else { return self.legs.prefetch(index) };
        let Some(slot) = self.legs.slot_mut(index) else { return };
        if depth <= Leg::DEPTH_MAX {
            slot.leg.prefetch_receive(depth);
        }
        // The leg it goes to is one pointer farther.
        let Some(peer) = slot.peer else { return };
        if deeper == 0 {
            self.legs.prefetch(peer);
        } else if let Some(peer) = self.legs.slot_mut(peer) {
            peer.leg.prefetch_relay(deeper);
        }
    }

    fn datagram(
        &mut self,
        stream: u32,
        from: SocketAddr,
        at: Instant,
        bytes: &mut [u8],
        length: usize,
    ) -> Option<Forward> {
        let (now, index) = (self.now, stream / HALVES);
        let datagram = bytes.get_mut(..length)?;
        if !stream.is_multiple_of(HALVES) {
            self.legs.with(index, self.outbox, |leg| leg.handle_rtcp(now, from, datagram));
            return None;
        }
        let at = self.legs.slot_mut(index)?.hearing.came(at, now);
        let forward = match self.legs.with(index, self.outbox, |leg| leg.handle_rtp(at, from, datagram))? {
            Verdict::Send { len, to } => Forward { stream, length: len, to },
            Verdict::Onward(heard) => {
                let peer = self.legs.slot_mut(index)?.peer?;
                let sent = self.legs.with(peer, self.outbox, |leg| leg.relay(now, &heard, bytes))?;
                let (length, to) = sent?;
                Forward { stream: peer * HALVES, length, to }
            }
            Verdict::Consumed => return None,
        };
        *self.relayed = Some(now);
        Some(forward)
    }

    fn send_failed(&mut self, stream: u32) {
        self.legs.with(stream / HALVES, self.outbox, Leg::handle_send_error);
    }

    fn closed(&mut self, stream: u32) {
        let index = stream / HALVES;
        let Some(slot) = self.legs.slot_mut(index) else { return };
        if let Condition::Closing(halves) = &mut slot.condition {
            *halves = halves.saturating_sub(1);
            if *halves == 0 {
                self.closed.push(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use crossbeam::queue::ArrayQueue;

    use crate::base::clock;
    use crate::media::leg::LegSeed;
    use crate::media::order::{LegPlan, RecordPlan, RecordingMeta};
    use crate::shard::wheel::Wheel;

    fn leg(id: LegId) -> Leg {
        let plan = LegPlan {
            media: None,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            cname: String::new(),
            media_timeout: Duration::from_secs(1),
        };
        let seed = LegSeed { ssrc: 1, sequence: 1, timestamp: 1 };
        Leg::new(clock::now(), UNIX_EPOCH, id, plan, seed)
    }

    fn record(id: MessageId) -> RecordPlan {
        let meta = RecordingMeta {
            id,
            mailbox: "1001".to_owned(),
            caller: String::new(),
            caller_name: String::new(),
            called: String::new(),
            diversion_reason: String::new(),
            call_id: String::new(),
            started_ms: 0,
            keep: true,
        };
        RecordPlan {
            meta: Box::new(meta),
            duration_max: Duration::from_secs(60),
            silence_max: Duration::from_secs(60),
        }
    }

    /// Goal: a panic costs the leg it happened in, its recording ends well, and its neighbour goes
    /// on. Method: work that panics on one of two legs; the other one and the outbox are looked at.
    #[test]
    fn a_panic_costs_one_leg_and_ends_its_recording() {
        let events = Arc::new(ArrayQueue::new(10));
        let files = Arc::new(ArrayQueue::new(10));
        let mut outbox = Outbox::new(Arc::clone(&events), Arc::clone(&files));
        let (mut legs, mut wheel) = (Legs::default(), Wheel::new());
        for id in [LegId(1), LegId(2)] {
            let phase = wheel.enter(id, 20);
            legs.insert(clock::now(), id, 10_000, phase, leg(id));
        }
        let (index, now) = (legs.find(LegId(1)).unwrap(), clock::now());
        let id = MessageId::new(UNIX_EPOCH, 1);
        legs.with(index, &mut outbox, |leg| leg.record(now, record(id.clone())));
        assert!(matches!(files.pop(), Some(FileItem::Begin(_))));
        assert_eq!(legs.with(index, &mut outbox, |_| -> u8 { panic!("a test") }), None);
        assert!(matches!(files.pop(), Some(FileItem::End { id: ended, samples: 0 }) if ended == id));
        assert!(matches!(events.pop(), Some(Event::Recorded { leg: LegId(1), .. })));
        assert_eq!(legs.with(index, &mut outbox, |_| 1), None, "never called again");
        assert_eq!((legs.panicked, legs.take_broken()), (1, vec![index]));
        assert!(legs.begin_closing(index), "it can be closed");
        let other = legs.find(LegId(2)).unwrap();
        assert_eq!(legs.with(other, &mut outbox, |leg| leg.ptime_ms()), Some(20));
    }

    /// Goal: slots are reused and ids told apart. Method: remove the first of two, insert a third.
    #[test]
    fn slots_are_reused_for_other_ids() {
        let (mut legs, mut wheel) = (Legs::default(), Wheel::new());
        for id in [LegId(1), LegId(2)] {
            let phase = wheel.enter(id, 20);
            legs.insert(clock::now(), id, 10_000, phase, leg(id));
        }
        assert_eq!(legs.next_slot(), 2);
        assert!(legs.remove(0).is_some());
        assert_eq!((legs.next_slot(), legs.len()), (0, 1));
        let phase = wheel.enter(LegId(3), 20);
        legs.insert(clock::now(), LegId(3), 10_002, phase, leg(LegId(3)));
        assert!(legs.holds(0, LegId(3)) && !legs.holds(0, LegId(1)));
        assert!(legs.remove(7).is_none());
    }
}
