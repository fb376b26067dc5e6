//! Packets that go on: back to their sender (echo) or to the other leg of a bridge.
//!
//! A relayed packet becomes one of our own stream: our SSRC and payload types, sequence and timestamp
//! moved by constants, so that gaps and order stay what they were. The constants are chosen anew for
//! each source, so that our numbers go on where they stood (RFC 3550 §7.1: a mixer's, not a
//! translator's, way, for RTCP ends at each leg).

use std::net::SocketAddr;
use std::time::Instant;

use super::Leg;
use super::receive::Kind;
use crate::media::g711;
use crate::media::order::{Codec, LegMode};
use crate::rtp::packet::{HEADER_BYTES, RtpHeader, RtpTimestamp, SeqNo};

/// An accepted packet, plain, and what the leg that sends it on must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub(super) kind: Kind,
    pub(super) codec: Codec,
    pub(super) header: RtpHeader,
    /// Where the payload begins and ends.
    pub(super) payload: (usize, usize),
    /// Bytes of the plain packet.
    pub(super) len: usize,
    /// No packet of the source was further on.
    pub(super) newest: bool,
    /// The first of its source.
    pub(super) restarted: bool,
}

/// How a relayed packet's numbers differ from the received one's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offsets {
    pub(super) sequence: u16,
    pub(super) timestamp: u32,
}

impl Leg {
    /// From now on what this leg hears goes to another leg, and what that one hears goes out here.
    /// Prompts end, without an event.
    pub fn bridge(&mut self) {
        self.stop_play();
        self.set_mode(LegMode::Bridged);
    }

    /// Makes an accepted packet ours, in place, and says where it goes. `bytes` is its datagram and
    /// the room behind it. `None`, which is counted: we may not send, know no address, or have agreed
    /// on no payload type for it.
    pub fn relay(&mut self, now: Instant, heard: &Heard, bytes: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let relayed = self.rewrite(heard, bytes).and_then(|(timestamp, to)| {
            let len = self.protect_rtp(bytes, heard.len)?;
            if heard.newest {
                self.reporter.note_sent(now, timestamp);
            }
            Some((len, to))
        });
        if relayed.is_some() {
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += (heard.payload.1 - heard.payload.0) as u64;
        } else {
            self.stats.relay_dropped += 1;
        }
        relayed
    }

    fn rewrite(&mut self, heard: &Heard, bytes: &mut [u8]) -> Option<(RtpTimestamp, SocketAddr)> {
        let media = self.media.as_ref()?;
        if !media.send || self.closing {
            return None;
        }
        let to = self.receiver.latched().or(media.remote_rtp)?;
        let payload_type = match heard.kind {
            Kind::Audio => media.payload_type,
            Kind::Event => media.dtmf_payload_type?,
            Kind::ComfortNoise => heard.header.payload_type,
        };
        let sender = &mut self.sender;
        if heard.restarted {
            sender.offsets = None;
        }
        let marker = heard.header.marker || sender.offsets.is_none();
        let offsets = *sender.offsets.get_or_insert_with(|| Offsets {
            sequence: sender.sequence.since(heard.header.sequence),
            timestamp: sender.timestamp.since(heard.header.timestamp),
        });
        let sequence = SeqNo(heard.header.sequence.0.wrapping_add(offsets.sequence));
        let timestamp = RtpTimestamp(heard.header.timestamp.0.wrapping_add(offsets.timestamp));
        // Never back: a leg that goes on from another process keeps clear of what that one sent.
        if heard.newest && sequence.since(sender.sequence) < 0x8000 {
            sender.sequence = sequence.plus(1);
        }
        // The first byte stays: version, padding, extension and CSRC count are the packet's own.
        let fields = bytes.get_mut(1..HEADER_BYTES)?;
        fields[0] = u8::from(marker) << 7 | payload_type & 0x7F;
        fields[1..3].copy_from_slice(&sequence.0.to_be_bytes());
        fields[3..7].copy_from_slice(&timestamp.0.to_be_bytes());
        fields[7..].copy_from_slice(&sender.ssrc.to_be_bytes());
        if heard.kind == Kind::Audio && heard.codec != media.codec {
            g711::translate(heard.codec, bytes.get_mut(heard.payload.0..heard.payload.1)?);
        }
        Some((timestamp, to))
    }
}
