//! PINs: which are acceptable, how they are kept, how one is made up.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};

/// Shortest PIN, digits.
pub const PIN_DIGITS_MIN: usize = 4;
/// Longest PIN, digits.
pub const PIN_DIGITS_MAX: usize = 24;
/// Digits of a PIN made up by [`random`].
pub const PIN_DIGITS: usize = 6;

/// Why a PIN is refused. Always the chooser's doing, except `Random` and `Hash`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Too short, too long, or something else than digits.
    #[error("a PIN has 4 to 24 digits and nothing else")]
    Shape,
    /// 123456, 987654.
    #[error("the PIN's digits are in sequence")]
    Sequential,
    /// 111111.
    #[error("the PIN repeats one digit")]
    Repeated,
    /// The PIN ends the extension, or the extension ends the PIN.
    #[error("the PIN is a part of the extension")]
    Extension,
    /// The kernel gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
    /// The hash function refused its input.
    #[error("PIN hash: {0}")]
    Hash(String),
}

/// Says whether `pin` may protect the mailbox `extension`.
///
/// # Errors
/// The first rule it breaks.
pub fn check(pin: &str, extension: &str) -> Result<(), PinError> {
    let digits = pin.as_bytes();
    let length = PIN_DIGITS_MIN..=PIN_DIGITS_MAX;
    if !length.contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(PinError::Shape);
    }
    let steps_by = |step: i16| digits.windows(2).all(|two| i16::from(two[1]) - i16::from(two[0]) == step);
    if steps_by(0) {
        return Err(PinError::Repeated);
    }
    if steps_by(1) || steps_by(-1) {
        return Err(PinError::Sequential);
    }
    if !extension.is_empty() && (extension.ends_with(pin) || pin.ends_with(extension)) {
        return Err(PinError::Extension);
    }
    Ok(())
}

/// Hashes a PIN with argon2id into a PHC string, with a fresh salt.
///
/// # Errors
/// `Hash` when the kernel gives no salt.
pub fn hash(pin: &str) -> Result<String, PinError> {
    let hash = Argon2::default().hash_password(pin.as_bytes());
    hash.map(|hash| hash.to_string()).map_err(|error| PinError::Hash(error.to_string()))
}

/// Says whether `pin` is the one `phc` was made from. A damaged `phc` matches nothing.
pub fn verify(pin: &str, phc: &str) -> bool {
    PasswordHash::new(phc).is_ok_and(|hash| Argon2::default().verify_password(pin.as_bytes(), &hash).is_ok())
}

/// Makes up an acceptable PIN of [`PIN_DIGITS`] digits.
///
/// # Errors
/// `Random` when the kernel gives no random bytes.
pub fn random(extension: &str) -> Result<String, PinError> {
    loop {
        let number = getrandom::u32().map_err(|error| PinError::Random(error.to_string()))?;
        // The remainder favours low numbers by less than one part in 4000: enough for a PIN.
        let pin = format!("{:0width$}", number % 1_000_000, width = PIN_DIGITS);
        if check(&pin, extension).is_ok() {
            return Ok(pin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: PINs that can be guessed are refused, each for its own reason. Method: one of each.
    #[test]
    fn guessable_pins_are_refused_with_their_reason() {
        for (pin, error) in [
            ("123", PinError::Shape),
            ("12345678901234567890123456", PinError::Shape),
            ("12a456", PinError::Shape),
            ("123456", PinError::Sequential),
            ("876543", PinError::Sequential),
            ("777777", PinError::Repeated),
            ("551001", PinError::Extension),
            ("1001", PinError::Extension),
        ] {
            assert_eq!(check(pin, "1001"), Err(error), "{pin}");
        }
        assert_eq!(check("4711", "+4930004711"), Err(PinError::Extension));
        assert_eq!(check("135790", "1001"), Ok(()));
    }

    /// Goal: a hash is argon2id, salted, and opens to its PIN alone. Method: hash one PIN twice.
    #[test]
    fn a_hash_is_argon2id_and_opens_to_its_pin_alone() {
        let one = hash("135790").unwrap();
        let two = hash("135790").unwrap();
        assert!(one.starts_with("$argon2id$v=19$"), "{one}");
        assert_ne!(one, two);
        assert!(verify("135790", &one));
        assert!(!verify("135791", &one));
        assert!(!verify("135790", "$argon2id$damaged"));
    }

    /// Goal: a made-up PIN keeps the rules and differs from the last. Method: make a hundred.
    #[test]
    fn made_up_pins_have_six_digits_and_keep_the_rules() {
        let pins: std::collections::HashSet<_> = (0..100).map(|_| random("1001").unwrap()).collect();
        assert!(pins.iter().all(|pin| pin.len() == 6 && check(pin, "1001").is_ok()));
        assert!(pins.len() > 90);
    }
}
