//! How many connections each source opens and has open.

use std::net::IpAddr;
use std::time::Instant;

use super::order::ConnectionLimits;
use crate::base::bucket::{PerSource, Place, Rate, Remembered, TokenBucket, source_of};

/// Where a connection was counted; given back at its end.
pub(super) type SourceKey = Place<IpAddr>;

#[derive(Debug, Default)]
struct Source {
    pace: TokenBucket,
    open: usize,
}

impl Remembered for Source {
    fn is_spent(&self, now: Instant) -> bool {
        self.open == 0 && self.pace.is_full(now)
    }
}

/// The sources of accepted connections.
#[derive(Debug)]
pub(super) struct Sources(PerSource<IpAddr, Source>);

impl Sources {
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        Self(PerSource::new(limits.sources_max))
    }

    /// Counts a new connection; `None` when its source may open none now.
    pub(super) fn open(
        &mut self,
        now: Instant,
        address: IpAddr,
        limits: &ConnectionLimits,
    ) -> Option<SourceKey> {
        self.0.resize(limits.sources_max);
        let (key, source) = self.0.of(now, source_of(address));
        let most = usize::try_from(limits.source_max).unwrap_or(usize::MAX);
        let rate = Rate { per_s: limits.source_per_s, burst: limits.source_burst };
        let may = (most == 0 || source.open < most) && (rate.per_s == 0 || source.pace.take(now, rate));
        may.then(|| {
            source.open += 1;
            key
        })
    }

    /// Counts a connection that was let in before, by the loop that passed it on.
    pub(super) fn keep(&mut self, now: Instant, address: IpAddr) -> SourceKey {
        let (key, source) = self.0.of(now, source_of(address));
        source.open += 1;
        key
    }

    /// A counted connection has ended.
    pub(super) fn close(&mut self, key: SourceKey) {
        if let Some(source) = self.0.at(key) {
            source.open = source.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let mut sources = Sources::new(&limits);
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
        let mut sources = Sources::new(&limits);
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
        let mut sources = Sources::new(&limits);
        let keys: Vec<_> =
            (0..10).map(|last: u8| sources.open(start, IpAddr::from([192, 0, 2, last]), &limits)).collect();
        assert_eq!(sources.0.len(), 2);
        assert_eq!(keys.iter().filter(|key| **key == Some(Place::Shared)).count(), 2);
        assert_eq!(keys.iter().filter(|key| key.is_none()).count(), 6);
        for key in keys.into_iter().flatten() {
            sources.close(key);
        }
        let later = sources.open(start + Duration::from_secs(10), address("192.0.2.9"), &limits);
        assert_eq!(later, Some(Place::Own(address("192.0.2.9"))));
    }
}
