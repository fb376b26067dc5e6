//! Our second phone: takes the calls that an anchoring server makes to us.
//!
//! Which of our calls an INVITE belongs to is told by a user part of the form `p<number>`: that of
//! From, which a server passes on, or else that of the Request-URI.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::load::sip::call::Hops as _;
use crate::load::sip::pool::Pool;
use crate::load::sip::text::{Glance, Start, contact, uri_of, user_of, write_response};
use crate::sip::sdes::{self, Agreed, Wish};
use crate::sip::sdp::{self, Direction};
use crate::sip::target::Transport;

/// Where a request came from, and its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A connection of the pool.
    Connection(usize),
    /// UDP.
    Datagram(SocketAddr),
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// The second leg of this call is answered; its media.
    Answered(u32, Box<Media>),
    /// The second leg of this call ended.
    Ended(u32),
}

/// Media of a second leg.
#[derive(Debug, Clone, PartialEq)]
pub struct Media {
    /// Where its RTP goes.
    pub remote: SocketAddr,
    /// Payload type of what is sent.
    pub payload_type: u8,
    /// SRTP keys.
    pub keys: Option<Agreed>,
}

/// One dialog, by its Call-ID.
#[derive(Debug)]
struct Leg {
    number: u32,
    description: String,
    /// The INVITE while it rings.
    ringing: Option<Vec<u8>>,
}

/// The second phone of all calls.
#[derive(Debug)]
pub struct Callee {
    address: SocketAddr,
    media: IpAddr,
    ports: Vec<u16>,
    legs: HashMap<String, Leg>,
    ring_on: HashSet<u32>,
}

impl Callee {
    /// Reachable at `address`; the media of call `n` comes to port `n` of `ports`, counted around.
    pub fn new(address: SocketAddr, media: IpAddr, ports: Vec<u16>) -> Self {
        Self { address, media, ports, legs: HashMap::new(), ring_on: HashSet::new() }
    }

    /// The second leg of this call is not answered.
    pub fn ring_on(&mut self, number: u32) {
        self.ring_on.insert(number);
    }

    /// Answers a request.
    pub fn handle_request(
        &mut self,
        source: Source,
        message: &Glance<'_>,
        pool: &mut Pool,
    ) -> Option<Happening> {
        let Start::Request(method, uri) = message.start else { return None };
        let call_id = message.value("Call-ID").unwrap_or_default();
        let transport = match source {
            Source::Connection(_) => Transport::Tcp,
            Source::Datagram(_) => Transport::Udp,
        };
        let contact = format!("Contact: {}", contact(self.address, transport));
        let mut answer =
            |status: &str, body: Option<&str>| reply(pool, source, message, status, &contact, body);
        match (method, self.legs.get(call_id)) {
            ("ACK", _) => None,
            ("INVITE" | "UPDATE", Some(leg)) => {
                let has_offer = method == "INVITE" || !message.body.is_empty();
                answer("200 OK", has_offer.then_some(leg.description.as_str()));
                None
            }
            ("INVITE", None) => match self.take(uri, message) {
                Ok((mut leg, media)) => {
                    answer("180 Ringing", None);
                    let number = leg.number;
                    if self.ring_on.contains(&number) {
                        leg.ringing = Some(message.render());
                        self.legs.insert(call_id.to_owned(), leg);
                        return None;
                    }
                    answer("200 OK", Some(&leg.description));
                    self.legs.insert(call_id.to_owned(), leg);
                    Some(Happening::Answered(number, Box::new(media)))
                }
                Err(error) => {
                    answer(&format!("488 {error:#}"), None);
                    None
                }
            },
            ("BYE", Some(leg)) => {
                let number = leg.number;
                answer("200 OK", None);
                self.legs.remove(call_id);
                Some(Happening::Ended(number))
            }
            ("CANCEL", Some(leg)) => {
                let ringing = leg.ringing.clone();
                answer("200 OK", None);
                if let Some(invite) = ringing.as_deref().and_then(|invite| Glance::read(invite).ok()) {
                    // RFC 3261 §9.2: what rings ends with 487.
                    reply(pool, source, &invite, "487 Request Terminated", &contact, None);
                    self.legs.remove(call_id);
                }
                None
            }
            ("OPTIONS", _) | (_, Some(_)) => {
                answer("200 OK", None);
                None
            }
            (_, None) => {
                answer("481 Call/Transaction Does Not Exist", None);
                None
            }
        }
    }

    /// Reads an INVITE: which call it is, and how its media goes.
    fn take(&self, uri: &str, message: &Glance<'_>) -> Result<(Leg, Media)> {
        let from = message.value("From").map_or("", uri_of);
        let number = number_of(user_of(from)).or_else(|| number_of(user_of(uri)));
        let number = number.context("No user part p<number> in From or Request-URI")?;
        let offer = sdp::read(message.body)?;
        let port = self.ports.get(number as usize % self.ports.len().max(1)).context("No media port")?;
        let wish =
            Wish { suites: offer.crypto.lines.iter().map(|line| line.suite).collect(), ..Wish::default() };
        let crypto = sdes::answer(&wish.offer(1)?, &offer.crypto)?;
        let keys = sdes::agree(&crypto, &offer.crypto)?;
        let local = sdp::Local {
            address: self.media,
            port: *port,
            codecs: vec![offer.codec],
            dtmf: offer.dtmf_payload_type.is_some(),
            direction: Direction::SendRecv,
            version: 1,
            null_address: false,
            crypto,
        };
        let remote = offer.rtp.context("No address for RTP")?;
        let media = Media { remote, payload_type: offer.codec.payload_type(), keys };
        Ok((Leg { number, description: local.render(), ringing: None }, media))
    }
}

/// Sends a response to where its request came from.
fn reply(
    pool: &mut Pool,
    source: Source,
    request: &Glance<'_>,
    status: &str,
    contact: &String,
    body: Option<&str>,
) {
    let mut out = Vec::new();
    write_response(&mut out, request, status, "callee", std::slice::from_ref(contact), body);
    match source {
        Source::Connection(number) => pool.send(number, &out),
        Source::Datagram(to) => pool.send_datagram(to, &out),
    }
}

/// The number in `p17`.
fn number_of(user: &str) -> Option<u32> {
    user.strip_prefix('p')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::sdes::{Crypto, Suite};

    const OFFER: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 30000 RTP/AVP 8\r\n";

    /// Our phone, and a neighbour over UDP that reads its answers.
    struct Rig {
        callee: Callee,
        pool: Pool,
        neighbour: std::net::UdpSocket,
    }

    impl Rig {
        fn new() -> Self {
            let free = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut pool = Pool::new(1, None);
            let address = free().local_addr().unwrap();
            pool.listen(address).unwrap();
            let ports = vec![40_000, 40_002];
            Self { callee: Callee::new(address, address.ip(), ports), pool, neighbour: free() }
        }

        /// Sends a request; gives what happened and the answers.
        fn asks(
            &mut self,
            method: &str,
            call_id: &str,
            from: &str,
            to: &str,
            body: &str,
        ) -> (Option<Happening>, Vec<String>) {
            let text = format!(
                "{method} {to} SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bKq\r\nFrom: <{from}>;tag=x\r\nTo: <{to}>\r\n\
                 Call-ID: {call_id}\r\nCSeq: 1 {method}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let source = Source::Datagram(self.neighbour.local_addr().unwrap());
            let glance = Glance::read(text.as_bytes()).unwrap();
            let happening = self.callee.handle_request(source, &glance, &mut self.pool);
            self.neighbour.set_nonblocking(true).unwrap();
            let (mut answers, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count) = self.neighbour.recv(&mut buffer) {
                answers.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
            }
            (happening, answers)
        }
    }

    /// Goal: an INVITE is answered with 180 and 200 and its call's own port, whichever part names
    /// the call; a new offer and BYE are answered; strangers are not.
    /// Method: one call named by From, one by the Request-URI, one by neither.
    #[test]
    fn a_second_leg_is_answered_for_its_call() {
        let mut rig = Rig::new();
        let (happening, answers) = rig.asks("INVITE", "a", "sip:p7@h", "sip:8000@h", OFFER);
        let Some(Happening::Answered(7, media)) = happening else { panic!("{happening:?}") };
        assert_eq!((media.remote.port(), media.payload_type, media.keys), (30_000, 8, None));
        assert!(
            answers[0].starts_with("SIP/2.0 180 ") && answers[1].starts_with("SIP/2.0 200 "),
            "{answers:?}"
        );
        assert!(
            answers[1].contains("m=audio 40002 RTP/AVP 8") && answers[1].contains(";tag="),
            "{answers:?}"
        );
        let (happening, _) = rig.asks("INVITE", "b", "sip:4711@h", "sip:p8@h", OFFER);
        assert!(matches!(happening, Some(Happening::Answered(8, _))));
        let (happening, answers) = rig.asks("INVITE", "c", "sip:4711@h", "sip:8000@h", OFFER);
        assert!(
            happening.is_none() && answers[0].starts_with("SIP/2.0 488 No user part p<number>"),
            "{answers:?}"
        );
        let (happening, answers) = rig.asks("INVITE", "a", "sip:p7@h", "sip:8000@h", "");
        assert!(happening.is_none() && answers[0].contains("m=audio 40002 "), "{answers:?}");
        assert_eq!(rig.asks("BYE", "a", "sip:p7@h", "sip:8000@h", "").0, Some(Happening::Ended(7)));
        let (happening, answers) = rig.asks("BYE", "a", "sip:p7@h", "sip:8000@h", "");
        assert!(happening.is_none() && answers[0].starts_with("SIP/2.0 481 "), "{answers:?}");
        assert_eq!(rig.asks("ACK", "a", "sip:p7@h", "sip:8000@h", ""), (None, Vec::new()));
    }

    /// Goal: keys that the server offers are answered with ours. Method: an RTP/SAVP offer.
    #[test]
    fn offered_keys_are_answered() {
        let suite = Suite::AeadAes128Gcm;
        let crypto = Wish { suites: vec![suite], ..Wish::default() }.offer(1).unwrap();
        let theirs = crypto.lines[0].key.clone();
        let offer =
            OFFER.replace("RTP/AVP", "RTP/SAVP") + &format!("a=crypto:{}\r\n", crypto.lines[0].render());
        let (happening, answers) = Rig::new().asks("INVITE", "a", "sip:p0@h", "sip:8000@h", &offer);
        let Some(Happening::Answered(0, media)) = happening else { panic!("{happening:?}") };
        let keys = media.keys.unwrap();
        assert_eq!((keys.suite, keys.receive), (suite, theirs));
        let body = answers[1].split_once("\r\n\r\n").unwrap().1;
        let Crypto { savp: true, lines, .. } = sdp::read(body.as_bytes()).unwrap().crypto else {
            panic!("{body}")
        };
        assert_eq!(lines[0].key, keys.send);
    }
}
