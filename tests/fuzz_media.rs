//! Bounded fuzzing of what media peers send: RTP, RTCP, SRTP and SDP on their own.
//!
//! Runs `VOXRING_FUZZ_SECONDS` (default 2) for each of them. Prints its seed; the same `VOXRING_SEED`
//! repeats the same inputs.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use voxring::base::config::SrtpSuite;
use voxring::base::random::SplitMix64;
use voxring::rtp::packet::{self, RtpTimestamp};
use voxring::rtp::rtcp;
use voxring::rtp::sequence::SourceState;
use voxring::rtp::srtp::{MasterKey, Mki, OVERHEAD_BYTES_MAX, SrtpPlan, SrtpSession, key_and_salt_bytes};
use voxring::sdp::{self, Codec, LocalMedia, OwnKeys, SrtpRules};

/// Picks and spoils.
struct Random(SplitMix64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.bits()
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).expect("bounds are small");
        usize::try_from(self.next() % bound).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A copy of one of `corpus` with a few bytes changed, removed, doubled or cut off.
    fn mutated(&mut self, corpus: &[Vec<u8>], spice: &[u8]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..self.below(8) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at < bytes.len() => bytes[at] = spice[self.below(spice.len())],
                4 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, piece);
                }
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => bytes.push(self.byte()),
            }
        }
        bytes
    }
}

/// Runs `one` with fresh random input until its share of the time is over; prints the seed.
#[expect(clippy::disallowed_methods, reason = "a time budget, not protocol time")]
fn fuzz(subject: &str, mut one: impl FnMut(&mut Random)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = Duration::from_secs(number("VOXRING_FUZZ_SECONDS").unwrap_or(2));
    let start = Instant::now();
    let fresh =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let mut seed = number("VOXRING_SEED").unwrap_or(fresh);
    let mut runs = 0_u64;
    println!("fuzz {subject}: VOXRING_SEED={seed} cargo test --test fuzz_media -- {subject}");
    while start.elapsed() < time {
        // Each batch has a seed of its own, so that the one printed last is the one to replay.
        let mut random = Random(SplitMix64(seed));
        let batch = std::panic::AssertUnwindSafe(|| (0..1000).for_each(|_| one(&mut random)));
        if let Err(panic) = std::panic::catch_unwind(batch) {
            println!("fuzz {subject}: failed, replay with VOXRING_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        (seed, runs) = (seed.wrapping_add(1), runs + 1000);
    }
    println!("fuzz {subject}: {runs} inputs");
}

/// Goal: no datagram makes the RTP side panic or its payload leave the datagram.
/// Method: mutated packets through parser, validity, jitter and report.
#[test]
fn fuzz_rtp_never_panics() {
    let mut plain = vec![0x80, 0, 0, 1, 0, 0, 0, 160, 1, 2, 3, 4];
    plain.extend([0x55; 160]);
    let mut full = vec![0xB2, 101, 0xFF, 0xFF, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    full.extend([0xBE, 0xDE, 0, 1, 1, 2, 3, 4, 9, 9, 9, 0, 0, 0, 0, 5]);
    let corpus = [plain, full];
    fuzz("fuzz_rtp", |random| {
        let mut state: Option<SourceState> = None;
        for _ in 0..random.below(20) {
            let bytes = random.mutated(&corpus, &[0, 1, 0x7F, 0x80, 0x90, 0xA0, 0xB0, 0xFF]);
            let Ok(packet) = packet::parse(&bytes) else { continue };
            assert!(bytes.get(packet.payload.clone()).is_some());
            let state = state.get_or_insert_with(|| SourceState::new(packet.header.sequence));
            state.handle(packet.header.sequence);
            state.handle_arrival(packet.header.timestamp, RtpTimestamp(random.byte().into()));
            state.report();
        }
    });
}

/// Goal: no datagram makes the RTCP reader panic; what it accepts can be reported back.
/// Method: mutated compounds.
#[test]
fn fuzz_rtcp_never_panics() {
    let reception = SourceState::new(packet::SeqNo(1)).report();
    let block = rtcp::ReportBlock { ssrc: 7, reception, last_sr: 1, delay_since_last_sr: 2 };
    let sender = rtcp::SenderInfo {
        ntp: rtcp::NtpTime(0xB44D_B705_2000_0000),
        rtp: RtpTimestamp(1),
        packets: 1,
        octets: 160,
    };
    let mut corpus = Vec::new();
    for (sender, bye) in [(None, false), (Some(sender), true)] {
        let report = rtcp::Report { ssrc: 9, sender, block: Some(block), cname: "a@b", bye };
        let mut bytes = vec![0; rtcp::COMPOUND_BYTES_MAX];
        let len = report.write(&mut bytes).unwrap();
        bytes.truncate(len);
        corpus.push(bytes);
    }
    fuzz("fuzz_rtcp", |random| {
        let bytes = random.mutated(&corpus, &[0, 1, 7, 0x80, 0x81, 0x9F, 0xA1, 200, 201, 202, 203, 0xFF]);
        if let Ok(received) = rtcp::read(&bytes, 7)
            && let Some(block) = received.about_us
        {
            let _ = rtcp::round_trip(rtcp::NtpTime(random.next()), &block);
            let report = rtcp::Report {
                ssrc: 9,
                sender: received.sender,
                block: Some(block),
                cname: "",
                bye: received.bye,
            };
            assert!(report.write(&mut [0; rtcp::COMPOUND_BYTES_MAX]).is_some());
        }
    });
}

/// Both ends of a call protected by this suite.
fn srtp_ends(suite: SrtpSuite, mki: Option<Mki>) -> (SrtpSession, SrtpSession) {
    let master =
        |byte| MasterKey::new(suite, &vec![byte; key_and_salt_bytes(suite)], mki).expect("right length");
    let us = SrtpSession::new(&SrtpPlan { send: master(1), receive: master(2) });
    (us, SrtpSession::new(&SrtpPlan { send: master(2), receive: master(1) }))
}

/// Goal: no datagram makes unprotecting panic, and none that differs from what was protected
/// authenticates; the authentic ones still do afterwards, once. Method: mutated SRTP and SRTCP of
/// each suite, with and without MKI, header extension and CSRC list.
#[test]
fn fuzz_srtp_never_panics_and_takes_nothing_changed() {
    let mut plain = vec![0x80, 0, 0, 1, 0, 0, 0, 160, 1, 2, 3, 4];
    plain.extend([0x55; 160]);
    let mut full = vec![0xB2, 101, 0xFF, 0xFF, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    full.extend([0xBE, 0xDE, 0, 1, 1, 2, 3, 4, 9, 9, 9, 0, 0, 0, 0, 5]);
    let report = rtcp::Report { ssrc: 9, sender: None, block: None, cname: "a@b", bye: true };
    let mut compound = vec![0; rtcp::COMPOUND_BYTES_MAX];
    let len = report.write(&mut compound).unwrap();
    compound.truncate(len);
    let protect = |plain: &[u8], one: &mut dyn FnMut(&mut [u8], usize) -> Option<usize>| {
        let mut packet = [plain, &[0; OVERHEAD_BYTES_MAX]].concat();
        let len = one(&mut packet, plain.len()).expect("there is room");
        packet.truncate(len);
        packet
    };
    fuzz("fuzz_srtp", |random| {
        let suite = SrtpSuite::ALL[random.below(SrtpSuite::ALL.len())];
        let mki = (random.below(3) == 0).then_some(Mki { value: 7, bytes: 4 });
        let (mut us, mut peer) = srtp_ends(suite, mki);
        let (_, mut other) = srtp_ends(suite, mki);
        let packets = [
            protect(&plain, &mut |packet, len| peer.protect_rtp(packet, len)),
            protect(&full, &mut |packet, len| other.protect_rtp(packet, len)),
        ];
        let compounds = [protect(&compound, &mut |packet, len| peer.protect_rtcp(packet, len))];
        for _ in 0..random.below(20) {
            let mut bytes = random.mutated(&packets, &[0, 1, 0x7F, 0x80, 0x90, 0xA0, 0xB0, 0xFF]);
            let changed = !packets.contains(&bytes);
            assert!(us.unprotect_rtp(&mut bytes.clone()).is_err() || !changed);
            // Read as the other protocol it is nothing either.
            assert!(us.unprotect_rtcp(&mut bytes).is_err());
            let mut bytes = random.mutated(&compounds, &[0, 1, 7, 0x80, 0x81, 0x9F, 200, 203, 0xFF]);
            let changed = !compounds.contains(&bytes);
            assert!(us.unprotect_rtp(&mut bytes.clone()).is_err());
            assert!(us.unprotect_rtcp(&mut bytes).is_err() || !changed);
        }
        let (mut us, _) = srtp_ends(suite, mki);
        for (packet, plain) in packets.iter().zip([&plain, &full]) {
            let mut bytes = packet.clone();
            let len = us.unprotect_rtp(&mut bytes).expect("authentic");
            assert_eq!(&bytes[..len], &plain[..]);
            assert!(us.unprotect_rtp(&mut packet.clone()).is_err(), "once");
        }
    });
}

/// Goal: no body makes offer/answer panic; an answer we write is one we can read, has one media
/// line for each offered, and no more than a bounded size. Method: mutated offers.
#[test]
fn fuzz_sdp_never_panics() {
    const OFFERS: [&str; 5] = [
        "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0 8 101\r\n\
         a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16,36\r\na=ptime:20\r\na=maxptime:60\r\n",
        "v=0\no=x 2 -1 IN IP4 h\ns=\nm=video 5000/2 RTP/AVP 31\nm=audio 5002 RTP/SAVP 0\nm=audio 5004 RTP/AVP 8\n\
         c=IN IP4 0.0.0.0\na=sendonly\na=rtcp:5010 IN IP4 192.0.2.2\n",
        "v=0\r\nc=IN IP6 ::1\r\nt=1 2\r\nr=7d 1h 0 25h\r\nz=1 -1h\r\nm=audio 65535 RTP/AVP 97\r\na=rtpmap:97 PCMU/8000/1\r\n",
        "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/SAVP 0\r\n\
         a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm|2^20|1:4;inline:QUJjZGVmMTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5|2^20|2:4 WSH=64\r\n\
         a=crypto:2 AEAD_AES_128_GCM inline:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGw== KDR=0 -X=1\r\n",
        "v=0\r\ns=x\r\nb=AS:64\r\nk=clear:x\r\nm=image 4 udptl t38\r\ni=t\r\na=inactive\r\n",
    ];
    let corpus = OFFERS.map(|text| text.as_bytes().to_vec());
    let local = LocalMedia {
        addresses: IpAddr::from(Ipv4Addr::LOCALHOST).into(),
        codecs: vec![Codec::Pcmu, Codec::Pcma],
        dtmf: true,
        nat: None,
        srtp: SrtpRules { suites: SrtpSuite::ALL.to_vec(), allowed: true, required: false },
    };
    let keys = OwnKeys {
        in_use: None,
        source: |key| {
            key.fill(7);
            true
        },
    };
    fuzz("fuzz_sdp", |random| {
        let body = random.mutated(&corpus, b"\r\n=:/ 0129-,amcvots;|^\0\xFF");
        let Ok(offer) = sdp::parse(&body) else { return };
        let Ok(negotiated) = sdp::negotiate(&offer, &local, keys) else { return };
        assert!((10..=60).contains(&negotiated.plan().ptime_ms));
        let answer = sdp::Origin::new(random.next()).answer(&negotiated, 2000);
        assert!(answer.len() < body.len() + 1100);
        let again = sdp::parse(&answer).expect("our own answer");
        assert_eq!(
            sdp::negotiate(&again, &local, keys).expect("our own answer").plan().codec,
            negotiated.plan().codec
        );
    });
}
