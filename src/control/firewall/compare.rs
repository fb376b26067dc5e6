//! Our ruleset against the one that runs.
//!
//! Both are lists of nftables' JSON objects. What two listings of one ruleset may differ in is taken
//! out first: handles, counts, the order within sets, the two spellings of lists. Objects are then
//! paired by what names them, rules by chain and comment; a rule's expressions must be equal. What we
//! do not understand is never equal to anything.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Value, json};

/// How the running ruleset differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// We have it, the running one does not.
    Missing,
    /// The running one has it, we do not.
    Extra,
    /// Both have it, not equal.
    Changed,
    /// Both have these rules, in another order.
    Order,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::Order => "order",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    pub(super) kind: Kind,
    /// `table`, `chain`, `rule`, `set`, `element`, `counter`, or another of nftables' objects.
    pub(super) object: String,
    /// Its name; of a rule its chain and comment, of an element its set and itself.
    pub(super) name: String,
    /// How it should be.
    pub(super) expected: Option<Value>,
    /// How it is.
    pub(super) running: Option<Value>,
}

/// An object without what varies.
#[derive(Debug, Clone, PartialEq)]
struct Object {
    kind: String,
    /// Of a rule its chain; rules of a chain have an order.
    chain: Option<String>,
    name: String,
    body: Value,
    elements: Vec<Value>,
}

/// Everything in which `running` differs from `expected`.
pub(super) fn compare(expected: &[Value], running: &[Value]) -> Vec<Difference> {
    let (ours, theirs) = (read(expected), read(running));
    let mut differences = Vec::new();
    for our in &ours {
        match theirs.iter().find(|their| their.is_namesake(our)) {
            None => differences.push(our.difference(Kind::Missing, None)),
            Some(their) => {
                if our.body != their.body {
                    differences.push(our.difference(Kind::Changed, Some(their)));
                }
                compare_elements(our, their, &mut differences);
            }
        }
    }
    for (index, their) in theirs.iter().enumerate() {
        // A second rule of one name is one too many, whatever is in it.
        let is_second = theirs.iter().take(index).any(|earlier| earlier.is_namesake(their));
        if is_second || !ours.iter().any(|our| our.is_namesake(their)) {
            differences.push(their.difference(Kind::Extra, None));
        }
    }
    for chain in ours.iter().filter(|our| our.kind == "chain") {
        compare_order(&chain.name, &ours, &theirs, &mut differences);
    }
    differences
}

impl Object {
    fn is_namesake(&self, other: &Self) -> bool {
        (&self.kind, &self.chain, &self.name) == (&other.kind, &other.chain, &other.name)
    }

    fn difference(&self, kind: Kind, running: Option<&Self>) -> Difference {
        let name = match &self.chain {
            Some(chain) => format!("{chain}: {}", self.name),
            None => self.name.clone(),
        };
        let own = Some(self.body.clone());
        let (expected, running) = match kind {
            Kind::Extra => (None, own),
            Kind::Missing | Kind::Changed | Kind::Order => (own, running.map(|their| their.body.clone())),
        };
        Difference { kind, object: self.kind.clone(), name, expected, running }
    }
}

/// The first elements of ours that the running set does not hold, and the other way round.
fn compare_elements(our: &Object, their: &Object, differences: &mut Vec<Difference>) {
    let mut lacking = |from: &Object, other: &Object, kind| {
        let held = spans(&other.elements);
        for element in &from.elements {
            let is_held = match span(element) {
                Some((first, last)) => held.iter().any(|(low, high)| *low <= first && last <= *high),
                None => other.elements.contains(element),
            };
            if !is_held {
                let name = format!("{} {}", our.name, show(element));
                let own = Some(element.clone());
                let (expected, running) = if kind == Kind::Missing { (own, None) } else { (None, own) };
                differences.push(Difference { kind, object: "element".into(), name, expected, running });
            }
        }
    };
    lacking(our, their, Kind::Missing);
    lacking(their, our, Kind::Extra);
}

/// Rules that both have must come one after the other in the same order.
fn compare_order(chain: &str, ours: &[Object], theirs: &[Object], differences: &mut Vec<Difference>) {
    let names = |own: &[Object], other: &[Object]| -> Vec<String> {
        own.iter()
            .filter(|rule| rule.chain.as_deref() == Some(chain))
            .filter(|rule| other.iter().any(|one| one.is_namesake(rule)))
            .map(|rule| rule.name.clone())
            .collect()
    };
    let (right, mut found) = (names(ours, theirs), names(theirs, ours));
    let mut seen = Vec::new();
    found.retain(|name| {
        !seen.contains(name) && {
            seen.push(name.clone());
            true
        }
    });
    if right != found {
        differences.push(Difference {
            kind: Kind::Order,
            object: "rules".to_owned(),
            name: chain.to_owned(),
            expected: Some(json!(right)),
            running: Some(json!(found)),
        });
    }
}

/// The objects of a listing; its `metainfo` is none.
fn read(listing: &[Value]) -> Vec<Object> {
    let entries = listing.iter().filter_map(|entry| entry.as_object()?.iter().next());
    entries.filter(|(kind, _)| *kind != "metainfo").map(|(kind, body)| object(kind, body)).collect()
}

fn object(kind: &str, body: &Value) -> Object {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let is_rule = kind == "rule";
    let mut rest = body.clone();
    let mut elements = Vec::new();
    if let Some(fields) = rest.as_object_mut() {
        for varies in ["handle", "packets", "bytes", "family", "table", "chain", "index"] {
            fields.remove(varies);
        }
        fields.remove(if is_rule { "comment" } else { "name" });
        if let Some(Value::Array(found)) = fields.remove("elem") {
            elements = found.into_iter().map(element).collect();
        }
    }
    normalise(&mut rest);
    let unnamed = || format!("without a comment, handle {}", body.get("handle").unwrap_or(&Value::Null));
    Object {
        kind: kind.to_owned(),
        chain: text("chain").filter(|_| is_rule),
        name: text(if is_rule { "comment" } else { "name" }).unwrap_or_else(unnamed),
        body: rest,
        elements,
    }
}

/// An element without what may hang on it, its counter for one.
fn element(value: Value) -> Value {
    value.pointer("/elem/val").cloned().unwrap_or(value)
}

/// Gives lists whose order means nothing an order, and one spelling: `{"set": […]}` and
/// `{"|": […]}` and bare lists of words.
fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(normalise);
            // Flags, as in `ct state established,related`.
            if let (1, Some(words @ Value::Array(_))) = (fields.len(), fields.get("|")) {
                *value = words.clone();
            } else if let (1, Some(Value::Array(members))) = (fields.len(), fields.get_mut("set")) {
                members.sort_by_key(ToString::to_string);
            } else if let Some(Value::String(flag)) = fields.get("flags") {
                let flag = json!([flag]);
                fields.insert("flags".to_owned(), flag);
            }
        }
        Value::Array(members) => {
            members.iter_mut().for_each(normalise);
            if members.iter().all(Value::is_string) {
                members.sort_by_key(ToString::to_string);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// All elements as spans of addresses, those that touch joined.
fn spans(elements: &[Value]) -> Vec<Span> {
    let mut spans: Vec<Span> = elements.iter().filter_map(span).collect();
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for (first, last) in spans {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// First and last address, as numbers.
type Span = (u128, u128);

/// An address, a prefix or a range.
fn span(element: &Value) -> Option<Span> {
    let address = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    if let Some(prefix) = element.get("prefix") {
        let first = address(prefix.get("addr")?)?;
        let bits = if first.is_ipv4() { 32 } else { 128 };
        let free = bits - u32::try_from(prefix.get("len")?.as_u64()?).ok()?.min(bits);
        let last = u128::MAX.checked_shr(128 - free).unwrap_or(0);
        return Some((number(first), number(first) | last));
    }
    if let Some([first, last]) = element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some((number(address(first)?), number(address(last)?)));
    }
    address(element).map(|address| (number(address), number(address)))
}

/// An element as nft's text has it.
fn show(element: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(prefix) = element.get("prefix") {
        return format!("{}/{}", plain(&prefix["addr"]), prefix["len"]);
    }
    if let Some([first, last]) = element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return format!("{}-{}", plain(first), plain(last));
    }
    plain(element)
}

#[cfg(test)]
mod tests;
