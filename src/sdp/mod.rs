//! Offer and answer (RFC 3264) over `sdp-types`. No sockets.
//!
//! An answer comes in two steps, because the media shard picks the port only once it knows the
//! plan: [`parse`] and [`negotiate`] give a [`MediaPlan`], [`Origin::answer`] writes the body when
//! the port is known. [`Origin::offer`] and [`read_answer`] are the other way round.
//!
//! RTP/SAVP is agreed on with security descriptions (RFC 4568), whose keys are part of the plan.
//! RTP/AVP stays plain even with `a=crypto` lines ("best effort" encryption): RFC 4568 defines them
//! for RTP/SAVP and RTP/SAVPF only, and an answer cannot change the transport.

mod answer;
mod crypto;
mod description;
mod error;
mod local;
mod media_line;
mod offer;
pub mod plan;

pub use answer::{Negotiated, negotiate, read_answer};
pub use crypto::CryptoError;
pub use description::{Description, parse};
pub use error::OfferError;
pub use local::{KeySource, LocalMedia, OfferKeys, OwnKeys, SrtpRules};
pub use offer::Origin;
pub use plan::{Codec, Direction, MediaPlan};
