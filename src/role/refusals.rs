//! What a role refused: counted always, told in the log within a budget, so that no flood of
//! requests becomes a flood of lines.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::base::bucket::{PerSource, Rate, TokenBucket, source_of};
use crate::role::user_agent::uri_without_password;
use crate::sip::flow::Flow;
use crate::sip::message::{Name, Request, Response};

/// Log lines for refusals, and for unknown sources in all.
const LINES: Rate = Rate { per_s: 20, burst: 200 };
/// Log lines for one unknown source: enough for fail2ban to count it.
const SOURCE_LINES: Rate = Rate { per_s: 1, burst: 10 };
/// Unknown sources that have a budget of their own.
const SOURCES_MAX: usize = 1024;

/// Counters by rule, and the budgets.
#[derive(Debug)]
pub struct Refusals {
    role: &'static str,
    totals: BTreeMap<String, u64>,
    lines: TokenBucket,
    unknown_lines: TokenBucket,
    unknown: PerSource<IpAddr>,
    /// Lines left out since the last one.
    untold: u64,
}

impl Refusals {
    /// Nothing refused. `role` stands in the log where requests do not tell it.
    pub fn new(role: &'static str) -> Self {
        Self {
            role,
            totals: BTreeMap::new(),
            lines: TokenBucket::default(),
            unknown_lines: TokenBucket::default(),
            unknown: PerSource::new(SOURCES_MAX),
            untold: 0,
        }
    }

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
        let why = warning.as_deref().and_then(|w| w.splitn(3, ' ').nth(2));
        let why = why.map_or(response.reason.as_str(), |quoted| quoted.trim_matches('"'));
        if !response.headers.contains(&Name::Reason) {
            let reason = format!("SIP;cause={};text=\"{rule}: {why}\"", response.status);
            response.headers.push(Name::Reason, reason);
        }
        if !self.lines.take(now, LINES) {
            self.untold += 1;
            return;
        }
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
            untold = std::mem::take(&mut self.untold),
            "refused"
        );
    }

    /// Counts, and tells in a line that fail2ban reads, that somebody unknown was given no answer.
    pub fn note_unknown(&mut self, now: Instant, remote: SocketAddr) {
        self.count("unknown_source");
        let peer = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        if self.unknown.take(now, source_of(peer.ip()), SOURCE_LINES) && self.unknown_lines.take(now, LINES) {
            tracing::warn!(role = self.role, rule = "unknown_source", %peer, "dropped");
        }
    }
}
