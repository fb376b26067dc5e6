//! One source as its receiver sees it: validity, loss and jitter (RFC 3550 A.1, A.3, A.8).

use std::time::Duration;

use super::packet::{RtpTimestamp, SeqNo};

/// Largest forward jump that is a gap and not a new stream (A.1).
pub const MAX_DROPOUT: u16 = 3000;
/// Largest step back that is reordering and not a new stream (A.1).
pub const MAX_MISORDER: u16 = 100;
/// Packets in sequence before a source is valid (A.1).
pub const MIN_SEQUENTIAL: u8 = 2;
/// How far back duplicates are recognised; more than the reordering A.1 admits.
const HISTORY_BITS: u16 = 128;
const _: () = assert!(HISTORY_BITS > MAX_MISORDER);
/// Extended numbers start one cycle up, so that a packet from before the first has one too.
const FIRST_CYCLE: u64 = 1 << 16;

/// What one arrival turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Use it. `extended` counts on through wraps; it starts between 65536 and 131071 and only
    /// differences of it mean anything. Reordered packets have a smaller one than their
    /// predecessor.
    Valid {
        /// Sequence number with its cycles.
        extended: u64,
    },
    /// The source has not yet sent two packets in sequence; not to be used.
    Probation,
    /// This number has been seen before. Counted as received (A.3), not to be used.
    Duplicate {
        /// Sequence number with its cycles.
        extended: u64,
    },
    /// Far from all before: a stray packet, or the first of a restarted stream. Not to be used.
    Invalid,
    /// The second packet after such a jump: the source has restarted and is counted anew. Use it
    /// and forget what was buffered; `extended` has no relation to earlier ones.
    Restarted {
        /// Sequence number with its cycles.
        extended: u64,
    },
}

/// What a report block says of a source (RFC 3550 §6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reception {
    /// Loss since the last report, out of 256.
    pub fraction_lost: u8,
    /// Expected less received since the start, within 24 bits; negative with duplicates.
    pub cumulative_lost: i32,
    /// Highest sequence number with the count of its cycles above.
    pub extended_highest: u32,
    /// Interarrival jitter, RTP timestamp units.
    pub jitter: u32,
}

/// What a source's statistics need to go on in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceMark {
    /// Extended number of the first packet counted.
    pub base: u64,
    /// Extended number of the highest packet.
    pub highest: u64,
    /// Packets counted, duplicates included.
    pub received: u64,
    /// Interarrival jitter, RTP timestamp units times 16.
    pub jitter_x16: u32,
}

/// The state RFC 3550 A.1 keeps for each source, with A.3's counts and A.8's jitter.
#[derive(Debug, Clone)]
pub struct SourceState {
    base: u64,
    highest: u64,
    /// The number that would prove a restart after a jump.
    bad_next: Option<SeqNo>,
    /// Packets in sequence still wanted.
    probation: u8,
    /// Bit n: `highest - n` has arrived.
    history: u128,
    received: u64,
    expected_prior: u64,
    received_prior: u64,
    transit: Option<u32>,
    /// Times 16, as in A.8, so that the fraction survives.
    jitter_x16: u64,
}

impl SourceState {
    /// A source whose first packet carries `first`; hand that packet to [`Self::handle`] next.
    pub fn new(first: SeqNo) -> Self {
        let mut state = Self {
            base: 0,
            highest: 0,
            bad_next: None,
            probation: MIN_SEQUENTIAL,
            history: 0,
            received: 0,
            expected_prior: 0,
            received_prior: 0,
            transit: None,
            jitter_x16: 0,
        };
        state.restart(first);
        state.highest -= 1; // A.1: max_seq = seq - 1, so that the first is in sequence.
        state
    }

    /// What [`Self::resume`] needs. A source on probation counts as valid from its newest packet on.
    pub fn mark(&self) -> SourceMark {
        let on_probation = self.probation > 0;
        SourceMark {
            base: if on_probation { self.highest } else { self.base },
            highest: self.highest,
            received: if on_probation { 1 } else { self.received },
            jitter_x16: u32::try_from(self.jitter_x16).unwrap_or(u32::MAX),
        }
    }

    /// A valid source that was followed up to `mark` by another process: all up to there counts as
    /// arrived, and the next report's fraction begins there.
    pub fn resume(mark: &SourceMark) -> Self {
        let expected = (mark.highest + 1).saturating_sub(mark.base);
        Self {
            base: mark.base,
            highest: mark.highest,
            bad_next: None,
            probation: 0,
            history: u128::MAX,
            received: mark.received,
            expected_prior: expected,
            received_prior: mark.received,
            transit: None,
            jitter_x16: mark.jitter_x16.into(),
        }
    }

    /// Judges one arrival and counts it (RFC 3550 A.1).
    pub fn handle(&mut self, sequence: SeqNo) -> Validity {
        let delta = sequence.since(seq_no(self.highest));
        if self.probation > 0 {
            return self.handle_on_probation(sequence, delta);
        }
        if delta < MAX_DROPOUT {
            return self.handle_forward(delta);
        }
        let back = 0_u16.wrapping_sub(delta);
        if back >= MAX_MISORDER {
            return self.handle_jump(sequence);
        }
        self.received += 1;
        let extended = self.highest - u64::from(back);
        let bit = 1 << back;
        if self.history & bit != 0 {
            return Validity::Duplicate { extended };
        }
        self.history |= bit;
        Validity::Valid { extended }
    }

    fn handle_on_probation(&mut self, sequence: SeqNo, delta: u16) -> Validity {
        if delta != 1 {
            self.probation = MIN_SEQUENTIAL - 1;
            self.highest = FIRST_CYCLE + u64::from(sequence.0);
            return Validity::Probation;
        }
        self.highest += 1;
        self.probation -= 1;
        if self.probation > 0 {
            return Validity::Probation;
        }
        self.restart(sequence);
        self.received = 1;
        Validity::Valid { extended: self.highest }
    }

    /// In order, with a permissible gap; `delta` 0 is the newest once more.
    fn handle_forward(&mut self, delta: u16) -> Validity {
        self.received += 1;
        if delta == 0 {
            return Validity::Duplicate { extended: self.highest };
        }
        self.highest += u64::from(delta);
        self.history = self.history.checked_shl(u32::from(delta)).unwrap_or(0) | 1;
        Validity::Valid { extended: self.highest }
    }

    /// Two packets in sequence beyond a jump mean the other side restarted without telling.
    fn handle_jump(&mut self, sequence: SeqNo) -> Validity {
        if self.bad_next != Some(sequence) {
            self.bad_next = Some(sequence.plus(1));
            return Validity::Invalid;
        }
        self.restart(sequence);
        self.received = 1;
        Validity::Restarted { extended: self.highest }
    }

    /// A.1's init_seq.
    fn restart(&mut self, sequence: SeqNo) {
        self.base = FIRST_CYCLE + u64::from(sequence.0);
        self.highest = self.base;
        self.bad_next = None;
        self.history = 1;
        self.received = 0;
        self.expected_prior = 0;
        self.received_prior = 0;
        self.transit = None;
    }

    /// Folds one arrival into the interarrival jitter; call it for `Valid` and `Restarted`.
    ///
    /// `arrival` is the local clock in **RTP timestamp units** ([`clock_units`]). Returns the value
    /// a report block carries, same units. RFC 3550 §6.4.1, integer form of A.8.
    pub fn handle_arrival(&mut self, timestamp: RtpTimestamp, arrival: RtpTimestamp) -> u32 {
        let transit = arrival.since(timestamp);
        if let Some(before) = self.transit.replace(transit) {
            let forward = transit.wrapping_sub(before);
            let change = u64::from(forward.min(forward.wrapping_neg()));
            // A.8: jitter += d - ((jitter + 8) >> 4); at rest the right side is at most jitter.
            self.jitter_x16 = self.jitter_x16 + change - ((self.jitter_x16 + 8) >> 4);
        }
        self.jitter()
    }

    /// Interarrival jitter, RTP timestamp units.
    pub fn jitter(&self) -> u32 {
        u32::try_from(self.jitter_x16 >> 4).unwrap_or(u32::MAX)
    }

    /// True once two packets came in sequence.
    pub fn is_valid(&self) -> bool {
        self.probation == 0
    }

    /// Packets counted since the source became valid or restarted, duplicates included (A.3).
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Packets the sequence numbers promise (A.3).
    pub fn expected(&self) -> u64 {
        if self.probation > 0 { 0 } else { self.highest - self.base + 1 }
    }

    /// Expected less received (A.3); negative when duplicates outnumber the lost.
    pub fn lost(&self) -> i64 {
        i64::try_from(self.expected()).unwrap_or(i64::MAX) - i64::try_from(self.received).unwrap_or(i64::MAX)
    }

    /// Highest sequence number with its cycles, as a report block carries it.
    #[expect(clippy::cast_possible_truncation, reason = "the report carries the low 32 bits")]
    pub fn extended_highest(&self) -> u32 {
        (self.highest - FIRST_CYCLE) as u32
    }

    /// What to report now; the next fraction counts from here (A.3).
    pub fn report(&mut self) -> Reception {
        let expected = self.expected();
        let expected_interval = expected.saturating_sub(self.expected_prior);
        let received_interval = self.received - self.received_prior;
        self.expected_prior = expected;
        self.received_prior = self.received;
        let lost_interval = expected_interval.saturating_sub(received_interval);
        let fraction = (lost_interval << 8).checked_div(expected_interval).unwrap_or(0);
        let lost = self.lost().clamp(-0x80_0000, 0x7F_FFFF);
        Reception {
            fraction_lost: u8::try_from(fraction).unwrap_or(u8::MAX),
            cumulative_lost: i32::try_from(lost).unwrap_or(0),
            extended_highest: self.extended_highest(),
            jitter: self.jitter(),
        }
    }
}

/// The sequence number within an extended one.
#[expect(clippy::cast_possible_truncation, reason = "the low 16 bits are the point")]
fn seq_no(extended: u64) -> SeqNo {
    SeqNo(extended as u16)
}

/// `elapsed` since any fixed origin on a clock of `rate_hz`, wrapped like an RTP timestamp.
#[expect(clippy::cast_possible_truncation, reason = "RTP timestamps wrap at 32 bits")]
pub fn clock_units(elapsed: Duration, rate_hz: u32) -> RtpTimestamp {
    RtpTimestamp(units_in(elapsed, rate_hz) as u32)
}

/// `elapsed` in units of a clock of `rate_hz`, rounded down; the most there is if it is longer.
pub fn units_in(elapsed: Duration, rate_hz: u32) -> u64 {
    // In 64 bits: a division of 128 takes longer than the rest of a packet's statistics.
    let (rate, nanos) = (u64::from(rate_hz), u64::from(elapsed.subsec_nanos()));
    elapsed.as_secs().saturating_mul(rate).saturating_add(nanos * rate / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source past its probation, whose newest packet is `newest`.
    fn valid_at(newest: u16) -> SourceState {
        let first = SeqNo(newest.wrapping_sub(1));
        let mut state = SourceState::new(first);
        assert_eq!(state.handle(first), Validity::Probation);
        assert!(matches!(state.handle(SeqNo(newest)), Validity::Valid { .. }));
        state
    }

    /// Goal: a stray datagram never validates a source (RFC 3550 A.1, MIN_SEQUENTIAL 2).
    /// Method: packets out of sequence, then two in sequence.
    #[test]
    fn a_source_is_valid_after_two_packets_in_sequence() {
        let mut state = SourceState::new(SeqNo(10));
        for stray in [10, 20, 40, 39, 60] {
            assert_eq!(state.handle(SeqNo(stray)), Validity::Probation, "{stray}");
            assert!(!state.is_valid());
            assert_eq!(state.expected(), 0);
        }
        assert_eq!(state.handle(SeqNo(61)), Validity::Valid { extended: 65_536 + 61 });
        assert!(state.is_valid());
        assert_eq!((state.received(), state.expected(), state.lost()), (1, 1, 0));
    }

    /// Goal: the extended number counts on through the wrap, also for reordered packets.
    /// Method: arithmetic around 65535.
    #[test]
    fn extended_numbers_count_through_the_wrap() {
        let mut state = valid_at(65_534);
        assert_eq!(state.handle(SeqNo(1)), Validity::Valid { extended: 65_536 + 65_537 });
        assert_eq!(state.handle(SeqNo(65_535)), Validity::Valid { extended: 65_536 + 65_535 });
        assert_eq!(state.handle(SeqNo(0)), Validity::Valid { extended: 65_536 + 65_536 });
        assert_eq!(state.extended_highest(), 65_537); // One cycle, number 1.
        assert_eq!(state.lost(), 0);
    }

    /// Goal: a number seen twice is told from one that is late. Method: gap, late, late again.
    #[test]
    fn late_packets_are_valid_once_and_duplicates_after_that() {
        let mut state = valid_at(1000);
        assert_eq!(state.handle(SeqNo(1003)), Validity::Valid { extended: 66_539 });
        assert_eq!(state.handle(SeqNo(1001)), Validity::Valid { extended: 66_537 });
        assert_eq!(state.handle(SeqNo(1001)), Validity::Duplicate { extended: 66_537 });
        assert_eq!(state.handle(SeqNo(1003)), Validity::Duplicate { extended: 66_539 });
        assert_eq!(state.handle(SeqNo(1000)), Validity::Duplicate { extended: 66_536 });
        // 1000-1003 expected, 1000 1003 1001 and three duplicates received.
        assert_eq!((state.expected(), state.received(), state.lost()), (4, 6, -2));
    }

    /// Goal: packets from before the first one are no underflow. Method: first number 0.
    #[test]
    fn a_packet_from_before_the_first_is_late_not_a_new_cycle() {
        let mut state = valid_at(0);
        assert_eq!(state.handle(SeqNo(65_530)), Validity::Valid { extended: 65_530 });
        assert_eq!(state.extended_highest(), 0);
    }

    /// Goal: the limits of A.1 hold to the packet: 2999 ahead is a gap, 3000 a jump, 99 behind is
    /// late, 100 behind a jump. Method: one source each.
    #[test]
    fn jumps_beyond_max_dropout_or_max_misorder_are_invalid() {
        assert!(matches!(valid_at(5000).handle(SeqNo(7999)), Validity::Valid { .. }));
        assert_eq!(valid_at(5000).handle(SeqNo(8000)), Validity::Invalid);
        assert!(matches!(valid_at(5000).handle(SeqNo(4901)), Validity::Valid { .. }));
        assert_eq!(valid_at(5000).handle(SeqNo(4900)), Validity::Invalid);
    }

    /// Goal: a peer that restarts its numbering is followed after two packets (A.1, bad_seq).
    /// Method: jump, stray, jump and its successor.
    #[test]
    fn two_packets_in_sequence_beyond_a_jump_restart_the_source() {
        let mut state = valid_at(100);
        assert_eq!(state.handle(SeqNo(30_000)), Validity::Invalid);
        assert!(matches!(state.handle(SeqNo(101)), Validity::Valid { .. }));
        assert_eq!(state.handle(SeqNo(40_000)), Validity::Invalid);
        assert_eq!(state.handle(SeqNo(40_001)), Validity::Restarted { extended: 65_536 + 40_001 });
        assert_eq!((state.received(), state.expected()), (1, 1));
        assert!(matches!(state.handle(SeqNo(40_002)), Validity::Valid { .. }));
    }

    /// Goal: fraction and cumulative loss follow A.3. Method: 1 of 4 lost, then none, arithmetic.
    #[test]
    fn reports_count_loss_since_the_last_report() {
        let mut state = valid_at(1);
        state.handle(SeqNo(2));
        state.handle(SeqNo(4)); // 3 is lost
        let report = state.report();
        assert_eq!(report.fraction_lost, 64); // 1 of 4, times 256
        assert_eq!((report.cumulative_lost, report.extended_highest), (1, 4));
        state.handle(SeqNo(5));
        let report = state.report();
        assert_eq!((report.fraction_lost, report.cumulative_lost), (0, 1));
        let report = state.report(); // Nothing arrived: no division by nought.
        assert_eq!((report.fraction_lost, report.cumulative_lost), (0, 1));
    }

    /// Goal: more duplicates than losses give a negative cumulative count and no fraction (A.3).
    /// Method: one packet 300 times.
    #[test]
    fn duplicates_make_the_cumulative_loss_negative() {
        let mut state = valid_at(7);
        for _ in 0..300 {
            state.handle(SeqNo(7));
        }
        let report = state.report();
        assert_eq!((report.fraction_lost, report.cumulative_lost), (0, -300));
    }

    /// Goal: jitter equals the integer algorithm of A.8. Method: 20 ms packets, one 5 ms late:
    /// two changes of 40 units. 40 -> (40)>>4 = 2; 40 + 40 - 3 = 77 -> 4; 77 - 5 = 72 -> 4.
    #[test]
    fn jitter_follows_the_integer_algorithm() {
        let mut state = valid_at(1);
        let mut arrive = |packet: u32, late: u32| {
            state.handle_arrival(RtpTimestamp(packet * 160), RtpTimestamp(packet * 160 + late))
        };
        assert_eq!(arrive(0, 7), 0);
        assert_eq!(arrive(1, 7), 0);
        assert_eq!(arrive(2, 47), 2);
        assert_eq!(arrive(3, 7), 4);
        assert_eq!(arrive(4, 7), 4);
    }

    /// Goal: hostile timestamps cannot overflow. Method: the largest change, many times; A.8's
    /// fixed point is the change itself.
    #[test]
    fn jitter_of_wild_timestamps_stays_bounded() {
        let mut state = valid_at(1);
        let mut last = 0;
        for n in 0..1000_u32 {
            last = state.handle_arrival(RtpTimestamp((n % 2) << 31), RtpTimestamp(0));
        }
        assert!(last <= 1 << 31 && last > 1 << 30, "{last}");
    }

    /// Goal: local time becomes RTP units. Method: 8000 Hz: 125 us a unit; wrap after 2^32 units.
    #[test]
    fn local_time_in_rtp_units_wraps_like_a_timestamp() {
        assert_eq!(clock_units(Duration::from_millis(20), 8000), RtpTimestamp(160));
        assert_eq!(clock_units(Duration::from_micros(124), 8000), RtpTimestamp(0));
        let wrap = Duration::from_micros(125 * (1 << 32));
        assert_eq!(clock_units(wrap + Duration::from_millis(1), 8000), RtpTimestamp(8));
    }
}
