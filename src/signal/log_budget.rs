//! Lines about peers, so many a second; the rest is counted only.

use std::collections::HashMap;
use std::time::Instant;

use crate::base::bucket::{Rate, TokenBucket};

/// Lines under one rule.
const LINES: Rate = Rate { per_s: 20, burst: 20 };

/// Keeps a flood of unreadable messages from becoming a flood of log lines. Each rule has its own
/// budget: what a flood under one rule leaves out must not be the one line under another.
#[derive(Debug, Default)]
pub(super) struct LogBudget {
    rules: HashMap<&'static str, TokenBucket>,
}

impl LogBudget {
    /// True when a line may be written now.
    pub(super) fn take(&mut self, now: Instant, rule: &'static str) -> bool {
        self.rules.entry(rule).or_default().take(now, LINES)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Goal: a flood is cut to its lines a second, and hides nothing under another rule. Method: a
    /// thousand lines of strangers in one second, one refused certificate, and the twentieth of a
    /// second in which one line more comes.
    #[test]
    fn a_flood_under_one_rule_leaves_the_others_their_lines() {
        #[expect(clippy::disallowed_methods, reason = "any start will do")]
        let start = Instant::now();
        let mut budget = LogBudget::default();
        let told = (0..1000).filter(|_| budget.take(start, "unknown_source")).count();
        assert_eq!(told, 20);
        assert!(budget.take(start, "tls_unknown_ca"));
        assert!(!budget.take(start + Duration::from_millis(49), "unknown_source"));
        assert!(budget.take(start + Duration::from_millis(50), "unknown_source"));
    }
}
