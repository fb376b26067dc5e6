//! Between linear samples and the audio of the wire.

use crate::media::order::{Audio, Codec, CodedBlock};

impl Audio {
    /// Codes 16-bit linear samples at 8000 Hz into every codec of the wire.
    pub fn from_pcm(samples: &[i16]) -> Self {
        Self { pcmu: coded(Codec::Pcmu, samples), pcma: coded(Codec::Pcma, samples) }
    }
}

impl CodedBlock {
    /// Codes 16-bit linear samples at 8000 Hz.
    pub fn from_pcm(codec: Codec, samples: &[i16]) -> Self {
        Self { codec, bytes: coded(codec, samples) }
    }

    /// Its 16-bit linear samples.
    pub fn to_pcm(&self) -> Vec<i16> {
        self.bytes.iter().map(|byte| self.codec.decode(*byte)).collect()
    }

    /// How many samples there are.
    pub fn samples(&self) -> u64 {
        self.bytes.len() as u64
    }
}

fn coded<B: FromIterator<u8>>(codec: Codec, samples: &[i16]) -> B {
    samples.iter().map(|sample| codec.encode(*sample)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Goal: both codecs carry every sample. Method: code a ramp, decode it, compare within the
    /// widest step of G.711 (1024 of 65536).
    #[test]
    fn audio_has_one_byte_a_sample_in_each_codec() {
        let ramp: Vec<i16> = (-16_000..16_000).step_by(4).collect();
        let audio = Audio::from_pcm(&ramp);
        assert_eq!(audio.duration(), Duration::from_secs(1));
        for codec in [Codec::Pcmu, Codec::Pcma] {
            assert_eq!(audio.bytes(codec).len(), ramp.len());
            for (byte, sample) in audio.bytes(codec).iter().zip(&ramp) {
                assert!((codec.decode(*byte) - sample).abs() <= 512);
            }
        }
    }
}
