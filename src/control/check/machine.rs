//! Facts about the machine, read once.

use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ports::Span;

/// What the kernel allows this process. `None`: the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Ports the kernel hands to sockets that name none.
    pub(super) ephemeral: Option<Span>,
    /// Ports it never hands out.
    pub(super) reserved: Vec<Span>,
    /// Open files this process may have at most: soft limit raised to the hard one.
    pub(super) descriptors: Option<u64>,
    /// Memory it may lock, bytes.
    pub(super) locked_bytes: Option<u64>,
    /// Largest receive buffer of a socket, bytes.
    pub(super) receive_buffer_bytes: Option<u64>,
    /// Processors the process may use.
    pub(super) processors: usize,
}

impl Machine {
    /// Reads this machine's facts.
    pub fn read() -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            ephemeral: fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
                .ok()
                .and_then(|text| Span::parse(&text.split_whitespace().collect::<Vec<_>>().join("-"))),
            reserved: fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")
                .map(|text| text.trim().split(',').filter_map(Span::parse).collect())
                .unwrap_or_default(),
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
            locked_bytes: getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft),
            receive_buffer_bytes: number("/proc/sys/net/core/rmem_max"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Raises the soft limit on open files to the hard one, for this process and those it starts, and
/// gives the limit now in force. Shells start with 1024, which is 512 calls.
///
/// # Errors
/// What the kernel says.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the facts of a Linux machine are found. Method: those every kernel here tells.
    #[test]
    fn this_machine_tells_its_port_range_and_limits() {
        let machine = Machine::read();
        assert!(machine.ephemeral.is_some());
        assert!(machine.descriptors.is_some_and(|limit| limit >= 256));
        assert!(machine.processors >= 1);
        assert_eq!(raise_descriptor_limit().ok(), machine.descriptors);
    }
}
