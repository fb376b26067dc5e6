//! The parts of `voxperf`: a phone with a script, and a stop-watch for many streams.
//!
//! Shares no code with the server it measures. `sip` is the caller's signalling on `rsip`, `media`
//! its sound and packets, `call` joins both, `run` places many, `spacing` times what comes back,
//! `load` runs many calls in the open loop, `find` searches for the most that is carried.
//! `handshakes` and `connections` load a TLS port, `inject` an RTP port.

pub mod call;
pub mod clock;
pub mod compare;
pub mod connections;
pub mod figures;
pub mod find;
pub mod handshakes;
pub mod inject;
pub mod load;
pub mod machine;
pub mod media;
pub mod report;
pub mod rng;
pub mod run;
pub mod script;
pub mod sip;
pub mod spacing;

#[cfg(test)]
mod testing;
