//! What offer and answer come to: the part of an order to a media shard that SDP decides.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::rtp::srtp::SrtpPlan;

/// A codec the node itself encodes and decodes. One byte is one sample, 8000 a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Codec {
    /// G.711 µ-law, RTP payload type 0 (RFC 3551 §4.5.14).
    Pcmu,
    /// G.711 A-law, RTP payload type 8 (RFC 3551 §4.5.14).
    Pcma,
}

/// What offer and answer agreed on for one leg, seen from our side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaPlan {
    /// Where RTP goes. `None`: nowhere (`c=0.0.0.0`, the old form of hold).
    pub remote_rtp: Option<SocketAddr>,
    /// Where RTCP goes: port + 1 or `a=rtcp` (RFC 3605).
    pub remote_rtcp: Option<SocketAddr>,
    /// The codec of both directions.
    pub codec: Codec,
    /// Its payload type on the wire.
    pub payload_type: u8,
    /// Payload type of telephone-event (RFC 4733), if agreed.
    pub dtmf_payload_type: Option<u8>,
    /// Packet time of what we send, ms: a multiple of 10 from 10 to 60.
    pub ptime_ms: u8,
    /// We may send (our direction is sendrecv or sendonly).
    pub send: bool,
    /// The peer may send (our direction is sendrecv or recvonly).
    pub receive: bool,
    /// The peer is behind a NAT, and this is where its signalling comes from: a first packet from
    /// there, whatever its port, is latched onto, as one from `remote_rtp` is.
    pub nat: Option<IpAddr>,
    /// Both directions are protected with these keys (RTP/SAVP). `None`: plain RTP and RTCP.
    pub srtp: Option<Box<SrtpPlan>>,
}

/// Direction attributes (RFC 8866 §6.7), from the side that writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// It sends.
    pub send: bool,
    /// It receives.
    pub receive: bool,
}

impl Direction {
    /// `sendrecv`.
    pub const BOTH: Self = Self { send: true, receive: true };

    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "sendrecv" => Some(Self::BOTH),
            "sendonly" => Some(Self { send: true, receive: false }),
            "recvonly" => Some(Self { send: false, receive: true }),
            "inactive" => Some(Self { send: false, receive: false }),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match (self.send, self.receive) {
            (true, true) => "sendrecv",
            (true, false) => "sendonly",
            (false, true) => "recvonly",
            (false, false) => "inactive",
        }
    }

    /// The same stream from the other side (RFC 3264 §6.1).
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { send: self.receive, receive: self.send }
    }
}

impl MediaPlan {
    /// Our direction.
    pub fn direction(&self) -> Direction {
        Direction { send: self.send, receive: self.receive }
    }

    /// Takes away what `ours` has not.
    pub fn restrict(&mut self, ours: Direction) {
        self.send &= ours.send;
        self.receive &= ours.receive;
    }
}

impl Codec {
    /// Encoding name in `a=rtpmap` (RFC 3551 §6).
    pub fn encoding_name(self) -> &'static str {
        match self {
            Self::Pcmu => "PCMU",
            Self::Pcma => "PCMA",
        }
    }

    /// The payload type RFC 3551 §6 assigns.
    pub fn static_payload_type(self) -> u8 {
        match self {
            Self::Pcmu => 0,
            Self::Pcma => 8,
        }
    }
}
