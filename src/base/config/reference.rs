//! Renders the commented file that documents every key.

use std::fmt::Write as _;

use super::{Config, Key};

/// Columns of a comment line.
const WIDTH: usize = 98;

const HEADER: &str = "\
# voxring configuration: every key with its default. A key left out has its default, an unknown key
# is an error. `voxring check --config FILE` tells what is wrong with a file and with the machine.
#
# \"Reload\" says when a change takes effect after SIGHUP: at once, for new calls, or only with a
# restart. A file that is wrong changes nothing.
# This file is rendered from the code: VOXRING_BLESS=1 cargo test --lib config
";

impl Config {
    /// The text of `config/voxring.toml`: every key, commented, at its default.
    pub fn reference() -> String {
        let mut text = HEADER.to_owned();
        for table in Self::tables() {
            text.push('\n');
            comment(&mut text, &table.doc, "");
            // A block of a list stands there as an example only: the list is empty by default.
            let (open, close, lead) = if table.is_list { ("#[[", "]]", "#") } else { ("[", "]", "") };
            let _ = writeln!(text, "{open}{}{close}", table.name);
            for key in &table.keys {
                text.push('\n');
                key_comment(&mut text, key);
                let _ = writeln!(text, "{lead}{} = {}", key.name, key.default);
            }
        }
        text
    }
}

fn key_comment(text: &mut String, key: &Key) {
    let mut takes = key.takes.clone();
    if let Some(first) = takes.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let reload = key.reload.text();
    comment(text, &format!("{} {takes}. Default {}. Reload: {reload}.", key.doc, key.default), "");
    for choice in key.choices {
        comment(text, &format!("\"{}\": {}", choice.name, choice.doc.trim()), "  ");
    }
}

/// Writes `words` as comment lines, wrapped between words.
fn comment(text: &mut String, words: &str, indent: &str) {
    let mut line = format!("# {indent}");
    let mut is_empty = true;
    for word in words.split_whitespace() {
        if !is_empty && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = format!("# {indent}");
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config_folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
    }

    /// Goal: the documented file and the code never differ. Method: render and compare; with
    /// VOXRING_BLESS=1 in the environment, rewrite the file instead.
    #[test]
    fn the_documented_file_is_what_the_code_renders() {
        let path = config_folder().join("voxring.toml");
        if std::env::var_os("VOXRING_BLESS").is_some() {
            std::fs::write(&path, Config::reference()).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap();
        assert_eq!(file, Config::reference(), "run: VOXRING_BLESS=1 cargo test --lib config");
    }

    /// Goal: the documented file shows the defaults. Method: load it and compare.
    #[test]
    fn the_documented_file_loads_as_the_defaults() {
        assert_eq!(Config::load(&config_folder().join("voxring.toml")).unwrap(), Config::default());
    }

    /// Goal: the laptop file differs from the defaults only where it says so. Method: load and compare
    /// with the defaults changed by hand.
    #[test]
    fn the_laptop_file_turns_on_udp_test_extensions_and_demo_mailboxes_only() {
        let mut expected = Config::default();
        expected.node.demo_mailboxes = true;
        expected.router.udp = true;
        expected.service.udp = true;
        expected.worker.udp = true;
        expected.test_extensions.enabled = true;
        assert_eq!(Config::load(&config_folder().join("voxring.dev.toml")).unwrap(), expected);
    }

    /// Goal: every key documents effect, default and reload, on lines that fit. Method: read the
    /// rendered text.
    #[test]
    fn every_key_says_default_and_reload_on_lines_that_fit() {
        let text = Config::reference();
        let keys: usize = Config::tables().iter().map(|table| table.keys.len()).sum();
        let joined = text.replace("\n# ", " ");
        assert_eq!(joined.matches(". Reload: ").count(), keys);
        assert_eq!(joined.matches(" Default ").count(), keys);
        let mut comments = text.lines().filter(|line| line.starts_with("# "));
        assert!(comments.all(|line| line.chars().count() <= 100));
    }
}
