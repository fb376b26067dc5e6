//! What leaves: one 20 ms frame after the other, from a file, a key press or silence.

use std::collections::VecDeque;

use crate::media::dtmf::{self, DtmfMode};
use crate::media::g711::Codec;
use crate::media::mangle::Mangler;
use crate::media::packet::{self, Header};
use crate::rng::Rng;

/// Samples in a packet: 20 ms.
pub const FRAME: u32 = 160;

/// Makes the packets of one stream.
#[derive(Debug)]
pub struct Sender {
    codec: Codec,
    dtmf_payload_type: Option<u8>,
    dtmf_mode: DtmfMode,
    header: Header,
    file: Vec<i16>,
    position: Option<usize>,
    keys: VecDeque<char>,
    press: Option<Press>,
    /// Loss and disorder on purpose.
    pub mangler: Mangler,
    /// Packets made, before the mangler.
    pub packets: u64,
    /// Times the file was played to its end.
    pub played: u32,
}

/// A key on its way.
#[derive(Debug, Clone, Copy)]
struct Press {
    key: char,
    /// Frames since it began; past `FRAMES_ON` the pause runs.
    frame: u16,
    timestamp: u32,
}

impl Sender {
    /// A stream with random SSRC, sequence number and timestamp (RFC 3550 §5.1).
    pub fn new(file: Vec<i16>, dtmf_mode: DtmfMode, mangler: Mangler, rng: &mut Rng) -> Self {
        let header = Header {
            marker: true,
            payload_type: 0,
            sequence: rng.half(),
            timestamp: rng.word(),
            ssrc: rng.word(),
        };
        Self {
            codec: Codec::Pcmu,
            dtmf_payload_type: None,
            dtmf_mode,
            header,
            file,
            position: None,
            keys: VecDeque::new(),
            press: None,
            mangler,
            packets: 0,
            played: 0,
        }
    }

    /// The first packet has this sequence number; before the first packet only.
    pub fn start_at(&mut self, sequence: u16) {
        self.header.sequence = sequence;
    }

    /// What offer and answer agreed on.
    pub fn agree(&mut self, codec: Codec, dtmf_payload_type: Option<u8>) {
        self.codec = codec;
        self.dtmf_payload_type = dtmf_payload_type;
    }

    /// Starts the file from its beginning.
    pub fn play(&mut self) {
        self.position = Some(0);
    }

    /// Presses a key once those before it are done.
    pub fn press(&mut self, key: char) {
        self.keys.push_back(key);
    }

    /// Nothing is sent for a frame (hold), but time goes on.
    pub fn skip(&mut self) {
        self.header.timestamp = self.header.timestamp.wrapping_add(FRAME);
        self.header.marker = true;
    }

    /// Appends the datagrams of the next frame to `out`.
    pub fn frame(&mut self, out: &mut Vec<Vec<u8>>) {
        if self.press.is_none() {
            let timestamp = self.header.timestamp;
            self.press = self.keys.pop_front().map(|key| Press { key, frame: 0, timestamp });
        }
        match self.press {
            Some(press) => self.press_frame(press, out),
            None => self.voice_frame(out),
        }
        self.header.timestamp = self.header.timestamp.wrapping_add(FRAME);
    }

    /// A held key: event packets or tones; then silence until the next key may come.
    fn press_frame(&mut self, press: Press, out: &mut Vec<Vec<u8>>) {
        let by_event = self.dtmf_payload_type.filter(|_| self.dtmf_mode == DtmfMode::Rfc4733);
        if press.frame >= dtmf::FRAMES_ON {
            self.voice(&[0; FRAME as usize], out);
        } else if let Some(payload_type) = by_event {
            self.event(press, payload_type, out);
        } else {
            self.voice(&dtmf::tones(press.key, u32::from(press.frame) * FRAME, FRAME), out);
        }
        let frame = press.frame + 1;
        self.press = (frame < dtmf::FRAMES_ON + dtmf::FRAMES_OFF).then_some(Press { frame, ..press });
    }

    /// One update of an event; the last one goes out three times (RFC 4733 §2.5.1.4).
    fn event(&mut self, press: Press, payload_type: u8, out: &mut Vec<Vec<u8>>) {
        let Some(event) = dtmf::event(press.key) else { return };
        let end = press.frame + 1 == dtmf::FRAMES_ON;
        let duration = (press.frame + 1) * 160;
        for _ in 0..if end { 3 } else { 1 } {
            let header =
                Header { payload_type, timestamp: press.timestamp, marker: press.frame == 0, ..self.header };
            self.emit(&header, &dtmf::payload(event, end, duration), out);
        }
    }

    fn voice_frame(&mut self, out: &mut Vec<Vec<u8>>) {
        let mut samples = [0i16; FRAME as usize];
        if let Some(at) = self.position {
            let rest = &self.file[at..];
            let count = rest.len().min(samples.len());
            samples[..count].copy_from_slice(&rest[..count]);
            let next = at + count;
            self.position = (next < self.file.len()).then_some(next);
            self.played += u32::from(self.position.is_none());
        }
        self.voice(&samples, out);
    }

    fn voice(&mut self, samples: &[i16], out: &mut Vec<Vec<u8>>) {
        let payload: Vec<u8> = samples.iter().map(|&sample| self.codec.encode(sample)).collect();
        let header = Header { payload_type: self.codec.payload_type(), ..self.header };
        self.emit(&header, &payload, out);
        self.header.marker = false;
    }

    fn emit(&mut self, header: &Header, payload: &[u8], out: &mut Vec<Vec<u8>>) {
        self.packets += 1;
        self.mangler.push(packet::build(header, payload), out);
        self.header.sequence = self.header.sequence.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::mangle::Odds;

    fn sender(file: Vec<i16>, mode: DtmfMode) -> Sender {
        let mut sender = Sender::new(file, mode, Mangler::new(Odds::default(), 1), &mut Rng::new(1));
        sender.agree(Codec::Pcma, Some(101));
        sender
    }

    fn frames(sender: &mut Sender, count: usize) -> Vec<(Header, Vec<u8>)> {
        let mut out = Vec::new();
        (0..count).for_each(|_| sender.frame(&mut out));
        out.iter().map(|p| packet::parse(p).map(|(h, payload)| (h, payload.to_vec())).unwrap()).collect()
    }

    /// Goal: a file leaves whole, its last frame filled up with silence, timestamps 160 apart.
    /// Method: 400 samples: three packets, then silence.
    #[test]
    fn a_file_leaves_whole_and_silence_follows() {
        let mut sender = sender(vec![1000; 400], DtmfMode::Rfc4733);
        sender.play();
        let packets = frames(&mut sender, 4);
        let (sound, silence) = (Codec::Pcma.encode(1000), Codec::Pcma.encode(0));
        let voiced: Vec<usize> =
            packets.iter().map(|(_, p)| p.iter().filter(|&&byte| byte == sound).count()).collect();
        assert_eq!(voiced, [160, 160, 80, 0]);
        assert!(packets[3].1.iter().all(|&byte| byte == silence));
        assert_eq!(sender.played, 1);
        for pair in packets.windows(2) {
            assert_eq!(pair[1].0.timestamp.wrapping_sub(pair[0].0.timestamp), 160);
            assert_eq!(pair[1].0.sequence.wrapping_sub(pair[0].0.sequence), 1);
        }
    }

    /// Goal: a key is one event: one timestamp, growing duration, three ends, marker on the first.
    /// Method: press `#`, read eleven frames (RFC 4733 §2.5).
    #[test]
    fn a_key_is_one_event_with_three_ends() {
        let mut sender = sender(Vec::new(), DtmfMode::Rfc4733);
        sender.press('#');
        let packets = frames(&mut sender, 11);
        let events: Vec<_> = packets.iter().filter(|(h, _)| h.payload_type == 101).collect();
        assert_eq!(events.len(), 8);
        assert!(events.iter().all(|(h, p)| h.timestamp == events[0].0.timestamp && p[0] == 11));
        assert!(events.iter().enumerate().all(|(n, (h, _))| h.marker == (n == 0)));
        let ends: Vec<&[u8]> = events.iter().map(|(_, p)| &p[..]).filter(|p| p[1] & 0x80 != 0).collect();
        assert_eq!(ends, [[11, 0x8A, 3, 192]; 3]);
        assert_eq!(packets.len() - events.len(), 5, "the pause is silence");
    }

    /// Goal: without telephone-event in the answer keys become tones.
    /// Method: agree on none, press, look for event packets.
    #[test]
    fn keys_become_tones_when_events_were_not_agreed() {
        let mut sender = sender(Vec::new(), DtmfMode::Rfc4733);
        sender.agree(Codec::Pcma, None);
        sender.press('1');
        let packets = frames(&mut sender, 6);
        assert!(packets.iter().all(|(h, p)| h.payload_type == 8 && p.len() == 160 && p[80] != 0xD5));
    }
}
