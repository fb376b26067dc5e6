//! Lines about peers, so many a second; the rest is counted only.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines a second under one rule.
const LINES_PER_S: u32 = 20;

/// Keeps a flood of unreadable messages from becoming a flood of log lines. Each rule has its own
/// budget: what a flood under one rule leaves out must not be the one line under another.
#[derive(Debug, Default)]
pub(super) struct LogBudget {
    rules: HashMap<&'static str, Second>,
}

#[derive(Debug)]
struct Second {
    until: Instant,
    left: u32,
}

impl LogBudget {
    /// True when a line may be written now.
    pub(super) fn take(&mut self, now: Instant, rule: &'static str) -> bool {
        let second = self.rules.entry(rule).or_insert(Second { until: now, left: 0 });
        if second.until <= now {
            *second = Second { until: now + Duration::from_secs(1), left: LINES_PER_S };
        }
        let may = second.left > 0;
        second.left = second.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a flood is cut to its lines a second, and hides nothing under another rule. Method: a
    /// thousand lines of strangers in one second, one refused certificate, and the next second.
    #[test]
    fn a_flood_under_one_rule_leaves_the_others_their_lines() {
        #[expect(clippy::disallowed_methods, reason = "any start will do")]
        let start = Instant::now();
        let mut budget = LogBudget::default();
        let told = (0..1000).filter(|_| budget.take(start, "unknown_source")).count();
        assert_eq!(told, 20);
        assert!(budget.take(start, "tls_unknown_ca"));
        assert!(!budget.take(start + Duration::from_millis(999), "unknown_source"));
        assert!(budget.take(start + Duration::from_secs(1), "unknown_source"));
    }
}
