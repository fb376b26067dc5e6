//! A small seeded generator (SplitMix64), so that every run can be repeated.

/// Deterministic pseudo-random numbers; not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed from time and process, for identifiers that must differ between runs.
    pub fn from_environment() -> Self {
        let nanos = u64::try_from(crate::clock::calendar().as_nanos() & u128::from(u64::MAX)).unwrap_or(1);
        Self(nanos ^ (u64::from(std::process::id()) << 40))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True with the given probability (0 to 1).
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits fill the mantissa exactly.
        let unit = f64::from(u32::try_from(self.bits() >> 32).unwrap_or(0)) / 4_294_967_296.0;
        unit < probability
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        u32::try_from(self.bits() >> 32).unwrap_or(0)
    }

    /// 16 random bits.
    pub fn half(&mut self) -> u16 {
        u16::try_from(self.bits() >> 48).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a seed repeats a run, and a 5 % chance is 5 %.
    /// Method: two generators side by side; 100,000 draws, four standard deviations allowed.
    #[test]
    fn same_seed_repeats_and_chances_are_fair() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        let hits = (0..100_000).filter(|_| a.chance(0.05)).count();
        assert!((4_724..=5_276).contains(&hits), "{hits}");
    }
}
