//! What tells transactions apart (RFC 3261 §17.1.3, §17.2.3).

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

/// Matches a request to its server transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ServerKey {
    /// RFC 3261: a branch with the magic cookie, sent-by, and method.
    Branch { branch: String, sent_by: String, method: Method },
    /// RFC 2543 has no such branches; everything else decides.
    Legacy {
        via: Bytes,
        uri: Bytes,
        call_id: String,
        from_tag: String,
        to_tag: String,
        cseq: u32,
        method: Method,
    },
}

/// Matches a response to its client transaction. A CANCEL shares the branch of its INVITE.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientKey {
    pub(super) branch: String,
    pub(super) is_cancel: bool,
}

/// Matches the ACK of a 2xx, a transaction of its own, to the INVITE (RFC 3261 §13.3.1.4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AckKey {
    pub(super) call_id: String,
    pub(super) from_tag: String,
    pub(super) to_tag: String,
    pub(super) cseq: u32,
}

/// Tells that a request came twice by different paths (RFC 3261 §8.2.2.2).
///
/// The listener belongs to it: one layer may serve several roles, between which a call rightly
/// travels with the same identifiers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct MergeKey {
    listener: u16,
    call_id: String,
    from_tag: String,
    cseq: u32,
    method: Method,
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
    pub(super) fn server_key(&self, method: Method) -> ServerKey {
        match self.via.branch() {
            Some(branch) if is_rfc_3261(branch) => {
                let mut sent_by = self.via.host.to_string();
                sent_by.make_ascii_lowercase();
                let port = self.via.port.unwrap_or_else(|| default_port(&self.via));
                ServerKey::Branch { branch: branch.to_owned(), sent_by: format!("{sent_by}:{port}"), method }
            }
            Some(_) | None => self.legacy_key(method, self.to_tag.clone()),
        }
    }

    /// The INVITE an ACK of RFC 2543 may belong to: one without To tag, for the ACK has the tag
    /// of our response (§17.2.3). `None` when the branch decides.
    pub(super) fn legacy_ack_key(&self) -> Option<ServerKey> {
        match self.via.branch() {
            Some(branch) if is_rfc_3261(branch) => None,
            Some(_) | None => Some(self.legacy_key(Method::Invite, String::new())),
        }
    }

    fn legacy_key(&self, method: Method, to_tag: String) -> ServerKey {
        ServerKey::Legacy {
            // Copies: a slice would keep the whole message alive.
            via: Bytes::copy_from_slice(&self.via_field),
            uri: Bytes::copy_from_slice(&self.uri),
            call_id: self.call_id.clone(),
            from_tag: self.from_tag.clone(),
            to_tag,
            cseq: self.cseq,
            method,
        }
    }

    /// Of an ACK: the 2xx it acknowledges.
    pub(super) fn ack_key(&self) -> AckKey {
        AckKey {
            call_id: self.call_id.clone(),
            from_tag: self.from_tag.clone(),
            to_tag: self.to_tag.clone(),
            cseq: self.cseq,
        }
    }

    /// `None` inside a dialog, where requests cannot be merged.
    pub(super) fn merge_key(&self, listener: u16, method: &Method) -> Option<MergeKey> {
        self.to_tag.is_empty().then(|| MergeKey {
            listener,
            call_id: self.call_id.clone(),
            from_tag: self.from_tag.clone(),
            cseq: self.cseq,
            method: method.clone(),
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
