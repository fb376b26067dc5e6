//! INVITE server transaction, RFC 3261 §17.2.1 amended by RFC 6026 §7.1.
//!
//! Resending a 2xx until its ACK, which RFC 3261 §13.3.1.4 gives to the UAS core, lives here too:
//! it needs the same timers, and every user wants it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::timers::{Notify, Step, Timers};

/// One INVITE we received.
#[derive(Debug)]
pub struct ServerInvite {
    timers: Arc<Timers>,
    reliable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The user decides. `trying` is when a 100 goes out by itself, `give_up` when the user has
    /// been silent for Timer C.
    Proceeding { trying: Option<Instant>, last: Option<Bytes>, give_up: Instant },
    /// The user sent a 2xx. It is resent (over every transport) until its ACK, after which nobody
    /// needs it any more; INVITE copies are absorbed until Timer L.
    Accepted { resend: Option<(Resend, Bytes)>, timer_l: Instant },
    /// The user sent a 3xx-6xx. Timer G resends (unreliable transports only), Timer H gives up.
    Completed { response: Bytes, timer_g: Option<Resend>, timer_h: Instant },
    /// The ACK of the 3xx-6xx arrived; its copies are absorbed until Timer I.
    Confirmed { timer_i: Instant },
    /// To be forgotten.
    Terminated,
}

/// When to resend, and the interval that led there.
#[derive(Debug, Clone, Copy)]
struct Resend {
    at: Instant,
    interval: Duration,
}

impl Resend {
    /// The one after this: the interval doubles up to T2.
    fn next(self, now: Instant, timers: &Timers) -> Self {
        let interval = timers.backoff(self.interval);
        Self { at: now + interval, interval }
    }
}

impl ServerInvite {
    /// Starts in Proceeding; the user is told by the creator.
    pub fn new(now: Instant, timers: impl Into<Arc<Timers>>, reliable: bool) -> Self {
        let timers = timers.into();
        let state = State::Proceeding {
            trying: Some(now + timers.trying),
            last: None,
            give_up: now + timers.timer_c,
        };
        Self { timers, reliable, state }
    }

    /// A copy of the INVITE arrived.
    pub fn handle_invite(&mut self) -> Step {
        match &self.state {
            State::Proceeding { last: Some(last), .. } => Step::send(last.clone()),
            State::Completed { response, .. } => Step::send(response.clone()),
            // RFC 6026 §7.1: Accepted absorbs copies.
            State::Proceeding { last: None, .. }
            | State::Accepted { .. }
            | State::Confirmed { .. }
            | State::Terminated => Step::ABSORB,
        }
    }

    /// An ACK arrived that belongs to the response sent. `Deliver` when it is the first of a 2xx.
    pub fn handle_ack(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Accepted { resend, .. } => {
                *resend = None;
                Step::notify(Notify::Deliver)
            }
            State::Completed { .. } => {
                let timer_i = self.timers.linger(self.reliable);
                self.state = if timer_i.is_zero() {
                    State::Terminated
                } else {
                    State::Confirmed { timer_i: now + timer_i }
                };
                Step::ABSORB
            }
            State::Proceeding { .. } | State::Confirmed { .. } | State::Terminated => Step::ABSORB,
        }
    }

    /// The user answers with `status`, serialised as `response`.
    pub fn respond(&mut self, now: Instant, status: u16, response: Bytes) -> Step {
        self.answer(now, status, response, true)
    }

    /// Like [`Self::respond`] for a proxy: a 2xx is resent by the UAS downstream, whose copies
    /// each pass (RFC 6026 §7.1), and its ACK may take another way.
    pub fn forward(&mut self, now: Instant, status: u16, response: Bytes) -> Step {
        self.answer(now, status, response, false)
    }

    fn answer(&mut self, now: Instant, status: u16, response: Bytes, resend_2xx: bool) -> Step {
        let resend = Resend { at: now + self.timers.t1, interval: self.timers.t1 };
        match (&mut self.state, status) {
            (State::Proceeding { trying, last, give_up }, 100..=199) => {
                *trying = None;
                *last = Some(response.clone());
                *give_up = now + self.timers.timer_c;
            }
            (State::Proceeding { .. }, 200..=299) => {
                self.state = State::Accepted {
                    resend: resend_2xx.then(|| (resend, response.clone())), // RFC 3261 §13.3.1.4
                    timer_l: now + self.timers.give_up(),
                };
            }
            (State::Proceeding { .. }, 300..=699) => {
                self.state = State::Completed {
                    response: response.clone(),
                    timer_g: (!self.reliable).then_some(resend),
                    timer_h: now + self.timers.give_up(),
                };
            }
            (State::Accepted { .. }, 200..=299) if !resend_2xx => {}
            // The final response was given; a second one changes nothing.
            _ => return Step::ABSORB,
        }
        Step::send(response)
    }

    /// The final response could not be sent, so that no ACK will come (RFC 3261 §17.2.4). Before it the
    /// user may still answer, and by then there may be a way.
    pub fn handle_transport_error(&mut self) -> Step {
        match &self.state {
            State::Accepted { resend: Some(_), .. } | State::Completed { .. } => {
                self.state = State::Terminated;
                Step::notify(Notify::Timeout)
            }
            State::Proceeding { .. }
            | State::Accepted { resend: None, .. }
            | State::Confirmed { .. }
            | State::Terminated => Step::ABSORB,
        }
    }

    /// Lets due timers fire.
    pub fn handle_timeout(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Proceeding { give_up, .. } if now >= *give_up => {
                // The layer now answers 500 in the user's place; until then nothing runs twice.
                *give_up = now + self.timers.timer_c;
                Step::notify(Notify::Abandoned)
            }
            State::Proceeding { trying: trying @ Some(_), .. } if trying.is_some_and(|at| now >= at) => {
                *trying = None;
                Step::notify(Notify::Trying)
            }
            State::Accepted { resend, timer_l, .. } if now >= *timer_l => {
                let acknowledged = resend.is_none();
                self.state = State::Terminated;
                Step::notify(if acknowledged { Notify::Nothing } else { Notify::Timeout })
            }
            State::Accepted { resend: Some((resend, response)), .. } if now >= resend.at => {
                *resend = resend.next(now, &self.timers);
                Step::send(response.clone())
            }
            State::Completed { timer_h, .. } if now >= *timer_h => {
                self.state = State::Terminated;
                Step::notify(Notify::Timeout)
            }
            State::Completed { response, timer_g: Some(timer_g), .. } if now >= timer_g.at => {
                *timer_g = timer_g.next(now, &self.timers);
                Step::send(response.clone())
            }
            State::Confirmed { timer_i } if now >= *timer_i => {
                self.state = State::Terminated;
                Step::ABSORB
            }
            // No timer of this state is due.
            State::Proceeding { .. }
            | State::Accepted { .. }
            | State::Completed { .. }
            | State::Confirmed { .. }
            | State::Terminated => Step::ABSORB,
        }
    }

    /// When `handle_timeout` is due; `None` when terminated.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Proceeding { trying, give_up, .. } => Some(trying.map_or(*give_up, |at| at.min(*give_up))),
            State::Accepted { resend, timer_l } => {
                Some(resend.as_ref().map_or(*timer_l, |(resend, _)| resend.at.min(*timer_l)))
            }
            State::Completed { timer_g, timer_h, .. } => {
                Some(timer_g.map_or(*timer_h, |resend| resend.at.min(*timer_h)))
            }
            State::Confirmed { timer_i } => Some(*timer_i),
            State::Terminated => None,
        }
    }

    /// True while no final response was sent: a CANCEL still has an effect (RFC 3261 §9.2).
    pub fn is_proceeding(&self) -> bool {
        matches!(self.state, State::Proceeding { .. })
    }

    /// True at the end of its life.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(reliable: bool) -> (Instant, ServerInvite) {
        let now = crate::base::clock::now();
        (now, ServerInvite::new(now, Timers::default(), reliable))
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// The resend times, in ms after the first copy, and when and how it ended.
    fn run_dry(start: Instant, invite: &mut ServerInvite) -> (Vec<u128>, u128, Notify) {
        let mut sent_ms = Vec::new();
        loop {
            let at = invite.poll_timeout().unwrap();
            let step = invite.handle_timeout(at);
            if invite.is_terminated() {
                return (sent_ms, (at - start).as_millis(), step.notify);
            }
            assert!(step.transmit.is_some());
            sent_ms.push((at - start).as_millis());
        }
    }

    /// T1 doubling up to T2, as both §13.3.1.4 and Timer G ask, until 64*T1.
    const RESENDS_MS: [u128; 10] = [500, 1500, 3500, 7500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];

    /// Goal: a silent user gets a 100 sent for it after 200 ms (RFC 3261 §17.2.1), a quick one
    /// does not. Method: both.
    #[test]
    fn trying_is_due_200_ms_after_the_invite_unless_the_user_spoke() {
        let (start, mut silent) = start(false);
        assert_eq!(silent.poll_timeout(), Some(start + ms(200)));
        assert_eq!(silent.handle_timeout(start + ms(200)), Step::notify(Notify::Trying));
        let mut quick = ServerInvite::new(start, Timers::default(), false);
        quick.respond(start, 180, bytes("180"));
        assert_eq!(quick.handle_timeout(start + ms(200)), Step::ABSORB);
    }

    /// Goal: a copy of the INVITE gets the last provisional response again (RFC 3261 §17.2.1).
    /// Method: nothing, then 100 and 180.
    #[test]
    fn invite_copies_get_the_last_provisional_response() {
        let (start, mut invite) = start(false);
        assert_eq!(invite.handle_invite(), Step::ABSORB);
        invite.respond(start, 100, bytes("100"));
        invite.respond(start, 180, bytes("180"));
        assert_eq!(invite.handle_invite(), Step::send(bytes("180")));
    }

    /// Goal: a 2xx is resent T1, 2*T1 ... T2 apart, over TCP too, and given up 64*T1 after it
    /// was sent (RFC 3261 §13.3.1.4). Method: run both transports dry.
    #[test]
    fn unacknowledged_2xx_is_resent_over_every_transport_until_64_t1() {
        for reliable in [false, true] {
            let (start, mut invite) = start(reliable);
            assert_eq!(invite.respond(start, 200, bytes("200")), Step::send(bytes("200")));
            assert_eq!(run_dry(start, &mut invite), (RESENDS_MS.to_vec(), 32_000, Notify::Timeout));
        }
    }

    /// Goal: the ACK ends resending, not the transaction, which absorbs INVITE copies until
    /// Timer L (RFC 6026 §7.1). Method: 200, ACK, INVITE.
    #[test]
    fn ack_ends_the_2xx_and_accepted_absorbs_invite_copies() {
        let (start, mut invite) = start(false);
        invite.respond(start, 200, bytes("200"));
        assert_eq!(invite.handle_invite(), Step::ABSORB);
        assert_eq!(invite.handle_ack(start + ms(20)), Step::notify(Notify::Deliver));
        assert_eq!(invite.handle_invite(), Step::ABSORB);
        assert_eq!(run_dry(start, &mut invite), (vec![], 32_000, Notify::Nothing));
    }

    /// Goal: Timer G resends a 3xx-6xx over UDP, Timer H gives up (RFC 3261 §17.2.1).
    /// Method: run dry.
    #[test]
    fn unacknowledged_refusal_over_udp_is_resent_until_timer_h() {
        let (start, mut invite) = start(false);
        invite.respond(start, 486, bytes("486"));
        assert_eq!(invite.handle_invite(), Step::send(bytes("486")));
        assert_eq!(run_dry(start, &mut invite), (RESENDS_MS.to_vec(), 32_000, Notify::Timeout));
    }

    /// Goal: over TCP only Timer H runs. Method: run dry.
    #[test]
    fn unacknowledged_refusal_over_tcp_is_sent_once() {
        let (start, mut invite) = start(true);
        invite.respond(start, 486, bytes("486"));
        assert_eq!(run_dry(start, &mut invite), (vec![], 32_000, Notify::Timeout));
    }

    /// Goal: after the ACK of a refusal copies are absorbed for T4, or not at all over TCP.
    /// Method: both transports.
    #[test]
    fn acknowledged_refusal_lingers_for_timer_i() {
        let (start, mut udp) = start(false);
        udp.respond(start, 486, bytes("486"));
        assert_eq!(udp.handle_ack(start + ms(10)), Step::ABSORB);
        assert_eq!(udp.handle_invite(), Step::ABSORB);
        assert_eq!(udp.handle_ack(start + ms(11)), Step::ABSORB);
        assert_eq!(udp.poll_timeout(), Some(start + ms(5010)));
        udp.handle_timeout(start + ms(5010));
        assert!(udp.is_terminated());
        let mut tcp = ServerInvite::new(start, Timers::default(), true);
        tcp.respond(start, 486, bytes("486"));
        tcp.handle_ack(start);
        assert!(tcp.is_terminated());
    }

    /// Goal: the first final response stands. Method: 487 after 200, 180 after 486.
    #[test]
    fn nothing_is_sent_after_the_final_response() {
        let (start, mut accepted) = start(false);
        accepted.respond(start, 200, bytes("200"));
        assert_eq!(accepted.respond(start, 487, bytes("487")), Step::ABSORB);
        let mut refused = ServerInvite::new(start, Timers::default(), false);
        refused.respond(start, 486, bytes("486"));
        assert_eq!(refused.respond(start, 180, bytes("180")), Step::ABSORB);
    }

    /// Goal: a proxy's 2xx is not resent by it, but each copy from downstream passes (RFC 6026
    /// §7.1). Method: forward 200 twice, then wait for Timer L.
    #[test]
    fn a_forwarded_2xx_passes_each_time_and_is_never_resent() {
        let (start, mut invite) = start(false);
        assert_eq!(invite.forward(start, 200, bytes("200")), Step::send(bytes("200")));
        assert_eq!(invite.forward(start + ms(500), 200, bytes("200")), Step::send(bytes("200")));
        assert_eq!(run_dry(start, &mut invite), (vec![], 32_000, Notify::Nothing));
    }

    /// Goal: a user that forgets an INVITE does not leak it. Method: wait for Timer C.
    #[test]
    fn a_user_that_never_answers_is_reported() {
        let (start, mut invite) = start(true);
        invite.respond(start, 180, bytes("180"));
        let at = invite.poll_timeout().unwrap();
        assert_eq!(at - start, Timers::default().timer_c);
        assert_eq!(invite.handle_timeout(at), Step::notify(Notify::Abandoned));
    }
}
