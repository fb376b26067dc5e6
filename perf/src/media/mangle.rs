//! Loses, reorders and duplicates what is sent, by chance but repeatably.

use crate::rng::Rng;

/// Probabilities from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Odds {
    /// The packet never leaves.
    pub loss: f64,
    /// The packet leaves after the next one.
    pub reorder: f64,
    /// The packet leaves twice.
    pub duplicate: f64,
}

/// What the mangler did on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mangled {
    /// Packets thrown away.
    pub lost: u64,
    /// Packets held back behind their successor.
    pub reordered: u64,
    /// Packets sent twice.
    pub duplicated: u64,
}

/// Sits between the packetizer and the socket.
#[derive(Debug)]
pub struct Mangler {
    odds: Odds,
    rng: Rng,
    held: Option<Vec<u8>>,
    /// Counts so far.
    pub done: Mangled,
}

impl Mangler {
    /// With all odds nought every packet passes unchanged.
    pub fn new(odds: Odds, seed: u64) -> Self {
        Self { odds, rng: Rng::new(seed), held: None, done: Mangled::default() }
    }

    /// One packet in; what leaves now, in order, is appended to `out`.
    pub fn push(&mut self, packet: Vec<u8>, out: &mut Vec<Vec<u8>>) {
        // One draw each for every packet, so that the odds do not disturb each other.
        let lose = self.rng.chance(self.odds.loss);
        let hold = self.rng.chance(self.odds.reorder);
        let double = self.rng.chance(self.odds.duplicate);
        if lose {
            self.done.lost += 1;
            return;
        }
        if hold && self.held.is_none() {
            self.done.reordered += 1;
            self.held = Some(packet);
            return;
        }
        if double {
            self.done.duplicated += 1;
            out.push(packet.clone());
        }
        out.push(packet);
        out.extend(self.held.take());
    }

    /// The packet still held back, at the end of the stream.
    pub fn flush(&mut self, out: &mut Vec<Vec<u8>>) {
        out.extend(self.held.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(odds: Odds, seed: u64) -> (Vec<u32>, Mangled) {
        let mut mangler = Mangler::new(odds, seed);
        let mut out = Vec::new();
        (0..10_000u32).for_each(|n| mangler.push(n.to_be_bytes().to_vec(), &mut out));
        mangler.flush(&mut out);
        let numbers = out.iter().map(|p| u32::from_be_bytes(p[..].try_into().unwrap())).collect();
        (numbers, mangler.done)
    }

    /// Goal: without odds nothing changes; with odds the counts are what was asked for.
    /// Method: 10,000 numbered packets; 5 % +- four standard deviations (87).
    #[test]
    fn each_kind_of_harm_happens_as_often_as_asked() {
        assert_eq!(run(Odds::default(), 1).0, (0..10_000).collect::<Vec<_>>());
        let (numbers, done) = run(Odds { loss: 0.05, reorder: 0.05, duplicate: 0.05 }, 1);
        for count in [done.lost, done.reordered, done.duplicated] {
            assert!((400..=600).contains(&count), "{done:?}");
        }
        assert_eq!(numbers.len() as u64, 10_000 - done.lost + done.duplicated);
    }

    /// Goal: a reordered packet comes late but comes, and runs repeat with their seed.
    /// Method: sort and compare; run the seed twice, another seed once.
    #[test]
    fn reordering_keeps_every_packet_and_repeats_with_the_seed() {
        let odds = Odds { reorder: 0.3, ..Odds::default() };
        let (mut numbers, done) = run(odds, 5);
        assert_eq!(numbers, run(odds, 5).0);
        assert_ne!(numbers, run(odds, 6).0);
        let out_of_order = numbers.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert!(out_of_order as u64 >= done.reordered / 2);
        numbers.sort_unstable();
        assert_eq!(numbers, (0..10_000).collect::<Vec<_>>());
    }
}
