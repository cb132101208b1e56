//! The settings of the ledger and of its events.

use crate::database::DatabaseUrl;
use std::time::Duration;

/// The settings of the ledger (`[ledger]`).
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// The URL of the database.
    pub url: DatabaseUrl,
    /// The number of batches that are committed at a time, each on a connection of its own.
    pub pool_size: u32,
    /// The most messages in one transaction.
    pub batch_max: usize,
    /// The deadline of every call.
    pub timeout: Duration,
    /// Whether `run` migrates the schema.
    pub auto_migrate: bool,
}

/// The settings of the events (`[events]`).
#[derive(Debug, Clone)]
pub struct EventsSettings {
    /// The exchange to which events are published (topic, durable), if events are configured.
    pub exchange: Option<String>,
}
