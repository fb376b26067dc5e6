//! Token buckets: how much of something may happen in a time. The clock is the caller's.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second; 0 counts as 1.
    pub per_s: u32,
    /// Tokens it holds when full: what may come at once after a quiet time. 0 counts as 1.
    pub burst: u32,
}

impl Rate {
    /// A rate whose burst is one second's worth.
    pub fn steady(per_s: u32) -> Self {
        Self { per_s, burst: per_s }
    }

    /// The time in which one token comes.
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_s.max(1)
    }
}

/// One bucket, full at first.
///
/// It remembers one instant only: when it will be full again (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenBucket {
    full_at: Option<Instant>,
}

impl TokenBucket {
    /// Takes one token; false when there is none. A refused one costs nothing.
    pub fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let interval = rate.interval();
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at - now + interval > interval * rate.burst.max(1) {
            return false;
        }
        self.full_at = Some(full_at + interval);
        true
    }

    /// True when nothing is missing from it, so that it may as well be forgotten.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// What is remembered of a source.
pub trait Remembered: Default {
    /// True when it is as if nothing had ever come from the source, so that it may be forgotten.
    fn is_spent(&self, now: Instant) -> bool;
}

impl Remembered for TokenBucket {
    fn is_spent(&self, now: Instant) -> bool {
        self.is_full(now)
    }
}

/// Where a source is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<K> {
    /// In a place of its own.
    Own(K),
    /// With all others for which there was no place.
    Shared,
}

/// How often a map that is full looks for sources to forget.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// Something for each source, for a bounded number of them: sources beyond share one, so that many
/// addresses gain nothing.
#[derive(Debug)]
pub struct PerSource<K, V = TokenBucket> {
    own: HashMap<K, V>,
    shared: V,
    sources_max: usize,
    purge_at: Option<Instant>,
}

impl<K: Copy + Eq + Hash, V: Remembered> PerSource<K, V> {
    /// Room for `sources_max` sources that are busy at the same time.
    pub fn new(sources_max: usize) -> Self {
        Self { own: HashMap::new(), shared: V::default(), sources_max, purge_at: None }
    }

    /// Room for another number of sources from now on; who has a place keeps it.
    pub fn resize(&mut self, sources_max: usize) {
        self.sources_max = sources_max;
    }

    /// What is remembered of `source`, and where.
    pub fn of(&mut self, now: Instant, source: K) -> (Place<K>, &mut V) {
        let is_known = self.own.contains_key(&source);
        if !is_known && self.own.len() >= self.sources_max && self.purge_at.is_none_or(|at| at <= now) {
            self.own.retain(|_, value| !value.is_spent(now));
            self.purge_at = Some(now + PURGE_INTERVAL);
        }
        if is_known || self.own.len() < self.sources_max {
            (Place::Own(source), self.own.entry(source).or_default())
        } else {
            (Place::Shared, &mut self.shared)
        }
    }

    /// What is remembered there; `None` when it was forgotten.
    pub fn at(&mut self, place: Place<K>) -> Option<&mut V> {
        match place {
            Place::Own(source) => self.own.get_mut(&source),
            Place::Shared => Some(&mut self.shared),
        }
    }

    /// Sources that have a place of their own.
    pub fn len(&self) -> usize {
        self.own.len()
    }

    /// True without sources.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
    }
}

impl<K: Copy + Eq + Hash> PerSource<K> {
    /// Takes one of `source`'s tokens; false when there is none.
    pub fn take(&mut self, now: Instant, source: K, rate: Rate) -> bool {
        self.of(now, source).1.take(now, rate)
    }
}

/// What counts as one source: an IPv4 address, or the /64 an IPv6 address lies in, for a host may
/// choose its own addresses there (RFC 4291 §2.5.1).
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn taken(bucket: &mut TokenBucket, now: Instant, rate: Rate, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.take(now, rate)).count()
    }

    /// Goal: the burst comes at once, then the rate, never more than the burst after a pause.
    /// Method: 10 a second, 5 at once, over given times; counts by arithmetic.
    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let (start, rate) = (clock::now(), Rate { per_s: 10, burst: 5 });
        let mut bucket = TokenBucket::default();
        assert!(bucket.is_full(start));
        assert_eq!(taken(&mut bucket, start, rate, 100), 5);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(99), rate, 9), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(100), rate, 9), 1);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(350), rate, 9), 2);
        assert!(!bucket.is_full(start + Duration::from_millis(360)));
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(3600), rate, 100), 5);
    }

    /// Goal: sources do not take each other's tokens, quiet ones are forgotten, and a flood of
    /// sources is bounded. Method: room for two, three sources.
    #[test]
    fn sources_are_apart_and_bounded() {
        let (start, rate) = (clock::now(), Rate::steady(1));
        let mut sources = PerSource::new(2);
        for source in ["a", "b"] {
            assert!(sources.take(start, source, rate));
            assert!(!sources.take(start, source, rate), "{source}");
        }
        // Both are busy: others share one bucket.
        assert!(sources.take(start, "c", rate));
        assert!(!sources.take(start, "d", rate));
        assert_eq!(sources.len(), 2);
        let later = start + Duration::from_secs(2);
        assert!(sources.take(later, "e", rate));
        assert_eq!(sources.len(), 1);
    }

    /// Goal: neither mapping nor a /64's many addresses make several sources. Method: pairs.
    #[test]
    fn a_network_of_one_host_is_one_source() {
        let source = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.2"), source("192.0.2.1"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8::1"));
    }
}
