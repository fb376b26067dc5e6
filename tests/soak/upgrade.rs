//! Upgrades under calls that come and go: acceptance 2 of worker life.

use std::path::PathBuf;

use crate::common::{node::Node, now, peers};
use crate::figures::Figures;
use crate::ledger::Ledger;
use crate::load::{Load, Wish};
use crate::recycles::{PARTS, change};
use crate::stage::{Carrier, Stage, asked_number, is_asked, seed};

/// The version of the program under test.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The program under test as a build of another version: what it calls itself is written over, but for the
/// last number. Compilers put the first four bytes of such a text into the code as one word.
fn build_of(node: &Node, version: &str) -> PathBuf {
    let (old, new) = (front(VERSION), front(version));
    assert_eq!(new.len(), old.len(), "it takes the same room");
    let program = peers::release("voxring").unwrap_or_else(|| env!("CARGO_BIN_EXE_voxring").into());
    let mut bytes = std::fs::read(&program).expect("the program can be read");
    let found: Vec<usize> = memchr::memmem::find_iter(&bytes, old).collect();
    for at in found {
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    let file = node.file(&format!("voxring-{version}"));
    std::fs::copy(&program, &file).expect("the disk has room");
    std::fs::write(&file, bytes).expect("the disk has room");
    file
}

/// A version up to its last dot, with it.
fn front(version: &str) -> &str {
    version.rsplit_once('.').map_or("", |(front, _)| &version[..=front.len()])
}

fn upgrade_under_calls(carrier: Carrier) {
    if !is_asked() {
        return;
    }
    let upgrades = asked_number("VOXRING_SOAK_UPGRADES", 10);
    let wish = Wish { per_s: 100, mean_s: 2, parts: PARTS, seed: seed() };
    let stage = Stage::set(carrier, |_| {});
    let node = &stage.node;
    let last = &VERSION[front(VERSION).len()..];
    let other = front(VERSION).replace(|c: char| c.is_ascii_digit(), "9") + last;
    let builds = [(build_of(node, &other), other.as_str()), (build_of(node, VERSION), VERSION)];
    Load::start(&stage, wish).finish().assert_unharmed();
    let before = Ledger::of_idle(&stage);
    let load = Load::start(&stage, wish);
    let start = now();
    for (build, version) in builds.iter().cycle().take(usize::try_from(upgrades).expect("a few")) {
        change(node, &["upgrade", "--binary", &build.to_string_lossy()]);
        let status = node.status();
        assert_eq!(status["version"], *version, "{status:#}");
        let taking = status["workers"].as_array().expect("a list").iter().find(|w| w["state"] == "ready");
        assert_eq!(taking.expect("one takes calls")["version"], *version, "{status:#}");
    }
    let took = start.elapsed();
    let outcome = load.finish();
    let after = Ledger::of_idle(&stage);
    let mut figures = Figures::new(format!(
        "{upgrades} upgrades, {VERSION} and {other} in turn, in {:.0} s under {} calls, {} new ones a second, {carrier:?}, seed {}",
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

/// Goal: upgrades to another build and back, under calls: the same figures as a recycle, and status shows
/// the new version. Method: the program with another version in it; both in turn.
#[test]
fn upgrades_over_tcp() {
    upgrade_under_calls(Carrier::Tcp);
}

/// Goal: the same over TLS, whose connections to router and service are closed: a request that crosses
/// the closing is sent again by its sender over a new connection. Method: the same.
#[test]
fn upgrades_over_tls() {
    upgrade_under_calls(Carrier::Tls);
}
