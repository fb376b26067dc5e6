//! How keys are declared: a macro that turns one description into struct, default and reference.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Addresses, GatewayAddresses, GatewayCallUri, GatewayNames, PortRange, RoutePattern, SrtpSuites};

/// One table of the file, described.
#[derive(Debug, Clone)]
pub struct Table {
    /// The name in brackets.
    pub name: &'static str,
    /// What it is about.
    pub doc: String,
    /// Its keys in file order.
    pub keys: Vec<Key>,
    /// It may stand in the file any number of times, in double brackets.
    pub is_list: bool,
}

/// When a changed key takes effect on a running node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// At the next start.
    Restart,
    /// With the reload.
    Now,
    /// With the reload, for calls that begin after it.
    Calls,
}

impl Reload {
    /// As the reference says it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Now => "at once",
            Self::Calls => "new calls",
        }
    }
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
    /// When a change takes effect.
    pub reload: Reload,
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
        reload: Reload,
    ) -> Self {
        let value = toml::Value::try_from(default).expect("every default is a TOML value");
        Self {
            name,
            doc: join(docs),
            takes: takes::<T>(bounds),
            choices: T::choices(),
            default: value.to_string(),
            reload,
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
    Addresses: "an IP address in quotes, such as \"127.0.0.1\" or \"::1\", or a list of them";
    GatewayAddresses: "a list of addresses, networks and DNS names, such as [\"192.0.2.7\", \"2001:db8::/64\", \"gw.example.com\"]";
    GatewayCallUri: "a sip: or sips: URI of host, port and transport, such as \"sip:192.0.2.7:5060;transport=tcp\" or \"sips:gw.example.com\"";
    GatewayNames: "a list of names, such as [\"carrier-1\", \"carrier-2\"]";
    RoutePattern: "up to 40 digits, \"+\" and \"x\" (any digit), and \"*\" (anything) at the end, such as \"+49*\" or \"2xxx\"";
    SrtpSuites: "a list of \"AEAD_AES_128_GCM\", \"AEAD_AES_256_GCM\", \"AES_CM_128_HMAC_SHA1_80\" and \"AES_CM_128_HMAC_SHA1_32\"";
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

/// Declares tables, then lists of tables: `key: Type = default;`, optionally with
/// `, low..=high "unit"` and `=> now` or `=> calls` before the semicolon.
macro_rules! tables {
    ($(
        $(#[doc = $table_doc:literal])+
        $Table:ident $table:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty = $default:expr $(, $low:literal..=$high:literal $unit:literal)? $(=> $reload:ident)?;
            )+
        }
    )+
    @lists
    $(
        $(#[doc = $list_doc:literal])+
        $List:ident $list:ident {
            $(
                $(#[doc = $item_doc:literal])+
                $item:ident: $item_type:ty = $item_default:expr $(, $item_low:literal..=$item_high:literal $item_unit:literal)? $(=> $item_reload:ident)?;
            )+
        }
    )+) => {
        /// The whole file.
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $($(#[doc = $table_doc])+ pub $table: $Table,)+
            $($(#[doc = $list_doc])+ pub $list: Vec<$List>,)+
        }

        impl Config {
            /// Every table with every key, in file order.
            pub fn tables() -> Vec<$crate::base::config::declare::Table> {
                vec![$($Table::describe(stringify!($table), &[$($table_doc),+], false),)+
                    $($List::describe(stringify!($list), &[$($list_doc),+], true),)+]
            }

            /// Reads one value into the key `table.key`.
            pub(super) fn assign(
                &mut self,
                table: &str,
                key: &str,
                value: toml::Spanned<toml::de::DeValue<'_>>,
            ) -> Result<(), $crate::base::config::load::Refusal> {
                match table {
                    $(stringify!($table) => self.$table.assign(key, value),)+
                    _ => Err($crate::base::config::load::Refusal::UnknownKey),
                }
            }

            /// Appends an empty block to a list. False when there is no list of that name.
            pub(super) fn append(&mut self, list: &str) -> bool {
                match list {
                    $(stringify!($list) => self.$list.push($List::default()),)+
                    _ => return false,
                }
                true
            }

            /// Reads one value into a key of a list's last block.
            pub(super) fn assign_last(
                &mut self,
                list: &str,
                key: &str,
                value: toml::Spanned<toml::de::DeValue<'_>>,
            ) -> Result<(), $crate::base::config::load::Refusal> {
                let block = match list {
                    $(stringify!($list) => self.$list.last_mut().map(|block| block.assign(key, value)),)+
                    _ => None,
                };
                block.unwrap_or(Err($crate::base::config::load::Refusal::UnknownKey))
            }

            /// `table.key` of each value that differs in `other`, in file order, and when a change
            /// of it takes effect. A list that differs is named whole.
            pub fn differences(&self, other: &Self) -> Vec<(String, $crate::base::config::declare::Reload)> {
                let mut found = Vec::new();
                $(for (key, reload) in self.$table.differences(&other.$table) {
                    found.push((format!(concat!(stringify!($table), ".{}"), key), reload));
                })+
                $(if self.$list != other.$list {
                    found.push((stringify!($list).to_owned(), $crate::base::config::declare::Reload::Now));
                })+
                found
            }

            /// Gives every key that takes effect at the next start only the value it has in `running`.
            pub fn keep_restart_keys(&mut self, running: &Self) {
                $(self.$table.keep_restart_keys(&running.$table);)+
            }
        }

        $(tables!(@struct [$($table_doc)+] $Table { $(
            [$($doc)+] $key: $type = $default, [$($low $high $unit)?] [$($reload)?];
        )+ });)+
        $(tables!(@struct [$($list_doc)+] $List { $(
            [$($item_doc)+] $item: $item_type = $item_default, [$($item_low $item_high $item_unit)?] [$($item_reload)?];
        )+ });)+
    };
    (@struct [$($table_doc:literal)+] $Table:ident { $(
        [$($doc:literal)+] $key:ident: $type:ty = $default:expr, [$($low:literal $high:literal $unit:literal)?] [$($reload:ident)?];
    )+ }) => {
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

        impl $Table {
            fn describe(name: &'static str, docs: &[&str], is_list: bool) -> $crate::base::config::declare::Table {
                use $crate::base::config::declare::{join, Key, Table};
                let default = Self::default();
                let keys = vec![$(Key::describe::<$type>(
                    stringify!($key),
                    &[$($doc),+],
                    &default.$key,
                    tables!(@bounds $($low $high $unit)?),
                    tables!(@reload $($reload)?),
                ),)+];
                Table { name, doc: join(docs), keys, is_list }
            }

            fn assign(
                &mut self,
                key: &str,
                value: toml::Spanned<toml::de::DeValue<'_>>,
            ) -> Result<(), $crate::base::config::load::Refusal> {
                use $crate::base::config::load::{read, Refusal};
                match key {
                    $(stringify!($key) => self.$key = read(value, tables!(@bounds $($low $high $unit)?))?,)+
                    _ => return Err(Refusal::UnknownKey),
                }
                Ok(())
            }

            #[allow(dead_code, reason = "lists are compared whole")]
            fn differences(&self, other: &Self) -> Vec<(&'static str, $crate::base::config::declare::Reload)> {
                let keys = [$((self.$key != other.$key, stringify!($key), tables!(@reload $($reload)?))),+];
                keys.into_iter().filter(|(differs, ..)| *differs).map(|(_, key, reload)| (key, reload)).collect()
            }

            #[allow(dead_code, reason = "blocks of lists all take effect at once")]
            fn keep_restart_keys(&mut self, running: &Self) {
                $(if tables!(@reload $($reload)?) == $crate::base::config::declare::Reload::Restart {
                    self.$key.clone_from(&running.$key);
                })+
            }
        }
    };
    (@bounds) => { None };
    (@bounds $low:literal $high:literal $unit:literal) => {
        Some($crate::base::config::declare::Bounds { low: $low, high: $high, unit: $unit })
    };
    (@reload) => { $crate::base::config::declare::Reload::Restart };
    (@reload now) => { $crate::base::config::declare::Reload::Now };
    (@reload calls) => { $crate::base::config::declare::Reload::Calls };
}
