//! Messages out of a byte stream (RFC 3261 §18.3): one Content-Length decides where each ends.
//!
//! Framing that is in doubt ends the connection: guessing would let one peer's bytes pass for
//! another message. Keep-alives (RFC 5626 §3.5.1, RFC 3261 §7.5) are told apart from messages.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

use super::wire::{self, Fault};
use crate::base::limits::SIP_MESSAGE_BYTES_MAX;

/// How much a framer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramerLimits {
    /// Longest message, start line to body end, in bytes.
    pub message_bytes_max: usize,
}

impl Default for FramerLimits {
    fn default() -> Self {
        Self { message_bytes_max: SIP_MESSAGE_BYTES_MAX }
    }
}

/// One thing found in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One whole message for [`super::message::Message::parse`].
    Message(Bytes),
    /// CRLFCRLF: the peer wants a CRLF back (RFC 5626 §4.4.1).
    Ping,
    /// A lone CRLF: the answer to a ping, or a blank line to skip. It shows only with what follows
    /// it, for until then it may be half a ping.
    Pong,
}

/// True for a datagram that only keeps a NAT binding open: line ends or zero bytes, or nothing.
/// No response is due (RFC 5626 §4.4.1 has pings on streams only).
pub fn is_keep_alive(datagram: &[u8]) -> bool {
    datagram.iter().all(|b| matches!(b, b'\r' | b'\n' | 0))
}

/// Why the stream cannot be read any further. Fatal for the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameError {
    /// What the message at fault is answered: 400 or 413.
    pub status: u16,
    /// What is wrong, fit for a reason phrase.
    pub reason: &'static str,
    response: Option<Bytes>,
}

impl FrameError {
    /// A whole response to send before closing, if enough of the request could be read.
    pub fn response(&self) -> Option<Bytes> {
        self.response.clone()
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.reason)
    }
}

impl std::error::Error for FrameError {}

/// What is known of the message at the front of the buffer.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Its head has no end in the first `scanned` bytes.
    Head { scanned: usize },
    /// It is this many bytes long.
    Body { total: usize },
}

/// Splits a stream into messages. Push what arrived, then poll until `None`; between two pushes
/// it holds no more than one message's limit and what the last push brought.
#[derive(Debug)]
pub struct Framer {
    limits: FramerLimits,
    buffer: BytesMut,
    state: State,
    broken: Option<FrameError>,
}

impl Framer {
    /// A framer at the start of a stream.
    pub fn new(limits: FramerLimits) -> Self {
        Self { limits, buffer: BytesMut::new(), state: State::Head { scanned: 0 }, broken: None }
    }

    /// Takes bytes that arrived. After an error they are dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// True when a message has begun and not ended: closing now would lose it.
    pub fn is_partial(&self) -> bool {
        self.broken.is_none() && self.buffer.iter().any(|b| !matches!(b, b'\r' | b'\n'))
    }

    /// The next frame; `None` until more bytes arrive.
    ///
    /// # Errors
    /// Content-Length missing, malformed, contradictory (400) or too large (413); a head that is
    /// too long (413) or has line ends other than CRLF (400). The same error then comes again.
    pub fn poll(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.advance().map_err(|fault| {
            let head = std::mem::take(&mut self.buffer).freeze();
            let response = wire::refusal(&wire::draft(&head), fault);
            let error = FrameError { status: fault.0, reason: fault.1, response };
            self.broken = Some(error.clone());
            error
        })
    }

    fn advance(&mut self) -> Result<Option<Frame>, Fault> {
        let total = match self.state {
            State::Body { total } => total,
            State::Head { scanned: 0 } if matches!(self.buffer.first(), Some(b'\r' | b'\n')) => {
                return self.keep_alive();
            }
            State::Head { scanned } => match self.find_head_end(scanned)? {
                Some(head_end) => self.message_length(head_end)?,
                None => return Ok(None),
            },
        };
        if self.buffer.len() < total {
            self.state = State::Body { total };
            return Ok(None);
        }
        self.state = State::Head { scanned: 0 };
        // A framer that has nothing left keeps no memory either: most connections are idle.
        let whole = self.buffer.len() == total;
        let message = if whole { std::mem::take(&mut self.buffer) } else { self.buffer.split_to(total) };
        Ok(Some(Frame::Message(message.freeze())))
    }

    /// A blank line where a message might start. One CRLF may be half a ping, so it waits.
    fn keep_alive(&mut self) -> Result<Option<Frame>, Fault> {
        let (frame, length) = match &self.buffer[..] {
            [b'\r', b'\n', b'\r', b'\n', ..] => (Frame::Ping, 4),
            [b'\r'] | [b'\r', b'\n'] | [b'\r', b'\n', b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => (Frame::Pong, 2),
            _ => return Err((400, "Bare CR or LF")),
        };
        self.buffer.advance(length);
        Ok(Some(frame))
    }

    /// Where the head ends, its empty line included.
    fn find_head_end(&mut self, scanned: usize) -> Result<Option<usize>, Fault> {
        let bytes = &self.buffer[..];
        for at in memchr::memchr_iter(b'\n', &bytes[scanned..]).map(|at| at + scanned) {
            if at >= self.limits.message_bytes_max {
                return Err((413, "Message Too Large"));
            }
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err((400, "Bare LF in Message Head"));
            }
            if bytes[..at - 1].ends_with(b"\r\n") {
                return Ok(Some(at + 1));
            }
        }
        if bytes.len() > self.limits.message_bytes_max {
            return Err((413, "Message Too Large"));
        }
        self.state = State::Head { scanned: bytes.len() };
        Ok(None)
    }

    /// Length of the message whose head ends at `head_end`.
    fn message_length(&self, head_end: usize) -> Result<usize, Fault> {
        let length = wire::content_length(&self.buffer[..head_end])?;
        // RFC 3261 §18.3: on a stream the field is mandatory, since nothing else ends the body.
        let length = length.ok_or((400, "Missing Content-Length"))?;
        match head_end.checked_add(length) {
            Some(total) if total <= self.limits.message_bytes_max => Ok(total),
            _ => Err((413, "Message Too Large")),
        }
    }
}

#[cfg(test)]
mod tests;
