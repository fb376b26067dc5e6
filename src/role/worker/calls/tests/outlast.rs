//! Calls that go on in the next worker.

use super::*;
use crate::base::config::PortRange;
use crate::media::leg::{Leg, LegSeed};
use crate::media::order::{Adoption, LegPlan};
use crate::role::worker::estate::{Estate, Heritage};
use crate::shard::ledger::{Ledger, Marks};

pub(super) fn ledger() -> Ledger {
    Ledger::create(PortRange { first: 20_000, last: 20_099 }, 10).unwrap()
}

impl Rig {
    /// Writes its calls down from now on, and finds what was written before.
    pub(super) fn writes_to(&mut self, ledger: &Ledger) -> Heritage {
        let (estate, heritage) = Estate::new(ledger.clone());
        self.calls.estate = Some(estate);
        heritage
    }

    /// Goes on after another worker, whose words its peers remember.
    pub(super) fn follows(&mut self, dead: Self, heritage: Heritage) {
        self.sent = dead.sent.clone();
        drop(dead);
        self.over = SipFlow { id: FlowId(2), ..Self::flow() };
        self.calls.inherit(self.now, heritage);
        self.pump();
    }

    fn adopted(&self) -> (LegId, Box<Adoption>) {
        let Some(Order::Adopt(leg, adoption)) = self.order() else { panic!("no leg is adopted") };
        (leg, adoption)
    }
}

/// The shard's note of a leg that has just begun.
pub(super) fn note(ledger: &Ledger, now: Instant, port: u16, leg: LegId) {
    let plan = LegPlan {
        media: None,
        address: "192.0.2.1".parse().unwrap(),
        cname: "test".into(),
        media_timeout: Duration::from_secs(60),
    };
    let seed = LegSeed { ssrc: 1, sequence: 2, timestamp: 3 };
    let leg = Leg::new(now, std::time::SystemTime::UNIX_EPOCH, leg, plan, seed);
    let ports = PortRange { first: port, last: port + 1 };
    Marks::new(ledger.clone(), ports).write(port, &leg.mark(now).to_words());
}

/// A call in its greeting, its worker's record of it, and the next worker.
fn orphaned() -> (Ledger, Rig, Heritage, Rig) {
    let ledger = ledger();
    let mut dead = Rig::new();
    assert!(dead.writes_to(&ledger).ports().is_empty());
    dead.sends("a", "INVITE", 1, OFFER);
    dead.looked_up(false);
    dead.opened();
    dead.sends("a", "ACK", 1, "");
    dead.pump();
    let mut next = Rig::new();
    let heritage = next.writes_to(&ledger);
    assert_eq!(heritage.ports(), [20_000].into());
    (ledger, dead, heritage, next)
}

/// Goal: an answered call goes on: its leg where it was, with its greeting; its peer comes back over
/// another connection, our own requests go there, and at its end nothing of it is left, here or in the
/// ledger. Method: a call in its greeting, written down by one worker and read by the next.
#[test]
fn an_answered_call_goes_on_in_the_next_worker() {
    let (ledger, dead, heritage, mut rig) = orphaned();
    note(&ledger, dead.now, 20_000, LegId(0));
    rig.follows(dead, heritage);
    assert!(rig.order().is_none(), "its greeting is still to be loaded");
    let Some(MailboxRequest::LoadGreeting { token, .. }) = rig.mailbox.request() else {
        panic!("a greeting")
    };
    rig.mailbox.reply(MailboxReply::Greeting { token, samples: Ok(None) });
    rig.pump();
    let (leg, adoption) = rig.adopted();
    assert_eq!((adoption.rtp_port, adoption.mark.ssrc), (20_000, 1));
    assert!(adoption.plan.media.is_some() && adoption.peer.is_none());
    assert_eq!(adoption.play.map(|(play, list)| (play, list.items.len())), Some((PlayId(1), 2)));
    rig.media(Event::Opened { leg, rtp_port: 20_000 });
    rig.media(Event::Played { leg, play: PlayId(1) });
    assert!(matches!(rig.order(), Some(Order::Record(..))));
    rig.sends("a", "OPTIONS", 2, "");
    assert_eq!(rig.heard("a").last().unwrap(), "200 OPTIONS");
    assert_eq!(rig.calls.calls.values().next().unwrap().call.destination(), Destination::Flow(rig.over));
    assert_eq!(ledger.records().len(), 1);
    rig.sends("a", "BYE", 3, "");
    assert_eq!(rig.heard("a").last().unwrap(), "200 BYE");
    rig.closed(leg);
    rig.pump();
    assert!(ledger.records().is_empty());
    rig.assert_forgotten();
}

/// Goal: a call of which it is not known how far its media had come, whose leg cannot be had any more, or
/// with which worker after worker dies is ended with BYE, not left. Method: no mark; a shard that refuses;
/// four deaths.
#[test]
fn a_call_that_cannot_go_on_is_ended_with_bye() {
    for fault in ["no mark", "no leg", "deadly"] {
        let (ledger, mut dead, mut heritage, mut rig) = orphaned();
        if fault != "no mark" {
            note(&ledger, dead.now, 20_000, LegId(0));
        }
        for _ in 0..if fault == "deadly" { 3 } else { 0 } {
            let mut next = Rig::new();
            rig.follows(dead, heritage);
            rig.pump();
            // A change, so that it is written down once more.
            rig.sends("a", "OPTIONS", 2, "");
            rig.pump();
            heritage = next.writes_to(&ledger);
            (dead, rig) = (rig, next);
        }
        rig.follows(dead, heritage);
        let Some(MailboxRequest::LoadGreeting { token, .. }) = rig.mailbox.request() else {
            panic!("a greeting")
        };
        rig.mailbox.reply(MailboxReply::Greeting { token, samples: Ok(None) });
        rig.pump();
        if fault == "no leg" {
            let (leg, _) = rig.adopted();
            rig.media(Event::OpenFailed { leg, error: OpenError::NoPort });
        }
        assert_eq!(rig.heard("a").last().unwrap(), "BYE", "{fault}");
        assert!(rig.order().is_none());
        rig.answers(200);
        rig.assert_forgotten();
        assert!(ledger.records().is_empty(), "{fault}");
    }
}

/// Goal: an INVITE over UDP that had no answer yet is answered by the next worker, as if it had come
/// again. Method: a caller whose mailbox is being looked up.
#[test]
fn an_unanswered_caller_over_udp_is_answered_by_the_next_worker() {
    let ledger = ledger();
    let over_udp = SipFlow { transport: Transport::Udp, ..Rig::flow() };
    let (mut dead, mut rig) = (Rig::new(), Rig::new());
    dead.writes_to(&ledger);
    dead.over = over_udp;
    dead.sends("a", "INVITE", 1, OFFER);
    dead.pump();
    let heritage = rig.writes_to(&ledger);
    assert!(heritage.ports().is_empty());
    rig.follows(dead, heritage);
    rig.over = over_udp;
    rig.looked_up(false);
    rig.opened();
    assert_eq!(rig.heard("a"), ["100 INVITE", "100 INVITE", "180 INVITE", "200 INVITE"]);
}
