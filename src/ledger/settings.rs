//! The settings of the ledger and of the events that it writes.

use crate::database::DatabaseUrl;
use std::time::Duration;

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

/// `[events]`: what is made known.
#[derive(Debug, Clone)]
pub struct EventsSettings {
    /// The exchange, where events are wanted: topic, durable.
    pub exchange: Option<String>,
}
