//! The media loop. No SIP.
