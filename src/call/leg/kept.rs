//! A leg that outlasts its process: what another one needs to take its part in the dialog.
//!
//! Only legs with a 2xx are kept. Requests of ours that were under way are forgotten: one that changes
//! the session is made again, since what the peer was told is kept as it was before.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Described, Leg, Life, Path};
use crate::base::clock;
use crate::base::id::LegId;
use crate::call::inbound::CallRules;
use crate::media::order::{LegPlan, MediaPlan};
use crate::sdp::{Direction, LocalMedia, OfferKeys, Origin};
use crate::sip::dialog::{Dialog, KeptDialog};
use crate::sip::flow::{Flow, FlowId, Transport};
use crate::sip::header::SyntaxError;
use crate::sip::session_timer::{KeptTimer, SessionTimer};

/// Times are uptimes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptLeg {
    answered: Duration,
    path: KeptPath,
    local: LocalMedia,
    rtp_port: u16,
    dialog: KeptDialog,
    origin: Origin,
    plan: Option<MediaPlan>,
    peer: Direction,
    most: Direction,
    told: Direction,
    session: Option<KeptTimer>,
    ends_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum KeptPath {
    From { transport: Transport, local: SocketAddr, remote: SocketAddr, listener: u16 },
    To { transport: Transport, remote: SocketAddr, listener: u16, sent_by: SocketAddr },
}

impl KeptLeg {
    /// The media leg's even port.
    pub fn rtp_port(&self) -> u16 {
        self.rtp_port
    }
}

impl Leg {
    /// For another process; `None` without a dialog that stands, or without media.
    pub(in crate::call) fn kept(&self) -> Option<KeptLeg> {
        let (Life::Answered { at, ending: None } | Life::Established { at }) = self.life else { return None };
        let path = match self.path {
            Path::From { flow: Flow { transport, local, remote, listener, .. }, .. } => {
                KeptPath::From { transport, local, remote, listener }
            }
            Path::To { transport, remote, listener, sent_by } => {
                KeptPath::To { transport, remote, listener, sent_by }
            }
        };
        self.has_media.then(|| KeptLeg {
            answered: clock::uptime(at),
            path,
            local: self.local.clone(),
            rtp_port: self.rtp_port,
            dialog: self.dialog.kept(),
            origin: self.origin.clone(),
            plan: self.plan.clone(),
            peer: self.described.peer,
            most: self.described.most,
            told: self.described.told,
            session: self.session.as_ref().map(SessionTimer::kept),
            ends_at: self.ends_at.map(clock::uptime),
        })
    }

    /// Goes on where [`Self::kept`] was said. The caller adopts its media leg.
    ///
    /// # Errors
    /// What was kept is of another form.
    pub(in crate::call) fn resume(id: LegId, kept: KeptLeg) -> Result<Self, SyntaxError> {
        let path = match kept.path {
            KeptPath::From { transport, local, remote, listener } => {
                let flow = Flow { id: FlowId::GONE, listener, transport, local, remote };
                Path::From { flow, closed: true }
            }
            KeptPath::To { transport, remote, listener, sent_by } => {
                Path::To { transport, remote, listener, sent_by }
            }
        };
        let dialog = Dialog::resume(kept.dialog)?;
        let mut leg = Self::new(id, path, dialog, kept.local, OfferKeys::plain());
        leg.life = Life::Established { at: clock::at_uptime(kept.answered) };
        leg.has_media = true;
        leg.rtp_port = kept.rtp_port;
        leg.origin = kept.origin;
        leg.plan = kept.plan;
        let Described { awaits_answer, offer_at, .. } = Described::default();
        leg.described =
            Described { peer: kept.peer, most: kept.most, told: kept.told, awaits_answer, offer_at };
        leg.session = kept.session.as_ref().map(SessionTimer::resume);
        leg.ends_at = kept.ends_at.map(clock::at_uptime);
        Ok(leg)
    }

    /// What its media leg is to be.
    pub(in crate::call) fn media_plan(&self, rules: &CallRules) -> LegPlan {
        LegPlan {
            media: self.plan.clone(),
            address: self.local.addresses.first(),
            cname: rules.cname.clone(),
            media_timeout: rules.media_timeout,
        }
    }
}
