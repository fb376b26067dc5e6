//! A ruleset in nftables' own language, for `nft -f`.

use std::fmt;

use super::rules::{Chain, Match, Ports, Rule, Ruleset, Set, Verdict};

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = &self.table;
        writeln!(f, "# Firewall of a voxring node, for {}.", self.origin)?;
        writeln!(f, "# Printed by `voxring firewall`, which never applies it:")?;
        writeln!(f, "#   check    nft -c -f FILE")?;
        writeln!(
            f,
            "#   load     nft -f FILE      replaces the table {table} whole, leaves all others alone"
        )?;
        writeln!(f, "#   compare  voxring firewall --check, with the options this was printed with")?;
        writeln!(f, "#   counters nft list counters table inet {table}")?;
        writeln!(f, "#   remove   nft delete table inet {table}")?;
        writeln!(f, "# What comes in and matches no rule is dropped, for all programs of the machine.")?;
        for remark in &self.remarks {
            writeln!(f, "# {remark}")?;
        }
        writeln!(f, "\ntable inet {table} {{}}\ndelete table inet {table}\n\ntable inet {table} {{")?;
        for counter in &self.counters {
            writeln!(f, "\tcounter {counter} {{}}")?;
        }
        self.sets.iter().try_for_each(|set| write!(f, "\n{set}"))?;
        self.chains.iter().try_for_each(|chain| write!(f, "\n{chain}"))?;
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        for remark in &self.remarks {
            writeln!(f, "\t\t# {remark}")?;
        }
        writeln!(f, "\t\ttype {}\n\t\tflags interval", self.family.set_type())?;
        if !self.networks.is_empty() {
            let elements: Vec<_> = self.networks.iter().map(ToString::to_string).collect();
            writeln!(f, "\t\telements = {{ {} }}", elements.join(", "))?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, hook, priority, policy, rules } = self;
        writeln!(f, "\tchain {name} {{")?;
        writeln!(f, "\t\ttype filter hook {hook} priority {}; policy {policy};", priority.name())?;
        rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.matches.iter().try_for_each(|one| write!(f, "{one} "))?;
        if let Some(counter) = self.counter {
            write!(f, "counter name \"{counter}\" ")?;
        }
        match self.verdict {
            Verdict::Accept => write!(f, "accept ")?,
            Verdict::NoTrack => write!(f, "notrack ")?,
            Verdict::Continue => {}
        }
        write!(f, "comment \"{}\"", self.comment)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => write!(f, "iif \"lo\""),
            Self::Tracked => write!(f, "ct state established,related"),
            Self::FromSet(family, set) => write!(f, "{} saddr @{set}", family.protocol()),
            Self::FromLink => write!(f, "ip6 saddr fe80::/10"),
            Self::To(address) => {
                write!(f, "{} daddr {address}", super::rules::Family::of(*address).protocol())
            }
            Self::Port(protocol, end, ports) => write!(f, "{} {} {ports}", protocol.name(), end.field()),
            Self::ControlMessage(family, types) => {
                write!(f, "{} type {{ {} }}", family.control_messages(), types.join(", "))
            }
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(list) => match list.as_slice() {
                [one] => write!(f, "{one}"),
                several => {
                    let texts: Vec<_> = several.iter().map(ToString::to_string).collect();
                    write!(f, "{{ {} }}", texts.join(", "))
                }
            },
            Self::Range(range) => write!(f, "{}-{}", range.first, range.last),
        }
    }
}
