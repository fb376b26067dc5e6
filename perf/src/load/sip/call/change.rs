//! What a call does once it is up: changes its direction, and moves from a connection that broke.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Call, Ending, Event, Hops, Pending, State, T1, T2};
use crate::load::sip::text::Glance;
use crate::sip::sdp::Direction;

impl Pending {
    /// When it is to be sent again or given up.
    pub(super) fn due(&self) -> Instant {
        self.resend.map_or(self.give_up, |(at, _)| at.min(self.give_up))
    }

    /// Sends a copy if one is due; true when it did.
    pub(super) fn resend(&mut self, now: Instant, hops: &mut impl Hops) -> bool {
        let Some((at, interval)) = self.resend.as_mut().filter(|(at, _)| *at <= now) else { return false };
        hops.send(self.way.connection, &self.message);
        // Timer A doubles for ever, timer E up to T2 (RFC 3261 §17.1.1.2, §17.1.2.2).
        let next = *interval * 2;
        let is_invite = self.message.starts_with(b"INVITE ");
        *interval = if is_invite { next } else { next.min(T2) };
        *at = now + *interval;
        true
    }
}

impl Call {
    /// Offers another direction by re-INVITE (RFC 3261 §14.1); [`Event::Changed`] tells what came of it.
    ///
    /// # Errors
    /// The call is not up, another change is under way, or the next hop cannot be reached.
    pub fn change(&mut self, now: Instant, direction: Direction, hops: &mut impl Hops) -> Result<()> {
        ensure!(matches!(self.state, State::Up { change: None, .. }), "the call is not up, or changing");
        let hop = self.next_hop(hops)?;
        self.dial.local.direction = direction;
        self.dial.local.version += 1;
        self.cseq += 1;
        let offer = self.dial.local.render();
        let message = self.request("INVITE", self.cseq, "INVITE", hop, Some(&offer));
        let pending = self.start(now, hop, message, 64 * T1, hops);
        if let State::Up { change, .. } = &mut self.state {
            *change = Some(pending);
        }
        Ok(())
    }

    /// The final response to a re-INVITE: its ACK, and the remote target it may have renewed (RFC 3261
    /// §12.2.1.2).
    pub(super) fn change_answered(
        &mut self,
        now: Instant,
        status: u16,
        message: &Glance<'_>,
        hops: &mut impl Hops,
    ) -> Result<Option<Event>> {
        let State::Up { change, .. } = &mut self.state else { return Ok(None) };
        if status < 200 {
            change.iter_mut().for_each(|pending| pending.resend = None);
            return Ok(None);
        }
        let Some(pending) = change.take() else { return Ok(None) };
        if status >= 300 {
            let ack = self.request("ACK", pending.cseq, "INVITE", pending.way, None);
            hops.send(pending.way.connection, &ack);
            // The far side knows of no such call, or gave it up (RFC 3261 §12.2.1.2).
            let is_lost = matches!(status, 408 | 481);
            return Ok(if is_lost {
                self.end(now, Ending::EndedEarly(status.to_string()))
            } else {
                Some(Event::Changed(false))
            });
        }
        if let Some(uri) = message.contact() {
            self.place = hops.resolve(uri)?;
        }
        let hop = self.next_hop(hops)?;
        let confirmation = self.request("ACK", pending.cseq, "ACK", hop, None);
        hops.send(hop.connection, &confirmation);
        if let State::Up { invite, ack, way, .. } = &mut self.state {
            (*invite, *ack, *way) = (pending.cseq, confirmation, hop);
        }
        Ok(Some(Event::Changed(true)))
    }

    /// The request that waits for a final response.
    pub(super) fn pending(&self) -> Option<&Pending> {
        match &self.state {
            State::Calling(pending) | State::Leaving(pending) => Some(pending),
            State::Up { change, .. } => change.as_ref(),
            State::Over { .. } => None,
        }
    }

    /// Sends the pending request once more, byte for byte, over a new connection: to the far side it is
    /// a copy. False when that may not be or cannot be done.
    pub(super) fn move_request(&mut self, hops: &mut impl Hops) -> bool {
        let may_move = self.pending().is_some_and(|pending| !pending.moved && !pending.message.is_empty());
        if !may_move || !self.dial.moves {
            return false;
        }
        let is_calling = self.is_calling();
        let hop =
            if is_calling { hops.way(&self.place.target, self.dial.number) } else { self.next_hop(hops) };
        let (
            Ok(hop),
            State::Calling(pending) | State::Leaving(pending) | State::Up { change: Some(pending), .. },
        ) = (hop, &mut self.state)
        else {
            return false;
        };
        hops.send(hop.connection, &pending.message);
        (pending.way, pending.moved) = (hop, true);
        self.moves += 1;
        true
    }
}
