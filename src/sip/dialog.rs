//! Dialogs (RFC 3261 §12): what two user agents remember of each other between requests.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::header::{CSeq, Name, NameAddr, Params, SyntaxError};
use super::headers::Headers;
use super::message::{Method, Request, Response};
use super::uri::Uri;

/// Most entries of a route set; a longer one is the peer's mistake.
const ROUTES_MAX: usize = 32;

/// What names a dialog (RFC 3261 §12), seen from our side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DialogId {
    /// The Call-ID.
    pub call_id: String,
    /// Our tag.
    pub local_tag: String,
    /// The peer's tag; empty if it is an RFC 2543 element without one.
    pub remote_tag: String,
}

impl DialogId {
    fn shared(call_id: &str, local_tag: String, remote_tag: String) -> Arc<Self> {
        Arc::new(Self { call_id: call_id.to_owned(), local_tag, remote_tag })
    }

    /// The dialog a received request names. `None` outside of dialogs: no To tag.
    pub fn of_request(request: &Request) -> Option<Self> {
        let local_tag = request.to().ok()?.tag()?.to_owned();
        let remote_tag = tag_of(&request.from().ok()?);
        Some(Self { call_id: request.call_id().ok()?.to_owned(), local_tag, remote_tag })
    }

    /// The dialog a received response belongs to. `None` without To tag: none was made.
    pub fn of_response(response: &Response) -> Option<Self> {
        let remote_tag = response.to().ok()?.tag()?.to_owned();
        let local_tag = tag_of(&response.from().ok()?);
        Some(Self { call_id: response.call_id().ok()?.to_owned(), local_tag, remote_tag })
    }
}

/// Why no dialog could be made. Always the peer's doing: 400 for a request, BYE or nothing for a
/// response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialogError {
    /// No Contact, or more than one (RFC 3261 §8.1.1.8, §12.1.1).
    #[error("Missing or Repeated Contact")]
    Contact,
    /// More than 32 Record-Route entries.
    #[error("Too Many Record-Route Entries")]
    RouteSet,
    /// A field that every message has is not to be read.
    #[error("{0}")]
    Syntax(#[from] SyntaxError),
}

/// One dialog.
#[derive(Debug, Clone)]
pub struct Dialog {
    id: Arc<DialogId>,
    /// Our From in requests, tag included.
    local: Box<str>,
    /// Our To in requests, tag included.
    remote: Box<str>,
    local_cseq: u32,
    remote_cseq: Option<u32>,
    /// Route entries as they go out, nearest first.
    route_set: Vec<NameAddr>,
    /// A URI as text: a dialog lives long and is seldom asked.
    remote_target: Box<str>,
    /// Our Contact value.
    contact: Box<str>,
}

/// A dialog, for another process to go on with: its parts as they are on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDialog {
    call_id: String,
    local_tag: String,
    remote_tag: String,
    local: Box<str>,
    remote: Box<str>,
    local_cseq: u32,
    remote_cseq: Option<u32>,
    route_set: Vec<String>,
    remote_target: Box<str>,
    contact: Box<str>,
}

impl Dialog {
    /// For another process.
    pub fn kept(&self) -> KeptDialog {
        KeptDialog {
            call_id: self.id.call_id.clone(),
            local_tag: self.id.local_tag.clone(),
            remote_tag: self.id.remote_tag.clone(),
            local: self.local.clone(),
            remote: self.remote.clone(),
            local_cseq: self.local_cseq,
            remote_cseq: self.remote_cseq,
            route_set: self.route_set.iter().map(ToString::to_string).collect(),
            remote_target: self.remote_target.clone(),
            contact: self.contact.clone(),
        }
    }

    /// Goes on where [`Self::kept`] was said.
    ///
    /// # Errors
    /// A route is none: what was kept is of another form.
    pub fn resume(kept: KeptDialog) -> Result<Self, SyntaxError> {
        let routes = kept.route_set.iter().map(|route| NameAddr::parse_kindly(route.as_bytes()));
        Ok(Self {
            route_set: routes.collect::<Result<_, _>>()?,
            id: DialogId::shared(&kept.call_id, kept.local_tag, kept.remote_tag),
            local: kept.local,
            remote: kept.remote,
            // One that was sent in the last moment may not be kept: no number is used twice.
            local_cseq: kept.local_cseq.saturating_add(1),
            remote_cseq: kept.remote_cseq,
            remote_target: kept.remote_target,
            contact: kept.contact,
        })
    }

    /// The dialog that our response to `request` makes (RFC 3261 §12.1.1). `local_tag` goes into
    /// that response's To, `contact` (a whole value, `<sip:...>`) is where the peer reaches us.
    ///
    /// # Errors
    /// The request is unfit; answer 400 with the error as reason.
    pub fn uas(request: &Request, local_tag: &str, contact: &str) -> Result<Self, DialogError> {
        let route_set = route_set(&request.headers)?;
        let (remote, mut local) = (request.from()?, request.to()?);
        local.params.set("tag", Some(local_tag));
        Ok(Self {
            id: DialogId::shared(request.call_id()?, local_tag.to_owned(), tag_of(&remote)),
            local: local.to_string().into(),
            remote: remote.to_string().into(),
            local_cseq: 0,
            remote_cseq: Some(request.cseq()?.number),
            route_set,
            remote_target: only_contact(&request.headers)?.ok_or(DialogError::Contact)?.to_string().into(),
            contact: contact.into(),
        })
    }

    /// What a dialog of ours begins with (RFC 3261 §8.1.1): its first request goes to `target`. `local`
    /// has a tag of ours. Once the answer is here [`Self::uac`] takes this one's place.
    pub fn begin(target: Uri, local: &NameAddr, remote: &NameAddr, call_id: &str, contact: &str) -> Self {
        Self {
            id: DialogId::shared(call_id, tag_of(local), String::new()),
            local: local.to_string().into(),
            remote: remote.to_string().into(),
            local_cseq: 0,
            remote_cseq: None,
            route_set: Vec::new(),
            remote_target: target.to_string().into(),
            contact: contact.into(),
        }
    }

    /// The dialog that a 2xx, or a 1xx with a To tag, to our `request` makes (RFC 3261 §12.1.2).
    ///
    /// # Errors
    /// The response is unfit. A missing Contact is forgiven: requests then go where the INVITE
    /// went.
    pub fn uac(request: &Request, response: &Response) -> Result<Self, DialogError> {
        let mut route_set = route_set(&response.headers)?;
        route_set.reverse();
        let (local, remote) = (response.from()?, response.to()?);
        let contact = request.headers.first(&Name::Contact).map(|value| String::from_utf8_lossy(value));
        Ok(Self {
            id: DialogId::shared(response.call_id()?, tag_of(&local), tag_of(&remote)),
            local: local.to_string().into(),
            remote: remote.to_string().into(),
            local_cseq: request.cseq()?.number,
            remote_cseq: None,
            route_set,
            remote_target: match only_contact(&response.headers)? {
                Some(target) => target.to_string().into(),
                None => request.uri()?.to_string().into(),
            },
            contact: contact.unwrap_or_default().into(),
        })
    }

    /// What names it.
    pub fn id(&self) -> &DialogId {
        &self.id
    }

    /// The same for a map of dialogs, without a copy.
    pub fn shared_id(&self) -> &Arc<DialogId> {
        &self.id
    }

    /// Our own URI in it; empty if it cannot be read.
    pub fn local_uri(&self) -> String {
        uri_of(&self.local)
    }

    /// The peer's URI; empty if it cannot be read.
    pub fn remote_uri(&self) -> String {
        uri_of(&self.remote)
    }

    /// Where the next request is to be sent: the first route, else the remote target (RFC 3261
    /// §12.2.1.1). [`super::target::resolve`] makes an address of it.
    pub fn next_hop(&self) -> Uri {
        self.route_set.first().map_or_else(|| read_again(&self.remote_target), |route| route.uri.clone())
    }

    /// True without a route set: requests go to the remote target itself.
    pub fn is_direct(&self) -> bool {
        self.route_set.is_empty()
    }

    /// The peer's Contact, a URI.
    pub fn remote_target(&self) -> &str {
        &self.remote_target
    }

    /// Checks a request that came inside the dialog for its place in the order (RFC 3261
    /// §12.2.2). ACK and CANCEL have none of their own.
    ///
    /// # Errors
    /// The status to answer with: 500 for a request that is overtaken, 400 for one without CSeq.
    pub fn accept(&mut self, request: &Request) -> Result<(), u16> {
        if matches!(request.method, Method::Ack | Method::Cancel) {
            return Ok(());
        }
        let number = request.cseq().map_err(|_| 400_u16)?.number;
        if self.remote_cseq.is_some_and(|last| number < last) {
            return Err(500);
        }
        self.remote_cseq = Some(number);
        Ok(())
    }

    /// A request inside the dialog: Request-URI, Route, From, To, Call-ID and the next CSeq set
    /// (RFC 3261 §12.2.1.1), and Contact where it may refresh the peer's target.
    ///
    /// Not for ACK, see [`Self::ack`], nor for CANCEL, which the layer makes.
    pub fn request(&mut self, method: Method) -> Request {
        self.local_cseq = self.local_cseq.saturating_add(1);
        let refreshes = matches!(
            method,
            Method::Invite | Method::Update | Method::Refer | Method::Subscribe | Method::Notify
        );
        let mut request = self.build(method, self.local_cseq);
        if refreshes {
            request.headers.push(Name::Contact, self.contact.to_string());
        }
        request
    }

    /// The ACK of a 2xx to our INVITE with CSeq number `cseq` (RFC 3261 §13.2.2.4).
    pub fn ack(&self, cseq: u32) -> Request {
        self.build(Method::Ack, cseq)
    }

    /// A response inside the dialog, or the one that makes it: To tag, and where they belong
    /// Contact and the request's Record-Route (RFC 3261 §12.1.1).
    ///
    /// A 2xx to INVITE or UPDATE also takes the request's Contact over as remote target, which a
    /// refusal must not (RFC 6141 §4.9).
    pub fn response(&mut self, request: &Request, status: u16, reason: &str) -> Response {
        let mut response = Response::for_request(request, status, reason);
        if status > 100
            && let Ok(mut to) = request.to()
            && to.tag().is_none()
        {
            to.params.set("tag", Some(&self.id.local_tag));
            response.headers.set(Name::To, to.to_string());
        }
        let refreshes = matches!(request.method, Method::Invite | Method::Update);
        if refreshes && (101..300).contains(&status) {
            for value in request.headers.all(&Name::RecordRoute) {
                response.headers.push(Name::RecordRoute, value.clone());
            }
            response.headers.push(Name::Contact, self.contact.to_string());
        }
        if refreshes && (200..300).contains(&status) {
            self.refresh_target(&request.headers);
        }
        response
    }

    /// Takes what a 2xx to our request changes: the remote target, by INVITE or UPDATE (RFC 3261
    /// §12.2.1.2).
    pub fn handle_response(&mut self, response: &Response) {
        let refreshes =
            response.cseq().is_ok_and(|cseq| matches!(cseq.method, Method::Invite | Method::Update));
        if refreshes && (200..300).contains(&response.status) {
            self.refresh_target(&response.headers);
        }
    }

    /// An unfit Contact leaves the target as it is.
    fn refresh_target(&mut self, headers: &Headers) {
        if let Ok(Some(target)) = only_contact(headers) {
            self.remote_target = target.to_string().into();
        }
    }

    fn build(&self, method: Method, cseq: u32) -> Request {
        let loose = self.route_set.first().is_none_or(|route| is_loose(&route.uri));
        let mut routes: Vec<String> = self.route_set.iter().map(ToString::to_string).collect();
        let uri = if loose {
            self.remote_target.to_string()
        } else {
            // RFC 3261 §12.2.1.1: a strict router wants itself in the Request-URI.
            let target = NameAddr::new(read_again(&self.remote_target)).to_string();
            routes.remove(0);
            routes.push(target);
            self.route_set.first().map(|route| route.uri.to_string()).unwrap_or_default()
        };
        let mut request = Request::new(method.clone(), uri);
        for route in routes {
            request.headers.push(Name::Route, route);
        }
        request.headers.push(Name::From, self.local.to_string());
        request.headers.push(Name::To, self.remote.to_string());
        request.headers.push(Name::CallId, self.id.call_id.clone());
        request.headers.push(Name::CSeq, CSeq { number: cseq, method }.to_string());
        request
    }
}

/// Reads what a URI was written to: writing and reading again yields the same.
fn read_again(text: &str) -> Uri {
    Uri::parse(text.as_bytes())
        .unwrap_or_else(|_| Uri::Other { scheme: String::new(), rest: text.to_owned() })
}

fn uri_of(address: &str) -> String {
    NameAddr::parse_kindly(address.as_bytes())
        .map_or_else(|_| String::new(), |address| address.uri.to_string())
}

fn tag_of(address: &NameAddr) -> String {
    address.tag().unwrap_or_default().to_owned()
}

/// The URI of the one Contact; `None` without any.
fn only_contact(headers: &Headers) -> Result<Option<Uri>, DialogError> {
    let mut contacts = headers.contacts()?.into_iter();
    match (contacts.next(), contacts.next()) {
        (None, _) => Ok(None),
        (Some(contact), None) => Ok(Some(contact.uri)),
        (Some(_), Some(_)) => Err(DialogError::Contact),
    }
}

fn route_set(headers: &Headers) -> Result<Vec<NameAddr>, DialogError> {
    let routes = headers.addresses(&Name::RecordRoute)?;
    if routes.len() > ROUTES_MAX { Err(DialogError::RouteSet) } else { Ok(routes) }
}

/// True for a router that leaves the Request-URI alone (RFC 3261 §19.1.1, `lr`).
fn is_loose(uri: &Uri) -> bool {
    let lr = |params: &Params| params.has("lr");
    uri.as_sip().is_some_and(|uri| lr(&uri.params))
}

#[cfg(test)]
mod tests;
