//! The `voxring` command.

fn main() {}
