//! The prompts a caller hears: built-in recordings, replaceable one by one.
//!
//! The recordings are made by `prompts/make` from the table `prompts/texts` and committed. Nothing
//! here touches a file: replacements are handed in as samples.

use std::collections::HashMap;
use std::sync::Arc;

/// One thing the node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prompt {
    /// "The person you are calling is not available. Please leave a message after the tone. When
    /// you are done, hang up, or press pound for more options."
    Greeting,
    /// A tone: 1000 Hz, 400 ms, amplitude -12 dBFS, 5 ms ramps.
    Beep,
    /// "To send your message, press one. To hear it, press two. To record it again, press three."
    AfterRecording,
    /// "Your message has been sent. Goodbye."
    Sent,
    /// "Nothing was recorded. Please speak after the tone."
    NothingRecorded,
    /// "That key is not available here."
    InvalidKey,
    /// "Goodbye."
    Goodbye,
    /// "This is voxring, a media node that answers calls, plays prompts and takes voice mail. It
    /// starts again now."
    DemoLoop,
    /// "Please record your message again after the tone."
    Rerecord,
}

impl Prompt {
    /// Every prompt.
    pub const ALL: [Self; 9] = [
        Self::Greeting,
        Self::Beep,
        Self::AfterRecording,
        Self::Sent,
        Self::NothingRecorded,
        Self::InvalidKey,
        Self::Goodbye,
        Self::DemoLoop,
        Self::Rerecord,
    ];

    /// File name without `.wav`, of the built-in recording and of an operator's own.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Beep => "beep",
            Self::AfterRecording => "after_recording",
            Self::Sent => "sent",
            Self::NothingRecorded => "nothing_recorded",
            Self::InvalidKey => "invalid_key",
            Self::Goodbye => "goodbye",
            Self::DemoLoop => "demo_loop",
            Self::Rerecord => "rerecord",
        }
    }

    /// The committed WAV file.
    const fn wav(self) -> &'static [u8] {
        match self {
            Self::Greeting => include_bytes!("prompts/en/greeting.wav"),
            Self::Beep => include_bytes!("prompts/en/beep.wav"),
            Self::AfterRecording => include_bytes!("prompts/en/after_recording.wav"),
            Self::Sent => include_bytes!("prompts/en/sent.wav"),
            Self::NothingRecorded => include_bytes!("prompts/en/nothing_recorded.wav"),
            Self::InvalidKey => include_bytes!("prompts/en/invalid_key.wav"),
            Self::Goodbye => include_bytes!("prompts/en/goodbye.wav"),
            Self::DemoLoop => include_bytes!("prompts/en/demo_loop.wav"),
            Self::Rerecord => include_bytes!("prompts/en/rerecord.wav"),
        }
    }
}

/// All prompts as 16-bit linear samples at 8000 Hz. Cloning shares the samples.
#[derive(Debug, Clone)]
pub struct Prompts {
    samples: HashMap<Prompt, Arc<[i16]>>,
}

impl Prompts {
    /// The recordings that come with the program.
    pub fn builtin() -> Self {
        Self::with_overrides(HashMap::new())
    }

    /// The built-in recordings, with those an operator brought in their place.
    ///
    /// `overrides` are 16-bit linear samples at 8000 Hz; an empty one silences its prompt.
    pub fn with_overrides(mut overrides: HashMap<Prompt, Vec<i16>>) -> Self {
        let take = |prompt: Prompt| {
            let own = overrides.remove(&prompt).unwrap_or_else(|| builtin_samples(prompt));
            (prompt, Arc::from(own))
        };
        Self { samples: Prompt::ALL.into_iter().map(take).collect() }
    }

    /// The samples of one prompt, 8000 a second.
    pub fn get(&self, prompt: Prompt) -> &[i16] {
        self.samples.get(&prompt).map_or(&[], |samples| samples)
    }
}

fn builtin_samples(prompt: Prompt) -> Vec<i16> {
    let reader = hound::WavReader::new(prompt.wav()).expect("a test reads every committed prompt");
    reader.into_samples::<i16>().map(|sample| sample.expect("committed prompts are whole")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RMS in dB below a full-scale square wave.
    fn rms_dbfs(samples: &[i16]) -> f64 {
        let power: f64 = samples.iter().map(|&s| f64::from(s) * f64::from(s)).sum();
        10.0 * (power / samples.len() as f64 / (32_768.0 * 32_768.0)).log10()
    }

    /// Goal: every committed prompt is telephone audio at one loudness, and together they stay
    /// small. Method: read each file's header and measure its samples.
    #[test]
    fn every_prompt_is_16_bit_8_khz_mono_of_the_same_loudness() {
        let prompts = Prompts::builtin();
        let mut bytes = 0;
        for prompt in Prompt::ALL {
            let spec = hound::WavReader::new(prompt.wav()).unwrap().spec();
            assert_eq!((spec.channels, spec.sample_rate, spec.bits_per_sample), (1, 8000, 16), "{prompt:?}");
            bytes += prompt.wav().len();
            let samples = prompts.get(prompt);
            if prompt == Prompt::Beep {
                continue;
            }
            let level = rms_dbfs(samples);
            assert!((-23.0..=-19.0).contains(&level), "{prompt:?} at {level:.1} dBFS");
            // Silence: below -40 dBFS, which is 328 of 32768. At most 100 ms, which is 800 samples.
            let lead = samples.iter().take_while(|s| s.unsigned_abs() < 328).count();
            let trail = samples.iter().rev().take_while(|s| s.unsigned_abs() < 328).count();
            assert!(lead <= 800 && trail <= 800, "{prompt:?} silent for {lead} and {trail} samples");
        }
        assert!(bytes < 600_000, "{bytes}");
    }

    /// Goal: the beep is the tone its documentation promises. Method: length, peak (-12 dBFS is
    /// 32768 / 10^0.6 = 8231), zero crossings (1000 Hz for 0.4 s crosses 800 times) and first sample.
    #[test]
    fn the_beep_is_400_ms_of_1000_hz_at_minus_12_dbfs() {
        let prompts = Prompts::builtin();
        let beep = prompts.get(Prompt::Beep);
        assert_eq!(beep.len(), 3200);
        let peak = beep.iter().map(|s| s.unsigned_abs()).max().unwrap();
        assert!(peak.abs_diff(8231) < 100, "{peak}");
        let crossings = beep.windows(2).filter(|pair| (pair[0] >= 0) != (pair[1] >= 0)).count();
        assert!(crossings.abs_diff(800) <= 4, "{crossings}");
        assert!(beep[0].unsigned_abs() < 100);
    }

    /// Goal: an operator's recording replaces its prompt and no other. Method: override one.
    #[test]
    fn an_override_replaces_exactly_its_prompt() {
        let prompts = Prompts::with_overrides(HashMap::from([(Prompt::Sent, vec![1, 2, 3])]));
        assert_eq!(prompts.get(Prompt::Sent), [1, 2, 3]);
        assert_eq!(prompts.get(Prompt::Beep), Prompts::builtin().get(Prompt::Beep));
    }

    /// Goal: the table the recordings are made from names every spoken prompt. Method: compare.
    #[test]
    fn the_text_table_has_every_spoken_prompt() {
        let table = include_str!("prompts/texts");
        for prompt in Prompt::ALL {
            let listed = table.lines().any(|line| line.split_whitespace().next() == Some(prompt.name()));
            assert_eq!(listed, prompt != Prompt::Beep, "{prompt:?}");
        }
    }
}
