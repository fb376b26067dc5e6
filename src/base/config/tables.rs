//! Every key there is. A key's doc comment is its text in `config/voxring.toml`.

use std::path::PathBuf;

use super::{Addresses, GatewayAddresses, GatewayCallUri, GatewayNames, PortRange, RoutePattern, SrtpSuites};

choices! {
    /// How router and service hand a call on.
    Handoff {
        /// 302 with the next hop in Contact.
        Redirect = "redirect",
        /// Forward the INVITE and stay out of the dialog; for gateways that follow no 302.
        Proxy = "proxy",
    }

    /// Which SIP transports a role listens on, beside UDP.
    StartupMode {
        /// TCP, and TLS once tls.certificate is set.
        Dual = "dual",
        /// TCP only.
        Tcp = "tcp",
        /// TLS only: no UDP either, whatever `udp` says.
        Tls = "tls",
    }

    /// Which internet protocols a role listens with.
    AddressFamily {
        /// Both; "0.0.0.0" and "::" each stand for all addresses of both.
        Any = "any",
        /// IPv4 only.
        Ipv4 = "ipv4",
        /// IPv6 only.
        Ipv6 = "ipv6",
    }

    /// Whether TLS peers must show a certificate.
    PeerCertificate {
        /// One that tls.ca vouches for, and whose name is the gateway's.
        Required = "required",
        /// None is asked for: encryption only.
        None = "none",
    }

    /// What becomes of messages and connections from nobody's address.
    UnknownSource {
        /// Nothing goes back: a scanner learns not even that somebody listens to SIP.
        Drop = "drop",
        /// Requests get 403, a hundred a second; the rest is dropped.
        Refuse = "refuse",
    }

    /// How media shards talk to the kernel.
    IoBackend {
        /// io_uring where it works, else epoll; the log and `voxring status` say why.
        Auto = "auto",
        /// io_uring, or no start.
        Uring = "uring",
        /// epoll, which costs more for each packet.
        Epoll = "epoll",
        /// One socket takes the packets of all calls and one sends them, which costs least with a thousand
        /// calls and more. Needs the capabilities net_admin, net_raw and bpf; or no start.
        Steered = "steered",
    }

    /// A gateway's standing.
    GatewayStatus {
        /// Calls are taken.
        Enabled = "enabled",
        /// Every request outside a call under way is refused with 403.
        Disabled = "disabled",
        /// New calls are refused with 503, those under way go on.
        NoNewCalls = "no_new_calls",
    }

    /// How numbers in a dial plan are written.
    UriType {
        /// Whatever can be read.
        Any = "any",
        /// Digits: an extension or a telephone number, as tel: URI or user part.
        TelExtn = "tel_extn",
        /// A user and a host.
        SipUri = "sip_uri",
        /// "+" and up to 15 digits.
        E164 = "e164",
    }

    /// What a dial plan's calls must be protected with.
    Security {
        /// Nothing.
        Unsecured = "unsecured",
        /// TLS for signalling.
        SipSecured = "sip_secured",
        /// TLS for signalling and SRTP for media.
        Secured = "secured",
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
        /// DNS name that peers reach this node by. It stands in Contact and in redirects of calls
        /// over TLS, so that the certificate matches. Empty: the address a call came to.
        fqdn: String = String::new();
        /// After SIGTERM calls that are up may go on for this long, then they are ended with BYE. A
        /// second SIGTERM ends them at once. Keep it 20 s below systemd's TimeoutStopSec.
        stop_timeout_s: u16 = 30, 0..=7200 "seconds" => now;
    }

    /// The call router: the first hop of every call.
    Router router {
        /// Address it listens on, or several.
        address: Addresses = Addresses::loopback() => now;
        /// Internet protocols it listens with.
        address_family: AddressFamily = AddressFamily::Any => now;
        /// Which transports it listens on.
        startup_mode: StartupMode = StartupMode::Dual => now;
        /// Port for TCP, and for UDP where that is on.
        port: u16 = 5060, 1..=65535 "" => now;
        /// Port for TLS.
        tls_port: u16 = 5061, 1..=65535 "" => now;
        /// Listen on UDP too, on `port`.
        udp: bool = false => now;
        /// How router and service hand a call on to the next hop.
        handoff: Handoff = Handoff::Redirect => calls;
        /// Refuse new calls and OPTIONS with 503, so that gateways turn to another node.
        maintenance: bool = false => now;
    }

    /// The UM service: the second hop, which knows the worker that takes new calls.
    Service service {
        /// Address it listens on, or several.
        address: Addresses = Addresses::loopback();
        /// Internet protocols it listens with.
        address_family: AddressFamily = AddressFamily::Any;
        /// Which transports it listens on.
        startup_mode: StartupMode = StartupMode::Dual;
        /// Port for TCP, and for UDP where that is on.
        port: u16 = 5062, 1..=65535 "";
        /// Port for TLS.
        tls_port: u16 = 5063, 1..=65535 "";
        /// Listen on UDP too, same port.
        udp: bool = false;
    }

    /// Worker processes, which answer calls.
    Worker worker {
        /// Address both slots listen on, or several.
        address: Addresses = Addresses::loopback();
        /// Internet protocols they listen with.
        address_family: AddressFamily = AddressFamily::Any;
        /// Which transports they listen on. With TLS only, TLS takes port_a and port_b.
        startup_mode: StartupMode = StartupMode::Dual;
        /// Port of slot A.
        port_a: u16 = 5065, 1..=65535 "";
        /// Port of slot B.
        port_b: u16 = 5067, 1..=65535 "";
        /// Port of slot A for TLS beside TCP.
        tls_port_a: u16 = 5066, 1..=65535 "";
        /// Port of slot B for TLS beside TCP.
        tls_port_b: u16 = 5068, 1..=65535 "";
        /// Listen on UDP too, same ports.
        udp: bool = false;
        /// Media shards: threads with their own io_uring or epoll and their own slice of the RTP
        /// ports. 0 means one less than the processors the process may use, at least one.
        media_shards: u16 = 0, 0..=256 "shards";
        /// How they talk to the kernel. `voxring serve --io-backend` wins over it.
        io_backend: IoBackend = IoBackend::Auto;
        /// A worker silent for this long is killed and replaced; it speaks every half second.
        heartbeat_timeout_s: u16 = 3, 1..=60 "seconds" => now;
        /// A media shard or signalling loop that does not turn for this long is told in the log with
        /// what the kernel knows of its thread, and its worker is replaced.
        stall_limit_s: u16 = 2, 1..=60 "seconds";
        /// A worker that has run for this long gives way to a new one. 0: age is no reason.
        recycle_age_h: u16 = 168, 0..=8760 "hours" => now;
        /// The same with this much resident memory. 0: memory is no reason.
        recycle_memory_mib: u32 = 0, 0..=1048576 "MiB" => now;
        /// The same after this many answered calls. 0: calls are no reason.
        recycle_calls: u32 = 0, 0..=4000000000 "calls" => now;
        /// A worker with this much resident memory takes no new calls, which get 503 with Retry-After, and
        /// gives way to a new one as soon as the other slot is free. Above recycle_memory_mib, and below
        /// what the machine or its cgroup gives. 0: it takes calls until the kernel ends it.
        memory_max_mib: u32 = 0, 0..=1048576 "MiB" => now;
        /// A worker that gave way keeps its calls for this long at most, then they are ended with BYE and
        /// recordings are stored.
        drain_timeout_s: u32 = 3600, 0..=86400 "seconds" => now;
        /// Deaths of workers within crash_window_s after which none is started any more, until
        /// `voxring recycle`.
        crashes_max: u16 = 5, 1..=1000 "deaths" => now;
        /// See crashes_max.
        crash_window_s: u16 = 60, 1..=3600 "seconds" => now;
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
        /// Address media sockets bind to and SDP names, so a real one, not "0.0.0.0". One for IPv4,
        /// one for IPv6, or both: an offer is answered with the address of its family.
        address: Addresses = Addresses::loopback();
        /// Ports of both worker slots, half for each: RTP on even ports, RTCP on the odd port above.
        /// The default lies outside the kernel's ephemeral range, 32768-60999; `voxring check`
        /// tells when a range does not.
        ports: PortRange = PortRange { first: 16_384, last: 32_767 };
        /// Callers are behind a NAT: latch onto a first packet from the address that the call's SIP
        /// comes from, whatever its port, not just from the address in the SDP.
        nat: bool = false => calls;
        /// A closed call's ports rest this long, so that late packets reach nobody.
        quarantine_s: u16 = 10, 0..=300 "seconds";
        /// A call without RTP for this long is ended.
        media_timeout_s: u16 = 60, 1..=3600 "seconds" => calls;
    }

    /// What a call may do.
    Calls calls {
        /// Calls at once in a worker; one more gets 503 with Retry-After. 0 refuses every call.
        calls_max: u32 = 1000, 0..=100000 "calls" => calls;
        /// New calls a second in a worker, over all gateways; one more gets 503 with Retry-After.
        calls_per_s: u32 = 500, 1..=100000 "calls per second" => now;
        /// Longest call; more than recording.duration_max_min.
        duration_max_min: u16 = 30, 10..=120 "minutes" => calls;
        /// A SIP thread that is busy for more of its time, for 400 ms on end, refuses so many new calls that
        /// it is not: 503 with Retry-After. 100: none.
        signalling_busy_max: u8 = 97, 50..=100 "percent" => now;
        /// A media shard that was busy for more of its time, or had no time for packets, for two seconds
        /// gets no new calls. Without another shard they get 503 with Retry-After. 100: it gets them.
        media_busy_max: u8 = 97, 50..=100 "percent" => now;
        /// Retry-After in a 503.
        retry_after_s: u16 = 4, 1..=3600 "seconds" => calls;
        /// Which of stacked Diversion headers names the mailbox.
        diversion: Diversion = Diversion::Bottom => calls;
        /// Wrong or missing key presses before the call is ended.
        input_failures_max: u8 = 3, 1..=20 "key presses" => calls;
    }

    /// TLS for SIP, mutual by default. SIGHUP, or a change of the files, loads them anew: new
    /// connections get the new certificate, connections that are up stay, and those whose
    /// certificate is now revoked are closed.
    Tls tls {
        /// Our certificate with its intermediates, PEM. Empty: no TLS.
        certificate: PathBuf = PathBuf::new() => now;
        /// Its private key, PEM.
        key: PathBuf = PathBuf::new() => now;
        /// Certificates of the authorities that vouch for our peers, PEM.
        ca: PathBuf = PathBuf::new() => now;
        /// Their revocation lists, PEM. One that has expired refuses everybody it should judge.
        /// Empty: none is looked at.
        crl: PathBuf = PathBuf::new() => now;
        /// Whether peers must show a certificate.
        peer_certificate: PeerCertificate = PeerCertificate::Required => now;
        /// A handshake must be complete this long after the connection was opened.
        handshake_timeout_s: u16 = 5, 1..=60 "seconds" => now;
    }

    /// SRTP (RFC 3711), keyed by SDP (RFC 4568).
    Srtp srtp {
        /// Suites we take, and in our own offers the order of preference.
        suites: SrtpSuites = SrtpSuites::default() => calls;
        /// Exchange keys over UDP and TCP too. Who reads the signalling can then read the media.
        sdes_over_plain: bool = false => calls;
    }

    /// What one source may ask of us.
    Limits limits {
        /// What becomes of messages and connections from addresses that no gateway has.
        unknown_source: UnknownSource = UnknownSource::Drop => now;
        /// New calls a second from one address; one more gets 503 with Retry-After.
        source_calls_per_s: u32 = 200, 1..=100000 "calls per second" => now;
        /// How many may come at once after a quiet time.
        source_calls_burst: u32 = 400, 1..=100000 "calls" => now;
        /// New connections a second from one address; one more is closed at once.
        source_connections_per_s: u32 = 200, 1..=100000 "connections per second" => now;
        /// How many may come at once after a quiet time.
        source_connections_burst: u32 = 1000, 1..=100000 "connections" => now;
        /// Connections that one address may have open; one more is closed at once.
        source_connections_max: u32 = 2000, 1..=1000000 "connections" => now;
        /// Messages a second on one connection; it is read no faster.
        connection_messages_per_s: u32 = 5000, 10..=1000000 "messages per second" => now;
    }

    /// Voice-mail recordings.
    Recording recording {
        /// Longest message; less than calls.duration_max_min.
        duration_max_min: u16 = 20, 1..=100 "minutes" => calls;
        /// Silence that ends a message; it is cut off.
        silence_s: u16 = 5, 2..=10 "seconds" => calls;
        /// A recording with less sound than this is a missed call, not a message. What a crash cut off
        /// is judged by the value at the start of the worker that finds it.
        voiced_min_ms: u16 = 200, 0..=10000 "milliseconds" => calls;
        /// With less free space than this in the data folder calls for mailboxes get 503; recordings under
        /// way have it to themselves. An hour of them takes 55 MiB.
        free_mib_min: u32 = 64, 0..=1048576 "MiB";
    }

    /// Extensions for tests.
    TestExtensions test_extensions {
        /// Answer 9196 (echo), 9197 (prompt in a loop), 9198 (record, throw away), 9199 (sink).
        enabled: bool = false => calls;
    }

    @lists

    /// A UM IP gateway: who may call. Without any, callers on this machine's loopback may.
    Gateway gateway {
        /// What logs, counters and hunt groups call it.
        name: String = String::new() => now;
        /// Where it calls from: addresses, networks ("192.0.2.0/24") and DNS names.
        address: GatewayAddresses = GatewayAddresses::default() => now;
        /// The DNS name in its certificate. Empty: one of the DNS names in `address`.
        certificate_name: String = String::new() => now;
        /// Its standing.
        status: GatewayStatus = GatewayStatus::Enabled => now;
        /// Calls at once, from it and to it; one more gets 503 with Retry-After. 0: no limit of its own.
        calls_max: u32 = 0, 0..=100000 "calls" => now;
        /// Where calls to it are sent. A DNS name is looked up as those in `address` are: at the start,
        /// at a reload, and every minute. Over TLS its certificate must have that name, or
        /// certificate_name where that is set. Empty: no call can be sent there.
        call_uri: GatewayCallUri = GatewayCallUri::default() => now;
    }

    /// A route: which calls are sent on to another gateway, with their media through this node. The
    /// first one whose pattern fits what was dialled takes the call; diversions do not count. A call
    /// that no route takes is for a mailbox.
    Route route {
        /// What logs call it.
        name: String = String::new() => calls;
        /// The numbers it is for, as they were dialled.
        pattern: RoutePattern = RoutePattern::default() => calls;
        /// Names of the gateways that calls are sent to, tried in this order. The next one is tried
        /// after 5xx, 408, 3xx, 401 and 407, when there is no connection, and after try_timeout_s.
        gateways: GatewayNames = GatewayNames::default() => calls;
        /// Characters taken from the front of the number; "+" counts as one.
        strip_digits: u8 = 0, 0..=40 "characters" => calls;
        /// Put before what is left of the number.
        prefix: String = String::new() => calls;
        /// How long the far end may ring before the caller is told that nobody answers.
        ring_timeout_s: u16 = 60, 5..=600 "seconds" => calls;
        /// How long a gateway may say nothing at all before the next one is tried.
        try_timeout_s: u16 = 4, 1..=30 "seconds" => calls;
    }

    /// A dial plan: how numbers look and what protects calls. Without any, all numbers are taken,
    /// unsecured.
    DialPlan dial_plan {
        /// What hunt groups call it.
        name: String = String::new() => now;
        /// How numbers are written.
        uri_type: UriType = UriType::Any => now;
        /// Digits of an extension in a tel_extn plan. 0: any number of them.
        extension_digits: u8 = 0, 0..=20 "digits" => now;
        /// What calls must be protected with.
        security: Security = Security::Unsecured => now;
    }

    /// A hunt group: the pilot number by which a gateway reaches a dial plan. Without any, all
    /// gateways reach the first dial plan by any number.
    HuntGroup hunt_group {
        /// The gateway's name.
        gateway: String = String::new() => now;
        /// The number that is called. Empty: any that no other group of the gateway has.
        pilot: String = String::new() => now;
        /// The dial plan's name.
        dial_plan: String = String::new() => now;
        /// Mailbox for callers who dial the pilot itself. Empty: they get 404; calls diverted to
        /// the pilot reach the mailbox that the diversion names.
        mailbox: String = String::new() => now;
    }
}

impl Config {
    /// What `voxring serve` runs with when no file is named: the defaults and two demo mailboxes.
    pub fn embedded() -> Self {
        Self { node: Node { demo_mailboxes: true, ..Node::default() }, ..Self::default() }
    }
}
