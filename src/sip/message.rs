//! Requests and responses (RFC 3261 §7): from bytes, to bytes, and the refusal of bad ones.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::header::{CSeq, NameAddr, SyntaxError, Via};
pub use super::headers::{Header, Headers};
pub use super::names::{Method, Name};
use super::text::number;
use super::uri::Uri;
use super::wire::{self, Draft, Fault};
use crate::base::limits::SIP_MESSAGE_BYTES_MAX;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub method: Method,
    /// The Request-URI as it came.
    pub uri: Bytes,
    /// The header fields without Content-Length.
    pub headers: Headers,
    /// The body, any bytes.
    pub body: Bytes,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 100 to 699.
    pub status: u16,
    /// The reason phrase, which means nothing (RFC 3261 §7.2).
    pub reason: String,
    /// The header fields without Content-Length.
    pub headers: Headers,
    /// The body, any bytes.
    pub body: Bytes,
}

/// One SIP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A request.
    Request(Request),
    /// A response.
    Response(Response),
}

/// Why bytes are no message to act on. Always the peer's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The status a request so broken is answered with: 400, 413, 505. A response is dropped.
    pub status: u16,
    /// What is wrong, fit for a reason phrase.
    pub reason: String,
    response: Option<Bytes>,
}

impl ParseError {
    fn new(draft: &Draft, fault: Fault) -> Self {
        Self { status: fault.0, reason: fault.1.to_owned(), response: wire::refusal(draft, fault) }
    }

    /// A whole response to send back, if enough of the request could be read. `None` for a
    /// response, an ACK, and a request without Via or CSeq.
    pub fn response(&self) -> Option<Bytes> {
        self.response.clone()
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.reason)
    }
}

impl std::error::Error for ParseError {}

impl Message {
    /// Reads one message: a datagram, or a frame of a stream. Header values and the body share
    /// the bytes.
    ///
    /// Bytes behind the body that Content-Length states are dropped; without Content-Length the
    /// body is the rest (RFC 3261 §18.3).
    ///
    /// # Errors
    /// Anything off the grammar of the start line or of the fields that every message needs
    /// (Via, From, To, Call-ID, CSeq, once each but Via); a CSeq for another method; a malformed
    /// Request-URI, Contact or Max-Forwards in a request; a body shorter than stated; a version
    /// other than SIP/2.0 (505); too many bytes (413) or fields. Malformed fields that are not
    /// needed are kept and ignored (§8.2).
    pub fn parse(bytes: Bytes) -> Result<Self, ParseError> {
        let draft = wire::draft(&bytes);
        if bytes.len() > SIP_MESSAGE_BYTES_MAX {
            return Err(ParseError::new(&draft, (413, "Message Too Large")));
        }
        match read(&draft, &bytes) {
            Ok((start, body)) => Ok(start.message(draft.headers, body)),
            Err(fault) => Err(ParseError::new(&draft, fault)),
        }
    }

    /// Writes the message, Content-Length last of its fields.
    pub fn to_bytes(&self) -> Bytes {
        let (headers, body) = match self {
            Self::Request(request) => (&request.headers, &request.body),
            Self::Response(response) => (&response.headers, &response.body),
        };
        let start = match self {
            Self::Request(request) => request.method.as_str().len() + request.uri.len() + 11,
            Self::Response(response) => response.reason.len() + 14,
        };
        let fields: usize = headers.iter().map(|h| h.name.as_str().len() + h.value.len() + 4).sum();
        let end = format!("Content-Length: {}\r\n\r\n", body.len());
        // To the byte, since transactions keep what they sent.
        let mut out = BytesMut::with_capacity(start + fields + end.len() + body.len());
        match self {
            Self::Request(request) => {
                out.put_slice(request.method.as_str().as_bytes());
                out.put_slice(b" ");
                out.put_slice(&request.uri);
                out.put_slice(b" SIP/2.0\r\n");
            }
            Self::Response(response) => {
                out.put_slice(format!("SIP/2.0 {:03} ", response.status).as_bytes());
                out.extend(response.reason.bytes().filter(|b| !matches!(b, b'\r' | b'\n')));
                out.put_slice(b"\r\n");
            }
        }
        for Header { name, value } in headers.iter() {
            out.put_slice(name.as_str().as_bytes());
            out.put_slice(b": ");
            out.put_slice(value);
            out.put_slice(b"\r\n");
        }
        out.put_slice(end.as_bytes());
        out.put_slice(body);
        out.freeze()
    }

    /// The header fields of either kind.
    pub fn headers(&self) -> &Headers {
        match self {
            Self::Request(request) => &request.headers,
            Self::Response(response) => &response.headers,
        }
    }
}

/// The typed readers that requests and responses share; see [`Headers`] for each.
macro_rules! typed_readers {
    ($kind:ty) => {
        impl $kind {
            /// The latest hop. See [`Headers::top_via`].
            ///
            /// # Errors
            /// Missing or malformed.
            pub fn top_via(&self) -> Result<Via, SyntaxError> {
                self.headers.top_via()
            }

            /// The From address. See [`Headers::from`].
            ///
            /// # Errors
            /// Missing or malformed.
            pub fn from(&self) -> Result<NameAddr, SyntaxError> {
                self.headers.from()
            }

            /// The To address. See [`Headers::to`].
            ///
            /// # Errors
            /// Missing or malformed.
            pub fn to(&self) -> Result<NameAddr, SyntaxError> {
                self.headers.to()
            }

            /// The command sequence. See [`Headers::cseq`].
            ///
            /// # Errors
            /// Missing or malformed.
            pub fn cseq(&self) -> Result<CSeq, SyntaxError> {
                self.headers.cseq()
            }

            /// The Call-ID. See [`Headers::call_id`].
            ///
            /// # Errors
            /// Missing or malformed.
            pub fn call_id(&self) -> Result<&str, SyntaxError> {
                self.headers.call_id()
            }

            /// The Contact addresses. See [`Headers::contacts`].
            ///
            /// # Errors
            /// Malformed.
            pub fn contacts(&self) -> Result<Vec<NameAddr>, SyntaxError> {
                self.headers.contacts()
            }
        }
    };
}

typed_readers!(Request);
typed_readers!(Response);

impl Request {
    /// A request without header fields and body.
    pub fn new(method: Method, uri: impl Into<Bytes>) -> Self {
        Self { method, uri: uri.into(), headers: Headers::default(), body: Bytes::new() }
    }

    /// The Request-URI.
    ///
    /// # Errors
    /// Malformed; [`Message::parse`] lets no such request through.
    pub fn uri(&self) -> Result<Uri, SyntaxError> {
        Uri::parse(&self.uri)
    }
}

impl Response {
    /// A response without header fields and body. `status` is 100 to 699.
    pub fn new(status: u16, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), headers: Headers::default(), body: Bytes::new() }
    }

    /// The response to a request: its Via list, From, To, Call-ID and CSeq (RFC 3261 §8.2.6.2),
    /// in a 100 its Timestamp too (§8.2.6.1). No To tag is added.
    pub fn for_request(request: &Request, status: u16, reason: impl Into<String>) -> Self {
        let mut response = Self::new(status, reason);
        for header in request.headers.iter() {
            let copied = matches!(header.name, Name::Via | Name::From | Name::To | Name::CallId | Name::CSeq);
            if copied || (header.name == Name::Timestamp && status == 100) {
                response.headers.push_header(header.clone());
            }
        }
        response
    }
}

/// A start line that was understood.
enum Start {
    /// A request's.
    Request { method: Method, uri: Bytes },
    /// A response's.
    Status { status: u16, reason: String },
}

impl Start {
    fn message(self, headers: Headers, body: Bytes) -> Message {
        match self {
            Self::Request { method, uri } => Message::Request(Request { method, uri, headers, body }),
            Self::Status { status, reason } => Message::Response(Response { status, reason, headers, body }),
        }
    }
}

/// Checks a draft: what its start line says, and its body.
fn read(draft: &Draft, bytes: &Bytes) -> Result<(Start, Bytes), Fault> {
    let start = match draft.start.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case(b"SIP/") => read_status_line(&draft.start)?,
        _ => read_request_line(&draft.start)?,
    };
    if let Some(fault) = draft.fault {
        return Err(fault);
    }
    let body = read_body(draft, bytes)?;
    let cseq = check_mandatory(&draft.headers)?;
    if let Start::Request { method, uri } = &start {
        if cseq.method != *method {
            return Err((400, "CSeq Method Does Not Match")); // RFC 3261 §8.1.1.5
        }
        check_request(uri, &draft.headers)?;
    }
    Ok((start, body))
}

/// `Method SP Request-URI SP SIP-Version` (RFC 3261 §7.1): single spaces, no blanks in the URI.
fn read_request_line(line: &Bytes) -> Result<Start, Fault> {
    const ERROR: Fault = (400, "Malformed Request-Line");
    let mut parts = line.split(|&b| b == b' ');
    let (Some(method), Some(uri), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(ERROR);
    };
    let method = Method::parse(method).ok_or(ERROR)?;
    check_version(version, ERROR)?;
    Ok(Start::Request { method, uri: line.slice_ref(uri) })
}

/// `SIP-Version SP Status-Code SP Reason-Phrase` (RFC 3261 §7.2).
fn read_status_line(line: &Bytes) -> Result<Start, Fault> {
    const ERROR: Fault = (400, "Malformed Status-Line");
    let mut parts = line.splitn(3, |&b| b == b' ');
    check_version(parts.next().ok_or(ERROR)?, ERROR)?;
    let code = parts.next().ok_or(ERROR)?;
    let status: u16 = number(code).filter(|s| code.len() == 3 && (100..700).contains(s)).ok_or(ERROR)?;
    // A missing space before an empty phrase is common enough to forgive.
    let reason = super::text::text(parts.next().unwrap_or_default());
    Ok(Start::Status { status, reason })
}

/// SIP/2.0 in any case (RFC 3261 §7.1); another version is 505, anything else `otherwise`.
fn check_version(version: &[u8], otherwise: Fault) -> Result<(), Fault> {
    if version.eq_ignore_ascii_case(b"SIP/2.0") {
        return Ok(());
    }
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let other = version.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"SIP/"))
        && version[4..].split(|&b| b == b'.').all(digits);
    Err(if other { (505, "Version Not Supported") } else { otherwise })
}

/// The body that Content-Length states, or the rest (RFC 3261 §18.3).
fn read_body(draft: &Draft, bytes: &Bytes) -> Result<Bytes, Fault> {
    let rest = bytes.slice(draft.body_start..);
    match draft.content_length {
        None => Ok(rest),
        Some(length) if length <= rest.len() => Ok(rest.slice(..length)),
        Some(_) => Err((400, "Content-Length Beyond Message")),
    }
}

/// What every message needs: each field once, Via at least once, all of them readable.
fn check_mandatory(headers: &Headers) -> Result<CSeq, Fault> {
    for (name, missing, repeated) in [
        (Name::From, "Missing From", "Repeated From"),
        (Name::To, "Missing To", "Repeated To"),
        (Name::CallId, "Missing Call-ID", "Repeated Call-ID"),
        (Name::CSeq, "Missing CSeq", "Repeated CSeq"),
    ] {
        match headers.all(&name).take(2).count() {
            0 => return Err((400, missing)),
            1 => {}
            _ => return Err((400, repeated)),
        }
    }
    if !headers.contains(&Name::Via) {
        return Err((400, "Missing Via"));
    }
    headers.vias().map_err(|_| (400, "Malformed Via"))?;
    headers.from().map_err(|_| (400, "Malformed From"))?;
    headers.to().map_err(|_| (400, "Malformed To"))?;
    headers.call_id().map_err(|_| (400, "Malformed Call-ID"))?;
    headers.cseq().map_err(|_| (400, "Malformed CSeq"))
}

/// What a request needs besides.
fn check_request(uri: &Bytes, headers: &Headers) -> Result<(), Fault> {
    match Uri::parse(uri).map_err(|_| (400, "Malformed Request-URI"))? {
        // Headers are not allowed in a Request-URI (RFC 3261 §19.1.1, table 1).
        Uri::Sip(uri) if uri.headers.is_some() => return Err((400, "Header Fields in Request-URI")),
        Uri::Sip(_) | Uri::Tel(_) | Uri::Other { .. } => {}
    }
    headers.contacts().map_err(|_| (400, "Malformed Contact"))?;
    if headers.all(&Name::MaxForwards).nth(1).is_some() {
        return Err((400, "Repeated Max-Forwards"));
    }
    headers.max_forwards().map_err(|_| (400, "Malformed Max-Forwards"))?;
    Ok(())
}

#[cfg(test)]
mod tests;
