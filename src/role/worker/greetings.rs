//! Greetings in their wire form, made once for as long as a mailbox's file does not change.

use std::collections::HashMap;
use std::sync::Arc;

use crate::media::order::Audio;

/// Most audio kept, in bytes: some 100 minutes in both codecs. Least recently used goes first.
const BYTES_MAX: usize = 96 << 20;

/// One mailbox's greeting.
struct Known {
    samples: Arc<[i16]>,
    audio: Audio,
    used: u64,
}

/// The greetings used last.
pub(super) struct Greetings {
    known: HashMap<String, Known>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

impl Default for Greetings {
    fn default() -> Self {
        Self { known: HashMap::new(), bytes: 0, bytes_max: BYTES_MAX, uses: 0 }
    }
}

impl Greetings {
    /// The wire form of `samples`, the greeting of mailbox `number`.
    pub(super) fn audio(&mut self, number: &str, samples: Arc<[i16]>) -> Audio {
        self.uses += 1;
        if let Some(known) = self.known.get_mut(number)
            && Arc::ptr_eq(&known.samples, &samples)
        {
            known.used = self.uses;
            return known.audio.clone();
        }
        self.forget(number);
        let audio = Audio::from_pcm(&samples);
        self.bytes += bytes(&samples);
        let known = Known { samples, audio: audio.clone(), used: self.uses };
        self.known.insert(number.to_owned(), known);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.oldest()
        {
            self.forget(&oldest);
        }
        audio
    }

    fn oldest(&self) -> Option<String> {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.used);
        oldest.map(|(number, _)| number.clone())
    }

    fn forget(&mut self, number: &str) {
        if let Some(known) = self.known.remove(number) {
            self.bytes -= bytes(&known.samples);
        }
    }
}

/// Two bytes a sample as read, one in each codec.
fn bytes(samples: &[i16]) -> usize {
    4 * samples.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: usize) -> Arc<[i16]> {
        vec![0; count].into()
    }

    /// Goal: a greeting is coded once and again when its file changed. Method: the same samples
    /// twice, then others.
    #[test]
    fn a_greeting_is_coded_once_until_it_changes() {
        let mut greetings = Greetings::default();
        let first = samples(80);
        let coded = greetings.audio("1001", Arc::clone(&first));
        assert!(Arc::ptr_eq(&coded.pcmu, &greetings.audio("1001", first).pcmu));
        assert_eq!(greetings.audio("1001", samples(160)).pcmu.len(), 160);
        assert_eq!(greetings.bytes, 4 * 160, "the old one is gone");
    }

    /// Goal: however many mailboxes have a greeting, memory is bounded, and those in use stay.
    /// Method: room for three, a hundred mailboxes, one of them called every time.
    #[test]
    fn greetings_never_exceed_their_room_and_the_least_used_goes() {
        let mut greetings = Greetings { bytes_max: 3 * 4 * 80, ..Greetings::default() };
        let favourite = samples(80);
        for number in 0..100 {
            greetings.audio("1001", Arc::clone(&favourite));
            greetings.audio(&number.to_string(), samples(80));
            assert!(greetings.bytes <= greetings.bytes_max);
        }
        assert_eq!(greetings.known.len(), 3);
        assert!(greetings.known.contains_key("1001"));
        // One that is larger than the room is played and not kept.
        assert_eq!(greetings.audio("2", samples(1000)).pcmu.len(), 1000);
        assert_eq!((greetings.known.len(), greetings.bytes), (0, 0));
    }
}
