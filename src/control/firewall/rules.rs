//! A ruleset as data: just the few kinds of sets, chains and rules that are needed here.

use std::net::IpAddr;

use crate::base::config::{Network, PortRange};

/// One table of family inet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruleset {
    /// Its name.
    pub(super) table: String,
    /// What the ruleset was made from, for the text's head.
    pub(super) origin: String,
    /// What the reader of the text should know, a line each.
    pub(super) remarks: Vec<String>,
    /// Named counters.
    pub(super) counters: Vec<&'static str>,
    /// Named sets.
    pub(super) sets: Vec<Set>,
    /// Base chains.
    pub(super) chains: Vec<Chain>,
}

/// An internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Its name in nftables expressions.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Its control messages in nftables expressions.
    pub(super) fn control_messages(self) -> &'static str {
        match self {
            Self::V4 => "icmp",
            Self::V6 => "icmpv6",
        }
    }

    /// The type of a set of its addresses.
    pub(super) fn set_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// Its name for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// What names of its sets end with.
    pub(super) fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

/// A set of addresses and networks, none within another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) networks: Vec<Network>,
    /// Where the elements come from, a line each.
    pub(super) remarks: Vec<String>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: &'static str,
    pub(super) priority: Priority,
    pub(super) policy: &'static str,
    pub(super) rules: Vec<Rule>,
}

/// When a chain is asked, by nftables' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// Before connection tracking.
    Raw,
    /// Where filters are.
    Filter,
}

impl Priority {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Filter => "filter",
        }
    }

    /// NF_IP_PRI_RAW and NF_IP_PRI_FILTER of the kernel.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Raw => -300,
            Self::Filter => 0,
        }
    }
}

/// All matches hold: count, then the verdict. The comment names the rule within its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) comment: String,
    pub(super) matches: Vec<Match>,
    pub(super) counter: Option<&'static str>,
    pub(super) verdict: Verdict,
}

/// What a packet must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    /// Came in over the loopback interface.
    Loopback,
    /// Belongs to a tracked connection that this machine allowed or began, or to an error about it.
    Tracked,
    /// Its source is in a set.
    FromSet(Family, String),
    /// Its source is an IPv6 address of this link only (RFC 4291 §2.5.6).
    FromLink,
    /// Its destination.
    To(IpAddr),
    /// Its port.
    Port(Protocol, End, Ports),
    /// Its type of control message, by nftables' names.
    ControlMessage(Family, &'static [&'static str]),
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Which of a packet's two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

impl End {
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Source => "sport",
            Self::Destination => "dport",
        }
    }
}

/// Ports that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ports {
    /// Each of these; not empty, ascending.
    List(Vec<u16>),
    /// From first to last.
    Range(PortRange),
}

/// What becomes of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    /// No connection tracking for it.
    NoTrack,
    /// The chain goes on.
    Continue,
}
