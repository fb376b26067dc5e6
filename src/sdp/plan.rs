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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub srtp: Option<SrtpPlan>,
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
