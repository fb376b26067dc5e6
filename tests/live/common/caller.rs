//! A caller in the test's own hands: its signalling is raw, its media comes from its own socket, so
//! that a test can do beside it, and with it, what no phone would.
//!
//! SRTP is the `rtc-srtp` crate's, not ours.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rtc_srtp::context::Context;
use rtc_srtp::option::{srtcp_replay_protection, srtp_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;
use serde_json::Value;
use voxring::base::config::SrtpSuite;

use crate::common::node::Node;
use crate::common::raw::{Connection, Request, Response, unique};
use crate::common::{audio, now};

/// Samples of a packet: 20 ms.
pub(crate) const PACKET_SAMPLES: usize = 160;
/// How long an answer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// What a call asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    /// SRTP with this suite, or plain RTP.
    pub(crate) suite: Option<SrtpSuite>,
    /// The SDP names this port and not the one media comes from, as behind a NAT.
    pub(crate) behind_nat: bool,
}

/// The RTP header's numbers of the next packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// Sequence number.
    pub(crate) sequence: u16,
    /// Timestamp in samples.
    pub(crate) timestamp: u32,
    /// Source.
    pub(crate) ssrc: u32,
}

impl Numbers {
    /// A plain packet of PCMU.
    pub(crate) fn packet(self, samples: &[i16]) -> Vec<u8> {
        let mut packet = vec![0x80, 0];
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.timestamp.to_be_bytes());
        packet.extend(self.ssrc.to_be_bytes());
        packet.extend(samples.iter().map(|&sample| audio::ulaw_encode(sample)));
        packet
    }

    /// Those of the packet after.
    pub(crate) fn next(self) -> Self {
        Self {
            sequence: self.sequence.wrapping_add(1),
            timestamp: self.timestamp.wrapping_add(160),
            ssrc: self.ssrc,
        }
    }
}

/// A call that is up.
pub(crate) struct Caller {
    connection: Connection,
    socket: UdpSocket,
    /// Where the node takes this call's RTP.
    pub(crate) media: SocketAddr,
    /// What the next packet will say.
    pub(crate) numbers: Numbers,
    srtp: Option<Srtp>,
    tag: String,
    to: String,
    contact: String,
    cseq: u32,
}

struct Srtp {
    outgoing: Context,
    incoming: Context,
}

impl Caller {
    /// Calls a URI over a connection and acknowledges the answer.
    ///
    /// # Errors
    /// The final response that is no 200.
    pub(crate) fn call(mut connection: Connection, uri: &str, wish: Wish) -> Result<Self, Response> {
        let ip = connection.local().ip();
        let socket = UdpSocket::bind((ip, 0)).expect("a port is free");
        let port = socket.local_addr().expect("it is bound").port();
        // Nothing listens on port 9, discard.
        let announced = SocketAddr::new(ip, if wish.behind_nat { 9 } else { port });
        let key = wish.suite.map(random_key);
        let body = offer(announced, wish.suite.zip(key.as_deref()));
        let tag = unique();
        let invite = Request { method: "INVITE", uri, extra: &[], body: &body };
        connection.send(&invite.render(connection.transport(), connection.local(), &tag));
        let response = connection.final_response(LIMIT).expect("a final response");
        if response.status != 200 {
            return Err(response);
        }
        let to = response.header("To").expect("a 200 has To").to_owned();
        let contact = response.header("Contact").expect("a 200 has Contact");
        let contact = contact.split(['<', '>']).nth(1).expect("Contact has a URI").to_owned();
        let srtp = wish.suite.zip(key).map(|(suite, key)| Srtp {
            outgoing: context(suite, &key),
            incoming: context(suite, &answered_key(&response.body, suite)),
        });
        let mut random = [0; 4];
        getrandom::fill(&mut random).expect("the kernel has randomness");
        let numbers = Numbers { sequence: 1000, timestamp: 5000, ssrc: u32::from_be_bytes(random) };
        let media = answered_media(&response.body);
        let mut caller = Self { connection, socket, media, numbers, srtp, tag, to, contact, cseq: 1 };
        caller.request("ACK", 1);
        Ok(caller)
    }

    fn request(&mut self, method: &str, cseq: u32) {
        let Self { connection, tag, to, contact, .. } = self;
        // An ACK to a 200 is a transaction of its own (RFC 3261 §13.2.2.4).
        let text = format!(
            "{method} {contact} SIP/2.0\r\nVia: SIP/2.0/{} {};branch=z9hG4bK{tag}{method};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:raw@127.0.0.1>;tag={tag}\r\nTo: {to}\r\nCall-ID: {tag}@raw\r\n\
             CSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n",
            connection.transport(),
            connection.local(),
        );
        connection.send(text.as_bytes());
    }

    /// The SIP Call-ID.
    pub(crate) fn call_id(&self) -> String {
        format!("{}@raw", self.tag)
    }

    /// The next packet as it goes over the wire.
    pub(crate) fn next_packet(&mut self, samples: &[i16]) -> Vec<u8> {
        let plain = self.numbers.packet(samples);
        self.numbers = self.numbers.next();
        match &mut self.srtp {
            None => plain,
            Some(srtp) => srtp.outgoing.encrypt_rtp(&plain).expect("a sound packet").to_vec(),
        }
    }

    /// Sends bytes from the call's own socket.
    pub(crate) fn send(&self, packet: &[u8]) {
        self.socket.send_to(packet, self.media).expect("the loopback takes it");
    }

    /// Sends sound at its own pace. Before each packet `beside` may send something of its own: it
    /// gets the caller and the packet that is about to go.
    pub(crate) fn speak(&mut self, sound: &[i16], mut beside: impl FnMut(&Self, Numbers, &[u8])) {
        let mut pace = Pace::start();
        for samples in sound.chunks_exact(PACKET_SAMPLES) {
            pace.wait();
            let numbers = self.numbers;
            let packet = self.next_packet(samples);
            beside(self, numbers, &packet);
            self.send(&packet);
        }
    }

    /// The sound of all packets that came so far, in the order they came. What cannot be decrypted
    /// counts as an error.
    ///
    /// # Errors
    /// How many could not be read.
    pub(crate) fn heard(&mut self) -> Result<Vec<i16>, usize> {
        let mut sound = Vec::new();
        self.read(|packet| sound.extend(packet[12..].iter().map(|&byte| audio::ulaw_decode(byte))))?;
        Ok(sound)
    }

    fn read(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), usize> {
        let mut unreadable = 0;
        self.socket.set_nonblocking(true).expect("a socket option");
        let mut buffer = [0; 2048];
        while let Ok(count) = self.socket.recv(&mut buffer) {
            let plain = match &mut self.srtp {
                None => Some(buffer[..count].to_vec()),
                Some(srtp) => srtp.incoming.decrypt_rtp(&buffer[..count]).ok().map(|plain| plain.to_vec()),
            };
            match plain {
                Some(plain) => each(&plain),
                None => unreadable += 1,
            }
        }
        if unreadable == 0 { Ok(()) } else { Err(unreadable) }
    }

    /// What the node counts of this call's media.
    pub(crate) fn stats(&self, node: &Node) -> Value {
        let value = node.json(&["calls"]);
        let calls = value.get("calls").unwrap_or(&value).as_array().expect("a list of calls").clone();
        let call = calls.iter().find(|call| call["call_id"] == self.call_id().as_str());
        call.unwrap_or_else(|| panic!("the call is not listed: {value:#}"))["stats"].clone()
    }

    /// True when the node ends the call by BYE before the connection closes or `limit` passes without a
    /// word; the BYE stays unanswered.
    pub(crate) fn hears_bye(&mut self, limit: Duration) -> bool {
        std::iter::from_fn(|| self.connection.message(limit)).any(|message| message.starts_with(b"BYE "))
    }

    /// Ends the call.
    pub(crate) fn hang_up(mut self) {
        assert_eq!(self.asks("BYE"), 200);
    }

    /// A request in the dialog; gives the status it is answered with.
    pub(crate) fn asks(&mut self, method: &str) -> u16 {
        self.cseq += 1;
        self.request(method, self.cseq);
        let response = self.connection.final_response(LIMIT).expect("a final response");
        response.status
    }

    /// Goes on over another connection.
    pub(crate) fn reconnect(&mut self, connection: Connection) {
        self.connection = connection;
    }

    /// Presses a key (RFC 4733): four packets of 160 samples each, and the end three times.
    pub(crate) fn press(&mut self, event: u8) {
        let mut pace = Pace::start();
        let timestamp = self.numbers.timestamp;
        for step in [1, 2, 3, 4, 4, 4_u16] {
            pace.wait();
            let mut plain = Numbers { timestamp, ..self.numbers }.packet(&[]);
            plain[1] = 101;
            let [high, low] = (160 * step).to_be_bytes();
            plain.extend([event, if step == 4 { 0x8A } else { 0x0A }, high, low]);
            let packet = match &mut self.srtp {
                None => plain,
                Some(srtp) => srtp.outgoing.encrypt_rtp(&plain).expect("a sound packet").to_vec(),
            };
            self.send(&packet);
            self.numbers = self.numbers.next();
        }
    }

    /// The headers of all packets that came so far, and their sound.
    ///
    /// # Errors
    /// As [`Self::heard`].
    pub(crate) fn stream(&mut self) -> Result<Vec<(Numbers, Vec<i16>)>, usize> {
        let mut packets = Vec::new();
        self.read(|packet| {
            let word =
                |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
            let sequence = u16::from_be_bytes([packet[2], packet[3]]);
            let numbers = Numbers { sequence, timestamp: word(4), ssrc: word(8) };
            packets.push((numbers, packet[12..].iter().map(|&byte| audio::ulaw_decode(byte)).collect()));
        })?;
        Ok(packets)
    }
}

/// A beat of 20 ms against the clock, not against the sum of sleeps.
pub(crate) struct Pace {
    next: Instant,
}

impl Pace {
    /// The first beat is at once.
    pub(crate) fn start() -> Self {
        Self { next: now() }
    }

    /// Sleeps until the next beat.
    pub(crate) fn wait(&mut self) {
        std::thread::sleep(self.next.saturating_duration_since(now()));
        self.next += Duration::from_millis(20);
    }
}

fn offer(media: SocketAddr, key: Option<(SrtpSuite, &[u8])>) -> String {
    let family = if media.is_ipv4() { "IP4" } else { "IP6" };
    let (ip, port) = (media.ip(), media.port());
    let (profile, crypto) = match key {
        None => ("RTP/AVP", String::new()),
        Some((suite, key)) => {
            ("RTP/SAVP", format!("a=crypto:1 {} inline:{}\r\n", suite.name(), STANDARD.encode(key)))
        }
    };
    format!(
        "v=0\r\no=raw 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
         m=audio {port} {profile} 0 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\n\
         {crypto}"
    )
}

fn answered_media(sdp: &str) -> SocketAddr {
    let ip = sdp.lines().find_map(|line| line.strip_prefix("c=IN IP")?.split(' ').nth(1)?.parse().ok());
    let port = sdp.lines().find_map(|line| line.strip_prefix("m=audio ")?.split(' ').next()?.parse().ok());
    let ip: IpAddr = ip.unwrap_or_else(|| panic!("no address in {sdp}"));
    SocketAddr::new(ip, port.unwrap_or_else(|| panic!("no port in {sdp}")))
}

fn answered_key(sdp: &str, suite: SrtpSuite) -> Vec<u8> {
    assert!(sdp.contains(" RTP/SAVP "), "{sdp}");
    let crypto = sdp.lines().find_map(|line| line.strip_prefix("a=crypto:1 "));
    let crypto = crypto.unwrap_or_else(|| panic!("our line is not answered: {sdp}"));
    let key = crypto.strip_prefix(suite.name()).and_then(|rest| rest.strip_prefix(" inline:"));
    let key = key.unwrap_or_else(|| panic!("another suite than ours: {sdp}"));
    let key = key.split(['|', ' ']).next().expect("split gives one at least");
    STANDARD.decode(key).expect("the key is base64 (RFC 4568 §6.1)")
}

fn profile(suite: SrtpSuite) -> ProtectionProfile {
    match suite {
        SrtpSuite::AeadAes128Gcm => ProtectionProfile::AeadAes128Gcm,
        SrtpSuite::AeadAes256Gcm => ProtectionProfile::AeadAes256Gcm,
        SrtpSuite::AesCm128HmacSha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
        SrtpSuite::AesCm128HmacSha1_32 => ProtectionProfile::Aes128CmHmacSha1_32,
    }
}

fn random_key(suite: SrtpSuite) -> Vec<u8> {
    let profile = profile(suite);
    let mut key = vec![0; profile.key_len() + profile.salt_len()];
    getrandom::fill(&mut key).expect("the kernel has randomness");
    key
}

fn context(suite: SrtpSuite, key_and_salt: &[u8]) -> Context {
    let profile = profile(suite);
    let (key, salt) = key_and_salt.split_at(profile.key_len());
    let provider = rtc_srtp::crypto::default_provider().expect("one is built in");
    let windows = (Some(srtp_replay_protection(64)), Some(srtcp_replay_protection(64)));
    Context::new(key, salt, profile, windows.0, windows.1, provider.crypto())
        .expect("a key of the right size")
}
