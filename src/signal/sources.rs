//! How many connections each source opens and has open.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::order::ConnectionLimits;
use super::pace::Pace;

/// Time between two looks for sources that need not be remembered.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// An IPv6 site has at least this many bits to itself; counting single addresses would limit nobody.
const IPV6_PREFIX_BITS: u32 = 64;

/// Where a connection was counted; given back at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceKey {
    /// An IPv4 address or the first address of an IPv6 /64.
    Own(IpAddr),
    /// All those for which there was no place.
    Rest,
}

#[derive(Debug)]
struct Source {
    pace: Pace,
    open: usize,
}

/// The sources of accepted connections. Bounded; without a place a source shares one allowance
/// with all others in its position, so that many addresses gain nothing.
#[derive(Debug)]
pub(super) struct Sources {
    own: HashMap<IpAddr, Source>,
    rest: Source,
    next_expiry: Instant,
}

impl Sources {
    pub(super) fn new(now: Instant) -> Self {
        let rest = Source { pace: Pace::new(now), open: 0 };
        Self { own: HashMap::new(), rest, next_expiry: now }
    }

    /// Counts a new connection; `None` when its source may open none now.
    pub(super) fn open(
        &mut self,
        now: Instant,
        address: IpAddr,
        limits: &ConnectionLimits,
    ) -> Option<SourceKey> {
        let key = key(address);
        self.expire(now);
        let has_place = self.own.contains_key(&key) || self.own.len() < limits.sources_max;
        let (source, key) = if has_place {
            let source = self.own.entry(key).or_insert_with(|| Source { pace: Pace::new(now), open: 0 });
            (source, SourceKey::Own(key))
        } else {
            (&mut self.rest, SourceKey::Rest)
        };
        let most = usize::try_from(limits.source_max).unwrap_or(usize::MAX);
        let may = (most == 0 || source.open < most)
            && source.pace.take(now, limits.source_per_s, limits.source_burst);
        may.then(|| {
            source.open += 1;
            key
        })
    }

    /// A counted connection has ended.
    pub(super) fn close(&mut self, key: SourceKey) {
        let source = match key {
            SourceKey::Own(address) => self.own.get_mut(&address),
            SourceKey::Rest => Some(&mut self.rest),
        };
        if let Some(source) = source {
            source.open = source.open.saturating_sub(1);
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.next_expiry <= now {
            self.next_expiry = now + EXPIRY_INTERVAL;
            self.own.retain(|_, source| source.open > 0 || !source.pace.is_full(now));
        }
    }
}

fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let bits = u128::from(address) >> (128 - IPV6_PREFIX_BITS) << (128 - IPV6_PREFIX_BITS);
            Ipv6Addr::from(bits).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ConnectionLimits {
        ConnectionLimits {
            source_per_s: 1,
            source_burst: 2,
            source_max: 3,
            sources_max: 2,
            ..Default::default()
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any start will do")]
    fn start() -> Instant {
        Instant::now()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Goal: a source has its own rate and its own number of open connections. Method: burst 2, one
    /// a second, 3 at most, beside a source that opens none.
    #[test]
    fn a_source_is_limited_by_itself() {
        let (start, limits) = (start(), limits());
        let mut sources = Sources::new(start);
        let (a, b) = (address("192.0.2.1"), address("192.0.2.2"));
        let at = |s| start + Duration::from_secs(s);
        let first = sources.open(start, a, &limits).expect("a token");
        assert!(sources.open(start, a, &limits).is_some());
        assert_eq!(sources.open(start, a, &limits), None, "the burst is spent");
        assert!(sources.open(start, b, &limits).is_some());
        assert!(sources.open(at(1), a, &limits).is_some());
        assert_eq!(sources.open(at(9), a, &limits), None, "three are open");
        sources.close(first);
        assert!(sources.open(at(9), a, &limits).is_some());
    }

    /// Goal: a whole IPv6 /64 is one source. Method: three addresses of it, one of another.
    #[test]
    fn an_ipv6_site_is_one_source() {
        let (start, limits) = (start(), limits());
        let mut sources = Sources::new(start);
        let open = |sources: &mut Sources, text| sources.open(start, address(text), &limits).is_some();
        assert!(open(&mut sources, "2001:db8::1") && open(&mut sources, "2001:db8::ffff:2"));
        assert!(!open(&mut sources, "2001:db8:0:0:1::3"));
        assert!(open(&mut sources, "2001:db8:0:1::1"));
    }

    /// Goal: many sources cannot grow the table nor gain by it; who is quiet is forgotten. Method:
    /// two places; the others share a burst of two; after ten seconds there is a place again.
    #[test]
    fn sources_without_a_place_share_one_allowance() {
        let (start, limits) = (start(), limits());
        let mut sources = Sources::new(start);
        let keys: Vec<_> =
            (0..10).map(|last: u8| sources.open(start, IpAddr::from([192, 0, 2, last]), &limits)).collect();
        assert_eq!(sources.own.len(), 2);
        assert_eq!(keys.iter().filter(|key| **key == Some(SourceKey::Rest)).count(), 2);
        assert_eq!(keys.iter().filter(|key| key.is_none()).count(), 6);
        for key in keys.into_iter().flatten() {
            sources.close(key);
        }
        let later = sources.open(start + Duration::from_secs(10), address("192.0.2.9"), &limits);
        assert_eq!(later, Some(SourceKey::Own(address("192.0.2.9"))));
    }
}
