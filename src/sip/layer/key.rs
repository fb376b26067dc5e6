//! What tells transactions apart (RFC 3261 §17.1.3, §17.2.3).

use std::sync::Arc;

use bytes::Bytes;

use super::token::MAGIC_COOKIE;
use crate::sip::header::{SyntaxError, Via};
use crate::sip::message::{Method, Name, Request};

/// The fields of a request that transactions are matched by, read once.
#[derive(Debug)]
pub(super) struct Identity {
    /// The sender's Via, before we noted the source in it.
    pub(super) via: Via,
    via_field: Bytes,
    uri: Bytes,
    pub(super) call_id: String,
    pub(super) from_tag: String,
    pub(super) to_tag: String,
    pub(super) cseq: u32,
}

/// The fields that name something, one a line. No field has a line end in it, so that two keys never
/// differ only in where one ends. A transaction shares its keys with the maps that find it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Arc<[u8]>);

impl Key {
    fn of<const FIELDS: usize>(fields: [&[u8]; FIELDS]) -> Self {
        Self(fields.join(&b'\n').into())
    }

    /// Matches a request to its server transaction: branch, sent-by and method (RFC 3261 §17.2.3).
    /// `None` for a branch of RFC 2543.
    pub(super) fn of_server(via: &Via, method: &Method) -> Option<Self> {
        let branch = via.branch().filter(|branch| is_rfc_3261(branch))?;
        let mut host = via.host.to_string();
        host.make_ascii_lowercase();
        let port = via.port.unwrap_or_else(|| default_port(via)).to_string();
        Some(Self::of(["branch", branch, &host, &port, method.as_str()].map(str::as_bytes)))
    }

    /// Matches a response to its client transaction. A CANCEL shares the branch of its INVITE.
    pub(super) fn of_client(branch: &str, is_cancel: bool) -> Self {
        Self::of([branch.as_bytes(), if is_cancel { b"CANCEL" } else { b"" }])
    }

    /// Matches the ACK of a 2xx, a transaction of its own, to the INVITE (RFC 3261 §13.3.1.4).
    pub(super) fn of_ack(call_id: &str, from_tag: &str, to_tag: &str, cseq: u32) -> Self {
        Self::of([call_id, from_tag, to_tag, &cseq.to_string()].map(str::as_bytes))
    }
}

impl Identity {
    pub(super) fn read(request: &Request) -> Result<Self, SyntaxError> {
        let tag = |address: crate::sip::header::NameAddr| address.tag().unwrap_or_default().to_owned();
        Ok(Self {
            via: request.top_via()?,
            via_field: request.headers.values(&Name::Via).next().ok_or(SyntaxError("Via"))?,
            uri: request.uri.clone(),
            call_id: request.call_id()?.to_owned(),
            from_tag: tag(request.from()?),
            to_tag: tag(request.to()?),
            cseq: request.cseq()?.number,
        })
    }

    /// The key of the transaction this request belongs to if its method were `method`: INVITE
    /// for an ACK (§17.2.3) and for what a CANCEL is to end (§9.2).
    pub(super) fn server_key(&self, method: &Method) -> Key {
        Key::of_server(&self.via, method).unwrap_or_else(|| self.legacy_key(method, &self.to_tag))
    }

    /// The INVITE an ACK of RFC 2543 may belong to: one without To tag, for the ACK has the tag
    /// of our response (§17.2.3). `None` when the branch decides.
    pub(super) fn legacy_ack_key(&self) -> Option<Key> {
        match self.via.branch() {
            Some(branch) if is_rfc_3261(branch) => None,
            Some(_) | None => Some(self.legacy_key(&Method::Invite, "")),
        }
    }

    /// RFC 2543 has no such branches; everything else decides.
    fn legacy_key(&self, method: &Method, to_tag: &str) -> Key {
        let cseq = self.cseq.to_string();
        let [call_id, from_tag, to_tag, cseq, method] =
            [&self.call_id, &self.from_tag, to_tag, &cseq, method.as_str()].map(str::as_bytes);
        Key::of([b"legacy", &self.via_field, &self.uri, call_id, from_tag, to_tag, cseq, method])
    }

    /// Of an ACK: the 2xx it acknowledges.
    pub(super) fn ack_key(&self) -> Key {
        Key::of_ack(&self.call_id, &self.from_tag, &self.to_tag, self.cseq)
    }

    /// Tells that a request came twice by different paths (RFC 3261 §8.2.2.2). `None` inside a
    /// dialog, where requests cannot be merged.
    ///
    /// The listener belongs to it: one layer may serve several roles, between which a call rightly
    /// travels with the same identifiers.
    pub(super) fn merge_key(&self, listener: u16, method: &Method) -> Option<Key> {
        self.to_tag.is_empty().then(|| {
            let (listener, cseq) = (listener.to_string(), self.cseq.to_string());
            Key::of([&listener, &self.call_id, &self.from_tag, &cseq, method.as_str()].map(str::as_bytes))
        })
    }
}

/// The port of a Via that states none (RFC 3261 §18.2.2): 5061 for TLS, else 5060.
pub(super) fn default_port(via: &Via) -> u16 {
    if via.transport.eq_ignore_ascii_case("TLS") { 5061 } else { 5060 }
}

fn is_rfc_3261(branch: &str) -> bool {
    let cookie = branch.get(..MAGIC_COOKIE.len());
    branch.len() > MAGIC_COOKIE.len() && cookie.is_some_and(|c| c.eq_ignore_ascii_case(MAGIC_COOKIE))
}
