//! Behaviour of a running node, a file for each: `cargo test --test live crash` runs one of them.
//!
//! Every test starts a node of its own and talks to it from outside: by voxperf, by other people's
//! phones, by raw bytes, and by the command line. One binary, because linking ten takes longer than
//! running them.

mod admission;
mod admission_rules;
mod anchored;
mod baresip;
mod baresip_tls;
mod call_router;
mod certificates;
mod common;
mod crash;
mod dtmf_hold;
mod faults;
mod find;
mod firewall;
mod fuzz_wire;
mod greeting;
mod impairment;
mod injection;
mod ipv6;
mod life;
mod load;
mod message;
mod outlast;
mod proxy_handoff;
mod refusals;
mod reload;
mod sipp_load;
mod spacing;
mod srtp;
mod steered;
mod tls_abuse;
mod torture_wire;
mod without_io_uring;
