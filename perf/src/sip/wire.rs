//! Messages: built with `rsip`, read with `rsip`.

use anyhow::{Context, Result, anyhow};
use rsip::headers::{self, UntypedHeader};
use rsip::prelude::{HeadersExt, ToTypedHeader};
use rsip::{Header, Headers, Method, Request, Response, SipMessage, StatusCode, Uri, Version};

use crate::sip::target::{read_uri, without_ipv6};

/// A message from the far side.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// As `rsip` understands it.
    pub sip: SipMessage,
    /// The reason phrase as it was written; empty in a request.
    pub reason: String,
}

impl Incoming {
    /// Reads one framed message.
    ///
    /// # Errors
    /// `rsip` does not understand it.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|&b| b == b'\r').unwrap_or(bytes.len());
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        // `rsip` cannot read an IPv6 Request-URI, and nobody here asks for it.
        let (plain, _) = without_ipv6(&line);
        let message = [plain.as_bytes(), &bytes[end..]].concat();
        let sip =
            SipMessage::try_from(message).map_err(|error| anyhow!("unreadable SIP message: {error}"))?;
        let reason = match &sip {
            SipMessage::Response(_) => line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned(),
            SipMessage::Request(_) => String::new(),
        };
        Ok(Self { sip, reason })
    }

    /// The body's bytes.
    pub fn body(&self) -> &[u8] {
        match &self.sip {
            SipMessage::Request(request) => &request.body,
            SipMessage::Response(response) => &response.body,
        }
    }

    fn headers(&self) -> &Headers {
        match &self.sip {
            SipMessage::Request(request) => &request.headers,
            SipMessage::Response(response) => &response.headers,
        }
    }

    /// Every value of a header, in order, by its long name.
    pub fn values(&self, name: &str) -> Vec<String> {
        let lines = self.headers().iter().map(ToString::to_string);
        lines
            .filter_map(|line| line.split_once(':').map(|(n, v)| (n.trim().to_owned(), v.trim().to_owned())))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    /// The first value of a header.
    pub fn value(&self, name: &str) -> Option<String> {
        self.values(name).into_iter().next()
    }

    /// Sequence number and method of CSeq.
    ///
    /// # Errors
    /// The header is missing or malformed.
    pub fn cseq(&self) -> Result<(u32, Method)> {
        let typed = self.sip.cseq_header().and_then(|header| header.typed());
        typed.map(|cseq| (cseq.seq, cseq.method)).map_err(|error| anyhow!("bad CSeq: {error}"))
    }

    /// The URI in Contact.
    ///
    /// # Errors
    /// The header is missing or malformed.
    pub fn contact(&self) -> Result<Uri> {
        let value = self.value("Contact").context("no Contact")?;
        let uri = match value.split_once('<') {
            Some((_, rest)) => rest.split_once('>').context("bad Contact: no end of its URI")?.0,
            // Without brackets, parameters belong to the header (RFC 3261 §20).
            None => value.split(';').next().unwrap_or_default(),
        };
        read_uri(uri.trim())
    }
}

/// What every request of one call repeats.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Call-ID.
    pub call_id: String,
    /// From with our tag.
    pub from: String,
    /// To, with the far side's tag once there is one.
    pub to: String,
    /// Contact.
    pub contact: String,
    /// Via without its branch.
    pub via: String,
    /// Route set, next hop first.
    pub routes: Vec<String>,
}

/// Parts of a request that differ from one to the next.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Method.
    pub method: Method,
    /// Request-URI.
    pub uri: &'a Uri,
    /// Sequence number.
    pub cseq: u32,
    /// Branch parameter, new for each transaction.
    pub branch: &'a str,
    /// Further header lines, `Name: value`.
    pub extra: &'a [String],
    /// SDP or nothing.
    pub body: Option<String>,
}

/// A request as bytes.
///
/// # Errors
/// An extra header without a colon.
pub fn request(identity: &Identity, parts: Parts<'_>) -> Result<Vec<u8>> {
    let mut list: Vec<Header> = vec![
        headers::Via::new(format!("{};branch={};rport", identity.via, parts.branch)).into(),
        headers::MaxForwards::new("70").into(),
        headers::From::new(identity.from.clone()).into(),
        headers::To::new(identity.to.clone()).into(),
        headers::CallId::new(identity.call_id.clone()).into(),
        headers::CSeq::new(format!("{} {}", parts.cseq, parts.method)).into(),
        headers::Contact::new(identity.contact.clone()).into(),
        headers::UserAgent::new("voxperf").into(),
        headers::Allow::new("INVITE, ACK, CANCEL, OPTIONS, BYE, UPDATE").into(),
    ];
    list.extend(identity.routes.iter().map(|route| headers::Route::new(route.clone()).into()));
    for line in parts.extra {
        let (name, value) =
            line.split_once(':').with_context(|| format!("{line:?} is no \"Name: value\""))?;
        list.push(Header::Other(name.trim().to_owned(), value.trim().to_owned()));
    }
    let body = content(&mut list, parts.body);
    let request = Request {
        method: parts.method,
        uri: parts.uri.clone(),
        version: Version::V2,
        headers: list.into(),
        body,
    };
    Ok(SipMessage::from(request).to_string().into_bytes())
}

/// A response to `request` as bytes; Via, From, To, Call-ID and CSeq are copied (RFC 3261 §8.2.6).
pub fn response(request: &Request, status: u16, extra: Vec<Header>, body: Option<String>) -> Vec<u8> {
    let mut list: Vec<Header> = request.headers.iter().filter(|header| is_copied(header)).cloned().collect();
    list.extend(extra);
    let body = content(&mut list, body);
    let response =
        Response { status_code: StatusCode::from(status), version: Version::V2, headers: list.into(), body };
    SipMessage::from(response).to_string().into_bytes()
}

fn is_copied(header: &Header) -> bool {
    matches!(
        header,
        Header::Via(_)
            | Header::From(_)
            | Header::To(_)
            | Header::CallId(_)
            | Header::CSeq(_)
            | Header::RecordRoute(_)
    )
}

/// Adds Content-Type and Content-Length; gives the body's bytes.
fn content(list: &mut Vec<Header>, body: Option<String>) -> Vec<u8> {
    if body.is_some() {
        list.push(headers::ContentType::new("application/sdp").into());
    }
    let body = body.unwrap_or_default().into_bytes();
    list.push(headers::ContentLength::new(body.len().to_string()).into());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a request carries what it must (RFC 3261 §8.1.1) and reads back.
    /// Method: build an INVITE with one extra header, read it with the reading half.
    #[test]
    fn a_request_carries_what_it_must_and_reads_back() {
        let identity = Identity {
            call_id: "abc@voxperf".into(),
            from: "<sip:a@127.0.0.1>;tag=1".into(),
            to: "<sip:1001@127.0.0.1>".into(),
            contact: "<sip:voxperf@127.0.0.1:9;transport=tcp>".into(),
            via: "SIP/2.0/TCP 127.0.0.1:9".into(),
            routes: vec!["<sip:p1;lr>".into()],
        };
        let uri = Uri::try_from("sip:1001@127.0.0.1:5060;transport=tcp").unwrap();
        let extra = ["Diversion: <sip:1002@x>;reason=no-answer".to_owned()];
        let parts = Parts {
            method: Method::Invite,
            uri: &uri,
            cseq: 7,
            branch: "z9hG4bKx",
            extra: &extra,
            body: Some("v=0\r\n".into()),
        };
        let read = Incoming::read(&request(&identity, parts).unwrap()).unwrap();
        assert_eq!(read.cseq().unwrap(), (7, Method::Invite));
        assert_eq!(read.value("diversion").as_deref(), Some("<sip:1002@x>;reason=no-answer"));
        assert_eq!(read.value("Content-Length").as_deref(), Some("5"));
        assert_eq!(read.value("Max-Forwards").as_deref(), Some("70"));
        assert_eq!(read.body(), b"v=0\r\n");
        assert_eq!(read.contact().unwrap().port().map(|port| *port.value()), Some(9));
    }

    /// Goal: a response keeps its own reason phrase, also for a status rsip does not know.
    /// Method: a 488 with other words.
    #[test]
    fn a_response_keeps_its_reason_phrase() {
        let bytes = b"SIP/2.0 488 No Common Codec\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n";
        let read = Incoming::read(bytes).unwrap();
        assert_eq!(read.reason, "No Common Codec");
        assert!(matches!(&read.sip, SipMessage::Response(r) if r.status_code.code() == 488));
    }

    /// Goal: requests and Contacts with IPv6 hosts are read; so is a Contact without angle brackets.
    /// Method: a BYE to us at `[::1]` and redirects in both forms.
    #[test]
    fn ipv6_hosts_are_read() {
        let bye =
            b"BYE sip:voxperf@[::1]:9;transport=tcp SIP/2.0\r\nCSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(Incoming::read(bye).unwrap().cseq().unwrap(), (1, Method::Bye));
        for (contact, uri) in [
            ("\"UM\" <sip:1001@[fd00::7]:5066;transport=tls>;q=1", "sip:1001@[fd00::7]:5066;transport=TLS"),
            ("sip:1001@um.test:5066;q=0.5", "sip:1001@um.test:5066"),
        ] {
            let text =
                format!("SIP/2.0 302 Moved Temporarily\r\nContact: {contact}\r\nContent-Length: 0\r\n\r\n");
            let redirect = Incoming::read(text.as_bytes()).unwrap();
            assert_eq!(redirect.contact().unwrap().to_string(), uri);
        }
    }
}
