//! The configuration: typed, documented at the field, validated whole (`pointsd.example.toml` has every key).

mod checks;
mod common;
mod derived;
mod keywords;
mod reader;
mod sections;
mod sources;
mod value;

use crate::{
    broker::{BrokerSettings, SourceSettings},
    domain::message::Format,
    ledger::settings::{EventsSettings, LedgerSettings},
    observe::settings::{HealthSettings, HttpSettings, LogSettings},
    pay_status::settings::PayStatusSettings,
    pipeline::settings::{CompensationSettings, RetrySettings},
};
use keywords::{FormatWord, SourceWord, UnpaidWord};
pub use reader::{Fault, ReadFrom};
use reader::{Finished, Reader};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Value;

/// Everything that can be set.
#[derive(Debug)]
pub struct Settings {
    /// How long a daemon that is told to stop settles what is in flight.
    pub shutdown_timeout: Duration,
    /// `[broker]`
    pub broker: BrokerSettings,
    /// `[message]`
    pub message: Format,
    /// `[ledger]`
    pub ledger: LedgerSettings,
    /// `[retry]`
    pub retry: RetrySettings,
    /// `[compensation]`
    pub compensation: CompensationSettings,
    /// `[pay_status]`
    pub pay_status: PayStatusSettings,
    /// `[[source]]`
    pub sources: Vec<SourceSettings>,
    /// `[events]`
    pub events: EventsSettings,
    /// `[health]`
    pub health: HealthSettings,
    /// `[http]`
    pub http: HttpSettings,
    /// `[log]`
    pub log: LogSettings,
    /// Where all this comes from.
    pub read_from: ReadFrom,
    effective: BTreeMap<String, Value>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named, or found, cannot be read.
    #[error("the configuration {} cannot be read: {error}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A variable of ours whose value is no text.
    #[error("environment variable {0}: is not UTF-8")]
    NotText(String),
    /// What is wrong with it: all of it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// Read when no file is named, the first one that is there.
pub const PLACES: [&str; 2] = ["pointsd.toml", "/etc/pointsd/pointsd.toml"];

impl Settings {
    /// Loads the file that is named, or one of the usual ones, or none; and the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match file {
            Some(file) => Some(file.to_owned()),
            // Whatever cannot be looked at is taken for there: reading it says why, instead of the defaults standing in.
            None => PLACES.iter().map(PathBuf::from).find(|place| place.try_exists().unwrap_or(true)),
        };
        let text = match &file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| ConfigError::Unreadable { file: file.clone(), error })?;
                Some((file.display().to_string(), text))
            }
        };
        // systemd separates several by colons.
        let state_directory = std::env::var("STATE_DIRECTORY").ok();
        let state_directory = state_directory.as_deref().and_then(|list| list.split(':').next()).map(PathBuf::from);
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            // A name that is no UTF-8 is none of ours.
            let Some(name) = name.into_string().ok().filter(|name| name.starts_with(reader::PREFIX)) else { continue };
            // What is no setting may be anything.
            let value = match value.into_string() {
                Err(_) if reader::is_nested(&name) => return Err(ConfigError::NotText(name)),
                Err(value) => value.to_string_lossy().into_owned(),
                Ok(value) => value,
            };
            environment.push((name, value));
        }
        let text = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        Self::read(text, environment, state_directory.as_deref()).map_err(ConfigError::Faults)
    }

    /// From a file's name and text, and environment variables.
    pub fn read(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
        state_directory: Option<&Path>,
    ) -> Result<Self, Vec<Fault>> {
        let mut reader = Reader::new(file, environment);
        let read = sections::all(&mut reader, state_directory);
        let Finished { effective, read_from } = reader.finish()?;
        // It is there unless a fault was told.
        let Some(settings) = read else { return Err(Vec::new()) };
        Ok(Self { read_from, effective, ..settings })
    }

    /// Every key with its value, secrets masked, as TOML.
    pub fn effective_toml(&self) -> String {
        toml::to_string_pretty(&self.effective_table()).unwrap_or_default()
    }

    /// Every key with its value, secrets masked, section by section.
    pub fn effective_table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        for (key, value) in &self.effective {
            let mut inner = &mut table;
            let mut parts = key.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    inner.insert(part.to_owned(), value.clone());
                } else {
                    let section = inner.entry(part).or_insert_with(|| Value::Table(toml::Table::new()));
                    let Value::Table(section) = section else { break };
                    inner = section;
                }
            }
        }
        // Its keys are numbered: in the file it is a list.
        if let Some(Value::Table(numbered)) = table.remove("source") {
            let mut sources: Vec<(usize, Value)> =
                numbered.into_iter().filter_map(|(number, source)| Some((number.parse().ok()?, source))).collect();
            sources.sort_by_key(|(number, _)| *number);
            table.insert("source".into(), Value::Array(sources.into_iter().map(|(_, source)| source).collect()));
        }
        table
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
