//! Writing our descriptions, with an origin that tells the peer when something changed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use bytes::Bytes;
use sdp_types::{Connection, Media, Session, Time};
use serde::{Deserialize, Serialize};

use super::answer::{Negotiated, audio_line, secure};
use super::local::{LocalMedia, OfferKeys};
use super::media_line::{Events, PTIME_MS_DEFAULT};
use super::plan::Direction;

/// Payload type of telephone-event in our offers: the one most equipment uses.
const DTMF_PAYLOAD_TYPE: u8 = 101;

/// Our `o=` line through the life of one dialog.
///
/// The version grows by one when a description differs from the one before and stays otherwise
/// (RFC 3264 §8), so that a session refresh is recognised as one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Origin {
    session_id: u64,
    version: u64,
    /// Tells the latest description from another one.
    last: Option<u64>,
}

impl Origin {
    /// A dialog's first description; `session_id` is unique among ours (RFC 8866 §5.2 suggests
    /// the time).
    pub fn new(session_id: u64) -> Self {
        // Some peers read both numbers into signed 64 bits; RFC 3264 §5 asks for the same.
        let session_id = session_id >> 1;
        Self { session_id, version: session_id >> 1, last: None }
    }

    /// The answer, once the media shard has named its RTP port.
    pub fn answer(&mut self, negotiated: &Negotiated, rtp_port: u16) -> Bytes {
        self.write(negotiated.address(), negotiated.times(), negotiated.medias(rtp_port))
    }

    /// An offer of all we have: for an INVITE that came without one, and for a session refresh.
    /// RTP/SAVP if there are `keys`.
    pub fn offer(
        &mut self,
        local: &LocalMedia,
        keys: &OfferKeys,
        rtp_port: u16,
        direction: Direction,
    ) -> Bytes {
        let codecs: Vec<_> = local.codecs.iter().map(|&codec| (codec, codec.static_payload_type())).collect();
        let dtmf = local.dtmf.then_some((DTMF_PAYLOAD_TYPE, Events::OURS));
        let mut media = audio_line(rtp_port, &codecs, dtmf, PTIME_MS_DEFAULT, direction);
        secure(&mut media, keys.tagged());
        self.write(local.addresses.first(), vec![Time::new(0, 0)], vec![media])
    }

    fn write(&mut self, address: IpAddr, times: Vec<Time>, medias: Vec<Media>) -> Bytes {
        let origin = sdp_types::Origin::with_ip_addr(self.session_id, self.version, address);
        let mut session = Session::new(origin, "-");
        session.connection = Some(Connection::from_ip_addr(address));
        session.times = times;
        session.medias = medias;
        let mut body = session.to_string();
        if self.last.is_some_and(|last| last != digest(&body)) {
            self.version += 1;
            session.origin.sess_version = self.version;
            body = session.to_string();
        }
        self.last = Some(digest(&body));
        body.into()
    }
}

fn digest(body: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}
