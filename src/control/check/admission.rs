//! Who may call, as configured: what is right by itself and yet does nothing, or refuses everybody.

use super::report::Report;
use crate::base::config::{Config, GatewayAddress, Source, UriType};

/// Compares gateways, hunt groups and dial plans with each other.
pub(super) fn examine(report: &mut Report, config: &Config, source: &Source) {
    gateways(report, config, source);
    for (index, plan) in config.dial_plan.iter().enumerate() {
        if plan.extension_digits > 0 && plan.uri_type != UriType::TelExtn {
            report.warning(
                source.locate(&format!("dial_plan[{index}].extension_digits")),
                format!("has no effect: dial plan {} is not of uri_type \"tel_extn\"", plan.name),
                "set uri_type = \"tel_extn\", or leave extension_digits out",
            );
        }
    }
    for (index, group) in config.hunt_group.iter().enumerate() {
        if group.pilot.is_empty() && !group.mailbox.is_empty() {
            report.warning(
                source.locate(&format!("hunt_group[{index}].mailbox")),
                "has no effect: it is for callers of the pilot, and this group has none",
                "set pilot, or leave mailbox out",
            );
        }
    }
}

/// Gateways that no call can come from.
fn gateways(report: &mut Report, config: &Config, source: &Source) {
    let networks = |index: usize| {
        config.gateway.get(index).into_iter().flat_map(|g| &g.address.0).filter_map(|address| match address {
            GatewayAddress::Network(network) => Some(network),
            GatewayAddress::Name(_) => None,
        })
    };
    for (index, gateway) in config.gateway.iter().enumerate() {
        if !config.hunt_group.is_empty() && !config.hunt_group.iter().any(|g| g.gateway == gateway.name) {
            report.warning(
                source.locate(&format!("gateway[{index}].name")),
                format!("no hunt group is for gateway {}: all its calls get 404", gateway.name),
                format!("add a [[hunt_group]] with gateway = \"{}\"", gateway.name),
            );
        }
        let twin = (0..index).find(|&earlier| networks(earlier).any(|n| networks(index).any(|o| n == o)));
        if let Some(twin) = twin.and_then(|twin| config.gateway.get(twin)) {
            report.warning(
                source.locate(&format!("gateway[{index}].address")),
                format!(
                    "gateways {} and {} have an address in common: only over TLS are they told apart, else it is {0}'s",
                    twin.name, gateway.name
                ),
                "give each address to one gateway, or let both use TLS with names of their own",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::{DialPlan, Gateway, HuntGroup};

    fn problems(config: &Config) -> Vec<String> {
        let mut report = Report::default();
        examine(&mut report, config, &Source::default());
        assert_eq!(report.errors(), 0);
        report.problems.into_iter().map(|problem| problem.what).collect()
    }

    fn gateway(name: &str, address: &str) -> Gateway {
        let address = serde_json::from_value(serde_json::json!([address])).unwrap();
        Gateway { name: name.to_owned(), address, ..Gateway::default() }
    }

    /// Goal: keys that do nothing and gateways that no call can come from are told. Method: one of each
    /// beside what is in order.
    #[test]
    fn what_has_no_effect_is_told() {
        let plan = DialPlan {
            name: "p".into(),
            uri_type: UriType::TelExtn,
            extension_digits: 4,
            ..DialPlan::default()
        };
        let group = HuntGroup {
            gateway: "a".into(),
            dial_plan: "p".into(),
            pilot: "5000".into(),
            mailbox: "1001".into(),
        };
        let mut config = Config {
            gateway: vec![gateway("a", "192.0.2.0/24"), gateway("b", "192.0.2.7")],
            dial_plan: vec![plan],
            ..Config::default()
        };
        assert_eq!(problems(&config), Vec::<String>::new());
        config.hunt_group = vec![group];
        assert_eq!(problems(&config), ["no hunt group is for gateway b: all its calls get 404"]);
        config.hunt_group[0].pilot.clear();
        config.gateway = vec![gateway("a", "192.0.2.7"), gateway("a", "192.0.2.7/32")];
        config.dial_plan[0].uri_type = UriType::E164;
        let found = problems(&config);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("have an address in common"), "{found:?}");
        assert!(found[1].contains("is not of uri_type"), "{found:?}");
        assert!(found[2].contains("this group has none"), "{found:?}");
    }
}
