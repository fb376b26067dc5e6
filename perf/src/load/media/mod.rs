//! The media of a load: many streams over few sockets, from one thread.
//!
//! [`engine::Engine`] knows nothing of SIP: it is told who hears and sends what, and measures.

pub mod batch;
pub mod book;
pub mod continuity;
pub mod engine;
mod press;
pub mod rtcp;
pub mod socket;
pub mod stamp;
pub mod tally;
