use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use rsip::headers::UntypedHeader;
use rsip::{Method, SipMessage};

use super::*;
use crate::media::packet;
use crate::sip::link::cut_message;
use crate::sip::sdes::{Suite, Wish};
use crate::sip::wire::{self, Incoming};

/// What the called side saw.
#[derive(Debug, Default)]
struct Heard {
    offers: Vec<Crypto>,
    opened: u64,
    srtp_failed: u64,
    sequences: Vec<u16>,
}

/// A phone that answers each INVITE as `wish` says, with new keys each time, sends 20 ms frames from
/// sequence number 65520 on and listens, until a BYE.
struct Phone {
    stream: TcpStream,
    inbox: Vec<u8>,
    wish: Wish,
    pair: socket::Pair,
    srtp: Srtp,
    remote: Option<SocketAddr>,
    sequence: u16,
    heard: Heard,
}

impl Phone {
    fn ring(wish: Wish) -> (Target, JoinHandle<Heard>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Target::parse(&format!("sip:u@127.0.0.1:{port};transport=tcp")).unwrap();
        let phone = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            let pair = socket::bind_pair(IpAddr::from([127, 0, 0, 1])).unwrap();
            let (srtp, heard) = (Srtp::default(), Heard::default());
            let inbox = Vec::new();
            Self { stream, inbox, wish, pair, srtp, remote: None, sequence: 65_520, heard }.stay()
        });
        (target, phone)
    }

    fn stay(mut self) -> Heard {
        let (start, mut buffer) = (clock::now(), [0; 4096]);
        let mut next = start;
        while start.elapsed() < Duration::from_secs(20) {
            if let Ok(count) = self.stream.read(&mut buffer) {
                self.inbox.extend(&buffer[..count]);
            }
            while let Some(message) = cut_message(&mut self.inbox).unwrap() {
                if self.take(&message) {
                    self.heard.srtp_failed = self.srtp.auth_failed;
                    return self.heard;
                }
            }
            while let Some((count, _)) = socket::receive(&self.pair.rtp, &mut buffer) {
                if let Some(plain) = self.srtp.open(&buffer[..count]) {
                    self.heard.opened += 1;
                    self.heard.sequences.extend(packet::parse(&plain).map(|(header, _)| header.sequence));
                }
            }
            if let Some(remote) = self.remote.filter(|_| next <= clock::now()) {
                next = clock::now() + PTIME;
                let (sequence, timestamp) = (self.sequence, u32::from(self.sequence) * 160);
                let header = packet::Header { marker: false, payload_type: 0, sequence, timestamp, ssrc: 5 };
                let sent = self.srtp.protect(&packet::build(&header, &[0xFF; 160])).unwrap();
                self.pair.rtp.send_to(&sent, remote).unwrap();
                self.sequence = self.sequence.wrapping_add(1);
            }
        }
        panic!("no BYE within 20 s");
    }

    /// True after a BYE.
    fn take(&mut self, message: &[u8]) -> bool {
        let incoming = Incoming::read(message).unwrap();
        let SipMessage::Request(request) = &incoming.sip else { panic!("a response to nothing") };
        let answer = match request.method {
            Method::Invite => self.answer(&incoming),
            Method::Ack => return false,
            _ => None,
        };
        let contact = rsip::headers::Contact::new(format!(
            "<sip:u@{};transport=tcp>",
            self.stream.local_addr().unwrap()
        ));
        let extra = vec![rsip::Header::Contact(contact)];
        self.stream.write_all(&wire::response(request, 200, extra, answer)).unwrap();
        request.method == Method::Bye
    }

    fn answer(&mut self, invite: &Incoming) -> Option<String> {
        let offer = sdp::read(invite.body()).unwrap();
        let crypto = sdes::answer(&self.wish.offer(1).unwrap(), &offer.crypto).unwrap();
        self.srtp.agree(sdes::agree(&crypto, &offer.crypto).unwrap().as_ref()).unwrap();
        self.remote = offer.rtp;
        self.heard.offers.push(offer.crypto);
        let local = sdp::Local {
            address: IpAddr::from([127, 0, 0, 1]),
            port: self.pair.port,
            codecs: vec![Codec::Pcmu],
            dtmf: false,
            direction: Direction::SendRecv,
            version: 1,
            null_address: false,
            crypto,
        };
        Some(local.render())
    }
}

fn plan(target: Target, srtp: Wish, rekeys: Vec<When>) -> Plan {
    Plan {
        target,
        wishes: Wishes {
            from: "voxperf".into(),
            headers: Vec::new(),
            offer: true,
            session_expires_s: None,
            patience: Duration::from_secs(10),
            tls: None,
            srtp,
        },
        codecs: vec![Codec::Pcmu],
        dtmf_offered: false,
        dtmf_mode: DtmfMode::Rfc4733,
        file: Arc::default(),
        play_after_beep: false,
        duration: Duration::from_millis(1500),
        hang_up_after_play: None,
        odds: Odds::default(),
        seed: 1,
        keys: Vec::new(),
        holds: Vec::new(),
        port_changes: Vec::new(),
        rekeys,
        first_sequence: Some(65_530),
        mute: false,
        record: None,
    }
}

fn wish(suites: &[Suite], optional: bool) -> Wish {
    Wish { suites: suites.to_vec(), optional, mki: true }
}

/// Goal: a call with SRTP is heard whole both ways over the wrap of the sequence number and over a
/// change of both sides' keys, and only new keys are offered at the change.
/// Method: a phone with the second suite alone; both start just below 65535, keys change at 0.7 s.
#[test]
fn an_srtp_call_is_heard_both_ways_over_wrap_and_new_keys() {
    let (target, phone) = Phone::ring(wish(&[Suite::AesCm128HmacSha1_32], false));
    let suites = [Suite::AeadAes256Gcm, Suite::AesCm128HmacSha1_32];
    let outcome = run(&plan(target, wish(&suites, false), vec!["0.7".parse().unwrap()]), 1).unwrap();
    let heard = phone.join().unwrap();
    assert!(outcome.complete && outcome.changes == [200], "{outcome:?}");
    assert_eq!(outcome.srtp, Some("AES_CM_128_HMAC_SHA1_32"));
    assert_eq!((outcome.srtp_auth_failed, outcome.rx_lost, outcome.rx_invalid), (0, 0, 0), "{outcome:?}");
    assert!(outcome.rx_packets >= 30 && heard.opened + 5 >= outcome.tx_packets, "{outcome:?} {heard:?}");
    assert!(heard.sequences[0] >= 65_530 && heard.sequences.contains(&3), "the wrap was crossed");
    let [first, second] = &heard.offers[..] else { panic!("{heard:?}") };
    for (old, new) in first.lines.iter().zip(&second.lines) {
        assert_eq!((old.key.mki, new.key.mki), (Some((1, 4)), Some((2, 4))));
        assert_ne!(old.key.material, new.key.material);
    }
    assert_eq!(heard.srtp_failed, 0);
}

/// Goal: SRTP offered as optional gives way to plain RTP; demanded SRTP ends the call instead.
/// Method: a phone without any suite; it drops a=crypto of an RTP/AVP offer, as RFC 4568 has it.
#[test]
fn optional_srtp_gives_way_to_plain_rtp() {
    let (target, phone) = Phone::ring(Wish::default());
    let outcome = run(&plan(target, wish(&[Suite::AeadAes128Gcm], true), Vec::new()), 1).unwrap();
    let heard = phone.join().unwrap();
    assert!(outcome.complete && outcome.srtp.is_none() && outcome.rx_packets >= 30, "{outcome:?}");
    assert!(heard.opened >= 30 && !heard.offers[0].savp && heard.offers[0].lines.len() == 1);
}
