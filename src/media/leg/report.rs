//! RTCP of one leg: SR or RR with SDES, and BYE (RFC 3550 §6).

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use super::Leg;
use crate::base::limits::SAMPLE_RATE_HZ;
use crate::rtp::packet::RtpTimestamp;
use crate::rtp::rtcp::{self, NtpTime, Report, ReportBlock, Schedule, SenderInfo};
use crate::rtp::sequence::clock_units;

/// What we report and what was reported to us.
#[derive(Debug)]
pub(super) struct Reporter {
    opened: Instant,
    /// Calendar time at `opened`.
    wall: NtpTime,
    cname: Box<str>,
    schedule: Schedule,
    /// RTP packets sent at the last report and the one before it: SR while they differ (§6.4).
    sent: [u64; 2],
    /// Packets heard at the last report: a block only for news.
    heard: u64,
    /// The peer's last SR: its NTP time's middle and its arrival.
    last_sr: Option<(u32, Instant)>,
    /// Our RTP timestamp at an instant.
    anchor: (RtpTimestamp, Instant),
    /// A report went out.
    reported: bool,
    bye: Bye,
}

/// The end of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bye {
    /// The leg lives.
    No,
    /// It was closed and has not said so.
    Due,
    /// Said.
    Sent,
}

impl Reporter {
    pub(super) fn new(now: Instant, wall: SystemTime, cname: String, ssrc: u32) -> Self {
        Self {
            opened: now,
            wall: wall.into(),
            cname: cname.into_boxed_str(),
            schedule: Schedule::new(now, ssrc.into()),
            sent: [0; 2],
            heard: 0,
            last_sr: None,
            anchor: (RtpTimestamp(0), now),
            reported: false,
            bye: Bye::No,
        }
    }

    pub(super) fn close(&mut self) {
        if self.bye == Bye::No {
            self.bye = Bye::Due;
        }
    }

    /// A packet stamped `timestamp` leaves `now`.
    pub(super) fn note_sent(&mut self, now: Instant, timestamp: RtpTimestamp) {
        self.anchor = (timestamp, now);
    }

    fn ntp(&self, now: Instant) -> NtpTime {
        self.wall.plus(now.saturating_duration_since(self.opened))
    }
}

impl Leg {
    /// Whether [`Self::poll_rtcp`] has something to say; cheaper than to ask for it.
    pub fn is_rtcp_due(&self, now: Instant) -> bool {
        self.reporter.bye == Bye::Due
            || (self.reporter.bye == Bye::No && self.reporter.schedule.next() <= now)
    }

    /// The report that is due, written to `buf`: its length and destination. After `close` one
    /// more, with BYE.
    pub fn poll_rtcp(&mut self, now: Instant, buf: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let bye = self.reporter.bye == Bye::Due;
        if self.reporter.bye == Bye::Sent || !(bye || self.reporter.schedule.poll(now)) {
            return None;
        }
        let unheard_of = self.stats.tx_packets == 0 && !self.reporter.reported;
        if bye {
            self.reporter.bye = Bye::Sent;
            if unheard_of {
                return None; // RFC 3550 §6.3.7: who never sent anything must not say BYE.
            }
        }
        let to = self.rtcp_destination()?;
        self.reporter.reported = true;
        let tx_packets = self.stats.tx_packets;
        let sender = (tx_packets != self.reporter.sent[1]).then(|| self.sender_info(now));
        self.reporter.sent = [tx_packets, self.reporter.sent[0]];
        let block = self.report_block(now);
        let cname = &self.reporter.cname;
        let report = Report { ssrc: self.sender.ssrc, sender, block, cname, bye };
        let len = report.write(buf)?;
        Some((self.protect_rtcp(buf, len)?, to))
    }

    /// Takes one datagram from the RTCP socket, decrypting it in place; what is not from the peer or
    /// malformed is counted.
    pub fn handle_rtcp(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let Some(media) = &self.media else { return };
        let from_peer = match self.receiver.latched() {
            Some(latched) => from.ip() == latched.ip(),
            None => media.remote_rtcp == Some(from),
        };
        if !from_peer {
            self.stats.source_filtered += 1;
            return;
        }
        let Some(plain) = self.unprotect_rtcp(datagram) else { return };
        let Ok(received) = rtcp::read(plain, self.sender.ssrc) else {
            // An APP or BYE on its own, as some phones send it, tells nothing and is no harm (RFC 5506).
            self.stats.invalid += u64::from(!rtcp::is_plain(plain));
            return;
        };
        if let Some(sender) = received.sender {
            self.reporter.last_sr = Some((sender.ntp.middle(), now));
        }
        if let Some(block) = received.about_us {
            self.stats.remote_fraction_lost = block.reception.fraction_lost;
            let round_trip = rtcp::round_trip(self.reporter.ntp(now), &block);
            let micros = round_trip.and_then(|time| u32::try_from(time.as_micros()).ok());
            self.stats.rtt_us = micros.or(self.stats.rtt_us);
        }
    }

    /// Where RTCP goes. A peer behind a NAT is only reachable beside where its RTP comes from.
    fn rtcp_destination(&self) -> Option<SocketAddr> {
        let media = self.media.as_ref()?;
        match self.receiver.latched().filter(|latched| media.remote_rtp != Some(*latched)) {
            Some(latched) => Some(SocketAddr::new(latched.ip(), latched.port().checked_add(1)?)),
            None => media.remote_rtcp,
        }
    }

    fn sender_info(&self, now: Instant) -> SenderInfo {
        let (timestamp, at) = self.reporter.anchor;
        let since = clock_units(now.saturating_duration_since(at), SAMPLE_RATE_HZ);
        #[expect(clippy::cast_possible_truncation, reason = "both counts wrap at 32 bits (§6.4.1)")]
        SenderInfo {
            ntp: self.reporter.ntp(now),
            rtp: timestamp.plus(since.0),
            packets: self.stats.tx_packets as u32,
            octets: self.stats.tx_bytes as u32,
        }
    }

    fn report_block(&mut self, now: Instant) -> Option<ReportBlock> {
        let heard = std::mem::replace(&mut self.reporter.heard, self.stats.rx_packets);
        let last: Option<(u32, Duration)> =
            self.reporter.last_sr.map(|(middle, at)| (middle, now.saturating_duration_since(at)));
        let (ssrc, state) = self.receiver.source()?;
        if heard == self.stats.rx_packets || !state.is_valid() {
            return None;
        }
        let block = ReportBlock { ssrc, reception: state.report(), last_sr: 0, delay_since_last_sr: 0 };
        Some(block.with_last_sr(last))
    }
}
