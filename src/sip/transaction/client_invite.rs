//! INVITE client transaction, RFC 3261 §17.1.1 amended by RFC 6026 §7.2.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::timers::{Notify, Step, Timers};

/// One INVITE we sent. Its creator sends the first copy.
#[derive(Debug)]
pub struct ClientInvite {
    timers: Arc<Timers>,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing heard. Timer A resends (unreliable transports only), Timer B gives up.
    Calling { timer_a: Option<Resend>, timer_b: Instant, cancel_wanted: bool },
    /// A 1xx arrived. Timer C bounds the waiting time.
    Proceeding { timer_c: Instant },
    /// A CANCEL went out; the final response has 64*T1 to come (RFC 3261 §9.1).
    Cancelling { give_up: Instant },
    /// A 2xx arrived; its retransmissions pass upward until Timer M.
    Accepted { timer_m: Instant },
    /// A 3xx-6xx arrived; each copy gets the same ACK until Timer D.
    Completed { ack: Bytes, timer_d: Instant },
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

impl ClientInvite {
    /// Starts in Calling. `request` is the INVITE as sent, for resending.
    pub fn new(now: Instant, timers: impl Into<Arc<Timers>>, reliable: bool, request: Bytes) -> Self {
        let timers = timers.into();
        let resend = Resend { at: now + timers.t1, interval: timers.t1, request };
        let state = State::Calling {
            timer_a: (!reliable).then_some(resend), // RFC 3261 §17.1.1.2
            timer_b: now + timers.give_up(),
            cancel_wanted: false,
        };
        Self { timers, reliable, state }
    }

    /// Takes a response with this status code; `ack` builds the ACK of a 3xx-6xx (§17.1.1.3).
    pub fn handle_response(&mut self, now: Instant, status: u16, ack: impl FnOnce() -> Bytes) -> Step {
        match (&self.state, status) {
            (State::Calling { cancel_wanted: true, .. }, 100..=199) => {
                self.state = State::Cancelling { give_up: now + self.timers.give_up() };
                Step::notify(Notify::DeliverAndCancel)
            }
            (State::Calling { .. } | State::Proceeding { .. }, 100..=199) => {
                self.state = State::Proceeding { timer_c: now + self.timers.timer_c };
                Step::notify(Notify::Deliver)
            }
            (State::Cancelling { .. } | State::Accepted { .. }, 100..=199) => Step::ABSORB,
            (State::Calling { .. } | State::Proceeding { .. } | State::Cancelling { .. }, 200..=299) => {
                self.state = State::Accepted { timer_m: now + self.timers.give_up() };
                Step::notify(Notify::Deliver)
            }
            (State::Accepted { .. }, 200..=299) => Step::notify(Notify::Deliver),
            (State::Calling { .. } | State::Proceeding { .. } | State::Cancelling { .. }, 300..=699) => {
                let ack = ack();
                let timer_d = self.timers.timer_d(self.reliable);
                self.state = if timer_d.is_zero() {
                    State::Terminated
                } else {
                    State::Completed { ack: ack.clone(), timer_d: now + timer_d }
                };
                Step { transmit: Some(ack), notify: Notify::Deliver }
            }
            (State::Completed { ack, .. }, 300..=699) => Step::send(ack.clone()),
            // Late 1xx, a 2xx after a 3xx-6xx, anything after the end, status codes SIP has not.
            _ => Step::ABSORB,
        }
    }

    /// The user gives up on the call. `Cancel` when the CANCEL may go now; before the first 1xx
    /// it must wait (RFC 3261 §9.1) and `DeliverAndCancel` says when.
    pub fn cancel(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Calling { cancel_wanted, .. } => {
                *cancel_wanted = true;
                Step::ABSORB
            }
            State::Proceeding { .. } => {
                self.state = State::Cancelling { give_up: now + self.timers.give_up() };
                Step::notify(Notify::Cancel)
            }
            State::Cancelling { .. }
            | State::Accepted { .. }
            | State::Completed { .. }
            | State::Terminated => Step::ABSORB,
        }
    }

    /// Lets due timers fire.
    pub fn handle_timeout(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Calling { timer_b, .. } if now >= *timer_b => {
                self.state = State::Terminated;
                Step::notify(Notify::Timeout)
            }
            State::Calling { timer_a: Some(resend), .. } if now >= resend.at => {
                let Resend { at, interval, request } = resend;
                *interval *= 2; // RFC 3261 §17.1.1.2: unlike Timer E, not capped by T2.
                *at = now + *interval;
                Step::send(request.clone())
            }
            State::Proceeding { timer_c } if now >= *timer_c => {
                self.state = State::Cancelling { give_up: now + self.timers.give_up() };
                Step::notify(Notify::Cancel)
            }
            State::Cancelling { give_up } if now >= *give_up => {
                self.state = State::Terminated;
                Step::notify(Notify::Timeout)
            }
            State::Accepted { timer_m: end } | State::Completed { timer_d: end, .. } if now >= *end => {
                self.state = State::Terminated;
                Step::ABSORB
            }
            // No timer of this state is due.
            State::Calling { .. }
            | State::Proceeding { .. }
            | State::Cancelling { .. }
            | State::Accepted { .. }
            | State::Completed { .. }
            | State::Terminated => Step::ABSORB,
        }
    }

    /// The connection is gone. True when that ends the transaction: nothing was heard yet. Later
    /// the response may still come over another connection (RFC 3261 §18.2.2).
    pub fn handle_transport_error(&mut self) -> bool {
        let calling = matches!(self.state, State::Calling { .. });
        if calling {
            self.state = State::Terminated;
        }
        calling
    }

    /// When `handle_timeout` is due; `None` when terminated.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Calling { timer_a, timer_b, .. } => {
                Some(timer_a.as_ref().map_or(*timer_b, |resend| resend.at.min(*timer_b)))
            }
            State::Proceeding { timer_c: at }
            | State::Cancelling { give_up: at }
            | State::Accepted { timer_m: at }
            | State::Completed { timer_d: at, .. } => Some(*at),
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

    fn start(reliable: bool) -> (Instant, ClientInvite) {
        let now = crate::base::clock::now();
        (now, ClientInvite::new(now, Timers::default(), reliable, Bytes::from_static(b"INVITE")))
    }

    fn ack() -> Bytes {
        Bytes::from_static(b"ACK")
    }

    fn no_ack() -> Bytes {
        panic!("no ACK is built here")
    }

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// Goal: an unanswered INVITE over UDP leaves 7 times and fails 64*T1 after the first
    /// (RFC 3261 §17.1.1.2). Method: jump a fake clock from timer to timer.
    #[test]
    fn unanswered_invite_over_udp_is_sent_seven_times_then_times_out() {
        let (start, mut invite) = start(false);
        let mut sent_ms = vec![0];
        while let Some(at) = invite.poll_timeout() {
            let step = invite.handle_timeout(at);
            let since_ms = (at - start).as_millis();
            if step.notify == Notify::Timeout {
                assert_eq!((since_ms, step.transmit), (32_000, None));
            } else {
                assert_eq!(step, Step::send(Bytes::from_static(b"INVITE")));
                sent_ms.push(since_ms);
            }
        }
        assert_eq!(sent_ms, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        assert!(invite.is_terminated());
    }

    /// Goal: streams resend by themselves; only Timer B runs. Method: the first timer is B.
    #[test]
    fn unanswered_invite_over_tcp_is_sent_once() {
        let (start, mut invite) = start(true);
        let at = invite.poll_timeout().unwrap();
        assert_eq!(at - start, ms(32_000));
        assert_eq!(invite.handle_timeout(at), Step::notify(Notify::Timeout));
        assert!(invite.is_terminated());
    }

    /// Goal: a provisional response stops resending (RFC 3261 §17.1.1.2). Method: 180, then look
    /// at the timers.
    #[test]
    fn a_provisional_response_ends_resending() {
        let (start, mut invite) = start(false);
        assert_eq!(invite.handle_response(start + ms(100), 180, no_ack), Step::notify(Notify::Deliver));
        assert_eq!(invite.poll_timeout(), Some(start + ms(100) + Timers::default().timer_c));
        assert_eq!(invite.handle_timeout(start + ms(60_000)), Step::ABSORB);
    }

    /// Goal: each copy of a 3xx-6xx gets the same ACK, the user hears it once, Timer D ends it
    /// (RFC 3261 §17.1.1.2). Method: 486 three times within 32 s.
    #[test]
    fn copies_of_a_refusal_are_acknowledged_until_timer_d() {
        let (start, mut invite) = start(false);
        let first = invite.handle_response(start, 486, ack);
        assert_eq!(first, Step { transmit: Some(ack()), notify: Notify::Deliver });
        for later in [500, 31_999] {
            assert_eq!(invite.handle_response(start + ms(later), 486, no_ack), Step::send(ack()));
        }
        assert_eq!(invite.poll_timeout(), Some(start + ms(32_000)));
        assert_eq!(invite.handle_timeout(start + ms(32_000)), Step::ABSORB);
        assert!(invite.is_terminated());
    }

    /// Goal: over TCP Timer D is zero. Method: 486.
    #[test]
    fn a_refusal_over_tcp_is_acknowledged_and_forgotten() {
        let (start, mut invite) = start(true);
        assert_eq!(invite.handle_response(start, 486, ack).transmit, Some(ack()));
        assert!(invite.is_terminated());
        assert_eq!(invite.poll_timeout(), None);
    }

    /// Goal: in Accepted all 2xx pass upward until Timer M; a 3xx-6xx does not (RFC 6026 §7.2).
    /// Method: 200, 200, 486, then Timer M.
    #[test]
    fn every_2xx_passes_upward_until_timer_m() {
        let (start, mut invite) = start(false);
        for at in [0, 500, 1500] {
            let step = invite.handle_response(start + ms(at), 200, no_ack);
            assert_eq!(step, Step::notify(Notify::Deliver));
        }
        assert_eq!(invite.handle_response(start + ms(1600), 486, no_ack), Step::ABSORB);
        assert_eq!(invite.poll_timeout(), Some(start + ms(32_000)));
        assert_eq!(invite.handle_timeout(start + ms(32_000)), Step::ABSORB);
        assert!(invite.is_terminated());
    }

    /// Goal: a CANCEL waits for a provisional response (RFC 3261 §9.1). Method: cancel in
    /// Calling, then 100.
    #[test]
    fn cancel_before_any_response_waits_for_the_first() {
        let (start, mut invite) = start(false);
        assert_eq!(invite.cancel(start), Step::ABSORB);
        assert_eq!(invite.handle_response(start, 100, no_ack), Step::notify(Notify::DeliverAndCancel));
        assert_eq!(invite.cancel(start), Step::ABSORB, "only one CANCEL");
    }

    /// Goal: no final response 64*T1 after the CANCEL ends the transaction (RFC 3261 §9.1).
    /// Method: 180, cancel, wait.
    #[test]
    fn a_cancelled_invite_without_final_response_dies_after_64_t1() {
        let (start, mut invite) = start(true);
        invite.handle_response(start, 180, no_ack);
        assert_eq!(invite.cancel(start + ms(1000)), Step::notify(Notify::Cancel));
        assert_eq!(invite.poll_timeout(), Some(start + ms(33_000)));
        assert_eq!(invite.handle_timeout(start + ms(33_000)), Step::notify(Notify::Timeout));
        assert!(invite.is_terminated());
    }

    /// Goal: a phone that rings for ever is cancelled by Timer C, which each 1xx restarts
    /// (RFC 3261 §16.6 step 11, §16.7 step 2). Method: 180 twice, then silence.
    #[test]
    fn endless_ringing_is_cancelled_by_timer_c() {
        let (start, mut invite) = start(true);
        invite.handle_response(start, 180, no_ack);
        invite.handle_response(start + ms(100_000), 180, no_ack);
        let timer_c = start + ms(300_000);
        assert_eq!(invite.poll_timeout(), Some(timer_c));
        assert_eq!(invite.handle_timeout(timer_c), Step::notify(Notify::Cancel));
        assert_eq!(invite.handle_response(timer_c, 487, ack).notify, Notify::Deliver);
    }

    /// Goal: a lost connection ends an INVITE that heard nothing, and only that one.
    /// Method: error in Calling and in Proceeding.
    #[test]
    fn a_lost_connection_ends_only_an_unanswered_invite() {
        let (_, mut unanswered) = start(true);
        assert!(unanswered.handle_transport_error());
        assert!(unanswered.is_terminated());
        let (start, mut ringing) = start(true);
        ringing.handle_response(start, 180, no_ack);
        assert!(!ringing.handle_transport_error());
        assert!(!ringing.is_terminated());
    }
}
