//! Calls in all phases, coming and going: what each of them does, and when.
//!
//! Every call is a part in a play, drawn in turn; its times are drawn from the run's seed. A call ends by our
//! BYE or by the node's, and both are seen: our BYE must be answered with 200, the node's must come.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::result::Scenario;
use crate::rng::Rng;
use crate::sip::sdp::Direction;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Hears the server play, and hangs up.
    Playing,
    /// Hears its own frames, and hangs up.
    Echo,
    /// Is joined to our second phone, and hangs up.
    Anchored,
    /// Puts the server on hold (sendonly or inactive), takes it back, and hangs up.
    Held,
    /// Leaves a message in the mailbox, and hangs up while it is recorded.
    Message,
    /// Leaves a message, presses # (the menu must be heard) and 1: the server must end the call.
    Keys,
    /// Is given up (CANCEL) while our second phone rings.
    Ringing,
    /// Loses its connection and falls silent; the server must end the call, over a connection of its own.
    Dropped,
    /// Vanishes: nothing is sent any more, nothing answered; the server must end the call.
    Vanished,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Playing,
        Self::Echo,
        Self::Anchored,
        Self::Held,
        Self::Message,
        Self::Keys,
        Self::Ringing,
        Self::Dropped,
        Self::Vanished,
    ];

    /// The scenario that has the same media.
    pub fn scenario(self) -> Scenario {
        match self {
            Self::Playing | Self::Held => Scenario::Playout,
            Self::Echo | Self::Dropped | Self::Vanished => Scenario::Echo,
            Self::Anchored | Self::Ringing => Scenario::Anchor,
            Self::Message | Self::Keys => Scenario::Record,
        }
    }

    /// Its word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Playing => "playing",
            Self::Echo => "echo",
            Self::Anchored => "anchored",
            Self::Held => "held",
            Self::Message => "message",
            Self::Keys => "keys",
            Self::Ringing => "ringing",
            Self::Dropped => "dropped",
            Self::Vanished => "vanished",
        }
    }
}

/// One thing a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Offers this direction by re-INVITE.
    Direct(Direction),
    /// Presses a key.
    Press(char),
    /// Falls silent shortly before the end, so that nothing is on its way then.
    Rest,
    /// BYE, or CANCEL while it rings.
    HangUp,
    /// Closes its connection without a word.
    Drop,
    /// Sends nothing more and answers nothing.
    Vanish,
    /// The server should have ended it by now.
    Overdue,
}

/// Before its end a call rests for this long.
const REST: Duration = Duration::from_millis(300);
/// From # to 1: the menu is heard meanwhile.
const MENU: Duration = Duration::from_secs(3);
/// From 1 to the server's BYE at most: it says goodbye first.
const GOODBYE: Duration = Duration::from_secs(15);

/// What a call does and when, from its answer on ([`Part::Ringing`]: from its INVITE). `mean` is the
/// average length of calls; each lasts half to one and a half of it.
pub fn script(part: Part, mean: Duration, rng: &mut Rng) -> Vec<(Duration, Step)> {
    let length = mean.mul_f64(0.5 + f64::from(rng.half()) / 65_536.0);
    let end = [(length.saturating_sub(REST), Step::Rest), (length, Step::HangUp)];
    let at = |share: f64| length.mul_f64(share);
    match part {
        Part::Playing | Part::Echo | Part::Anchored | Part::Message => end.to_vec(),
        Part::Held => {
            let hold = if rng.chance(0.5) { Direction::SendOnly } else { Direction::Inactive };
            let held = [(at(0.3), Step::Direct(hold)), (at(0.6), Step::Direct(Direction::SendRecv))];
            held.into_iter().chain(end).collect()
        }
        Part::Keys => vec![
            (length, Step::Press('#')),
            (length + MENU, Step::Press('1')),
            (length + MENU + GOODBYE, Step::Overdue),
        ],
        Part::Ringing => vec![(at(0.5), Step::HangUp)],
        Part::Dropped => vec![(at(0.5), Step::Drop)],
        Part::Vanished => vec![(at(0.5), Step::Vanish)],
    }
}

/// What became of the calls of one part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCount {
    /// INVITEs begun.
    pub begun: u64,
    /// Answered with 200.
    pub answered: u64,
    /// Ended by us, and the server agreed: 200 to BYE, 487 to what was cancelled.
    pub ended_by_us: u64,
    /// Ended by the server's BYE where that was due.
    pub ended_by_server: u64,
    /// Answered, but over before its time.
    pub early: u64,
    /// Never answered where it should have been.
    pub failed: u64,
}

/// What a run of [`Scenario::Life`] came to, beside what every run tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// By part.
    pub parts: BTreeMap<String, PartCount>,
    /// Answered calls that were over before their time, by cause.
    pub early: BTreeMap<String, u64>,
    /// re-INVITEs that were asked for.
    pub changes: u64,
    /// Of these taken.
    pub changes_taken: u64,
    /// Keys pressed into silence.
    pub keys: u64,
    /// Of these answered by sound.
    pub keys_heard: u64,
    /// Calls that the server should have ended after a key and did not.
    pub overdue: u64,
    /// Calls that wait for the server's end when the run ends: their time was not over.
    pub left_to_server: u64,
    /// Requests of ours that left again over a new connection, for theirs broke.
    pub moved: u64,
    /// Connections of ours that broke.
    pub broken: u64,
    /// Calls that were up at the mark (SIGUSR1), and not yet left to the server.
    #[serde(default)]
    pub marked: u64,
    /// Of these over before their time.
    #[serde(default)]
    pub marked_early: u64,
    /// BYEs of ours that were answered with something else than 200, by status.
    pub disowned: BTreeMap<String, u64>,
}

impl Life {
    /// The counts of a part.
    pub fn part(&mut self, part: Part) -> &mut PartCount {
        self.parts.entry(part.name().to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a seed repeats all times; lengths lie within half and one and a half of the mean; every part
    /// ends. Method: all parts, many times, twice.
    #[test]
    fn a_seed_repeats_every_script() {
        let mean = Duration::from_secs(10);
        let (mut one, mut two) = (Rng::new(5), Rng::new(5));
        for part in Part::ALL.into_iter().cycle().take(900) {
            let steps = script(part, mean, &mut one);
            assert_eq!(steps, script(part, mean, &mut two));
            assert!(steps.is_sorted_by_key(|(at, _)| *at), "{part:?}: {steps:?}");
            let (at, last) = steps[steps.len() - 1];
            assert!(matches!(last, Step::HangUp | Step::Drop | Step::Vanish | Step::Overdue));
            if last == Step::HangUp && part != Part::Ringing {
                assert!((mean / 2..mean * 3 / 2).contains(&at), "{at:?}");
            }
        }
    }
}
