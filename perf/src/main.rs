//! `voxperf`: calls a SIP media node as a phone would and measures what comes back.
//!
//! It shares no code with the server it measures. `run` loads it with many calls, `call` is a phone with a script, `spacing` a
//! stop-watch for many streams, `handshakes` one for TLS; `inject` and `connections` are strangers
//! that mean no good. Threads and `poll`; no async runtime.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use voxperf::compare::command::CompareArgs;
use voxperf::connections::ConnectionsArgs;
use voxperf::find::command::FindArgs;
use voxperf::handshakes::HandshakesArgs;
use voxperf::inject::InjectArgs;
use voxperf::load::command::{self as load, RunArgs};
use voxperf::media::dtmf::DtmfMode;
use voxperf::media::g711::Codec;
use voxperf::media::mangle::Odds;
use voxperf::report::ReportArgs;
use voxperf::script::{Hold, KeyPress, When, seconds_of};
use voxperf::sip::sdes::{self, Suite};
use voxperf::sip::target::Target;
use voxperf::sip::tls::{TlsClient, TlsOptions};
use voxperf::sip::uac::Wishes;
use voxperf::{call, compare, connections, find, handshakes, inject, media, report, run, spacing};

/// Load generator and measuring peer for SIP media nodes.
///
/// Exit code 0: all went as it should, as every call answered and ended properly; 1: something did
/// not; 2: wrong arguments.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    voxperf call --to 'sip:1001@127.0.0.1:5060;transport=tcp' --play speech.wav --play-after-beep --hangup-after-play 0\n  \
    voxperf call --to 'sip:9196@127.0.0.1:5060;transport=tcp' --calls 20 --rate 5 --duration 10 --json\n  \
    voxperf call --to 'sip:1001@um.test:5061;transport=tls' --ca ca.pem --cert gateway.pem --key gateway.key\n  \
    voxperf call --to 'sip:9196@127.0.0.1:5060;transport=tcp' --srtp AEAD_AES_128_GCM,AES_CM_128_HMAC_SHA1_80 --rekey 2 --json\n  \
    voxperf run --target 'sip:127.0.0.1:5060;transport=tcp' --scenario echo --calls 500 --cps 100 --pid $(pidof -s voxring)\n  \
    voxperf spacing --to 'sip:9197@127.0.0.1:5060;transport=tcp' --calls 500 --seconds 30 --pid $(pidof -s voxring)"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a server with many calls in the open loop, and measure it.
    Run(Box<RunArgs>),
    /// Place calls: play, record, press keys, hold, lose packets.
    Call(Box<CallArgs>),
    /// Measure how evenly and completely many streams are sent to us.
    Spacing(Box<SpacingArgs>),
    /// Send a stranger's RTP to a port where a call is going on.
    Inject(InjectArgs),
    /// Measure what a full mutual TLS handshake costs the server, beside rustls alone.
    Handshakes(Box<HandshakesArgs>),
    /// Hold many connections, idle or with an unfinished TLS handshake.
    Connections(Box<ConnectionsArgs>),
    /// Search for the highest load that keeps to limits, and say what bound it.
    ///
    /// Doubles the load until a limit is missed, halves to within 5 %, repeats both sides, all within
    /// --budget. The result is a ceiling only where the server missed a limit while we were in time;
    /// everything else is called a floor. Name the server's --pid: without it nothing is known of its
    /// CPU, which is then never named as what bound the result.
    Find(Box<FindArgs>),
    /// Compare the server's cost for a packet with another's, in alternating rounds.
    Compare(Box<CompareArgs>),
    /// Draw saved reports as one HTML file.
    Report(ReportArgs),
}

/// How calls are placed.
#[derive(Debug, Args)]
struct Placing {
    /// Who to call: sip:USER@HOST[:PORT][;transport=tcp|udp|tls]. Redirects (3xx) are followed.
    #[arg(long, value_name = "URI")]
    to: Destination,
    /// User part of From.
    #[arg(long, default_value = "voxperf", value_name = "USER")]
    from: String,
    /// A further header of the INVITE, as in 'Diversion: <sip:1002@x>;reason=no-answer'. Repeatable.
    #[arg(long = "header", value_name = "LINE")]
    headers: Vec<String>,
    /// Ask for session timers (RFC 4028) with this interval in seconds.
    #[arg(long, value_name = "S")]
    session_expires: Option<u32>,
    /// Give up a call that is not answered after this many seconds.
    #[arg(long, default_value = "32", value_parser = seconds_of, value_name = "S")]
    patience: Duration,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Offer SRTP (RTP/SAVP) with a new key for each of these suites: AEAD_AES_128_GCM,
    /// AEAD_AES_256_GCM, AES_CM_128_HMAC_SHA1_80, AES_CM_128_HMAC_SHA1_32.
    #[arg(long, value_delimiter = ',', value_name = "SUITE")]
    srtp: Vec<Suite>,
    /// Offer the keys as RTP/AVP: plain RTP will do.
    #[arg(long, requires = "srtp")]
    srtp_optional: bool,
    /// Name our keys by an MKI of 4 bytes, carried in each packet.
    #[arg(long, requires = "srtp")]
    mki: bool,
    #[command(flatten)]
    tls: TlsOptions,
}

impl Placing {
    fn wishes(&self, offer: bool) -> Result<Wishes> {
        Ok(Wishes {
            from: self.from.clone(),
            headers: self.headers.clone(),
            offer,
            session_expires_s: self.session_expires,
            patience: self.patience,
            tls: TlsClient::load(&self.tls)?,
            srtp: sdes::Wish { suites: self.srtp.clone(), optional: self.srtp_optional, mki: self.mki },
        })
    }
}

#[derive(Debug, Clone)]
struct Destination(Target);

impl std::str::FromStr for Destination {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Target::parse(text).map(Self)
    }
}

#[derive(Debug, Args)]
struct CallArgs {
    #[command(flatten)]
    placing: Placing,
    /// Calls to place.
    #[arg(long, default_value_t = 1, value_name = "N")]
    calls: usize,
    /// Calls a second.
    #[arg(long, default_value_t = 10.0, value_name = "R")]
    rate: f64,
    /// Play this WAV (8 kHz, 16-bit, mono) from the answer on; silence before and after.
    #[arg(long, value_name = "FILE")]
    play: Option<PathBuf>,
    /// Start the WAV at the end of the far side's 1000 Hz beep, anew at each beep.
    #[arg(long, requires = "play")]
    play_after_beep: bool,
    /// Hang up this many seconds after the answer.
    #[arg(long, default_value = "10", value_parser = seconds_of, value_name = "S")]
    duration: Duration,
    /// Hang up this many seconds after the WAV ended, if that is sooner.
    #[arg(long, value_parser = seconds_of, value_name = "S", requires = "play")]
    hangup_after_play: Option<Duration>,
    /// Lose this share of the packets sent, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    loss: f64,
    /// Send this share of the packets after their successor.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    reorder: f64,
    /// Send this share of the packets twice.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    duplicate: f64,
    /// Seed of loss, reorder and duplicate; the same seed harms the same packets.
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
    /// Press keys: TIME:KEYS, comma separated. TIME is seconds after the answer (8.0) or after the
    /// end of a beep (beep+2, beep2+0.5).
    #[arg(long, value_delimiter = ',', value_name = "TIME:KEYS")]
    dtmf: Vec<KeyPress>,
    /// How keys travel.
    #[arg(long, value_enum, default_value_t = DtmfMode::Rfc4733)]
    dtmf_mode: DtmfMode,
    /// Hold by re-INVITE: AT:FOR[:sendonly|inactive|null], comma separated; AT as in --dtmf.
    #[arg(long, value_delimiter = ',', value_name = "AT:FOR")]
    hold: Vec<Hold>,
    /// Move to another RTP port by re-INVITE at these times, as in --dtmf.
    #[arg(long, value_delimiter = ',', value_name = "AT")]
    port_change: Vec<When>,
    /// Change the SRTP keys by re-INVITE at these times, as in --dtmf.
    #[arg(long, value_delimiter = ',', value_name = "AT", requires = "srtp")]
    rekey: Vec<When>,
    /// Sequence number of the first packet (default: random); 65500 lets it wrap after 0.7 s.
    #[arg(long, value_name = "N")]
    first_sequence: Option<u16>,
    /// Write what was heard to this WAV; with more calls than one, OUT-1.wav, OUT-2.wav ...
    #[arg(long, value_name = "OUT.wav")]
    record: Option<PathBuf>,
    /// Do not offer telephone-event.
    #[arg(long)]
    no_pt101: bool,
    /// INVITE without an offer; our answer goes with the ACK.
    #[arg(long)]
    no_offer: bool,
    /// Send no RTP at all.
    #[arg(long)]
    mute: bool,
    /// Codecs offered, in order of preference.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pcmu,pcma")]
    codec: Vec<Codec>,
}

#[derive(Debug, Args)]
struct SpacingArgs {
    #[command(flatten)]
    placing: Placing,
    /// Calls at once.
    #[arg(long, default_value_t = 500, value_name = "N")]
    calls: usize,
    /// Calls a second during set-up.
    #[arg(long, default_value_t = 50.0, value_name = "R")]
    rate: f64,
    /// Measure for this long once all calls are up.
    #[arg(long, default_value = "30", value_parser = seconds_of, value_name = "S")]
    seconds: Duration,
    /// Send silence to the far side meanwhile, as a phone would.
    #[arg(long)]
    send: bool,
    /// Report the processor time of this process. Repeatable.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => load::run(&args),
        Command::Call(args) => run_call(*args),
        Command::Spacing(args) => run_spacing(*args),
        Command::Inject(args) => inject::run(&args),
        Command::Handshakes(args) => handshakes::run(&args),
        Command::Connections(args) => connections::run(&args),
        Command::Find(args) => find::command::run(&args),
        Command::Compare(args) => compare::command::run(&args),
        Command::Report(args) => report::report(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("voxperf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_call(args: CallArgs) -> Result<bool> {
    for (name, odds) in [("loss", args.loss), ("reorder", args.reorder), ("duplicate", args.duplicate)] {
        ensure!((0.0..=1.0).contains(&odds), "--{name} is a probability from 0 to 1, not {odds}");
    }
    let file = args.play.as_deref().map(media::wav::read).transpose()?.unwrap_or_default();
    let plan = call::Plan {
        wishes: args.placing.wishes(!args.no_offer)?,
        target: args.placing.to.0,
        codecs: args.codec,
        dtmf_offered: !args.no_pt101,
        dtmf_mode: args.dtmf_mode,
        file: Arc::new(file),
        play_after_beep: args.play_after_beep,
        duration: args.duration,
        hang_up_after_play: args.hangup_after_play,
        odds: Odds { loss: args.loss, reorder: args.reorder, duplicate: args.duplicate },
        seed: args.seed,
        keys: args.dtmf,
        holds: args.hold,
        port_changes: args.port_change,
        rekeys: args.rekey,
        first_sequence: args.first_sequence,
        mute: args.mute,
        record: args.record,
    };
    run::run(plan, args.calls, args.rate, args.placing.json)
}

fn run_spacing(args: SpacingArgs) -> Result<bool> {
    ensure!(args.rate > 0.0, "--rate must be above 0");
    let plan = spacing::Plan {
        wishes: args.placing.wishes(true)?,
        target: args.placing.to.0,
        calls: args.calls,
        rate: args.rate,
        measured: args.seconds,
        send: args.send,
        pids: args.pids,
    };
    spacing::run(&plan, args.placing.json)
}
