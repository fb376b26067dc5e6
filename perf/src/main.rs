//! The `voxperf` command.

fn main() {}
