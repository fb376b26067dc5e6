//! What other threads tell the worker: media events, mailbox replies, the supervisor's orders.

use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::id::LegId;
use crate::call::leg::CallLeg;
use crate::call::outcome::EndCause;
use crate::mailbox::service::{MailboxHandle, MailboxReply};
use crate::media::order::{Audio, Event, OpenError};
use crate::role::link::{FromWorker, ToWorker};
use crate::role::user_agent;
use crate::role::worker::anchor::Far;
use crate::role::worker::calls::{Calls, ORPHAN_TIMEOUT, STOP_TIMEOUT};
use crate::role::worker::entry::Entry;
use crate::role::worker::shards::Shards;
use crate::um::flow::{Flow, Input};

/// Shards tell the counters of hundreds of legs within this; of others those of the last report are told.
const REPORT_WAIT: Duration = Duration::from_millis(20);

impl Calls {
    pub(super) fn take_media_events(&mut self, now: Instant) {
        while let Some(event) = self.shards.as_mut().and_then(Shards::poll) {
            self.be_busy(now);
            self.handle_media_event(now, event);
        }
    }

    fn handle_media_event(&mut self, now: Instant, event: Event) {
        let wall = clock::calendar();
        let input = |entry: &mut Entry, input| {
            entry.with_flow(|flow| flow.handle_input(now, wall, input));
        };
        match event {
            Event::Opened { leg, rtp_port } => {
                self.with_leg(now, leg, |call, _| call.handle_opened(rtp_port));
                if let Some(entry) = self.calls.get_mut(&leg) {
                    entry.ready.opened = true;
                }
                self.be_patient(leg);
                self.answer_when_ready(now, leg);
            }
            Event::OpenFailed { leg, error } => self.handle_open_failed(now, leg, error),
            // Flash and fax tones (RFC 4733 events 16 and 36) are no keys.
            Event::Digit { digit: 'f' | 'c', .. } => {}
            Event::Digit { leg, digit, .. } => self.with(now, leg, |e| input(e, Input::Digit(digit))),
            Event::Played { leg, play } => self.with(now, leg, |e| input(e, Input::Played(play))),
            Event::Recorded { leg, id, voiced, end, .. } => {
                self.with(now, leg, |e| input(e, Input::Recorded { id, voiced, end }));
            }
            Event::Latched { leg, peer } => {
                self.note_media(leg, |entry| entry.latched = Some(peer), |far| far.latched = Some(peer));
            }
            Event::MediaTimeout { leg } => self.with_leg(now, leg, |call, _| call.handle_media_timeout(now)),
            Event::Report { leg, stats } => {
                let of_far = stats.clone();
                self.note_media(leg, |entry| entry.stats = Some(stats), |far| far.stats = Some(of_far));
            }
            Event::Closed { leg, stats } => {
                self.release_leg(leg);
                self.with_leg(now, leg, |call, _| call.handle_closed(now, Some(stats)));
            }
        }
    }

    /// Notes for display what a shard tells of a leg, on whichever side that is.
    fn note_media(&mut self, leg: LegId, near: impl FnOnce(&mut Entry), far: impl FnOnce(&mut Far)) {
        let owner = self.owner(leg);
        let Some(entry) = self.calls.get_mut(&owner) else { return };
        if owner == leg {
            near(entry);
        } else if let Some(side) = &mut entry.far {
            far(side);
        }
    }

    fn handle_open_failed(&mut self, now: Instant, leg: LegId, error: OpenError) {
        self.release_leg(leg);
        let owner = self.owner(leg);
        if self.calls.get(&owner).and_then(|entry| entry.leg(leg)).is_some_and(CallLeg::is_answered) {
            tracing::error!(leg = leg.0, %error, "a dead worker's leg cannot go on");
            return self.with_leg(now, leg, |call, _| call.handle_closed(now, None));
        }
        if owner != leg {
            return self.with(now, owner, |entry| {
                if let Some(callee) = entry.far.as_mut().and_then(|far| far.anchor.callee_mut()) {
                    callee.handle_open_failed(now);
                }
            });
        }
        let Some(entry) = self.calls.get(&leg) else { return };
        let response = entry.call.invite().map(|invite| {
            let retry_after_s = self.config.calls.retry_after_s;
            let mut response =
                user_agent::unavailable(invite, &self.rules.uas, retry_after_s, &error.to_string());
            let rule = match error {
                OpenError::NoPort => "media_ports",
                OpenError::Socket(_) | OpenError::Draining => "media_socket",
            };
            self.refusals.note(now, "worker", rule, &entry.seen, invite, &mut response);
            response
        });
        self.with(now, leg, |entry| entry.call.handle_open_failed(response));
    }

    fn release_leg(&mut self, leg: LegId) {
        let owner = self.owner(leg);
        let shard = match (self.calls.get_mut(&owner), self.left.get_mut(&leg)) {
            (_, Some(left)) => left.shard.take(),
            (Some(entry), None) if owner == leg => entry.ready.shard.take(),
            (Some(entry), None) => entry.far.as_mut().and_then(|far| far.shard.take()),
            (None, None) => None,
        };
        if let (Some(shards), Some(shard)) = (&mut self.shards, shard) {
            shards.release(shard);
        }
    }

    /// Whether media shards keep up.
    pub(super) fn look_at_shards(&mut self, now: Instant) {
        if let Some(shards) = &mut self.shards {
            shards.look(now, self.config.calls.media_busy_max);
        }
    }

    pub(super) fn take_mailbox_replies(&mut self, now: Instant) {
        self.flush_mailbox();
        while let Some(reply) = self.mailbox.as_ref().and_then(MailboxHandle::try_reply) {
            self.be_busy(now);
            match reply {
                MailboxReply::Lookup { token, mailbox } => self.handle_lookup(now, LegId(token), mailbox),
                MailboxReply::Greeting { token, samples } => {
                    self.handle_greeting(now, LegId(token), samples);
                }
                MailboxReply::Review { token, samples, .. } => {
                    let audio = samples.ok().map(|samples| Audio::from_pcm(&samples));
                    self.with(now, LegId(token), |entry| {
                        let wall = clock::calendar();
                        entry.with_flow(|flow| flow.handle_input(now, wall, Input::Review(audio)));
                    });
                }
                MailboxReply::Kept { id, duration } => {
                    tracing::info!(%id, duration_ms = duration.as_millis(), "message stored");
                }
                MailboxReply::Adopted { id, found } => tracing::info!(%id, found, "recording goes on"),
                MailboxReply::Missed { id } => tracing::info!(%id, "missed call noted"),
                MailboxReply::Discarded { id } => tracing::debug!(%id, "recording discarded"),
                MailboxReply::Failed { id, error } => {
                    tracing::error!(%id, error, "a recording could not be stored; it stays in the spool");
                }
            }
        }
    }

    /// Ends the calls whose recordings the disk refused: silence is no answer to somebody who
    /// believes to leave a message. What was written before is kept.
    pub(super) fn take_cut_short(&mut self, now: Instant) {
        while let Some(id) = self.mailbox.as_ref().and_then(MailboxHandle::try_cut_short) {
            let records = |entry: &Entry| entry.flow.as_ref().and_then(Flow::recording) == Some(&id);
            let leg = self.calls.iter().find(|(_, entry)| records(entry)).map(|(leg, _)| *leg);
            if let Some(leg) = leg {
                self.with(now, leg, |entry| entry.call.hang_up(now, EndCause::NotStored));
            }
        }
    }

    pub(super) fn take_orders(&mut self, now: Instant) {
        while let Some(order) = self.link.try_order() {
            match order {
                Some(ToWorker::Calls { query }) => {
                    if let Some(shards) = &mut self.shards {
                        shards.ask_for_reports();
                    }
                    self.queries.push_back((now + REPORT_WAIT, query));
                }
                Some(ToWorker::Config { config }) => self.reconfigure(config),
                Some(ToWorker::Tls) => self.renew_tls(),
                Some(ToWorker::Prove) => self.prove(),
                Some(ToWorker::Retire { successor, within_ms }) => {
                    tracing::info!(slot = self.slot.name(), calls = self.calls.len(), within_ms, "draining");
                    self.duty.retire(now, &successor, Duration::from_millis(within_ms));
                }
                Some(ToWorker::Refuse { on }) => self.duty.refuse(on),
                Some(ToWorker::Stop) => self.stop(now, "the supervisor says so", STOP_TIMEOUT),
                None => self.stop(now, "the supervisor is gone", ORPHAN_TIMEOUT),
                Some(ToWorker::Start { .. }) => tracing::error!("told to start while running"),
            }
        }
    }

    /// Tells the calls there are, once the shards had time to report their counters.
    pub(super) fn answer_queries(&mut self, now: Instant) {
        while let Some((at, query)) = self.queries.front().copied()
            && at <= now
        {
            self.queries.pop_front();
            let mut legs: Vec<_> = self.calls.iter().collect();
            legs.sort_by_key(|(leg, _)| **leg);
            let calls = legs.into_iter().map(|(_, entry)| entry.info(now, self.slot)).collect();
            self.link.report(FromWorker::Calls { query, calls });
        }
    }

    pub(super) fn flush_mailbox(&mut self) {
        let Some(mailbox) = &self.mailbox else {
            return;
        };
        while let Some(request) = self.waiting.pop_front() {
            if let Err(request) = mailbox.request(request) {
                self.waiting.push_front(request);
                return;
            }
        }
    }
}
