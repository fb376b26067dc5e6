//! Packet indices: which rollover a sequence number belongs to, and which index was seen before.

/// Indices under which a packet may come later than a newer one (RFC 3711 §3.3.2 asks for 64).
pub(super) const WINDOW: u64 = 128;
/// SRTP packets one key may protect: the index has 48 bits (RFC 3711 §9.2).
pub(super) const RTP_PACKETS_MAX: u64 = 1 << 48;
/// SRTCP packets one key may protect: the index has 31 bits (RFC 3711 §9.2).
pub(super) const RTCP_PACKETS_MAX: u64 = 1 << 31;

/// The indices that were used. Each is used once.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// One more than the highest index; nought before the first.
    next: u64,
    /// Bit `n`: the index `n` below the highest was used.
    used: u128,
}

impl Window {
    /// One in which every index below `next` was used.
    pub(super) fn before(next: u64) -> Self {
        Self::with(next, u128::MAX)
    }

    /// One as [`Self::state`] told.
    pub(super) fn with(next: u64, used: u128) -> Self {
        Self { next, used: if next == 0 { 0 } else { used } }
    }

    /// One more than the highest index, and which of those below it were used.
    pub(super) fn state(&self) -> (u64, u128) {
        (self.next, self.used)
    }

    /// The index that follows the highest used one.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The 48-bit index that a packet with this sequence number most probably has (RFC 3711 §3.3.1).
    /// The first packet's rollover counter is nought, and none is below it.
    pub(super) fn estimate(&self, sequence: u16) -> u64 {
        let sequence = u64::from(sequence);
        let Some(highest) = self.next.checked_sub(1) else { return sequence };
        let (rollover, newest) = (highest >> 16, highest & 0xFFFF);
        let rollover = if newest < 0x8000 && sequence > newest + 0x8000 {
            rollover.saturating_sub(1)
        } else if newest >= 0x8000 && sequence < newest - 0x8000 {
            rollover + 1
        } else {
            rollover
        };
        rollover << 16 | sequence
    }

    /// Whether the index was not used and is not so old that nobody knows.
    pub(super) fn is_fresh(&self, index: u64) -> bool {
        match self.next.checked_sub(index + 1) {
            None => true,
            Some(age) => age < WINDOW && self.used >> age & 1 == 0,
        }
    }

    /// Under another key no index was used; the highest still tells which rollover it is.
    pub(super) fn forget_used(&mut self) {
        self.used = 0;
    }

    /// Notes that a fresh index is used.
    pub(super) fn accept(&mut self, index: u64) {
        match self.next.checked_sub(index + 1) {
            None => {
                let steps = index + 1 - self.next;
                self.used = if steps < WINDOW { self.used << steps | 1 } else { 1 };
                self.next = index + 1;
            }
            Some(age) if age < WINDOW => self.used |= 1 << age,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(index: u64) -> Window {
        let mut window = Window::default();
        window.accept(index);
        window
    }

    /// Goal: the index estimate is RFC 3711 §3.3.1's. Method: its cases about the highest index,
    /// both sides of 2^15, and the beginning, where no rollover is below nought.
    #[test]
    fn the_rollover_is_estimated_from_the_highest_index() {
        assert_eq!(Window::default().estimate(0xFFFF), 0xFFFF);
        for (highest, sequence, index) in [
            (0x5, 0x6, 0x6),
            (0xFFFF, 0x0, 0x1_0000),
            (0x1_0000, 0xFFFF, 0xFFFF),
            (0x1_0000, 0x8000, 0x1_8000),
            (0x1_0000, 0x8001, 0x8001),
            (0x1_8000, 0x0, 0x1_0000),
            (0x1_8001, 0x0, 0x2_0000),
            (0x1_8001, 0x1, 0x1_0001),
            (0x7_FFF0, 0x7FEF, 0x8_7FEF),
            (0x7_FFF0, 0x7FF0, 0x7_7FF0),
            (0x5, 0xFFF0, 0xFFF0),
        ] {
            assert_eq!(after(highest).estimate(sequence), index, "{sequence:x} after {highest:x}");
        }
    }

    /// Goal: each index is used once; 127 below the highest is known, 128 is too old. Method: a gap,
    /// its filling from behind, jumps wider than the window.
    #[test]
    fn an_index_is_fresh_once_and_within_the_window() {
        let mut window = Window::default();
        assert!(window.is_fresh(0));
        window.accept(0);
        assert!(!window.is_fresh(0));
        window.accept(127);
        assert!((1..127).all(|index| window.is_fresh(index)));
        assert!(!window.is_fresh(0) && !window.is_fresh(127));
        window.accept(1);
        assert!(!window.is_fresh(1));
        window.accept(128);
        assert!(!window.is_fresh(0), "too old");
        assert!(!window.is_fresh(1) && window.is_fresh(2) && !window.is_fresh(127) && !window.is_fresh(128));
        window.accept(1_000_000);
        assert!(window.is_fresh(1_000_000 - 127) && !window.is_fresh(1_000_000 - 128));
        assert_eq!(window.next(), 1_000_001);
    }
}
