//! Our second phone: takes the calls that an anchoring server makes to us.
//!
//! Which of our calls an INVITE belongs to is told by a user part of the form `p<number>`: that of
//! From, which a server passes on, or else that of the Request-URI.

use std::collections::HashMap;
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
}

/// The second phone of all calls.
#[derive(Debug)]
pub struct Callee {
    address: SocketAddr,
    media: IpAddr,
    ports: Vec<u16>,
    legs: HashMap<String, Leg>,
}

impl Callee {
    /// Reachable at `address`; the media of call `n` comes to port `n` of `ports`, counted around.
    pub fn new(address: SocketAddr, media: IpAddr, ports: Vec<u16>) -> Self {
        Self { address, media, ports, legs: HashMap::new() }
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
        let mut answer = |status: &str, body: Option<&str>| {
            let mut out = Vec::new();
            write_response(&mut out, message, status, "callee", std::slice::from_ref(&contact), body);
            match source {
                Source::Connection(number) => pool.send(number, &out),
                Source::Datagram(to) => pool.send_datagram(to, &out),
            }
        };
        match (method, self.legs.get(call_id)) {
            ("ACK", _) => None,
            ("INVITE" | "UPDATE", Some(leg)) => {
                let has_offer = method == "INVITE" || !message.body.is_empty();
                answer("200 OK", has_offer.then_some(leg.description.as_str()));
                None
            }
            ("INVITE", None) => match self.take(uri, message) {
                Ok((leg, media)) => {
                    answer("180 Ringing", None);
                    answer("200 OK", Some(&leg.description));
                    let number = leg.number;
                    self.legs.insert(call_id.to_owned(), leg);
                    Some(Happening::Answered(number, Box::new(media)))
                }
                Err(error) => {
                    answer(&format!("488 {error:#}"), None);
                    None
                }
            },
            ("BYE" | "CANCEL", Some(leg)) => {
                let number = leg.number;
                answer("200 OK", None);
                if method == "BYE" {
                    self.legs.remove(call_id);
                }
                (method == "BYE").then_some(Happening::Ended(number))
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
        Ok((Leg { number, description: local.render() }, media))
    }
}

/// The number in `p17`.
fn number_of(user: &str) -> Option<u32> {
    user.strip_prefix('p')?.parse().ok()
}
