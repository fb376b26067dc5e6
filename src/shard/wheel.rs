//! When each leg is due: a wheel of 2 ms ticks.
//!
//! A tick is what a packet may wait for others that are served with it, each time the same: every packet
//! time is a multiple of it. A wake-up costs as much as a dozen packets (50 us on a virtual machine), so
//! half as many of them make 250 relayed calls a fifth cheaper.
//!
//! While nothing is relayed, the shard serves two ticks at a time: a leg is then served at its own tick or
//! at the one after it, always the same.
//!
//! A leg enters in the least loaded of 10 phases and is then due every packet time, for ever on
//! the grid it started on: a late turn never shifts it.

use std::time::{Duration, Instant};

/// Milliseconds in a tick.
const TICK_MS: u64 = 2;
/// Phases a new leg chooses from: the usual packet time in ticks.
const PHASES: usize = 10;
/// More than the longest period, so that a leg's next turn is never in the slot being read.
const SLOTS: u64 = 64;
/// Legs due in one tick that cost no allocation, the first time round included.
const SLOT_ROOM: usize = 16;
/// Longest period in ticks, 100 ms.
const PERIOD_MAX: u64 = 50;
const _: () = assert!(SLOTS > PERIOD_MAX);

/// Tick numbers and their instants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid(Instant);

impl Grid {
    /// Tick nought is `origin`.
    pub(super) fn new(origin: Instant) -> Self {
        Self(origin)
    }

    /// The last tick that has begun.
    pub(super) fn tick(self, now: Instant) -> u64 {
        let ms = u64::try_from(now.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX);
        ms / TICK_MS
    }

    /// When a tick begins.
    pub(super) fn at(self, tick: u64) -> Instant {
        self.0 + Duration::from_millis(tick.saturating_mul(TICK_MS))
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    key: K,
    due: u64,
    /// Ticks between turns.
    period: u64,
}

impl<K: Copy> Entry<K> {
    /// Serves the turn that is due at `tick` or was before it, and moves on to the first one after
    /// `tick`. False: the leg leaves.
    fn serve(
        &mut self,
        tick: u64,
        after: Due<'_, K>,
        serve: &mut impl FnMut(K, u32, Due<'_, K>) -> Option<u8>,
    ) -> bool {
        let missed = (tick - self.due) / self.period;
        self.due += missed * self.period;
        let Some(period_ms) = serve(self.key, u32::try_from(missed).unwrap_or(u32::MAX), after) else {
            return false;
        };
        self.period = period(period_ms);
        let behind = (tick - self.due) / self.period;
        self.due += (behind + 1) * self.period;
        true
    }
}

/// Who is due in this tick after the one that is served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due<'a, K>(&'a [Entry<K>]);

impl<K: Copy> Due<'_, K> {
    /// The one after so many others.
    pub(super) fn get(&self, others: usize) -> Option<K> {
        self.0.get(others).map(|entry| entry.key)
    }
}

/// A period in ticks, kept within what the wheel can turn.
fn period(period_ms: u8) -> u64 {
    (u64::from(period_ms) / TICK_MS).clamp(1, PERIOD_MAX)
}

/// Legs by due tick.
#[derive(Debug)]
pub(super) struct Wheel<K> {
    slots: Vec<Vec<Entry<K>>>,
    load: [u32; PHASES],
    /// Legs whose packet time is an odd number of ticks.
    odd: u32,
    /// The first tick not yet served.
    next: u64,
    /// Kept for its allocation.
    spare: Vec<Entry<K>>,
}

/// A leg's place, to be returned with [`Wheel::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Phase {
    index: usize,
    /// A packet time that is no multiple of 20 ms also comes round half-way.
    halves: bool,
}

impl<K: Copy> Wheel<K> {
    /// An empty wheel whose first tick to serve is nought.
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::with_capacity(SLOT_ROOM)).collect(),
            load: [0; PHASES],
            odd: 0,
            next: 0,
            spare: Vec::new(),
        }
    }

    /// The first tick not yet served.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether a leg is due at odd ticks and at even ones in turn.
    pub(super) fn has_odd_periods(&self) -> bool {
        self.odd > 0
    }

    /// Lets `key` be due every `period_ms` (2 to 100) from its phase's next tick on.
    pub(super) fn enter(&mut self, key: K, period_ms: u8) -> Phase {
        let index = (0..PHASES).min_by_key(|&index| self.load[index]).unwrap_or(0);
        let phase = self.count(index, period_ms);
        let ahead = (index as u64 + PHASES as u64 - self.next % PHASES as u64) % PHASES as u64;
        let due = self.next + ahead;
        self.slot(due).push(Entry { key, due, period: period(period_ms) });
        phase
    }

    /// The leg's packet time changed; its phase stays.
    pub(super) fn change(&mut self, phase: Phase, period_ms: u8) -> Phase {
        self.leave(phase);
        self.count(phase.index, period_ms)
    }

    /// The leg is gone. Its entry vanishes when it comes up.
    pub(super) fn leave(&mut self, phase: Phase) {
        self.load[phase.index] -= 1;
        if phase.halves {
            self.load[(phase.index + PHASES / 2) % PHASES] -= 1;
            self.odd -= 1;
        }
    }

    /// Serves every tick up to `tick`. `serve` gets the key, how many earlier turns it missed and who is
    /// due after it, and returns its packet time, or `None` to leave the wheel.
    pub(super) fn advance(&mut self, tick: u64, mut serve: impl FnMut(K, u32, Due<'_, K>) -> Option<u8>) {
        if tick < self.next {
            return;
        }
        // Each slot once is enough however long the stall was.
        let first = self.next.max(tick.saturating_sub(SLOTS - 1));
        self.next = tick + 1;
        for slot in first..=tick {
            let spare = std::mem::take(&mut self.spare);
            let mut entries = std::mem::replace(self.slot(slot), spare);
            let mut left = entries.as_slice();
            while let Some((entry, after)) = left.split_first() {
                left = after;
                let mut entry = *entry;
                let more = entry.due > tick || entry.serve(tick, Due(left), &mut serve);
                if more {
                    self.slot(entry.due).push(entry);
                }
            }
            entries.clear();
            self.spare = entries;
        }
    }

    fn count(&mut self, index: usize, period_ms: u8) -> Phase {
        let halves = !period(period_ms).is_multiple_of(PHASES as u64);
        self.load[index] += 1;
        if halves {
            self.load[(index + PHASES / 2) % PHASES] += 1;
            self.odd += 1;
        }
        Phase { index, halves }
    }

    fn slot(&mut self, tick: u64) -> &mut Vec<Entry<K>> {
        let index = usize::try_from(tick % SLOTS).expect("below the slots");
        &mut self.slots[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    /// Ticks at which each key is served when every tick is.
    fn served(wheel: &mut Wheel<u32>, ticks: std::ops::Range<u64>, period_ms: u8) -> Vec<(u64, u32)> {
        let mut seen = Vec::new();
        for tick in ticks {
            wheel.advance(tick, |key, missed, _| {
                assert_eq!(missed, 0);
                seen.push((tick, key));
                Some(period_ms)
            });
        }
        seen
    }

    /// Goal: 20 legs of 20 ms spread two a tick, each every 10 ticks exactly.
    /// Method: 30 ticks; count per tick and per leg.
    #[test]
    fn legs_spread_evenly_over_the_phases_and_keep_theirs() {
        let mut wheel = Wheel::new();
        for key in 0..20 {
            wheel.enter(key, 20);
        }
        let seen = served(&mut wheel, 0..30, 20);
        assert_eq!(seen.len(), 60);
        for tick in 0..30 {
            assert_eq!(seen.iter().filter(|seen| seen.0 == tick).count(), 2, "tick {tick}");
        }
        for key in 0..20 {
            let ticks: Vec<u64> = seen.iter().filter(|seen| seen.1 == key).map(|seen| seen.0).collect();
            assert_eq!(ticks[1] - ticks[0], 10);
            assert_eq!(ticks[2] - ticks[1], 10);
        }
    }

    /// Goal: every packet time from 10 to 60 ms, and 100 ms, comes round exactly. Method: 600 ticks each.
    #[test]
    fn every_packet_time_keeps_its_period() {
        for period_ms in [10, 20, 30, 40, 50, 60, 100] {
            let mut wheel = Wheel::new();
            wheel.enter(7, period_ms);
            let seen = served(&mut wheel, 0..600, period_ms);
            assert_eq!(seen.len(), 1200 / usize::from(period_ms), "{period_ms} ms");
            let even = seen.windows(2).all(|pair| (pair[1].0 - pair[0].0) * TICK_MS == u64::from(period_ms));
            assert!(even, "{period_ms} ms");
        }
    }

    /// Goal: places freed are taken again, so phases stay even over many calls.
    /// Method: fill 10, free phase 5, admit one: it must take phase 5.
    #[test]
    fn freed_places_are_the_least_loaded_ones() {
        let mut wheel = Wheel::new();
        let phases: Vec<Phase> = (0..10).map(|key| wheel.enter(key, 20)).collect();
        wheel.leave(phases[5]);
        assert_eq!(wheel.enter(10, 20), phases[5]);
    }

    /// Goal: a stall is told as missed turns, once, and the grid is kept.
    /// Method: served at 0, then silence until tick 53: turns 10, 20, 30, 40 were missed, 50 is
    /// late, and the next one is 60.
    #[test]
    fn a_stall_reports_missed_turns_and_keeps_the_grid() {
        let mut wheel = Wheel::new();
        wheel.enter(1, 20);
        wheel.advance(0, |_, _, _| Some(20));
        let mut seen = Vec::new();
        wheel.advance(53, |_, missed, _| {
            seen.push(missed);
            Some(20)
        });
        assert_eq!(seen, [4]);
        assert_eq!(served(&mut wheel, 54..71, 20), [(60, 1), (70, 1)]);
    }

    /// Goal: a stall of minutes costs one pass. Method: jump by 10 minutes.
    #[test]
    fn a_very_long_stall_serves_each_leg_once() {
        let mut wheel = Wheel::new();
        for key in 0..100 {
            wheel.enter(key, 20);
        }
        let mut count = 0;
        wheel.advance(600_000, |_, missed, _| {
            count += 1;
            assert!(missed >= 59_999);
            Some(20)
        });
        assert_eq!(count, 100);
        assert_eq!(wheel.next(), 600_001);
    }

    /// Goal: a new packet time takes effect from the next turn. Method: 20 ms, then 60 ms.
    #[test]
    fn a_changed_packet_time_applies_from_the_next_turn() {
        let mut wheel = Wheel::new();
        let phase = wheel.enter(1, 20);
        wheel.advance(0, |_, _, _| Some(60));
        wheel.change(phase, 60);
        assert_eq!(served(&mut wheel, 1..61, 60), [(30, 1), (60, 1)]);
    }

    /// Goal: a leg that is gone is not served again. Method: leave at its first turn.
    #[test]
    fn legs_that_leave_are_forgotten() {
        let mut wheel = Wheel::new();
        wheel.enter(1, 10);
        wheel.advance(0, |_, _, _| None);
        assert_eq!(served(&mut wheel, 1..100, 10), []);
    }

    /// Goal: ticks and instants agree. Method: fake clock around a boundary.
    #[test]
    fn grid_ticks_begin_at_their_instants() {
        let origin = clock::now();
        let grid = Grid::new(origin);
        assert_eq!(grid.tick(origin + Duration::from_micros(5999)), 2);
        assert_eq!(grid.tick(grid.at(3)), 3);
    }
}
