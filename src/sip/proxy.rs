//! Message edits of a proxy that stays out of the dialog (RFC 3261 §16): `handoff = "proxy"`.
//!
//! The role keeps which server transaction belongs to which client transaction; the layer adds
//! and matches the Via of each. An ACK of a 2xx that comes this way goes on with
//! [`super::layer::Layer::send_stateless`].

use bytes::Bytes;

use super::message::{Method, Name, Request, Response};
use super::uas::refuse;
use super::uri::Uri;

/// The request as it goes downstream (RFC 3261 §16.6): new Request-URI, Max-Forwards one less,
/// the topmost Route gone if `is_us` says it names this proxy (§16.4). No Record-Route is added.
///
/// # Errors
/// The response that refuses it (§16.3): 483 when it may go no further, 420 when it requires
/// something of a proxy. An ACK cannot be refused: drop it.
pub fn forward(
    request: &Request,
    uri: impl Into<Bytes>,
    agent: &str,
    is_us: impl Fn(&Uri) -> bool,
) -> Result<Request, Response> {
    let hops = request.headers.max_forwards().ok().flatten();
    let Some(hops) = hops.unwrap_or(71).checked_sub(1) else {
        return Err(refuse(request, agent, 483, "Too Many Hops", "Max-Forwards is 0"));
    };
    if request.headers.contains(&Name::ProxyRequire)
        && !matches!(request.method, Method::Ack | Method::Cancel)
    {
        let tags: Vec<Bytes> = request.headers.values(&Name::ProxyRequire).collect();
        let mut response =
            refuse(request, agent, 420, "Bad Extension", "this proxy supports no required extension");
        response.headers.push(Name::Unsupported, tags.join(&b", "[..]));
        return Err(response);
    }
    let mut forwarded = request.clone();
    forwarded.uri = uri.into();
    forwarded.headers.set(Name::MaxForwards, hops.to_string());
    let top_route = request.headers.addresses(&Name::Route).ok().and_then(|r| r.into_iter().next());
    if top_route.is_some_and(|route| is_us(&route.uri)) {
        forwarded.headers.remove_first_value(&Name::Route);
    }
    Ok(forwarded)
}

/// The response as it goes upstream (RFC 3261 §16.7 step 3): the topmost Via, ours, removed.
/// `None` for what goes no further: a 100 (step 5), or a response that was meant for us alone.
pub fn backward(response: &Response) -> Option<Response> {
    if response.status == 100 {
        return None;
    }
    let mut forwarded = response.clone();
    forwarded.headers.remove_first_value(&Name::Via)?;
    forwarded.headers.contains(&Name::Via).then_some(forwarded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::message::Message;

    fn request(extra: &str) -> Request {
        let text = format!(
            "INVITE sip:1001@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1\r\n\
             From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n{extra}\r\n"
        );
        match Message::parse(Bytes::from(text)).unwrap() {
            Message::Request(request) => request,
            Message::Response(_) => panic!("a request"),
        }
    }

    /// Goal: §16.6 steps 2, 3 and §16.4. Method: compare the fields that change and those that
    /// must not.
    #[test]
    fn a_forwarded_request_has_the_new_target_and_one_hop_less() {
        let original =
            request("Max-Forwards: 70\r\nRoute: <sip:192.0.2.1;lr>, <sip:far;lr>\r\nDiversion: <tel:1>\r\n");
        let target = "sip:1001@192.0.2.1:5065;transport=tcp";
        let ours = |uri: &Uri| uri.to_string().contains("192.0.2.1");
        let forwarded = forward(&original, target, "voxring", ours).unwrap();
        assert_eq!(forwarded.uri, target);
        assert_eq!(forwarded.headers.first(&Name::MaxForwards).unwrap(), "69");
        assert_eq!(forwarded.headers.first(&Name::Route).unwrap(), "<sip:far;lr>");
        assert_eq!(forwarded.headers.first(&Name::Diversion).unwrap(), "<tel:1>");
        assert!(!forwarded.headers.contains(&Name::RecordRoute));
    }

    /// Goal: a missing Max-Forwards becomes 70 (§16.6 step 3), 0 is refused with 483, an
    /// extension required of us with 420 (§16.3). Method: one request each.
    #[test]
    fn hops_and_required_extensions_are_checked() {
        let never = |_: &Uri| false;
        let fresh = forward(&request(""), "sip:x", "voxring", never).unwrap();
        assert_eq!(fresh.headers.first(&Name::MaxForwards).unwrap(), "70");
        let spent = forward(&request("Max-Forwards: 0\r\n"), "sip:x", "voxring", never).unwrap_err();
        assert_eq!(spent.status, 483);
        let required = forward(&request("Proxy-Require: foo, bar\r\n"), "sip:x", "voxring", never);
        let required = required.unwrap_err();
        assert_eq!(required.status, 420);
        assert_eq!(required.headers.first(&Name::Unsupported).unwrap(), "foo, bar");
    }

    /// Goal: our Via goes, the others stay; a 100 and our own responses end here. Method: two
    /// Via, one Via, a 100.
    #[test]
    fn a_response_goes_upstream_without_our_via() {
        let mut response = Response::new(200, "OK");
        response.headers.push(Name::Via, "SIP/2.0/TCP 192.0.2.1:5060;branch=z9hG4bKours");
        assert!(backward(&response).is_none());
        response.headers.push(Name::Via, "SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1");
        let upstream = backward(&response).unwrap();
        assert_eq!(upstream.headers.top_via().unwrap().branch(), Some("z9hG4bK1"));
        response.status = 100;
        assert!(backward(&response).is_none());
    }
}
