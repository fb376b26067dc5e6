//! Who may call, who is called, and a call's legs: dialog and media joined. No database, no sockets.

pub mod admission;
pub mod anchor;
pub mod inbound;
pub mod leg;
pub mod outbound;
pub mod outcome;
pub mod route;
pub mod target;
