//! What a role refused: counted always, told in the log within a budget, so that no flood of
//! requests becomes a flood of lines.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::base::bucket::{Rate, TokenBucket};
use crate::role::user_agent::uri_without_password;
use crate::sip::flow::Flow;
use crate::sip::message::{Name, Request, Response};

/// Log lines under one rule: a flood under one must not hide the single line under another.
const LINES: Rate = Rate { per_s: 20, burst: 200 };

/// Counters by rule, and the budgets.
#[derive(Debug, Default)]
pub struct Refusals {
    totals: BTreeMap<String, u64>,
    told: BTreeMap<String, Told>,
}

/// The lines under one rule.
#[derive(Debug, Default)]
struct Told {
    lines: TokenBucket,
    /// Left out since the last one.
    untold: u64,
}

impl Refusals {
    /// Refused by rule, since the start.
    pub fn totals(&self) -> &BTreeMap<String, u64> {
        &self.totals
    }

    /// Counts without a line.
    pub fn count(&mut self, rule: &str) {
        match self.totals.get_mut(rule) {
            Some(total) => *total += 1,
            None => {
                self.totals.insert(rule.to_owned(), 1);
            }
        }
    }

    /// The lines left out since the last one under this rule, if there may be one now.
    fn may_tell(&mut self, now: Instant, rule: &str) -> Option<u64> {
        if !self.told.contains_key(rule) {
            self.told.insert(rule.to_owned(), Told::default());
        }
        let told = self.told.get_mut(rule)?;
        if told.lines.take(now, LINES) {
            return Some(std::mem::take(&mut told.untold));
        }
        told.untold += 1;
        None
    }

    /// Counts a refusal by its rule, gives the response its Reason (RFC 3326), and logs one line:
    /// rule, peer, request, and what the peer is told.
    pub fn note(
        &mut self,
        now: Instant,
        role: &str,
        rule: &str,
        flow: &Flow,
        request: &Request,
        response: &mut Response,
    ) {
        self.count(rule);
        let warning = response.headers.first(&Name::Warning).map(|w| String::from_utf8_lossy(w).into_owned());
        // The quoted text of `399 agent "text"`, escapes and all.
        let quoted = warning.as_deref().and_then(|w| w.splitn(3, ' ').nth(2));
        let unquoted = quoted.and_then(|q| q.strip_prefix('"')?.strip_suffix('"'));
        let why = unquoted.unwrap_or(response.reason.as_str());
        if !response.headers.contains(&Name::Reason) {
            let reason = format!("SIP;cause={};text=\"{rule}: {why}\"", response.status);
            response.headers.push(Name::Reason, reason);
        }
        let Some(untold) = self.may_tell(now, rule) else { return };
        let why = warning.as_deref().unwrap_or(response.reason.as_str());
        tracing::warn!(
            role,
            rule,
            peer = %flow.remote,
            transport = flow.transport.name(),
            method = %request.method,
            uri = %uri_without_password(request),
            call_id = request.call_id().unwrap_or_default(),
            status = response.status,
            why,
            untold,
            "refused"
        );
    }

    /// Counts, and tells in a line that fail2ban reads as it does the SIP loop's own, that somebody
    /// unknown was given no answer.
    pub fn note_unknown(&mut self, now: Instant, flow: &Flow) {
        self.count("unknown_source");
        if self.may_tell(now, "unknown_source").is_some() {
            let peer = flow.remote;
            tracing::warn!(%peer, transport = flow.transport.name(), rule = "unknown_source", "dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a flood under one rule is cut and hides nothing under another; what was left out is told
    /// with the next line. Method: a thousand of one, one of another, a second later.
    #[test]
    fn a_flood_under_one_rule_leaves_the_others_their_lines() {
        let start = crate::base::clock::now();
        let mut refusals = Refusals::default();
        let told = (0..1000).filter(|_| refusals.may_tell(start, "no_number").is_some()).count();
        assert_eq!(told, 200, "the burst");
        assert_eq!(refusals.may_tell(start, "wrong_certificate"), Some(0));
        let later = start + std::time::Duration::from_secs(1);
        assert_eq!(refusals.may_tell(later, "no_number"), Some(800));
    }
}
