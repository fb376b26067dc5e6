//! A connection or socket to one SIP neighbour, and the framing on it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sip::target::{Target, Transport};
use crate::sip::tls::{NO_TRUST, TlsClient, TlsStream};

/// To connect, to shake hands, or to get one message out.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest message; a longer one ends the link.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Non-blocking, connected to one neighbour.
#[derive(Debug)]
pub struct Link {
    socket: Socket,
    /// Where we are, for Via and Contact.
    pub local: SocketAddr,
    /// Where the neighbour is.
    pub remote: SocketAddr,
    /// TCP, UDP or TLS.
    pub transport: Transport,
    inbox: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Tls(Box<TlsStream>),
}

impl Link {
    /// Connects, and shakes hands for TLS; for UDP this only fixes the address.
    ///
    /// # Errors
    /// The neighbour refuses or does not answer in 5 s; TLS without a word on whom to trust.
    pub fn connect(target: &Target, tls: Option<&TlsClient>) -> Result<Self> {
        let (mut remote, transport) = (target.address, target.transport);
        let (socket, local) = match transport {
            Transport::Tcp => {
                let stream = connect_stream(target)?;
                remote = stream.peer_addr()?;
                let local = stream.local_addr()?;
                (Socket::Tcp(stream), local)
            }
            Transport::Tls => {
                let tls = tls.context(NO_TRUST)?;
                let connection = tls.connection(&target.host)?;
                let stream = connect_stream(target)?;
                remote = stream.peer_addr()?;
                let local = stream.local_addr()?;
                let stream = TlsStream::open(stream, connection, crate::clock::now() + PATIENCE)
                    .with_context(|| format!("no TLS with {} ({remote})", target.host))?;
                (Socket::Tls(Box::new(stream)), local)
            }
            Transport::Udp => {
                let any: IpAddr = if remote.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(remote)?;
                socket.set_nonblocking(true)?;
                let local = socket.local_addr()?;
                (Socket::Udp(socket), local)
            }
        };
        Ok(Self { socket, local, remote, transport, inbox: Vec::new() })
    }

    /// Sends one message whole.
    ///
    /// # Errors
    /// The connection broke or took nothing for 5 s.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        match &mut self.socket {
            Socket::Udp(socket) => match socket.send(message) {
                // Nobody listens there (yet): retransmission or its time-out decides.
                Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(error.into()),
                _ => Ok(()),
            },
            Socket::Tcp(stream) => send_stream(stream, message, crate::clock::now() + PATIENCE),
            Socket::Tls(stream) => stream.write_all(message, crate::clock::now() + PATIENCE),
        }
    }

    /// A connection that a neighbour opened to us.
    ///
    /// # Errors
    /// It broke already.
    pub fn accepted(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
        Ok(Self { socket: Socket::Tcp(stream), local, remote, transport: Transport::Tcp, inbox: Vec::new() })
    }

    /// Sends as much of `bytes` as goes without waiting: over UDP a message, which goes or is lost.
    ///
    /// # Errors
    /// The connection broke.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match &mut self.socket {
            Socket::Udp(socket) => match waiting(socket.send(bytes)) {
                Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(error.into()),
                _ => Ok(bytes.len()),
            },
            Socket::Tcp(stream) => Ok(waiting(stream.write(bytes))?.unwrap_or(0)),
            Socket::Tls(stream) => stream.write_some(bytes),
        }
    }

    /// True while some of what `write` took waits for the socket.
    pub fn is_holding(&self) -> bool {
        matches!(&self.socket, Socket::Tls(stream) if stream.is_holding())
    }

    /// Reads what is there, of a datagram all. `None`: nothing yet; `Some(0)`: the neighbour is done.
    ///
    /// # Errors
    /// The connection broke.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        let read = match &mut self.socket {
            Socket::Tcp(stream) => waiting(stream.read(buffer)).map_err(Into::into),
            Socket::Udp(socket) => loop {
                match waiting(socket.recv(buffer)) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    other => break other.map_err(Into::into),
                }
            },
            Socket::Tls(stream) => stream.read(buffer),
        };
        read.with_context(|| format!("reading from {}", self.remote))
    }

    /// Takes in what has arrived and cuts it into messages.
    ///
    /// # Errors
    /// The neighbour closed the connection, or what it sends cannot be framed.
    pub fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut buffer = [0; 65_536];
        let mut messages = Vec::new();
        loop {
            match self.read(&mut buffer)? {
                None => return Ok(messages),
                Some(count) if self.transport == Transport::Udp => messages.push(buffer[..count].to_vec()),
                Some(0) if messages.is_empty() => bail!("{} closed the connection", self.remote),
                Some(0) => return Ok(messages),
                Some(count) => {
                    self.inbox.extend(&buffer[..count]);
                    while let Some(message) = cut_message(&mut self.inbox)? {
                        messages.push(message);
                    }
                }
            }
        }
    }

    /// For `poll`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Tls(stream) => stream.socket.as_fd(),
        }
    }
}

/// Connects to the first of the target's addresses that takes us; the error is that of the first.
fn connect_stream(target: &Target) -> Result<TcpStream> {
    let connect = |remote: &SocketAddr| TcpStream::connect_timeout(remote, PATIENCE);
    let stream = connect(&target.address)
        .or_else(|error| target.others.iter().find_map(|other| connect(other).ok()).ok_or(error))
        .with_context(|| format!("cannot connect to {} over {}", target.address, target.transport.name()))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// `None` when there is nothing to read yet.
fn waiting(read: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match read {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}

fn send_stream(stream: &mut TcpStream, mut rest: &[u8], deadline: Instant) -> Result<()> {
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock && crate::clock::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes the first whole message from the front of `inbox` (RFC 3261 §18.3), skipping keep-alives.
pub(crate) fn cut_message(inbox: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let blank = inbox.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    inbox.drain(..blank);
    let Some(head) = inbox.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else {
        if inbox.len() > MESSAGE_BYTES_MAX {
            bail!("no end of headers in {MESSAGE_BYTES_MAX} bytes");
        }
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&inbox[..head]);
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-length") || name.trim() == "l")
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())
        .context("Content-Length is no number")?;
    if length > MESSAGE_BYTES_MAX {
        bail!("a body of {length} bytes is too long");
    }
    if inbox.len() < head + length {
        return Ok(None);
    }
    Ok(Some(inbox.drain(..head + length).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: messages are cut by Content-Length wherever the segments break.
    /// Method: two messages and a keep-alive, fed byte by byte.
    #[test]
    fn messages_are_cut_wherever_segments_break() {
        let one = b"SIP/2.0 200 OK\r\nContent-Length: 4\r\n\r\nbody".to_vec();
        let two = b"BYE sip:a SIP/2.0\r\nX: y\r\n\r\n".to_vec();
        let stream: Vec<u8> = [&one[..], b"\r\n\r\n", &two[..]].concat();
        let (mut inbox, mut found) = (Vec::new(), Vec::new());
        for byte in stream {
            inbox.push(byte);
            found.extend(cut_message(&mut inbox).unwrap());
        }
        assert_eq!(found, [one, two]);
        assert!(inbox.is_empty());
    }

    /// Goal: a host with several addresses is reached where it listens, and the link then counts as
    /// leading there.
    /// Method: a port with a listener on 127.0.0.1; 127.0.0.9, where nobody listens, comes first.
    #[test]
    fn the_address_that_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let mut target = Target::parse(&format!("sip:a@127.0.0.9:{};transport=tcp", open.port())).unwrap();
        assert!(Link::connect(&target, None).is_err());
        target.others = vec![open];
        let link = Link::connect(&target, None).unwrap();
        assert!(link.remote == open && target.is_at(link.remote));
    }
}
