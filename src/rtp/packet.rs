//! The RTP packet: header read and written in place (RFC 3550 §5.1).
//!
//! Reading copies nothing: the payload is named by its range in the datagram, so that the caller
//! may rewrite the header and send the very same bytes.

use std::ops::Range;

/// Bytes of a header without CSRC list and extension.
pub const HEADER_BYTES: usize = 12;

/// An RTP sequence number. It wraps, so it has a distance and no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeqNo(pub u16);

impl SeqNo {
    /// Steps from `earlier` to `self`, modulo 65536.
    pub fn since(self, earlier: Self) -> u16 {
        self.0.wrapping_sub(earlier.0)
    }

    /// `self` moved on by `steps`.
    #[must_use]
    pub fn plus(self, steps: u16) -> Self {
        Self(self.0.wrapping_add(steps))
    }
}

/// An RTP timestamp, in units of the payload's clock (PCMU and PCMA: 8 units = 1 ms). It wraps,
/// so it has a distance and no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RtpTimestamp(pub u32);

impl RtpTimestamp {
    /// Units from `earlier` to `self`, modulo 2^32.
    pub fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// `self` moved on by `units`.
    #[must_use]
    pub fn plus(self, units: u32) -> Self {
        Self(self.0.wrapping_add(units))
    }
}

/// The fixed header's fields (RFC 3550 §5.1) that mean something to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpHeader {
    /// M: the first packet of a talkspurt or event (RFC 3551 §4.1, RFC 4733 §2.5.1.2).
    pub marker: bool,
    /// PT, 0-127.
    pub payload_type: u8,
    /// Counts packets.
    pub sequence: SeqNo,
    /// Sampling instant of the payload's first byte.
    pub timestamp: RtpTimestamp,
    /// Synchronisation source.
    pub ssrc: u32,
}

/// A datagram that is RTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its header.
    pub header: RtpHeader,
    /// Where its payload lies in the datagram, without padding; may be empty.
    pub payload: Range<usize>,
}

/// Why a datagram is no RTP packet (RFC 3550 A.1). Always the peer's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RtpError {
    /// Shorter than its header, CSRC list or extension says.
    #[error("RTP packet ends within its header")]
    Truncated,
    /// Version other than 2.
    #[error("RTP version {0} instead of 2")]
    Version(u8),
    /// The last byte counts more padding than there is payload, or none.
    #[error("RTP padding of {0} bytes does not fit")]
    Padding(u8),
}

/// Reads one datagram.
///
/// # Errors
/// See [`RtpError`]. Whether the payload type is an agreed one is the caller's to check.
pub fn parse(datagram: &[u8]) -> Result<Packet, RtpError> {
    let (fixed, rest) = datagram.split_first_chunk::<HEADER_BYTES>().ok_or(RtpError::Truncated)?;
    let [first, second, s0, s1, t0, t1, t2, t3, c0, c1, c2, c3] = *fixed;
    let version = first >> 6;
    if version != 2 {
        return Err(RtpError::Version(version));
    }
    let mut start = HEADER_BYTES + usize::from(first & 0x0F) * 4;
    if first & 0x10 != 0 {
        let words = extension_words(datagram, start).ok_or(RtpError::Truncated)?;
        start += 4 + words * 4;
    }
    if start > HEADER_BYTES + rest.len() {
        return Err(RtpError::Truncated);
    }
    let mut end = datagram.len();
    if first & 0x20 != 0 {
        let padding = datagram.last().copied().unwrap_or(0);
        if padding == 0 || usize::from(padding) > end - start {
            return Err(RtpError::Padding(padding));
        }
        end -= usize::from(padding);
    }
    let header = RtpHeader {
        marker: second & 0x80 != 0,
        payload_type: second & 0x7F,
        sequence: SeqNo(u16::from_be_bytes([s0, s1])),
        timestamp: RtpTimestamp(u32::from_be_bytes([t0, t1, t2, t3])),
        ssrc: u32::from_be_bytes([c0, c1, c2, c3]),
    };
    Ok(Packet { header, payload: start..end })
}

/// Length of the header extension at `start` in 32-bit words, without its own first word.
fn extension_words(datagram: &[u8], start: usize) -> Option<usize> {
    let bytes = datagram.get(start + 2..start + 4)?;
    Some(usize::from(u16::from_be_bytes(bytes.try_into().ok()?)))
}

/// Writes a header without CSRC list, extension or padding to the start of `buf`; 12 bytes.
///
/// # Panics
/// When `buf` is shorter than 12 bytes: a send buffer of ours always has room for a packet.
pub fn write_header(header: &RtpHeader, buf: &mut [u8]) -> usize {
    let fixed = buf.first_chunk_mut::<HEADER_BYTES>().expect("a send buffer holds an RTP header");
    let [s0, s1] = header.sequence.0.to_be_bytes();
    let [t0, t1, t2, t3] = header.timestamp.0.to_be_bytes();
    let [c0, c1, c2, c3] = header.ssrc.to_be_bytes();
    let second = u8::from(header.marker) << 7 | header.payload_type & 0x7F;
    *fixed = [0x80, second, s0, s1, t0, t1, t2, t3, c0, c1, c2, c3];
    HEADER_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [u8; 14] =
        [0x80, 0x80, 0x12, 0x34, 0x00, 0x01, 0x02, 0x03, 0xCA, 0xFE, 0xBA, 0xBE, 0xD5, 0x55];

    fn header() -> RtpHeader {
        RtpHeader {
            marker: true,
            payload_type: 0,
            sequence: SeqNo(0x1234),
            timestamp: RtpTimestamp(0x0001_0203),
            ssrc: 0xCAFE_BABE,
        }
    }

    /// Goal: the fields are where RFC 3550 §5.1 draws them. Method: a packet laid out by hand.
    #[test]
    fn a_plain_packet_is_read_field_by_field() {
        let packet = parse(&PLAIN).unwrap();
        assert_eq!(packet.header, header());
        assert_eq!(packet.payload, 12..14);
    }

    /// Goal: written headers are read back, by us and by another implementation.
    /// Method: write, then parse with `rtp-types`.
    #[test]
    fn a_written_header_is_read_by_rtp_types() {
        let mut buf = [0xFF; 12];
        assert_eq!(write_header(&header(), &mut buf), 12);
        assert_eq!(buf, PLAIN[..12]);
        let oracle = rtp_types::RtpPacket::parse(&buf).unwrap();
        assert_eq!(
            (oracle.sequence_number(), oracle.timestamp(), oracle.ssrc(), oracle.marker_bit()),
            (0x1234, 0x0001_0203, 0xCAFE_BABE, true)
        );
    }

    /// Goal: CSRC list, extension and padding are stepped over (RFC 3550 §5.1, §5.3.1).
    /// Method: one packet with all three, compared with `rtp-types`.
    #[test]
    fn csrc_extension_and_padding_are_not_payload() {
        let mut bytes = vec![0xB2, 8, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]; // P, X, CC = 2
        bytes.extend([0; 8]); // two CSRCs
        bytes.extend([0xBE, 0xDE, 0, 1, 1, 2, 3, 4]); // extension of one word
        bytes.extend([9, 9, 9]); // payload
        bytes.extend([0, 0, 0, 0, 5]); // padding
        let packet = parse(&bytes).unwrap();
        assert_eq!(packet.payload, 28..31);
        assert_eq!(rtp_types::RtpPacket::parse(&bytes).unwrap().payload(), [9, 9, 9]);
    }

    /// Goal: every header check of RFC 3550 A.1 holds. Method: one broken packet for each.
    #[test]
    fn packets_that_lie_about_their_length_or_version_are_refused() {
        let with = |index: usize, value: u8| {
            let mut bytes = PLAIN;
            bytes[index] = value;
            parse(&bytes)
        };
        assert_eq!(parse(&PLAIN[..11]), Err(RtpError::Truncated));
        assert_eq!(parse(&[]), Err(RtpError::Truncated));
        assert_eq!(with(0, 0x40), Err(RtpError::Version(1)));
        assert_eq!(with(0, 0x81), Err(RtpError::Truncated)); // one CSRC, two bytes left
        assert_eq!(with(0, 0x90), Err(RtpError::Truncated)); // extension without its head
        assert_eq!(with(0, 0xA0), Err(RtpError::Padding(0x55))); // 85 bytes of padding in 2
        let mut bytes = PLAIN;
        (bytes[0], bytes[13]) = (0xA0, 0);
        assert_eq!(parse(&bytes), Err(RtpError::Padding(0)));
    }

    /// Goal: we accept exactly what `rtp-types` accepts, and read the same.
    /// Method: 20 000 seeded mutations of valid packets.
    #[test]
    fn mutated_packets_are_judged_like_rtp_types_does() {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()
        };
        for _ in 0..20_000 {
            let [len, first, second, a, b, c, ..] = next();
            let mut bytes = vec![0_u8; usize::from(len % 64)];
            bytes.iter_mut().for_each(|byte| *byte = next()[0] & 7);
            if let Some(byte) = bytes.first_mut() {
                *byte = first & 0xBF | 0x80;
            }
            if let Some(byte) = bytes.get_mut(1) {
                *byte = second;
            }
            if let Some(byte) = bytes.get_mut(usize::from(a) % 64) {
                *byte = b.wrapping_add(c);
            }
            match (parse(&bytes), rtp_types::RtpPacket::parse(&bytes)) {
                (Ok(ours), Ok(theirs)) => {
                    assert_eq!(bytes[ours.payload.clone()], *theirs.payload(), "{bytes:?}");
                    assert_eq!(ours.header.ssrc, theirs.ssrc());
                    assert_eq!(ours.header.payload_type, theirs.payload_type());
                }
                (Err(_), Err(_)) => {}
                (ours, theirs) => panic!("{bytes:?}: {ours:?}, rtp-types {theirs:?}"),
            }
        }
    }

    /// Goal: distances survive the wrap. Method: RFC arithmetic modulo 2^16 and 2^32.
    #[test]
    fn sequence_numbers_and_timestamps_wrap() {
        assert_eq!(SeqNo(2).since(SeqNo(65_534)), 4);
        assert_eq!(SeqNo(65_535).plus(1), SeqNo(0));
        assert_eq!(RtpTimestamp(100).since(RtpTimestamp(u32::MAX)), 101);
        assert_eq!(RtpTimestamp(u32::MAX).plus(160), RtpTimestamp(159));
    }
}
