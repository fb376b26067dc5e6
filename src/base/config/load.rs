//! Reads a file. Every problem names file, line and key; all of them are found in one go.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::declare::{Bounds, Value, takes};
use super::{Config, Table};

/// Most edits between an unknown key and the known one that is suggested.
const EDITS_MAX: usize = 3;
/// Characters of a refused value that a message repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// Where a configuration came from: the file and the line of each key it sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file; `None` for the embedded default.
    pub file: Option<PathBuf>,
    lines: BTreeMap<String, usize>,
    /// Keys that were set at run time, each with the file that keeps it.
    overlaid: BTreeMap<String, PathBuf>,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'s> {
    /// Nobody set it.
    Default,
    /// The configuration file, on this line.
    File(&'s Path, usize),
    /// A command to the running node; this file keeps it.
    RunTime(&'s Path),
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The file.
    pub file: PathBuf,
    /// Counted from 1; `None` when no line is at fault (an unreadable file).
    pub line: Option<usize>,
    /// `table.key`, or the table alone; empty when none is at fault (a syntax error).
    pub key: String,
    /// What is wrong and, where one can tell, what would be right.
    pub message: String,
}

/// Why a file was refused: all its problems, in file order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<ConfigProblem>,
}

/// Why one value was not taken.
pub(super) enum Refusal {
    /// No such key in that table.
    UnknownKey,
    /// The value is not what the key takes; this is what it takes.
    Takes(String),
}

impl Source {
    /// `file:line key`, as far as each is known. `key` is `table.key`.
    pub fn locate(&self, key: &str) -> String {
        match (self.origin(key), &self.file) {
            (Origin::RunTime(file), _) => format!("{} {key} (set at run time)", file.display()),
            (Origin::File(file, line), _) => format!("{}:{line} {key}", file.display()),
            (Origin::Default, Some(file)) => format!("{} {key} (default)", file.display()),
            (Origin::Default, None) => format!("{key} (default)"),
        }
    }

    /// Where the value of `table.key` comes from.
    pub fn origin(&self, key: &str) -> Origin<'_> {
        match (self.overlaid.get(key), &self.file, self.lines.get(key)) {
            (Some(file), _, _) => Origin::RunTime(file),
            (None, Some(file), Some(line)) => Origin::File(file, *line),
            (None, _, _) => Origin::Default,
        }
    }

    /// Notes that `table.key` was set at run time and is kept in `file`.
    pub fn overlay(&mut self, key: &str, file: &Path) {
        self.overlaid.insert(key.to_owned(), file.to_owned());
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads and checks a file; keys it leaves out have their defaults.
    ///
    /// # Errors
    /// Unreadable file, TOML syntax, unknown table or key, wrong type, value out of range, values
    /// that contradict each other: all problems there are, each with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with_source(path).map(|(config, _)| config)
    }

    /// Like [`Config::load`], and tells where each key was set.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load_with_source(path: &Path) -> Result<(Self, Source), ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                let problem = ConfigProblem { file: path.into(), line: None, key: String::new(), message };
                Err(ConfigError { problems: vec![problem] })
            }
        }
    }

    /// Reads the text of a file; `file` is only named in errors.
    ///
    /// # Errors
    /// Those of [`Config::load`] but for the unreadable file.
    pub fn parse(text: &str, file: &Path) -> Result<(Self, Source), ConfigError> {
        let mut reader = Reader {
            text,
            tables: Self::tables(),
            config: Self::default(),
            source: Source { file: Some(file.into()), ..Source::default() },
            problems: Vec::new(),
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            reader.problem(error.span(), String::new(), error.message().to_owned());
        }
        if errors.is_empty() {
            reader.document(document.into_inner());
        }
        reader.problems.sort_by_key(|problem| problem.line);
        if reader.problems.is_empty() {
            reader.relations();
        }
        if reader.problems.is_empty() {
            Ok((reader.config, reader.source))
        } else {
            Err(ConfigError { problems: reader.problems })
        }
    }
}

/// Reads one value of type `T`, within `bounds` when it is a number.
pub(super) fn read<T: Value>(value: Spanned<DeValue<'_>>, bounds: Option<Bounds>) -> Result<T, Refusal> {
    if let (Some(bounds), Some(integer)) = (bounds, value.get_ref().as_integer()) {
        let number = i64::from_str_radix(integer.as_str(), integer.radix());
        if !number.is_ok_and(|number| (bounds.low..=bounds.high).contains(&number)) {
            return Err(Refusal::Takes(takes::<T>(Some(bounds))));
        }
    }
    T::deserialize(ValueDeserializer::from(value)).map_err(|_| Refusal::Takes(takes::<T>(bounds)))
}

/// Walks a document and collects problems.
struct Reader<'a> {
    text: &'a str,
    tables: Vec<Table>,
    config: Config,
    source: Source,
    problems: Vec<ConfigProblem>,
}

impl Reader<'_> {
    fn problem(&mut self, span: Option<Range<usize>>, key: String, message: String) {
        let line = span.map(|span| self.line(span.start));
        let file = self.source.file.clone().unwrap_or_default();
        self.problems.push(ConfigProblem { file, line, key, message });
    }

    /// The line, counted from 1, of a byte offset.
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn document(&mut self, document: DeTable<'_>) {
        for (name, value) in document {
            let span = name.span();
            let name = name.into_inner();
            if !self.tables.iter().any(|table| table.name == name) {
                let message = self.unknown_table(&name);
                self.problem(Some(span), name.into_owned(), message);
                continue;
            }
            self.source.lines.insert(name.clone().into_owned(), self.line(span.start));
            let is_list = self.tables.iter().any(|table| table.name == name && table.is_list);
            let kind = value.get_ref().type_str();
            match value.into_inner() {
                DeValue::Table(keys) if !is_list => {
                    self.table(&name, &name, keys, |config, key, value| config.assign(&name, key, value));
                }
                DeValue::Array(blocks) if is_list => self.list(&name, blocks),
                _ => {
                    let brackets = if is_list { format!("[[{name}]]") } else { format!("[{name}]") };
                    let what = if is_list { "a list of tables" } else { "a table" };
                    let message = format!("is {what}: write {brackets}, not {name} = … ({kind})");
                    self.problem(Some(span), name.into_owned(), message);
                }
            }
        }
    }

    /// Reads the blocks `[[list]]`; their keys are called `list[0].key` and so on.
    fn list(&mut self, list: &str, blocks: DeArray<'_>) {
        for (index, block) in blocks.into_iter().enumerate() {
            let span = block.span();
            let name = format!("{list}[{index}]");
            self.source.lines.insert(name.clone(), self.line(span.start));
            let DeValue::Table(keys) = block.into_inner() else {
                self.problem(Some(span), name, format!("is a table: write [[{list}]]"));
                continue;
            };
            self.config.append(list);
            self.table(list, &name, keys, |config, key, value| config.assign_last(list, key, value));
        }
    }

    /// Reads a table's keys; `name` is what problems call the table.
    fn table(
        &mut self,
        table: &str,
        name: &str,
        keys: DeTable<'_>,
        assign: impl Fn(&mut Config, &str, Spanned<DeValue<'_>>) -> Result<(), Refusal>,
    ) {
        for (key, value) in keys {
            let span = key.span();
            let value_span = value.span();
            let key = key.into_inner();
            let full = format!("{name}.{key}");
            self.source.lines.insert(full.clone(), self.line(span.start));
            match assign(&mut self.config, &key, value) {
                Ok(()) => {}
                Err(Refusal::UnknownKey) => {
                    let message = self.unknown_key(table, &key);
                    self.problem(Some(span), full, message);
                }
                Err(Refusal::Takes(takes)) => {
                    let shown = self.text.get(value_span.clone()).unwrap_or_default();
                    let message = format!("{} is not {takes}", shorten(shown));
                    self.problem(Some(value_span), full, message);
                }
            }
        }
    }

    /// Checks the values against each other.
    fn relations(&mut self) {
        for (key, message) in self.config.contradictions() {
            let block = key.split_once('.').map_or("", |(block, _)| block);
            let line = self.source.lines.get(&key).or_else(|| self.source.lines.get(block)).copied();
            let file = self.source.file.clone().unwrap_or_default();
            self.problems.push(ConfigProblem { file, line, key, message });
        }
    }

    fn unknown_table(&self, name: &str) -> String {
        if let Some(table) = self.tables.iter().find(|table| table.keys.iter().any(|key| key.name == name)) {
            return format!("unknown; {name} is a key of [{}]", table.name);
        }
        let names: Vec<_> = self.tables.iter().map(|table| table.name).collect();
        match nearest(name, &names) {
            Some(near) => format!("unknown table; did you mean [{near}]?"),
            None => format!("unknown table; there are [{}]", names.join("], [")),
        }
    }

    fn unknown_key(&self, table: &str, key: &str) -> String {
        let names: Vec<_> = self
            .tables
            .iter()
            .filter(|known| known.name == table)
            .flat_map(|known| known.keys.iter().map(|key| key.name))
            .collect();
        if let Some(near) = nearest(key, &names) {
            return format!("unknown key; did you mean {near}?");
        }
        match self.tables.iter().find(|known| known.keys.iter().any(|known| known.name == key)) {
            Some(other) => format!("unknown key; {key} belongs to [{}]", other.name),
            None => format!("unknown key; [{table}] has {}", names.join(", ")),
        }
    }
}

/// The name that `word` is probably a slip of.
fn nearest<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    let edits_max = EDITS_MAX.min(word.len() / 2);
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), *name))
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, name)| name)
}

/// The first line of a value's text, cut to what fits a message.
fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= SHOWN_CHARS_MAX && line.len() == text.len() {
        return line.to_owned();
    }
    line.chars().take(SHOWN_CHARS_MAX).chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::{Handoff, PortRange};

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("a.toml")).map(|(config, _)| config).map_err(|error| error.to_string())
    }

    /// Goal: a key that is set has that value, all others their default. Method: one key of each type.
    #[test]
    fn keys_are_read_and_the_rest_stays_at_the_default() {
        let text = "[router]\nhandoff = \"proxy\"\nudp = true\naddress = \"::1\"\nport = 0x13C5\n\
                    [rtp]\nports = \"20000-20999\"\n[node]\nname = \"a-1\"\n";
        let mut expected = Config::default();
        expected.router.handoff = Handoff::Proxy;
        expected.router.udp = true;
        expected.router.address = "::1".parse().unwrap();
        expected.router.port = 5061;
        expected.rtp.ports = PortRange { first: 20_000, last: 20_999 };
        expected.node.name = "a-1".to_owned();
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(Config::default()));
    }

    /// Goal: every error names file, line and key, and says what would be right. Method: one wrong
    /// file a line, compared with the message written by hand.
    #[test]
    fn errors_name_file_line_key_and_the_remedy() {
        let cases = [
            ("[calls]\n\ncals_max = 1", "a.toml:3: calls.cals_max: unknown key; did you mean calls_max?"),
            ("[cals]\n", "a.toml:1: cals: unknown table; did you mean [calls]?"),
            ("[router]\nnat = true", "a.toml:2: router.nat: unknown key; nat belongs to [rtp]"),
            ("silence_s = 3", "a.toml:1: silence_s: unknown; silence_s is a key of [recording]"),
            (
                "[recording]\nsilence_s = 11",
                "a.toml:2: recording.silence_s: 11 is not a whole number from 2 to 10, in seconds",
            ),
            (
                "[recording]\nsilence_s = \"five\"",
                "a.toml:2: recording.silence_s: \"five\" is not a whole number from 2 to 10, in seconds",
            ),
            (
                "[router]\nport = 99999999999999999999",
                "a.toml:2: router.port: 99999999999999999999 is not a whole number from 1 to 65535",
            ),
            (
                "[router]\nhandoff = \"redirct\"",
                "a.toml:2: router.handoff: \"redirct\" is not \"redirect\" or \"proxy\"",
            ),
            ("[router]\nudp = 1", "a.toml:2: router.udp: 1 is not true or false"),
            (
                "[rtp]\nports = \"80-90\"",
                "a.toml:2: rtp.ports: \"80-90\" is not a port range like \"16384-32767\" within 1024-65535",
            ),
            ("router = 5060", "a.toml:1: router: is a table: write [router], not router = … (integer)"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }

    /// Goal: values that contradict each other are refused. Method: the pairs the reference names.
    #[test]
    fn contradicting_values_are_refused_with_both_keys() {
        for (text, line, key, other) in [
            ("[calls]\nduration_max_min = 20", "", "recording.duration_max_min", "calls.duration_max_min"),
            (
                "[worker]\nrecycle_memory_mib = 2048\nmemory_max_mib = 1024",
                ":3",
                "worker.memory_max_mib",
                "worker.recycle_memory_mib",
            ),
            (
                "[recording]\nduration_max_min = 30",
                ":2",
                "recording.duration_max_min",
                "calls.duration_max_min",
            ),
            ("[sip]\nsession_expires_s = 89", ":2", "sip.session_expires_s", "sip.min_se_s"),
            ("[rtp]\naddress = \"0.0.0.0\"", ":2", "rtp.address", "0.0.0.0"),
            ("[node]\nname = \"a b\"", ":2", "node.name", "letters"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.starts_with(&format!("a.toml{line}: {key}: ")), "{message}");
            assert!(message.contains(other), "{message}");
        }
    }

    /// Goal: one look finds all slips. Method: three in one file, found in file order.
    #[test]
    fn all_problems_are_told_at_once_in_file_order() {
        let text = "[sip]\nmin_se_s = 10\n[calls]\nretry_after_s = 0\n[node]\nnmae = \"x\"\n";
        let lines: Vec<_> =
            Config::parse(text, Path::new("a.toml")).unwrap_err().problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(2), Some(4), Some(6)]);
    }

    /// Goal: text that is no TOML, or an unreadable file, is an error with a place, never a panic.
    /// Method: broken texts and a path that does not exist.
    #[test]
    fn broken_text_and_missing_files_are_errors_with_a_place() {
        for text in
            ["[calls", "[calls]\ncalls_max = ", "a.b.c = \"", "\u{0}", "[calls]\ncalls_max=1\ncalls_max=2"]
        {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("a.toml:"), "{error}");
        }
        let error = Config::load(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("no/such.toml: cannot be read: "), "{error}");
    }

    /// Goal: a later finding can name where a key was set. Method: ask for a key that is, and one that
    /// is not in the file.
    #[test]
    fn the_source_knows_the_line_of_each_key() {
        let (_, source) = Config::parse("[rtp]\nnat = true\n", Path::new("a.toml")).unwrap();
        assert_eq!(source.locate("rtp.nat"), "a.toml:2 rtp.nat");
        assert_eq!(source.locate("rtp.ports"), "a.toml rtp.ports (default)");
        assert_eq!(Source::default().locate("rtp.ports"), "rtp.ports (default)");
    }

    proptest::proptest! {
        /// Goal: no text crashes the node, whatever is in it. Method: arbitrary text, and the documented
        /// file with a piece of it replaced.
        #[test]
        fn no_text_makes_the_reader_panic(noise in "\\PC{0,40}", at in 0usize..6000, cut in 0usize..40) {
            let _ = parse(&noise);
            let reference = Config::reference();
            let start = reference.floor_char_boundary(at.min(reference.len()));
            let end = reference.floor_char_boundary((start + cut).min(reference.len())).max(start);
            let _ = parse(&[&reference[..start], &noise, &reference[end..]].concat());
        }
    }
}
