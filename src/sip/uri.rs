//! Uniform resource identifiers: sip and sips (RFC 3261 §19.1), tel (RFC 3966), others kept whole.
//!
//! Parts are kept as they came, escapes included, so that a URI goes out as it came in;
//! [`Uri::user`] undoes the escapes. Writing and reading again yields the same value.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::header::Params;
pub use super::text::SyntaxError;
use super::text::{escapes_are_whole, number, split_once, text, unescape};

const ERROR: SyntaxError = SyntaxError("URI");

/// A host: an address, or a name whose address is not our business here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// Dotted decimal.
    V4(Ipv4Addr),
    /// In brackets on the wire.
    V6(Ipv6Addr),
    /// A domain name, spelt as it came.
    Name(String),
}

/// What a URI names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// `sip:` and `sips:`.
    Sip(SipUri),
    /// `tel:`.
    Tel(TelUri),
    /// Any other scheme. The Request-URI of a request for one is answered 416 (RFC 3261 §8.2.2.1).
    Other {
        /// Before the first colon, spelt as it came.
        scheme: String,
        /// After the first colon.
        rest: String,
    },
}

/// A `sip:` or `sips:` URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SipUri {
    /// True for `sips:`.
    pub secure: bool,
    /// Before the `:` or `@`, escapes kept; may hold `;` (RFC 3261 §19.1.6).
    pub user: Option<String>,
    /// Between `:` and `@`, escapes kept.
    pub password: Option<String>,
    /// Where to.
    pub host: Host,
    /// Only when written.
    pub port: Option<u16>,
    /// After the host, escapes kept.
    pub params: Params,
    /// After `?`, as it came: header fields a request made of this URI would carry.
    pub headers: Option<String>,
}

/// A `tel:` URI (RFC 3966).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelUri {
    /// The number with its visual separators.
    pub number: String,
    /// `phone-context`, `ext`, `isub` and others.
    pub params: Params,
}

impl Host {
    /// Reads a host without port; IPv6 in brackets.
    ///
    /// # Errors
    /// Empty, or a character that no host has.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("host");
        let host = std::str::from_utf8(bytes).map_err(|_| ERROR)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(ERROR)?;
            // RFC 3261's grammar allowed a third colon; read it as meant (RFC 5118 §4.10).
            return inner.replacen(":::", "::", 1).parse().map(Self::V6).map_err(|_| ERROR);
        }
        if let Ok(address) = host.parse() {
            return Ok(Self::V4(address));
        }
        // An underscore is no letter of the grammar but common in names of private networks.
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if host.is_empty() || host.starts_with('.') || !host.bytes().all(allowed) {
            return Err(ERROR);
        }
        Ok(Self::Name(host.to_owned()))
    }

    /// The address, unless this is a name.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::V4(address) => Some(IpAddr::V4(*address)),
            Self::V6(address) => Some(IpAddr::V6(*address)),
            Self::Name(_) => None,
        }
    }

    /// Reads `host [":" port]`, blanks around the colon allowed (RFC 3261 §25.1, `sent-by`).
    pub(crate) fn parse_with_port(bytes: &[u8]) -> Result<(Self, Option<u16>), SyntaxError> {
        let bytes = super::text::trim(bytes);
        let host_end = match bytes {
            [b'[', ..] => memchr::memchr(b']', bytes).ok_or(ERROR)? + 1,
            _ => memchr::memchr(b':', bytes).unwrap_or(bytes.len()),
        };
        let (host, rest) = bytes.split_at(host_end);
        let host = Self::parse(super::text::trim(host))?;
        match super::text::trim(rest) {
            [] => Ok((host, None)),
            [b':', port @ ..] => {
                let port = number(super::text::trim(port)).ok_or(SyntaxError("port"))?;
                Ok((host, Some(port)))
            }
            _ => Err(SyntaxError("host")),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => write!(f, "[{address}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Uri {
    /// Reads one URI and nothing else.
    ///
    /// # Errors
    /// Blanks, brackets or control characters anywhere, a broken escape, or a part that the
    /// scheme's grammar does not know.
    pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Self, SyntaxError> {
        let bytes = bytes.as_ref();
        let (scheme, rest) = split_once(bytes, b':');
        let rest = rest.ok_or(ERROR)?;
        let scheme_byte = |b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
        if !scheme.first().is_some_and(u8::is_ascii_alphabetic) || !scheme.iter().all(scheme_byte) {
            return Err(ERROR);
        }
        if rest.is_empty() || rest.iter().any(|&b| b <= b' ' || b == 0x7F || b"<>\"\\".contains(&b)) {
            return Err(ERROR);
        }
        if scheme.eq_ignore_ascii_case(b"sip") {
            return SipUri::parse_rest(rest, false).map(Self::Sip);
        }
        if scheme.eq_ignore_ascii_case(b"sips") {
            return SipUri::parse_rest(rest, true).map(Self::Sip);
        }
        if scheme.eq_ignore_ascii_case(b"tel") {
            return TelUri::parse_rest(rest).map(Self::Tel);
        }
        Ok(Self::Other { scheme: text(scheme), rest: text(rest) })
    }

    /// The sip or sips URI this is.
    pub fn as_sip(&self) -> Option<&SipUri> {
        match self {
            Self::Sip(uri) => Some(uri),
            Self::Tel(_) | Self::Other { .. } => None,
        }
    }

    /// Whom the URI names: the user part, escapes undone and without `;` parameters when it is a
    /// telephone number, or the number of a `tel:` URI without its visual separators.
    pub fn user(&self) -> Option<String> {
        match self {
            Self::Sip(uri) => uri.user_text(),
            Self::Tel(uri) => Some(uri.digits()),
            Self::Other { .. } => None,
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sip(uri) => uri.fmt(f),
            Self::Tel(uri) => write!(f, "tel:{}{}", uri.number, uri.params),
            Self::Other { scheme, rest } => write!(f, "{scheme}:{rest}"),
        }
    }
}

impl SipUri {
    /// A `sip:` URI for a host, all else absent.
    pub fn new(user: Option<&str>, host: Host, port: Option<u16>) -> Self {
        let user = user.map(escape_user);
        Self { secure: false, user, password: None, host, port, params: Params::default(), headers: None }
    }

    /// The user part with escapes undone; `;` parameters of a telephone number left off
    /// (RFC 3261 §19.1.6).
    pub fn user_text(&self) -> Option<String> {
        let user = self.user.as_deref()?;
        let (number, params) = user.split_once(';').unwrap_or((user, ""));
        let telephone = number.bytes().all(|b| b.is_ascii_digit() || b"+-.()*#".contains(&b));
        Some(unescape(if telephone && !params.is_empty() { number } else { user }))
    }

    /// The `transport` parameter, as it came.
    pub fn transport(&self) -> Option<&str> {
        self.params.value("transport")
    }

    /// Equality of RFC 3261 §19.1.4.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        const ONE_SIDED: [&str; 5] = ["user", "ttl", "method", "maddr", "transport"];
        let host = match (&self.host, &other.host) {
            (Host::Name(a), Host::Name(b)) => a.eq_ignore_ascii_case(b),
            (a, b) => a == b,
        };
        let plain = |part: &Option<String>| part.as_deref().map(unescape);
        let params_agree = self.params.iter().all(|param| {
            let theirs = other.params.iter().find(|p| p.name.eq_ignore_ascii_case(&param.name));
            match theirs {
                Some(theirs) => same_value(param.value.as_deref(), theirs.value.as_deref()),
                None => !ONE_SIDED.iter().any(|name| name.eq_ignore_ascii_case(&param.name)),
            }
        });
        let one_sided_agree = ONE_SIDED.iter().all(|n| self.params.has(n) == other.params.has(n));
        self.secure == other.secure
            && plain(&self.user) == plain(&other.user)
            && plain(&self.password) == plain(&other.password)
            && host
            && self.port == other.port
            && params_agree
            && one_sided_agree
            && header_set(self.headers.as_deref()) == header_set(other.headers.as_deref())
    }

    fn parse_rest(rest: &[u8], secure: bool) -> Result<Self, SyntaxError> {
        if !escapes_are_whole(rest) {
            return Err(SyntaxError("escape in URI"));
        }
        // A user part may hold `;` and `?`; no other part may hold `@`, so the last one decides.
        let (userinfo, rest) = match memchr::memrchr(b'@', rest) {
            Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
            None => (None, rest),
        };
        let (user, password) = match userinfo {
            Some(userinfo) => {
                let (user, password) = split_once(userinfo, b':');
                let password_ok = password.is_none_or(|p| memchr::memchr2(b'@', b':', p).is_none());
                if user.is_empty() || memchr::memchr(b'@', user).is_some() || !password_ok {
                    return Err(SyntaxError("user part of a URI"));
                }
                (Some(text(user)), password.map(text))
            }
            None => (None, None),
        };
        let (rest, headers) = split_once(rest, b'?');
        let (host, params) = split_once(rest, b';');
        if host.iter().any(|b| b.is_ascii_whitespace()) {
            return Err(ERROR);
        }
        let (host, port) = Host::parse_with_port(host)?;
        let params = params.map_or(Ok(Params::default()), Params::parse_in_uri)?;
        Ok(Self { secure, user, password, host, port, params, headers: headers.map(text) })
    }
}

impl fmt::Display for SipUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secure { "sips:" } else { "sip:" })?;
        if let Some(user) = &self.user {
            f.write_str(user)?;
            if let Some(password) = &self.password {
                write!(f, ":{password}")?;
            }
            f.write_str("@")?;
        }
        self.host.fmt(f)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        self.params.fmt(f)?;
        match &self.headers {
            Some(headers) => write!(f, "?{headers}"),
            None => Ok(()),
        }
    }
}

impl TelUri {
    /// The number without visual separators (RFC 3966 §5.1.1); a leading `+` stays.
    pub fn digits(&self) -> String {
        self.number.chars().filter(|c| !"-.()".contains(*c)).collect()
    }

    fn parse_rest(rest: &[u8]) -> Result<Self, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("tel URI");
        let (number, params) = split_once(rest, b';');
        let (digits, allowed): (&[u8], &[u8]) = match number {
            [b'+', digits @ ..] => (digits, b"0123456789-.()"),
            digits => (digits, b"0123456789abcdefABCDEF*#-.()"),
        };
        let some_digit = digits.iter().any(|b| !b"-.()".contains(b));
        if !some_digit || !digits.iter().all(|b| allowed.contains(b)) {
            return Err(ERROR);
        }
        let params = params.map_or(Ok(Params::default()), Params::parse_in_uri)?;
        Ok(Self { number: text(number), params })
    }
}

/// Escapes what a user part may not hold bare (RFC 3261 §25.1, `user`).
fn escape_user(user: &str) -> String {
    use fmt::Write;
    let mut escaped = String::with_capacity(user.len());
    for byte in user.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn same_value(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => unescape(a).eq_ignore_ascii_case(&unescape(b)),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// The header fields of a URI in an order of their own, since theirs does not count.
fn header_set(headers: Option<&str>) -> Vec<(String, String)> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (unescape(name).to_ascii_lowercase(), unescape(value))
    };
    let mut set: Vec<_> = headers.into_iter().flat_map(|h| h.split('&')).map(pair).collect();
    set.sort();
    set
}

#[cfg(test)]
mod tests;
