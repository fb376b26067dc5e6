//! Keeps the house in order: what a compiler or a linter does not see.
//!
//! Import order of the rooms, size of functions and files, where unsafe code may be and how it is
//! justified, what comments and files may not contain. Sizes over the cap need an entry in
//! [`EXCEPTIONS`] with their present size; entries only shrink.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The rooms; each imports only from itself and those before it.
const ROOMS: [&str; 15] = [
    "base", "uring", "rtp", "sip", "sdp", "ice", "media", "call", "um", "mailbox", "cluster", "shard",
    "signal", "control", "role",
];

/// Most lines of code in a function body; blank lines and comments are free.
const FUNCTION_LINES_MAX: usize = 70;

/// Most lines in a file, without its unit tests.
const FILE_LINES_MAX: usize = 600;

/// What is over a cap today: `path` or `path function`, and its size. A larger size fails; so does
/// a smaller one, until the entry is lowered or removed.
const EXCEPTIONS: [(&str, usize); 0] = [];

/// Lines above an unsafe block in which its SAFETY comment must begin.
const SAFETY_LINES: usize = 12;

/// One Rust file, with its path relative to the repository.
struct Source {
    path: String,
    text: String,
    /// `text` with comments and literals blanked out, byte for byte and line for line.
    code: String,
}

impl Source {
    /// The room it belongs to; `None` outside `src` and for `lib.rs` and `main.rs`.
    fn room(&self) -> Option<&str> {
        let (room, rest) = self.path.strip_prefix("src/")?.split_once('/')?;
        (!rest.is_empty()).then_some(room)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folders`, relative to the repository, but for build results.
fn files(folders: &[&str]) -> Vec<String> {
    fn walk(path: &Path, found: &mut Vec<PathBuf>) {
        let name = path.file_name().unwrap_or_default();
        if path.is_file() {
            found.push(path.to_owned());
        } else if path.is_dir() && name != "target" && name != "voxring-data" {
            for entry in std::fs::read_dir(path).expect("folders are readable") {
                walk(&entry.expect("folders are readable").path(), found);
            }
        }
    }
    let mut found = Vec::new();
    folders.iter().for_each(|folder| walk(&root().join(folder), &mut found));
    found.sort();
    let relative = |path: &PathBuf| path.strip_prefix(root()).ok()?.to_str().map(str::to_owned);
    found.iter().map(|path| relative(path).expect("the project's paths are UTF-8")).collect()
}

fn sources() -> Vec<Source> {
    files(&["src", "perf", "bench", "fuzz", "tests"])
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| {
            let text = std::fs::read_to_string(root().join(&path)).expect("sources are UTF-8");
            let code = blank_out(&text);
            Source { path, text, code }
        })
        .collect()
}

/// Replaces comments, strings and characters by spaces. Newlines stay.
fn blank_out(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match (bytes[at], bytes.get(at + 1)) {
            (b'/', Some(b'/')) => find(bytes, at, b"\n").unwrap_or(bytes.len()),
            (b'/', Some(b'*')) => block_comment_end(bytes, at),
            (b'r', Some(b'"' | b'#')) if !is_word(bytes, at.wrapping_sub(1)) || bytes[at - 1] == b'b' => {
                raw_string_end(bytes, at)
            }
            (b'"', _) => quoted_end(bytes, at, b'"'),
            (b'\'', Some(b'\\')) => quoted_end(bytes, at, b'\''),
            (b'\'', Some(_)) => {
                // A character is closed after one scalar; a lifetime is not closed.
                let width = text[at + 1..].chars().next().map_or(1, char::len_utf8);
                if bytes.get(at + 1 + width) == Some(&b'\'') { at + width + 2 } else { at }
            }
            _ => at,
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).expect("whole characters were replaced")
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    bytes[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
}

fn is_word(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], start: usize) -> usize {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(start + 1 + hashes) != Some(&b'"') {
        return start; // A raw identifier.
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    find(bytes, start + 2 + hashes, &close).map_or(bytes.len(), |at| at + close.len())
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The line, counted from 1, of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// Where `word` stands in `code` as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !is_word(code.as_bytes(), at.wrapping_sub(1)) && !is_word(code.as_bytes(), at + word.len())
    })
}

/// Name and body of each function, the body with its braces as offsets into `code`.
fn functions(code: &str) -> Vec<(&str, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let rest = &code[at + 2..];
        let name_at = rest.len() - rest.trim_start().len();
        let name =
            rest[name_at..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        // A signature ends at its body or, in traits and function types, at something else; array
        // types hold semicolons.
        let mut depth = 0;
        let mut body = None;
        for (offset, byte) in rest.bytes().enumerate() {
            match byte {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth -= 1,
                b';' if depth == 0 => break,
                b'{' if depth == 0 => {
                    body = Some(at + 2 + offset);
                    break;
                }
                _ => {}
            }
            if depth < 0 {
                break;
            }
        }
        if let Some(start) = body.filter(|_| !name.is_empty()) {
            found.push((name, start..closing_brace(code, start)));
        }
    }
    found
}

fn closing_brace(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code[open..].bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + offset;
        }
    }
    code.len()
}

/// Lines without the unit tests at the end; none in a file of unit tests.
fn lines_without_tests(source: &Source) -> usize {
    if source.path.ends_with("/tests.rs") {
        return 0;
    }
    let end = source.code.find("#[cfg(test)]\nmod tests").unwrap_or(source.code.len());
    source.text[..end].lines().count()
}

/// Everything over its cap, by `path` or `path function`.
fn sizes_over_cap(sources: &[Source]) -> BTreeMap<String, usize> {
    let mut over = BTreeMap::new();
    for source in sources {
        let lines = lines_without_tests(source);
        if lines > FILE_LINES_MAX {
            over.insert(source.path.clone(), lines);
        }
        for (name, body) in functions(&source.code) {
            let lines = source.code[body].lines().skip(1).filter(|line| !line.trim().is_empty()).count();
            if lines > FUNCTION_LINES_MAX {
                over.insert(format!("{} {name}", source.path), lines);
            }
        }
    }
    over
}

/// What is wrong between sizes and their exceptions.
fn ratchet(over: &BTreeMap<String, usize>, exceptions: &[(&str, usize)]) -> String {
    let mut wrong = String::new();
    let listed: BTreeMap<&str, usize> = exceptions.iter().copied().collect();
    for (what, size) in over {
        match listed.get(what.as_str()) {
            None => _ = writeln!(wrong, "{what}: {size} lines is over the cap; split it"),
            Some(listed) if size > listed => {
                _ = writeln!(wrong, "{what}: grew from {listed} to {size} lines; split it");
            }
            Some(listed) if size < listed => {
                _ = writeln!(wrong, "{what}: shrank from {listed} to {size} lines; lower its entry");
            }
            Some(_) => {}
        }
    }
    for (what, _) in exceptions {
        if !over.contains_key(*what) {
            let _ = writeln!(wrong, "{what}: is within the cap now; remove its entry");
        }
    }
    wrong
}

/// Goal: rooms depend on each other in one direction. Method: each `crate::room` in a room's code must
/// name the room itself or one before it; `lib.rs` lists them in that order.
#[test]
fn rooms_import_only_from_their_left() {
    let mut wrong = String::new();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some(rank) = ROOMS.iter().position(|known| *known == room) else {
            let _ = writeln!(wrong, "{}: {room} is no room of the house", source.path);
            continue;
        };
        for (at, _) in source.code.match_indices("crate::") {
            let rest = &source.code[at + "crate::".len()..];
            let names = if let Some(group) = rest.strip_prefix('{') {
                group.split_once('}').map_or(group, |(group, _)| group).split(',').collect()
            } else {
                vec![rest]
            };
            for name in names {
                let name =
                    name.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
                if ROOMS.iter().position(|known| *known == name).is_some_and(|other| other > rank) {
                    let line = line_of(&source.code, at);
                    let _ = writeln!(wrong, "{}:{line}: {room} imports from {name}", source.path);
                }
            }
        }
    }
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let listed: Vec<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<_> = ROOMS.into_iter().filter(|room| listed.contains(room)).collect();
    assert_eq!(listed, expected, "src/lib.rs lists the rooms in import order");
    assert!(wrong.is_empty(), "the order is {ROOMS:?}\n{wrong}");
}

/// Goal: functions and files stay small enough to read. Method: count lines; what is over the cap needs
/// an exception of exactly that size.
#[test]
fn functions_and_files_stay_under_their_caps() {
    let wrong = ratchet(&sizes_over_cap(&sources()), &EXCEPTIONS);
    assert!(wrong.is_empty(), "functions: {FUNCTION_LINES_MAX}, files: {FILE_LINES_MAX} lines\n{wrong}");
}

/// Where unsafe code may be beside `src/uring`: the bare loops, which are there to have no safe layer
/// around the kernel.
const BARE: &str = "bench/floor/";

/// Goal: unsafe code is in one room, and each piece says why it is sound. Method: the word in code
/// outside `src/uring`; inside, a SAFETY comment (a Safety section for an unsafe fn) above it.
#[test]
fn unsafe_code_is_in_uring_only_and_justified() {
    let mut wrong = String::new();
    for source in sources() {
        for at in words(&source.code, "unsafe") {
            let line = line_of(&source.code, at);
            if source.room() != Some("uring") && !source.path.starts_with(BARE) {
                let _ = writeln!(wrong, "{}:{line}: unsafe code outside src/uring", source.path);
                continue;
            }
            let above: Vec<_> = source.text.lines().take(line).collect();
            let near = above[above.len().saturating_sub(SAFETY_LINES + 1)..].join("\n");
            if !near.contains("SAFETY:") && !near.contains("# Safety") {
                let _ = writeln!(wrong, "{}:{line}: unsafe without a SAFETY comment", source.path);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Goal: a folder's `mod.rs` is its table of contents. Method: no functions, types or implementations.
#[test]
fn folder_modules_hold_only_docs_and_names() {
    let mut wrong = String::new();
    for source in sources() {
        if source.room().is_none() || !source.path.ends_with("/mod.rs") {
            continue;
        }
        for word in ["fn", "struct", "enum", "impl", "trait", "const", "static"] {
            for at in words(&source.code, word) {
                let _ = writeln!(wrong, "{}:{}: has a {word}", source.path, line_of(&source.code, at));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Goal: nothing is left open without a number, silenced wholesale, or tied to one machine. Method:
/// search every file of the project for such marks, this one apart.
#[test]
fn files_hold_no_loose_ends() {
    let folders =
        ["src", "perf", "bench", "fuzz", "tests", "config", ".ci", "README.md", "Cargo.toml", "clippy.toml"];
    let mut wrong = String::new();
    for path in files(&folders) {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        if path == "tests/tidy.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let mut tell = |what: &str| _ = writeln!(wrong, "{path}:{}: {what}", number + 1);
            for mark in ["TODO", "FIXME", "XXX"] {
                for at in words(line, mark) {
                    let numbered = line[at + mark.len()..]
                        .strip_prefix("(#")
                        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
                    if !numbered {
                        tell("a mark without an issue's number, as in TODO(#42)");
                    }
                }
            }
            if ["todo!(", "unimplemented!(", "dbg!("].iter().any(|call| line.contains(call)) {
                tell("unfinished code");
            }
            if path.ends_with(".rs") && line.trim_start().starts_with("#![allow(") {
                tell("a blanket allow; use #[expect(lint, reason = \"…\")] on the item");
            }
            if ["/home/", "/root/", "/work/"].iter().any(|place| line.contains(place)) {
                tell("a path of one machine");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Goal: the scanner above is not fooled by what looks like code. Method: literals and comments with
/// braces and keywords in them, and lifetimes.
#[test]
fn comments_and_literals_are_not_code() {
    let text = "fn a<'x>(s: &'x str) -> char { /* { /* unsafe */ */ let _ = r#\"}\" unsafe\"#; b'{'; '\\''; \
                \"\\\"}\"; 'é' } // unsafe\nfn b();";
    let code = blank_out(text);
    assert_eq!(words(&code, "unsafe").count(), 0, "{code}");
    let found = functions(&code);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "a");
    assert!(code[found[0].1.end..].trim_end().ends_with("fn b();"), "{code}");
}

/// Goal: an exception may only shrink. Method: sizes above, at, below their entry, and one that is gone.
#[test]
fn an_exception_may_only_shrink() {
    let over = BTreeMap::from([("a".to_owned(), 700), ("b".to_owned(), 700), ("c".to_owned(), 700)]);
    let wrong = ratchet(&over, &[("a", 700), ("b", 699), ("c", 701), ("d", 800)]);
    assert_eq!(wrong.lines().count(), 3, "{wrong}");
    assert!(
        wrong.contains("b: grew") && wrong.contains("c: shrank") && wrong.contains("d: is within"),
        "{wrong}"
    );
    assert_eq!(ratchet(&over, &[]).lines().count(), 3);
}
