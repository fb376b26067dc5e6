//! The reorder window: received audio waits here, by its place in the recording, until everything
//! before it is there or given up.
//!
//! Places are sample positions, so order of arrival, duplicates and packet sizes do not matter.

use crate::media::order::Codec;

/// Samples the window spans, 512 ms: what is allowed ahead of real time, a stall's wait and the
/// largest packet together.
pub const WINDOW_SAMPLES: usize = 4096;
/// As a position.
const SPAN: u64 = WINDOW_SAMPLES as u64;

/// A stretch of the recording that is not yet written.
#[derive(Debug, Default)]
pub struct ReorderWindow {
    /// Both empty until something has to wait: most streams come in order.
    samples: Box<[i16]>,
    present: Box<[bool]>,
    /// Position of the first sample not yet taken out.
    start: u64,
    /// Position after the last sample put in, at least `start`.
    end: u64,
}

/// What to put in.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Received audio; what is there already stays.
    Coded(Codec, &'a [u8]),
    /// Known silence for so many samples; what is there is silenced.
    Silence(u64),
}

impl ReorderWindow {
    /// An empty window at `position`.
    pub fn at(position: u64) -> Self {
        Self { start: position, end: position, ..Self::default() }
    }

    /// Position of the first sample not yet taken out.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Position after the last sample put in.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The first position too far ahead to be put in.
    pub fn reach(&self) -> u64 {
        self.start + SPAN
    }

    /// Nothing waits, and `position` is the first sample not yet taken out: what belongs there can be
    /// taken as it is, and the window moved on by [`Self::advance`].
    pub fn is_next(&self, position: u64) -> bool {
        self.start == self.end && position == self.start
    }

    /// Puts content at `position`; what lies outside the window is left out. Gives how many samples
    /// are new.
    pub fn place(&mut self, position: u64, content: Content<'_>) -> usize {
        let len = match content {
            Content::Coded(_, bytes) => bytes.len() as u64,
            Content::Silence(samples) => samples,
        };
        let from = position.max(self.start);
        let to = position.saturating_add(len).min(self.reach());
        let mut new = 0;
        if self.present.is_empty() && from < to {
            self.samples = vec![0; WINDOW_SAMPLES].into();
            self.present = vec![false; WINDOW_SAMPLES].into();
        }
        for at in from..to {
            let slot = slot(at);
            let known = self.present[slot];
            let byte = usize::try_from(at - position).unwrap_or(usize::MAX);
            match content {
                Content::Coded(codec, bytes) => {
                    if let Some(byte) = bytes.get(byte).filter(|_| !known) {
                        self.samples[slot] = codec.decode(*byte);
                    }
                }
                Content::Silence(_) => self.samples[slot] = 0,
            }
            self.present[slot] = true;
            new += usize::from(!known);
        }
        if from < to {
            self.end = self.end.max(to);
        }
        new
    }

    /// Silences what is there from `position` on.
    pub fn silence_from(&mut self, position: u64) {
        for at in position.max(self.start)..self.end {
            self.samples[slot(at)] = 0;
        }
    }

    /// The samples that are next and there, as far as they lie in one piece; may be empty. Take
    /// them out with [`Self::advance`].
    pub fn ready(&mut self) -> &mut [i16] {
        if self.start == self.end {
            return &mut [];
        }
        let from = slot(self.start);
        let most = usize::try_from(self.end - self.start).unwrap_or(WINDOW_SAMPLES);
        let to = WINDOW_SAMPLES.min(from + most);
        let run = self.present[from..to].iter().take_while(|present| **present).count();
        &mut self.samples[from..from + run]
    }

    /// How many samples are missing before the next one that is there. `None`: none is there.
    pub fn gap(&self) -> Option<u64> {
        (self.start..self.end).position(|at| self.present[slot(at)]).map(|gap| gap as u64)
    }

    /// Moves the start on by `samples`, whatever is there.
    pub fn advance(&mut self, samples: u64) {
        let to = self.start + samples;
        for at in self.start..to.min(self.end) {
            self.present[slot(at)] = false;
        }
        self.start = to;
        self.end = self.end.max(to);
    }
}

/// Where a position lies in the ring.
fn slot(position: u64) -> usize {
    (position % SPAN) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(byte: u8, len: usize) -> Vec<u8> {
        vec![byte; len]
    }

    fn drain(window: &mut ReorderWindow) -> Vec<i16> {
        let mut out = Vec::new();
        loop {
            let ready = window.ready().to_vec();
            if ready.is_empty() {
                return out;
            }
            window.advance(ready.len() as u64);
            out.extend(ready);
        }
    }

    /// Goal: packets come out in order once the missing one is there, also across the ring's seam.
    /// Method: 100 rounds of three packets put in backwards.
    #[test]
    fn packets_put_in_backwards_come_out_in_order() {
        let mut window = ReorderWindow::default();
        for round in 0..100 {
            let base = round * 480;
            for (index, byte) in [(2, 0x80), (1, 0x90), (0, 0xA0)] {
                assert!(drain(&mut window).is_empty());
                let bytes = coded(byte, 160);
                assert_eq!(window.place(base + index * 160, Content::Coded(Codec::Pcmu, &bytes)), 160);
            }
            let wanted: Vec<i16> =
                [0xA0_u8, 0x90, 0x80].iter().flat_map(|byte| vec![Codec::Pcmu.decode(*byte); 160]).collect();
            assert_eq!(drain(&mut window), wanted);
        }
        assert_eq!(window.start(), 48_000);
    }

    /// Goal: duplicates, late packets and packets out of reach add nothing.
    /// Method: put each in and count the new samples.
    #[test]
    fn duplicates_late_and_far_packets_add_nothing() {
        let mut window = ReorderWindow::default();
        let bytes = coded(0x80, 160);
        let audio = Content::Coded(Codec::Pcmu, &bytes);
        assert_eq!(window.place(160, audio), 160);
        assert_eq!(window.place(160, audio), 0);
        assert_eq!(window.place(80, audio), 80);
        assert_eq!(window.gap(), Some(80));
        window.advance(320);
        assert_eq!(window.place(0, audio), 0);
        assert_eq!(window.place(240, audio), 80);
        assert_eq!(window.place(u64::MAX - 10, audio), 0);
        assert_eq!(window.place(window.reach() - 10, audio), 10);
    }

    /// Goal: known silence replaces audio. Method: silence over half a packet.
    #[test]
    fn known_silence_replaces_audio() {
        let mut window = ReorderWindow::default();
        window.place(0, Content::Coded(Codec::Pcma, &coded(0x2A, 160)));
        assert_eq!(window.place(80, Content::Silence(160)), 80);
        let out = drain(&mut window);
        assert_eq!(out.len(), 240);
        assert!(out[..80].iter().all(|sample| *sample != 0) && out[80..].iter().all(|s| *s == 0));
    }
}
