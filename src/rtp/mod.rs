//! RTP and RTCP (RFC 3550): packet, sequence, reports, statistics, and their protection (SRTP,
//! RFC 3711). No sockets, no clock.

pub mod packet;
pub mod rtcp;
pub mod sequence;
pub mod srtp;
