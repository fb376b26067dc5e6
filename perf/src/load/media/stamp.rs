//! What the first bytes of our payloads say, so that a packet that comes back tells its own story.

use std::time::Duration;

/// Bytes a stamp takes at the front of a payload.
pub const STAMP_BYTES: usize = 20;

/// Marks a payload of ours; as sound it is a click of 0.5 ms.
const MAGIC: [u8; 4] = *b"VXPF";

/// Who sent a frame, which one, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The sending stream.
    pub stream: u32,
    /// Its frame, counted from 0.
    pub frame: u32,
    /// Time since 1970.
    pub sent: Duration,
}

impl Stamp {
    /// Writes it over the front of `payload`; nothing when that is too short.
    pub fn write(&self, payload: &mut [u8]) {
        let Some(front) = payload.first_chunk_mut::<STAMP_BYTES>() else { return };
        front[..4].copy_from_slice(&MAGIC);
        front[4..8].copy_from_slice(&self.stream.to_be_bytes());
        front[8..12].copy_from_slice(&self.frame.to_be_bytes());
        let nanos = u64::try_from(self.sent.as_nanos()).unwrap_or(u64::MAX);
        front[12..].copy_from_slice(&nanos.to_be_bytes());
    }

    /// Reads it; `None` when the payload is none of ours.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (magic, rest) = payload.split_first_chunk::<4>()?;
        let (stream, rest) = rest.split_first_chunk::<4>()?;
        let (frame, rest) = rest.split_first_chunk::<4>()?;
        let (nanos, _) = rest.split_first_chunk::<8>()?;
        (*magic == MAGIC).then(|| Self {
            stream: u32::from_be_bytes(*stream),
            frame: u32::from_be_bytes(*frame),
            sent: Duration::from_nanos(u64::from_be_bytes(*nanos)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a stamp survives the trip, and other sound is not taken for one.
    /// Method: write, read; a payload cut short, one byte changed, silence.
    #[test]
    fn a_stamp_reads_back_and_other_sound_does_not() {
        let stamp = Stamp { stream: 4711, frame: 70_000, sent: Duration::new(1_790_000_000, 123_456_789) };
        let mut payload = [0xFF; 160];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert!(payload[STAMP_BYTES..].iter().all(|&byte| byte == 0xFF));
        assert_eq!(Stamp::read(&payload[..STAMP_BYTES - 1]), None);
        payload[0] ^= 1;
        assert_eq!(Stamp::read(&payload), None);
        assert_eq!(Stamp::read(&[0xFF; 160]), None);
        stamp.write(&mut payload[..8]);
        assert_eq!(payload[1..4], *b"XPF", "too short a place is left alone");
    }
}
