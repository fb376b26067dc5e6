//! Messages as text: a glance at what came, and requests and responses written from prepared parts.

use std::io::Write as _;

use anyhow::{Context, Result, bail, ensure};

use crate::sip::target::Transport;

/// Longest message; a longer one ends its connection.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// The first line of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// Method and Request-URI.
    Request(&'a str, &'a str),
    /// Status code and reason phrase.
    Response(u16, &'a str),
}

/// A message that was looked at, not parsed. Folded header lines (RFC 3261 §7.3.1) are cut at the
/// fold.
#[derive(Debug, Clone, Copy)]
pub struct Glance<'a> {
    /// Its first line.
    pub start: Start<'a>,
    headers: &'a str,
    /// What follows the blank line.
    pub body: &'a [u8],
}

impl<'a> Glance<'a> {
    /// Looks at one framed message.
    ///
    /// # Errors
    /// No SIP/2.0, or headers that are no UTF-8.
    pub fn read(message: &'a [u8]) -> Result<Self> {
        let end = end_of_headers(message).context("a message without an end of its headers")?;
        let (head, body) = message.split_at(end);
        let head = std::str::from_utf8(head).context("a message with headers that are no UTF-8")?;
        let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        let start = match line.strip_prefix("SIP/2.0 ") {
            Some(rest) => {
                let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                Start::Response(status.parse().with_context(|| format!("no status in {line:?}"))?, reason)
            }
            None => {
                let parts = line.strip_suffix(" SIP/2.0").and_then(|rest| rest.split_once(' '));
                let (method, uri) = parts.with_context(|| format!("{line:?} begins no SIP message"))?;
                Start::Request(method, uri)
            }
        };
        Ok(Self { start, headers, body })
    }

    /// Values of a header, line by line, by its long name or its compact form (RFC 3261 §7.3.3).
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let compact = compact(name);
        self.lines().filter(move |(other, _)| is_named(other, name, compact)).map(|(_, value)| value)
    }

    /// The first value of a header.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.values(name).next()
    }

    /// Sequence number and method.
    pub fn cseq(&self) -> Option<(u32, &'a str)> {
        let (number, method) = self.value("CSeq")?.split_once(' ')?;
        Some((number.trim().parse().ok()?, method.trim()))
    }

    /// The message again, without its body.
    pub fn render(&self) -> Vec<u8> {
        let line = match self.start {
            Start::Request(method, uri) => format!("{method} {uri} SIP/2.0"),
            Start::Response(status, reason) => format!("SIP/2.0 {status} {reason}"),
        };
        format!("{line}\r\n{}", self.headers).into_bytes()
    }

    /// The URI in Contact.
    pub fn contact(&self) -> Option<&'a str> {
        self.value("Contact").map(uri_of)
    }

    fn lines(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let lines = self.headers.split("\r\n").filter_map(|line| line.split_once(':'));
        lines.map(|(name, value)| (name.trim_end(), value.trim()))
    }
}

/// The URI of a name-addr or addr-spec (RFC 3261 §20.10): without brackets, parameters belong to
/// the header.
pub fn uri_of(value: &str) -> &str {
    match value.split_once('<') {
        Some((_, rest)) => rest.split('>').next().unwrap_or(rest),
        None => value.split(';').next().unwrap_or(value).trim(),
    }
}

/// The user part of a URI; empty when it has none.
pub fn user_of(uri: &str) -> &str {
    let rest = uri.split_once(':').map_or(uri, |(_, rest)| rest);
    rest.split_once('@').map_or("", |(user, _)| user.split(';').next().unwrap_or(user))
}

fn is_named(found: &str, name: &str, compact: Option<&str>) -> bool {
    found.eq_ignore_ascii_case(name) || compact.is_some_and(|compact| found.eq_ignore_ascii_case(compact))
}

fn compact(name: &str) -> Option<&'static str> {
    Some(match name {
        "Call-ID" => "i",
        "Contact" => "m",
        "Content-Length" => "l",
        "From" => "f",
        "To" => "t",
        "Via" => "v",
        "Session-Expires" => "x",
        _ => return None,
    })
}

fn end_of_headers(bytes: &[u8]) -> Option<usize> {
    // Lines are longer than a terminator: hop from line feed to line feed.
    let mut at = 0;
    while let Some(offset) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        at += offset + 1;
        if bytes[at..].starts_with(b"\r\n") {
            return Some(at + 2);
        }
    }
    None
}

/// Length of keep-alives and of the first whole message in a stream (RFC 3261 §18.3), the former
/// first. `None`: more has to come.
///
/// # Errors
/// What is there can never become a message.
pub fn frame(stream: &[u8]) -> Result<Option<(usize, usize)>> {
    let blank = stream.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let stream = &stream[blank..];
    let Some(head) = end_of_headers(stream) else {
        ensure!(stream.len() <= MESSAGE_BYTES_MAX, "no end of headers in {MESSAGE_BYTES_MAX} bytes");
        return Ok(None);
    };
    let length = match Glance::read(&stream[..head])?.value("Content-Length") {
        Some(length) => length.parse::<usize>().context("Content-Length is no number")?,
        None => 0,
    };
    if length > MESSAGE_BYTES_MAX {
        bail!("a body of {length} bytes is too long");
    }
    Ok((stream.len() >= head + length).then_some((blank, head + length)))
}

/// What differs from one request to the next.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Method.
    pub method: &'a str,
    /// Request-URI.
    pub uri: &'a str,
    /// Where we are, for Via.
    pub local: std::net::SocketAddr,
    /// Where we can be reached, for Contact.
    pub contact: std::net::SocketAddr,
    /// How it travels.
    pub transport: Transport,
    /// Branch parameter.
    pub branch: &'a str,
    /// From, with our tag.
    pub from: &'a str,
    /// To, with the far side's tag once there is one.
    pub to: &'a str,
    /// Call-ID.
    pub call_id: &'a str,
    /// Sequence number.
    pub cseq: u32,
    /// Route set, next hop first.
    pub routes: &'a [String],
    /// SDP.
    pub body: Option<&'a str>,
}

impl Request<'_> {
    /// Adds it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Self { method, uri, local, branch, from, to, call_id, cseq, .. } = self;
        let transport = self.transport.name();
        // A Vec takes everything.
        let _ = write!(
            out,
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{transport} {local};branch={branch};rport\r\n\
             Max-Forwards: 70\r\nFrom: {from}\r\nTo: {to}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n\
             Contact: {}\r\nUser-Agent: voxperf\r\nAllow: INVITE, ACK, CANCEL, OPTIONS, BYE, UPDATE\r\n",
            contact(self.contact, self.transport)
        );
        for route in self.routes {
            let _ = write!(out, "Route: {route}\r\n");
        }
        write_body(out, self.body);
    }
}

/// Our Contact on a way.
pub fn contact(local: std::net::SocketAddr, transport: Transport) -> String {
    format!("<sip:voxperf@{local};transport={}>", transport.name().to_ascii_lowercase())
}

/// Adds a response to `out`: Via, From, To, Call-ID, CSeq and Record-Route of the request (RFC 3261
/// §8.2.6, §12.1.1), To with `tag` if it has none, and further whole header lines.
pub fn write_response(
    out: &mut Vec<u8>,
    request: &Glance<'_>,
    status: &str,
    tag: &str,
    extra: &[String],
    body: Option<&str>,
) {
    // A Vec takes everything.
    let _ = write!(out, "SIP/2.0 {status}\r\n");
    for (name, value) in request.lines() {
        let copied = ["Via", "From", "Call-ID", "CSeq", "Record-Route"];
        if copied.iter().any(|copied| is_named(name, copied, compact(copied))) {
            let _ = write!(out, "{name}: {value}\r\n");
        } else if is_named(name, "To", compact("To")) {
            let tag = if value.contains(";tag=") { String::new() } else { format!(";tag={tag}") };
            let _ = write!(out, "{name}: {value}{tag}\r\n");
        }
    }
    for line in extra {
        let _ = write!(out, "{line}\r\n");
    }
    write_body(out, body);
}

fn write_body(out: &mut Vec<u8>, body: Option<&str>) {
    let _ = match body {
        Some(body) => {
            write!(out, "Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        None => write!(out, "Content-Length: 0\r\n\r\n"),
    };
}

#[cfg(test)]
mod tests {
    use rsip::SipMessage;

    use super::*;
    use crate::sip::wire::Incoming;

    fn invite(body: Option<&str>) -> Vec<u8> {
        let mut out = Vec::new();
        let routes = ["<sip:p1;lr>".to_owned(), "<sip:p2;lr>".to_owned()];
        let request = Request {
            method: "INVITE",
            uri: "sip:9197@127.0.0.1:5060;transport=tcp",
            local: "127.0.0.1:4000".parse().unwrap(),
            contact: "127.0.0.1:4000".parse().unwrap(),
            transport: Transport::Tcp,
            branch: "z9hG4bKx",
            from: "<sip:p1@127.0.0.1>;tag=1",
            to: "<sip:9197@127.0.0.1>",
            call_id: "abc@voxperf",
            cseq: 7,
            routes: &routes,
            body,
        };
        request.write(&mut out);
        out
    }

    /// Goal: a request carries what it must (RFC 3261 §8.1.1), as another reader sees it.
    /// Method: an INVITE with a body and routes, read by rsip.
    #[test]
    fn a_request_carries_what_it_must() {
        let read = Incoming::read(&invite(Some("v=0\r\n"))).unwrap();
        assert_eq!(read.cseq().unwrap(), (7, rsip::Method::Invite));
        assert_eq!(read.value("Content-Length").as_deref(), Some("5"));
        assert_eq!(read.value("Max-Forwards").as_deref(), Some("70"));
        assert_eq!(read.values("Route"), ["<sip:p1;lr>", "<sip:p2;lr>"]);
        assert_eq!(read.body(), b"v=0\r\n");
        assert_eq!(read.contact().unwrap().port().map(|port| *port.value()), Some(4000));
    }

    /// Goal: a response copies what it must (RFC 3261 §8.2.6), compact names too, and adds the tag.
    /// Method: answer an INVITE with two Vias and an f: line; read it with rsip.
    #[test]
    fn a_response_copies_what_it_must() {
        let text = "INVITE sip:p7@h SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=1\r\nv: SIP/2.0/TCP b;branch=2\r\n\
                    f: <sip:x@y>;tag=9\r\nTo: <sip:z@y>\r\nCall-ID: c\r\nCSeq: 3 INVITE\r\nSubject: no\r\n\
                    Content-Length: 0\r\n\r\n";
        let mut out = Vec::new();
        let extra = ["Contact: <sip:voxperf@h>".to_owned()];
        write_response(
            &mut out,
            &Glance::read(text.as_bytes()).unwrap(),
            "200 OK",
            "t1",
            &extra,
            Some("v=0\r\n"),
        );
        let glance = Glance::read(&out).unwrap();
        assert_eq!(glance.start, Start::Response(200, "OK"));
        assert_eq!(glance.values("Via").count(), 2);
        assert_eq!(
            (glance.value("To"), glance.value("From")),
            (Some("<sip:z@y>;tag=t1"), Some("<sip:x@y>;tag=9"))
        );
        assert_eq!((glance.value("Subject"), glance.contact()), (None, Some("sip:voxperf@h")));
        assert_eq!(glance.body, b"v=0\r\n");
        assert!(matches!(Incoming::read(&out).unwrap().sip, SipMessage::Response(_)));
    }

    /// Goal: messages are framed by Content-Length wherever segments break; keep-alives are skipped.
    /// Method: a message after a keep-alive, each prefix of it, and nonsense.
    #[test]
    fn messages_are_framed_wherever_segments_break() {
        let message = invite(Some("v=0\r\n"));
        let stream = [b"\r\n\r\n", &message[..], b"BYE sip:a SIP/2.0\r\n\r\n"].concat();
        assert_eq!(frame(&stream).unwrap(), Some((4, message.len())));
        assert!((0..4 + message.len()).all(|cut| frame(&stream[..cut]).unwrap().is_none()));
        assert_eq!(frame(b"BYE sip:a SIP/2.0\r\n\r\n").unwrap(), Some((0, 21)));
        assert!(frame(b"BYE sip:a SIP/2.0\r\nl: many\r\n\r\n").is_err());
        assert!(frame(b"BYE sip:a SIP/2.0\r\nl: 999999999\r\n\r\n").is_err());
        assert!(frame(&[b'x'; MESSAGE_BYTES_MAX + 1]).is_err());
        assert!(frame(b"nonsense\r\n\r\n").is_err());
    }

    /// Goal: URIs and their users are found in each form.
    /// Method: with and without brackets, parameters, user and scheme.
    #[test]
    fn uris_and_users_are_found() {
        assert_eq!(
            uri_of("\"UM\" <sip:1001@[fd00::7]:5066;transport=tls>;q=1"),
            "sip:1001@[fd00::7]:5066;transport=tls"
        );
        assert_eq!(uri_of("sip:1001@um.test:5066;q=0.5"), "sip:1001@um.test:5066");
        assert_eq!(user_of("sip:p17@127.0.0.1"), "p17");
        assert_eq!(user_of("sips:p17;isub=1@127.0.0.1"), "p17");
        assert_eq!(user_of("sip:127.0.0.1:5060"), "");
    }
}
