//! What was found, and how it is printed.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The node does not start, or does not do what the configuration says.
    Error,
    /// It works, but worse or less than it should.
    Warning,
}

/// One problem and the way out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad.
    pub level: Level,
    /// `file:line table.key`, or the part of the machine.
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to type or change.
    pub fix: String,
}

/// Everything a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Errors first, in the order found.
    pub problems: Vec<Problem>,
    /// What was looked at and is fine.
    pub passed: Vec<String>,
}

impl Report {
    /// Notes something that keeps the node from working.
    pub fn error(&mut self, place: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) {
        self.push(Level::Error, place.into(), what.into(), fix.into());
    }

    /// Notes something that makes it worse.
    pub fn warning(&mut self, place: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) {
        self.push(Level::Warning, place.into(), what.into(), fix.into());
    }

    /// Notes something that is fine.
    pub fn pass(&mut self, what: impl Into<String>) {
        self.passed.push(what.into());
    }

    fn push(&mut self, level: Level, place: String, what: String, fix: String) {
        self.problems.push(Problem { level, place, what, fix });
        self.problems.sort_by_key(|problem| problem.level);
    }

    /// Errors found.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| problem.level == Level::Error).count()
    }

    /// Text for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for passed in &self.passed {
            let _ = writeln!(text, "ok       {passed}");
        }
        for problem in &self.problems {
            let level = match problem.level {
                Level::Error => "error  ",
                Level::Warning => "warning",
            };
            let _ = writeln!(text, "{level}  {}: {}", problem.place, problem.what);
            for line in problem.fix.lines() {
                let _ = writeln!(text, "         fix: {line}");
            }
        }
        let errors = self.errors();
        let warnings = self.problems.len() - errors;
        let plural = |count| if count == 1 { "" } else { "s" };
        let _ = writeln!(text, "{errors} error{}, {warnings} warning{}", plural(errors), plural(warnings));
        text
    }
}
