//! A range of UDP ports, cut into slices of whole RTP/RTCP pairs.

use serde::{Deserialize, Serialize};

/// Ports `first` to `last`, both included, as text `"16384-32767"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl PortRange {
    /// Cuts the range into `parts` slices of whole even/odd pairs and gives slice `index`.
    ///
    /// Empty parts do not happen while `parts` is at most the number of pairs; beyond that the
    /// result is `None`.
    pub fn slice(self, index: u16, parts: u16) -> Option<Self> {
        let first = u32::from(self.first).next_multiple_of(2);
        let pairs = (u32::from(self.last) + 1).saturating_sub(first) / 2;
        let per_slice = pairs.checked_div(u32::from(parts))?;
        if per_slice == 0 || index >= parts {
            return None;
        }
        let start = first + u32::from(index) * per_slice * 2;
        let end = start + per_slice * 2 - 1;
        Some(Self { first: u16::try_from(start).ok()?, last: u16::try_from(end).ok()? })
    }

    /// How many even/odd pairs the range holds.
    pub fn pairs(self) -> u32 {
        (u32::from(self.last) + 1).saturating_sub(u32::from(self.first).next_multiple_of(2)) / 2
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a port range like \"16384-32767\" within 1024-65535");
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let first: u16 = first.trim().parse().map_err(|_| bad())?;
        let last: u16 = last.trim().parse().map_err(|_| bad())?;
        if first < 1024 || last <= first {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        format!("{}-{}", range.first, range.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> PortRange {
        PortRange::try_from(text.to_owned()).unwrap()
    }

    /// Goal: slices are whole pairs, disjoint, and inside the range (RFC 3550 §11: even RTP, odd RTCP).
    /// Method: cut ranges with odd ends and compare with ports counted by hand.
    #[test]
    fn slices_are_disjoint_whole_pairs() {
        let odd_ends = range("10001-10012");
        assert_eq!(odd_ends.pairs(), 5, "10002/3 to 10010/11");
        assert_eq!(odd_ends.slice(0, 2), Some(range("10002-10005")));
        assert_eq!(odd_ends.slice(1, 2), Some(range("10006-10009")));
        assert_eq!(odd_ends.slice(2, 2), None);
        assert_eq!(range("16384-32767").slice(1, 2), Some(range("24576-32767")));
    }

    /// Goal: a range too small for its parts gives nothing, not an empty or overlapping slice.
    /// Method: more parts than pairs, and the top of the port space.
    #[test]
    fn too_many_parts_and_the_top_of_the_space_are_handled() {
        assert_eq!(range("10000-10003").slice(0, 3), None);
        assert_eq!(range("65534-65535").slice(0, 1), Some(range("65534-65535")));
        assert_eq!(range("65534-65535").slice(0, 0), None);
    }

    /// Goal: only ranges of unprivileged ports are read. Method: texts that are not.
    #[test]
    fn texts_that_are_no_range_are_refused() {
        for text in ["", "16384", "16384-", "1023-2000", "2000-2000", "3000-2000", "2000-65536", "a-b"] {
            assert!(PortRange::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
