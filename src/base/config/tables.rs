//! Every key there is. A key's doc comment is its text in `config/voxring.toml`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::PortRange;

choices! {
    /// How router and service hand a call on.
    Handoff {
        /// 302 with the next hop in Contact.
        Redirect = "redirect",
        /// Forward the INVITE and stay out of the dialog; for gateways that follow no 302.
        Proxy = "proxy",
    }

    /// Which of several diversions names the mailbox.
    Diversion {
        /// The first one that happened (RFC 5806: the last in the message).
        Bottom = "bottom",
        /// The most recent one.
        Top = "top",
    }
}

tables! {
    /// The node as a whole.
    Node node {
        /// Name in the Server header, RTCP CNAME and logs: letters, digits, "-", "_" and ".".
        name: String = "voxring".into();
        /// Folder of database, audio, spool and control socket. Created when missing.
        data: PathBuf = "voxring-data".into();
        /// Create mailboxes 1001 and 1002 in an empty store and print their PINs once.
        demo_mailboxes: bool = false;
    }

    /// The call router: the first hop of every call.
    Router router {
        /// Address it listens on.
        address: IpAddr = Ipv4Addr::LOCALHOST.into();
        /// Port it listens on.
        port: u16 = 5060, 1..=65535 "";
        /// Listen on UDP too, same port.
        udp: bool = false;
        /// How router and service hand a call on to the next hop.
        handoff: Handoff = Handoff::Redirect;
    }

    /// The UM service: the second hop, which knows the worker that takes new calls.
    Service service {
        /// Address it listens on.
        address: IpAddr = Ipv4Addr::LOCALHOST.into();
        /// Port it listens on.
        port: u16 = 5062, 1..=65535 "";
        /// Listen on UDP too, same port.
        udp: bool = false;
    }

    /// Worker processes, which answer calls.
    Worker worker {
        /// Address both slots listen on.
        address: IpAddr = Ipv4Addr::LOCALHOST.into();
        /// Port of slot A.
        port_a: u16 = 5065, 1..=65535 "";
        /// Port of slot B.
        port_b: u16 = 5067, 1..=65535 "";
        /// Listen on UDP too, same ports.
        udp: bool = false;
        /// Media shards: threads with their own io_uring and their own slice of the RTP ports.
        /// 0 means one less than the processors the process may use, at least one.
        media_shards: u16 = 0, 0..=256 "shards";
        /// A worker silent for this long is stopped and replaced.
        heartbeat_timeout_s: u16 = 5, 1..=60 "seconds";
    }

    /// SIP transport and dialogs.
    Sip sip {
        /// Connections a signalling shard holds; one more is closed at once.
        connections_max: u32 = 4096, 1..=1000000 "connections";
        /// A connection without a message or keep-alive for this long is closed.
        idle_timeout_s: u32 = 600, 1..=86400 "seconds";
        /// A message must be complete this long after its first byte, and the first one of a
        /// connection this long after it was opened, or the connection is closed.
        message_timeout_s: u16 = 10, 1..=60 "seconds";
        /// Session interval we ask for (RFC 4028); 0 turns session timers off, else at least
        /// min_se_s.
        session_expires_s: u32 = 1800, 0..=86400 "seconds";
        /// Smallest session interval we accept; a shorter one is answered 422 (RFC 4028).
        min_se_s: u32 = 90, 90..=3600 "seconds";
    }

    /// Media.
    Rtp rtp {
        /// Address media sockets bind to and SDP names, so a real one, not 0.0.0.0.
        address: IpAddr = Ipv4Addr::LOCALHOST.into();
        /// Ports of both worker slots, half for each: RTP on even ports, RTCP on the odd port above.
        /// The default lies outside the kernel's ephemeral range, 32768-60999; `voxring check`
        /// tells when a range does not.
        ports: PortRange = PortRange { first: 16_384, last: 32_767 };
        /// Latch onto any first source, not just the address in the SDP: callers are behind a NAT.
        nat: bool = false;
        /// A closed call's ports rest this long, so that late packets reach nobody.
        quarantine_s: u16 = 10, 0..=300 "seconds";
        /// A call without RTP for this long is ended.
        media_timeout_s: u16 = 60, 1..=3600 "seconds";
    }

    /// What a call may do.
    Calls calls {
        /// Calls at once in a worker; one more gets 503 with Retry-After. 0 refuses every call.
        calls_max: u32 = 1000, 0..=100000 "calls";
        /// Longest call; more than recording.duration_max_min.
        duration_max_min: u16 = 30, 10..=120 "minutes";
        /// Retry-After in a 503.
        retry_after_s: u16 = 4, 1..=3600 "seconds";
        /// Which of stacked Diversion headers names the mailbox.
        diversion: Diversion = Diversion::Bottom;
        /// Wrong or missing key presses before the call is ended.
        input_failures_max: u8 = 3, 1..=20 "key presses";
    }

    /// Voice-mail recordings.
    Recording recording {
        /// Longest message; less than calls.duration_max_min.
        duration_max_min: u16 = 20, 1..=100 "minutes";
        /// Silence that ends a message; it is cut off.
        silence_s: u16 = 5, 2..=10 "seconds";
        /// A recording with less sound than this is a missed call, not a message.
        voiced_min_ms: u16 = 200, 0..=10000 "milliseconds";
    }

    /// Extensions for tests.
    TestExtensions test_extensions {
        /// Answer 9196 (echo), 9197 (prompt in a loop), 9198 (record, throw away), 9199 (sink).
        enabled: bool = false;
    }
}

impl Config {
    /// What `voxring serve` runs with when no file is named: the defaults and two demo mailboxes.
    pub fn embedded() -> Self {
        Self { node: Node { demo_mailboxes: true, ..Node::default() }, ..Self::default() }
    }
}
