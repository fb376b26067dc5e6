//! The configuration: one struct a table, one field a key.
//!
//! `tables` is the only place that knows a key: its doc comment, default, range and unit are the
//! field's documentation, the text in `config/voxring.toml` (see [`Config::reference`]) and what
//! loading checks. Unknown keys are errors, and every error names file, line and key.

mod address;
mod call_uri;
mod check;
#[macro_use]
mod declare;
mod load;
mod port_range;
mod reference;
mod route_pattern;
mod srtp_suite;
mod tables;

pub use address::{Addresses, GatewayAddress, GatewayAddresses, Network};
pub use call_uri::{CallHost, CallTransport, CallUri, GatewayCallUri};
pub use declare::{Choice, Key, Reload, Table, Value};
pub use load::{ConfigError, ConfigProblem, Origin, Source};
pub use port_range::PortRange;
pub use route_pattern::{GatewayNames, RoutePattern};
pub use srtp_suite::{SrtpSuite, SrtpSuites};
pub use tables::{
    AddressFamily, Calls, Config, DialPlan, Diversion, Gateway, GatewayStatus, Handoff, HuntGroup, IoBackend,
    Limits, Node, PeerCertificate, Recording, Route, Router, Rtp, Security, Service, Sip, Srtp, StartupMode,
    TestExtensions, Tls, UnknownSource, UriType, Worker,
};
