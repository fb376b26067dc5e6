//! Limits of the process and the kernel against what the configuration needs.

use super::machine::Machine;
use super::report::Report;
use crate::base::config::{Config, Source};
use crate::base::limits::SIP_UDP_QUEUE_BYTES;

/// Descriptors a worker needs besides calls and connections: logs, rings, store, spool, control.
const DESCRIPTORS_SPARE: u64 = 512;
/// Memory a process may need to lock: kernels before 5.12 count io_uring rings, 1 MiB or so a shard.
const LOCKED_BYTES_MIN: u64 = 8 << 20;
/// Receive buffer the media sockets ask for, see `uring::sockets`.
const RTP_BUFFER_BYTES_MIN: u64 = 64 << 10;

/// Descriptors one worker process needs for all `config` allows: two sockets a call, one a
/// connection.
pub(super) fn descriptors_needed(config: &Config) -> u64 {
    2 * u64::from(config.calls.calls_max) + u64::from(config.sip.connections_max) + DESCRIPTORS_SPARE
}

/// Compares limits with needs.
pub(super) fn examine(report: &mut Report, config: &Config, source: &Source, machine: &Machine) {
    descriptors(report, config, source, machine);
    locked_memory(report, machine);
    receive_buffer(report, config, machine);
    processors(report, config, source, machine);
}

fn descriptors(report: &mut Report, config: &Config, source: &Source, machine: &Machine) {
    let needed = descriptors_needed(config);
    match machine.descriptors {
        Some(limit) if limit < needed => report.error(
            source.locate("calls.calls_max"),
            format!(
                "{} calls and {} connections need {needed} open files, the hard limit is {limit}",
                config.calls.calls_max, config.sip.connections_max
            ),
            format!("systemd: LimitNOFILE={needed}; a shell, as root: ulimit -Hn {needed}"),
        ),
        Some(limit) => report.pass(format!("open files: {needed} needed, {limit} allowed")),
        None => {}
    }
}

fn locked_memory(report: &mut Report, machine: &Machine) {
    match machine.locked_bytes {
        Some(limit) if limit < LOCKED_BYTES_MIN => report.warning(
            "RLIMIT_MEMLOCK",
            format!("{} KiB may be locked; io_uring may need {} KiB", limit >> 10, LOCKED_BYTES_MIN >> 10),
            format!(
                "systemd: LimitMEMLOCK={LOCKED_BYTES_MIN}; a shell, as root: ulimit -l {}",
                LOCKED_BYTES_MIN >> 10
            ),
        ),
        Some(_) => report.pass("locked memory: enough"),
        None => {}
    }
}

fn receive_buffer(report: &mut Report, config: &Config, machine: &Machine) {
    let udp = config.router.udp || config.service.udp || config.worker.udp;
    let (needed, what) = if udp {
        (u64::from(SIP_UDP_QUEUE_BYTES), "a burst of SIP over UDP, which all arrives at one socket")
    } else {
        (RTP_BUFFER_BYTES_MIN, "what a busy shard lets wait of a call's RTP")
    };
    match machine.receive_buffer_bytes {
        Some(limit) if limit < needed => report.warning(
            "net.core.rmem_max",
            format!("{limit} bytes cannot hold {what}; packets may be lost while the node is busy"),
            format!("sysctl -w net.core.rmem_max={needed}"),
        ),
        Some(limit) => report.pass(format!("socket receive buffers: up to {limit} bytes")),
        None => {}
    }
}

fn processors(report: &mut Report, config: &Config, source: &Source, machine: &Machine) {
    if usize::from(config.worker.media_shards) > machine.processors {
        report.warning(
            source.locate("worker.media_shards"),
            format!(
                "{} media shards share {} processors; packets will leave late",
                config.worker.media_shards, machine.processors
            ),
            format!("worker.media_shards = {}, or 0 to let the node choose", machine.processors.max(2) - 1),
        );
    } else {
        report.pass(format!("{} processors", machine.processors));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enough() -> Machine {
        Machine {
            descriptors: Some(1 << 20),
            locked_bytes: Some(8 << 20),
            receive_buffer_bytes: Some(4 << 20),
            processors: 4,
            ..Machine::default()
        }
    }

    fn problems(config: &Config, machine: &Machine) -> Vec<String> {
        let mut report = Report::default();
        examine(&mut report, config, &Source::default(), machine);
        report.problems.into_iter().map(|p| format!("{}: {} -> {}", p.place, p.what, p.fix)).collect()
    }

    /// Goal: a machine with room has no problem. Method: limits at or above each need.
    #[test]
    fn a_machine_with_room_passes() {
        assert_eq!(problems(&Config::default(), &enough()), [""; 0]);
    }

    /// Goal: too few descriptors is an error with the exact number. Method: 1000 calls of two sockets,
    /// 4096 connections and 512 spare are 6608.
    #[test]
    fn too_few_descriptors_names_the_exact_number() {
        let machine = Machine { descriptors: Some(4096), ..enough() };
        let found = problems(&Config::default(), &machine);
        assert!(found[0].ends_with("LimitNOFILE=6608; a shell, as root: ulimit -Hn 6608"), "{found:?}");
    }

    /// Goal: small buffers matter once SIP comes over UDP. Method: Debian's 212992 with UDP off and on.
    #[test]
    fn a_small_receive_buffer_is_a_warning_with_udp_only() {
        let machine = Machine { receive_buffer_bytes: Some(212_992), ..enough() };
        let mut config = Config::default();
        assert_eq!(problems(&config, &machine), [""; 0]);
        config.router.udp = true;
        assert!(problems(&config, &machine)[0].ends_with("sysctl -w net.core.rmem_max=4194304"));
    }

    /// Goal: more shards than processors, and little lockable memory, are told. Method: both at once.
    #[test]
    fn crowded_processors_and_little_locked_memory_are_warnings() {
        let mut config = Config::default();
        config.worker.media_shards = 5;
        let machine = Machine { locked_bytes: Some(65_536), ..enough() };
        let found = problems(&config, &machine);
        assert!(
            found[0].contains("64 KiB may be locked") && found[0].ends_with("ulimit -l 8192"),
            "{found:?}"
        );
        assert!(found[1].contains("worker.media_shards = 3"), "{found:?}");
    }
}
