//! The timer values of RFC 3261 table 4, and what a transaction asks for after an input.

use std::time::Duration;

use bytes::Bytes;

/// The values every transaction timer is derived from (RFC 3261 §17.1.1.1 and table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Round-trip estimate. Default 500 ms.
    pub t1: Duration,
    /// Longest interval between resends of non-INVITE requests and INVITE responses. Default 4 s.
    pub t2: Duration,
    /// Longest life of a message in the network. Default 5 s.
    pub t4: Duration,
    /// How long an INVITE may stay without a final response after its last provisional one.
    ///
    /// RFC 3261 §16.6 step 11 wants more than three minutes. Ours bounds UAC and UAS too, so that
    /// no transaction outlives its user. Default 200 s.
    pub timer_c: Duration,
    /// A server INVITE transaction nobody answered for this long sends a 100 by itself
    /// (RFC 3261 §17.2.1). Default 200 ms.
    pub trying: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            t1: Duration::from_millis(500),
            t2: Duration::from_secs(4),
            t4: Duration::from_secs(5),
            timer_c: Duration::from_secs(200),
            trying: Duration::from_millis(200),
        }
    }
}

impl Timers {
    /// 64*T1: timers B, F, H, L, M, and J over unreliable transports.
    pub fn give_up(&self) -> Duration {
        self.t1 * 64
    }

    /// Timer D: how long a client answers copies of a 3xx-6xx. Zero over reliable transports,
    /// else at least 32 s.
    pub fn timer_d(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.give_up().max(Duration::from_secs(32)) }
    }

    /// Timers I and K: T4, or zero over reliable transports.
    pub fn linger(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.t4 }
    }

    /// Timer J: 64*T1, or zero over reliable transports.
    pub fn timer_j(&self, reliable: bool) -> Duration {
        if reliable { Duration::ZERO } else { self.give_up() }
    }

    /// The interval after `interval`: doubled, at most T2.
    pub fn backoff(&self, interval: Duration) -> Duration {
        (interval * 2).min(self.t2)
    }
}

/// What a transaction asks for after one input: at most one message and one notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// To be sent to where the transaction's messages go.
    pub transmit: Option<Bytes>,
    /// What its user must hear.
    pub notify: Notify,
}

impl Step {
    /// Nothing to do: the input was absorbed.
    pub const ABSORB: Self = Self { transmit: None, notify: Notify::Nothing };

    /// Only a message.
    pub fn send(bytes: Bytes) -> Self {
        Self { transmit: Some(bytes), notify: Notify::Nothing }
    }

    /// Only a notice.
    pub fn notify(notify: Notify) -> Self {
        Self { transmit: None, notify }
    }
}

/// What the transaction user must hear after one input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Notify {
    /// Nothing.
    #[default]
    Nothing,
    /// The message just handled.
    Deliver,
    /// The message just handled; and a CANCEL is now allowed and wanted (RFC 3261 §9.1).
    DeliverAndCancel,
    /// A CANCEL is to be sent.
    Cancel,
    /// The user has been silent for too long: send a 100 (server INVITE only).
    Trying,
    /// The user never answered; a final response must be made up (server INVITE only).
    Abandoned,
    /// The peer never answered.
    Timeout,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the defaults are table 4 of RFC 3261. Method: its numbers.
    #[test]
    fn defaults_are_those_of_table_4() {
        let timers = Timers::default();
        assert_eq!(timers.give_up(), Duration::from_secs(32));
        assert_eq!(timers.timer_d(false), Duration::from_secs(32));
        assert_eq!(timers.timer_j(false), Duration::from_secs(32));
        assert_eq!(timers.linger(false), Duration::from_secs(5));
        for zero in [timers.timer_d(true), timers.timer_j(true), timers.linger(true)] {
            assert_eq!(zero, Duration::ZERO);
        }
        assert_eq!(timers.backoff(Duration::from_millis(500)), Duration::from_secs(1));
        assert_eq!(timers.backoff(Duration::from_secs(3)), Duration::from_secs(4));
    }
}
