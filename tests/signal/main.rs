//! The SIP loop on real loopback sockets, with a role that answers OPTIONS.

mod certificates;
mod limits;
mod memory;
mod orders;
mod pass;
mod plain;
mod shard;
mod tls;
mod tls_reload;
