//! What takes part in a comparison, and what a round of it came to.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::figures;
use crate::load::result::{Distribution, Generator, Packets, count};

/// Median of the added delay, microseconds, above which a server does not hold a load: packets leave it as fast
/// as they come only because they wait in its queues first. The limit is `voxperf find`'s for the 99th
/// percentile; it is asked of the median, since a shared machine delays a hundredth of anybody's packets.
pub const DELAY_LIMIT_US: u64 = 3_000;

/// A server that can be put under load again and again.
pub trait Contestant {
    /// What it is and how it runs.
    fn identity(&self) -> Identity;

    /// Sets `calls` up, measures for `window`, ends them.
    ///
    /// # Errors
    /// The calls cannot be set up, or the server is gone.
    fn round(&mut self, calls: usize, window: Duration, seed: u64) -> Result<Round>;
}

/// A contestant's name and conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `rtpengine`.
    pub name: String,
    /// What it says its version is; empty if it does not.
    pub version: String,
    /// Command line it was started with, or how it is reached.
    pub command: String,
    /// Which of its time counts: its media threads, or all of it.
    pub counted: String,
}

/// One round of one contestant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Processor time of the whole server in the window, microseconds.
    pub cpu_us: u64,
    /// Of its media threads alone; the same as `cpu_us` where it has none of its own.
    pub media_us: u64,
    /// Packets of the scenario: forwarded, played or recorded.
    pub handled: u64,
    /// Calls that were not answered.
    #[serde(default)]
    pub refused: u64,
    /// Packets.
    pub packets: Packets,
    /// From our send to the arrival of the same packet.
    pub added: Distribution,
    /// Distance of neighbouring packets.
    pub spacing: Distribution,
    /// Ourselves.
    pub generator: Generator,
}

impl Round {
    /// Processor time of the whole server for each packet, microseconds.
    pub fn us_per_packet(&self) -> f64 {
        per_packet(self.cpu_us, self.handled)
    }

    /// The media threads' for each packet, microseconds.
    pub fn media_us_per_packet(&self) -> f64 {
        per_packet(self.media_us, self.handled)
    }

    /// Why this round says nothing about cost: it did less than it was asked to.
    pub fn flaw(&self) -> Option<String> {
        let packets = &self.packets;
        let delay_us = self.added.at(0.5).unwrap_or(0);
        match () {
            () if self.handled == 0 => Some("handled no packets".to_owned()),
            () if self.refused > 0 => Some(format!("left {} calls unanswered", figures::whole(self.refused))),
            () if packets.lost > 0 => Some(format!("lost {} of {}", packets.lost, packets.expected)),
            () if delay_us > DELAY_LIMIT_US => {
                let (delay, limit) = (figures::time(count(delay_us)), figures::time(count(DELAY_LIMIT_US)));
                Some(format!("delayed half of its packets by {delay} or more (limit {limit})"))
            }
            () if self.cpu_us == 0 => Some("used no processor time that could be seen".to_owned()),
            () => None,
        }
    }
}

fn per_packet(microseconds: u64, packets: u64) -> f64 {
    if packets == 0 { 0.0 } else { count(microseconds) / count(packets) }
}
