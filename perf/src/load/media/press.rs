//! A key pressed in a stream (RFC 4733), and whether the far side says something to it.

use std::time::Duration;

use crate::media::dtmf;
use crate::media::g711::Codec;
use crate::media::packet::Header;

/// Frames in which the end of an event is told (RFC 4733 §2.5.1.4).
const ENDS: u16 = 3;
/// Timestamp units of a frame.
const FRAME_UNITS: u16 = 160;

/// Packets of sound in a row that are an answer to a key.
const VOICED_MIN: u32 = 10;
/// Sound this loud in this many samples of a packet is no silence.
const LOUD: i16 = 256;
const LOUD_SAMPLES: usize = 16;

/// A key on its way: an event packet takes the place of each frame of sound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Press {
    payload_type: u8,
    event: u8,
    frame: u16,
    timestamp: u32,
}

impl Press {
    /// A key held from the frame with this timestamp on; `None` when it is none.
    pub(super) fn new(key: char, payload_type: u8, timestamp: u32) -> Option<Self> {
        Some(Self { payload_type, event: dtmf::event(key)?, frame: 0, timestamp })
    }

    /// Writes the next packet's second octet, timestamp and payload over those of a frame of sound, and
    /// gives its length; `None` when the key is over.
    pub(super) fn write(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.frame >= dtmf::FRAMES_ON + ENDS - 1 {
            return None;
        }
        let held = (self.frame + 1).min(dtmf::FRAMES_ON);
        let payload = dtmf::payload(self.event, held == dtmf::FRAMES_ON, held * FRAME_UNITS);
        *buffer.get_mut(1)? = self.payload_type & 0x7F | u8::from(self.frame == 0) << 7;
        buffer.get_mut(4..8)?.copy_from_slice(&self.timestamp.to_be_bytes());
        buffer.get_mut(12..16)?.copy_from_slice(&payload);
        self.frame += 1;
        Some(16)
    }
}

/// Waits for sound after a key that was pressed into silence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reaction {
    until: Duration,
    voiced: u32,
}

impl Reaction {
    /// To be seen until this time since 1970.
    pub(super) fn until(until: Duration) -> Self {
        Self { until, voiced: 0 }
    }

    /// Takes a packet; true when it is the one that proves an answer.
    pub(super) fn hears(&mut self, arrival: Duration, header: &Header, payload: &[u8]) -> bool {
        let is_voiced = is_voiced(header.payload_type, payload) && arrival < self.until;
        self.voiced = if is_voiced { self.voiced + 1 } else { 0 };
        self.voiced == VOICED_MIN
    }
}

/// True of G.711 that is no silence.
pub(super) fn is_voiced(payload_type: u8, payload: &[u8]) -> bool {
    let Some(codec) = Codec::from_payload_type(payload_type) else { return false };
    let loud = payload.iter().filter(|&&byte| codec.decode(byte).unsigned_abs() >= LOUD.unsigned_abs());
    loud.take(LOUD_SAMPLES).count() == LOUD_SAMPLES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a key is six packets of one timestamp with growing duration, then two more copies of its end
    /// (RFC 4733 §2.5.1.4). Method: `#`, until it is over.
    #[test]
    fn a_key_ends_three_times() {
        let mut press = Press::new('#', 101, 4800).unwrap();
        let mut packets = Vec::new();
        let mut buffer = [0u8; 172];
        while let Some(length) = press.write(&mut buffer) {
            packets.push(buffer[..length].to_vec());
        }
        assert!(packets.iter().all(|packet| packet[4..8] == 4800u32.to_be_bytes() && packet[12] == 11));
        assert_eq!(
            packets.iter().map(|packet| packet[1]).collect::<Vec<_>>(),
            [229, 101, 101, 101, 101, 101, 101, 101]
        );
        let durations: Vec<_> = packets.iter().map(|p| u16::from_be_bytes([p[14], p[15]])).collect();
        assert_eq!(durations, [160, 320, 480, 640, 800, 960, 960, 960]);
        let ends: Vec<_> = packets.iter().map(|packet| packet[13] >> 7).collect();
        assert_eq!(ends, [0, 0, 0, 0, 0, 1, 1, 1]);
        assert!(Press::new('x', 101, 0).is_none());
    }

    /// Goal: ten packets of sound in a row and in time are an answer, silence or a click is none.
    /// Method: nine loud ones, a silent one, ten loud ones; the same too late.
    #[test]
    fn sound_in_a_row_is_an_answer() {
        let header = Header { marker: false, payload_type: 0, sequence: 0, timestamp: 0, ssrc: 0 };
        let (loud, silent) = ([Codec::Pcmu.encode(5000); 160], [Codec::Pcmu.encode(0); 160]);
        let now = Duration::from_secs(1);
        let mut reaction = Reaction::until(Duration::from_secs(2));
        let mut packets = vec![&loud; 9];
        packets.push(&silent);
        packets.extend(vec![&loud; 12]);
        let heard = packets.iter().filter(|packet| reaction.hears(now, &header, &packet[..])).count();
        assert_eq!(heard, 1);
        let mut reaction = Reaction::until(now);
        assert!(!(0..12).any(|_| reaction.hears(now, &header, &loud)));
        assert!(!is_voiced(101, &loud));
    }
}
