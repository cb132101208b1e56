//! From a URL to a ledger.

use super::{
    Ledger,
    outbox::Outbox,
    postgres::{PostgresLedger, PostgresOutbox},
    sqlite::{SqliteLedger, SqliteOutbox},
};
use crate::database::DatabaseUrl;
use std::{sync::Arc, time::Duration};

/// What the caller is going to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Write: a SQLite file that is not there is made.
    Write,
    /// Read, beside a daemon that writes.
    Read,
}

/// How to open a ledger.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections of the pool that credits: at least 1.
    pub pool_size: u32,
    /// The deadline that the caller keeps. The database is told a shorter one, so that it can answer first.
    pub timeout: Duration,
    /// What for.
    pub access: Access,
    /// The exchange for events, where what is committed is to be made known (`[events]`).
    pub events: Option<String>,
}

/// Makes a ledger. Nothing is connected yet: that the database is down is found by the first call.
pub fn open(url: &DatabaseUrl, options: &Options) -> Arc<dyn Ledger> {
    match url {
        DatabaseUrl::Sqlite(file) => Arc::new(SqliteLedger::new(file, options)),
        DatabaseUrl::Postgres(uri) => Arc::new(PostgresLedger::new(uri, options)),
    }
}

/// Opens an outbox. Nothing is connected yet.
pub fn open_outbox(url: &DatabaseUrl, timeout: Duration) -> Arc<dyn Outbox> {
    match url {
        DatabaseUrl::Sqlite(file) => Arc::new(SqliteOutbox::new(file, timeout)),
        DatabaseUrl::Postgres(uri) => Arc::new(PostgresOutbox::new(uri, timeout)),
    }
}
