//! Routes that no call reaches, and gateways that could not be called or would not be believed.

use super::report::Report;
use crate::base::config::{
    CallHost, CallTransport, CallUri, Config, Gateway, GatewayAddress, RoutePattern, Source,
};
use crate::control::cli::Slot;
use crate::control::listeners::{self, ListenRole};
use crate::sip::flow::Transport;

/// Compares routes with each other, and gateways that are called with the rest.
pub(super) fn examine(report: &mut Report, config: &Config, source: &Source) {
    for (index, route) in config.route.iter().enumerate() {
        let earlier = config.route.iter().take(index);
        if let Some(first) = earlier.into_iter().find(|first| first.pattern.covers(&route.pattern)) {
            report.warning(
                source.locate(&format!("route[{index}].pattern")),
                format!(
                    "no call reaches route {}: {} takes all that {} would (route {})",
                    route.name, first.pattern, route.pattern, first.name
                ),
                "put the narrower pattern first, or leave the route out",
            );
        }
    }
    for (index, gateway) in config.gateway.iter().enumerate() {
        if let Some(uri) = &gateway.call_uri.0 {
            let place = source.locate(&format!("gateway[{index}].call_uri"));
            callee(report, config, &place, gateway, uri);
        }
    }
    hidden(report, config, source);
}

/// What keeps a gateway from being called.
fn callee(report: &mut Report, config: &Config, place: &str, gateway: &Gateway, uri: &CallUri) {
    let name = &gateway.name;
    let transport = match uri.transport {
        CallTransport::Udp => Transport::Udp,
        CallTransport::Tcp => Transport::Tcp,
        CallTransport::Tls => Transport::Tls,
    };
    let is_used = config.route.iter().any(|route| route.gateways.0.contains(name));
    let fits = |address: std::net::SocketAddr| match &uri.host {
        CallHost::Address(host) => host.is_ipv4() == address.is_ipv4(),
        CallHost::Name(_) => true,
    };
    let mut own = listeners::of_role(config, ListenRole::Worker(Slot::A)).into_iter();
    if !own.any(|listener| listener.transport == transport && fits(listener.address)) {
        let by = transport.name();
        let text =
            format!("gateway {name} is to be called over {by}, and the worker has no {by} listener for it");
        let fix = "set worker.udp, worker.startup_mode or worker.address, or another transport in call_uri";
        if is_used { report.error(place, text, fix) } else { report.warning(place, text, fix) }
    }
    if !is_used {
        let text = format!("has no effect: no route leads to gateway {name}");
        report.warning(place, text, "add a [[route]] with it in gateways, or leave call_uri out");
    }
    if !is_known(gateway, uri) {
        report.warning(
            place,
            format!("{uri} is none of gateway {name}'s addresses: a request that it sends by a new connection, such as BYE, is not let in"),
            "add the host of call_uri to address",
        );
    }
}

/// True when what is called there is also let in from there.
fn is_known(gateway: &Gateway, uri: &CallUri) -> bool {
    gateway.address.0.iter().any(|address| match (address, &uri.host) {
        (GatewayAddress::Network(network), CallHost::Address(host)) => network.contains(*host),
        (GatewayAddress::Name(name), CallHost::Name(host)) => name == host,
        // A name may mean an address of the network, and the other way round.
        (GatewayAddress::Network(_), CallHost::Name(_)) | (GatewayAddress::Name(_), CallHost::Address(_)) => {
            true
        }
    })
}

/// Test extensions come before routes.
fn hidden(report: &mut Report, config: &Config, source: &Source) {
    if !config.test_extensions.enabled {
        return;
    }
    let all = (9196..=9199).map(|number| number.to_string());
    let extensions: Vec<RoutePattern> = all.filter_map(|number| number.parse().ok()).collect();
    for (index, route) in config.route.iter().enumerate() {
        if extensions.contains(&route.pattern) {
            report.warning(
                source.locate(&format!("route[{index}].pattern")),
                format!("no call reaches route {}: {} is a test extension", route.name, route.pattern),
                "set test_extensions.enabled = false, or leave the route out",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::{GatewayCallUri, GatewayNames, Route};

    fn problems(config: &Config) -> Vec<String> {
        let mut report = Report::default();
        examine(&mut report, config, &Source::default());
        report.problems.into_iter().map(|problem| format!("{:?}: {}", problem.level, problem.what)).collect()
    }

    fn gateway(name: &str, address: &str, uri: &str) -> Gateway {
        let address = serde_json::from_value(serde_json::json!([address])).unwrap();
        let call_uri = GatewayCallUri(Some(uri.parse().unwrap()));
        Gateway { name: name.to_owned(), address, call_uri, ..Gateway::default() }
    }

    fn route(name: &str, pattern: &str, gateway: &str) -> Route {
        Route {
            name: name.into(),
            pattern: pattern.parse().unwrap(),
            gateways: GatewayNames(vec![gateway.into()]),
            ..Route::default()
        }
    }

    /// Goal: routes that no call reaches and gateways that cannot be called are told. Method: what is in
    /// order, then one slip of each kind.
    #[test]
    fn what_no_call_reaches_is_told() {
        let mut config = Config {
            gateway: vec![gateway("a", "127.0.0.1", "sip:127.0.0.1;transport=tcp")],
            route: vec![route("short", "12", "a"), route("all", "1*", "a")],
            ..Config::default()
        };
        assert_eq!(problems(&config), Vec::<String>::new());
        config.route.reverse();
        config.gateway.push(gateway("b", "192.0.2.0/24", "sip:192.0.3.1;transport=tcp"));
        config.gateway.push(gateway("c", "192.0.2.0/24", "sip:192.0.2.1"));
        config.route.push(route("udp", "2", "c"));
        config.route.push(route("test", "9196", "a"));
        config.test_extensions.enabled = true;
        let found = problems(&config);
        let expected = [
            "Error: gateway c is to be called over udp",
            "Warning: no call reaches route short: 1* takes all that 12 would (route all)",
            "Warning: has no effect: no route leads to gateway b",
            "Warning: sip:192.0.3.1;transport=tcp is none of gateway b's addresses",
            "Warning: no call reaches route test: 9196 is a test extension",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        assert!(
            found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)),
            "{found:#?}"
        );
    }
}
