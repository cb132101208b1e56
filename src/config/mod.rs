//! The configuration: typed, documented at the field, validated whole (`pointsd.example.toml` has every key).

mod checks;
mod derived;
mod read;
mod setting;
mod source;
mod sources;
mod words;

use crate::{
    broker::{BrokerUrl, QueueType},
    database::DatabaseUrl,
    domain::{
        check::CheckPolicy,
        id_rule::IdRule,
        message::Format,
        retry::{Delay, RetryPolicy},
        source::Source,
        status::StatusValues,
        worth::Valuation,
    },
    pay_status::{Header, Identifier, TableName, UrlTemplate},
};
pub(crate) use read::is_pem;
pub use source::{Fault, ReadFrom};
use source::{Finished, Reader};
use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Value;
pub use words::{ExchangeType, LogFormat, LogLevel};
use words::{FormatWord, SourceWord, UnpaidWord};

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

/// `[broker]`: where messages come from.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// The nodes, tried in turn: at least one.
    pub urls: Vec<BrokerUrl>,
    /// The file that they are in, one a line: read again for each session.
    pub urls_file: Option<PathBuf>,
    /// For `amqps://`.
    pub tls: TlsFiles,
    /// The exchange that producers publish to: direct, durable.
    pub exchange: String,
    /// With which key.
    pub routing_key: String,
    /// The queue of points messages.
    pub credit_queue: String,
    /// The queue of checks.
    pub check_queue: String,
    /// The queue where what cannot be credited is parked.
    pub dead_queue: String,
    /// Of the queues that are declared.
    pub queue_type: QueueType,
    /// `x-delivery-limit` of consumed quorum queues.
    pub delivery_limit: i64,
    /// Whether to declare what is missing; otherwise it is only checked.
    pub declare: bool,
    /// Most unacknowledged deliveries.
    pub prefetch: u16,
}

/// Certificates, as PEM.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// `ca_file`, `cert_file` and `key_file`: read again for each session.
    pub files: [Option<PathBuf>; 3],
    /// The authorities that are trusted, instead of the system's.
    pub ca: Option<String>,
    /// The daemon's own certificate and its key, where the broker asks for one. The key is a secret.
    pub identity: Option<Identity>,
}

/// A client certificate and its key.
#[derive(Clone)]
pub struct Identity {
    /// PEM.
    pub certificate: Vec<u8>,
    /// PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

/// `[ledger]`: where credits go.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// Which database.
    pub url: DatabaseUrl,
    /// Batches that are committed at a time, each over a connection of its own.
    pub pool_size: u32,
    /// Most messages in one transaction.
    pub batch_max: usize,
    /// Deadline of every call.
    pub timeout: Duration,
    /// Whether `run` brings the schema up to date.
    pub auto_migrate: bool,
}

/// `[retry]`: what is done about a failure that may pass.
#[derive(Debug, Clone)]
pub struct RetrySettings {
    /// Attempts at a batch before it is split: at least 1.
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone.
    pub policy: RetryPolicy,
}

/// `[compensation]`: how credits are checked against their payments.
#[derive(Debug, Clone)]
pub struct CompensationSettings {
    /// How often and when, and what is done in the end.
    pub policy: CheckPolicy,
    /// Reversals in a row, without a paid payment between them, after which the checks pause: at least 1.
    pub brake_after: u32,
}

impl CompensationSettings {
    /// A credit that is older and unverified is overdue: the whole schedule of checks, the confirming one among them, and an
    /// hour for what waits behind an outage or a backlog.
    pub fn overdue_after(&self) -> Duration {
        const MARGIN: Duration = Duration::from_secs(3600);
        let delays = self.policy.delays();
        let milliseconds = delays.iter().chain(delays.last()).map(Delay::milliseconds).sum();
        Duration::from_millis(milliseconds) + MARGIN
    }
}

/// `[pay_status]`: what knows whether payments are paid.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub enum PayStatusSettings {
    /// Nothing: there are no checks.
    None,
    /// A table.
    Sql(SqlSourceSettings),
    /// A service or gateway.
    Http(HttpSourceSettings),
    /// The table first; where it is not certain, the gateway.
    SqlThenHttp(SqlSourceSettings, HttpSourceSettings),
}

impl PayStatusSettings {
    /// Whether there are checks.
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Which payment ids the source can be asked for.
    pub fn payment_ids(&self) -> IdRule {
        match self {
            Self::None | Self::Sql(_) => IdRule::Any,
            Self::Http(http) | Self::SqlThenHttp(_, http) => http.payment_ids.clone(),
        }
    }
}

/// `[pay_status.sql]`: a table.
#[derive(Debug, Clone)]
pub struct SqlSourceSettings {
    /// In which database: the ledger's unless another one is given.
    pub url: DatabaseUrl,
    /// Its name.
    pub table: TableName,
    /// The column with the payment's id.
    pub id_column: Identifier,
    /// The column with its status.
    pub status_column: Identifier,
    /// The column with its user, where the message's user must match.
    pub user_column: Option<Identifier>,
    /// The column with its points or its amount, where payments are credited from their records.
    pub value_column: Option<Identifier>,
    /// How that becomes points; there exactly where the column is.
    pub valuation: Option<Valuation>,
    /// What the statuses mean.
    pub values: StatusValues,
}

/// `[pay_status.http]`: a service.
#[derive(Debug, Clone)]
pub struct HttpSourceSettings {
    /// Where a payment is asked for.
    pub url: UrlTemplate,
    /// Where the status stands in the answer: a JSON Pointer.
    pub status_pointer: String,
    /// What the statuses mean.
    pub values: StatusValues,
    /// Of one request, its answer's body included.
    pub timeout: Duration,
    /// Most requests at a time.
    pub concurrency: usize,
    /// Sent with every request. Secrets.
    pub headers: Vec<Header>,
    /// The authorities that are trusted, instead of the system's: PEM.
    pub ca: Option<Vec<u8>>,
    /// `url_file`, `headers_file` and `ca_file`: read again while the daemon runs.
    pub files: HttpFiles,
    /// Which payment ids are accepted.
    pub payment_ids: IdRule,
}

/// The files of `[pay_status.http]`.
#[derive(Debug, Clone, Default)]
pub struct HttpFiles {
    /// Holds the URL.
    pub url: Option<PathBuf>,
    /// Holds the headers, one a line.
    pub headers: Option<PathBuf>,
    /// Holds the authorities.
    pub ca: Option<PathBuf>,
}

/// `[[source]]`: a further queue.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// Its name: the metrics' `queue` label, and the value of `x-pointsd-source`.
    pub name: String,
    /// The exchange that its messages are published to.
    pub exchange: String,
    /// Of which type that is.
    pub exchange_type: ExchangeType,
    /// With which key the queue is bound; for a fanout exchange it does not matter.
    pub routing_key: String,
    /// The queue.
    pub queue: String,
    /// Of which type that is.
    pub queue_type: QueueType,
    /// Whether to declare the exchange, the queue and its binding.
    pub declare: bool,
    /// How its bodies look, and what they mean.
    pub kind: SourceKind,
}

/// What the messages of a source are.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// Points messages, as those of the credit queue.
    Credit,
    /// Notifications, whose payments are looked up.
    Notification(Source),
}

/// `[events]`: what is made known.
#[derive(Debug, Clone)]
pub struct EventsSettings {
    /// The exchange, where events are wanted: topic, durable.
    pub exchange: Option<String>,
}

/// `[health]`
#[derive(Debug, Clone)]
pub struct HealthSettings {
    /// How long credits may wait for a commit before `/readyz` answers 503.
    pub stalled_after: Duration,
}

/// `[http]`
#[derive(Debug, Clone, Copy)]
pub struct HttpSettings {
    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Debug, Clone, Copy)]
pub struct LogSettings {
    /// What is logged.
    pub level: LogLevel,
    /// How.
    pub format: LogFormat,
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
            let Some(name) = name.into_string().ok().filter(|name| name.starts_with(source::PREFIX)) else { continue };
            // What is no setting may be anything.
            let value = match value.into_string() {
                Err(_) if source::is_nested(&name) => return Err(ConfigError::NotText(name)),
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
        let read = read::all(&mut reader, state_directory);
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
