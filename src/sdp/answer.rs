//! Choosing from an offer, and reading an answer (RFC 3264 §6, §7).

use std::net::IpAddr;

use sdp_types::{Attribute, Media, Time};

use super::crypto;
use super::description::{Description, parse};
use super::error::OfferError;
use super::local::{LocalMedia, OfferKeys, OwnKeys};
use super::media_line::{Accepted, Events, Side, accept, is_secured};
use super::plan::{Codec, Direction, MediaPlan};
use crate::rtp::srtp::MasterKey;

/// An offer that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    accepted: Accepted,
    /// Index of the accepted media line.
    index: usize,
    /// The offered media lines, reduced to what their rejection repeats.
    offered: Vec<Media>,
    times: Vec<Time>,
}

/// Takes the first audio line that we can serve: of those under SRTP, if any, else of the others.
///
/// # Errors
/// 488 when there is none; the error explains the line that came closest. 500 without random
/// numbers for a key.
pub fn negotiate(
    offer: &Description,
    local: &LocalMedia,
    keys: OwnKeys<'_>,
) -> Result<Negotiated, OfferError> {
    let session = &offer.session;
    let lines = || session.medias.iter().enumerate();
    let secured = lines().filter(|(_, media)| is_secured(media));
    let others = lines().filter(|(_, media)| !is_secured(media));
    let mut refused = OfferError::NoAudio;
    for (index, media) in secured.chain(others) {
        match accept(session, media, local, Side::Offer(keys)) {
            Ok(accepted) => {
                return Ok(Negotiated {
                    accepted,
                    index,
                    offered: session.medias.iter().map(reduced).collect(),
                    // RFC 3264 §6: the answer's t= equals the offer's.
                    times: session.times.iter().map(|t| Time::new(t.start_time, t.stop_time)).collect(),
                });
            }
            Err(error) if error.rank() > refused.rank() => refused = error,
            Err(_) => {}
        }
    }
    Err(refused)
}

/// Reads the answer to an offer made with [`super::Origin::offer`] and the same `local` and `keys`.
///
/// # Errors
/// 400 for syntax, 488 when our one media line was rejected or answered with what we did not
/// offer. Either ends the dialog with ACK and BYE (RFC 3261 §13.2.2.4).
pub fn read_answer(local: &LocalMedia, keys: &OfferKeys, body: &[u8]) -> Result<MediaPlan, OfferError> {
    let answer = parse(body)?;
    // RFC 3264 §6: answers have the offer's media lines, in order; ours had one.
    let media = answer.session.medias.first().ok_or(OfferError::NoAudio)?;
    Ok(accept(&answer.session, media, local, Side::Answer(keys))?.plan)
}

impl Negotiated {
    /// What the media shard needs.
    pub fn plan(&self) -> &MediaPlan {
        &self.accepted.plan
    }

    /// Answers with less than could be agreed on: `ours` is the most that we send and receive.
    pub fn restrict(&mut self, ours: Direction) {
        self.accepted.plan.restrict(ours);
    }

    /// Where our media socket must be.
    pub fn address(&self) -> IpAddr {
        self.accepted.address
    }

    /// Every offered line in order (RFC 3264 §6): ours accepted, the others with port 0.
    pub(super) fn medias(&self, rtp_port: u16) -> Vec<Media> {
        let mut medias = self.offered.clone();
        if let Some(media) = medias.get_mut(self.index) {
            let plan = &self.accepted.plan;
            let dtmf = plan.dtmf_payload_type.map(|payload_type| (payload_type, self.accepted.events));
            let codec = (plan.codec, plan.payload_type);
            *media = audio_line(rtp_port, &[codec], dtmf, plan.ptime_ms, plan.direction());
            // RFC 4568 §5.1.2: the tag and suite of the line that was taken, and a key of ours.
            let own = plan.srtp.as_ref().map(|srtp| &srtp.send);
            secure(media, self.accepted.crypto_tag.zip(own));
        }
        medias
    }

    pub(super) fn times(&self) -> Vec<Time> {
        self.times.clone()
    }
}

/// A rejected line: media, transport and formats repeated, port 0 (RFC 3264 §6).
fn reduced(media: &Media) -> Media {
    Media {
        media: media.media.clone(),
        port: 0,
        num_ports: None,
        proto: media.proto.clone(),
        fmt: media.fmt.clone(),
        media_title: None,
        connections: Vec::new(),
        bandwidths: Vec::new(),
        key: None,
        attributes: Vec::new(),
    }
}

/// An audio line of ours.
pub(super) fn audio_line(
    rtp_port: u16,
    codecs: &[(Codec, u8)],
    dtmf: Option<(u8, Events)>,
    ptime_ms: u8,
    direction: Direction,
) -> Media {
    let mut formats: Vec<String> = Vec::new();
    let mut attributes = Vec::new();
    for (codec, payload_type) in codecs {
        formats.push(payload_type.to_string());
        let map = format!("{payload_type} {}/8000", codec.encoding_name());
        attributes.push(Attribute::with_value("rtpmap", map));
    }
    if let Some((payload_type, events)) = dtmf {
        formats.push(payload_type.to_string());
        attributes.push(Attribute::with_value("rtpmap", format!("{payload_type} telephone-event/8000")));
        attributes.push(Attribute::with_value("fmtp", format!("{payload_type} {events}")));
    }
    attributes.push(Attribute::with_value("ptime", ptime_ms));
    attributes.push(Attribute::new(direction.name()));
    let mut media = Media::new(
        sdp_types::MediaType::Audio,
        rtp_port,
        sdp_types::TransportProto::RtpAvp,
        formats.join(" "),
    );
    media.attributes = attributes;
    media
}

/// Makes a plain audio line one of SRTP, if there are keys, each with its tag.
pub(super) fn secure<'a>(media: &mut Media, keys: impl IntoIterator<Item = (u32, &'a MasterKey)>) {
    for (tag, key) in keys {
        media.proto = "RTP/SAVP".to_owned();
        media.attributes.push(Attribute::with_value("crypto", crypto::write(tag, key)));
    }
}

#[cfg(test)]
mod tests;
