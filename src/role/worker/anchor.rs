//! Calls that go on to a gateway: where to, by which listener of ours, and what becomes of legs that a
//! call has left behind.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::id::LegId;
use crate::call::anchor::{Anchor, AnchorOutput};
use crate::call::inbound::CallRules;
use crate::call::leg::CallLeg;
use crate::call::outbound::{OutboundCall, Proposal, Way};
use crate::call::outcome::{End, Output as CallOutput};
use crate::call::route::Route;
use crate::control::protocol::CalleeInfo;
use crate::media::order::{LegStats, Order};
use crate::role::worker::calls::Calls;
use crate::role::worker::entry::{Entry, Patience};
use crate::role::worker::estate::KeptFar;
use crate::role::worker::refuse::Refusal;
use crate::sdp::LocalMedia;
use crate::sip::flow::Transport;
use crate::sip::layer::ClientId;
use crate::sip::message::Request;
use crate::sip::uas;

/// A leg that a call has left is closed by its shard within this.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The far side of a call as the worker keeps it.
#[derive(Debug)]
pub(super) struct Far {
    pub(super) anchor: Anchor,
    pub(super) route: Arc<Route>,
    /// What the gateway is asked for.
    pub(super) number: String,
    /// The one that is called.
    pub(super) gateway: String,
    transport: Option<Transport>,
    call_id: String,
    /// The shard that has the callee's leg: the caller's.
    pub(super) shard: Option<usize>,
    pub(super) latched: Option<SocketAddr>,
    /// As of the last report.
    pub(super) stats: Option<Box<LegStats>>,
}

/// A callee's leg that belongs to no call any more: its INVITE was given up, or refused.
#[derive(Debug)]
pub(super) struct Left {
    call: OutboundCall,
    rules: Arc<CallRules>,
    gateway: String,
    pub(super) shard: Option<usize>,
    /// The shard has this long to close it.
    close_by: Instant,
}

impl Far {
    pub(super) fn new(route: &Arc<Route>, dialled: &str) -> Self {
        Self {
            anchor: Anchor::new(route.gateways.iter().cloned()),
            number: route.number(dialled),
            route: Arc::clone(route),
            gateway: String::new(),
            transport: None,
            call_id: String::new(),
            shard: None,
            latched: None,
            stats: None,
        }
    }

    /// For a call that goes on after its worker's death.
    pub(super) fn resume(anchor: Anchor, kept: KeptFar, shard: Option<usize>) -> Self {
        let call_id = anchor.callee().map_or_else(String::new, |callee| callee.dialog_id().call_id.clone());
        Self {
            anchor,
            // No other gateway is tried any more.
            route: Arc::new(Route::named(kept.route)),
            number: kept.number,
            gateway: kept.gateway,
            transport: kept.transport,
            call_id,
            shard,
            latched: kept.latched,
            stats: None,
        }
    }

    /// For another worker; `None` unless the callee has answered and stands.
    pub(super) fn kept(&self) -> Option<KeptFar> {
        Some(KeptFar {
            callee: self.anchor.callee()?.kept()?,
            route: self.route.name.clone(),
            number: self.number.clone(),
            gateway: self.gateway.clone(),
            tries: self.anchor.tries(),
            transport: self.transport,
            latched: self.latched,
        })
    }

    /// The gateway that is called at this address.
    pub(super) fn gateway_at(&self, remote: SocketAddr) -> Option<&str> {
        let callee = self.anchor.callee()?;
        (callee.remote() == Some(remote)).then_some(self.gateway.as_str())
    }

    /// For `voxring calls`.
    pub(super) fn info(&self) -> CalleeInfo {
        let plan = self.anchor.callee().and_then(|callee| callee.plan());
        let media = if plan.is_some_and(|plan| plan.srtp.is_some()) { "+srtp" } else { "" };
        CalleeInfo {
            route: self.route.name.clone(),
            gateway: self.gateway.clone(),
            number: self.number.clone(),
            tries: self.anchor.tries(),
            call_id: self.call_id.clone(),
            security: self.transport.map_or_else(String::new, |by| format!("{}{media}", by.name())),
            codec: plan.map(|plan| plan.codec),
            remote_media: self.latched.or_else(|| plan.and_then(|plan| plan.remote_rtp)),
            stats: self.stats.as_deref().cloned(),
        }
    }

    /// The one line that tells all of an anchored call.
    pub(super) fn log_end(&self, now: Instant, leg: LegId, entry: &Entry, end: &End, stats: &LegStats) {
        let report = self.anchor.report(now);
        let far = report.stats.as_deref().cloned().unwrap_or_default();
        tracing::info!(
            leg = leg.0,
            call_id = entry.call.dialog_id().call_id,
            peer = %entry.seen.remote,
            gateway = &*entry.gateway,
            route = self.route.name,
            dialled = &*entry.target.called,
            number = self.number,
            gateway_out = report.gateway,
            call_id_out = self.call_id,
            tries = report.tries,
            ended_by = end.cause.party().name(),
            cause = %end.cause,
            q850 = end.cause.q850(),
            lasted_ms = entry.age(now).as_millis(),
            rang_ms = report.rang.as_millis(),
            talked_ms = end.talked.map_or(0, |talked| talked.as_millis()),
            rx_packets = stats.rx_packets,
            tx_packets = stats.tx_packets,
            lost = stats.lost,
            rx_packets_out = far.rx_packets,
            tx_packets_out = far.tx_packets,
            lost_out = far.lost,
            "anchored call ended"
        );
    }
}

impl Entry {
    /// Lets each leg of an anchored call hear of the other.
    pub(super) fn couple(&mut self, now: Instant) {
        if let Some(far) = &mut self.far {
            far.anchor.couple(now, &mut self.call, &self.rules);
        }
    }
}

impl Calls {
    /// The call that a leg belongs to, by its caller's leg.
    pub(super) fn owner(&self, leg: LegId) -> LegId {
        self.owners.get(&leg).copied().unwrap_or(leg)
    }

    /// True when a leg began with this INVITE of ours.
    pub(super) fn began_with(&self, leg: LegId, client: ClientId) -> bool {
        let of_call = self.calls.get(&self.owner(leg)).and_then(|entry| entry.far.as_ref()?.anchor.callee());
        let callee = of_call.or_else(|| self.left.get(&leg).map(|left| &left.call));
        callee.is_some_and(|callee| callee.id() == leg && callee.invite_client() == Some(client))
    }

    /// Acts on one leg and does what its call then wants done.
    pub(super) fn with_leg(
        &mut self,
        now: Instant,
        leg: LegId,
        act: impl FnOnce(&mut dyn CallLeg, &CallRules),
    ) {
        let owner = self.owner(leg);
        if let Some(entry) = self.calls.get_mut(&owner) {
            let rules = Arc::clone(&entry.rules);
            if let Some(call) = entry.leg_mut(leg) {
                act(call, &rules);
                return self.settle(now, owner);
            }
        }
        if let Some(left) = self.left.get_mut(&leg) {
            act(&mut left.call, &left.rules);
            self.settle_left(now, leg);
        }
    }

    /// Whether a call may go on by a route at all.
    pub(super) fn check_hops(&self, invite: &Request) -> Result<(), Refusal> {
        let refuse =
            |status, reason, why| Box::new(uas::refuse(invite, &self.rules.uas.agent, status, reason, why));
        if invite.headers.max_forwards().ok().flatten() == Some(0) {
            return Err(("too_many_hops", refuse(483, "Too Many Hops", "Max-Forwards is 0")));
        }
        if invite.call_id().is_ok_and(|call_id| self.call_ids.contains(call_id)) {
            return Err(("loop", refuse(482, "Loop Detected", "this call came from here")));
        }
        Ok(())
    }

    /// Takes a call on by a route: its media leg first, the callee once that is open.
    pub(super) fn anchor(&mut self, now: Instant, leg: LegId, route: &Arc<Route>) {
        self.with(now, leg, |entry| {
            entry.far = Some(Box::new(Far::new(route, &entry.target.called)));
            entry.call.anchor(&entry.rules);
        });
    }

    /// Does the next thing that the far side wants; false when there is none.
    pub(super) fn step_far(&mut self, now: Instant, entry: &mut Entry) -> bool {
        let Some(mut far) = entry.far.take() else { return false };
        let done = if let Some(output) = far.anchor.poll_callee() {
            self.handle_callee_output(now, entry, &mut far, output);
            true
        } else if let Some(output) = far.anchor.poll_output() {
            self.handle_anchor_output(now, entry, &mut far, output);
            true
        } else {
            false
        };
        entry.far = Some(far);
        done
    }

    fn handle_callee_output(&mut self, now: Instant, entry: &Entry, far: &mut Far, output: CallOutput) {
        let Some(callee) = far.anchor.callee_mut() else { return };
        match self.transmit(now, callee, output) {
            Some(CallOutput::Order(order @ Order::Open(..))) => {
                let shards = self.shards.as_mut().zip(entry.ready.shard);
                match shards.map(|(shards, shard)| shards.open_on(shard, order)) {
                    Some(Ok(())) => far.shard = entry.ready.shard,
                    Some(Err(_)) | None => callee.handle_open_failed(now),
                }
            }
            Some(CallOutput::Order(order)) => {
                if let Some((shards, shard)) = self.shards.as_mut().zip(far.shard) {
                    shards.send(shard, order);
                }
            }
            Some(CallOutput::Ended(end)) => far.anchor.note_stats(end.stats),
            // All else was for the wire.
            Some(_) | None => {}
        }
    }

    fn handle_anchor_output(&mut self, now: Instant, entry: &mut Entry, far: &mut Far, output: AnchorOutput) {
        match output {
            AnchorOutput::Call { gateway, plain } => match self.callee(entry, far, &gateway, plain) {
                Ok(callee) => {
                    self.owners.insert(callee.id(), entry.call.id());
                    *self.of_gateway.entry(gateway.clone()).or_default() += 1;
                    far.anchor.begin(&gateway, callee);
                    far.gateway = gateway;
                    (far.shard, far.latched, far.stats) = (None, None, None);
                }
                Err(why) => {
                    tracing::warn!(gateway, route = far.route.name, why, "a gateway cannot be called");
                    far.anchor.skip();
                }
            },
            AnchorOutput::Order(order) => self.send_order(entry, order),
            AnchorOutput::Leave(call) => self.leave(now, entry, far, *call),
            AnchorOutput::Unavailable(why) => {
                let Some(invite) = entry.call.invite() else { return };
                let mut response = self.unavailable(invite, why);
                self.note_refusal(now, "no_gateway", &entry.seen, invite, &mut response);
                entry.call.refuse(response);
            }
        }
    }

    /// A leg for whom a gateway is to be asked for.
    fn callee(
        &mut self,
        entry: &Entry,
        far: &mut Far,
        gateway: &str,
        plain: bool,
    ) -> Result<OutboundCall, &'static str> {
        let calls = self.of_gateway.get(gateway).copied().unwrap_or_default();
        if self.limits.gateway_is_full(gateway, calls) {
            return Err("its calls_max is reached");
        }
        let (uri, remote) = self.gate.way(gateway)?;
        let wanted = Way { uri, remote, listener: 0, local: remote, fqdn: self.rules.fqdn.clone() };
        let (listener, local) = self.listener_for(wanted.transport(), remote)?;
        let way = Way { listener, local, ..wanted };
        let tag = self.layer.new_tag();
        let call_id = format!("{}@{}", self.layer.new_tag(), local.ip());
        let invite = entry.call.invite().ok_or("the caller waits no more")?;
        let callee = way.callee(&far.number, invite, &tag, call_id.clone());
        let callee = callee.map_err(|_| "the caller's Max-Forwards is used up")?;
        let proposal = Proposal {
            local: self.local_media(entry, &way, plain),
            try_timeout: far.route.try_timeout,
            ring_timeout: far.route.ring_timeout,
        };
        let leg = self.new_leg();
        self.call_ids.insert(call_id.clone());
        far.call_id = call_id;
        far.transport = Some(way.transport());
        Ok(OutboundCall::new(leg, callee, proposal, &entry.rules))
    }

    /// What is offered to the callee: the caller's codec first, key presses if the caller has them, SRTP
    /// where its keys are safe. Over TLS it is SRTP unless that was refused; with `srtp.sdes_over_plain`
    /// it is what the caller has.
    fn local_media(&self, entry: &Entry, way: &Way, plain: bool) -> LocalMedia {
        let mut local = entry.rules.local.clone();
        let address = local.addresses.of_family(way.remote.ip()).unwrap_or(local.addresses.first());
        local.addresses = address.into();
        local.nat = entry.rules.nat.then(|| way.remote.ip());
        let caller = entry.call.offer();
        if let Some(caller) = caller {
            local.codecs.sort_by_key(|codec| *codec != caller.codec);
            local.dtmf = caller.dtmf_payload_type.is_some();
        }
        let is_encrypted = way.transport() == Transport::Tls;
        let caller_has = caller.is_some_and(|plan| plan.srtp.is_some());
        local.srtp.allowed = is_encrypted || self.config.srtp.sdes_over_plain;
        local.srtp.required = !plain && local.srtp.allowed && (is_encrypted || caller_has);
        local
    }

    /// Our listener of that transport and family, and its address as the far end sees it.
    fn listener_for(
        &self,
        transport: Transport,
        remote: SocketAddr,
    ) -> Result<(u16, SocketAddr), &'static str> {
        let fits = |address: &SocketAddr| address.is_ipv4() == remote.is_ipv4();
        let mut open = self.edge.open().iter();
        let open = open.find(|open| open.listener.transport == transport && fits(&open.address));
        let open = open.ok_or("the worker has no listener of its transport and address family")?;
        let mut local = open.address;
        if local.ip().is_unspecified() {
            local.set_ip(address_towards(remote).ok_or("there is no route to its address")?);
        }
        Ok((open.index, local))
    }

    /// Keeps a leg that its call has left until it has ended too.
    fn leave(&mut self, now: Instant, entry: &Entry, far: &mut Far, call: OutboundCall) {
        let leg = call.id();
        let left = Left {
            call,
            rules: Arc::clone(&entry.rules),
            gateway: std::mem::take(&mut far.gateway),
            shard: far.shard.take(),
            close_by: now + CLOSE_TIMEOUT,
        };
        self.owners.remove(&leg);
        self.timers.insert((left.close_by, leg));
        self.left.insert(leg, left);
        self.settle_left(now, leg);
    }

    fn settle_left(&mut self, now: Instant, leg: LegId) {
        let Some(mut left) = self.left.remove(&leg) else { return };
        while let Some(output) = left.call.poll_output() {
            if let Some(CallOutput::Order(order)) = self.transmit(now, &mut left.call, output)
                && let Some((shards, shard)) = self.shards.as_mut().zip(left.shard)
            {
                shards.send(shard, order);
            }
        }
        if left.call.is_over() {
            self.timers.remove(&(left.close_by, leg));
            self.forget_callee(&left.call, &left.gateway);
        } else {
            self.left.insert(leg, left);
        }
    }

    /// The shard should have closed it by now.
    pub(super) fn give_up_left(&mut self, now: Instant, leg: LegId) {
        if let Some(left) = self.left.get_mut(&leg) {
            left.call.handle_closed(now, None);
            self.settle_left(now, leg);
        }
    }

    /// No trace of a callee's leg stays.
    pub(super) fn forget_callee(&mut self, callee: &OutboundCall, gateway: &str) {
        self.owners.remove(&callee.id());
        self.by_dialog.remove(callee.dialog_id());
        self.call_ids.remove(&callee.dialog_id().call_id);
        if let Some(client) = callee.invite_client() {
            self.by_client.remove(&client);
        }
        self.release_gateway(gateway);
    }

    /// An anchored call waits for its callee, however long that rings, not for threads of ours.
    pub(super) fn be_patient(&mut self, leg: LegId) {
        if let Some(entry) = self.calls.get_mut(&leg)
            && entry.far.is_some()
            && entry.call.is_ready()
        {
            entry.patience = Patience::Endless;
        }
    }
}

/// Our address as `remote` sees it: the kernel's choice of source. Nothing is sent.
fn address_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let probe = UdpSocket::bind(any).ok()?;
    probe.connect(remote).ok()?;
    probe.local_addr().ok().map(|address| address.ip())
}
