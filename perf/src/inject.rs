//! `voxperf inject`: a stranger that sends valid-looking RTP to a port where a call is going on.
//!
//! What it says is a loud 1000 Hz tone: a recording that holds it has taken a stranger's word.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::media::g711::Codec;
use crate::media::packet::{self, Header};
use crate::rng::Rng;
use crate::script::seconds_of;
use crate::{clock, machine};

/// Samples in a packet: 20 ms.
const FRAME: u32 = 160;
/// Peak of the tone, of 32767.
const LOUD: f64 = 24_000.0;

/// What is sent where.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example, while a call is up whose far side listens on 127.0.0.1:40000:\n  \
    voxperf inject --target 127.0.0.1:40000 --seconds 2 --rate 50 --json\n  \
    voxperf inject --target 127.0.0.1:40000 --seconds 2 --rate 500 --ssrc 7 --source-address 127.0.0.9")]
pub struct InjectArgs {
    /// The RTP port; only on this machine or in a network namespace of ours.
    #[arg(long, value_name = "IP:PORT")]
    target: SocketAddr,
    /// Stop after this long, at most 600.
    #[arg(long, default_value = "2", value_parser = seconds_of, value_name = "S")]
    seconds: Duration,
    /// Packets a second.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "PPS")]
    rate: u32,
    /// Payload type.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=127), value_name = "N")]
    pt: u8,
    /// SSRC; a random one otherwise.
    #[arg(long, value_name = "N")]
    ssrc: Option<u32>,
    /// First sequence number; a random one otherwise.
    #[arg(long, value_name = "N")]
    sequence: Option<u16>,
    /// Send from this port; a free one otherwise.
    #[arg(long, default_value_t = 0, value_name = "P")]
    source_port: u16,
    /// Send from this address of ours, as in 127.0.0.9.
    #[arg(long, value_name = "IP")]
    source_address: Option<IpAddr>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    target: SocketAddr,
    source: SocketAddr,
    ssrc: u32,
    sent: u64,
    /// Sends the kernel refused: nobody listens there (any more).
    refused: u64,
}

/// Sends and prints the count.
///
/// # Errors
/// The target is not ours, or nothing can be sent from the source asked for.
pub fn run(args: &InjectArgs) -> Result<bool> {
    let report = inject(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "sent {} packets from {} to {} as SSRC {}; {} refused",
            report.sent, report.source, report.target, report.ssrc, report.refused
        );
    }
    Ok(true)
}

fn inject(args: &InjectArgs) -> Result<Report> {
    machine::ensure_own(args.target.ip())?;
    ensure!(args.seconds <= Duration::from_secs(600), "--seconds is at most 600");
    let any = if args.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let from = SocketAddr::new(args.source_address.unwrap_or(any), args.source_port);
    let socket = UdpSocket::bind(from).with_context(|| format!("cannot send from {from}"))?;
    socket.connect(args.target).with_context(|| format!("no way to {}", args.target))?;
    let mut rng = Rng::from_environment();
    let mut header = Header {
        marker: true,
        payload_type: args.pt,
        sequence: args.sequence.unwrap_or_else(|| rng.half()),
        timestamp: rng.word(),
        ssrc: args.ssrc.unwrap_or_else(|| rng.word()),
    };
    let source = socket.local_addr()?;
    let mut report = Report { target: args.target, source, ssrc: header.ssrc, sent: 0, refused: 0 };
    let start = clock::now();
    for number in 0u32.. {
        let offset = Duration::from_secs(1) * number / args.rate;
        if offset >= args.seconds {
            break;
        }
        std::thread::sleep((start + offset).saturating_duration_since(clock::now()));
        match socket.send(&packet::build(&header, &tone(number.wrapping_mul(FRAME)))) {
            Ok(_) => report.sent += 1,
            Err(_) => report.refused += 1,
        }
        header.marker = false;
        header.sequence = header.sequence.wrapping_add(1);
        header.timestamp = header.timestamp.wrapping_add(FRAME);
    }
    Ok(report)
}

/// 20 ms of 1000 Hz from sample `at` on, µ-law.
#[expect(clippy::cast_possible_truncation, reason = "the peak is below i16::MAX")]
fn tone(at: u32) -> Vec<u8> {
    // The period is 8 samples: the phase fits whatever `at` is.
    let sample = |n: u32| LOUD * (std::f64::consts::TAU * f64::from(n % 8) / 8.0).sin();
    (at..at.saturating_add(FRAME)).map(|n| Codec::Pcmu.encode(sample(n) as i16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::beep::purity;

    fn args(target: SocketAddr) -> InjectArgs {
        InjectArgs {
            target,
            seconds: Duration::from_millis(100),
            rate: 200,
            pt: 0,
            ssrc: Some(77),
            sequence: Some(65_535),
            source_port: 0,
            source_address: Some(IpAddr::from([127, 0, 0, 9])),
            json: false,
        }
    }

    /// Goal: what arrives is RTP as a phone would send it, saying 1000 Hz, as often as asked.
    /// Method: 100 ms at 200 a second from 127.0.0.9: twenty packets, read back.
    #[test]
    fn a_stranger_sends_a_pure_tone_in_valid_rtp() {
        let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
        let report = inject(&args(ear.local_addr().unwrap())).unwrap();
        assert_eq!((report.sent, report.refused, report.source.ip()), (20, 0, [127, 0, 0, 9].into()));
        let (mut buffer, mut sound) = ([0; 2048], Vec::new());
        for number in 0..20u16 {
            let (count, from) = ear.recv_from(&mut buffer).unwrap();
            let (header, payload) = packet::parse(&buffer[..count]).unwrap();
            assert_eq!((from, header.ssrc, header.payload_type), (report.source, 77, 0));
            assert_eq!(header.sequence, 65_535u16.wrapping_add(number));
            sound.extend(payload.iter().map(|&byte| Codec::Pcmu.decode(byte)));
        }
        assert!(purity(&sound, 1000.0) > 0.99 && sound.iter().any(|&sample| sample > 20_000));
    }

    /// Goal: only our own machine is ever a target.
    /// Method: a documentation address (RFC 5737).
    #[test]
    fn a_foreign_target_is_refused() {
        let error = inject(&args("192.0.2.1:40000".parse().unwrap())).unwrap_err();
        assert!(error.to_string().contains("not ours"), "{error}");
    }
}
