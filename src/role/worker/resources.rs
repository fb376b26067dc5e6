//! What the worker has left of descriptors and memory: new calls are refused while there is still
//! enough for those that are up.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::base::config::Config;

/// How often it is looked: a node is to answer a second after the fault.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Descriptors that are left to calls that are up: recordings, re-opened connections, the store.
const DESCRIPTORS_KEPT: u64 = 64;
/// So many more must be free before calls are taken again, so that one that ends lets none in that
/// is refused half-way.
const DESCRIPTORS_MORE: u64 = 16;

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Shortage {
    /// Open files.
    #[error("the worker is short of file descriptors")]
    Descriptors,
    /// Resident memory is above `worker.memory_max_mib`.
    #[error("the worker uses all the memory it may")]
    Memory,
}

impl Shortage {
    /// The rule's name in counter, log and Reason.
    pub(super) fn rule(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

/// What the kernel tells of this process. `None`: it does not.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    /// Open, and how many may be.
    descriptors: Option<(u64, u64)>,
    resident_bytes: Option<u64>,
}

/// The latest look.
#[derive(Debug, Default)]
pub(super) struct Resources {
    next_look: Option<Instant>,
    shortage: Option<Shortage>,
}

impl Resources {
    /// Why no new calls are taken.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.shortage
    }

    /// Looks, if it is time for that.
    pub(super) fn look(&mut self, now: Instant, config: &Config) {
        if self.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.next_look = Some(now + LOOK_INTERVAL);
        self.judge(Use::now(), config.worker.memory_max_mib);
    }

    fn judge(&mut self, used: Use, memory_max_mib: u32) {
        let before = self.shortage;
        let more = if before == Some(Shortage::Descriptors) { DESCRIPTORS_MORE } else { 0 };
        let lacks_descriptors =
            used.descriptors.is_some_and(|(open, max)| open + DESCRIPTORS_KEPT + more > max);
        let memory_max = u64::from(memory_max_mib) << 20;
        let lacks_memory = memory_max > 0 && used.resident_bytes.is_some_and(|bytes| bytes >= memory_max);
        self.shortage = match (lacks_descriptors, lacks_memory) {
            (true, _) => Some(Shortage::Descriptors),
            (false, true) => Some(Shortage::Memory),
            (false, false) => None,
        };
        match (before, self.shortage) {
            (None, Some(why)) => {
                let resident_mib = used.resident_bytes.map(|bytes| bytes >> 20);
                let (open, open_max) = used.descriptors.unzip();
                tracing::error!(%why, open, open_max, resident_mib, memory_max_mib, "new calls are refused");
            }
            (Some(why), None) => tracing::info!(was = %why, "new calls are taken again"),
            (_, _) => {}
        }
    }
}

impl Use {
    fn now() -> Self {
        let open = open_descriptors();
        let max = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        let pages = fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|bytes| u64::try_from(bytes).ok());
        Self {
            descriptors: open.zip(max),
            resident_bytes: pages.zip(page).map(|(pages, bytes)| pages * bytes),
        }
    }
}

/// Linux tells it as the folder's size since 6.2; before, its entries are counted, but for the one
/// that counts.
fn open_descriptors() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        0 => u64::try_from(fs::read_dir(FOLDER).ok()?.count().saturating_sub(1)).ok(),
        open => Some(open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(open: u64, resident_mib: u64) -> Use {
        Use { descriptors: Some((open, 1024)), resident_bytes: Some(resident_mib << 20) }
    }

    /// Goal: calls are refused before descriptors are gone, and taken again a few later; memory is a
    /// reason where a limit is set. Method: 1024 may be open, 64 are kept, 16 more must be free.
    #[test]
    fn calls_are_refused_while_something_is_left() {
        let mut resources = Resources::default();
        for (open, expected) in [
            (960, None),
            (961, Some(Shortage::Descriptors)),
            (945, Some(Shortage::Descriptors)),
            (944, None),
            (960, None),
        ] {
            resources.judge(used(open, 9000), 0);
            assert_eq!(resources.shortage(), expected, "{open} open");
        }
        for (resident_mib, expected) in [(511, None), (512, Some(Shortage::Memory)), (511, None)] {
            resources.judge(used(100, resident_mib), 512);
            assert_eq!(resources.shortage(), expected, "{resident_mib} MiB");
        }
        resources.judge(Use::default(), 512);
        assert_eq!(resources.shortage(), None, "a kernel that tells nothing");
    }

    /// Goal: this process's use is told. Method: standard streams are open; 16 MiB are written to.
    #[test]
    fn the_kernel_tells_what_is_used() {
        let before = Use::now();
        let (open, max) = before.descriptors.unwrap();
        assert!((3..max).contains(&open), "{open} of {max}");
        let memory = vec![1_u8; 16 << 20];
        assert!(Use::now().resident_bytes.unwrap() >= memory.len() as u64);
    }
}
