//! What a UAS checks before it looks at a request's meaning (RFC 3261 §8.2), and how it refuses.
//!
//! Not here: 482, which the layer finds; 400 and 505, which the parser finds; 483, since
//! Max-Forwards binds who forwards, not who answers (§16.3), see [`super::proxy`].

use super::message::{Method, Name, Request, Response};
use super::uri::Uri;

/// What this UAS understands.
#[derive(Debug, Clone)]
pub struct UasRules {
    /// Who warns: our name, a token or `host:port` (RFC 3261 §20.43).
    pub agent: String,
    /// Methods it serves, as in Allow.
    pub methods: Vec<Method>,
    /// Body types it reads, as in Accept, lower case: `application/sdp`.
    pub content_types: Vec<String>,
    /// Extensions it supports, as in Supported: `timer`.
    pub option_tags: Vec<String>,
    /// Largest body, in bytes.
    pub body_bytes_max: usize,
    /// Longest Request-URI, in bytes.
    pub uri_bytes_max: usize,
}

impl Default for UasRules {
    fn default() -> Self {
        Self {
            agent: "voxring".to_owned(),
            methods: vec![
                Method::Invite,
                Method::Ack,
                Method::Cancel,
                Method::Bye,
                Method::Options,
                Method::Update,
            ],
            content_types: vec!["application/sdp".to_owned()],
            option_tags: vec!["timer".to_owned()],
            body_bytes_max: 16_384,
            uri_bytes_max: 2_048,
        }
    }
}

impl UasRules {
    /// The Allow value.
    pub fn allow(&self) -> String {
        self.methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The Accept value.
    pub fn accept(&self) -> String {
        self.content_types.join(", ")
    }

    /// The Supported value; may be empty.
    pub fn supported(&self) -> String {
        self.option_tags.join(", ")
    }
}

/// Checks method, Request-URI, required extensions and body, in the order of RFC 3261 §8.2.
///
/// # Errors
/// The response that refuses the request: 405, 413, 414, 415, 416, 420 or 501, with the header
/// field that says what would be understood, and a Warning. An ACK is never refused.
pub fn inspect(request: &Request, rules: &UasRules) -> Result<(), Response> {
    if request.method == Method::Ack {
        return Ok(());
    }
    check_method(request, rules)?;
    check_uri(request, rules)?;
    if request.method != Method::Cancel {
        check_require(request, rules)?; // §8.2.2.3: not for CANCEL
    }
    check_body(request, rules)
}

/// The refusal of a request with a Warning that says why (RFC 3261 §20.43). Codes 300 to 399
/// are the only ones defined; 399 is the miscellaneous one.
pub fn refuse(request: &Request, agent: &str, status: u16, reason: &str, why: &str) -> Response {
    let mut response = Response::for_request(request, status, reason);
    response.headers.push(Name::Warning, warning(agent, why));
    response
}

/// A Warning value: `399 agent "why"`.
pub fn warning(agent: &str, why: &str) -> String {
    warning_of(399, agent, why)
}

/// A Warning value of another code (RFC 3261 §20.43): `code agent "why"`.
pub fn warning_of(code: u16, agent: &str, why: &str) -> String {
    let mut quoted = String::with_capacity(why.len() + agent.len() + 8);
    // Writing to a String cannot fail.
    // What a peer put into its URI must not reach a terminal as control characters.
    let why: String = why.chars().filter(|c| !c.is_control()).collect();
    let _ = super::text::write_quoted(&mut quoted, &why);
    format!("{code} {agent} {quoted}")
}

/// §8.2.1; 501 for what we do not even know (§21.5.2).
fn check_method(request: &Request, rules: &UasRules) -> Result<(), Response> {
    if rules.methods.contains(&request.method) {
        return Ok(());
    }
    let (status, reason) = match request.method {
        Method::Other(_) => (501, "Not Implemented"),
        Method::Invite
        | Method::Ack
        | Method::Bye
        | Method::Cancel
        | Method::Options
        | Method::Register
        | Method::Prack
        | Method::Update
        | Method::Info
        | Method::Refer
        | Method::Notify
        | Method::Subscribe
        | Method::Message
        | Method::Publish => (405, "Method Not Allowed"),
    };
    let why = format!("{} is not served here", request.method);
    let mut response = refuse(request, &rules.agent, status, reason, &why);
    response.headers.push(Name::Allow, rules.allow());
    Err(response)
}

/// §8.2.2.1, §21.4.12, §21.4.14.
fn check_uri(request: &Request, rules: &UasRules) -> Result<(), Response> {
    let length = request.uri.len();
    if length > rules.uri_bytes_max {
        let why = format!("Request-URI of {length} bytes, at most {}", rules.uri_bytes_max);
        return Err(refuse(request, &rules.agent, 414, "Request-URI Too Long", &why));
    }
    match request.uri() {
        Ok(Uri::Sip(_) | Uri::Tel(_)) => Ok(()),
        Ok(Uri::Other { scheme, .. }) => {
            let why = format!("scheme {scheme} is not served here");
            Err(refuse(request, &rules.agent, 416, "Unsupported URI Scheme", &why))
        }
        Err(error) => Err(refuse(request, &rules.agent, 400, "Bad Request-URI", &error.to_string())),
    }
}

/// §8.2.2.3.
fn check_require(request: &Request, rules: &UasRules) -> Result<(), Response> {
    let known = |tag: &[u8]| rules.option_tags.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(tag));
    let unknown: Vec<_> = request.headers.values(&Name::Require).filter(|tag| !known(tag)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let mut response =
        refuse(request, &rules.agent, 420, "Bad Extension", "a required extension is not supported");
    response.headers.push(Name::Unsupported, unknown.join(&b", "[..]));
    Err(response)
}

/// §8.2.3. A body that may be ignored, or whose method gives it no meaning, is.
fn check_body(request: &Request, rules: &UasRules) -> Result<(), Response> {
    let length = request.body.len();
    if length > rules.body_bytes_max {
        let why = format!("body of {length} bytes, at most {}", rules.body_bytes_max);
        return Err(refuse(request, &rules.agent, 413, "Request Entity Too Large", &why));
    }
    let meaningless = matches!(request.method, Method::Bye | Method::Cancel | Method::Options);
    if length == 0 || meaningless || is_optional(request) {
        return Ok(());
    }
    let content_type = request.headers.content_type();
    let accepted = content_type.as_ref().is_some_and(|media| rules.content_types.contains(media));
    let encoding = request.headers.first(&Name::ContentEncoding);
    if accepted && encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case(b"identity")) {
        return Ok(());
    }
    let why = if accepted {
        "encoded bodies are not read here".to_owned()
    } else {
        format!("body type {} is not read here", content_type.as_deref().unwrap_or("not stated"))
    };
    let mut response = refuse(request, &rules.agent, 415, "Unsupported Media Type", &why);
    response.headers.push(Name::Accept, rules.accept());
    if accepted {
        response.headers.push(Name::AcceptEncoding, "identity");
    }
    Err(response)
}

/// True when Content-Disposition lets us ignore the body (RFC 3261 §20.11).
fn is_optional(request: &Request) -> bool {
    let Some(value) = request.headers.first(&Name::ContentDisposition) else { return false };
    let params = value.iter().position(|b| *b == b';').map(|at| value.slice(at..)).unwrap_or_default();
    let params = super::header::Params::parse(&params);
    params.is_ok_and(|p| p.value("handling").is_some_and(|h| h.eq_ignore_ascii_case("optional")))
}

#[cfg(test)]
mod tests;
