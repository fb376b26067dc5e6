//! SRTP and SRTCP (RFC 3711) with the suites of RFC 4568 §6.2 and RFC 7714: packets are protected
//! and opened where they lie, and nothing is allocated for one.

mod cm;
mod derive;
mod gcm;
mod hmac;
mod index;
mod keys;
mod session;
#[cfg(test)]
mod testing;
mod transform;

pub use keys::{MasterKey, Mki, SrtpPlan, key_and_salt_bytes};
pub use session::{OVERHEAD_BYTES_MAX, SrtpError, SrtpMark, SrtpSession, SrtpSourceMark};
