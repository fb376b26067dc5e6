//! Packets over one raw socket, each with an IPv4 and a UDP header of our own: they leave from any port of
//! this machine without touching the socket that is bound to it.
//!
//! What a send costs is the kernel's network stack and, with thousands of sockets used in turn, fetching the
//! socket from memory. One socket for all of them stays near.
#![expect(unsafe_code, reason = "sendmmsg has no safe form that allocates nothing")]

use std::array;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::ptr;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::sockaddr::{self, SOCKADDR_BYTES};
use super::sockets::TOS_EF;

/// IPv4 (RFC 791 §3.1) without options, then UDP (RFC 768).
pub const HEADERS_BYTES: usize = IP_BYTES + UDP_BYTES;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Payload of a packet, at most: what every path carries whole, for nobody would cut it.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1200;
/// Packets of one system call.
pub(super) const BATCH: usize = 64;
/// What may wait for a network interface.
const QUEUE_BYTES: usize = 4 << 20;
/// Routers a packet may pass.
const TTL: u8 = 64;
const UDP: u8 = 17;

/// One packet: its headers and payload, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) to: SocketAddrV4,
}

/// The socket.
#[derive(Debug)]
pub(super) struct RawSend {
    socket: Socket,
    /// Of all that is sent.
    source: Option<Ipv4Addr>,
    /// Identification of the last packet.
    id: u16,
}

impl RawSend {
    /// A socket that only sends.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub(super) fn new() -> io::Result<Self> {
        // This protocol takes packets with their headers and never receives any.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        setsockopt(&socket, sockopt::SndBufForce, &QUEUE_BYTES)?;
        // The header has it too; this is what queues of the machine go by.
        socket.set_tos_v4(TOS_EF)?;
        Ok(Self { socket, source: None, id: 0 })
    }

    /// Sends from this address from now on, if from none yet: routes may depend on it. Whether it does.
    pub(super) fn bind(&mut self, address: Ipv4Addr) -> bool {
        if self.source.is_none() && self.socket.bind(&SocketAddrV4::new(address, 0).into()).is_ok() {
            self.source = Some(address);
        }
        self.source == Some(address)
    }

    /// Writes the headers of `packet`, which has room for them before its payload.
    pub(super) fn address(&mut self, packet: &mut [u8], from: SocketAddrV4, to: SocketAddrV4) {
        // With nought the kernel would make one up, at more cost.
        self.id = self.id.checked_add(1).unwrap_or(1);
        write_headers(packet, from, to, self.id);
    }

    /// Sends up to [`BATCH`] packets; `refused` is told the place of each that the kernel does not take, and
    /// the number of those that it took is returned.
    pub(super) fn transmit<'a>(
        &self,
        packets: impl Iterator<Item = Outgoing<'a>>,
        mut refused: impl FnMut(usize),
    ) -> u64 {
        let mut names = [[0; SOCKADDR_BYTES]; BATCH];
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut lengths = [0; BATCH];
        let mut count = 0;
        for (packet, place) in packets.zip(0..BATCH) {
            lengths[place] = sockaddr::encode(packet.to.into(), &mut names[place]);
            vectors[place] = libc::iovec {
                iov_base: packet.bytes.as_ptr().cast_mut().cast(),
                iov_len: packet.bytes.len(),
            };
            count = place + 1;
        }
        let mut headers: [libc::mmsghdr; BATCH] = array::from_fn(|place| libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: names[place].as_mut_ptr().cast(),
                msg_namelen: libc::socklen_t::try_from(lengths[place]).unwrap_or(0),
                msg_iov: &raw mut vectors[place],
                msg_iovlen: 1,
                msg_control: ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            msg_len: 0,
        });
        let (mut next, mut sent) = (0, 0);
        while let Some(rest) = headers.get_mut(next..count).filter(|rest| !rest.is_empty()) {
            let some = libc::c_uint::try_from(rest.len()).unwrap_or(0);
            let (socket, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
            // SAFETY: each header points to a name and to bytes of the stated length, which outlive the call;
            // the kernel only reads what the vectors point to.
            let taken = unsafe { libc::sendmmsg(socket, rest.as_mut_ptr(), some, flags) };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => {
                    next += taken;
                    sent += taken as u64;
                }
                // The first of them is the one it does not take.
                _ => {
                    refused(next);
                    next += 1;
                }
            }
        }
        sent
    }
}

/// Writes the headers of `packet`, [`HEADERS_BYTES`] of it, from what follows them; the checksum of the first is
/// left to the kernel. `id`, not nought: IPv4's identification.
pub fn write_headers(packet: &mut [u8], from: SocketAddrV4, to: SocketAddrV4, id: u16) {
    let total = u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes();
    let length = u16::try_from(packet.len().saturating_sub(IP_BYTES)).unwrap_or(u16::MAX).to_be_bytes();
    let Some((headers, payload)) = packet.split_first_chunk_mut::<HEADERS_BYTES>() else { return };
    let tos = u8::try_from(TOS_EF).unwrap_or(0);
    // Version 4, five words; nothing is said of fragments. The kernel fills in the header's checksum.
    headers[..4].copy_from_slice(&[0x45, tos, total[0], total[1]]);
    headers[4..6].copy_from_slice(&id.to_be_bytes());
    headers[6..12].copy_from_slice(&[0, 0, TTL, UDP, 0, 0]);
    headers[12..16].copy_from_slice(&from.ip().octets());
    headers[16..20].copy_from_slice(&to.ip().octets());
    headers[20..22].copy_from_slice(&from.port().to_be_bytes());
    headers[22..24].copy_from_slice(&to.port().to_be_bytes());
    headers[24..26].copy_from_slice(&length);
    headers[26..28].fill(0);
    // The addresses, protocol and length stand for the pseudo-header.
    let sum = sum(&headers[12..])
        + sum(payload)
        + u64::from(u16::from_ne_bytes([0, UDP]))
        + u64::from(u16::from_ne_bytes(length));
    headers[26..28].copy_from_slice(&checksum(sum).to_ne_bytes());
}

/// Sum of 16-bit words, in the machine's own order (RFC 1071 §2 B).
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Folded and inverted; nought would mean that there is none.
fn checksum(mut sum: u64) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    match u16::try_from(sum) {
        Ok(0xFFFF) | Err(_) => 0xFFFF,
        Ok(sum) => !sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a receiver makes of a packet: RFC 768's sum, by the book.
    fn sums_to_nought(packet: &[u8]) -> bool {
        let udp = &packet[IP_BYTES..];
        let mut words: Vec<u8> = packet[12..20].to_vec();
        words.extend([0, UDP]);
        words.extend(u16::try_from(udp.len()).unwrap().to_be_bytes());
        words.extend(udp);
        if words.len() % 2 == 1 {
            words.push(0);
        }
        let mut sum: u32 =
            words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum == 0xFFFF
    }

    proptest! {
        /// Goal: headers are what RFC 791 and RFC 768 say, for any payload, of odd length too. Method: the
        /// checksum by the book, over what was written.
        #[test]
        fn headers_are_right_for_any_packet(
            payload in proptest::collection::vec(any::<u8>(), 0..400),
            from: SocketAddrV4,
            to: SocketAddrV4,
            id in 1..=u16::MAX,
        ) {
            let mut packet = vec![0xAA; HEADERS_BYTES];
            packet.extend(&payload);
            write_headers(&mut packet, from, to, id);
            prop_assert!(sums_to_nought(&packet));
            prop_assert_ne!(&packet[26..28], &[0, 0], "that would be no checksum");
            prop_assert_eq!(&packet[2..4], &u16::try_from(packet.len()).unwrap().to_be_bytes());
            prop_assert_eq!(&packet[4..6], &id.to_be_bytes());
            prop_assert_eq!(&packet[20..22], &from.port().to_be_bytes());
            prop_assert_eq!(&packet[HEADERS_BYTES..], &payload);
        }
    }
}
