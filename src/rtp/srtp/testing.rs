//! What tests of more than one file here need.

/// Bytes of hexadecimal digits; white space is skipped.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digit = |digit: char| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = text.chars().filter_map(digit).collect();
    assert!(digits.len().is_multiple_of(2));
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
