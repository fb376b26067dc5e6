//! What router, service and worker have in common as SIP user agents: how they write responses and
//! how they log refusals.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use serde::Serialize;

use crate::base::config::Config;
use crate::call::admission::Refused;
use crate::signal::{ConnectionLimits, Counters, Listener, SignalConfig, TlsSetup};
use crate::sip::layer::{self, Layer};
use crate::sip::message::{Method, Name, Request, Response};
use crate::sip::uas::{self, UasRules};
use crate::sip::uri::Uri;

/// Orders that may wait for a SIP loop; it takes them at every pump.
const SIGNAL_ORDERS_MAX: usize = 64;

/// Timer L in seconds.
const ACCEPTED_LIFE_S: usize = 32;
/// Server transactions whatever `calls.calls_per_s` says.
const TRANSACTIONS_MAX: usize = 500_000;
/// What an answered INVITE keeps, with room.
const TRANSACTION_BYTES: usize = 3 * 1024;

/// The Server field's value (RFC 3261 §20.35).
pub fn server_name(config: &Config) -> String {
    format!("{}/{}", config.node.name, env!("CARGO_PKG_VERSION"))
}

/// 64 random bits from the operating system, for tags and seeds.
///
/// # Errors
/// The operating system has none to give.
pub fn random() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}

/// The SIP loop's limits for these listeners.
///
/// Its counters are shared with the role that reports them.
pub fn signal_config(config: &Config, tls: Option<Arc<TlsSetup>>, listeners: Vec<Listener>) -> SignalConfig {
    SignalConfig {
        listeners,
        connections_max: config.sip.connections_max as usize,
        idle_timeout: Duration::from_secs(u64::from(config.sip.idle_timeout_s)),
        message_timeout: Duration::from_secs(u64::from(config.sip.message_timeout_s)),
        limits: connection_limits(config),
        tls,
        orders: Arc::new(ArrayQueue::new(SIGNAL_ORDERS_MAX)),
        cpu: None,
        counters: Arc::default(),
    }
}

/// What `config` lets one source ask of a SIP loop.
pub fn connection_limits(config: &Config) -> ConnectionLimits {
    let limits = &config.limits;
    ConnectionLimits {
        source_per_s: limits.source_connections_per_s,
        source_burst: limits.source_connections_burst,
        source_max: limits.source_connections_max,
        messages_per_s: limits.connection_messages_per_s,
        handshake_timeout: Duration::from_secs(u64::from(config.tls.handshake_timeout_s)),
        ..ConnectionLimits::default()
    }
}

/// Adds what the SIP loop refused before a role saw it.
pub fn add_transport_refusals(refused: &mut BTreeMap<String, u64>, counters: &Counters) {
    let refusals = [
        ("connections_max", &counters.refused),
        ("source_connections", &counters.source_refused),
        ("descriptors", &counters.descriptors_refused),
        ("unknown_source", &counters.unknown_source),
        ("framing", &counters.frame_errors),
        ("unreadable", &counters.parse_errors),
        ("tls_no_certificate", &counters.tls_no_certificate),
        ("tls_unknown_ca", &counters.tls_unknown_ca),
        ("tls_expired", &counters.tls_expired),
        ("tls_revoked", &counters.tls_revoked),
        ("tls_bad_certificate", &counters.tls_bad_certificate),
        ("tls_crl_expired", &counters.tls_crl_expired),
        ("tls_timeout", &counters.tls_timeout),
        ("tls_other", &counters.tls_other),
    ];
    for (rule, counter) in refusals {
        if counter.value() > 0 {
            // A role may refuse by the same rule what the loop let through.
            *refused.entry(rule.to_owned()).or_default() += counter.value();
        }
    }
}

/// The numbers of a serialisable set of counters, each name after `room`.
pub fn counters(room: &str, set: &impl Serialize) -> BTreeMap<String, u64> {
    let value = serde_json::to_value(set).unwrap_or_default();
    let numbers = value.as_object().into_iter().flatten();
    numbers.filter_map(|(name, value)| Some((format!("{room}{name}"), value.as_u64()?))).collect()
}

/// A transaction layer that names this node.
///
/// # Errors
/// As [`random`].
pub fn layer(config: &Config) -> io::Result<Layer> {
    Ok(Layer::new(layer_config(config), random()?))
}

/// An answered INVITE's transaction lives on for 64*T1 (timer L, RFC 6026 §8.4), so the calls that
/// `calls.calls_per_s` allows in that time need room, or the layer refuses them with 503 first.
fn layer_config(config: &Config) -> layer::Config {
    let least = layer::Config::default();
    let calls = config.calls.calls_per_s as usize * ACCEPTED_LIFE_S;
    let transactions = (calls + calls / 4).clamp(least.server_transactions_max, TRANSACTIONS_MAX);
    layer::Config {
        server: server_name(config),
        server_bytes_max: least.server_bytes_max.max(transactions * TRANSACTION_BYTES),
        server_transactions_max: transactions,
        ..least
    }
}

/// What a node of this name serves.
pub fn uas_rules(methods: &[Method]) -> UasRules {
    UasRules { methods: methods.to_vec(), ..UasRules::default() }
}

/// The 200 to OPTIONS outside a dialog (RFC 3261 §11.2).
pub fn options_response(request: &Request, rules: &UasRules) -> Response {
    let mut response = Response::for_request(request, 200, "OK");
    response.headers.push(Name::Allow, rules.allow());
    response.headers.push(Name::Accept, rules.accept());
    response.headers.push(Name::Supported, rules.supported());
    response
}

/// A 503 with Retry-After (RFC 3261 §21.5.4): ours or a resource's fault, never the caller's.
pub fn unavailable(request: &Request, rules: &UasRules, retry_after_s: u16, why: &str) -> Response {
    let mut response = uas::refuse(request, &rules.agent, 503, "Service Unavailable", why);
    response.headers.push(Name::RetryAfter, retry_after_s.to_string());
    response
}

/// The response to a request that admission refused: 503 says when to try again.
pub fn refusal(request: &Request, rules: &UasRules, retry_after_s: u16, refused: &Refused) -> Response {
    let Refused { status, reason, why, .. } = refused;
    match status {
        503 => unavailable(request, rules, retry_after_s, why),
        _ => uas::refuse(request, &rules.agent, *status, reason, why),
    }
}

/// The Request-URI for a log: a password in it (RFC 3261 §19.1.1 warns of them) is left out.
pub fn uri_without_password(request: &Request) -> String {
    match request.uri() {
        Ok(Uri::Sip(mut uri)) => {
            uri.password = None;
            uri.to_string()
        }
        Ok(uri) => uri.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the calls a node is allowed to take are not refused by its own transaction layer.
    /// Method: by default, at 2000 calls a second (32 s of them and a quarter more) and at the most.
    #[test]
    fn the_transaction_layer_has_room_for_the_calls_allowed() {
        let with = |calls_per_s| {
            let mut config = Config::default();
            config.calls.calls_per_s = calls_per_s;
            layer_config(&config)
        };
        assert_eq!(with(500).server_transactions_max, 20_000);
        assert_eq!(with(2000).server_transactions_max, 80_000);
        assert_eq!(with(2000).server_bytes_max, 80_000 * 3072);
        assert_eq!(with(100_000).server_transactions_max, 500_000);
    }
}
