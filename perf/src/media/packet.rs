//! RTP packets (RFC 3550 §5.1).

/// The parts of the fixed header that matter to a measuring peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Marker bit.
    pub marker: bool,
    /// Payload type, 0 to 127.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// RTP timestamp.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
}

/// Header and payload as one datagram.
pub fn build(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(12 + payload.len());
    packet.push(0x80);
    packet.push(header.payload_type & 0x7F | u8::from(header.marker) << 7);
    packet.extend(header.sequence.to_be_bytes());
    packet.extend(header.timestamp.to_be_bytes());
    packet.extend(header.ssrc.to_be_bytes());
    packet.extend(payload);
    packet
}

/// Reads a datagram; `None` when it is not RTP version 2 or is cut short.
pub fn parse(datagram: &[u8]) -> Option<(Header, &[u8])> {
    let (fixed, rest) = datagram.split_at_checked(12)?;
    if fixed[0] >> 6 != 2 {
        return None;
    }
    let header = Header {
        marker: fixed[1] & 0x80 != 0,
        payload_type: fixed[1] & 0x7F,
        sequence: u16::from_be_bytes(fixed[2..4].try_into().ok()?),
        timestamp: u32::from_be_bytes(fixed[4..8].try_into().ok()?),
        ssrc: u32::from_be_bytes(fixed[8..12].try_into().ok()?),
    };
    let mut payload = rest.get(usize::from(fixed[0] & 0x0F) * 4..)?;
    if fixed[0] & 0x10 != 0 {
        let words = u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?);
        payload = payload.get(4 + usize::from(words) * 4..)?;
    }
    if fixed[0] & 0x20 != 0 {
        let padding = usize::from(*payload.last()?);
        payload = payload.get(..payload.len().checked_sub(padding)?)?;
    }
    Some((header, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is built can be read, and the bytes are those of RFC 3550 §5.1.
    /// Method: one packet, its octets written by hand.
    #[test]
    fn header_has_the_octets_of_the_rfc_and_reads_back() {
        let header = Header {
            marker: true,
            payload_type: 101,
            sequence: 0x0102,
            timestamp: 0x0304_0506,
            ssrc: 0x0708_090A,
        };
        let packet = build(&header, b"ab");
        assert_eq!(packet, [0x80, 0xE5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, b'a', b'b']);
        assert_eq!(parse(&packet), Some((header, &b"ab"[..])));
    }

    /// Goal: contributing sources, extension and padding are not taken for sound; nonsense is refused.
    /// Method: a packet with one CSRC, one extension word and two octets of padding; then its prefixes.
    #[test]
    fn csrc_extension_and_padding_are_left_out() {
        let mut packet = vec![0xB1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 9, 9, 9, 9];
        packet.extend([0xBE, 0xDE, 0, 1, 1, 1, 1, 1]);
        packet.extend(b"voice");
        packet.extend([0, 2]);
        assert_eq!(parse(&packet).map(|(_, payload)| payload), Some(&b"voice"[..]));
        assert!((0..24).all(|cut| parse(&packet[..cut]).is_none()));
        assert!(parse(&[0u8; 40]).is_none(), "version 0");
    }
}
