//! How router and service refuse what they do not pass on.

use std::time::Instant;

use super::{Forwarded, FrontRole, Hop, Refusal};
use crate::call::admission::Refused;
use crate::role::{overload, user_agent};
use crate::sip::flow::Flow;
use crate::sip::layer::{ClientId, NoRoom};
use crate::sip::message::{Name, Request};
use crate::sip::uas;

impl FrontRole {
    /// A request that gets no transaction.
    pub(super) fn refuse_for_room(&mut self, now: Instant, flow: &Flow, request: &Request, why: NoRoom) {
        let hop = self.hops.get(&flow.listener).copied().unwrap_or(Hop::Router);
        let retry_after_s = self.settings.retry_after_s;
        let mut response = user_agent::unavailable(request, &self.rules, retry_after_s, &why.to_string());
        self.refusals.note(now, hop.name(), overload::RULE, flow, request, &mut response);
        self.layer.respond_stateless(flow, request, response);
    }

    pub(super) fn not_admitted(&self, request: &Request, refused: &Refused) -> Refusal {
        let retry_after_s = self.settings.retry_after_s;
        (refused.rule, user_agent::refusal(request, &self.rules, retry_after_s, refused))
    }

    /// The next hop gave no answer to a forwarded INVITE.
    pub(super) fn forwarding_failed(&mut self, now: Instant, id: ClientId, status: u16, reason: &str) {
        if let Some(Forwarded { server, request }) = self.forwarded.remove(&id) {
            self.forwarding.remove(&server);
            self.refusals.count("next_hop");
            tracing::warn!(
                status,
                call_id = request.call_id().unwrap_or_default(),
                "the next hop did not answer a forwarded INVITE"
            );
            let why = "the next hop did not answer";
            let mut response = uas::refuse(&request, &self.rules.agent, status, reason, why);
            if status == 503 {
                response.headers.push(Name::RetryAfter, self.settings.retry_after_s.to_string());
            }
            self.layer.respond(now, server, response);
        }
    }
}
