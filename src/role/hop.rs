//! Trust between the node's own hops: with `handoff = "proxy"` the worker sees the service's
//! connection, and the service the router's. A header field tells whose call it is, and a secret
//! that only this node's processes know proves it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::role::user_agent;
use crate::sip::flow::Transport;
use crate::sip::header::Params;
use crate::sip::message::{Name, Request};

/// Gateway and number of the calls a worker places to itself.
pub const SELF_TEST: &str = "self-test";
/// The header field; never let through from outside.
const HEADER: &str = "X-Voxring-Hop";

/// 128 random bits in hex, made anew at each start of the node. Debug hides them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HopSecret(String);

impl HopSecret {
    /// A new one.
    ///
    /// # Errors
    /// The operating system has no random numbers to give.
    pub fn random() -> io::Result<Self> {
        Ok(Self(format!("{:016x}{:016x}", user_agent::random()?, user_agent::random()?)))
    }

    /// Compares in a time that does not tell how much was right.
    fn is(&self, token: &str) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.0.as_bytes(), token.as_bytes()).is_ok()
    }
}

impl fmt::Debug for HopSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HopSecret(..)")
    }
}

/// What the hop before has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopClaim {
    /// The gateway's name.
    pub gateway: String,
    /// The dial plan's name.
    pub dial_plan: String,
    /// The caller's address.
    pub source: SocketAddr,
    /// What carried the call to the node.
    pub transport: Transport,
}

impl HopClaim {
    /// Puts the claim into a request in place of any other.
    pub fn write(&self, secret: &HopSecret, request: &mut Request) {
        let Self { gateway, dial_plan, source, transport } = self;
        let token = &secret.0;
        let transport = transport.name();
        let value = format!(
            "token={token};gateway={gateway};dial-plan={dial_plan};source={source};transport={transport}"
        );
        request.headers.set(Name::Other(HEADER.into()), value);
    }

    /// The claim in a request; `None` when there is none with the right secret.
    pub fn read(secret: &HopSecret, request: &Request) -> Option<Self> {
        let value = request.headers.first(&Name::Other(HEADER.into()))?;
        let params = Params::parse(&[b";", &value[..]].concat()).ok()?;
        if !secret.is(params.value("token")?) {
            return None;
        }
        let transport = match params.value("transport")? {
            "udp" => Transport::Udp,
            "tcp" => Transport::Tcp,
            "tls" => Transport::Tls,
            _ => return None,
        };
        let source = params.value("source")?.parse().ok()?;
        let text = |name| params.value(name).map(str::to_owned);
        Some(Self { gateway: text("gateway")?, dial_plan: text("dial-plan")?, source, transport })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sip::message::{Message, Method};

    /// Goal: a claim arrives as it was made, with the right secret only, and its secret is in no
    /// debug text. Method: write and read with both address families; a wrong, cut and no secret.
    #[test]
    fn a_claim_counts_with_the_right_secret_only() {
        let secret = HopSecret::random().unwrap();
        for (source, transport) in
            [("192.0.2.7:5060", Transport::Udp), ("[2001:db8::1]:33000", Transport::Tls)]
        {
            let claim = HopClaim {
                gateway: "pbx-1_a.b".into(),
                dial_plan: "main".into(),
                source: source.parse().unwrap(),
                transport,
            };
            let mut request = Request::new(Method::Invite, "sip:1@x");
            request.headers.push(Name::Other("x-voxring-hop".into()), "token=0;gateway=evil");
            assert_eq!(HopClaim::read(&secret, &request), None);
            claim.write(&secret, &mut request);
            assert_eq!(HopClaim::read(&secret, &request), Some(claim));
            assert_eq!(HopClaim::read(&HopSecret::random().unwrap(), &request), None);
            let cut = HopSecret(secret.0[..31].to_owned());
            assert_eq!(HopClaim::read(&cut, &request), None);
            request.headers.remove(&Name::Other(HEADER.into()));
            assert!(request.headers.is_empty());
        }
        assert_eq!(secret.0.len(), 32);
        assert_eq!(format!("{secret:?}"), "HopSecret(..)");
    }

    /// The text of a request with these fields.
    fn arrived(fields: &str) -> Request {
        let text = format!(
            "INVITE sip:1@x SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.7;branch=z9hG4bK1\r\nFrom: <sip:a@x>;tag=1\r\n\
             To: <sip:b@x>\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n{fields}\r\n"
        );
        match Message::parse(bytes::Bytes::from(text)) {
            Ok(Message::Request(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    fn claim() -> HopClaim {
        HopClaim {
            gateway: "pbx".into(),
            dial_plan: "main".into(),
            source: "192.0.2.7:5060".parse().unwrap(),
            transport: Transport::Tls,
        }
    }

    /// Goal: no other spelling of the field survives beside ours, and none of a stranger's counts
    /// (RFC 3261 §7.3.1: names in any case, folded values, several fields). Method: requests from the
    /// wire with forged fields, before and after `write`.
    #[test]
    fn a_forged_field_neither_counts_nor_stays() {
        let secret = HopSecret::random().unwrap();
        let forged = "token=0;gateway=evil;dial-plan=evil;source=9.9.9.9:9;transport=tls";
        for fields in [
            format!("X-Voxring-Hop: {forged}\r\n"),
            format!("x-VOXRING-hop : {forged}\r\nX-Voxring-Hop:{forged}\r\n"),
            format!("X-Voxring-Hop:\r\n {forged}\r\nX-voxring-hop: {forged}, {forged}\r\n"),
            "X-Voxring-Hop:\r\nX-Voxring-Hop: token\r\nX-Voxring-Hop: token=\r\n".to_owned(),
        ] {
            let mut request = arrived(&fields);
            assert_eq!(HopClaim::read(&secret, &request), None, "{fields}");
            claim().write(&secret, &mut request);
            assert_eq!(HopClaim::read(&secret, &request), Some(claim()), "{fields}");
            let sent = Message::Request(request.clone()).to_bytes().to_ascii_lowercase();
            let sent = String::from_utf8(sent).unwrap();
            assert_eq!(sent.matches("x-voxring-hop").count(), 1, "{sent}");
            assert!(!sent.contains("evil"), "{sent}");
            request.headers.remove(&Name::Other(HEADER.into()));
            assert_eq!(HopClaim::read(&secret, &request), None);
        }
    }

    proptest! {
        /// Goal: a field that differs from a true one anywhere is either no claim or, where the secret
        /// stayed whole, one that says nothing of bytes outside it; nothing crashes. Method: one true
        /// field with a piece replaced by any text, and any text alone.
        #[test]
        fn any_text_is_a_claim_only_with_the_secret(at in 0..150_usize, cut in 0..150_usize, text in "\\PC{0,40}") {
            let secret = HopSecret::random().unwrap();
            let mut request = Request::new(Method::Invite, "sip:1@x");
            claim().write(&secret, &mut request);
            let field = Name::Other(HEADER.into());
            let whole = String::from_utf8(request.headers.first(&field).unwrap().to_vec()).unwrap();
            let (start, end) = (at.min(whole.len()), (at + cut).min(whole.len()));
            let spoiled = format!("{}{text}{}", &whole[..start], &whole[end..]);
            request.headers.set(field.clone(), spoiled.clone());
            let read = HopClaim::read(&secret, &request);
            prop_assert!(read.is_none() || spoiled.contains(&secret.0), "{}", spoiled);
            request.headers.set(field, text);
            prop_assert_eq!(HopClaim::read(&secret, &request), None);
        }
    }
}
