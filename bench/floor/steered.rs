//! Steered: one socket takes what comes to all ports, one raw socket sends with headers of its own.
//!
//! Packets go on from the buffer they came in, 64 to a system call each way; the ports' own sockets are not
//! touched.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg have no safe form in the standard library")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use voxring::base::clock;
use voxring::uring::{HEADERS_BYTES, Steering, funnel, write_headers};

use super::{FRAME_TICKS, Mode, PACKET_BYTES, Streams, TICK, name, stamp};

const BATCH: usize = 64;
const BUFFER_BYTES: usize = 2112;
/// `struct cmsghdr`, then `struct sockaddr_in`, whose port follows its family.
const PORT_AT: usize = 18;

/// One packet and all the kernel wants to know or tell of it. Headers of ours go before the payload.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Place {
    control: [u8; 32],
    name: libc::sockaddr_in,
    bytes: [u8; BUFFER_BYTES],
}

struct Loop {
    streams: Streams,
    locals: Vec<SocketAddrV4>,
    /// Which socket has a port.
    at_port: Vec<usize>,
    places: Box<[Place]>,
    vectors: [libc::iovec; BATCH],
    headers: [libc::mmsghdr; BATCH],
    /// Bytes to go out of each place.
    lengths: [usize; BATCH],
    raw: Socket,
    id: u16,
}

/// Works until `over`.
pub(super) fn run(streams: Streams, over: &AtomicBool) -> Result<()> {
    let (funnel, _steering) = steer(&streams).context("cannot steer; see voxring check")?;
    let mut bare = Loop::new(streams)?;
    let start = clock::now();
    for tick in 1_u32.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep((start + TICK * tick).saturating_duration_since(clock::now()));
        if bare.streams.mode == Mode::Send {
            bare.send_due(tick as usize)?;
        } else {
            while bare.turn(&funnel) == BATCH {}
        }
    }
    Ok(())
}

/// The socket to which all ports lead.
fn steer(streams: &Streams) -> Result<(Socket, Steering)> {
    let funnel = funnel()?;
    let mut steering = Steering::new(&funnel)?;
    for local in locals(streams)? {
        steering.take(*local.ip(), local.port())?;
    }
    Ok((funnel, steering))
}

fn locals(streams: &Streams) -> Result<Vec<SocketAddrV4>> {
    let local = |socket| SockRef::from(socket).local_addr()?.as_socket_ipv4().context("IPv4 only");
    streams.sockets.iter().map(local).collect()
}

impl Loop {
    fn new(streams: Streams) -> Result<Self> {
        let locals = locals(&streams)?;
        let mut at_port = vec![usize::MAX; 1 << 16];
        locals.iter().enumerate().for_each(|(index, local)| at_port[usize::from(local.port())] = index);
        // SAFETY: numbers and null pointers, for which all-zero is a valid value.
        let (place, vector, header) = unsafe { std::mem::zeroed() };
        Ok(Self {
            streams,
            locals,
            at_port,
            places: vec![place; BATCH].into(),
            vectors: [vector; BATCH],
            headers: [header; BATCH],
            lengths: [0; BATCH],
            raw: Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?,
            id: 0,
        })
    }

    /// Points header `at` to `length` bytes of a place from `from` on.
    fn point(&mut self, at: usize, place: usize, from: usize, length: usize) {
        let place = &mut self.places[place];
        self.vectors[at] = libc::iovec { iov_base: place.bytes[from..].as_mut_ptr().cast(), iov_len: length };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut place.name).cast();
        header.msg_namelen = 16;
        header.msg_iov = &raw mut self.vectors[at];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut place.control).cast();
        header.msg_controllen = size_of_val(&place.control);
    }

    /// Takes what came and sends it on; says how much there was.
    fn turn(&mut self, funnel: &Socket) -> usize {
        for at in 0..BATCH {
            self.point(at, at, HEADERS_BYTES, BUFFER_BYTES - HEADERS_BYTES);
        }
        let (first, count) = (self.headers.as_mut_ptr(), libc::c_uint::try_from(BATCH).unwrap_or(0));
        // SAFETY: `point` made each header point to memory of its place, of the stated length.
        let read = unsafe {
            libc::recvmmsg(funnel.as_raw_fd(), first, count, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let read = usize::try_from(read).unwrap_or(0);
        for place in 0..read {
            let length = self.headers[place].msg_len as usize;
            self.lengths[place] = self.relay(place, length).unwrap_or(0);
        }
        self.send(read);
        read
    }

    /// Makes the datagram in this place ready to leave; its bytes with headers, if it does.
    fn relay(&mut self, place: usize, length: usize) -> Option<usize> {
        if self.streams.mode != Mode::Relay {
            return None;
        }
        let place = &mut self.places[place];
        let port = u16::from_be_bytes([place.control[PORT_AT], place.control[PORT_AT + 1]]);
        let index = self.at_port[usize::from(port)];
        let from = Ipv4Addr::from(place.name.sin_addr.s_addr.to_ne_bytes());
        *self.streams.peers.get_mut(index)? =
            Some(SocketAddrV4::new(from, u16::from_be(place.name.sin_port)));
        let to = self.streams.peers[index ^ 1]?;
        let packet = &mut place.bytes[HEADERS_BYTES..];
        stamp(packet, u16::from_be_bytes([packet[2], packet[3]]));
        let bytes = HEADERS_BYTES + self.streams.ciphers.apply(index, packet, length);
        self.id = self.id.checked_add(1).unwrap_or(1);
        write_headers(&mut place.bytes[..bytes], self.locals[index ^ 1], to, self.id);
        place.name = name(to);
        Some(bytes)
    }

    /// Sends the places among the first `count` that have something to send.
    fn send(&mut self, count: usize) {
        let mut out = 0;
        for place in 0..count {
            if self.lengths[place] > 0 {
                self.point(out, place, 0, self.lengths[place]);
                self.headers[out].msg_hdr.msg_controllen = 0;
                out += 1;
            }
        }
        let (first, count) = (self.headers.as_mut_ptr(), libc::c_uint::try_from(out).unwrap_or(0));
        // SAFETY: as for receiving. A refused packet is the floor's loss, seen by who counts them.
        let _ = unsafe { libc::sendmmsg(self.raw.as_raw_fd(), first, count, libc::MSG_DONTWAIT) };
    }

    /// Sends a packet of each stream that is due.
    fn send_due(&mut self, tick: usize) -> Result<()> {
        let due: Vec<usize> = self.streams.due(tick).collect();
        let sequence = u16::try_from((tick / FRAME_TICKS) & 0xFFFF)?;
        for batch in due.chunks(BATCH) {
            for (place, index) in batch.iter().enumerate() {
                let Some(to) = self.streams.peers[*index] else { continue };
                let bytes = &mut self.places[place].bytes[..HEADERS_BYTES + PACKET_BYTES];
                bytes[HEADERS_BYTES] = 0x80;
                stamp(&mut bytes[HEADERS_BYTES..], sequence);
                self.id = self.id.checked_add(1).unwrap_or(1);
                write_headers(bytes, self.locals[*index], to, self.id);
                self.lengths[place] = bytes.len();
                self.places[place].name = name(to);
            }
            self.send(batch.len());
        }
        Ok(())
    }
}
