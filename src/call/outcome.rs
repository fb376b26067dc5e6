//! What a call wants done, and how it ended.

use std::net::SocketAddr;
use std::time::Duration;

use crate::media::order::{LegStats, Order};
use crate::sip::flow::Destination;
use crate::sip::layer::{ClientId, ServerId};
use crate::sip::message::{Request, Response};

/// Where a request goes, and our own address in its Via.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Where to.
    pub destination: Destination,
    /// Where responses find us.
    pub sent_by: SocketAddr,
}

/// What the worker must do for a leg of a call.
#[derive(Debug)]
pub enum Output {
    /// Answer a request.
    Respond(ServerId, Response),
    /// Send a request; the worker tells its id with [`super::leg::CallLeg::sent`].
    Request(Hop, Request),
    /// Send the ACK of a 2xx to this INVITE.
    Ack(ClientId, Hop, Request),
    /// Give this INVITE up (RFC 3261 §9.1).
    Cancel(ClientId),
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

/// Who ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// Who called us.
    Caller,
    /// Whom we called for the caller.
    Callee,
    /// This node.
    Us,
}

impl Party {
    /// For logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Callee => "callee",
            Self::Us => "us",
        }
    }
}

/// Declares the causes, each with what stands in a log, its counter's name, who it was and the cause of
/// ITU-T Q.850 that BYE tells the other side (RFC 3326).
macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident $(($status:ty))? = $text:literal, $counter:literal, $party:ident, $q850:expr;)+) => {
        /// Why a call ended, and by whose doing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, thiserror::Error)]
        #[serde(rename_all = "snake_case")]
        pub enum EndCause {
            $($(#[doc = $doc])+ #[error($text)] $name $(($status))?,)+
        }

        impl EndCause {
            /// Its name in counters.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name { .. } => $counter,)+ }
            }

            /// Who ended the call.
            pub fn party(self) -> Party {
                match self { $(Self::$name { .. } => Party::$party,)+ }
            }

            /// The cause of ITU-T Q.850.
            pub fn q850(self) -> u8 {
                match self { $(Self::$name { .. } => $q850,)+ }
            }
        }
    };
}

causes! {
    /// The caller sent BYE.
    CallerHungUp = "the caller hung up", "caller_hung_up", Caller, 16;
    /// The callee sent BYE.
    CalleeHungUp = "the callee hung up", "callee_hung_up", Callee, 16;
    /// The flow was through.
    WeHungUp = "we hung up", "we_hung_up", Us, 16;
    /// CANCEL before the answer.
    Cancelled = "the caller gave up before the answer", "cancelled", Caller, 16;
    /// We refused the INVITE with this status.
    Refused(u16) = "refused with {0}", "refused", Us, 41;
    /// The callee refused with this status, and the caller was told so.
    CalleeRefused(u16) = "the callee refused with {0}", "callee_refused", Callee, 21;
    /// The callee was rung for as long as the route allows.
    NoAnswer = "nobody answered in time", "no_answer", Callee, 19;
    /// Another gateway is tried in place of this one.
    TriedElsewhere = "another gateway is tried", "tried_elsewhere", Us, 16;
    /// No ACK to our 200 (RFC 3261 §13.3.1.4).
    NoAck = "no ACK to our answer", "no_ack", Caller, 102;
    /// No RTP for the media timeout.
    MediaTimeout = "no media from the caller", "media_timeout", Caller, 102;
    /// The same from the callee.
    CalleeMediaTimeout = "no media from the callee", "callee_media_timeout", Callee, 102;
    /// The media shard lost the leg: its sockets broke.
    MediaLost = "the media leg broke", "media_lost", Us, 41;
    /// The session interval ran out (RFC 4028 §10).
    SessionExpired = "the session was not refreshed", "session_expired", Caller, 102;
    /// The same with the callee.
    CalleeSessionExpired = "the callee's session was not refreshed", "callee_session_expired", Callee, 102;
    /// The peer answered a request in the dialog with 408 or 481, or not at all.
    PeerLost = "the peer lost the dialog", "peer_lost", Caller, 102;
    /// The same with the callee.
    CalleeLost = "the callee lost the dialog", "callee_lost", Callee, 102;
    /// The longest call time was reached.
    DurationLimit = "the call reached its longest duration", "duration_limit", Us, 102;
    /// The SDP answer in the ACK could not be used.
    BadAnswer = "the caller's SDP answer could not be used", "bad_answer", Caller, 88;
    /// The SDP answer in the callee's 2xx could not be used.
    CalleeBadAnswer = "the callee's SDP answer could not be used", "callee_bad_answer", Callee, 88;
    /// What the caller says can no longer be stored.
    NotStored = "the message cannot be stored", "not_stored", Us, 47;
    /// Our own flow broke: a fault in the program.
    FlowFailed = "the call's flow failed", "flow_failed", Us, 41;
    /// The node stops.
    Shutdown = "the node is stopping", "shutdown", Us, 41;
}

impl EndCause {
    /// The same fault where it is the callee's.
    #[must_use]
    pub(super) fn of_callee(self) -> Self {
        match self {
            Self::CallerHungUp => Self::CalleeHungUp,
            Self::MediaTimeout => Self::CalleeMediaTimeout,
            Self::SessionExpired => Self::CalleeSessionExpired,
            Self::PeerLost | Self::NoAck => Self::CalleeLost,
            Self::BadAnswer => Self::CalleeBadAnswer,
            other => other,
        }
    }

    /// The Reason of a BYE (RFC 3326).
    pub(super) fn reason(self) -> String {
        format!("SIP;cause=200;text=\"{self}\", Q.850;cause={};text=\"{self}\"", self.q850())
    }
}
