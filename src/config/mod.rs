//! The configuration: typed, documented at the field, validated whole (`pointsd.example.toml` has every key).

mod source;

use crate::{
    broker::{BrokerUrl, QueueType},
    domain::{
        credit::{MAX_BATCH, MAX_POINTS_LIMIT},
        message::{Field, Format, Shape},
    },
    ledger::LedgerUrl,
};
pub use source::Fault;
use source::{Reader, Setting};
use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
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
    /// `[http]`
    pub http: HttpSettings,
    /// `[log]`
    pub log: LogSettings,
    effective: BTreeMap<String, Value>,
}

/// `[broker]`: where messages come from.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// The nodes, tried in turn: at least one.
    pub urls: Vec<BrokerUrl>,
    /// For `amqps://`.
    pub tls: TlsFiles,
    /// The exchange that producers publish to: direct, durable.
    pub exchange: String,
    /// With which key.
    pub routing_key: String,
    /// The queue of points messages.
    pub credit_queue: String,
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
    /// Authorities that are trusted beside the system's.
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
    pub url: LedgerUrl,
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
#[derive(Debug, Clone, Copy)]
pub struct RetrySettings {
    /// Attempts at a batch before it is split: at least 1.
    pub immediate_attempts: u32,
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

/// One of a few words.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, { $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$word_doc])* $variant),+
        }

        impl $name {
            /// As it is written in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Setting for $name {
            const WANTED: &'static str = $wanted;
            fn read(raw: &source::Raw) -> Option<Self> {
                match String::read(raw)?.as_str() { $($word => Some(Self::$variant),)+ _ => None }
            }
            fn show(&self) -> Value {
                Value::String(self.as_str().to_owned())
            }
        }
    };
}

word! {
    /// The least grave events that are logged.
    LogLevel, "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"", {
        /// Only what fails.
        Error = "error",
        /// Also what a person should look at.
        Warn = "warn",
        /// Also what changes the daemon's state.
        Info = "info",
        /// Also every batch.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

word! {
    /// How an event is written.
    LogFormat, "\"text\", \"json\" or \"journald\"", {
        /// A line for people, on standard error.
        Text = "text",
        /// A JSON object a line, on standard error.
        Json = "json",
        /// Structured, to the systemd journal.
        Journald = "journald",
    }
}

impl Setting for QueueType {
    const WANTED: &'static str = "\"quorum\" or \"classic\"";
    fn read(raw: &source::Raw) -> Option<Self> {
        match String::read(raw)?.as_str() {
            "quorum" => Some(Self::Quorum),
            "classic" => Some(Self::Classic),
            _ => None,
        }
    }
    fn show(&self) -> Value {
        Value::String(self.as_str().to_owned())
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named, or found, cannot be read.
    #[error("the configuration {} cannot be read: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is wrong with it: all of it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// Read when no file is named, the first one that is there.
const PLACES: [&str; 2] = ["pointsd.toml", "/etc/pointsd/pointsd.toml"];

impl Settings {
    /// Loads the file that is named, or one of the usual ones, or none; and the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match file {
            Some(file) => Some(file.to_owned()),
            None => PLACES.iter().map(PathBuf::from).find(|place| place.exists()),
        };
        let text = match &file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
                Some((file.display().to_string(), text))
            }
        };
        let state_directory = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
        // A variable that is no UTF-8 cannot be one of ours by its name, or is no value of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
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
        let shutdown_timeout = duration(&mut reader, "shutdown_timeout", 25);
        let broker = read_broker(&mut reader);
        let message = read_message(&mut reader);
        let ledger = read_ledger(&mut reader, state_directory);
        let retry = RetrySettings { immediate_attempts: number(&mut reader, "retry.immediate_attempts", 3, 1..=20) };
        let http =
            HttpSettings { listen: reader.setting("http.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 9187))) };
        let log = LogSettings {
            level: reader.setting("log.level", LogLevel::Info),
            format: reader.setting("log.format", LogFormat::Text),
        };
        let effective = reader.finish()?;
        // Both are there unless a fault was told.
        let (Some(broker), Some(ledger)) = (broker, ledger) else { return Err(Vec::new()) };
        Ok(Self { shutdown_timeout, broker, message, ledger, retry, http, log, effective })
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
        table
    }
}

/// A duration within a second and an hour.
fn duration(reader: &mut Reader, key: &str, default_seconds: u64) -> Duration {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    reader.checked(key, Duration::from_secs(default_seconds), "a duration from 1s to 1h, as in \"25s\"", |value| {
        bounds.contains(value)
    })
}

/// A whole number within a range.
fn number<T>(reader: &mut Reader, key: &str, default: i64, range: std::ops::RangeInclusive<i64>) -> T
where
    T: TryFrom<i64> + Default,
{
    let wanted = format!("a whole number from {} to {}", range.start(), range.end());
    // The range is within the type's, for every caller.
    T::try_from(reader.checked(key, default, &wanted, |value| range.contains(value))).unwrap_or_default()
}

/// A name of an exchange, a queue or a key: AMQP's short strings have at most 255 bytes.
fn name(reader: &mut Reader, key: &str, default: &str) -> String {
    let wanted = "1 to 255 bytes, not beginning with \"amq.\" (reserved by the broker)";
    reader.checked(key, default.to_owned(), wanted, |value| {
        (1..=255).contains(&value.len()) && !value.starts_with("amq.") && !value.contains(char::is_control)
    })
}

fn read_broker(reader: &mut Reader) -> Option<BrokerSettings> {
    let urls = read_broker_urls(reader);
    let tls = read_tls(reader, urls.iter().any(BrokerUrl::is_tls));
    let exchange = name(reader, "broker.exchange", "points");
    let routing_key = name(reader, "broker.routing_key", "points.credit");
    let credit_queue = name(reader, "broker.credit_queue", "points.credit");
    let dead_queue = name(reader, "broker.dead_queue", "points.dead");
    if credit_queue == dead_queue {
        reader.fault(
            "broker.dead_queue",
            "is the credit queue; must be another queue, or what is parked is consumed again",
        );
    }
    let queue_type = reader.setting("broker.queue_type", QueueType::Quorum);
    let delivery_limit = number(reader, "broker.delivery_limit", 1000, 1..=1_000_000);
    let declare = reader.setting("broker.declare", true);
    let prefetch = match queue_type {
        QueueType::Quorum => number(reader, "broker.prefetch", 2000, 1..=2000),
        QueueType::Classic => number(reader, "broker.prefetch", 2000, 1..=65_535),
    };
    (!urls.is_empty()).then_some(BrokerSettings {
        urls,
        tls,
        exchange,
        routing_key,
        credit_queue,
        dead_queue,
        queue_type,
        delivery_limit,
        declare,
        prefetch,
    })
}

const DEFAULT_BROKER_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

fn read_broker_urls(reader: &mut Reader) -> Vec<BrokerUrl> {
    let one = reader.secret("broker.url", |url: &String| masked(url));
    let many = reader.secret("broker.urls", |urls: &Vec<String>| urls.iter().map(|url| masked(url)).collect());
    let (key, urls) = match (one, many) {
        (Some(_), Some((key, _))) => {
            reader.fault(&key, "given together with broker.url; must be one of them");
            return Vec::new();
        }
        (Some((key, url)), None) => (key, vec![url]),
        (None, Some((key, urls))) => (key, urls),
        (None, None) => {
            if !reader.is_given("broker.url") && !reader.is_given("broker.url_file") {
                reader.show("broker.url", masked(DEFAULT_BROKER_URL).show());
            }
            ("broker.url".to_owned(), vec![DEFAULT_BROKER_URL.to_owned()])
        }
    };
    if urls.is_empty() {
        reader.fault(&key, "is an empty list; must have at least one amqp:// or amqps:// URL");
    }
    let mut parsed = Vec::with_capacity(urls.len());
    for (index, url) in urls.iter().enumerate() {
        match BrokerUrl::parse(url) {
            Ok(url) => parsed.push(url),
            Err(error) if urls.len() == 1 => reader.fault(&key, error),
            Err(error) => reader.fault(&key, format!("URL {} of {}: {error}", index + 1, urls.len())),
        }
    }
    if parsed.iter().any(BrokerUrl::is_tls) != parsed.iter().all(BrokerUrl::is_tls) {
        reader.fault(&key, "mixes amqp:// and amqps://; must be all of one kind, or a failover would drop encryption");
    }
    parsed
}

fn read_tls(reader: &mut Reader, used: bool) -> TlsFiles {
    let mut pem = |key: &str| -> Option<Vec<u8>> {
        let file: PathBuf = reader.optional(key)?;
        if !used {
            reader.fault(key, "is used only with amqps:// URLs; must be left out, or the URL is wrong");
        }
        match std::fs::read(&file) {
            Ok(bytes) if bytes.windows(10).any(|window| window == b"-----BEGIN") => Some(bytes),
            Ok(_) => {
                reader.fault(key, format!("{} is not a PEM file", file.display()));
                None
            }
            Err(error) => {
                reader.fault(key, format!("{} cannot be read: {error}", file.display()));
                None
            }
        }
    };
    let (ca, certificate, key) = (pem("broker.ca_file"), pem("broker.cert_file"), pem("broker.key_file"));
    if reader.is_given("broker.cert_file") != reader.is_given("broker.key_file") {
        let given = if reader.is_given("broker.cert_file") { "broker.cert_file" } else { "broker.key_file" };
        reader.fault(given, "given alone; broker.cert_file and broker.key_file must be given together");
    }
    TlsFiles {
        ca: ca.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        identity: certificate.zip(key).map(|(certificate, key)| Identity { certificate, key }),
    }
}

fn read_message(reader: &mut Reader) -> Format {
    let keys = [
        (Field::PaymentId, "message.payment_id"),
        (Field::UserId, "message.user_id"),
        (Field::Points, "message.points"),
    ];
    let pointers = keys.map(|(_, key)| reader.optional::<String>(key));
    let shape = Shape::new([pointers[0].as_deref(), pointers[1].as_deref(), pointers[2].as_deref()]);
    let shape = shape.unwrap_or_else(|(field, error)| {
        let wrong = keys.iter().find(|(of, _)| *of == field).map_or("message", |(_, key)| key);
        let given = pointers.iter().zip(keys).find(|(_, (of, _))| *of == field).and_then(|(given, _)| given.as_deref());
        reader.fault(wrong, format!("given {:?}; {error}", given.unwrap_or("its usual place")));
        Shape::default()
    });
    Format {
        shape,
        max_body_bytes: number(reader, "message.max_body_bytes", 65_536, 64..=134_217_728),
        max_points: number(reader, "message.max_points", 1_000_000_000, 1..=MAX_POINTS_LIMIT),
    }
}

const DEFAULT_LEDGER_URL: &str = "sqlite:pointsd.db";

fn read_ledger(reader: &mut Reader, state_directory: Option<&Path>) -> Option<LedgerSettings> {
    let (key, url) = reader.secret("ledger.url", |url: &String| masked(url)).unwrap_or_else(|| {
        if !reader.is_given("ledger.url") && !reader.is_given("ledger.url_file") {
            reader.show("ledger.url", DEFAULT_LEDGER_URL.to_owned().show());
        }
        ("ledger.url".to_owned(), DEFAULT_LEDGER_URL.to_owned())
    });
    let url = match LedgerUrl::parse(&url, state_directory) {
        Ok(url) => Some(url),
        Err(error) => {
            reader.fault(&key, error);
            None
        }
    };
    let auto_migrate = url.as_ref().is_some_and(LedgerUrl::auto_migrate_default);
    let pool_size = number(reader, "ledger.pool_size", 2, 1..=64);
    let batch_max = number(reader, "ledger.batch_max", 1000, 1..=i64::try_from(MAX_BATCH).unwrap_or(i64::MAX));
    let timeout = duration(reader, "ledger.timeout", 10);
    let auto_migrate = reader.setting("ledger.auto_migrate", auto_migrate);
    Some(LedgerSettings { url: url?, pool_size, batch_max, timeout, auto_migrate })
}

/// A URL with its password made unreadable, also one in its query, and also one whose special characters were not
/// encoded: everything from the first colon to the last `@` is hidden.
fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return hide_parameters(url) };
    let Some((user, host)) = rest.rsplit_once('@') else { return hide_parameters(url) };
    let user = match user.split_once(':') {
        Some((user, _)) => format!("{user}:***"),
        None => user.to_owned(),
    };
    hide_parameters(&format!("{scheme}://{user}@{host}"))
}

fn hide_parameters(url: &str) -> String {
    let Some((before, query)) = url.split_once('?') else { return url.to_owned() };
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.to_lowercase().contains("password") => format!("{name}=***"),
        _ => parameter.to_owned(),
    });
    format!("{before}?{}", parameters.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
