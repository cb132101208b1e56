//! Opens a ledger or an outbox for a URL.

use super::{
    Ledger,
    outbox::Outbox,
    postgres::{PostgresLedger, PostgresOutbox},
    sqlite::{SqliteLedger, SqliteOutbox},
};
use crate::database::DatabaseUrl;
use std::{sync::Arc, time::Duration};

/// The access that the caller needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Write access: a missing SQLite file is created.
    Write,
    /// Read access, while a daemon writes.
    Read,
}

/// The options for opening a ledger.
#[derive(Debug, Clone)]
pub struct Options {
    /// The number of connections of the pool that credits, at least 1.
    pub pool_size: u32,
    /// The deadline that the caller enforces. The database receives a shorter one, so that it can respond first.
    pub timeout: Duration,
    /// The access that the caller needs.
    pub access: Access,
    /// The exchange of the events that report committed changes, if events are configured (`[events]`).
    pub events: Option<String>,
}

/// Returns a ledger without connecting: the first call detects a database that is down.
pub fn open(url: &DatabaseUrl, options: &Options) -> Arc<dyn Ledger> {
    match url {
        DatabaseUrl::Sqlite(file) => Arc::new(SqliteLedger::new(file, options)),
        DatabaseUrl::Postgres(uri) => Arc::new(PostgresLedger::new(uri, options)),
    }
}

/// Returns an outbox without connecting.
pub fn open_outbox(url: &DatabaseUrl, timeout: Duration) -> Arc<dyn Outbox> {
    match url {
        DatabaseUrl::Sqlite(file) => Arc::new(SqliteOutbox::new(file, timeout)),
        DatabaseUrl::Postgres(uri) => Arc::new(PostgresOutbox::new(uri, timeout)),
    }
}
