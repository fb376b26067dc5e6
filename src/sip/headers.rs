//! The header fields of a message, in order, and their typed readers.

use bytes::Bytes;

use super::header::{CSeq, NameAddr, SyntaxError, Via};
use super::names::Name;
use super::text::{is_space, number_saturating, split_list, split_once, trim};

/// One header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: Name,
    /// Its value: unfolded, without blanks at the ends, never with CR or LF.
    pub value: Bytes,
}

/// The header fields of a message, in order.
///
/// Content-Length is never among them: the body has a length, and writing a message states it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<Header>);

impl Headers {
    /// The first field of that name, comma list and all.
    pub fn first(&self, name: &Name) -> Option<&Bytes> {
        self.0.iter().find(|header| header.name == *name).map(|header| &header.value)
    }

    /// Every field of that name, in order, comma lists whole.
    pub fn all(&self, name: &Name) -> impl Iterator<Item = &Bytes> {
        self.0.iter().filter(move |header| header.name == *name).map(|header| &header.value)
    }

    /// Every value of that name: fields in order, comma lists split outside quotes and `<>`,
    /// empty elements left out. Only for names whose grammar is a list (RFC 3261 §7.3.1).
    pub fn values(&self, name: &Name) -> impl Iterator<Item = Bytes> {
        self.all(name).flat_map(|field| {
            split_list(field).filter(|value| !value.is_empty()).map(|value| field.slice_ref(value))
        })
    }

    /// True when a field of that name is there.
    pub fn contains(&self, name: &Name) -> bool {
        self.first(name).is_some()
    }

    /// True when the list of `name` holds `token`, without regard to case: option tags, methods.
    pub fn has_token(&self, name: &Name, token: &str) -> bool {
        self.values(name).any(|value| value.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Adds a field at the end. CR and LF in the value become blanks, so that no value can make
    /// a field of its own. Content-Length is ignored: it follows from the body.
    pub fn push(&mut self, name: Name, value: impl Into<Bytes>) {
        self.push_header(Header { name, value: one_line(value.into()) });
    }

    /// Adds a field before all others, as a new Via is.
    pub fn push_front(&mut self, name: Name, value: impl Into<Bytes>) {
        if name != Name::ContentLength {
            self.0.insert(0, Header { name, value: one_line(value.into()) });
        }
    }

    /// Replaces every field of that name by one, in the place of the first.
    pub fn set(&mut self, name: Name, value: impl Into<Bytes>) {
        let value = one_line(value.into());
        let Some(at) = self.0.iter().position(|header| header.name == name) else {
            return self.push_header(Header { name, value });
        };
        let mut index = 0;
        self.0.retain(|header| {
            index += 1;
            index <= at + 1 || header.name != name
        });
        if let Some(header) = self.0.get_mut(at) {
            header.value = value;
        }
    }

    /// Takes every field of that name away.
    pub fn remove(&mut self, name: &Name) {
        self.0.retain(|header| header.name != *name);
    }

    /// Takes the first value of that name away: of a comma list only its first element.
    pub fn remove_first_value(&mut self, name: &Name) -> Option<Bytes> {
        let at = self.0.iter().position(|header| header.name == *name)?;
        let header = self.0.get_mut(at)?;
        let end = super::text::find_outside(&header.value, b",");
        let first = header.value.slice_ref(trim(header.value.get(..end)?));
        match header.value.get(end + 1..).map(trim) {
            Some(rest) => header.value = header.value.slice_ref(rest),
            None => {
                self.0.remove(at);
            }
        }
        Some(first)
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without fields.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every field in order.
    pub fn iter(&self) -> impl Iterator<Item = &Header> {
        self.0.iter()
    }

    /// Adds a field whose value is known to be one line.
    pub(crate) fn push_header(&mut self, header: Header) {
        if header.name != Name::ContentLength {
            self.0.push(header);
        }
    }

    /// The latest hop (RFC 3261 §20.42).
    ///
    /// # Errors
    /// None there, or malformed.
    pub fn top_via(&self) -> Result<Via, SyntaxError> {
        let field = self.first(&Name::Via).ok_or(SyntaxError("Via"))?;
        Via::parse(split_list(field).next().unwrap_or_default())
    }

    /// Every hop, latest first.
    ///
    /// # Errors
    /// One of them is malformed or empty.
    pub fn vias(&self) -> Result<Vec<Via>, SyntaxError> {
        self.all(&Name::Via).flat_map(|field| split_list(field).map(Via::parse)).collect()
    }

    /// The From address (RFC 3261 §20.20). Stray quotes in its display name are forgiven.
    ///
    /// # Errors
    /// Missing or malformed.
    pub fn from(&self) -> Result<NameAddr, SyntaxError> {
        self.first(&Name::From).map_or(Err(SyntaxError("From")), |value| NameAddr::parse_kindly(value))
    }

    /// The To address (RFC 3261 §20.39).
    ///
    /// # Errors
    /// Missing or malformed.
    pub fn to(&self) -> Result<NameAddr, SyntaxError> {
        self.first(&Name::To).map_or(Err(SyntaxError("To")), |value| NameAddr::parse(value))
    }

    /// The command sequence (RFC 3261 §20.16).
    ///
    /// # Errors
    /// Missing or malformed.
    pub fn cseq(&self) -> Result<CSeq, SyntaxError> {
        self.first(&Name::CSeq).map_or(Err(SyntaxError("CSeq")), |value| CSeq::parse(value))
    }

    /// The Call-ID (RFC 3261 §20.8), compared byte by byte.
    ///
    /// # Errors
    /// Missing, empty, or with blanks or bytes that are no UTF-8 in it.
    pub fn call_id(&self) -> Result<&str, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("Call-ID");
        let value = std::str::from_utf8(self.first(&Name::CallId).ok_or(ERROR)?).map_err(|_| ERROR)?;
        if value.is_empty() || value.bytes().any(|b| is_space(b) || b.is_ascii_control()) {
            return Err(ERROR);
        }
        Ok(value)
    }

    /// The Contact addresses (RFC 3261 §20.10); none for `*`, which [`Headers::first`] shows.
    ///
    /// # Errors
    /// One of them is malformed or empty.
    pub fn contacts(&self) -> Result<Vec<NameAddr>, SyntaxError> {
        if self.all(&Name::Contact).eq([&b"*"[..]]) {
            return Ok(Vec::new());
        }
        self.addresses(&Name::Contact)
    }

    /// The addresses of a list such as Route or Record-Route, in order.
    ///
    /// # Errors
    /// One of them is malformed or empty.
    pub fn addresses(&self, name: &Name) -> Result<Vec<NameAddr>, SyntaxError> {
        self.all(name).flat_map(|field| split_list(field).map(NameAddr::parse)).collect()
    }

    /// Hops left (RFC 3261 §20.22); `None` when the field is missing.
    ///
    /// # Errors
    /// No number from 0 to 255.
    pub fn max_forwards(&self) -> Result<Option<u8>, SyntaxError> {
        const ERROR: SyntaxError = SyntaxError("Max-Forwards");
        let Some(value) = self.first(&Name::MaxForwards) else { return Ok(None) };
        let hops = number_saturating(value).and_then(|hops| u8::try_from(hops).ok());
        hops.map(Some).ok_or(ERROR)
    }

    /// Seconds of a field such as Expires; too many for 32 bits count as the most. `None` when it
    /// is missing or no number.
    pub fn seconds(&self, name: &Name) -> Option<u32> {
        self.first(name).and_then(|value| number_saturating(value))
    }

    /// The media type of the body, in lower case, parameters left off (RFC 3261 §20.15).
    pub fn content_type(&self) -> Option<String> {
        let (media, _) = split_once(self.first(&Name::ContentType)?, b';');
        let mut text: String = media.iter().copied().filter(|b| !is_space(*b)).map(char::from).collect();
        text.make_ascii_lowercase();
        Some(text)
    }

    /// Whom the call was diverted from (RFC 5806): the latest diversion first.
    pub fn diversions(&self) -> Vec<super::header::Diverted> {
        self.all(&Name::Diversion).flat_map(|field| super::header::diversions(field)).collect()
    }

    /// The targets the call has had (RFC 7044): oldest first, the present one last.
    pub fn history(&self) -> Vec<super::header::Diverted> {
        let fields: Vec<&[u8]> = self.all(&Name::HistoryInfo).map(|field| &field[..]).collect();
        match fields.as_slice() {
            [] => Vec::new(),
            fields => super::header::history(&fields.join(&b","[..])),
        }
    }
}

/// The value with line ends turned into blanks and the ends trimmed, sharing the bytes if it can.
fn one_line(value: Bytes) -> Bytes {
    if memchr::memchr2(b'\r', b'\n', &value).is_none() {
        return value.slice_ref(trim(&value));
    }
    let flat: Vec<u8> = value.iter().map(|&b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }).collect();
    Bytes::copy_from_slice(trim(&flat))
}
