//! Which share of the new calls a SIP thread takes: all of them, unless it is behind.
//!
//! The occupancy algorithm of overload control (B. Cyr, J. Kaufman, P. Lee; RFC 6357 §5 names its
//! kind): the share is scaled by what the thread should be busy over what it is. So the thread goes on
//! at about the most it can do, and the rest is told to come again, which costs little.

use crate::base::config::Config;
use crate::sip::layer::Layer;

/// All new calls.
const ALL: u32 = 1000;
/// The share never falls below this, so that what it does to the thread can be seen.
const LEAST: u32 = 20;
/// It grows by no more than this factor from one look to the next, in thousandths.
const GROWTH_MAX: u32 = 1100;
/// And shrinks by this one while the thread is too busy: a thread cannot be busy for more than all of
/// its time, so the ratio would be slow.
const SHRINKAGE: u32 = 900;
/// With no more new calls than this from one look to the next none is refused: a thread that is busy
/// with so few waits for others, and refusing calls would not help.
const FEW: u64 = 20;
/// The rule's name in counter, log and Reason.
pub(super) const RULE: &str = "overload";

/// The share, and what it follows.
#[derive(Debug)]
pub(super) struct Overload {
    /// How busy the thread may be, in thousandths; 1000: as busy as it likes.
    busy_max: u32,
    share: u32,
    /// It was busier at the last look.
    was_behind: bool,
    invites: u64,
}

impl Overload {
    /// As the configuration says; all calls are taken.
    pub(super) fn new(config: &Config) -> Self {
        let busy_max = u32::from(config.calls.signalling_busy_max) * 10;
        Self { busy_max, share: ALL, was_behind: false, invites: 0 }
    }

    /// Goes by `config` from now on.
    pub(super) fn reload(&mut self, config: &Config) {
        self.busy_max = Self::new(config).busy_max;
    }

    /// The thread was busy for so many thousandths of the time since the last look.
    pub(super) fn handle_busy(&mut self, permille: u16, layer: &mut Layer) {
        let invites = layer.counters().invites;
        let new = invites - std::mem::replace(&mut self.invites, invites);
        let before = self.share;
        self.share = self.next_share(u32::from(permille), new);
        layer.take_share(self.share);
        if before == ALL && self.share < ALL {
            tracing::warn!(busy_percent = permille / 10, new_calls = new, "overload: new calls are refused");
        } else if before < ALL && self.share == ALL {
            tracing::info!(busy_percent = permille / 10, new_calls = new, "no overload any more");
        }
    }

    fn next_share(&mut self, busy: u32, new: u64) -> u32 {
        let is_behind = busy > self.busy_max;
        let was_behind = std::mem::replace(&mut self.was_behind, is_behind);
        if self.busy_max >= 1000 || new <= FEW {
            return ALL;
        }
        let factor = if is_behind {
            if was_behind || self.share < ALL { SHRINKAGE } else { 1000 }
        } else {
            (self.busy_max * 1000 / busy.max(1)).min(GROWTH_MAX)
        };
        (self.share * factor / 1000).clamp(LEAST, ALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::layer;

    fn overload() -> Overload {
        Overload::new(&Config::default())
    }

    /// Six seconds of looks at a thread that can serve 500 calls, or refuse 2,500, in 200 ms, while `new`
    /// come in each. What it served in the last of them.
    fn six_seconds(overload: &mut Overload, new: u64) -> u64 {
        let mut taken = 0;
        for _ in 0..30 {
            taken = new * u64::from(overload.share) / 1000;
            let busy = (taken * 5 + new - taken) * 1000 / 2500;
            overload.share = overload.next_share(u32::try_from(busy.min(1000)).unwrap(), new);
        }
        taken
    }

    /// Goal: a thread that is asked for half as much again as it can do, or for twice as much, goes on at
    /// about the most it can do beside refusing the rest, and takes every call soon after. Method: a
    /// thread by arithmetic: serving a call costs five times refusing it.
    #[test]
    fn a_thread_beyond_its_knee_goes_on_at_its_knee() {
        let mut overload = overload();
        // What remains of 2,500 when each of the calls was refused at least, for four more each.
        for (new, most) in [(750, (2500 - 750) / 4), (1000, (2500 - 1000) / 4)] {
            let served = six_seconds(&mut overload, new);
            assert!((most * 8 / 10..=most).contains(&served), "{served} of {new}, {most} can be");
        }
        assert_eq!(six_seconds(&mut overload, 300), 300);
        assert_eq!(overload.share, ALL);
    }

    /// Goal: a thread that is busy with few calls waits for others; nobody is refused. Nor is anybody
    /// where 100 percent says so. Method: busy all the time.
    #[test]
    fn few_calls_are_all_taken() {
        let mut quiet = overload();
        assert_eq!([FEW, FEW].map(|new| quiet.next_share(1000, new)), [ALL; 2]);
        assert!(quiet.next_share(1000, FEW + 1) < ALL);
        let mut config = Config::default();
        config.calls.signalling_busy_max = 100;
        let mut unbounded = Overload::new(&config);
        assert_eq!([500, 500].map(|new| unbounded.next_share(1000, new)), [ALL; 2]);
    }

    /// Goal: a thread that was behind at one look, as after a pause of the machine, refuses nobody; at two
    /// in a row it does. Method: looks at a thread that is busy at every other one, then twice.
    #[test]
    fn one_busy_look_refuses_nobody() {
        let mut overload = overload();
        let looks = [1000, 900, 1000, 900, 1000].map(|busy| overload.next_share(busy, 500));
        assert_eq!(looks, [ALL; 5]);
        assert_eq!(overload.next_share(1000, 500), SHRINKAGE);
    }

    /// Goal: the layer is told the share, and the share survives a reload. Method: a busy thread, a layer
    /// without calls, which takes all.
    #[test]
    fn the_layer_follows() {
        let mut layer = Layer::new(layer::Config::default(), 1);
        let mut overload = Overload { share: 500, ..overload() };
        overload.reload(&Config::default());
        assert_eq!(overload.share, 500);
        overload.handle_busy(1000, &mut layer);
        assert_eq!(overload.share, ALL, "no calls came");
    }
}
