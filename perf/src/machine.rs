//! What the kernel tells: processor time of processes, datagrams dropped, the machine's name.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks a second in `/proc/PID/stat`; fixed at 100 for user space (`man 5 proc`).
const TICKS_PER_SECOND: u64 = 100;

/// User and system time a process has used, its threads included.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    // The command's name may hold blanks and brackets: count fields after the last bracket.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut ticks = rest.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let user = ticks.next().context("no user time in stat")??;
    let system = ticks.next().context("no system time in stat")??;
    Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

/// UDP datagrams the whole machine dropped because a receive buffer was full.
pub fn udp_receive_buffer_errors() -> u64 {
    let text = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    pairs.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Processor, number of them, kernel: the conditions of a number.
pub fn describe() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model =
        model.and_then(|line| line.split_once(':')).map_or("unknown processor", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {count} processors, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: processor time is read from the right fields.
    /// Method: burn some in this process and see it grow; a process that is not there is an error.
    #[test]
    fn processor_time_grows_with_work() {
        let before = cpu_time(std::process::id()).unwrap();
        let start = crate::clock::now();
        let mut sum = 0u64;
        while start.elapsed() < Duration::from_millis(300) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let used = cpu_time(std::process::id()).unwrap() - before;
        assert!(used > Duration::ZERO && used < Duration::from_secs(30), "{used:?}");
        assert!(cpu_time(u32::MAX).is_err());
    }
}
