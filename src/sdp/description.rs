//! A session description as it arrived, read more kindly than RFC 8866 asks.

use sdp_types::{ParserError, Session};

use super::error::OfferError;

/// Most media lines in one description; each is answered.
pub(super) const MEDIA_LINES_MAX: usize = 32;

/// A session description with sound syntax. `Debug` hides it: there may be keys in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Description {
    pub(super) session: Session,
}

impl std::fmt::Debug for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Description").field("media_lines", &self.session.medias.len()).finish_non_exhaustive()
    }
}

impl Description {
    /// True when an audio line that is not switched off is for SRTP (RFC 3711, RFC 5124).
    pub fn offers_srtp(&self) -> bool {
        let is_srtp = |proto: &str| proto.to_ascii_uppercase().contains("SAVP");
        let mut audio = self.session.medias.iter().filter(|m| m.media == "audio" && m.port != 0);
        audio.any(|media| is_srtp(&media.proto))
    }
}

/// Reads a body of type `application/sdp`.
///
/// Tolerated: missing `o=`, `s=` and `t=`, bare LF, text that is not UTF-8, and an `o=` line
/// whose numbers no one can hold (`-1`, 24 digits): nothing here depends on the peer's origin.
///
/// # Errors
/// `Syntax` with the line, or `TooManyMedia`.
pub fn parse(body: &[u8]) -> Result<Description, OfferError> {
    let text = String::from_utf8_lossy(body);
    let session = match Session::parse(text.as_bytes()) {
        Err(error) if is_about_origin(&error) => Session::parse(without_origin(&text).as_bytes()),
        result => result,
    };
    let session = session.map_err(|error| {
        let line = line_of(&error).unwrap_or(1);
        OfferError::Syntax { line, what: error.to_string() }
    })?;
    if session.medias.len() > MEDIA_LINES_MAX {
        return Err(OfferError::TooManyMedia);
    }
    Ok(Description { session })
}

/// True for an `o=` line that has its six fields, but not all as RFC 8866 §5.2 has them.
fn is_about_origin(error: &ParserError) -> bool {
    matches!(error, ParserError::InvalidFieldFormat(_, field) if field.starts_with("Origin"))
}

/// The text with its `o=` lines emptied, so that line numbers stay.
fn without_origin(text: &str) -> String {
    text.split_inclusive('\n').map(|line| if line.starts_with("o=") { "\n" } else { line }).collect()
}

#[expect(deprecated, reason = "the crate keeps retired variants that a match must name")]
fn line_of(error: &ParserError) -> Option<usize> {
    match *error {
        ParserError::UnexpectedLine(line, _)
        | ParserError::InvalidLineFormat(line, _)
        | ParserError::InvalidFieldEncoding(line, _)
        | ParserError::InvalidFieldFormat(line, _)
        | ParserError::MissingField(line, _)
        | ParserError::FieldTrailingData(line, _)
        | ParserError::InvalidVersion(line, _)
        | ParserError::MultipleVersions(line)
        | ParserError::MultipleOrigins(line)
        | ParserError::MultipleSessionNames(line)
        | ParserError::MultipleSessionDescription(line)
        | ParserError::MultipleUris(line)
        | ParserError::MultipleConnections(line)
        | ParserError::MultipleTimeZones(line)
        | ParserError::MultipleMediaTitles(line)
        | ParserError::MultipleKeys(line)
        | ParserError::RepeatWithoutTime(line) => Some(line),
        ParserError::NoVersion | ParserError::NoOrigin | ParserError::NoSessionName => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "s=x\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n";

    /// Goal: origins and texts seen in the field do not cost the call. Method: one body each.
    #[test]
    fn odd_but_harmless_descriptions_are_read() {
        for body in [
            format!("v=0\r\no=- 1 -1 IN IP4 192.0.2.1\r\n{TAIL}").into_bytes(),
            format!("v=0\r\no=- 1 123456789012345678901234 IN IP4 192.0.2.1\r\n{TAIL}").into_bytes(),
            b"v=0\no=- 1 1 IN IP4 192.0.2.1\ns=Andr\xE9\nc=IN IP4 192.0.2.1\nm=audio 4000 RTP/AVP 0\n"
                .to_vec(),
            b"v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\n".to_vec(),
        ] {
            let description = parse(&body).unwrap();
            assert_eq!(description.session.medias.len(), 1);
        }
    }

    /// Goal: a syntax error names its line and means 400. Method: one broken line each.
    #[test]
    fn syntax_errors_name_their_line() {
        for (body, expected) in [
            ("", 1),
            ("hello", 1),
            ("v=1\r\n", 1),
            ("v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=x\r\nc=IN IP4\r\n", 4),
            ("v=0\r\no=- 1 -1 IN IP4 192.0.2.1\r\ns=x\r\nm=audio abc RTP/AVP 0\r\n", 4),
            ("v=0\r\no=- 1 1\r\n", 2),
            ("v=0\r\ns=x\r\nm=audio 70000 RTP/AVP 0\r\n", 3),
            ("v=0\r\nnonsense\r\n", 2),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400);
            assert!(
                matches!(error, OfferError::Syntax { line, .. } if line == expected),
                "{body:?}: {error}"
            );
        }
    }

    /// Goal: an answer stays small. Method: one media line more than allowed.
    #[test]
    fn more_media_lines_than_the_limit_are_refused() {
        let body = |lines: usize| format!("v=0\r\n{}", "m=audio 4000 RTP/AVP 0\r\n".repeat(lines));
        assert!(parse(body(MEDIA_LINES_MAX).as_bytes()).is_ok());
        assert_eq!(parse(body(MEDIA_LINES_MAX + 1).as_bytes()), Err(OfferError::TooManyMedia));
    }
}
