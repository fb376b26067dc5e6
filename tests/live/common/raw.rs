//! Raw SIP: bytes out, bytes in. For what a well-behaved client would never send.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::common::now;
use crate::common::secure::SecureStream;

/// A response, read with as little understanding as possible.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    /// Status code.
    pub(crate) status: u16,
    /// Reason phrase.
    pub(crate) reason: String,
    /// The whole header part.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: String,
}

impl Response {
    /// First value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// What carries a connection.
enum Wire {
    Plain(TcpStream),
    Secure(Box<SecureStream>),
}

impl Wire {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Secure(stream) => &stream.sock,
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Secure(stream) => stream.write_all(bytes),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Secure(stream) => stream.read(buffer),
        }
    }
}

/// A TCP or TLS connection to a SIP listener.
pub(crate) struct Connection {
    stream: Wire,
    inbox: Vec<u8>,
}

impl Connection {
    /// Connects to a port of 127.0.0.1 over TCP.
    pub(crate) fn open(port: u16) -> Self {
        Self::open_at((Ipv4Addr::LOCALHOST, port).into())
    }

    /// Connects to a port of 127.0.0.1 over TCP, from another address of the loopback.
    pub(crate) fn open_from(source: Ipv4Addr, port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((source, 0)).into()).expect("an address of the loopback");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        socket.connect(&address.into()).expect("the listener takes connections");
        Self { stream: Wire::Plain(socket.into()), inbox: Vec::new() }
    }

    /// Connects over TCP.
    pub(crate) fn open_at(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the listener takes connections");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream: Wire::Plain(stream), inbox: Vec::new() }
    }

    /// Takes over a connection that the far side opened.
    pub(crate) fn accepted(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        Self { stream: Wire::Plain(stream), inbox: Vec::new() }
    }

    /// Takes over a TLS stream.
    pub(crate) fn over_tls(stream: SecureStream) -> Self {
        Self { stream: Wire::Secure(Box::new(stream)), inbox: Vec::new() }
    }

    /// What the connection is called in Via.
    pub(crate) fn transport(&self) -> &'static str {
        match &self.stream {
            Wire::Plain(_) => "TCP",
            Wire::Secure(_) => "TLS",
        }
    }

    /// Bytes that were read before.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.inbox.splice(..0, bytes.iter().copied());
    }

    /// Our address, for Via and Contact.
    pub(crate) fn local(&self) -> SocketAddr {
        self.stream.socket().local_addr().expect("it is connected")
    }

    /// Sends; a connection the far side closed is noticed when reading.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // The far side may close in the middle of nonsense: that is an allowed answer.
        let _ = self.stream.write_all(bytes);
    }

    /// The next response, or `None` when the connection was closed or `limit` passed. Requests from
    /// the far side are skipped.
    pub(crate) fn response(&mut self, limit: Duration) -> Option<Response> {
        let start = now();
        loop {
            let message = self.message(limit.checked_sub(start.elapsed())?)?;
            if let Some(response) = read_response(&message) {
                return Some(response);
            }
        }
    }

    /// The next message, whole, or `None` when the connection was closed or `limit` passed.
    pub(crate) fn message(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let start = now();
        loop {
            if let Some(message) = self.cut() {
                return Some(message);
            }
            let rest = limit.checked_sub(start.elapsed())?;
            self.stream
                .socket()
                .set_read_timeout(Some(rest.max(Duration::from_millis(1))))
                .expect("a socket option");
            let mut buffer = [0; 16_384];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.inbox.extend(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
    }

    /// The next final response.
    pub(crate) fn final_response(&mut self, limit: Duration) -> Option<Response> {
        let start = now();
        loop {
            let response = self.response(limit.checked_sub(start.elapsed())?)?;
            if response.status >= 200 {
                return Some(response);
            }
        }
    }

    /// True when the far side closes within `limit`.
    pub(crate) fn is_closed(&mut self, limit: Duration) -> bool {
        let start = now();
        while start.elapsed() < limit {
            self.stream.socket().set_read_timeout(Some(Duration::from_millis(50))).expect("a socket option");
            let mut buffer = [0; 16_384];
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => self.inbox.extend(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return true,
            }
        }
        false
    }

    fn cut(&mut self) -> Option<Vec<u8>> {
        let blank = self.inbox.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.inbox.drain(..blank);
        let head = self.inbox.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let text = String::from_utf8_lossy(&self.inbox[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let end = head + length.unwrap_or(0usize);
        (self.inbox.len() >= end).then(|| self.inbox.drain(..end).collect())
    }
}

/// Reads a response; `None` for a request.
pub(crate) fn read_response(message: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(message);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut line = head.lines().next()?.strip_prefix("SIP/2.0 ")?.splitn(2, ' ');
    Some(Response {
        status: line.next()?.parse().ok()?,
        reason: line.next().unwrap_or_default().to_owned(),
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// A request with ordinary headers; `extra` are whole header lines, `body` is SDP.
pub(crate) struct Request<'a> {
    /// Method.
    pub(crate) method: &'a str,
    /// Request-URI.
    pub(crate) uri: &'a str,
    /// Whole header lines without line ends.
    pub(crate) extra: &'a [&'a str],
    /// SDP or nothing.
    pub(crate) body: &'a str,
}

impl Request<'_> {
    /// As bytes. `tag` makes branch, tag and Call-ID, so that equal tags are retransmissions.
    pub(crate) fn render(&self, transport: &str, local: SocketAddr, tag: &str) -> Vec<u8> {
        let Self { method, uri, extra, body } = self;
        let mut text = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{transport} {local};branch=z9hG4bK{tag};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:raw@127.0.0.1>;tag={tag}\r\nTo: <{uri}>\r\n\
             Call-ID: {tag}@raw\r\nCSeq: 1 {method}\r\n\
             Contact: <sip:raw@{local};transport={}>\r\n",
            transport.to_ascii_lowercase()
        );
        extra.iter().for_each(|line| text.push_str(&format!("{line}\r\n")));
        if !body.is_empty() && !extra.iter().any(|line| line.to_ascii_lowercase().starts_with("content-type"))
        {
            text.push_str("Content-Type: application/sdp\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        text.into_bytes()
    }
}

/// An ordinary G.711 offer for media at `port`.
pub(crate) fn offer(port: u16) -> String {
    format!(
        "v=0\r\no=raw 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
    )
}

/// Sends OPTIONS over a fresh connection and gives the final response.
pub(crate) fn options_tcp(port: u16) -> Option<Response> {
    let mut connection = Connection::open(port);
    let uri = format!("sip:127.0.0.1:{port};transport=tcp");
    let request = Request { method: "OPTIONS", uri: &uri, extra: &[], body: "" };
    let bytes = request.render("TCP", connection.local(), &unique());
    connection.send(&bytes);
    connection.final_response(Duration::from_secs(5))
}

/// Sends OPTIONS over UDP, twice if need be, and gives the response.
pub(crate) fn options_udp(port: u16) -> Option<Response> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let uri = format!("sip:127.0.0.1:{port}");
    let request = Request { method: "OPTIONS", uri: &uri, extra: &[], body: "" };
    let bytes = request.render("UDP", socket.local_addr().expect("it is bound"), &unique());
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket option");
    (0..3).find_map(|_| {
        socket.send_to(&bytes, (Ipv4Addr::LOCALHOST, port)).ok()?;
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).ok()?;
        read_response(&buffer[..count])
    })
}

/// A word no other request has.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}x{}x{}", std::process::id(), crate::common::unix_ms(), NEXT.fetch_add(1, Ordering::Relaxed))
}
