//! The settings of the broker: where messages come from, and how its queues are named.

use super::BrokerUrl;
use crate::domain::{
    notification_source::NotificationSource,
    retry::{Delay, RetryPolicy},
};
use serde::Serialize;
use std::{fmt, path::PathBuf};

/// Everything that the broker's side of the daemon provides: queues, sessions, publishers.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `[broker]`
    pub broker: BrokerSettings,
    /// `[[source]]`: further queues that are consumed.
    pub sources: Vec<SourceSettings>,
    /// The delayed retries of every consumed queue.
    pub retry: RetryPolicy,
    /// Whether payments are checked. Without a payment source there are no check queues.
    pub has_checks: bool,
    /// Every delay before a check, in the order of [`crate::domain::check_schedule::CheckDelay::index`].
    pub check_delays: Vec<Delay>,
    /// The exchange of events, where events are enabled.
    pub events_exchange: Option<String>,
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
    Notification(NotificationSource),
}

/// The type of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    /// To the queues that are bound with the message's key.
    Direct,
    /// To every queue that is bound.
    Fanout,
    /// To the queues whose pattern the message's key matches.
    Topic,
}

impl ExchangeType {
    /// As it is written in the configuration.
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

/// The type of the queues that are declared (`broker.queue_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated, for clusters; redelivery is counted and limited.
    Quorum,
    /// On one node.
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

/// The queue in which the messages of `queue` wait for one step: another delay is another queue, because a queue's time
/// to live cannot be changed, and because per-message times expire only at a queue's head.
pub fn retry_queue(queue: &str, delay: &Delay) -> String {
    format!("{queue}.retry.{}", delay.as_str())
}

/// The queue in which messages wait for a check.
pub fn check_delay_queue(check_queue: &str, delay: &Delay) -> String {
    format!("{check_queue}.delay.{}", delay.as_str())
}
