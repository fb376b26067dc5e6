//! Calls without an answer, when their worker dies.
//!
//! Who called over a connection sees that it closed, and router and service answer for the worker. Who
//! called over UDP waits: the INVITE is taken as if it came again. A callee that rings is told to stop.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::call::outcome::Hop;
use crate::role::worker::calls::Calls;
use crate::role::worker::entry::Entry;
use crate::signal::Role as _;
use crate::sip::flow::{Destination, Flow, FlowId, Transport};
use crate::sip::layer::Layer;
use crate::sip::message::{Message, Request};

/// What is written down of such a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Early {
    caller: Option<Waiting>,
    callee: Option<Ringing>,
}

/// A caller over UDP.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    invite: Vec<u8>,
    listener: u16,
    local: SocketAddr,
    remote: SocketAddr,
}

/// A callee.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ringing {
    /// As it was sent, without body.
    invite: Vec<u8>,
    transport: Transport,
    remote: SocketAddr,
    listener: u16,
    sent_by: SocketAddr,
}

impl Early {
    /// `None`: nobody waits who would not see that the worker is gone.
    pub(super) fn of(entry: &Entry, layer: &Layer) -> Option<Self> {
        let (caller, callee) = (waiting(entry), ringing(entry, layer));
        (caller.is_some() || callee.is_some()).then_some(Self { caller, callee })
    }
}

fn waiting(entry: &Entry) -> Option<Waiting> {
    let Flow { listener, local, remote, .. } =
        entry.call.flow().filter(|flow| flow.transport == Transport::Udp)?;
    Some(Waiting { invite: bytes(entry.call.invite()?), listener, local, remote })
}

fn ringing(entry: &Entry, layer: &Layer) -> Option<Ringing> {
    let (client, Hop { destination, sent_by }) = entry.far.as_ref()?.anchor.callee()?.ringing()?;
    let Destination::Address { transport, remote, listener } = destination else { return None };
    let invite = bytes(layer.sent_invite(client)?);
    Some(Ringing { invite, transport, remote, listener, sent_by })
}

fn bytes(request: &Request) -> Vec<u8> {
    Message::Request(request.clone()).to_bytes().to_vec()
}

impl Calls {
    /// Does what is left to do for a call that a dead worker had not answered.
    pub(super) fn settle_early(&mut self, now: Instant, early: Early) {
        if let Some(Ringing { invite, transport, remote, listener, sent_by }) = early.callee
            && let Ok(Message::Request(invite)) = Message::parse(Bytes::from(invite))
        {
            let destination = Destination::Address { transport, remote, listener };
            self.layer.cancel_sent(now, destination, &invite, sent_by);
        }
        if let Some(Waiting { invite, listener, local, remote }) = early.caller
            && let Ok(invite) = Message::parse(Bytes::from(invite))
        {
            let flow = Flow { id: FlowId::GONE, listener, transport: Transport::Udp, local, remote };
            self.handle_message(now, flow, invite);
        }
    }
}
