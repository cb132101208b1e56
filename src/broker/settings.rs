//! The settings of the broker, and the names of the delay queues.

use super::BrokerUrl;
use crate::domain::{
    notification_source::NotificationSource,
    retry::{Delay, RetryPolicy},
};
use serde::Serialize;
use std::{fmt, path::PathBuf};

/// The settings from which queues, sessions and publishers are built.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `[broker]`
    pub broker: BrokerSettings,
    /// `[[source]]`: further consumed queues.
    pub sources: Vec<SourceSettings>,
    /// The delayed retries of every consumed queue.
    pub retry: RetryPolicy,
    /// Whether payments are checked. Without a payment source there are no check queues.
    pub has_checks: bool,
    /// Every delay before a check, in the order of [`crate::domain::check_schedule::CheckDelay::index`].
    pub check_delays: Vec<Delay>,
    /// The exchange of events, if events are enabled.
    pub events_exchange: Option<String>,
}

/// The settings of `[broker]`.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// The nodes, at least one, tried in order.
    pub urls: Vec<BrokerUrl>,
    /// The file that contains the nodes, one a line; it is read again for each session.
    pub urls_file: Option<PathBuf>,
    /// The certificates for `amqps://`.
    pub tls: TlsFiles,
    /// The exchange that producers publish to: direct, durable.
    pub exchange: String,
    /// The routing key that binds the credit queue.
    pub routing_key: String,
    /// The credit queue.
    pub credit_queue: String,
    /// The check queue.
    pub check_queue: String,
    /// The dead queue.
    pub dead_queue: String,
    /// The type of the declared queues.
    pub queue_type: QueueType,
    /// `x-delivery-limit` of consumed quorum queues.
    pub delivery_limit: i64,
    /// Whether pointsd declares exchanges and queues; otherwise they must exist.
    pub declare: bool,
    /// The maximum number of unacknowledged deliveries.
    pub prefetch: u16,
}

/// Certificates and a key in PEM format.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// The paths `ca_file`, `cert_file` and `key_file`; the files are read again for each session.
    pub files: [Option<PathBuf>; 3],
    /// The trusted certificate authorities; without them, those of the system.
    pub ca: Option<String>,
    /// The client certificate and its key, for a broker that requires one. The key is a secret.
    pub identity: Option<Identity>,
}

/// A client certificate and its key.
#[derive(Clone)]
pub struct Identity {
    /// The certificate in PEM format.
    pub certificate: Vec<u8>,
    /// The private key in PEM format, a secret.
    pub key: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

/// The settings of a `[[source]]`, a further consumed queue.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// Its name, which is the `queue` label of metrics and the value of `x-pointsd-source`.
    pub name: String,
    /// The exchange of its messages.
    pub exchange: String,
    /// The type of the exchange.
    pub exchange_type: ExchangeType,
    /// The routing key of the binding; a fanout exchange ignores it.
    pub routing_key: String,
    /// The name of the queue.
    pub queue: String,
    /// The type of the queue.
    pub queue_type: QueueType,
    /// Whether pointsd declares the exchange, the queue and its binding.
    pub declare: bool,
    /// The format and the meaning of its messages.
    pub kind: SourceKind,
}

/// The kind of messages of a source.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// Points messages, like those of the credit queue.
    Credit,
    /// Notifications, which lead to look-ups of payments.
    Notification(NotificationSource),
}

/// The type of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    /// Routes to the queues that are bound with the key of the message.
    Direct,
    /// Routes to every bound queue.
    Fanout,
    /// Routes to the queues whose pattern matches the key of the message.
    Topic,
}

impl ExchangeType {
    /// The value in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
        }
    }
}

impl Serialize for ExchangeType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The type of declared queues (`broker.queue_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated, for clusters; counts and limits redeliveries.
    Quorum,
    /// Stored on one node.
    Classic,
}

impl QueueType {
    /// The value of `x-queue-type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// The name of the retry delay queue of `queue` for one retry step. Each delay has a separate queue, because the time
/// to live of a queue cannot change, and because messages with their own time to live expire only at the head of a
/// queue.
pub fn retry_queue(queue: &str, delay: &Delay) -> String {
    format!("{queue}.retry.{}", delay.as_str())
}

/// The name of the check delay queue for one delay.
pub fn check_delay_queue(check_queue: &str, delay: &Delay) -> String {
    format!("{check_queue}.delay.{}", delay.as_str())
}
