//! The little SDP a G.711 caller needs (RFC 4566, RFC 3264).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::media::g711::Codec;
use crate::sip::sdes::{Crypto, CryptoLine};

/// Direction attribute of a stream (RFC 3264 §5.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// Both ways.
    #[default]
    SendRecv,
    /// The writer of the description only sends.
    SendOnly,
    /// The writer only receives.
    RecvOnly,
    /// Nothing flows.
    Inactive,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::SendRecv => "sendrecv",
            Self::SendOnly => "sendonly",
            Self::RecvOnly => "recvonly",
            Self::Inactive => "inactive",
        }
    }

    /// What the answerer writes to this direction when it would like both ways.
    pub fn answered(self) -> Self {
        match self {
            Self::SendRecv => Self::SendRecv,
            Self::SendOnly => Self::RecvOnly,
            Self::RecvOnly => Self::SendOnly,
            Self::Inactive => Self::Inactive,
        }
    }
}

/// Our description.
#[derive(Debug, Clone)]
pub struct Local {
    /// Where we receive.
    pub address: IpAddr,
    /// Even RTP port.
    pub port: u16,
    /// Voice codecs in order of preference.
    pub codecs: Vec<Codec>,
    /// Offer telephone-event as payload type 101.
    pub dtmf: bool,
    /// Direction of the one stream.
    pub direction: Direction,
    /// `o=` version, one more at each change.
    pub version: u64,
    /// Write `c=IN IP4 0.0.0.0`, the old form of hold (RFC 2543 B.5).
    pub null_address: bool,
    /// SRTP: profile and keys.
    pub crypto: Crypto,
}

impl Local {
    /// The description as text.
    pub fn render(&self) -> String {
        let family = if self.address.is_ipv4() { "IP4" } else { "IP6" };
        let connection = if self.null_address { "0.0.0.0".to_owned() } else { self.address.to_string() };
        let mut types: Vec<String> =
            self.codecs.iter().map(|codec| codec.payload_type().to_string()).collect();
        types.extend(self.dtmf.then(|| "101".to_owned()));
        let mut text = format!(
            "v=0\r\no=voxperf 1 {} IN {family} {}\r\ns=voxperf\r\nc=IN {family} {connection}\r\nt=0 0\r\n\
             m=audio {} RTP/{} {}\r\n",
            self.version,
            self.address,
            self.port,
            if self.crypto.savp { "SAVP" } else { "AVP" },
            types.join(" ")
        );
        for line in &self.crypto.lines {
            text.push_str(&format!("a=crypto:{}\r\n", line.render()));
        }
        for codec in &self.codecs {
            text.push_str(&format!("a=rtpmap:{} {}/8000\r\n", codec.payload_type(), codec.name()));
        }
        if self.dtmf {
            text.push_str("a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\n");
        }
        text.push_str(&format!("a=ptime:20\r\na={}\r\n", self.direction.name()));
        text
    }
}

/// What the far side's description says about its audio stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where our RTP goes; `None` on hold by null address or a rejected stream.
    pub rtp: Option<SocketAddr>,
    /// First voice codec both know.
    pub codec: Codec,
    /// Payload type of telephone-event.
    pub dtmf_payload_type: Option<u8>,
    /// Written by the far side, from its view.
    pub direction: Direction,
    /// SRTP: profile and keys.
    pub crypto: Crypto,
}

/// Reads an offer or answer.
///
/// # Errors
/// No text, no audio stream, no address, or no G.711.
pub fn read(body: &[u8]) -> Result<Remote> {
    let text = std::str::from_utf8(body).context("the SDP is no UTF-8")?;
    let (mut address, mut audio, mut in_audio) = (None, None, false);
    let (mut direction, mut dtmf_payload_type) = (Direction::SendRecv, None);
    let mut crypto = Crypto::default();
    for line in text.lines() {
        let Some((kind, value)) = line.trim_end().split_once('=') else { continue };
        match kind {
            "m" => {
                in_audio = audio.is_none() && value.starts_with("audio ");
                if in_audio {
                    audio = Some(value.to_owned());
                }
            }
            "c" if in_audio || audio.is_none() => {
                address = value.split_ascii_whitespace().nth(2).and_then(|ip| ip.parse::<IpAddr>().ok());
            }
            "a" if in_audio || audio.is_none() => {
                direction = match value {
                    "sendrecv" => Direction::SendRecv,
                    "sendonly" => Direction::SendOnly,
                    "recvonly" => Direction::RecvOnly,
                    "inactive" => Direction::Inactive,
                    _ => direction,
                };
                dtmf_payload_type = dtmf_payload_type.or_else(|| telephone_event(value));
                match value.strip_prefix("crypto:").filter(|_| in_audio).map(CryptoLine::parse) {
                    Some(Ok(line)) => crypto.lines.push(line),
                    Some(Err(error)) => crypto.unreadable = Some(format!("{error:#}")),
                    None => {}
                }
            }
            _ => {}
        }
    }
    let audio = audio.context("the SDP has no audio stream")?;
    let mut fields = audio.split_ascii_whitespace().skip(1);
    let port: u16 =
        fields.next().and_then(|port| port.parse().ok()).context("the audio stream has no port")?;
    crypto.savp = fields.next() == Some("RTP/SAVP");
    let codec = fields
        .filter_map(|payload_type| payload_type.parse().ok())
        .find_map(Codec::from_payload_type)
        .context("the SDP has neither PCMU nor PCMA")?;
    let address = address.context("the SDP has no address")?;
    let rtp = (port != 0 && !address.is_unspecified()).then(|| SocketAddr::new(address, port));
    Ok(Remote { rtp, codec, dtmf_payload_type, direction, crypto })
}

/// The payload type in `rtpmap:101 telephone-event/8000`.
fn telephone_event(attribute: &str) -> Option<u8> {
    let (payload_type, encoding) = attribute.strip_prefix("rtpmap:")?.split_once(' ')?;
    encoding.trim_start().to_ascii_lowercase().starts_with("telephone-event/8000").then_some(())?;
    payload_type.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::sdes::{Suite, Wish};

    /// Goal: our own description reads back with every choice in it.
    /// Method: render on hold with DTMF, read.
    #[test]
    fn our_description_reads_back() {
        let mut local = Local {
            address: IpAddr::from([127, 0, 0, 1]),
            port: 40_000,
            codecs: vec![Codec::Pcma, Codec::Pcmu],
            dtmf: true,
            direction: Direction::SendOnly,
            version: 3,
            null_address: false,
            crypto: Crypto::default(),
        };
        let remote = read(local.render().as_bytes()).unwrap();
        assert_eq!(remote.rtp, Some("127.0.0.1:40000".parse().unwrap()));
        assert_eq!((remote.codec, remote.dtmf_payload_type), (Codec::Pcma, Some(101)));
        assert_eq!(remote.direction, Direction::SendOnly);
        (local.null_address, local.dtmf) = (true, false);
        let held = read(local.render().as_bytes()).unwrap();
        assert_eq!((held.rtp, held.dtmf_payload_type), (None, None));
    }

    /// Goal: keys travel in the audio stream's lines, RTP/SAVP demands them, RTP/AVP only offers.
    /// Method: render an offer of two suites both ways and read it; a foreign line is named, not shown.
    #[test]
    fn keys_travel_in_the_description() {
        for optional in [false, true] {
            let suites = vec![Suite::AeadAes128Gcm, Suite::AesCm128HmacSha1_80];
            let wish = Wish { suites, optional, mki: true };
            let local = Local {
                address: IpAddr::from([127, 0, 0, 1]),
                port: 40_000,
                codecs: vec![Codec::Pcmu],
                dtmf: false,
                direction: Direction::SendRecv,
                version: 1,
                null_address: false,
                crypto: wish.offer(1).unwrap(),
            };
            let text = local.render();
            assert_eq!(text.contains("m=audio 40000 RTP/AVP 0\r\n"), optional);
            assert_eq!(text.contains("m=audio 40000 RTP/SAVP 0\r\n"), !optional);
            let remote = read(text.as_bytes()).unwrap();
            assert_eq!((remote.crypto, remote.codec), (local.crypto, Codec::Pcmu));
        }
        let foreign =
            b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=audio 9 RTP/SAVP 0\r\na=crypto:1 F8_X inline:c2VjcmV0\r\n";
        let crypto = read(foreign).unwrap().crypto;
        assert!(crypto.savp && crypto.lines.is_empty());
        assert!(crypto.unreadable.is_some_and(|why| why.contains("F8_X") && !why.contains("c2VjcmV0")));
    }
}
