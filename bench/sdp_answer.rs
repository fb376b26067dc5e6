//! Answering an offer: read it, choose from it, write the answer.
//!
//! Unit: time per offer; what was made is also freed. Floor: `sdp-types` parses the same body.
//!
//!     cargo bench --bench sdp_answer

use std::net::{IpAddr, Ipv4Addr};

use divan::{Bencher, black_box};
use voxring::sdp::{Codec, LocalMedia, OfferError, Origin, OwnKeys, SrtpRules, negotiate, parse};

/// A phone's offer: six formats, of which the third is the first that we take.
const OFFER: &str = "v=0\r\n\
    o=- 20518 1 IN IP4 198.51.100.23\r\n\
    s=-\r\n\
    c=IN IP4 198.51.100.23\r\n\
    t=0 0\r\n\
    m=audio 40376 RTP/AVP 96 9 8 0 18 101\r\n\
    a=rtpmap:96 opus/48000/2\r\n\
    a=fmtp:96 useinbandfec=1\r\n\
    a=rtpmap:9 G722/8000\r\n\
    a=rtpmap:8 PCMA/8000\r\n\
    a=rtpmap:0 PCMU/8000\r\n\
    a=rtpmap:18 G729/8000\r\n\
    a=fmtp:18 annexb=no\r\n\
    a=rtpmap:101 telephone-event/8000\r\n\
    a=fmtp:101 0-16\r\n\
    a=rtcp:40377\r\n\
    a=ptime:20\r\n\
    a=sendrecv\r\n";

mod counted;
use counted::counted;

fn main() {
    divan::main();
}

fn local() -> LocalMedia {
    LocalMedia {
        addresses: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)).into(),
        codecs: vec![Codec::Pcmu, Codec::Pcma],
        dtmf: true,
        nat: None,
        srtp: SrtpRules::plain(),
    }
}

#[divan::bench(sample_size = 50)]
fn answer(bencher: Bencher) {
    let local = local();
    let keys = OwnKeys { in_use: None, source: |_| false };
    let answer = |offer: &str| {
        let negotiated = negotiate(&parse(offer.as_bytes())?, &local, keys)?;
        Ok::<_, OfferError>(Origin::new(20_518).answer(&negotiated, 16_384))
    };
    let body = answer(OFFER).expect("the offer has PCMA");
    assert!(body.windows(24).any(|line| line == b"m=audio 16384 RTP/AVP 8 "), "{body:?}");
    bencher.bench_local(|| counted(|| drop(black_box(answer(black_box(OFFER))))));
}

#[divan::bench(sample_size = 50)]
fn floor_sdp_types(bencher: Bencher) {
    bencher
        .bench_local(|| counted(|| drop(black_box(sdp_types::Session::parse(black_box(OFFER).as_bytes())))));
}
