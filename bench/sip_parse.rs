//! Reading an INVITE of 1.2 kB, as a phone behind one proxy sends it.
//!
//! Unit: time per message; what was made is also freed. Floor: one pass over the same bytes that
//! finds each line end. `typed_headers` reads Via, From, To, CSeq and Contact of a message that was
//! parsed before.
//!
//!     cargo bench --bench sip_parse

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use voxring::sip::message::{Message, Request};

/// All but Content-Length, which is counted.
const HEAD: &str = "INVITE sip:1001@vm.example.com;transport=tcp SIP/2.0\r\n\
    Via: SIP/2.0/TCP 192.0.2.10:5060;branch=z9hG4bK-524287-1---d8754z4e1f0a2b9c;alias\r\n\
    Via: SIP/2.0/UDP 198.51.100.23:5060;branch=z9hG4bK3d1c7a90;received=198.51.100.23;rport=5060\r\n\
    Record-Route: <sip:192.0.2.10:5060;transport=tcp;lr>\r\n\
    Max-Forwards: 69\r\n\
    From: \"Alice Example\" <sip:alice@example.com>;tag=9fxced76sl\r\n\
    To: <sip:1001@example.com>\r\n\
    Call-ID: 3848276298220188511@198.51.100.23\r\n\
    CSeq: 101 INVITE\r\n\
    Contact: \"Alice Example\" <sip:alice@198.51.100.23:5060;transport=udp>;expires=3600\r\n\
    Diversion: <sip:1001@example.com>;reason=no-answer;counter=1\r\n\
    P-Asserted-Identity: \"Alice Example\" <sip:alice@example.com>\r\n\
    Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, NOTIFY, REFER, UPDATE, PRACK\r\n\
    Supported: timer, replaces, 100rel\r\n\
    Session-Expires: 1800;refresher=uac\r\n\
    Min-SE: 90\r\n\
    User-Agent: Example Desk Phone 4.2.1\r\n\
    Accept: application/sdp\r\n\
    Content-Type: application/sdp\r\n";

const BODY: &str = "v=0\r\n\
    o=- 20518 1 IN IP4 198.51.100.23\r\n\
    s=-\r\n\
    c=IN IP4 198.51.100.23\r\n\
    t=0 0\r\n\
    m=audio 40376 RTP/AVP 0 8 101\r\n\
    a=rtpmap:0 PCMU/8000\r\n\
    a=rtpmap:8 PCMA/8000\r\n\
    a=rtpmap:101 telephone-event/8000\r\n\
    a=fmtp:101 0-16\r\n\
    a=ptime:20\r\n\
    a=sendrecv\r\n";

mod counted;
use counted::counted;

fn main() {
    divan::main();
}

fn invite() -> Bytes {
    let bytes = Bytes::from(format!("{HEAD}Content-Length: {}\r\n\r\n{BODY}", BODY.len()));
    assert!((1150..1400).contains(&bytes.len()), "the INVITE has {} bytes", bytes.len());
    bytes
}

fn parsed() -> Request {
    match Message::parse(invite()) {
        Ok(Message::Request(request)) => request,
        other => panic!("the INVITE is a sound request: {other:?}"),
    }
}

#[divan::bench(sample_size = 50)]
fn message(bencher: Bencher) {
    let bytes = invite();
    assert_eq!(parsed().body.len(), BODY.len());
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| counted(|| drop(black_box(Message::parse(black_box(&bytes).clone())))));
}

#[divan::bench(sample_size = 50)]
fn typed_headers(bencher: Bencher) {
    let request = parsed();
    let read = |request: &Request| {
        let addresses = (request.from()?, request.to()?, request.contacts()?);
        Ok::<_, voxring::sip::header::SyntaxError>((request.top_via()?, request.cseq()?, addresses))
    };
    assert!(read(&request).is_ok());
    bencher.bench_local(|| counted(|| drop(black_box(read(black_box(&request))))));
}

#[divan::bench(sample_size = 50)]
fn floor_line_ends(bencher: Bencher) {
    let bytes = invite();
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| counted(|| memchr::memchr_iter(b'\n', black_box(&bytes)).sum::<usize>()));
}
