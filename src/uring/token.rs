//! What a submission carries and its completion brings back: `op:8 | generation:24 | slot:32`.
//!
//! Nothing else reads or makes `user_data`. Tag, never point: a completion that outlives its slot
//! is exposed by its generation instead of following a dangling pointer.

/// Which kind of submission completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// Multishot receive.
    Receive = 1,
    /// Send; only failures arrive.
    Send = 2,
    /// Cancellation of a receive; only failures arrive.
    Cancel = 3,
    /// The event that other threads wake the shard with.
    Wake = 4,
}

/// The decoded form of `user_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    /// What completed.
    pub(super) op: Op,
    /// Which use of the slot; 24 bits, see [`Token::next_generation`].
    pub(super) generation: u32,
    /// Which stream.
    pub(super) slot: u32,
}

impl Token {
    const GENERATION_BITS: u32 = 24;
    const GENERATION_MASK: u32 = (1 << Self::GENERATION_BITS) - 1;

    /// The generation after `generation`; wraps at 24 bits.
    pub(super) const fn next_generation(generation: u32) -> u32 {
        generation.wrapping_add(1) & Self::GENERATION_MASK
    }

    /// The wire form. Generation bits above 24 are lost, which [`Token::next_generation`] never
    /// makes.
    pub(super) fn encode(self) -> u64 {
        (u64::from(self.op as u8) << 56)
            | (u64::from(self.generation & Self::GENERATION_MASK) << 32)
            | u64::from(self.slot)
    }

    /// Reads `user_data`. `None`: an op we never submitted; count it, never act on it.
    pub(super) fn decode(user_data: u64) -> Option<Self> {
        let [op, a, b, c, s0, s1, s2, s3] = user_data.to_be_bytes();
        let op = match op {
            1 => Op::Receive,
            2 => Op::Send,
            3 => Op::Cancel,
            4 => Op::Wake,
            _ => return None,
        };
        let generation = u32::from_be_bytes([0, a, b, c]);
        Some(Self { op, generation, slot: u32::from_be_bytes([s0, s1, s2, s3]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: the layout is the documented one. Method: one value written out by hand.
    #[test]
    fn layout_is_op_then_generation_then_slot() {
        let token = Token { op: Op::Send, generation: 0xAB_CDEF, slot: 0x1234_5678 };
        assert_eq!(token.encode(), 0x02AB_CDEF_1234_5678);
    }

    /// Goal: a slot used 2^24 times starts over and never spills into the op.
    /// Method: the last generation's successor.
    #[test]
    fn generations_wrap_within_24_bits() {
        assert_eq!(Token::next_generation(0xFF_FFFF), 0);
        assert_eq!(Token::next_generation(0), 1);
    }

    proptest! {
        /// Goal: every token survives its wire form. Method: all ops, any generation, any slot.
        #[test]
        fn tokens_round_trip(op in 1_u8..=4, generation in 0_u32..1 << 24, slot: u32) {
            let op = [Op::Receive, Op::Send, Op::Cancel, Op::Wake][usize::from(op) - 1];
            let token = Token { op, generation, slot };
            prop_assert_eq!(Token::decode(token.encode()), Some(token));
        }

        /// Goal: foreign `user_data` is refused, never guessed at. Method: every other op byte.
        #[test]
        fn unknown_ops_are_refused(op in prop_oneof![Just(0_u8), 5..=255_u8], rest in 0_u64..1 << 56) {
            prop_assert_eq!(Token::decode(u64::from(op) << 56 | rest), None);
        }
    }
}
