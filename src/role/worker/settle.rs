//! What calls want done, done: after every input, until neither leg nor flow wants anything more.

use std::time::Instant;

use crate::base::clock;
use crate::base::id::LegId;
use crate::call::leg::CallLeg;
use crate::call::outcome::{EndCause, Output as CallOutput};
use crate::mailbox::service::MailboxRequest;
use crate::media::order::{LegStats, Order};
use crate::role::worker::calls::Calls;
use crate::role::worker::entry::Entry;
use crate::um::flow::{Flow, Input, Need, Output as FlowOutput};

impl Calls {
    /// Does what a call and its flow want, until they want nothing more.
    pub(super) fn settle(&mut self, now: Instant, leg: LegId) {
        let Some(mut entry) = self.calls.remove(&leg) else {
            return;
        };
        loop {
            while self.step(now, leg, &mut entry) {}
            entry.couple(now);
            if !self.step(now, leg, &mut entry) {
                break;
            }
        }
        if let Some(at) = entry.timer.take() {
            self.timers.remove(&(at, leg));
        }
        if entry.is_over() {
            return self.forget(now, leg, &entry);
        }
        entry.patience = entry.patience.next(now, &entry.call);
        entry.timer = entry.poll_timeout();
        self.timers.extend(entry.timer.map(|at| (at, leg)));
        if let Some(estate) = &mut self.estate {
            estate.note(leg);
        }
        self.calls.insert(leg, entry);
    }

    /// Does the next thing; false when there is none.
    fn step(&mut self, now: Instant, leg: LegId, entry: &mut Entry) -> bool {
        // The far side first: legs are joined before the caller hears of it.
        if self.step_far(now, entry) {
            return true;
        }
        if let Some(output) = entry.call.poll_output() {
            self.handle_caller_output(now, entry, output);
        } else if let Some(output) = entry.with_flow(Flow::poll_output).flatten() {
            self.handle_flow_output(now, leg, entry, output);
        } else if std::mem::take(&mut entry.flow_panicked) {
            self.flows_panicked += 1;
            let call_id = &entry.call.dialog_id().call_id;
            tracing::error!(leg = leg.0, call_id, "the call's flow panicked; the call is ended");
            entry.call.hang_up(now, EndCause::FlowFailed);
        } else if entry.end.is_some() && entry.flow.is_some() {
            // The flow's last word: what becomes of a recording.
            self.hang_up_flow(now, leg, entry);
        } else {
            return false;
        }
        true
    }

    fn handle_caller_output(&mut self, now: Instant, entry: &mut Entry, output: CallOutput) {
        match self.transmit(now, &mut entry.call, output) {
            None => {}
            Some(CallOutput::Order(order @ Order::Open(..))) => self.open_leg(now, entry, order),
            Some(CallOutput::Order(order)) => self.send_order(entry, order),
            Some(CallOutput::Started) => {
                self.answered += 1;
                entry.with_flow(|flow| flow.handle_input(now, clock::calendar(), Input::Started));
            }
            Some(CallOutput::Ended(end)) => entry.end = Some(end),
            // All else is for the wire.
            Some(_) => {}
        }
    }

    /// Sends what is for the wire; gives back what is not.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        call: &mut dyn CallLeg,
        output: CallOutput,
    ) -> Option<CallOutput> {
        match output {
            CallOutput::Respond(id, response) => {
                self.layer.respond(now, id, response);
            }
            CallOutput::Request(hop, request) => {
                let client = self.layer.request(now, hop.destination, request.clone(), hop.sent_by);
                self.by_client.insert(client, call.id());
                call.sent(client, request);
            }
            CallOutput::Ack(client, hop, ack) => {
                self.by_dialog.insert(call.dialog_id().clone(), call.id());
                self.layer.ack(client, hop.destination, ack, hop.sent_by);
            }
            CallOutput::Cancel(client) => self.layer.cancel(now, client),
            CallOutput::Order(_) | CallOutput::Started | CallOutput::Ended(_) => return Some(output),
        }
        None
    }

    fn handle_flow_output(&mut self, now: Instant, leg: LegId, entry: &mut Entry, output: FlowOutput) {
        match output {
            FlowOutput::Order(order) => self.send_order(entry, order),
            FlowOutput::HangUp => entry.call.hang_up(now, EndCause::WeHungUp),
            FlowOutput::Need(need) => {
                let request = match need {
                    Need::Keep(id) => MailboxRequest::Keep { id },
                    Need::Discard(id) => MailboxRequest::Discard { id },
                    Need::Review(id) => MailboxRequest::Review { token: leg.0, id },
                    Need::Missed(meta) => MailboxRequest::Missed(meta),
                };
                self.ask_mailbox(request);
            }
        }
    }

    fn hang_up_flow(&mut self, now: Instant, leg: LegId, entry: &mut Entry) {
        entry.with_flow(|flow| flow.handle_input(now, clock::calendar(), Input::HungUp));
        while let Some(output) = entry.with_flow(Flow::poll_output).flatten() {
            self.handle_flow_output(now, leg, entry, output);
        }
        entry.flow = None;
    }

    fn open_leg(&mut self, now: Instant, entry: &mut Entry, order: Order) {
        let opened = self.shards.as_mut().map(|shards| shards.open(order));
        if let Some(Ok(shard)) = opened {
            entry.ready.shard = Some(shard);
            return;
        }
        let response = entry.call.invite().map(|invite| {
            let mut response = self.unavailable(invite, "the media shards take no more orders");
            self.note_refusal(now, "media_busy", &entry.seen, invite, &mut response);
            response
        });
        entry.call.handle_open_failed(response);
    }

    pub(super) fn send_order(&mut self, entry: &Entry, order: Order) {
        if let (Some(shards), Some(shard)) = (&mut self.shards, entry.ready.shard) {
            shards.send(shard, order);
        }
    }

    fn forget(&mut self, now: Instant, leg: LegId, entry: &Entry) {
        if let Some(estate) = &mut self.estate {
            estate.forget(entry.place);
        }
        self.by_dialog.remove(entry.call.dialog_id());
        let reinvites = entry.reinvites.iter().map(|(_, id)| *id);
        for id in reinvites.chain([entry.server]) {
            self.by_invite.remove(&id);
        }
        self.release_gateway(&entry.gateway);
        if let Some(far) = &entry.far
            && let Some(callee) = far.anchor.callee()
        {
            self.forget_callee(callee, &far.gateway);
        }
        let Some(end) = &entry.end else { return };
        *self.ended.entry(format!("calls_ended_{}", end.cause.name())).or_default() += 1;
        let stats = end.stats.as_deref().cloned().unwrap_or_default();
        if let Some(far) = &entry.far {
            far.log_end(now, leg, entry, end, &stats);
        } else {
            log_end(now, leg, entry, end.talked.map_or(0, |talked| talked.as_millis()), &stats);
        }
    }

    /// One call fewer of a gateway.
    pub(super) fn release_gateway(&mut self, gateway: &str) {
        if let Some(calls) = self.of_gateway.get_mut(gateway) {
            *calls = calls.saturating_sub(1);
        }
    }
}

fn log_end(now: Instant, leg: LegId, entry: &Entry, talked_ms: u128, stats: &LegStats) {
    tracing::info!(
        leg = leg.0,
        call_id = entry.call.dialog_id().call_id,
        peer = %entry.seen.remote,
        gateway = &*entry.gateway,
        number = &*entry.target.number,
        cause = entry.end.as_ref().map(|end| end.cause.to_string()),
        lasted_ms = entry.age(now).as_millis(),
        talked_ms,
        rx_packets = stats.rx_packets,
        tx_packets = stats.tx_packets,
        lost = stats.lost,
        late = stats.late,
        invalid = stats.invalid,
        source_filtered = stats.source_filtered,
        srtp_auth_failed = stats.srtp_auth_failed,
        srtcp_missing = stats.srtcp_missing,
        srtp_replayed = stats.srtp_replayed,
        "call ended"
    );
}
