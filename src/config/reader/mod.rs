//! The reader of settings: defaults, then a TOML file, then environment variables, each of which overrides the former.
//!
//! Every fault is kept with its place, so that all faults are reported at once.

mod fault;
mod file;
mod unknown;

use crate::config::value::{Lines, Raw, Setting, shown};
pub use fault::Fault;
use fault::Origin;
use file::{Contents, Given};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, path::PathBuf};
use toml::Value;

/// The prefix of the environment variables of pointsd: `POINTSD_LEDGER__URL` is `ledger.url`.
pub(super) const PREFIX: &str = "POINTSD_";

/// The setting that a key belongs to: a secret has several keys (`url`, `url_file`, and for the broker `urls`, `urls_file`).
fn setting_of(key: &str) -> &str {
    let key = key.strip_suffix("_file").unwrap_or(key);
    if key == "broker.urls" { "broker.url" } else { key }
}

/// Reads settings of a type from given values. Each key is read once; a given key that is never read is unknown.
pub(super) struct Reader {
    given: BTreeMap<String, Given>,
    /// The sections of lists, as in `source.0`, and the place where each begins.
    numbered: BTreeMap<String, Origin>,
    known: Vec<String>,
    effective: BTreeMap<String, Value>,
    faults: Vec<Fault>,
    read_from: ReadFrom,
}

/// The places that the effective configuration was read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReadFrom {
    /// The configuration file; `None` without one.
    pub file: Option<String>,
    /// The environment variables that were read, sorted.
    pub environment: Vec<String>,
    /// Environment variables with the prefix of pointsd that are not settings, sorted. An orchestrator sets such variables for
    /// a service of the name pointsd.
    pub ignored_environment: Vec<String>,
}

/// The result of reading a configuration without faults.
pub(super) struct Finished {
    /// The effective values, by key.
    pub(super) effective: BTreeMap<String, Value>,
    /// The places that they were read from.
    pub(super) read_from: ReadFrom,
}

impl Reader {
    /// A reader of the text of a file and of environment variables, which override the file.
    pub(super) fn new(file: Option<(&str, &str)>, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let Contents { given, numbered, faults } =
            file.map_or_else(Contents::default, |(name, text)| Contents::parse(name, text));
        let mut reader = Self {
            given,
            numbered,
            known: Vec::new(),
            effective: BTreeMap::new(),
            faults,
            read_from: ReadFrom { file: file.map(|(name, _)| name.to_owned()), ..ReadFrom::default() },
        };
        for (variable, value) in environment {
            reader.add_variable(&variable, value);
        }
        reader
    }

    fn add_variable(&mut self, variable: &str, value: String) {
        let Some(name) = variable.strip_prefix(PREFIX) else { return };
        if !is_nested(name) && name.contains(char::is_lowercase) {
            self.read_from.ignored_environment.push(shown(variable));
            return;
        }
        let origin = Origin::Environment { variable: shown(variable) };
        if name.contains(char::is_lowercase) {
            return self.fault_at(origin, "must be written in capitals".into());
        }
        let key = name.to_lowercase().replace("__", ".");
        // The variable overrides every way in which the file gives the setting.
        let is_overridden = |other: &String, given: &Given| {
            let is_same = *other == key || (is_nested(name) && setting_of(other) == setting_of(&key));
            matches!(given.origin, Origin::File { .. }) && is_same
        };
        self.given.retain(|other, given| !is_overridden(other, given));
        self.given.insert(key, Given { origin, value: Raw::Text(value) });
    }

    fn fault_at(&mut self, origin: Origin, text: String) {
        self.faults.push(Fault { origin, text });
    }

    /// Adds a fault of a key, or of a combination of values.
    pub(super) fn fault(&mut self, key: &str, text: impl fmt::Display) {
        let origin = self.origin_of(key);
        self.fault_at(origin, format!("{key}: {text}"));
    }

    /// Whether a key is given.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// The number of sections of a list: those of `[[list]]` in the file, and those that the environment adds.
    pub(super) fn sections(&self, list: &str) -> usize {
        let keys = self.numbered.keys().chain(self.given.keys());
        let number = |key: &String| {
            let rest = key.strip_prefix(list)?.strip_prefix('.')?;
            rest.split('.').next()?.parse::<usize>().ok().filter(|number| *number < unknown::MAX_SECTIONS)
        };
        keys.filter_map(number).max().map_or(0, |last| last + 1)
    }

    /// Whether any key of a section of a list is given.
    pub(super) fn has_section(&self, section: &str) -> bool {
        let prefix = format!("{section}.");
        self.numbered.contains_key(section) || self.given.keys().any(|key| key.starts_with(&prefix))
    }

    /// The place of a key, or of its section in a list.
    fn origin_of(&self, key: &str) -> Origin {
        let of_section = || self.numbered.get(key.rsplit_once('.')?.0).cloned();
        self.given.get(key).map(|given| given.origin.clone()).or_else(of_section).unwrap_or(Origin::Whole)
    }

    /// Reads a setting without a default.
    pub(super) fn optional<T: Setting>(&mut self, key: &str) -> Option<T> {
        let value = self.read(key, None, Raw::shown);
        if let Some(value) = &value {
            self.effective.insert(key.to_owned(), T::show(value));
        }
        value
    }

    /// Reads a setting with a default.
    pub(super) fn setting<T: Setting>(&mut self, key: &str, default: T) -> T {
        self.checked(key, default, "", |_| true)
    }

    /// Reads a setting with a default and a rule; `wanted` describes the values that the rule accepts.
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

    /// Reads a secret, which `key` gives directly or `key_file` gives as the path of a file. `mask` makes it printable.
    /// Returns the key that was given, for the faults of the secret.
    pub(super) fn secret<T: Setting + Lines>(&mut self, key: &str, mask: impl Fn(&T) -> T) -> Option<(String, T)> {
        let file_key = format!("{key}_file");
        let inline = self.read::<T>(key, None, |_| "a value that is not shown".to_owned());
        let file = self.optional::<PathBuf>(&file_key);
        if self.is_given(key) && self.is_given(&file_key) {
            self.fault(&file_key, format!("given together with {key}; only one of them is allowed"));
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

    /// The file of a secret, if `key`, as [`Reader::secret`] returned it, gives a file.
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

    /// Sets the value that `check-config` prints for a key.
    pub(super) fn show(&mut self, key: &str, value: Value) {
        self.effective.insert(key.to_owned(), value);
    }

    /// Returns the effective values, or all faults.
    pub(super) fn finish(mut self) -> Result<Finished, Vec<Fault>> {
        self.sort_environment();
        for (key, given) in &self.given {
            if let Some(text) = unknown::fault_of_key(&self.known, key, given) {
                self.faults.push(Fault { origin: given.origin.clone(), text });
            }
        }
        for (section, origin) in &self.numbered {
            if let Some(text) = unknown::fault_of_section(&self.known, section) {
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

    /// Sorts the environment variables into settings and others: a variable without `__` that is not a top-level key is not a
    /// setting.
    fn sort_environment(&mut self) {
        let (known, read_from) = (&self.known, &mut self.read_from);
        let is_section = |key: &str| known.iter().any(|known| known.starts_with(&format!("{key}.")));
        self.given.retain(|key, given| {
            let Origin::Environment { variable } = &given.origin else { return true };
            let is_setting = key.contains('.') || known.contains(key) || is_section(key) || key == "source";
            let names = if is_setting { &mut read_from.environment } else { &mut read_from.ignored_environment };
            names.push(variable.clone());
            is_setting
        });
        read_from.environment.sort();
        read_from.ignored_environment.sort();
    }
}

/// Whether the name of a variable, without its prefix, is the name of a key in a section, as in `LEDGER__URL`.
pub(super) fn is_nested(name: &str) -> bool {
    name.contains("__")
}

/// Every key that `read` asks for, given this file.
#[cfg(test)]
pub(super) fn known_keys(file: &str, read: impl FnOnce(&mut Reader)) -> Vec<String> {
    let mut reader = Reader::new(Some(("pointsd.toml", file)), []);
    read(&mut reader);
    reader.known
}
