//! What the worker answers by itself, and how it refuses.

use std::time::Instant;

use crate::base::id::LegId;
use crate::call::admission::Refused;
use crate::mailbox::service::MailboxHandle;
use crate::role::gate::Seen;
use crate::role::overload;
use crate::role::user_agent;
use crate::role::worker::calls::Calls;
use crate::sip::flow::Flow;
use crate::sip::layer::{NoRoom, ServerId};
use crate::sip::message::{Request, Response};
use crate::sip::uas;

/// The rule's name for the counter, and what the caller is told.
pub(super) type Refusal = (&'static str, Box<Response>);

impl Calls {
    /// Whether a request may come in at all, and is one we serve. Inside a dialog its source does
    /// not matter any more: a gateway that is taken out of the configuration may still end its calls.
    pub(super) fn inspect(&self, seen: &Seen, in_dialog: bool, request: &Request) -> Result<(), Refusal> {
        if !in_dialog && !self.tests_itself(seen) {
            self.gate.judge_peer(seen).map_err(|refused| self.not_admitted(request, &refused))?;
        }
        uas::inspect(request, &self.rules.uas).map_err(|response| ("not_served", Box::new(response)))
    }

    /// A call of our own, before anybody else's is taken.
    pub(super) fn tests_itself(&self, seen: &Seen) -> bool {
        self.duty.is_proving() && seen.is_self_test()
    }

    pub(super) fn not_admitted(&self, request: &Request, refused: &Refused) -> Refusal {
        let retry_after_s = self.config.calls.retry_after_s;
        (refused.rule, Box::new(user_agent::refusal(request, &self.rules.uas, retry_after_s, refused)))
    }

    pub(super) fn handle_options(&mut self, now: Instant, id: ServerId, request: &Request) {
        let response = match self.resources.shortage() {
            Some(shortage) => self.unavailable(request, &shortage.to_string()),
            None if self.is_serving() && self.duty.takes_calls() => {
                user_agent::options_response(request, &self.rules.uas)
            }
            None => self.unavailable(request, "the worker takes no new calls"),
        };
        self.layer.respond(now, id, response);
    }

    pub(super) fn refuse_no_dialog(&mut self, now: Instant, id: ServerId, seen: &Flow, request: &Request) {
        let why = "no such dialog here";
        let response =
            uas::refuse(request, &self.rules.uas.agent, 481, "Call/Transaction Does Not Exist", why);
        self.refuse(now, id, "no_dialog", seen, request, response);
    }

    /// Whether the call takes requests of its dialog from there.
    pub(super) fn may_come_over(&self, leg: LegId, flow: &Flow) -> bool {
        let entry = self.calls.get(&self.owner(leg));
        entry.and_then(|entry| entry.leg(leg)).is_none_or(|call| call.may_come_over(flow.transport))
    }

    /// A request over UDP or TCP in the dialog of a call over TLS.
    pub(super) fn refuse_in_clear(&mut self, now: Instant, id: ServerId, seen: &Flow, request: &Request) {
        let why = "the call came over TLS, and so must all that is said of it";
        let response = uas::refuse(request, &self.rules.uas.agent, 403, "Forbidden", why);
        self.refuse(now, id, "security_sip", seen, request, response);
    }

    /// A request that gets no transaction.
    pub(super) fn refuse_for_room(&mut self, now: Instant, flow: &Flow, request: &Request, why: NoRoom) {
        let mut response = self.unavailable(request, &why.to_string());
        self.note_refusal(now, overload::RULE, flow, request, &mut response);
        self.layer.respond_stateless(flow, request, response);
    }

    /// Answers, counts and logs a refusal.
    pub(super) fn refuse(
        &mut self,
        now: Instant,
        id: ServerId,
        rule: &str,
        seen: &Flow,
        request: &Request,
        mut response: Response,
    ) {
        self.note_refusal(now, rule, seen, request, &mut response);
        self.layer.respond(now, id, response);
    }

    /// Counts and logs a refusal, and gives the response its Reason.
    pub(super) fn note_refusal(
        &mut self,
        now: Instant,
        rule: &str,
        seen: &Flow,
        request: &Request,
        response: &mut Response,
    ) {
        self.refusals.note(now, "worker", rule, seen, request, response);
    }

    /// The same for a call that is being set up.
    pub(super) fn note_refused_call(
        &mut self,
        now: Instant,
        leg: LegId,
        rule: &str,
        response: &mut Response,
    ) {
        if let Some(entry) = self.calls.get(&leg)
            && let Some(invite) = entry.call.invite()
        {
            self.refusals.note(now, "worker", rule, &entry.seen, invite, response);
        }
    }

    /// Why calls, or those for mailboxes, are refused though the worker serves; for status.
    pub(super) fn trouble(&self) -> Option<String> {
        let storage = self.mailbox.as_ref().and_then(MailboxHandle::trouble).map(|why| why.to_string());
        self.resources.shortage().map(|why| why.to_string()).or(storage)
    }

    /// 503 with Retry-After: ours or a resource's fault, never the caller's.
    pub(super) fn unavailable(&self, request: &Request, why: &str) -> Response {
        user_agent::unavailable(request, &self.rules.uas, self.config.calls.retry_after_s, why)
    }
}
