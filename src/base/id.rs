//! Identifiers that cross rooms.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::clock;

/// One leg (a dialog and its media), unique for the life of a worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct LegId(pub u64);

/// One playlist started on a leg; `Played` carries it back, so a stale end is recognisable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlayId(pub u32);

/// One voice message, and its recording before it is a message.
///
/// 28 lower-case hex digits: 12 of milliseconds since 1970, 16 random. Sorts by time, safe as a
/// file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MessageId(String);

/// A text that is no message id: wrong length or a character that is no lower-case hex digit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a message id (28 lower-case hex digits): {0:?}")]
pub struct MessageIdError(pub String);

impl MessageId {
    /// Digits in the text form.
    pub const LEN: usize = 28;

    /// Makes the id of a message that starts at `at`, told apart from its neighbours by `random`.
    pub fn new(at: SystemTime, random: u64) -> Self {
        let ms = clock::unix_ms(at) & 0xFFFF_FFFF_FFFF;
        Self(format!("{ms:012x}{random:016x}"))
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// Anything but 28 lower-case hex digits, so that an id can never walk out of a folder.
    pub fn parse(text: &str) -> Result<Self, MessageIdError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == Self::LEN && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(MessageIdError(text.to_owned()))
        }
    }

    /// When what it names began, Unix milliseconds.
    pub fn started_ms(&self) -> u64 {
        self.0.get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
    }

    /// The half that tells it from others of its millisecond.
    pub fn random(&self) -> u64 {
        self.0.get(12..).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// Goal: ids sort by time and survive their text form. Method: arithmetic on known times.
    #[test]
    fn message_ids_sort_by_time_and_round_trip() {
        let early = MessageId::new(UNIX_EPOCH + Duration::from_millis(255), u64::MAX);
        let late = MessageId::new(UNIX_EPOCH + Duration::from_millis(256), 0);
        assert!(early < late);
        assert_eq!(early.as_str(), "0000000000ffffffffffffffffff");
        assert_eq!(MessageId::parse(late.as_str()).unwrap(), late);
        assert_eq!((early.started_ms(), early.random(), late.random()), (255, u64::MAX, 0));
    }

    /// Goal: no id can name a path outside its folder. Method: texts that try.
    #[test]
    fn texts_that_are_not_28_hex_digits_are_refused() {
        for text in
            ["", "../../../etc/passwd", "0000000000FFFFFFFFFFFFFFFFFF", "0/00000000ffffffffffffffffff"]
        {
            assert!(MessageId::parse(text).is_err(), "{text}");
        }
    }
}
