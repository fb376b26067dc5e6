//! Everything at once for some minutes: acceptance 6 of worker life.

use std::time::{Duration, Instant};

use crate::common::node::{Node, resident_kib};
use crate::common::now;
use crate::figures::Figures;
use crate::ledger::Ledger;
use crate::load::{Load, Wish};
use crate::stage::{Carrier, Stage, asked_number, is_asked, seed};

/// 60 % of the knee of calls in all phases on one media shard and two processors shared with voxperf; the
/// anchored ones, which cost most, have theirs at 1,550 or above (perf/README.md).
const CALLS: u64 = 900;
/// Their average length, seconds.
const MEAN_S: u64 = 15;

/// What is done to the node, one after the other, at random.
const PAUSE_S: (u64, u64) = (5, 20);

/// SplitMix64: the same seed gives the same numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end.max(1)
    }
}

/// Resident memory of the node over time.
#[derive(Default)]
struct Memory(Vec<(f64, f64)>);

impl Memory {
    fn note(&mut self, start: Instant, node: &Node) {
        // The worker that takes calls is of another age after each change: the supervisor's is told too.
        let kib = u32::try_from(resident_kib(node.supervisor_pid())).unwrap_or(u32::MAX);
        self.0.push((start.elapsed().as_secs_f64() / 60.0, f64::from(kib)));
    }

    /// Least squares: KiB a minute.
    fn slope(&self) -> f64 {
        let count = self.0.iter().fold(0.0, |count, _| count + 1.0);
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| self.0.iter().map(of).sum::<f64>() / count;
        let (at, kib) = (mean(&|point| point.0), mean(&|point| point.1));
        let covariance = mean(&|point| (point.0 - at) * (point.1 - kib));
        let variance = mean(&|point| (point.0 - at) * (point.0 - at));
        if variance > 0.0 { covariance / variance } else { 0.0 }
    }
}

/// Does something to the node; its name. With drained calls in the other slot a recycle is refused.
fn disturb(node: &Node, dice: &mut Dice) -> &'static str {
    let kills = asked_number("VOXRING_SOAK_KILLS", 1) > 0;
    if kills && dice.below(3) == 0 {
        if node.worker_pid().is_some() {
            node.kill_worker();
            return "kill -9 of the worker";
        }
        return "nothing: no worker is ready";
    }
    let output = node.client(&["recycle", "--json"]);
    if output.status.success() { "recycle" } else { "recycle, refused" }
}

/// Goal: minutes of everything leave nothing behind: no stuck call, descriptor, port or recording, and no
/// growing memory. Method: 60 % of the knee of calls in all phases, keys, holds, callers who vanish;
/// recycles and worker kills at random times; VOXRING_SOAK_SECONDS, 600.
#[test]
fn soak() {
    if !is_asked() {
        return;
    }
    let seconds = asked_number("VOXRING_SOAK_SECONDS", 600);
    let calls = asked_number("VOXRING_SOAK_CALLS", CALLS);
    let parts = "playing,echo,anchored,held,message,keys,ringing,dropped,vanished";
    let wish = Wish { per_s: (calls / MEAN_S).max(1), mean_s: MEAN_S, parts, seed: seed() };
    let stage = Stage::set(Carrier::Tcp, |_| {});
    let node = &stage.node;
    let warm = Wish { per_s: 5, mean_s: 4, ..wish };
    Load::start(&stage, warm).finish();
    let before = Ledger::of_idle(&stage);
    let (mut dice, mut memory, mut done) = (Dice(wish.seed), Memory::default(), Vec::new());
    let load = Load::start(&stage, wish);
    let start = now();
    let mut next = Duration::from_secs(PAUSE_S.0);
    while start.elapsed() < Duration::from_secs(seconds) {
        memory.note(start, node);
        if start.elapsed() >= next {
            done.push(disturb(node, &mut dice));
            let pause = PAUSE_S.0 + dice.below(PAUSE_S.1 - PAUSE_S.0);
            next = start.elapsed() + Duration::from_secs(pause);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let outcome = load.finish();
    let after = Ledger::of_idle(&stage);
    let spool = recordings_left(node);
    let mut figures =
        Figures::new(format!("{seconds} s of {} calls in all phases, seed {}", wish.at_once(), wish.seed));
    done.sort_unstable();
    for same in done.chunk_by(|a, b| a == b) {
        figures.add(same[0], same.len());
    }
    outcome.tell(&mut figures);
    after.tell(&before, &mut figures);
    figures.add("recordings left in the spool", spool);
    figures.add("supervisor's memory over time", format!("{:+.0} KiB a minute", memory.slope()));
    figures.print();
    assert_eq!(spool, 0);
    // A key that is pressed in the very moment of a death may be lost, and its caller waits for an end that
    // does not come.
    let kills = done.iter().filter(|what| what.starts_with("kill")).fold(0, |kills, _| kills + 1);
    assert!(outcome.number("/life/overdue") <= kills, "{:#}", outcome.0["life"]);
    after.assert_back_at(&before);
}

/// Recordings that are in no mailbox.
fn recordings_left(node: &Node) -> usize {
    let entries = std::fs::read_dir(node.data().join("spool")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(".wav")).count()
}
