//! Peers who stop in the middle of everything: acceptance 7 of worker life.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::node::signal;
use crate::common::pki::set;
use crate::common::{now, peers, wait_for};
use crate::figures::Figures;
use crate::ledger::{Ledger, calls};
use crate::load::{Load, Wish};
use crate::stage::{Carrier, Stage, asked_number, is_asked, seed};

/// Timer B or F, 32 s, after the node gave the media up, and some time to get at all of them.
const CLEANED_LIMIT: Duration = Duration::from_secs(100);
/// They are stopped in so many groups as soon as they are up, so that they are no load before.
const GROUPS: u64 = 10;
/// How long the node waits for media: until all groups are stopped.
const MEDIA_TIMEOUT_S: i64 = 30;

/// Callers of a kind, in a process of their own that can be stopped. Killed with their owner.
struct Peers(Child);

impl Peers {
    fn start(stage: &Stage, transport: &str, arguments: &[&str]) -> Self {
        let uri = stage.node.uri("", transport).replace("sip:@", "sip:");
        let mut command = Command::new(peers::voxperf());
        command.args(["run", "--target", &uri, "--duration", "600", "--json"]).args(arguments);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().expect("voxperf starts"))
    }

    fn stop(&self) {
        signal("-STOP", &self.0.id().to_string());
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It is ours, and stopped or not, it ends by this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Goal: 2,000 peers who neither read, answer nor send any more are cleaned up by timers, and disturb
/// nobody meanwhile. Method: SIGSTOP of callers over TCP and UDP who are up, and of some who are calling;
/// a small load beside them, in which no call fails and no packet is lost.
#[test]
fn stalled() {
    if !is_asked() {
        return;
    }
    let count = asked_number("VOXRING_SOAK_STALLED", 2000);
    let wish = Wish { per_s: 5, mean_s: 6, parts: "playing,echo,anchored,held,keys", seed: seed() };
    let stage = Stage::set(Carrier::Tcp, |config| set(config, "rtp", "media_timeout_s", MEDIA_TIMEOUT_S));
    let node = &stage.node;
    Load::start(&stage, wish).finish().assert_unharmed();
    let before = Ledger::of_idle(&stage);
    let load = Load::start(&stage, wish);
    let calling = ["--scenario", "signalling", "--cps", "100", "--hold", "0.5"];
    let mut stalled = vec![Peers::start(&stage, "tcp", &calling), Peers::start(&stage, "udp", &calling)];
    let size = (count / GROUPS).to_string();
    let up = ["--scenario", "echo", "--calls", &size, "--cps", "400"];
    for (group, transport) in (1..=GROUPS).zip(["tcp", "udp"].into_iter().cycle()) {
        let peers = Peers::start(&stage, transport, &up);
        let least = count / GROUPS * group;
        wait_for("the peers to be up", Duration::from_secs(20), || (calls(node) >= least).then_some(()));
        peers.stop();
        stalled.push(peers);
    }
    let at_once = calls(node);
    stalled.iter().for_each(Peers::stop);
    let start = now();
    // The load beside them is all that is left.
    let left = 2 * wish.at_once();
    wait_for("the stalled calls to be gone", CLEANED_LIMIT, || (calls(node) <= left).then_some(()));
    let gone = start.elapsed();
    let outcome = load.finish();
    // Transactions with those who do not answer end by timer; then their sockets may go too.
    wait_for("the end of all calls", CLEANED_LIMIT, || (calls(node) == 0).then_some(()));
    let cleaned = start.elapsed();
    drop(stalled);
    let after = Ledger::of_idle(&stage);
    let mut figures = Figures::new(format!(
        "{at_once} calls stopped by SIGSTOP beside {} others, media_timeout_s {MEDIA_TIMEOUT_S}, seed {}",
        wish.at_once(),
        wish.seed
    ));
    figures.add("stalled calls gone after", format!("{:.1} s", gone.as_secs_f64()));
    figures.add("all gone, their transactions too, after", format!("{:.1} s", cleaned.as_secs_f64()));
    outcome.tell(&mut figures);
    after.tell(&before, &mut figures);
    figures.print();
    outcome.assert_unharmed();
    after.assert_back_at(&before);
}
