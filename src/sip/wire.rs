//! Lines of a message's head, before they mean anything: shared by framer and parser, so that
//! the two can never disagree where a message ends.

use bytes::Bytes;

use super::headers::{Header, Headers};
use super::names::{Method, Name};
use super::text::{number, trim};
use crate::base::limits::SIP_HEADERS_MAX;

/// Why a message is refused: status and reason phrase of the response to it.
pub(crate) type Fault = (u16, &'static str);

/// A head taken apart, as far as it could be.
pub(crate) struct Draft {
    /// The start line without its line end.
    pub(crate) start: Bytes,
    /// Every field that could be read, Content-Length left out.
    pub(crate) headers: Headers,
    /// What Content-Length says, if it is there.
    pub(crate) content_length: Option<usize>,
    /// Where the body starts.
    pub(crate) body_start: usize,
    /// The first thing wrong.
    pub(crate) fault: Option<Fault>,
}

/// One field, or the start line, folds and all.
struct Line<'a> {
    /// Without its line end.
    text: &'a [u8],
    /// Where the next line starts.
    next: usize,
    /// It ends with a bare LF: a fault, but what it says can still be answered.
    bare: bool,
}

/// The line that starts at `from`. `None` without a whole line.
///
/// A line end before a blank folds (RFC 3261 §7.3.1), except that of the empty line.
fn next_line(head: &[u8], from: usize) -> Option<Line<'_>> {
    let rest = head.get(from..)?;
    for at in memchr::memchr_iter(b'\n', rest) {
        let text = &rest[..at];
        let (text, bare) = text.strip_suffix(b"\r").map_or((text, true), |text| (text, false));
        if text.is_empty() || !matches!(rest.get(at + 1), Some(b' ' | b'\t')) {
            return Some(Line { text, next: from + at + 1, bare });
        }
    }
    None
}

/// Length of the blank lines that stand before a start line (RFC 3261 §7.5).
pub(crate) fn leading_blank_lines(bytes: &[u8]) -> usize {
    bytes.chunks_exact(2).take_while(|pair| *pair == b"\r\n").count() * 2
}

/// Takes the head of `bytes` apart. Without an empty line the head ends with the bytes, which is
/// a fault, but what is there can still be answered.
pub(crate) fn draft(bytes: &Bytes) -> Draft {
    let mut headers = Headers::default();
    let mut fault = None;
    let mut content_length = None;
    let start_at = leading_blank_lines(bytes);
    let Some(start) = next_line(bytes, start_at) else {
        let fault = Some((400, "Incomplete Message"));
        return Draft {
            start: bytes.slice(start_at..),
            headers,
            content_length,
            body_start: bytes.len(),
            fault,
        };
    };
    let mut at = start.next;
    let mut bare = start.bare;
    let start = bytes.slice_ref(start.text);
    if memchr::memchr2(b'\r', b'\n', &start).is_some() {
        fault = Some((400, "Malformed Start Line"));
    }
    let mut count = 0;
    loop {
        let Some(line) = next_line(bytes, at) else {
            fault = fault.or(Some((400, "Incomplete Message")));
            at = bytes.len();
            break;
        };
        at = line.next;
        bare |= line.bare;
        if line.text.is_empty() {
            break;
        }
        count += 1;
        if count > SIP_HEADERS_MAX {
            fault = fault.or(Some((400, "Too Many Header Fields")));
            continue; // The body's start is still wanted.
        }
        match read_field(bytes, line.text) {
            Ok(Header { name: Name::ContentLength, value }) => match read_length(&value, content_length) {
                Ok(length) => content_length = Some(length),
                Err(wrong) => fault = fault.or(Some(wrong)),
            },
            Ok(header) => headers.push_header(header),
            Err(wrong) => fault = fault.or(Some(wrong)),
        }
    }
    if bare {
        fault = Some((400, "Bare LF in Message Head"));
    }
    Draft { start, headers, content_length, body_start: at, fault }
}

/// What the Content-Length fields of a head say, and nothing else read.
pub(crate) fn content_length(head: &[u8]) -> Result<Option<usize>, Fault> {
    let mut length = None;
    let mut at = next_line(head, 0).map_or(head.len(), |start| start.next);
    while let Some(Line { text, next, .. }) = next_line(head, at) {
        at = next;
        let Some(colon) = memchr::memchr(b':', text) else { continue };
        let name = trim(&text[..colon]);
        if name.eq_ignore_ascii_case(b"Content-Length") || name.eq_ignore_ascii_case(b"l") {
            length = Some(read_length(trim(&text[colon + 1..]), length)?);
        }
    }
    Ok(length)
}

/// Reads one Content-Length: digits alone, and the same as any before (RFC 3261 §20.14).
fn read_length(value: &[u8], before: Option<usize>) -> Result<usize, Fault> {
    // A value of more digits than a usize holds is a length nobody can send, not garbage.
    let length = match number::<usize>(value) {
        Some(length) => length,
        None if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => usize::MAX,
        None => return Err((400, "Malformed Content-Length")),
    };
    match before {
        Some(before) if before != length => Err((400, "Conflicting Content-Length")),
        _ => Ok(length),
    }
}

/// Splits one field and unfolds its value. `line` is a part of `bytes`, which an unfolded value
/// shares.
fn read_field(bytes: &Bytes, line: &[u8]) -> Result<Header, Fault> {
    let colon = memchr::memchr(b':', line).ok_or((400, "Header Field Without Colon"))?;
    let (name, value) = line.split_at(colon);
    // Blanks before the colon are legal (RFC 3261 §25.1, HCOLON); before the name they would
    // have been a fold.
    let name_end = name.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |at| at + 1);
    let name = Name::parse(&name[..name_end]).ok_or((400, "Malformed Header Field Name"))?;
    let value = trim(&value[1..]);
    if memchr::memchr2(b'\r', b'\n', value).is_none() {
        return Ok(Header { name, value: bytes.slice_ref(value) });
    }
    let value = unfold(value).ok_or((400, "Bare CR or LF in Header Field"))?;
    Ok(Header { name, value: value.into() })
}

/// Each fold, with the blanks around it, becomes one space. `None`: a CR or LF that is no fold.
fn unfold(value: &[u8]) -> Option<Vec<u8>> {
    let mut flat = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = memchr::memchr2(b'\r', b'\n', rest) {
        flat.extend_from_slice(&rest[..at]);
        let [b'\r', b'\n', b' ' | b'\t', ..] = rest[at..] else { return None };
        while flat.last().is_some_and(|b| matches!(b, b' ' | b'\t')) {
            flat.pop();
        }
        flat.push(b' ');
        rest = &rest[at + 2..];
        while let [b' ' | b'\t', tail @ ..] = rest {
            rest = tail;
        }
    }
    flat.extend_from_slice(rest);
    Some(flat)
}

/// The response a broken request gets, made of what can be read of it: `None` for a response, an
/// ACK (RFC 3261 §17.1.1.3), or a request without the Via and CSeq that lead an answer back.
pub(crate) fn refusal(draft: &Draft, (status, reason): Fault) -> Option<Bytes> {
    let (method, _) = super::text::split_once(&draft.start, b' ');
    let method = Method::parse(method)?;
    let headers = &draft.headers;
    headers.first(&Name::Via).filter(|via| !via.is_empty())?;
    headers.first(&Name::CSeq).filter(|cseq| !cseq.is_empty())?;
    if method == Method::Ack || draft.start.starts_with(b"SIP/") {
        return None;
    }
    let mut response = super::message::Response::new(status, reason);
    for header in headers.iter() {
        if matches!(header.name, Name::Via | Name::From | Name::CallId | Name::CSeq) {
            response.headers.push_header(header.clone());
        } else if header.name == Name::To {
            response.headers.push(Name::To, tagged(&header.value, headers));
        }
    }
    Some(super::message::Message::Response(response).to_bytes())
}

/// A To with a tag, since every final response needs one (RFC 3261 §8.2.6.2). It is a function
/// of the request, so that each copy gets the same (§8.2.7).
fn tagged(to: &Bytes, headers: &Headers) -> Bytes {
    use std::hash::{DefaultHasher, Hash, Hasher};
    match super::header::NameAddr::parse(to) {
        Ok(address) if !address.params.has("tag") => {
            let mut hasher = DefaultHasher::new();
            for name in [Name::CallId, Name::From, Name::CSeq, Name::Via] {
                headers.first(&name).hash(&mut hasher);
            }
            let mut tagged = to.to_vec();
            tagged.extend_from_slice(format!(";tag=r{:016x}", hasher.finish()).as_bytes());
            tagged.into()
        }
        _ => to.clone(), // It has one, or no tag could be told from the rest.
    }
}
