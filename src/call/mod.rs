//! Who may call, who is called, and a call's legs: dialog and media joined. No database, no sockets.

pub mod admission;
pub mod inbound;
pub mod outcome;
pub mod target;
