//! May this call come in, and what is it for? The order is
//!
//! 1. `source`: the address is a gateway's, and the gateway takes calls;
//! 2. `certificate`: over TLS, the certificate is that gateway's;
//! 3. `hunt_group`: the number called is a pilot of the gateway, which names a dial plan;
//! 4. `dial_plan`: numbers are written as the plan wants them;
//! 5. `security`: signalling and media are as safe as the plan wants them;
//! 6. `purpose`: another gateway by a route, call answering, a pilot's mailbox, or the mailbox that was
//!    called.
//!
//! The first step that fails refuses the call. After them come the limits. Router, service, worker
//! and `voxring explain-call` all go through here, so that they never disagree.

mod decision;
mod gateways;
mod judge;
mod limits;
mod numbering;

pub use decision::{Admitted, Decision, Origin, Purpose, Refused, Step};
pub use judge::Admission;
pub use limits::{Limits, Load};
