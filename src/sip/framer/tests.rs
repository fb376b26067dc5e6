use proptest::prelude::*;

use super::*;

const FIELDS: &str = "Via: SIP/2.0/TCP a;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\n\
    Call-ID: x\r\nCSeq: 1 OPTIONS\r\n";

fn message(length: &str, body: &str) -> String {
    format!("OPTIONS sip:c@d SIP/2.0\r\n{FIELDS}{length}\r\n{body}")
}

/// Pushes `bytes` in chunks and polls after each: frames, and the error if one came.
fn frames(bytes: &[u8], chunk: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut framer = Framer::new(FramerLimits::default());
    let mut found = Vec::new();
    for part in bytes.chunks(chunk.max(1)) {
        framer.push(part);
        loop {
            match framer.poll() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// Goal: messages, pings and pongs are told apart whatever the chunks. Method: a stream of each,
/// in every chunk size.
#[test]
fn a_stream_is_split_the_same_whatever_the_chunks() {
    let first = message("Content-Length: 5\r\n", "a\r\n\r\n");
    let second = message("l   :\r\n 0\r\n", "");
    let stream = format!("\r\n\r\n{first}\r\n{second}\r\n\r\n\r\n{first}");
    let expected = vec![
        Frame::Ping,
        Frame::Message(first.clone().into()),
        Frame::Pong,
        Frame::Message(second.into()),
        Frame::Ping,
        Frame::Pong,
        Frame::Message(first.into()),
    ];
    for chunk in 1..=stream.len() {
        assert_eq!(frames(stream.as_bytes(), chunk), (expected.clone(), None), "by {chunk}");
    }
}

/// Goal: framing in doubt ends the connection with a 400 or 413 that names its request.
/// Method: RFC 3261 §18.3 and §20.14, one broken head each, whole and byte by byte.
#[test]
fn framing_in_doubt_is_fatal_and_answered() {
    for (length, status, reason) in [
        ("", 400, "Missing Content-Length"),
        ("Content-Length: -1\r\n", 400, "Malformed Content-Length"),
        ("Content-Length: five\r\n", 400, "Malformed Content-Length"),
        ("Content-Length:\r\n", 400, "Malformed Content-Length"),
        ("Content-Length: 0\r\nl: 1\r\n", 400, "Conflicting Content-Length"),
        ("Content-Length: 0, 0\r\n", 400, "Malformed Content-Length"),
        ("Content-Length: 65535\r\n", 413, "Message Too Large"),
        ("Content-Length: 18446744073709551616\r\n", 413, "Message Too Large"),
        ("Content-Length: 0\nX: y\r\n", 400, "Bare LF in Message Head"),
    ] {
        let text = message(length, "");
        for chunk in [1, text.len()] {
            let (found, error) = frames(text.as_bytes(), chunk);
            let error = error.expect(length);
            assert!(found.is_empty());
            assert_eq!((error.status, error.reason), (status, reason), "{length}");
            let response = error.response().expect(length);
            let response = std::str::from_utf8(&response).unwrap();
            assert!(response.starts_with(&format!("SIP/2.0 {status} {reason}\r\n")), "{response}");
            assert!(response.contains("\r\nVia: SIP/2.0/TCP a;branch=z9hG4bK1\r\n"), "{response}");
        }
    }
}

/// Goal: an error stays, and later bytes are not kept. Method: push on after an error.
#[test]
fn an_error_is_for_good() {
    let mut framer = Framer::new(FramerLimits::default());
    framer.push(message("", "").as_bytes());
    let error = framer.poll().unwrap_err();
    framer.push(message("l: 0\r\n", "").as_bytes());
    assert_eq!(framer.poll(), Err(error));
    assert!(framer.buffer.is_empty() && !framer.is_partial());
}

/// Goal: what never ends is cut off at the limit. Method: an endless head and an endless line,
/// with a small limit.
#[test]
fn a_head_without_end_is_cut_off_at_the_limit() {
    for filler in ["X: y\r\n", "xxxxxx", "X:\r\n  "] {
        let mut framer = Framer::new(FramerLimits { message_bytes_max: 1000 });
        framer.push(b"OPTIONS sip:c@d SIP/2.0\r\n");
        framer.push(FIELDS.as_bytes());
        let mut pushed = 0;
        let error = loop {
            framer.push(filler.as_bytes());
            pushed += filler.len();
            assert!(pushed < 1000, "{filler:?} is never refused");
            match framer.poll() {
                Ok(None) => {}
                Ok(Some(frame)) => panic!("{frame:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.status, 413);
        assert!(error.response().is_some());
    }
}

/// Goal: a message as long as the limit passes and one byte more does not. Method: the limit set
/// to the message's length.
#[test]
fn the_limit_counts_head_and_body() {
    let text = message("Content-Length: 3\r\n", "abc");
    for (limit, passes) in [(text.len(), true), (text.len() - 1, false)] {
        let mut framer = Framer::new(FramerLimits { message_bytes_max: limit });
        framer.push(text.as_bytes());
        assert_eq!(framer.poll().is_ok(), passes);
    }
}

/// Goal: a caller can tell an idle stream from one that stopped inside a message. Method: ask at
/// each point.
#[test]
fn a_partial_message_is_told_from_an_idle_stream() {
    let mut framer = Framer::new(FramerLimits::default());
    assert!(!framer.is_partial());
    framer.push(b"\r\n\r");
    assert_eq!(framer.poll(), Ok(None));
    assert!(!framer.is_partial());
    framer.push(b"\nOPT");
    assert_eq!(framer.poll(), Ok(Some(Frame::Ping)));
    assert_eq!(framer.poll(), Ok(None));
    assert!(framer.is_partial());
    assert!(is_keep_alive(b"\r\n\r\n") && is_keep_alive(b"") && is_keep_alive(b"\0\0\0\0"));
    assert!(!is_keep_alive(b"\r\nOPTIONS"));
}

proptest! {
    /// Goal: the chunks never change what a stream is split into. Method: random streams of
    /// messages, blank lines and noise, random cuts, against the stream pushed whole.
    #[test]
    fn chunks_never_change_the_frames(
        parts in proptest::collection::vec((0..6u8, "[a\r\n]{0,6}"), 0..8),
        cuts in proptest::collection::vec(1..40usize, 1..60),
    ) {
        let mut stream = Vec::new();
        for (kind, text) in parts {
            match kind {
                0 => stream.extend(b"\r\n"),
                1 => stream.extend(b"\r\n\r\n"),
                2 => stream.extend(text.bytes()),
                _ => stream.extend(message(&format!("l: {}\r\n", text.len()), &text).bytes()),
            }
        }
        let (whole, whole_error) = frames(&stream, stream.len());
        let mut framer = Framer::new(FramerLimits::default());
        let (mut found, mut error) = (Vec::new(), None);
        let mut rest = &stream[..];
        let mut sizes = cuts.iter().cycle();
        while !rest.is_empty() && error.is_none() {
            let (part, tail) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            rest = tail;
            framer.push(part);
            loop {
                match framer.poll() {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(found) => { error = Some(found); break; }
                }
            }
        }
        prop_assert_eq!(found, whole);
        prop_assert_eq!(error.map(|e| (e.status, e.reason)), whole_error.map(|e| (e.status, e.reason)));
    }
}
