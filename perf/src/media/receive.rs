//! What arrives: loss, order, jitter (RFC 3550 §6.4.1, A.3, A.8) and the sound itself.

use std::collections::HashSet;
use std::time::Instant;

use crate::media::beep::BeepDetector;
use crate::media::g711::Codec;
use crate::media::packet;

/// Longest recording kept in memory: one hour.
const SAMPLES_MAX: usize = 8000 * 3600;

/// One stream's reception. A new SSRC goes on in the same counters, after a new start.
#[derive(Debug, Default)]
pub struct Receiver {
    /// Packets that are valid RTP.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Datagrams that are no RTP.
    pub invalid: u64,
    /// Packets seen before.
    pub duplicate: u64,
    /// Packets that came after a later one.
    pub out_of_order: u64,
    /// Telephone-event packets from the far side.
    pub events: u64,
    /// Streams (SSRCs) seen one after the other.
    pub sources: u64,
    lost_before: u64,
    stream: Option<Stream>,
    jitter: f64,
    beeps: BeepDetector,
    sound: Vec<i16>,
}

/// The present SSRC.
#[derive(Debug)]
struct Stream {
    ssrc: u32,
    first: u64,
    highest: u64,
    seen: HashSet<u64>,
    first_timestamp: u32,
    sound_start: usize,
    /// Arrival and RTP timestamp of the last packet.
    last: (Instant, u32),
}

impl Receiver {
    /// Nothing heard yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One datagram. True when the far side's beep ended in it.
    pub fn push(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let Some((header, payload)) = packet::parse(datagram) else {
            self.invalid += 1;
            return false;
        };
        self.packets += 1;
        self.bytes += payload.len() as u64;
        let Some(codec) = Codec::from_payload_type(header.payload_type) else {
            self.events += 1;
            self.follow(now, &header);
            return false;
        };
        if !self.follow(now, &header) {
            return false;
        }
        let samples: Vec<i16> = payload.iter().map(|&byte| codec.decode(byte)).collect();
        self.keep(header.timestamp, &samples);
        self.beeps.push(&samples)
    }

    /// Counts one packet; false for a duplicate.
    fn follow(&mut self, now: Instant, header: &packet::Header) -> bool {
        if self.stream.as_ref().is_none_or(|stream| stream.ssrc != header.ssrc) {
            self.lost_before = self.lost();
            self.sources += 1;
            let start = u64::from(header.sequence) + 65_536;
            self.stream = Some(Stream {
                ssrc: header.ssrc,
                first: start,
                highest: start,
                seen: HashSet::from([start]),
                first_timestamp: header.timestamp,
                sound_start: self.sound.len(),
                last: (now, header.timestamp),
            });
            return true;
        }
        let Some(stream) = &mut self.stream else { return true };
        let step = header.sequence.wrapping_sub(low_half(stream.highest)).cast_signed();
        let extended = stream.highest.saturating_add_signed(i64::from(step));
        if !stream.seen.insert(extended) {
            self.duplicate += 1;
            return false;
        }
        stream.first = stream.first.min(extended);
        if extended < stream.highest {
            self.out_of_order += 1;
            return true;
        }
        stream.highest = extended;
        let elapsed = now.saturating_duration_since(stream.last.0).as_secs_f64() * 8000.0;
        let media = f64::from(header.timestamp.wrapping_sub(stream.last.1).cast_signed());
        self.jitter += ((elapsed - media).abs() - self.jitter) / 16.0;
        stream.last = (now, header.timestamp);
        true
    }

    /// Puts sound where its timestamp says; gaps stay silent.
    fn keep(&mut self, timestamp: u32, samples: &[i16]) {
        let Some(stream) = &self.stream else { return };
        let offset = i64::from(timestamp.wrapping_sub(stream.first_timestamp).cast_signed());
        let Some(at) = usize::try_from(offset).ok().map(|offset| offset + stream.sound_start) else { return };
        let end = at + samples.len();
        if end > SAMPLES_MAX {
            return;
        }
        if self.sound.len() < end {
            self.sound.resize(end, 0);
        }
        self.sound[at..end].copy_from_slice(samples);
    }

    /// Packets expected by sequence number but never seen.
    pub fn lost(&self) -> u64 {
        let now = self.stream.as_ref().map_or(0, |s| (s.highest - s.first + 1) - s.seen.len() as u64);
        self.lost_before + now
    }

    /// Interarrival jitter in milliseconds.
    pub fn jitter_ms(&self) -> f64 {
        self.jitter / 8.0
    }

    /// Everything heard, from the first packet on.
    pub fn sound(&self) -> &[i16] {
        &self.sound
    }
}

/// The sequence number inside an extended one.
fn low_half(extended: u64) -> u16 {
    u16::try_from(extended & 0xFFFF).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn datagram(sequence: u16, timestamp: u32, ssrc: u32) -> Vec<u8> {
        let header = packet::Header { marker: false, payload_type: 0, sequence, timestamp, ssrc };
        packet::build(&header, &[0x80; 160])
    }

    /// Goal: loss, duplicates and disorder are told apart across the wrap of the sequence number.
    /// Method: 65534, 65535, 1 (0 is missing), 3, 2, 2; later a new SSRC.
    #[test]
    fn loss_duplicates_and_disorder_are_told_apart() {
        let mut receiver = Receiver::new();
        let start = crate::clock::now();
        for (n, sequence) in [65_534u16, 65_535, 1, 3, 2, 2].into_iter().enumerate() {
            let timestamp = u32::from(sequence.wrapping_sub(65_534)) * 160;
            let now = start + Duration::from_millis(20 * n as u64);
            receiver.push(now, &datagram(sequence, timestamp, 1));
        }
        assert_eq!((receiver.lost(), receiver.duplicate, receiver.out_of_order), (1, 1, 1));
        assert_eq!(receiver.sound().len(), 6 * 160);
        assert!(receiver.sound()[320..480].iter().all(|&s| s == 0), "the gap is silent");
        receiver.push(start, &datagram(9, 77, 2));
        receiver.push(start, &datagram(11, 77 + 320, 2));
        assert_eq!((receiver.lost(), receiver.sources), (2, 2));
        assert_eq!(receiver.sound().len(), 9 * 160);
    }

    /// Goal: a steady stream has no jitter, an unsteady one some.
    /// Method: 20 ms apart exactly; then alternately 10 and 30 ms: |D| = 80 units, 10 ms.
    #[test]
    fn jitter_is_that_of_the_rfc() {
        let start = crate::clock::now();
        let (mut even, mut odd) = (Receiver::new(), Receiver::new());
        for n in 0..400u16 {
            let timestamp = u32::from(n) * 160;
            let exact = Duration::from_millis(20 * u64::from(n));
            even.push(start + exact, &datagram(n, timestamp, 1));
            odd.push(
                start + exact + Duration::from_millis(10 * u64::from(n % 2)),
                &datagram(n, timestamp, 1),
            );
        }
        assert!(even.jitter_ms() < 0.001);
        assert!((9.9..10.1).contains(&odd.jitter_ms()), "{}", odd.jitter_ms());
    }
}
