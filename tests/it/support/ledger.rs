//! A ledger of each kind, empty and migrated.

use super::postgres::{self, Postgres};
use pointsd::{
    database::DatabaseUrl,
    ledger::{Access, Ledger, Options, open},
};
use std::{path::Path, sync::Arc, time::Duration};

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A place for a ledger.
pub struct Place {
    pub url: String,
    _folder: tempfile::TempDir,
}

impl Place {
    pub fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match kind {
            Kind::Sqlite => format!("sqlite:{}", folder.path().join("pointsd.db").display()),
            Kind::Postgres => postgres::shared().database(),
        };
        Self { url, _folder: folder }
    }

    pub fn parsed(&self) -> DatabaseUrl {
        DatabaseUrl::parse(&self.url, None).unwrap()
    }

    pub fn open(&self) -> Arc<dyn Ledger> {
        let options = Options { pool_size: 2, timeout: Duration::from_secs(10), access: Access::Write, events: None };
        open(&self.parsed(), &options)
    }

    /// Runs SQL behind the ledger's back.
    pub fn execute(&self, sql: &str) {
        match self.parsed() {
            DatabaseUrl::Postgres(url) => Postgres::execute(&url, sql),
            DatabaseUrl::Sqlite(file) => execute_sqlite(&file, sql),
        }
    }
}

fn execute_sqlite(file: &Path, sql: &str) {
    use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
    let mut connection = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    connection.batch_execute(sql).unwrap();
}
