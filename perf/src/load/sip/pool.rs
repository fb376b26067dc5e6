//! The connections of a load: a few to each neighbour, shared by all calls, and those opened to us.
//!
//! What is sent waits until [`Pool::flush`], so that the messages of one turn leave in one system
//! call. UDP messages leave at once.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::load::sip::call::{Hops, Place, Way};
use crate::load::sip::text::frame;
use crate::machine;
use crate::sip::link::Link;
use crate::sip::target::{Target, Transport};
use crate::sip::tls::TlsClient;

/// Bytes read at once.
const READ_BYTES: usize = 65_536;

/// URIs remembered with where they lead; then all are forgotten.
const PLACES_MAX: usize = 4096;

/// Bytes that may wait for a neighbour; one that takes so little is lost.
const OUTBOX_BYTES_MAX: usize = 16 << 20;

/// One connection, or one socket towards one neighbour.
#[derive(Debug)]
struct Connection {
    link: Link,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

/// Whole messages that came over one connection: their bytes, and where each begins and ends.
#[derive(Debug, Default)]
pub struct Received {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Begin and end of each message in `bytes`.
    pub messages: Vec<(usize, usize)>,
    /// Why nothing more will come.
    pub broken: Option<String>,
}

/// A neighbour, and the call that alone uses the way there; `None`: all others.
type Hop = (SocketAddr, Transport, Option<u32>);

/// What is ready to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// A connection.
    Connection(usize),
    /// The socket for calls to us over UDP.
    Datagrams,
}

/// Every connection.
#[derive(Debug)]
pub struct Pool {
    /// By number; numbers are not used again.
    connections: Vec<Option<Connection>>,
    by_hop: HashMap<Hop, Vec<usize>>,
    /// Calls with connections of their own.
    dedicated: HashSet<u32>,
    per_hop: u32,
    tls: Option<TlsClient>,
    places: HashMap<String, Rc<Place>>,
    listener: Option<TcpListener>,
    datagrams: Option<UdpSocket>,
    broken: Vec<(usize, String)>,
    buffer: Vec<u8>,
}

impl Pool {
    /// `per_hop` connections are opened to each neighbour.
    pub fn new(per_hop: u32, tls: Option<TlsClient>) -> Self {
        Self {
            connections: Vec::new(),
            by_hop: HashMap::new(),
            dedicated: HashSet::new(),
            per_hop: per_hop.max(1),
            tls,
            places: HashMap::new(),
            listener: None,
            datagrams: None,
            broken: Vec::new(),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Takes calls at this address, over TCP and UDP.
    ///
    /// # Errors
    /// The address is in use or not ours.
    pub fn listen(&mut self, address: SocketAddr) -> Result<()> {
        let context = || format!("cannot take calls at {address}");
        let listener = TcpListener::bind(address).with_context(context)?;
        listener.set_nonblocking(true)?;
        let datagrams = UdpSocket::bind(address).with_context(context)?;
        datagrams.set_nonblocking(true)?;
        (self.listener, self.datagrams) = (Some(listener), Some(datagrams));
        Ok(())
    }

    /// From now on this call has connections of its own.
    pub fn dedicate(&mut self, call: u32) {
        self.dedicated.insert(call);
    }

    /// Closes a call's own connections without a word, as a phone that lost its network.
    pub fn abandon(&mut self, call: u32) {
        let is_its = |hop: &Hop| hop.2 == Some(call);
        for number in self.by_hop.iter().filter(|(hop, _)| is_its(hop)).flat_map(|(_, numbers)| numbers) {
            if let Some(slot) = self.connections.get_mut(*number) {
                *slot = None;
            }
        }
        self.by_hop.retain(|hop, _| !is_its(hop));
    }

    /// Sends one datagram from the address where calls are taken.
    pub fn send_datagram(&self, to: SocketAddr, message: &[u8]) {
        if let Some(socket) = &self.datagrams {
            // Retransmission or its time-out decides.
            let _ = socket.send_to(message, to);
        }
    }

    /// One datagram of a call to us, if there is one.
    pub fn receive_datagram(&mut self) -> Option<(Vec<u8>, SocketAddr)> {
        let socket = self.datagrams.as_ref()?;
        let (count, from) = socket.recv_from(&mut self.buffer).ok()?;
        Some((self.buffer[..count].to_vec(), from))
    }

    /// Connections that broke since the last question, and why.
    pub fn take_broken(&mut self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.broken)
    }

    /// Sends what waits, as far as the neighbours take it.
    pub fn flush(&mut self) {
        for number in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[number] else { continue };
            if let Err(error) = connection.flush() {
                self.drop_connection(number, format!("{error:#}"));
            }
        }
    }

    /// Waits until something can be read, or for as long as this. Accepts connections on the way.
    pub fn wait(&mut self, limit: Duration) -> Vec<Ready> {
        let mut ready = Vec::new();
        let has_caller = {
            let numbered = self.connections.iter().enumerate();
            let open: Vec<_> = numbered.filter_map(|(n, slot)| slot.as_ref().map(|c| (n, c))).collect();
            let mut fds: Vec<PollFd<'_>> = open
                .iter()
                .map(|(_, connection)| {
                    let waits = !connection.outbox.is_empty() || connection.link.is_holding();
                    let flags =
                        if waits { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
                    PollFd::new(connection.link.fd(), flags)
                })
                .collect();
            let ears = [self.listener.as_ref().map(AsFd::as_fd), self.datagrams.as_ref().map(AsFd::as_fd)];
            fds.extend(ears.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            // An interrupted wait is only a shorter one.
            let _ = ppoll(&mut fds, Some(TimeSpec::from(limit)), None);
            let readable = |fd: &PollFd<'_>| {
                fd.revents().is_some_and(|events| !(events - PollFlags::POLLOUT).is_empty())
            };
            let numbers = open.iter().map(|(number, _)| *number);
            let connections = numbers.zip(&fds).filter(|(_, fd)| readable(fd));
            ready.extend(connections.map(|(number, _)| Ready::Connection(number)));
            let mut ears = fds[open.len()..].iter().map(readable);
            let has_caller = self.listener.is_some() && ears.next().unwrap_or(false);
            if self.datagrams.is_some() && ears.next().unwrap_or(false) {
                ready.push(Ready::Datagrams);
            }
            has_caller
        };
        if has_caller {
            self.accept();
        }
        ready
    }

    /// Reads what is there and cuts it into messages.
    pub fn receive(&mut self, number: usize) -> Received {
        let mut received = Received::default();
        let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut) else {
            return received;
        };
        received.bytes = std::mem::take(&mut connection.inbox);
        let is_datagram = connection.link.transport == Transport::Udp;
        let result = loop {
            match connection.link.read(&mut self.buffer) {
                Ok(None) => break Ok(()),
                Ok(Some(0)) if !is_datagram => {
                    break Err(format!("{} closed the connection", connection.link.remote));
                }
                Ok(Some(count)) => {
                    let begin = received.bytes.len();
                    received.bytes.extend_from_slice(&self.buffer[..count]);
                    if is_datagram {
                        received.messages.push((begin, begin + count));
                    }
                }
                Err(error) => break Err(format!("{error:#}")),
            }
        };
        let cut = if is_datagram { Ok(()) } else { received.cut(&mut connection.inbox) };
        if let Err(why) = result.and(cut.map_err(|error| format!("{error:#}"))) {
            received.broken = Some(why.clone());
            self.drop_connection(number, why);
        }
        received
    }

    fn accept(&mut self) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(TcpListener::accept) {
            if let Ok(link) = Link::accepted(stream) {
                self.connections.push(Some(Connection::new(link)));
            }
        }
    }

    fn drop_connection(&mut self, number: usize, why: String) {
        if let Some(slot) = self.connections.get_mut(number) {
            *slot = None;
        }
        for numbers in self.by_hop.values_mut() {
            numbers.retain(|&other| other != number);
        }
        self.broken.push((number, why));
    }
}

impl Received {
    /// Finds the messages in a stream's bytes; what is left of the last one goes to `rest`.
    fn cut(&mut self, rest: &mut Vec<u8>) -> Result<()> {
        let mut at = 0;
        while let Some((blank, length)) = frame(&self.bytes[at..])? {
            self.messages.push((at + blank, at + blank + length));
            at += blank + length;
        }
        rest.extend_from_slice(&self.bytes[at..]);
        Ok(())
    }

    /// The messages.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().filter_map(|&(begin, end)| self.bytes.get(begin..end))
    }
}

impl Connection {
    fn new(link: Link) -> Self {
        Self { link, inbox: Vec::new(), outbox: Vec::new() }
    }

    fn flush(&mut self) -> Result<()> {
        if self.outbox.is_empty() && !self.link.is_holding() {
            return Ok(());
        }
        let mut sent = 0;
        while sent < self.outbox.len() {
            match self.link.write(&self.outbox[sent..])? {
                0 => break,
                count => sent += count,
            }
        }
        if self.outbox.is_empty() {
            self.link.write(&[])?;
        }
        self.outbox.drain(..sent);
        anyhow::ensure!(self.outbox.len() < OUTBOX_BYTES_MAX, "{} takes nothing", self.link.remote);
        Ok(())
    }
}

impl Hops for Pool {
    fn resolve(&mut self, uri: &str) -> Result<Rc<Place>> {
        if let Some(place) = self.places.get(uri) {
            return Ok(Rc::clone(place));
        }
        let target = Target::parse(uri)?;
        machine::ensure_own(target.address.ip())?;
        if self.places.len() >= PLACES_MAX {
            self.places.clear();
        }
        let place = Rc::new(Place { uri: uri.to_owned(), target });
        self.places.insert(uri.to_owned(), Rc::clone(&place));
        Ok(place)
    }

    fn way(&mut self, target: &Target, call: u32) -> Result<Way> {
        let owner = self.dedicated.contains(&call).then_some(call);
        let numbers = self.by_hop.entry((target.address, target.transport, owner)).or_default();
        let is_one = target.transport == Transport::Udp || owner.is_some();
        let wanted = if is_one { 1 } else { self.per_hop };
        // The first `wanted` calls open a connection each; so does one whose connection broke.
        let share = (call % wanted) as usize;
        let number = match numbers.get(share) {
            Some(&number) => number,
            None => {
                let link = Link::connect(target, self.tls.as_ref())?;
                let number = self.connections.len();
                self.connections.push(Some(Connection::new(link)));
                numbers.push(number);
                number
            }
        };
        let connection =
            self.connections.get(number).and_then(Option::as_ref).context("the connection broke")?;
        Ok(Way { connection: number, local: connection.link.local, transport: connection.link.transport })
    }

    fn send(&mut self, number: usize, message: &[u8]) {
        let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut) else { return };
        if connection.link.transport == Transport::Udp {
            if let Err(error) = connection.link.write(message) {
                self.drop_connection(number, format!("{error:#}"));
            }
        } else {
            connection.outbox.extend_from_slice(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Goal: calls share a few connections, one turn's messages leave together, answers come back
    /// whole, and a broken connection is told and replaced.
    /// Method: a listener; eight calls over two connections; answers in two pieces; then it closes.
    #[test]
    fn calls_share_connections_and_broken_ones_are_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("sip:x@{};transport=tcp", listener.local_addr().unwrap());
        let mut pool = Pool::new(2, None);
        let place = pool.resolve(&uri).unwrap();
        for call in 0..8 {
            let way = pool.way(&place.target, call).unwrap();
            assert_eq!((way.connection, way.transport), (call as usize % 2, Transport::Tcp));
            pool.send(way.connection, b"OPTIONS sip:x SIP/2.0\r\n\r\n");
        }
        pool.flush();
        let mut servers: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        for server in &mut servers {
            let mut buffer = [0; 100];
            server.read_exact(&mut buffer).unwrap();
            assert!(buffer.starts_with(b"OPTIONS ") && buffer.ends_with(b"\r\n\r\n"));
        }
        servers[0].write_all(b"SIP/2.0 200 OK\r\n\r\nSIP/2.0 2").unwrap();
        let mut seen = Vec::new();
        let mut read = |pool: &mut Pool, wanted: usize| {
            while seen.len() < wanted {
                for ready in pool.wait(Duration::from_secs(5)) {
                    let Ready::Connection(number) = ready else { continue };
                    seen.extend(pool.receive(number).iter().map(|message| (number, message.to_vec())));
                }
            }
            seen.len()
        };
        assert_eq!(read(&mut pool, 1), 1);
        servers[0].write_all(b"00 OK\r\n\r\n").unwrap();
        assert_eq!(read(&mut pool, 2), 2);
        servers.remove(0);
        while pool.broken.is_empty() {
            for ready in pool.wait(Duration::from_secs(5)) {
                let Ready::Connection(number) = ready else { continue };
                pool.receive(number);
            }
        }
        assert!(matches!(&pool.take_broken()[..], [(0, why)] if why.contains("closed")));
        assert_eq!(pool.way(&place.target, 3).unwrap().connection, 2, "a new one for the one that broke");
    }
}
