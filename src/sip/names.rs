//! Names of methods and header fields (RFC 3261 §7.1, §7.3.3 and the extensions we know).

use std::fmt;
use std::hash::{Hash, Hasher};

use super::text::is_token;

/// A request's method. Case-sensitive (RFC 3261 §7.1); one we do not know is kept as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Method {
    Invite,
    Ack,
    Bye,
    Cancel,
    Options,
    Register,
    Prack,
    Update,
    Info,
    Refer,
    Notify,
    Subscribe,
    Message,
    Publish,
    /// A method without a meaning here: 405 or 501 is the user's choice.
    Other(Box<str>),
}

impl Method {
    /// Reads a method. `None`: not a token (RFC 3261 §25.1).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            b"INVITE" => Self::Invite,
            b"ACK" => Self::Ack,
            b"BYE" => Self::Bye,
            b"CANCEL" => Self::Cancel,
            b"OPTIONS" => Self::Options,
            b"REGISTER" => Self::Register,
            b"PRACK" => Self::Prack,
            b"UPDATE" => Self::Update,
            b"INFO" => Self::Info,
            b"REFER" => Self::Refer,
            b"NOTIFY" => Self::Notify,
            b"SUBSCRIBE" => Self::Subscribe,
            b"MESSAGE" => Self::Message,
            b"PUBLISH" => Self::Publish,
            other if is_token(other) => Self::Other(std::str::from_utf8(other).ok()?.into()),
            _ => return None,
        })
    }

    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Invite => "INVITE",
            Self::Ack => "ACK",
            Self::Bye => "BYE",
            Self::Cancel => "CANCEL",
            Self::Options => "OPTIONS",
            Self::Register => "REGISTER",
            Self::Prack => "PRACK",
            Self::Update => "UPDATE",
            Self::Info => "INFO",
            Self::Refer => "REFER",
            Self::Notify => "NOTIFY",
            Self::Subscribe => "SUBSCRIBE",
            Self::Message => "MESSAGE",
            Self::Publish => "PUBLISH",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Declares [`Name`] from one table, so that reading and writing cannot disagree.
macro_rules! names {
    ($($variant:ident = $long:literal $(| $compact:literal)?,)*) => {
        /// A header field's name. Compared without case (RFC 3261 §7.3.1); compact forms
        /// (§7.3.3) are understood and written long.
        #[derive(Debug, Clone)]
        #[expect(missing_docs, reason = "each is the header field of that name")]
        pub enum Name {
            $($variant,)*
            /// A header field without a meaning here, spelt as it came.
            Other(Box<str>),
        }

        /// Every name we know with its long and its compact form.
        const TABLE: &[(Name, &str, &str)] = &[$((Name::$variant, $long, concat!($($compact)?)),)*];

        impl Name {
            /// The long form on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $long,)*
                    Self::Other(name) => name,
                }
            }
        }
    };
}

names! {
    Via = "Via" | "v",
    From = "From" | "f",
    To = "To" | "t",
    CallId = "Call-ID" | "i",
    CSeq = "CSeq",
    Contact = "Contact" | "m",
    MaxForwards = "Max-Forwards",
    ContentLength = "Content-Length" | "l",
    ContentType = "Content-Type" | "c",
    ContentEncoding = "Content-Encoding" | "e",
    ContentDisposition = "Content-Disposition",
    ContentLanguage = "Content-Language",
    Route = "Route",
    RecordRoute = "Record-Route",
    Path = "Path",
    Diversion = "Diversion",
    HistoryInfo = "History-Info",
    PAssertedIdentity = "P-Asserted-Identity",
    PPreferredIdentity = "P-Preferred-Identity",
    RemotePartyId = "Remote-Party-ID",
    Privacy = "Privacy",
    Require = "Require",
    ProxyRequire = "Proxy-Require",
    Supported = "Supported" | "k",
    Unsupported = "Unsupported",
    Allow = "Allow",
    AllowEvents = "Allow-Events" | "u",
    Accept = "Accept",
    AcceptEncoding = "Accept-Encoding",
    AcceptLanguage = "Accept-Language",
    AcceptContact = "Accept-Contact" | "a",
    RejectContact = "Reject-Contact" | "j",
    RequestDisposition = "Request-Disposition" | "d",
    SessionExpires = "Session-Expires" | "x",
    MinSe = "Min-SE",
    Expires = "Expires",
    MinExpires = "Min-Expires",
    RetryAfter = "Retry-After",
    Warning = "Warning",
    Reason = "Reason",
    ReferTo = "Refer-To" | "r",
    ReferredBy = "Referred-By" | "b",
    Replaces = "Replaces",
    Event = "Event" | "o",
    SubscriptionState = "Subscription-State",
    RSeq = "RSeq",
    RAck = "RAck",
    Server = "Server",
    UserAgent = "User-Agent",
    Organization = "Organization",
    Subject = "Subject" | "s",
    Date = "Date",
    Timestamp = "Timestamp",
    Priority = "Priority",
    CallInfo = "Call-Info",
    AlertInfo = "Alert-Info",
    ErrorInfo = "Error-Info",
    InReplyTo = "In-Reply-To",
    ReplyTo = "Reply-To",
    MimeVersion = "MIME-Version",
    Identity = "Identity" | "y",
    IdentityInfo = "Identity-Info" | "n",
    Authorization = "Authorization",
    ProxyAuthorization = "Proxy-Authorization",
    WwwAuthenticate = "WWW-Authenticate",
    ProxyAuthenticate = "Proxy-Authenticate",
    AuthenticationInfo = "Authentication-Info",
}

impl Name {
    /// Reads a name, long or compact, in any case. `None`: not a token (RFC 3261 §25.1).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let known = |(_, long, compact): &&(Self, &str, &str)| {
            let form = if bytes.len() == 1 { compact } else { long };
            form.as_bytes().eq_ignore_ascii_case(bytes)
        };
        if let Some((name, ..)) = TABLE.iter().find(known) {
            return Some(name.clone());
        }
        if !is_token(bytes) {
            return None;
        }
        Some(Self::Other(std::str::from_utf8(bytes).ok()?.into()))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Other(a), Self::Other(b)) => a.eq_ignore_ascii_case(b),
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.as_str().bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the compact forms of RFC 3261 §20 and of the extensions mean their long forms.
    /// Method: the table of the IANA header field registry for SIP.
    #[test]
    fn compact_names_mean_their_long_forms() {
        let registry = [
            ("a", "Accept-Contact"),
            ("b", "Referred-By"),
            ("c", "Content-Type"),
            ("d", "Request-Disposition"),
            ("e", "Content-Encoding"),
            ("f", "From"),
            ("i", "Call-ID"),
            ("j", "Reject-Contact"),
            ("k", "Supported"),
            ("l", "Content-Length"),
            ("m", "Contact"),
            ("n", "Identity-Info"),
            ("o", "Event"),
            ("r", "Refer-To"),
            ("s", "Subject"),
            ("t", "To"),
            ("u", "Allow-Events"),
            ("v", "Via"),
            ("x", "Session-Expires"),
            ("y", "Identity"),
        ];
        for (compact, long) in registry {
            for spelling in [compact.to_owned(), compact.to_uppercase(), long.to_uppercase()] {
                let name = Name::parse(spelling.as_bytes()).unwrap();
                assert_eq!(name.as_str(), long, "{spelling}");
                assert!(!matches!(name, Name::Other(_)), "{spelling}");
            }
        }
    }

    /// Goal: unknown header names are kept and compare without case, methods with it.
    /// Method: two spellings of each.
    #[test]
    fn header_names_ignore_case_and_methods_do_not() {
        assert_eq!(Name::parse(b"X-Thing"), Name::parse(b"x-tHING"));
        assert_ne!(Name::parse(b"X-Thing"), Name::parse(b"X-Thin"));
        assert_eq!(Name::parse(b"VIA"), Some(Name::Via));
        assert_eq!(Method::parse(b"INVITE"), Some(Method::Invite));
        assert_eq!(Method::parse(b"invite"), Some(Method::Other("invite".into())));
        assert_eq!(Method::parse(b"IN VITE"), None);
        assert_eq!(Name::parse(b""), None);
        assert_eq!(Name::parse(b"a b"), None);
    }
}
