//! Load: many calls at once, in the open loop, and what came of them.
//!
//! [`result`] is what one run leaves behind: the JSON file, and what the finder, the comparison and
//! the HTML report read.

pub mod arrivals;
pub mod command;
pub mod honesty;
pub mod life;
pub mod media;
pub mod result;
pub mod run;
pub mod signalling;
pub mod sip;
pub mod watch;
