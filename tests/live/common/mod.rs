//! What the behaviour tests share: a node of their own, its clients, and its peers.
//!
//! Every node has its own block of ports and its own folder, so tests run side by side and twice.

pub(crate) mod audio;
pub(crate) mod callee;
pub(crate) mod caller;
pub(crate) mod confined;
pub(crate) mod mounts;
pub(crate) mod node;
pub(crate) mod peers;
pub(crate) mod phone;
pub(crate) mod pki;
pub(crate) mod raw;
pub(crate) mod secure;

use std::fs::File;
use std::time::{Duration, Instant};

/// Monotonic time.
pub(crate) fn now() -> Instant {
    voxring::base::clock::now()
}

/// Unix time in milliseconds.
pub(crate) fn unix_ms() -> u64 {
    let since = voxring::base::clock::calendar().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("the clock is past 1970").as_millis())
        .expect("a time before the year 500,000,000")
}

/// Polls `condition` until it gives something.
///
/// # Panics
/// With `what` when `limit` passes first.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Held by tests that need the machine for themselves; they run one after the other.
pub(crate) struct Heavy {
    _locked: File,
}

/// Waits until no other heavy test runs, also in other processes.
pub(crate) fn heavy() -> Heavy {
    let path = std::env::temp_dir().join("voxring-heavy-tests.lock");
    let file = File::options().create(true).append(true).open(&path).expect("a lock file can be made");
    file.lock().expect("the lock can be waited for");
    Heavy { _locked: file }
}
