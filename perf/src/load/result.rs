//! What one run measured. All times are microseconds unless a name says otherwise.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::load::life::Life;

/// Percentiles every distribution is reported by.
const QUANTILES: [f64; 12] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];

/// What the calls of a run do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// The server plays; we listen.
    Playout,
    /// The server sends each packet back.
    Echo,
    /// We talk; the server records.
    Record,
    /// The server joins our two phones.
    Anchor,
    /// Calls are set up and ended at once; no media to speak of.
    Signalling,
    /// Some of each.
    Mixed,
    /// Calls in all phases that come and go, two-way; some are abandoned. About --cps times --hold at once.
    Life,
}

/// Where and on what a number was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Processor model.
    pub processor: String,
    /// Its microcode's revision; empty where the kernel does not tell.
    #[serde(default)]
    pub microcode: String,
    /// The machine is a guest: neighbours may take time from it.
    #[serde(default)]
    pub virtual_machine: bool,
    /// Processors this process may use.
    pub processors: usize,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Sysctls that matter to UDP, by name.
    pub sysctls: BTreeMap<String, String>,
    /// Version of voxperf.
    pub voxperf: String,
    /// voxperf was built with optimisation.
    pub optimised: bool,
    /// What the server calls itself (the Server field of its responses).
    pub server: String,
    /// When the run began, seconds since 1970.
    pub began_unix_s: u64,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The scenario.
    pub scenario: Scenario,
    /// The URI called.
    pub target: String,
    /// Calls at once; for [`Scenario::Signalling`] those under way are whatever the rate makes.
    pub calls: usize,
    /// New calls a second.
    pub cps: f64,
    /// Length of the measured window, seconds.
    pub duration_s: f64,
    /// Seed of arrivals and phases.
    pub seed: u64,
    /// SRTP suite, if any.
    pub srtp: Option<String>,
    /// RTCP is sent and read.
    pub rtcp: bool,
}

/// A distribution, ready to be printed and drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Values recorded.
    pub count: u64,
    /// `(quantile from 0 to 1, value)` in rising order.
    pub quantiles: Vec<(f64, u64)>,
    /// Arithmetic mean.
    pub mean: f64,
}

impl Distribution {
    /// Of a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let value = |quantile: f64| match quantile {
            // HDR gives the bucket's upper edge; the extremes are kept exactly.
            _ if quantile <= 0.0 => histogram.min(),
            _ if quantile >= 1.0 => histogram.max(),
            _ => histogram.value_at_quantile(quantile),
        };
        Self {
            count: histogram.len(),
            quantiles: QUANTILES.iter().map(|&quantile| (quantile, value(quantile))).collect(),
            mean: histogram.mean(),
        }
    }

    /// The value at one of the reported quantiles, or at the next higher one; `None` of nothing.
    pub fn at(&self, quantile: f64) -> Option<u64> {
        let reached = |&&(known, _): &&(f64, u64)| known >= quantile;
        (self.count > 0).then(|| self.quantiles.iter().find(reached))?.map(|&(_, value)| value)
    }
}

/// How the calls fared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// INVITEs begun.
    pub attempted: u64,
    /// Answered with 200.
    pub answered: u64,
    /// Refused, timed out or broken.
    pub failed: u64,
    /// Answered, but ended by the far side before their time.
    pub ended_early: u64,
    /// Answered, but without any sound where some was due; of anchored calls, legs.
    pub silent: u64,
    /// Most calls up at once.
    pub peak: u64,
    /// Final responses to INVITE by status, and failures without one by their reason.
    pub outcomes: BTreeMap<String, u64>,
    /// Calls set up a second: over the measured window for [`Scenario::Signalling`], over the set-up
    /// of all calls otherwise.
    pub per_s: f64,
    /// Refusals that said when to come back (Retry-After).
    #[serde(default)]
    pub retry_after: u64,
    /// Copies of our requests sent over UDP.
    #[serde(default)]
    pub retransmissions: u64,
    /// Warning and Reason headers of the far side, and what else should be known of calls.
    #[serde(default)]
    pub remarks: BTreeMap<String, u64>,
}

/// Where packets went missing. `lost` is by sequence number; the others say whose fault it was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Packets {
    /// Sent by us within the window.
    pub sent: u64,
    /// Due back to us within the window.
    pub expected: u64,
    /// That came.
    pub received: u64,
    /// That did not come.
    pub lost: u64,
    /// Of these: dropped by our own sockets (`SO_RXQ_OVFL`).
    pub dropped_by_us: u64,
    /// Of these: sends our own kernel refused.
    pub not_sent: u64,
    /// Growth of the machine's UDP `RcvbufErrors`, both sides' together.
    pub receive_buffer_errors: u64,
    /// Datagrams of nobody's stream, or not to be opened.
    pub stray: u64,
    /// Frames of ours that came more than once.
    #[serde(default)]
    pub duplicates: u64,
    /// Frames of ours that reached another call.
    #[serde(default)]
    pub misdelivered: u64,
    /// Frames of ours that the server's RTCP reports call lost. Where it returns nothing (record), this
    /// is `lost`, as far as its last report.
    #[serde(default)]
    pub reported_lost: u64,
    /// RTCP packets we sent.
    #[serde(default)]
    pub rtcp_sent: u64,
    /// RTCP packets that came, and opened.
    #[serde(default)]
    pub rtcp_received: u64,
}

impl Packets {
    /// Share of the expected packets that did not come, whoever lost them.
    pub fn loss(&self) -> f64 {
        ratio(self.lost, self.expected)
    }

    /// The same without those our own side lost.
    pub fn loss_by_server(&self) -> f64 {
        ratio(self.lost.saturating_sub(self.dropped_by_us + self.not_sent), self.expected)
    }
}

/// How unbroken the streams came that were due all along: those of [`Packets::expected`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Continuity {
    /// Streams.
    pub streams: u64,
    /// The longest distance of two packets of each stream, or of its last one and its end.
    pub longest_gap: Distribution,
    /// The same counted up to each edge, milliseconds; the last has none.
    pub histogram_ms: Vec<(Option<u64>, u64)>,
    /// `longest_gap` of the streams that were under way at the mark (SIGUSR1).
    #[serde(default)]
    pub marked_gap: Distribution,
    /// The same counted as `histogram_ms`.
    #[serde(default)]
    pub marked_ms: Vec<(Option<u64>, u64)>,
    /// Packets with another SSRC than those before.
    pub ssrc_changes: u64,
    /// Sequence numbers that do not go on: behind those before, or more than 3000 ahead.
    pub restarts: u64,
    /// Packets with a sequence number that had come.
    pub duplicates: u64,
    /// The streams that came worst, at most 20.
    pub worst: Vec<StreamGap>,
}

/// One stream of [`Continuity`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamGap {
    /// Its number: twice that of its call, one more for the second leg.
    pub stream: u32,
    /// Its longest gap.
    pub longest_gap_us: u64,
    /// As in [`Continuity`].
    pub ssrc_changes: u64,
    /// As in [`Continuity`].
    pub restarts: u64,
}

/// What the generator itself came to: the reason to believe the rest, or not to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Processor time of our threads, in hundredths of one processor, by name.
    pub cpu_percent: BTreeMap<String, f64>,
    /// The busiest of them.
    pub busiest_percent: f64,
    /// How late frames left, against the absolute plan.
    pub send_lateness: Distribution,
    /// Frames that left more than a packet time late.
    pub late_frames: u64,
    /// Calls begun later than planned by more than 10 ms.
    pub late_calls: u64,
    /// Why the result is only a floor: what held the generator back. `None`: nothing did.
    pub bottleneck: Option<String>,
}

/// One thread of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerThread {
    /// Its process.
    pub pid: u32,
    /// Its name: `media-0`, `sip-front`.
    pub name: String,
    /// Processor time in the window, hundredths of one processor.
    pub cpu_percent: f64,
    /// The same in microseconds.
    pub cpu_us: u64,
}

/// What the server came to, read from the system.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Threads that used any time, busiest first.
    pub threads: Vec<ServerThread>,
    /// All of them together, hundredths of one processor.
    pub cpu_percent: f64,
    /// All of them together, microseconds.
    pub cpu_us: u64,
    /// The media threads' (`media-*`) share of it; all of it for a server without such threads.
    pub media_us: u64,
    /// `media_us` for each packet of the scenario: forwarded, played or recorded.
    pub media_us_per_packet: f64,
    /// Resident memory with all calls up, bytes.
    pub resident_bytes: u64,
    /// The same before the first call.
    pub resident_before_bytes: u64,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Conditions.
    pub fingerprint: Fingerprint,
    /// The command line that repeats it.
    pub command: Vec<String>,
    /// What was asked for.
    pub asked: Asked,
    /// Length of the window as it came out, seconds.
    pub measured_s: f64,
    /// Calls.
    pub calls: Calls,
    /// INVITE to 200, redirects included.
    pub setup: Distribution,
    /// ACK to the first packet of sound.
    pub first_audio: Distribution,
    /// Packets.
    pub packets: Packets,
    /// How unbroken streams came.
    #[serde(default)]
    pub continuity: Continuity,
    /// What calls came to that play parts.
    #[serde(default)]
    pub life: Option<Life>,
    /// Interarrival jitter of each call at its end (RFC 3550 §6.4.1).
    pub jitter: Distribution,
    /// Distance of neighbouring packets of one stream, by the kernel's arrival stamps.
    pub spacing: Distribution,
    /// Echo and anchor: from our send to the kernel's arrival stamp of the same packet.
    pub added: Distribution,
    /// Ourselves.
    pub generator: Generator,
    /// The server, if its process is known.
    pub server: Option<Server>,
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { count(part) / count(whole) }
}

/// A count for arithmetic; exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "no run counts to 2^53")]
pub fn count(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a distribution tells extremes exactly and percentiles within a bucket.
    /// Method: 1 to 1000 once each.
    #[test]
    fn a_distribution_keeps_extremes_and_percentiles() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).unwrap();
        (1..=1000).for_each(|value| histogram.record(value).unwrap());
        let told = Distribution::of(&histogram);
        assert_eq!((told.count, told.at(0.0), told.at(1.0)), (1000, Some(1), Some(1000)));
        assert_eq!((told.at(0.5), told.at(0.999)), (Some(500), Some(999)));
        assert_eq!(told.at(0.98), Some(990), "the next reported quantile above");
        assert_eq!(Distribution::default().at(0.5), None);
    }

    /// Goal: what our own side dropped is not the server's loss. Method: 10 of 1000, 4 ours.
    #[test]
    fn loss_by_the_server_leaves_out_our_own_drops() {
        let packets =
            Packets { expected: 1000, received: 990, lost: 10, dropped_by_us: 4, ..Packets::default() };
        assert!((packets.loss() - 0.01).abs() < 1e-12);
        assert!((packets.loss_by_server() - 0.006).abs() < 1e-12);
        assert!(Packets::default().loss().abs() < 1e-12, "nothing expected, nothing lost");
    }
}
