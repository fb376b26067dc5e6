//! WAV files: 16-bit linear PCM, 8000 Hz, mono, and nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use crate::base::limits::{GREETING_S_MAX, SAMPLE_RATE_HZ};
use crate::um::prompts::Prompt;

/// Bytes before the first sample in the WAV files written here.
pub const HEADER_BYTES: usize = 44;
/// Largest WAV file that is read, bytes: 109 minutes.
pub const WAV_BYTES_MAX: u64 = 100 << 20;

/// What is wrong with a WAV file. Always the doing of whoever made it, except `Io`.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// No WAV at all, or its header is damaged.
    #[error("not a WAV file: {0}")]
    NotWav(String),
    /// Compressed or floating-point samples.
    #[error("samples are not linear PCM (convert with: sox in.wav -r 8000 -c 1 -b 16 out.wav)")]
    NotPcm,
    /// Stereo.
    #[error("{0} channels, not 1 (convert with: sox in.wav -r 8000 -c 1 -b 16 out.wav)")]
    Channels(u16),
    /// Not telephone audio.
    #[error("{0} samples a second, not 8000 (convert with: sox in.wav -r 8000 -c 1 -b 16 out.wav)")]
    Rate(u32),
    /// 8 or 24 bits.
    #[error("{0} bits a sample, not 16 (convert with: sox in.wav -r 8000 -c 1 -b 16 out.wav)")]
    Bits(u16),
    /// The header promises more than there is.
    #[error("cut short: {found} of {promised} samples are there")]
    Truncated {
        /// Samples that could be read.
        found: usize,
        /// Samples the header promises.
        promised: u32,
    },
    /// More than [`WAV_BYTES_MAX`].
    #[error("{0} bytes, more than 100 MiB")]
    TooLong(u64),
    /// A greeting of more than [`GREETING_S_MAX`].
    #[error("longer than {} minutes", GREETING_S_MAX / 60)]
    LongGreeting,
    /// A greeting of no samples at all.
    #[error("empty: it holds no sample")]
    Empty,
    /// A folder, a pipe or a device.
    #[error("not a file")]
    NotFile,
    /// Could not be read.
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads a WAV file from memory.
///
/// # Errors
/// Says which property is not 16-bit linear PCM, 8000 Hz, mono.
pub fn parse(wav: &[u8]) -> Result<Vec<i16>, WavError> {
    let reader = open(Cursor::new(wav))?;
    let promised = reader.len();
    let samples: Vec<i16> = reader.into_samples::<i16>().map_while(Result::ok).collect();
    whole(samples, promised)
}

/// Reads a greeting's WAV file from disk, never more of it than a greeting may be long.
///
/// # Errors
/// As [`read`]; `NotFile`, `Empty`, and `LongGreeting` beyond [`GREETING_S_MAX`].
pub fn read_greeting(path: &Path) -> Result<Vec<i16>, WavError> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(WavError::NotFile);
    }
    if metadata.len() > WAV_BYTES_MAX {
        return Err(WavError::TooLong(metadata.len()));
    }
    let reader = open(BufReader::new(File::open(path)?))?;
    let promised = reader.len();
    let samples_max = (GREETING_S_MAX * SAMPLE_RATE_HZ) as usize;
    let samples: Vec<i16> =
        reader.into_samples::<i16>().map_while(Result::ok).take(samples_max + 1).collect();
    if samples.len() > samples_max {
        return Err(WavError::LongGreeting);
    }
    match whole(samples, promised)? {
        samples if samples.is_empty() => Err(WavError::Empty),
        samples => Ok(samples),
    }
}

/// Reads a header and judges what it says.
fn open<R: Read>(wav: R) -> Result<hound::WavReader<R>, WavError> {
    let reader = hound::WavReader::new(wav).map_err(|error| WavError::NotWav(error.to_string()))?;
    let spec = reader.spec();
    if spec.sample_format != hound::SampleFormat::Int {
        return Err(WavError::NotPcm);
    }
    if spec.channels != 1 {
        return Err(WavError::Channels(spec.channels));
    }
    if spec.sample_rate != SAMPLE_RATE_HZ {
        return Err(WavError::Rate(spec.sample_rate));
    }
    if spec.bits_per_sample != 16 {
        return Err(WavError::Bits(spec.bits_per_sample));
    }
    Ok(reader)
}

/// The samples, if they are all that were promised.
fn whole(samples: Vec<i16>, promised: u32) -> Result<Vec<i16>, WavError> {
    if u32::try_from(samples.len()) != Ok(promised) {
        return Err(WavError::Truncated { found: samples.len(), promised });
    }
    Ok(samples)
}

/// Reads a WAV file from disk.
///
/// # Errors
/// As [`parse`]; `Io` when it cannot be opened, `TooLong` beyond [`WAV_BYTES_MAX`].
pub fn read(path: &Path) -> Result<Vec<i16>, WavError> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > WAV_BYTES_MAX {
        return Err(WavError::TooLong(bytes));
    }
    parse(&std::fs::read(path)?)
}

/// Writes a whole WAV file, replacing what is there.
///
/// # Errors
/// Those of the file system.
pub fn write(path: &Path, samples: &[i16]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(&header(samples.len() as u64))?;
    file.write_all(&to_bytes(samples))
}

/// What [`read_prompts`] found.
#[derive(Debug, Default)]
pub struct OwnPrompts {
    /// Usable recordings, for [`crate::um::prompts::Prompts::with_overrides`].
    pub samples: HashMap<Prompt, Vec<i16>>,
    /// Files that cannot be used, and why; the built-in prompt stays.
    pub refused: Vec<(PathBuf, WavError)>,
}

/// Reads the operator's own prompts: `<folder>/<name>.wav` for each [`Prompt`] that has a file.
pub fn read_prompts(folder: &Path) -> OwnPrompts {
    let mut own = OwnPrompts::default();
    for prompt in Prompt::ALL {
        let path = folder.join(prompt.name()).with_extension("wav");
        match read(&path) {
            Ok(samples) => {
                own.samples.insert(prompt, samples);
            }
            Err(WavError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => own.refused.push((path, error)),
        }
    }
    own
}

/// The header of a file of `samples` samples. 0 stands for "not known yet".
pub fn header(samples: u64) -> [u8; HEADER_BYTES] {
    // A WAV cannot say more than 4 GiB: 74 hours here, far beyond the longest recording.
    let data_bytes = u32::try_from(samples * 2).unwrap_or(u32::MAX - 36);
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(b"RIFF");
    header[4..8].copy_from_slice(&(data_bytes.saturating_add(36)).to_le_bytes());
    header[8..16].copy_from_slice(b"WAVEfmt ");
    header[16..20].copy_from_slice(&16u32.to_le_bytes());
    header[20..22].copy_from_slice(&1u16.to_le_bytes()); // linear PCM
    header[22..24].copy_from_slice(&1u16.to_le_bytes()); // channels
    header[24..28].copy_from_slice(&SAMPLE_RATE_HZ.to_le_bytes());
    header[28..32].copy_from_slice(&(SAMPLE_RATE_HZ * 2).to_le_bytes());
    header[32..34].copy_from_slice(&2u16.to_le_bytes()); // bytes a frame
    header[34..36].copy_from_slice(&16u16.to_le_bytes()); // bits a sample
    header[36..40].copy_from_slice(b"data");
    header[40..44].copy_from_slice(&data_bytes.to_le_bytes());
    header
}

/// Samples as a WAV file holds them.
pub fn to_bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// Samples from the data of a WAV file; an odd last byte is left out.
pub fn from_bytes(data: &[u8]) -> Vec<i16> {
    data.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// RMS above which 20 ms of audio count as voiced: -45 dBm0, which is -51 dBFS. No stricter than
/// the judgement during a call, so that recovery rather keeps a message of noise than loses one.
const VOICED_RMS: i64 = 92;

/// How much of `samples` is louder than silence, milliseconds. Judges what a crash left behind.
pub fn voiced_ms(samples: &[i16]) -> u64 {
    let loud = |frame: &[i16]| {
        let power: i64 = frame.iter().map(|&s| i64::from(s) * i64::from(s)).sum();
        power > VOICED_RMS * VOICED_RMS * 160
    };
    samples.chunks(160).filter(|frame| loud(frame)).count() as u64 * 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wav(channels: u16, sample_rate: u32, bits_per_sample: u16, format: hound::SampleFormat) -> Vec<u8> {
        let spec = hound::WavSpec { channels, sample_rate, bits_per_sample, sample_format: format };
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = hound::WavWriter::new(&mut bytes, spec).unwrap();
        for _ in 0..channels * 10 {
            match format {
                hound::SampleFormat::Int => writer.write_sample(7i8).unwrap(),
                hound::SampleFormat::Float => writer.write_sample(0.5f32).unwrap(),
            }
        }
        writer.finalize().unwrap();
        bytes.into_inner()
    }

    /// Goal: each wrong property is named. Method: hound writes a file of every wrong kind.
    #[test]
    fn a_wav_of_another_format_is_refused_by_the_property_that_is_wrong() {
        use hound::SampleFormat::{Float, Int};
        let error = |wav: &[u8]| parse(wav).unwrap_err().to_string();
        assert!(error(&wav(2, 8000, 16, Int)).starts_with("2 channels"));
        assert!(error(&wav(1, 44_100, 16, Int)).starts_with("44100 samples a second"));
        assert!(error(&wav(1, 8000, 8, Int)).starts_with("8 bits"));
        assert!(error(&wav(1, 8000, 32, Float)).starts_with("samples are not linear PCM"));
        assert!(error(b"ID3 something").starts_with("not a WAV file"));
        assert!(error(b"").starts_with("not a WAV file"));
        let whole = wav(1, 8000, 16, Int);
        assert_eq!(parse(&whole).unwrap(), vec![7; 10]);
        assert!(error(&whole[..whole.len() - 4]).starts_with("cut short: 8 of 10"));
    }

    /// Goal: a greeting is as long as the limit at most, not empty, and a file. Method: files of 0, 5 min
    /// and a sample more, of half what the header promises, a folder and a pipe nobody writes to.
    #[test]
    fn a_greeting_is_a_file_of_one_sample_to_five_minutes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        let read_of = |samples: usize| {
            write(&path, &vec![3; samples]).unwrap();
            read_greeting(&path).map(|samples| samples.len())
        };
        assert_eq!(read_of(1).unwrap(), 1);
        assert_eq!(read_of(5 * 60 * 8000).unwrap(), 2_400_000);
        assert_eq!(read_of(5 * 60 * 8000 + 1).unwrap_err().to_string(), "longer than 5 minutes");
        assert!(matches!(read_of(0), Err(WavError::Empty)));
        let mut half = header(10).to_vec();
        half.extend([0; 10]);
        std::fs::write(&path, half).unwrap();
        assert!(matches!(read_greeting(&path), Err(WavError::Truncated { found: 5, promised: 10 })));
        assert!(matches!(read_greeting(folder.path()), Err(WavError::NotFile)));
        let pipe = folder.path().join("pipe.wav");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read_greeting(&pipe), Err(WavError::NotFile)));
        assert!(matches!(read_greeting(&folder.path().join("none.wav")), Err(WavError::Io(_))));
    }

    /// Goal: what is written here is read by an independent reader, and the other way round.
    /// Method: hound reads a written file; sizes are 44 + 2 a sample.
    #[test]
    fn a_written_file_is_read_back_sample_for_sample() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        let samples = [0, 1, -1, i16::MAX, i16::MIN];
        write(&path, &samples).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 54);
        let theirs: Vec<i16> =
            hound::WavReader::open(&path).unwrap().into_samples().map(Result::unwrap).collect();
        assert_eq!(theirs, samples);
        assert_eq!(read(&path).unwrap(), samples);
    }

    /// Goal: no file crashes the reader. Method: every byte of a header, set to edge values.
    #[test]
    fn a_damaged_header_is_an_error_not_a_crash() {
        let mut whole = header(10).to_vec();
        whole.extend([0; 20]);
        for position in 0..HEADER_BYTES {
            for value in [0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF] {
                let mut damaged = whole.clone();
                damaged[position] = value;
                let _ = parse(&damaged);
                let _ = parse(&damaged[..position]);
            }
        }
    }

    /// Goal: an operator's prompts are found by name and a wrong one is reported, not used.
    /// Method: a folder with a good file, a bad one and one of no prompt's name.
    #[test]
    fn own_prompts_are_read_and_unusable_ones_reported() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("sent.wav"), &[5; 80]).unwrap();
        std::fs::write(folder.path().join("beep.wav"), b"not audio").unwrap();
        write(&folder.path().join("other.wav"), &[6; 80]).unwrap();
        let own = read_prompts(folder.path());
        assert_eq!(own.samples, HashMap::from([(Prompt::Sent, vec![5; 80])]));
        assert_eq!(own.refused.len(), 1);
        assert!(own.refused[0].0.ends_with("beep.wav"));
    }

    /// Goal: silence is not voiced, a tone is. Method: 1 s of each; 300 is far above 92, 50 below.
    #[test]
    fn voiced_time_counts_loud_frames_only() {
        let mut samples = vec![50; 8000];
        assert_eq!(voiced_ms(&samples), 0);
        samples.extend([300; 8000]);
        assert_eq!(voiced_ms(&samples), 1000);
    }
}
