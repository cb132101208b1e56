//! The configuration: typed settings, documented at their fields and validated as a whole. `pointsd.example.toml` has every key.

mod common;
mod compensation;
mod derived;
mod keywords;
mod masking;
mod pay_status;
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
pub use reader::{Fault, ReadFrom};
use reader::{Finished, Reader};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Value;

/// All settings.
#[derive(Debug)]
pub struct Settings {
    /// The time in which a daemon that was asked to stop settles deliveries in flight.
    pub shutdown_timeout: Duration,
    /// Settings of the broker: `[broker]`.
    pub broker: BrokerSettings,
    /// Settings of points messages: `[message]`.
    pub message: Format,
    /// Settings of the ledger: `[ledger]`.
    pub ledger: LedgerSettings,
    /// Settings of retries: `[retry]`.
    pub retry: RetrySettings,
    /// Settings of checks: `[compensation]`.
    pub compensation: CompensationSettings,
    /// Settings of the payment source: `[pay_status]`.
    pub pay_status: PayStatusSettings,
    /// Settings of notification sources and further credit queues: `[[source]]`.
    pub sources: Vec<SourceSettings>,
    /// Settings of events: `[events]`.
    pub events: EventsSettings,
    /// Settings of health checks: `[health]`.
    pub health: HealthSettings,
    /// Settings of the endpoints: `[http]`.
    pub http: HttpSettings,
    /// Settings of the log: `[log]`.
    pub log: LogSettings,
    /// The places that the settings were read from.
    pub read_from: ReadFrom,
    effective: BTreeMap<String, Value>,
}

/// An error that prevents the configuration from being loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("the configuration {} cannot be read: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The value of an environment variable of pointsd is not UTF-8.
    #[error("environment variable {0}: is not UTF-8")]
    NotText(String),
    /// The faults of the configuration, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// The places of the configuration file if none is named. The first one that exists is read.
pub const PLACES: [&str; 2] = ["pointsd.toml", "/etc/pointsd/pointsd.toml"];

impl Settings {
    /// Loads the settings from a named file, or from the first of [`PLACES`] that exists, and from the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match file {
            Some(file) => Some(file.to_owned()),
            // A place that cannot be inspected counts as existing: the error of reading it is reported, and the defaults are not
            // used by mistake.
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
        // systemd separates several directories by colons.
        let state_directory = std::env::var("STATE_DIRECTORY").ok();
        let state_directory = state_directory.as_deref().and_then(|list| list.split(':').next()).map(PathBuf::from);
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            // A name that is not UTF-8 does not have the prefix.
            let Some(name) = name.into_string().ok().filter(|name| name.starts_with(reader::PREFIX)) else { continue };
            // The value of a variable that is not a setting may be anything.
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

    /// Reads the settings from the name and the text of a file, and from environment variables.
    pub fn read(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
        state_directory: Option<&Path>,
    ) -> Result<Self, Vec<Fault>> {
        let mut reader = Reader::new(file, environment);
        let read = sections::all(&mut reader, state_directory);
        let Finished { effective, read_from } = reader.finish()?;
        // Settings are missing only after a fault.
        let Some(settings) = read else { return Err(Vec::new()) };
        Ok(Self { read_from, effective, ..settings })
    }

    /// Every key with its effective value as TOML, with masked secrets.
    pub fn effective_toml(&self) -> String {
        toml::to_string_pretty(&self.effective_table()).unwrap_or_default()
    }

    /// Every key with its effective value by section, with masked secrets.
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
        // The sections of sources are numbered by key, but are a list in a file.
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
