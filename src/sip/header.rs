//! Typed header field values (RFC 3261 §20): Via, addresses, CSeq, parameters, and what says why
//! and how long a call was diverted, refused or refreshed.
//!
//! Every reader takes one value, unfolded; every type writes itself with `Display`.

use std::fmt;
use std::net::IpAddr;

pub use super::names::{Method, Name};
pub use super::text::SyntaxError;
use super::text::{
    find_outside, is_space, is_token, is_token_byte, number, number_saturating, quoted_string, split_list,
    split_once, text, trim, unescape, write_quoted,
};
use super::uri::{Host, Uri};

/// Most parameters of one value. Real messages have a handful.
pub const PARAMS_MAX: usize = 64;

/// Most entries read of one Diversion or History-Info field: looking for the end of a stray quote
/// may go through the rest of the field for each of them.
const DIVERTED_MAX: usize = 64;

/// One `;name` or `;name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Spelt as it came, compared without case.
    pub name: String,
    /// The value's meaning: quotes and quoted pairs undone.
    pub value: Option<String>,
    /// The value was, or is to be, a quoted string.
    pub quoted: bool,
}

/// The `;` parameters of a header field value or a URI, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<Param>);

impl Params {
    /// The value of `name`: `None` when it is absent or has no value.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.find(name).and_then(|param| param.value.as_deref())
    }

    /// True when `name` is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Sets or adds `name`. A value that is no token nor host is written quoted.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        let bare = |b| is_token_byte(b) || b"[]:".contains(&b);
        let quoted = value.is_some_and(|v| v.is_empty() || !v.bytes().all(bare));
        let param = Param { name: name.to_owned(), value: value.map(str::to_owned), quoted };
        match self.0.iter_mut().find(|p| p.name.eq_ignore_ascii_case(name)) {
            Some(there) => *there = param,
            None => self.0.push(param),
        }
    }

    /// Takes `name` away.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|param| !param.name.eq_ignore_ascii_case(name));
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.0.iter()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, name: &str) -> Option<&Param> {
        self.0.iter().find(|param| param.name.eq_ignore_ascii_case(name))
    }

    /// Adds one that was read. A name may stand once (RFC 3261 §7.3.1, §19.1.1).
    fn add(&mut self, param: Param) -> Result<(), SyntaxError> {
        if self.0.len() >= PARAMS_MAX || self.has(&param.name) {
            return Err(SyntaxError("parameter list"));
        }
        self.0.push(param);
        Ok(())
    }

    /// Reads `*( SEMI generic-param )` to the end of `bytes` (RFC 3261 §25.1).
    ///
    /// # Errors
    /// An empty or repeated parameter, a value that is neither token, host nor quoted string, or
    /// more than [`PARAMS_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("parameter");
        let mut params = Self::default();
        let mut rest = trim(bytes);
        while !rest.is_empty() {
            let body = trim(rest.strip_prefix(b";").ok_or(ERROR)?);
            let end = find_outside(body, b";");
            let (name, value) = split_once(&body[..end], b'=');
            let name = trim(name);
            if !is_token(name) {
                return Err(ERROR);
            }
            let (value, quoted) = match value.map(trim) {
                None => (None, false),
                Some(value @ [b'"', ..]) => match quoted_string(value)? {
                    (value, []) => (Some(value), true),
                    _ => return Err(ERROR),
                },
                Some(value) if value.is_empty() || !value.iter().copied().all(is_value_byte) => {
                    return Err(ERROR);
                }
                Some(value) => (Some(text(value)), false),
            };
            params.add(Param { name: text(name), value, quoted })?;
            rest = &body[end..];
        }
        Ok(params)
    }

    /// Reads the parameters of a URI, after its first `;`; escapes stay (RFC 3261 §19.1.1).
    ///
    /// A parameter may stand once, but a repetition that says the same is dropped, not refused: real
    /// phones write `;transport=tcp;transport=tcp` in Request-URI and To (baresip 1.0 does).
    pub(crate) fn parse_in_uri(bytes: &[u8]) -> Result<Self, SyntaxError> {
        let mut params = Self::default();
        for part in bytes.split(|&b| b == b';') {
            let (name, value) = split_once(part, b'=');
            if name.is_empty() || value.is_some_and(<[u8]>::is_empty) {
                return Err(SyntaxError("URI parameter"));
            }
            let param = Param { name: text(name), value: value.map(text), quoted: false };
            if params.find(&param.name).is_none_or(|first| first.value != param.value) {
                params.add(param)?;
            }
        }
        Ok(params)
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Param { name, value, quoted } in &self.0 {
            write!(f, ";{name}")?;
            match value {
                Some(value) if *quoted => {
                    f.write_str("=")?;
                    write_quoted(f, value)?;
                }
                Some(value) => write!(f, "={value}")?,
                None => {}
            }
        }
        Ok(())
    }
}

/// A byte of an unquoted value: `token`, `host`, and what real tags and branches hold besides.
fn is_value_byte(byte: u8) -> bool {
    is_token_byte(byte) || b"[]:=/&$?@{}|^#".contains(&byte) || byte >= 0x80
}

/// One hop of the Via list (RFC 3261 §20.42).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// `UDP`, `TCP`, `TLS`, ..., as it came.
    pub transport: String,
    /// The sender's own idea of its host.
    pub host: Host,
    /// And of its port.
    pub port: Option<u16>,
    /// `branch`, `received`, `rport` and others.
    pub params: Params,
}

impl Via {
    /// Reads one hop, without the comma list around it.
    ///
    /// # Errors
    /// A protocol other than SIP/2.0, or a part off the grammar.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("Via");
        let (protocol, rest) = split_once(bytes, b'/');
        let (version, rest) = split_once(rest.ok_or(ERROR)?, b'/');
        let rest = trim(rest.ok_or(ERROR)?);
        if !trim(protocol).eq_ignore_ascii_case(b"SIP") || trim(version) != b"2.0" {
            return Err(ERROR);
        }
        let transport_end = rest.iter().position(|&b| is_space(b)).ok_or(ERROR)?;
        let (transport, rest) = rest.split_at(transport_end);
        if !is_token(transport) {
            return Err(ERROR);
        }
        let params_start = memchr::memchr(b';', rest).unwrap_or(rest.len());
        let (sent_by, params) = rest.split_at(params_start);
        let (host, port) = Host::parse_with_port(sent_by)?;
        Ok(Self { transport: text(transport), host, port, params: Params::parse(params)? })
    }

    /// The transaction's branch (RFC 3261 §8.1.1.7); absent from RFC 2543 elements.
    pub fn branch(&self) -> Option<&str> {
        self.params.value("branch")
    }

    /// Where the request really came from, as its receiver noted (RFC 3261 §18.2.1).
    pub fn received(&self) -> Option<IpAddr> {
        let value = self.params.value("received")?;
        value.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    /// The port the request really came from (RFC 3581); `None` also while it is only asked for.
    pub fn rport(&self) -> Option<u16> {
        self.params.value("rport").and_then(|value| number(value.as_bytes()))
    }

    /// True when the sender asks for, or was told, its port (RFC 3581 §3).
    pub fn has_rport(&self) -> bool {
        self.params.has("rport")
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIP/2.0/{} {}", self.transport, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        self.params.fmt(f)
    }
}

/// An address with an optional name: From, To, Contact, Route and others (RFC 3261 §20.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameAddr {
    /// The name to show, quotes undone.
    pub display: Option<String>,
    /// Whom it names.
    pub uri: Uri,
    /// The header field's own parameters, such as `tag`; those of the URI are in the URI.
    pub params: Params,
}

impl NameAddr {
    /// An address without name and parameters.
    pub fn new(uri: Uri) -> Self {
        Self { display: None, uri, params: Params::default() }
    }

    /// Reads one address, `name-addr` or `addr-spec`, with its parameters.
    ///
    /// # Errors
    /// An unquoted name with a comma, a quote or bracket that does not close, a URI with `?` but
    /// without brackets (RFC 3261 §20.10), or a part off the grammar.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("address");
        let bytes = trim(bytes);
        let (display, rest) = match bytes {
            [b'"', ..] => {
                let (display, rest) = quoted_string(bytes)?;
                (Some(display), trim(rest))
            }
            _ => match memchr::memchr2(b'<', b';', bytes) {
                Some(at) if bytes[at] == b'<' => (plain_display(&bytes[..at])?, &bytes[at..]),
                _ => return Self::parse_addr_spec(bytes),
            },
        };
        let (uri, params) = split_once(rest.strip_prefix(b"<").ok_or(ERROR)?, b'>');
        let params = Params::parse(params.ok_or(ERROR)?)?;
        Ok(Self { display, uri: Uri::parse(uri)?, params })
    }

    /// Reads one address as [`Self::parse`] does, and besides one whose display name has a stray or
    /// missing quote: `"Ann <sip:a@b>`, `Ann" <sip:a@b>`, `"A"B" <sip:a@b>`. What stands in `<>` is
    /// the URI then, and the name is what stands before it, without the quotes. RFC 4475 §3.1.2.6
    /// allows the inference where it is a reasonable one: not with a second `<`.
    ///
    /// # Errors
    /// As [`Self::parse`], quotes in the display name apart.
    pub fn parse_kindly(bytes: &[u8]) -> Result<Self, SyntaxError> {
        Self::parse(bytes).or_else(|error| Self::parse_stray_quotes(bytes).ok_or(error))
    }

    fn parse_stray_quotes(bytes: &[u8]) -> Option<Self> {
        let (name, rest) = split_once(bytes, b'<');
        let (uri, params) = split_once(rest?, b'>');
        let has_other = memchr::memchr(b'<', params?).is_some();
        if has_other || !name.contains(&b'"') || name.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
            return None;
        }
        let name: Vec<u8> = name.iter().copied().filter(|b| !b"\"\\".contains(b)).collect();
        let (uri, params) = (Uri::parse(uri).ok()?, Params::parse(params?).ok()?);
        Some(Self { display: Some(text(trim(&name))), uri, params })
    }

    /// Reads a comma list kindly, at most [`DIVERTED_MAX`] elements. Malformed ones are left out; one
    /// with a stray quote ends at the first comma behind its brackets.
    fn parse_list_kindly(bytes: &[u8]) -> Vec<Self> {
        let mut found = Vec::new();
        let mut rest = Some(bytes);
        for _ in 0..DIVERTED_MAX {
            let Some(bytes) = rest else { break };
            let mut end = find_outside(bytes, b",");
            let (element, _) = bytes.split_at(end);
            let address = Self::parse(element).ok().or_else(|| {
                let open = memchr::memchr(b'<', element)?;
                let close = open + memchr::memchr(b'>', &element[open..])?;
                let kind_end = close + find_outside(&bytes[close..], b",");
                let address = Self::parse_stray_quotes(trim(&bytes[..kind_end]))?;
                end = kind_end;
                Some(address)
            });
            found.extend(address);
            rest = bytes.get(end + 1..);
        }
        found
    }

    /// Without brackets everything from the first `;` belongs to the header field.
    fn parse_addr_spec(bytes: &[u8]) -> Result<Self, SyntaxError> {
        let at = memchr::memchr(b';', bytes).unwrap_or(bytes.len());
        let (uri, params) = bytes.split_at(at);
        if memchr::memchr2(b'?', b',', uri).is_some() {
            return Err(SyntaxError("address without brackets"));
        }
        Ok(Self { display: None, uri: Uri::parse(trim(uri))?, params: Params::parse(params)? })
    }

    /// Reads a comma list of addresses.
    ///
    /// # Errors
    /// One of them is malformed or empty.
    pub fn parse_list(bytes: &[u8]) -> Result<Vec<Self>, SyntaxError> {
        split_list(bytes).map(Self::parse).collect()
    }

    /// The dialog's tag (RFC 3261 §19.3).
    pub fn tag(&self) -> Option<&str> {
        self.params.value("tag")
    }
}

impl fmt::Display for NameAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(display) = &self.display {
            write_quoted(f, display)?;
            f.write_str(" ")?;
        }
        write!(f, "<{}>{}", self.uri, self.params)
    }
}

/// A name before `<` without quotes: words by the grammar; letters beyond ASCII and the
/// punctuation that phones send bare are let through, separators of lists and parameters are not.
fn plain_display(bytes: &[u8]) -> Result<Option<String>, SyntaxError> {
    let name = trim(bytes);
    if name.iter().any(|b| b.is_ascii_control() && *b != b'\t' || b"\",;<>".contains(b)) {
        return Err(SyntaxError("display name"));
    }
    Ok(if name.is_empty() { None } else { Some(text(name)) })
}

/// A request's place in its dialog (RFC 3261 §20.16).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CSeq {
    /// The sequence number.
    pub number: u32,
    /// The request's method, or that of the request a response is for.
    pub method: Method,
}

impl CSeq {
    /// Reads the one value.
    ///
    /// # Errors
    /// A number beyond 32 bits or a method that is no token.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("CSeq");
        let bytes = trim(bytes);
        let digits_end = bytes.iter().position(|&b| is_space(b)).ok_or(ERROR)?;
        let (digits, method) = bytes.split_at(digits_end);
        let number = number(digits).ok_or(ERROR)?;
        Ok(Self { number, method: Method::parse(trim(method)).ok_or(ERROR)? })
    }
}

impl fmt::Display for CSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.method)
    }
}

/// One address a call went through before it came here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diverted {
    /// Who diverted the call, or was its target.
    pub address: NameAddr,
    /// Why, in the words of RFC 5806 §4: `user-busy`, `no-answer`, `unconditional`, ...
    pub reason: Option<String>,
}

/// Reads one Diversion field (RFC 5806): the latest diversion first. Malformed entries are left
/// out, for the field is not needed to process the request (RFC 3261 §8.2.2).
pub fn diversions(bytes: &[u8]) -> Vec<Diverted> {
    let read = |address: NameAddr| {
        let reason = address.params.value("reason").map(str::to_ascii_lowercase);
        Diverted { address, reason }
    };
    NameAddr::parse_list_kindly(bytes).into_iter().map(read).collect()
}

/// Reads one History-Info field (RFC 7044): oldest target first. An entry's reason is why the
/// call left it: its own Reason (§4.1) or the `cause` of the next entry (RFC 4458). Causes become
/// words as RFC 7544 maps them. Malformed entries are left out.
pub fn history(bytes: &[u8]) -> Vec<Diverted> {
    let entries = NameAddr::parse_list_kindly(bytes);
    let reason_of = |index: usize, entry: &NameAddr| {
        let own = entry.uri.as_sip().and_then(|uri| uri.headers.as_deref()).and_then(reason_cause);
        let next = || entries.get(index + 1)?.uri.as_sip()?.params.value("cause")?.parse().ok();
        own.or_else(next).map(|cause| diversion_word(cause).to_owned())
    };
    let reasons: Vec<_> = entries.iter().enumerate().map(|(i, entry)| reason_of(i, entry)).collect();
    entries.into_iter().zip(reasons).map(|(address, reason)| Diverted { address, reason }).collect()
}

/// The SIP cause in the `Reason` header field that a History-Info URI carries escaped.
fn reason_cause(headers: &str) -> Option<u16> {
    let reason = headers.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case("Reason").then(|| unescape(value))
    })?;
    let (protocol, params) = reason.split_at(reason.find(';')?);
    if !protocol.trim().eq_ignore_ascii_case("SIP") {
        return None;
    }
    Params::parse(params.as_bytes()).ok()?.value("cause").and_then(|cause| number(cause.as_bytes()))
}

/// RFC 7544 §6.2: the Diversion word for a cause.
fn diversion_word(cause: u16) -> &'static str {
    match cause {
        302 => "unconditional",
        408 => "no-answer",
        480 | 487 => "deflection",
        486 => "user-busy",
        503 => "unavailable",
        _ => "unknown",
    }
}

/// When to try again (RFC 3261 §20.33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryAfter {
    /// Seconds to wait; more than 32 bits count as the most (RFC 4475 §3.1.2.5).
    pub delay_s: u32,
    /// For how many seconds the callee will then be reachable.
    pub duration_s: Option<u32>,
}

impl RetryAfter {
    /// Reads the one value; a comment is skipped.
    ///
    /// # Errors
    /// No number of seconds, or malformed parameters.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("Retry-After");
        let bytes = trim(bytes);
        let digits_end = bytes.iter().position(|b| !b.is_ascii_digit()).unwrap_or(bytes.len());
        let (digits, rest) = bytes.split_at(digits_end);
        let delay_s = number_saturating(digits).ok_or(ERROR)?;
        let rest = trim(rest);
        let params = match rest {
            [b'(', ..] => &rest[memchr::memrchr(b')', rest).ok_or(ERROR)? + 1..],
            _ => rest,
        };
        let params = Params::parse(params)?;
        let duration_s = params.value("duration").and_then(|value| number_saturating(value.as_bytes()));
        Ok(Self { delay_s, duration_s })
    }
}

/// Who refreshes a session (RFC 4028 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Refresher {
    /// The side that sent the request.
    Uac,
    /// The side that answered it.
    Uas,
}

/// How long a session lasts without refresh (RFC 4028 §4). Also reads Min-SE, which has no
/// refresher (§5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionExpires {
    /// Seconds; more than 32 bits count as the most.
    pub delta_s: u32,
    /// Who refreshes, once that is said.
    pub refresher: Option<Refresher>,
}

impl SessionExpires {
    /// Reads the one value.
    ///
    /// # Errors
    /// No number of seconds, malformed parameters, or a refresher other than `uac` and `uas`.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("Session-Expires");
        let params_start = memchr::memchr(b';', bytes).unwrap_or(bytes.len());
        let (delta, params) = bytes.split_at(params_start);
        let delta_s = number_saturating(trim(delta)).ok_or(ERROR)?;
        let refresher = match Params::parse(params)?.value("refresher") {
            None => None,
            Some(side) if side.eq_ignore_ascii_case("uac") => Some(Refresher::Uac),
            Some(side) if side.eq_ignore_ascii_case("uas") => Some(Refresher::Uas),
            Some(_) => return Err(ERROR),
        };
        Ok(Self { delta_s, refresher })
    }
}

impl fmt::Display for SessionExpires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.delta_s.fmt(f)?;
        match self.refresher {
            Some(Refresher::Uac) => f.write_str(";refresher=uac"),
            Some(Refresher::Uas) => f.write_str(";refresher=uas"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.delay_s.fmt(f)?;
        match self.duration_s {
            Some(duration_s) => write!(f, ";duration={duration_s}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
