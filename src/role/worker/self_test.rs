//! Calls a new worker places to itself before it takes anybody else's: INVITE over its own listener,
//! RTP to a media shard and back, BYE; as many at once as there are shards, so that each carries one.
//!
//! On a thread of its own, by blocking calls: a worker that cannot serve it must not hang with it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver as Answer;

use crate::base::clock;
use crate::role::hop::{HopClaim, HopSecret, SELF_TEST};
use crate::role::listening::Open;
use crate::sip::flow::Transport;
use crate::sip::framer::{Frame, Framer, FramerLimits};
use crate::sip::message::{Message, Method, Name, Request, Response};

/// All of it takes this long at most.
const TIME_MAX: Duration = Duration::from_secs(10);
/// One packet's time.
const PTIME: Duration = Duration::from_millis(20);
/// Bytes of PCMU in it.
const PAYLOAD_BYTES: usize = 160;
/// Bytes of an RTP header without extras (RFC 3550 §5.1).
const HEADER_BYTES: usize = 12;

/// What to call, and how.
pub(super) struct Plan {
    /// The listener; or where its address will be told.
    pub(super) target: Result<SocketAddr, Answer<io::Result<SocketAddr>>>,
    /// Our own media's address.
    pub(super) media: IpAddr,
    /// As many calls.
    pub(super) shards: usize,
    /// Proves that it is us.
    pub(super) secret: HopSecret,
}

/// Where a plain listener among these is reached; TLS would judge us as it judges strangers.
pub(super) fn own_listener(open: &[Open<()>]) -> Option<SocketAddr> {
    let tcp = open.iter().find(|own| own.listener.transport == Transport::Tcp)?;
    let ip = match tcp.address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, tcp.address.port()))
}

/// Places the calls; the outcome comes once.
///
/// # Errors
/// No thread.
pub(super) fn spawn(plan: Plan) -> io::Result<Receiver<Result<(), String>>> {
    let (told, outcome) = mpsc::channel();
    thread::Builder::new().name("self-test".into()).spawn(move || {
        // The worker may have been told to end meanwhile.
        let _ = told.send(run(plan));
    })?;
    Ok(outcome)
}

fn run(plan: Plan) -> Result<(), String> {
    let deadline = clock::now() + TIME_MAX;
    let target = plan.target.or_else(|bound| {
        let bound = bound.recv_deadline(deadline).map_err(|_| "the SIP loop does not answer".to_owned())?;
        bound.map_err(|error| format!("no listener for it: {error}"))
    })?;
    let mut calls = Vec::new();
    for number in 0..plan.shards {
        let told = |what: &str, error: &dyn std::fmt::Display| format!("call {number}: {what}: {error}");
        let mut call = Call::open(target, plan.media, &plan.secret, number, deadline)
            .map_err(|error| told("no socket", &error))?;
        call.invite().map_err(|error| told("INVITE", &error))?;
        call.hear_oneself().map_err(|error| told("media", &error))?;
        calls.push(call);
    }
    for (number, call) in calls.iter_mut().enumerate() {
        call.bye().map_err(|error| format!("call {number}: BYE: {error}"))?;
    }
    Ok(())
}

/// One call, from the caller's side.
struct Call {
    stream: TcpStream,
    framer: Framer,
    media: UdpSocket,
    secret: HopSecret,
    deadline: Instant,
    uri: String,
    call_id: String,
    /// To with its tag, and the Contact, once there is a dialog.
    to: String,
    contact: String,
    remote_media: Option<SocketAddr>,
}

impl Call {
    fn open(
        target: SocketAddr,
        media: IpAddr,
        secret: &HopSecret,
        number: usize,
        deadline: Instant,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, left(deadline)?)?;
        stream.set_nodelay(true)?;
        let media = UdpSocket::bind((media, 0))?;
        media.set_read_timeout(Some(PTIME))?;
        let uri = format!("sip:{SELF_TEST}@{target};transport=tcp");
        Ok(Self {
            stream,
            framer: Framer::new(FramerLimits::default()),
            media,
            secret: secret.clone(),
            deadline,
            to: format!("<{uri}>"),
            contact: uri.clone(),
            uri,
            call_id: format!("{number}-{:016x}", getrandom::u64().unwrap_or_default()),
            remote_media: None,
        })
    }

    /// Sends a request of the call; `cseq` is its own but for an ACK's.
    fn send(&mut self, method: Method, cseq: u32, sdp: &str) -> io::Result<()> {
        let local = self.stream.local_addr()?;
        let uri = if method == Method::Invite { self.uri.clone() } else { self.contact.clone() };
        let (call_id, of) = (self.call_id.clone(), method.clone());
        let mut request = Request::new(method, uri);
        let branch = format!("z9hG4bK{call_id}-{cseq}-{of}");
        request.headers.push(Name::Via, format!("SIP/2.0/TCP {local};branch={branch}"));
        request.headers.push(Name::MaxForwards, "70");
        request.headers.push(Name::From, format!("<sip:{SELF_TEST}@{local}>;tag={call_id}"));
        request.headers.push(Name::To, self.to.clone());
        request.headers.push(Name::CallId, call_id);
        request.headers.push(Name::CSeq, format!("{cseq} {of}"));
        request.headers.push(Name::Contact, format!("<sip:{SELF_TEST}@{local};transport=tcp>"));
        if !sdp.is_empty() {
            request.headers.push(Name::ContentType, "application/sdp");
            request.body = sdp.to_owned().into();
        }
        let claim = HopClaim {
            gateway: SELF_TEST.to_owned(),
            dial_plan: SELF_TEST.to_owned(),
            source: local,
            transport: Transport::Tcp,
        };
        claim.write(&self.secret, &mut request);
        self.stream.write_all(&Message::Request(request).to_bytes())
    }

    /// The final response.
    fn response(&mut self) -> io::Result<Response> {
        let mut buffer = [0; 4096];
        loop {
            match self.framer.poll().map_err(io::Error::other)? {
                Some(Frame::Message(bytes)) => match Message::parse(bytes) {
                    Ok(Message::Response(response)) if response.status >= 200 => return Ok(response),
                    Ok(_) => {}
                    Err(error) => return Err(io::Error::other(error)),
                },
                Some(Frame::Ping | Frame::Pong) => {}
                None => {
                    self.stream.set_read_timeout(Some(left(self.deadline)?))?;
                    let len = self.stream.read(&mut buffer)?;
                    if len == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.framer.push(buffer.get(..len).unwrap_or_default());
                }
            }
        }
    }

    fn invite(&mut self) -> io::Result<()> {
        let own = self.media.local_addr()?;
        let family = if own.is_ipv4() { "IP4" } else { "IP6" };
        let (ip, port) = (own.ip(), own.port());
        let sdp = format!(
            "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
        );
        self.send(Method::Invite, 1, &sdp)?;
        let response = self.response()?;
        if response.status != 200 {
            let text = format!("{} {}", response.status, response.reason);
            return Err(io::Error::other(text));
        }
        let field = |name| response.headers.first(&name).map(|v| String::from_utf8_lossy(v).into_owned());
        self.to = field(Name::To).unwrap_or_default();
        let contact = response.contacts().ok().and_then(|contacts| contacts.into_iter().next());
        self.contact = contact.map(|c| c.uri.to_string()).ok_or_else(|| io::Error::other("no Contact"))?;
        let body = String::from_utf8_lossy(&response.body).into_owned();
        let media = body.lines().find_map(|line| line.strip_prefix("m=audio "));
        let port = media.and_then(|rest| rest.split(' ').next()?.parse().ok());
        let port = port.ok_or_else(|| io::Error::other("no audio in the answer"))?;
        let ip = body.lines().find_map(|line| line.strip_prefix("c=IN IP")?.get(2..)?.trim().parse().ok());
        self.remote_media = Some(SocketAddr::new(ip.unwrap_or(ip_of(own)), port));
        self.send(Method::Ack, 1, "")
    }

    /// Speaks until a packet of ours comes back whole.
    fn hear_oneself(&mut self) -> io::Result<()> {
        let remote = self.remote_media.ok_or_else(|| io::Error::other("no address"))?;
        let ssrc = getrandom::u32().unwrap_or_default();
        let mut sent: u16 = 0;
        let mut heard = [0; 1500];
        while left(self.deadline).is_ok() {
            let packet = packet(sent, ssrc);
            self.media.send_to(&packet, remote)?;
            sent = sent.wrapping_add(1);
            let next = clock::now() + PTIME;
            while clock::now() < next {
                match self.media.recv_from(&mut heard) {
                    Ok((len, from)) if from == remote && is_echo(heard.get(..len).unwrap_or_default()) => {
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Err(io::Error::other(format!("{sent} packets were sent and none came back")))
    }

    fn bye(&mut self) -> io::Result<()> {
        self.send(Method::Bye, 2, "")?;
        match self.response()?.status {
            200 => Ok(()),
            status => Err(io::Error::other(status.to_string())),
        }
    }
}

fn ip_of(address: SocketAddr) -> IpAddr {
    address.ip()
}

/// Time until then.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A payload that is not silence and tells itself.
fn payload() -> impl Iterator<Item = u8> {
    (0..PAYLOAD_BYTES).map(|at| u8::try_from(at * 7 % 251).unwrap_or_default())
}

fn packet(number: u16, ssrc: u32) -> Vec<u8> {
    let timestamp = u32::from(number) * 160;
    let mut packet = vec![0x80, 0];
    packet.extend(number.to_be_bytes());
    packet.extend(timestamp.to_be_bytes());
    packet.extend(ssrc.to_be_bytes());
    packet.extend(payload());
    packet
}

fn is_echo(packet: &[u8]) -> bool {
    packet.get(HEADER_BYTES..).is_some_and(|heard| heard.iter().copied().eq(payload()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::Listener;

    /// Goal: the test goes where a caller would, and never over TLS, where its certificate would be
    /// judged. Method: listeners of each kind.
    #[test]
    fn the_plain_listener_is_called_where_it_is_reached() {
        let open = |transport, address: &str| {
            let address: SocketAddr = address.parse().unwrap();
            Open { index: 0, owner: (), listener: Listener { transport, address }, address }
        };
        let tls = open(Transport::Tls, "192.0.2.1:5066");
        assert_eq!(own_listener(&[tls]), None);
        let everywhere = open(Transport::Tcp, "[::]:5065");
        assert_eq!(own_listener(&[tls, everywhere]), Some("[::1]:5065".parse().unwrap()));
        let own = open(Transport::Tcp, "192.0.2.1:5065");
        assert_eq!(own_listener(&[own, tls]), Some("192.0.2.1:5065".parse().unwrap()));
    }

    /// Goal: only the very payload counts as an echo. Method: a packet, one bit of it changed, a short one.
    #[test]
    fn an_echo_is_the_payload_that_was_sent() {
        let mut sent = packet(7, 1);
        assert!(is_echo(&sent));
        sent[HEADER_BYTES] ^= 1;
        assert!(!is_echo(&sent) && !is_echo(&sent[..HEADER_BYTES]) && !is_echo(&[]));
    }
}
