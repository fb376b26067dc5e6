//! How keys are declared: a macro that turns one description into struct, default and reference.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::PortRange;

/// One table of the file, described.
#[derive(Debug, Clone)]
pub struct Table {
    /// The name in brackets.
    pub name: &'static str,
    /// What it is about.
    pub doc: String,
    /// Its keys in file order.
    pub keys: Vec<Key>,
}

/// One key of a table, described.
#[derive(Debug, Clone)]
pub struct Key {
    /// The name left of the equals sign.
    pub name: &'static str,
    /// What it does.
    pub doc: String,
    /// What it takes, with range and unit: "a whole number from 2 to 10, in seconds".
    pub takes: String,
    /// The named values it takes, when it takes only those.
    pub choices: &'static [Choice],
    /// Its default as it stands in the file.
    pub default: String,
}

/// One named value of a key that takes only those.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// As it stands in the file, without quotes.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// A type that a key can have.
pub trait Value: Serialize + DeserializeOwned {
    /// What the file must hold, to follow "is not".
    fn takes() -> String;

    /// The named values, when there are only those.
    fn choices() -> &'static [Choice] {
        &[]
    }
}

/// The inclusive range and the unit of a whole number; the unit may be empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) low: i64,
    pub(super) high: i64,
    pub(super) unit: &'static str,
}

impl Key {
    /// Describes a key of type `T`; `docs` are the lines of its doc comment.
    pub(super) fn describe<T: Value>(
        name: &'static str,
        docs: &[&str],
        default: &T,
        bounds: Option<Bounds>,
    ) -> Self {
        let value = toml::Value::try_from(default).expect("every default is a TOML value");
        Self {
            name,
            doc: join(docs),
            takes: takes::<T>(bounds),
            choices: T::choices(),
            default: value.to_string(),
        }
    }
}

/// What a key of type `T` takes, with range and unit.
pub(super) fn takes<T: Value>(bounds: Option<Bounds>) -> String {
    let kind = T::takes();
    match bounds {
        None => kind,
        Some(Bounds { low, high, unit: "" }) => format!("{kind} from {low} to {high}"),
        Some(Bounds { low, high, unit }) => format!("{kind} from {low} to {high}, in {unit}"),
    }
}

/// Joins the lines of a doc comment, each of which begins with a space.
pub(super) fn join(docs: &[&str]) -> String {
    docs.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

macro_rules! value_types {
    ($($type:ty: $takes:expr;)+) => {$(
        impl Value for $type {
            fn takes() -> String {
                $takes.to_owned()
            }
        }
    )+};
}

value_types! {
    bool: "true or false";
    u8: "a whole number";
    u16: "a whole number";
    u32: "a whole number";
    String: "a text in quotes";
    PathBuf: "a path in quotes";
    IpAddr: "an IP address in quotes, such as \"127.0.0.1\" or \"::1\"";
    PortRange: "a port range like \"16384-32767\" within 1024-65535";
}

/// Declares an enum whose variants are the named values of a key; the first is the default.
macro_rules! choices {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident {
            $(#[doc = $first_doc:literal])+ $first:ident = $first_text:literal,
            $($(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal,)*
        }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $(#[doc = $first_doc])+
            #[default]
            #[serde(rename = $first_text)]
            $first,
            $($(#[doc = $variant_doc])+ #[serde(rename = $text)] $variant,)*
        }

        impl $crate::base::config::declare::Value for $name {
            fn takes() -> String {
                [concat!('"', $first_text, '"'), $(concat!('"', $text, '"')),*].join(" or ")
            }

            fn choices() -> &'static [$crate::base::config::declare::Choice] {
                &[
                    $crate::base::config::declare::Choice {
                        name: $first_text,
                        doc: concat!($($first_doc),+),
                    },
                    $($crate::base::config::declare::Choice {
                        name: $text,
                        doc: concat!($($variant_doc),+),
                    },)*
                ]
            }
        }
    )+};
}

/// Declares the tables: `key: Type = default;` or `key: Type = default, low..=high "unit";`.
macro_rules! tables {
    ($(
        $(#[doc = $table_doc:literal])+
        $Table:ident $table:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty = $default:expr $(, $low:literal..=$high:literal $unit:literal)?;
            )+
        }
    )+) => {
        /// The whole file.
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $($(#[doc = $table_doc])+ pub $table: $Table,)+
        }

        impl Config {
            /// Every table with every key, in file order.
            pub fn tables() -> Vec<$crate::base::config::declare::Table> {
                let default = Self::default();
                vec![$(
                    $crate::base::config::declare::Table {
                        name: stringify!($table),
                        doc: $crate::base::config::declare::join(&[$($table_doc),+]),
                        keys: vec![$(
                            $crate::base::config::declare::Key::describe::<$type>(
                                stringify!($key),
                                &[$($doc),+],
                                &default.$table.$key,
                                tables!(@bounds $($low $high $unit)?),
                            ),
                        )+],
                    },
                )+]
            }

            /// Reads one value into the key `table.key`.
            pub(super) fn assign(
                &mut self,
                table: &str,
                key: &str,
                value: toml::Spanned<toml::de::DeValue<'_>>,
            ) -> Result<(), $crate::base::config::load::Refusal> {
                use $crate::base::config::load::{read, Refusal};
                match (table, key) {
                    $($((stringify!($table), stringify!($key)) => {
                        self.$table.$key = read(value, tables!(@bounds $($low $high $unit)?))?;
                    })+)+
                    _ => return Err(Refusal::UnknownKey),
                }
                Ok(())
            }
        }

        $(
            $(#[doc = $table_doc])+
            #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $Table {
                $(
                    $(#[doc = $doc])+
                    $(#[doc = concat!("From ", $low, " to ", $high, ". Unit: ", $unit, ".")])?
                    pub $key: $type,
                )+
            }

            impl Default for $Table {
                fn default() -> Self {
                    Self { $($key: $default,)+ }
                }
            }
        )+
    };
    (@bounds) => { None };
    (@bounds $low:literal $high:literal $unit:literal) => {
        Some($crate::base::config::declare::Bounds { low: $low, high: $high, unit: $unit })
    };
}
