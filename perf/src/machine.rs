//! What the kernel tells: processor time and memory of processes, datagrams dropped, the machine's
//! name, and which addresses are ours to load.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

mod fingerprint;

pub use fingerprint::fingerprint;

use crate::load::result::Fingerprint;

/// Clock ticks a second in `/proc/PID/stat`; fixed at 100 for user space (`man 5 proc`).
const TICKS_PER_SECOND: u64 = 100;

/// User and system time a process has used, its threads included.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    let (user, system) = ticks(&text).context("no user and system time in stat")?;
    Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

/// Time on a processor of a process's threads called `name` (all of them when empty), of
/// `/proc/PID/task/TID/schedstat` and `stat`.
///
/// # Errors
/// There is no such process or thread.
pub fn thread_time(pid: u32, name: &str) -> Result<ThreadTime> {
    let folder = format!("/proc/{pid}/task");
    let (mut time, mut found) = (ThreadTime::default(), false);
    for entry in fs::read_dir(&folder).with_context(|| format!("no process {pid}"))?.flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if name.is_empty() || read("comm").trim_end() == name {
            let spent = read("schedstat");
            let first = spent.split_ascii_whitespace().next();
            let nanos = first.and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
            let (user, system) = ticks(&read("stat")).unwrap_or_default();
            time.total += Duration::from_nanos(nanos);
            (time.user_ticks, time.system_ticks) = (time.user_ticks + user, time.system_ticks + system);
            found = true;
        }
    }
    ensure!(found, "process {pid} has no thread called {name:?}; see {folder}/*/comm");
    Ok(time)
}

/// Time on a processor of one or more threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThreadTime {
    /// As the scheduler counts it.
    pub total: Duration,
    /// Share of it outside the kernel, in ticks of 10 ms; only good for proportions over seconds.
    pub user_ticks: u64,
    /// Share of it inside the kernel, in the same ticks.
    pub system_ticks: u64,
}

impl ThreadTime {
    /// What was spent since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            total: self.total.saturating_sub(before.total),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(before.system_ticks),
        }
    }
}

/// User and system time in a `stat` of a process or thread.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    // The command's name may hold blanks and brackets: count fields after the last bracket.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut ticks = rest.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    Some((ticks.next()?.ok()?, ticks.next()?.ok()?))
}

/// Resident memory of a process in bytes (`VmRSS`); socket buffers are not in it.
///
/// # Errors
/// There is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|rest| rest.trim().strip_suffix("kB")).context("no VmRSS in status")?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}

/// Lets us open as many files as the hard limit allows; gives that limit.
///
/// # Errors
/// The kernel refuses.
pub fn raise_file_limit() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    Ok(hard)
}

/// Lets the calling thread's sleeps end on time; by default the kernel may add 50 µs to save a wake-up.
pub fn wake_punctually() {
    // A refusal costs those 50 µs; the lateness is measured anyway.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Load is for our own machine: the loopback, an address of this machine, or a private address
/// inside a network namespace of our own.
///
/// # Errors
/// Any other address.
pub fn ensure_own(address: IpAddr) -> Result<()> {
    let is_private = match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    };
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let in_namespace = namespace("1").is_some_and(|first| namespace("self") != Some(first));
    let is_here = || is_private && UdpSocket::bind((address, 0)).is_ok();
    ensure!(
        address.is_loopback() || is_private && in_namespace || is_here(),
        "{address} is not ours to load: want a loopback address, or a private one in a network namespace"
    );
    Ok(())
}

/// UDP datagrams the whole machine dropped because a receive buffer was full.
pub fn udp_receive_buffer_errors() -> u64 {
    let text = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    pairs.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Datagrams dropped so far by our own sockets on these UDP ports, their receive buffers being full.
///
/// Reads the `drops` of `/proc/net/udp` and `udp6`, whose lines are as many as the network
/// namespace has sockets: some milliseconds for thousands.
pub fn udp_drops(ports: &[u16]) -> u64 {
    let drops = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (_, port) = fields.nth(1)?.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok().filter(|port| ports.contains(port));
        port.and(fields.last()?.parse::<u64>().ok())
    };
    let tables =
        ["/proc/net/udp", "/proc/net/udp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(drops).sum()
}

/// Processor, number of them, kernel: the conditions of a number.
pub fn describe() -> String {
    let Fingerprint { processor, processors, kernel, .. } = fingerprint();
    format!("{processor}, {processors} processors, Linux {kernel}")
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

    /// Goal: the scheduler's time and the resident memory are read for the thread and process meant.
    /// Method: a thread with a name of its own burns 50 ms; a name nobody has is an error.
    #[test]
    fn time_and_memory_are_those_of_the_thread_and_process_meant() {
        let pid = std::process::id();
        let (told, done) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel::<()>());
        let burner = std::thread::Builder::new().name("vx-burner".into()).spawn(move || {
            let start = crate::clock::thread_time();
            while crate::clock::thread_time() - start < Duration::from_millis(50) {}
            told.0.send(()).unwrap();
            let _ = done.1.recv();
        });
        told.1.recv().unwrap();
        let spent = thread_time(pid, "vx-burner").unwrap();
        assert!(spent.total >= Duration::from_millis(45), "{spent:?}");
        let all = thread_time(pid, "").unwrap();
        assert!(all.total >= spent.total && all.user_ticks >= spent.user_ticks, "{all:?}");
        assert_eq!(all.since(all), ThreadTime::default());
        assert!(thread_time(pid, "nobody").unwrap_err().to_string().contains("nobody"));
        drop(done.0);
        burner.unwrap().join().unwrap();
        assert!(resident_bytes(pid).unwrap() > 1 << 20);
    }

    /// Goal: load never leaves the machine.
    /// Method: loopback passes; public and documentation addresses do not (RFC 5737, RFC 3849).
    #[test]
    fn load_never_leaves_the_machine() {
        for own in ["127.0.0.1", "127.9.9.9", "::1"] {
            ensure_own(own.parse().unwrap()).unwrap();
        }
        for other in ["192.0.2.1", "8.8.8.8", "2001:db8::1", "0.0.0.0", "224.0.0.1"] {
            assert!(ensure_own(other.parse().unwrap()).is_err(), "{other}");
        }
    }
}
