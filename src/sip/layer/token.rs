//! Branches and tags: unique, and not to be guessed by a peer (RFC 3261 §8.1.1.7, §19.3).

use std::hash::{DefaultHasher, Hash, Hasher};

/// The magic cookie that starts every branch of RFC 3261 (§8.1.1.7).
pub(super) const MAGIC_COOKIE: &str = "z9hG4bK";

/// Makes tokens from a secret seed and a counter.
#[derive(Debug)]
pub(super) struct Tokens {
    seed: u64,
    counter: u64,
}

impl Tokens {
    /// `seed` must be random and secret in operation; a test takes a constant.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, counter: 0 }
    }

    /// A new tag: 16 hex digits, 64 bits where 32 are required (§19.3).
    pub(super) fn tag(&mut self) -> String {
        self.counter += 1;
        self.hash(&("tag", self.counter))
    }

    /// A new branch.
    pub(super) fn branch(&mut self) -> String {
        self.counter += 1;
        format!("{MAGIC_COOKIE}{}", self.hash(&("branch", self.counter)))
    }

    /// The same tag each time for the same input, as a stateless UAS needs (§8.2.7).
    pub(super) fn stateless_tag(&self, input: &impl Hash) -> String {
        self.hash(&("stateless", input))
    }

    fn hash(&self, input: &impl Hash) -> String {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        input.hash(&mut hasher);
        self.seed.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}
