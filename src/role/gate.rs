//! The way in as router, service and worker go it: admission with what only a role knows, namely who
//! is behind a connection, and what DNS names mean now.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use crate::base::bucket::{Rate, TokenBucket};
use crate::base::config::{CallUri, Config, Handoff, UnknownSource};
use crate::call::admission::{Admission, Admitted, Decision, Origin, Refused};
use crate::control::names::Resolver;
use crate::role::hop::{HopClaim, HopSecret, SELF_TEST};
use crate::role::refusals::Refusals;
use crate::sip::flow::{Flow, FlowId, PeerNames};
use crate::sip::message::{Message, Method, Request};

/// Requests from addresses that no gateway has which are answered with `unknown_source = "refuse"`. Their
/// source may be forged, and over UDP a refusal is sent eleven times until somebody acknowledges it; each
/// is a transaction that gateways must do without.
const STRANGERS: Rate = Rate { per_s: 100, burst: 200 };
/// Addresses of this machine that are remembered as such.
const OWN_ADDRESSES_MAX: usize = 64;

/// Admission, and what feeds it.
#[derive(Debug)]
pub struct Gate {
    admission: Admission,
    unknown_source: UnknownSource,
    handoff: Handoff,
    secret: HopSecret,
    /// Whom the certificates of open TLS connections name.
    identities: HashMap<FlowId, Arc<PeerNames>>,
    resolver: Option<Resolver>,
    own_addresses: Vec<IpAddr>,
    strangers: TokenBucket,
}

/// A request's origin: as this hop sees it, or as the hop before has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The flow with the caller's own address and transport, for log and judgement; nothing is sent
    /// by it.
    pub flow: Flow,
    /// The gateway, when the hop before has told.
    vouched: Option<String>,
}

impl Seen {
    /// The hop before has told whose call it is.
    pub fn is_vouched(&self) -> bool {
        self.vouched.is_some()
    }

    /// A worker calls itself.
    pub fn is_self_test(&self) -> bool {
        self.vouched.as_deref() == Some(SELF_TEST)
    }
}

impl Gate {
    /// As the configuration says. Names are looked up by a thread if there are any.
    ///
    /// # Errors
    /// No thread for it.
    pub fn new(config: &Config, secret: HopSecret) -> io::Result<Self> {
        let admission = Admission::new(config);
        let names = admission.dns_names();
        Ok(Self {
            admission,
            unknown_source: config.limits.unknown_source,
            handoff: config.router.handoff,
            secret,
            identities: HashMap::new(),
            resolver: if names.is_empty() { None } else { Some(Resolver::spawn(names)?) },
            own_addresses: Vec::new(),
            strangers: TokenBucket::default(),
        })
    }

    /// Judges by `config` from now on. Names are looked up at once; until then they mean what they
    /// meant.
    ///
    /// # Errors
    /// No thread to look names up; all else holds.
    pub fn reload(&mut self, config: &Config) -> io::Result<()> {
        self.admission.reload(config);
        self.unknown_source = config.limits.unknown_source;
        self.handoff = config.router.handoff;
        let names = self.admission.dns_names();
        match &self.resolver {
            Some(resolver) => resolver.want(names),
            None if names.is_empty() => {}
            None => self.resolver = Some(Resolver::spawn(names)?),
        }
        Ok(())
    }

    /// What this node's own hops prove themselves with.
    pub fn secret(&self) -> &HopSecret {
        &self.secret
    }

    /// Takes what names mean now.
    pub fn pump(&mut self) {
        if let Some(names) = self.resolver.as_ref().and_then(Resolver::found) {
            self.admission.set_names(names);
        }
    }

    /// For [`crate::signal::Role::admits`]: false for whom nothing is answered. The SIP loop counts
    /// and tells it.
    pub fn admits(&mut self, remote: SocketAddr) -> bool {
        self.unknown_source == UnknownSource::Refuse
            || self.admission.knows(remote.ip())
            || self.is_next_to(remote.ip())
    }

    /// For [`crate::signal::Role::handle_secured`].
    pub fn handle_secured(&mut self, flow: &Flow, peer: Option<Arc<PeerNames>>) {
        if let Some(peer) = peer {
            self.identities.insert(flow.id, peer);
        }
    }

    /// For [`crate::signal::Role::tls_name`]: the name of `gateway`, or of whose address it is.
    pub fn tls_name(&self, remote: SocketAddr, gateway: Option<&str>) -> Option<String> {
        self.admission.tls_name(remote.ip(), gateway)
    }

    /// The same for a gateway that we call.
    pub fn callee_tls_name(&self, remote: SocketAddr, gateway: &str) -> Option<String> {
        self.admission.callee_tls_name(remote.ip(), gateway)
    }

    /// Where calls to a gateway go now.
    ///
    /// # Errors
    /// Why none can be sent there.
    pub fn way(&self, gateway: &str) -> Result<(CallUri, SocketAddr), &'static str> {
        self.admission.way(gateway)
    }

    /// For [`crate::signal::Role::handle_flow_closed`].
    pub fn handle_flow_closed(&mut self, flow: FlowId) {
        self.identities.remove(&flow);
    }

    /// True for a request from an unknown address that gets no answer. With `unknown_source = "drop"`
    /// those outside a dialog, whose connection was let in when its address was still a gateway's, or
    /// another hop's without the secret; but not a CANCEL, for a hop that passes one on cannot vouch for
    /// it, and without the INVITE's branch it ends nothing. With "refuse" those beyond [`STRANGERS`].
    pub fn drops(&mut self, now: Instant, flow: &Flow, message: &Message, refusals: &mut Refusals) -> bool {
        let Message::Request(request) = message else { return false };
        let remote = flow.remote.ip();
        if self.admission.knows(remote) || HopClaim::read(&self.secret, request).is_some() {
            return false;
        }
        let drops = match self.unknown_source {
            UnknownSource::Drop => {
                request.method != Method::Cancel && request.to().is_ok_and(|to| to.tag().is_none())
            }
            UnknownSource::Refuse => !self.is_next_to(remote) && !self.strangers.take(now, STRANGERS),
        };
        if drops {
            refusals.note_unknown(now, flow);
        }
        drops
    }

    /// Where a request comes from.
    pub fn seen(&self, flow: &Flow, request: &Request) -> Seen {
        match HopClaim::read(&self.secret, request) {
            Some(HopClaim { gateway, source, transport, .. }) => {
                Seen { flow: Flow { remote: source, transport, ..*flow }, vouched: Some(gateway) }
            }
            None => Seen { flow: *flow, vouched: None },
        }
    }

    /// All steps, for an INVITE outside a dialog. They stand in the log at level debug.
    pub fn judge(&self, seen: &Seen, invite: &Request) -> Decision {
        let decision = self.admission.judge(&self.origin(seen), invite);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let call_id = invite.call_id().unwrap_or_default();
            for step in &decision.steps {
                tracing::debug!(
                    call_id,
                    step = step.name,
                    passed = step.passed,
                    text = step.text,
                    "admission"
                );
            }
        }
        decision
    }

    /// The first two steps, for other requests.
    ///
    /// # Errors
    /// The step that failed.
    pub fn judge_peer(&self, seen: &Seen) -> Result<(), Refused> {
        self.admission.judge_peer(&self.origin(seen)).map(|_gateway| ())
    }

    /// Tells the next hop, in a request about to be forwarded, whose call it is.
    pub fn vouch(&self, seen: &Seen, admitted: &Admitted, request: &mut Request) {
        let claim = HopClaim {
            gateway: admitted.gateway.clone(),
            dial_plan: admitted.dial_plan.clone(),
            source: seen.flow.remote,
            transport: seen.flow.transport,
        };
        claim.write(&self.secret, request);
    }

    fn origin<'a>(&'a self, seen: &'a Seen) -> Origin<'a> {
        Origin {
            source: seen.flow.remote,
            transport: seen.flow.transport,
            identity: self.identities.get(&seen.flow.id).map(Arc::as_ref),
            vouched: seen.vouched.as_deref(),
        }
    }

    /// True where another hop of this node may be.
    fn is_next_to(&mut self, address: IpAddr) -> bool {
        self.handoff == Handoff::Proxy && self.is_own(address)
    }

    /// True for an address of this machine: what can be bound is ours. The other hops call from
    /// such a one, and prove themselves by the secret.
    pub fn is_own(&mut self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address.is_loopback() || self.own_addresses.contains(&address) {
            return true;
        }
        let is_own = UdpSocket::bind((address, 0)).is_ok();
        if is_own && self.own_addresses.len() < OWN_ADDRESSES_MAX {
            self.own_addresses.push(address);
        }
        is_own
    }
}
