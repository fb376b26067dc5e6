//! RTP and RTCP (RFC 3550): packet, sequence, reports, statistics. No sockets, no clock.
