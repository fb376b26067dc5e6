//! What the callee's INVITE takes over from the caller's, and what is ours in it.

use std::net::SocketAddr;

use bytes::Bytes;

use super::Callee;
use crate::base::config::{CallHost, CallTransport, CallUri};
use crate::sip::flow::Transport;
use crate::sip::header::{NameAddr, Params};
use crate::sip::message::{Name, Request};
use crate::sip::uri::{Host, SipUri, Uri};

/// Hops of an INVITE that does not say how many it may take (RFC 3261 §8.1.1.6, §16.6).
const MAX_FORWARDS: u8 = 70;
/// Who was called before, who says who calls, and what of it may be shown: whoever is behind the
/// gateway may want to know (RFC 5806, RFC 7044, RFC 3325, RFC 3323).
const PASSED_ON: [Name; 4] = [Name::Diversion, Name::HistoryInfo, Name::PAssertedIdentity, Name::Privacy];

/// How a gateway is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Its `call_uri`.
    pub uri: CallUri,
    /// What that means now.
    pub remote: SocketAddr,
    /// Our listener of that transport.
    pub listener: u16,
    /// Where it is reached from there.
    pub local: SocketAddr,
    /// Our name, where a certificate is checked against it.
    pub fqdn: Option<String>,
}

/// The caller's INVITE may go no further: 483 (RFC 3261 §16.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyHops;

impl Way {
    /// What carries calls there.
    pub fn transport(&self) -> Transport {
        match self.uri.transport {
            CallTransport::Udp => Transport::Udp,
            CallTransport::Tcp => Transport::Tcp,
            CallTransport::Tls => Transport::Tls,
        }
    }

    /// The callee for `number`, called on behalf of who sent `invite`. `tag` and `call_id` are new ones of
    /// ours.
    ///
    /// # Errors
    /// The INVITE's Max-Forwards is used up.
    pub fn callee(
        &self,
        number: &str,
        invite: &Request,
        tag: &str,
        call_id: String,
    ) -> Result<Callee, TooManyHops> {
        let hops = invite.headers.max_forwards().ok().flatten().unwrap_or(MAX_FORWARDS + 1);
        let hops = hops.checked_sub(1).ok_or(TooManyHops)?;
        let mut headers = vec![(Name::MaxForwards, Bytes::from(hops.to_string()))];
        for name in PASSED_ON {
            headers.extend(invite.headers.all(&name).map(|value| (name.clone(), value.clone())));
        }
        let mut target = SipUri::new(Some(number), self.gateway_host(), self.uri.port);
        target.secure = self.uri.secure;
        let to = NameAddr::new(Uri::Sip(target.clone()));
        if !self.uri.secure {
            target.params.set("transport", Some(self.transport().name()));
        }
        let (from, user) = self.from(invite, tag);
        Ok(Callee {
            target: Uri::Sip(target),
            from,
            to,
            call_id,
            contact: self.contact(user.as_deref()),
            headers,
            transport: self.transport(),
            remote: self.remote,
            listener: self.listener,
            sent_by: self.local,
        })
    }

    /// The caller's name and number at our host, or nobody's (RFC 3323 §4.1.1.3); and the number.
    fn from(&self, invite: &Request, tag: &str) -> (NameAddr, Option<String>) {
        let caller = invite.from().ok();
        let user = caller.as_ref().and_then(|caller| caller.uri.user()).filter(|user| !user.is_empty());
        let is_anonymous = user.as_deref().is_some_and(|user| user.eq_ignore_ascii_case("anonymous"));
        let host = if is_anonymous { Host::Name("anonymous.invalid".to_owned()) } else { self.own_host() };
        let uri = SipUri::new(user.as_deref(), host, None);
        let display = caller.and_then(|caller| caller.display).filter(|display| !display.is_empty());
        let mut from = NameAddr { display, uri: Uri::Sip(uri), params: Params::default() };
        from.params.set("tag", Some(tag));
        (from, user.filter(|_| !is_anonymous))
    }

    /// Where the callee reaches us in the dialog.
    fn contact(&self, user: Option<&str>) -> String {
        let mut uri = SipUri::new(user, self.own_host(), Some(self.local.port()));
        if self.uri.secure {
            uri.secure = true;
        } else {
            uri.params.set("transport", Some(self.transport().name()));
        }
        format!("<{uri}>")
    }

    fn own_host(&self) -> Host {
        let named = self.fqdn.clone().filter(|_| self.transport() == Transport::Tls);
        named.map_or_else(|| Host::from(self.local.ip()), Host::Name)
    }

    fn gateway_host(&self) -> Host {
        match &self.uri.host {
            CallHost::Address(address) => Host::from(*address),
            CallHost::Name(name) => Host::Name(name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::message::Method;

    fn way(uri: &str) -> Way {
        Way {
            uri: uri.parse().unwrap(),
            remote: "192.0.2.9:5060".parse().unwrap(),
            listener: 3,
            local: "192.0.2.1:5065".parse().unwrap(),
            fqdn: Some("vox.example".into()),
        }
    }

    fn invite(from: &str, extra: &[(Name, &'static str)]) -> Request {
        let mut invite = Request::new(Method::Invite, "sip:1001@192.0.2.1");
        invite.headers.push(Name::From, from.to_owned());
        for (name, value) in extra {
            invite.headers.push(name.clone(), *value);
        }
        invite
    }

    fn callee(uri: &str, from: &str) -> Callee {
        way(uri).callee("+4930", &invite(from, &[]), "us", "c9".into()).unwrap()
    }

    /// Goal: the callee learns the caller's name and number, from us, and where to reach us: over TLS at
    /// our name, sips where the gateway's URI is one (RFC 3261 §12.1.1). Method: a URI of each kind.
    #[test]
    fn the_callee_is_called_in_the_callers_name_from_our_address() {
        let plain = callee("sip:192.0.2.9:5070;transport=tcp", "\"Ann \\\"A\\\" B\" <sip:2000@pbx>;tag=1");
        assert_eq!(plain.target.to_string(), "sip:+4930@192.0.2.9:5070;transport=tcp");
        assert_eq!(plain.from.to_string(), "\"Ann \\\"A\\\" B\" <sip:2000@192.0.2.1>;tag=us");
        assert_eq!(plain.to.to_string(), "<sip:+4930@192.0.2.9:5070>");
        assert_eq!(plain.contact, "<sip:2000@192.0.2.1:5065;transport=tcp>");
        assert_eq!((plain.transport, plain.listener), (Transport::Tcp, 3));
        let secure = callee("sips:gw.example", "<tel:+49-30-1>;tag=1");
        assert_eq!(secure.target.to_string(), "sips:+4930@gw.example");
        assert_eq!(secure.from.to_string(), "<sip:+49301@vox.example>;tag=us");
        assert_eq!(secure.contact, "<sips:+49301@vox.example:5065>");
        assert_eq!(callee("sip:192.0.2.9", "<sip:pbx>;tag=1").from.to_string(), "<sip:192.0.2.1>;tag=us");
    }

    /// Goal: who wants to be nobody stays nobody (RFC 3323). Method: an anonymous From.
    #[test]
    fn an_anonymous_caller_stays_anonymous() {
        let callee = callee("sip:192.0.2.9", "\"Anonymous\" <sip:anonymous@anonymous.invalid>;tag=1");
        assert_eq!(callee.from.to_string(), "\"Anonymous\" <sip:anonymous@anonymous.invalid>;tag=us");
        assert_eq!(callee.contact, "<sip:192.0.2.1:5065;transport=udp>");
    }

    /// Goal: diversions and identities go on, and each hop counts (RFC 3261 §16.6). Method: one of each,
    /// and Max-Forwards of 70, none, and 0.
    #[test]
    fn diversions_go_on_and_hops_are_counted() {
        let named = [
            (Name::Diversion, "<sip:1001@pbx>;reason=no-answer"),
            (Name::HistoryInfo, "<sip:1001@pbx>;index=1"),
            (Name::PAssertedIdentity, "<tel:+4930>"),
            (Name::Privacy, "id"),
            (Name::MaxForwards, "70"),
        ];
        let way = way("sip:192.0.2.9");
        let call = |extra: &[_]| way.callee("1", &invite("<sip:a@b>;tag=1", extra), "us", "c".into());
        let headers = call(&named).unwrap().headers;
        assert_eq!(headers[0], (Name::MaxForwards, Bytes::from("69")));
        assert_eq!(headers.len(), named.len());
        assert!(
            named[..4].iter().all(|(name, value)| headers.contains(&(name.clone(), Bytes::from(*value))))
        );
        assert_eq!(call(&[]).unwrap().headers, [(Name::MaxForwards, Bytes::from("70"))]);
        assert_eq!(call(&[(Name::MaxForwards, "0")]).unwrap_err(), TooManyHops);
    }
}
