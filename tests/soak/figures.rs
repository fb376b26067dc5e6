//! The table at the end of a soak.

use std::io::Write as _;

use serde_json::Value;

/// Rows of figures under their conditions.
pub(crate) struct Figures {
    title: String,
    rows: Vec<(String, String)>,
}

impl Figures {
    /// A table of this soak under these conditions.
    pub(crate) fn new(title: String) -> Self {
        Self { title, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, what: &str, value: impl ToString) {
        self.rows.push((what.to_owned(), value.to_string()));
    }

    /// Prints all of it, past the test harness, which would keep it for itself.
    pub(crate) fn print(&self) {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        let mut text = format!("\n{}\n", self.title);
        self.rows.iter().for_each(|(what, value)| text.push_str(&format!("  {what:width$}  {value}\n")));
        // A closed standard error has no reader.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// A number of a report.
///
/// # Panics
/// There is none of that name.
pub(crate) fn number(report: &Value, path: &str) -> u64 {
    let value = report.pointer(path).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no {path} in {report:#}"))
}

/// What a report has as a map of counts, as text.
pub(crate) fn counts(report: &Value, path: &str) -> String {
    let map = report.pointer(path).and_then(Value::as_object);
    let told = map.into_iter().flatten().map(|(what, times)| format!("{times} x {what}"));
    let told: Vec<String> = told.collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}

/// The least value of a distribution that this share of its values does not exceed, milliseconds.
pub(crate) fn quantile_ms(report: &Value, path: &str, wanted: f64) -> f64 {
    let quantiles = report.pointer(&format!("{path}/quantiles")).and_then(Value::as_array);
    let found = quantiles
        .into_iter()
        .flatten()
        .find_map(|pair| (pair[0].as_f64()? >= wanted).then(|| pair[1].as_f64().map(|us| us / 1000.0))?);
    found.unwrap_or_else(|| panic!("no {path} in {report:#}"))
}

/// A histogram of gaps: "12 up to 30 ms, 1 longer".
pub(crate) fn buckets(report: &Value, path: &str) -> String {
    let buckets = report.pointer(path).and_then(Value::as_array);
    let filled = buckets.into_iter().flatten().filter(|pair| pair[1] != 0);
    let told = filled.map(|pair| match pair[0].as_u64() {
        Some(edge) => format!("{} up to {edge} ms", pair[1]),
        None => format!("{} longer", pair[1]),
    });
    told.collect::<Vec<_>>().join(", ")
}
