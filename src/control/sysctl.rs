//! `voxring sysctl`: the kernel settings a configuration needs, as a drop-in for /etc/sysctl.d.
//!
//! `config/90-voxring.conf` is what it prints for the default configuration on a kernel with its own
//! defaults.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;

use serde::Serialize;

use super::cli::Output;
use super::listeners::planned;
use super::print;
use crate::base::config::{Config, PortRange};
use crate::base::limits::SIP_UDP_QUEUE_BYTES;

/// Ports the kernel hands out unless told otherwise.
const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };
/// Connections that may wait for a listener: the kernel's default since 5.4; ours ask for less.
const CONNECTIONS_WAITING: u32 = 4096;
/// The web services' port.
const WEB_PORT: u16 = 8443;

/// What the kernel does today.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kernel {
    /// Ports it hands to sockets that name none.
    ephemeral: PortRange,
    /// Ports among them that it never hands out, as the kernel writes them.
    reserved: String,
}

#[derive(Debug, Serialize)]
struct Settings {
    #[serde(rename = "net.core.rmem_max")]
    receive_buffer: u32,
    #[serde(rename = "net.core.somaxconn")]
    waiting: u32,
    /// `None`: nothing to reserve.
    #[serde(rename = "net.ipv4.ip_local_reserved_ports", skip_serializing_if = "Option::is_none")]
    reserved: Option<String>,
}

/// `voxring sysctl`.
///
/// # Errors
/// No output.
pub fn run(config: &Config, output: Output) -> io::Result<()> {
    let settings = settings(config, &Kernel::read());
    let text = if output.json {
        serde_json::to_string_pretty(&settings).expect("it is plain data") + "\n"
    } else {
        render(&settings)
    };
    print::emit(&text)
}

impl Default for Kernel {
    fn default() -> Self {
        Self { ephemeral: EPHEMERAL, reserved: String::new() }
    }
}

impl Kernel {
    fn read() -> Self {
        let of = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        let range = of("ip_local_port_range");
        let mut bounds = range.split_whitespace().map(|word| word.parse().ok());
        let ephemeral = match (bounds.next().flatten(), bounds.next().flatten()) {
            (Some(first), Some(last)) => PortRange { first, last },
            _ => EPHEMERAL,
        };
        Self { ephemeral, reserved: of("ip_local_reserved_ports").trim().to_owned() }
    }
}

fn settings(config: &Config, kernel: &Kernel) -> Settings {
    let mut ports: BTreeSet<u16> = planned(config).iter().map(|listener| listener.address.port()).collect();
    ports.insert(WEB_PORT);
    ports.extend(config.rtp.ports.first..=config.rtp.ports.last);
    ports.retain(|port| (kernel.ephemeral.first..=kernel.ephemeral.last).contains(port));
    // The setting replaces what was reserved before, so that is named again.
    let is_needed = !ports.is_empty();
    for span in kernel.reserved.split(',').filter(|span| !span.is_empty()) {
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse()) {
            ports.extend(first..=last);
        }
    }
    Settings {
        receive_buffer: SIP_UDP_QUEUE_BYTES,
        waiting: CONNECTIONS_WAITING,
        reserved: is_needed.then(|| spans(&ports)),
    }
}

/// `"5060,10000-10999"`.
fn spans(ports: &BTreeSet<u16>) -> String {
    let mut spans: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match spans.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => spans.push((port, port)),
        }
    }
    let text = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    spans.iter().map(text).collect::<Vec<_>>().join(",")
}

fn render(settings: &Settings) -> String {
    let Settings { receive_buffer, waiting, reserved } = settings;
    let mut text = format!(
        "# Kernel settings for voxring, as `voxring sysctl` prints them for a configuration.\n\
         # Install as /etc/sysctl.d/90-voxring.conf, then: sysctl --system\n\
         # `voxring check` tells whether this machine needs them.\n\n\
         # A burst of SIP over UDP arrives at one socket; let its buffer hold {} MiB.\n\
         net.core.rmem_max = {receive_buffer}\n\n\
         # A burst of connections waits for a listener: the kernel's own default, where it was lowered.\n\
         net.core.somaxconn = {waiting}\n\n",
        receive_buffer >> 20
    );
    match reserved {
        Some(ports) => {
            text += "# Ports of SIP, media and web services that the kernel would hand to other programs.\n";
            let _ = writeln!(text, "net.ipv4.ip_local_reserved_ports = {ports}");
        }
        None => {
            text += "# No port of ours is among those that the kernel hands out, so none needs reserving.\n"
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the shipped drop-in is what the command prints. Method: default configuration, a kernel
    /// with its own defaults.
    #[test]
    fn the_shipped_drop_in_is_that_of_the_default_configuration() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/90-voxring.conf");
        let printed = render(&settings(&Config::default(), &Kernel::default()));
        assert_eq!(printed, fs::read_to_string(shipped).unwrap());
    }

    /// Goal: of our ports just those are reserved that the kernel would hand out, and what was reserved
    /// before stays. Method: media and a listener across the edges of 32768-60999; a kernel that hands
    /// out all ports.
    #[test]
    fn ports_the_kernel_would_hand_out_are_reserved_beside_those_that_are() {
        let mut config = Config::default();
        config.rtp.ports = PortRange { first: 30_000, last: 39_999 };
        config.worker.port_b = 50_067;
        let mut kernel = Kernel { reserved: "8080,50060-50066".to_owned(), ..Kernel::default() };
        let reserved = |config: &Config, kernel: &Kernel| settings(config, kernel).reserved;
        assert_eq!(reserved(&config, &kernel).as_deref(), Some("8080,32768-39999,50060-50067"));
        kernel.reserved.clear();
        kernel.ephemeral = PortRange { first: 1024, last: 65_535 };
        let all = "5060,5062,5065,5067,8443,16384-32767";
        assert_eq!(reserved(&Config::default(), &kernel).as_deref(), Some(all));
    }

    /// Goal: nothing but the settings that are needed. Method: the lines that set something.
    #[test]
    fn nothing_else_is_set() {
        let text = render(&settings(&Config::default(), &Kernel::default()));
        let set: Vec<_> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(set, ["net.core.rmem_max = 4194304", "net.core.somaxconn = 4096"]);
    }
}
