//! RTCP: compound packets, round trip time, and when to send (RFC 3550 §6).
//!
//! Reading rests on `rtcp-types`. Writing is done here, because that crate's builders allocate
//! for every report; its parsers check the result in the tests.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rtcp_types::prelude::*;
use rtcp_types::{Bye, ReceiverReport, Sdes, SenderReport};

use super::packet::RtpTimestamp;
use super::sequence::Reception;
use crate::base::random::SplitMix64;

/// Shortest mean interval between our reports (§6.2).
pub const INTERVAL_MIN: Duration = Duration::from_secs(5);
/// Longest compound we write: SR with one block, SDES with the longest CNAME, BYE.
pub const COMPOUND_BYTES_MAX: usize = 28 + 24 + (4 + 4 + 2 + 255 + 3) + 8;
/// Packet types: SR, RR, SDES, BYE, APP (RFC 3550 §12.1), feedback (RFC 4585 §6.1), XR (RFC 3611 §2).
const TYPES: RangeInclusive<u8> = 200..=207;
/// Seconds from 1900, where NTP counts from, to 1970.
const NTP_UNIX_OFFSET_S: u64 = 2_208_988_800;

/// An NTP timestamp: seconds since 1900 in 32.32 fixed point (RFC 3550 §4). Wraps in 2036.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// The middle 32 bits: 1/65536 s, as LSR and DLSR use them (§6.4.1).
    #[expect(clippy::cast_possible_truncation, reason = "the middle 32 bits are the point")]
    pub fn middle(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// `self` moved on by `elapsed`.
    #[must_use]
    pub fn plus(self, elapsed: Duration) -> Self {
        let fraction = (u64::from(elapsed.subsec_nanos()) << 32) / 1_000_000_000;
        Self(self.0.wrapping_add(elapsed.as_secs() << 32).wrapping_add(fraction))
    }
}

impl From<SystemTime> for NtpTime {
    fn from(time: SystemTime) -> Self {
        Self(NTP_UNIX_OFFSET_S << 32).plus(time.duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

/// A sender report's own half (§6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderInfo {
    /// When the report is sent.
    pub ntp: NtpTime,
    /// The same instant in RTP units of this stream.
    pub rtp: RtpTimestamp,
    /// RTP packets sent since the stream began.
    pub packets: u32,
    /// Their payload bytes.
    pub octets: u32,
}

/// A report block: what its sender heard of `ssrc` (§6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlock {
    /// Whose packets.
    pub ssrc: u32,
    /// Loss and jitter.
    pub reception: Reception,
    /// Middle bits of the NTP time in the last SR from `ssrc`; 0: none yet.
    pub last_sr: u32,
    /// Time since that SR arrived, 1/65536 s; 0 with `last_sr` 0.
    pub delay_since_last_sr: u32,
}

impl ReportBlock {
    /// Writes LSR and DLSR: `last` is the SR's [`NtpTime::middle`] and the time since it came.
    #[must_use]
    pub fn with_last_sr(mut self, last: Option<(u32, Duration)>) -> Self {
        (self.last_sr, self.delay_since_last_sr) = last.map_or((0, 0), |(lsr, age)| (lsr, short_units(age)));
        self
    }
}

/// What goes out: SR or RR, SDES with CNAME, and BYE at the end of a call.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Ours.
    pub ssrc: u32,
    /// Present when we sent RTP since the last two reports (§6.4): SR, otherwise RR.
    pub sender: Option<SenderInfo>,
    /// What we heard, if anything since the last report.
    pub block: Option<ReportBlock>,
    /// Canonical name, mandatory (§6.5.1); cut to 255 bytes.
    pub cname: &'a str,
    /// We leave (§6.6).
    pub bye: bool,
}

impl Report<'_> {
    /// Writes the compound to the start of `buf` and gives its length, a multiple of 4. `None`:
    /// `buf` is too short; [`COMPOUND_BYTES_MAX`] always suffices.
    pub fn write(&self, buf: &mut [u8]) -> Option<usize> {
        let mut out = Writer { buf, len: 0 };
        let count = u8::from(self.block.is_some());
        let head = out.len;
        if let Some(sender) = self.sender {
            out.header(count, SenderReport::PACKET_TYPE)?;
            out.u32(self.ssrc)?;
            out.bytes(&sender.ntp.0.to_be_bytes())?;
            out.u32(sender.rtp.0)?;
            out.u32(sender.packets)?;
            out.u32(sender.octets)?;
        } else {
            out.header(count, ReceiverReport::PACKET_TYPE)?;
            out.u32(self.ssrc)?;
        }
        if let Some(block) = &self.block {
            out.block(block)?;
        }
        out.end(head)?;
        out.sdes(self.ssrc, self.cname)?;
        if self.bye {
            let head = out.len;
            out.header(1, Bye::PACKET_TYPE)?;
            out.u32(self.ssrc)?;
            out.end(head)?;
        }
        Some(out.len)
    }
}

/// Appends to a buffer of fixed size; every method gives `None` when it is full.
struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len + bytes.len();
        self.buf.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    fn u32(&mut self, value: u32) -> Option<()> {
        self.bytes(&value.to_be_bytes())
    }

    /// Version 2, no padding, `count` and the type; the length follows in [`Self::end`].
    fn header(&mut self, count: u8, packet_type: u8) -> Option<()> {
        self.bytes(&[0x80 | count, packet_type, 0, 0])
    }

    /// Sets the length of the packet that began at `head`: 32-bit words minus one.
    fn end(&mut self, head: usize) -> Option<()> {
        let words = u16::try_from((self.len - head) / 4 - 1).ok()?;
        self.buf.get_mut(head + 2..head + 4)?.copy_from_slice(&words.to_be_bytes());
        Some(())
    }

    fn block(&mut self, block: &ReportBlock) -> Option<()> {
        let [_, lost @ ..] = block.reception.cumulative_lost.to_be_bytes();
        self.u32(block.ssrc)?;
        self.bytes(&[block.reception.fraction_lost])?;
        self.bytes(&lost)?;
        self.u32(block.reception.extended_highest)?;
        self.u32(block.reception.jitter)?;
        self.u32(block.last_sr)?;
        self.u32(block.delay_since_last_sr)
    }

    /// One chunk with one CNAME item, ended by at least one null and padded to a word (§6.5).
    fn sdes(&mut self, ssrc: u32, cname: &str) -> Option<()> {
        let head = self.len;
        let cname = cname.get(..cname.floor_char_boundary(255)).unwrap_or(cname);
        self.header(1, Sdes::PACKET_TYPE)?;
        self.u32(ssrc)?;
        self.bytes(&[rtcp_types::SdesItem::CNAME, u8::try_from(cname.len()).ok()?])?;
        self.bytes(cname.as_bytes())?;
        let nulls = 4 - (self.len - head) % 4;
        self.bytes([0; 4].get(..nulls)?)?;
        self.end(head)
    }
}

/// What matters to one leg in a compound that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Who reports.
    pub ssrc: u32,
    /// Its sender half, when it sends.
    pub sender: Option<SenderInfo>,
    /// What it heard of us.
    pub about_us: Option<ReportBlock>,
    /// It leaves.
    pub bye: bool,
}

/// Why a datagram is no RTCP compound (RFC 3550 A.2). Always the peer's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RtcpError {
    /// It does not begin with SR or RR (§6.1).
    #[error("RTCP compound does not begin with a report")]
    NoReport,
    /// Version, padding or lengths do not fit (A.2), or a packet lies about its content.
    #[error("malformed RTCP packet")]
    Malformed,
}

/// Reads a compound and keeps what concerns `our_ssrc`. No allocation.
///
/// # Errors
/// See [`RtcpError`].
pub fn read(datagram: &[u8], our_ssrc: u32) -> Result<Received, RtcpError> {
    let mut rest = datagram;
    let mut received: Option<Received> = None;
    while !rest.is_empty() {
        let (packet, after) = split_packet(rest)?;
        rest = after;
        let packet_type = packet.get(1).copied().unwrap_or(0);
        match &mut received {
            None => received = Some(read_report(packet, packet_type, our_ssrc)?),
            Some(received) if packet_type == Bye::PACKET_TYPE => {
                let bye = Bye::parse(packet).map_err(|_| RtcpError::Malformed)?;
                let leaver = received.ssrc;
                received.bye |= bye.ssrcs().any(|ssrc| ssrc == leaver);
            }
            Some(received) if packet_type == ReceiverReport::PACKET_TYPE => {
                // §6.1: further RRs carry the blocks that did not fit the first.
                let more = read_report(packet, packet_type, our_ssrc)?;
                received.about_us = received.about_us.or(more.about_us);
            }
            Some(_) => {} // SDES, APP, feedback and extended reports change nothing here.
        }
    }
    received.ok_or(RtcpError::NoReport)
}

/// True for plain RTCP packets and nothing else, with or without a report among them. SRTCP is none:
/// its index and tag follow, and whatever is behind its first SSRC is encrypted.
pub fn is_plain(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Ok((packet, after)) = split_packet(rest) {
        if !packet.get(1).is_some_and(|packet_type| TYPES.contains(packet_type)) {
            return false;
        }
        rest = after;
    }
    rest.is_empty() && !datagram.is_empty()
}

/// Cuts the first packet off, with the checks of A.2.
fn split_packet(rest: &[u8]) -> Result<(&[u8], &[u8]), RtcpError> {
    let [first, _, l0, l1, ..] = *rest else { return Err(RtcpError::Malformed) };
    let len = (usize::from(u16::from_be_bytes([l0, l1])) + 1) * 4;
    let (packet, after) = rest.split_at_checked(len).ok_or(RtcpError::Malformed)?;
    let padded = first & 0x20 != 0;
    if first >> 6 != 2 || (padded && !after.is_empty()) {
        return Err(RtcpError::Malformed);
    }
    Ok((packet, after))
}

fn read_report(packet: &[u8], packet_type: u8, our_ssrc: u32) -> Result<Received, RtcpError> {
    match packet_type {
        SenderReport::PACKET_TYPE => {
            let report = SenderReport::parse(packet).map_err(|_| RtcpError::Malformed)?;
            let sender = SenderInfo {
                ntp: NtpTime(report.ntp_timestamp()),
                rtp: RtpTimestamp(report.rtp_timestamp()),
                packets: report.packet_count(),
                octets: report.octet_count(),
            };
            let about_us = find_block(report.report_blocks(), our_ssrc);
            Ok(Received { ssrc: report.ssrc(), sender: Some(sender), about_us, bye: false })
        }
        ReceiverReport::PACKET_TYPE => {
            let report = ReceiverReport::parse(packet).map_err(|_| RtcpError::Malformed)?;
            let about_us = find_block(report.report_blocks(), our_ssrc);
            Ok(Received { ssrc: report.ssrc(), sender: None, about_us, bye: false })
        }
        _ => Err(RtcpError::NoReport),
    }
}

fn find_block<'a>(
    mut blocks: impl Iterator<Item = rtcp_types::ReportBlock<'a>>,
    our_ssrc: u32,
) -> Option<ReportBlock> {
    let block = blocks.find(|block| block.ssrc() == our_ssrc)?;
    let [b0, b1, b2, _] = (block.cumulative_lost() << 8).to_be_bytes();
    let reception = Reception {
        fraction_lost: block.fraction_lost(),
        // Shifting back down spreads the 24-bit number's sign.
        cumulative_lost: i32::from_be_bytes([b0, b1, b2, 0]) >> 8,
        extended_highest: block.extended_sequence_number(),
        jitter: block.interarrival_jitter(),
    };
    Some(ReportBlock {
        ssrc: block.ssrc(),
        reception,
        last_sr: block.last_sender_report_timestamp(),
        delay_since_last_sr: block.delay_since_last_sender_report_timestamp(),
    })
}

/// Round trip time from a block about us that arrived at `arrival` on the clock of our SRs.
///
/// `None`: the peer has had no SR from us yet, or its figures are impossible (a negative time, or
/// more than a minute). RFC 3550 §6.4.1, figure 2.
pub fn round_trip(arrival: NtpTime, block: &ReportBlock) -> Option<Duration> {
    if block.last_sr == 0 {
        return None;
    }
    let units = arrival.middle().wrapping_sub(block.last_sr).wrapping_sub(block.delay_since_last_sr);
    let round_trip = Duration::from_nanos((u64::from(units) * 1_000_000_000) >> 16);
    (round_trip <= Duration::from_secs(60)).then_some(round_trip)
}

/// `age` in 1/65536 s, at most what 32 bits hold (18 hours).
fn short_units(age: Duration) -> u32 {
    u32::try_from((age.as_nanos() << 16) / 1_000_000_000).unwrap_or(u32::MAX)
}

/// When the next report is due.
///
/// RFC 3550 §6.2 and §6.3 for a session of two: the bandwidth share of two members is always
/// below the 5 s minimum, so the interval is that minimum, half of it before the first report,
/// each times a random factor from 0.5 to 1.5. With two members there is nothing to reconsider
/// (§6.3.3), hence no compensating division by e - 3/2 either.
#[derive(Debug, Clone)]
pub struct Schedule {
    next: Instant,
    random: SplitMix64,
}

impl Schedule {
    /// A session that begins `now`. The same `seed` gives the same instants.
    pub fn new(now: Instant, seed: u64) -> Self {
        let mut schedule = Self { next: now, random: SplitMix64(seed) };
        schedule.next = now + schedule.randomise(INTERVAL_MIN / 2);
        schedule
    }

    /// When a report is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// True once per due report: the next one is then scheduled from `now`.
    pub fn poll(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.randomise(INTERVAL_MIN);
        true
    }

    /// `interval` times a factor from 0.5 to 1.5 (§6.3.1, item 4).
    fn randomise(&mut self, interval: Duration) -> Duration {
        let [high, low, ..] = self.random.bits().to_be_bytes();
        let factor = u32::from_be_bytes([0, 0, high, low]);
        interval / 2 + interval * factor / 65_536
    }
}

#[cfg(test)]
mod tests;
