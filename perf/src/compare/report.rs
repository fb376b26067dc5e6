//! What a comparison leaves behind.

use serde::{Deserialize, Serialize};

use super::contestant::{Identity, Round};
use crate::figures;
use crate::load::result::{Fingerprint, count};

/// Two rounds beside each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The server under test.
    pub ours: Round,
    /// What it is compared with.
    pub theirs: Round,
}

impl Pair {
    /// Both costs, for the terminal; instead of a cost what makes it worth nothing.
    pub fn line(&self) -> String {
        let told = |name: &str, round: &Round| match round.flaw() {
            Some(flaw) => format!("{name} {flaw}"),
            None if round.media_us == round.cpu_us => {
                format!("{name} {:.2} us a packet", round.us_per_packet())
            }
            None => {
                let (media, whole) = (round.media_us_per_packet(), round.us_per_packet());
                format!("{name} {media:.2} us a packet in media threads, {whole:.2} in all")
            }
        };
        format!("{}; {}", told("ours", &self.ours), told("theirs", &self.theirs))
    }
}

/// All pairs of one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Calls at once.
    pub calls: usize,
    /// Pairs of rounds, in order.
    pub pairs: Vec<Pair>,
    /// What ended the level early.
    pub trouble: Option<String>,
}

/// A comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareReport {
    /// Conditions.
    pub fingerprint: Fingerprint,
    /// The command line that repeats it.
    pub command: Vec<String>,
    /// What the calls do: `anchored calls`.
    pub what: String,
    /// Length of a round's window, seconds.
    pub window_s: f64,
    /// The server under test.
    pub ours: Identity,
    /// What it is compared with.
    pub theirs: Identity,
    /// Load by load.
    pub levels: Vec<Level>,
}

/// Median, least and most of some rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number the mean of the middle two.
    pub median: f64,
    /// Least and most.
    pub ends: (f64, f64),
}

impl Spread {
    /// Of some values; `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(middle)?);
        Some(Self { median: f64::midpoint(*low, *high), ends: (*sorted.first()?, *sorted.last()?) })
    }

    /// `0.42 (0.40 to 0.44)`
    pub fn show(&self, decimals: usize) -> String {
        let (least, most) = self.ends;
        format!("{:.decimals$} ({least:.decimals$} to {most:.decimals$})", self.median)
    }
}

impl Level {
    /// Pairs in which both did all that was asked of them.
    pub fn sound(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().filter(|pair| pair.ours.flaw().is_none() && pair.theirs.flaw().is_none())
    }

    /// Ours by theirs of the sound pairs, where theirs is always the whole server's cost.
    pub fn ratio(&self, cost: impl Fn(&Round) -> f64) -> Option<Spread> {
        Spread::of(self.sound().map(|pair| cost(&pair.ours) / pair.theirs.us_per_packet()))
    }

    /// Why fewer pairs are compared than were measured, if so.
    pub fn refusal(&self, ours: &str, theirs: &str) -> Option<String> {
        let mut reasons: Vec<String> = Vec::new();
        reasons.extend(flaws(ours, self.pairs.iter().map(|pair| &pair.ours)));
        reasons.extend(flaws(theirs, self.pairs.iter().map(|pair| &pair.theirs)));
        reasons.extend(self.trouble.clone());
        (!reasons.is_empty()).then(|| {
            let (sound, calls) = (self.sound().count(), figures::whole(self.calls as u64));
            format!("{calls} calls, {sound} of {} pairs compared: {}", self.pairs.len(), reasons.join("; "))
        })
    }
}

impl CompareReport {
    /// The result in a sentence: the highest load at which both did all that was asked.
    pub fn headline(&self) -> String {
        let compared = self.levels.iter().rev().find_map(|level| {
            let ratio = level.ratio(Round::media_us_per_packet)?;
            let cost = |pick: fn(&Pair) -> f64| Spread::of(level.sound().map(pick)).map(|cost| cost.median);
            Some((
                level,
                ratio,
                cost(|pair| pair.ours.media_us_per_packet())?,
                cost(|pair| pair.theirs.us_per_packet())?,
            ))
        });
        let (ours, theirs) = (&self.ours.name, &self.theirs.name);
        let Some((level, ratio, our_cost, their_cost)) = compared else {
            return format!(
                "{ours} and {theirs} cannot be compared: there was no load that both of them held."
            );
        };
        let has_media = level.sound().any(|pair| pair.ours.media_us != pair.ours.cpu_us);
        let takes = if has_media { "'s media threads take" } else { " takes" };
        format!(
            "At {} {}, {ours}{takes} {} of the CPU of {theirs} for a packet: {} against {}.",
            figures::whole(level.calls as u64),
            self.what,
            ratio.show(2),
            figures::time(our_cost),
            figures::time(their_cost)
        )
    }

    /// Level by level, for the terminal.
    pub fn lines(&self) -> Vec<String> {
        self.levels.iter().flat_map(|level| level.lines(&self.ours.name, &self.theirs.name)).collect()
    }
}

impl Level {
    fn lines(&self, ours: &str, theirs: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let cost = |pick: fn(&Pair) -> f64| Spread::of(self.sound().map(pick));
        let costs = cost(|pair| pair.ours.media_us_per_packet())
            .zip(cost(|pair| pair.ours.us_per_packet()))
            .zip(cost(|pair| pair.theirs.us_per_packet()));
        if let Some(((media, whole), their)) = costs {
            lines.push(format!(
                "{} calls, CPU for a packet: {ours} {} us in its media threads, {} us in all; {theirs} {} us",
                figures::whole(self.calls as u64),
                media.show(2),
                whole.show(2),
                their.show(2)
            ));
        }
        let ratios = self.ratio(Round::media_us_per_packet).zip(self.ratio(Round::us_per_packet));
        if let Some((media, whole)) = ratios {
            let pairs = self.sound().count();
            lines.push(format!(
                "  ratio {} of the media threads, {} of the whole server; median of {pairs} pairs, least and most",
                media.show(3),
                whole.show(3)
            ));
        }
        let delay = |quantile| {
            let of = |pick: fn(&Pair) -> &Round| {
                let delays = self.pairs.iter().filter_map(|pair| pick(pair).added.at(quantile));
                Spread::of(delays.map(count)).map(|spread| figures::time(spread.median))
            };
            of(|pair| &pair.ours).zip(of(|pair| &pair.theirs))
        };
        if let Some(((our_half, their_half), (our_most, their_most))) = delay(0.5).zip(delay(0.99)) {
            lines.push(format!(
                "  added delay: {ours} {our_half}, p99 {our_most}; {theirs} {their_half}, p99 {their_most}"
            ));
        }
        lines.extend(self.refusal(ours, theirs).map(|why| format!("  not all compared: {why}")));
        lines
    }
}

/// What is wrong with the rounds of one side, if anything: lost packets, then whatever else.
fn flaws<'a>(name: &str, rounds: impl Iterator<Item = &'a Round>) -> Vec<String> {
    let flawed = rounds.filter(|round| round.flaw().is_some());
    let (lossy, others): (Vec<&Round>, Vec<&Round>) = flawed.partition(|round| round.packets.lost > 0);
    let sum = |figure: fn(&Round) -> u64| figures::whole(lossy.iter().map(|round| figure(round)).sum());
    let lost = format!(
        "lost {} of {} packets",
        sum(|round| round.packets.lost),
        sum(|round| round.packets.expected)
    );
    let told = |rounds: &[&Round], what: Option<String>| {
        let plural = if rounds.len() == 1 { "" } else { "s" };
        what.filter(|_| !rounds.is_empty())
            .map(|what| format!("{name} {what} in {} round{plural}", rounds.len()))
    };
    // "or more" is then true of each.
    let mildest = others.iter().min_by_key(|round| round.added.at(0.5)).and_then(|round| round.flaw());
    [told(&lossy, Some(lost)), told(&others, mildest)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::contestant::DELAY_LIMIT_US;
    use crate::load::result::{Distribution, Packets};

    fn round(media_us: u64, cpu_us: u64, lost: u64) -> Round {
        let packets = Packets { expected: 1000, received: 1000 - lost, lost, ..Packets::default() };
        Round { cpu_us, media_us, handled: 1000, packets, ..Round::default() }
    }

    fn report(levels: Vec<Level>) -> CompareReport {
        let named = |name: &str| Identity { name: name.to_owned(), ..Identity::default() };
        CompareReport {
            fingerprint: Fingerprint::default(),
            command: vec![],
            what: "anchored calls".to_owned(),
            window_s: 10.0,
            ours: named("voxring"),
            theirs: named("rtpengine"),
            levels,
        }
    }

    fn level(calls: usize, pairs: &[(u64, u64, u64)]) -> Level {
        let pair = |&(ours, theirs, lost): &(u64, u64, u64)| Pair {
            ours: round(ours, ours + 500, 0),
            theirs: round(theirs, theirs, lost),
        };
        Level { calls, pairs: pairs.iter().map(pair).collect(), trouble: None }
    }

    /// Goal: the ratio is that of paired rounds, with its spread. Method: 3 us by 6, 4 by 5, 2 by 8.
    #[test]
    fn ratios_are_of_paired_rounds() {
        let level = level(1000, &[(3000, 6000, 0), (4000, 5000, 0), (2000, 8000, 0)]);
        let ratio = level.ratio(Round::media_us_per_packet).unwrap();
        assert_eq!(ratio.show(2), "0.50 (0.25 to 0.80)");
        assert_eq!(level.ratio(Round::us_per_packet).unwrap().show(2), "0.58 (0.31 to 0.90)");
        let told = report(vec![level]).headline();
        let expected = "At 1,000 anchored calls, voxring's media threads take 0.50 (0.25 to 0.80) of the \
                        CPU of rtpengine for a packet: 3 us against 6 us.";
        assert_eq!(told, expected);
    }

    /// Goal: rounds with lost packets are not compared, and it is said whose they were.
    /// Method: a level with one such round, and one with nothing else.
    #[test]
    fn rounds_with_lost_packets_are_not_compared() {
        let some = level(500, &[(3000, 6000, 0), (3000, 1000, 7)]);
        assert_eq!(some.ratio(Round::media_us_per_packet).unwrap().show(1), "0.5 (0.5 to 0.5)");
        let why = some.refusal("voxring", "rtpengine").unwrap();
        assert_eq!(why, "500 calls, 1 of 2 pairs compared: rtpengine lost 7 of 1,000 packets in 1 round");
        let all = level(2000, &[(3000, 1000, 400)]);
        assert_eq!(all.ratio(Round::media_us_per_packet), None);
        let both = report(vec![some, all.clone()]);
        assert!(both.headline().starts_with("At 500 anchored calls"), "{}", both.headline());
        assert!(both.lines().iter().any(|line| line.contains("2,000 calls, 0 of 1 pairs")));
        assert!(report(vec![all]).headline().contains("cannot be compared"));
    }

    /// Goal: a server in whose queues packets stand is not compared, nor one that left calls unanswered, and it
    /// is said how many rounds each was. Method: queues of 150 and 180 ms in two, 2 calls missing in another, packets
    /// lost in a fourth.
    #[test]
    fn rounds_that_were_not_held_are_not_compared() {
        let mut level = level(
            2000,
            &[(3000, 6000, 0), (3000, 5000, 0), (3000, 5000, 0), (3000, 5000, 9), (3000, 5000, 0)],
        );
        let added = |median_us| Distribution { count: 1000, quantiles: vec![(0.5, median_us)], mean: 0.0 };
        level.pairs[0].theirs.added = added(DELAY_LIMIT_US);
        level.pairs[1].theirs.added = added(180_000);
        level.pairs[4].theirs.added = added(150_000);
        level.pairs[2].ours.refused = 2;
        assert_eq!(level.ratio(Round::media_us_per_packet).unwrap().show(1), "0.5 (0.5 to 0.5)");
        let why = level.refusal("voxring", "rtpengine").unwrap();
        let expected = "2,000 calls, 1 of 5 pairs compared: voxring left 2 calls unanswered in 1 round; rtpengine \
                        lost 9 of 1,000 packets in 1 round; rtpengine delayed half of its packets by 150 ms or \
                        more (limit 3 ms) in 2 rounds";
        assert_eq!(why, expected);
    }

    /// Goal: a median is a median. Method: none, one, two and three values.
    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        for (values, median) in [(vec![3.0], 3.0), (vec![1.0, 2.0], 1.5), (vec![9.0, 1.0, 2.0], 2.0)] {
            assert!((Spread::of(values).unwrap().median - median).abs() < 1e-12);
        }
    }
}
