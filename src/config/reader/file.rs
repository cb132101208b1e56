//! The TOML file as a flat list of keys with values and places.

use super::fault::{Fault, Origin};
use crate::config::value::{Raw, shown};
use serde::Serialize;
use std::collections::BTreeMap;
use toml::{
    Value,
    de::{DeArray, DeTable, DeValue},
};

/// A value with the place where it is given.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) origin: Origin,
    pub(super) value: Raw,
}

/// The contents of a configuration file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The values by key, as in `ledger.url` or `source.0.name`.
    pub(super) given: BTreeMap<String, Given>,
    /// The sections of lists, as in `source.0`, and the place where each begins.
    pub(super) numbered: BTreeMap<String, Origin>,
    pub(super) faults: Vec<Fault>,
}

impl Contents {
    /// Parses the text of a file. Syntax errors are faults; the rest of the text is read nevertheless.
    pub(super) fn parse(name: &str, text: &str) -> Self {
        let line = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let origin = |offset| Origin::File { name: name.to_owned(), line: line(offset) };
        let mut contents = Self::default();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let origin = origin(error.span().map_or(0, |span| span.start));
            contents.faults.push(Fault { origin, text: format!("not TOML: {}", error.message().replace('\n', " ")) });
        }
        contents.flatten(table.get_ref(), "", &origin);
        contents
    }

    fn flatten(&mut self, table: &DeTable<'_>, prefix: &str, origin: &impl Fn(usize) -> Origin) {
        for (key, value) in table {
            let origin_here = origin(key.span().start);
            if key.get_ref().contains(|character: char| character == '.' || character == ':' || character.is_control())
            {
                let text = format!("{prefix}{}: unknown key", shown(&format!("{:?}", key.get_ref())));
                self.faults.push(Fault { origin: origin_here, text });
                continue;
            }
            let path = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) if !inner.is_empty() => self.flatten(inner, &format!("{path}."), origin),
                DeValue::Table(_) => {
                    // An empty section has no settings, but its name is checked.
                    let value = Raw::Toml(Value::Table(toml::Table::new()));
                    self.given.insert(path, Given { origin: origin_here, value });
                }
                // The keys of `[[section]]` are numbered, as in `source.0.name`.
                DeValue::Array(items) if prefix.is_empty() && are_tables(items) => {
                    for (number, item) in items.iter().enumerate() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.numbered.insert(format!("{path}.{number}"), origin(item.span().start));
                            self.flatten(inner, &format!("{path}.{number}."), origin);
                        }
                    }
                }
                other => match Value::try_from(WithoutSpans(other)) {
                    Ok(value) => {
                        self.given.insert(path, Given { origin: origin_here, value: Raw::Toml(value) });
                    }
                    Err(error) => self.faults.push(Fault { origin: origin_here, text: format!("{path}: {error}") }),
                },
            }
        }
    }
}

/// Whether an array is a list of sections.
fn are_tables(items: &DeArray<'_>) -> bool {
    !items.is_empty() && items.iter().all(|item| matches!(item.get_ref(), DeValue::Table(_)))
}

/// Serializes a value with spans as a value without spans.
struct WithoutSpans<'a, 'b>(&'a DeValue<'b>);

impl Serialize for WithoutSpans<'_, '_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        match self.0 {
            DeValue::String(text) => serializer.serialize_str(text),
            DeValue::Integer(number) => {
                let digits = number.as_str();
                let parsed = i64::from_str_radix(digits, number.radix()).map_err(S::Error::custom)?;
                serializer.serialize_i64(parsed)
            }
            DeValue::Float(number) => serializer.serialize_f64(number.as_str().parse().map_err(S::Error::custom)?),
            DeValue::Boolean(flag) => serializer.serialize_bool(*flag),
            DeValue::Datetime(_) => Err(S::Error::custom("given a date; no setting is a date")),
            DeValue::Array(items) => serializer.collect_seq(items.iter().map(|item| WithoutSpans(item.get_ref()))),
            DeValue::Table(table) => {
                serializer.collect_map(table.iter().map(|(key, value)| (key.get_ref(), WithoutSpans(value.get_ref()))))
            }
        }
    }
}
