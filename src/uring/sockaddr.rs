//! `sockaddr_in` and `sockaddr_in6` as bytes, both ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Room for either family.
pub(super) const SOCKADDR_BYTES: usize = 28;
const V4_BYTES: usize = 16;

#[expect(clippy::cast_possible_truncation, reason = "address families are small constants")]
const AF_INET: u16 = libc::AF_INET as u16;
#[expect(clippy::cast_possible_truncation, reason = "address families are small constants")]
const AF_INET6: u16 = libc::AF_INET6 as u16;

/// Writes `address` as the kernel reads it; returns its length.
pub(super) fn encode(address: SocketAddr, out: &mut [u8; SOCKADDR_BYTES]) -> usize {
    out.fill(0);
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out[..2].copy_from_slice(&AF_INET.to_ne_bytes());
            out[4..8].copy_from_slice(&v4.ip().octets());
            V4_BYTES
        }
        SocketAddr::V6(v6) => {
            out[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
            out[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            SOCKADDR_BYTES
        }
    }
}

/// Reads what the kernel wrote; `None` for another family or too few bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    if family == AF_INET {
        let octets: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(octets)), port))
    } else if family == AF_INET6 {
        let flow = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?);
        let octets: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
        let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
        Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), port, flow, scope)))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: addresses survive the kernel's form. Method: any v4 and v6 address and port.
        #[test]
        fn addresses_round_trip(ip: IpAddr, port: u16) {
            let address = SocketAddr::new(ip, port);
            let mut bytes = [0; SOCKADDR_BYTES];
            let length = encode(address, &mut bytes);
            prop_assert_eq!(decode(&bytes[..length]), Some(address));
        }

        /// Goal: no bytes make decoding panic. Method: arbitrary bytes.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    /// Goal: agreement with the C layout. Method: 127.0.0.1:5004 written by hand.
    #[test]
    fn v4_layout_is_family_port_address() {
        let mut bytes = [0xFF; SOCKADDR_BYTES];
        assert_eq!(encode("127.0.0.1:5004".parse().unwrap(), &mut bytes), 16);
        assert_eq!(&bytes[..2], &2_u16.to_ne_bytes());
        assert_eq!(&bytes[2..16], &[0x13, 0x8C, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
