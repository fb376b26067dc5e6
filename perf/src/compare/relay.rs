//! A round on anything that hands out ports: the load's own media engine, without SIP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::contestant::Round;
use crate::load::honesty::{Load, bottleneck};
use crate::load::media::book::{Hears, Stream};
use crate::load::media::engine::{Engine, Measured};
use crate::load::media::socket::MediaSocket;
use crate::load::result::{Distribution, Generator};
use crate::{clock, machine};

/// Streams that share a socket of ours.
const STREAMS_PER_SOCKET: usize = 128;

/// Unmeasured time before the window: relays learn where packets come from, caches warm up.
const LEAD: Duration = Duration::from_secs(4);

/// What a relay does with a call's two legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// What one leg sends the other hears.
    Relay,
    /// The server sends to the first leg; there is no second.
    Playout,
    /// The first leg sends and hears nothing; there is no second.
    Record,
}

/// Something that hands out ports for calls.
pub trait Relay {
    /// Sets calls up. `legs`: where each call's two legs receive, and send from. Gives where each
    /// leg's packets go, and come from.
    ///
    /// # Errors
    /// A call is refused.
    fn set_up(&mut self, legs: &[[SocketAddr; 2]]) -> Result<Vec<[SocketAddr; 2]>>;

    /// The process whose time counts.
    fn pid(&self) -> u32;

    /// Ends all calls.
    ///
    /// # Errors
    /// One cannot be ended.
    fn tear_down(&mut self) -> Result<()>;
}

/// One round on a relay.
///
/// # Errors
/// Calls cannot be set up, or the relay is gone.
pub fn round(
    relay: &mut dyn Relay,
    traffic: Traffic,
    (calls, window, seed): (usize, Duration, u64),
) -> Result<Round> {
    ensure!(calls > 0, "no calls to compare with");
    let per_leg = calls.div_ceil(STREAMS_PER_SOCKET);
    // A relay may take two legs with one address for one: legs are on sockets of their own.
    let sockets = (0..per_leg * 2).map(|_| MediaSocket::bind(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let sockets: Vec<MediaSocket> = sockets.collect::<Result<_>>()?;
    let place = |call: usize, leg: usize| call / STREAMS_PER_SOCKET * 2 + leg;
    let address = |socket: usize| {
        let port = sockets.get(socket).map_or(0, MediaSocket::port);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    };
    let ours: Vec<[SocketAddr; 2]> =
        (0..calls).map(|call| [address(place(call, 0)), address(place(call, 1))]).collect();
    let theirs = relay.set_up(&ours)?;
    ensure!(theirs.len() == calls, "{} of {calls} calls were set up", theirs.len());
    let mut engine = Engine::new(sockets, seed)?;
    for (call, legs) in theirs.iter().enumerate() {
        open(&mut engine, traffic, call, [place(call, 0), place(call, 1)], *legs)?;
    }
    let measured = measure(&mut engine, relay.pid(), window);
    relay.tear_down()?;
    let (measured, spent) = measured?;
    Ok(conclude(&measured, traffic, spent))
}

/// Opens the streams of one call.
fn open(
    engine: &mut Engine,
    traffic: Traffic,
    call: usize,
    sockets: [usize; 2],
    remote: [SocketAddr; 2],
) -> Result<()> {
    let first = u32::try_from(call * 2).context("too many calls")?;
    let stream = |leg: usize, sends: bool, hears: Hears| Stream {
        socket: sockets[leg],
        remote: remote[leg],
        sends,
        hears,
        payload_type: 0,
        keys: None,
        up_since: clock::calendar(),
    };
    match traffic {
        Traffic::Relay => {
            engine.open(first, stream(0, true, Hears::FramesOf(first + 1)))?;
            engine.open(first + 1, stream(1, true, Hears::FramesOf(first)))
        }
        Traffic::Playout => engine.open(first, stream(0, false, Hears::Sound)),
        Traffic::Record => engine.open(first, stream(0, true, Hears::Nothing)),
    }
}

/// Runs the engine here while another thread reads the server's time at both ends of the window.
fn measure(engine: &mut Engine, pid: u32, window: Duration) -> Result<(Measured, Duration)> {
    let errors = machine::udp_receive_buffer_errors();
    let (measured, spent) = std::thread::scope(|scope| {
        let watch = scope.spawn(move || -> Result<Duration> {
            std::thread::sleep(LEAD);
            let before = machine::thread_time(pid, "")?;
            std::thread::sleep(window);
            Ok(machine::thread_time(pid, "")?.since(before).total)
        });
        let measured = engine.measure(LEAD, window);
        (measured, watch.join())
    });
    let spent = spent.map_err(|_| anyhow::anyhow!("the server's time could not be read"))?;
    let mut measured = measured?;
    measured.packets.receive_buffer_errors = machine::udp_receive_buffer_errors().saturating_sub(errors);
    Ok((measured, spent?))
}

fn conclude(measured: &Measured, traffic: Traffic, spent: Duration) -> Round {
    let cpu_us = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
    let mut packets = measured.packets.clone();
    if traffic == Traffic::Record {
        // Nothing comes back: what the server did not read shows in the kernel alone.
        (packets.expected, packets.lost) = (packets.sent, packets.receive_buffer_errors);
        packets.received = packets.sent.saturating_sub(packets.lost);
    }
    let load =
        Load { frames: packets.sent, calls: 0, dropped: packets.dropped_by_us, refused: packets.not_sent };
    let percent = 100.0 * measured.thread_time.as_secs_f64() / measured.length.as_secs_f64().max(1e-9);
    let mut generator = Generator {
        cpu_percent: [("media".to_owned(), percent)].into(),
        busiest_percent: percent,
        send_lateness: Distribution::of(&measured.lateness),
        late_frames: measured.late_frames,
        ..Generator::default()
    };
    generator.bottleneck = bottleneck(&generator, load);
    Round {
        cpu_us,
        media_us: cpu_us,
        handled: packets.received,
        refused: 0,
        packets,
        added: Distribution::of(&measured.added),
        spacing: Distribution::of(&measured.spacing),
        generator,
    }
}
