//! Codecs, jitter buffer, DTMF, playout, recording, one leg. No sockets, no files.
//!
//! [`leg::Leg`] joins the rest: datagrams, `now` and orders go in, packets, events and recorded
//! blocks come out.

pub mod order;
pub mod mark;
pub mod audio;
pub mod g711;
pub mod playout;
pub mod plc;
pub mod jitter;
pub mod media_clock;
pub mod silence;
pub mod dtmf_event;
pub mod tones;
pub mod record;
pub mod leg;

#[cfg(test)]
mod test_signal;
