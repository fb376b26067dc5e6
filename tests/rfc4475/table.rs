//! What RFC 4475 §3 expects of each of its messages.
//!
//! A test includes this file as a module:
//! `#[path = "rfc4475/table.rs"] mod table;`

/// Which kind of test a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// §3.1.1: well formed, however strange.
    Valid,
    /// §3.1.2: malformed.
    Invalid,
    /// §3.2: for the transaction layer.
    Transaction,
    /// §3.3: for the user of the transaction layer.
    Application,
    /// §3.4: by the rules of RFC 2543.
    Compatibility,
}

/// What the parser makes of the message as a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datagram {
    /// A message.
    Understood,
    /// An error, and a response of this status to send.
    Refused(u16),
    /// An error without response.
    Dropped,
}

/// What the framer makes of the message as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// This many messages, the first of which fares as the datagram does.
    Messages(usize),
    /// An error that ends the connection.
    Broken,
    /// Bytes are missing; nothing happens until they come or patience ends.
    Waits,
}

/// What a node on the wire answers: the final response, or the one to the first of two requests.
/// Over a stream that is [`Stream::Broken`] the same, or nothing before it closes; over one that
/// is [`Stream::Waits`] nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Any final response: what the user part of the URI means decides.
    Any,
    /// One of these statuses.
    OneOf(&'static [u16]),
    /// Nothing at all.
    Nothing,
}

/// One message and what is expected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The RFC's name for it.
    pub(crate) name: &'static str,
    /// The section that describes it.
    pub(crate) section: &'static str,
    /// Which kind of test it is.
    pub(crate) class: Class,
    /// The message.
    pub(crate) bytes: &'static [u8],
    /// As a datagram.
    pub(crate) datagram: Datagram,
    /// As a stream.
    pub(crate) stream: Stream,
    /// What a node answers.
    pub(crate) answer: Answer,
}

macro_rules! case {
    ($name:literal, $section:literal, $class:ident, $datagram:expr, $stream:expr, $answer:expr) => {
        Case {
            name: $name,
            section: $section,
            class: Class::$class,
            bytes: include_bytes!(concat!($name, ".dat")),
            datagram: $datagram,
            stream: $stream,
            answer: $answer,
        }
    };
}

use Answer::{Any, Nothing, OneOf};
use Datagram::{Dropped, Refused, Understood};
use Stream::{Broken, Messages, Waits};

/// A REGISTER that a registrar may take and any other node refuses.
const REGISTER: Answer = OneOf(&[200, 404, 405, 501]);
/// 400 where the RFC names no other status.
const BAD: Answer = OneOf(&[400]);

/// All 49 messages in the order of the RFC.
///
/// Where the RFC leaves a choice, the datagram column has ours: everything it allows to refuse is
/// refused, save a Date that nobody reads (RFC 3261 §8.2.2); the answer column has what is allowed.
pub(crate) const CASES: &[Case] = &[
    case!("wsinv", "3.1.1.1", Valid, Understood, Messages(1), Any),
    case!("intmeth", "3.1.1.2", Valid, Understood, Messages(1), OneOf(&[405, 501])),
    case!("esc01", "3.1.1.3", Valid, Understood, Messages(1), Any),
    case!("escnull", "3.1.1.4", Valid, Understood, Messages(1), REGISTER),
    case!("esc02", "3.1.1.5", Valid, Understood, Messages(1), OneOf(&[405, 501])),
    case!("lwsdisp", "3.1.1.6", Valid, Understood, Messages(1), Any),
    case!("longreq", "3.1.1.7", Valid, Understood, Messages(1), Any),
    case!("dblreq", "3.1.1.8", Valid, Understood, Messages(2), REGISTER),
    case!("semiuri", "3.1.1.9", Valid, Understood, Messages(1), Any),
    case!("transports", "3.1.1.10", Valid, Understood, Messages(1), Any),
    case!("mpart01", "3.1.1.11", Valid, Understood, Messages(1), Any),
    case!("unreason", "3.1.1.12", Valid, Understood, Messages(1), Nothing),
    case!("noreason", "3.1.1.13", Valid, Understood, Messages(1), Nothing),
    case!("badinv01", "3.1.2.1", Invalid, Refused(400), Messages(1), BAD),
    case!("clerr", "3.1.2.2", Invalid, Refused(400), Waits, BAD),
    case!("ncl", "3.1.2.3", Invalid, Refused(400), Broken, BAD),
    case!("scalar02", "3.1.2.4", Invalid, Refused(400), Messages(1), BAD),
    case!("scalarlg", "3.1.2.5", Invalid, Dropped, Messages(1), Nothing),
    case!("quotbal", "3.1.2.6", Invalid, Refused(400), Messages(1), BAD),
    case!("ltgtruri", "3.1.2.7", Invalid, Refused(400), Messages(1), BAD),
    case!("lwsruri", "3.1.2.8", Invalid, Refused(400), Messages(1), BAD),
    case!("lwsstart", "3.1.2.9", Invalid, Refused(400), Messages(1), BAD),
    case!("trws", "3.1.2.10", Invalid, Refused(400), Messages(1), BAD),
    case!("escruri", "3.1.2.11", Invalid, Refused(400), Messages(1), BAD),
    case!("baddate", "3.1.2.12", Invalid, Understood, Messages(1), Any),
    case!("regbadct", "3.1.2.13", Invalid, Refused(400), Messages(1), BAD),
    case!("badaspec", "3.1.2.14", Invalid, Refused(400), Messages(1), BAD),
    // The file has no empty line after its head, so that a stream waits for more.
    case!("baddn", "3.1.2.15", Invalid, Refused(400), Waits, BAD),
    case!("badvers", "3.1.2.16", Invalid, Refused(505), Messages(1), OneOf(&[505])),
    case!("mismatch01", "3.1.2.17", Invalid, Refused(400), Messages(1), BAD),
    case!("mismatch02", "3.1.2.18", Invalid, Refused(400), Messages(1), OneOf(&[400, 501])),
    case!("bigcode", "3.1.2.19", Invalid, Dropped, Messages(1), Nothing),
    case!("badbranch", "3.2.1", Transaction, Understood, Messages(1), Any),
    case!("insuf", "3.3.1", Application, Refused(400), Messages(1), BAD),
    case!("unkscm", "3.3.2", Application, Understood, Messages(1), OneOf(&[416])),
    case!("novelsc", "3.3.3", Application, Understood, Messages(1), OneOf(&[404, 416])),
    case!("unksm2", "3.3.4", Application, Understood, Messages(1), OneOf(&[400, 405, 501])),
    case!("bext01", "3.3.5", Application, Understood, Messages(1), OneOf(&[420])),
    case!("invut", "3.3.6", Application, Understood, Messages(1), OneOf(&[415])),
    case!("regaut01", "3.3.7", Application, Understood, Messages(1), OneOf(&[200, 401, 404, 405, 501])),
    case!("multi01", "3.3.8", Application, Refused(400), Messages(1), BAD),
    case!("mcl01", "3.3.9", Application, Refused(400), Broken, BAD),
    case!("bcast", "3.3.10", Application, Understood, Messages(1), Nothing),
    case!("zeromf", "3.3.11", Application, Understood, Messages(1), Any),
    case!("cparam01", "3.3.12", Application, Understood, Messages(1), REGISTER),
    case!("cparam02", "3.3.13", Application, Understood, Messages(1), REGISTER),
    case!("regescrt", "3.3.14", Application, Understood, Messages(1), REGISTER),
    case!("sdp01", "3.3.15", Application, Understood, Messages(1), OneOf(&[400, 406])),
    // Without Content-Length: fine in a datagram, impossible on a stream (RFC 3261 §18.3).
    case!("inv2543", "3.4.1", Compatibility, Understood, Broken, Any),
];
