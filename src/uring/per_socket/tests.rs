//! What only a ring can run into.

use super::*;

use crate::uring::tests::{Seen, backend, queue_up_400, until};

/// Goal: more datagrams than buffers are all received, after the kernel ran out of buffers.
/// Method: 400 queue up before the first turn of a backend with 256 buffers.
#[test]
fn running_out_of_buffers_loses_nothing() {
    let (mut io, mut seen) = (backend::<PerSocket>(1), Seen::default());
    queue_up_400(&mut io, &mut seen);
    until(&mut io, &mut seen, |seen| seen.datagrams.len() == 400);
    assert!(io.counters().enobufs > 0, "{:?}", io.counters());
}
