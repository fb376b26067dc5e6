//! Session timers (RFC 4028): a call whose peer vanished ends by itself.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::header::{Refresher, SessionExpires};
use super::message::{Method, Name, Request, Response};
use crate::base::clock;

/// The floor of every session interval, seconds (RFC 4028 §4).
pub const SESSION_INTERVAL_MIN_S: u32 = 90;

/// What we ask for and accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRules {
    /// The interval we ask for, seconds; 0 turns session timers off: leave `timer` out of the
    /// supported extensions then.
    pub session_expires_s: u32,
    /// The smallest we accept, seconds; less than 90 counts as 90.
    pub min_se_s: u32,
}

impl SessionRules {
    fn min_se_s(&self) -> u32 {
        self.min_se_s.max(SESSION_INTERVAL_MIN_S)
    }
}

/// What one INVITE or UPDATE and its 2xx agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The session interval, seconds.
    pub interval_s: u32,
    /// Who refreshes, by the roles in **that** transaction (RFC 4028 §7.4).
    pub refresher: Refresher,
    /// The UAC supports session timers.
    pub uac_supports: bool,
    /// The largest Min-SE met; a refresh repeats it (§7.4).
    pub min_se_s: u32,
    /// The peer allows UPDATE, so that a refresh needs no new offer (§7.4).
    pub peer_allows_update: bool,
}

/// As UAS: decides what the 2xx to an INVITE or UPDATE will say (RFC 4028 §9). `None`: timers are
/// off.
///
/// # Errors
/// The 422 with Min-SE: the interval asked for is too small. Only a UAC that knows session timers
/// is refused so; another one's interval came from a proxy and is raised.
pub fn answer(request: &Request, rules: &SessionRules) -> Result<Option<Negotiated>, Response> {
    if rules.session_expires_s == 0 {
        return Ok(None);
    }
    let uac_supports = request.headers.has_token(&Name::Supported, "timer")
        || request.headers.has_token(&Name::Require, "timer");
    let asked = request.headers.first(&Name::SessionExpires).and_then(|v| SessionExpires::parse(v).ok());
    if uac_supports && asked.is_some_and(|asked| asked.delta_s < rules.min_se_s()) {
        let mut response = Response::for_request(request, 422, "Session Interval Too Small");
        response.headers.push(Name::MinSe, rules.min_se_s().to_string());
        return Err(response);
    }
    let min_se_s = min_se(&request.headers).max(rules.min_se_s());
    // §9: it may be lowered, not below Min-SE, and not raised.
    let most = asked.map_or(u32::MAX, |asked| asked.delta_s);
    let interval_s = rules.session_expires_s.min(most).max(min_se_s);
    let refresher = match (uac_supports, asked.and_then(|asked| asked.refresher)) {
        // Table 2: a UAC that does not know session timers cannot refresh.
        (false, _) => Refresher::Uas,
        (true, Some(refresher)) => refresher,
        (true, None) => Refresher::Uac,
    };
    let peer_allows_update = allows_update(&request.headers);
    Ok(Some(Negotiated { interval_s, refresher, uac_supports, min_se_s, peer_allows_update }))
}

impl Negotiated {
    /// Puts into the 2xx what was decided (RFC 4028 §9).
    pub fn write(&self, response: &mut Response) {
        let value = SessionExpires { delta_s: self.interval_s, refresher: Some(self.refresher) };
        response.headers.set(Name::SessionExpires, value.to_string());
        if self.uac_supports && !response.headers.has_token(&Name::Require, "timer") {
            response.headers.push(Name::Require, "timer");
        }
    }
}

/// As UAC: asks for a session timer in the first INVITE of a call (RFC 4028 §7.1). The caller
/// puts `timer` into Supported.
pub fn offer(request: &mut Request, rules: &SessionRules) {
    if rules.session_expires_s > 0 {
        let delta_s = rules.session_expires_s.max(rules.min_se_s());
        request.headers.set(Name::SessionExpires, SessionExpires { delta_s, refresher: None }.to_string());
        request.headers.set(Name::MinSe, rules.min_se_s().to_string());
    }
}

/// As UAC: the Min-SE of a 422. The request is to be sent again with at least this as
/// Session-Expires and Min-SE (RFC 4028 §7.3). `None`: the 422 says nothing of use.
pub fn read_422(response: &Response) -> Option<u32> {
    response.headers.contains(&Name::MinSe).then(|| min_se(&response.headers))
}

/// As UAC: what the 2xx decided (RFC 4028 §7.2). `None`: no session timer.
pub fn read_answer(request: &Request, response: &Response) -> Option<Negotiated> {
    let answer = SessionExpires::parse(response.headers.first(&Name::SessionExpires)?).ok()?;
    Some(Negotiated {
        interval_s: answer.delta_s.max(SESSION_INTERVAL_MIN_S),
        refresher: answer.refresher.unwrap_or(Refresher::Uac),
        uac_supports: true,
        min_se_s: min_se(&request.headers),
        peer_allows_update: allows_update(&response.headers),
    })
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    /// Send a refresh now, by [`SessionTimer::refresh_method`].
    Refresh,
    /// The peer is gone: send BYE (RFC 4028 §10).
    Expired,
}

/// The running timer of one dialog. Each 2xx to an INVITE or UPDATE that carries a
/// Session-Expires starts a new one.
#[derive(Debug, Clone)]
pub struct SessionTimer {
    negotiated: Negotiated,
    we_refresh: bool,
    /// `None` for the side that waits, and once the refresh was asked for.
    refresh: Option<Instant>,
    expiry: Option<Instant>,
}

/// A running timer, for another process to go on with: times are uptimes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTimer {
    negotiated: Negotiated,
    we_refresh: bool,
    refresh: Option<Duration>,
    expiry: Option<Duration>,
}

impl SessionTimer {
    /// For another process.
    pub fn kept(&self) -> KeptTimer {
        let Self { negotiated, we_refresh, refresh, expiry } = *self;
        KeptTimer {
            negotiated,
            we_refresh,
            refresh: refresh.map(clock::uptime),
            expiry: expiry.map(clock::uptime),
        }
    }

    /// Goes on where [`Self::kept`] was said.
    pub fn resume(kept: &KeptTimer) -> Self {
        let KeptTimer { negotiated, we_refresh, refresh, expiry } = *kept;
        Self {
            negotiated,
            we_refresh,
            refresh: refresh.map(clock::at_uptime),
            expiry: expiry.map(clock::at_uptime),
        }
    }

    /// Starts when we send the 2xx.
    pub fn uas(now: Instant, negotiated: Negotiated) -> Self {
        Self::start(now, negotiated, negotiated.refresher == Refresher::Uas)
    }

    /// Starts when the 2xx arrives.
    pub fn uac(now: Instant, negotiated: Negotiated) -> Self {
        Self::start(now, negotiated, negotiated.refresher == Refresher::Uac)
    }

    fn start(now: Instant, negotiated: Negotiated, we_refresh: bool) -> Self {
        let interval = Duration::from_secs(u64::from(negotiated.interval_s));
        // RFC 4028 §10: "the minimum of 32 seconds and one third of the session interval".
        let margin = Duration::from_secs(32).min(interval / 3);
        Self {
            negotiated,
            we_refresh,
            refresh: we_refresh.then(|| now + interval / 2),
            expiry: Some(now + (interval - margin)),
        }
    }

    /// Starts again when the 2xx to an INVITE or UPDATE of ours inside the dialog arrives. A peer
    /// that does not know session timers names no interval: ours goes on, and we refresh.
    pub fn renew(&mut self, now: Instant, request: &Request, response: &Response) {
        let silent = Negotiated {
            refresher: Refresher::Uac,
            peer_allows_update: self.negotiated.peer_allows_update || allows_update(&response.headers),
            ..self.negotiated
        };
        *self = Self::uac(now, read_answer(request, response).unwrap_or(silent));
    }

    /// How a refresh is done: UPDATE without offer if the peer knows it, else re-INVITE with the
    /// offer of before (RFC 4028 §7.4).
    pub fn refresh_method(&self) -> Method {
        if self.negotiated.peer_allows_update { Method::Update } else { Method::Invite }
    }

    /// Puts Session-Expires and Min-SE into an INVITE or UPDATE inside the dialog, a refresh or
    /// another; who refreshes stays (RFC 4028 §7.4).
    pub fn offer(&self, request: &mut Request) {
        let refresher = Some(if self.we_refresh { Refresher::Uac } else { Refresher::Uas });
        let value = SessionExpires { delta_s: self.negotiated.interval_s, refresher };
        request.headers.set(Name::SessionExpires, value.to_string());
        request.headers.set(Name::MinSe, self.negotiated.min_se_s.to_string());
    }

    /// The refresh was refused: it is due once more at `at`, unless the session is over by then.
    pub fn retry(&mut self, at: Instant) {
        if self.we_refresh && self.expiry.is_some_and(|expiry| at < expiry) {
            self.refresh = Some(at);
        }
    }

    /// A 422 asked for at least `min_se_s` (RFC 4028 §7.3). False: the interval was as long already.
    pub fn raise(&mut self, min_se_s: u32) -> bool {
        let negotiated = &mut self.negotiated;
        let raised = min_se_s > negotiated.interval_s;
        negotiated.min_se_s = negotiated.min_se_s.max(min_se_s);
        negotiated.interval_s = negotiated.interval_s.max(min_se_s);
        raised
    }

    /// What is due now; each once.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<SessionEvent> {
        if self.expiry.is_some_and(|at| now >= at) {
            (self.expiry, self.refresh) = (None, None);
            return Some(SessionEvent::Expired);
        }
        if self.refresh.is_some_and(|at| now >= at) {
            self.refresh = None;
            return Some(SessionEvent::Refresh);
        }
        None
    }

    /// When [`Self::handle_timeout`] is due; `None` after expiry.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.refresh.or(self.expiry)
    }
}

/// The Min-SE of a message, at least 90 (RFC 4028 §5).
fn min_se(headers: &super::message::Headers) -> u32 {
    let value = headers.first(&Name::MinSe).and_then(|value| SessionExpires::parse(value).ok());
    value.map_or(SESSION_INTERVAL_MIN_S, |min| min.delta_s.max(SESSION_INTERVAL_MIN_S))
}

fn allows_update(headers: &super::message::Headers) -> bool {
    headers.has_token(&Name::Allow, "UPDATE")
}

#[cfg(test)]
mod tests;
