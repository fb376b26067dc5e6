//! Where a caller reaches a dialog of ours, and when TLS is a must (RFC 3261 §12.1.1, §26.2.2).

use crate::sip::flow::{Flow, Transport};
use crate::sip::message::{Name, Request};
use crate::sip::uri::{Host, SipUri, Uri};

/// The Contact of our side: the called user at the address the INVITE came to; over TLS at our
/// name, if we have one, since the caller compares it with our certificate.
pub(super) fn contact(invite: &Request, flow: &Flow, fqdn: Option<&str>) -> String {
    let is_tls = flow.transport == Transport::Tls;
    let host = match fqdn.filter(|_| is_tls) {
        Some(name) => Host::Name(name.to_owned()),
        None => Host::from(flow.local.ip()),
    };
    let mut uri = SipUri::new(None, host, Some(flow.local.port()));
    if let Ok(Uri::Sip(called)) = invite.uri() {
        uri.user = called.user;
    }
    if is_tls && wants_sips(invite) {
        // RFC 3261 §26.2.2: sips says TLS; a transport parameter would name what is below it.
        uri.secure = true;
    } else {
        uri.params.set("transport", Some(flow.transport.name()));
    }
    format!("<{uri}>")
}

/// The Request-URI is a sips: URI.
pub(super) fn is_sips(request: &Request) -> bool {
    request.uri().is_ok_and(|uri| is_secure(&uri))
}

/// RFC 3261 §12.1.1: our Contact is a SIPS URI if the Request-URI is one, or the topmost
/// Record-Route, or, without any, the caller's Contact; and so if the To names us by one.
fn wants_sips(invite: &Request) -> bool {
    let first = |name| invite.headers.addresses(&name).ok()?.into_iter().next();
    let nearest = first(Name::RecordRoute).or_else(|| first(Name::Contact));
    is_sips(invite) || nearest.into_iter().chain(invite.to().ok()).any(|value| is_secure(&value.uri))
}

fn is_secure(uri: &Uri) -> bool {
    uri.as_sip().is_some_and(|uri| uri.secure)
}
