//! `voxring firewall`: an nftables ruleset for a configuration, and what the running one lacks of it.
//!
//! `rules` is the ruleset as data, `plan` makes it from a configuration, `text` and `json` are its
//! two spellings, `compare` holds it against what nft lists, `run` is the command. Nothing here ever
//! changes the kernel's rules.

mod compare;
mod json;
mod plan;
mod rules;
mod run;
mod text;

pub use run::{FirewallArgs, FirewallError, run};
