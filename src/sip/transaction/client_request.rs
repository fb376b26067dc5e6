//! Non-INVITE client transaction, RFC 3261 §17.1.2.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::timers::{Notify, Step, Timers};

/// One request other than INVITE and ACK that we sent. Its creator sends the first copy.
#[derive(Debug)]
pub struct ClientRequest {
    timers: Arc<Timers>,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No final response yet. Timer E resends (unreliable transports only), Timer F gives up.
    /// Trying and Proceeding differ only in how Timer E grows.
    Pending { provisional: bool, timer_e: Option<Resend>, timer_f: Instant },
    /// The final response arrived; copies are absorbed until Timer K.
    Completed { timer_k: Instant },
    /// To be forgotten.
    Terminated,
}

/// When to resend, the interval that led there, and what.
#[derive(Debug)]
struct Resend {
    at: Instant,
    interval: Duration,
    request: Bytes,
}

impl ClientRequest {
    /// Starts in Trying. `request` is the request as sent, for resending.
    pub fn new(now: Instant, timers: impl Into<Arc<Timers>>, reliable: bool, request: Bytes) -> Self {
        let timers = timers.into();
        let resend = Resend { at: now + timers.t1, interval: timers.t1, request };
        let state = State::Pending {
            provisional: false,
            timer_e: (!reliable).then_some(resend),
            timer_f: now + timers.give_up(),
        };
        Self { timers, reliable, state }
    }

    /// Takes a response with this status code.
    pub fn handle_response(&mut self, now: Instant, status: u16) -> Step {
        match (&mut self.state, status) {
            (State::Pending { provisional, .. }, 100..=199) => {
                *provisional = true;
                Step::notify(Notify::Deliver)
            }
            (State::Pending { .. }, 200..=699) => {
                let timer_k = self.timers.linger(self.reliable);
                self.state = if timer_k.is_zero() {
                    State::Terminated
                } else {
                    State::Completed { timer_k: now + timer_k }
                };
                Step::notify(Notify::Deliver)
            }
            // Copies of the final response, and status codes SIP has not.
            _ => Step::ABSORB,
        }
    }

    /// Lets due timers fire.
    pub fn handle_timeout(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Pending { timer_f, .. } if now >= *timer_f => {
                self.state = State::Terminated;
                Step::notify(Notify::Timeout)
            }
            State::Pending { provisional, timer_e: Some(resend), .. } if now >= resend.at => {
                let Resend { at, interval, request } = resend;
                // RFC 3261 §17.1.2.2: MIN(2*interval, T2) in Trying, T2 in Proceeding.
                *interval = if *provisional { self.timers.t2 } else { self.timers.backoff(*interval) };
                *at = now + *interval;
                Step::send(request.clone())
            }
            State::Completed { timer_k } if now >= *timer_k => {
                self.state = State::Terminated;
                Step::ABSORB
            }
            // No timer of this state is due.
            State::Pending { .. } | State::Completed { .. } | State::Terminated => Step::ABSORB,
        }
    }

    /// The connection is gone. True when that ends the transaction: no final response yet.
    pub fn handle_transport_error(&mut self) -> bool {
        let pending = matches!(self.state, State::Pending { .. });
        if pending {
            self.state = State::Terminated;
        }
        pending
    }

    /// When `handle_timeout` is due; `None` when terminated.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Pending { timer_e, timer_f, .. } => {
                Some(timer_e.as_ref().map_or(*timer_f, |resend| resend.at.min(*timer_f)))
            }
            State::Completed { timer_k } => Some(*timer_k),
            State::Terminated => None,
        }
    }

    /// True at the end of its life.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(reliable: bool) -> (Instant, ClientRequest) {
        let now = crate::base::clock::now();
        (now, ClientRequest::new(now, Timers::default(), reliable, Bytes::from_static(b"OPTIONS")))
    }

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// The send times, in ms after the first, until the transaction times out, and that time.
    fn run_dry(start: Instant, request: &mut ClientRequest) -> (Vec<u128>, u128) {
        let mut sent_ms = Vec::new();
        loop {
            let at = request.poll_timeout().unwrap();
            let step = request.handle_timeout(at);
            if step.notify == Notify::Timeout {
                return (sent_ms, (at - start).as_millis());
            }
            assert!(step.transmit.is_some());
            sent_ms.push((at - start).as_millis());
        }
    }

    /// Goal: Timer E doubles up to T2 and Timer F fires at 64*T1 (RFC 3261 §17.1.2.2, which
    /// spells out 500 ms, 1 s, 2 s, 4 s, 4 s...). Method: jump from timer to timer.
    #[test]
    fn unanswered_request_over_udp_is_sent_eleven_times_then_times_out() {
        let (start, mut request) = start(false);
        let (sent_ms, timeout_ms) = run_dry(start, &mut request);
        let expected = [500, 1500, 3500, 7500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
        assert_eq!(sent_ms, expected);
        assert_eq!(timeout_ms, 32_000);
        assert!(request.is_terminated());
    }

    /// Goal: over TCP nothing is resent. Method: the first timer is F.
    #[test]
    fn unanswered_request_over_tcp_is_sent_once() {
        let (start, mut request) = start(true);
        assert_eq!(run_dry(start, &mut request), (vec![], 32_000));
    }

    /// Goal: after a 1xx Timer E is T2, and Timer F still runs (RFC 3261 §17.1.2.2).
    /// Method: 100 after 100 ms.
    #[test]
    fn a_provisional_response_slows_resending_to_t2() {
        let (start, mut request) = start(false);
        assert_eq!(request.handle_response(start + ms(100), 100), Step::notify(Notify::Deliver));
        let (sent_ms, timeout_ms) = run_dry(start, &mut request);
        assert_eq!(sent_ms, [500, 4500, 8500, 12_500, 16_500, 20_500, 24_500, 28_500]);
        assert_eq!(timeout_ms, 32_000);
    }

    /// Goal: the user hears one final response; Timer K ends it after T4. Method: 200 twice.
    #[test]
    fn copies_of_the_final_response_are_absorbed_until_timer_k() {
        let (start, mut request) = start(false);
        assert_eq!(request.handle_response(start, 200), Step::notify(Notify::Deliver));
        assert_eq!(request.handle_response(start + ms(10), 200), Step::ABSORB);
        assert_eq!(request.poll_timeout(), Some(start + ms(5000)));
        request.handle_timeout(start + ms(5000));
        assert!(request.is_terminated());
    }

    /// Goal: over TCP Timer K is zero. Method: 200.
    #[test]
    fn a_final_response_over_tcp_ends_it_at_once() {
        let (start, mut request) = start(true);
        assert_eq!(request.handle_response(start, 404), Step::notify(Notify::Deliver));
        assert!(request.is_terminated());
    }

    /// Goal: a lost connection ends what is unanswered. Method: error before and after the 200.
    #[test]
    fn a_lost_connection_ends_an_unanswered_request() {
        let (start, mut pending) = start(true);
        assert!(pending.handle_transport_error());
        assert!(pending.is_terminated());
        let mut done = ClientRequest::new(start, Timers::default(), false, Bytes::new());
        done.handle_response(start, 200);
        assert!(!done.handle_transport_error());
    }
}
