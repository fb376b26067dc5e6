//! When something happens in a call: `8.5` seconds after the answer, or `beep+2`, `beep2+0.5`.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};

use crate::sip::sdp::Direction;

/// What a time is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The 200 OK.
    Answer,
    /// The end of the far side's n-th beep, from 1.
    Beep(usize),
}

/// A time in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct When {
    /// Counted from here.
    pub anchor: Anchor,
    /// This long after it.
    pub after: Duration,
}

impl When {
    /// The instant, if its anchor has been reached.
    pub fn at(self, answered: Instant, beeps: &[Instant]) -> Option<Instant> {
        match self.anchor {
            Anchor::Answer => Some(answered + self.after),
            Anchor::Beep(n) => beeps.get(n - 1).map(|beep| *beep + self.after),
        }
    }
}

impl FromStr for When {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (anchor, seconds) = match text.strip_prefix("beep") {
            None => (Anchor::Answer, text),
            Some(rest) => {
                let (number, seconds) = rest.split_once('+').unwrap_or((rest, "0"));
                let number = if number.is_empty() { 1 } else { number.parse().unwrap_or(0) };
                if number == 0 {
                    bail!("{text:?}: beeps are counted from 1, as in beep2+0.5");
                }
                (Anchor::Beep(number), seconds)
            }
        };
        let after = seconds_of(seconds).with_context(|| format!("{text:?} is no time like 8.5 or beep+2"))?;
        Ok(Self { anchor, after })
    }
}

/// `KEY` pressed `at`.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyPress {
    /// When.
    pub at: When,
    /// Keys, one after the other.
    pub keys: String,
}

impl FromStr for KeyPress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (at, keys) =
            text.split_once(':').with_context(|| format!("{text:?}: want TIME:KEYS, as in 8.0:#"))?;
        if keys.is_empty() || keys.chars().any(|key| crate::media::dtmf::event(key).is_none()) {
            bail!("{keys:?} are no keys; keys are 0-9 * # A-D");
        }
        Ok(Self { at: at.parse()?, keys: keys.to_owned() })
    }
}

/// A hold: `AT:FOR` or `AT:FOR:HOW`.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// When it begins.
    pub at: When,
    /// How long it lasts.
    pub lasts: Duration,
    /// What the offer says.
    pub direction: Direction,
    /// Old form: `c=0.0.0.0`.
    pub null_address: bool,
}

impl FromStr for Hold {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let at = parts.next().unwrap_or_default().parse()?;
        let lasts = parts.next().and_then(|seconds| seconds_of(seconds).ok());
        let lasts = lasts.with_context(|| format!("{text:?}: want AT:FOR[:HOW], as in 3.0:2.5:inactive"))?;
        let (direction, null_address) = match parts.next().unwrap_or("sendonly") {
            "sendonly" => (Direction::SendOnly, false),
            "inactive" => (Direction::Inactive, false),
            "null" => (Direction::SendRecv, true),
            other => bail!("{other:?}: a hold is sendonly, inactive or null"),
        };
        Ok(Self { at, lasts, direction, null_address })
    }
}

/// Decimal seconds.
///
/// # Errors
/// No number, or one below nought or beyond a day.
pub fn seconds_of(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse().with_context(|| format!("{text:?} is no number of seconds"))?;
    if !(0.0..=86_400.0).contains(&seconds) {
        bail!("{text:?}: want 0 to 86400 seconds");
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every form of a time is read, and nonsense is named.
    /// Method: the forms of the help text.
    #[test]
    fn times_keys_and_holds_are_read() {
        let when: When = "beep2+0.5".parse().unwrap();
        assert_eq!(when, When { anchor: Anchor::Beep(2), after: Duration::from_millis(500) });
        assert_eq!("beep".parse::<When>().unwrap().anchor, Anchor::Beep(1));
        let press: KeyPress = "8.0:#1".parse().unwrap();
        assert_eq!((press.at.after, &*press.keys), (Duration::from_secs(8), "#1"));
        let hold: Hold = "beep+1:2.5:inactive".parse().unwrap();
        assert_eq!((hold.lasts, hold.direction), (Duration::from_millis(2500), Direction::Inactive));
        for wrong in ["x:#", "1:q", "beep0+1:#", "-1:#"] {
            assert!(wrong.parse::<KeyPress>().is_err(), "{wrong}");
        }
    }

    /// Goal: a time after a beep is known only once the beep was heard.
    /// Method: ask before and after.
    #[test]
    fn a_time_after_a_beep_waits_for_the_beep() {
        let start = crate::clock::now();
        let when: When = "beep+1".parse().unwrap();
        assert_eq!(when.at(start, &[]), None);
        assert_eq!(when.at(start, &[start]), Some(start + Duration::from_secs(1)));
    }
}
