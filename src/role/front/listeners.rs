//! Which hop listens where.

use std::io;

use crate::base::config::Config;
use crate::control::listeners::{self, ListenRole};
use crate::role::supervisor::ServeError;
use crate::signal::{ListenError, Listener};

/// The two hops a front is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The call router.
    Router,
    /// The UM service.
    Service,
}

impl Hop {
    /// In logs and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Service => "service",
        }
    }
}

/// The listeners of both hops that `config` asks for, the router's first.
pub(super) fn wanted(config: &Config) -> Vec<(Hop, Listener)> {
    let hops = [(Hop::Router, ListenRole::Router), (Hop::Service, ListenRole::Service)];
    let of_hop = |(hop, role)| {
        let planned = listeners::of_role(config, role).into_iter();
        planned.map(move |l| (hop, Listener { transport: l.transport, address: l.address }))
    };
    hops.into_iter().flat_map(of_hop).collect()
}

/// Names the one listener that could not be bound, when it is known.
pub(super) fn listen_error(listeners: &[(Hop, Listener)], error: io::Error) -> ServeError {
    match error.downcast::<ListenError>() {
        Ok(ListenError { listener, error }) => {
            let hop =
                listeners.iter().find(|(_, known)| *known == listener).map_or("", |(hop, _)| hop.name());
            let what = format!("{hop} {}/{}", listener.address, listener.transport.name());
            ServeError::Listen { what, error }
        }
        Err(error) => ServeError::Listen { what: "router and service".to_owned(), error },
    }
}
