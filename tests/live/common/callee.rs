//! A gateway in the test's own hands: it takes what the node calls it with, and says what a test wants.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use crate::common::caller::{Numbers, Pace};
use crate::common::raw::Connection;
use crate::common::{audio, wait_for};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// A request, read with as little understanding as possible.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method.
    pub(crate) method: String,
    head: String,
    /// The body.
    pub(crate) body: String,
}

impl Asked {
    fn read(message: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(message);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let method = head.split(' ').next()?.to_owned();
        (method != "SIP/2.0").then(|| Self { method, head: head.to_owned(), body: body.to_owned() })
    }

    /// First value of a header, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }
}

/// Where the node sends its calls.
pub(crate) struct Gateway {
    listener: TcpListener,
}

impl Gateway {
    /// On a free port of the loopback.
    pub(crate) fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        listener.set_nonblocking(true).expect("a socket option");
        Self { listener }
    }

    /// For `[[gateway]] call_uri`.
    pub(crate) fn call_uri(&self) -> String {
        let port = self.listener.local_addr().expect("it is bound").port();
        format!("sip:127.0.0.1:{port};transport=tcp")
    }

    /// Waits for the node's connection and its INVITE.
    pub(crate) fn accept(&self) -> Callee {
        let stream = wait_for("the node's connection", LIMIT, || match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        });
        stream.set_nonblocking(false).expect("a socket option");
        let mut connection = Connection::accepted(stream);
        let message = connection.message(LIMIT).expect("an INVITE");
        let invite = Asked::read(&message).expect("a request");
        assert_eq!(invite.method, "INVITE", "{}", invite.head);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let numbers = Cell::new(Numbers { sequence: 7, timestamp: 7, ssrc: 7 });
        Callee { connection, latest: invite.clone(), invite, socket, media: None, numbers, cseq: 0 }
    }
}

/// A call that the node has sent there.
pub(crate) struct Callee {
    connection: Connection,
    /// What began it.
    pub(crate) invite: Asked,
    /// What is answered next.
    latest: Asked,
    socket: UdpSocket,
    /// Where the node takes this side's RTP.
    media: Option<SocketAddr>,
    /// Of the next packet.
    numbers: Cell<Numbers>,
    cseq: u32,
}

impl Callee {
    /// A description of this side's media; `direction` is one of `sendrecv`, `sendonly` and so on.
    pub(crate) fn sdp(&self, direction: &str) -> String {
        let port = self.socket.local_addr().expect("it is bound").port();
        format!(
            "v=0\r\no=callee 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na={direction}\r\n"
        )
    }

    /// Answers the latest request.
    pub(crate) fn responds(&mut self, status: u16, body: &str) {
        let Asked { head, body: offer, .. } = &self.latest;
        let port =
            offer.lines().find_map(|line| line.strip_prefix("m=audio ")?.split(' ').next()?.parse().ok());
        self.media = port.map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()).or(self.media);
        let repeated =
            |line: &&str| ["Via:", "From:", "Call-ID:", "CSeq:"].iter().any(|name| line.starts_with(name));
        let mut text = format!("SIP/2.0 {status} Whatever\r\n");
        head.lines().filter(repeated).for_each(|line| text.push_str(&format!("{line}\r\n")));
        let to = self.latest.header("To");
        let tag = if to.contains("tag=") { "" } else { ";tag=callee" };
        let contact = self.connection.local();
        text.push_str(&format!("To: {to}{tag}\r\nContact: <sip:callee@{contact};transport=tcp>\r\n"));
        if !body.is_empty() {
            text.push_str("Content-Type: application/sdp\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        self.connection.send(text.as_bytes());
    }

    /// Answers the INVITE with 200 and waits for the ACK.
    pub(crate) fn picks_up(&mut self) {
        let sdp = self.sdp("sendrecv");
        self.responds(200, &sdp);
        self.expects("ACK");
    }

    /// The next request, which must be this one.
    pub(crate) fn expects(&mut self, method: &str) -> &Asked {
        let asked = self.next(LIMIT).unwrap_or_else(|| panic!("no {method} in {LIMIT:?}"));
        assert_eq!(asked.method, method, "{}", asked.head);
        self.latest = asked;
        &self.latest
    }

    /// The next request within `limit`.
    pub(crate) fn next(&mut self, limit: Duration) -> Option<Asked> {
        loop {
            if let Some(asked) = Asked::read(&self.connection.message(limit)?) {
                return Some(asked);
            }
        }
    }

    /// A request of this side in the dialog; gives the status it is answered with.
    pub(crate) fn asks(&mut self, method: &str, body: &str) -> u16 {
        self.cseq += 1;
        let text = self.request(method, body);
        self.connection.send(text.as_bytes());
        let response = self.connection.final_response(LIMIT).expect("a final response");
        if method == "INVITE" {
            let ack = self.request("ACK", "");
            self.connection.send(ack.as_bytes());
        }
        response.status
    }

    fn request(&self, method: &str, body: &str) -> String {
        let contact = self.invite.header("Contact");
        let uri = contact.split(['<', '>']).nth(1).expect("Contact has a URI");
        let local = self.connection.local();
        let (to, from, call_id) =
            (self.invite.header("From"), self.invite.header("To"), self.invite.header("Call-ID"));
        let cseq = self.cseq;
        let content = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/TCP {local};branch=z9hG4bK{call_id}{method}{cseq}\r\n\
             Max-Forwards: 70\r\nFrom: {from};tag=callee\r\nTo: {to}\r\nCall-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\nContact: <sip:callee@{local};transport=tcp>\r\n{content}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Goes on over another connection.
    pub(crate) fn reconnect(&mut self, connection: Connection) {
        self.connection = connection;
    }

    /// Sends sound at its own pace.
    pub(crate) fn speaks(&self, sound: &[i16]) {
        let media = self.media.expect("an offer named it");
        let mut numbers = self.numbers.get();
        let mut pace = Pace::start();
        for samples in sound.chunks_exact(160) {
            pace.wait();
            self.socket.send_to(&numbers.packet(samples), media).expect("the loopback takes it");
            numbers = numbers.next();
        }
        self.numbers.set(numbers);
    }

    /// The sound of all packets that came so far.
    pub(crate) fn heard(&self) -> Vec<i16> {
        self.socket.set_nonblocking(true).expect("a socket option");
        let mut sound = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(count) = self.socket.recv(&mut buffer) {
            sound.extend(buffer[12..count.max(12)].iter().map(|&byte| audio::ulaw_decode(byte)));
        }
        sound
    }
}
