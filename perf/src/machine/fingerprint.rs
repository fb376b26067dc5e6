//! The conditions of a number: which processor, kernel, limits and programs it was measured with.

use std::fs;

use crate::clock;
use crate::load::result::Fingerprint;

/// Kernel settings that decide how much UDP a socket holds and which ports are free.
const SYSCTLS: [&str; 10] = [
    "net.core.netdev_max_backlog",
    "net.core.rmem_default",
    "net.core.rmem_max",
    "net.core.wmem_default",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.udp_mem",
    "net.ipv4.udp_rmem_min",
    "kernel.io_uring_disabled",
];

/// This machine, now; the server's name is left open.
pub fn fingerprint() -> Fingerprint {
    let cpuinfo = read("/proc/cpuinfo");
    Fingerprint {
        processor: cpu_field(&cpuinfo, "model name").unwrap_or("unknown processor").to_owned(),
        microcode: cpu_field(&cpuinfo, "microcode").unwrap_or_default().to_owned(),
        virtual_machine: is_virtual(&cpuinfo),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory_bytes(&read("/proc/meminfo")),
        kernel: read("/proc/sys/kernel/osrelease"),
        sysctls: SYSCTLS.into_iter().filter_map(|name| Some((name.to_owned(), sysctl(name)?))).collect(),
        voxperf: env!("CARGO_PKG_VERSION").to_owned(),
        optimised: !cfg!(debug_assertions),
        server: String::new(),
        began_unix_s: clock::calendar().as_secs(),
    }
}

/// A file of the kernel's without its last newline; empty when it cannot be read.
fn read(path: &str) -> String {
    let mut text = fs::read_to_string(path).unwrap_or_default();
    text.truncate(text.trim_end().len());
    text
}

/// A setting by its dotted name, blanks between values; `None` when this kernel has none of it.
fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

/// The first processor's field of this name.
fn cpu_field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.trim_end() == name).map(|(_, value)| value.trim())
}

/// The processor says that it is a guest's.
fn is_virtual(cpuinfo: &str) -> bool {
    let flags = cpu_field(cpuinfo, "flags").unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "hypervisor")
}

/// `MemTotal`, which is in KiB.
fn memory_bytes(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Example(R) CPU: 2.30GHz\nmicrocode\t: 0x1\n\
        flags\t\t: fpu hypervisor sse\n\nprocessor\t: 1\nmodel name\t: another\n";

    /// Goal: fields are found by their whole name, values may hold colons.
    /// Method: a made-up cpuinfo of two processors, and a meminfo of 2 MiB.
    #[test]
    fn the_first_processor_and_the_memory_are_read() {
        assert_eq!(cpu_field(CPUINFO, "model name"), Some("Example(R) CPU: 2.30GHz"));
        assert_eq!(cpu_field(CPUINFO, "model"), None);
        assert!(is_virtual(CPUINFO) && !is_virtual("flags : fpu hypervisors"));
        assert_eq!(memory_bytes("MemFree: 1 kB\nMemTotal:        2048 kB\n"), 2 << 20);
        assert_eq!(memory_bytes(""), 0);
    }

    /// Goal: a report made here names here. Method: take it and look for what every Linux has.
    #[test]
    fn this_machine_has_a_processor_memory_and_a_kernel() {
        let told = fingerprint();
        assert!(told.processors > 0 && told.memory_bytes > 1 << 20 && !told.kernel.is_empty(), "{told:?}");
        let range = &told.sysctls["net.ipv4.ip_local_port_range"];
        assert_eq!(range.split(' ').count(), 2, "a tab became a blank: {range:?}");
    }
}
