//! Command line, control socket. No packet work.
