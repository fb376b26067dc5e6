//! Key presses: telephone-events (RFC 4733) and tones in the sound (ITU-T Q.23).

/// How key presses travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DtmfMode {
    /// RTP telephone-event packets.
    Rfc4733,
    /// Two tones in the voice stream.
    Inband,
}

/// How long a key is held, in 20 ms frames (120 ms).
pub const FRAMES_ON: u16 = 6;
/// How long a pause follows, in 20 ms frames (100 ms).
pub const FRAMES_OFF: u16 = 5;

/// The event code of a key (RFC 4733 §3.2); `None` for no key.
pub fn event(key: char) -> Option<u8> {
    let at = "0123456789*#ABCD".find(key.to_ascii_uppercase())?;
    u8::try_from(at).ok()
}

/// The payload of one event packet: `duration` in timestamp units (RFC 4733 §2.3), volume -10 dBm0.
pub fn payload(event: u8, end: bool, duration: u16) -> [u8; 4] {
    let [high, low] = duration.to_be_bytes();
    [event, u8::from(end) << 7 | 10, high, low]
}

/// The two frequencies of a key in Hz (Q.23): row, column.
pub fn frequencies(key: char) -> Option<(f64, f64)> {
    const ROWS: [f64; 4] = [697.0, 770.0, 852.0, 941.0];
    const COLUMNS: [f64; 4] = [1209.0, 1336.0, 1477.0, 1633.0];
    let at = "123A456B789C*0#D".find(key.to_ascii_uppercase())?;
    Some((ROWS[at / 4], COLUMNS[at % 4]))
}

/// `count` samples of a key's two tones, starting `at` samples into the press; about -8 dBm0 each.
#[expect(clippy::cast_possible_truncation, reason = "twice 9000 is below i16::MAX")]
pub fn tones(key: char, at: u32, count: u32) -> Vec<i16> {
    let (row, column) = frequencies(key).unwrap_or((0.0, 0.0));
    let wave = |frequency: f64, n: u32| (std::f64::consts::TAU * frequency * f64::from(n) / 8000.0).sin();
    (at..at + count).map(|n| (9000.0 * (wave(row, n) + wave(column, n))) as i16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::beep::purity;

    /// Goal: keys have the codes of RFC 4733 table 3 and payloads its layout.
    /// Method: keys at the edges; one payload by hand.
    #[test]
    fn keys_have_the_codes_of_the_rfc() {
        assert_eq!("09*#Ad".chars().map(event).collect::<Option<Vec<_>>>(), Some(vec![0, 9, 10, 11, 12, 15]));
        assert_eq!(event('x'), None);
        assert_eq!(payload(11, true, 960), [11, 0x8A, 3, 192]);
    }

    /// Goal: a key's sound is its two tones and nothing else.
    /// Method: 5 at 770 + 1336 Hz over 100 ms; each carries about half the energy.
    #[test]
    fn a_key_sounds_at_its_two_frequencies() {
        let sound = tones('5', 0, 800);
        let (row, column) = (purity(&sound, 770.0), purity(&sound, 1336.0));
        assert!((0.45..0.55).contains(&row) && (0.45..0.55).contains(&column), "{row} {column}");
    }
}
