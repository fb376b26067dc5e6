//! Codecs, jitter buffer, DTMF, playout, recording, one leg. No sockets, no files.

pub mod order;
