//! The numbers a route is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest pattern, characters.
const CHARACTERS_MAX: usize = 40;

/// Digits and `+` stand for themselves, `x` for any digit, a `*` at the end for anything, also nothing.
/// The default, no character at all, matches no call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutePattern {
    /// As written, without the star.
    head: String,
    /// There was a star.
    is_open: bool,
}

impl RoutePattern {
    /// True for a number that the pattern stands for.
    pub fn matches(&self, number: &str) -> bool {
        let fits = |(pattern, digit): (char, char)| match pattern {
            'x' => digit.is_ascii_digit(),
            _ => pattern == digit,
        };
        let (wanted, has) = (self.head.chars().count(), number.chars().count());
        let is_long_enough = if self.is_open { has >= wanted } else { has == wanted };
        !number.is_empty() && is_long_enough && self.head.chars().zip(number.chars()).all(fits)
    }

    /// True when every number of `other` is one of this pattern's too, so that `other` is never reached
    /// behind it.
    pub fn covers(&self, other: &Self) -> bool {
        let stands_for = |(mine, theirs): (char, char)| match mine {
            'x' => theirs == 'x' || theirs.is_ascii_digit(),
            _ => mine == theirs,
        };
        let (mine, theirs) = (self.head.len(), other.head.len());
        let is_wide_enough = if self.is_open { theirs >= mine } else { theirs == mine && !other.is_open };
        is_wide_enough && self.head.chars().zip(other.head.chars()).all(stands_for)
    }

    /// No pattern was written.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && !self.is_open
    }
}

impl FromStr for RoutePattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (head, is_open) = text.strip_suffix('*').map_or((text, false), |head| (head, true));
        if text.is_empty() || text.len() > CHARACTERS_MAX {
            return Err("not 1 to 40 characters");
        }
        if !head.chars().all(|c| c.is_ascii_digit() || c == '+' || c == 'x') {
            return Err("digits, \"+\", \"x\" and a \"*\" at the end only");
        }
        Ok(Self { head: head.to_owned(), is_open })
    }
}

impl fmt::Display for RoutePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.head, if self.is_open { "*" } else { "" })
    }
}

impl Serialize for RoutePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RoutePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Names of gateways in the order they are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatewayNames(pub Vec<String>);

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> RoutePattern {
        text.parse().unwrap()
    }

    /// Goal: each character means what the reference says. Method: a table of numbers.
    #[test]
    fn a_pattern_stands_for_its_numbers_and_no_others() {
        for (text, inside, outside) in [
            ("1001", "1001", "10012"),
            ("1xxx", "1999", "19x9"),
            ("+49*", "+4930", "4930"),
            ("0*", "0", "10"),
            ("*", "bob", ""),
            ("xx*", "12", "1"),
        ] {
            assert!(pattern(text).matches(inside), "{text} {inside}");
            assert!(!pattern(text).matches(outside), "{text} {outside}");
            assert_eq!(pattern(text).to_string(), text);
        }
        assert!(!RoutePattern::default().matches("") && !RoutePattern::default().matches("1"));
        for text in ["", "1*2", "abc", "1-2", &"1".repeat(41)] {
            assert!(text.parse::<RoutePattern>().is_err(), "{text}");
        }
    }

    /// Goal: a pattern covers another exactly when no number tells them apart.
    /// Method: pairs each way.
    #[test]
    fn a_wider_pattern_covers_a_narrower_one() {
        for (wide, narrow) in
            [("*", "1*"), ("1*", "1xx"), ("1xx", "12x"), ("xxx", "123"), ("1*", "1*"), ("x*", "1")]
        {
            assert!(pattern(wide).covers(&pattern(narrow)), "{wide} {narrow}");
        }
        for (one, other) in [("1*", "*"), ("12x", "1xx"), ("1xx", "1*"), ("1x", "1xx"), ("x*", "+1*")] {
            assert!(!pattern(one).covers(&pattern(other)), "{one} {other}");
        }
    }
}
