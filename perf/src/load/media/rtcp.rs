//! The RTCP of a load (RFC 3550 §6): one report from each stream every 5 s, and what the far side's
//! reports say of our frames.

use std::time::Duration;

/// Bytes of the longest report we write: SR, one block, SDES.
pub const REPORT_BYTES: usize = 28 + 24 + 20;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const DESCRIPTION: u8 = 202;

/// From 1900, where NTP begins to count, to 1970, seconds.
const NTP_EPOCH_S: u64 = 2_208_988_800;

/// What a stream reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Its SSRC.
    pub ssrc: u32,
    /// Time since 1970.
    pub now: Duration,
    /// RTP timestamp of now, packets and payload bytes sent; `None` of a stream that only listens.
    pub sent: Option<(u32, u32, u32)>,
    /// What it heard.
    pub heard: Option<Block>,
}

/// A report block (RFC 3550 §6.4.1), without what would measure the round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Whose packets it is about.
    pub ssrc: u32,
    /// Packets lost since the beginning; fewer than none when some came twice.
    pub lost: i32,
    /// Extended highest sequence number.
    pub highest: u32,
    /// Interarrival jitter, timestamp units.
    pub jitter: u32,
}

impl Report {
    /// Writes SR or RR, then SDES with a CNAME, as every compound packet must have (§6.1). Gives the
    /// length.
    pub fn write(&self, out: &mut [u8; REPORT_BYTES]) -> usize {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let blocks = u8::from(self.heard.is_some());
        let (kind, words) = if self.sent.is_some() { (SENDER_REPORT, 6) } else { (RECEIVER_REPORT, 1) };
        put(&[0x80 | blocks, kind, 0, words + 6 * blocks]);
        put(&self.ssrc.to_be_bytes());
        if let Some((timestamp, packets, octets)) = self.sent {
            let [_, _, _, _, seconds @ ..] = (self.now.as_secs() + NTP_EPOCH_S).to_be_bytes();
            let [_, _, _, _, fraction @ ..] =
                ((u64::from(self.now.subsec_nanos()) << 32) / 1_000_000_000).to_be_bytes();
            put(&seconds);
            put(&fraction);
            [timestamp, packets, octets].iter().for_each(|number| put(&number.to_be_bytes()));
        }
        if let Some(block) = self.heard {
            put(&block.ssrc.to_be_bytes());
            let [_, lost @ ..] = block.lost.clamp(-0x80_0000, 0x7F_FFFF).to_be_bytes();
            put(&[0]);
            put(&lost);
            [block.highest, block.jitter, 0, 0].iter().for_each(|number| put(&number.to_be_bytes()));
        }
        put(&[0x81, DESCRIPTION, 0, 4]);
        put(&self.ssrc.to_be_bytes());
        put(b"\x01\x07voxperf\0\0\0");
        at
    }
}

/// The last block about `ssrc` in a compound packet.
pub fn block_about(packet: &[u8], ssrc: u32) -> Option<Block> {
    let (mut rest, mut found) = (packet, None);
    while let Some((&[first, kind, high, low], _)) = rest.split_first_chunk::<4>() {
        let length = 4 * (usize::from(u16::from_be_bytes([high, low])) + 1);
        let part = rest.get(..length).filter(|_| first >> 6 == 2)?;
        let skip = match kind {
            SENDER_REPORT => 28,
            RECEIVER_REPORT => 8,
            _ => length,
        };
        let blocks = part.get(skip..).unwrap_or_default().as_chunks::<24>().0;
        let mut about = blocks.iter().take(usize::from(first & 0x1F)).map(read_block);
        found = about.rfind(|block| block.ssrc == ssrc).or(found);
        rest = &rest[length..];
    }
    found
}

fn read_block(bytes: &[u8; 24]) -> Block {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    // 24 bits with a sign.
    let lost = (word(4) << 8).cast_signed() >> 8;
    Block { ssrc: word(0), lost, highest: word(8), jitter: word(12) }
}

#[cfg(test)]
mod tests {
    use rtcp_types::{Compound, Packet};

    use super::*;

    fn written(report: &Report) -> Vec<u8> {
        let mut out = [0xEE; REPORT_BYTES];
        let length = report.write(&mut out);
        out[..length].to_vec()
    }

    /// Goal: what we send is a compound another implementation reads, field by field (§6.4.1, §6.5).
    /// Method: `rtcp-types` parses SR and RR, with a block and without.
    #[test]
    fn our_reports_are_read_by_rtcp_types() {
        let heard = Block { ssrc: 9, lost: -3, highest: 70_000, jitter: 12 };
        let sender =
            Report { ssrc: 7, now: Duration::new(1, 1 << 29), sent: Some((160, 2, 320)), heard: Some(heard) };
        let bytes = written(&sender);
        let mut packets = Compound::parse(&bytes).unwrap();
        let Some(Ok(Packet::Sr(sr))) = packets.next() else { panic!("no SR") };
        let fraction = ((1u64 << 29) << 32) / 1_000_000_000;
        assert_eq!(sr.ntp_timestamp(), (2_208_988_801 << 32) | fraction);
        assert_eq!((sr.ssrc(), sr.rtp_timestamp(), sr.packet_count(), sr.octet_count()), (7, 160, 2, 320));
        let block = sr.report_blocks().next().unwrap();
        assert_eq!(
            (block.ssrc(), block.cumulative_lost(), block.extended_sequence_number()),
            (9, 0xFF_FFFD, 70_000)
        );
        assert_eq!(block.interarrival_jitter(), 12);
        let Some(Ok(Packet::Sdes(sdes))) = packets.next() else { panic!("no SDES") };
        let chunk = sdes.chunks().next().unwrap();
        assert_eq!((chunk.ssrc(), chunk.items().next().unwrap().value()), (7, &b"voxperf"[..]));
        assert!(packets.next().is_none());

        let bytes = written(&Report { sent: None, heard: None, ..sender });
        let mut packets = Compound::parse(&bytes).unwrap();
        let Some(Ok(Packet::Rr(rr))) = packets.next() else { panic!("no RR") };
        assert_eq!((rr.ssrc(), rr.n_reports()), (7, 0));
    }

    /// Goal: what a far side reports of our frames is found; nonsense is nothing.
    /// Method: our own writer as the far side; another's SSRC; the compound cut at every byte.
    #[test]
    fn what_the_far_side_reports_of_us_is_found() {
        let heard = Block { ssrc: 9, lost: -3, highest: 70_000, jitter: 12 };
        for sent in [None, Some((1, 2, 3))] {
            let bytes = written(&Report { ssrc: 7, now: Duration::ZERO, sent, heard: Some(heard) });
            assert_eq!(block_about(&bytes, 9), Some(heard));
            assert_eq!(block_about(&bytes, 8), None);
            assert!((0..24).all(|cut| block_about(&bytes[..cut], 9).is_none()));
        }
        assert_eq!(block_about(&[0xFF; 100], 9), None);
    }
}
