//! `voxperf spacing`: how evenly the far side sends, seen by the kernel that receives.
//!
//! Every datagram carries the kernel's receive timestamp, so our own scheduling does not count.
//! On loopback that instant is the instant of the send. SRTP is not opened: sequence numbers are in
//! the clear.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

use crate::call::local_address;
use crate::load::media::batch::Incoming;
use crate::media::g711::Codec;
use crate::media::srtp::Srtp;
use crate::media::{packet, socket};
use crate::rng::Rng;
use crate::sip::sdes;
use crate::sip::sdp::{self, Direction};
use crate::sip::target::Target;
use crate::sip::uac::{Event, Uac, Wishes};
use crate::{clock, machine};

/// Between two drains of all sockets; each then holds one packet, its buffer hundreds.
const TURN: Duration = Duration::from_millis(20);
/// Calls being set up at once.
const PLACERS: usize = 8;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who is called; should send sound without end.
    pub target: Target,
    /// Calls at once.
    pub calls: usize,
    /// Calls a second during set-up.
    pub rate: f64,
    /// Length of the measurement, once all calls are up.
    pub measured: Duration,
    /// Send silence too.
    pub send: bool,
    /// Processes whose processor time is reported.
    pub pids: Vec<u32>,
    /// How calls are placed.
    pub wishes: Wishes,
}

/// An answered call and its ear.
struct Session {
    uac: Uac,
    pair: socket::Pair,
    remote: sdp::Remote,
    srtp: Srtp,
    tally: Tally,
    sequence: u16,
}

/// One call's count within the measurement.
#[derive(Debug, Clone, Default)]
struct Tally {
    packets: u64,
    first: Option<u64>,
    highest: u64,
    last_arrival: Option<Duration>,
    spacing_max: Duration,
}

/// The result.
#[derive(Debug, Serialize)]
pub struct Report {
    conditions: String,
    calls: usize,
    answered: usize,
    refused: BTreeMap<String, usize>,
    measured_s: f64,
    packets: u64,
    expected: u64,
    /// Missing by sequence number, receiver drops included.
    lost: u64,
    calls_with_loss: usize,
    /// Datagrams our own sockets dropped meanwhile.
    dropped_by_receiver: u64,
    /// Growth of the machine's UDP `RcvbufErrors`.
    rcvbuf_errors: u64,
    spacing_p50_us: u64,
    spacing_p99_us: u64,
    spacing_p999_us: u64,
    spacing_min_us: u64,
    spacing_max_us: u64,
    /// Largest spacing of each call: the median and the worst call.
    call_max_p50_us: u64,
    call_max_max_us: u64,
    ended_early: usize,
    setup_s: f64,
    cpu: Vec<Cpu>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    pid: u32,
    seconds: f64,
    percent_of_one: f64,
}

/// Runs the measurement and prints it. False when packets were lost or calls missing.
///
/// # Errors
/// No call could be placed, or a given process does not exist.
pub fn run(plan: &Plan, json: bool) -> Result<bool> {
    let start = clock::now();
    let bar = crate::run::progress(plan.calls as u64, json);
    let (mut sessions, refused) = place_all(plan, &bar)?;
    ensure!(!sessions.is_empty(), "no call was answered: {refused:?}");
    let setup = start.elapsed();
    bar.set_message("measuring");
    let cpu_before = cpu(&plan.pids)?;
    let ports: Vec<u16> = sessions.iter().map(|session| session.pair.port).collect();
    let drops_before = machine::udp_drops(&ports);
    let errors_before = machine::udp_receive_buffer_errors();
    let measured_from = clock::now();
    let histogram = measure(plan, &mut sessions)?;
    let measured = measured_from.elapsed();
    let rcvbuf_errors = machine::udp_receive_buffer_errors() - errors_before;
    let cpu_after = cpu(&plan.pids)?;
    bar.finish_and_clear();
    let ended_early = sessions.iter().filter(|session| session.uac.is_over()).count();
    let mut report = summarise(plan, &sessions, &histogram);
    report.refused = refused;
    report.measured_s = measured.as_secs_f64();
    report.setup_s = setup.as_secs_f64();
    report.rcvbuf_errors = rcvbuf_errors;
    report.dropped_by_receiver = machine::udp_drops(&ports).saturating_sub(drops_before);
    report.ended_early = ended_early;
    report.cpu = plan
        .pids
        .iter()
        .zip(cpu_before.iter().zip(&cpu_after))
        .map(|(&pid, (before, after))| {
            let seconds = after.saturating_sub(*before).as_secs_f64();
            Cpu { pid, seconds, percent_of_one: 100.0 * seconds / measured.as_secs_f64() }
        })
        .collect();
    print(&report, json)?;
    leave(sessions);
    Ok(report.lost == 0 && report.answered == plan.calls && ended_early == 0)
}

fn cpu(pids: &[u32]) -> Result<Vec<Duration>> {
    pids.iter().map(|&pid| machine::cpu_time(pid)).collect()
}

/// Places the calls from a few threads, while another keeps the answered ones drained.
fn place_all(plan: &Plan, bar: &indicatif::ProgressBar) -> Result<(Vec<Session>, BTreeMap<String, usize>)> {
    let (done, results) = mpsc::channel();
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let start = clock::now();
    let mut sessions = Vec::with_capacity(plan.calls);
    let mut refused = BTreeMap::new();
    std::thread::scope(|scope| {
        for _ in 0..PLACERS {
            let (done, next, stop) = (done.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= plan.calls {
                        return;
                    }
                    let number = u32::try_from(index).unwrap_or(u32::MAX);
                    let due = start + Duration::from_secs_f64(f64::from(number) / plan.rate);
                    std::thread::sleep(due.saturating_duration_since(clock::now()));
                    drop(done.send(place(plan, index)));
                }
            });
        }
        drop(done);
        let mut incoming = Incoming::new();
        loop {
            match results.recv_timeout(TURN) {
                Ok(Ok(session)) => sessions.push(session),
                Ok(Err(error)) => *refused.entry(format!("{error:#}")).or_default() += 1,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            bar.set_position(sessions.len() as u64);
            attend(&mut sessions, clock::now());
            for session in &mut sessions {
                incoming.drain(&session.pair.rtp, usize::MAX, |_, _, _| {});
            }
        }
    });
    Ok((sessions, refused))
}

/// One call, up to its answer.
fn place(plan: &Plan, index: usize) -> Result<Session> {
    let address = local_address(plan.target.address)?;
    let pair = socket::bind_pair(address)?;
    ask_for_stamps(&pair.rtp)?;
    let mut ids = Rng::new(Rng::from_environment().bits() ^ (index as u64) << 20);
    let local = sdp::Local {
        address,
        port: pair.port,
        codecs: vec![Codec::Pcmu, Codec::Pcma],
        dtmf: true,
        direction: Direction::SendRecv,
        version: 1,
        null_address: false,
        crypto: plan.wishes.srtp.offer(1)?,
    };
    let sequence = ids.half();
    let mut uac = Uac::place(clock::now(), plan.target.clone(), plan.wishes.clone(), local, ids)?;
    loop {
        let now = clock::now();
        uac.handle_timeout(now);
        while let Some(event) = uac.poll_event() {
            match event {
                Event::Answered(remote) => {
                    let mut srtp = Srtp::default();
                    srtp.agree(sdes::agree(&uac.local.crypto, &remote.crypto)?.as_ref())?;
                    return Ok(Session { uac, pair, remote, srtp, tally: Tally::default(), sequence });
                }
                Event::Refused(refusal) => anyhow::bail!("{} {}", refusal.status, refusal.reason),
                Event::Ended(why) => anyhow::bail!("{why}"),
                Event::Progress(_) | Event::Redirected(_) | Event::Changed(..) | Event::ChangeRefused(_) => {}
            }
        }
        let mut fds = [PollFd::new(uac.fd(), PollFlags::POLLIN)];
        // An interrupted wait is only a shorter one.
        let _ = nix::poll::poll(&mut fds, PollTimeout::from(20u8));
        uac.handle_readable(clock::now());
    }
}

fn ask_for_stamps(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, sockopt::ReceiveTimestampns, &true).context("SO_TIMESTAMPNS")
}

/// Answers what the far side asks on signalling.
fn attend(sessions: &mut [Session], now: Instant) {
    for session in sessions.iter_mut().filter(|session| !session.uac.is_over()) {
        session.uac.handle_readable(now);
        session.uac.handle_timeout(now);
        while session.uac.poll_event().is_some() {}
    }
}

/// Drains every socket each turn until the time is over.
fn measure(plan: &Plan, sessions: &mut [Session]) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let mut incoming = Incoming::new();
    // What arrived before the window opens is thrown away.
    let from = clock::calendar() + TURN;
    let until = from + plan.measured;
    let start = clock::now();
    for turn in 1u32.. {
        std::thread::sleep((start + TURN * turn).saturating_duration_since(clock::now()));
        for session in sessions.iter_mut() {
            let tally = &mut session.tally;
            incoming.drain(&session.pair.rtp, usize::MAX, |arrival, _, datagram| {
                if (from..until).contains(&arrival) {
                    tally.count(arrival, datagram, &mut histogram);
                }
            });
            if plan.send {
                session.send_silence(turn);
            }
        }
        if turn % 10 == 0 {
            attend(sessions, clock::now());
        }
        if clock::calendar() > until + TURN {
            break;
        }
    }
    Ok(histogram)
}

impl Session {
    fn send_silence(&mut self, turn: u32) {
        let Some(to) = self.remote.rtp else { return };
        self.sequence = self.sequence.wrapping_add(1);
        let header = packet::Header {
            marker: false,
            payload_type: self.remote.codec.payload_type(),
            sequence: self.sequence,
            timestamp: turn.wrapping_mul(160),
            ssrc: u32::from(self.pair.port),
        };
        let silence = [self.remote.codec.encode(0); 160];
        if let Ok(packet) = self.srtp.protect(&packet::build(&header, &silence)) {
            // A refused datagram shows in the far side's statistics.
            let _ = self.pair.rtp.send_to(&packet, to);
        }
    }
}

impl Tally {
    fn count(&mut self, arrival: Duration, datagram: &[u8], histogram: &mut Histogram<u64>) {
        let Some((header, _)) = packet::parse(datagram) else { return };
        let start = u64::from(header.sequence) + 65_536;
        let low = u16::try_from(self.highest & 0xFFFF).unwrap_or(0);
        let step = i64::from(header.sequence.wrapping_sub(low).cast_signed());
        let extended = if self.first.is_some() { self.highest.saturating_add_signed(step) } else { start };
        self.first = Some(self.first.map_or(extended, |first| first.min(extended)));
        self.highest = self.highest.max(extended);
        self.packets += 1;
        if let Some(last) = self.last_arrival {
            let spacing = arrival.saturating_sub(last);
            self.spacing_max = self.spacing_max.max(spacing);
            histogram.saturating_record(micros(spacing).max(1));
        }
        self.last_arrival = Some(arrival);
    }

    fn expected(&self) -> u64 {
        self.first.map_or(0, |first| self.highest - first + 1)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn summarise(plan: &Plan, sessions: &[Session], histogram: &Histogram<u64>) -> Report {
    let tallies = || sessions.iter().map(|session| &session.tally);
    let (packets, expected) =
        (tallies().map(|t| t.packets).sum(), tallies().map(Tally::expected).sum::<u64>());
    let mut worst: Vec<u64> = tallies().map(|tally| micros(tally.spacing_max)).collect();
    worst.sort_unstable();
    Report {
        conditions: machine::describe(),
        calls: plan.calls,
        answered: sessions.len(),
        refused: BTreeMap::new(),
        measured_s: 0.0,
        packets,
        expected,
        lost: expected.saturating_sub(packets),
        calls_with_loss: tallies().filter(|tally| tally.packets < tally.expected()).count(),
        dropped_by_receiver: 0,
        rcvbuf_errors: 0,
        spacing_p50_us: histogram.value_at_quantile(0.5),
        spacing_p99_us: histogram.value_at_quantile(0.99),
        spacing_p999_us: histogram.value_at_quantile(0.999),
        spacing_min_us: histogram.min(),
        spacing_max_us: histogram.max(),
        call_max_p50_us: worst.get(worst.len() / 2).copied().unwrap_or(0),
        call_max_max_us: worst.last().copied().unwrap_or(0),
        ended_early: 0,
        setup_s: 0.0,
        cpu: Vec::new(),
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!("{}", report.conditions);
    println!(
        "{} of {} calls answered in {:.1} s, measured {:.1} s; {} ended early",
        report.answered, report.calls, report.setup_s, report.measured_s, report.ended_early
    );
    report.refused.iter().for_each(|(why, count)| println!("  {count} times: {why}"));
    println!(
        "packets {} of {} expected, lost {} (in {} calls); of these dropped by our own sockets {}, machine's RcvbufErrors {}",
        report.packets,
        report.expected,
        report.lost,
        report.calls_with_loss,
        report.dropped_by_receiver,
        report.rcvbuf_errors
    );
    println!(
        "spacing: p50 {} us, p99 {} us, p99.9 {} us, min {} us, max {} us; worst of a call: median {} us",
        report.spacing_p50_us,
        report.spacing_p99_us,
        report.spacing_p999_us,
        report.spacing_min_us,
        report.spacing_max_us,
        report.call_max_p50_us
    );
    for cpu in &report.cpu {
        println!(
            "process {}: {:.2} s of processor time, {:.1} % of one",
            cpu.pid, cpu.seconds, cpu.percent_of_one
        );
    }
    Ok(())
}

/// Hangs up everywhere and waits a moment for the answers.
fn leave(mut sessions: Vec<Session>) {
    let start = clock::now();
    sessions.iter_mut().for_each(|session| session.uac.hang_up(clock::now()));
    while start.elapsed() < Duration::from_secs(5) && sessions.iter().any(|session| !session.uac.is_over()) {
        attend(&mut sessions, clock::now());
        std::thread::sleep(TURN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: gaps and spacing are counted over the wrap of the sequence number.
    /// Method: 65535, 0, 2 at 0, 20 and 65 ms: one lost, spacings 20 and 45 ms.
    #[test]
    fn gaps_and_spacing_are_counted_over_the_wrap() {
        let mut tally = Tally::default();
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).unwrap();
        for (sequence, at_ms) in [(65_535u16, 0), (0, 20), (2, 65)] {
            let header = packet::Header { marker: false, payload_type: 0, sequence, timestamp: 0, ssrc: 1 };
            let datagram = packet::build(&header, &[0; 160]);
            tally.count(Duration::from_millis(1000 + at_ms), &datagram, &mut histogram);
        }
        assert_eq!((tally.packets, tally.expected()), (3, 4));
        assert_eq!(tally.spacing_max, Duration::from_millis(45));
        assert_eq!(histogram.len(), 2);
    }
}
