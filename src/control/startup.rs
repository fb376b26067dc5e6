//! The table a node prints when it starts: who listens where, and with what.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::print;
use crate::base::config::PortRange;
use crate::sip::flow::Transport;

/// What a starting node knows about itself.
#[derive(Debug, Clone)]
pub struct Startup {
    /// `node.name`.
    pub node: String,
    /// The configuration file; `None`: the embedded default.
    pub config: Option<PathBuf>,
    /// The data folder.
    pub data: PathBuf,
    /// Every socket that takes SIP, with its role: `router`, `service`, `worker A`.
    pub listeners: Vec<(String, Transport, SocketAddr)>,
    /// Why there is no TLS although the configuration leaves room for it; `None`: there is, or it is
    /// not wanted.
    pub tls_off: Option<&'static str>,
    /// Every media shard of the first worker.
    pub shards: Vec<StartupShard>,
    /// Why media is not on io_uring, which was tried first, and what helps.
    pub no_uring: Option<String>,
    /// Mailboxes that were just created and their PINs.
    pub demo_pins: Vec<(String, String)>,
    /// Extensions 9196 to 9199 answer.
    pub test_extensions: bool,
}

/// One media shard in the table.
#[derive(Debug, Clone)]
pub struct StartupShard {
    /// Its worker's slot.
    pub slot: String,
    /// Its number in the worker.
    pub index: u16,
    /// The processor it is pinned to.
    pub cpu: Option<u32>,
    /// Where its sockets are bound: one address of each family that media has.
    pub addresses: String,
    /// Its slice.
    pub ports: PortRange,
    /// `io_uring` or `epoll`.
    pub backend: String,
}

/// The text of the table, its last line without "ready": that is the supervisor's to say.
pub fn render(startup: &Startup) -> String {
    let mut text = String::new();
    let config = match &startup.config {
        Some(file) => file.display().to_string(),
        None => "built in".to_owned(),
    };
    let _ = writeln!(
        text,
        "voxring {} \"{}\"  config: {config}  data: {}\n",
        env!("CARGO_PKG_VERSION"),
        startup.node,
        startup.data.display()
    );
    let mut rows: Vec<Vec<String>> = startup
        .listeners
        .iter()
        .map(|(role, transport, address)| {
            let host = address.ip().to_string();
            vec![role.clone(), host, address.port().to_string(), transport.name().to_owned(), String::new()]
        })
        .collect();
    rows.extend(startup.shards.iter().map(|shard| {
        let cpu = shard.cpu.map_or_else(String::new, |cpu| format!(", cpu {cpu}"));
        vec![
            format!("media {}{}", shard.slot, shard.index),
            shard.addresses.clone(),
            String::from(shard.ports),
            "rtp/rtcp".to_owned(),
            format!("{}{cpu}", shard.backend),
        ]
    }));
    text.push_str(&print::table(&["ROLE", "ADDRESS", "PORT", "TRANSPORT", "BACKEND"], &rows));
    if let Some(why) = startup.tls_off {
        let _ = writeln!(text, "\nTLS is off: {why}");
    }
    if let Some(why) = &startup.no_uring {
        let _ = writeln!(text, "\nMedia is not on io_uring: {why}");
    }
    if !startup.demo_pins.is_empty() {
        text.push_str("\nDemo mailboxes, created now. Their PINs are shown only this once:\n");
        for (number, pin) in &startup.demo_pins {
            let _ = writeln!(text, "  mailbox {number}  PIN {pin}");
        }
    }
    if startup.test_extensions {
        text.push_str("\nTest extensions answer: 9196 echo, 9197 prompt, 9198 record, 9199 sink\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the table names role, port, transport, slice and backend. Method: drawn by hand.
    #[test]
    fn the_table_names_role_port_transport_slice_and_backend() {
        let startup = Startup {
            node: "voxring".into(),
            config: None,
            data: "voxring-data".into(),
            listeners: vec![("router".into(), Transport::Tcp, "127.0.0.1:5060".parse().unwrap())],
            tls_off: Some("tls.certificate is not set"),
            shards: vec![StartupShard {
                slot: "A".into(),
                index: 0,
                cpu: Some(1),
                addresses: "127.0.0.1, ::1".into(),
                ports: PortRange { first: 16_384, last: 24_575 },
                backend: "io_uring".into(),
            }],
            no_uring: Some("it is switched off; switch it on".into()),
            demo_pins: vec![("1001".into(), "271828".into())],
            test_extensions: false,
        };
        let text = render(&startup);
        let expected = "\
ROLE      ADDRESS         PORT         TRANSPORT  BACKEND
router    127.0.0.1       5060         tcp
media A0  127.0.0.1, ::1  16384-24575  rtp/rtcp   io_uring, cpu 1
";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("\nTLS is off: tls.certificate is not set\n"), "{text}");
        assert!(text.contains("\nMedia is not on io_uring: it is switched off; switch it on\n"), "{text}");
        assert!(text.contains("mailbox 1001  PIN 271828"));
    }
}
