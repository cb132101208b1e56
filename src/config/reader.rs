//! Where settings come from: a TOML file below, environment variables above it, defaults under both. Every fault is
//! kept with its place, so that all of them are told at once.

use crate::config::value::{Lines, Raw, Setting, shown};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, path::PathBuf};
use toml::{
    Value,
    de::{DeArray, DeTable, DeValue},
};

/// The prefix of our environment variables: `POINTSD_LEDGER__URL` is `ledger.url`.
pub(super) const PREFIX: &str = "POINTSD_";

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// Nowhere in particular: the combination of several values, or the file as a whole.
    Whole,
    File {
        name: String,
        line: usize,
    },
    Environment {
        variable: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("configuration"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
        }
    }
}

/// Something wrong with the configuration: where, what, and what would be right. It has no secret in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    origin: Origin,
    text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

#[derive(Debug, Clone)]
struct Given {
    origin: Origin,
    value: Raw,
}

/// The setting that a key gives: a secret has several keys (`url`, `url_file`, and for the broker `urls`, `urls_file`).
fn setting_of(key: &str) -> &str {
    let key = key.strip_suffix("_file").unwrap_or(key);
    if key == "broker.urls" { "broker.url" } else { key }
}

/// The most sections of one list.
const MOST_SECTIONS: usize = 100;

/// Settings on their way from text to types. Each key is taken once; what is left over is unknown.
pub(super) struct Reader {
    given: BTreeMap<String, Given>,
    /// The sections of lists, as in `source.0`, and where each begins.
    numbered: BTreeMap<String, Origin>,
    known: Vec<String>,
    effective: BTreeMap<String, Value>,
    faults: Vec<Fault>,
    read_from: ReadFrom,
}

/// Where the configuration in force comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReadFrom {
    /// The file; `None` when there was none.
    pub file: Option<String>,
    /// The environment variables that were taken, sorted.
    pub environment: Vec<String>,
    /// Environment variables that begin as ours and are no settings, sorted. An orchestrator sets some for a service of our
    /// name.
    pub ignored_environment: Vec<String>,
}

/// What a whole configuration comes to.
pub(super) struct Finished {
    /// The values in force, by key.
    pub(super) effective: BTreeMap<String, Value>,
    /// Where they come from.
    pub(super) read_from: ReadFrom,
}

impl Reader {
    /// Reads a file's text and the environment, whose variables win.
    pub(super) fn new(file: Option<(&str, &str)>, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut reader = Self {
            given: BTreeMap::new(),
            numbered: BTreeMap::new(),
            known: Vec::new(),
            effective: BTreeMap::new(),
            faults: Vec::new(),
            read_from: ReadFrom { file: file.map(|(name, _)| name.to_owned()), ..ReadFrom::default() },
        };
        if let Some((name, text)) = file {
            reader.read_file(name, text);
        }
        for (variable, value) in environment {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            if !is_nested(name) && name.contains(char::is_lowercase) {
                reader.read_from.ignored_environment.push(shown(&variable));
                continue;
            }
            let origin = Origin::Environment { variable: shown(&variable) };
            if name.contains(|character: char| character.is_lowercase()) {
                reader.faults.push(Fault { origin, text: "must be written in capitals".into() });
                continue;
            }
            let key = name.to_lowercase().replace("__", ".");
            // Of the ways to give one setting the environment's one stands for all.
            let alike = |other: &String, given: &Given| {
                let is_alike = *other == key || (is_nested(name) && setting_of(other) == setting_of(&key));
                matches!(given.origin, Origin::File { .. }) && is_alike
            };
            reader.given.retain(|other, given| !alike(other, given));
            reader.given.insert(key, Given { origin, value: Raw::Text(value) });
        }
        reader
    }

    fn read_file(&mut self, name: &str, text: &str) {
        let line = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let origin = |offset| Origin::File { name: name.to_owned(), line: line(offset) };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let origin = origin(error.span().map_or(0, |span| span.start));
            self.faults.push(Fault { origin, text: format!("not TOML: {}", error.message().replace('\n', " ")) });
        }
        self.flatten(table.get_ref(), "", &origin);
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
                    // An empty section says nothing, but its name must be right.
                    self.given.insert(
                        path,
                        Given { origin: origin_here, value: Raw::Toml(Value::Table(toml::Table::new())) },
                    );
                }
                // `[[section]]`: its keys are numbered, as in `source.0.name`.
                DeValue::Array(items) if prefix.is_empty() && are_tables(items) => {
                    for (number, item) in items.iter().enumerate() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.numbered.insert(format!("{path}.{number}"), origin(item.span().start));
                            self.flatten(inner, &format!("{path}.{number}."), origin);
                        }
                    }
                }
                other => match Value::try_from(DeValueText(other)) {
                    Ok(value) => {
                        self.given.insert(path, Given { origin: origin_here, value: Raw::Toml(value) });
                    }
                    Err(error) => self.faults.push(Fault { origin: origin_here, text: format!("{path}: {error}") }),
                },
            }
        }
    }

    fn fault_at(&mut self, origin: Origin, text: String) {
        self.faults.push(Fault { origin, text });
    }

    /// A fault of a key that was taken, or of a combination.
    pub(super) fn fault(&mut self, key: &str, text: impl fmt::Display) {
        let origin = self.origin_of(key);
        self.fault_at(origin, format!("{key}: {text}"));
    }

    /// Whether a key is given anywhere.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// How many sections a list has: `[[list]]` in the file, and whatever the environment adds to them.
    pub(super) fn sections(&self, list: &str) -> usize {
        let keys = self.numbered.keys().chain(self.given.keys());
        let number = |key: &String| {
            let rest = key.strip_prefix(list)?.strip_prefix('.')?;
            rest.split('.').next()?.parse::<usize>().ok().filter(|number| *number < MOST_SECTIONS)
        };
        keys.filter_map(number).max().map_or(0, |last| last + 1)
    }

    /// Whether anything is given of a section of a list.
    pub(super) fn has_section(&self, section: &str) -> bool {
        let prefix = format!("{section}.");
        self.numbered.contains_key(section) || self.given.keys().any(|key| key.starts_with(&prefix))
    }

    /// Where a key is given, or where its section of a list begins.
    fn origin_of(&self, key: &str) -> Origin {
        let of_section = || self.numbered.get(key.rsplit_once('.')?.0).cloned();
        self.given.get(key).map(|given| given.origin.clone()).or_else(of_section).unwrap_or(Origin::Whole)
    }

    /// A setting that may be absent.
    pub(super) fn optional<T: Setting>(&mut self, key: &str) -> Option<T> {
        let value = self.read(key, None, Raw::shown);
        if let Some(value) = &value {
            self.effective.insert(key.to_owned(), T::show(value));
        }
        value
    }

    /// A setting with a default.
    pub(super) fn setting<T: Setting>(&mut self, key: &str, default: T) -> T {
        self.checked(key, default, "", |_| true)
    }

    /// A setting with a default and a rule; `wanted` says what would be right.
    pub(super) fn checked<T: Setting>(&mut self, key: &str, default: T, wanted: &str, rule: impl Fn(&T) -> bool) -> T {
        let wanted = (!wanted.is_empty()).then_some(wanted);
        let value = match self.read::<T>(key, wanted, Raw::shown) {
            Some(value) if rule(&value) => value,
            Some(value) => {
                self.fault(
                    key,
                    format!("given {}; must be {}", shown(&value.show().to_string()), wanted.unwrap_or(T::WANTED)),
                );
                default
            }
            None => default,
        };
        self.effective.insert(key.to_owned(), value.show());
        value
    }

    /// A secret, given as it is under `key` or as a file's name under `key_file`. `mask` makes it printable.
    /// With what was given, so that it can be told where a fault lies.
    pub(super) fn secret<T: Setting + Lines>(&mut self, key: &str, mask: impl Fn(&T) -> T) -> Option<(String, T)> {
        let file_key = format!("{key}_file");
        let inline = self.read::<T>(key, None, |_| "a value that is not shown".to_owned());
        let file = self.optional::<PathBuf>(&file_key);
        if self.is_given(key) && self.is_given(&file_key) {
            self.fault(&file_key, format!("given together with {key}; must be one of them"));
        }
        let (key, secret) = match (inline, file) {
            (Some(secret), _) => (key.to_owned(), secret),
            (None, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(text) => (file_key, T::of_lines(&text)),
                Err(error) => {
                    self.fault(&file_key, format!("{} cannot be read: {error}", file.display()));
                    return None;
                }
            },
            (None, None) => return None,
        };
        if !self.is_given(&format!("{key}_file")) && !key.ends_with("_file") {
            self.effective.insert(key.clone(), mask(&secret).show());
        }
        Some((key, secret))
    }

    /// The file of a secret, where that is how it was given: [`Reader::secret`] says under which key.
    pub(super) fn file_of(&mut self, key: &str) -> Option<PathBuf> {
        if key.ends_with("_file") { self.optional(key) } else { None }
    }

    fn read<T: Setting>(&mut self, key: &str, wanted: Option<&str>, shown: impl Fn(&Raw) -> String) -> Option<T> {
        self.known.push(key.to_owned());
        let given = self.given.get(key)?;
        let value = T::read(&given.value);
        if value.is_none() {
            let text = format!("given {}; must be {}", shown(&given.value), wanted.unwrap_or(T::WANTED));
            self.fault(key, text);
        }
        value
    }

    /// What `check-config` prints.
    pub(super) fn show(&mut self, key: &str, value: Value) {
        self.effective.insert(key.to_owned(), value);
    }

    /// All faults, or what the configuration comes to.
    pub(super) fn finish(mut self) -> Result<Finished, Vec<Fault>> {
        self.note_environment();
        for (key, given) in &self.given {
            let section = format!("{key}.");
            let is_section = self.known.iter().any(|known| known.starts_with(&section));
            let empty = matches!(&given.value, Raw::Toml(Value::Table(table)) if table.is_empty());
            if self.known.contains(key) || (is_section && empty) {
                continue;
            }
            let of_list =
                key.strip_prefix("source.").is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
            let numbered = key.strip_prefix("source.").is_some_and(|rest| rest.parse::<usize>().is_ok());
            let text = if of_list || numbered || key == "source" {
                format!(
                    "{key}: unknown key; sections of this name are written [[source]] (in the environment POINTSD_SOURCE__0__NAME)"
                )
            } else if is_section {
                format!("{key}: is a section; must be written as [{key}] with its keys below")
            } else {
                let sections = self.known.iter().filter_map(|known| known.rsplit_once('.').map(|(section, _)| section));
                let known = self.known.iter().map(String::as_str).chain(sections);
                let alike = known.map(|known| (strsim::jaro_winkler(known, key), known));
                let nearest = alike.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(likeness, _)| *likeness > 0.85);
                let hint = nearest.map_or_else(String::new, |(_, nearest)| format!("; did you mean {nearest}?"));
                format!("{key}: unknown key{hint}")
            };
            self.faults.push(Fault { origin: given.origin.clone(), text });
        }
        for (section, origin) in &self.numbered {
            let (list, number) = section.rsplit_once('.').unwrap_or((section, ""));
            let known = self.known.iter().any(|known| known.starts_with(&format!("{section}.")));
            if !known {
                let text = if number.parse::<usize>().is_ok_and(|number| number >= MOST_SECTIONS) {
                    format!("[[{list}]]: there are more than {MOST_SECTIONS} of them")
                } else {
                    format!("[[{list}]]: unknown section")
                };
                self.faults.push(Fault { origin: origin.clone(), text });
            }
        }
        self.faults.sort();
        self.faults.dedup();
        if !self.faults.is_empty() {
            return Err(self.faults);
        }
        Ok(Finished { effective: self.effective, read_from: self.read_from })
    }

    /// Sorts out the environment: a variable without `__` that is no key at the top is none of ours.
    fn note_environment(&mut self) {
        let (known, read_from) = (&self.known, &mut self.read_from);
        let is_section = |key: &str| known.iter().any(|known| known.starts_with(&format!("{key}.")));
        self.given.retain(|key, given| {
            let Origin::Environment { variable } = &given.origin else { return true };
            let is_ours = key.contains('.') || known.contains(key) || is_section(key) || key == "source";
            let names = if is_ours { &mut read_from.environment } else { &mut read_from.ignored_environment };
            names.push(variable.clone());
            is_ours
        });
        read_from.environment.sort();
        read_from.ignored_environment.sort();
    }
}

/// Whether the name of a variable, without its prefix, is that of a key in a section: `LEDGER__URL`.
pub(super) fn is_nested(name: &str) -> bool {
    name.contains("__")
}

/// Whether an array is one of sections.
fn are_tables(items: &DeArray<'_>) -> bool {
    !items.is_empty() && items.iter().all(|item| matches!(item.get_ref(), DeValue::Table(_)))
}

/// Turns a value with spans into one without.
struct DeValueText<'a, 'b>(&'a DeValue<'b>);

impl Serialize for DeValueText<'_, '_> {
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
            DeValue::Datetime(_) => Err(S::Error::custom("given a date; no key takes one")),
            DeValue::Array(items) => serializer.collect_seq(items.iter().map(|item| DeValueText(item.get_ref()))),
            DeValue::Table(table) => {
                serializer.collect_map(table.iter().map(|(key, value)| (key.get_ref(), DeValueText(value.get_ref()))))
            }
        }
    }
}

/// Every key that `read` asks for, given this file.
#[cfg(test)]
pub(super) fn known_keys(file: &str, read: impl FnOnce(&mut Reader)) -> Vec<String> {
    let mut reader = Reader::new(Some(("pointsd.toml", file)), []);
    read(&mut reader);
    reader.known
}
