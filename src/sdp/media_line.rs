//! One media line with its attributes: what we can read from it, and whether we can use it.

use std::net::{IpAddr, SocketAddr};

use sdp_types::{Attribute, Connection, Media, Session};

use super::crypto::{self, CryptoError, CryptoLine};
use super::error::OfferError;
use super::local::{LocalMedia, OfferKeys, OwnKeys};
use super::plan::{Codec, Direction, MediaPlan};
use crate::rtp::srtp::{MasterKey, SrtpPlan};

/// Packet time where nothing is said, ms (RFC 3551 §4.2).
pub(super) const PTIME_MS_DEFAULT: u8 = 20;
const PTIME_MS_MIN: u8 = 10;
const PTIME_MS_MAX: u8 = 60;

/// Telephone events as bits: 0-15 are the digits, 16 is flash, 36 is CNG (RFC 4733 §3.2, 4734).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Events(u64);

impl Events {
    const DIGITS: Self = Self(0xFFFF);
    /// Those we act on: 0-16 and 36.
    pub(super) const OURS: Self = Self(0x1_FFFF | 1 << 36);

    /// Reads `0-16,36`; what is no number or above 63 is left out.
    fn parse(list: &str) -> Self {
        let mut bits = 0;
        for item in list.split(',') {
            let (first, last) = item.trim().split_once('-').unwrap_or((item.trim(), item.trim()));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<u8>(), last.trim().parse::<u8>()) {
                (first..=last.min(63)).for_each(|event| bits |= 1_u64 << event);
            }
        }
        Self(bits)
    }
}

impl std::fmt::Display for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has = |event: u32| event < 64 && self.0 >> event & 1 == 1;
        let mut separator = "";
        let mut event = 0;
        while event < 64 {
            let first = event;
            while has(event) {
                event += 1;
            }
            match event - first {
                0 => event += 1,
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", event - 1)?,
            }
            if event > first && has(first) {
                separator = ",";
            }
        }
        Ok(())
    }
}

/// What an acceptable audio line comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) plan: MediaPlan,
    /// Events both sides know, when telephone-event is agreed.
    pub(super) events: Events,
    /// Tag of the `a=crypto` line that was taken.
    pub(super) crypto_tag: Option<u32>,
    /// Where our end is.
    pub(super) address: IpAddr,
}

/// What a media line is to us, and which keys of ours go with it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side<'a> {
    /// It is offered; our key is still to be chosen.
    Offer(OwnKeys<'a>),
    /// It answers our offer, which had these.
    Answer(&'a OfferKeys),
}

impl Side<'_> {
    /// Our key that goes with the peer's.
    fn own_key(self, theirs: &CryptoLine) -> Result<MasterKey, OfferError> {
        match self {
            Self::Offer(keys) => keys.for_answer(&theirs.key),
            Self::Answer(keys) => {
                keys.of_tag(theirs.tag).cloned().ok_or(OfferError::Crypto(CryptoError::Suite))
            }
        }
    }
}

/// Judges one media line against what we have.
pub(super) fn accept(
    session: &Session,
    media: &Media,
    local: &LocalMedia,
    side: Side<'_>,
) -> Result<Accepted, OfferError> {
    if media.media != "audio" || media.port == 0 {
        return Err(OfferError::NoAudio);
    }
    let crypto = crypto_line(media, local, side)?;
    let (remote, address) = addresses(connection(session, media)?, local)?;
    let (codec, payload_type) = choose_codec(media, &local.codecs).ok_or(OfferError::NoCommonCodec)?;
    let (dtmf_payload_type, events) = match telephone_event(media, payload_type) {
        Some((payload_type, events)) if local.dtmf => (Some(payload_type), events),
        _ => (None, Events(0)),
    };
    let mut theirs = direction(session, media);
    // RFC 3264 §8.4: 0.0.0.0, the older form of hold: nothing is to be sent there.
    theirs.receive &= remote.is_some();
    let ours = theirs.reversed();
    let remote_rtp = remote.map(|ip| SocketAddr::new(ip, media.port));
    let crypto_tag = crypto.as_ref().map(|line| line.tag);
    let keys = |line: CryptoLine| Ok(SrtpPlan { send: side.own_key(&line)?, receive: line.key });
    let plan = MediaPlan {
        remote_rtp,
        remote_rtcp: remote_rtp.and_then(|rtp| remote_rtcp(media, rtp)),
        codec,
        payload_type,
        dtmf_payload_type,
        ptime_ms: ptime_ms(session, media),
        send: ours.send,
        receive: ours.receive,
        nat: local.nat,
        srtp: crypto.map(keys).transpose()?.map(Box::new),
    };
    Ok(Accepted { plan, events, crypto_tag, address })
}

/// True for audio under SRTP.
pub(super) fn is_secured(media: &Media) -> bool {
    media.proto.eq_ignore_ascii_case("RTP/SAVP")
}

/// Judges the transport: the peer's key, or `None` for plain RTP.
fn crypto_line(media: &Media, local: &LocalMedia, side: Side<'_>) -> Result<Option<CryptoLine>, OfferError> {
    let secured = is_secured(media);
    if !secured && !media.proto.eq_ignore_ascii_case("RTP/AVP") {
        return Err(OfferError::Transport);
    }
    match side {
        Side::Offer(_) if secured && !local.srtp.allowed => return Err(OfferError::SrtpOverPlain),
        Side::Offer(_) if !secured && local.srtp.required => return Err(OfferError::SrtpRequired),
        Side::Answer(keys) if secured == keys.is_plain() => return Err(OfferError::AnswerTransport),
        Side::Offer(_) | Side::Answer(_) => {}
    }
    if !secured {
        return Ok(None);
    }
    let fits = |tag: u32, suite| match side {
        Side::Offer(_) => local.srtp.suites.contains(&suite),
        // RFC 4568 §5.1.3: tag and suite of one line that we offered.
        Side::Answer(keys) => keys.of_tag(tag).is_some_and(|key| key.suite() == suite),
    };
    crypto::find(media, fits).map(Some).map_err(OfferError::Crypto)
}

/// The media line's `c=`, else the session's (RFC 8866 §5.7).
fn connection<'a>(session: &'a Session, media: &'a Media) -> Result<&'a Connection, OfferError> {
    media.connections.first().or(session.connection.as_ref()).ok_or(OfferError::Address)
}

/// Where to send, `None` for 0.0.0.0 and `::`, and our address of that family.
fn addresses(connection: &Connection, local: &LocalMedia) -> Result<(Option<IpAddr>, IpAddr), OfferError> {
    let ip: IpAddr = connection.connection_address.trim().parse().map_err(|_| OfferError::Address)?;
    let ours = local.addresses.of_family(ip);
    if ip.is_unspecified() {
        return Ok((None, ours.unwrap_or(local.addresses.first())));
    }
    let families = if ip.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    let ours = ours.ok_or(OfferError::Family { theirs: families.0, ours: families.1 })?;
    is_sendable(ip, ours).then_some((Some(ip), ours)).ok_or(OfferError::Address)
}

/// One host, and of the family our socket has.
fn is_sendable(ip: IpAddr, local: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    ip.is_ipv4() == local.is_ipv4() && !ip.is_multicast() && !broadcast && !ip.is_unspecified()
}

/// The first format of the line that we have, in the offerer's order (RFC 3264 §6.1).
fn choose_codec(media: &Media, codecs: &[Codec]) -> Option<(Codec, u8)> {
    payload_types(media).find_map(|payload_type| {
        let codec = *codecs.iter().find(|codec| match rtpmap(media, payload_type) {
            Some((name, rate)) => name.eq_ignore_ascii_case(codec.encoding_name()) && rate == 8000,
            None => codec.static_payload_type() == payload_type,
        })?;
        Some((codec, payload_type))
    })
}

/// Payload type and common events of `telephone-event/8000` (RFC 4733), if digits are among them.
fn telephone_event(media: &Media, audio: u8) -> Option<(u8, Events)> {
    let payload_type = payload_types(media).find(|&payload_type| {
        payload_type != audio
            && rtpmap(media, payload_type)
                .is_some_and(|(name, rate)| name.eq_ignore_ascii_case("telephone-event") && rate == 8000)
    })?;
    // RFC 4733 §2.4.1: without a list it is the digits.
    let theirs = fmtp(media, payload_type).map_or(Events::DIGITS, Events::parse);
    let events = Events(theirs.0 & Events::OURS.0);
    (events.0 & Events::DIGITS.0 != 0).then_some((payload_type, events))
}

fn payload_types(media: &Media) -> impl Iterator<Item = u8> {
    media
        .fmt
        .split_ascii_whitespace()
        .filter_map(|fmt| fmt.parse().ok())
        .filter(|&payload_type| payload_type < 128)
}

/// Encoding name and clock rate of `a=rtpmap:<payload type> <name>/<rate>[/<channels>]`; more
/// than one channel is never ours, so that it reads as rate 0.
fn rtpmap(media: &Media, payload_type: u8) -> Option<(&str, u32)> {
    let value = attribute_for(media, "rtpmap", payload_type)?;
    let mut parts = value.trim().split('/');
    let name = parts.next()?;
    let rate = parts.next().and_then(|rate| rate.trim().parse().ok()).unwrap_or(0);
    match parts.next() {
        None | Some("1") => Some((name, rate)),
        Some(_) => Some((name, 0)),
    }
}

fn fmtp(media: &Media, payload_type: u8) -> Option<&str> {
    attribute_for(media, "fmtp", payload_type)
}

/// The rest of `a=<name>:<payload type> <rest>`.
fn attribute_for<'a>(media: &'a Media, name: &str, payload_type: u8) -> Option<&'a str> {
    media.attributes.iter().filter(|attribute| attribute.attribute == name).find_map(|attribute| {
        let (number, rest) = attribute.value.as_deref()?.trim_start().split_once(' ')?;
        (number.parse() == Ok(payload_type)).then_some(rest)
    })
}

fn direction(session: &Session, media: &Media) -> Direction {
    let find = |attributes: &[Attribute]| {
        attributes.iter().find_map(|attribute| Direction::parse(&attribute.attribute))
    };
    find(&media.attributes).or_else(|| find(&session.attributes)).unwrap_or(Direction::BOTH)
}

/// Packet time to send with: theirs (or 20 ms) within `a=maxptime`, cut to a multiple of 10 from
/// 10 to 60 (RFC 8866 §6.4, §6.5).
fn ptime_ms(session: &Session, media: &Media) -> u8 {
    let number = |name: &str| {
        let all = media.attributes.iter().chain(&session.attributes);
        let value = all.filter(|attribute| attribute.attribute == name).find_map(|a| a.value.as_deref())?;
        let digits = value.trim().split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok().filter(|&ms| ms > 0)
    };
    let ms = number("ptime").unwrap_or(PTIME_MS_DEFAULT.into());
    let ms = number("maxptime").map_or(ms, |max| ms.min(max));
    let ms = u8::try_from(ms).unwrap_or(u8::MAX).clamp(PTIME_MS_MIN, PTIME_MS_MAX);
    ms / 10 * 10
}

/// RTP's port + 1, or `a=rtcp:<port> [IN IP4 <address>]` (RFC 3605).
fn remote_rtcp(media: &Media, rtp: SocketAddr) -> Option<SocketAddr> {
    let next = || rtp.port().checked_add(1).map(|port| SocketAddr::new(rtp.ip(), port));
    let value = media.attributes.iter().find(|a| a.attribute == "rtcp").and_then(|a| a.value.as_deref());
    let Some(value) = value else { return next() };
    let mut words = value.split_ascii_whitespace();
    let Some(port) = words.next().and_then(|port| port.parse().ok()).filter(|&port| port != 0) else {
        return next();
    };
    let ip = words.nth(2).and_then(|word| word.parse().ok()).filter(|&ip| is_sendable(ip, rtp.ip()));
    Some(SocketAddr::new(ip.unwrap_or(rtp.ip()), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: event lists are read and written as RFC 4733 §2.4.1 has them. Method: round trips.
    #[test]
    fn event_lists_round_trip() {
        assert_eq!(Events::OURS.to_string(), "0-16,36");
        assert_eq!(Events::parse("0-16,36"), Events::OURS);
        assert_eq!(Events::parse("0-15,66,70-255").to_string(), "0-15");
        assert_eq!(Events::parse(" 1, 3 - 4,9-7,x,63").to_string(), "1,3-4,63");
        assert_eq!(Events::parse("").to_string(), "");
    }
}
