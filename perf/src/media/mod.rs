//! The caller's media: packets, pacing, sound in and out. Shares no code with the server.

pub mod beep;
pub mod dtmf;
pub mod g711;
pub mod mangle;
pub mod packet;
pub mod receive;
pub mod send;
pub mod socket;
pub mod srtp;
pub mod wav;
