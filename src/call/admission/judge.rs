//! The steps in order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::decision::{Admitted, Decision, Origin, Purpose, Refused, Step};
use super::gateways::{Found, Gateways};
use super::numbering::{self, Whose};
use crate::base::config::{CallUri, Config, DialPlan, Diversion, Gateway, HuntGroup, Security, UriType};
use crate::call::route::{Route, Routes};
use crate::call::target::{self, Target};
use crate::sdp;
use crate::sip::flow::Transport;
use crate::sip::message::Request;
use crate::sip::uri::Uri;

/// Who may call, and how.
#[derive(Debug, Clone)]
pub struct Admission {
    gateways: Gateways,
    hunt_groups: Vec<HuntGroup>,
    /// Never empty.
    dial_plans: Vec<DialPlan>,
    diversion: Diversion,
    routes: Routes,
}

impl Admission {
    /// As the configuration says; DNS names mean nothing until [`Self::set_names`].
    pub fn new(config: &Config) -> Self {
        let mut dial_plans = config.dial_plan.clone();
        if dial_plans.is_empty() {
            dial_plans.push(DialPlan { name: "default".to_owned(), ..DialPlan::default() });
        }
        Self {
            gateways: Gateways::new(config),
            hunt_groups: config.hunt_group.clone(),
            dial_plans,
            diversion: config.calls.diversion,
            routes: Routes::new(config),
        }
    }

    /// Judges by `config` from now on; DNS names keep their meaning until [`Self::set_names`].
    pub fn reload(&mut self, config: &Config) {
        let names = self.gateways.take_names();
        *self = Self::new(config);
        self.gateways.set_names(names);
    }

    /// DNS names of gateways that somebody must look up.
    pub fn dns_names(&self) -> Vec<String> {
        self.gateways.dns_names()
    }

    /// What the DNS names mean now.
    pub fn set_names(&mut self, names: HashMap<String, Vec<IpAddr>>) {
        self.gateways.set_names(names);
    }

    /// Whether the address is some gateway's, whatever its standing: step 1 for what is no request
    /// yet.
    pub fn knows(&self, source: IpAddr) -> bool {
        !self.gateways.at(source).is_empty()
    }

    /// The DNS name that the certificate of a TLS server at `remote` must have, which we call because
    /// of `gateway`, or of whoever's address it is. `None`: the address itself must stand in it.
    pub fn tls_name(&self, remote: IpAddr, gateway: Option<&str>) -> Option<String> {
        self.gateways.tls_name(remote, gateway)
    }

    /// Where calls to a gateway go now: its `call_uri`, and the address that means.
    ///
    /// # Errors
    /// Why none can be sent there.
    pub fn way(&self, gateway: &str) -> Result<(CallUri, SocketAddr), &'static str> {
        self.gateways.way(gateway)
    }

    /// The name that the certificate of a gateway we call at `remote` must have. `None`: the address
    /// itself.
    pub fn callee_tls_name(&self, remote: IpAddr, gateway: &str) -> Option<String> {
        self.gateways.callee_tls_name(remote, gateway)
    }

    /// Steps 1 and 2, for requests other than INVITE. Gives the gateway's name.
    ///
    /// # Errors
    /// The step that failed.
    pub fn judge_peer(&self, origin: &Origin<'_>) -> Result<String, Refused> {
        let (found, _) = self.gateways.source(origin, false)?;
        let (gateway, _) = self.gateways.certificate(origin, &found, false)?;
        Ok(gateway.name.clone())
    }

    /// All steps, for an INVITE outside a dialog.
    pub fn judge(&self, origin: &Origin<'_>, invite: &Request) -> Decision {
        let mut steps = Vec::new();
        let outcome = self.take_steps(&mut steps, origin, invite);
        Decision { steps, outcome }
    }

    fn take_steps(
        &self,
        steps: &mut Vec<Step>,
        origin: &Origin<'_>,
        invite: &Request,
    ) -> Result<Admitted, Refused> {
        let found = note(steps, "source", self.gateways.source(origin, true))?;
        let gateway = note(steps, "certificate", self.gateways.certificate(origin, &found, true))?;
        let called = called(invite);
        let target = target::target(invite, self.diversion);
        let reached = note(steps, "hunt_group", self.hunt_group(gateway, called.as_ref()))?;
        // What was dialled counts, whoever it was diverted from.
        let dialled = target.as_ref().map_or("", |target| &target.called);
        let route = self.routes.find(dialled);
        let numbers = dial_plan(&reached, invite, called.as_ref(), target.as_ref(), route.is_some());
        note(steps, "dial_plan", numbers)?;
        note(steps, "security", security(reached.plan, origin, invite))?;
        let (purpose, target) = note(steps, "purpose", purpose(&reached, route, target))?;
        Ok(Admitted {
            gateway: gateway.name.clone(),
            dial_plan: reached.plan.name.clone(),
            security: reached.plan.security,
            purpose,
            target,
            route: route.cloned(),
        })
    }

    /// Step 3: the gateway's hunt group for what was called, and its dial plan.
    fn hunt_group(&self, gateway: &Gateway, called: Option<&Uri>) -> Found<Reached<'_>> {
        let no_pilot = |why: String| Refused::new("no_pilot", 404, why);
        if self.hunt_groups.is_empty() {
            let plan = self.dial_plans.first().ok_or_else(|| no_pilot("there is no dial plan".into()))?;
            let text = format!("there are none: any number reaches dial plan {:?}", plan.name);
            return Ok((Reached { plan, pilot: None }, text));
        }
        let number = called.and_then(Uri::user).unwrap_or_default();
        let of_gateway = self.hunt_groups.iter().filter(|group| group.gateway == gateway.name);
        let fitting =
            of_gateway.filter_map(|group| Some((numbering::pilot_rank(&group.pilot, called)?, group)));
        // Of equals the first one, as configured.
        let best = fitting.rev().max_by_key(|(rank, _)| *rank);
        let (rank, group) =
            best.ok_or_else(|| no_pilot(format!("{number:?} is no pilot of gateway {:?}", gateway.name)))?;
        let plan = self.dial_plans.iter().find(|plan| plan.name == group.dial_plan);
        let plan = plan.ok_or_else(|| no_pilot(format!("there is no dial plan {:?}", group.dial_plan)))?;
        let pilot = (rank > 0).then_some(group);
        let text = match pilot {
            Some(group) => format!("pilot {:?} reaches dial plan {:?}", group.pilot, plan.name),
            None => format!("{number:?} is no pilot of its own: dial plan {:?}", plan.name),
        };
        Ok((Reached { plan, pilot }, text))
    }
}

/// What step 3 finds.
struct Reached<'a> {
    plan: &'a DialPlan,
    /// The hunt group whose pilot was called; `None`: any number would have done.
    pilot: Option<&'a HuntGroup>,
}

/// Writes a step down.
fn note<T>(steps: &mut Vec<Step>, name: &'static str, found: Found<T>) -> Result<T, Refused> {
    match found {
        Ok((value, text)) => {
            steps.push(Step { name, passed: true, text });
            Ok(value)
        }
        Err(refused) => {
            steps.push(Step { name, passed: false, text: refused.why.clone() });
            Err(refused)
        }
    }
}

/// What was called: the Request-URI, or To when it names nobody.
fn called(invite: &Request) -> Option<Uri> {
    let names_somebody = |uri: &Uri| uri.user().is_some_and(|user| !user.is_empty());
    let request_uri = invite.uri().ok().filter(names_somebody);
    request_uri.or_else(|| invite.to().ok().map(|to| to.uri).filter(names_somebody))
}

/// Step 4: the numbers in From, the diversion and what was called.
fn dial_plan(
    reached: &Reached<'_>,
    invite: &Request,
    called: Option<&Uri>,
    target: Option<&Target>,
    is_routed: bool,
) -> Found<()> {
    let plan = reached.plan;
    if plan.uri_type == UriType::Any {
        return Ok(((), format!("{:?} takes any URI", plan.name)));
    }
    if let Ok(from) = invite.from()
        && !numbering::is_anonymous(&from)
    {
        numbering::check(plan, "From", &from.uri, Whose::Caller)?;
    }
    let diverted = target.filter(|target| target.is_diverted());
    if let Some(target) = diverted {
        numbering::check(plan, target.header, &target.uri, Whose::Mailbox)?;
    }
    // A pilot is as the operator has written it.
    if let Some(called) = called.filter(|_| reached.pilot.is_none()) {
        let whose = if diverted.is_some() || is_routed { Whose::Called } else { Whose::Mailbox };
        numbering::check(plan, "Request-URI", called, whose)?;
    }
    Ok(((), format!("{:?} takes {}", plan.name, numbering::takes(plan.uri_type))))
}

/// Step 5.
fn security(plan: &DialPlan, origin: &Origin<'_>, invite: &Request) -> Found<()> {
    let (name, transport) = (&plan.name, origin.transport.name());
    if plan.security == Security::Unsecured {
        return Ok(((), format!("dial plan {name:?} asks for nothing")));
    }
    if origin.transport != Transport::Tls {
        let why = format!("dial plan {name:?} takes SIP over TLS only, this came over {transport}");
        return Err(Refused::new("security_sip", 488, why));
    }
    if plan.security == Security::SipSecured {
        return Ok(((), format!("over TLS, as dial plan {name:?} asks")));
    }
    if invite.body.is_empty() {
        return Ok(((), "over TLS; the INVITE has no offer, ours will be of SRTP".to_owned()));
    }
    match sdp::parse(&invite.body) {
        Ok(offer) if !offer.offers_srtp() => {
            let why = format!("dial plan {name:?} takes media as RTP/SAVP only, the offer has none");
            Err(Refused::new("security_media", 488, why))
        }
        Ok(_) => Ok(((), format!("over TLS with an offer of SRTP, as dial plan {name:?} asks"))),
        Err(error) => Ok(((), format!("over TLS; the offer cannot be read ({error}) and will be refused"))),
    }
}

/// Step 6: what the call is for, and whose mailbox.
fn purpose(
    reached: &Reached<'_>,
    route: Option<&Arc<Route>>,
    target: Option<Target>,
) -> Found<(Purpose, Target)> {
    let Some(mut target) = target else {
        let why = "neither Diversion, History-Info, Request-URI nor To names a mailbox";
        return Err(Refused::new("no_number", 404, why));
    };
    if let Some(route) = route {
        let text = route.describe(&target.called);
        return Ok(((Purpose::Onward, target), text));
    }
    let purpose = match reached.pilot {
        _ if target.is_diverted() => Purpose::CallAnswering,
        None => Purpose::Mailbox,
        Some(group) if group.mailbox.is_empty() => {
            let pilot = &group.pilot;
            let why = format!("pilot {pilot:?} has no mailbox of its own, and the call was not diverted");
            return Err(Refused::new("pilot_purpose", 404, why));
        }
        Some(group) => {
            target.number.clone_from(&group.mailbox);
            target.header = "hunt group";
            Purpose::PilotMailbox
        }
    };
    let text = match purpose {
        Purpose::CallAnswering => {
            format!(
                "diverted ({}): call answering for {:?}, as {} says",
                target.diversion_reason, target.number, target.header
            )
        }
        Purpose::PilotMailbox => format!("the pilot itself: mailbox {:?}", target.number),
        Purpose::Mailbox | Purpose::Onward => {
            format!("mailbox {:?}, as {} says", target.number, target.header)
        }
    };
    Ok(((purpose, target), text))
}

#[cfg(test)]
mod tests;
