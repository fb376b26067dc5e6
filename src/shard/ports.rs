//! A shard's slice of the RTP range, handed out as even/odd pairs.
//!
//! A pair that was used rests in quarantine, so that late packets of one call cannot reach the
//! next. Pairs are handed out in a random order at first (a stranger cannot guess the next one)
//! and then oldest first.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::base::config::PortRange;
use crate::media::order::OpenError;

/// Pairs tried for one leg before giving up: others on this machine may sit in the slice.
const TRIES_MAX: usize = 64;

/// The free and the resting pairs, each named by its even port.
pub(super) struct Ports {
    free: VecDeque<u16>,
    /// Until when, oldest first.
    resting: VecDeque<(Instant, u16)>,
    quarantine: Duration,
}

impl Ports {
    /// All pairs of `slice`, shuffled by `random(n)`, a number below `n`.
    pub(super) fn new(
        slice: PortRange,
        quarantine: Duration,
        mut random: impl FnMut(usize) -> usize,
    ) -> Self {
        let first = u32::from(slice.first).next_multiple_of(2);
        let mut free: Vec<u16> =
            (first..u32::from(slice.last)).step_by(2).filter_map(|port| u16::try_from(port).ok()).collect();
        for index in (1..free.len()).rev() {
            free.swap(index, random(index + 1) % (index + 1));
        }
        Self { free: free.into(), resting: VecDeque::new(), quarantine }
    }

    /// Takes the next pair that `bind` accepts. Pairs that are busy in the kernel go to the end.
    ///
    /// # Errors
    /// `NoPort`: none is free, or the next 64 are all busy. `Socket`: the kernel refused for
    /// another reason; no pair is lost.
    pub(super) fn allocate<T>(
        &mut self,
        now: Instant,
        mut bind: impl FnMut(u16) -> io::Result<T>,
    ) -> Result<(u16, T), OpenError> {
        self.end_quarantine(now);
        for _ in 0..TRIES_MAX.min(self.free.len()) {
            let Some(port) = self.free.pop_front() else { break };
            match bind(port) {
                Ok(bound) => return Ok((port, bound)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => self.free.push_back(port),
                Err(error) => {
                    self.free.push_front(port);
                    return Err(OpenError::Socket(error.raw_os_error().unwrap_or(0)));
                }
            }
        }
        Err(OpenError::NoPort)
    }

    /// Takes a certain pair, for a leg that has it already; false if it is none of this slice or not
    /// free.
    pub(super) fn claim(&mut self, port: u16) -> bool {
        let found = self.free.iter().position(|free| *free == port);
        found.is_some_and(|index| self.free.remove(index).is_some())
    }

    /// The pair's leg is gone: it rests from now on.
    pub(super) fn release(&mut self, now: Instant, port: u16) {
        self.resting.push_back((now + self.quarantine, port));
    }

    /// Pairs to be had now, as of the last `allocate`.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Pairs in quarantine, as of the last `allocate`.
    pub(super) fn resting(&self) -> usize {
        self.resting.len()
    }

    fn end_quarantine(&mut self, now: Instant) {
        while let Some(&(until, port)) = self.resting.front() {
            if until > now {
                return;
            }
            self.resting.pop_front();
            self.free.push_back(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use proptest::prelude::*;

    const QUARANTINE: Duration = Duration::from_secs(5);

    fn ports(first: u16, last: u16) -> Ports {
        // `n - 1` swaps each with itself: the order stays ascending.
        Ports::new(PortRange { first, last }, QUARANTINE, |n| n - 1)
    }

    fn take(ports: &mut Ports, now: Instant) -> Result<u16, OpenError> {
        ports.allocate(now, |_| Ok(())).map(|(port, ())| port)
    }

    /// Goal: only whole pairs inside the slice are handed out.
    /// Method: an odd first and an even last port leave 10002-10005.
    #[test]
    fn slice_edges_that_are_no_pair_are_left_out() {
        let (mut ports, now) = (ports(10_001, 10_006), clock::now());
        assert_eq!(take(&mut ports, now), Ok(10_002));
        assert_eq!(take(&mut ports, now), Ok(10_004));
        assert_eq!(take(&mut ports, now), Err(OpenError::NoPort));
    }

    /// Goal: the last port of all can be the odd half of a pair. Method: slice 65534-65535.
    #[test]
    fn the_highest_pair_of_all_is_usable() {
        assert_eq!(take(&mut ports(65_534, 65_535), clock::now()), Ok(65_534));
    }

    /// Goal: a used pair rests for the quarantine and then comes back. Method: fake clock.
    #[test]
    fn released_pairs_return_after_quarantine_oldest_first() {
        let (mut ports, start) = (ports(10_000, 10_003), clock::now());
        assert_eq!(take(&mut ports, start), Ok(10_000));
        assert_eq!(take(&mut ports, start), Ok(10_002));
        ports.release(start, 10_002);
        ports.release(start + Duration::from_secs(1), 10_000);
        assert_eq!(take(&mut ports, start + QUARANTINE - Duration::from_millis(1)), Err(OpenError::NoPort));
        assert_eq!(take(&mut ports, start + QUARANTINE), Ok(10_002));
        assert_eq!(take(&mut ports, start + QUARANTINE), Err(OpenError::NoPort));
        assert_eq!(take(&mut ports, start + QUARANTINE + Duration::from_secs(1)), Ok(10_000));
    }

    /// Goal: pairs held by others are skipped within bounds and not lost.
    /// Method: every bind fails as busy, then all succeed.
    #[test]
    fn busy_pairs_are_skipped_with_bounded_tries_and_kept() {
        let (mut ports, now) = (ports(10_000, 10_999), clock::now());
        let mut tries = 0;
        let refused = ports.allocate(now, |_| -> io::Result<()> {
            tries += 1;
            Err(io::ErrorKind::AddrInUse.into())
        });
        assert_eq!((refused, tries), (Err(OpenError::NoPort), TRIES_MAX));
        assert_eq!(ports.free(), 500);
        assert_eq!(take(&mut ports, now), Ok(10_128), "the 64 busy ones went to the end");
    }

    /// Goal: running out of descriptors is told apart from running out of ports, and loses no
    /// pair. Method: bind fails with EMFILE.
    #[test]
    fn other_socket_errors_are_reported_with_their_code() {
        let (mut ports, now) = (ports(10_000, 10_001), clock::now());
        let refused =
            ports.allocate(now, |_| -> io::Result<()> { Err(io::Error::from_raw_os_error(libc::EMFILE)) });
        assert_eq!(refused, Err(OpenError::Socket(libc::EMFILE)));
        assert_eq!(take(&mut ports, now), Ok(10_000));
    }

    proptest! {
        /// Goal: no pair leaks or is handed out twice, whatever happens.
        /// Method: random takes (some busy) and releases over a fake clock; count the pairs.
        #[test]
        fn pairs_are_never_lost_or_shared(steps in proptest::collection::vec((0_u8..4, 0_u64..3), 0..200)) {
            let (mut ports, mut now) = (ports(20_000, 20_031), clock::now());
            let mut held = Vec::new();
            for (step, seconds) in steps {
                now += Duration::from_secs(seconds);
                match (step, held.pop()) {
                    (0 | 1, last) => {
                        held.extend(last);
                        if let Ok(port) = take(&mut ports, now) {
                            prop_assert!(!held.contains(&port));
                            held.push(port);
                        }
                    }
                    (2, Some(port)) => ports.release(now, port),
                    (_, last) => {
                        held.extend(last);
                        let busy = |_| -> io::Result<()> { Err(io::ErrorKind::AddrInUse.into()) };
                        prop_assert!(ports.allocate(now, busy).is_err());
                    }
                }
                prop_assert_eq!(held.len() + ports.free() + ports.resting(), 16);
            }
        }
    }
}
