//! What a call wants done, and how it ended.

use std::time::Duration;

use crate::media::order::{LegStats, Order};
use crate::sip::flow::Destination;
use crate::sip::layer::ServerId;
use crate::sip::message::{Request, Response};

/// What the worker must do for a call.
#[derive(Debug)]
pub enum Output {
    /// Answer a request.
    Respond(ServerId, Response),
    /// Send a request in the dialog; the worker tells its id with [`super::inbound::InboundCall::sent`].
    Request(Destination, Request),
    /// For the media shard.
    Order(Order),
    /// The caller's ACK arrived and media is agreed: the flow may begin.
    Started,
    /// Dialog and leg are gone.
    Ended(End),
}

/// How a call went, for log and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The first cause.
    pub cause: EndCause,
    /// The leg's final counters, if there was a leg.
    pub stats: Option<Box<LegStats>>,
    /// From 200 to the end; `None` if never answered.
    pub talked: Option<Duration>,
}

/// Why a call ended, and by whose doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The caller sent BYE.
    #[error("the caller hung up")]
    CallerHungUp,
    /// The flow was through.
    #[error("we hung up")]
    WeHungUp,
    /// CANCEL before the answer.
    #[error("the caller gave up before the answer")]
    Cancelled,
    /// We refused the INVITE with this status.
    #[error("refused with {0}")]
    Refused(u16),
    /// No ACK to our 200 (RFC 3261 §13.3.1.4).
    #[error("no ACK to our answer")]
    NoAck,
    /// No RTP for the media timeout.
    #[error("no media from the caller")]
    MediaTimeout,
    /// The media shard lost the leg: its sockets broke.
    #[error("the media leg broke")]
    MediaLost,
    /// The session interval ran out (RFC 4028 §10).
    #[error("the session was not refreshed")]
    SessionExpired,
    /// The peer answered a request in the dialog with 408 or 481, or not at all.
    #[error("the peer lost the dialog")]
    PeerLost,
    /// The longest call time was reached.
    #[error("the call reached its longest duration")]
    DurationLimit,
    /// The SDP answer in the ACK could not be used.
    #[error("the caller's SDP answer could not be used")]
    BadAnswer,
    /// What the caller says can no longer be stored.
    #[error("the message cannot be stored")]
    NotStored,
    /// The node stops.
    #[error("the node is stopping")]
    Shutdown,
}
