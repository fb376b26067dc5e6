//! RTP and RTCP (RFC 3550): packet, sequence, reports, statistics. No sockets, no clock.

pub mod packet;
pub mod rtcp;
pub mod sequence;
