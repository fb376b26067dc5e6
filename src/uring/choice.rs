//! Which backend serves media here: the one that is wanted, or the best that works.

use super::probe::{ProbeError, probe, probe_steered};
use crate::base::config::IoBackend;

/// The backends there are.
///
/// One more has its place here and behind [`super::MediaIo`], and is not built: a relay inside the
/// kernel for anchored calls that need nothing but new addresses and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring, a multishot receive for each socket.
    Uring,
    /// epoll, a system call for each datagram.
    Epoll,
    /// One receive socket, fed by a program in the kernel's socket lookup, and one raw socket to send. Only
    /// where it is asked for: the program looks at every packet of the network namespace.
    Steered,
}

impl Backend {
    /// How logs, tables and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
            Self::Steered => "steered",
        }
    }
}

/// A backend, and what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What serves.
    pub backend: Backend,
    /// Why it is not io_uring, which was tried first. `None`: it is, or it was not to be.
    pub no_uring: Option<ProbeError>,
}

/// Finds out what works, unless that does not matter.
///
/// # Errors
/// One is wanted and nothing else, and cannot be had.
pub fn choose(wanted: IoBackend) -> Result<Choice, ProbeError> {
    let (backend, no_uring) = match wanted {
        IoBackend::Epoll => (Backend::Epoll, None),
        IoBackend::Steered => {
            probe_steered()?;
            (Backend::Steered, None)
        }
        IoBackend::Uring => {
            probe()?;
            (Backend::Uring, None)
        }
        IoBackend::Auto => match probe() {
            Ok(_) => (Backend::Uring, None),
            Err(error) => (Backend::Epoll, Some(error)),
        },
    };
    Ok(Choice { backend, no_uring })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: where io_uring works it is taken, but for an operator who wants epoll.
    /// Method: each wish, on a machine where the other tests of this room run too.
    #[test]
    fn the_best_that_works_is_taken_unless_told_otherwise() {
        for (wanted, backend) in [
            (IoBackend::Auto, Backend::Uring),
            (IoBackend::Uring, Backend::Uring),
            (IoBackend::Epoll, Backend::Epoll),
        ] {
            assert_eq!(choose(wanted), Ok(Choice { backend, no_uring: None }));
        }
    }
}
