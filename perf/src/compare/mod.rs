//! The same load on two servers, in alternating rounds: `voxperf compare`.
//!
//! A [`contestant`] is anything that forwards media and can be measured for a round. [`relay`] makes
//! one of whatever hands out ports: [`rtpengine`] by its control protocol ([`ng`], [`bencode`]), the
//! bare loops of `bench/floor` by [`floor`]. [`voxring`] is reached by SIP calls. [`drive`] alternates, [`report`] is what is left behind.

pub mod bencode;
pub mod child;
pub mod command;
pub mod contestant;
pub mod drive;
pub mod floor;
pub mod ng;
pub mod relay;
pub mod report;
pub mod rtpengine;
pub mod voxring;
