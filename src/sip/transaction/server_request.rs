//! Non-INVITE server transaction, RFC 3261 §17.2.2.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::timers::{Notify, Step, Timers};

/// One request other than INVITE and ACK that we received.
#[derive(Debug)]
pub struct ServerRequest {
    timers: Arc<Timers>,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No final response yet: Trying while `last` is empty, else Proceeding. After 64*T1 the
    /// client has given up (Timer F), so an answer is of no use (RFC 4320 §4.2).
    Pending { last: Option<Bytes>, give_up: Instant },
    /// The final response was sent; copies get it again until Timer J.
    Completed { response: Bytes, timer_j: Instant },
    /// To be forgotten.
    Terminated,
}

impl ServerRequest {
    /// Starts in Trying; the user is told by the creator.
    pub fn new(now: Instant, timers: impl Into<Arc<Timers>>, reliable: bool) -> Self {
        let timers = timers.into();
        let state = State::Pending { last: None, give_up: now + timers.give_up() };
        Self { timers, reliable, state }
    }

    /// A copy of the request arrived.
    pub fn handle_request(&mut self) -> Step {
        match &self.state {
            State::Pending { last: Some(response), .. } | State::Completed { response, .. } => {
                Step::send(response.clone())
            }
            State::Pending { last: None, .. } | State::Terminated => Step::ABSORB,
        }
    }

    /// The user answers with `status`, serialised as `response`.
    pub fn respond(&mut self, now: Instant, status: u16, response: Bytes) -> Step {
        match (&mut self.state, status) {
            (State::Pending { last, .. }, 100..=199) => *last = Some(response.clone()),
            (State::Pending { .. }, 200..=699) => {
                let timer_j = self.timers.timer_j(self.reliable);
                self.state = if timer_j.is_zero() {
                    State::Terminated
                } else {
                    State::Completed { response: response.clone(), timer_j: now + timer_j }
                };
            }
            // RFC 3261 §17.2.2: the first final response stands.
            _ => return Step::ABSORB,
        }
        Step::send(response)
    }

    /// Lets due timers fire.
    pub fn handle_timeout(&mut self, now: Instant) -> Step {
        match &self.state {
            State::Pending { give_up, .. } if now >= *give_up => {
                self.state = State::Terminated;
                Step::notify(Notify::Timeout)
            }
            State::Completed { timer_j, .. } if now >= *timer_j => {
                self.state = State::Terminated;
                Step::ABSORB
            }
            // No timer of this state is due.
            State::Pending { .. } | State::Completed { .. } | State::Terminated => Step::ABSORB,
        }
    }

    /// When `handle_timeout` is due; `None` when terminated.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Pending { give_up: at, .. } | State::Completed { timer_j: at, .. } => Some(*at),
            State::Terminated => None,
        }
    }

    /// True while no final response was sent.
    pub fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending { .. })
    }

    /// True at the end of its life.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn start(reliable: bool) -> (Instant, ServerRequest) {
        let now = crate::base::clock::now();
        (now, ServerRequest::new(now, Timers::default(), reliable))
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// Goal: copies are absorbed in Trying, get the 1xx in Proceeding and the final response in
    /// Completed (RFC 3261 §17.2.2). Method: a copy after each step.
    #[test]
    fn request_copies_get_the_last_response_again() {
        let (start, mut request) = start(false);
        assert_eq!(request.handle_request(), Step::ABSORB);
        assert_eq!(request.respond(start, 100, bytes("100")), Step::send(bytes("100")));
        assert_eq!(request.handle_request(), Step::send(bytes("100")));
        assert_eq!(request.respond(start, 200, bytes("200")), Step::send(bytes("200")));
        assert_eq!(request.handle_request(), Step::send(bytes("200")));
        assert_eq!(request.respond(start, 500, bytes("500")), Step::ABSORB);
        assert_eq!(request.handle_request(), Step::send(bytes("200")));
    }

    /// Goal: Timer J is 64*T1 over UDP and zero over TCP. Method: both.
    #[test]
    fn an_answered_request_is_kept_for_timer_j() {
        let (start, mut udp) = start(false);
        udp.respond(start, 200, bytes("200"));
        assert_eq!(udp.poll_timeout(), Some(start + Duration::from_secs(32)));
        udp.handle_timeout(start + Duration::from_secs(32));
        assert!(udp.is_terminated());
        let mut tcp = ServerRequest::new(start, Timers::default(), true);
        tcp.respond(start, 200, bytes("200"));
        assert!(tcp.is_terminated());
    }

    /// Goal: a user that never answers leaks nothing; after Timer F of the client it is too late
    /// anyway. Method: wait 64*T1.
    #[test]
    fn an_unanswered_request_dies_after_64_t1() {
        let (start, mut request) = start(true);
        assert!(request.is_pending());
        let at = start + Duration::from_secs(32);
        assert_eq!(request.poll_timeout(), Some(at));
        assert_eq!(request.handle_timeout(at), Step::notify(Notify::Timeout));
        assert!(request.is_terminated());
    }
}
