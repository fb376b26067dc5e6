//! What a node holds: descriptors, memory, ports. Taken before a load and after it.

use std::time::Duration;

use crate::common::node::{Node, resident_kib};
use crate::common::wait_for;
use crate::figures::Figures;
use crate::stage::Stage;

/// How long calls and workers may take to end after a load.
const END_LIMIT: Duration = Duration::from_secs(90);

/// What an idle node holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ledger {
    /// Descriptors of the supervisor.
    pub(crate) descriptors: usize,
    /// Descriptors of the worker.
    pub(crate) worker_descriptors: usize,
    /// Resident memory of the supervisor, KiB.
    pub(crate) supervisor_kib: u64,
    /// Resident memory of the worker, KiB.
    pub(crate) worker_kib: u64,
    /// UDP sockets at the address of media.
    pub(crate) media_sockets: usize,
}

impl Ledger {
    /// Waits until there is one worker without calls, and takes stock.
    pub(crate) fn of_idle(stage: &Stage) -> Self {
        let node = &stage.node;
        wait_for("the end of all calls", END_LIMIT, || (calls(node) == 0).then_some(()));
        wait_for("the end of all drained workers", END_LIMIT, || (workers(node) == 1).then_some(()));
        let idle = || media_sockets(&stage.media_address()) == 0;
        // A few may be kept ready; they are then part of the baseline.
        let start = crate::common::now();
        while !idle() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let worker = node.worker_pid().expect("a worker is ready");
        Self {
            descriptors: descriptors(node.supervisor_pid()),
            worker_descriptors: descriptors(worker),
            supervisor_kib: resident_kib(node.supervisor_pid()),
            worker_kib: resident_kib(worker),
            media_sockets: media_sockets(&stage.media_address()),
        }
    }

    /// Rows that compare it with what was before.
    pub(crate) fn tell(&self, before: &Self, figures: &mut Figures) {
        let rows = [
            ("supervisor's descriptors", before.descriptors as u64, self.descriptors as u64),
            ("worker's descriptors", before.worker_descriptors as u64, self.worker_descriptors as u64),
            ("media sockets", before.media_sockets as u64, self.media_sockets as u64),
            ("supervisor's memory, KiB", before.supervisor_kib, self.supervisor_kib),
            ("worker's memory, KiB", before.worker_kib, self.worker_kib),
        ];
        rows.iter().for_each(|(what, then, now)| figures.add(what, format!("{then} before, {now} after")));
    }

    /// Asserts that nothing is held that was not before; connections of peers that just left may be.
    pub(crate) fn assert_back_at(&self, before: &Self) {
        assert!(self.descriptors <= before.descriptors, "{self:?} after {before:?}");
        assert!(self.media_sockets <= before.media_sockets, "{self:?} after {before:?}");
    }
}

/// Calls there are, by status: to list thousands of them again and again is a load of its own, each costs its
/// shard an order.
pub(crate) fn calls(node: &Node) -> u64 {
    node.status()["calls_active"].as_u64().expect("a count of calls")
}

/// Workers that run.
pub(crate) fn workers(node: &Node) -> usize {
    let status = node.status();
    let workers = status["workers"].as_array().expect("a list of workers");
    workers.iter().filter(|worker| worker["pid"].as_u64().is_some()).count()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// UDP sockets bound to an IPv4 address of this machine, in this network namespace.
fn media_sockets(address: &str) -> usize {
    let address: std::net::Ipv4Addr = address.parse().expect("an address");
    let hex = format!("{:08X}:", u32::from_ne_bytes(address.octets()));
    let table = std::fs::read_to_string("/proc/net/udp").expect("Linux has it");
    let local = |line: &str| line.split_ascii_whitespace().nth(1).map(str::to_owned);
    table.lines().filter_map(local).filter(|local| local.starts_with(&hex)).count()
}
