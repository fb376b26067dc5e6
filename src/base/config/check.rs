//! Values that are fine alone but not together.

use std::collections::BTreeSet;
use std::path::Path;

use super::{CallTransport, Config, PeerCertificate, Route, Security, StartupMode};

/// (`table.key`, what is wrong).
type Problem = (String, String);

impl Config {
    /// Everything that contradicts something else, as (`table.key`, message). Empty: nothing.
    pub fn contradictions(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        self.check_node(&mut found);
        self.check_times(&mut found);
        self.check_addresses(&mut found);
        self.check_tls(&mut found);
        self.check_lists(&mut found);
        found
    }

    fn check_node(&self, found: &mut Vec<Problem>) {
        let name_is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &self.node.name;
        if name.is_empty() || name.len() > 64 || !name.chars().all(name_is_token) {
            note(found, "node.name", "must be 1 to 64 letters, digits, \"-\", \"_\" and \".\"");
        }
        if self.node.data.as_os_str().is_empty() {
            note(found, "node.data", "must name a folder");
        }
        if !self.node.fqdn.is_empty() && !is_dns_name(&self.node.fqdn) {
            note(found, "node.fqdn", &format!("{:?} is no DNS name", self.node.fqdn));
        }
    }

    fn check_times(&self, found: &mut Vec<Problem>) {
        let (message, call) = (self.recording.duration_max_min, self.calls.duration_max_min);
        if message >= call {
            let why = format!(
                "{message} minutes is not less than calls.duration_max_min, {call} minutes: a message must fit into a call"
            );
            note(found, "recording.duration_max_min", &why);
        }
        let (recycle, most) = (self.worker.recycle_memory_mib, self.worker.memory_max_mib);
        if most != 0 && recycle > most {
            let why = format!(
                "{most} MiB is less than worker.recycle_memory_mib, {recycle} MiB: calls would be refused before a new worker takes over"
            );
            note(found, "worker.memory_max_mib", &why);
        }
        let (interval, least) = (self.sip.session_expires_s, self.sip.min_se_s);
        if interval != 0 && interval < least {
            let why = format!(
                "{interval} seconds is less than sip.min_se_s, {least} seconds (RFC 4028 §5); 0 turns session timers off"
            );
            note(found, "sip.session_expires_s", &why);
        }
    }

    fn check_addresses(&self, found: &mut Vec<Problem>) {
        for address in self.rtp.address.iter() {
            if address.is_unspecified() || address.is_multicast() {
                let why =
                    format!("{address} cannot stand in SDP: name the address callers reach this machine at");
                note(found, "rtp.address", &why);
            }
        }
        let families = [self.rtp.address.v4().count(), self.rtp.address.v6().count()];
        if families.iter().any(|count| *count > 1) {
            note(found, "rtp.address", "at most one IPv4 and one IPv6 address");
        }
        for (key, addresses, family) in [
            ("router.address", &self.router.address, self.router.address_family),
            ("service.address", &self.service.address, self.service.address_family),
            ("worker.address", &self.worker.address, self.worker.address_family),
        ] {
            if addresses.listening(family).is_empty() {
                note(
                    found,
                    key,
                    &format!("{addresses} has no address of the address_family; change both together"),
                );
            }
        }
    }

    fn check_tls(&self, found: &mut Vec<Problem>) {
        let has = |path: &Path| !path.as_os_str().is_empty();
        let tls = &self.tls;
        if has(&tls.certificate) != has(&tls.key) {
            let (key, why) =
                if has(&tls.key) { ("tls.certificate", "tls.key") } else { ("tls.key", "tls.certificate") };
            note(found, key, &format!("is missing: {why} is set, and one is no use without the other"));
        }
        if has(&tls.certificate) && tls.peer_certificate == PeerCertificate::Required && !has(&tls.ca) {
            note(found, "tls.ca", "is missing: without it no peer's certificate can be checked");
        }
        for (key, mode) in [
            ("router.startup_mode", self.router.startup_mode),
            ("service.startup_mode", self.service.startup_mode),
            ("worker.startup_mode", self.worker.startup_mode),
        ] {
            if mode == StartupMode::Tls && !has(&tls.certificate) {
                note(found, key, "\"tls\" needs tls.certificate and tls.key");
            }
        }
    }

    fn check_lists(&self, found: &mut Vec<Problem>) {
        let mut names = BTreeSet::new();
        for (index, gateway) in self.gateway.iter().enumerate() {
            let key = |key: &str| format!("gateway[{index}].{key}");
            check_name(found, key("name"), &gateway.name, &mut names);
            if gateway.address.0.is_empty() {
                note(found, &key("address"), "is missing: where does it call from?");
            }
            if !gateway.certificate_name.is_empty() && !is_dns_name(&gateway.certificate_name) {
                let why = format!("{:?} is no DNS name; wildcards are not taken", gateway.certificate_name);
                note(found, &key("certificate_name"), &why);
            }
            let over_tls = gateway.call_uri.0.as_ref().is_some_and(|uri| uri.transport == CallTransport::Tls);
            if over_tls && self.tls.certificate.as_os_str().is_empty() {
                note(found, &key("call_uri"), "needs TLS: set tls.certificate and tls.key");
            }
        }
        let mut names = BTreeSet::new();
        for (index, plan) in self.dial_plan.iter().enumerate() {
            check_name(found, format!("dial_plan[{index}].name"), &plan.name, &mut names);
            if plan.security != Security::Unsecured && self.tls.certificate.as_os_str().is_empty() {
                let key = format!("dial_plan[{index}].security");
                note(found, &key, "needs TLS: set tls.certificate and tls.key");
            }
        }
        self.check_hunt_groups(found);
        self.check_routes(found);
    }

    fn check_routes(&self, found: &mut Vec<Problem>) {
        let mut names = BTreeSet::new();
        for (index, route) in self.route.iter().enumerate() {
            let key = |key: &str| format!("route[{index}].{key}");
            check_name(found, key("name"), &route.name, &mut names);
            if route.pattern.is_empty() {
                note(found, &key("pattern"), "is missing: which numbers is it for?");
            }
            if !route.prefix.chars().all(|c| c.is_ascii_digit() || "+*#".contains(c)) {
                note(found, &key("prefix"), "takes digits, \"+\", \"*\" and \"#\" only");
            }
            self.check_gateways_of(found, &key("gateways"), route);
        }
    }

    fn check_gateways_of(&self, found: &mut Vec<Problem>, key: &str, route: &Route) {
        if route.gateways.0.is_empty() {
            note(found, key, "is missing: where do its calls go?");
        }
        for name in &route.gateways.0 {
            match self.gateway.iter().find(|gateway| gateway.name == *name) {
                None => note(found, key, &format!("there is no gateway {name:?}")),
                Some(gateway) if gateway.call_uri.0.is_none() => {
                    note(found, key, &format!("gateway {name:?} has no call_uri: no call can be sent there"));
                }
                Some(_) => {}
            }
        }
    }

    fn check_hunt_groups(&self, found: &mut Vec<Problem>) {
        let mut pilots = BTreeSet::new();
        for (index, group) in self.hunt_group.iter().enumerate() {
            let key = |key: &str| format!("hunt_group[{index}].{key}");
            if !self.gateway.iter().any(|gateway| gateway.name == group.gateway) {
                note(found, &key("gateway"), &format!("there is no gateway {:?}", group.gateway));
            }
            if !self.dial_plan.iter().any(|plan| plan.name == group.dial_plan) {
                note(found, &key("dial_plan"), &format!("there is no dial plan {:?}", group.dial_plan));
            }
            if !pilots.insert((&group.gateway, &group.pilot)) {
                let why =
                    format!("gateway {:?} has another group with pilot {:?}", group.gateway, group.pilot);
                note(found, &key("pilot"), &why);
            }
        }
    }
}

fn note(found: &mut Vec<Problem>, key: &str, message: &str) {
    found.push((key.to_owned(), message.to_owned()));
}

fn check_name<'n>(found: &mut Vec<Problem>, key: String, name: &'n str, names: &mut BTreeSet<&'n str>) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_token) {
        found.push((key, "must be 1 to 64 letters, digits, \"-\", \"_\" and \".\"".to_owned()));
    } else if !names.insert(name) {
        found.push((key, format!("{name:?} is there twice")));
    }
}

/// Letters, digits and hyphens between dots, the last label no number (RFC 1123 §2.1).
pub(super) fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::base::config::Config;

    fn problems(text: &str) -> Vec<String> {
        match Config::parse(text, Path::new("a.toml")) {
            Ok(_) => Vec::new(),
            Err(error) => error.problems.iter().map(ToString::to_string).collect(),
        }
    }

    const EDGE: &str = "[tls]\ncertificate=\"c\"\nkey=\"k\"\nca=\"a\"\n[[gateway]]\nname=\"gw\"\naddress=[\"192.0.2.1\"]\n\
                        [[dial_plan]]\nname=\"main\"\nsecurity=\"secured\"\n";

    /// Goal: gateways, dial plans and hunt groups must fit each other, and the message names block and
    /// line. Method: a file that fits, and one slip at a time.
    #[test]
    fn lists_must_fit_each_other() {
        assert_eq!(problems(EDGE), Vec::<String>::new());
        let cases = [
            (
                "[[gateway]]\nname=\"gw\"\naddress=\"::1\"",
                "a.toml:12: gateway[1].name: \"gw\" is there twice",
            ),
            (
                "[[gateway]]\nname=\"b\"",
                "a.toml:11: gateway[1].address: is missing: where does it call from?",
            ),
            (
                "[[hunt_group]]\ngateway=\"wg\"\ndial_plan=\"main\"",
                "a.toml:12: hunt_group[0].gateway: there is no gateway \"wg\"",
            ),
            (
                "[[hunt_group]]\ngateway=\"gw\"\ndial_plan=\"x\"",
                "a.toml:13: hunt_group[0].dial_plan: there is no dial plan \"x\"",
            ),
            (
                "[[gateway]]\nname=\"c\"\naddress=[\"gw_1\"]",
                "a.toml:13: gateway[1].address: [\"gw_1\"] is not a list of addresses, networks and DNS names, such as \
                 [\"192.0.2.7\", \"2001:db8::/64\", \"gw.example.com\"]",
            ),
            ("[gateway]\nname=\"c\"", "a.toml:11: duplicate key"),
            ("[[gateway]]\nnmae=\"c\"", "a.toml:12: gateway[1].nmae: unknown key; did you mean name?"),
        ];
        for (text, message) in cases {
            assert_eq!(problems(&format!("{EDGE}{text}\n")), [message], "{text}");
        }
    }

    /// Goal: a route needs a pattern and gateways that can be called. Method: one that fits, and one slip
    /// at a time.
    #[test]
    fn routes_must_lead_somewhere() {
        const ROUTE: &str =
            "call_uri=\"sips:192.0.2.1\"\n[[route]]\nname=\"out\"\npattern=\"0*\"\ngateways=[\"gw\"]\n";
        let edge = EDGE.replace("address=[\"192.0.2.1\"]\n", &format!("address=[\"192.0.2.1\"]\n{ROUTE}"));
        assert_eq!(problems(&edge), Vec::<String>::new());
        let cases = [
            (
                "gateways=[\"gw\"]",
                "gateways=[\"wg\"]",
                "a.toml:12: route[0].gateways: there is no gateway \"wg\"",
            ),
            ("gateways=[\"gw\"]", "", "a.toml:9: route[0].gateways: is missing: where do its calls go?"),
            ("pattern=\"0*\"", "", "a.toml:9: route[0].pattern: is missing: which numbers is it for?"),
            (
                "call_uri=\"sips:192.0.2.1\"",
                "",
                "a.toml:12: route[0].gateways: gateway \"gw\" has no call_uri: no call can be sent there",
            ),
            (
                "gateways=[\"gw\"]",
                "gateways=[\"gw\"]\nprefix=\"a\"",
                "a.toml:13: route[0].prefix: takes digits, \"+\", \"*\" and \"#\" only",
            ),
        ];
        for (good, bad, message) in cases {
            assert_eq!(problems(&edge.replace(good, bad)), [message], "{bad}");
        }
        let no_tls = edge.replace("certificate=\"c\"\nkey=\"k\"\n", "").replace("security=\"secured\"\n", "");
        assert_eq!(
            problems(&no_tls),
            ["a.toml:6: gateway[0].call_uri: needs TLS: set tls.certificate and tls.key"]
        );
    }

    /// Goal: TLS that cannot work is told before the start. Method: one missing file a case.
    #[test]
    fn tls_needs_certificate_key_and_authorities() {
        let cases = [
            ("[tls]\nkey=\"k\"", "a.toml:1: tls.certificate: is missing"),
            ("[tls]\ncertificate=\"c\"\nkey=\"k\"", "a.toml:1: tls.ca: is missing"),
            ("[router]\nstartup_mode=\"tls\"", "a.toml:2: router.startup_mode: \"tls\" needs"),
            (
                "[[dial_plan]]\nname=\"a\"\nsecurity=\"sip_secured\"",
                "a.toml:3: dial_plan[0].security: needs TLS",
            ),
        ];
        for (text, message) in cases {
            let found = problems(text);
            assert!(found.iter().any(|problem| problem.starts_with(message)), "{text}: {found:?}");
        }
    }
}
