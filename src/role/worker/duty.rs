//! Whether new calls are taken: by all means, not while the node is drained, not any more once another
//! worker has taken over; and the calls a worker places to itself before its first.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::control::protocol::ListenerStatus;
use crate::role::front::{HopPorts, NextHop, Way};
use crate::role::gate::Seen;
use crate::role::link::FromWorker;
use crate::role::worker::calls::Calls;
use crate::role::worker::refuse::Refusal;
use crate::role::worker::self_test::{self, Plan};
use crate::sip::flow::Flow as SipFlow;
use crate::sip::layer::ServerId;
use crate::sip::message::{Name, Request, Response};

/// A call that the service was forwarding when the other worker took over arrives within this.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// A worker that gave way stays this long after the last caller it sent on: a copy of such an INVITE
/// gets the same answer.
const LINGER: Duration = Duration::from_secs(2);
/// Between the last words to callers and the end of what is left.
const LAST_WORDS: Duration = Duration::from_secs(4);

/// What becomes of new calls.
#[derive(Debug, Default)]
pub(super) struct Duty {
    /// The node is drained.
    refusing: bool,
    retiring: Option<Retiring>,
    proving: Option<Proving>,
}

/// Another worker has taken over, or the node stops.
#[derive(Debug)]
struct Retiring {
    successor: Option<HopPorts>,
    began: Instant,
    until: Instant,
    /// When a caller was sent on last.
    sent_on: Option<Instant>,
    /// When callers were told goodbye.
    wound_up: Option<Instant>,
}

/// Self-test calls are under way.
#[derive(Debug)]
struct Proving {
    outcome: Receiver<Result<(), String>>,
    /// A listener opened for them alone.
    aside: Option<u16>,
}

/// What a retiring worker does next.
pub(super) enum Step {
    Wait,
    /// Tell callers goodbye.
    WindUp,
    /// End what is left.
    Stop,
    /// Everything is over.
    Leave,
}

impl Duty {
    /// New calls are taken.
    pub(super) fn takes_calls(&self) -> bool {
        !self.refusing && self.retiring.is_none()
    }

    pub(super) fn is_proving(&self) -> bool {
        self.proving.is_some()
    }

    pub(super) fn refuse(&mut self, on: bool) {
        self.refusing = on;
    }

    pub(super) fn retire(&mut self, now: Instant, successor: &[ListenerStatus], within: Duration) {
        let ports = HopPorts::of_listeners(successor.iter().map(|l| (l.transport, l.address)));
        let successor = (!successor.is_empty()).then_some(ports);
        self.retiring =
            Some(Retiring { successor, began: now, until: now + within, sent_on: None, wound_up: None });
    }

    /// What a retiring worker does next; `is_empty`: it has no calls left.
    pub(super) fn step(&mut self, now: Instant, is_empty: bool) -> Step {
        let Some(retiring) = &mut self.retiring else { return Step::Wait };
        let lingers = retiring.successor.is_some()
            && now < retiring.sent_on.unwrap_or(retiring.began).max(retiring.began + STRAGGLERS) + LINGER;
        match retiring.wound_up {
            _ if is_empty && !lingers => Step::Leave,
            None if retiring.until <= now => {
                retiring.wound_up = Some(now);
                Step::WindUp
            }
            Some(at) if at + LAST_WORDS <= now => Step::Stop,
            Some(_) | None => Step::Wait,
        }
    }
}

impl Calls {
    /// Sends a caller on or away where no new calls are taken; false: this one is taken.
    pub(super) fn turns_away(
        &mut self,
        now: Instant,
        id: ServerId,
        flow: &SipFlow,
        seen: &Seen,
        invite: &Request,
    ) -> bool {
        let Some(answer) = self.turn(now, flow, seen, invite) else { return false };
        match answer {
            Ok(redirect) => {
                self.layer.respond(now, id, redirect);
                if let Some(retiring) = &mut self.duty.retiring {
                    retiring.sent_on = Some(now);
                }
            }
            Err((rule, response)) => self.refuse(now, id, rule, &seen.flow, invite, *response),
        }
        true
    }

    fn turn(
        &self,
        now: Instant,
        flow: &SipFlow,
        seen: &Seen,
        invite: &Request,
    ) -> Option<Result<Response, Refusal>> {
        let refused = |why| Some(Err(("draining", Box::new(self.unavailable(invite, why)))));
        let Some(retiring) = &self.duty.retiring else {
            let why = "the node is being drained and takes no new calls";
            return if self.duty.refusing { refused(why) } else { None };
        };
        let is_straggler = seen.is_vouched() && retiring.successor.is_some();
        if is_straggler && now < retiring.began + STRAGGLERS {
            return None;
        }
        let Some(ports) = retiring.successor.filter(|_| !seen.is_vouched()) else {
            return refused("the worker finishes its calls and takes no new ones");
        };
        // Who may not call learns nothing of where others go.
        if let Err(no) = self.gate.judge(seen, invite).outcome {
            return Some(Err(self.not_admitted(invite, &no)));
        }
        let next = NextHop { addresses: self.config.worker.address.clone(), ports };
        let Some(Way { uri, .. }) = next.way(&self.config.node.fqdn, flow, invite) else {
            return refused("the worker that takes calls has no transport as safe as this one");
        };
        let mut response = Response::for_request(invite, 302, "Moved Temporarily");
        response.headers.push(Name::Contact, format!("<{uri}>"));
        Some(Ok(response))
    }

    /// Begins self-test calls through the own listeners and every shard.
    pub(super) fn prove(&mut self) {
        let shards = self.shards.as_ref().map_or(0, |shards| shards.status().len());
        let open = self.edge.open().to_vec();
        let (aside, target) = match self_test::own_listener(&open) {
            Some(address) => (None, Ok(address)),
            None => {
                let (index, bound) = self.edge.open_aside();
                (Some(index), Err(bound))
            }
        };
        let media = self.config.rtp.address.first();
        let plan = Plan { target, media, shards, secret: self.gate.secret().clone() };
        match self_test::spawn(plan) {
            Ok(outcome) => self.duty.proving = Some(Proving { outcome, aside }),
            Err(error) => self.link.report(FromWorker::Proof { error: Some(error.to_string()) }),
        }
    }

    /// Tells the supervisor what came of the self-test calls. They are not counted.
    pub(super) fn take_proof(&mut self) {
        let Some(proving) = &self.duty.proving else { return };
        let outcome = match proving.outcome.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err("the self-test itself failed".to_owned()),
            Ok(outcome) => outcome,
        };
        if let Some(index) = proving.aside {
            self.edge.close_aside(index);
        }
        self.duty.proving = None;
        self.forget_counts();
        self.link.report(FromWorker::Proof { error: outcome.err() });
    }

    /// Tells callers goodbye, and keeps what they have said.
    pub(super) fn wind_up(&mut self, now: Instant) {
        tracing::info!(calls = self.calls.len(), "no time is left: calls are ended");
        let legs: Vec<_> = self.calls.keys().copied().collect();
        for leg in legs {
            self.with(now, leg, |entry| {
                entry.with_flow(|flow| flow.wind_up(clock::calendar()));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::flow::Transport;

    fn successor() -> Vec<ListenerStatus> {
        vec![ListenerStatus {
            role: "worker B".into(),
            transport: Transport::Tcp,
            address: ([127, 0, 0, 1], 5067).into(),
        }]
    }

    fn is(step: &Step, wanted: &str) -> bool {
        let name = match step {
            Step::Wait => "wait",
            Step::WindUp => "wind up",
            Step::Stop => "stop",
            Step::Leave => "leave",
        };
        name == wanted
    }

    /// Goal: a worker that gave way leaves when its last call is over, but not while a caller that was
    /// sent on may still ask again. Method: a fake clock; a caller sent on 5 s after the change.
    #[test]
    fn a_retired_worker_leaves_when_empty_and_nobody_asks_any_more() {
        let start = clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut duty = Duty::default();
        assert!(duty.takes_calls() && is(&duty.step(start, true), "wait"));
        duty.retire(start, &successor(), Duration::from_secs(60));
        assert!(!duty.takes_calls());
        assert!(is(&duty.step(at(2_900), true), "wait"));
        duty.retiring.as_mut().unwrap().sent_on = Some(at(5_000));
        assert!(is(&duty.step(at(6_900), true), "wait"));
        assert!(is(&duty.step(at(6_900), false), "wait"));
        assert!(is(&duty.step(at(7_000), false), "wait"));
        assert!(is(&duty.step(at(7_000), true), "leave"));
    }

    /// Goal: at the deadline callers hear goodbye once, and a little later what is left is ended; a node
    /// that stops waits for nobody to ask again. Method: the same clock, a call that does not end.
    #[test]
    fn at_the_deadline_calls_are_wound_up_then_ended() {
        let start = clock::now();
        let at = |s| start + Duration::from_secs(s);
        let mut duty = Duty::default();
        duty.retire(start, &[], Duration::from_secs(60));
        assert!(is(&duty.step(at(59), false), "wait"));
        assert!(is(&duty.step(at(60), false), "wind up"));
        assert!(is(&duty.step(at(63), false), "wait"));
        assert!(is(&duty.step(at(63), true), "leave"));
        assert!(is(&duty.step(at(64), false), "stop"));
        let mut stopping = Duty::default();
        stopping.retire(start, &[], Duration::from_secs(60));
        assert!(is(&stopping.step(start, true), "leave"));
    }
}
