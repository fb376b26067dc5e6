//! Bytes of SIP's grammar (RFC 3261 §25.1): tokens, quoted strings, escapes, comma lists.

/// A text that does not follow the grammar. Always the peer's doing: 400 in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct SyntaxError(pub &'static str);

/// True for a character of `token`.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte)
}

/// True for a non-empty `token`.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_token_byte)
}

/// True for the bytes of LWS, line ends of a fold included.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Without LWS at either end.
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes {
        if !is_space(*first) {
            break;
        }
        bytes = rest;
    }
    while let [rest @ .., last] = bytes {
        if !is_space(*last) {
            break;
        }
        bytes = rest;
    }
    bytes
}

/// As text: UTF-8 where it is that, else each byte is its Latin-1 character.
pub(crate) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

/// Splits at the first `separator` byte: what is before it and, if there is one, what is after.
pub(crate) fn split_once(bytes: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(separator, bytes) {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    }
}

/// Where the first of `ends` stands outside quoted strings and `<>`; the length if none does.
///
/// A quote or bracket that never closes swallows the rest, so the typed reader refuses it.
pub(crate) fn find_outside(bytes: &[u8], ends: &[u8]) -> usize {
    let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
    for (at, &byte) in bytes.iter().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        if !bracketed && ends.contains(&byte) {
            return at;
        }
        match byte {
            b'"' if !bracketed => quoted = true,
            b'<' => bracketed = true,
            b'>' => bracketed = false,
            _ => {}
        }
    }
    bytes.len()
}

/// Ranges of the elements of a comma list, trimmed; empty elements are yielded as such.
pub(crate) fn split_list(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let end = find_outside(bytes, b",");
        rest = bytes.get(end + 1..);
        Some(trim(bytes.get(..end)?))
    })
}

/// Reads the quoted string that starts `bytes`: its meaning and what follows the closing quote.
pub(crate) fn quoted_string(bytes: &[u8]) -> Result<(String, &[u8]), SyntaxError> {
    const ERROR: SyntaxError = SyntaxError("quoted string");
    let [b'"', body @ ..] = bytes else { return Err(ERROR) };
    let mut meaning = Vec::new();
    let mut at = 0;
    while let Some(&byte) = body.get(at) {
        match byte {
            b'"' => return Ok((text(&meaning), &body[at + 1..])),
            b'\\' => {
                at += 1;
                meaning.push(*body.get(at).ok_or(ERROR)?);
            }
            _ => meaning.push(byte),
        }
        at += 1;
    }
    Err(ERROR)
}

/// Writes `text` as a quoted string. Line ends cannot be quoted (RFC 3261 §25.1) and are left out.
pub(crate) fn write_quoted(out: &mut impl std::fmt::Write, text: &str) -> std::fmt::Result {
    out.write_char('"')?;
    for c in text.chars() {
        match c {
            '\r' | '\n' => continue,
            '"' | '\\' => out.write_char('\\')?,
            c if c.is_ascii_control() && c != '\t' => out.write_char('\\')?,
            _ => {}
        }
        out.write_char(c)?;
    }
    out.write_char('"')
}

/// Digits only, at least one, as a number; too large a number becomes the largest.
pub(crate) fn number_saturating(bytes: &[u8]) -> Option<u32> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u32, digit: &u8| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    Some(bytes.iter().fold(0, add))
}

/// Digits only, at least one, as a number; `None` also when it does not fit.
pub(crate) fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    if !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// True when each `%` starts an escape of two hex digits (RFC 3261 §25.1, `escaped`).
pub(crate) fn escapes_are_whole(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'%', bytes)
        .all(|at| bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)))
}

/// Escapes undone, as text. A `%` that starts no escape stands for itself.
pub(crate) fn unescape(escaped: &str) -> String {
    let bytes = escaped.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let value = digits.and_then(|d| std::str::from_utf8(d).ok()).map(|d| u8::from_str_radix(d, 16));
        match value {
            Some(Ok(value)) if byte == b'%' => {
                plain.push(value);
                at += 3;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    text(&plain)
}
