//! TLS 1.2 and 1.3 for the SIP loop: what a node shows and whom it believes, and the pump that
//! carries one connection.
//!
//! * A [`TlsSetup`] is loaded whole and never changed: new files make a new one, with its own
//!   session storage, so that nobody resumes what an older one allowed.
//! * Whoever resumes a session, or began a handshake under an older setup, is judged again by the
//!   current one when the handshake ends.
//! * The session of a connection lives beside its queue; no socket is touched here.

mod facts;
mod failure;
mod names;
mod session;
mod setup;

pub use facts::{CaFacts, CrlFacts, TlsFacts};
pub(super) use failure::Failure;
pub(super) use session::TlsSession;
pub use setup::{PeerCertificate, TlsError, TlsFiles, TlsSetup};
