//! The signalling thread: begins calls on time, keeps all dialogs, ends them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::load::arrivals::{Arrivals, Spread};
use crate::load::life::{Life, Part};
use crate::load::media::book::{Hears, Stream};
use crate::load::media::engine::Order;
use crate::load::media::tally::{histogram, micros};
use crate::load::result::{Calls, Scenario, count};
use crate::load::sip::call::{Answer, Call, Dial, Ending, Event, Hops as _, Place, number_of};
use crate::load::sip::callee::{Callee, Happening, Source};
use crate::load::sip::pool::{Pool, Ready};
use crate::load::sip::text::{Glance, Start, write_response};
use crate::media::g711::Codec;
use crate::rng::Rng;
use crate::sip::sdes;
use crate::sip::sdp::{self, Direction};
use crate::sip::tls::TlsClient;
use crate::{clock, machine};

mod acts;
mod leaving;

use acts::{Act, Play};
use leaving::Leaving;

/// Longest sleep: commands are seen after it.
const TURN: Duration = Duration::from_millis(5);
/// Calls begun or ended in one turn, so that answers are not left lying.
const BURST: usize = 64;
/// A call that begins later than this after its time is a late one.
const LATE: Duration = Duration::from_millis(10);
/// Different texts kept of what the far side says; more are counted together.
const TEXTS_MAX: usize = 32;

/// What the signalling thread does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Call `n` is the `n`-th of these, counted around: what it does and whom it calls.
    pub kinds: Vec<(Scenario, String)>,
    /// Calls to begin.
    pub calls: u32,
    /// Calls a second.
    pub cps: f64,
    /// How they are spread.
    pub spread: Spread,
    /// Seed of the spread.
    pub seed: u64,
    /// Hang up this long after the answer; otherwise on command.
    pub hold: Option<Duration>,
    /// A call that rings longer is given up.
    pub patience: Duration,
    /// Connections to each neighbour.
    pub connections: u32,
    /// For hops over TLS.
    pub tls: Option<TlsClient>,
    /// SRTP keys to offer.
    pub srtp: sdes::Wish,
    /// Calls to be recorded offer to send only.
    pub one_way: bool,
    /// Where media comes to.
    pub media: IpAddr,
    /// RTP ports; call `n` has the `n`-th, counted around.
    pub ports: Vec<u16>,
    /// Where the second legs of anchored calls come to.
    pub callee: Option<SocketAddr>,
    /// Parts that calls play, one for each of `kinds`; nothing but in [`Scenario::Life`]. They are as
    /// long as `hold` on average.
    pub parts: Vec<Part>,
}

/// What the main thread asks for.
#[derive(Debug, Clone, Copy)]
pub enum Command {
    /// Counts calls answered within this time for [`Calls::per_s`].
    Measure {
        /// Its first instant.
        from: Instant,
        /// The first instant after it.
        until: Instant,
    },
    /// Calls that are up now are told apart.
    Mark,
    /// Begin no more calls; end those that are up or ringing, this many a second.
    HangUp {
        /// Calls a second.
        rate: f64,
    },
    /// Return.
    Stop,
}

/// How far it is, for a progress bar and for deciding when to go on.
#[derive(Debug, Default)]
pub struct Progress {
    /// Calls begun.
    pub begun: AtomicU64,
    /// Calls without a final response yet.
    pub calling: AtomicU64,
    /// Calls up.
    pub up: AtomicU64,
    /// Calls over.
    pub over: AtomicU64,
}

/// What it came to.
#[derive(Debug, Clone)]
pub struct Totals {
    /// Calls.
    pub calls: Calls,
    /// From the time a call was due to its 200, microseconds.
    pub setup: Histogram<u64>,
    /// What the far side calls itself.
    pub server: String,
    /// Calls begun more than 10 ms late.
    pub late_calls: u64,
    /// What calls that play parts came to.
    pub life: Option<Life>,
}

/// A call and what its owner knows of it.
struct Slot {
    call: Call,
    scenario: Scenario,
    due: Instant,
    answered: bool,
    /// We want its end.
    leaving: bool,
    /// The timer in the heap.
    timer: Option<Instant>,
    act: Option<Act>,
}

struct Signaller<'a> {
    plan: &'a Plan,
    progress: &'a Progress,
    media: Sender<Order>,
    pool: Pool,
    callee: Option<Callee>,
    kinds: Vec<Kind>,
    run: u32,
    slots: Vec<Option<Box<Slot>>>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    arrivals: Arrivals,
    start: Instant,
    next: Option<Instant>,
    leaving: Option<Leaving>,
    window: Option<(Instant, Instant)>,
    answered_in_window: u64,
    totals: Totals,
    play: Option<Play>,
}

/// Whom calls of one scenario go to.
struct Kind {
    scenario: Scenario,
    place: Rc<Place>,
    to: Rc<str>,
}

/// Runs until [`Command::Stop`].
///
/// # Errors
/// A target leads nowhere or is not ours to load, the callee's address is taken.
pub fn run(
    plan: &Plan,
    media: Sender<Order>,
    commands: &Receiver<Command>,
    progress: &Progress,
) -> Result<Totals> {
    machine::wake_punctually();
    let mut signaller = Signaller::new(plan, media, progress)?;
    while signaller.turn(commands) {}
    Ok(signaller.finish())
}

impl<'a> Signaller<'a> {
    fn new(plan: &'a Plan, media: Sender<Order>, progress: &'a Progress) -> Result<Self> {
        let mut pool = Pool::new(plan.connections, plan.tls.clone());
        let callee = plan.callee.map(|address| -> Result<Callee> {
            pool.listen(address)?;
            Ok(Callee::new(address, plan.media, plan.ports.clone()))
        });
        let callee = callee.transpose()?;
        let kinds = plan.kinds.iter().map(|(scenario, uri)| {
            let place = pool.resolve(uri)?;
            let mut to = place.target.uri.clone();
            to.params.clear();
            to.host_with_port.port = None;
            // The first connections are opened before the clock runs.
            (0..plan.connections).try_for_each(|call| pool.way(&place.target, call).map(drop))?;
            Ok(Kind { scenario: *scenario, place, to: format!("<{to}>").into() })
        });
        let kinds = kinds.collect::<Result<Vec<_>>>()?;
        let mut arrivals = Arrivals::new(plan.spread, plan.cps, plan.seed);
        let start = clock::now();
        let next = arrivals.next().map(|offset| start + offset);
        let totals = Totals {
            calls: Calls::default(),
            setup: histogram(),
            server: String::new(),
            late_calls: 0,
            life: None,
        };
        let play = plan.hold.filter(|_| !plan.parts.is_empty());
        let play = play.map(|mean| Play::new(plan.parts.clone(), mean, plan.seed));
        Ok(Self {
            plan,
            progress,
            media,
            pool,
            callee,
            kinds,
            run: Rng::from_environment().word(),
            slots: Vec::new(),
            timers: BinaryHeap::new(),
            arrivals,
            start,
            next: next.filter(|_| plan.calls > 0),
            leaving: None,
            window: None,
            answered_in_window: 0,
            totals,
            play,
        })
    }

    /// One turn: obey, begin, end, resend, send, wait, hear. False when told to stop.
    fn turn(&mut self, commands: &Receiver<Command>) -> bool {
        let now = clock::now();
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Measure { from, until } => self.window = Some((from, until)),
                Command::Mark => self.mark(),
                Command::HangUp { rate } => self.begin_leaving(now, rate),
                Command::Stop => return false,
            }
        }
        self.begin_due(now);
        self.leave_due(now);
        self.act_due(now);
        self.handle_timeouts(now);
        self.pool.flush();
        self.tell_broken(now);
        let ready = self.pool.wait(self.pause());
        let now = clock::now();
        for source in ready {
            match source {
                Ready::Connection(number) => self.hear(now, number),
                Ready::Datagrams => self.hear_datagrams(now),
            }
        }
        true
    }

    /// How long nothing is due, at most a turn.
    fn pause(&self) -> Duration {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let leave = self.leaving.as_ref().and_then(Leaving::due);
        let step = self.play.as_ref().and_then(Play::next);
        let due = [self.next, timer, leave, step].into_iter().flatten().min();
        due.map_or(TURN, |at| at.saturating_duration_since(clock::now()).min(TURN))
    }

    fn begin_due(&mut self, now: Instant) {
        for _ in 0..BURST {
            let Some(due) = self.next.filter(|due| *due <= now) else { return };
            let number = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
            self.totals.late_calls += u64::from(now - due > LATE);
            self.totals.calls.attempted += 1;
            if let Err(error) = self.begin(now, due, number) {
                self.slots.push(None);
                self.fail(&format!("{error:#}"));
                self.progress.over.fetch_add(1, Ordering::Relaxed);
            }
            self.progress.begun.fetch_add(1, Ordering::Relaxed);
            let more = number + 1 < self.plan.calls;
            self.next = self.arrivals.next().filter(|_| more).map(|offset| self.start + offset);
        }
    }

    fn begin(&mut self, now: Instant, due: Instant, number: u32) -> Result<()> {
        let index = number as usize;
        let kind = self.kinds.get(index % self.kinds.len().max(1)).context("no kind of call")?;
        let port = self.plan.ports.get(index % self.plan.ports.len().max(1)).context("no media port")?;
        let one_way = self.plan.one_way && kind.scenario == Scenario::Record;
        let local = sdp::Local {
            address: self.plan.media,
            port: *port,
            codecs: vec![Codec::Pcmu, Codec::Pcma],
            dtmf: true,
            direction: if one_way { Direction::SendOnly } else { Direction::SendRecv },
            version: 1,
            null_address: false,
            crypto: self.plan.srtp.offer(1)?,
        };
        let dial = Dial {
            number,
            run: self.run,
            place: Rc::clone(&kind.place),
            to: Rc::clone(&kind.to),
            local,
            patience: self.plan.patience,
            hold: self.plan.hold.filter(|_| self.play.is_none()),
            contact: self.plan.callee.filter(|_| self.play.is_some()),
            moves: self.play.is_some(),
        };
        let act = self.play.as_mut().and_then(|play| play.cast(number));
        match act.as_ref().map(|act| act.part) {
            Some(Part::Dropped) => self.pool.dedicate(number),
            Some(Part::Ringing) => self.callee.iter_mut().for_each(|callee| callee.ring_on(number)),
            Some(_) | None => {}
        }
        let call = Call::place(now, dial, &mut self.pool)?;
        let scenario = kind.scenario;
        let slot = Slot { call, scenario, due, answered: false, leaving: false, timer: None, act };
        self.slots.push(Some(Box::new(slot)));
        self.progress.calling.fetch_add(1, Ordering::Relaxed);
        self.set_timer(number);
        if self.plays(number, Part::Ringing) {
            self.rehearse(number, now);
        }
        Ok(())
    }

    fn handle_timeouts(&mut self, now: Instant) {
        while let Some(Reverse((at, number))) =
            self.timers.peek().copied().filter(|Reverse((at, _))| *at <= now)
        {
            self.timers.pop();
            let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { continue };
            if slot.timer != Some(at) {
                continue;
            }
            slot.timer = None;
            if slot.call.is_over() && slot.call.poll_timeout().is_some_and(|at| at <= now) {
                self.slots[number as usize] = None;
                continue;
            }
            let (was_up, before) = (slot.call.is_up(), slot.call.retransmissions);
            let event = slot.call.handle_timeout(now, &mut self.pool);
            self.totals.calls.retransmissions += slot.call.retransmissions - before;
            if was_up && !slot.call.is_up() {
                slot.leaving = true;
                self.close_media(number);
            }
            self.happened(now, number, event);
        }
    }

    fn tell_broken(&mut self, now: Instant) {
        for (connection, why) in self.pool.take_broken() {
            self.play.iter_mut().for_each(|play| play.told.broken += 1);
            for number in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
                let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else {
                    continue;
                };
                if slot.has_vanished() {
                    continue;
                }
                let event = slot.call.handle_broken(now, connection, &why, &mut self.pool);
                self.happened(now, number, event);
            }
        }
    }

    fn hear(&mut self, now: Instant, connection: usize) {
        let received = self.pool.receive(connection);
        for bytes in received.iter() {
            let Ok(message) = Glance::read(bytes) else { continue };
            self.handle_message(now, Source::Connection(connection), &message);
        }
    }

    fn hear_datagrams(&mut self, now: Instant) {
        while let Some((bytes, from)) = self.pool.receive_datagram() {
            if let Ok(message) = Glance::read(&bytes) {
                self.handle_message(now, Source::Datagram(from), &message);
            }
        }
    }

    /// A message goes to its call, by Call-ID; a request of no call of ours to the callee.
    fn handle_message(&mut self, now: Instant, source: Source, message: &Glance<'_>) {
        let number = message.value("Call-ID").and_then(|call_id| number_of(call_id, self.run));
        if number.is_some_and(|number| self.heard_by_nobody(number, message)) {
            return;
        }
        let slot = number.and_then(|number| self.slots.get_mut(number as usize)?.as_mut());
        if let (Some(number), Some(slot), Source::Connection(connection)) = (number, slot, source) {
            let event = slot.call.handle_message(now, connection, message, &mut self.pool);
            self.happened(now, number, event);
            return;
        }
        if let Some(callee) = &mut self.callee {
            let happening = callee.handle_request(source, message, &mut self.pool);
            self.second_leg(happening);
        } else if let (Start::Request(method, _), Source::Connection(connection)) = (message.start, source)
            && method != "ACK"
        {
            let mut out = Vec::new();
            write_response(&mut out, message, "481 Call/Transaction Does Not Exist", "none", &[], None);
            self.pool.send(connection, &out);
        }
    }

    fn second_leg(&mut self, happening: Option<Happening>) {
        match happening {
            Some(Happening::Answered(number, media)) => {
                let stream = Stream {
                    socket: number as usize % self.plan.ports.len().max(1),
                    remote: media.remote,
                    sends: true,
                    hears: Hears::FramesOf(2 * number),
                    payload_type: media.payload_type,
                    keys: media.keys.map(Box::new),
                    up_since: clock::calendar(),
                };
                self.order(Order::Open(2 * number + 1, Box::new(stream)));
            }
            Some(Happening::Ended(number)) => self.order(Order::Close(2 * number + 1)),
            None => {}
        }
    }

    /// Takes note of what a call did, and of its next timer.
    fn happened(&mut self, now: Instant, number: u32, event: Option<Event>) {
        match event {
            Some(Event::Answered(answer)) => self.answered(now, number, &answer),
            Some(Event::Changed(is_taken)) => self.changed(number, is_taken),
            Some(Event::Over(ending)) => self.over(number, ending),
            None => {}
        }
        self.set_timer(number);
    }

    fn answered(&mut self, now: Instant, number: u32, answer: &Answer) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        slot.answered = true;
        self.totals.setup.saturating_record(micros(now.saturating_duration_since(slot.due)).max(1));
        self.totals.calls.answered += 1;
        *self.totals.calls.outcomes.entry("200".to_owned()).or_default() += 1;
        if self.window.is_some_and(|(from, until)| (from..until).contains(&now)) {
            self.answered_in_window += 1;
        }
        if self.totals.server.is_empty() {
            self.totals.server.clone_from(&answer.server);
        }
        self.progress.calling.fetch_sub(1, Ordering::Relaxed);
        let up = self.progress.up.fetch_add(1, Ordering::Relaxed) + 1;
        self.totals.calls.peak = self.totals.calls.peak.max(up);
        let plays = slot.act.as_mut().map(|act| {
            act.dtmf = answer.remote.dtmf_payload_type;
            act.part
        });
        if let (Some(part), Some(play)) = (plays, &mut self.play) {
            play.told.part(part).answered += 1;
        }
        match stream_of(slot, number, answer, self.plan.ports.len()) {
            Ok(Some(stream)) => self.order(Order::Open(2 * number, Box::new(stream))),
            Ok(None) => {}
            Err(error) => {
                self.totals.calls.silent += 1;
                self.note(format!("{error:#}"));
            }
        }
        if plays.is_some_and(|part| part != Part::Ringing) {
            self.rehearse(number, now);
        }
        // It was cancelled, and the answer was faster.
        if self.slots[number as usize].as_ref().is_some_and(|slot| slot.leaving)
            && let Some(leaving) = &mut self.leaving
        {
            leaving.left.push_back(number);
        }
    }

    fn over(&mut self, number: u32, ending: Ending) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let (answered, leaving) = (slot.answered, slot.leaving);
        let gauge = if answered { &self.progress.up } else { &self.progress.calling };
        gauge.fetch_sub(1, Ordering::Relaxed);
        self.progress.over.fetch_add(1, Ordering::Relaxed);
        if self.act_over(number, &ending) {
            return self.close_media(number);
        }
        match ending {
            Ending::HungUp | Ending::Disowned(_) => {}
            Ending::EndedEarly(reason) => {
                self.totals.calls.ended_early += u64::from(!leaving);
                if !reason.is_empty() {
                    self.note(format!("BYE: {reason}"));
                }
            }
            Ending::Refused { status, warning, retry_after } => {
                self.fail(&status.to_string());
                self.totals.calls.retry_after += u64::from(retry_after);
                warning.into_iter().for_each(|warning| self.note(format!("{status}: {warning}")));
            }
            Ending::Failed(why) => self.fail(&why),
        }
        self.close_media(number);
    }

    fn fail(&mut self, outcome: &str) {
        self.totals.calls.failed += 1;
        let outcomes = &mut self.totals.calls.outcomes;
        let outcome =
            if outcomes.len() < TEXTS_MAX || outcomes.contains_key(outcome) { outcome } else { "other" };
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
    }

    /// Keeps what the far side gave as its reason.
    fn note(&mut self, text: String) {
        let remarks = &mut self.totals.calls.remarks;
        if remarks.len() < TEXTS_MAX || remarks.contains_key(&text) {
            *remarks.entry(text).or_default() += 1;
        }
    }

    fn plays(&self, number: u32, part: Part) -> bool {
        let slot = self.slots.get(number as usize).and_then(Option::as_ref);
        slot.and_then(|slot| slot.act.as_ref()).is_some_and(|act| act.part == part)
    }

    fn close_media(&self, number: u32) {
        self.order(Order::Close(2 * number));
    }

    fn order(&self, order: Order) {
        // The media thread ends after this one.
        let _ = self.media.send(order);
    }

    fn set_timer(&mut self, number: u32) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let wanted = slot.call.poll_timeout();
        if let Some(at) = wanted.filter(|_| wanted != slot.timer) {
            self.timers.push(Reverse((at, number)));
        }
        slot.timer = wanted;
    }

    fn finish(mut self) -> Totals {
        let there = self.slots.iter().flatten().filter(|slot| !slot.call.is_over());
        let unfinished = there.filter(|slot| !slot.has_vanished()).count();
        if unfinished > 0 {
            self.note(format!("{unfinished} calls did not end in time"));
        }
        if let Some((from, until)) = self.window {
            let seconds = until.saturating_duration_since(from).as_secs_f64();
            self.totals.calls.per_s = count(self.answered_in_window) / seconds.max(f64::MIN_POSITIVE);
        }
        self.totals.life = self.curtain();
        self.totals
    }
}

/// The media of a call that was answered; `None` where none is wanted.
fn stream_of(slot: &Slot, number: u32, answer: &Answer, sockets: usize) -> Result<Option<Stream>> {
    let (sends, hears) = match slot.scenario {
        Scenario::Playout => (false, Hears::Sound),
        Scenario::Echo => (true, Hears::FramesOf(2 * number)),
        Scenario::Anchor => (true, Hears::FramesOf(2 * number + 1)),
        Scenario::Record => (true, Hears::Nothing),
        Scenario::Signalling | Scenario::Mixed | Scenario::Life => return Ok(None),
    };
    let remote = answer.remote.rtp.context("the answer has no address for RTP")?;
    let keys = sdes::agree(&slot.call.local().crypto, &answer.remote.crypto)?;
    Ok(Some(Stream {
        socket: number as usize % sockets.max(1),
        remote,
        // Calls that play a part are two-way, whatever they are for.
        sends: sends || slot.act.is_some(),
        hears,
        payload_type: answer.remote.codec.payload_type(),
        keys: keys.map(Box::new),
        up_since: clock::calendar(),
    }))
}
