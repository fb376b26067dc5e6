//! WAV files: 8 kHz, 16-bit, mono, in and out.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Reads a WAV file of 16-bit linear samples at 8000 Hz, one channel.
///
/// # Errors
/// The file is missing, no WAV, or of another form; the message says how to convert it.
pub fn read(path: &Path) -> Result<Vec<i16>> {
    let mut reader =
        hound::WavReader::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec = reader.spec();
    ensure!(
        spec.sample_rate == 8000
            && spec.channels == 1
            && spec.bits_per_sample == 16
            && spec.sample_format == hound::SampleFormat::Int,
        "{}: want 8000 Hz, 1 channel, 16-bit; it has {} Hz, {} channels, {} bits. \
         Convert it: sox IN.wav -r 8000 -c 1 -b 16 OUT.wav",
        path.display(),
        spec.sample_rate,
        spec.channels,
        spec.bits_per_sample
    );
    reader.samples().collect::<Result<_, _>>().with_context(|| format!("{} is cut short", path.display()))
}

/// Writes samples in the form `read` takes.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, samples: &[i16]) -> Result<()> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let context = || format!("cannot write {}", path.display());
    let mut writer = hound::WavWriter::create(path, spec).with_context(context)?;
    for &sample in samples {
        writer.write_sample(sample).with_context(context)?;
    }
    writer.finalize().with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: samples survive a file; a file of another form is refused with the cure.
    /// Method: write and read back; write 16 kHz by hand and read.
    #[test]
    fn samples_survive_a_file_and_other_forms_are_refused() {
        let folder = std::env::temp_dir();
        let path = folder.join(format!("voxperf-wav-{}.wav", std::process::id()));
        let samples: Vec<i16> = (-500..500).map(|n| n * 60).collect();
        write(&path, &samples).unwrap();
        assert_eq!(read(&path).unwrap(), samples);
        let wide = hound::WavSpec {
            channels: 2,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        hound::WavWriter::create(&path, wide).unwrap().finalize().unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("sox IN.wav -r 8000 -c 1 -b 16"));
        std::fs::remove_file(&path).unwrap();
    }
}
