//! Mutated SIP messages against framer, parser and every typed reader.
//!
//! Runs for five seconds, or for `VOXRING_FUZZ_SECONDS`. Prints the seed of an input that fails;
//! with it as `VOXRING_SEED` that input comes first:
//!
//!     VOXRING_SEED=8141 cargo test --test fuzz_sip

#[expect(dead_code, reason = "only the bytes of the cases are wanted here")]
#[path = "rfc4475/table.rs"]
mod table;

use std::time::Duration;

use bytes::Bytes;
use voxring::base::clock;
use voxring::base::limits::SIP_MESSAGE_BYTES_MAX;
use voxring::base::random::SplitMix64;
use voxring::sip::framer::{Frame, Framer, FramerLimits};
use voxring::sip::header::{RetryAfter, SessionExpires};
use voxring::sip::message::{Message, Name, Response};
use voxring::sip::uri::Uri;

/// An ordinary diverted call, with what the torture messages lack.
const DIVERTED: &[u8] = b"INVITE sip:4001@192.0.2.1:5062;transport=tcp SIP/2.0\r\n\
    Via: SIP/2.0/TCP [2001:db8::1]:5060;branch=z9hG4bKnashds8;rport;received=192.0.2.9\r\n\
    From: \"A. \\\"B\\\" C\" <sip:+12025550123@gw.example.com;user=phone>;tag=a48s\r\n\
    To: <tel:4001;phone-context=example.com>\r\nCall-ID: a84b4c76e66710\r\nCSeq: 314159 INVITE\r\n\
    Diversion: <sip:4001@example.com>;reason=no-answer;counter=1, <tel:+12025550199>;reason=\"user-busy\"\r\n\
    History-Info: <sip:4001@example.com?Reason=SIP%3Bcause%3D486>;index=1, <sip:vm@a;cause=408>;index=1.1\r\n\
    Session-Expires: 1800;refresher=uac\r\nMin-SE: 90\r\nRetry-After: 18 (busy);duration=3600\r\n\
    Contact: <sip:gw@192.0.2.9:5060;transport=tcp>;+sip.instance=\"<urn:uuid:0>\"\r\n\
    Supported: timer, 100rel\r\nMax-Forwards: 70\r\nContent-Type: application/sdp\r\n\
    Content-Length: 5\r\n\r\nv=0\r\n";

/// What breaks parsers, to be put anywhere.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n ",
    b"\r\n\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"\xFF",
    b"\xC3",
    b"\"",
    b"\\",
    b"<",
    b">",
    b",",
    b";",
    b":",
    b"@",
    b"%",
    b"%0",
    b"=",
    b"?",
    b"[",
    b"]",
    b"*",
    b"/",
    b"(",
    b"SIP/2.0",
    b"Content-Length: 18446744073709551615\r\n",
    b"\r\nl: 0\r\n",
    b"4294967296",
    b"sip:",
    b"tel:+",
    b" ",
    b"\t",
];

/// Picks and spoils; a seed means the same for ever.
struct Random(SplitMix64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.bits()
    }

    /// Below `end`, 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a length");
        usize::try_from(self.next().checked_rem(end).unwrap_or(0)).expect("below a usize")
    }

    fn choose<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

fn mutated(random: &mut Random, corpus: &[&[u8]]) -> Vec<u8> {
    let mut bytes = random.choose(corpus).to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(40)).min(bytes.len());
        match random.below(16) {
            0..4 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next().to_le_bytes()[0];
                }
            }
            4..9 => drop(bytes.splice(at..at, random.choose(TOKENS).iter().copied())),
            9..11 => drop(bytes.drain(at..end)),
            11 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            12 => bytes.truncate(at.max(1)),
            13 => {
                let other = random.choose(corpus);
                bytes.splice(at..end, other[random.below(other.len())..].iter().copied());
            }
            14 => bytes.extend_from_slice(random.choose(corpus)),
            _ if random.below(8) == 0 => {
                let part = bytes[at..end].repeat(60_000 / (end - at).max(1));
                bytes.splice(at..at, part);
            }
            _ => {}
        }
    }
    bytes
}

/// Reads everything that can be read; only the lack of a panic counts.
fn read_all(message: &Message) {
    let headers = message.headers();
    let _ = (headers.top_via(), headers.from(), headers.to(), headers.cseq(), headers.call_id().is_ok());
    let _ = (headers.contacts(), headers.max_forwards(), headers.content_type());
    let _ = (headers.diversions(), headers.history(), headers.seconds(&Name::Expires));
    let _ = (headers.addresses(&Name::Route), headers.addresses(&Name::RecordRoute));
    let _ = (headers.has_token(&Name::Require, "timer"), headers.values(&Name::Accept).count());
    for header in headers.iter() {
        let _ = (RetryAfter::parse(&header.value), SessionExpires::parse(&header.value));
    }
    for via in headers.vias().into_iter().flatten() {
        let _ = (via.branch(), via.received(), via.rport(), via.to_string());
    }
    if let Message::Request(request) = message {
        if let Ok(Uri::Sip(uri)) = request.uri() {
            assert!(uri.is_equivalent(&uri), "{uri}");
        }
        let answer = Message::Response(Response::for_request(request, 404, "Not Found"));
        assert!(Message::parse(answer.to_bytes()).is_ok(), "our answer to {request:?}");
    }
}

fn check(bytes: &Bytes) {
    match Message::parse(bytes.clone()) {
        Ok(message) => {
            read_all(&message);
            let written = message.to_bytes();
            // Compact names and missing blanks make the written form the longer one.
            if written.len() <= SIP_MESSAGE_BYTES_MAX {
                assert_eq!(Message::parse(written), Ok(message));
            }
        }
        Err(error) => {
            assert!(matches!(error.status, 400 | 413 | 505), "{error}");
            if let Some(response) = error.response() {
                assert!(response.starts_with(b"SIP/2.0 "), "{response:?}");
                let mut framer = Framer::new(FramerLimits { message_bytes_max: usize::MAX });
                framer.push(&response);
                assert_eq!(framer.poll(), Ok(Some(Frame::Message(response))));
            }
        }
    }
}

fn check_stream(random: &mut Random, bytes: &[u8]) {
    let mut framer = Framer::new(FramerLimits::default());
    let mut rest = bytes;
    let mut framed = 0;
    while !rest.is_empty() {
        let (part, tail) = rest.split_at((1 + random.below(700)).min(rest.len()));
        rest = tail;
        framer.push(part);
        loop {
            match framer.poll() {
                Ok(Some(Frame::Message(message))) => {
                    framed += message.len();
                    assert!(message.len() <= SIP_MESSAGE_BYTES_MAX);
                    if let Ok(message) = Message::parse(message) {
                        read_all(&message);
                    }
                }
                Ok(Some(Frame::Ping | Frame::Pong)) => framed += 2,
                Ok(None) => break,
                Err(error) => {
                    assert!(matches!(error.status, 400 | 413), "{error}");
                    let _ = error.response();
                    return;
                }
            }
        }
    }
    assert!(framed <= bytes.len());
}

/// Says how to replay when the test panics.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replay: VOXRING_SEED={} cargo test --test fuzz_sip", self.0);
        }
    }
}

fn environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {value:?}")))
}

/// Goal: no bytes crash the wire layer, make it answer nonsense or read differently what it wrote.
/// Method: mutations of the RFC 4475 messages and a diverted call, for a bounded time.
#[test]
fn mutated_messages_are_understood_or_refused() {
    let seconds = environment("VOXRING_FUZZ_SECONDS").unwrap_or(5);
    let seed = environment("VOXRING_SEED").unwrap_or_else(|| {
        let now = clock::calendar().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) << 16 | now.as_secs() & 0xFFFF
    });
    println!("fuzz_sip: seed {seed}, {seconds} s");
    let corpus: Vec<&[u8]> = table::CASES.iter().map(|case| case.bytes).chain([DIVERTED]).collect();
    let end = clock::now() + Duration::from_secs(seconds);
    let mut count = 0u64;
    while count == 0 || clock::now() < end {
        let replay = Replay(seed.wrapping_add(count));
        let mut random = Random(SplitMix64(replay.0));
        let bytes = mutated(&mut random, &corpus);
        check_stream(&mut random, &bytes);
        check(&bytes.into());
        count += 1;
    }
    println!("fuzz_sip: {count} inputs passed");
}
