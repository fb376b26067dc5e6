//! Which calls go on to another gateway.

use std::sync::Arc;
use std::time::Duration;

use crate::base::config::{self, Config, RoutePattern};

/// All routes, in the order that decides.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<Arc<Route>>);

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What logs call it.
    pub name: String,
    pattern: RoutePattern,
    /// Gateways in the order they are tried.
    pub gateways: Vec<String>,
    strip_digits: usize,
    prefix: String,
    /// How long the far end may ring.
    pub ring_timeout: Duration,
    /// How long a gateway may say nothing.
    pub try_timeout: Duration,
}

impl Routes {
    /// Those of the configuration.
    pub fn new(config: &Config) -> Self {
        Self(config.route.iter().map(|route| Arc::new(Route::new(route))).collect())
    }

    /// The first route for a number as it was dialled.
    pub fn find(&self, number: &str) -> Option<&Arc<Route>> {
        self.0.iter().find(|route| route.pattern.matches(number))
    }
}

impl Route {
    fn new(route: &config::Route) -> Self {
        Self {
            name: route.name.clone(),
            pattern: route.pattern.clone(),
            gateways: route.gateways.0.clone(),
            strip_digits: usize::from(route.strip_digits),
            prefix: route.prefix.clone(),
            ring_timeout: Duration::from_secs(u64::from(route.ring_timeout_s)),
            try_timeout: Duration::from_secs(u64::from(route.try_timeout_s)),
        }
    }

    /// One of a call that is past all routing: a name and no more.
    pub fn named(name: String) -> Self {
        Self {
            name,
            pattern: RoutePattern::default(),
            gateways: Vec::new(),
            strip_digits: 0,
            prefix: String::new(),
            ring_timeout: Duration::ZERO,
            try_timeout: Duration::ZERO,
        }
    }

    /// The number that the gateway is asked for.
    pub fn number(&self, dialled: &str) -> String {
        self.prefix.chars().chain(dialled.chars().skip(self.strip_digits)).collect()
    }

    /// In a few words, for logs and `voxring explain-call`.
    pub fn describe(&self, dialled: &str) -> String {
        let gateways = self.gateways.join(", then ");
        format!("route {:?} ({}): {:?} at {gateways}", self.name, self.pattern, self.number(dialled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::GatewayNames;

    fn route(name: &str, pattern: &str, strip_digits: u8, prefix: &str) -> config::Route {
        config::Route {
            name: name.into(),
            pattern: pattern.parse().unwrap(),
            gateways: GatewayNames(vec!["a".into(), "b".into()]),
            strip_digits,
            prefix: prefix.into(),
            ..config::Route::default()
        }
    }

    /// Goal: the first route that fits takes the number and rewrites it. Method: overlapping routes.
    #[test]
    fn the_first_route_that_fits_takes_the_call_and_rewrites_its_number() {
        let config = Config {
            route: vec![
                route("abroad", "00*", 2, "+"),
                route("home", "0*", 1, "+49"),
                route("pbx", "2xxx", 0, ""),
            ],
            ..Config::default()
        };
        let routes = Routes::new(&config);
        let found = |number: &str| routes.find(number).map(|route| (&route.name[..], route.number(number)));
        assert_eq!(found("0043123"), Some(("abroad", "+43123".into())));
        assert_eq!(found("030123"), Some(("home", "+4930123".into())));
        assert_eq!(found("2001"), Some(("pbx", "2001".into())));
        assert_eq!(found("1001"), None);
        assert_eq!(found(""), None);
        assert_eq!(routes.find("00").unwrap().number("00"), "+");
        assert_eq!(
            routes.find("2001").unwrap().describe("2001"),
            "route \"pbx\" (2xxx): \"2001\" at a, then b"
        );
    }
}
