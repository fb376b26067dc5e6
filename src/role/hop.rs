//! Trust between the node's own hops: with `handoff = "proxy"` the worker sees the service's
//! connection, and the service the router's. A header field tells whose call it is, and a secret
//! that only this node's processes know proves it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::sip::flow::Transport;
use crate::sip::header::Params;
use crate::sip::message::{Name, Request};

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
        let bits = || getrandom::u64().map_err(|error| io::Error::other(error.to_string()));
        Ok(Self(format!("{:016x}{:016x}", bits()?, bits()?)))
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

    /// Takes the field out of a request.
    pub fn strip(request: &mut Request) {
        request.headers.remove(&Name::Other(HEADER.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::message::Method;

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
            HopClaim::strip(&mut request);
            assert!(request.headers.is_empty());
        }
        assert_eq!(secret.0.len(), 32);
        assert_eq!(format!("{secret:?}"), "HopSecret(..)");
    }
}
