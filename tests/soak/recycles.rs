//! Recycles in a row under calls that come and go: acceptance 1 of worker life.

use std::time::Duration;

use crate::common::node::Node;
use crate::common::now;
use crate::figures::Figures;
use crate::ledger::Ledger;
use crate::load::{Load, Wish};
use crate::stage::{Carrier, Stage, asked_number, is_asked, seed};

/// Calls whose length is their own: a drained worker ends with the longest of them.
pub(crate) const PARTS: &str = "playing,echo,anchored,held,message,ringing";

/// How long the worker before may take to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Orders a change until the slot for it is free; how often it was refused for that.
///
/// # Panics
/// It is refused for another reason, or fails.
pub(crate) fn change(node: &Node, arguments: &[&str]) -> u64 {
    let start = now();
    let mut refused = 0;
    loop {
        let output = node.client(&[arguments, &["--json"]].concat());
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        if output.status.success() {
            return refused;
        }
        let is_busy = told.contains("still drains");
        assert!(is_busy && start.elapsed() < DRAIN_LIMIT, "{arguments:?}: {told}");
        refused += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn recycle_under_calls(carrier: Carrier) {
    if !is_asked() {
        return;
    }
    let recycles = asked_number("VOXRING_SOAK_RECYCLES", 100);
    let wish = Wish { per_s: 100, mean_s: 2, parts: PARTS, seed: seed() };
    let stage = Stage::set(carrier, |_| {});
    // The first worker has loaded nothing yet: the baseline is one that has taken calls.
    Load::start(&stage, wish).finish().assert_unharmed();
    let before = Ledger::of_idle(&stage);
    let load = Load::start(&stage, wish);
    let start = now();
    (0..recycles).for_each(|_| {
        change(&stage.node, &["recycle"]);
    });
    let took = start.elapsed();
    let outcome = load.finish();
    let after = Ledger::of_idle(&stage);
    let mut figures = Figures::new(format!(
        "{recycles} recycles in {:.0} s under {} calls, {} new ones a second, {carrier:?}, seed {}",
        took.as_secs_f64(),
        wish.at_once(),
        wish.per_s,
        wish.seed
    ));
    outcome.tell(&mut figures);
    after.tell(&before, &mut figures);
    figures.print();
    outcome.assert_unharmed();
    after.assert_back_at(&before);
}

/// Goal: recycles in a row under 200 calls and 100 new ones a second: none fails, none loses a packet, no
/// connection is refused, and the node holds no more than before.
/// Method: voxperf's calls in all phases; `voxring recycle` as soon as the worker before is gone.
#[test]
fn recycles_over_tcp() {
    recycle_under_calls(Carrier::Tcp);
}

/// Goal: the same over TLS. Method: the same, both sides with certificates.
#[test]
fn recycles_over_tls() {
    recycle_under_calls(Carrier::Tls);
}
