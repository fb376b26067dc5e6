//! One call from INVITE to its end: signalling, sound both ways, and what was planned for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::Serialize;

use crate::clock::{self, millis};
use crate::media::dtmf::DtmfMode;
use crate::media::g711::Codec;
use crate::media::mangle::{Mangler, Odds};
use crate::media::receive::Receiver;
use crate::media::send::Sender;
use crate::media::srtp::Srtp;
use crate::media::{socket, wav};
use crate::rng::Rng;
use crate::script::{Hold, KeyPress, When};
use crate::sip::sdes::{self, Crypto};
use crate::sip::sdp::{self, Direction};
use crate::sip::target::Target;
use crate::sip::uac::{Event, Uac, Wishes};

/// Time between packets.
const PTIME: Duration = Duration::from_millis(20);
/// After a stall at most this much is caught up.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);

/// What every call of a run does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who is called.
    pub target: Target,
    /// Signalling.
    pub wishes: Wishes,
    /// Codecs offered.
    pub codecs: Vec<Codec>,
    /// Offer telephone-event.
    pub dtmf_offered: bool,
    /// How keys travel.
    pub dtmf_mode: DtmfMode,
    /// The file's samples.
    pub file: Arc<Vec<i16>>,
    /// The file starts at the end of each beep, not at the answer.
    pub play_after_beep: bool,
    /// Hang up this long after the answer.
    pub duration: Duration,
    /// Hang up this long after the file ended.
    pub hang_up_after_play: Option<Duration>,
    /// Damage to what is sent.
    pub odds: Odds,
    /// For damage and identifiers.
    pub seed: u64,
    /// Key presses.
    pub keys: Vec<KeyPress>,
    /// Holds.
    pub holds: Vec<Hold>,
    /// Moves to a new RTP port.
    pub port_changes: Vec<When>,
    /// Changes of the SRTP keys.
    pub rekeys: Vec<When>,
    /// Sequence number of the first packet; random when not given.
    pub first_sequence: Option<u16>,
    /// No RTP at all is sent.
    pub mute: bool,
    /// Where what was heard goes.
    pub record: Option<PathBuf>,
}

/// How a call went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Number within the run, from 1.
    pub call: usize,
    /// Call-ID.
    pub call_id: String,
    /// Final status of the INVITE; `None` when there was none.
    pub status: Option<u16>,
    /// Its reason phrase, when refused.
    pub reason: Option<String>,
    /// Warning header, when refused.
    pub warning: Option<String>,
    /// Retry-After header, when refused.
    pub retry_after: Option<String>,
    /// Provisional responses in order.
    pub progress: Vec<u16>,
    /// URIs of the redirects followed.
    pub redirects: Vec<String>,
    /// INVITE to 200.
    pub setup_ms: Option<u64>,
    /// 200 to the end.
    pub duration_ms: u64,
    /// Why it ended.
    pub ended: String,
    /// True when it was answered and ended by either side's BYE.
    pub complete: bool,
    /// Codec of the answer.
    pub codec: Option<Codec>,
    /// RTP packets heard, their payload bytes, and those missing by sequence number.
    pub rx_packets: u64,
    /// Payload bytes heard.
    pub rx_bytes: u64,
    /// Missing by sequence number.
    pub rx_lost: u64,
    /// Heard twice.
    pub rx_duplicate: u64,
    /// Heard after a later one.
    pub rx_out_of_order: u64,
    /// Datagrams that are no RTP.
    pub rx_invalid: u64,
    /// SSRCs heard.
    pub rx_sources: u64,
    /// RTCP datagrams heard.
    pub rtcp_packets: u64,
    /// Interarrival jitter heard.
    pub rx_jitter_ms: f64,
    /// RTP packets made (before damage on purpose).
    pub tx_packets: u64,
    /// Lost on purpose.
    pub tx_lost: u64,
    /// Delayed on purpose.
    pub tx_reordered: u64,
    /// Doubled on purpose.
    pub tx_duplicated: u64,
    /// Ends of the far side's beeps, after the answer.
    pub beeps_ms: Vec<u64>,
    /// Times the file was played to its end.
    pub played: u32,
    /// What became of each re-INVITE: 200 or the refusing status.
    pub changes: Vec<u16>,
    /// Offers from the far side that were taken.
    pub far_changes: u64,
    /// SRTP suite agreed on; none for plain RTP.
    pub srtp: Option<&'static str>,
    /// Packets heard (RTCP too) that no agreed key opened.
    pub srtp_auth_failed: u64,
    /// What was wrong with the far side's keys.
    pub srtp_error: Option<String>,
}

/// A planned step.
#[derive(Debug, Clone)]
enum Step {
    Keys(String),
    HoldBegins(Direction, bool),
    HoldEnds,
    NewPort,
    NewKeys,
}

/// A call under way.
struct Call<'a> {
    plan: &'a Plan,
    uac: Uac,
    pair: socket::Pair,
    /// The pair before a port change, heard until the call ends.
    old_pair: Option<socket::Pair>,
    /// A pair offered but not yet agreed on.
    new_pair: Option<socket::Pair>,
    srtp: Srtp,
    /// Our keys before a change that is not yet agreed on.
    old_crypto: Option<Crypto>,
    key_changes: u64,
    sender: Sender,
    receiver: Receiver,
    remote: Option<SocketAddr>,
    steps: Vec<(When, Step)>,
    placed: Instant,
    answered: Option<Instant>,
    next_frame: Option<Instant>,
    beeps: Vec<Instant>,
    file_ended: Option<Instant>,
    on_hold: bool,
    hanging_up: bool,
    outcome: Outcome,
}

/// Places call number `call` and stays with it to its end.
///
/// # Errors
/// Only what prevents the call from being placed, or its recording from being written.
pub fn run(plan: &Plan, call: usize) -> Result<Outcome> {
    let mut rng = Rng::new(plan.seed.wrapping_add(call as u64));
    let mut ids = Rng::new(Rng::from_environment().bits() ^ (call as u64) << 20);
    let address = local_address(plan.target.address)?;
    let pair = socket::bind_pair(address)?;
    let local = sdp::Local {
        address,
        port: pair.port,
        codecs: plan.codecs.clone(),
        dtmf: plan.dtmf_offered,
        direction: Direction::SendRecv,
        version: 1,
        null_address: false,
        crypto: plan.wishes.srtp.offer(1)?,
    };
    let mut srtp = Srtp::default();
    if !local.crypto.lines.is_empty() {
        srtp.expect_keys();
    }
    let mangler = Mangler::new(plan.odds, rng.bits());
    let mut sender = Sender::new(plan.file.to_vec(), plan.dtmf_mode, mangler, &mut ids);
    plan.first_sequence.into_iter().for_each(|sequence| sender.start_at(sequence));
    let placed = clock::now();
    let uac = Uac::place(placed, plan.target.clone(), plan.wishes.clone(), local, ids)?;
    let outcome = Outcome { call, call_id: uac.call_id().to_owned(), ..Outcome::default() };
    let mut call = Call {
        plan,
        uac,
        pair,
        old_pair: None,
        new_pair: None,
        srtp,
        old_crypto: None,
        key_changes: 0,
        sender,
        receiver: Receiver::new(),
        remote: None,
        steps: steps(plan),
        placed,
        answered: None,
        next_frame: None,
        beeps: Vec::new(),
        file_ended: None,
        on_hold: false,
        hanging_up: false,
        outcome,
    };
    call.stay();
    call.finish()
}

/// The address we have towards `peer`.
///
/// # Errors
/// There is no route.
pub fn local_address(peer: SocketAddr) -> Result<std::net::IpAddr> {
    let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let probe = std::net::UdpSocket::bind(any)?;
    probe.connect(peer)?;
    Ok(probe.local_addr()?.ip())
}

fn steps(plan: &Plan) -> Vec<(When, Step)> {
    let keys = plan.keys.iter().map(|press| (press.at, Step::Keys(press.keys.clone())));
    let begins = plan.holds.iter().map(|hold| (hold.at, Step::HoldBegins(hold.direction, hold.null_address)));
    let ends =
        plan.holds.iter().map(|hold| (When { after: hold.at.after + hold.lasts, ..hold.at }, Step::HoldEnds));
    let ports = plan.port_changes.iter().map(|at| (*at, Step::NewPort));
    let rekeys = plan.rekeys.iter().map(|at| (*at, Step::NewKeys));
    keys.chain(begins).chain(ends).chain(ports).chain(rekeys).collect()
}

impl Call<'_> {
    /// Turns until the call is over: events, plan, sound, sleep.
    fn stay(&mut self) {
        while !self.uac.is_over() {
            let now = clock::now();
            self.uac.handle_timeout(now);
            self.take_events(now);
            self.take_steps(now);
            self.send_due(now);
            self.leave_if_due(now);
            self.sleep(now);
            let now = clock::now();
            self.hear(now);
            self.uac.handle_readable(now);
        }
        self.take_events(clock::now());
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.uac.poll_event() {
            match event {
                Event::Progress(status) => self.outcome.progress.push(status),
                Event::Redirected(uri) => self.outcome.redirects.push(uri),
                Event::Answered(remote) => self.take_answer(now, remote),
                Event::Changed(remote, ours) => self.take_change(now, remote, ours),
                Event::ChangeRefused(status) => {
                    self.new_pair = None;
                    self.uac.local.port = self.pair.port;
                    if let Some(crypto) = self.old_crypto.take() {
                        self.uac.local.crypto = crypto;
                        self.srtp.keep_keys();
                    }
                    self.outcome.changes.push(status);
                }
                Event::Refused(refusal) => {
                    self.outcome.status = Some(refusal.status);
                    self.outcome.ended = format!("refused: {} {}", refusal.status, refusal.reason);
                    self.outcome.reason = Some(refusal.reason);
                    self.outcome.warning = refusal.warning;
                    self.outcome.retry_after = refusal.retry_after;
                }
                Event::Ended(why) => {
                    let sound = self.outcome.srtp_error.is_none();
                    self.outcome.complete = self.answered.is_some() && why.contains("hung up") && sound;
                    self.outcome.ended = why;
                }
            }
        }
    }

    fn take_answer(&mut self, now: Instant, remote: sdp::Remote) {
        self.outcome.status = Some(200);
        self.outcome.setup_ms = Some(millis(now - self.placed));
        self.outcome.codec = Some(remote.codec);
        self.answered = Some(now);
        self.next_frame = Some(now);
        self.agree(now, remote);
        if !self.plan.play_after_beep && !self.plan.file.is_empty() {
            self.sender.play();
        }
    }

    fn take_change(&mut self, now: Instant, remote: sdp::Remote, ours: bool) {
        if ours {
            self.outcome.changes.push(200);
            self.on_hold = self.uac.local.direction != Direction::SendRecv || self.uac.local.null_address;
            self.old_crypto = None;
            if let Some(pair) = self.new_pair.take() {
                self.old_pair = Some(std::mem::replace(&mut self.pair, pair));
            }
        } else {
            self.outcome.far_changes += 1;
        }
        self.agree(now, remote);
    }

    /// Takes what both descriptions say. Keys that do not fit end the call.
    fn agree(&mut self, now: Instant, remote: sdp::Remote) {
        self.remote = remote.rtp;
        self.sender.agree(remote.codec, remote.dtmf_payload_type.filter(|_| self.plan.dtmf_offered));
        let agreed = sdes::agree(&self.uac.local.crypto, &remote.crypto);
        match agreed.and_then(|agreed| self.srtp.agree(agreed.as_ref())) {
            Ok(early) => early.iter().for_each(|packet| self.listen(now, packet)),
            Err(error) => {
                self.outcome.srtp_error = Some(format!("{error:#}"));
                self.leave(now);
            }
        }
    }

    /// Does what the plan has for this moment.
    fn take_steps(&mut self, now: Instant) {
        let Some(answered) = self.answered else { return };
        let is_due = |when: When, beeps: &[Instant]| when.at(answered, beeps).is_some_and(|at| at <= now);
        while let Some(index) = self.steps.iter().position(|(when, _)| is_due(*when, &self.beeps)) {
            let (_, step) = self.steps.remove(index);
            match step {
                Step::Keys(keys) => keys.chars().for_each(|key| self.sender.press(key)),
                Step::HoldBegins(direction, null_address) => {
                    self.uac.local.direction = direction;
                    self.uac.local.null_address = null_address;
                    self.on_hold = true;
                    self.uac.reinvite(now);
                }
                Step::HoldEnds => {
                    self.uac.local.direction = Direction::SendRecv;
                    self.uac.local.null_address = false;
                    self.uac.reinvite(now);
                }
                Step::NewPort => {
                    if let Ok(pair) = socket::bind_pair(self.uac.local.address) {
                        self.uac.local.port = pair.port;
                        self.new_pair = Some(pair);
                        self.uac.reinvite(now);
                    }
                }
                Step::NewKeys => self.change_keys(now),
            }
        }
    }

    /// Offers new keys for what we send; the far side answers with new ones of its own.
    fn change_keys(&mut self, now: Instant) {
        self.key_changes += 1;
        match self.plan.wishes.srtp.offer(self.key_changes + 1) {
            Ok(crypto) => {
                self.old_crypto = Some(std::mem::replace(&mut self.uac.local.crypto, crypto));
                self.srtp.expect_keys();
                self.uac.reinvite(now);
            }
            Err(error) => self.outcome.srtp_error = Some(format!("{error:#}")),
        }
    }

    /// Sends every frame that is due, on absolute time.
    fn send_due(&mut self, now: Instant) {
        let Some(mut due) = self.next_frame else { return };
        if now.saturating_duration_since(due) > CATCH_UP_MAX {
            due = now;
        }
        let mut out = Vec::new();
        while due <= now {
            if self.on_hold {
                self.sender.skip();
            } else if !self.plan.mute {
                self.sender.frame(&mut out);
            }
            due += PTIME;
        }
        self.next_frame = Some(due);
        if let Some(remote) = self.remote {
            for packet in out {
                match self.srtp.protect(&packet) {
                    // A refused datagram is the far side's gone port: its BYE or our time limit follows.
                    Ok(packet) => drop(self.pair.rtp.send_to(&packet, remote)),
                    Err(error) => self.outcome.srtp_error = Some(format!("{error:#}")),
                }
            }
        }
        if self.file_ended.is_none() && self.sender.played > 0 {
            self.file_ended = Some(now);
        }
    }

    fn leave_if_due(&mut self, now: Instant) {
        let Some(answered) = self.answered else { return };
        let after_play = self.plan.hang_up_after_play.zip(self.file_ended).map(|(rest, ended)| ended + rest);
        let due =
            after_play.map_or(answered + self.plan.duration, |at| at.min(answered + self.plan.duration));
        if now >= due {
            self.leave(now);
        }
    }

    fn leave(&mut self, now: Instant) {
        if !self.hanging_up {
            self.hanging_up = true;
            self.next_frame = None;
            self.uac.hang_up(now);
        }
    }

    fn sleep(&self, now: Instant) {
        let wake = [self.next_frame, self.uac.poll_timeout(), Some(now + PTIME)].into_iter().flatten().min();
        let rest = wake.map_or(PTIME, |at| at.saturating_duration_since(now));
        let timeout = PollTimeout::try_from(rest + Duration::from_micros(999)).unwrap_or(PollTimeout::ZERO);
        let mut fds = vec![
            PollFd::new(self.uac.fd(), PollFlags::POLLIN),
            PollFd::new(self.pair.rtp.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.pair.rtcp.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.old_pair.as_ref().map(|pair| PollFd::new(pair.rtp.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.new_pair.as_ref().map(|pair| PollFd::new(pair.rtp.as_fd(), PollFlags::POLLIN)));
        // An interrupted sleep is only a shorter one.
        let _ = nix::poll::poll(&mut fds, timeout);
    }

    /// Drains the media sockets.
    fn hear(&mut self, now: Instant) {
        let mut buffer = [0; 2048];
        let pairs = [Some(&self.pair), self.old_pair.as_ref(), self.new_pair.as_ref()];
        let mut opened = Vec::new();
        for pair in pairs.into_iter().flatten() {
            while let Some((count, _)) = socket::receive(&pair.rtp, &mut buffer) {
                opened.extend(self.srtp.open(&buffer[..count]));
            }
            while let Some((count, _)) = socket::receive(&pair.rtcp, &mut buffer) {
                self.outcome.rtcp_packets += u64::from(self.srtp.opens_rtcp(&buffer[..count]));
            }
        }
        opened.iter().for_each(|packet| self.listen(now, packet));
    }

    /// One packet, open.
    fn listen(&mut self, now: Instant, packet: &[u8]) {
        if self.receiver.push(now, packet) {
            self.beeps.push(now);
            if self.plan.play_after_beep && !self.plan.file.is_empty() {
                self.sender.play();
            }
        }
    }

    /// Fills in the counters and writes the recording.
    fn finish(mut self) -> Result<Outcome> {
        let now = clock::now();
        let outcome = &mut self.outcome;
        if let Some(answered) = self.answered {
            outcome.duration_ms = millis(now - answered);
            outcome.beeps_ms = self.beeps.iter().map(|beep| millis(*beep - answered)).collect();
        }
        outcome.rx_packets = self.receiver.packets;
        outcome.rx_bytes = self.receiver.bytes;
        outcome.rx_lost = self.receiver.lost();
        outcome.rx_duplicate = self.receiver.duplicate;
        outcome.rx_out_of_order = self.receiver.out_of_order;
        outcome.rx_invalid = self.receiver.invalid;
        outcome.rx_sources = self.receiver.sources;
        outcome.rx_jitter_ms = (self.receiver.jitter_ms() * 1000.0).round() / 1000.0;
        outcome.tx_packets = self.sender.packets;
        outcome.tx_lost = self.sender.mangler.done.lost;
        outcome.tx_reordered = self.sender.mangler.done.reordered;
        outcome.tx_duplicated = self.sender.mangler.done.duplicated;
        outcome.played = self.sender.played;
        outcome.srtp = self.srtp.suite();
        outcome.srtp_auth_failed = self.srtp.auth_failed;
        if let Some(path) = &self.plan.record {
            wav::write(path, self.receiver.sound())?;
        }
        Ok(self.outcome)
    }
}

/// The sum of a run.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Calls placed.
    pub calls: usize,
    /// Answered with 200.
    pub answered: usize,
    /// Answered and ended by a BYE.
    pub complete: usize,
    /// Final statuses and how often; `0` for none.
    pub statuses: BTreeMap<u16, usize>,
    /// Packets missing in what was heard.
    pub rx_lost: u64,
    /// Median INVITE to 200.
    pub setup_p50_ms: u64,
    /// Slowest INVITE to 200.
    pub setup_max_ms: u64,
}

impl Summary {
    /// Adds up.
    pub fn of(outcomes: &[Outcome]) -> Self {
        let mut setups: Vec<u64> = outcomes.iter().filter_map(|outcome| outcome.setup_ms).collect();
        setups.sort_unstable();
        let mut statuses = BTreeMap::new();
        outcomes.iter().for_each(|o| *statuses.entry(o.status.unwrap_or(0)).or_default() += 1);
        Self {
            calls: outcomes.len(),
            answered: setups.len(),
            complete: outcomes.iter().filter(|outcome| outcome.complete).count(),
            statuses,
            rx_lost: outcomes.iter().map(|outcome| outcome.rx_lost).sum(),
            setup_p50_ms: setups.get(setups.len() / 2).copied().unwrap_or(0),
            setup_max_ms: setups.last().copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests;
