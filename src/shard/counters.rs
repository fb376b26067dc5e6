//! What a shard publishes: relaxed atomics, written by it alone about ten times a second.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::media::order::LegStats;

/// Declares the snapshot and the atomics behind it, so that they cannot differ.
macro_rules! published {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A shard at one moment. Counters only grow.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        pub struct ShardSnapshot { $($(#[$doc])* pub $name: u64,)* }

        /// The published side of [`ShardSnapshot`].
        #[derive(Debug, Default)]
        pub(super) struct Published { $($name: AtomicU64,)* }

        impl Published {
            /// Makes `snapshot` visible to readers.
            pub(super) fn store(&self, snapshot: &ShardSnapshot) {
                $(self.$name.store(snapshot.$name, Ordering::Relaxed);)*
            }

            /// What was stored last; single values may be one store newer than others.
            pub(super) fn load(&self) -> ShardSnapshot {
                ShardSnapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

published! {
    /// Legs open or closing.
    legs,
    /// Legs opened since the start.
    legs_opened,
    /// Legs refused.
    legs_refused,
    /// Legs lost to a panic in their own code.
    legs_panicked,
    /// Legs that would not outlast the worker's death, since their sockets could not be given away.
    legs_unkept,
    /// Port pairs to be had, as of the last call.
    pairs_free,
    /// Port pairs in quarantine, as of the last call.
    pairs_resting,
    /// Processor time of the shard's thread over the last second, in thousandths.
    load_permille,
    /// Turns of the loop. It stands still only if the shard is stuck: an idle one turns each
    /// second.
    turns,
    /// System calls to submit or wait.
    enters,
    /// Completions.
    completions,
    /// Datagrams received.
    rx_datagrams,
    /// Packets given to the kernel.
    tx_datagrams,
    /// Sends the kernel refused.
    send_errors,
    /// Times no receive buffer was free.
    enobufs,
    /// Receives started again after a datagram without payload.
    rearms_empty,
    /// Receives started again after a socket error.
    rearms_error,
    /// Receives started again for another reason.
    rearms_other,
    /// Completion queue overflows.
    overflows,
    /// Completions of an earlier use of a stream.
    stale_completions,
    /// Completions of nothing we asked for.
    unknown_completions,
    /// Datagrams longer than can be read whole.
    oversize_datagrams,
    /// Of legs that are closed: datagrams from another source than the latched one.
    media_source_filtered,
    /// Of legs that are closed: datagrams that are no valid RTP or RTCP.
    media_invalid,
    /// Of legs that are closed: SRTP and SRTCP packets that did not authenticate.
    media_srtp_auth_failed,
    /// Of legs that are closed: SRTP and SRTCP packets that came before, or far too late.
    media_srtp_replayed,
    /// Of legs that are closed: plain RTCP packets where SRTCP was agreed.
    media_srtcp_missing,
    /// Events dropped because signalling did not take them.
    events_dropped,
    /// Orders for legs that are gone.
    orders_unknown,
    /// Samples of recordings replaced by silence because the file thread did not take them.
    gap_samples,
    /// Ticks that began more than 2 ms late.
    late_ticks,
    /// Packets left out because the shard stalled.
    skipped_packets,
    /// Lateness of ticks: median, microseconds.
    tick_late_us_p50,
    /// Lateness of ticks: 99th percentile, microseconds.
    tick_late_us_p99,
    /// Lateness of ticks: 99.9th percentile, microseconds.
    tick_late_us_p999,
    /// Lateness of ticks: the worst, microseconds.
    tick_late_us_max,
}

impl ShardSnapshot {
    /// Adds what a leg that is gone did not take in.
    pub(super) fn add_media(&mut self, stats: &LegStats) {
        self.media_source_filtered += stats.source_filtered;
        self.media_invalid += stats.invalid;
        self.media_srtp_auth_failed += stats.srtp_auth_failed;
        self.media_srtp_replayed += stats.srtp_replayed;
        self.media_srtcp_missing += stats.srtcp_missing;
    }
}
