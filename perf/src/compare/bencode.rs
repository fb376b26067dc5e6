//! Bencoding: the numbers, strings, lists and dictionaries of BitTorrent (BEP 3), which rtpengine's
//! NG protocol speaks.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// Lists in lists in lists: deeper than any answer, shallow enough for the stack.
const DEPTH_MAX: u32 = 32;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `i42e`
    Integer(i64),
    /// `4:spam`
    Bytes(Vec<u8>),
    /// `l...e`
    List(Vec<Value>),
    /// `d...e`, keys in order.
    Dictionary(BTreeMap<Vec<u8>, Value>),
}

impl Value {
    /// A string.
    pub fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }

    /// A list of strings.
    pub fn texts(texts: &[&str]) -> Self {
        Self::List(texts.iter().copied().map(Self::text).collect())
    }

    /// A dictionary of these entries.
    pub fn dictionary<'a>(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::Dictionary(entries.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value)).collect())
    }

    /// An entry of a dictionary; `None` of anything else.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dictionary(entries) => entries.get(key.as_bytes()),
            Self::Integer(_) | Self::Bytes(_) | Self::List(_) => None,
        }
    }

    /// A string that is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            Self::Integer(_) | Self::List(_) | Self::Dictionary(_) => None,
        }
    }

    /// As it travels.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Integer(number) => out.extend(format!("i{number}e").as_bytes()),
            Self::Bytes(bytes) => write_bytes(bytes, out),
            Self::List(values) => {
                out.push(b'l');
                values.iter().for_each(|value| value.write_to(out));
                out.push(b'e');
            }
            Self::Dictionary(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    write_bytes(key, out);
                    value.write_to(out);
                }
                out.push(b'e');
            }
        }
    }

    /// One value that is all of `bytes`.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let value = read_value(&mut rest, 0)?;
        ensure!(rest.is_empty(), "{} bytes after the end", rest.len());
        Ok(value)
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(format!("{}:", bytes.len()).as_bytes());
    out.extend(bytes);
}

fn read_value(rest: &mut &[u8], depth: u32) -> Result<Value> {
    ensure!(depth < DEPTH_MAX, "nested deeper than {DEPTH_MAX}");
    match rest.first() {
        Some(b'i') => {
            skip_letter(rest);
            Ok(Value::Integer(read_number(rest, b'e')?))
        }
        Some(b'0'..=b'9') => Ok(Value::Bytes(read_bytes(rest)?)),
        Some(b'l') => {
            skip_letter(rest);
            let mut values = Vec::new();
            while goes_on(rest)? {
                values.push(read_value(rest, depth + 1)?);
            }
            Ok(Value::List(values))
        }
        Some(b'd') => {
            skip_letter(rest);
            let mut entries = BTreeMap::new();
            while goes_on(rest)? {
                let key = read_bytes(rest)?;
                entries.insert(key, read_value(rest, depth + 1)?);
            }
            Ok(Value::Dictionary(entries))
        }
        Some(other) => bail!("no value begins with {:?}", char::from(*other)),
        None => bail!("a value is missing"),
    }
}

/// Whether a list or dictionary has another entry; takes the letter that ends it.
fn goes_on(rest: &mut &[u8]) -> Result<bool> {
    let ends = *rest.first().context("a list or dictionary has no end")? == b'e';
    if ends {
        skip_letter(rest);
    }
    Ok(!ends)
}

fn skip_letter(rest: &mut &[u8]) {
    *rest = rest.get(1..).unwrap_or_default();
}

/// `4:spam`
fn read_bytes(rest: &mut &[u8]) -> Result<Vec<u8>> {
    let length = usize::try_from(read_number(rest, b':')?).context("a string's length below zero")?;
    let (bytes, after) = rest.split_at_checked(length).context("a string is cut off")?;
    *rest = after;
    Ok(bytes.to_vec())
}

/// Digits up to `end`, which is taken too.
fn read_number(rest: &mut &[u8], end: u8) -> Result<i64> {
    let length = rest.iter().take(21).position(|byte| *byte == end).context("a number has no end")?;
    let (digits, after) = rest.split_at(length);
    *rest = after;
    skip_letter(rest);
    std::str::from_utf8(digits)?.parse().context("not a number")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any value, a few levels deep.
    fn values() -> impl Strategy<Value = Value> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let leaf = prop_oneof![any::<i64>().prop_map(Value::Integer), bytes().prop_map(Value::Bytes)];
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::List),
                prop::collection::btree_map(bytes(), inner, 0..8).prop_map(Value::Dictionary),
            ]
        })
    }

    proptest! {
        /// Goal: what was written is read again. Method: any value there and back.
        #[test]
        fn what_was_written_is_read_again(value in values()) {
            prop_assert_eq!(Value::read(&value.write()).unwrap(), value);
        }

        /// Goal: no input crashes the reader. Method: any bytes, and any bytes made of the letters
        /// that mean something.
        #[test]
        fn no_input_crashes_the_reader(any in prop::collection::vec(any::<u8>(), 0..64), text in "[ilde0-9:-]{0,64}") {
            let _ = Value::read(&any);
            let _ = Value::read(text.as_bytes());
        }
    }

    /// Goal: the format is that of BEP 3. Method: its own examples.
    #[test]
    fn the_examples_of_bep_3_are_read() {
        for (text, value) in [
            ("4:spam", Value::text("spam")),
            ("i3e", Value::Integer(3)),
            ("i-3e", Value::Integer(-3)),
            ("l4:spam4:eggse", Value::texts(&["spam", "eggs"])),
            (
                "d3:cow3:moo4:spam4:eggse",
                Value::dictionary([("cow", Value::text("moo")), ("spam", Value::text("eggs"))]),
            ),
            ("d4:spaml1:a1:bee", Value::dictionary([("spam", Value::texts(&["a", "b"]))])),
        ] {
            assert_eq!(Value::read(text.as_bytes()).unwrap(), value, "{text}");
            assert_eq!(value.write(), text.as_bytes());
        }
        assert_eq!(Value::read(b"d1:a1:be").unwrap().get("a").and_then(Value::as_text), Some("b"));
    }

    /// Goal: broken input is refused. Method: cut off, too deep, too long, something behind.
    #[test]
    fn broken_input_is_refused() {
        let deep = "l".repeat(100) + &"e".repeat(100);
        for text in [
            "",
            "i3",
            "ie",
            "5:spam",
            "l",
            "d1:a",
            "d",
            "x",
            "i3ei4e",
            "-1:a",
            "99999999999999999999:",
            &deep,
        ] {
            assert!(Value::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
