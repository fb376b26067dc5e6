//! Offer and answer (RFC 3264) over `sdp-types`. No sockets.
//!
//! An answer comes in two steps, because the media shard picks the port only once it knows the
//! plan: [`parse`] and [`negotiate`] give a [`MediaPlan`], [`Origin::answer`] writes the body when
//! the port is known. [`Origin::offer`] and [`read_answer`] are the other way round.

mod answer;
mod description;
mod error;
mod media_line;
mod offer;
pub mod plan;

pub use answer::{LocalMedia, Negotiated, negotiate, read_answer};
pub use description::{Description, parse};
pub use error::OfferError;
pub use offer::Origin;
pub use plan::{Codec, MediaPlan};
